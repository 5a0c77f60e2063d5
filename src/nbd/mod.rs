//! The NBD protocol, both ways (NetworkBlockDevice/nbd, doc/proto.md; "proto.md" in what follows).
//!
//! Owns: the bytes of the protocol ([`wire`]), the server's side of it (`negotiation`, `session`, [`Server`]),
//! and a remote export as a [`Disk`](crate::disk::Disk) ([`NbdDisk`]). Knows nothing but that trait: what a client
//! is told and what it may do follows from the disk's geometry alone, so that a layer above or beneath goes unseen.
//!
//! Leaves to others: TLS, which exports there are, and what a disk does. Old-style negotiation, extended headers and
//! `NBD_OPT_STARTTLS` are refused as the protocol has it.
//!
//! No operation on a disk is ever taken back: a connection that ends leaves its operations to complete. A crash
//! costs the connections; what was in flight on them is unknown to the client, as with any server.

mod client;
mod export;
pub(crate) mod fuzzing;
mod negotiation;
mod server;
mod session;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod uri;
pub mod wire;

pub use client::{HandshakeError, NbdDisk, OpenError};
pub use export::{Export, Exports, NameTaken};
pub use server::{BindError, Server};
pub use uri::{Uri, UriError};
