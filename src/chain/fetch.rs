//! Reads the data of fragments: near records together, each verified before anyone sees it.
//!
//! Owns: coalescing, decoding, the second attempt at a damaged record. Does not own: what is read how far ahead; the
//! answer is as large as what was asked for.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::resolve::{Content, Fragment, PackId, Resolver};
use super::source::{ResolveError, Result};
use crate::format::pack::decode_record;
use crate::format::{FormatError, PackContent, PackRecord, Stored};
use crate::units::{KIB, MIB, Mask, SECTOR};

/// Bytes between two records that are read for nothing rather than with a GET of their own.
const GAP_MAX: u64 = 64 * KIB;
/// Bytes of one GET, at most.
const GET_MAX: u64 = 8 * MIB;
/// GETs of one call whose bytes are in memory at a time.
const GETS_AT_ONCE: usize = 8;

/// Records of one pack that are read together.
struct Group {
    pack: PackId,
    range: Range<u64>,
    /// Place in what was asked for, visible mask, record.
    members: Vec<(usize, Mask, PackRecord, Stored)>,
}

impl Resolver {
    /// The bytes of each fragment's visible sectors, one after the other without gaps; nothing for voids.
    pub async fn read_records(&self, wanted: &[Fragment]) -> Result<Vec<Bytes>> {
        let mut answer = vec![Bytes::new(); wanted.len()];
        let mut reads =
            stream::iter(grouped(wanted)).map(|group| self.read_group(group)).buffer_unordered(GETS_AT_ONCE);
        while let Some(read) = reads.try_next().await? {
            for (place, bytes) in read {
                answer[place] = bytes;
            }
        }
        Ok(answer)
    }

    async fn read_group(&self, group: Group) -> Result<Vec<(usize, Bytes)>> {
        let (pack, key) = self.pack(group.pack);
        let bytes = self.source().data(&pack, group.range.clone()).await?;
        let mut read = Vec::with_capacity(group.members.len());
        for (place, visible, record, stored) in group.members {
            let from = (stored.offset - group.range.start) as usize;
            let decoded = match decode(self, &record, &bytes[from..from + stored.length as usize]) {
                Ok(decoded) => decoded,
                Err(first) => {
                    let (block, offset) = (record.first, stored.offset);
                    tracing::warn!(key, %block, offset, error = %first, "a record is damaged; reading it again");
                    let again = self.source().get(&key, offset..offset + u64::from(stored.length)).await?;
                    let damaged = |source| ResolveError::DamagedRecord { key: key.clone(), offset, block, source };
                    decode(self, &record, &again).map_err(damaged)?
                }
            };
            read.push((place, select(&decoded, record.mask, visible)));
        }
        Ok(read)
    }
}

fn decode(resolver: &Resolver, record: &PackRecord, bytes: &[u8]) -> std::result::Result<Bytes, FormatError> {
    decode_record(resolver.keys(), record, bytes)
}

/// Of the sectors of `held`, which `bytes` are, those of `wanted`, a part of them.
fn select(bytes: &Bytes, held: Mask, wanted: Mask) -> Bytes {
    if held == wanted {
        return bytes.clone();
    }
    let mut selected = BytesMut::with_capacity(wanted.count() as usize * SECTOR as usize);
    for (first, count) in held.and(wanted).runs() {
        let before = held.and(Mask::range(0, first)).count();
        let from = before as usize * SECTOR as usize;
        selected.extend_from_slice(&bytes[from..from + count as usize * SECTOR as usize]);
    }
    selected.freeze()
}

fn grouped(wanted: &[Fragment]) -> Vec<Group> {
    let mut packs: BTreeMap<PackId, Vec<_>> = BTreeMap::new();
    for (place, fragment) in wanted.iter().enumerate() {
        if let Content::Data { pack, record } = fragment.content
            && let PackContent::Data(stored) = record.content
        {
            packs.entry(pack).or_default().push((place, fragment.mask, record, stored));
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    for (pack, mut members) in packs {
        members.sort_unstable_by_key(|(_, _, _, stored)| stored.offset);
        for member in members {
            let (offset, end) = (member.3.offset, member.3.offset + u64::from(member.3.length));
            match groups.last_mut() {
                Some(group)
                    if group.pack == pack
                        && offset.saturating_sub(group.range.end) <= GAP_MAX
                        && end - group.range.start <= GET_MAX =>
                {
                    group.range.end = group.range.end.max(end);
                    group.members.push(member);
                }
                _ => groups.push(Group { pack, range: offset..end, members: vec![member] }),
            }
        }
    }
    groups
}
