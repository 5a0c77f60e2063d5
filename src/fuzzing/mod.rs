//! Entry points for bytes that nobody vouches for: what the fuzz targets of `fuzz/` call, and what the replay of their
//! corpora calls in every test run.
//!
//! Owns: turning arbitrary bytes into what each reader of the program is given, and what must hold afterwards. Does not
//! own: the readers. Nothing here is used by the program itself.
//!
//! An entry point takes any bytes. It must not panic, must come to an end, and must set aside no more than
//! [`Target::allocation_max`] at once. Checksums would turn almost every changed input away at the door; so the first
//! byte of an input says, where there are some, whether they are made right before the reader sees them.

mod config;
mod remote;

/// What is fuzzed: a function, and the folder of inputs that have been of interest.
pub struct Target {
    /// Of the file in `fuzz/fuzz_targets` and of the folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Says whether the input was accepted: no reader had anything against it.
    pub run: fn(&[u8]) -> bool,
    /// Bytes that one allocation may have, whatever the input says, and ...
    allocation: usize,
    /// ... as many times the length of the input.
    per_byte: usize,
}

/// All of them. One that reads another format is added here, in `fuzz/fuzz_targets` and in `fuzz/Cargo.toml`.
pub const TARGETS: [Target; 11] = [
    // A receive buffer, or a write or read of the largest block that the disk takes here.
    Target { name: "nbd_client", run: nbd_client, allocation: 1 << 20, per_byte: 16 },
    // As much as one answer can have: the runs of a block status.
    Target { name: "nbd_server", run: nbd_server, allocation: (8 << 20) + 4, per_byte: 16 },
    // A receive buffer.
    Target { name: "iscsi_target", run: iscsi_target, allocation: 1 << 20, per_byte: 16 },
    // A receive buffer, or the largest transfer.
    Target { name: "iscsi_initiator", run: iscsi_initiator, allocation: 1 << 20, per_byte: 16 },
    // The largest transfer, or a few of the disk's pages.
    Target { name: "scsi", run: scsi, allocation: 512 << 10, per_byte: 16 },
    // The window in which records are looked for; segments are small here.
    Target { name: "log_recovery", run: log_recovery, allocation: 1 << 20, per_byte: 16 },
    // The zeroes that a copy of the ring begins with, or as many bytes of pages.
    Target { name: "marks", run: marks, allocation: 1 << 20, per_byte: 16 },
    // A block, decoded; and records, which take more room in memory than in a page.
    Target { name: "pack", run: pack, allocation: 256 << 10, per_byte: 256 },
    Target { name: "run", run, allocation: 64 << 10, per_byte: 256 },
    Target { name: "entry", run: entry, allocation: 64 << 10, per_byte: 64 },
    Target { name: "config", run: config, allocation: 64 << 10, per_byte: 256 },
];

impl Target {
    /// Bytes of the largest allocation that an input of so many bytes may cause.
    pub fn allocation_max(&self, input: usize) -> usize {
        self.allocation + self.per_byte * input
    }
}

/// A client of ours that says anything, in negotiation and afterwards.
pub fn nbd_client(input: &[u8]) -> bool {
    crate::nbd::fuzzing::client(input)
}

/// A server behind us that says anything, in negotiation and while requests are in flight.
pub fn nbd_server(input: &[u8]) -> bool {
    crate::nbd::fuzzing::server(input)
}

/// A target behind us that says anything, in its login and while commands are in flight.
pub fn iscsi_target(input: &[u8]) -> bool {
    crate::iscsi::initiator::fuzzing::target(input)
}

/// An initiator that says anything, in its login and afterwards.
pub fn iscsi_initiator(input: &[u8]) -> bool {
    crate::iscsi::target::fuzzing::initiator(input)
}

/// Commands of an initiator that asks for anything.
pub fn scsi(input: &[u8]) -> bool {
    crate::scsi::fuzzing::initiator(input)
}

/// Segments of a log that hold anything.
pub fn log_recovery(input: &[u8]) -> bool {
    crate::writelog::fuzzing::recovery(input)
}

/// A marks' file that holds anything, and commits to it.
pub fn marks(input: &[u8]) -> bool {
    crate::marks::fuzzing::opening(input)
}

/// A pack: footer, directory, pages, records.
pub fn pack(input: &[u8]) -> bool {
    remote::pack(input)
}

/// A run: footer, table, directory, pages.
pub fn run(input: &[u8]) -> bool {
    remote::run(input)
}

/// An entry of the chain, a volume object, the object behind a name, or a name.
pub fn entry(input: &[u8]) -> bool {
    remote::entry(input)
}

/// The text of a configuration file.
pub fn config(input: &[u8]) -> bool {
    config::config(input)
}
