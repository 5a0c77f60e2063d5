//! The format, pinned by bytes. A test that fails here has found a copy that somebody made and can no longer read.

use super::entry::{Entry, EntryKind, ScanCursor, Slice};
use super::keys::Keys;
use super::log::{LogId, LogOp, RECORD_HEADER, RecordHeader, RecordPlace, SEGMENT_HEADER, SegmentHeader};
use super::marks::{self, Facts, Header, LifeId, Mark, Page, PagePlace, Runs, Stamp, Transaction};
use super::pack::{PackBuilder, decode_record, verify_pack};
use super::run::{RunBuilder, verify_run};
use super::tests::bytes;
use super::volume::{Encryption, VolumeObject};
use super::*;
use crate::random::SplitMix64;
use crate::units::{Block, EntryNumber, Generation, LogIndex, Mask, REGION, Sequence, Timestamp};

const VOLUME: VolumeId = VolumeId(*b"0123456789abcdef");
const TIME: Timestamp = Timestamp(1_795_000_000_000);

fn keys() -> Keys {
    Keys::unencrypted(VOLUME)
}

fn object(number: u8) -> ObjectRef {
    let hash = ObjectHash([number; 32]);
    ObjectRef { generation: Generation(3), number: number.into(), length: 1000 + u64::from(number), hash }
}

/// `hex` may be broken into lines.
fn pinned(what: &str, bytes: &[u8], hex: &str) {
    let found: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected: String = hex.split_whitespace().collect();
    let lines: Vec<_> = found.as_bytes().chunks(96).map(|line| String::from_utf8_lossy(line)).collect();
    assert!(
        found == expected,
        "{what}: the format changed: raise the version, keep reading the old one. It is now\n{}",
        lines.join("\n")
    );
}

#[test]
fn the_volume_object_is_as_pinned() {
    let object = VolumeObject { id: VOLUME, created: TIME, encryption: Encryption::None };
    pinned(
        "volume object",
        &object.encode(&keys()),
        "
        756d627261766f6c010000000000000030313233343536373839616263646566005e56eea101000046bf17c60a5515bf
        a3ba2688455e1156
        ",
    );
}

#[test]
fn an_entry_is_as_pinned() {
    let entry = Entry {
        number: EntryNumber(812),
        kind: EntryKind::Point,
        generation: Generation(3),
        instance: InstanceId([0x11; 16]),
        previous: ObjectHash([0x22; 32]),
        parent: EntryNumber(811),
        sequence: Sequence(1_000_001),
        time: TIME,
        heartbeat: 77,
        size: 1 << 30,
        draft: true,
        leaving: true,
        new_bytes: 4242,
        store: Some("file:8:1:42".into()),
        scan: Some(ScanCursor { front: 4 << 20 }),
        slices: vec![
            Slice { sequence: Sequence(1_000_000), time: Timestamp(TIME.0 - 1000) },
            Slice { sequence: Sequence(1_000_001), time: TIME },
        ],
        own: vec![object(1)],
        levels: [vec![object(2), object(200)], vec![object(3)], vec![object(4)], vec![object(5)]],
        base: Some(object(6)),
        detail: b"detail".to_vec(),
    };
    let bytes = entry.encode(&keys()).unwrap();
    pinned(
        "entry",
        &bytes,
        "
        756d627261656e7401000203030000002c03000000000000111111111111111111111111111111112222222222222222
        2222222222222222222222222222222222222222222222222b0300000000000041420f0000000000005e56eea1010000
        4d0000000000000000000040000000009210000000000000010b66696c653a383a313a34320308000040000000000005
        0cc0843d98b4d9f29e3401e80707240301e9070101010101010101010101010101010101010101010101010101010101
        01010109490302ea07020202020202020202020202020202020202020202020202020202020202020203c801b009c8c8
        c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c80b240303eb07030303030303030303030303
        03030303030303030303030303030303030303030d240304ec0704040404040404040404040404040404040404040404
        040404040404040404040f240305ed070505050505050505050505050505050505050505050505050505050505050505
        11240306ee070606060606060606060606060606060606060606060606060606060606060606130664657461696cd7db
        e3a5ad0ae366eb7cf97fb81a6456
        ",
    );
    assert_eq!(Entry::decode(&keys(), &bytes), Ok(entry));
}

#[test]
fn every_kind_of_entry_keeps_its_number() {
    let kinds = [
        EntryKind::Open,
        EntryKind::Point,
        EntryKind::Draft,
        EntryKind::Checkpoint,
        EntryKind::Reclaim,
        EntryKind::Pin,
        EntryKind::Unpin,
        EntryKind::RestoreBegin,
        EntryKind::RestoreEnd,
        EntryKind::Untracked,
    ];
    for (number, kind) in (1..).zip(kinds) {
        let entry = Entry { kind, ..super::tests::entry(&mut SplitMix64(1)) };
        assert_eq!(entry.encode(&keys()).unwrap()[10], number);
    }
}

/// Without a compressed record: the compressor's output may change with its version, what it decodes to may not.
#[test]
fn a_pack_is_as_pinned() {
    let mut pack = PackBuilder::new(&keys(), Generation(3), 0x2b);
    let sector = bytes(&mut SplitMix64(1), 512);
    pack.push_data(Block(5), 0, Mask::range(3, 1), &sector).unwrap();
    pack.push_void(Block(5), 1, 0, Mask::range(8, 16), Void::Zero).unwrap();
    pack.push_data(Block(5), 1, Mask::range(3, 1), &sector).unwrap();
    pack.push_void(Block(5), 1, 1, Mask(0b101), Void::Unreadable).unwrap();
    pack.push_void(Block(6), 1 << 20, 4, Mask::FULL, Void::Trimmed).unwrap();
    let (bytes, object) = pack.finish();
    pinned(
        "index of a pack",
        &bytes[1024..],
        "
        1005030000a8d55fb7a6530cb4a717f273a2c1304a0a00113000010300a8d55fb7a6530cb4a717f273a2c1304a1c0005
        000000000000000000000000000000630104feff3f0580804045056f8d895bf3f5eb678cce4b5634b40d2e756d627261
        69647801000100030000002b000000000000003031323334353637383961626364656605000000000000000004000000
        00000045040000000000004504000000000000db040000000000005fa35cb01c54acde59906ac3da9f9a11d3ab0e0c23
        350b8d6577014375549c449b1597b59099acb44f368e04abcdcaed
        ",
    );
    assert_eq!(bytes[..1024], [&sector[..], &sector[..]].concat());
    assert_eq!(verify_pack(&keys(), &bytes, &object).unwrap().len(), 5);
}

#[test]
fn a_compressed_record_of_this_version_can_be_read() {
    let frame =
        [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x48, 0x4d, 0x00, 0x00, 0x10, 0x61, 0x61, 0x01, 0x00, 0xfb, 0x2a, 0xc0, 0x02];
    let hash = keys().content_hash(&[b'a'; 512]);
    let stored = Stored { offset: 0, length: frame.len() as u32, encoding: Encoding::Zstd, hash };
    let content = PackContent::Data(stored);
    let record = PackRecord { first: Block(0), count: 1, slice: 0, mask: Mask::range(0, 1), content };
    assert_eq!(decode_record(&keys(), &record, &frame).unwrap(), vec![b'a'; 512]);
}

#[test]
fn the_content_hash_is_as_pinned() {
    pinned("content hash", &keys().content_hash(&[0; 512]).0, "857d4bb49c4aeabf210157259d6899c1");
}

#[test]
fn a_run_is_as_pinned() {
    let mut run = RunBuilder::new(&keys(), Generation(3), 9);
    run.pack(&object(1)).unwrap();
    run.pack(&object(2)).unwrap();
    for (first, count, mask, source) in [
        (5, 1, Mask::range(3, 1), RunSource::Pack(1)),
        (5, 1, Mask::range(8, 16), RunSource::Zero),
        (6, 1, Mask::FULL, RunSource::Pack(0)),
        (7, 1, Mask::FULL, RunSource::Pack(0)),
        (9, 1, Mask::range(0, 8), RunSource::Pack(0)),
        (9, 1, Mask::range(8, 8), RunSource::Pack(1)),
        (9, 1, Mask(1 << 100 | 1 << 127), RunSource::Unreadable),
        (100, 1 << 20, Mask::FULL, RunSource::Trimmed),
    ] {
        run.push(RunRecord { first: Block(first), count, mask, source }).unwrap();
    }
    let (bytes, object) = run.finish().unwrap();
    pinned(
        "run",
        &bytes,
        "
        060501030009001124010000010300050001101300000000000000000000000000100000802c5bfeff3f030000000100
        000000000000e90300000000000001010101010101010101010101010101010101010101010101010101010101010300
        00000200000000000000ea03000000000000020202020202020202020202020202020202020202020202020202020202
        020205de80402a07742df4836458600908d4ea2f2787010c756d62726169647801000200030000000900000000000000
        30313233343536373839616263646566070000000000000000000000000000002a000000000000009200000000000000
        28010000000000006be8322d47734b8050e08f20006c08fd08fe0fa2654e6d542b07f054c2af47157c3b0f51f4252e1c
        7ec6390094a98439
        ",
    );
    assert_eq!(verify_run(&keys(), &bytes, &object).unwrap().1.len(), 7);
}

#[test]
fn a_segment_header_is_as_pinned() {
    let log = LogId(*b"fedcba9876543210");
    let header = SegmentHeader { log, volume: VOLUME, epoch: 3, lap: 44, first: LogIndex(812) };
    let mut page = [0xaa; SEGMENT_HEADER];
    header.encode_into(&mut page);
    assert!(page[72..4092].iter().all(|byte| *byte == 0));
    pinned(
        "segment header",
        &[&page[..72], &page[4092..]].concat(),
        "
        756d6272616c6f6701000000000000006665646362613938373635343332313030313233343536373839616263646566
        03000000000000002c000000000000002c030000000000003b360d30
        ",
    );
}

#[test]
fn a_record_header_is_as_pinned() {
    let place = RecordPlace { log: LogId(*b"fedcba9876543210"), epoch: 3, lap: 44, position: 4096 };
    let header = RecordHeader {
        index: LogIndex(812),
        sequence: Sequence(1_000_001),
        op: LogOp::Write,
        offset: 65536,
        length: 1000,
        payload: 1024,
        payload_crc: super::log::crc32c(b"123456789"),
    };
    let mut bytes = [0xaa; RECORD_HEADER];
    header.encode_into(&place, &mut bytes);
    pinned(
        "record header",
        &bytes,
        "
        7577723101000000515351575153080803000000000000002c000000000000002c0300000000000041420f0000000000
        0000010000000000e8030000000000000010000000040000839206e3fb871b60
        ",
    );
}

#[test]
fn every_op_of_the_log_keeps_its_number() {
    let place = RecordPlace { log: LogId([0; 16]), epoch: 0, lap: 0, position: 0 };
    use LogOp::{Ahead, Heartbeat, ReadBack, Scan, Trim, Unreadable, Void, Write, Zero};
    let ops = [Write, Zero, Trim, Ahead, ReadBack, Unreadable, Scan, Void, Heartbeat];
    for (number, op) in (1..).zip(ops) {
        let (index, sequence, payload) = (LogIndex(1), Sequence(1), if op.has_payload() { 512 } else { 0 });
        let header = RecordHeader { index, sequence, op, offset: 0, length: 512, payload, payload_crc: 0 };
        let mut bytes = [0; RECORD_HEADER];
        header.encode_into(&place, &mut bytes);
        assert_eq!(bytes[4], number);
    }
    assert_eq!(super::log::crc32c(b"123456789"), 0xe306_9283, "CRC-32C has this check value");
}

const LIFE: LifeId = LifeId(*b"the marks' life.");

fn facts() -> Facts {
    Facts { heartbeat: 77, log: Some(LogId(*b"fedcba9876543210")), relied_on: LogIndex(812), doubted: false }
}

#[test]
fn a_header_of_the_marks_is_as_pinned() {
    let size = (marks::GROUP_REGIONS + 1) * REGION;
    let (through, ordinal, opening) = (1000, 9, 3);
    let stamps = vec![Stamp::new(9, 1), Stamp::new(3, 0)];
    let header = Header { life: LIFE, facts: facts(), volume: VOLUME, size, through, ordinal, opening, stamps };
    let unit = header.encode();
    assert!(unit[112..4092].iter().all(|byte| *byte == 0));
    pinned(
        "header of the region marks",
        &[&unit[..112], &unit[4092..]].concat(),
        "
        756d6272616d726b0100010000000000746865206d61726b7327206c6966652e4d000000000000002c03000000000000
        6665646362613938373635343332313030313233343536373839616263646566000040001d000000e803000000000000
        09000000030000001300000006000000092a6025
        ",
    );
    assert_eq!(marks::file_length(size), 8192 + (2 << 20) + 2 * 16384);
}

#[test]
fn a_transaction_of_the_marks_is_as_pinned() {
    let mut runs = Runs::default();
    assert!(runs.push(Mark::Heat, &(5..6)) && runs.push(Mark::Heat, &(1000..3000)));
    assert!(runs.push(Mark::Diverge, &(7..8)) && runs.push(Mark::Cool, &(0..1)));
    assert!(runs.push(Mark::Converge, &(0..1 << 24)));
    let place = marks::Place { life: LIFE, volume: VOLUME, number: 1002, after: 1000, last: 1003, opening: 3 };
    let unit = Transaction::encode(&place, &facts(), &runs);
    assert!(unit[128..4092].iter().all(|byte| *byte == 0));
    pinned(
        "transaction of the region marks",
        &[&unit[..128], &unit[4092..]].concat(),
        "
        756d6272616d74780100010000000000746865206d61726b7327206c6966652e4d000000000000002c03000000000000
        6665646362613938373635343332313030313233343536373839616263646566ea03000000000000e803000000000000
        eb03000000000000030000000f001400881fcf0f1d00020003ffffff07000000bf546e5c
        ",
    );
}

#[test]
fn a_page_of_the_marks_is_as_pinned() {
    let mut page = Page { hot: [0; marks::PAGE_WORDS], diverged: [0; marks::PAGE_WORDS] };
    page.hot[0] = 0x0102_0304_0506_0708;
    page.diverged[28] = 1 << 63;
    let mut bytes = [0xaa; marks::PAGE];
    page.encode_into(&PagePlace { life: LIFE, volume: VOLUME, number: 12 }, Stamp::new(9, 1), &mut bytes);
    assert!(bytes[48..496].iter().all(|byte| *byte == 0));
    pinned(
        "page of the region marks",
        &[&bytes[..48], &bytes[496..]].concat(),
        "
        756d70310c000000746865206d61726b7327206c6966652e080853515751535113000000000000000807060504030201
        0000000000000080000000008635747f
        ",
    );
}
