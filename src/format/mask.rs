//! How a record of an index writes which sectors of a block it is about.
//!
//! ```text
//! form, two bits of the record's first byte
//! 0  full                          no bytes
//! 1  one run, multiples of 8       1 byte: first/8 · 16 + count/8 − 1
//! 2  one run                       2 bytes: first, count − 1
//! 3  anything else                 16 bytes
//! ```
//! The first form that fits is the only one that is accepted. Most writes are runs of 4 KiB pages.

use super::codec::{FormatError, Reader, Result, Writer};
use crate::units::{Mask, SECTORS_PER_BLOCK};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MaskForm {
    Full,
    Pages(u8),
    Run(u8, u8),
    Any(u128),
}

impl MaskForm {
    /// The shortest form: the only one that is accepted.
    pub(super) fn of(mask: Mask) -> Self {
        let mut runs = mask.runs();
        match (runs.next(), runs.next()) {
            (Some((0, SECTORS_PER_BLOCK)), None) => Self::Full,
            (Some((first, count)), None) if first % 8 == 0 && count % 8 == 0 => {
                Self::Pages((first * 2 + count / 8 - 1) as u8)
            }
            (Some((first, count)), None) => Self::Run(first as u8, (count - 1) as u8),
            _ => Self::Any(mask.0),
        }
    }
    pub(super) fn bits(self) -> u8 {
        match self {
            Self::Full => 0,
            Self::Pages(_) => 1,
            Self::Run(..) => 2,
            Self::Any(_) => 3,
        }
    }
    pub(super) fn encode(self, out: &mut Writer) {
        match self {
            Self::Full => out,
            Self::Pages(byte) => out.u8(byte),
            Self::Run(first, count) => out.u8(first).u8(count),
            Self::Any(bits) => out.u128(bits),
        };
    }
    pub(super) fn decode(bits: u8, input: &mut Reader<'_>) -> Result<Mask> {
        let offset = input.offset();
        let refused = FormatError::NotCanonical { part: input.part(), offset };
        let form = match bits {
            0 => Self::Full,
            1 => Self::Pages(input.u8()?),
            2 => Self::Run(input.u8()?, input.u8()?),
            _ => Self::Any(input.u128()?),
        };
        let run = |first: u32, count: u32| (first + count <= SECTORS_PER_BLOCK).then(|| Mask::range(first, count));
        let mask = match form {
            Self::Full => Some(Mask::FULL),
            Self::Pages(byte) => run(u32::from(byte / 16) * 8, (u32::from(byte % 16) + 1) * 8),
            Self::Run(first, count) => run(first.into(), u32::from(count) + 1),
            Self::Any(bits) => Some(Mask(bits)),
        };
        mask.filter(|mask| Self::of(*mask) == form).ok_or(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::codec::Part;

    fn decode(form: u8, bytes: &[u8]) -> Result<Mask> {
        MaskForm::decode(form, &mut Reader::new(Part::PackPage, bytes))
    }

    #[test]
    fn a_mask_has_one_form() {
        let sixteen = |mask: Mask| decode(3, &mask.0.to_le_bytes());
        let refused = Err(FormatError::NotCanonical { part: Part::PackPage, offset: 0 });
        assert_eq!(decode(0, &[]), Ok(Mask::FULL));
        assert_eq!(decode(1, &[0x0f]), refused, "full has no bytes");
        assert_eq!(decode(2, &[0, 127]), refused, "full has no bytes");
        assert_eq!(sixteen(Mask::FULL), refused, "full has no bytes");
        assert_eq!(decode(1, &[0xf0]), Ok(Mask::range(120, 8)));
        assert_eq!(decode(1, &[0xf1]), refused, "over the end");
        assert_eq!(decode(2, &[120, 7]), refused, "pages take one byte");
        assert_eq!(sixteen(Mask::range(120, 8)), refused, "pages take one byte");
        assert_eq!(decode(2, &[127, 0]), Ok(Mask::range(127, 1)));
        assert_eq!(decode(2, &[127, 1]), refused, "over the end");
        assert_eq!(decode(2, &[255, 255]), refused, "over the end");
        assert_eq!(sixteen(Mask::range(127, 1)), refused, "a run takes two bytes");
        assert_eq!(sixteen(Mask(0b101)), Ok(Mask(0b101)));
    }
}
