//! One entry of the chain: what a recovery point is.
//!
//! ```text
//!   0  8  magic "umbraent"
//!   8  2  version 1
//!  10  1  kind: 1 open, 2 point, 3 draft, 4 checkpoint, 5 reclaim, 6 pin, 7 unpin, 8 restore-begin, 9 restore-end,
//!         10 untracked
//!  11  1  flags: bit 0 draft, bit 1 leaving, others zero
//!  12  4  generation
//!  16  8  number
//!  24 16  instance
//!  40 32  previous: BLAKE3-256 of the bytes of entry number − 1
//!  72  8  parent
//!  80  8  sequence of the cut, below 2⁶³
//!  88  8  time of the cut, milliseconds since 1970, before the year 10000
//!  96  8  heartbeat
//! 104  8  size of the volume, bytes
//! 112  8  new bytes
//! 120     sections, tags ascending:  leb tag   leb length   body
//!  end    16  MAC of all before it
//!
//! tag  body                                                  present
//!   1  store: UTF-8                                          if there is one
//!   3  scan: 8 front                                         if there is one
//!   5  slices, each: leb sequence, leb time; the first as    if not empty
//!      it is, others as the difference to the one before
//!   7  own packs ┐                                           if not empty
//!   9  L0 packs  │ each: leb generation, leb number,         if not empty
//!  11  L1 runs   │ leb length, 32 hash; readable without     if not empty
//!  13  L2 runs   │ a key                                     if not empty
//!  15  L3 runs   │                                           if not empty
//!  17  base      ┘ one                                       if there is one
//!  19  detail: by the kind                                   if not empty
//! ```
//! An unknown section with an even tag is skipped, one with an odd tag is refused: whoever adds one decides whether an
//! older reader may do without it. What is written has one form: equal entries have equal bytes.
//!
//! Versions: 1 (2026-11): first.

use super::codec::{FormatError, Part, Reader, Result, Writer, within};
use super::keys::{Keys, MAC_LENGTH, Mac, MacKind};
use super::{InstanceId, ObjectHash, ObjectRef};
use crate::units::{EntryNumber, Generation, Sequence, Timestamp, VOLUME_MAX};

const MAGIC: &[u8; 8] = b"umbraent";
const VERSION: u16 = 1;
const PART: Part = Part::Entry;

/// Slices of one entry, at most.
pub const SLICES_MAX: usize = 16;
/// Objects in one list, at most: far more than levels of 31 need, few enough to be held in memory many times.
pub const LIST_MAX: usize = 4096;
/// Bytes of a string.
pub const TEXT_MAX: usize = 4096;
pub const DETAIL_MAX: usize = 1 << 20;
/// Bytes of a whole entry: more is refused before it is looked at. Five lists, a detail, and room
/// for sections to come.
pub const ENTRY_MAX: usize = 4 << 20;
/// Bytes of one listed object, at most: three numbers and a hash.
const OBJECT_MAX: usize = 5 + 10 + 10 + 32;
const _: () = assert!(5 * LIST_MAX * OBJECT_MAX + DETAIL_MAX + TEXT_MAX + 4096 < ENTRY_MAX);
const _: () = assert!(SLICES_MAX == super::pack::SLICES_MAX);

const DRAFT: u8 = 1;
const LEAVING: u8 = 2;

mod tag {
    pub const STORE: u64 = 1;
    pub const SCAN: u64 = 3;
    pub const SLICES: u64 = 5;
    pub const OWN: u64 = 7;
    pub const LEVELS: [u64; 4] = [9, 11, 13, 15];
    pub const BASE: u64 = 17;
    pub const DETAIL: u64 = 19;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A gateway opened the volume for writing, with a new generation.
    Open,
    /// A recovery point: the volume exactly as it was at the cut.
    Point,
    /// Content of a scan under way; never offered for restore.
    Draft,
    /// The same content with merged lists; repeats cut and draft-ness.
    Checkpoint,
    Reclaim,
    Pin,
    Unpin,
    RestoreBegin,
    RestoreEnd,
    Untracked,
}

/// A moment inside an epoch that can be restored: the packs' slices up to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub sequence: Sequence,
    pub time: Timestamp,
}

/// How far a scan had come when a draft was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanCursor {
    /// Everything before this byte is named by this entry or its lists.
    pub front: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub number: EntryNumber,
    pub kind: EntryKind,
    pub generation: Generation,
    pub instance: InstanceId,
    /// Hash of the bytes of entry `number` − 1; zeroes for the first.
    pub previous: ObjectHash,
    /// The entry whose content this one builds on; 0 if it builds on nothing.
    pub parent: EntryNumber,
    /// Cut: the last change that is in the content. With `time`, equal to the last slice if there are slices.
    pub sequence: Sequence,
    /// Time of the cut; later than that of every earlier entry.
    pub time: Timestamp,
    pub heartbeat: u64,
    /// Size of the volume, bytes.
    pub size: u64,
    /// Whether what the lists show is a draft's content (a draft, or whatever repeats one's content: open, checkpoint).
    pub draft: bool,
    /// The last entry of a clean stop: no instance is alive behind it.
    pub leaving: bool,
    /// Bytes of the objects that this entry adds.
    pub new_bytes: u64,
    /// Of an open: the local store that is shadowed (name as `disk::Identity` has it).
    pub store: Option<String>,
    pub scan: Option<ScanCursor>,
    /// Oldest first; at most 16; empty where the entry adds no content of its own.
    pub slices: Vec<Slice>,
    /// Packs of this entry's own epoch, newest first.
    pub own: Vec<ObjectRef>,
    /// Lists of the content below, newest first: packs (L0), then runs L1, L2, L3.
    pub levels: [Vec<ObjectRef>; 4],
    /// Manifest of the partitioned base; none in version 1.0.
    pub base: Option<ObjectRef>,
    /// Payload of the kinds that have one of their own (reclaim, pin, restore-begin …); empty otherwise.
    pub detail: Vec<u8>,
}

impl EntryKind {
    const ALL: [Self; 10] = [
        Self::Open,
        Self::Point,
        Self::Draft,
        Self::Checkpoint,
        Self::Reclaim,
        Self::Pin,
        Self::Unpin,
        Self::RestoreBegin,
        Self::RestoreEnd,
        Self::Untracked,
    ];
    fn byte(self) -> u8 {
        self as u8 + 1
    }
    fn from_byte(byte: u8) -> Result<Self> {
        let unknown = FormatError::Unknown { part: PART, offset: 10, field: "kind of entry", found: byte.into() };
        Self::ALL.get(usize::from(byte).wrapping_sub(1)).copied().ok_or(unknown)
    }
}

impl Entry {
    /// The entry as it is stored. Refuses what no reader would accept.
    pub fn encode(&self, keys: &Keys) -> Result<Vec<u8>> {
        self.check()?;
        let mut out = Writer::new();
        let flags = if self.draft { DRAFT } else { 0 } | if self.leaving { LEAVING } else { 0 };
        out.put(MAGIC).u16(VERSION).u8(self.kind.byte()).u8(flags).u32(self.generation.0).u64(self.number.0);
        out.put(&self.instance.0).put(&self.previous.0).u64(self.parent.0).u64(self.sequence.0).u64(self.time.0);
        out.u64(self.heartbeat).u64(self.size).u64(self.new_bytes);
        let mut section = |tag, body: Option<&[u8]>| {
            if let Some(body) = body {
                out.leb(tag).leb(body.len() as u64).put(body);
            }
        };
        let list = |objects: &[ObjectRef]| (!objects.is_empty()).then(|| encode_list(objects));
        section(tag::STORE, self.store.as_deref().map(str::as_bytes));
        section(tag::SCAN, self.scan.map(|scan| scan.front.to_le_bytes()).as_ref().map(|front| &front[..]));
        section(tag::SLICES, (!self.slices.is_empty()).then(|| encode_slices(&self.slices)).as_deref());
        section(tag::OWN, list(&self.own).as_deref());
        for (tag, objects) in tag::LEVELS.into_iter().zip(&self.levels) {
            section(tag, list(objects).as_deref());
        }
        section(tag::BASE, list(self.base.as_slice()).as_deref());
        section(tag::DETAIL, (!self.detail.is_empty()).then_some(&self.detail));
        let mac = keys.mac(MacKind::Entry, out.as_bytes());
        out.put(&mac.0);
        Ok(out.into_bytes())
    }

    /// [`FormatError::Damaged`] means that nobody with the volume's keys wrote these bytes.
    pub fn decode(keys: &Keys, bytes: &[u8]) -> Result<Self> {
        within(PART, "length", bytes.len() as u64, 0, ENTRY_MAX as u64)?;
        let mut head = Reader::new(PART, bytes);
        head.magic(MAGIC)?;
        head.version(VERSION)?;
        let signed = bytes.len().saturating_sub(MAC_LENGTH).max(head.offset());
        let mac = Mac(Reader::new(PART, &bytes[signed..]).array()?);
        if mac != keys.mac(MacKind::Entry, &bytes[..signed]) {
            return Err(FormatError::Damaged { part: PART, check: "MAC" });
        }
        Self::decode_signed(&bytes[..signed])
    }

    /// Everything but the MAC.
    pub(super) fn decode_signed(bytes: &[u8]) -> Result<Self> {
        let mut input = Reader::new(PART, bytes);
        input.magic(MAGIC)?;
        input.version(VERSION)?;
        let kind = EntryKind::from_byte(input.u8()?)?;
        let flags = input.u8()?;
        if flags & !(DRAFT | LEAVING) != 0 {
            return Err(FormatError::Unknown { part: PART, offset: 11, field: "flags", found: flags.into() });
        }
        let mut entry = Self {
            kind,
            draft: flags & DRAFT != 0,
            leaving: flags & LEAVING != 0,
            generation: Generation(input.u32()?),
            number: EntryNumber(input.u64()?),
            instance: InstanceId(input.array()?),
            previous: ObjectHash(input.array()?),
            parent: EntryNumber(input.u64()?),
            sequence: Sequence(input.u64()?),
            time: Timestamp(input.u64()?),
            heartbeat: input.u64()?,
            size: input.u64()?,
            new_bytes: input.u64()?,
            store: None,
            scan: None,
            slices: Vec::new(),
            own: Vec::new(),
            levels: Default::default(),
            base: None,
            detail: Vec::new(),
        };
        let mut before = 0;
        while !input.is_empty() {
            let offset = input.offset();
            let tag = input.leb()?;
            let length = input.leb()?;
            let body = input.take(length)?;
            if tag <= before {
                return Err(FormatError::NotCanonical { part: PART, offset });
            }
            before = tag;
            entry.decode_section(tag, body, offset)?;
        }
        entry.check()?;
        Ok(entry)
    }

    fn decode_section(&mut self, tag: u64, body: &[u8], offset: usize) -> Result<()> {
        match tag {
            tag::STORE => {
                within(PART, "length of the store's name", body.len() as u64, 0, TEXT_MAX as u64)?;
                let text = std::str::from_utf8(body).map_err(|_| FormatError::Text { part: PART })?;
                self.store = Some(text.to_owned());
            }
            tag::SCAN => {
                let mut body = Reader::new(PART, body);
                self.scan = Some(ScanCursor { front: body.u64()? });
                body.end()?;
            }
            tag::SLICES => self.slices = decode_slices(body)?,
            tag::OWN => self.own = decode_list(body, LIST_MAX)?,
            tag::BASE => self.base = decode_list(body, 1)?.pop(),
            tag::DETAIL => {
                within(PART, "length of the detail", body.len() as u64, 1, DETAIL_MAX as u64)?;
                self.detail = body.to_vec();
            }
            _ => match tag::LEVELS.iter().position(|level| *level == tag) {
                Some(level) => self.levels[level] = decode_list(body, LIST_MAX)?,
                None if tag.is_multiple_of(2) => {}
                None => return Err(FormatError::Unknown { part: PART, offset, field: "required section", found: tag }),
            },
        }
        Ok(())
    }

    /// What both writer and reader insist on.
    fn check(&self) -> Result<()> {
        within(PART, "number", self.number.0, 1, u64::MAX)?;
        within(PART, "sequence of the cut", self.sequence.0, 0, Sequence::MAX.0)?;
        within(PART, "time of the cut", self.time.0, 0, Timestamp::MAX.0)?;
        within(PART, "size of the volume", self.size, 0, VOLUME_MAX)?;
        within(PART, "slices", self.slices.len() as u64, 0, SLICES_MAX as u64)?;
        within(
            PART,
            "length of the store's name",
            self.store.as_ref().map_or(0, String::len) as u64,
            0,
            TEXT_MAX as u64,
        )?;
        within(PART, "length of the detail", self.detail.len() as u64, 0, DETAIL_MAX as u64)?;
        for list in self.levels.iter().chain([&self.own]) {
            within(PART, "objects in a list", list.len() as u64, 0, LIST_MAX as u64)?;
        }
        for (item, pair) in self.slices.windows(2).enumerate() {
            if pair[1].sequence < pair[0].sequence || pair[1].time < pair[0].time {
                return Err(FormatError::Disorder { part: PART, item: item as u64 + 1 });
            }
        }
        if let Some(last) = self.slices.last() {
            let mismatch = |field, found, expected| Err(FormatError::Mismatch { part: PART, field, found, expected });
            if last.sequence != self.sequence {
                return mismatch("sequence of the last slice", last.sequence.0, self.sequence.0);
            }
            if last.time != self.time {
                return mismatch("time of the last slice", last.time.0, self.time.0);
            }
        }
        Ok(())
    }
}

fn encode_slices(slices: &[Slice]) -> Vec<u8> {
    let mut out = Writer::new();
    let mut before = (0, 0);
    for slice in slices {
        out.leb(slice.sequence.0 - before.0).leb(slice.time.0 - before.1);
        before = (slice.sequence.0, slice.time.0);
    }
    out.into_bytes()
}

fn decode_slices(body: &[u8]) -> Result<Vec<Slice>> {
    let mut input = Reader::new(PART, body);
    let mut slices = Vec::new();
    let (mut sequence, mut time) = (0, 0);
    while slices.is_empty() || !input.is_empty() {
        within(PART, "slices", slices.len() as u64 + 1, 1, SLICES_MAX as u64)?;
        sequence += input.leb_within("sequence of a slice", 0, u64::MAX - sequence)?;
        time += input.leb_within("time of a slice", 0, u64::MAX - time)?;
        slices.push(Slice { sequence: Sequence(sequence), time: Timestamp(time) });
    }
    Ok(slices)
}

fn encode_list(objects: &[ObjectRef]) -> Vec<u8> {
    let mut out = Writer::new();
    for object in objects {
        out.leb(object.generation.0.into()).leb(object.number).leb(object.length).put(&object.hash.0);
    }
    out.into_bytes()
}

fn decode_list(body: &[u8], max: usize) -> Result<Vec<ObjectRef>> {
    let mut input = Reader::new(PART, body);
    let mut objects = Vec::new();
    while objects.is_empty() || !input.is_empty() {
        within(PART, "objects in a list", objects.len() as u64 + 1, 1, max as u64)?;
        objects.push(ObjectRef {
            generation: Generation(input.leb_within("generation", 0, u32::MAX.into())? as u32),
            number: input.leb()?,
            length: input.leb()?,
            hash: ObjectHash(input.array()?),
        });
    }
    Ok(objects)
}
