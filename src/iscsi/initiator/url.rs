//! Which logical unit of which target: `iscsi://HOST[:PORT]/IQN/LUN`, as libiscsi and qemu write it.

use std::fmt;
use std::str::FromStr;

/// RFC 7143, 4.2.7.1; of names of initiators and of targets, bytes.
const NAME_MAX: usize = 223;
/// IANA's; RFC 7143, 14.
const DEFAULT_PORT: u16 = 3260;
/// What flat space addressing reaches (SAM-5, 4.7.7.3).
pub const LUN_MAX: u16 = 0x3fff;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// An IPv6 address stands without brackets.
    pub host: String,
    pub port: u16,
    /// The target's iSCSI name.
    pub target: String,
    pub lun: u16,
}

/// What is wrong with a URL. None of it shows what stands before an `@`, which may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("{0:?} is not an iSCSI URL: write iscsi://HOST[:PORT]/IQN/LUN")]
    NotIscsi(String),
    #[error(
        "{0}: a user or a password does not belong into the URL, which is shown and logged; \
         name the user and the file of its secret in the configuration"
    )]
    Credentials(String),
    #[error("{0}: the host is missing; write iscsi://HOST[:PORT]/IQN/LUN")]
    NoHost(String),
    #[error("{url}: {host:?} is not a host; write a name or an address, an IPv6 address in brackets")]
    Host { url: String, host: String },
    #[error("{url}: {port:?} is not a port; write a number from 1 to 65535, or leave it out for {DEFAULT_PORT}")]
    Port { url: String, port: String },
    #[error(
        "{url}: {name:?} is not the name of a target; write it as the target has it, beginning with iqn., eui. or naa., \
         in at most {NAME_MAX} bytes"
    )]
    Target { url: String, name: String },
    #[error("{url}: {lun:?} is not a LUN; write a number from 0 to {LUN_MAX} behind the target's name")]
    Lun { url: String, lun: String },
    #[error("{url}: {parameters:?} is not supported; leave out what stands behind the LUN")]
    Parameters { url: String, parameters: String },
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let Some((scheme, rest)) = text.split_once("://") else { return Err(UrlError::NotIscsi(hidden(text))) };
        // A password may hold a slash: what is shown begins behind the last @ whatever it belongs to.
        let (before, shown) = rest.rsplit_once('@').map_or((None, rest), |(before, shown)| (Some(before), shown));
        if scheme != "iscsi" {
            return Err(UrlError::NotIscsi(format!("{scheme}://{shown}")));
        }
        let url = || format!("iscsi://{shown}");
        if before.is_some() {
            return Err(UrlError::Credentials(url()));
        }
        let (rest, parameters) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        if !parameters.is_empty() {
            return Err(UrlError::Parameters { url: url(), parameters: parameters.to_owned() });
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = authority_of(authority, &url)?;
        let (name, lun) = path.split_once('/').unwrap_or((path, ""));
        if !is_name(name) {
            return Err(UrlError::Target { url: url(), name: name.to_owned() });
        }
        let number = Some(lun).filter(|lun| !lun.is_empty() && lun.bytes().all(|digit| digit.is_ascii_digit()));
        let number = number.and_then(|lun| lun.parse().ok()).filter(|lun| *lun <= LUN_MAX);
        let lun = number.ok_or_else(|| UrlError::Lun { url: url(), lun: lun.to_owned() })?;
        Ok(Self { host, port, target: name.to_owned(), lun })
    }
}

fn hidden(text: &str) -> String {
    text.rsplit_once('@').map_or(text, |(_, shown)| shown).to_owned()
}

/// RFC 7143, 4.2.7.1 to 4.2.7.4: letters, digits and a few signs, of any script.
pub fn is_name(name: &str) -> bool {
    let prefix = name.get(..4).unwrap_or_default();
    name.len() > prefix.len()
        && name.len() <= NAME_MAX
        && ["iqn.", "eui.", "naa."].iter().any(|known| known.eq_ignore_ascii_case(prefix))
        && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | ':' | '_'))
}

/// Host and port, the default one where there is none.
pub fn authority(text: &str) -> Option<(String, u16)> {
    authority_of(text, &String::new).ok()
}

fn authority_of(text: &str, url: &impl Fn() -> String) -> Result<(String, u16), UrlError> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = match bracketed {
        Some(both) => both,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    if host.is_empty() {
        return Err(UrlError::NoHost(url()));
    }
    let allowed =
        |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_') || bracketed.is_some() && ":%".contains(c);
    // A name in brackets would lose them when it is shown.
    if !host.chars().all(allowed) || bracketed.is_some() && !host.contains(':') {
        return Err(UrlError::Host { url: url(), host: text.to_owned() });
    }
    let wrong = |port: &str| UrlError::Port { url: url(), port: port.to_owned() };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => DEFAULT_PORT,
        None => return Err(wrong(port)),
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong(digits))?
        }
        Some(other) => return Err(wrong(other)),
    };
    Ok((host.to_owned(), port))
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, target, lun } = self;
        if host.contains(':') {
            write!(f, "iscsi://[{host}]:{port}/{target}/{lun}")
        } else {
            write!(f, "iscsi://{host}:{port}/{target}/{lun}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_as_it_is_written() {
        for (text, host, port, lun, shown) in [
            ("iscsi://array/iqn.2026-11.io.umbra:a/0", "array", 3260, 0, "iscsi://array:3260/iqn.2026-11.io.umbra:a/0"),
            (
                "iscsi://10.0.0.1:860/iqn.2026-11.io.umbra:a/7",
                "10.0.0.1",
                860,
                7,
                "iscsi://10.0.0.1:860/iqn.2026-11.io.umbra:a/7",
            ),
            (
                "iscsi://[fe80::1]:1/iqn.2026-11.io.umbra:a/16383",
                "fe80::1",
                1,
                16383,
                "iscsi://[fe80::1]:1/iqn.2026-11.io.umbra:a/16383",
            ),
        ] {
            let url: Url = text.parse().unwrap();
            let target = "iqn.2026-11.io.umbra:a".to_owned();
            assert_eq!(url, Url { host: host.into(), port, target, lun });
            assert_eq!(url.to_string(), shown);
            assert_eq!(shown.parse::<Url>().unwrap(), url);
        }
    }

    #[test]
    fn what_is_wrong_with_a_url_is_told() {
        let error = |text: &str| text.parse::<Url>().unwrap_err();
        assert!(matches!(error("nbd://h/iqn.a/0"), UrlError::NotIscsi(_)));
        assert!(matches!(error("iqn.a"), UrlError::NotIscsi(_)));
        assert!(matches!(error("iscsi:///iqn.a/0"), UrlError::NoHost(_)));
        assert!(matches!(error("iscsi://h h/iqn.a/0"), UrlError::Host { .. }));
        assert!(matches!(error("iscsi://[h]/iqn.a/0"), UrlError::Host { .. }));
        for port in ["0", "65536", "", "+1", "x"] {
            assert!(matches!(error(&format!("iscsi://h:{port}/iqn.a/0")), UrlError::Port { .. }), "{port}");
        }
        for name in ["", "iqn.", "disk", "iqn.a b", &format!("iqn.{}", "a".repeat(220))] {
            assert!(matches!(error(&format!("iscsi://h/{name}/0")), UrlError::Target { .. }), "{name}");
        }
        for lun in ["", "16384", "-1", "+1", "0/1", "a"] {
            assert!(matches!(error(&format!("iscsi://h/iqn.a/{lun}")), UrlError::Lun { .. }), "{lun}");
        }
        assert!(matches!(error("iscsi://h/iqn.a/0?header_digest=crc32c"), UrlError::Parameters { .. }));
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_shown() {
        for text in
            ["iscsi://alice%s3cr3t@h/iqn.a/0", "iscsi://alice:s3cr/3t@h/iqn.a/0", "alice%s3cr3t@h", "x://a%s3cr3t@h"]
        {
            let error = text.parse::<Url>().unwrap_err();
            assert!(!error.to_string().contains("s3cr") && !error.to_string().contains("3t@"), "{error}");
        }
        assert!(matches!("iscsi://a%b@h/iqn.a/0".parse::<Url>(), Err(UrlError::Credentials(_))));
    }
}
