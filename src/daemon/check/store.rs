//! Stores: whether they are there, free, whole, and what they can do.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::place::{self, Access};
use super::{Fault, Outcome};
use crate::config::{Chap, Initiator, Store};
use crate::daemon::state::Glance;
use crate::daemon::stores::{self, Port, StoreError};
use crate::disk::file::{OpenError, Options};
use crate::disk::{Disk, FileDisk};
use crate::iscsi::initiator::Url;
use crate::nbd::NbdDisk;
use crate::units::human_bytes;

/// Where a file or device is, whatever path leads there: its device and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u64, u64);

/// None of what is not there, or not local.
pub(super) fn place_of(store: &Store) -> Option<Place> {
    let (Store::File { path, .. } | Store::Device { path, .. }) = store else { return None };
    let found = fs::metadata(path).ok()?;
    // A device has several nodes, and one number of its own.
    Some(if found.is_file() { Place(found.dev(), found.ino()) } else { Place(0, found.rdev()) })
}

/// `served`: the gateway runs, and the store is its own. `glance` is what the last run left.
pub(super) async fn check(store: &Store, initiator: &Initiator, served: bool, glance: &Glance) -> Vec<Outcome> {
    let looked = match store {
        Store::File { path, create, direct } => file(path, *create, *direct, served, glance).await,
        Store::Device { path, direct } => device(path, *direct, served, glance).await,
        Store::Nbd { uri } => export(uri, glance).await,
        Store::Iscsi { url, chap } => lun(url, chap.as_ref(), initiator, glance).await,
    };
    match looked {
        Ok(outcomes) => outcomes,
        Err(fault) => vec![fault.into()],
    }
}

async fn file(
    path: &Path,
    create: Option<u64>,
    direct: bool,
    served: bool,
    glance: &Glance,
) -> Result<Vec<Outcome>, Fault> {
    let found = match fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() == 0 && create.is_some() => None,
        Ok(found) => Some(found),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(source) => return Err(Fault::NoAccess { path: path.to_owned(), access: Access::Read, source }),
    };
    let Some(found) = found else {
        let size = create.ok_or(Fault::StoreAbsent)?;
        return if glance.remote.is_some() { Err(Fault::StoreGone) } else { will_be_made(path, size) };
    };
    let disk = open(path, direct)?;
    place::require(path, Access::Write)?;
    accept(&disk, glance).await?;
    if !served && place::is_locked(&found) {
        return Err(Fault::StoreLocked);
    }
    let whose = if served { ", served by the running gateway" } else { "" };
    let mut outcomes = vec![Outcome::Right(format!(
        "{}, {} of it allocated{whose}",
        human_bytes(found.len()),
        human_bytes(found.blocks() * 512)
    ))];
    if let Some(size) = create.filter(|size| *size != found.len()) {
        outcomes.push(Outcome::Note(format!(
            "create = {} is of no effect: the file is there, and keeps its size",
            human_bytes(size)
        )));
    }
    Ok(outcomes)
}

fn will_be_made(path: &Path, size: u64) -> Result<Vec<Outcome>, Fault> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        return Err(Fault::NoFolder(folder.to_owned()));
    }
    place::require(folder, Access::Write)?;
    let mut outcomes = vec![Outcome::Right(format!("will be made: {}, sparse", human_bytes(size)))];
    if let Ok(free) = place::free(folder)
        && free < size
    {
        outcomes.push(Outcome::Note(format!(
            "only {} are free in {}: when they are used up, clients are told so",
            human_bytes(free),
            folder.display()
        )));
    }
    Ok(outcomes)
}

async fn device(path: &Path, direct: bool, served: bool, glance: &Glance) -> Result<Vec<Outcome>, Fault> {
    let disk = open(path, direct)?;
    place::require(path, Access::Write)?;
    accept(&disk, glance).await?;
    if !served && disk.is_device() {
        exclusive(path)?;
    }
    let whose = if served { ", served by the running gateway" } else { ", in no other use" };
    Ok(vec![Outcome::Right(format!("{}{whose}", human_bytes(disk.geometry().size)))])
}

/// For an instant, what the gateway holds for as long as it serves: the kernel refuses it for what is mounted.
fn exclusive(path: &Path) -> Result<(), Fault> {
    let opened = OpenOptions::new().read(true).custom_flags(OFlags::EXCL.bits() as i32).open(path);
    match opened {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            Err(StoreError::File(OpenError::InUse { path: path.to_owned() }).into())
        }
        // Whatever else is wrong was found before.
        _ => Ok(()),
    }
}

async fn accept(disk: &dyn Disk, glance: &Glance) -> Result<(), Fault> {
    stores::accept(disk).await?;
    match &glance.store {
        Some(last) if last.name != disk.identity().name => Err(Fault::OtherStore),
        Some(last) if last.size > disk.identity().size => {
            Err(Fault::Shrunk { from: last.size, to: disk.identity().size })
        }
        _ => Ok(()),
    }
}

fn open(path: &Path, direct: bool) -> Result<FileDisk, Fault> {
    let options = Options { direct, read_only: true, ..Options::default() };
    FileDisk::open(path, options).map_err(|error| StoreError::File(error).into())
}

async fn export(uri: &str, glance: &Glance) -> Result<Vec<Outcome>, Fault> {
    let disk = NbdDisk::open(uri).await.map_err(StoreError::Nbd)?;
    accept(&disk, glance).await?;
    Ok(able(&disk))
}

/// Under a port of its own: that of the gateway would end the gateway's session.
async fn lun(url: &Url, chap: Option<&Chap>, initiator: &Initiator, glance: &Glance) -> Result<Vec<Outcome>, Fault> {
    let Some(name) = initiator.known(glance.instance) else {
        let text = "not looked at, for our name as an initiator is drawn at the first start; write [iscsi] initiator = \
                    \"iqn.…\" to have one now, for the array's access list";
        return Ok(vec![Outcome::Note(text.to_owned())]);
    };
    let port = Port::random(name.clone())?;
    let disk = stores::open_lun(url, chap, port).await?;
    accept(&disk, glance).await?;
    let mut outcomes = able(&disk);
    outcomes.push(Outcome::Note(format!("the array's access list needs {name}")));
    Ok(outcomes)
}

/// What a store on the network is and can do.
fn able(disk: &dyn Disk) -> Vec<Outcome> {
    let geometry = disk.geometry();
    let can = geometry.abilities;
    let abilities = [
        (can.read_only, "read-only"),
        (can.flush, "flush"),
        (can.fua, "FUA"),
        (can.trim, "trim"),
        (can.write_zeroes, "zeroes"),
        (can.extents, "block status"),
        (can.multi_conn, "several connections"),
    ];
    let named: Vec<&str> = abilities.iter().filter(|(can, _)| *can).map(|(_, name)| *name).collect();
    let mut outcomes = vec![Outcome::Right(format!(
        "{}, with {}",
        human_bytes(geometry.size),
        if named.is_empty() { "reads and writes alone".to_owned() } else { named.join(", ") }
    ))];
    if !can.flush && !can.read_only {
        let text = "it knows no flush: nobody can say what of it would survive a power cut, and Umbra adds nothing";
        outcomes.push(Outcome::Note(text.to_owned()));
    }
    outcomes
}
