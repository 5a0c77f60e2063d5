//! Secrets of CHAP, out of the files that the configuration names. Nothing of them is in any message.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tracing::warn;

use crate::config;
use crate::iscsi::chap::{Account, Chap, SECRET_MIN, Secret};

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("read the secret in {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the secret in {} has fewer than {SECRET_MIN} bytes; write a longer one, as `openssl rand -base64 12` makes it",
        .0.display()
    )]
    Short(PathBuf),
    #[error("{} and {} hold the same secret; mutual CHAP needs two", .0.display(), .1.display())]
    Same(PathBuf, PathBuf),
}

/// What both sides have to prove, with the secrets.
pub fn chap(written: &config::Chap) -> Result<Chap, SecretError> {
    let initiator = account(&written.initiator)?;
    let target = written.target.as_ref().map(account).transpose()?;
    // Else either side could have the other answer the challenges that it was asked.
    if let (Some(ours), Some(login)) = (&target, &written.target)
        && ours.secret == initiator.secret
    {
        return Err(SecretError::Same(written.initiator.secret_file.clone(), login.secret_file.clone()));
    }
    Ok(Chap { initiator, target })
}

fn account(login: &config::Login) -> Result<Account, SecretError> {
    let path = &login.secret_file;
    let read = || -> io::Result<Vec<u8>> {
        if fs::metadata(path)?.mode() & 0o077 != 0 {
            warn!(path = %path.display(), "others can read a secret; chmod 600 keeps it");
        }
        fs::read(path)
    };
    let mut secret = read().map_err(|source| SecretError::Read { path: path.clone(), source })?;
    // The end of a line, as one system or another writes it, is none of the secret.
    for end in [b'\n', b'\r'] {
        secret.pop_if(|last| *last == end);
    }
    let secret = Secret::new(secret).ok_or_else(|| SecretError::Short(path.clone()))?;
    Ok(Account { user: login.user.clone(), secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_line_is_not_of_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let read = |written: &str| {
            let login = config::Login { user: "alice".into(), secret_file: folder.path().join("secret") };
            fs::write(&login.secret_file, written).unwrap();
            account(&login).unwrap().secret
        };
        let secret = read("secret-of-alice");
        for written in ["secret-of-alice\n", "secret-of-alice\r\n"] {
            assert!(read(written) == secret, "{written:?}");
        }
        assert!(read("secret-of-alice\n\n") != secret, "a line more is of it");
    }
}
