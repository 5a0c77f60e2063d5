//! The document that persistent reservations are kept in, where they are to outlast a loss of power (APTPL).
//!
//! ```text
//!  0  8  magic "umbrapr\0"
//!  8  2  version 1
//! 10  1  TYPE of the reservation, 0 if there is none
//! 11  1  zero
//! 12  2  number of the registration whose port holds it, FFFFh if none or all do
//! 14  2  count of registrations; of each:
//!        8  key, not zero
//!        2  relative target port identifier
//!        6  ISID
//!        1  length of the initiator's name, then the name, UTF-8
//!     4  CRC-32C of all that precedes
//! ```
//! Little endian. PRGENERATION begins at zero again (SPC-4, 6.15.2). Versions: 1 (2026-11): first.

use std::io;

use super::reservations::{InitiatorPort, REGISTRATIONS_MAX, Registration, Reservation, Reservations, Type};
use crate::format::codec::{FormatError, Part, Reader, Result, Writer};
use crate::format::log::crc32c;

const MAGIC: &[u8; 8] = b"umbrapr\0";
const VERSION: u16 = 1;
const NOBODY: u16 = u16::MAX;
const CRC_LENGTH: usize = 4;

const _: () = assert!(REGISTRATIONS_MAX < NOBODY as usize);

/// Where the document is kept. Both calls block.
pub trait Keep: Send + Sync + 'static {
    /// What was stored last; none if nothing ever was.
    fn load(&self) -> io::Result<Option<Vec<u8>>>;

    /// Returns when the document is durable in place of the one before. After an error either may be there.
    fn store(&self, document: &[u8]) -> io::Result<()>;
}

pub(super) fn encode(reservations: &Reservations) -> Vec<u8> {
    let Reservations { registrations, held, .. } = reservations;
    let holder = held.as_ref().and_then(|held| held.holder.as_ref());
    let holder = holder.and_then(|holder| registrations.iter().position(|registration| registration.port == *holder));
    let holder = holder.map_or(NOBODY, |index| index as u16);
    let mut out = Writer::new();
    out.put(MAGIC).u16(VERSION);
    out.u8(held.as_ref().map_or(0, |held| held.kind as u8)).u8(0).u16(holder).u16(registrations.len() as u16);
    for Registration { port, key } in registrations {
        let name = port.bounded_name().as_bytes();
        out.u64(*key).u16(port.target_port).put(&port.isid).u8(name.len() as u8).put(name);
    }
    let crc = crc32c(out.as_bytes());
    out.u32(crc);
    out.into_bytes()
}

pub(super) fn decode(document: &[u8]) -> Result<Reservations> {
    let part = Part::Reservations;
    let mut whole = Reader::new(part, document);
    let told = whole.take(document.len().saturating_sub(CRC_LENGTH) as u64)?;
    let crc = whole.u32()?;
    let mut input = Reader::new(part, told);
    input.magic(MAGIC)?;
    input.version(VERSION)?;
    if crc != crc32c(told) {
        return Err(FormatError::Damaged { part, check: "CRC" });
    }
    let offset = input.offset();
    let kind = match input.u8()? {
        0 => None,
        code => match Type::of(code) {
            Some(kind) => Some(kind),
            None => return Err(FormatError::Unknown { part, offset, field: "type", found: code.into() }),
        },
    };
    input.reserved(1)?;
    let (holder, count) = (input.u16()?, input.u16()?);
    let out_of_range = |field, found, min, max| FormatError::OutOfRange { part, field, found, min, max };
    if usize::from(count) > REGISTRATIONS_MAX {
        return Err(out_of_range("registrations", count.into(), 0, REGISTRATIONS_MAX as u64));
    }
    let mut registrations = Vec::with_capacity(count.into());
    for _ in 0..count {
        let (key, target_port, isid) = (input.u64()?, input.u16()?, input.array()?);
        let length = input.u8()?;
        let name = std::str::from_utf8(input.take(length.into())?).map_err(|_| FormatError::Text { part })?;
        if key == 0 {
            return Err(out_of_range("key", key, 1, u64::MAX));
        }
        registrations.push(Registration { port: InitiatorPort { name: name.to_owned(), isid, target_port }, key });
    }
    input.end()?;
    let held = match kind {
        Some(kind) if kind.is_of_all() && count > 0 => Some(Reservation { kind, holder: None }),
        Some(kind) => match registrations.get(usize::from(holder)) {
            Some(registration) => Some(Reservation { kind, holder: Some(registration.port.clone()) }),
            None => return Err(out_of_range("holder", holder.into(), 0, count.saturating_sub(1).into())),
        },
        None => None,
    };
    Ok(Reservations { generation: 0, registrations, held, persists: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str) -> InitiatorPort {
        InitiatorPort { name: name.into(), isid: [0x80, 1, 2, 3, 4, 5], target_port: 1 }
    }

    fn held() -> Reservations {
        let registrations =
            vec![Registration { port: port("iqn.a"), key: 0x1122 }, Registration { port: port("iqn.b"), key: 7 }];
        let held = Some(Reservation { kind: Type::WriteExclusive, holder: Some(port("iqn.b")) });
        Reservations { generation: 0, registrations, held, persists: true }
    }

    #[test]
    fn a_document_of_version_1_reads_as_ever() {
        let golden = [
            b"umbrapr\0\x01\0\x01\0\x01\0\x02\0".as_slice(),
            b"\x22\x11\0\0\0\0\0\0\x01\0\x80\x01\x02\x03\x04\x05\x05iqn.a",
            b"\x07\0\0\0\0\0\0\0\x01\0\x80\x01\x02\x03\x04\x05\x05iqn.b",
        ]
        .concat();
        let golden = [&golden[..], &crc32c(&golden).to_le_bytes()].concat();
        assert_eq!(encode(&held()), golden, "a change of these bytes is a new version");
        assert_eq!(decode(&golden), Ok(held()));
    }

    #[test]
    fn a_damaged_document_is_no_document() {
        let document = encode(&held());
        for at in 0..document.len() {
            let mut damaged = document.clone();
            damaged[at] ^= 0x10;
            assert!(decode(&damaged).is_err(), "byte {at}");
            assert!(decode(&document[..at]).is_err(), "{at} bytes");
        }
    }
}
