//! Where recovery points are read from and which one is meant: `--remote`, `--volume`, `--at`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::failure::Failure;
use super::output::human_duration;
use crate::chain::{At, ChainError, ChainReader, Chosen};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::format::names::VolumeName;
use crate::remote::{Limits, OpenError, Remote, RemoteError};
use crate::units::{EntryNumber, Sequence, Timestamp, human_bytes};

#[derive(Clone, Debug, Args)]
pub struct SourceArgs {
    /// file:FOLDER, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX; credentials are taken from the
    /// environment (AWS_…, AZURE_…, GOOGLE_…).
    #[arg(long, value_name = "URL")]
    pub remote: String,
    /// A setting of the object store's client by its name, as in endpoint=http://127.0.0.1:9000; may be given again.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_option)]
    pub remote_option: Vec<RemoteOption>,
}

/// As [`SourceArgs`], or what a gateway's configuration says.
#[derive(Clone, Debug, Args)]
pub struct VerifySource {
    /// file:FOLDER, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX; credentials are taken from the
    /// environment (AWS_…, AZURE_…, GOOGLE_…).
    #[arg(long, value_name = "URL", required_unless_present = "config")]
    pub remote: Option<String>,
    /// A setting of the object store's client by its name, as in endpoint=http://127.0.0.1:9000; may be given again.
    #[arg(long, value_name = "KEY=VALUE", requires = "remote", value_parser = parse_option)]
    pub remote_option: Vec<RemoteOption>,
    /// The configuration file of the gateway (TOML), which names the remote and the volume's store.
    #[arg(long, value_name = "FILE", conflicts_with = "remote")]
    pub config: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct PointArgs {
    /// Name of the volume.
    #[arg(long, value_name = "NAME", value_parser = parse_volume)]
    pub volume: VolumeName,
    /// latest, the number of a recovery point, or a time (RFC 3339): the last second not after it.
    #[arg(long, value_name = "POINT", default_value = "latest", value_parser = parse_at)]
    pub at: At,
}

/// One `--remote-option`. The value may be a secret, and is not printed.
#[derive(Clone)]
pub struct RemoteOption {
    key: String,
    value: String,
}

impl fmt::Debug for RemoteOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteOption({}=…)", self.key)
    }
}

fn parse_option(text: &str) -> Result<RemoteOption, &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(RemoteOption { key: key.to_owned(), value: value.to_owned() }),
        _ => Err("write it as KEY=VALUE"),
    }
}

pub fn parse_volume(text: &str) -> Result<VolumeName, &'static str> {
    text.parse().map_err(|_| "a name has up to 63 of a-z, 0-9, '.', '_' and '-', and begins with a letter or digit")
}

fn parse_at(text: &str) -> Result<At, &'static str> {
    if text == "latest" {
        return Ok(At::Latest);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse() {
            Ok(number) if number > 0 => Ok(At::Number(EntryNumber(number))),
            _ => Err("points are numbered from 1 on"),
        };
    }
    parse_time(text).map(At::Time).ok_or("write latest, a number, or a time like 2026-11-22T17:41:03Z")
}

/// RFC 3339, with `Z`, an offset or (then UTC) nothing at its end.
fn parse_time(text: &str) -> Option<Timestamp> {
    if let Some(time) = Timestamp::parse(text) {
        return Some(time);
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub("+00:00".len())?)?;
    let east = match offset.as_bytes()[0] {
        b'+' => true,
        b'-' => false,
        _ => return None,
    };
    let (hours, minutes) = offset[1..].split_once(':')?;
    let field = |digits: &str, max: u64| {
        let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?;
        number.filter(|number: &u64| digits.len() == 2 && *number <= max)
    };
    let offset = Duration::from_secs(field(hours, 23)? * 3600 + field(minutes, 59)? * 60).as_millis() as u64;
    let local = Timestamp::parse(local)?.0;
    let utc = if east { local.checked_sub(offset) } else { local.checked_add(offset) };
    utc.map(Timestamp)
}

impl SourceArgs {
    pub fn open(&self) -> Result<Remote, Failure> {
        open(&self.remote, &options(&self.remote_option))
    }
}

impl VerifySource {
    /// The remote, and the configuration where one is named.
    pub fn open(&self) -> Result<(Remote, Option<Config>), Failure> {
        if let Some(remote) = &self.remote {
            return Ok((open(remote, &options(&self.remote_option))?, None));
        }
        let file = self.config.clone().unwrap_or_default();
        let on = file.display().to_string();
        let config = config::load(&file).map_err(|error| Failure::new("read", on).because(&error))?;
        let remote = open(&config.remote.place.to_string(), config.remote.options.expose())?;
        Ok((remote, Some(config)))
    }
}

fn options(written: &[RemoteOption]) -> BTreeMap<String, String> {
    written.iter().map(|option| (option.key.clone(), option.value.clone())).collect()
}

fn open(url: &str, options: &BTreeMap<String, String>) -> Result<Remote, Failure> {
    Remote::open(url, options, Limits::default()).map_err(|error| {
        let failure = Failure::new("open the remote", "").because(&error);
        match error {
            OpenError::Folder { .. } => failure.remedy("name the folder that the gateway's [remote] url names"),
            OpenError::MakeFolder { .. } => failure,
            OpenError::Setup { .. } => failure.remedy("check the credentials in the environment"),
            OpenError::UnknownScheme { .. }
            | OpenError::NoBucket { .. }
            | OpenError::Decorated { .. }
            | OpenError::Host { .. }
            | OpenError::Prefix { .. }
            | OpenError::UnknownOption { .. } => failure.wrong_usage(),
        }
    })
}

/// A recovery point that was chosen, as it is told to a person.
pub struct Point {
    pub chain: ChainReader,
    pub chosen: Chosen,
    /// How old it was when it was chosen.
    pub age: Duration,
}

impl PointArgs {
    pub async fn choose(&self, remote: &Remote) -> Result<Point, Failure> {
        let failed = |error| chain_failure("find a recovery point of", self.volume.as_str(), &error);
        let chain = ChainReader::open(remote, &self.volume).await.map_err(failed)?;
        let chosen = chain.find(self.at).await.map_err(failed)?;
        let age = Clock::system().now().since(chosen.time);
        Ok(Point { chain, chosen, age })
    }
}

impl Point {
    pub fn sequence(&self) -> Sequence {
        let entry = &self.chosen.entry;
        self.chosen.slice.and_then(|slice| entry.slices.get(slice)).map_or(entry.sequence, |slice| slice.sequence)
    }

    pub fn size(&self) -> u64 {
        self.chosen.entry.size
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, time) = (self.chosen.entry.number, self.chosen.time);
        let (age, size) = (human_duration(self.age), human_bytes(self.size()));
        write!(f, "point {number} of {time} ({age} old), sequence {}, {size}", self.sequence())
    }
}

/// What a person is told when the chain cannot be read as wanted.
pub fn chain_failure(what: &str, on: &str, error: &ChainError) -> Failure {
    let failure = Failure::new(what, on).because(error);
    match error {
        ChainError::Remote(remote) => failure.remedy(remote_remedy(remote)),
        ChainError::NoVolume { .. } => failure.remedy("`umbra points --remote URL` lists the volumes that are there"),
        ChainError::NoEntry { .. } | ChainError::NotAPoint { .. } | ChainError::TooEarly { .. } => {
            failure.remedy("`umbra points` lists what can be restored")
        }
        ChainError::NoPoint { .. } => failure.remedy("let the gateway finish its first copy"),
        ChainError::NoVolumeObject { .. } => failure.remedy("check that the bucket was copied whole"),
        ChainError::Format { .. } => {
            failure.remedy("use a version of umbra as new as the gateway's; if it is, choose another point")
        }
    }
}

/// What to do about a remote that does not do what it should.
pub fn remote_remedy(error: &RemoteError) -> &'static str {
    match error {
        RemoteError::Denied { .. } => "check credentials and rights: reading needs GET, and LIST without --volume",
        RemoteError::Unreachable { .. } => "check the network and the endpoint, and try again",
        RemoteError::NotFound { .. } => "check the prefix of --remote, and that nothing deletes objects in the bucket",
        RemoteError::Replaced { .. } => "have the remote's folder in its place, and try again",
        RemoteError::Refused { .. } | RemoteError::Unsupported { .. } => {
            "check the bucket, its region and its endpoint"
        }
        RemoteError::Corrupt { .. } | RemoteError::TooLarge { .. } => "choose another point, and check the bucket",
        RemoteError::Failed { .. } | RemoteError::TimedOut { .. } => "try again when the object store answers",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_named_by_word_number_or_time() {
        assert_eq!(parse_at("latest"), Ok(At::Latest));
        assert_eq!(parse_at("17"), Ok(At::Number(EntryNumber(17))));
        let noon = At::Time(Timestamp::parse("2026-11-22T12:00:00Z").unwrap());
        for same in ["2026-11-22T12:00:00Z", "2026-11-22 12:00:00", "2026-11-22T13:30:00+01:30"] {
            assert_eq!(parse_at(same), Ok(noon), "{same}");
        }
        assert_eq!(parse_at("2026-11-22T07:00:00-05:00"), Ok(noon));
        for wrong in ["", "0", "-1", "newest", "99999999999999999999", "2026-11-22T12:00:00+1:00", "é+01:00"] {
            assert!(parse_at(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_value_of_an_option_is_not_printed() {
        let option = parse_option("secret_access_key=hunter2=").unwrap();
        assert_eq!(option.value, "hunter2=");
        assert!(!format!("{option:?}").contains("hunter2"));
        assert!(parse_option("hunter2").is_err());
    }
}
