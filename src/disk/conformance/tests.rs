//! The suite finds what it is there to find.

use super::*;
use crate::disk::{Abilities, Extent, Identity, MemoryDisk, Pending};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lie {
    LosesLastByte,
    SpillsOver,
    TrimsNothing,
    ZeroesNothingFast,
    CallsAllZero,
    SaysNothing,
    TakesAnything,
}

/// A disk that does not keep to one thing.
struct Liar(MemoryDisk, Lie);

impl Liar {
    fn is(&self, lie: Lie) -> bool {
        self.1 == lie
    }
}

impl Disk for Liar {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        self.0.read(offset, length)
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        if self.0.geometry().admit(offset, data.len() as u64).is_err() && !self.is(Lie::TakesAnything) {
            return self.0.write(offset, data, fua);
        }
        match self.1 {
            Lie::TakesAnything => Pending::ready(Ok(())),
            Lie::LosesLastByte => self.0.write(offset, data.slice(..data.len() - 1), fua),
            // As a disk does that reads, changes and writes whole sectors, and forgets to lock them.
            Lie::SpillsOver if offset > 0 => {
                let spilled: Bytes = [&data[..1], &data[..]].concat().into();
                self.0.write(offset - 1, spilled, fua)
            }
            _ => self.0.write(offset, data, fua),
        }
    }
    fn flush(&self) -> Pending<()> {
        self.0.flush()
    }
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        match self.0.geometry().admit(offset, length) {
            Ok(()) if self.is(Lie::TrimsNothing) => Pending::ready(Ok(())),
            _ => self.0.trim(offset, length, fua),
        }
    }
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()> {
        match self.0.geometry().admit(offset, length) {
            Ok(()) if self.is(Lie::ZeroesNothingFast) && mode.fast_only => Pending::ready(Ok(())),
            _ => self.0.write_zeroes(offset, length, mode, fua),
        }
    }
    fn cache(&self, offset: u64, length: u64) -> Pending<()> {
        self.0.cache(offset, length)
    }
    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        match self.0.geometry().admit(offset, length) {
            Ok(()) if self.is(Lie::CallsAllZero) => {
                Pending::ready(Ok(vec![Extent { length, hole: false, zero: true }]))
            }
            Ok(()) if self.is(Lie::SaysNothing) => Pending::ready(Ok(Vec::new())),
            _ => self.0.extents(offset, length, limit),
        }
    }
    fn identity(&self) -> Identity {
        self.0.identity()
    }
}

/// What the suite says of a disk that lies.
async fn verdict(lie: Lie) -> String {
    let disk = Arc::new(Liar(MemoryDisk::new(512 * KIB), lie));
    let failure = tokio::spawn(check_with_seed(disk, 7)).await.expect_err("the suite found nothing");
    let panic = failure.into_panic();
    panic.downcast::<String>().map_or_else(|other| format!("{:?}", other.downcast_ref::<&str>()), |text| *text)
}

#[tokio::test]
async fn each_lie_is_found() {
    let lies = [
        (Lie::LosesLastByte, "bytes differ"),
        (Lie::SpillsOver, "bytes differ"),
        (Lie::TrimsNothing, "bytes differ"),
        (Lie::ZeroesNothingFast, "bytes differ"),
        (Lie::CallsAllZero, "is not zero"),
        (Lie::SaysNothing, "0 extents for a limit"),
        (Lie::TakesAnything, "succeeded"),
    ];
    for (lie, expected) in lies {
        let verdict = verdict(lie).await;
        assert!(verdict.contains(expected), "{expected:?} not in {verdict:?}");
    }
}

#[test]
fn abilities_that_contradict_each_other_are_found() {
    let whole = MemoryDisk::new(KIB).geometry();
    let wrong = [
        Abilities { trim: false, ..whole.abilities },
        Abilities { write_zeroes: false, ..whole.abilities },
        Abilities { read_only: true, ..whole.abilities },
    ];
    for abilities in wrong {
        let disk = MemoryDisk::with_geometry(Geometry { abilities, ..whole });
        assert!(std::panic::catch_unwind(|| it_is_consistent(&disk)).is_err(), "{abilities:?}");
    }
}
