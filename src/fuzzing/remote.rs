//! Objects of the remote that hold anything.

use bytes::Bytes;

use crate::format::codec::{Part, Reader, Writer};
use crate::format::entry::Entry;
use crate::format::index::{self, FOOTER_LENGTH, Footer, Head, Kind, PAGE_MAX, Record};
use crate::format::keys::{Keys, MAC_LENGTH, MacKind};
use crate::format::names::VolumeName;
use crate::format::pack::{decode_record, verify_pack};
use crate::format::run::{decode_table, pack_of_table, verify_run};
use crate::format::volume::VolumeObject;
use crate::format::{ObjectHash, ObjectRef, PackContent, PackRecord, RunRecord, VolumeId};
use crate::units::{Block, Generation};

const VOLUME: VolumeId = VolumeId(*b"a fuzzed volume!");
const GENERATION: Generation = Generation(3);
const NUMBER: u64 = 0x2b;
/// Bytes of one pack in the table of a run.
const TABLE_ENTRY: usize = 52;

fn keys() -> Keys {
    Keys::unencrypted(VOLUME)
}

/// First byte: 0 a whole object as it is, 1 one whose MACs are made right, 2 data and a page of an object whose rest
/// is made from them: two bytes for the length of the data, data, page.
pub(super) fn pack(input: &[u8]) -> bool {
    let Some((bytes, object)) = object::<PackRecord>(input, 1) else { return false };
    let keys = keys();
    let records = read_index::<PackRecord>(&keys, &bytes, &object);
    for record in &records {
        if let PackContent::Data(stored) = &record.content {
            let range = stored.offset as usize..stored.offset as usize + stored.length as usize;
            if let Ok(decoded) = decode_record(&keys, record, &bytes[range]) {
                assert_eq!(decoded.len(), record.plain_bytes());
            }
        }
    }
    let Ok(verified) = verify_pack(&keys, &bytes, &object) else { return false };
    assert_eq!(verified, records, "whole and in parts a pack says the same");
    true
}

/// As [`pack`]; before the page there is a table, whose length is counted in packs.
pub(super) fn run(input: &[u8]) -> bool {
    let Some((bytes, object)) = object::<RunRecord>(input, TABLE_ENTRY) else { return false };
    let keys = keys();
    let records = read_index::<RunRecord>(&keys, &bytes, &object);
    let Ok((packs, verified)) = verify_run(&keys, &bytes, &object) else { return false };
    assert_eq!(verified, records, "whole and in parts a run says the same");
    let Ok(footer) = Footer::decode(&keys, Kind::Run, &object, &bytes) else { panic!("it was just verified") };
    let table = &bytes[footer.table_at as usize..footer.directory_at as usize];
    for (number, pack) in (0..).zip(&packs) {
        assert_eq!(pack_of_table(table, number).as_ref(), Ok(pack));
    }
    assert!(pack_of_table(table, packs.len() as u32).is_err());
    true
}

/// Reads an index by its parts, as readers do, as far as it can be read.
fn read_index<R: Record + PartialEq + std::fmt::Debug>(keys: &Keys, bytes: &Bytes, object: &ObjectRef) -> Vec<R> {
    let _ = decode_table(bytes);
    let Ok(footer) = Footer::decode(keys, R::KIND, object, bytes) else { return Vec::new() };
    let range = footer.head_range();
    let Ok(head) = Head::decode(keys, footer, &bytes.slice(range.start as usize..range.end as usize)) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for (number, page) in head.pages().iter().enumerate() {
        assert!(head.covering(page.first, page.last).any(|found| found == number), "a page that is never found");
        let range = page.range();
        let bytes = &bytes[range.start as usize..range.end as usize];
        if let Ok(records) = head.decode_page::<R>(keys, number, bytes) {
            assert_eq!(encode(&records), bytes, "two forms of the same page");
            assert!(records.iter().all(|record| index::last(record).0 < index::BLOCKS_MAX));
            all.extend(records);
        }
    }
    let _ = head.covering(Block(0), Block(u64::MAX)).count();
    all
}

fn encode<R: Record>(records: &[R]) -> Vec<u8> {
    let (mut out, mut previous) = (Writer::new(), R::Previous::default());
    records.iter().for_each(|record| record.encode(&mut previous, &mut out));
    out.into_bytes()
}

/// The object that an input describes; `unit` is what the length in front of the page counts.
fn object<R: Record>(input: &[u8], unit: usize) -> Option<(Bytes, ObjectRef)> {
    let (&mode, rest) = input.split_first()?;
    let bytes = match mode {
        0 => rest.to_vec(),
        1 => sealed(R::KIND, rest),
        _ => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            let (before, page) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)) * unit)?;
            composed::<R>(before, &page[..page.len().min(PAGE_MAX as usize)])
        }
    };
    let (length, hash) = (bytes.len() as u64, ObjectHash::of(&bytes));
    Some((bytes.into(), ObjectRef { generation: GENERATION, number: NUMBER, length, hash }))
}

/// MACs of footer, directory, table and pages of one kind of object.
fn macs(kind: Kind) -> [MacKind; 4] {
    match kind {
        Kind::Pack => [MacKind::PackFooter, MacKind::PackDirectory, MacKind::PackTable, MacKind::PackPage],
        Kind::Run => [MacKind::RunFooter, MacKind::RunDirectory, MacKind::RunTable, MacKind::RunPage],
    }
}

/// An object of data (in a run, a table) and one page: with a directory and a footer as a writer makes them.
fn composed<R: Record>(before: &[u8], page: &[u8]) -> Vec<u8> {
    let [_, _, _, page_mac] = macs(R::KIND);
    let (mut input, mut previous) = (Reader::new(Part::PackPage, page), R::Previous::default());
    let (mut first, mut last, mut records) = (None, 0, 0u64);
    while let Ok(record) = R::decode(&mut previous, &mut input) {
        first.get_or_insert(record.first().0);
        last = last.max(record.first().0.saturating_add(record.count() - 1));
        records += 1;
    }
    let first = first.unwrap_or(0);
    let mut directory = Writer::new();
    if !page.is_empty() {
        directory.leb(first).leb(last.saturating_sub(first)).leb(page.len() as u64).leb(records);
        directory.put(&keys().mac(page_mac, page).0);
    }
    let (data, table) = if R::KIND == Kind::Pack { (before, &[][..]) } else { (&[][..], before) };
    let table_at = data.len() + page.len();
    let directory_at = table_at + table.len();
    let mut out = Writer::new();
    out.put(data).put(page).put(table).put(directory.as_bytes());
    let length = out.len() as u64 + FOOTER_LENGTH;
    out.put(b"umbraidx").u16(1).u8(if R::KIND == Kind::Pack { 1 } else { 2 }).u8(0).u32(GENERATION.0).u64(NUMBER);
    out.put(&VOLUME.0).u64(records).u64(data.len() as u64).u64(table_at as u64).u64(directory_at as u64).u64(length);
    out.put(&[0; 3 * MAC_LENGTH]);
    sealed(R::KIND, out.as_bytes())
}

/// The object with every MAC made right that is where footer and directory say. Its name and its length, too.
fn sealed(kind: Kind, object: &[u8]) -> Vec<u8> {
    let mut object = object.to_vec();
    let Some(footer_at) = object.len().checked_sub(FOOTER_LENGTH as usize) else { return object };
    let [footer_mac, directory_mac, table_mac, page_mac] = macs(kind);
    let keys = keys();
    let length = object.len() as u64;
    object[footer_at + 12..footer_at + 16].copy_from_slice(&GENERATION.0.to_le_bytes());
    object[footer_at + 16..footer_at + 24].copy_from_slice(&NUMBER.to_le_bytes());
    object[footer_at + 24..footer_at + 40].copy_from_slice(&VOLUME.0);
    object[footer_at + 72..footer_at + 80].copy_from_slice(&length.to_le_bytes());
    let [pages_at, table_at, directory_at] = [48, 56, 64].map(|field| {
        let field = &object[footer_at + field..footer_at + field + 8];
        field.iter().rev().fold(0usize, |value, byte| value << 8 | usize::from(*byte))
    });
    if table_at <= directory_at && directory_at <= footer_at {
        seal_pages(&keys, page_mac, &mut object[..footer_at], pages_at, directory_at);
        let mac = keys.mac(table_mac, &object[table_at..directory_at]);
        object[footer_at + 80..footer_at + 96].copy_from_slice(&mac.0);
        let mac = keys.mac(directory_mac, &object[directory_at..footer_at]);
        object[footer_at + 96..footer_at + 112].copy_from_slice(&mac.0);
    }
    let mac = keys.mac(footer_mac, &object[footer_at..footer_at + 112]);
    object[footer_at + 112..].copy_from_slice(&mac.0);
    object
}

/// Makes the MACs in the directory right.
fn seal_pages(keys: &Keys, kind: MacKind, object: &mut [u8], pages_at: usize, directory_at: usize) {
    let (pages, directory) = object.split_at_mut(directory_at);
    let (mut at, mut page_at) = (0, pages_at);
    loop {
        let mut input = Reader::new(Part::PackDirectory, &directory[at..]);
        let mut numbers = [0; 4];
        for number in &mut numbers {
            let Ok(value) = input.leb() else { return };
            *number = value;
        }
        at += input.offset();
        let end = usize::try_from(numbers[2]).ok().and_then(|length| page_at.checked_add(length));
        let page = end.and_then(|end| pages.get(page_at..end));
        let (Some(end), Some(page), Some(mac)) = (end, page, directory.get_mut(at..at + MAC_LENGTH)) else { return };
        mac.copy_from_slice(&keys.mac(kind, page).0);
        (at, page_at) = (at + MAC_LENGTH, end);
    }
}

/// First byte: 0 and 1 an entry, 2 and 3 a volume object, the odd ones with their MAC made right; 4 the body of a name
/// object, 5 a name.
pub(super) fn entry(input: &[u8]) -> bool {
    let Some((&mode, bytes)) = input.split_first() else { return false };
    let keys = keys();
    let signed = |kind| {
        let content = &bytes[..bytes.len().saturating_sub(MAC_LENGTH)];
        [content, &keys.mac(kind, content).0].concat()
    };
    match mode {
        0 => chain_entry(&keys, bytes),
        1 => chain_entry(&keys, &signed(MacKind::Entry)),
        2 => volume_object(&keys, bytes),
        3 => volume_object(&keys, &signed(MacKind::Volume)),
        4 => {
            let Ok(id) = VolumeId::from_name_object(bytes) else { return false };
            assert_eq!(id.to_name_object().as_bytes(), bytes, "two forms of the same name object");
            true
        }
        _ => {
            let Some(name) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<VolumeName>().ok()) else {
                return false;
            };
            assert_eq!(name.as_str().as_bytes(), bytes);
            assert!(
                !name.as_str().starts_with('.') && name.key().matches('/').count() == 1,
                "{name} leaves its folder"
            );
            true
        }
    }
}

fn chain_entry(keys: &Keys, bytes: &[u8]) -> bool {
    let Ok(entry) = Entry::decode(keys, bytes) else { return false };
    let Ok(again) = entry.encode(keys) else { panic!("{entry:?} is read, and refused when written") };
    assert_eq!(Entry::decode(keys, &again).as_ref(), Ok(&entry));
    let shown = entry.slices.iter().map(|slice| slice.time).chain([entry.time]).map(|time| time.to_string());
    assert!(shown.is_sorted(), "times are shown in another order than they have");
    // Sections that this version skips are all that may be missing.
    assert!(again == bytes || again.len() < bytes.len(), "two forms of the same entry");
    true
}

fn volume_object(keys: &Keys, bytes: &[u8]) -> bool {
    let Ok(object) = VolumeObject::decode(keys, bytes) else { return false };
    assert_eq!(object.encode(keys), bytes, "two forms of the same volume object");
    true
}
