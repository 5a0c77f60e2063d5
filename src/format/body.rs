//! The bytes of an object that is being made: hashed while they are still in the processor's cache, and kept in pages
//! that are large enough for them.

use bytes::Bytes;

use super::ObjectHash;
use crate::units::{KIB, MIB};

/// What is hashed at once, bytes: whole subtrees of the hash, and little enough to be cached.
const HASHED_AT_ONCE: usize = 128 * KIB as usize;
/// From here on there is room for a whole pack: what is not used of it costs nothing but addresses.
const SMALL_MAX: usize = 2 * MIB as usize;
/// A pack is closed at 64 MiB; its last block's records and its index follow.
const ROOM: usize = 66 * MIB as usize;

#[derive(Default)]
pub(super) struct Body {
    bytes: Vec<u8>,
    hasher: blake3::Hasher,
    hashed: usize,
}

impl Body {
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn extend(&mut self, more: &[u8]) {
        let end = self.bytes.len() + more.len();
        if end > self.bytes.capacity() && (SMALL_MAX..ROOM).contains(&end) {
            self.bytes.reserve_exact(ROOM - self.bytes.len());
            prefer_huge_pages(&mut self.bytes);
        }
        self.bytes.extend_from_slice(more);
        let whole = self.bytes.len() - self.bytes.len() % HASHED_AT_ONCE;
        if whole > self.hashed {
            self.hasher.update(&self.bytes[self.hashed..whole]);
            self.hashed = whole;
        }
    }

    pub fn finish(mut self) -> (Bytes, ObjectHash) {
        self.hasher.update(&self.bytes[self.hashed..]);
        (self.bytes.into(), ObjectHash(*self.hasher.finalize().as_bytes()))
    }
}

/// A page fault for each 4 KiB of a pack takes longer than hashing it.
fn prefer_huge_pages(bytes: &mut Vec<u8>) {
    let page = rustix::param::page_size();
    let room = bytes.spare_capacity_mut();
    let (start, length) = (room.as_mut_ptr(), room.len());
    let skipped = start.align_offset(page);
    let Some(length) = length.checked_sub(skipped) else { return };
    // SAFETY: the range is whole pages of the buffer's room, and the advice changes no byte of them. Where it is
    // refused, they stay small.
    let _ = unsafe {
        rustix::mm::madvise(start.wrapping_add(skipped).cast(), length / page * page, rustix::mm::Advice::LinuxHugepage)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_the_hash_of_its_bytes_however_they_came() {
        let bytes: Vec<u8> = (0..ROOM + HASHED_AT_ONCE + 77).map(|at| ((at * at) >> 7) as u8).collect();
        for (length, step) in [
            (0, 1),
            (1, 1),
            (HASHED_AT_ONCE, 4096),
            (HASHED_AT_ONCE + 1, 1023),
            (SMALL_MAX + 5, 65_536),
            (ROOM - 1, 65_537),
            (bytes.len(), 3 * HASHED_AT_ONCE + 1),
        ] {
            let mut body = Body::default();
            bytes[..length].chunks(step).for_each(|more| body.extend(more));
            assert_eq!(body.len(), length);
            let (made, hash) = body.finish();
            assert!(made == bytes[..length] && hash == ObjectHash::of(&made), "{length} bytes, {step} at a time");
        }
    }
}
