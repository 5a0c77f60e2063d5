//! What may be written into a configuration file: every key, its default, its unit and what it costs.
//!
//! Strict: an unknown key is a problem, as is a value of the wrong type. A key that is wrong is reported and taken as
//! not written, so that one look at the messages shows all that is wrong with the file.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Visitor};
use toml::{Table, Value};

use super::problem::{Fault, Problem, Section};

/// The whole file.
#[derive(Debug)]
pub struct Config {
    pub top: Top,
    pub listen: Listen,
    pub iscsi: Iscsi,
    pub remote: Remote,
    pub volume: Vec<(Section, Volume)>,
    pub log: Log,
    pub snapshot: Snapshot,
    pub upload: Upload,
}

/// Keys in front of all sections.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Top {
    /// Folder for the log, the marks, metadata and the control socket; default `umbra-state`. Created with mode 0700:
    /// the log holds customer data in clear. Costs `log.size` of space; writes are as fast as this disk at best.
    pub state: String,
}

impl Default for Top {
    fn default() -> Self {
        Self { state: "umbra-state".to_owned() }
    }
}

/// `[listen]`: nothing listens on anything else.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// `HOST:PORT` or `unix:PATH`, or a list of them; this or `iscsi` is required. Whoever reaches it can read and write
    /// all volumes, for NBD has no passwords: keep it on the loopback, a unix socket or a network of your own.
    pub nbd: OneOrMany,
    /// `HOST:PORT`, or a list of them: portals, behind each of which all volumes are targets. Data is not encrypted; see
    /// `[iscsi]` for who is let in.
    pub iscsi: OneOrMany,
}

/// `[iscsi]`: the targets of `[listen] iscsi`, and as whom we log in to arrays.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Iscsi {
    /// What the names of all targets begin with; default `iqn.2026-11.io.umbra`. The name of a volume's target is this, a
    /// colon, and the volume's name. Initiators know a disk by it: do not change it under them.
    pub iqn: String,
    /// Who is let in; default whoever reaches a portal. See [`Chap`].
    pub chap: Option<Chap>,
    /// Our name as an initiator, of `iscsi://` stores; default `iqn`, a colon, and an id that the state folder drew.
    /// Access lists of arrays go by it: the default is another after the state folder was lost.
    pub initiator: Option<String>,
}

impl Default for Iscsi {
    fn default() -> Self {
        Self { iqn: "iqn.2026-11.io.umbra".to_owned(), chap: None, initiator: None }
    }
}

/// `chap = { user = "…", secret_file = "…" }`: proof by a secret of 12 bytes or more, without saying it. Whose proof the
/// first two are: the initiator's, which is the client's in `[iscsi]`, and ours in `[[volume]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chap {
    /// Name that the initiator has to give.
    pub user: String,
    /// File with its secret, and nothing else but a newline at its end. Nobody else should be able to read it.
    pub secret_file: String,
    /// Name that the target has to give in its turn, where that is asked of it (mutual CHAP); default none.
    pub peer_user: Option<String>,
    /// File with the secret that belongs to it; another than the first.
    pub peer_secret_file: Option<String>,
}

/// `[remote]`: where recovery points go.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Remote {
    /// `file:FOLDER`, `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `gs://BUCKET/PREFIX`; required. Credentials come
    /// from the environment or `options`, as object_store reads them; listing, overwriting and deleting need not be
    /// allowed.
    pub url: Option<String>,
    /// What keeps a second gateway from publishing: `conditional-put` (default; costs nothing, checked at start), or
    /// `none` for object stores that ignore conditions. Then nothing but care prevents two writers.
    pub fencing: Fencing,
    /// Settings of object_store by name (`aws_endpoint`, `aws_region`, `azure_storage_account_name` …); default none.
    /// They come after the environment and win over it.
    pub options: Options,
}

/// `[[volume]]`: one for each disk.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Volume {
    /// Name of the NBD export, and of the volume in the remote; required. 1 to 63 of `a-z 0-9 - _ .`.
    pub name: Option<String>,
    /// The local store; required. `file:PATH`, `/dev/…`, `nbd://HOST:PORT/EXPORT`, `nbd+unix:///EXPORT?socket=PATH` or
    /// `iscsi://HOST:PORT/TARGET/LUN`.
    pub store: Option<String>,
    /// What is proven to the array, and it to us, for `iscsi://` only; default nothing. See [`Chap`].
    pub chap: Option<Chap>,
    /// Bytes, for files only: make the file, sparse, if it is absent; default: it must be there.
    pub create: Option<Bytes>,
    /// Past the page cache (`O_DIRECT`), for files and devices; default false. Costs the cache: every read goes to the
    /// disk, and clients must respect its block size. Spares memory where clients cache for themselves.
    pub direct: bool,
    /// Alarm when the oldest write that is not in a recovery point is older; default 60s. Costs nothing.
    pub max_age: Time,
}

impl Default for Volume {
    fn default() -> Self {
        Self { name: None, store: None, chap: None, create: None, direct: false, max_age: "60s".into() }
    }
}

/// `[log]`: the write log, shared by all volumes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Bytes of the state folder's disk, taken at once and never grown; default 8GiB. Holds what is not yet uploaded:
    /// write rate × the longest outage of the uplink to be bridged. When it is full, shadowing pauses and the volume is
    /// compared afterwards.
    pub size: Bytes,
    /// `background` (default): synced every 100–250 ms, no client waits. `flush`: a client's flush waits for the log
    /// too, so that the log survives the store's death to the last flush; costs one sync of the log's disk per flush.
    pub sync: SyncMode,
    /// What becomes of clients as the log fills up. `overflow` (default): nothing; a full log pauses shadowing, and what
    /// changes meanwhile is compared afterwards. `throttle`: from half full on their writes are delayed, the more the
    /// fuller, so that the uplink may keep up.
    pub when_full: WhenFull,
    /// The longest delay of one write by `throttle`, 1ms to 10s; default 500ms. It is what clients pay for a slow uplink.
    pub throttle_max: Time,
    /// What becomes of writes to regions that cannot be marked, since the state folder's disk fails or does not answer
    /// for 2 s. `forward` (default): they go on; nothing is published until the marks can be written, and the volume is
    /// compared in full. `refuse`: they fail with EIO until then, for those who would rather stop than be unprotected.
    pub when_marks_fail: WhenMarksFail,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            size: "8GiB".into(),
            sync: SyncMode::Background,
            when_full: WhenFull::Overflow,
            throttle_max: "500ms".into(),
            when_marks_fail: WhenMarksFail::Forward,
        }
    }
}

/// `[snapshot]`: recovery points.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Snapshot {
    /// Time between recovery points while there are writes, 1s to 60s; default 5s. What a lost site loses, and two put
    /// requests per volume each: at 5s under load all day, about $5 a month.
    pub epoch: Time,
    /// Bytes per second that the first copy, or a comparison, reads of each store, or `unlimited` (default: as fast as
    /// the store and the uplink allow). Lower leaves the disk to the clients, and takes longer.
    pub scan_rate: Bytes,
    /// Compare each store with its copy once in so long, 1h to 1year, spread evenly over it; or `never` (default). Finds
    /// what was written past the gateway or read wrongly, reports and repairs it. Costs one reading of each store, 64 MiB
    /// of memory, and small requests for indexes: of a busy volume about a million a month, $0.4.
    pub scrub: Time,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { epoch: "5s".into(), scan_rate: "unlimited".into(), scrub: "never".into() }
    }
}

/// `[upload]`: how much of the uplink may be used.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upload {
    /// Bytes per second for all volumes together, or `unlimited` (default). Below the rate of writing the log fills.
    pub rate: Bytes,
    /// Requests at the same time, 1 to 64; default 8. Large ones wait for memory as well: four of 64 MiB at a time.
    pub parallel: u32,
}

impl Default for Upload {
    fn default() -> Self {
        Self { rate: "unlimited".into(), parallel: 8 }
    }
}

/// What keeps an older writer from publishing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fencing {
    #[default]
    ConditionalPut,
    None,
}

/// When the log is synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncMode {
    #[default]
    Background,
    Flush,
}

/// What becomes of clients as the log fills up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    #[default]
    Overflow,
    Throttle,
}

/// What becomes of writes to regions that cannot be marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenMarksFail {
    #[default]
    Forward,
    Refuse,
}

/// Settings of object_store by name. Values may be secrets and are not shown.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// With the values, for the object store and nobody else.
    pub fn expose(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A number of bytes as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected bytes: text like \"1GiB\", or a whole number")]
pub enum Bytes {
    Number(u64),
    Text(String),
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// A duration as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a duration with its unit, as text: \"5s\"")]
pub enum Time {
    Text(String),
}

impl Time {
    pub fn as_str(&self) -> &str {
        let Self::Text(text) = self;
        text
    }
}

impl From<&str> for Time {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// One text or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected text, or a list of texts")]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl Default for OneOrMany {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// Names of the sections, as they are written.
const SECTIONS: [&str; 7] = ["listen", "iscsi", "remote", "volume", "log", "snapshot", "upload"];

impl Config {
    /// Takes what is right from the table, and reports the rest.
    pub fn take(mut table: Table, problems: &mut Vec<Problem>) -> Self {
        let mut section = |name: &str| table.remove(name);
        let listen = take(section("listen"), &Section::Listen, problems);
        let iscsi = take(section("iscsi"), &Section::Iscsi, problems);
        let remote = remote(section("remote"), problems);
        let volume = volumes(section("volume"), problems);
        let log = take(section("log"), &Section::Log, problems);
        let snapshot = take(section("snapshot"), &Section::Snapshot, problems);
        let upload = take(section("upload"), &Section::Upload, problems);
        let top = take(Some(Value::Table(table)), &Section::Top, problems);
        Self { top, listen, iscsi, remote, volume, log, snapshot, upload }
    }
}

fn volumes(value: Option<Value>, problems: &mut Vec<Problem>) -> Vec<(Section, Volume)> {
    let list = match value {
        None => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(_) => {
            problems.push(Section::Top.problem("volume", Fault::NotAList));
            Vec::new()
        }
    };
    let volumes = list.into_iter().enumerate().map(|(index, value)| {
        let name = value.get("name").and_then(Value::as_str).map(str::to_owned);
        let section = Section::Volume { number: index + 1, name };
        let volume = take(Some(value), &section, problems);
        (section, volume)
    });
    volumes.collect()
}

fn remote(mut value: Option<Value>, problems: &mut Vec<Problem>) -> Remote {
    if let Some(Value::Table(options)) = value.as_mut().and_then(|value| value.get_mut("options")) {
        options.retain(|key, value| {
            if !value.is_str() {
                problems.push(Section::Options.problem(key, Fault::OptionNotText));
            }
            value.is_str()
        });
    }
    take(value, &Section::Remote, problems)
}

/// Key by key, so that one wrong value hides no other.
fn take<T: DeserializeOwned + Default>(value: Option<Value>, section: &Section, problems: &mut Vec<Problem>) -> T {
    let table = match value {
        None => return T::default(),
        Some(Value::Table(table)) => table,
        Some(_) => {
            problems.push(section.problem("", Fault::NotATable));
            return T::default();
        }
    };
    let known = keys::<T>();
    let mut right = Table::new();
    for (key, value) in table {
        if !known.contains(&key.as_str()) {
            let nearest = match section {
                Section::Top => nearest(&key, known.iter().chain(&SECTIONS)),
                _ => nearest(&key, known),
            };
            problems.push(section.problem(&key, Fault::UnknownKey { nearest, known }));
            continue;
        }
        let alone = Table::from_iter([(key.clone(), value.clone())]);
        match T::deserialize(alone) {
            Ok(_) => {
                right.insert(key, value);
            }
            // What stands there may be the secret itself, and serde would repeat it.
            Err(_) if key == "chap" && !is_texts(&value) => problems.push(section.problem(&key, Fault::NotChap)),
            Err(error) => {
                let fault = Fault::Type { message: error.message().trim().to_owned() };
                problems.push(section.problem(&key, fault));
            }
        }
    }
    // Each key was right by itself, and the keys of a section do not depend on each other here.
    T::deserialize(right).unwrap_or_default()
}

fn is_texts(value: &Value) -> bool {
    value.as_table().is_some_and(|table| table.values().all(Value::is_str))
}

/// The keys of a section, as serde knows them.
pub fn keys<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Keys<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for Keys<'_> {
        type Error = serde::de::value::Error;
        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(serde::de::Error::custom("only structs have keys"))
        }
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut keys: &'static [&'static str] = &[];
    // The answer is always the error above; what was wanted is what came on the way.
    let _ = T::deserialize(Keys(&mut keys));
    keys
}

/// The known key that was probably meant.
fn nearest<'a>(key: &str, known: impl IntoIterator<Item = &'a &'static str>) -> Option<&'static str> {
    let near = known.into_iter().map(|known| (distance(key, known), *known));
    near.min().filter(|(distance, known)| *distance <= known.len().div_ceil(3)).map(|(_, known)| known)
}

/// Letters to be put in, taken out or changed to make one of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
