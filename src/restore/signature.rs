//! The mark in the first sector of a target while a restore is under way: a half-restored disk then neither mounts
//! nor boots, and a gateway that sees the mark refuses it as a local store.
//!
//! ```text
//! 0    25   "UMBRA RESTORE UNFINISHED\n"
//! 25   …    what that means, for whoever looks at the sector; ASCII
//! …    512  zeroes
//! ```

use crate::units::SECTOR;

const MAGIC: &[u8] = b"UMBRA RESTORE UNFINISHED\n";

const EXPLANATION: &[u8] = b"This disk is being restored, or a restore of it was interrupted.\n\
What is on it is incomplete: run the same umbra restore again.\n";

const _: () = assert!(MAGIC.len() + EXPLANATION.len() <= SECTOR as usize);

/// The sector that marks an unfinished restore.
pub fn unfinished() -> [u8; SECTOR as usize] {
    let mut sector = [0; SECTOR as usize];
    let (magic, rest) = sector.split_at_mut(MAGIC.len());
    magic.copy_from_slice(MAGIC);
    rest[..EXPLANATION.len()].copy_from_slice(EXPLANATION);
    sector
}

/// Whether a disk that begins with these bytes holds an unfinished restore.
pub fn is_unfinished(first_sector: &[u8]) -> bool {
    first_sector.starts_with(MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_mark_is_taken_for_one() {
        assert!(is_unfinished(&unfinished()));
        assert!(!is_unfinished(&[0; 512]));
        assert!(!is_unfinished(b""));
        assert!(!is_unfinished(&MAGIC[..MAGIC.len() - 1]));
    }
}
