//! The iSCSI protocol (RFC 7143; sections of it in what follows).
//!
//! Owns: the bytes of the protocol ([`pdu`], [`text`]), what two sides agree on ([`parameters`], [`chap`]), the
//! target's side of it ([`target`]), and the initiator's ([`initiator`]). What a command means is [`crate::scsi`]'s business, and what a disk does the disk's.
//!
//! One connection to a session, and error recovery level 0: a connection that fails takes its session with it, and the
//! initiator logs in anew. Operations on a disk that were begun go on to their end, whatever becomes of the session.

pub mod chap;
mod frames;
pub mod initiator;
pub mod parameters;
pub mod pdu;
pub mod target;
pub mod text;
