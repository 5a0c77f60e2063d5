//! What holds for every codec: it reads back what it wrote, accepts one form, notices damage, survives any bytes.

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

#[test]
fn a_record_that_is_out_of_order_or_names_a_sector_twice_is_refused() {
    let mut pack = PackBuilder::new(&keys(), Generation(1), 1);
    let sector = |n| Mask::range(n, 1);
    let disorder = |item| Err(FormatError::Disorder { part: Part::PackPage, item });
    pack.push_data(Block(5), 1, sector(3), &[1; 512]).unwrap();
    assert_eq!(pack.push_data(Block(5), 1, sector(4), &[1; 512]), disorder(1), "one data record per block and slice");
    assert_eq!(pack.push_data(Block(5), 0, sector(4), &[1; 512]), disorder(1));
    assert_eq!(pack.push_void(Block(5), 1, 1, sector(3), Void::Zero), disorder(1));
    assert_eq!(pack.push_void(Block(4), 1, 1, sector(3), Void::Zero), disorder(1));
    let mut pack = PackBuilder::new(&keys(), Generation(1), 1);
    pack.push_void(Block(5), 100, 0, Mask::FULL, Void::Zero).unwrap();
    pack.push_void(Block(50), 1, 1, sector(3), Void::Zero).unwrap();
    assert_eq!(pack.push_void(Block(104), 1, 0, sector(3), Void::Zero), disorder(2));
}

#[test]
fn what_no_reader_would_accept_is_refused_by_the_builder() {
    let mut pack = PackBuilder::new(&keys(), Generation(1), 1);
    assert!(pack.push_data(Block(0), 0, Mask::NONE, &[]).is_err());
    assert!(pack.push_data(Block(0), 16, Mask::range(0, 1), &[0; 512]).is_err());
    assert!(pack.push_data(Block(0), 0, Mask::range(0, 1), &[0; 511]).is_err());
    assert!(pack.push_void(Block(0), 2, 0, Mask::range(0, 127), Void::Zero).is_err());
    assert!(pack.push_void(Block(0), 0, 0, Mask::FULL, Void::Zero).is_err());
    assert!(pack.push_void(Block(1), index::BLOCKS_MAX, 0, Mask::FULL, Void::Zero).is_err());
    assert!(pack.push_void(Block(u64::MAX), u64::MAX, 0, Mask::FULL, Void::Zero).is_err());
    assert!(pack.is_empty());
    pack.push_void(Block(0), index::BLOCKS_MAX, 0, Mask::FULL, Void::Trimmed).unwrap();
    let (bytes, object) = pack.finish();
    assert_eq!(verify_pack(&keys(), &bytes, &object).unwrap()[0].count, index::BLOCKS_MAX);
}

#[test]
fn an_index_is_as_small_as_the_design_counts_on() {
    let mut pack = PackBuilder::new(&keys(), Generation(1), 1);
    let mut random = SplitMix64(4);
    for block in 0..10_000 {
        pack.push_data(Block(block * 1500), 0, Mask::range(random.below(16) as u32 * 8, 8), &[block as u8; 4096])
            .unwrap();
    }
    let (bytes, object) = pack.finish();
    let footer = Footer::decode(&keys(), Kind::Pack, &object, &bytes).unwrap();
    let index = footer.length - footer.pages_at;
    assert!(index < 22 * 10_000 + 1000, "{index} bytes for 10,000 pack records");

    let mut run = RunBuilder::new(&keys(), Generation(1), 1);
    for number in 0..1024 {
        let hash = ObjectHash([0; 32]);
        run.pack(&ObjectRef { generation: Generation(1), number, length: 1, hash }).unwrap();
    }
    for block in 0..100_000 {
        let (mask, source) = (Mask::range(random.below(128) as u32, 1), RunSource::Pack(random.below(1024) as u32));
        run.push(RunRecord { first: Block(block * 500), count: 1, mask, source }).unwrap();
    }
    let (bytes, object) = run.finish().unwrap();
    let footer = Footer::decode(&keys(), Kind::Run, &object, &bytes).unwrap();
    assert!(footer.table_at < 8 * 100_000, "{} bytes for 100,000 run records", footer.table_at);
    // 64 TiB written in order, a pack for each 64 MiB.
    let mut run = RunBuilder::new(&keys(), Generation(1), 1);
    let pack = ObjectRef { generation: Generation(1), number: 1, length: 1, hash: ObjectHash([0; 32]) };
    run.pack(&pack).unwrap();
    for block in 0..1_000_000 {
        run.push(RunRecord { first: Block(block), count: 1, mask: Mask::FULL, source: RunSource::Pack(0) }).unwrap();
    }
    assert!(run.finish().unwrap().1.length < 300);
}

#[test]
fn an_unknown_section_is_skipped_if_even_and_refused_if_odd() {
    let entry = entry(&mut SplitMix64(1));
    let bytes = entry.encode(&keys()).unwrap();
    let with = |tag: u8| {
        let mut bytes = bytes[..bytes.len() - 16].to_vec();
        bytes.extend_from_slice(&[tag, 3, 1, 2, 3]);
        let mac = keys().mac(super::keys::MacKind::Entry, &bytes);
        bytes.extend_from_slice(&mac.0);
        Entry::decode(&keys(), &bytes)
    };
    assert_eq!(with(100), Ok(entry));
    assert!(matches!(with(101), Err(FormatError::Unknown { field: "required section", found: 101, .. })));
}

#[test]
fn an_entry_says_what_it_is_only_to_who_has_the_volume() {
    let bytes = entry(&mut SplitMix64(1)).encode(&keys()).unwrap();
    let other = Keys::unencrypted(VolumeId([0; 16]));
    assert_eq!(Entry::decode(&other, &bytes), Err(FormatError::Damaged { part: Part::Entry, check: "MAC" }));
    let mut newer = bytes.clone();
    newer[8] = 2;
    let refused = FormatError::UnknownVersion { part: Part::Entry, found: 2, known: 1 };
    assert_eq!(Entry::decode(&keys(), &newer), Err(refused));
}

#[test]
fn an_entry_over_its_limits_is_not_written() {
    let fine = Entry { slices: Vec::new(), ..entry(&mut SplitMix64(1)) };
    let object =
        ObjectRef { generation: Generation(u32::MAX), number: u64::MAX, length: u64::MAX, hash: ObjectHash([1; 32]) };
    let full = vec![object; super::entry::LIST_MAX];
    let most = Entry {
        own: full.clone(),
        levels: [full.clone(), full.clone(), full.clone(), full.clone()],
        detail: vec![1; super::entry::DETAIL_MAX],
        store: Some("x".repeat(super::entry::TEXT_MAX)),
        ..fine.clone()
    };
    assert_eq!(Entry::decode(&keys(), &most.encode(&keys()).unwrap()), Ok(most.clone()));
    let slice = Slice { sequence: fine.sequence, time: fine.time };
    let early = Slice { sequence: fine.sequence, time: Timestamp(fine.time.0 - 1) };
    for over in [
        Entry { own: vec![object; super::entry::LIST_MAX + 1], ..fine.clone() },
        Entry { detail: vec![1; super::entry::DETAIL_MAX + 1], ..fine.clone() },
        Entry { store: Some("x".repeat(super::entry::TEXT_MAX + 1)), ..fine.clone() },
        Entry { slices: vec![slice; 17], ..fine.clone() },
        Entry { slices: vec![early], ..fine.clone() },
        Entry { slices: vec![slice, early, slice], ..fine.clone() },
        Entry { size: VOLUME_MAX + 1, ..fine.clone() },
        Entry { time: Timestamp(Timestamp::MAX.0 + 1), ..fine.clone() },
        Entry { sequence: Sequence(Sequence::MAX.0 + 1), ..fine.clone() },
        Entry { number: EntryNumber(0), ..fine.clone() },
    ] {
        assert!(over.encode(&keys()).is_err());
    }
}

/// What is read is counted on from, shown, and compared with what comes later.
#[test]
fn a_number_that_none_could_follow_is_refused() {
    let header = header(&mut SplitMix64(1));
    let mut bytes = [0; RECORD_HEADER];
    let mut reads = |header: RecordHeader, at: usize, value: u64| {
        header.encode_into(&PLACE, &mut bytes);
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let crc = super::log::crc32c(&bytes[..RECORD_HEADER - 4]);
        bytes[RECORD_HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        RecordHeader::decode(&bytes, &PLACE).is_ok()
    };
    assert!(reads(header, 32, LogIndex::MAX.0) && !reads(header, 32, LogIndex::MAX.0 + 1));
    assert!(reads(header, 40, Sequence::MAX.0) && !reads(header, 40, Sequence::MAX.0 + 1));
    let last =
        SegmentHeader { log: PLACE.log, volume: keys().volume(), epoch: 3, lap: LAP_MAX + 1, first: LogIndex(1) };
    let mut page = [0; SEGMENT_HEADER];
    last.encode_into(&mut page);
    assert!(SegmentHeader::decode(&page).is_err());
    SegmentHeader { lap: LAP_MAX, ..last }.encode_into(&mut page);
    assert!(SegmentHeader::decode(&page).is_ok());
    let volume = |created| VolumeObject { id: keys().volume(), created, encryption: Encryption::None }.encode(&keys());
    assert!(VolumeObject::decode(&keys(), &volume(Timestamp::MAX)).is_ok());
    assert!(VolumeObject::decode(&keys(), &volume(Timestamp(Timestamp::MAX.0 + 1))).is_err());
}

#[test]
fn a_footer_of_another_object_is_not_taken_for_this_ones() {
    let (bytes, object) = build(&pushes(&mut SplitMix64(3), 5));
    for other in [
        ObjectRef { number: object.number + 1, ..object },
        ObjectRef { generation: Generation(8), ..object },
        ObjectRef { length: object.length + 1, ..object },
    ] {
        assert!(Footer::decode(&keys(), Kind::Pack, &other, &bytes).is_err());
    }
    assert!(Footer::decode(&keys(), Kind::Run, &object, &bytes).is_err());
}

/// A page that the directory hides is not read, so that nothing else would notice.
#[test]
fn a_changed_byte_of_a_head_is_noticed_without_the_pages() {
    let mut random = SplitMix64(6);
    let (pack, pack_object) = build(&pushes(&mut random, 300));
    let (run, run_object) = build_run(&run_records(&mut random, 3000, 4), 4);
    for (kind, bytes, object) in [(Kind::Pack, pack, pack_object), (Kind::Run, run, run_object)] {
        let footer = Footer::decode(&keys(), kind, &object, &bytes).unwrap();
        let range = footer.head_range();
        let head = &bytes[range.start as usize..range.end as usize];
        for at in 0..head.len() {
            let mut damaged = head.to_vec();
            damaged[at] ^= 1;
            assert!(Head::decode(&keys(), footer, &damaged.into()).is_err(), "byte {at}");
        }
    }
}

#[test]
fn the_volume_object_belongs_to_one_volume() {
    let object =
        VolumeObject { id: keys().volume(), created: Timestamp(1_800_000_000_000), encryption: Encryption::None };
    let bytes = object.encode(&keys());
    assert_eq!(VolumeObject::decode(&keys(), &bytes), Ok(object));
    assert!(VolumeObject::decode(&Keys::unencrypted(VolumeId([0; 16])), &bytes).is_err());
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(VolumeObject::decode(&keys(), &damaged).is_err(), "byte {at}");
    }
}

#[test]
fn a_record_that_would_grow_beyond_its_sectors_is_refused() {
    let bomb = zstd::bulk::compress(&vec![0; 1 << 20], 1).unwrap();
    let stored = Stored { offset: 0, length: bomb.len() as u32, encoding: Encoding::Zstd, hash: ContentHash([0; 16]) };
    let mut record =
        PackRecord { first: Block(0), count: 1, slice: 0, mask: Mask::FULL, content: PackContent::Data(stored) };
    let refused = FormatError::Decompression { part: Part::PackRecord, expected: BLOCK as usize };
    assert_eq!(decode_record(&keys(), &record, &bomb), Err(refused));
    let short = zstd::bulk::compress(&[0; 512], 1).unwrap();
    record.content = PackContent::Data(Stored { length: short.len() as u32, ..stored });
    assert_eq!(decode_record(&keys(), &record, &short), Err(refused));
}

#[test]
fn what_is_hardly_smaller_is_stored_as_it_is() {
    let mut bytes = bytes(&mut SplitMix64(5), 4096);
    bytes[..200].fill(0);
    let mut pack = PackBuilder::new(&keys(), Generation(1), 1);
    pack.push_data(Block(0), 0, Mask::range(0, 8), &bytes).unwrap();
    bytes[..400].fill(0);
    pack.push_data(Block(1), 0, Mask::range(0, 8), &bytes).unwrap();
    let (bytes, object) = pack.finish();
    let records = verify_pack(&keys(), &bytes, &object).unwrap();
    let encodings: Vec<_> = records
        .iter()
        .filter_map(|record| match &record.content {
            PackContent::Data(stored) => Some(stored.encoding),
            PackContent::Void(_) => None,
        })
        .collect();
    assert_eq!(encodings, [Encoding::Raw, Encoding::Zstd]);
    assert_eq!(pack::SLICES_MAX, 16);
}

#[test]
fn a_reader_says_where_it_stopped() {
    let mut input = Reader::new(Part::PackPage, &[0, 1]);
    input.u8().unwrap();
    let error = input.u32().unwrap_err();
    assert_eq!(error.to_string(), "index page of pack: ends too early: 4 more bytes expected at offset 1, 1 there");
}
