//! Names of objects in the bucket, and the text forms of what they are made of.
//!
//! Owns: the keys (under the prefix, which `remote` adds), and the object `names/<name>`, whose body is the volume's
//! id in 32 hexadecimal digits and a newline, so that people can read it.
//!
//! ```text
//! names/<name>                                    1 to 63 of a–z 0–9 . _ -, the first a letter or digit
//! <id>/volume                                     id: 32 lower-case hexadecimal digits
//! <id>/packs/<generation>-<number>                %08x-%016x
//! <id>/runs/<generation>-<number>                 %08x-%016x
//! <id>/chain/<number>                             %020d: sorts as it counts
//! ```

use std::fmt;
use std::str::FromStr;

use super::codec::{FormatError, Part, Result};
use super::{InstanceId, ObjectHash, ObjectRef, VolumeId};
use crate::units::EntryNumber;

/// The longest name of a volume, bytes: a label of DNS, so that it can stand in host names and IQNs too.
pub const VOLUME_NAME_MAX: usize = 63;

/// What people call a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

impl VolumeName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self> {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let valid = text.len() <= VOLUME_NAME_MAX
            && text.bytes().next().is_some_and(alphanumeric)
            && text.bytes().all(|byte| alphanumeric(byte) || b"._-".contains(&byte));
        if valid { Ok(Self(text.to_owned())) } else { Err(FormatError::Text { part: Part::VolumeName }) }
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// 32 lower-case hexadecimal digits; nothing else, so that an id has one form.
fn read_hex(text: &str) -> Result<[u8; 16]> {
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    match u128::from_str_radix(text, 16) {
        Ok(value) if digits => Ok(value.to_be_bytes()),
        _ => Err(FormatError::Text { part: Part::Identifier }),
    }
}

macro_rules! hex_text {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    )*};
}
hex_text!(VolumeId InstanceId ObjectHash);

impl fmt::Debug for super::ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentHash(")?;
        write_hex(f, &self.0)?;
        f.write_str(")")
    }
}

impl FromStr for VolumeId {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self> {
        read_hex(text).map(Self)
    }
}

impl FromStr for InstanceId {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self> {
        read_hex(text).map(Self)
    }
}

impl VolumeName {
    /// Key of the object that says which volume has this name.
    pub fn key(&self) -> String {
        format!("names/{self}")
    }
}

impl VolumeId {
    /// Body of the object under [`VolumeName::key`].
    pub fn to_name_object(self) -> String {
        format!("{self}\n")
    }
    pub fn from_name_object(body: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(body).ok().and_then(|text| text.strip_suffix('\n'));
        text.ok_or(FormatError::Text { part: Part::NameObject })?.parse()
    }

    /// Key of the object [`super::volume`].
    pub fn volume_key(self) -> String {
        format!("{self}/volume")
    }
    pub fn pack_key(self, pack: &ObjectRef) -> String {
        format!("{self}/packs/{:08x}-{:016x}", pack.generation.0, pack.number)
    }
    pub fn run_key(self, run: &ObjectRef) -> String {
        format!("{self}/runs/{:08x}-{:016x}", run.generation.0, run.number)
    }
    pub fn entry_key(self, number: EntryNumber) -> String {
        format!("{self}/chain/{number:020}", number = number.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Generation;

    #[test]
    fn keys_are_as_the_format_says() {
        let id = VolumeId(*b"\x01\x23\x45\x67\x89\xab\xcd\xef\0\0\0\0\0\0\0\x0f");
        let hex = "0123456789abcdef000000000000000f";
        let object = ObjectRef { generation: Generation(0x1a), number: 0x2b, length: 1, hash: ObjectHash([0; 32]) };
        assert_eq!("disk0".parse::<VolumeName>().unwrap().key(), "names/disk0");
        assert_eq!(id.volume_key(), format!("{hex}/volume"));
        assert_eq!(id.pack_key(&object), format!("{hex}/packs/0000001a-000000000000002b"));
        assert_eq!(id.run_key(&object), format!("{hex}/runs/0000001a-000000000000002b"));
        assert_eq!(id.entry_key(EntryNumber(812)), format!("{hex}/chain/00000000000000000812"));
        assert_eq!(id.to_name_object(), format!("{hex}\n"));
        assert_eq!(VolumeId::from_name_object(id.to_name_object().as_bytes()), Ok(id));
    }

    #[test]
    fn an_id_has_one_text_form() {
        for wrong in ["", "0123456789ABCDEF000000000000000F", "+123456789abcdef000000000000000f", "0123"] {
            assert_eq!(wrong.parse::<VolumeId>(), Err(FormatError::Text { part: Part::Identifier }), "{wrong}");
        }
        let id = "0123456789abcdef000000000000000f";
        assert!(VolumeId::from_name_object(id.as_bytes()).is_err(), "without its newline it may be cut off");
        assert!(VolumeId::from_name_object(format!("{id}\n\n").as_bytes()).is_err());
    }

    #[test]
    fn a_name_that_could_leave_its_folder_is_refused() {
        let long = "a".repeat(VOLUME_NAME_MAX);
        for right in ["0", "disk0", "a.b_c-d", &long] {
            assert_eq!(right.parse::<VolumeName>().unwrap().as_str(), right);
        }
        let long = "a".repeat(VOLUME_NAME_MAX + 1);
        for wrong in ["", ".", "..", "a/b", "-a", "_a", "Disk", "dïsk", "a b", "a\n", &long] {
            assert!(wrong.parse::<VolumeName>().is_err(), "{wrong:?}");
        }
    }
}
