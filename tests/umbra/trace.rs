//! What `clients/stamper.py` writes: stamped sectors, and the trace of when each operation was asked for and answered.

use std::fs;
use std::path::Path;

use crc_fast::CrcAlgorithm::Crc32IsoHdlc;

pub const SECTOR: usize = 512;
const MAGIC: &[u8; 8] = b"UMBSTAMP";
/// Offset of the CRC-32 of all that precedes it.
const CRC_AT: usize = SECTOR - 4;

/// Which operation wrote a sector, as the sector itself says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub run: u64,
    pub number: u64,
    pub lba: u64,
}

impl Stamp {
    /// Reads a sector; none if it is not a whole stamped sector.
    pub fn read(sector: &[u8]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().unwrap());
        let crc = u32::from_le_bytes(sector[CRC_AT..].try_into().unwrap());
        (&sector[..8] == MAGIC && crc == crc_of(sector)).then(|| Self { run: word(8), number: word(16), lba: word(24) })
    }

    /// The sector that reads as this stamp.
    pub fn write(self) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        sector[..8].copy_from_slice(MAGIC);
        sector[8..16].copy_from_slice(&self.run.to_le_bytes());
        sector[16..24].copy_from_slice(&self.number.to_le_bytes());
        sector[24..32].copy_from_slice(&self.lba.to_le_bytes());
        let crc = crc_of(&sector);
        sector[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        sector
    }
}

fn crc_of(sector: &[u8]) -> u32 {
    crc_fast::checksum(Crc32IsoHdlc, &sector[..CRC_AT]) as u32
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write,
    Zero,
    Trim,
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nanoseconds of CLOCK_MONOTONIC.
    Done(u64),
    /// Time and errno.
    Failed(u64, i32),
    Never,
}

#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub run: u64,
    pub number: u64,
    pub kind: Kind,
    pub first_sector: u64,
    pub sectors: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub submitted: u64,
    pub answer: Answer,
}

/// The operations of one or more runs of the stamper, in the order in which they were asked for.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub operations: Vec<Operation>,
}

impl Trace {
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("read trace {}: {e}", path.display()));
        Self::parse(&text)
    }

    fn parse(text: &str) -> Self {
        let mut operations: Vec<Operation> = Vec::new();
        let mut run = 0;
        // A stamper that was killed leaves an unfinished last line.
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| -> u64 { words[at].parse().unwrap_or_else(|_| panic!("trace line {line:?}")) };
            match words[0] {
                "run" => run = number(1),
                "s" => {
                    assert_eq!(number(1), operations.len() as u64 + 1, "trace line {line:?}");
                    operations.push(Operation {
                        run,
                        number: number(1),
                        kind: match words[3] {
                            "write" => Kind::Write,
                            "zero" => Kind::Zero,
                            "trim" => Kind::Trim,
                            "flush" => Kind::Flush,
                            other => panic!("kind of operation {other:?}"),
                        },
                        first_sector: number(5) / SECTOR as u64,
                        sectors: number(6) / SECTOR as u64,
                        submitted: number(2),
                        answer: Answer::Never,
                    });
                }
                "a" => {
                    operations[number(1) as usize - 1].answer = match number(3) {
                        0 => Answer::Done(number(2)),
                        errno => Answer::Failed(number(2), errno as i32),
                    }
                }
                _ => panic!("trace line {line:?}"),
            }
        }
        Self { operations }
    }

    /// Adds a run that began after this one had ended.
    pub fn append(&mut self, later: Self) {
        self.operations.extend(later.operations);
    }

    pub fn answered(&self) -> usize {
        self.operations.iter().filter(|o| matches!(o.answer, Answer::Done(_))).count()
    }

    /// Fails the test if the export has answered anything with an error.
    pub fn assert_no_errors(&self) {
        if let Some(failed) = self.operations.iter().find(|o| matches!(o.answer, Answer::Failed(..))) {
            panic!("a client saw an error: {failed:?}");
        }
    }
}
