//! Compares what a scan reads with the remote copy and uploads only what differs.
//!
//! Owns: the packs of one scan. Does not own: which pieces are read, and what happens to them meanwhile
//! ([`crate::volume::scan`]); naming the packs in an entry ([`super::publisher`]).
//!
//! Order: a piece read at log index r holds everything up to r, and later changes of it are in the log. So a scan's
//! packs stand below the packs of the same entry's log records, and every piece up to an entry's cut must be named by
//! that entry or an earlier one: that is what [`Scanner::seal`] is for.
//! Crash: packs that no entry names remain; the next scan compares anew.

use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info};

use super::assemble::PACK_BYTES;
use super::numbers::ObjectNumbers;
use super::piece::answered;
use super::status::Report;
use super::upload::{Purpose, Room, Taken, Uploader};
use crate::chain::differs::{Policy, differs};
use crate::chain::resolve::{Content as Held, Fragment, Resolver};
use crate::format::codec::FormatError;
use crate::format::keys::Keys;
use crate::format::pack::PackBuilder;
use crate::format::{ObjectRef, Void};
use crate::task;
use crate::units::{BLOCK, Block, MIB, Mask, SECTOR, SECTORS_PER_BLOCK, Span, is_zero};
use crate::volume::Volume;
use crate::volume::scan::{Content, Interrupted, Part, Piece, Turn};

/// Pieces read at the same time.
const READS: usize = 4;
/// What pieces that are being read may add to a pack that is full.
const PIECES_BYTES: u64 = READS as u64 * MIB;
/// Blocks of a hole that are looked up in the remote copy at a time.
const HOLE_BLOCKS: u64 = 1 << 14;

/// A scan under way.
pub struct Scanner {
    requests: mpsc::Sender<SealRequest>,
    task: tokio::task::JoinHandle<()>,
}

/// What a scan has uploaded since it was sealed last.
#[derive(Debug, Default)]
pub struct Sealed {
    pub packs: Vec<ObjectRef>,
    /// Every piece before this byte is in packs or was found equal.
    pub front: u64,
    /// Nothing more will come: the scan has come to its end or was interrupted.
    pub over: bool,
}

impl Scanner {
    /// Begins to scan `volume` at so many bytes per second (none: no limit), comparing with what `base` shows.
    pub fn start(
        volume: Volume,
        rate: Option<NonZeroU64>,
        base: Resolver,
        keys: Keys,
        numbers: Arc<ObjectNumbers>,
        uploader: Uploader,
        report: Arc<Report>,
    ) -> Self {
        let (requests, receiver) = mpsc::channel(1);
        let scan = Scan {
            volume,
            rate,
            due: Instant::now(),
            base: Arc::new(base),
            keys,
            numbers,
            uploader,
            report,
            pack: None,
            room: None,
            uploads: JoinSet::new(),
            packs: Vec::new(),
            front: 0,
            failed: None,
            lost: false,
        };
        Self { requests, task: tokio::spawn(scan.run(receiver)) }
    }

    /// Uploads all that has been read up to now, and tells what it was; if it is to be the `last`, nothing is read
    /// any more. None if something that was read is lost, and with it the scan.
    pub async fn seal(&self, last: bool) -> Option<Result<Sealed, Taken>> {
        let (reply, sealed) = oneshot::channel();
        self.requests.send(SealRequest { reply, last }).await.ok()?;
        sealed.await.ok()
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Scan {
    volume: Volume,
    rate: Option<NonZeroU64>,
    /// When the next piece may be read.
    due: Instant,
    base: Arc<Resolver>,
    keys: Keys,
    numbers: Arc<ObjectNumbers>,
    uploader: Uploader,
    report: Arc<Report>,
    pack: Option<(PackBuilder, Room)>,
    /// For the next pack.
    room: Option<Room>,
    uploads: JoinSet<Result<ObjectRef, Taken>>,
    packs: Vec<ObjectRef>,
    front: u64,
    failed: Option<Taken>,
    /// Something that was read did not reach a pack.
    lost: bool,
}

struct SealRequest {
    reply: oneshot::Sender<Result<Sealed, Taken>>,
    last: bool,
}

impl Scan {
    async fn run(mut self, mut requests: mpsc::Receiver<SealRequest>) {
        let mut reading = FuturesOrdered::new();
        let (mut over, mut interrupted) = (false, false);
        let mut sealing: Option<SealRequest> = None;
        loop {
            if over && !interrupted && reading.is_empty() {
                self.volume.scan_finished();
                // Once is enough, and a second time could not be told from another scan's end.
                interrupted = true;
            }
            if reading.is_empty() && self.pack.as_ref().is_some_and(|(pack, _)| pack.stored_bytes() >= PACK_BYTES) {
                self.close_pack();
            }
            if reading.is_empty()
                && let Some(SealRequest { reply, last }) = sealing.take()
            {
                let over = over || last;
                let sealed = self.seal(over).await;
                // Whoever asked is told of a loss by the missing answer.
                if self.lost || reply.send(sealed).is_err() || over {
                    return;
                }
                continue;
            }
            // What has been read never waits for memory, so that a seal is answered at once.
            let full = self.pack.as_ref().is_some_and(|(pack, _)| pack.stored_bytes() >= PACK_BYTES);
            let more = !over && sealing.is_none() && reading.len() < READS && !full;
            let roomy = self.pack.is_some() || self.room.is_some();
            tokio::select! {
                biased;
                request = requests.recv(), if sealing.is_none() => match request {
                    Some(asked) => sealing = Some(asked),
                    None => return,
                },
                room = self.uploader.room(Purpose::Scan), if more && !roomy => self.room = Some(room),
                turn = next_turn(&self.volume, self.due), if more && roomy => match turn {
                    // A task of its own lets the piece's range go when it is read, whatever the packs wait for.
                    Ok(Some(turn)) => {
                        self.due = turn.due_after(self.rate, self.due);
                        reading.push_back(tokio::spawn(turn.read()));
                    }
                    Ok(None) => over = true,
                    Err(Interrupted) => (over, interrupted) = (true, true),
                },
                Some(piece) = reading.next(), if !reading.is_empty() => match piece {
                    Ok(Ok(piece)) => self.take(piece).await,
                    Ok(Err(Interrupted)) => (over, interrupted) = (true, true),
                    Err(error) => {
                        self.lose(&error);
                        (over, interrupted) = (true, true);
                    }
                },
            }
            while let Some(uploaded) = self.uploads.try_join_next() {
                self.uploaded(uploaded);
            }
        }
    }

    async fn seal(&mut self, over: bool) -> Result<Sealed, Taken> {
        self.close_pack();
        self.room = None;
        while let Some(uploaded) = self.uploads.join_next().await {
            self.uploaded(uploaded);
        }
        if let Some(taken) = self.failed.take() {
            return Err(taken);
        }
        Ok(Sealed { packs: std::mem::take(&mut self.packs), front: self.front, over })
    }

    fn uploaded(&mut self, uploaded: Result<Result<ObjectRef, Taken>, tokio::task::JoinError>) {
        match uploaded {
            Ok(Ok(pack)) => self.packs.push(pack),
            Ok(Err(taken)) => self.failed = Some(taken),
            Err(error) => self.lose(&error),
        }
    }

    fn lose(&mut self, error: &impl std::error::Error) {
        error!(volume = self.report.volume(), %error, "a part of a scan is lost; comparing everything again");
        self.lost = true;
    }

    fn close_pack(&mut self) {
        if let Some((pack, room)) = self.pack.take()
            && !pack.is_empty()
        {
            let uploader = self.uploader.clone();
            let (body, object) = pack.finish();
            let key = self.keys.volume().pack_key(&object);
            self.uploads.spawn(async move { uploader.put(key, body, object, Some(room)).await });
        }
    }

    async fn take(&mut self, piece: Piece) {
        match piece.content {
            Content::Logged => {}
            Content::Hole => self.take_hole(piece.span).await,
            Content::Parts(parts) => self.take_parts(piece.span, parts).await,
        }
        self.front = piece.span.end;
    }

    /// Zeroes wherever the remote copy names anything else.
    async fn take_hole(&mut self, span: Span) {
        let end = span.end.div_ceil(BLOCK);
        let mut block = span.start / BLOCK;
        loop {
            let next = retry(&self.report, || self.base.next_named(Block(block))).await;
            // Without an answer nothing can be skipped.
            block = match next {
                Some(Some(next)) => next.0.max(block),
                Some(None) => return,
                None => block,
            };
            if block >= end {
                return;
            }
            let count = HOLE_BLOCKS.min(end - block);
            let held = retry(&self.report, || self.base.resolve(Block(block), count)).await;
            let blocks = match held {
                Some(held) => zeroes_over(&held),
                None => vec![(Block(block), count, Mask::FULL)],
            };
            self.put(
                blocks
                    .into_iter()
                    .map(|(first, count, mask)| Found { first, count, mask, data: Err(Void::Zero) })
                    .collect(),
            )
            .await;
            block += count;
        }
    }

    async fn take_parts(&mut self, span: Span, parts: Vec<(Span, Part)>) {
        let first = Block::of(span.start);
        let count = span.end.div_ceil(BLOCK) - first.0;
        let held = retry(&self.report, || self.base.resolve(first, count)).await;
        let keys = self.keys.clone();
        let compared = task::unhurried(move || compare(&keys, span, &parts, held.as_deref()));
        match compared.await {
            Ok(found) => self.put(found).await,
            Err(error) => self.lose(&error),
        }
    }

    /// Adds what differs to the pack; makes one only if there is something to add.
    async fn put(&mut self, found: Vec<Found>) {
        if found.is_empty() {
            return;
        }
        // Only a hole over much that is named gets here: pieces are few between two looks at the pack.
        if self.pack.as_ref().is_some_and(|(pack, _)| pack.stored_bytes() >= PACK_BYTES + PIECES_BYTES) {
            self.close_pack();
        }
        let (mut pack, room) = match self.pack.take() {
            Some(pack) => pack,
            None => {
                let room = match self.room.take() {
                    Some(room) => room,
                    None => self.uploader.room(Purpose::Scan).await,
                };
                (PackBuilder::new(&self.keys, self.numbers.generation(), self.numbers.next()), room)
            }
        };
        let filled = task::unhurried(move || {
            let pushed = found.into_iter().try_for_each(|found| found.push(&mut pack));
            (pack, pushed)
        });
        match filled.await {
            Ok((pack, pushed)) => {
                self.pack = Some((pack, room));
                if let Err(error) = pushed {
                    self.lose(&error);
                }
            }
            Err(error) => self.lose(&error),
        }
    }
}

async fn next_turn(volume: &Volume, due: Instant) -> Result<Option<Turn>, Interrupted> {
    tokio::time::sleep_until(due).await;
    volume.scan_next().await
}

/// What a pack is to say of `count` blocks from `first`.
struct Found {
    first: Block,
    count: u64,
    mask: Mask,
    /// The bytes of the mask's sectors, or what stands there without any.
    data: Result<Bytes, Void>,
}

impl Found {
    fn push(self, pack: &mut PackBuilder) -> Result<(), FormatError> {
        match self.data {
            Ok(bytes) => pack.push_data(self.first, 0, self.mask, &bytes),
            Err(void) => pack.push_void(self.first, self.count, 0, self.mask, void),
        }
    }
}

/// What differs from what is `held` (none: everything counts as different).
fn compare(keys: &Keys, span: Span, parts: &[(Span, Part)], held: Option<&[Fragment]>) -> Vec<Found> {
    let mut found = Vec::new();
    let mut held_from = 0;
    for block in span.start / BLOCK..span.end.div_ceil(BLOCK) {
        let mut bytes = vec![0; BLOCK as usize];
        let within = Span::at(block * BLOCK, BLOCK).intersect(span);
        let present = sectors(block, within);
        let mut unreadable = Mask::NONE;
        for (part_span, part) in parts {
            let common = part_span.intersect(within);
            if common.is_empty() {
                continue;
            }
            match part {
                Part::Unreadable => unreadable = unreadable.or(sectors(block, common)),
                Part::Data(data) => {
                    let to = (common.start - block * BLOCK) as usize;
                    let from = (common.start - part_span.start) as usize;
                    let length = common.len() as usize;
                    bytes[to..to + length].copy_from_slice(&data[from..from + length]);
                }
            }
        }
        let different = match held {
            Some(held) => {
                held_from += held[held_from..].partition_point(|fragment| fragment.first.0 + fragment.count <= block);
                let of_block = held[held_from..].iter().take_while(|fragment| fragment.first.0 <= block);
                let fragments: Vec<Fragment> = of_block.copied().collect();
                differs(keys, &bytes, Block(block), &fragments, Policy::Strict)
            }
            None => Mask::FULL,
        };
        let different = different.and(present).minus(unreadable);
        let (zeroes, data) = split_zeroes(&bytes, different);
        if !data.is_empty() {
            found.push(Found { first: Block(block), count: 1, mask: data, data: Ok(gather(&bytes, data)) });
        }
        for (mask, void) in [(zeroes, Void::Zero), (unreadable, Void::Unreadable)] {
            if !mask.is_empty() {
                found.push(Found { first: Block(block), count: 1, mask, data: Err(void) });
            }
        }
    }
    found
}

/// The sectors of `block` that the bytes touch.
fn sectors(block: u64, span: Span) -> Mask {
    let begin = block * BLOCK;
    let first = (span.start - begin) / SECTOR;
    let end = (span.end - begin).div_ceil(SECTOR);
    Mask::range(first as u32, (end - first) as u32)
}

/// A block that is zero in all sectors that differ needs no data; one that is not is data throughout, for a record
/// more costs more than zeroes that compress to nothing.
fn split_zeroes(bytes: &[u8], different: Mask) -> (Mask, Mask) {
    let zero = |(first, count): (u32, u32)| {
        is_zero(&bytes[(first as usize * SECTOR as usize)..][..count as usize * SECTOR as usize])
    };
    if different.runs().all(zero) { (different, Mask::NONE) } else { (Mask::NONE, different) }
}

/// The sectors' bytes, one after the other.
fn gather(bytes: &[u8], mask: Mask) -> Bytes {
    let mut gathered = Vec::with_capacity(mask.count() as usize * SECTOR as usize);
    for (first, count) in mask.runs() {
        let from = first as usize * SECTOR as usize;
        gathered.extend_from_slice(&bytes[from..from + count as usize * SECTOR as usize]);
    }
    gathered.into()
}

/// Where zeroes must be recorded over what is held: everything named, but zeroes.
fn zeroes_over(held: &[Fragment]) -> Vec<(Block, u64, Mask)> {
    let mut blocks: Vec<(Block, u64, Mask)> = Vec::new();
    for fragment in held.iter().filter(|fragment| fragment.content != Held::Void(Void::Zero)) {
        match blocks.last_mut() {
            Some((first, 1, mask)) if *first == fragment.first && fragment.count == 1 => *mask = mask.or(fragment.mask),
            Some((first, count, Mask::FULL)) if first.0 + *count == fragment.first.0 && fragment.mask == Mask::FULL => {
                *count += fragment.count;
            }
            _ => blocks.push((fragment.first, fragment.count, fragment.mask)),
        }
    }
    blocks
}

/// Asks the remote copy; where it cannot tell (an object is missing or damaged), everything counts as different.
async fn retry<T, F: Future<Output = Result<T, crate::chain::resolve::ResolveError>>>(
    report: &Report,
    ask: impl FnMut() -> F,
) -> Option<T> {
    let unknown = |error| info!(volume = report.volume(), %error, "the remote copy cannot be compared here; uploading what the store holds");
    answered(report, ask).await.map_err(unknown).ok()
}

const _: () = assert!(SECTORS_PER_BLOCK as u64 * SECTOR == BLOCK);
