//! Who may do what, against the tables of the standards and against a model.

use super::persistent::{keys, out, persistent_in, register, reserve};
use super::*;

/// The columns of SPC-4, table 70, and SBC-3, table 14: of a write exclusive reservation, of an exclusive access one.
fn expected(cdb: &[u8]) -> Option<(bool, bool)> {
    match (cdb[0], cdb[1] & 0x1F) {
        // START STOP UNIT with START = 0 conflicts; PREVENT ALLOW MEDIUM REMOVAL with PREVENT = 0 does not.
        (0x00 | 0x03 | 0x12 | 0x1E | 0x25 | 0x5E | 0xA0, _) | (0x9E, 0x10) | (0xA3, 0x0A) => Some((true, true)),
        (0x08 | 0x28 | 0x88 | 0xA8 | 0x2F | 0x8F | 0xAF | 0x34 | 0x90 | 0x1A | 0x5A | 0x37 | 0xB7, _)
        | (0x9E, 0x12)
        | (0xA3, 0x0C | 0x0D) => Some((true, false)),
        // Of rules of their own.
        (0x16 | 0x17 | 0x5F, _) => None,
        _ => Some((false, false)),
    }
}

#[tokio::test]
async fn a_reservation_allows_what_the_tables_of_the_standards_say() {
    for (kind, exclusive, registrants) in
        [(1, false, false), (3, true, false), (5, false, true), (6, true, true), (7, false, true), (8, true, true)]
    {
        let (unit, holder) = memory();
        let (registered, stranger) = (nexus(&unit, 2), nexus(&unit, 3));
        register(&holder, 1).await;
        register(&registered, 2).await;
        reserve(&holder, 1, kind).await;
        let able = unit_abilities();
        for row in &TABLE {
            let mut cdb = [0; 16];
            cdb[0] = row.operation_code();
            cdb[1] = row.service_action();
            let Some((write_exclusive, exclusive_access)) = expected(&cdb) else { continue };
            assert!(row.is_supported(able));
            let conflicts =
                |nexus: &Nexus| nexus.admit(0, &cdb).is_err_and(|answer| answer.status == Status::ReservationConflict);
            let others = !if exclusive { exclusive_access } else { write_exclusive };
            assert!(!conflicts(&holder), "type {kind}, {cdb:02x?}");
            assert_eq!(conflicts(&stranger), others, "type {kind}, {cdb:02x?}");
            assert_eq!(conflicts(&registered), others && !registrants, "type {kind}, {cdb:02x?}");
        }
        let start = [0x1B, 0, 0, 0, 1, 0];
        assert!(stranger.admit(0, &start).is_ok(), "START = 1");
        let prevent = [0x1E, 0, 0, 0, 1, 0];
        assert!(stranger.admit(0, &prevent).is_err(), "PREVENT = 1");
    }
}

fn unit_abilities() -> Abilities {
    MemoryDisk::new(SIZE).geometry().abilities
}

/// The state as a table of three ports says it, with the rules of SPC-4, 5.13, one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    /// Zero is not registered.
    keys: [u64; 3],
    /// Type, and the port; types 7 and 8 have none.
    held: Option<(u8, usize)>,
    generation: u32,
}

impl Model {
    fn holds(&self, port: usize) -> bool {
        match self.held {
            Some((7 | 8, _)) => self.keys[port] != 0,
            Some((_, holder)) => holder == port,
            None => false,
        }
    }

    /// Whether anybody has a claim on what is held.
    fn end_if_nobody_holds(&mut self) {
        if (0..3).all(|port| self.keys[port] == 0 || !self.holds(port)) {
            self.held = None;
        }
    }

    fn act(&mut self, port: usize, action: u8, kind: u8, current: u64, new: u64) -> (Status, u16) {
        let conflict = (Status::ReservationConflict, 0);
        let good = (Status::Good, 0);
        if action == 0 && self.keys[port] != current {
            return conflict;
        }
        if matches!(action, 0 | 6) {
            if self.keys[port] == 0 && new == 0 {
                return good;
            }
            self.keys[port] = new;
            self.end_if_nobody_holds();
            self.generation += 1;
            return good;
        }
        if self.keys[port] == 0 || self.keys[port] != current {
            return conflict;
        }
        match (action, self.held) {
            (1, None) => self.held = Some((kind, port)),
            (1, Some((held, _))) if self.holds(port) && held == kind => {}
            (1, Some(_)) => return conflict,
            (2, Some((held, _))) if self.holds(port) && held != kind => return (Status::CheckCondition, 0x2604),
            (2, Some(_)) if self.holds(port) => self.held = None,
            (2, _) => {}
            (3, _) => *self = Self { generation: self.generation + 1, ..Self::default() },
            (_, held) => {
                let takes = match held {
                    Some((7 | 8, _)) => new == 0,
                    Some((_, holder)) => new != 0 && self.keys[holder] == new,
                    None => false,
                };
                if new == 0 && !takes {
                    return (Status::CheckCondition, 0x2600);
                }
                if !takes && !self.keys.contains(&new) {
                    return conflict;
                }
                for other in 0..3 {
                    let named = self.keys[other] == new || new == 0;
                    if named && !(takes && other == port) {
                        self.keys[other] = 0;
                    }
                }
                if takes {
                    self.held = Some((kind, port));
                }
                self.end_if_nobody_holds();
                self.generation += 1;
            }
        }
        good
    }
}

proptest! {
    #[test]
    fn what_three_nexuses_make_of_reservations_is_what_the_rules_say(
        actions in prop::collection::vec(
            (0..3usize, prop_oneof![Just(0u8), Just(1), Just(2), Just(3), Just(4), Just(4), Just(5), Just(6), Just(6)],
             prop::sample::select(vec![1u8, 3, 5, 6, 7, 8]), 0..4u64, 0..4u64),
            1..60,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let unit = unit(MemoryDisk::new(MIB));
            let nexuses = [1, 2, 3].map(|number| nexus(&unit, number));
            let mut model = Model::default();
            for (port, action, kind, current, new) in actions {
                // Mostly with the key that one has.
                let current = if current == 0 { new } else { model.keys[port] };
                let expected = model.act(port, action, kind, current, new);
                let answer = loop {
                    let answer = ask(&nexuses[port], &out(action, kind), &keys(current, new, 0)).await;
                    // Told of something first.
                    if !(0x2900..=0x2AFF).contains(&code(&answer)) {
                        break answer;
                    }
                };
                assert_eq!((answer.status, code(&answer)), expected, "port {port}, action {action}: {model:?}");
                while nexuses[0].admit(0, &test_unit_ready()).is_err() {}
                let found = persistent_in(&nexuses[0], 0).await;
                assert_eq!(found[..4], model.generation.to_be_bytes());
                let mut keys: Vec<u64> =
                    found[8..].chunks(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect();
                let mut registered: Vec<u64> = model.keys.into_iter().filter(|key| *key != 0).collect();
                keys.sort_unstable();
                registered.sort_unstable();
                assert_eq!(keys, registered);
                let held = persistent_in(&nexuses[0], 1).await;
                match model.held {
                    None => assert_eq!(held.len(), 8),
                    Some((kind, holder)) => {
                        let key = if kind >= 7 { 0 } else { model.keys[holder] };
                        assert_eq!((&held[8..16], held[21]), (&key.to_be_bytes()[..], kind));
                    }
                }
                for (port, nexus) in nexuses.iter().enumerate() {
                    while nexus.admit(0, &test_unit_ready()).is_err() {}
                    let writes = nexus.admit(0, &write(0, 1)).is_ok();
                    let reads = nexus.admit(0, &read(0, 1)).is_ok();
                    let kind = model.held.map_or(0, |(kind, _)| kind);
                    let may = kind == 0 || model.holds(port) || kind >= 5 && model.keys[port] != 0;
                    assert_eq!((writes, reads), (may, may || matches!(kind, 1 | 5 | 7)), "port {port}: {model:?}");
                }
            }
        });
    }
}
