//! From a URL to a store. Credentials come from the environment as object_store reads it (`AWS_…`, `AZURE_…`,
//! `GOOGLE_…`) and from options by object_store's names; options win. None of them is ever printed.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::SpawnedReqwestConnector;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};

use super::error::Cause;
use crate::task;

/// Why a remote could not be opened. Nothing was asked of the store yet.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "remote URL has {}; possible are file:FOLDER, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX and gs://BUCKET/PREFIX",
        scheme.as_ref().map_or("no scheme".to_owned(), |s| format!("the unknown scheme {s:?}"))
    )]
    UnknownScheme { scheme: Option<String> },
    #[error("remote URL {scheme}: lacks the name of a bucket, container or folder")]
    NoBucket { scheme: String },
    /// The URL itself is not shown: a password may stand in it.
    #[error(
        "remote URL {scheme}: no user, password, query or fragment may stand in it; set credentials by environment or options"
    )]
    Decorated { scheme: String },
    #[error("remote URL file: names the host {host:?}; write file:///path for an absolute path")]
    Host { host: String },
    #[error("remote URL {scheme}: the prefix is not a path of plain segments")]
    Prefix { scheme: String, source: Cause },
    #[error("the folder {} of the remote does not exist or cannot be read", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("the folder {} of the remote cannot be made", path.display())]
    MakeFolder { path: PathBuf, source: io::Error },
    #[error("{scheme}: has no option {key:?}")]
    UnknownOption { scheme: String, key: String },
    #[error("{scheme}://{bucket}: cannot be set up")]
    Setup { scheme: String, bucket: String, source: Cause },
}

pub(super) struct Opened {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    /// The URL in its plain form.
    pub(super) name: String,
    pub(super) folder: Option<Folder>,
}

/// The folder of a `file:` remote. Another one may come to stand in its place, or none: a filesystem that is unmounted
/// leaves the folder that it was mounted on.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    device: u64,
    inode: u64,
}

impl Folder {
    fn at(path: &FilePath) -> io::Result<Self> {
        let found = path.metadata()?;
        Ok(Self { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }

    pub(super) fn is_there(&self) -> bool {
        Self::at(&self.path).is_ok_and(|found| (found.device, found.inode) == (self.device, self.inode))
    }
}

/// Who asks of a remote.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// Waits for what it reads.
    Reader,
    /// Serves clients, who go first. A folder that is not there is made.
    Gateway,
}

/// How long a connection may take to be made. Given to the client, which knows the connection; object_store's other
/// time-outs are lifted, since ours depend on the length of what is sent.
const CONNECT_TIMEOUT: &str = "10s";
const REQUEST_TIMEOUT: &str = "30days";

pub(super) fn open(url: &str, options: &BTreeMap<String, String>, caller: Caller) -> Result<Opened, OpenError> {
    let Some((scheme, rest)) = url.split_once(':') else { return Err(OpenError::UnknownScheme { scheme: None }) };
    let scheme = scheme.to_ascii_lowercase();
    match scheme.as_str() {
        "file" => folder(rest, options, caller),
        "memory" => {
            Ok(Opened { store: Arc::new(InMemory::new()), prefix: Path::ROOT, name: "memory:".into(), folder: None })
        }
        "s3" | "az" | "gs" => bucket(scheme, rest, options, caller),
        _ => Err(OpenError::UnknownScheme { scheme: Some(scheme) }),
    }
}

fn folder(rest: &str, options: &BTreeMap<String, String>, caller: Caller) -> Result<Opened, OpenError> {
    if let Some(key) = options.keys().next() {
        return Err(OpenError::UnknownOption { scheme: "file".into(), key: key.clone() });
    }
    let path = match rest.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => absolute,
        Some(other) => {
            return Err(OpenError::Host { host: other.split('/').next().unwrap_or_default().into() });
        }
        None => rest,
    };
    if path.is_empty() {
        return Err(OpenError::NoBucket { scheme: "file".into() });
    }
    let path = FilePath::new(path);
    if caller == Caller::Gateway {
        make_folder(path).map_err(|source| OpenError::MakeFolder { path: path.into(), source })?;
    }
    let unreadable = |source| OpenError::Folder { path: path.into(), source };
    let whole = path.canonicalize().map_err(unreadable)?;
    if !whole.is_dir() {
        return Err(unreadable(io::ErrorKind::NotADirectory.into()));
    }
    let folder = Folder::at(&whole).map_err(unreadable)?;
    let store = LocalFileSystem::new_with_prefix(&whole).map_err(|error| OpenError::Setup {
        scheme: "file".into(),
        bucket: whole.display().to_string(),
        source: Cause::of(&error),
    })?;
    let name = format!("file:{}", path.display());
    Ok(Opened { store: Arc::new(store.with_fsync(true)), prefix: Path::ROOT, name, folder: Some(folder) })
}

/// The folder and those above it, durably: object_store makes durable only what is inside.
fn make_folder(path: &FilePath) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => FilePath::new("."),
    };
    make_folder(parent)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    std::fs::File::open(parent)?.sync_all()
}

fn bucket(scheme: String, rest: &str, options: &BTreeMap<String, String>, caller: Caller) -> Result<Opened, OpenError> {
    let Some(rest) = rest.strip_prefix("//") else { return Err(OpenError::NoBucket { scheme }) };
    if rest.contains(['@', '?', '#']) {
        return Err(OpenError::Decorated { scheme });
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(OpenError::NoBucket { scheme });
    }
    let prefix =
        Path::parse(prefix).map_err(|error| OpenError::Prefix { scheme: scheme.clone(), source: Cause::of(&error) })?;
    let name = match prefix.as_ref() {
        "" => format!("{scheme}://{bucket}"),
        prefix => format!("{scheme}://{bucket}/{prefix}"),
    };
    let store = match scheme.as_str() {
        "s3" => s3(bucket, options, caller)?,
        "az" => azure(bucket, options, caller)?,
        _ => gcs(bucket, options, caller)?,
    };
    Ok(Opened { store, prefix, name, folder: None })
}

/// We retry ourselves: by our deadlines, and knowing what an answer that was lost means.
fn no_retry() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// A builder of object_store, set up: the three have the same methods and no common trait.
macro_rules! set_up {
    ($scheme:literal, $bucket:ident, $options:ident, $caller:ident, $builder:expr, $key:ident) => {{
        let mut builder = $builder.with_config($key::Client(ClientConfigKey::ConnectTimeout), CONNECT_TIMEOUT);
        for (key, value) in $options {
            let parsed: $key = key
                .to_ascii_lowercase()
                .parse()
                .map_err(|_| OpenError::UnknownOption { scheme: $scheme.into(), key: key.clone() })?;
            builder = builder.with_config(parsed, value);
        }
        // Connections, with their TLS, belong to the runtime that makes them.
        if let (Caller::Gateway, Some(patient)) = ($caller, task::patient()) {
            builder = builder.with_http_connector(SpawnedReqwestConnector::new(patient.clone()));
        }
        let store = builder
            .with_config($key::Client(ClientConfigKey::Timeout), REQUEST_TIMEOUT)
            .with_retry(no_retry())
            .build()
            .map_err(|error| OpenError::Setup {
                scheme: $scheme.into(),
                bucket: $bucket.into(),
                source: Cause::of(&error),
            })?;
        Ok(Arc::new(store))
    }};
}

type Store = Result<Arc<dyn ObjectStore>, OpenError>;

fn s3(bucket: &str, options: &BTreeMap<String, String>, caller: Caller) -> Store {
    set_up!("s3", bucket, options, caller, AmazonS3Builder::from_env().with_bucket_name(bucket), AmazonS3ConfigKey)
}

fn azure(bucket: &str, options: &BTreeMap<String, String>, caller: Caller) -> Store {
    set_up!(
        "az",
        bucket,
        options,
        caller,
        MicrosoftAzureBuilder::from_env().with_container_name(bucket),
        AzureConfigKey
    )
}

fn gcs(bucket: &str, options: &BTreeMap<String, String>, caller: Caller) -> Store {
    set_up!(
        "gs",
        bucket,
        options,
        caller,
        GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket),
        GoogleConfigKey
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str) -> OpenError {
        match open(url, &BTreeMap::new(), Caller::Reader) {
            Ok(opened) => panic!("{} was opened", opened.name),
            Err(error) => error,
        }
    }

    #[test]
    fn a_wrong_url_is_refused_by_what_is_wrong_with_it() {
        assert!(matches!(error("umbra-remote"), OpenError::UnknownScheme { scheme: None }));
        assert!(matches!(error("ftp://host/x"), OpenError::UnknownScheme { scheme: Some(s) } if s == "ftp"));
        assert!(error("ftp://host/x").to_string().contains("gs://BUCKET"));
        assert!(matches!(error("s3:///prefix"), OpenError::NoBucket { .. }));
        assert!(matches!(error("s3:bucket"), OpenError::NoBucket { .. }));
        assert!(matches!(error("file:"), OpenError::NoBucket { .. }));
        assert!(matches!(error("file://host/path"), OpenError::Host { host } if host == "host"));
        assert!(matches!(error("s3://bucket/a//b"), OpenError::Prefix { .. }));
        assert!(matches!(error("file:/nowhere/at/all"), OpenError::Folder { .. }));
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        let error = error("s3://key:s3cr3t@bucket/prefix");
        assert!(matches!(error, OpenError::Decorated { .. }));
        assert!(!format!("{error} {error:?}").contains("s3cr3t"));
    }

    #[test]
    fn an_unknown_option_is_named_without_its_value() {
        let options = BTreeMap::from([("secret_acess_key".to_owned(), "s3cr3t".to_owned())]);
        let Err(error) = open("s3://bucket", &options, Caller::Reader) else { panic!("opened") };
        assert!(matches!(&error, OpenError::UnknownOption { key, .. } if key == "secret_acess_key"));
        assert!(!format!("{error} {error:?}").contains("s3cr3t"));
    }

    #[test]
    fn buckets_are_opened_with_options_by_object_stores_names() {
        let options = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let s3 = options(&[
            ("AWS_REGION", "eu-central-1"),
            ("access_key_id", "a"),
            ("secret_access_key", "s3cr3t"),
            ("timeout", "1s"),
        ]);
        let opened = open("s3://bucket/a/b/", &s3, Caller::Reader).unwrap();
        assert_eq!(opened.name, "s3://bucket/a/b");
        assert_eq!(opened.prefix.as_ref(), "a/b");
        let azure = options(&[("account_name", "a"), ("access_key", "c2VjcmV0")]);
        assert_eq!(open("az://box", &azure, Caller::Reader).unwrap().name, "az://box");
    }

    #[test]
    fn a_folder_is_made_only_for_whoever_writes() {
        let temp = tempfile::tempdir().unwrap();
        let url = format!("file:{}/a/b", temp.path().display());
        assert!(matches!(error(&url), OpenError::Folder { .. }));
        open(&url, &BTreeMap::new(), Caller::Gateway).unwrap();
        open(&url.replace("file:", "file://"), &BTreeMap::new(), Caller::Reader).unwrap();
    }
}
