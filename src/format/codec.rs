//! Reading and writing of numbers and byte strings, and the one error of every decoder.
//!
//! Owns: bounds, canonical numbers, saying where in what something was wrong. Does not own: what the bytes mean.
//!
//! ```text
//! u8 u16 u32 u64    little endian
//! leb               unsigned LEB128, 1 to 10 bytes, the shortest that holds the number
//! ```

use std::fmt;

use crate::units::is_zero;

/// What was being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    VolumeName,
    /// The text form of a volume's or an instance's id.
    Identifier,
    NameObject,
    VolumeObject,
    Entry,
    PackFooter,
    PackDirectory,
    PackPage,
    /// The stored bytes of one record of a pack.
    PackRecord,
    /// A pack as a whole.
    Pack,
    RunFooter,
    RunDirectory,
    RunTable,
    RunPage,
    /// A run as a whole.
    Run,
    LogSegment,
    LogRecord,
    MarksHeader,
    MarksPage,
    MarksTransaction,
    /// The file of the region marks as a whole.
    Marks,
    /// The document of a SCSI unit's persistent reservations.
    Reservations,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VolumeName => "volume name",
            Self::Identifier => "identifier",
            Self::NameObject => "name object",
            Self::VolumeObject => "volume object",
            Self::Entry => "chain entry",
            Self::PackFooter => "footer of pack",
            Self::PackDirectory => "directory of pack",
            Self::PackPage => "index page of pack",
            Self::PackRecord => "record of pack",
            Self::Pack => "pack",
            Self::RunFooter => "footer of run",
            Self::RunDirectory => "directory of run",
            Self::RunTable => "table of run",
            Self::RunPage => "index page of run",
            Self::Run => "run",
            Self::LogSegment => "segment header of the log",
            Self::LogRecord => "record header of the log",
            Self::MarksHeader => "header of the region marks",
            Self::MarksPage => "page of the region marks",
            Self::MarksTransaction => "transaction of the region marks",
            Self::Marks => "region marks",
            Self::Reservations => "persistent reservations",
        })
    }
}

/// Why bytes are not what they should be. Offsets count bytes from the start of the part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("{part}: ends too early: {needed} more bytes expected at offset {offset}, {found} there")]
    Truncated { part: Part, offset: usize, needed: u64, found: usize },
    #[error("{part}: {excess} bytes too many at offset {offset}")]
    Trailing { part: Part, offset: usize, excess: usize },
    #[error("{part}: not the shortest or only form of its content at offset {offset}")]
    NotCanonical { part: Part, offset: usize },
    #[error("{part}: begins with {found:02x?}, so it is something else")]
    WrongMagic { part: Part, found: [u8; 8] },
    #[error("{part}: has format version {found}, this program reads up to {known}")]
    UnknownVersion { part: Part, found: u32, known: u32 },
    #[error("{part}: unknown {field} {found} at offset {offset}")]
    Unknown { part: Part, offset: usize, field: &'static str, found: u64 },
    #[error("{part}: {field} is {found}, allowed are {min} to {max}")]
    OutOfRange { part: Part, field: &'static str, found: u64, min: u64, max: u64 },
    #[error("{part}: {field} is {found}, {expected} was expected")]
    Mismatch { part: Part, field: &'static str, found: u64, expected: u64 },
    /// Belongs to another volume, log or object.
    #[error("{part}: {field} is that of another")]
    Foreign { part: Part, field: &'static str },
    /// A checksum, hash or MAC says that the bytes were changed, or never were this part.
    #[error("{part}: damaged: its {check} does not match")]
    Damaged { part: Part, check: &'static str },
    #[error("{part}: item {item} is out of order or overlaps another")]
    Disorder { part: Part, item: u64 },
    #[error("{part}: cannot be decompressed to {expected} bytes")]
    Decompression { part: Part, expected: usize },
    #[error("{part}: not text of the right form")]
    Text { part: Part },
}

pub type Result<T> = std::result::Result<T, FormatError>;

/// Refuses a number outside `min..=max`.
pub(super) fn within(part: Part, field: &'static str, found: u64, min: u64, max: u64) -> Result<u64> {
    if (min..=max).contains(&found) { Ok(found) } else { Err(FormatError::OutOfRange { part, field, found, min, max }) }
}

/// Takes a part to pieces from its start. After an error nothing more should be read.
#[derive(Clone)]
pub struct Reader<'a> {
    part: Part,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(part: Part, bytes: &'a [u8]) -> Self {
        Self { part, bytes, at: 0 }
    }
    pub fn part(&self) -> Part {
        self.part
    }
    pub fn offset(&self) -> usize {
        self.at
    }
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }
    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    pub fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        match usize::try_from(length).ok().filter(|length| *length <= self.remaining()) {
            Some(length) => {
                let taken = &self.bytes[self.at..self.at + length];
                self.at += length;
                Ok(taken)
            }
            None => {
                let (part, offset, found) = (self.part, self.at, self.remaining());
                Err(FormatError::Truncated { part, offset, needed: length, found })
            }
        }
    }
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }
    pub fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub fn u128(&mut self) -> Result<u128> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    pub fn leb(&mut self) -> Result<u64> {
        let offset = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit; a last byte of zero says that a shorter form exists.
            if (shift == 63 && byte > 1) || (shift > 0 && byte == 0) {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(FormatError::NotCanonical { part: self.part, offset })
    }
    /// A LEB128 number in `min..=max`.
    pub fn leb_within(&mut self, field: &'static str, min: u64, max: u64) -> Result<u64> {
        within(self.part, field, self.leb()?, min, max)
    }

    pub fn magic(&mut self, expected: &[u8; 8]) -> Result<()> {
        let found = self.array()?;
        if found == *expected { Ok(()) } else { Err(FormatError::WrongMagic { part: self.part, found }) }
    }
    /// A version that this program reads; each number up to `known` was one.
    pub fn version(&mut self, known: u16) -> Result<u16> {
        let found = self.u16()?;
        if (1..=known).contains(&found) {
            Ok(found)
        } else {
            Err(FormatError::UnknownVersion { part: self.part, found: found.into(), known: known.into() })
        }
    }
    /// `length` bytes that must be zero, kept for later.
    pub fn reserved(&mut self, length: u64) -> Result<()> {
        let offset = self.at;
        if is_zero(self.take(length)?) { Ok(()) } else { Err(FormatError::NotCanonical { part: self.part, offset }) }
    }

    pub fn end(self) -> Result<()> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(FormatError::Trailing { part: self.part, offset: self.at, excess: self.remaining() })
        }
    }
}

/// Appends to a byte string.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
    pub fn len(&self) -> usize {
        self.0.len()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.put(&[value])
    }
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_le_bytes())
    }
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_le_bytes())
    }
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_le_bytes())
    }
    pub fn u128(&mut self, value: u128) -> &mut Self {
        self.put(&value.to_le_bytes())
    }
    pub fn leb(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leb(bytes: &[u8]) -> Result<u64> {
        let mut reader = Reader::new(Part::Entry, bytes);
        let value = reader.leb()?;
        reader.end()?;
        Ok(value)
    }

    #[test]
    fn a_longer_form_of_a_number_is_refused() {
        let refused = Err(FormatError::NotCanonical { part: Part::Entry, offset: 0 });
        assert_eq!(leb(&[0x80, 0x00]), refused);
        assert_eq!(leb(&[0xff, 0x80, 0x00]), refused);
        assert_eq!(leb(&[0xff; 10]), refused);
        assert_eq!(leb(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), refused);
        assert_eq!(leb(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), Ok(u64::MAX));
        assert_eq!(leb(&[0x80, 0x80, 0x01]), Ok(1 << 14));
    }

    #[test]
    fn a_length_beyond_the_end_is_refused_before_anything_is_allocated() {
        let mut reader = Reader::new(Part::Entry, &[1, 2, 3]);
        reader.u8().unwrap();
        let refused = FormatError::Truncated { part: Part::Entry, offset: 1, needed: u64::MAX, found: 2 };
        assert_eq!(reader.take(u64::MAX), Err(refused));
    }

    proptest! {
        #[test]
        fn every_number_reads_back_and_has_one_form(value: u64, bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let mut writer = Writer::new();
            writer.leb(value);
            prop_assert_eq!(leb(writer.as_bytes()), Ok(value));
            if let Ok(value) = leb(&bytes) {
                let mut writer = Writer::new();
                writer.leb(value);
                prop_assert_eq!(writer.into_bytes(), bytes);
            }
        }
    }
}
