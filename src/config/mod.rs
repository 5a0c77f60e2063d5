//! The configuration file, in two stages: what may be written ([`written`]), and what the program uses ([`checked`]).
//!
//! Owns: reading, strictness, defaults, limits, and messages that name section, key and remedy, all of them at once.
//! Does not own: whether a store, a remote or an address exists; nothing but the file itself is looked at.
//! Values of `[remote.options]` may be secrets: no message and no `Debug` shows them.

pub mod checked;
pub mod place;
pub mod problem;
pub mod written;

use std::path::{Path, PathBuf};

pub use self::checked::{Chap, Config, Initiator, Iscsi, Log, Login, Rate, Remote, Snapshot, Upload, Volume};
pub use self::place::{Listen, Place, Store};
pub use self::problem::{Fault, Problem, Section};
pub use self::written::{Fencing, Options, SyncMode, WhenFull, WhenMarksFail};

/// Why there is no configuration to be had.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}", file.display())]
    Read { file: PathBuf, source: std::io::Error },
    /// The line itself is not shown: it may hold a secret.
    #[error("{}, line {line}, column {column}: {message}", file.display())]
    Syntax { file: PathBuf, line: usize, column: usize, message: String },
    #[error("{}: {}", file.display(), problem::list(problems))]
    Invalid { file: PathBuf, problems: Vec<Problem> },
}

/// Reads and checks a configuration file. Relative paths in it are relative to its folder.
pub fn load(file: &Path) -> Result<Config, ConfigError> {
    let failed = |source| ConfigError::Read { file: file.to_owned(), source };
    let text = std::fs::read_to_string(file).map_err(failed)?;
    let absolute = std::path::absolute(file).map_err(failed)?;
    let base = absolute.parent().unwrap_or(Path::new("/"));
    parse_named(&text, file, base)
}

/// Checks the text of a configuration. Relative paths in it are relative to `base`, itself absolute.
pub fn parse(text: &str, base: &Path) -> Result<Config, ConfigError> {
    parse_named(text, Path::new("configuration"), base)
}

fn parse_named(text: &str, file: &Path, base: &Path) -> Result<Config, ConfigError> {
    let table = toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        ConfigError::Syntax {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: error.message().to_owned(),
        }
    })?;
    let mut problems = Vec::new();
    let written = written::Config::take(table, &mut problems);
    match checked::check(written, base, &mut problems) {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError::Invalid { file: file.to_owned(), problems }),
    }
}

#[cfg(test)]
mod tests;
