//! Single rules: what each builder and reader refuses, hides or leaves out.

use super::*;

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
