//! Addresses: whether they can be found, and are free or the running gateway's.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
use tokio::net::{UnixStream, lookup_host};

use super::place::{self, Access};
use super::{Fault, Finding, Outcome, Running};
use crate::config::{Listen, Section};

/// NBD lets in whoever reaches it.
pub(super) const NBD_IS_OPEN: &str = "NBD knows no passwords";
/// And so do targets that nobody has to prove anything to.
pub(super) const ISCSI_IS_OPEN: &str = "without [iscsi] chap nobody has to prove who it is";

/// Looks at an address of `[listen] key`; `open` says why whoever reaches it is let in, if so.
pub(super) async fn check(
    key: &'static str,
    address: &Listen,
    open: Option<&'static str>,
    running: &Running,
) -> Finding {
    let outcome = match address {
        Listen::Tcp { host, port } => tcp(host, *port, open, running).await,
        Listen::Unix(path) => unix(path, running).await,
    };
    Finding::new(Section::Listen, key, format_args!("\"{address}\""), outcome.unwrap_or_else(Outcome::from))
}

fn taken(running: &Running) -> Result<Outcome, Fault> {
    if running.is_up() {
        Ok(Outcome::Right("in use by the running gateway".to_owned()))
    } else {
        Err(Fault::AddressInUse)
    }
}

async fn tcp(host: &str, port: u16, open: Option<&str>, running: &Running) -> Result<Outcome, Fault> {
    let found = lookup_host((host, port)).await.map_err(|source| Fault::NoAddress { host: host.to_owned(), source })?;
    // The server takes the first that it can have.
    let mut refused = None;
    for address in found {
        match can_bind(address) {
            Ok(()) => {
                return Ok(match open.filter(|_| !address.ip().is_loopback()) {
                    None => Outcome::Right("free".to_owned()),
                    Some(why) => Outcome::Note(format!(
                        "free; {why}: whoever reaches this address can read and write all volumes"
                    )),
                });
            }
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        None => Err(Fault::NoAddress { host: host.to_owned(), source: ErrorKind::NotFound.into() }),
        Some(error) if error.kind() == ErrorKind::AddrInUse => taken(running),
        Some(source) => Err(Fault::Address { source }),
    }
}

/// Whether a server could listen there. Nothing does meanwhile: the socket is closed before it accepts.
fn can_bind(address: SocketAddr) -> std::io::Result<()> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    // As the server has it: connections that are closing do not count.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    Ok(bind(&socket, &address)?)
}

async fn unix(path: &Path, running: &Running) -> Result<Outcome, Fault> {
    match path.symlink_metadata() {
        Ok(file) if !file.file_type().is_socket() => return Err(Fault::NotASocket(path.to_owned())),
        Ok(_) => {
            return match UnixStream::connect(path).await {
                Ok(_) => taken(running),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    Ok(Outcome::Right("left by a gateway that is gone; will be replaced".to_owned()))
                }
                Err(source) => Err(Fault::Address { source }),
            };
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(source) => return Err(Fault::NoAccess { path: path.to_owned(), access: Access::Read, source }),
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        return Err(Fault::NoFolder(folder.to_owned()));
    }
    place::require(folder, Access::Write)?;
    Ok(Outcome::Right("will be made".to_owned()))
}
