//! What a unit tells of itself, and what all its nexuses share.

use super::*;

fn mode_sense(page: u8, control: u8) -> [u8; 6] {
    [0x1A, 0, control << 6 | page, 0, 255, 0]
}

/// MODE SELECT(6) of the Control page as it is, with these bits of its bytes 2 and 4 set.
async fn select(nexus: &Nexus, d_sense: u8, swp: u8) -> Answer {
    let sensed = good(nexus, &mode_sense(0x0A, 2), &[]).await;
    let mut list = sensed[..].to_vec();
    list[0] = 0;
    list[12 + 2] |= d_sense;
    list[12 + 4] |= swp;
    ask(nexus, &[0x15, 0x10, 0, 0, list.len() as u8, 0], &list).await
}

#[tokio::test]
async fn a_new_nexus_is_told_of_its_start_once_and_after_what_it_may_ask_first() {
    let unit = unit(MemoryDisk::new(SIZE));
    let nexus = unit.attach(port(1));
    good(&nexus, &[0x12, 0, 0, 0, 36, 0], &[]).await;
    good(&nexus, &[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[]).await;
    assert_eq!(refused(&nexus, &read(0, 1), &[]).await.code, 0x2900);
    good(&nexus, &read(0, 1), &[]).await;
    let asks = unit.attach(port(2));
    let told = good(&asks, &[0x03, 0, 0, 0, 18, 0], &[]).await;
    assert_eq!((told[0], told[2], told[12], told[13]), (0x70, 0x6, 0x29, 0x00), "REQUEST SENSE tells it too");
    good(&asks, &test_unit_ready(), &[]).await;
    let told = good(&asks, &[0x03, 1, 0, 0, 18, 0], &[]).await;
    assert_eq!(told[..], [0x72, 0, 0, 0, 0, 0, 0, 0], "in descriptors, and nothing any more");
}

#[tokio::test]
async fn a_reset_is_told_to_all_and_ends_what_is_not_to_last() {
    let (unit, first) = memory();
    let second = nexus(&unit, 2);
    good(&first, &[0x16, 0, 0, 0, 0, 0], &[]).await;
    assert_eq!(select(&first, 0x04, 0x08).await.status, Status::Good);
    second.reset_unit();
    for nexus in [&first, &second] {
        assert_eq!(refused(nexus, &write(0, 1), &filled(0, 1)).await.code, 0x2903);
        good(nexus, &write(0, 1), &filled(0, 1)).await;
    }
}

#[tokio::test]
async fn a_change_of_the_mode_is_told_to_the_others_and_only_a_change() {
    let (unit, first) = memory();
    let second = nexus(&unit, 2);
    assert_eq!(select(&first, 0, 0).await.status, Status::Good);
    good(&second, &test_unit_ready(), &[]).await;
    assert_eq!(select(&first, 0x04, 0x08).await.status, Status::Good);
    assert_eq!(refused(&second, &test_unit_ready(), &[]).await.code, 0x2A01);
    good(&first, &test_unit_ready(), &[]).await;
    let sensed = good(&second, &mode_sense(0x0A, 0), &[]).await;
    assert_eq!((sensed[2] & 0x80, sensed[12 + 2] & 0x04, sensed[12 + 4] & 0x08), (0x80, 0x04, 0x08));
    let protected = refused(&second, &write(0, 1), &filled(0, 1)).await;
    assert_eq!((protected.code, protected.format), (0x2702, sense::Format::Descriptor));
    good(&second, &read(0, 1), &[]).await;
    let oob = refused(&second, &cdb16(0x88, u64::MAX, 1), &[]).await.encode();
    assert_eq!(oob[..8], [0x72, 0x05, 0x21, 0x00, 0, 0, 0, 12]);
    assert_eq!(oob[8..], [[0x00, 0x0A, 0x80, 0x00].as_slice(), &[0xFF; 8]].concat());
}

#[tokio::test]
async fn what_was_admitted_before_the_unit_was_protected_does_not_write_after_it() {
    let (unit, first) = memory();
    let second = nexus(&unit, 2);
    let admitted = first.admit(0, &write(0, 1)).unwrap();
    assert_eq!(select(&second, 0, 0x08).await.status, Status::Good);
    let answer = first.execute(admitted, filled(9, 1).into()).await.unwrap();
    assert_eq!(answer.sense.map(|sense| sense.code), Some(0x2702));
    assert_eq!(good(&second, &read(0, 1), &[]).await, filled(0, 1));
}

#[tokio::test]
async fn what_is_not_changeable_stays() {
    let (_unit, nexus) = memory();
    for page in [0x08, 0x0A, 0x3F] {
        let changeable = good(&nexus, &mode_sense(page, 1), &[]).await;
        let current = good(&nexus, &mode_sense(page, 0), &[]).await;
        assert_eq!(changeable.len(), current.len());
        // The code and the length of the second page.
        for at in (12 + 2..current.len()).filter(|at| page != 0x3F || !(32..34).contains(at)) {
            for bit in 0..8 {
                let mut list = current.to_vec();
                list[at] ^= 1 << bit;
                let answer = ask(&nexus, &[0x15, 0x10, 0, 0, list.len() as u8, 0], &list).await;
                let may = changeable[at] & 1 << bit != 0;
                assert_eq!(answer.status == Status::Good, may, "page {page:02x}, byte {at}, bit {bit}");
                ask(&nexus, &[0x15, 0x10, 0, 0, current.len() as u8, 0], &current).await;
            }
        }
    }
    assert_eq!(refused(&nexus, &mode_sense(0x3F, 3), &[]).await.code, 0x3900);
    assert_eq!(refused(&nexus, &mode_sense(0x1C, 0), &[]).await.code, 0x2400);
    assert_eq!(refused(&nexus, &[0x15, 0x11, 0, 0, 0, 0], &[]).await.code, 0x2400, "SP");
    let long = good(&nexus, &[0x5A, 0x10, 0x3F, 0, 0, 0, 0, 0, 255, 0], &[]).await;
    assert_eq!((long[4], long[7]), (1, 16), "LONGLBA");
    assert_eq!(usize::from(u16::from_be_bytes([long[0], long[1]])) + 2, long.len());
    good(&nexus, &[0x55, 0x10, 0, 0, 0, 0, 0, 0, long.len() as u8, 0], &long).await;
}

#[tokio::test]
async fn a_disk_that_is_only_read_says_so_and_changes_by_nothing() {
    let able = MemoryDisk::new(SIZE).geometry();
    let abilities = Abilities { read_only: true, flush: true, ..Abilities::default() };
    let unit = unit(MemoryDisk::with_geometry(Geometry { abilities, ..able }));
    let nexus = nexus(&unit, 1);
    assert_eq!(good(&nexus, &mode_sense(0x3F, 0), &[]).await[2], 0x80, "WP");
    for row in TABLE.iter().filter(|row| row.changes() && row.is_supported(abilities)) {
        let mut cdb = [0; 16];
        cdb[0] = row.operation_code();
        assert_eq!(refused(&nexus, &cdb, &filled(0, 2)).await.code, 0x2700, "{cdb:02x?}");
    }
    good(&nexus, &read(0, 1), &[]).await;
}

#[tokio::test]
async fn a_lun_that_is_not_there_says_so_in_every_way_that_is_asked_for() {
    let (_unit, nexus) = memory();
    for lun in [0u64, 0x4000 << 48, 0x8000 << 48, 0xD200 << 48] {
        assert!(nexus.admit(lun, &test_unit_ready()).is_ok(), "{lun:x} is LUN 0");
    }
    let lun = 1 << 48;
    let ask = |cdb: &[u8]| nexus.admit(lun, cdb).err().unwrap();
    assert_eq!(ask(&[0x12, 0, 0, 0, 36, 0]).data[0], 0x7F);
    assert_eq!(ask(&[0x03, 0, 0, 0, 18, 0]).data[12], 0x25);
    assert_eq!(code(&ask(&read(0, 1))), 0x2500);
    assert!(nexus.admit(lun, &[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0]).is_ok());
    let luns = good(&nexus, &[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[]).await;
    assert_eq!(luns[..], [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[tokio::test]
async fn the_default_self_test_passes_and_no_other_diagnostic_is_done() {
    let (_unit, nexus) = memory();
    good(&nexus, &[0x1D, 0x04, 0, 0, 0, 0], &[]).await;
    // SELF-TEST CODE, PF, DEVOFFL, UNITOFFL, and a parameter list.
    for cdb in [[0x1D, 0x20, 0, 0, 0, 0], [0x1D, 0x10, 0, 0, 0, 0], [0x1D, 0x06, 0, 0, 0, 0], [0x1D, 0x05, 0, 0, 0, 0]]
    {
        assert_eq!(refused(&nexus, &cdb, &[]).await.code, 0x2400, "{cdb:02x?}");
    }
    assert_eq!(refused(&nexus, &[0x1D, 0x04, 0, 0, 8, 0], &[0; 8]).await.code, 0x2400);
}

#[tokio::test]
async fn every_page_that_is_named_is_there_and_as_long_as_it_says() {
    let (_unit, nexus) = memory();
    let pages = good(&nexus, &[0x12, 1, 0, 0, 255, 0], &[]).await;
    assert_eq!(pages[4..], [0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2]);
    for page in &pages[4..] {
        let found = good(&nexus, &[0x12, 1, *page, 1, 0, 0], &[]).await;
        assert_eq!(found[1], *page);
        assert_eq!(usize::from(u16::from_be_bytes([found[2], found[3]])) + 4, found.len(), "page {page:02x}");
    }
    // HEADSUP, ORDSUP and SIMPSUP.
    assert_eq!(good(&nexus, &[0x12, 1, 0x86, 0, 255, 0], &[]).await[5], 0x07);
    assert_eq!(refused(&nexus, &[0x12, 1, 0xC0, 0, 255, 0], &[]).await.code, 0x2400);
    assert_eq!(refused(&nexus, &[0x12, 0, 0x80, 0, 255, 0], &[]).await.code, 0x2400);
    let standard = good(&nexus, &[0x12, 0, 0, 1, 0, 0], &[]).await;
    assert_eq!((standard.len(), usize::from(standard[4]) + 5), (96, 96));
    assert_eq!(standard[58..66], [0x00, 0xA0, 0x04, 0x60, 0x04, 0xC0, 0x09, 0x60]);
    assert_eq!(good(&nexus, &[0x12, 0, 0, 0, 5, 0], &[]).await, standard[..5]);
}

#[tokio::test]
async fn designators_name_the_unit_its_port_and_its_target() {
    let (_unit, nexus) = memory();
    let page = good(&nexus, &[0x12, 1, 0x83, 1, 0, 0], &[]).await;
    let (mut rest, mut found) = (&page[4..], Vec::new());
    while let [_, kind, _, length, ..] = rest {
        let end = 4 + usize::from(*length);
        found.push((kind & 0x3F, &rest[4..end]));
        rest = &rest[end..];
    }
    let name = b"iqn.2026-11.example:disk0";
    let expected: [(u8, &[u8]); 6] = [
        (0x03, b"\x3funit of"),
        (0x01, b"UMBRA   0123456789"),
        (0x14, &[0, 0, 0, 1]),
        (0x15, &[0, 0, 0, 1]),
        (0x18, &[&name[..], b",t,0x0001\0\0"].concat()),
        (0x28, &[&name[..], b"\0\0\0"].concat()),
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn each_command_that_is_reported_can_be_asked_about_and_no_other_is_admitted() {
    let (_unit, nexus) = memory();
    let all = good(&nexus, &[0xA3, 0x0C, 0x80, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0], &[]).await;
    assert_eq!(all[4..].len(), 20 * TABLE.len());
    let mut known = std::collections::BTreeSet::new();
    for descriptor in all[4..].chunks(20) {
        let (code, action, has_actions) = (descriptor[0], descriptor[3], descriptor[5] & 1);
        assert_eq!((descriptor[5] & 2, descriptor[9]), (2, 0x0A), "CTDP, and a descriptor of that length");
        known.insert(code);
        for options in [1, 2, 3] {
            let cdb = [0xA3, 0x0C, options, code, 0, action, 0, 0, 1, 0, 0, 0];
            if options == 3 || options - 1 == has_actions {
                let one = good(&nexus, &cdb, &[]).await;
                assert_eq!((one[1], one[3], one[4]), (3, descriptor[7], code), "SUPPORT, CDB SIZE");
                assert_eq!(one.len(), 4 + usize::from(one[3]));
            } else {
                let wrong = refused(&nexus, &cdb, &[]).await;
                assert_eq!((wrong.code, wrong.field.unwrap().byte), (0x2400, 2));
            }
        }
    }
    for code in 0..=255 {
        let mut cdb = [0; 16];
        cdb[0] = code;
        let answer = nexus.admit(0, &cdb).err();
        assert_eq!(answer.is_some_and(|answer| self::code(&answer) == 0x2000), !known.contains(&code), "{code:02x}");
        let one = good(&nexus, &[0xA3, 0x0C, 3, code, 0, 0xFF, 0, 0, 1, 0, 0, 0], &[]).await;
        assert_eq!(one[..], [0, 1, 0, 0], "{code:02x} with an action that nothing has");
    }
}

#[tokio::test]
async fn a_bit_that_means_nothing_is_refused_where_it_stands() {
    let (_unit, nexus) = memory();
    let able = MemoryDisk::new(SIZE).geometry().abilities;
    for row in &TABLE {
        let base: Vec<u8> = row
            .usage(able)
            .enumerate()
            .map(|(index, bits)| if index < 2 && row.action || index == 0 { bits } else { 0 })
            .collect();
        for (at, known) in row.usage(able).enumerate().skip(1) {
            for bit in (0..8).filter(|bit| known & 1 << bit == 0) {
                // Of a service action other bits are other actions.
                if at == 1 && row.action && bit < 5 {
                    continue;
                }
                let mut cdb = base.clone();
                cdb[1] &= if row.action { 0x1F } else { 0 };
                cdb[at] |= 1 << bit;
                cdb.resize(16, 0);
                let refused = nexus.admit(0, &cdb).err().unwrap().sense.unwrap();
                let field = refused.field.unwrap();
                assert_eq!((refused.code, field.byte, field.bit), (0x2400, at as u16, Some(bit)), "{cdb:02x?}");
                let encoded = refused.encode();
                assert_eq!(encoded[15..], [0xC8 | bit, 0, at as u8]);
            }
        }
    }
}

#[tokio::test]
async fn ports_are_one_group_that_is_active() {
    let (_unit, nexus) = memory();
    let groups = good(&nexus, &[0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]).await;
    assert_eq!(groups[..], [0, 0, 0, 16, 0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]);
    let extended = good(&nexus, &[0xA3, 0x2A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]).await;
    assert_eq!(extended[..8], [0, 0, 0, 20, 0x10, 0, 0, 0]);
    assert_eq!(extended[8..], groups[4..]);
}

/// A disk that is longer than it was.
struct Growing(MemoryDisk, std::sync::atomic::AtomicU64);

impl Disk for Growing {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.1.load(std::sync::atomic::Ordering::SeqCst), ..self.0.geometry() }
    }
    fn read(&self, offset: u64, length: u32) -> crate::disk::Pending<Bytes> {
        self.0.read(offset, length)
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> crate::disk::Pending<()> {
        self.0.write(offset, data, fua)
    }
    fn flush(&self) -> crate::disk::Pending<()> {
        self.0.flush()
    }
    fn trim(&self, offset: u64, length: u64, fua: bool) -> crate::disk::Pending<()> {
        self.0.trim(offset, length, fua)
    }
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: crate::disk::ZeroMode,
        fua: bool,
    ) -> crate::disk::Pending<()> {
        self.0.write_zeroes(offset, length, mode, fua)
    }
    fn cache(&self, offset: u64, length: u64) -> crate::disk::Pending<()> {
        self.0.cache(offset, length)
    }
    fn extents(&self, offset: u64, length: u64, limit: usize) -> crate::disk::Pending<Vec<crate::disk::Extent>> {
        self.0.extents(offset, length, limit)
    }
    fn identity(&self) -> crate::disk::Identity {
        self.0.identity()
    }
}

#[tokio::test]
async fn a_disk_that_has_grown_is_told_to_all_once() {
    let disk = Arc::new(Growing(MemoryDisk::new(2 * SIZE), SIZE.into()));
    let unit = Unit::new(disk.clone(), settings()).unwrap();
    let (first, second) = (nexus(&unit, 1), nexus(&unit, 2));
    let end = (SIZE / BLOCK as u64) as u32;
    assert_eq!(refused(&first, &read(end, 1), &[]).await.code, 0x2100);
    disk.1.store(2 * SIZE, std::sync::atomic::Ordering::SeqCst);
    for nexus in [&first, &second] {
        assert_eq!(refused(nexus, &test_unit_ready(), &[]).await.code, 0x2A09);
        good(nexus, &read(end, 1), &[]).await;
    }
}
