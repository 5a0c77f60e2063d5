//! Where things are: addresses to listen on, local stores, remotes. Text in, types out; nothing is looked at.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use url::Url;

use super::checked::Chap;
use super::problem::{Fault, NbdUriFault};
use crate::iscsi::initiator;
use crate::nbd::{Uri, UriError};

/// Where clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A name or an address; an IPv6 address stands without brackets.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

/// `sun_path` of unix(7), without the zero at its end.
const SOCKET_PATH_MAX: usize = 107;

impl Listen {
    /// `HOST:PORT` or `unix:PATH`, the path relative to `base`.
    pub fn parse(text: &str, base: &Path) -> Result<Self, Fault> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = join(base, path)?;
            if path.as_os_str().len() > SOCKET_PATH_MAX {
                return Err(Fault::SocketPathTooLong { max: SOCKET_PATH_MAX });
            }
            return Ok(Self::Unix(path));
        }
        let (host, port) = text.rsplit_once(':').ok_or(Fault::NotAnAddress)?;
        let port = port.parse().map_err(|_| Fault::NotAnAddress)?;
        let host = match host.strip_prefix('[') {
            Some(v6) => {
                let v6 = v6.strip_suffix(']').filter(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok());
                v6.ok_or(Fault::NotAnAddress)?
            }
            // More colons are an IPv6 address without its brackets, whose end nobody can tell from a port.
            None if host.is_empty() || host.contains([':', '/', '*', ' ']) => return Err(Fault::NotAnAddress),
            None => host,
        };
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

/// As it is written in the configuration.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A local store. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    File {
        path: PathBuf,
        /// Bytes of the file to be made if there is none.
        create: Option<u64>,
        direct: bool,
    },
    Device {
        path: PathBuf,
        direct: bool,
    },
    /// An NBD URI (NetworkBlockDevice/nbd, doc/uri.md), without a user and without TLS.
    Nbd {
        uri: String,
    },
    /// A LUN of an array, and what is proven to it.
    Iscsi {
        url: initiator::Url,
        chap: Option<Chap>,
    },
}

impl Store {
    /// `file:PATH` (relative to `base`), the absolute path of a device, an NBD URI, or the URL of a LUN.
    pub fn parse(text: &str, base: &Path) -> Result<Self, Fault> {
        if let Some(path) = text.strip_prefix("file:") {
            return Ok(Self::File { path: join(base, file_path(path))?, create: None, direct: false });
        }
        if text.starts_with('/') {
            return Ok(Self::Device { path: text.into(), direct: false });
        }
        if text.starts_with("nbd") && text.contains(':') {
            let uri = nbd_uri(text, base).and_then(understood);
            return uri.map(|uri| Self::Nbd { uri }).map_err(|reason| Fault::NbdUri { reason });
        }
        if text.starts_with("iscsi:") {
            let url = text.parse().map_err(|reason| Fault::IscsiUrl { reason })?;
            return Ok(Self::Iscsi { url, chap: None });
        }
        if text.is_empty() || text.contains("://") {
            return Err(Fault::NotAStore);
        }
        Err(Fault::StoreWithoutKind { path: text.to_owned() })
    }

    /// The kind of store, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File { .. } => "a file",
            Self::Device { .. } => "a device",
            Self::Nbd { .. } => "an NBD export",
            Self::Iscsi { .. } => "an iSCSI LUN",
        }
    }

    /// Whether what it was asked for may still happen when the connection to it is gone.
    pub fn is_networked(&self) -> bool {
        matches!(self, Self::Nbd { .. } | Self::Iscsi { .. })
    }

    /// Whether both are, as far as the text tells, the same disk.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            // A target is called so wherever it is reached (RFC 7143, 4.2.7), and case does not count.
            (Self::Iscsi { url: a, .. }, Self::Iscsi { url: b, .. }) => {
                a.lun == b.lun && a.target.eq_ignore_ascii_case(&b.target)
            }
            _ => match (self.path(), other.path()) {
                (Some(a), Some(b)) => straightened(a) == straightened(b),
                (None, None) => self == other,
                _ => false,
            },
        }
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } | Self::Device { path, .. } => Some(path),
            Self::Nbd { .. } | Self::Iscsi { .. } => None,
        }
    }
}

/// As it is written in the configuration.
impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } => write!(f, "file:{}", path.display()),
            Self::Device { path, .. } => path.display().fmt(f),
            Self::Nbd { uri } => uri.fmt(f),
            Self::Iscsi { url, .. } => url.fmt(f),
        }
    }
}

/// Where recovery points are kept. A prefix has no slash at its ends and may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Absolute.
    Folder(PathBuf),
    S3 {
        bucket: String,
        prefix: String,
    },
    Azure {
        container: String,
        prefix: String,
    },
    Gcs {
        bucket: String,
        prefix: String,
    },
}

impl Place {
    /// `file:FOLDER` (relative to `base`), `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `gs://BUCKET/PREFIX`.
    pub fn parse(text: &str, base: &Path) -> Result<Self, Fault> {
        if let Some(path) = text.strip_prefix("file:") {
            return Ok(Self::Folder(join(base, file_path(path))?));
        }
        let url = Url::parse(text).map_err(|_| Fault::NotARemote)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Fault::CredentialsInUrl);
        }
        let bucket = url.host_str().filter(|host| !host.is_empty()).ok_or(Fault::NotARemote)?.to_owned();
        let prefix = url.path().trim_matches('/').to_owned();
        let plain = url.port().is_none() && url.query().is_none() && url.fragment().is_none();
        if !plain || prefix.contains("//") {
            return Err(Fault::NotARemote);
        }
        match url.scheme() {
            "s3" => Ok(Self::S3 { bucket, prefix }),
            "az" => Ok(Self::Azure { container: bucket, prefix }),
            "gs" => Ok(Self::Gcs { bucket, prefix }),
            _ => Err(Fault::NotARemote),
        }
    }
}

/// As it is written in the configuration; paths absolute.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, bucket, prefix) = match self {
            Self::Folder(path) => return write!(f, "file:{}", path.display()),
            Self::S3 { bucket, prefix } => ("s3", bucket, prefix),
            Self::Azure { container, prefix } => ("az", container, prefix),
            Self::Gcs { bucket, prefix } => ("gs", bucket, prefix),
        };
        write!(f, "{scheme}://{bucket}{}{prefix}", if prefix.is_empty() { "" } else { "/" })
    }
}

/// What follows `file:`; `file:///path` is the same as `file:/path`.
fn file_path(text: &str) -> &str {
    text.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(text)
}

/// The path relative to `base`, where it is relative.
pub(super) fn join(base: &Path, path: &str) -> Result<PathBuf, Fault> {
    if path.is_empty() || path.contains('\0') { Err(Fault::EmptyPath) } else { Ok(base.join(path)) }
}

/// Without `.` and `..`, for comparing only: where links are, it may name another.
pub(super) fn straightened(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut straight, component| {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                straight.pop();
            }
            other => straight.push(other),
        }
        straight
    })
}

/// The URI, with the path of its socket made absolute.
fn nbd_uri(text: &str, base: &Path) -> Result<String, NbdUriFault> {
    let url = Url::parse(text).map_err(|_| NbdUriFault::Syntax)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(NbdUriFault::User);
    }
    let host = url.host_str().filter(|host| !host.is_empty());
    match url.scheme() {
        "nbd" if host.is_none() => Err(NbdUriFault::NoHost),
        "nbd" if url.query().is_some() || url.fragment().is_some() => Err(NbdUriFault::Parameter),
        "nbd" => Ok(url.into()),
        "nbd+unix" if host.is_some() => Err(NbdUriFault::Host),
        "nbd+unix" => {
            let query = url.query().ok_or(NbdUriFault::NoSocket)?;
            let socket = query.strip_prefix("socket=").ok_or(NbdUriFault::NoSocket)?;
            match socket {
                "" => Err(NbdUriFault::NoSocket),
                _ if socket.contains('&') || url.fragment().is_some() => Err(NbdUriFault::Parameter),
                _ if socket.starts_with('/') || socket.to_ascii_lowercase().starts_with("%2f") => Ok(url.into()),
                // Still encoded, as it was written, behind the folder, which is encoded here.
                _ => {
                    let mut absolute = url.clone();
                    absolute.set_query(Some(&format!("socket={}/{socket}", percent_encoded(base))));
                    Ok(absolute.into())
                }
            }
        }
        "nbds" | "nbds+unix" => Err(NbdUriFault::Tls),
        _ => Err(NbdUriFault::Syntax),
    }
}

/// The URI, if the client that will open it can read it: an encoding that is wrong is none of `Url`'s business.
fn understood(uri: String) -> Result<String, NbdUriFault> {
    match uri.parse::<Uri>() {
        Ok(_) => Ok(uri),
        Err(UriError::Encoding { .. }) => Err(NbdUriFault::Encoding),
        Err(UriError::NameTooLong(_)) => Err(NbdUriFault::NameTooLong),
        Err(_) => Err(NbdUriFault::Syntax),
    }
}

/// RFC 3986, section 2.1: all but unreserved characters and the slash.
fn percent_encoded(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}
