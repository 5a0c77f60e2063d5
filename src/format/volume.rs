//! The object `volume`: what every other object of the volume relies on. Written once, before the first entry.
//!
//! ```text
//!  0  8  magic "umbravol"
//!  8  2  version 1
//! 10  1  encryption: 0 none; others are unknown to version 1
//! 11  5  zero
//! 16 16  id
//! 32  8  created, milliseconds since 1970, before the year 10000
//! 40 16  MAC of bytes 0 to 40
//! ```
//! Versions: 1 (2026-11): first.

use super::VolumeId;
use super::codec::{FormatError, Part, Reader, Result, Writer, within};
use super::keys::{Keys, MAC_LENGTH, Mac, MacKind};
use crate::units::Timestamp;

const MAGIC: &[u8; 8] = b"umbravol";
const VERSION: u16 = 1;
const MAC_AT: usize = 40;
const LENGTH: usize = MAC_AT + MAC_LENGTH;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeObject {
    pub id: VolumeId,
    pub created: Timestamp,
    pub encryption: Encryption,
}

impl VolumeObject {
    pub fn encode(&self, keys: &Keys) -> Vec<u8> {
        let encryption = match self.encryption {
            Encryption::None => 0,
        };
        let mut out = Writer::new();
        out.put(MAGIC).u16(VERSION).u8(encryption).put(&[0; 5]).put(&self.id.0).u64(self.created.0);
        let mac = keys.mac(MacKind::Volume, out.as_bytes());
        out.put(&mac.0);
        out.into_bytes()
    }

    /// `keys` are those of the volume under whose id the object was found.
    pub fn decode(keys: &Keys, bytes: &[u8]) -> Result<Self> {
        let part = Part::VolumeObject;
        let mut input = Reader::new(part, bytes);
        input.magic(MAGIC)?;
        input.version(VERSION)?;
        let encryption = match input.u8()? {
            0 => Encryption::None,
            found => return Err(FormatError::Unknown { part, offset: 10, field: "encryption", found: found.into() }),
        };
        input.reserved(5)?;
        let (id, created) = (VolumeId(input.array()?), Timestamp(input.u64()?));
        let mac = Mac(input.array()?);
        input.end()?;
        if mac != keys.mac(MacKind::Volume, &bytes[..MAC_AT]) {
            return Err(FormatError::Damaged { part, check: "MAC" });
        }
        if id != keys.volume() {
            return Err(FormatError::Foreign { part, field: "id" });
        }
        within(part, "time of creation", created.0, 0, Timestamp::MAX.0)?;
        Ok(Self { id, created, encryption })
    }
}

const _: () = assert!(LENGTH == 56);
