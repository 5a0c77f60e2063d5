//! The write log's bytes: segment header and record header. (codec to be written; types are agreed)

use crate::units::{LogIndex, Sequence};

/// What a log record says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOp {
    /// A client's write; the payload follows.
    Write,
    /// The range now reads as zeroes; no payload.
    Zero,
    /// The range was trimmed; no payload.
    Trim,
    /// A change ahead of a scan: the scan will read what it wrote; no payload.
    Ahead,
    /// What the store was found to hold; the payload follows.
    ReadBack,
    /// The store could not read the range back; no payload.
    Unreadable,
    /// A scan read the range at this index; its data went to the remote without the log; no payload.
    Scan,
}

/// A record header without the fields that say where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub index: LogIndex,
    /// The newest client operation at that index.
    pub sequence: Sequence,
    pub op: LogOp,
    /// Byte range of the volume; multiples of 512 except for the end of an odd-sized volume.
    pub offset: u64,
    pub length: u64,
    /// Bytes of payload that follow the header: `length` rounded up to 512 for ops with payload, else 0.
    pub payload: u32,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
}
