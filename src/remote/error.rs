//! What can go wrong at the object store, by what a caller can do about it.
//!
//! No secret is ever in one of these: what object_store says of a failure is kept as text from which query strings
//! (pre-signed URLs, SAS tokens) and all of an XML body but its code and message (some servers echo the request's
//! headers, session tokens included) were taken out. That is why the original error is not kept as a source.

use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};

/// What was asked of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Get,
    Put,
    Head,
    List,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Head => "look for",
            Self::List => "list",
        })
    }
}

/// What the store or the way to it said, without secrets.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct Cause {
    text: String,
    /// HTTP status, where the store answered with one.
    pub status: Option<u16>,
}

/// Why an operation did not succeed. `key` is relative to the remote's prefix.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error("{operation} {key}: no such object")]
    NotFound { operation: Operation, key: String },
    #[error("{operation} {key}: access denied; check the credentials, their expiry, the clock and the bucket's policy")]
    Denied { operation: Operation, key: String, source: Cause },
    #[error("{operation} {key}: the store cannot be reached")]
    Unreachable { operation: Operation, key: String, source: Cause },
    /// The store says that it cannot do it now (5xx, throttling).
    #[error("{operation} {key}: the store failed")]
    Failed { operation: Operation, key: String, source: Cause },
    #[error("{operation} {key}: not done after {after:?}")]
    TimedOut { operation: Operation, key: String, after: Duration },
    /// Of a `file:` remote.
    #[error(
        "{operation} {key}: {} is not the folder that was opened (unmounted? moved?); have it back in its place, or \
         restart if what is there now is the remote",
        path.display()
    )]
    Replaced { operation: Operation, key: String, path: PathBuf },
    /// Fewer or other bytes than were asked for.
    #[error("{operation} {key}: expected {expected} bytes, got {got}, or those of another range")]
    Corrupt { operation: Operation, key: String, expected: u64, got: u64 },
    /// A body's bytes, or a listing's names.
    #[error("{operation} {key}: {length}, more than the {limit} that are read at once")]
    TooLarge { operation: Operation, key: String, length: u64, limit: u64 },
    /// The store will not do it however often it is asked: wrong bucket, wrong region, malformed request.
    #[error("{operation} {key}: the store refuses")]
    Refused { operation: Operation, key: String, source: Cause },
    #[error("{operation} {key}: the store does not know how")]
    Unsupported { operation: Operation, key: String, source: Cause },
}

impl RemoteError {
    /// Whether the same operation may succeed if it is tried again.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Failed { .. }
                | Self::TimedOut { .. }
                | Self::Replaced { .. }
                | Self::Corrupt { .. }
        )
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The error with all that is beneath it, on one line.
    pub fn with_causes(&self) -> String {
        match self.source() {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }

    pub(super) fn from_store(operation: Operation, key: &str, error: object_store::Error) -> Self {
        use object_store::Error;
        let key = key.to_owned();
        let source = Cause::of(&error);
        match error {
            // A bucket that does not exist must not pass for an object that does not: a chain would seem empty.
            Error::NotFound { .. } if operation == Operation::Put || source.names_a_missing_bucket() => {
                Self::Refused { operation, key, source }
            }
            Error::NotFound { .. } => Self::NotFound { operation, key },
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Self::Denied { operation, key, source },
            Error::NotSupported { .. } | Error::NotImplemented { .. } => Self::Unsupported { operation, key, source },
            Error::InvalidPath { .. } | Error::UnknownConfigurationKey { .. } | Error::Precondition { .. } => {
                Self::Refused { operation, key, source }
            }
            other => match class(&other, &source) {
                Class::Denied => Self::Denied { operation, key, source },
                Class::Unreachable => Self::Unreachable { operation, key, source },
                Class::Failed => Self::Failed { operation, key, source },
                Class::Refused => Self::Refused { operation, key, source },
                Class::Unsupported => Self::Unsupported { operation, key, source },
            },
        }
    }
}

enum Class {
    Denied,
    Unreachable,
    Failed,
    Refused,
    Unsupported,
}

/// Sorts what object_store calls generic.
fn class(error: &object_store::Error, cause: &Cause) -> Class {
    match cause.status {
        // S3 answers 400 where a request was cut off or its session token has just expired: both pass.
        Some(400) if cause.text.contains("RequestTimeout") || cause.text.contains("IncompleteBody") => Class::Failed,
        Some(408 | 409 | 425 | 429) => Class::Failed,
        Some(401 | 403) => Class::Denied,
        Some(405 | 501) => Class::Unsupported,
        Some(300..=499) => Class::Refused,
        Some(_) => Class::Failed,
        None => match below::<std::io::Error>(error).map(std::io::Error::kind) {
            Some(std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem) => Class::Denied,
            _ if cause.text.contains("Wanted range starting at") => Class::Refused,
            _ => match below::<HttpError>(error).map(HttpError::kind) {
                Some(HttpErrorKind::Decode) | None => Class::Failed,
                Some(_) => Class::Unreachable,
            },
        },
    }
}

/// The first error of type `E` in the chain of causes.
fn below<'e, E: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// object_store's words for a status; its type for it is private.
const STATUS_WORDS: &str = "status code: ";
/// Longer texts say nothing more.
const TEXT_MAX: usize = 400;

impl Cause {
    pub(super) fn of(error: &(dyn StdError + 'static)) -> Self {
        let mut text = error.to_string();
        // What the deepest cause says is often all that helps ("connection refused"), and not always repeated above.
        let mut next = error.source();
        while let Some(error) = next {
            let words = error.to_string();
            if !text.contains(&words) {
                text.push_str(": ");
                text.push_str(&words);
            }
            next = error.source();
        }
        let status =
            text.split_once(STATUS_WORDS).and_then(|(_, rest)| rest.get(..3)).and_then(|digits| digits.parse().ok());
        Self { text: redacted(&text), status }
    }

    fn names_a_missing_bucket(&self) -> bool {
        ["NoSuchBucket", "ContainerNotFound", "specified bucket does not exist"].iter().any(|w| self.text.contains(w))
    }
}

/// The text without anything that may be a secret: see the module.
fn redacted(text: &str) -> String {
    let text = match text.find('<') {
        Some(body) => {
            let said = [element(text, "Code"), element(text, "Message")];
            let said: Vec<_> = said.into_iter().flatten().collect();
            format!("{}{}", &text[..body], said.join(": "))
        }
        None => text.to_owned(),
    };
    let mut clean = String::with_capacity(text.len());
    let mut in_query = false;
    for c in text.split_whitespace().flat_map(|word| word.chars().chain([' '])) {
        match c {
            '?' => in_query = true,
            ' ' if in_query => {
                in_query = false;
                clean.push('…');
            }
            _ => {}
        }
        if !in_query {
            clean.push(c);
        }
    }
    let clean = clean.trim_end();
    match clean.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}…", &clean[..end]),
        None => clean.to_owned(),
    }
}

/// What stands in the first `<name>` element.
fn element<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn a_session_token_that_the_server_echoes_is_not_in_the_error() {
        let error = generic(
            "Error performing PUT https://b.example/k?X-Amz-Signature=s3cr3t in 3ms - Server returned non-2xx status \
             code: 403 Forbidden: <?xml?><Error><Code>SignatureDoesNotMatch</Code><Message>Check your key</Message>\
             <CanonicalRequest>PUT x-amz-security-token:s3cr3t</CanonicalRequest></Error>",
        );
        let error = RemoteError::from_store(Operation::Put, "k", error);
        assert!(matches!(error, RemoteError::Denied { .. }), "{error:?}");
        let all = format!("{error:?} {}", error.with_causes());
        assert!(!all.contains("s3cr3t"), "{all}");
        assert!(all.contains("SignatureDoesNotMatch: Check your key"), "{all}");
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_object() {
        let missing = |body: &str| object_store::Error::NotFound { path: "k".into(), source: body.into() };
        let error = RemoteError::from_store(Operation::Get, "k", missing("<Code>NoSuchBucket</Code>"));
        assert!(matches!(error, RemoteError::Refused { .. }), "{error:?}");
        let error = RemoteError::from_store(Operation::Get, "k", missing("<Code>NoSuchKey</Code>"));
        assert!(error.is_not_found(), "{error:?}");
    }

    #[test]
    fn only_what_may_pass_is_transient() {
        for (status, transient) in [(500, true), (503, true), (429, true), (400, false), (301, false), (403, false)] {
            let error = generic(&format!("Server returned non-2xx status code: {status} X: "));
            let error = RemoteError::from_store(Operation::Put, "k", error);
            assert_eq!(error.is_transient(), transient, "{error:?}");
        }
    }
}
