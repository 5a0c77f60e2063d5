//! The remote: whether it answers, and what stands under the volumes' names.

use std::time::Duration;

use super::place::{self, Access, Folder};
use super::{Fault, Finding, Outcome};
use crate::chain::{ChainError, ChainReader};
use crate::config::{Place, Remote as Written, Section};
use crate::daemon::state::Glance;
use crate::format::names::VolumeName;
use crate::remote::{Limits, Remote, RemoteError};
use crate::units::{EntryNumber, human_bytes};

/// A person waits for the answer, and is told sooner of a store that refuses at once.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(2);

/// A remote as it was found.
pub(super) enum Found {
    There(Remote),
    /// A folder that the gateway will make.
    Absent,
    /// Why was said.
    Unusable,
}

/// Opens the remote, and makes nothing.
pub(super) fn open(written: &Written, findings: &mut Vec<Finding>) -> Found {
    let url = written.place.to_string();
    let mut say = |outcome| findings.push(Finding::new(Section::Remote, "url", format_args!("\"{url}\""), outcome));
    if let Place::Folder(path) = &written.place {
        match Folder::look(path) {
            Err(fault) => {
                say(fault.into());
                return Found::Unusable;
            }
            Ok(Folder::Absent) => {
                say(Outcome::Right("will be made".to_owned()));
                return Found::Absent;
            }
            Ok(Folder::There) => {
                if let Err(fault) = place::require(path, Access::Write) {
                    say(fault.into());
                    return Found::Unusable;
                }
                let free = place::free(path).map_or("an unknown amount".to_owned(), human_bytes);
                say(Outcome::Right(format!("there, {free} free")));
            }
        }
    }
    let limits = Limits { answer: ANSWER_MAX, patience: PATIENCE, ..Limits::default() };
    match Remote::open(&url, written.options.expose(), limits) {
        Ok(remote) => Found::There(remote),
        Err(error) => {
            say(Fault::from(error).into());
            Found::Unusable
        }
    }
}

impl Found {
    /// What stands under the volume's name, and whether a gateway with this state folder would be let in. None if
    /// there is nothing to say.
    pub(super) async fn name(&self, name: &VolumeName, glance: &Glance) -> Option<Outcome> {
        match self {
            Self::There(remote) => Some(look(remote, name, glance).await.unwrap_or_else(Outcome::from)),
            Self::Absent => glance.remote.map(|known| Fault::Vanished(known).into()),
            Self::Unusable => None,
        }
    }
}

async fn look(remote: &Remote, name: &VolumeName, glance: &Glance) -> Result<Outcome, Fault> {
    let chain = match ChainReader::open(remote, name).await {
        Ok(chain) => chain,
        Err(ChainError::NoVolume { .. }) => {
            return match glance.remote {
                Some(known) => Err(Fault::Vanished(known)),
                None => Ok(Outcome::Right(format!("{remote} answers, and has nothing by this name: it is free"))),
            };
        }
        // Whoever may not list is told so of what is not there (S3, "GetObject: permissions"), and need not list.
        Err(ChainError::Remote(RemoteError::Denied { source, .. })) if source.to_string().contains("AccessDenied") => {
            return Ok(Outcome::Note(format!(
                "{remote} answers, and denies access: either nothing has this name yet, or reading is not allowed"
            )));
        }
        Err(ChainError::Remote(error)) => return Err(error.into()),
        Err(error) => return Err(error.into()),
    };
    let (id, created) = (chain.volume(), chain.created());
    let newest = chain.end(EntryNumber(0)).await?;
    let entry = match newest.0 {
        0 => None,
        _ => Some(chain.get(newest).await?),
    };
    let by_us = entry.as_ref().is_none_or(|entry| Some(entry.instance) == glance.instance);
    let ours = glance.remote.map_or(by_us, |known| known == id);
    if !ours {
        return Err(Fault::NameTaken { id, created, newest: entry.map(|entry| entry.time) });
    }
    let Some(entry) = entry else {
        return Ok(Outcome::Right(format!("volume {id} of {created}, with nothing in it yet")));
    };
    let standing = format!("continues volume {id} of {created}: newest entry {newest} of {}", entry.time);
    if by_us || entry.leaving {
        return Ok(Outcome::Right(standing));
    }
    Ok(Outcome::Note(format!(
        "{standing}, by another gateway: while that seems to be alive, serve refuses without --take-over"
    )))
}
