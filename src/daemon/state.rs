//! The state folder: who this gateway is, and how its last run ended.
//!
//! ```text
//! <state>/lock              held while a gateway runs
//!         instance          id of this folder, for ever
//!         sequence          high-water mark of the sequence
//!         volumes/<name>    ids of its log and its remote copy; its store; what a clean stop left
//!         marks/<name>      its region marks
//!         reservations/<name>  its persistent reservations
//!         scrub/<name>      how far its scheduled comparison is
//!         log/              the write log (it holds customer data in clear: all is 0700 and 0600)
//!         status.sock
//! ```
//! Small files are replaced whole: written beside, synced, renamed, and the folder is synced.
//! Crash: a volume's clean mark is removed before the volume serves, so it stands only behind a clean stop.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::disk::Identity;
use crate::format::{InstanceId, VolumeId};
use crate::units::{EntryNumber, Generation, Timestamp};

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the state folder {} is in use by another gateway; stop it first, or give this one a folder of its own", .0.display())]
    InUse(PathBuf),
    #[error("{} is damaged; remove it to begin anew: the volumes are then compared in full", path.display())]
    Damaged { path: PathBuf },
    #[error("no random id")]
    Random(#[source] getrandom::Error),
}

/// A state folder that this process holds.
pub struct StateFolder {
    path: PathBuf,
    instance: InstanceId,
    changing: Mutex<()>,
    _lock: File,
}

/// What is kept of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeState {
    /// Of its log; chosen when the folder saw the name first.
    #[serde(with = "hex_id")]
    pub log: VolumeId,
    /// The remote volume that was open under the name last.
    #[serde(with = "hex_id::optional")]
    pub remote: Option<VolumeId>,
    /// In which this gateway opened it; noted before anything is published in it.
    #[serde(default)]
    pub generation: Option<Generation>,
    /// What is shadowed, as of the last start.
    #[serde(default)]
    pub store: Option<Identity>,
    /// Regions whose content the store's caches hide since it failed a flush, by their numbers.
    #[serde(default)]
    pub stuck: Vec<Range<u64>>,
    pub clean: Option<Clean>,
}

/// What a clean stop left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clean {
    /// The newest entry of the chain.
    pub entry: EntryNumber,
    /// The store after the last write.
    pub store: Identity,
}

mod hex_id {
    use super::VolumeId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(id: &VolumeId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<VolumeId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }

    pub mod optional {
        use super::super::VolumeId;
        use serde::{Deserialize, Deserializer, Serializer, de::Error};

        pub fn serialize<S: Serializer>(id: &Option<VolumeId>, serializer: S) -> Result<S::Ok, S::Error> {
            match id {
                Some(id) => serializer.collect_str(id),
                None => serializer.serialize_none(),
            }
        }
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<VolumeId>, D::Error> {
            let text = Option::<String>::deserialize(deserializer)?;
            text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
        }
    }
}

/// What a state folder says without being taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Glance {
    pub instance: Option<InstanceId>,
    /// The remote volume that was open under the name last.
    pub remote: Option<VolumeId>,
    /// The store that was shadowed last.
    pub store: Option<Identity>,
}

/// Looks into the folder at `path`, which may be absent or held by a gateway; changes nothing.
pub fn glance(path: &Path, name: &str) -> Result<Glance, StateError> {
    let (instance_path, volume_path) = (path.join("instance"), path.join("volumes").join(name));
    let damaged = |path: &Path| StateError::Damaged { path: path.to_owned() };
    let instance = read(&instance_path)?.map(|text| text.trim().parse()).transpose();
    let volume = read(&volume_path)?.map(|text| serde_json::from_str::<VolumeState>(&text)).transpose();
    let volume = volume.map_err(|_| damaged(&volume_path))?;
    Ok(Glance {
        instance: instance.map_err(|_| damaged(&instance_path))?,
        remote: volume.as_ref().and_then(|volume| volume.remote),
        store: volume.and_then(|volume| volume.store),
    })
}

impl StateFolder {
    /// Takes the folder, made if absent.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let volumes = path.join("volumes");
        make_folder(&volumes)?;
        let owner_only = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
        owner_only.map_err(io_error("restrict access to", path))?;
        let lock_path = path.join("lock");
        let lock = owner_file().create(true).truncate(false).open(&lock_path).map_err(io_error("open", &lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => StateError::InUse(path.to_owned()),
            error => io_error("lock", &lock_path)(error.into()),
        })?;
        let instance_path = path.join("instance");
        let instance = match read(&instance_path)? {
            Some(text) => text.trim().parse().map_err(|_| StateError::Damaged { path: instance_path.clone() })?,
            None => {
                let instance = InstanceId(random()?);
                replace(&instance_path, instance.to_string().as_bytes())?;
                instance
            }
        };
        Ok(Self { path: path.to_owned(), instance, changing: Mutex::new(()), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// Where the write log lies.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where a volume's region marks lie.
    pub fn marks(&self, name: &str) -> Result<PathBuf, StateError> {
        self.file_of("marks", name)
    }

    /// Where a volume's persistent reservations are kept.
    pub fn reservations(&self, name: &str) -> Result<PathBuf, StateError> {
        self.file_of("reservations", name)
    }

    fn file_of(&self, folder: &str, name: &str) -> Result<PathBuf, StateError> {
        let folder = self.path.join(folder);
        make_folder(&folder)?;
        Ok(folder.join(name))
    }

    /// The durable high-water mark of the sequence; without one, a number above any that could have been used.
    pub fn sequence(&self, now: Timestamp) -> Result<u64, StateError> {
        let path = self.path.join("sequence");
        match read(&path)? {
            Some(text) => text.trim().parse().map_err(|_| StateError::Damaged { path }),
            None => Ok((now.0 / 1000) << 20),
        }
    }

    pub fn set_sequence(&self, mark: u64) -> Result<(), StateError> {
        replace(&self.path.join("sequence"), mark.to_string().as_bytes())
    }

    /// What is kept of the volume; made if there is nothing.
    pub fn volume(&self, name: &str) -> Result<VolumeState, StateError> {
        let path = self.volume_path(name);
        match read(&path)? {
            Some(text) => serde_json::from_str(&text).map_err(|_| StateError::Damaged { path }),
            None => {
                let log = VolumeId(random()?);
                let state =
                    VolumeState { log, remote: None, generation: None, store: None, stuck: Vec::new(), clean: None };
                self.set_volume(name, &state)?;
                Ok(state)
            }
        }
    }

    /// Changes what is kept of a volume; those who do it at the same time do it one after the other.
    pub fn change_volume(&self, name: &str, change: impl FnOnce(&mut VolumeState)) -> Result<(), StateError> {
        let _alone = self.changing.lock();
        let mut state = self.volume(name)?;
        change(&mut state);
        self.set_volume(name, &state)
    }

    fn set_volume(&self, name: &str, state: &VolumeState) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(state).expect("plain data has a JSON form");
        replace(&self.volume_path(name), &text)
    }

    fn volume_path(&self, name: &str) -> PathBuf {
        self.path.join("volumes").join(name)
    }
}

/// The folder, and those above it, for their owner only.
pub(super) fn make_folder(path: &Path) -> Result<(), StateError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(io_error("make the folder", path))
}

fn random() -> Result<[u8; 16], StateError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(StateError::Random)?;
    Ok(bytes)
}

fn owner_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn io_error<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StateError + 'a {
    move |source| StateError::Io { operation, path: path.to_owned(), source }
}

pub(super) fn read(path: &Path) -> Result<Option<String>, StateError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// The file holds `bytes` durably, or what it held before.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    // No volume has a name that begins with a dot.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    let write = || -> io::Result<()> {
        let mut file = owner_file().create(true).truncate(true).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(io_error("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_and_keeps_what_it_was_told() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state");
        let folder = StateFolder::open(&path).unwrap();
        let again = StateFolder::open(&path).map(|_| ());
        assert!(matches!(again, Err(StateError::InUse(_))), "{again:?}");
        let state = folder.volume("disk0").unwrap();
        assert!(state.clean.is_none() && state.remote.is_none());
        let store = Identity { name: "file:1:2".into(), size: 7, modified: Some(-1) };
        let clean = Clean { entry: EntryNumber(5), store: store.clone() };
        let generation = Some(Generation(3));
        let kept = Some(store.clone());
        let changed = VolumeState { remote: Some(state.log), generation, store: kept, clean: Some(clean), ..state };
        folder.change_volume("disk0", |kept| kept.clone_from(&changed)).unwrap();
        folder.set_sequence(42).unwrap();
        let instance = folder.instance();
        drop(folder);
        let folder = StateFolder::open(&path).unwrap();
        assert_eq!(folder.instance(), instance);
        assert_eq!(folder.volume("disk0").unwrap(), changed);
        assert_eq!(folder.sequence(Timestamp(0)).unwrap(), 42);
        let seen = Glance { instance: Some(instance), remote: changed.remote, store: Some(store) };
        assert_eq!(glance(&path, "disk0").unwrap(), seen.clone(), "a folder that is held can be looked into");
        let (stranger, nowhere) = (Glance { remote: None, store: None, ..seen }, temp.path().join("nowhere"));
        assert_eq!(glance(&path, "disk1").unwrap(), stranger);
        assert_eq!(glance(&nowhere, "disk0").unwrap(), Glance::default());
        assert!(!nowhere.exists() && !path.join("volumes/disk1").exists());
        for entry in [path.join("instance"), path.join("sequence"), path.join("volumes/disk0"), path.join("lock")] {
            assert_eq!(fs::metadata(&entry).unwrap().permissions().mode() & 0o777, 0o600, "{}", entry.display());
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
