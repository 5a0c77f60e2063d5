//! Words that everything uses: sizes with a reason, numbers that must not be swapped, ranges and sector masks.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;
pub const GIB: u64 = 1024 * MIB;
pub const TIB: u64 = 1024 * GIB;

/// Unit of masks, locks and log offsets: the smallest unit in which a disk is written atomically.
pub const SECTOR: u64 = 512;
/// Unit of the remote format: small enough that one index record describes a random write cheaply, and an eighth of
/// the 512 KiB blocks of Amazon's EBS direct API.
pub const BLOCK: u64 = 64 * KIB;
pub const SECTORS_PER_BLOCK: u32 = (BLOCK / SECTOR) as u32;
/// Unit of marks and of a scan: what is re-read when it is not known to be equal to the remote copy.
pub const REGION: u64 = 4 * MIB;
/// The largest volume that the format and the bitmaps are sized for.
pub const VOLUME_MAX: u64 = 64 * TIB;
/// The largest single request that is accepted from a client, and the largest payload of a log record.
pub const REQUEST_MAX: u32 = 32 * MIB as u32;

const _: () = assert!(SECTORS_PER_BLOCK == u128::BITS);
const _: () = assert!(REGION.is_multiple_of(BLOCK));

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl $name {
            /// The number after this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
    };
}

number! {
    /// Counts the changes that clients asked for, over all volumes of a gateway; never used twice.
    Sequence(u64)
}
number! {
    /// Dense position of a record in one volume's log; the first is 1.
    LogIndex(u64)
}
number! {
    /// Counts the openings of a volume for writing; a higher one fences the lower ones.
    Generation(u32)
}
number! {
    /// Number of an entry of the chain: 1, 2, 3 … without gaps.
    EntryNumber(u64)
}
number! {
    /// Number of a 64 KiB block of a volume.
    Block(u64)
}

impl Block {
    /// First byte of the block.
    pub fn offset(self) -> u64 {
        self.0 * BLOCK
    }
    /// The block that holds this byte.
    pub fn of(offset: u64) -> Self {
        Self(offset / BLOCK)
    }
}

impl Sequence {
    /// Leaves room to count on behind any that is read, with whole steps of reservation.
    pub const MAX: Self = Self(u64::MAX / 2);
}

impl LogIndex {
    /// Far beyond what is ever reached, and far from what overflows.
    pub const MAX: Self = Self(u64::MAX >> 1);
}

/// Milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The end of the year 9999: RFC 3339 has no way to write more.
    pub const MAX: Self = Self(253_402_300_799_999);

    pub fn from_system(time: SystemTime) -> Self {
        Self(time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64))
    }
    /// Reads RFC 3339, as in `2026-11-22T17:41:03.250Z`; also without `T`, and without a zone (UTC).
    pub fn parse(text: &str) -> Option<Self> {
        humantime::parse_rfc3339_weak(text).or_else(|_| humantime::parse_rfc3339(text)).ok().map(Self::from_system)
    }
    /// Time from `earlier` to `self`; zero if it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.min(Self::MAX.0));
        humantime::format_rfc3339_millis(time).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A half-open range of bytes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub start: u64,
    pub end: u64,
}

impl Span {
    pub fn new(start: u64, end: u64) -> Self {
        debug_assert!(start <= end);
        Self { start, end }
    }
    /// `length` bytes from `start`.
    pub fn at(start: u64, length: u64) -> Self {
        Self { start, end: start + length }
    }
    pub fn len(self) -> u64 {
        self.end - self.start
    }
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
    pub fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
    /// The part that both have in common; empty (at `self.start`) if there is none.
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        if start < end { Self { start, end } } else { Self { start: self.start, end: self.start } }
    }
    /// The smallest range of whole units that holds this one.
    pub fn rounded_out(self, unit: u64) -> Self {
        Self { start: self.start / unit * unit, end: self.end.div_ceil(unit) * unit }
    }
    /// The largest range of whole units inside this one; empty (at the rounded-up start) if there is none.
    pub fn rounded_in(self, unit: u64) -> Self {
        let start = self.start.div_ceil(unit) * unit;
        Self { start, end: (self.end / unit * unit).max(start) }
    }
    /// It in pieces of at most `length`, cut at multiples of `length`.
    pub fn pieces(self, length: u64) -> impl Iterator<Item = Self> + Send {
        let mut at = self.start;
        std::iter::from_fn(move || {
            let piece = Self::new(at, ((at / length + 1) * length).min(self.end));
            at = piece.end;
            (!piece.is_empty()).then_some(piece)
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

/// A set of the 128 sectors of a block; bit 0 is the first sector.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Mask(pub u128);

impl Mask {
    pub const NONE: Self = Self(0);
    pub const FULL: Self = Self(u128::MAX);

    /// `count` sectors from `first`; `first + count` is at most 128.
    pub fn range(first: u32, count: u32) -> Self {
        debug_assert!(first + count <= SECTORS_PER_BLOCK);
        if count == 0 { Self::NONE } else { Self((u128::MAX >> (SECTORS_PER_BLOCK - count)) << first) }
    }
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// The runs of consecutive sectors in it, as (first, count), in order.
    pub fn runs(self) -> impl Iterator<Item = (u32, u32)> {
        let mut rest = self.0;
        let mut base = 0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let skip = rest.trailing_zeros();
            rest >>= skip;
            let count = rest.trailing_ones();
            rest = rest.checked_shr(count).unwrap_or(0);
            let first = base + skip;
            base = first + count;
            Some((first, count))
        })
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mask({:#x})", self.0)
    }
}

/// Whether all bytes are zero, at the speed of a comparison.
pub fn is_zero(bytes: &[u8]) -> bool {
    static ZEROES: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROES.len()).all(|part| part == &ZEROES[..part.len()])
}

/// A number of bytes for people: `1.5 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_time_can_be_shown() {
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999Z");
        assert_eq!(Timestamp(u64::MAX).to_string(), Timestamp::MAX.to_string());
        assert_eq!(Timestamp::parse("9999-12-31T23:59:59.999Z"), Some(Timestamp::MAX));
    }

    #[test]
    fn a_mask_names_its_runs_in_order() {
        assert_eq!(Mask::range(0, 128), Mask::FULL);
        assert_eq!(Mask::FULL.runs().collect::<Vec<_>>(), [(0, 128)]);
        assert_eq!(Mask::NONE.runs().count(), 0);
        let mask = Mask::range(0, 1).or(Mask::range(5, 3)).or(Mask::range(126, 2));
        assert_eq!(mask.runs().collect::<Vec<_>>(), [(0, 1), (5, 3), (126, 2)]);
    }

    #[test]
    fn a_range_without_a_whole_unit_rounds_in_to_nothing() {
        assert!(Span::new(1, 1023).rounded_in(512).is_empty());
        assert_eq!(Span::new(1, 1025).rounded_in(512), Span::new(512, 1024));
        assert_eq!(Span::new(1, 1025).rounded_out(512), Span::new(0, 1536));
    }

    #[test]
    fn a_time_prints_as_it_is_read() {
        let time = Timestamp::parse("2026-11-22T17:41:03.250Z").unwrap();
        assert_eq!(time.to_string(), "2026-11-22T17:41:03.250Z");
        assert_eq!(Timestamp::parse("yesterday"), None);
    }
}
