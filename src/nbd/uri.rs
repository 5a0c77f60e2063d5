//! NBD URIs (NetworkBlockDevice/nbd, doc/uri.md): `nbd://host[:port]/export` and `nbd+unix:///export?socket=PATH`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::wire::{DEFAULT_PORT, STRING_MAX};

/// Which export of which server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    pub server: ServerAddress,
    /// May be empty: the server's default export.
    pub export: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    /// An IPv6 address stands without brackets.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error("{0:?} is not an NBD URI: write nbd://host:port/export or nbd+unix:///export?socket=PATH")]
    NotNbd(String),
    #[error("{0}: NBD over TLS is not supported; write nbd or nbd+unix, and protect the connection by other means")]
    Tls(String),
    #[error("{0}: the host is missing; write nbd://host:port/export")]
    NoHost(String),
    #[error("{uri}: {port:?} is not a port; write a number from 1 to 65535, or leave it out for {DEFAULT_PORT}")]
    Port { uri: String, port: String },
    #[error("{0}: a unix socket has no host; write three slashes: nbd+unix:///export?socket=PATH")]
    HostOfSocket(String),
    #[error("{0}: the path of the socket is missing; write nbd+unix:///export?socket=PATH")]
    NoSocket(String),
    #[error("{uri}: parameter {name:?} is not supported; only socket is")]
    Parameter { uri: String, name: String },
    #[error("{uri}: {part:?} is not percent-encoded UTF-8")]
    Encoding { uri: String, part: String },
    #[error("{0}: the name of the export is longer than {STRING_MAX} bytes")]
    NameTooLong(String),
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| UriError::NotNbd(text.to_owned()))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // A user may stand in front of the host, and is nobody's business in a log.
        let (_, host_and_port) = authority.rsplit_once('@').unwrap_or(("", authority));
        // Nor is a parameter, which may name a secret's place.
        let uri = || format!("{scheme}://{host_and_port}/{path}");
        let decode =
            |part: &str| percent_decode(part).ok_or_else(|| UriError::Encoding { uri: uri(), part: part.to_owned() });
        match scheme {
            "nbd" | "nbd+unix" => {}
            "nbds" | "nbds+unix" | "nbds+vsock" => return Err(UriError::Tls(uri())),
            _ => return Err(UriError::NotNbd(uri())),
        }
        let mut socket = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("socket", path) if scheme == "nbd+unix" => socket = Some(decode(path)?),
                (name, _) => return Err(UriError::Parameter { uri: uri(), name: name.to_owned() }),
            }
        }
        let server = match socket {
            _ if scheme == "nbd" => tcp(host_and_port, &uri, decode)?,
            _ if !host_and_port.is_empty() => return Err(UriError::HostOfSocket(uri())),
            Some(path) if !path.is_empty() => ServerAddress::Unix(path.into()),
            _ => return Err(UriError::NoSocket(uri())),
        };
        let export = decode(path)?;
        if export.len() > STRING_MAX {
            return Err(UriError::NameTooLong(uri().chars().take(80).collect()));
        }
        Ok(Self { server, export })
    }
}

fn tcp(
    host_and_port: &str,
    uri: &impl Fn() -> String,
    decode: impl Fn(&str) -> Result<String, UriError>,
) -> Result<ServerAddress, UriError> {
    let bracketed = host_and_port.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = match bracketed {
        Some((host, rest)) => (host, rest),
        None => host_and_port.split_at(host_and_port.find(':').unwrap_or(host_and_port.len())),
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => DEFAULT_PORT,
        Some("") => DEFAULT_PORT,
        Some(digits) => digits
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| UriError::Port { uri: uri(), port: digits.to_owned() })?,
        None => return Err(UriError::Port { uri: uri(), port: port.to_owned() }),
    };
    match decode(host)? {
        host if host.is_empty() => Err(UriError::NoHost(uri())),
        host => Ok(ServerAddress::Tcp { host, port }),
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = percent_encode(&self.export);
        match &self.server {
            ServerAddress::Tcp { host, port } if host.contains(':') => write!(f, "nbd://[{host}]:{port}/{export}"),
            ServerAddress::Tcp { host, port } => write!(f, "nbd://{}:{port}/{export}", percent_encode(host)),
            ServerAddress::Unix(path) => write!(f, "nbd+unix:///{export}?socket={}", encode_path(path)),
        }
    }
}

fn encode_path(path: &Path) -> String {
    percent_encode(&path.to_string_lossy())
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Leaves what RFC 3986 calls unreserved, and slashes, which a path and a query may hold.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16, export: &str) -> Uri {
        Uri { server: ServerAddress::Tcp { host: host.into(), port }, export: export.into() }
    }

    #[test]
    fn a_uri_names_server_and_export() {
        for (text, expected) in [
            ("nbd://localhost", tcp("localhost", 10809, "")),
            ("nbd://localhost/", tcp("localhost", 10809, "")),
            ("nbd://10.0.0.1:99/disk0", tcp("10.0.0.1", 99, "disk0")),
            ("nbd://[::1]:99/a/b%20c", tcp("::1", 99, "a/b c")),
            ("nbd://[::1]/x", tcp("::1", 10809, "x")),
            ("nbd://alice:secret@host/x", tcp("host", 10809, "x")),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        let unix = "nbd+unix:///disk?socket=/tmp/a%20b+c.sock".parse::<Uri>().unwrap();
        assert_eq!(unix, Uri { server: ServerAddress::Unix("/tmp/a b+c.sock".into()), export: "disk".into() });
    }

    #[test]
    fn a_refusal_says_what_to_write() {
        for (text, part) in [
            ("/dev/sda", "nbd://host:port/export"),
            ("http://host/", "nbd://host:port/export"),
            ("nbds://host/x", "TLS is not supported"),
            ("nbd:///x", "the host is missing"),
            ("nbd://host:0/x", "\"0\" is not a port"),
            ("nbd://host:70000/x", "\"70000\" is not a port"),
            ("nbd://[::1]99/x", "\"99\" is not a port"),
            ("nbd+unix://host/x?socket=/s", "three slashes"),
            ("nbd+unix:///x", "socket=PATH"),
            ("nbd://h/x?socket=/s", "\"socket\" is not supported"),
            ("nbd://h/%zz", "percent-encoded"),
            ("nbd://h/%ff", "percent-encoded"),
        ] {
            let error = text.parse::<Uri>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn no_message_repeats_a_password_or_a_parameter() {
        for text in ["nbd://alice:secret@:1/x", "nbd://h/x?tls-psk-file=secret", "nbd://alice:secret@h:x/"] {
            assert!(!text.parse::<Uri>().unwrap_err().to_string().contains("secret"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_uri_prints_as_it_is_read(host in "[a-z0-9.-]{1,20}|::[0-9a-f]{1,4}", port in 1u16.., export in ".{0,20}") {
            let uri = Uri { server: ServerAddress::Tcp { host, port }, export };
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
        }
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}", scheme in "(nbd|nbd\\+unix)://") {
            let _ = text.parse::<Uri>();
            let _ = (scheme + &text).parse::<Uri>();
        }
    }
}
