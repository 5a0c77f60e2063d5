//! Keeps the lists of an entry short: which objects are due, one run out of many, its place in the lists.
//!
//! Owns: the levels. Does not own: when it is done, and publishing ([`super`]'s writer).
//! Order: a run may be made and put at any time by anyone with the key; only the entry that lists it counts, and it
//! counts only if it replaces exactly its inputs.
//! Crash: a run that was put and is listed nowhere remains.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::gaps::Gaps;
use super::resolve::{Found, Layers, PackId, Piece, STRETCH_MAX};
use super::source::{ResolveError, Result, Source};
use crate::format::index::{BLOCKS_MAX, Kind};
use crate::format::pack::SLICES_MAX;
use crate::format::run::RunBuilder;
use crate::format::{Keys, ObjectRef, RunRecord, RunSource, Void, codec};
use crate::remote::Remote;
use crate::units::{Block, Generation, Mask};

/// Objects of a level that become one of the next. An entry lists at most one less of each.
pub const FANOUT: usize = 32;

/// L0 to L3, newest first, as in [`crate::format::entry::Entry::levels`].
pub type Levels = [Vec<ObjectRef>; 4];

/// A merge that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Level of the inputs; the run goes to the next.
    pub level: usize,
    /// Newest first.
    pub inputs: Vec<ObjectRef>,
}

impl Step {
    /// What the inputs are: packs on L0, runs above.
    pub fn kind(&self) -> Kind {
        if self.level == 0 { Kind::Pack } else { Kind::Run }
    }
}

/// The lists no longer end with the inputs: another merge was there first. It is planned anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the inputs of a merge are no longer the oldest {inputs} of level {level}")]
pub struct InputsGone {
    pub level: usize,
    pub inputs: usize,
}

/// The lowest level that is full, with its oldest 32 objects. The last level is never full: what comes after it (a
/// base in partitions) is not of this version.
pub fn plan(levels: &Levels) -> Option<Step> {
    let next = levels[..levels.len() - 1].iter().enumerate().find(|(_, list)| list.len() >= FANOUT);
    next.map(|(level, list)| Step { level, inputs: list[list.len() - FANOUT..].to_vec() })
}

/// Puts `run` in the place of the step's inputs. Changes nothing if they do not stand where they stood.
pub fn replace(levels: &mut Levels, step: &Step, run: ObjectRef) -> std::result::Result<(), InputsGone> {
    let gone = InputsGone { level: step.level, inputs: step.inputs.len() };
    let above = step.level.checked_add(1).filter(|above| *above < levels.len()).ok_or(gone)?;
    let list = &mut levels[step.level];
    if step.inputs.is_empty() || !list.ends_with(&step.inputs) {
        return Err(gone);
    }
    list.truncate(list.len() - step.inputs.len());
    // Older than what is left below, newer than all that is on its level.
    levels[above].insert(0, run);
    Ok(())
}

/// Merges `inputs`, newest first, into a run that shows what all of them show together. Reads indexes only, range by
/// range: memory holds the run, the heads of the inputs and the pages of one stretch.
pub async fn merge(
    remote: Remote,
    keys: &Keys,
    kind: Kind,
    inputs: &[ObjectRef],
    generation: Generation,
    number: u64,
) -> Result<(Bytes, ObjectRef)> {
    let mut layers = Layers::new(Arc::new(Source::new(remote, keys.clone())));
    inputs.iter().for_each(|input| layers.push(kind, *input, SLICES_MAX as u8 - 1));
    let heads = layers.heads().await?;
    let mut run = RunBuilder::new(keys, generation, number);
    let mut from = 0;
    while from < BLOCKS_MAX {
        let to = layers.stretch(heads, from, BLOCKS_MAX, STRETCH_MAX);
        let mut gaps = Gaps::default();
        gaps.add(Block(from), to - from, Mask::FULL);
        let pieces = layers.sweep(heads, gaps, from, to).await?;
        append(&layers, &mut run, pieces).map_err(ResolveError::Build)?;
        // Pages that were at hand took no wait: let others have their turn.
        tokio::task::yield_now().await;
        from = to;
    }
    run.finish().map_err(ResolveError::Build)
}

/// Adds what was found in one stretch: per block and source one record.
fn append(layers: &Layers, run: &mut RunBuilder, mut pieces: Vec<Piece>) -> codec::Result<()> {
    pieces.sort_unstable_by_key(|piece| piece.first);
    let mut sources: BTreeMap<PackId, u32> = BTreeMap::new();
    for block in pieces.chunk_by(|a, b| a.first == b.first) {
        let mut by_source: BTreeMap<RunSource, Mask> = BTreeMap::new();
        for piece in block {
            let source = match piece.found {
                Found::Void(Void::Zero) => RunSource::Zero,
                Found::Void(Void::Trimmed) => RunSource::Trimmed,
                Found::Void(Void::Unreadable) => RunSource::Unreadable,
                Found::Data { pack, .. } | Found::InPack(pack) => RunSource::Pack(match sources.get(&pack) {
                    Some(number) => *number,
                    None => *sources.entry(pack).or_insert(run.pack(&layers.pack(pack))?),
                }),
            };
            let mask = by_source.entry(source).or_default();
            *mask = mask.or(piece.mask);
        }
        // Pieces do not overlap, so one of many blocks is alone at its first.
        let (first, count) = (block[0].first, block[0].count);
        for (source, mask) in by_source {
            run.push(RunRecord { first, count, mask, source })?;
        }
    }
    Ok(())
}
