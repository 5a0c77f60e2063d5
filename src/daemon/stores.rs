//! Opens local stores as the configuration names them.

use std::sync::Arc;

use super::secrets::{self, SecretError};
use crate::config::{Chap, Store};
use crate::disk::file::{self, FileDisk};
use crate::disk::{Disk, DiskError};
use crate::iscsi::initiator::{self, Credentials, IscsiDisk, Url};
use crate::nbd::{self, NbdDisk};
use crate::restore::signature;
use crate::units::{SECTOR, VOLUME_MAX};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    File(#[from] file::OpenError),
    #[error(transparent)]
    Nbd(#[from] nbd::OpenError),
    #[error("as initiator {initiator}")]
    Iscsi { initiator: String, source: Box<initiator::OpenError> },
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("no randomness for an initiator's port")]
    Random(#[source] getrandom::Error),
    #[error("it has {size} bytes; Umbra shadows volumes of up to {VOLUME_MAX} bytes (64 TiB)")]
    TooLarge { size: u64 },
    #[error("its first sector cannot be read")]
    Read(#[source] DiskError),
    #[error(
        "it holds a restore that did not finish, not a volume; run `umbra restore` on it again, or overwrite its first \
         sector if it is to be used as it is"
    )]
    Unfinished,
}

/// As whom a store of an array is opened: a port of an initiator (RFC 7143, 4.2.7 and 11.12.5). An array ends the session
/// that a port has when it logs in anew: a gateway that comes back needs the same one, everybody else another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub initiator: String,
    pub isid: [u8; 6],
}

impl Port {
    /// `id` is random. The ISID is of the random format: its mark, 24 bits at random, and 16 that tell ports of one
    /// initiator apart.
    pub fn new(initiator: String, id: &[u8; 16]) -> Self {
        const RANDOM_FORMAT: u8 = 0b10 << 6;
        Self { initiator, isid: [RANDOM_FORMAT, id[0], id[1], id[2], id[3], id[4]] }
    }

    /// One that nobody else has.
    pub fn random(initiator: String) -> Result<Self, StoreError> {
        let mut id = [0; 16];
        crate::random::fill(&mut id).map_err(StoreError::Random)?;
        Ok(Self::new(initiator, &id))
    }
}

/// The store, ready to be shadowed.
pub async fn open(store: &Store, port: Port) -> Result<Arc<dyn Disk>, StoreError> {
    let disk: Arc<dyn Disk> = match store {
        Store::File { path, create, direct } => {
            let options = file::Options { direct: *direct, create: *create, ..file::Options::default() };
            Arc::new(FileDisk::open(path, options)?)
        }
        Store::Device { path, direct } => {
            Arc::new(FileDisk::open(path, file::Options { direct: *direct, ..file::Options::default() })?)
        }
        Store::Nbd { uri } => Arc::new(NbdDisk::open(uri).await?),
        Store::Iscsi { url, chap } => Arc::new(open_lun(url, chap.as_ref(), port).await?),
    };
    accept(disk.as_ref()).await?;
    Ok(disk)
}

/// A LUN of an array.
pub async fn open_lun(url: &Url, chap: Option<&Chap>, port: Port) -> Result<IscsiDisk, StoreError> {
    let chap = chap.map(secrets::chap).transpose()?;
    let chap = chap.map(|chap| Credentials { ours: chap.initiator, theirs: chap.target });
    let Port { initiator, isid } = port;
    let options = initiator::Options { url: url.clone(), initiator: initiator.clone(), isid, chap };
    let opened = IscsiDisk::open(options).await;
    opened.map_err(|source| StoreError::Iscsi { initiator, source: Box::new(source) })
}

/// Refuses what must not be shadowed, before anything is published of it.
pub async fn accept(disk: &dyn Disk) -> Result<(), StoreError> {
    let geometry = disk.geometry();
    if geometry.size > VOLUME_MAX {
        return Err(StoreError::TooLarge { size: geometry.size });
    }
    let length = SECTOR.max(u64::from(geometry.block.minimum));
    if geometry.size >= length {
        let first = disk.read(0, length as u32).await.map_err(StoreError::Read)?;
        if signature::is_unfinished(&first) {
            return Err(StoreError::Unfinished);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_of_the_random_format_and_stays_with_its_volume() {
        let port = |id| Port::new("iqn.2020-02.org.example:a".to_owned(), &[id; 16]);
        assert_eq!(port(0xff).isid, [0x80, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(port(7), port(7));
        assert_ne!(port(7), port(8));
        let random = || Port::random("iqn.2020-02.org.example:a".to_owned()).unwrap();
        assert_ne!(random(), random());
    }
}
