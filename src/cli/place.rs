//! What `--to` and `--against` name: a file, a block device, an NBD export or a LUN.

use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::failure::Failure;
use super::initiator::Login;
use super::output;
use crate::disk::file::{OpenError, Options};
use crate::disk::{Disk, FileDisk};
use crate::iscsi::initiator::{Url, UrlError};
use crate::nbd::{NbdDisk, Uri};
use crate::restore::progress::Progress;
use crate::restore::target::{Content, Target, TargetError, survey};
use crate::units::BLOCK;

/// Where a disk is found.
#[derive(Clone, Debug)]
pub enum Place {
    /// A regular file or a block device.
    File(PathBuf),
    Nbd(Uri),
    Iscsi(Url),
}

impl Place {
    /// `nbd://…` and `nbd+unix://…` are NBD URIs, `iscsi://…` is a LUN; any other word is a path, with or without `file:` before it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("nbd:") || text.starts_with("nbd+") || text.starts_with("nbds") && text.contains("://") {
            return text.parse().map(Self::Nbd).map_err(|error: crate::nbd::UriError| error.to_string());
        }
        if text.starts_with("iscsi:") {
            return text.parse().map(Self::Iscsi).map_err(|error: UrlError| error.to_string());
        }
        let path = text.strip_prefix("file:").unwrap_or(text);
        if path.is_empty() {
            return Err("no file, device, NBD URI or LUN is named".to_owned());
        }
        if let Some((scheme, _)) = path.split_once("://") {
            return Err(format!("{scheme}:// is not known here; name a file, a device, an NBD URI or iscsi://…"));
        }
        Ok(Self::File(path.into()))
    }

    /// Opens a store that is only read.
    pub async fn open_store(&self, login: &Login) -> Result<Arc<dyn Disk>, Failure> {
        match self {
            Self::File(path) => {
                let options = Options { read_only: true, ..Options::default() };
                let disk = FileDisk::open(path, options).map_err(|error| cannot_open(self, &error))?;
                Ok(Arc::new(disk))
            }
            Self::Nbd(uri) => open_nbd(self, uri).await,
            Self::Iscsi(url) => Ok(Arc::new(login.open(url).await?)),
        }
    }

    /// Opens and admits what a volume of `size` bytes is restored to. A file that is absent (or empty) is made,
    /// sparse. What exists must be large enough and hold nothing but zeroes or an unfinished restore, unless
    /// `overwrite` allows the rest; then a file gets the volume's size, and all that it held is gone.
    pub async fn open_target(
        &self,
        login: &Login,
        size: u64,
        overwrite: bool,
        progress: Arc<Progress>,
    ) -> Result<Target, Failure> {
        let (disk, file) = match self {
            Self::File(path) => {
                let made = std::fs::metadata(path).map_or(true, |found| found.is_file() && found.len() == 0);
                let disk = Arc::new(open_file(path, size).map_err(|error| cannot_open(self, &error))?);
                if made {
                    return Target::new(disk, size, true, progress).map_err(|error| refused(self, &error));
                }
                (disk.clone() as Arc<dyn Disk>, (!disk.is_device()).then_some((path, disk)))
            }
            Self::Nbd(uri) => (open_nbd(self, uri).await?, None),
            Self::Iscsi(url) => (Arc::new(login.open(url).await?) as Arc<dyn Disk>, None),
        };
        let geometry = disk.geometry();
        // A file can be given the size that it needs, but only where its content may go.
        if geometry.size < size && !(overwrite && file.is_some()) {
            let error = TargetError::TooSmall { target_size: geometry.size, volume_size: size };
            return Err(refused(self, &error));
        }
        if geometry.abilities.read_only {
            return Err(refused(self, &TargetError::ReadOnly));
        }
        let content = if overwrite {
            Content::SeemsBlank
        } else {
            output::announce(&format!("looking whether {self} is empty"));
            survey(&*disk).await.map_err(|error| refused(self, &error))?
        };
        if let Content::Data { offset } = content {
            return Err(refused(self, &TargetError::HoldsData { offset }));
        }
        let mut blank = content == Content::Blank;
        if let (false, Some((path, file))) = (blank, file) {
            let emptied = empty(path, size)
                .and_then(|()| file.refresh().map_err(|errno| std::io::Error::from_raw_os_error(errno.0)));
            emptied.map_err(|error| cannot(self, "empty", &error))?;
            blank = true;
        }
        Target::new(disk, size, blank, progress).map_err(|error| refused(self, &error))
    }
}

/// What is restored is read again by others, if at all, and would drive from the page cache what they need. So it is
/// passed by, where the filesystem lets it and the size allows it.
fn open_file(path: &Path, size: u64) -> Result<FileDisk, OpenError> {
    let buffered = Options { create: Some(size), ..Options::default() };
    if size.is_multiple_of(BLOCK) {
        match FileDisk::open(path, Options { direct: true, ..buffered }) {
            Err(OpenError::NoDirect { .. } | OpenError::Ragged { .. }) => {}
            opened => return opened,
        }
    }
    FileDisk::open(path, buffered)
}

/// Makes a file of nothing but a hole. `FileDisk` holds its lock meanwhile.
fn empty(path: &Path, size: u64) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(0)?;
    file.set_len(size)?;
    file.sync_all()
}

async fn open_nbd(place: &Place, uri: &Uri) -> Result<Arc<dyn Disk>, Failure> {
    match NbdDisk::open(&uri.to_string()).await {
        Ok(disk) => Ok(Arc::new(disk)),
        Err(error) => Err(cannot(place, "open", &error)),
    }
}

fn cannot(place: &Place, what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(what, place.to_string()).because(error)
}

fn cannot_open(place: &Place, error: &OpenError) -> Failure {
    cannot(place, "open", error)
}

fn refused(place: &Place, error: &TargetError) -> Failure {
    let failure = Failure::new("restore to", place.to_string()).because(error);
    match error {
        TargetError::TooSmall { .. } => failure.remedy("name a target that is at least as large as the volume"),
        TargetError::HoldsData { .. } => {
            failure.remedy("name an empty target, or replace all that this one holds with --overwrite")
        }
        TargetError::ReadOnly => failure.remedy("name a target that can be written"),
        TargetError::Disk { .. } | TargetError::CameBack => failure.remedy("see that the target works, and try again"),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Nbd(uri) => uri.fmt(f),
            Self::Iscsi(url) => url.fmt(f),
        }
    }
}
