//! A configuration file that says anything.

use std::path::Path;

use toml::Value;

use crate::config::{self, Config, ConfigError, Listen, Place, Store};
use crate::nbd::Uri;

/// Text with this in it is taken for a secret where it is an option of the remote.
const SECRET: &str = "Xs3cr3tX";

pub(super) fn config(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let base = Path::new("/folder of/config");
    let parsed = config::parse(text, base);
    match &parsed {
        Ok(config) => accepted(config, base),
        Err(error) => refused(error, text),
    }
    parsed.is_ok()
}

/// What is accepted can be written down and read again, and used by whoever it is for.
fn accepted(config: &Config, base: &Path) {
    assert!(config.state.is_absolute());
    for listen in &config.listen {
        assert_eq!(Listen::parse(&listen.to_string(), base).as_ref(), Ok(listen));
    }
    let place = &config.remote.place;
    assert_eq!(Place::parse(&place.to_string(), base).as_ref(), Ok(place));
    for volume in &config.volumes {
        match &volume.store {
            Store::Nbd { uri } => {
                let ours: Uri = uri.parse().unwrap_or_else(|error| panic!("{uri} is accepted, yet {error}"));
                assert_eq!(ours.to_string().parse(), Ok(ours));
            }
            Store::Iscsi { url, .. } => assert_eq!(url.to_string().parse().as_ref(), Ok(url)),
            Store::File { path, .. } | Store::Device { path, .. } => assert!(path.is_absolute()),
        }
    }
    assert!(!format!("{config:?}").contains(SECRET) || uses(config), "a secret is shown");
}

/// Whether the word stands where it is no secret.
fn uses(config: &Config) -> bool {
    let Config { state, listen, remote, volumes, .. } = config;
    format!("{state:?} {listen:?} {:?} {:?} {volumes:?}", remote.place, remote.options.expose().keys()).contains(SECRET)
}

/// The message says something, and no secret.
fn refused(error: &ConfigError, text: &str) {
    let message = error.to_string();
    assert!(!message.is_empty());
    if let (ConfigError::Invalid { problems, .. }, Ok(table)) = (error, text.parse::<toml::Table>()) {
        assert!(!problems.is_empty());
        let options = table.get("remote").and_then(|remote| remote.get("options")).and_then(Value::as_table);
        let secret = |value: &Value| value.as_str().is_some_and(|text| text.contains(SECRET));
        let secrets = options.map_or(0, |options| options.values().filter(|value| secret(value)).count());
        // Elsewhere it is no secret and may be shown.
        if secrets > 0 && mentions(&Value::Table(table.clone())) == secrets {
            assert!(!message.contains(SECRET), "a secret is shown: {message}");
        }
    }
}

/// How many keys and texts hold the word.
fn mentions(value: &Value) -> usize {
    match value {
        Value::String(text) => usize::from(text.contains(SECRET)),
        Value::Array(values) => values.iter().map(mentions).sum(),
        Value::Table(table) => {
            table.iter().map(|(key, value)| usize::from(key.contains(SECRET)) + mentions(value)).sum()
        }
        _ => 0,
    }
}
