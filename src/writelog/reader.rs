//! Reading a record's payload back, for upload: from the segment, with every check.
//!
//! Payloads are checked again here however well they were written, because they may have waited for days on a disk
//! that decays. A record that does not pass is not lost: the store still has what is there now, and the volume reads
//! it back.

use bytes::{Bytes, BytesMut};

use super::Position;
use super::pool::Inner;
use crate::disk::Errno;
use crate::format::codec::FormatError;
use crate::format::log::{RECORD_HEADER, RecordHeader, RecordPlace, SegmentHeader, crc32c};
use crate::units::{KIB, LogIndex};

/// Read at once with the header: most writes are not longer, and then one call is enough.
const FIRST_READ: u64 = RECORD_HEADER as u64 + 16 * KIB;

/// Why a record cannot be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("record {index} is no longer in the log, or never was at {position:?}")]
    Gone { position: Position, index: LogIndex },
    #[error("read record {index} at {position:?} of the log: {error}")]
    Io { position: Position, index: LogIndex, error: Errno },
    #[error("the header of record {index} at {position:?} of the log is damaged: {source}")]
    Header { position: Position, index: LogIndex, source: FormatError },
    #[error("record {found} lies at {position:?} of the log in place of {index}")]
    Misplaced { position: Position, index: LogIndex, found: LogIndex },
    #[error("the payload of record {index} at {position:?} of the log is damaged")]
    Payload { position: Position, index: LogIndex },
}

/// Where in `segment` a record must say that it lies.
pub(super) fn place(segment: &SegmentHeader, offset: u64) -> RecordPlace {
    RecordPlace { log: segment.log, epoch: segment.epoch, lap: segment.lap, position: offset as u32 }
}

pub(super) fn read(
    pool: &Inner,
    segment: &SegmentHeader,
    position: Position,
    index: LogIndex,
) -> Result<Bytes, ReadError> {
    let failed = |error: std::io::Error| ReadError::Io { position, index, error: error.into() };
    let offset = position.offset();
    let room = pool.segment_size.saturating_sub(offset);
    if room < RECORD_HEADER as u64 {
        return Err(ReadError::Gone { position, index });
    }
    let file = pool.segments.open(position.slot()).map_err(failed)?;
    let mut bytes = BytesMut::zeroed(FIRST_READ.min(room) as usize);
    file.read_at(&mut bytes, offset).map_err(failed)?;
    let header = RecordHeader::decode(&bytes, &place(segment, offset)).map_err(|source| ReadError::Header {
        position,
        index,
        source,
    })?;
    if header.index != index {
        return Err(ReadError::Misplaced { position, index, found: header.index });
    }
    let end = RECORD_HEADER + header.payload as usize;
    if end as u64 > room {
        return Err(ReadError::Payload { position, index });
    }
    let had = bytes.len().min(end);
    bytes.resize(end, 0);
    if let rest @ [_, ..] = &mut bytes[had..] {
        file.read_at(rest, offset + had as u64).map_err(failed)?;
    }
    let mut payload = bytes.freeze().split_off(RECORD_HEADER);
    if crc32c(&payload) != header.payload_crc {
        return Err(ReadError::Payload { position, index });
    }
    if header.op.has_payload() {
        payload.truncate(header.length as usize);
    }
    Ok(payload)
}
