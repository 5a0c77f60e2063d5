//! Tells in which sectors a block differs from the remote copy, without reading the copy's data.
//!
//! One function for resync, compare, differences-only restore and verify. A record that is wholly visible has a hash
//! to compare with; one that is visible in part has none, and differs.

use std::borrow::Cow;

use super::resolve::{Content, Fragment};
use crate::format::{Keys, PackContent, Void};
use crate::units::{BLOCK, Block, Mask, SECTOR, is_zero};

/// What a sector that was trimmed, or could not be read, compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// With nothing: it differs. For scans, whose result must say what the store holds.
    Strict,
    /// With anything: it is equal. For verify and differences-only restore.
    Lenient,
}

/// The sectors of `block` in which `local`, its bytes in the store, differs from `fragments`, those of the remote copy
/// that lie on it (others are passed over). `local` is short where the volume ends; zeroes follow.
pub fn differs(keys: &Keys, local: &[u8], block: Block, fragments: &[Fragment], policy: Policy) -> Mask {
    let mut local = Cow::Borrowed(&local[..local.len().min(BLOCK as usize)]);
    if local.len() < BLOCK as usize {
        local.to_mut().resize(BLOCK as usize, 0);
    }
    let (mut named, mut different) = (Mask::NONE, Mask::NONE);
    for fragment in
        fragments.iter().filter(|fragment| (fragment.first.0..fragment.first.0 + fragment.count).contains(&block.0))
    {
        let mask = fragment.mask;
        named = named.or(mask);
        different = different.or(match (&fragment.content, policy) {
            (Content::Data { record, .. }, _) => match record.content {
                PackContent::Data(stored) if record.mask == mask => {
                    let equal = keys.content_hash(&gather(&local, mask)) == stored.hash;
                    if equal { Mask::NONE } else { mask }
                }
                _ => mask,
            },
            (Content::Void(Void::Zero), _) => not_zero(&local, mask),
            (Content::Void(Void::Trimmed | Void::Unreadable), Policy::Strict) => mask,
            (Content::Void(Void::Trimmed | Void::Unreadable), Policy::Lenient) => Mask::NONE,
        });
    }
    different.or(not_zero(&local, Mask::FULL.minus(named)))
}

/// The bytes of a run of sectors of a block.
fn sectors(block: &[u8], first: u32, count: u32) -> &[u8] {
    &block[first as usize * SECTOR as usize..][..count as usize * SECTOR as usize]
}

/// The bytes of the sectors of `mask`, one after the other.
fn gather(block: &[u8], mask: Mask) -> Cow<'_, [u8]> {
    let mut runs = mask.runs();
    match (runs.next(), runs.next()) {
        (Some((first, count)), None) => Cow::Borrowed(sectors(block, first, count)),
        _ => Cow::Owned(mask.runs().flat_map(|(first, count)| sectors(block, first, count)).copied().collect()),
    }
}

/// The sectors of `mask` that are not all zeroes.
fn not_zero(block: &[u8], mask: Mask) -> Mask {
    let mut found = Mask::NONE;
    for (first, count) in mask.runs() {
        if is_zero(sectors(block, first, count)) {
            continue;
        }
        for sector in first..first + count {
            if !is_zero(sectors(block, sector, 1)) {
                found = found.or(Mask::range(sector, 1));
            }
        }
    }
    found
}
