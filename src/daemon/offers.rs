//! At which addresses clients have a volume.

use crate::config::Listen;
use crate::net::Address;

/// A volume, and a URI at which clients have it.
pub struct Offer {
    pub volume: String,
    pub uri: String,
}

impl Offer {
    /// NetworkBlockDevice/nbd, doc/uri.md.
    pub fn nbd(volume: &str, address: &Address) -> Self {
        let uri = match address {
            Address::Tcp(address) => format!("nbd://{address}/{volume}"),
            Address::Unix(path) => format!("nbd+unix:///{volume}?socket={}", path.display()),
        };
        Self { volume: volume.to_owned(), uri }
    }

    /// As libiscsi writes it; the volume is LUN 0 of its target.
    pub fn iscsi(volume: &str, portal: &Address, target: &str) -> Self {
        Self { volume: volume.to_owned(), uri: format!("iscsi://{portal}/{target}/0") }
    }
}

/// Where the configuration says to listen.
pub fn address(listen: &Listen) -> Address {
    match listen {
        Listen::Tcp { host, port } if host.contains(':') => Address::Tcp(format!("[{host}]:{port}")),
        Listen::Tcp { host, port } => Address::Tcp(format!("{host}:{port}")),
        Listen::Unix(path) => Address::Unix(path.clone()),
    }
}
