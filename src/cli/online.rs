//! Through whom `umbra verify --against` compares: by itself, or through the gateway that serves the store.
//!
//! A store that clients write is never equal to a point. Its gateway knows what they changed since, and can tell the
//! rest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::VerifyArgs;
use super::failure::Failure;
use super::output::Meter;
use super::place::Place;
use crate::admin::{self, AskError, Comparison};
use crate::chain::At;
use crate::config::{Config, Store};
use crate::restore::progress::Progress;
use crate::snapshot::compare::Doing;
use crate::status::{self, StatusError};

/// Who compares the point with a store.
pub enum Against {
    Nobody,
    /// This process reads the store.
    Us(Place),
    Gateway(Served),
}

/// A store that a gateway serves.
pub struct Served {
    pub place: Place,
    pub size: u64,
    state: PathBuf,
    volume: String,
}

impl Against {
    /// Finds out what was asked for; `config` is the gateway's, where one was named.
    pub async fn find(args: &VerifyArgs, config: Option<&Config>) -> Result<Self, Failure> {
        let Some(named) = &args.against else { return Ok(Self::Nobody) };
        let name = args.point.volume.as_str();
        let own = config.and_then(|config| config.volumes.iter().find(|volume| volume.name == args.point.volume));
        let (Some(config), Some(own)) = (config, own) else {
            return named.clone().map(Self::Us).ok_or_else(|| without_store(args, name));
        };
        let store = Place::parse(&own.store.to_string());
        let store = store.map_err(|why| Failure::new("verify", name).why(own.store.to_string()).why(why))?;
        let (is_own, place) = match named {
            Some(named) => (is_same(named, &own.store), named.clone()),
            None => (true, store),
        };
        if !is_own || args.point.at != At::Latest {
            return Ok(Self::Us(place));
        }
        match status::ask(&config.state).await {
            Ok(status) => match status.volumes.iter().find(|volume| volume.name == name) {
                Some(volume) => Ok(Self::Gateway(Served {
                    place,
                    size: volume.size,
                    state: config.state.clone(),
                    volume: name.to_owned(),
                })),
                None => Ok(Self::Us(place)),
            },
            Err(StatusError::Connect { source, .. })
                if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) =>
            {
                Ok(Self::Us(place))
            }
            Err(error) => Err(Failure::new("ask", "the gateway").because(&error)),
        }
    }
}

fn without_store(args: &VerifyArgs, name: &str) -> Failure {
    let failure = Failure::new("verify", name).wrong_usage();
    match &args.source.config {
        Some(file) => failure.why(format!("{} has no such volume", file.display())),
        None => failure
            .why("--against names no store")
            .remedy("name one, or the gateway's configuration with --config, which does"),
    }
}

/// Whether both are the same disk, as far as names tell.
fn is_same(place: &Place, store: &Store) -> bool {
    let resolved = |path: &Path| std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).ok();
    match (place, store) {
        (Place::File(path), Store::File { path: own, .. } | Store::Device { path: own, .. }) => {
            resolved(path) == resolved(own)
        }
        (Place::Nbd(uri), Store::Nbd { uri: own }) => own.parse().is_ok_and(|own: crate::nbd::Uri| *uri == own),
        (Place::Iscsi(url), store) => store.is_same(&Store::Iscsi { url: url.clone(), chap: None }),
        _ => false,
    }
}

impl Served {
    /// Has the gateway compare the store, and repair what differs if it shall.
    pub async fn compare(&self, repair: bool) -> Result<Comparison, Failure> {
        let progress = Arc::new(Progress::new(self.size));
        let _meter = Meter::start("compare", progress.clone());
        let mut repairing = false;
        let told = |told: crate::snapshot::compare::Progress| {
            // A window that was interrupted begins anew; what is shown waits for it.
            let done = told.done.saturating_sub(progress.done());
            progress.pass(done);
            progress.transfer(done);
            if told.doing == Doing::Repairing && !repairing {
                repairing = true;
                super::output::announce("uploading again what differs");
            }
        };
        admin::compare(&self.state, &self.volume, repair, told).await.map_err(|error| {
            let failure = Failure::new("verify", format!("{} against {}", self.volume, self.place)).because(&error);
            match error {
                AskError::Failed(_) => failure.remedy("see the gateway's log and `umbra status`"),
                AskError::Connect(_) | AskError::Answer { .. } => failure.remedy("see whether the gateway still runs"),
                AskError::Line { .. } => failure.remedy("use the gateway's version of umbra"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_known_by_any_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        std::fs::write(&path, [0; 512]).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let store = Store::File { path: path.clone(), create: None, direct: false };
        for name in [&path, &link, &folder.path().join(".").join("disk.img")] {
            assert!(is_same(&Place::File(name.clone()), &store), "{}", name.display());
        }
        assert!(!is_same(&Place::File(folder.path().join("other")), &store));
        let export = Store::Nbd { uri: "nbd://127.0.0.1:10809/archive".to_owned() };
        assert!(is_same(&Place::parse("nbd://127.0.0.1/archive").unwrap(), &export));
        assert!(!is_same(&Place::parse("nbd://127.0.0.1/other").unwrap(), &export));
        assert!(!is_same(&Place::File(path.clone()), &export));
        let place = Place::parse("iscsi://10.0.0.5/iqn.2003-01.org.array:vol1/0").unwrap();
        let url = "iscsi://10.0.1.5/iqn.2003-01.org.array:vol1/0".parse().unwrap();
        let lun = Store::Iscsi { url, chap: None };
        assert!(is_same(&place, &lun) && !is_same(&place, &export) && !is_same(&Place::File(path), &lun));
    }
}
