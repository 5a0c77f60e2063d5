//! What the program uses: typed, within limits, and without combinations that make no sense.
//!
//! Paths are absolute. There is no way here but through [`check`], which reports every problem that it finds.

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;

use super::place::{Listen, Place, Store, join, straightened};
use super::problem::{Fault, Problem, Section};
use super::written::{self, Fencing, Options, SyncMode, WhenFull, WhenMarksFail};
use crate::format::InstanceId;
use crate::format::names::VolumeName;
use crate::units::{KIB, MIB, TIB, VOLUME_MAX};

/// A whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Folder of the log, the marks and the control socket.
    pub state: PathBuf,
    /// Of NBD; no two are the same.
    pub listen: Vec<Listen>,
    /// None where nothing listens for iSCSI. There is this or an address of NBD, or both.
    pub iscsi: Option<Iscsi>,
    pub initiator: Initiator,
    pub remote: Remote,
    /// At least one; names and stores are unique.
    pub volumes: Vec<Volume>,
    pub log: Log,
    pub snapshot: Snapshot,
    pub upload: Upload,
}

/// Targets of iSCSI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iscsi {
    /// At least one, all of TCP; no two are the same.
    pub listen: Vec<Listen>,
    /// What the names of all targets begin with, up to the colon.
    pub iqn: String,
    pub chap: Option<Chap>,
}

/// Who proves to be whom, by secrets in files that are not read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chap {
    pub initiator: Login,
    /// What the target proves: ours to those who ask for it, an array's to us, always.
    pub target: Option<Login>,
}

/// As whom we log in to arrays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Initiator {
    Named(String),
    /// This domain's, and the state folder's own.
    Of {
        iqn: String,
    },
}

impl Initiator {
    pub fn name(&self, instance: InstanceId) -> String {
        match self {
            Self::Named(name) => name.clone(),
            Self::Of { iqn } => format!("{iqn}:{instance}"),
        }
    }

    /// As far as it is known of a state folder that may not be there yet.
    pub fn known(&self, instance: Option<InstanceId>) -> Option<String> {
        match (self, instance) {
            (Self::Named(name), _) => Some(name.clone()),
            (Self::Of { .. }, instance) => instance.map(|instance| self.name(instance)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub secret_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub place: Place,
    pub fencing: Fencing,
    /// Known to object_store by name; empty for a folder.
    pub options: Options,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: VolumeName,
    pub store: Store,
    /// At least twice the epoch.
    pub max_age: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Bytes of the pool of all volumes.
    pub size: u64,
    pub sync: SyncMode,
    /// The longest delay of a write while the log is getting full; none is no delay.
    pub throttle: Option<Duration>,
    pub when_marks_fail: WhenMarksFail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub epoch: Duration,
    /// Of reading each store for a first copy or a comparison.
    pub scan_rate: Rate,
    /// From one scheduled comparison to the next; none is never.
    pub scrub: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upload {
    pub rate: Rate,
    /// Requests at the same time.
    pub parallel: u32,
}

/// How much of the uplink may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    Unlimited,
    BytesPerSecond(u64),
}

impl Rate {
    /// Bytes per second; none where there is no limit.
    pub fn limit(self) -> Option<NonZeroU64> {
        match self {
            Self::Unlimited => None,
            Self::BytesPerSecond(rate) => NonZeroU64::new(rate),
        }
    }
}

/// The log is taken and freed in segments of this size.
pub const LOG_SEGMENT: u64 = 64 * MIB;
/// One is written, one uploaded, and two are between them while an upload is repeated.
pub const LOG_SEGMENTS_PER_VOLUME: u64 = 4;
/// More than any disk that a log would be put on; catches a slipped unit.
const LOG_SIZE_MAX: u64 = 64 * TIB;

/// Below, a delay is none; above, clients take the disk for dead.
const THROTTLE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(10));
/// Below, an epoch is over before its two puts are; above, more is lost with a site than asynchronous copying is for.
const EPOCH: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Below, the store is read all the time; above, nobody waits for it.
const SCRUB: (Duration, Duration) = (Duration::from_secs(3600), YEAR);
/// Catches a slipped unit.
const MAX_AGE_MAX: Duration = YEAR;
/// 365.25 days, which is what the unit `year` of a duration means.
const YEAR: Duration = Duration::from_secs(31_557_600);
/// More requests than that gain nothing against any store.
const PARALLEL: (u64, u64) = (1, 64);
/// Below, a heartbeat point and the retry of a small pack take longer than an epoch.
const RATE_MIN: u64 = 64 * KIB;
/// Smallest file that holds a block; a disk of less is of no use.
const CREATE_MIN: u64 = 64 * KIB;
/// Of the name of a target or an initiator, bytes (RFC 7143, 4.2.7.1).
const ISCSI_NAME_MAX: usize = 223;
/// 64 are for the colon and the volume, or the state folder's id.
const IQN_MAX: usize = ISCSI_NAME_MAX - 64;
/// No disk's logical block is larger than this.
const DIRECT_BLOCK_MAX: u64 = 4 * KIB;

/// Makes of what is written what the program uses. None is returned only with a problem reported.
pub fn check(written: written::Config, base: &Path, problems: &mut Vec<Problem>) -> Option<Config> {
    let mut check = Check { base, problems };
    let remote = check.remote(written.remote);
    let state = check.state(&written.top.state, remote.as_ref());
    let listen = check.listen(&written.listen);
    let iscsi = check.iscsi(&written.listen, &written.iscsi);
    let initiator = check.initiator(&written.iscsi);
    let snapshot = check.snapshot(&written.snapshot);
    let volumes = check.volumes(&written.volume, snapshot);
    let named = check.named_for_iscsi(&written.volume, iscsi.as_ref());
    let log = check.log(&written.log, written.volume.len());
    let upload = check.upload(&written.upload);
    named?;
    Some(Config {
        state: state?,
        listen: listen?,
        iscsi: iscsi?,
        initiator: initiator?,
        remote: remote?,
        volumes: volumes?,
        log: log?,
        snapshot: snapshot?,
        upload: upload?,
    })
}

struct Check<'a> {
    base: &'a Path,
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn report<T>(&mut self, problem: Problem) -> Option<T> {
        self.problems.push(problem);
        None
    }

    /// The value, or a report of what is wrong with it.
    fn value<T>(
        &mut self,
        section: &Section,
        key: &str,
        written: impl fmt::Display,
        value: Result<T, Fault>,
    ) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(fault) => self.report(section.problem_of(key, written, fault)),
        }
    }

    fn state(&mut self, written: &str, remote: Option<&Remote>) -> Option<PathBuf> {
        let state = join(self.base, written).and_then(|state| match remote.map(|remote| &remote.place) {
            Some(Place::Folder(folder)) if straightened(folder) == straightened(&state) => Err(Fault::StateIsRemote),
            _ => Ok(state),
        });
        self.value(&Section::Top, "state", format_args!("{written:?}"), state)
    }

    fn listen(&mut self, written: &written::Listen) -> Option<Vec<Listen>> {
        if written.nbd.as_slice().is_empty() && written.iscsi.as_slice().is_empty() {
            return self.missing(&Section::Listen, "nbd", "nbd = \"127.0.0.1:10809\"");
        }
        let base = self.base;
        self.addresses("nbd", written.nbd.as_slice(), &[], |text| Listen::parse(text, base))
    }

    /// No two are the same, nor the same as one of `others`.
    fn addresses(
        &mut self,
        key: &str,
        written: &[String],
        others: &[Listen],
        parse: impl Fn(&str) -> Result<Listen, Fault>,
    ) -> Option<Vec<Listen>> {
        let mut listen = Vec::new();
        for text in written {
            let address = parse(text).and_then(|address| {
                let twice = listen.contains(&address) || others.contains(&address);
                if twice { Err(Fault::AddressTwice) } else { Ok(address) }
            });
            listen.extend(self.value(&Section::Listen, key, format_args!("{text:?}"), address));
        }
        (listen.len() == written.len()).then_some(listen)
    }

    fn iscsi(&mut self, listen: &written::Listen, written: &written::Iscsi) -> Option<Option<Iscsi>> {
        let of_nbd: Vec<Listen> =
            listen.nbd.as_slice().iter().filter_map(|text| Listen::parse(text, self.base).ok()).collect();
        let base = self.base;
        let portals =
            self.addresses("iscsi", listen.iscsi.as_slice(), &of_nbd, |text| match Listen::parse(text, base) {
                Ok(address @ Listen::Tcp { .. }) => Ok(address),
                _ => Err(Fault::NotAPortal),
            });
        let iqn = if is_iqn(&written.iqn) { Ok(written.iqn.clone()) } else { Err(Fault::NotAnIqn { max: IQN_MAX }) };
        let iqn = self.value(&Section::Iscsi, "iqn", format_args!("{:?}", written.iqn), iqn);
        let chap = match &written.chap {
            Some(chap) => self.chap(&Section::Iscsi, chap).map(Some),
            None => Some(None),
        };
        // Unless what should listen is wrong itself, and said to be.
        if written.chap.is_some()
            && listen.iscsi.as_slice().is_empty()
            && !self.problems.iter().any(|problem| problem.section == Section::Listen)
        {
            return self.report(Section::Iscsi.problem("chap", Fault::ChapWithoutPortal));
        }
        let (listen, iqn, chap) = (portals?, iqn?, chap?);
        Some((!listen.is_empty()).then_some(Iscsi { listen, iqn, chap }))
    }

    fn initiator(&mut self, written: &written::Iscsi) -> Option<Initiator> {
        match &written.initiator {
            None => Some(Initiator::Of { iqn: written.iqn.clone() }),
            Some(name) if is_iscsi_name(name) => Some(Initiator::Named(name.clone())),
            Some(name) => {
                let fault = Fault::NotAnInitiator { max: ISCSI_NAME_MAX };
                self.report(Section::Iscsi.problem_of("initiator", format_args!("{name:?}"), fault))
            }
        }
    }

    /// A target is named after its volume, and iSCSI has no underscore (RFC 3722, 6.2).
    fn named_for_iscsi(&mut self, written: &[(Section, written::Volume)], iscsi: Option<&Option<Iscsi>>) -> Option<()> {
        if !matches!(iscsi, Some(Some(_))) {
            return Some(());
        }
        let names = written.iter().filter_map(|(section, volume)| Some((section, volume.name.as_ref()?)));
        let wrong: Vec<_> = names.filter(|(_, name)| name.contains('_')).collect();
        for (section, name) in &wrong {
            self.problems.push(section.problem_of("name", format_args!("{name:?}"), Fault::NameForIscsi));
        }
        wrong.is_empty().then_some(())
    }

    fn chap(&mut self, section: &Section, written: &written::Chap) -> Option<Chap> {
        let initiator = self.login(section, "user", &written.user, "secret_file", &written.secret_file);
        let target = match (&written.peer_user, &written.peer_secret_file) {
            (None, None) => Some(None),
            (Some(user), Some(file)) => self.login(section, "peer_user", user, "peer_secret_file", file).map(Some),
            (Some(_), None) => self.half(section, "peer_user", "peer_secret_file"),
            (None, Some(_)) => self.half(section, "peer_secret_file", "peer_user"),
        };
        let (initiator, target) = (initiator?, target?);
        if target.as_ref().is_some_and(|target| target.secret_file == initiator.secret_file) {
            return self.report(section.problem("chap.peer_secret_file", Fault::SameSecret));
        }
        Some(Chap { initiator, target })
    }

    fn half<T>(&mut self, section: &Section, key: &str, other: &'static str) -> Option<T> {
        self.report(section.problem(&format!("chap.{key}"), Fault::HalfOfMutual { other }))
    }

    fn login(&mut self, section: &Section, user_key: &str, user: &str, file_key: &str, file: &str) -> Option<Login> {
        let name = if user.is_empty() { Err(Fault::EmptyUser) } else { Ok(user.to_owned()) };
        let name = self.value(section, &format!("chap.{user_key}"), format_args!("{user:?}"), name);
        let path = join(self.base, file);
        let path = self.value(section, &format!("chap.{file_key}"), format_args!("{file:?}"), path);
        Some(Login { user: name?, secret_file: path? })
    }

    fn remote(&mut self, written: written::Remote) -> Option<Remote> {
        let Some(url) = written.url else {
            return self.missing(&Section::Remote, "url", "url = \"s3://bucket/prefix\"");
        };
        let place = Place::parse(&url, self.base);
        let place = self.value(&Section::Remote, "url", shown(&url), place)?;
        let mut right = true;
        for key in written.options.expose().keys() {
            if let Err(fault) = check_option(&place, key) {
                self.problems.push(Section::Options.problem(key, fault));
                right = false;
            }
        }
        right.then_some(Remote { place, fencing: written.fencing, options: written.options })
    }

    fn volumes(&mut self, written: &[(Section, written::Volume)], snapshot: Option<Snapshot>) -> Option<Vec<Volume>> {
        if written.is_empty() {
            if self.problems.iter().any(|problem| problem.fault == Fault::NotAList) {
                return None;
            }
            let missing = Fault::Missing { example: "[[volume]] with name = \"disk0\" and store = \"file:disk0.img\"" };
            return self.report(Section::Top.problem("[[volume]]", missing));
        }
        let mut names: Vec<(usize, VolumeName)> = Vec::new();
        let mut stores: Vec<(usize, Store)> = Vec::new();
        let mut volumes = Vec::new();
        for (index, (section, volume)) in written.iter().enumerate() {
            let (name, store) = (self.name(section, volume), self.store(section, volume));
            let max_age = self.max_age(section, &volume.max_age, snapshot);
            if let Some(name) = &name {
                if let Some((first, _)) = names.iter().find(|(_, other)| other == name) {
                    let twice = Fault::NameTwice { first: *first };
                    self.problems.push(section.problem_of("name", format_args!("{:?}", name.as_str()), twice));
                }
                names.push((index + 1, name.clone()));
            }
            if let Some(store) = &store {
                if let Some((first, _)) = stores.iter().find(|(_, other)| other.is_same(store)) {
                    let twice = Fault::StoreTwice { first: *first };
                    self.problems.push(section.problem_of("store", format_args!("\"{store}\""), twice));
                }
                stores.push((index + 1, store.clone()));
            }
            if let (Some(name), Some(store), Some(max_age)) = (name, store, max_age) {
                volumes.push(Volume { name, store, max_age });
            }
        }
        (volumes.len() == written.len()).then_some(volumes)
    }

    fn name(&mut self, section: &Section, volume: &written::Volume) -> Option<VolumeName> {
        match &volume.name {
            Some(name) => self.value(section, "name", format_args!("{name:?}"), name.parse().map_err(|_| Fault::Name)),
            None => self.missing(section, "name", "name = \"disk0\""),
        }
    }

    fn store(&mut self, section: &Section, volume: &written::Volume) -> Option<Store> {
        let Some(text) = &volume.store else {
            return self.missing(section, "store", "store = \"file:disk0.img\"");
        };
        let mut store = self.value(section, "store", shown(text), Store::parse(text, self.base))?;
        let kind = store.kind();
        match (&mut store, &volume.create) {
            (_, None) => {}
            (Store::File { create, .. }, Some(size)) => {
                let ragged = |size: u64| volume.direct && !size.is_multiple_of(DIRECT_BLOCK_MAX);
                let checked = bytes(size).and_then(|size| match size {
                    CREATE_MIN..=VOLUME_MAX if ragged(size) => Err(Fault::CreateRagged),
                    CREATE_MIN..=VOLUME_MAX => Ok(size),
                    _ => Err(Fault::BytesOutside { min: CREATE_MIN, max: VOLUME_MAX }),
                });
                *create = Some(self.value(section, "create", size, checked)?);
            }
            (_, Some(size)) => {
                return self.report(section.problem_of("create", size, Fault::CreateNotAFile { store: kind }));
            }
        }
        match &mut store {
            Store::File { direct, .. } | Store::Device { direct, .. } => *direct = volume.direct,
            Store::Nbd { .. } | Store::Iscsi { .. } if volume.direct => {
                return self.report(section.problem_of("direct", true, Fault::DirectNotLocal { store: kind }));
            }
            Store::Nbd { .. } | Store::Iscsi { .. } => {}
        }
        match (&mut store, &volume.chap) {
            (_, None) => {}
            (Store::Iscsi { chap, .. }, Some(written)) => *chap = Some(self.chap(section, written)?),
            (_, Some(_)) => return self.report(section.problem("chap", Fault::ChapNotIscsi { store: kind })),
        }
        Some(store)
    }

    fn max_age(&mut self, section: &Section, written: &written::Time, snapshot: Option<Snapshot>) -> Option<Duration> {
        let epoch = snapshot.map_or(Duration::ZERO, |snapshot| snapshot.epoch);
        let age = duration(written).and_then(|age| match age {
            _ if age < epoch * 2 => Err(Fault::AgeBelowEpoch { epoch }),
            _ if age > MAX_AGE_MAX => Err(Fault::DurationOutside { min: epoch * 2, max: MAX_AGE_MAX }),
            _ => Ok(age),
        });
        self.value(section, "max_age", format_args!("{:?}", written.as_str()), age)
    }

    fn log(&mut self, written: &written::Log, volumes: usize) -> Option<Log> {
        let per_volume = LOG_SEGMENTS_PER_VOLUME;
        let needed = LOG_SEGMENT * per_volume * volumes.max(1) as u64;
        let size = bytes(&written.size).and_then(|size| match size {
            _ if size < needed => Err(Fault::LogTooSmall { volumes, per_volume, segment: LOG_SEGMENT, needed }),
            _ if size > LOG_SIZE_MAX => Err(Fault::BytesOutside { min: needed, max: LOG_SIZE_MAX }),
            _ => Ok(size),
        });
        let size = self.value(&Section::Log, "size", &written.size, size);
        let (min, max) = THROTTLE;
        let throttle = duration(&written.throttle_max).and_then(|bound| {
            if (min..=max).contains(&bound) { Ok(bound) } else { Err(Fault::DurationOutside { min, max }) }
        });
        let shown = written.throttle_max.as_str();
        let throttle = self.value(&Section::Log, "throttle_max", format_args!("{shown:?}"), throttle)?;
        let throttle = (written.when_full == WhenFull::Throttle).then_some(throttle);
        Some(Log { size: size?, sync: written.sync, throttle, when_marks_fail: written.when_marks_fail })
    }

    fn snapshot(&mut self, written: &written::Snapshot) -> Option<Snapshot> {
        let (min, max) = EPOCH;
        let epoch = duration(&written.epoch).and_then(|epoch| {
            if (min..=max).contains(&epoch) { Ok(epoch) } else { Err(Fault::DurationOutside { min, max }) }
        });
        let shown = written.epoch.as_str();
        let epoch = self.value(&Section::Snapshot, "epoch", format_args!("{shown:?}"), epoch);
        let scan_rate = self.value(&Section::Snapshot, "scan_rate", &written.scan_rate, rate(&written.scan_rate));
        let (min, max) = SCRUB;
        let scrub = match written.scrub.as_str() {
            "never" => Ok(None),
            _ => duration(&written.scrub).and_then(|period| {
                if (min..=max).contains(&period) { Ok(Some(period)) } else { Err(Fault::DurationOutside { min, max }) }
            }),
        };
        let shown = written.scrub.as_str();
        let scrub = self.value(&Section::Snapshot, "scrub", format_args!("{shown:?}"), scrub);
        Some(Snapshot { epoch: epoch?, scan_rate: scan_rate?, scrub: scrub? })
    }

    fn upload(&mut self, written: &written::Upload) -> Option<Upload> {
        let rate = self.value(&Section::Upload, "rate", &written.rate, rate(&written.rate));
        let (min, max) = PARALLEL;
        let parallel = match u64::from(written.parallel) {
            number if (min..=max).contains(&number) => Ok(written.parallel),
            _ => Err(Fault::NumberOutside { min, max }),
        };
        let parallel = self.value(&Section::Upload, "parallel", written.parallel, parallel);
        Some(Upload { rate: rate?, parallel: parallel? })
    }

    fn missing<T>(&mut self, section: &Section, key: &str, example: &'static str) -> Option<T> {
        // What is there and of the wrong type was reported already.
        if self.problems.iter().any(|problem| problem.section == *section && problem.key == key) {
            return None;
        }
        self.report(section.problem(key, Fault::Missing { example }))
    }
}

/// RFC 7143, 4.2.7.5: the type, the month in which the domain was one's own, and the domain turned round.
fn is_iqn(text: &str) -> bool {
    let month = |text: &str| {
        let digits = |part: &str, count| part.len() == count && part.bytes().all(|digit| digit.is_ascii_digit());
        text.split_once('-').is_some_and(|(year, month)| {
            digits(year, 4) && digits(month, 2) && (1..=12).contains(&month.parse().unwrap_or(0))
        })
    };
    let named = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || matches!(letter, b'-' | b'.');
    text.len() <= IQN_MAX
        && text
            .strip_prefix("iqn.")
            .and_then(|rest| rest.split_once('.'))
            .is_some_and(|(date, domain)| month(date) && !domain.is_empty() && domain.bytes().all(named))
}

/// RFC 7143, 4.2.7: a name in its normal form, of any of the three types.
fn is_iscsi_name(text: &str) -> bool {
    let named = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || b"-.:".contains(&letter);
    let digits = |text: &str, lengths: &[usize]| {
        lengths.contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    let is_typed = match text.split_once('.') {
        Some(("iqn", _)) => is_iqn(text.split_once(':').map_or(text, |(iqn, _)| iqn)),
        Some(("eui", number)) => digits(number, &[16]),
        Some(("naa", number)) => digits(number, &[16, 32]),
        _ => false,
    };
    is_typed && text.len() <= ISCSI_NAME_MAX && text.bytes().all(named)
}

/// A URI as it is written, unless it may hold a password.
fn shown(uri: &str) -> String {
    if uri.contains('@') { "\"…\"".to_owned() } else { format!("{uri:?}") }
}

fn bytes(written: &written::Bytes) -> Result<u64, Fault> {
    match written {
        written::Bytes::Number(number) => Ok(*number),
        written::Bytes::Text(text) => {
            text.parse::<bytesize::ByteSize>().map(|size| size.0).map_err(|_| Fault::NotBytes)
        }
    }
}

fn duration(written: &written::Time) -> Result<Duration, Fault> {
    humantime::parse_duration(written.as_str()).map_err(|_| Fault::NotADuration)
}

fn rate(written: &written::Bytes) -> Result<Rate, Fault> {
    let number = match written {
        written::Bytes::Text(text) if text == "unlimited" => return Ok(Rate::Unlimited),
        written::Bytes::Text(text) => bytes(&text.strip_suffix("/s").unwrap_or(text).into())?,
        written::Bytes::Number(number) => *number,
    };
    if number < RATE_MIN { Err(Fault::RateTooLow { min: RATE_MIN }) } else { Ok(Rate::BytesPerSecond(number)) }
}

/// Object_store would pass over a name that it does not know, in silence.
fn check_option(place: &Place, key: &str) -> Result<(), Fault> {
    let lower = key.to_ascii_lowercase();
    let unknown = |provider| move |_: object_store::Error| Fault::UnknownOption { provider };
    let reserved = match place {
        Place::Folder(_) => return Err(Fault::OptionForFolder),
        Place::S3 { .. } => matches!(
            lower.parse().map_err(unknown("S3"))?,
            AmazonS3ConfigKey::Bucket | AmazonS3ConfigKey::ConditionalPut
        ),
        Place::Azure { .. } => matches!(lower.parse().map_err(unknown("Azure"))?, AzureConfigKey::ContainerName),
        Place::Gcs { .. } => matches!(lower.parse().map_err(unknown("GCS"))?, GoogleConfigKey::Bucket),
    };
    if reserved { Err(Fault::OptionReserved) } else { Ok(()) }
}
