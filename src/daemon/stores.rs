//! Opens local stores as the configuration names them.

use std::sync::Arc;

use crate::config::Store;
use crate::disk::file::{self, FileDisk};
use crate::disk::{Disk, DiskError};
use crate::nbd::{self, NbdDisk};
use crate::restore::signature;
use crate::units::{SECTOR, VOLUME_MAX};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    File(#[from] file::OpenError),
    #[error(transparent)]
    Nbd(#[from] nbd::OpenError),
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

/// The store, ready to be shadowed.
pub async fn open(store: &Store) -> Result<Arc<dyn Disk>, StoreError> {
    let disk: Arc<dyn Disk> = match store {
        Store::File { path, create, direct } => {
            let options = file::Options { direct: *direct, create: *create, ..file::Options::default() };
            Arc::new(FileDisk::open(path, options)?)
        }
        Store::Device { path, direct } => {
            Arc::new(FileDisk::open(path, file::Options { direct: *direct, ..file::Options::default() })?)
        }
        Store::Nbd { uri } => Arc::new(NbdDisk::open(uri).await?),
    };
    accept(disk.as_ref()).await?;
    Ok(disk)
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
