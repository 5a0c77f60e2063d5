//! What is wrong with a configuration: where, what, and what to write instead.

use std::fmt;
use std::time::Duration;

use crate::iscsi::initiator::UrlError;
use crate::units::human_bytes;

/// A part of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Section {
    Top,
    Listen,
    Iscsi,
    Remote,
    Options,
    /// The first is number 1.
    Volume {
        number: usize,
        name: Option<String>,
    },
    Log,
    Snapshot,
    Upload,
}

impl Section {
    /// A problem with a key of this section, whose value is not shown.
    pub fn problem(&self, key: &str, fault: Fault) -> Problem {
        Problem { section: self.clone(), key: key.to_owned(), value: None, fault }
    }

    /// A problem with the value of a key of this section.
    pub fn problem_of(&self, key: &str, value: impl fmt::Display, fault: Fault) -> Problem {
        Problem { value: Some(value.to_string()), ..self.problem(key, fault) }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top => f.write_str("top of the file:"),
            Self::Listen => f.write_str("[listen]"),
            Self::Iscsi => f.write_str("[iscsi]"),
            Self::Remote => f.write_str("[remote]"),
            Self::Options => f.write_str("[remote.options]"),
            Self::Volume { name: Some(name), .. } => write!(f, "[[volume]] {name:?}:"),
            Self::Volume { number, name: None } => write!(f, "[[volume]] number {number}:"),
            Self::Log => f.write_str("[log]"),
            Self::Snapshot => f.write_str("[snapshot]"),
            Self::Upload => f.write_str("[upload]"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    pub section: Section,
    /// Empty where the section itself is wrong.
    pub key: String,
    /// As it is written in the file; none where it says nothing, or may be a secret.
    pub value: Option<String>,
    pub fault: Fault,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.section.fmt(f)?;
        if !self.key.is_empty() {
            write!(f, " {}", self.key)?;
        }
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, ": {}", self.fault)
    }
}

impl std::error::Error for Problem {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.fault)
    }
}

/// What is wrong, and the remedy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("unknown{}", remedy_for_unknown(*.nearest, .known))]
    UnknownKey { nearest: Option<&'static str>, known: &'static [&'static str] },
    #[error("{message}")]
    Type { message: String },
    #[error("is written as a single value; it is a section with keys of its own")]
    NotATable,
    #[error("is written as one section; write [[volume]], in double brackets, for each volume")]
    NotAList,
    #[error("is missing; write for example {example}")]
    Missing { example: &'static str },
    #[error("is empty; write a path")]
    EmptyPath,
    #[error("is not a number of bytes; write a whole number, or one with a unit, like \"10MiB\"")]
    NotBytes,
    #[error("is not a duration; write a number with its unit, like \"5s\" or \"2min\"")]
    NotADuration,
    #[error("is out of range; write {} to {}", humantime::format_duration(*.min), humantime::format_duration(*.max))]
    DurationOutside { min: Duration, max: Duration },
    #[error("is out of range; write {min} to {max}")]
    NumberOutside { min: u64, max: u64 },
    #[error("is out of range; write {} to {}", human_bytes(*.min), human_bytes(*.max))]
    BytesOutside { min: u64, max: u64 },
    #[error(
        "is less than twice the epoch ({}): the alarm would never end; write {} or more, or a shorter [snapshot] epoch",
        humantime::format_duration(*.epoch), humantime::format_duration(*.epoch * 2)
    )]
    AgeBelowEpoch { epoch: Duration },
    #[error(
        "is too small for {volumes} volume(s): each needs at least {per_volume} segments of {}; write {} or more",
        human_bytes(*.segment), human_bytes(*.needed)
    )]
    LogTooSmall { volumes: usize, per_volume: u64, segment: u64, needed: u64 },
    #[error("is too slow to publish anything in time; write \"{}/s\" or more", human_bytes(*.min))]
    RateTooLow { min: u64 },
    #[error("is not a name for a volume; write 1 to 63 of a-z 0-9 - _ . and begin with a letter or digit")]
    Name,
    #[error(
        "has an underscore, which the name of an iSCSI target cannot have; write another, or leave out [listen] iscsi"
    )]
    NameForIscsi,
    #[error("is the name of volume number {first} as well; give each its own")]
    NameTwice { first: usize },
    #[error("is the store of volume number {first} as well; a store can have one volume only")]
    StoreTwice { first: usize },
    #[error(
        "names no store; write file:PATH, /dev/…, nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH or \
         iscsi://HOST:PORT/TARGET/LUN"
    )]
    NotAStore,
    #[error("is a relative path; write \"file:{path}\" for a file, or the absolute path of a device")]
    StoreWithoutKind { path: String },
    #[error("is not an NBD URI: {reason}; write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH")]
    NbdUri { reason: NbdUriFault },
    #[error("names no LUN: {reason}")]
    IscsiUrl { reason: UrlError },
    #[error("is for iscsi:// stores only, and the store is {store}; leave it out")]
    ChapNotIscsi { store: &'static str },
    #[error("is for file: stores only, and the store is {store}; leave it out")]
    CreateNotAFile { store: &'static str },
    #[error("is of no use with direct I/O, which works in blocks of up to 4 KiB; write a multiple of 4096 bytes")]
    CreateRagged,
    #[error("is for files and devices only, and the store is {store}; leave it out")]
    DirectNotLocal { store: &'static str },
    #[error("is not an address; write HOST:PORT, like \"127.0.0.1:10809\", or unix:PATH")]
    NotAnAddress,
    #[error("is longer than the {max} bytes that the path of a unix socket can have; write a shorter one")]
    SocketPathTooLong { max: usize },
    #[error("is not HOST:PORT, like \"0.0.0.0:3260\", and iSCSI knows no other addresses")]
    NotAPortal,
    #[error(
        "is not the beginning of an iSCSI name; write iqn.YYYY-MM.DOMAIN, like \"iqn.2026-11.io.umbra\", at most {max} bytes"
    )]
    NotAnIqn { max: usize },
    #[error(
        "is not an iSCSI name; write iqn.YYYY-MM.DOMAIN:ANYTHING in small letters, digits and - . :, at most {max} bytes"
    )]
    NotAnInitiator { max: usize },
    #[error(
        "is not a user and the file of its secret; write {{ user = \"NAME\", secret_file = \"PATH\" }}, and the secret into \
         that file"
    )]
    NotChap,
    #[error("protects nothing, for nothing listens for iSCSI; write [listen] iscsi too, or leave it out")]
    ChapWithoutPortal,
    #[error("is empty; write a name")]
    EmptyUser,
    #[error("has to stand beside {other}, or both are left out")]
    HalfOfMutual { other: &'static str },
    #[error("is secret_file as well; mutual CHAP needs two")]
    SameSecret,
    #[error("stands twice; leave one out")]
    AddressTwice,
    #[error("names no remote; write file:FOLDER, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX")]
    NotARemote,
    #[error("holds a user or password, which would be seen; put credentials into the environment or [remote.options]")]
    CredentialsInUrl,
    #[error("is the remote's folder as well; write another")]
    StateIsRemote,
    #[error("has no meaning for a file: remote; leave it out")]
    OptionForFolder,
    #[error("is not known to object_store for {provider}; look for its name there")]
    UnknownOption { provider: &'static str },
    #[error("is taken from url or set by umbra itself; leave it out")]
    OptionReserved,
    #[error("is not text; write the value in quotation marks")]
    OptionNotText,
}

/// What is wrong with an NBD URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NbdUriFault {
    #[error("it cannot be read as a URI")]
    Syntax,
    #[error("TLS is not supported")]
    Tls,
    #[error("it names a user")]
    User,
    #[error("it names no host")]
    NoHost,
    #[error("a unix socket has no host (three slashes)")]
    Host,
    #[error("it names no socket")]
    NoSocket,
    #[error("it has a parameter that is not known")]
    Parameter,
    #[error("a part of it is not percent-encoded UTF-8")]
    Encoding,
    #[error("the name of its export is too long")]
    NameTooLong,
}

fn remedy_for_unknown(nearest: Option<&str>, known: &[&str]) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean {nearest:?}?"),
        None => format!("; known here: {}", known.join(", ")),
    }
}

/// One line for a single problem, one each for several.
pub(super) fn list(problems: &[Problem]) -> String {
    match problems {
        [problem] => problem.to_string(),
        _ => {
            problems.iter().fold(format!("{} problems", problems.len()), |text, problem| format!("{text}\n  {problem}"))
        }
    }
}
