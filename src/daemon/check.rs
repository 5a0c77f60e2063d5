//! What a gateway would find if it were started with a configuration: looked at, and nothing changed.
//!
//! Owns: findings about the state folder, the listen addresses, the stores and the remote. Does not own: what is wrong
//! with the file itself ([`crate::config`]). Makes no file, folder, lock or object, and may be asked while the gateway
//! runs; what only a change would tell (the right to put objects) is said to be unknown.

mod listen;
mod place;
mod remote;
mod store;

use std::fmt;
use std::path::{Path, PathBuf};

use self::place::{Access, Folder};
use super::secrets::{self, SecretError};
use super::state::{self, Glance, StateError};
use super::stores::StoreError;
use crate::chain::ChainError;
use crate::config::{Config, Section};
use crate::format::VolumeId;
use crate::format::names::VolumeName;
use crate::remote::{OpenError, RemoteError};
use crate::status::{self, Status, VolumeStatus};
use crate::units::{Timestamp, human_bytes};
use crate::writelog::{SEGMENT, copying_filesystem};

/// One thing that was looked at.
#[derive(Debug)]
pub struct Finding {
    pub section: Section,
    pub key: &'static str,
    /// As the program understands it; nothing of it is a secret.
    pub value: String,
    pub outcome: Outcome,
}

#[derive(Debug)]
pub enum Outcome {
    Right(String),
    /// Not wrong, but to be known.
    Note(String),
    Wrong(Box<Fault>),
}

impl From<Fault> for Outcome {
    fn from(fault: Fault) -> Self {
        Self::Wrong(Box::new(fault))
    }
}

impl Finding {
    fn new(section: Section, key: &'static str, value: impl fmt::Display, outcome: impl Into<Outcome>) -> Self {
        Self { section, key, value: value.to_string(), outcome: outcome.into() }
    }

    pub fn is_wrong(&self) -> bool {
        matches!(self.outcome, Outcome::Wrong(_))
    }
}

/// A line; for what is wrong, a second one with the remedy.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { section, key, value, outcome } = self;
        let word = match outcome {
            Outcome::Right(_) => "ok     ",
            Outcome::Note(_) => "note   ",
            Outcome::Wrong(_) => "PROBLEM",
        };
        write!(f, "{word} {section} {key} = {value}: ")?;
        match outcome {
            Outcome::Right(text) | Outcome::Note(text) => f.write_str(text),
            Outcome::Wrong(fault) => {
                write!(f, "{fault}")?;
                let mut said = fault.to_string();
                let mut next = std::error::Error::source(&**fault);
                while let Some(cause) = next {
                    let text = cause.to_string();
                    if !said.contains(&text) {
                        write!(f, ": {text}")?;
                        said = text;
                    }
                    next = cause.source();
                }
                write!(f, "\n        what to do: {}", fault.remedy())
            }
        }
    }
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    #[error("{} cannot be {access}", path.display())]
    NoAccess { path: PathBuf, access: Access, source: std::io::Error },
    #[error("{} does not exist", .0.display())]
    NoFolder(PathBuf),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("it needs {} more, and {} are free in {}", human_bytes(*needed), human_bytes(*free), path.display())]
    NoSpace { path: PathBuf, needed: u64, free: u64 },
    #[error("{} is on {filesystem}, which copies on write: a log that is preallocated could still run out of space",
        path.display())]
    CopyOnWrite { path: PathBuf, filesystem: &'static str },
    #[error("no address is found for the name {host}")]
    NoAddress { host: String, source: std::io::Error },
    #[error("another program listens there")]
    AddressInUse,
    #[error("it cannot be listened on")]
    Address { source: std::io::Error },
    #[error("{} is there and not a socket", .0.display())]
    NotASocket(PathBuf),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("the file is absent")]
    StoreAbsent,
    #[error("another program has it locked for writing")]
    StoreLocked,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("it is absent, and a blank one that is made in its place is not what was shadowed by this name")]
    StoreGone,
    #[error("it is not the store that the last run has shadowed by this name")]
    OtherStore,
    #[error("it has {to} bytes, and {from} were shadowed")]
    Shrunk { from: u64, to: u64 },
    #[error("it is the store of volume {0} as well, by another path")]
    StoreTwice(String),
    #[error(transparent)]
    RemoteSettings(#[from] OpenError),
    #[error("it cannot be read")]
    Remote(#[from] RemoteError),
    #[error("the chain under this name cannot be read")]
    Chain(#[from] ChainError),
    #[error("the name is taken by volume {id} of {created}{}, which this state folder does not know",
        newest.map_or(String::new(), |time| format!(", newest entry of {time}")))]
    NameTaken { id: VolumeId, created: Timestamp, newest: Option<Timestamp> },
    #[error("the volume {0} that this state folder knows by this name is not there")]
    Vanished(VolumeId),
}

impl Fault {
    fn remedy(&self) -> &'static str {
        match self {
            Self::NotAFolder(_) => "name a folder, or remove what is there",
            Self::NoAccess { .. } => "give the user that runs umbra the right, or name another place",
            Self::NoFolder(_) => "make the folder, or name another",
            Self::State(_) => "see to the state folder, or name another",
            Self::NoSpace { .. } => "free space, write a smaller size, or put it on another disk",
            Self::CopyOnWrite { .. } => {
                "put the state folder on another filesystem, or make its folder log with nodatacow (chattr +C) while \
                 it is empty"
            }
            Self::NoAddress { .. } => "write an IP address, or see to the resolver",
            Self::AddressInUse => "stop that program, or write another address",
            Self::Address { .. } => "write an address of this machine and a port that may be used",
            Self::NotASocket(_) => "remove it, or write another path",
            Self::Secret(_) | Self::Store(StoreError::Secret(_)) => {
                "write each secret into a file of its own that the user that runs umbra can read"
            }
            Self::StoreAbsent => "name a file that exists, or add its size, as in create = \"1GiB\"",
            Self::StoreLocked => "stop that program: a store has one writer",
            Self::StoreGone => {
                "run umbra restore to it, then umbra serve --adopt; or begin a new volume under another name"
            }
            Self::OtherStore => {
                "if it holds the volume's data (restored, moved), start with umbra serve --adopt; if not, restore first"
            }
            Self::Shrunk { .. } => {
                "enlarge it, for what was cut off is in the remote; or begin a new volume under another name"
            }
            Self::StoreTwice(_) => "give each volume a store of its own",
            Self::Store(StoreError::File(_)) => "name a file or device that is free and that umbra may read and write",
            Self::Store(StoreError::Nbd(_)) => "see that the server runs, offers this export and lets one more in",
            Self::Store(StoreError::Iscsi { .. }) => {
                "see that the array runs and has this target and LUN, that its access list has the initiator's name, and \
                 that chap is what it asks for"
            }
            Self::Store(StoreError::Random(_)) => "try again",
            Self::Store(StoreError::TooLarge { .. }) => "name a smaller store",
            Self::Store(StoreError::Read(_)) => "see that the store works",
            Self::Store(StoreError::Unfinished) => "run the same umbra restore on it again",
            Self::RemoteSettings(_) => "correct [remote] url and [remote.options]",
            Self::Remote(_) => "check the network, the endpoint, the bucket and the credentials",
            Self::Chain(_) => "check that nothing else writes into or deletes from this prefix",
            Self::NameTaken { .. } => {
                "start with umbra serve --adopt if the store holds that volume; otherwise write another name"
            }
            Self::Vanished(_) => "check [remote] url; or remove the volume's file in the state folder to begin anew",
        }
    }
}

/// Looks at everything that the configuration names.
pub async fn check(config: &Config) -> Vec<Finding> {
    let running = Running::ask(&config.state).await;
    let mut findings = state_folder(config, &running);
    let enters = !findings.iter().any(|finding| finding.key == "state" && finding.is_wrong());
    for address in &config.listen {
        findings.push(listen::check("nbd", address, Some(listen::NBD_IS_OPEN), &running).await);
    }
    if let Some(iscsi) = &config.iscsi {
        let open = iscsi.chap.is_none().then_some(listen::ISCSI_IS_OPEN);
        for address in &iscsi.listen {
            findings.push(listen::check("iscsi", address, open, &running).await);
        }
        if let Some(chap) = &iscsi.chap {
            let outcome = match secrets::chap(chap) {
                Ok(_) => Outcome::Right("its secret can be read".to_owned()),
                Err(error) => Fault::from(error).into(),
            };
            findings.push(Finding::new(Section::Iscsi, "chap", format_args!("{:?}", chap.initiator.user), outcome));
        }
    }
    let mut remote = remote::open(&config.remote, &mut findings);
    let mut known: Vec<(store::Place, &VolumeName)> = Vec::new();
    for (index, volume) in config.volumes.iter().enumerate() {
        let section = Section::Volume { number: index + 1, name: Some(volume.name.to_string()) };
        let value = format!("\"{}\"", volume.store);
        let glance = match state::glance(&config.state, volume.name.as_str()) {
            Ok(glance) => Some(glance),
            Err(error) if enters => {
                let shown = format_args!("\"{}\"", config.state.display());
                findings.push(Finding::new(Section::Top, "state", shown, Fault::from(error)));
                None
            }
            // Why not was said.
            Err(_) => None,
        };
        let place = store::place_of(&volume.store);
        let twice = known.iter().find(|(other, _)| Some(*other) == place).map(|(_, name)| name.to_string());
        known.extend(place.map(|place| (place, &volume.name)));
        let outcomes = match (running.volume(volume.name.as_str()), &volume.store) {
            _ if let Some(other) = twice => vec![Fault::StoreTwice(other).into()],
            // A server may let one client in and no more, and that one is the gateway.
            (Some(status), store) if store.is_networked() => vec![served(status)],
            (_, store) => {
                let glance = glance.as_ref().unwrap_or(&Glance::default()).clone();
                store::check(store, &config.initiator, running.is_up(), &glance).await
            }
        };
        findings.extend(outcomes.into_iter().map(|outcome| Finding::new(section.clone(), "store", &value, outcome)));
        let Some(glance) = glance else { continue };
        match remote.name(&volume.name, &glance).await {
            None => {}
            // That it does not answer is said, and waited for, once.
            Some(Outcome::Wrong(fault)) if matches!(*fault, Fault::Remote(_)) => {
                let url = format_args!("\"{}\"", config.remote.place);
                findings.push(Finding::new(Section::Remote, "url", url, Outcome::Wrong(fault)));
                remote = remote::Found::Unusable;
            }
            Some(outcome) => {
                findings.push(Finding::new(section, "name", format_args!("\"{}\"", volume.name), outcome));
            }
        }
    }
    findings
}

fn served(status: &VolumeStatus) -> Outcome {
    Outcome::Right(format!("{}, served by the running gateway", human_bytes(status.size)))
}

/// The gateway of the state folder.
enum Running {
    Serves(Status),
    /// It holds the folder and does not answer: it is starting, or stopping.
    Holds,
    Not,
}

impl Running {
    async fn ask(state: &Path) -> Self {
        match status::ask(state).await {
            Ok(status) => Self::Serves(status),
            Err(_) if state.join("lock").metadata().is_ok_and(|lock| place::is_locked(&lock)) => Self::Holds,
            Err(_) => Self::Not,
        }
    }

    fn is_up(&self) -> bool {
        !matches!(self, Self::Not)
    }

    fn volume(&self, name: &str) -> Option<&VolumeStatus> {
        match self {
            Self::Serves(status) => status.volumes.iter().find(|volume| volume.name == name),
            Self::Holds | Self::Not => None,
        }
    }
}

/// The state folder, and the log in it.
fn state_folder(config: &Config, running: &Running) -> Vec<Finding> {
    let path = &config.state;
    let finding = |outcome| Finding::new(Section::Top, "state", format_args!("\"{}\"", path.display()), outcome);
    let text = match Folder::look(path) {
        _ if running.is_up() => "in use by the running gateway",
        Ok(Folder::There) => "there, no gateway runs",
        Ok(Folder::Absent) => "will be made",
        Err(fault) => return vec![finding(fault.into())],
    };
    let log = log(path, config.log.size, running);
    vec![
        finding(Outcome::Right(text.to_owned())),
        Finding::new(Section::Log, "size", human_bytes(config.log.size), log),
    ]
}

/// Whether the log has its space, or will have.
fn log(state: &Path, size: u64, running: &Running) -> Outcome {
    let path = state.join("log");
    let existing = place::existing(&path);
    let copying = place::filesystem(existing).ok().and_then(copying_filesystem);
    if let Some(filesystem) = copying.filter(|_| !running.is_up() && !place::has_nodatacow(&path)) {
        return Fault::CopyOnWrite { path: existing.to_owned(), filesystem }.into();
    }
    let size = size / SEGMENT * SEGMENT;
    let there = place::bytes_in(&path);
    let needed = size.saturating_sub(there);
    if needed == 0 {
        return Outcome::Right("made in full".to_owned());
    }
    match place::free(existing) {
        Ok(free) if free < needed => Fault::NoSpace { path: existing.to_owned(), needed, free }.into(),
        Ok(free) => {
            Outcome::Right(format!("will be made: {}, and {} are free", human_bytes(needed), human_bytes(free)))
        }
        Err(source) => Fault::NoAccess { path: existing.to_owned(), access: Access::Read, source }.into(),
    }
}

#[cfg(test)]
mod tests;
