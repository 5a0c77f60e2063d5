//! What a logical unit answers: a disk as SPC-4 and SBC-3 know it, with what of SBC-4 initiators look for.
//!
//! Owns: the commands and what each of them may do, the state that initiators share (mode parameters, reservations, unit
//! attentions), and sense data. Knows nothing of the transport but the names of its ports, and of the disk nothing but
//! the trait [`Disk`](crate::disk::Disk): what is announced follows from its geometry alone.
//!
//! Leaves to others: the order of commands and their data, task management but for the unit's own reset, which logical
//! units a target has; here there is LUN 0, and all else is not there.
//!
//! ```text
//!   CDB ──► Nexus::admit ──► Command ──► Nexus::execute ──► Answer
//!           table, attentions,           after its data has come
//!           reservations, fields         (disk)
//! ```
//!
//! Reservations are decided here and never reach the disk. A command that was admitted is asked about them once more
//! before it begins, for its data may have taken long; PREEMPT AND ABORT waits for the changes that had begun.
//!
//! Crash: mode parameters and RESERVE(6) are gone, as after a loss of power; persistent reservations stay if they were
//! registered to (APTPL) and there is a [`Keep`].
//!
//! Not here, and refused like everything unknown: EXTENDED COPY, SANITIZE, FORMAT UNIT, WRITE ATOMIC, protection
//! information, removable media, REGISTER AND MOVE.

mod attention;
mod blocks;
mod command;
pub(crate) mod fuzzing;
mod inquiry;
mod mode;
mod persistence;
mod provisioning;
mod report;
mod reservations;
mod reserve;
mod sense;
mod shape;
#[cfg(test)]
mod tests;
mod unit;

use bytes::Bytes;

pub use persistence::Keep;
pub use reservations::InitiatorPort;
pub use sense::{Field, Format, Key, Received, Sense, Status};
pub use shape::Command;
pub use unit::{KeepError, Nexus, Unit, UnitSettings, is_lun_zero};

/// How a command ended, and what it has for the initiator.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: Status,
    /// Exactly with CHECK CONDITION.
    pub sense: Option<Sense>,
    /// Data-in. May be more than the initiator has room for: then its beginning is meant.
    pub data: Bytes,
}

impl Answer {
    fn good(data: Bytes) -> Self {
        Self { status: Status::Good, sense: None, data }
    }

    fn check(sense: Sense, format: Format) -> Self {
        Self { status: Status::CheckCondition, sense: Some(sense.formatted(format)), data: Bytes::new() }
    }

    fn conflict() -> Self {
        Self { status: Status::ReservationConflict, sense: None, data: Bytes::new() }
    }

    fn refused(refusal: Refusal, format: Format) -> Self {
        match refusal {
            Refusal::Sense(sense) => Self::check(sense, format),
            Refusal::Conflict => Self::conflict(),
        }
    }
}

/// Why a command is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Sense(Sense),
    /// RESERVATION CONFLICT.
    Conflict,
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Self::Sense(sense)
    }
}
