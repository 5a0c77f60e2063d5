//! The iSCSI protocol (RFC 7143; sections of it in what follows).
//!
//! One connection to a session, and error recovery level 0: a connection that fails takes its session with it, and the
//! initiator logs in anew.

pub mod chap;
mod frames;
pub mod parameters;
pub mod pdu;
pub mod text;
