//! What holds for every codec: it reads back what it wrote, accepts one form, notices damage, survives any bytes.

mod cases;

use bytes::Bytes;
use proptest::prelude::*;

use super::codec::{FormatError, Part, Reader, Writer};
use super::entry::{Entry, EntryKind, ScanCursor, Slice};
use super::index::{self, Footer, Head, Kind, Record};
use super::keys::{Keys, Mac};
use super::log::{LAP_MAX, LogId, LogOp, RECORD_HEADER, RecordHeader, RecordPlace, SEGMENT_HEADER, SegmentHeader};
use super::pack::{self, PackBuilder, decode_record, verify_pack};
use super::run::{RunBuilder, decode_table, verify_run};
use super::volume::{Encryption, VolumeObject};
use super::*;
use crate::random::SplitMix64;
use crate::units::{BLOCK, Block, EntryNumber, Generation, LogIndex, Mask, SECTOR, Sequence, Timestamp, VOLUME_MAX};

pub(super) fn keys() -> Keys {
    Keys::unencrypted(VolumeId(*b"a volume's id :)"))
}

pub(super) fn bytes(random: &mut SplitMix64, length: usize) -> Vec<u8> {
    (0..length).map(|_| random.below(256) as u8).collect()
}

fn mask(random: &mut SplitMix64) -> Mask {
    match random.below(4) {
        0 => Mask::FULL,
        1 => {
            let first = random.below(16) as u32;
            Mask::range(first * 8, (1 + random.below(16 - u64::from(first)) as u32) * 8)
        }
        2 => {
            let first = random.below(128) as u32;
            Mask::range(first, 1 + random.below(128 - u64::from(first)) as u32)
        }
        _ => Mask(u128::from(random.below(u64::MAX)) << 64 | u128::from(random.below(u64::MAX)) | 1),
    }
}

/// One call of a pack's builder.
#[derive(Clone, Debug)]
struct Push {
    first: Block,
    count: u64,
    slice: u8,
    mask: Mask,
    /// None: the bytes are data.
    void: Option<Void>,
    bytes: Vec<u8>,
}

/// Records of every kind, in order, over slices that overlap each other.
fn pushes(random: &mut SplitMix64, blocks: u64) -> Vec<Push> {
    let voids = [Void::Zero, Void::Trimmed, Void::Unreadable];
    let mut pushes = Vec::new();
    let mut ends = [0u64; 16];
    let mut block = random.below(1 << 20);
    for _ in 0..blocks {
        for slice in 0..=random.below(4) as u8 {
            if ends[slice as usize] > block || random.below(3) == 0 {
                continue;
            }
            let first = Block(block);
            if random.below(8) == 0 {
                let (count, void) = (2 + random.below(100), voids[random.below(3) as usize]);
                ends[slice as usize] = block + count;
                pushes.push(Push { first, count, slice, mask: Mask::FULL, void: Some(void), bytes: Vec::new() });
                continue;
            }
            let mut left = mask(random);
            for void in [None, Some(Void::Zero), Some(Void::Trimmed), Some(Void::Unreadable)] {
                let mask = if random.below(2) == 0 { left } else { left.and(mask(random)) };
                if !mask.is_empty() {
                    let length = if void.is_none() { mask.count() as usize * SECTOR as usize } else { 0 };
                    let bytes = if random.below(2) == 0 {
                        bytes(random, length)
                    } else {
                        vec![random.below(256) as u8; length]
                    };
                    pushes.push(Push { first, count: 1, slice, mask, void, bytes });
                }
                left = left.minus(mask);
            }
        }
        block += random.below(3) * random.below(1000).max(1);
        block += 1;
    }
    pushes
}

fn build(pushes: &[Push]) -> (Bytes, ObjectRef) {
    let mut pack = PackBuilder::new(&keys(), Generation(7), 11);
    for push in pushes {
        match push.void {
            None => pack.push_data(push.first, push.slice, push.mask, &push.bytes).unwrap(),
            Some(void) => pack.push_void(push.first, push.count, push.slice, push.mask, void).unwrap(),
        }
    }
    let guess = pack.stored_bytes();
    let (bytes, object) = pack.finish();
    assert!(guess.abs_diff(object.length) < 1000, "{guess} was told, {} it is", object.length);
    (bytes, object)
}

fn head(kind: Kind, bytes: &Bytes, object: &ObjectRef) -> Head {
    let footer = Footer::decode(&keys(), kind, object, bytes).unwrap();
    let range = footer.head_range();
    Head::decode(&keys(), footer, &bytes.slice(range.start as usize..range.end as usize)).unwrap()
}

fn run_records(random: &mut SplitMix64, blocks: u64, packs: u32) -> Vec<RunRecord> {
    let mut records = Vec::new();
    let mut block = random.below(1 << 24);
    for _ in 0..blocks {
        let mut left = mask(random);
        let mut sources: Vec<_> = (0..2).map(|_| RunSource::Pack(random.below(packs.into()) as u32)).collect();
        sources.extend([RunSource::Zero, RunSource::Trimmed, RunSource::Unreadable]);
        sources.sort();
        sources.dedup();
        let count = if left == Mask::FULL && random.below(2) == 0 { 2 + random.below(1000) } else { 1 };
        for source in sources {
            let mask = if count > 1 || random.below(2) == 0 { left } else { left.and(mask(random)) };
            if !mask.is_empty() {
                records.push(RunRecord { first: Block(block), count, mask, source });
            }
            left = left.minus(mask);
        }
        block += count + random.below(3) * random.below(1000);
    }
    records
}

fn build_run(records: &[RunRecord], packs: u32) -> (Bytes, ObjectRef) {
    let mut run = RunBuilder::new(&keys(), Generation(2), 5);
    for number in 0..packs {
        let hash = ObjectHash([number as u8; 32]);
        let pack = ObjectRef { generation: Generation(1), number: number.into(), length: 1 << 20, hash };
        assert_eq!(run.pack(&pack), Ok(number));
        assert_eq!(run.pack(&pack), Ok(number), "a pack is listed once");
    }
    records.iter().for_each(|record| run.push(*record).unwrap());
    run.finish().unwrap()
}

pub(super) fn entry(random: &mut SplitMix64) -> Entry {
    let object = |random: &mut SplitMix64| ObjectRef {
        generation: Generation(random.below(1 << 32) as u32),
        number: random.below(1000),
        length: random.below(1 << 40),
        hash: ObjectHash(bytes(random, 32).try_into().unwrap()),
    };
    let list = |random: &mut SplitMix64| (0..random.below(4)).map(|_| object(random)).collect::<Vec<_>>();
    let (mut sequence, mut time) = (random.below(1 << 40), random.below(1 << 42));
    let slices: Vec<_> = (0..random.below(17))
        .map(|_| {
            sequence += random.below(1000);
            time += random.below(3000);
            Slice { sequence: Sequence(sequence), time: Timestamp(time) }
        })
        .collect();
    let kinds = [EntryKind::Open, EntryKind::Point, EntryKind::Draft, EntryKind::Checkpoint, EntryKind::Untracked];
    Entry {
        number: EntryNumber(1 + random.below(1000)),
        kind: kinds[random.below(5) as usize],
        generation: Generation(random.below(9) as u32),
        instance: InstanceId(bytes(random, 16).try_into().unwrap()),
        previous: ObjectHash(bytes(random, 32).try_into().unwrap()),
        parent: EntryNumber(random.below(1000)),
        sequence: Sequence(sequence),
        time: Timestamp(time),
        heartbeat: random.below(1000),
        size: random.below(VOLUME_MAX + 1),
        draft: random.below(2) == 0,
        leaving: random.below(2) == 0,
        new_bytes: random.below(1 << 30),
        store: (random.below(2) == 0).then(|| "file:/var/lib/disk0.img é".to_owned()),
        scan: (random.below(2) == 0).then(|| ScanCursor { front: random.below(1 << 40) }),
        slices,
        own: list(random),
        levels: [list(random), list(random), list(random), list(random)],
        base: (random.below(2) == 0).then(|| object(random)),
        detail: if random.below(2) == 0 { bytes(random, 100) } else { Vec::new() },
    }
}

/// `bytes` with some of them replaced: close enough to right to get far into a decoder.
fn damage(random: &mut SplitMix64, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(3) {
        let Some(last) = bytes.len().checked_sub(1) else { break };
        match random.below(4) {
            0 => bytes.truncate(random.below(bytes.len() as u64) as usize),
            1 => bytes.insert(random.below(bytes.len() as u64) as usize, random.below(256) as u8),
            _ => bytes[random.below(last as u64 + 1) as usize] = random.below(256) as u8,
        }
    }
    bytes
}

fn encode_records<R: Record>(records: &[R]) -> Vec<u8> {
    let (mut out, mut previous) = (Writer::new(), R::Previous::default());
    records.iter().for_each(|record| record.encode(&mut previous, &mut out));
    out.into_bytes()
}

/// The shape of an object large enough for any record.
fn roomy(kind: Kind) -> Footer {
    Footer {
        kind,
        generation: Generation(1),
        number: 1,
        volume: keys().volume(),
        records: 1,
        pages_at: 1 << 40,
        table_at: 1 << 41,
        directory_at: 1 << 42,
        length: 1 << 43,
        table_mac: Mac([0; 16]),
        directory_mac: Mac([0; 16]),
    }
}

/// Whatever a decoder accepts it also writes so: nothing has two forms.
fn one_form<R: Record>(bytes: &[u8]) {
    if let Ok(records) = index::decode_records::<R>(&roomy(R::KIND), bytes) {
        assert_eq!(encode_records(&records), bytes);
    }
}

const PLACE: RecordPlace = RecordPlace { log: LogId(*b"log 9, of random"), epoch: 3, lap: 44, position: 4096 };

fn header(random: &mut SplitMix64) -> RecordHeader {
    use LogOp::{Ahead, Heartbeat, ReadBack, Scan, Trim, Unreadable, Void, Write, Zero};
    let ops = [Write, ReadBack, Zero, Trim, Ahead, Unreadable, Scan, Void, Heartbeat];
    let op = ops[random.below(7) as usize];
    let length = 1 + random.below(100_000);
    let (payload, payload_crc) =
        if op.has_payload() { (length.next_multiple_of(SECTOR) as u32, random.below(1 << 32) as u32) } else { (0, 0) };
    let (index, sequence) = (LogIndex(random.below(1 << 50)), Sequence(random.below(1 << 50)));
    RecordHeader { index, sequence, op, offset: random.below(1 << 46), length, payload, payload_crc }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_pack_gives_back_what_was_put_into_it(seed: u64) {
        let pushes = pushes(&mut SplitMix64(seed), 30);
        let (bytes, object) = build(&pushes);
        let records = verify_pack(&keys(), &bytes, &object).unwrap();
        prop_assert_eq!(records.len(), pushes.len());
        for (record, push) in records.iter().zip(&pushes) {
            let place = (push.first, push.count, push.slice, push.mask);
            prop_assert_eq!((record.first, record.count, record.slice, record.mask), place);
            match &record.content {
                PackContent::Void(void) => prop_assert_eq!(Some(*void), push.void),
                PackContent::Data(stored) => {
                    prop_assert!(push.void.is_none());
                    let end = stored.offset + u64::from(stored.length);
                    let stored = &bytes[stored.offset as usize..end as usize];
                    prop_assert_eq!(&decode_record(&keys(), record, stored).unwrap()[..], &push.bytes[..]);
                }
            }
        }
    }

    #[test]
    fn the_pages_that_cover_blocks_hold_all_their_records(seed: u64, near in 0u64..2000) {
        let mut random = SplitMix64(seed);
        let blocks = 200 + random.below(3000);
        let records: Vec<_> = pushes(&mut random, blocks)
            .into_iter()
            .map(|push| Push { void: push.void.or(Some(Void::Zero)), ..push })
            .collect();
        let mut pack = PackBuilder::new(&keys(), Generation(7), 11);
        // Data became zeroes, which may make two records of one kind: the builder says so and goes on.
        let accepted: Vec<_> = records
            .iter()
            .filter(|push| pack.push_void(push.first, push.count, push.slice, push.mask, push.void.unwrap()).is_ok())
            .collect();
        let (bytes, object) = pack.finish();
        let head = head(Kind::Pack, &bytes, &object);
        let from = accepted[random.below(accepted.len() as u64) as usize].first;
        let to = Block(from.0 + near);
        let mut found = Vec::new();
        for number in head.covering(from, to) {
            let range = head.pages()[number].range();
            prop_assert!(range.end - range.start <= index::PAGE_MAX);
            let bytes = &bytes[range.start as usize..range.end as usize];
            found.extend(head.decode_page::<PackRecord>(&keys(), number, bytes).unwrap());
        }
        let covers = |first: Block, count: u64| first <= to && first.0 + count > from.0;
        let expected = accepted.iter().filter(|push| covers(push.first, push.count)).count();
        prop_assert_eq!(found.iter().filter(|record| covers(record.first, record.count)).count(), expected);
    }

    #[test]
    fn a_run_gives_back_what_was_put_into_it(seed: u64, blocks in 1u64..5000) {
        let records = run_records(&mut SplitMix64(seed), blocks, 40);
        let (bytes, object) = build_run(&records, 40);
        let (packs, found) = verify_run(&keys(), &bytes, &object).unwrap();
        prop_assert_eq!(packs.len(), 40);
        // Neighbours that say the same are one record afterwards: compare block by block.
        let blocks = |records: &[RunRecord]| -> Vec<(u64, Mask, RunSource)> {
            let each = |r: &RunRecord| (r.first.0..r.first.0 + r.count).map(move |b| (b, r.mask, r.source)).collect::<Vec<_>>();
            records.iter().flat_map(each).collect()
        };
        prop_assert_eq!(blocks(&found), blocks(&records));
    }

    #[test]
    fn an_entry_reads_back_and_has_one_form(seed: u64) {
        let mut random = SplitMix64(seed);
        let entry = entry(&mut random);
        let bytes = entry.encode(&keys()).unwrap();
        prop_assert_eq!(&Entry::decode(&keys(), &bytes).unwrap(), &entry);
        let signed = &bytes[..bytes.len() - 16];
        let damaged = damage(&mut random, signed);
        if let Ok(decoded) = Entry::decode_signed(&damaged) {
            let again = decoded.encode(&keys()).unwrap();
            // Shorter only if it had sections that this version skips.
            prop_assert!(again[..again.len() - 16] == damaged || again.len() - 16 < damaged.len());
        }
    }

    #[test]
    fn a_changed_byte_of_an_entry_is_noticed(seed: u64, at: prop::sample::Index, change in 1u8..) {
        let mut bytes = entry(&mut SplitMix64(seed)).encode(&keys()).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        prop_assert!(Entry::decode(&keys(), &bytes).is_err());
        bytes[at] ^= change;
        bytes.truncate(at);
        prop_assert!(Entry::decode(&keys(), &bytes).is_err());
    }

    #[test]
    fn a_changed_byte_of_an_index_is_noticed(seed: u64, change in 1u8..) {
        let (bytes, object) = build(&pushes(&mut SplitMix64(seed), 10));
        let footer = Footer::decode(&keys(), Kind::Pack, &object, &bytes).unwrap();
        let data = footer.pages_at as usize;
        let mut random = SplitMix64(seed ^ 1);
        for _ in 0..40 {
            let at = data + random.below((bytes.len() - data) as u64) as usize;
            let mut damaged = bytes.to_vec();
            damaged[at] ^= change;
            let damaged = Bytes::from(damaged);
            let read = || -> Result<(), FormatError> {
                let footer = Footer::decode(&keys(), Kind::Pack, &object, &damaged)?;
                let range = footer.head_range();
                let head = Head::decode(&keys(), footer, &damaged.slice(range.start as usize..range.end as usize))?;
                for (number, page) in head.pages().iter().enumerate() {
                    let range = page.range();
                    head.decode_page::<PackRecord>(&keys(), number, &damaged[range.start as usize..range.end as usize])?;
                }
                Ok(())
            };
            prop_assert!(read().is_err(), "byte {} of {}", at, bytes.len());
        }
    }

    #[test]
    fn a_changed_byte_of_a_record_is_noticed(seed: u64, at: prop::sample::Index, change in 1u8..) {
        let (bytes, object) = build(&pushes(&mut SplitMix64(seed), 10));
        let mut damaged = bytes.to_vec();
        let at = at.index(damaged.len());
        damaged[at] ^= change;
        let whole = ObjectRef { hash: ObjectHash::of(&damaged), ..object };
        prop_assert!(verify_pack(&keys(), &damaged.clone().into(), &object).is_err());
        prop_assert!(verify_pack(&keys(), &damaged.into(), &whole).is_err(), "even where the hash was made to match");
    }

    /// Fault tests 5 and 25.
    #[test]
    fn a_log_header_is_believed_only_whole_and_at_its_place(seed: u64, at in 0..RECORD_HEADER, change in 1u8..) {
        let header = header(&mut SplitMix64(seed));
        let mut bytes = [0xaa; RECORD_HEADER + 3];
        header.encode_into(&PLACE, &mut bytes);
        prop_assert_eq!(RecordHeader::decode(&bytes, &PLACE), Ok(header));
        for place in [
            RecordPlace { log: LogId([8; 16]), ..PLACE },
            RecordPlace { log: LogId(*b"\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), ..PLACE },
            RecordPlace { epoch: 2, ..PLACE },
            RecordPlace { lap: 43, ..PLACE },
            RecordPlace { position: 4176, ..PLACE },
        ] {
            prop_assert!(RecordHeader::decode(&bytes, &place).is_err(), "{:?}", place);
        }
        bytes[at] ^= change;
        prop_assert!(RecordHeader::decode(&bytes, &PLACE).is_err());
        prop_assert!(RecordHeader::decode(&bytes[..RECORD_HEADER - 1], &PLACE).is_err());
    }

    #[test]
    fn a_changed_byte_of_a_segment_header_is_noticed(at in 0..SEGMENT_HEADER, change in 1u8..) {
        let header = SegmentHeader { log: PLACE.log, volume: keys().volume(), epoch: 3, lap: 44, first: LogIndex(812) };
        let mut page = [0xaa; SEGMENT_HEADER];
        header.encode_into(&mut page);
        prop_assert_eq!(SegmentHeader::decode(&page), Ok(header));
        page[at] ^= change;
        prop_assert!(SegmentHeader::decode(&page).is_err());
    }

    #[test]
    fn bytes_of_any_origin_are_refused_or_read_but_never_fatal(bytes in prop::collection::vec(any::<u8>(), 0..400), seed: u64) {
        let object = ObjectRef { generation: Generation(1), number: 1, length: bytes.len() as u64, hash: ObjectHash([0; 32]) };
        let whole = Bytes::from(bytes.clone());
        let _ = Entry::decode(&keys(), &bytes);
        let _ = Entry::decode_signed(&bytes);
        let _ = VolumeObject::decode(&keys(), &bytes);
        let _ = VolumeId::from_name_object(&bytes);
        let _ = Footer::decode(&keys(), Kind::Run, &object, &bytes);
        let _ = decode_table(&bytes);
        let _ = verify_pack(&keys(), &whole, &object);
        let _ = verify_run(&keys(), &whole, &object);
        let _ = RecordHeader::decode(&bytes, &PLACE);
        let _ = SegmentHeader::decode(&bytes);
        one_form::<PackRecord>(&bytes);
        one_form::<RunRecord>(&bytes);

        let mut random = SplitMix64(seed);
        let run = run_records(&mut random, 20, 5);
        one_form::<RunRecord>(&damage(&mut random, &encode_records(&run)));
        let (pack, object) = build(&pushes(&mut random, 5));
        let records = verify_pack(&keys(), &pack, &object).unwrap();
        one_form::<PackRecord>(&damage(&mut random, &encode_records(&records)));
        for record in &records {
            let _ = decode_record(&keys(), record, &bytes);
        }
    }
}
