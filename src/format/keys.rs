//! The keys of a volume: what its checksums are made with.
//!
//! A volume that is not encrypted has keys that derive from its id, and the id stands in every object's name: they
//! tell damage, mix-ups and objects of other volumes from the real thing, and **do not** tell a forger from the
//! gateway. With encryption they will derive from the data key and do both; nothing else changes.

use super::{ContentHash, VolumeId};

/// A keyed checksum of part of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 16]);

/// Bytes of a [`Mac`]; 128 bits: a forger without the key succeeds once in 2¹²⁸.
pub const MAC_LENGTH: usize = 16;

/// What a MAC stands for, so that no part can be taken for another. The numbers are the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MacKind {
    Volume = 1,
    Entry = 2,
    PackFooter = 3,
    PackDirectory = 4,
    PackPage = 5,
    RunFooter = 6,
    RunDirectory = 7,
    RunTable = 8,
    RunPage = 9,
    /// A pack has no table; the MAC of nothing stands in its footer.
    PackTable = 10,
}

#[derive(Clone)]
pub struct Keys {
    volume: VolumeId,
    mac: [u8; 32],
    content: [u8; 32],
}

impl Keys {
    /// Keys against accidents, of a volume without encryption.
    pub fn unencrypted(volume: VolumeId) -> Self {
        Self {
            volume,
            mac: blake3::derive_key("umbra 2026-11-22 remote format v1, unencrypted volume, mac", &volume.0),
            content: blake3::derive_key("umbra 2026-11-22 remote format v1, unencrypted volume, content", &volume.0),
        }
    }

    /// The volume whose keys these are.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Of a record's plaintext; `differs` and every reader compare it.
    pub fn content_hash(&self, plaintext: &[u8]) -> ContentHash {
        let hash = blake3::keyed_hash(&self.content, plaintext);
        let mut short = [0; 16];
        short.copy_from_slice(&hash.as_bytes()[..16]);
        ContentHash(short)
    }

    /// BLAKE3 under the MAC key of the kind's number, then the bytes; the first 128 bits.
    pub fn mac(&self, kind: MacKind, bytes: &[u8]) -> Mac {
        let mut hasher = blake3::Hasher::new_keyed(&self.mac);
        hasher.update(&[kind as u8]).update(bytes);
        let mut short = [0; MAC_LENGTH];
        short.copy_from_slice(&hasher.finalize().as_bytes()[..MAC_LENGTH]);
        Mac(short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_good_for_one_kind_and_one_volume() {
        let keys = Keys::unencrypted(VolumeId([1; 16]));
        assert_ne!(keys.mac(MacKind::PackPage, b"x"), keys.mac(MacKind::RunPage, b"x"));
        assert_ne!(
            keys.mac(MacKind::PackPage, b"x"),
            Keys::unencrypted(VolumeId([2; 16])).mac(MacKind::PackPage, b"x")
        );
        assert_ne!(keys.mac(MacKind::PackPage, b"x").0, keys.content_hash(b"x").0);
    }
}
