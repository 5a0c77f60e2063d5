//! As whom a LUN is opened that `--to` or `--against` names: our name, and the proof that its array asks for.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use crate::config::{self, Chap, Config, Store};
use crate::daemon::state;
use crate::daemon::stores::{self, Port, StoreError};
use crate::iscsi::initiator::{IscsiDisk, Url};

/// Where nothing says another. It is the same everywhere, so that an access list can have it before there is need.
const NAME: &str = "iqn.2026-11.io.umbra:cli";

#[derive(Clone, Debug, Default, Args)]
pub struct InitiatorArgs {
    /// Our name as an initiator of iSCSI, which the array's access list has to have; without it, the gateway's where
    /// --config names one, else iqn.2026-11.io.umbra:cli.
    #[arg(long, value_name = "NAME")]
    pub initiator: Option<String>,
    /// Name that is given to an array that asks for a proof (CHAP).
    #[arg(long, value_name = "USER", requires = "chap_secret_file")]
    pub chap_user: Option<String>,
    /// File with the secret that belongs to it, and nothing else but a newline at its end.
    #[arg(long, value_name = "FILE", requires = "chap_user")]
    pub chap_secret_file: Option<PathBuf>,
    /// Name that the array has to give in its turn (mutual CHAP).
    #[arg(long, value_name = "USER", requires_all = ["chap_user", "chap_peer_secret_file"])]
    pub chap_peer_user: Option<String>,
    /// File with the secret that belongs to that; another than the first.
    #[arg(long, value_name = "FILE", requires = "chap_peer_user")]
    pub chap_peer_secret_file: Option<PathBuf>,
}

/// A name, and what is proven.
#[derive(Clone, Debug)]
pub struct Login {
    initiator: String,
    chap: Option<Chap>,
}

impl InitiatorArgs {
    pub fn login(&self) -> Login {
        let login = |user: &Option<String>, file: &Option<PathBuf>| match (user, file) {
            (Some(user), Some(file)) => Some(config::Login { user: user.clone(), secret_file: file.clone() }),
            _ => None,
        };
        let target = login(&self.chap_peer_user, &self.chap_peer_secret_file);
        let chap = login(&self.chap_user, &self.chap_secret_file).map(|initiator| Chap { initiator, target });
        Login { initiator: self.initiator.clone().unwrap_or_else(|| NAME.to_owned()), chap }
    }

    /// What is not given here is the gateway's, with which it opens this volume.
    pub fn login_of(&self, config: &Config, volume: &str) -> Login {
        let mut login = self.login();
        let instance = state::glance(&config.state, volume).ok().and_then(|glance| glance.instance);
        if let (None, Some(name)) = (&self.initiator, config.initiator.known(instance)) {
            login.initiator = name;
        }
        let own = config.volumes.iter().find(|own| own.name.as_str() == volume);
        if let (None, Some(Store::Iscsi { chap, .. })) = (&login.chap, own.map(|own| &own.store)) {
            login.chap.clone_from(chap);
        }
        login
    }
}

impl Login {
    /// Under a port of its own: nobody's session ends for it.
    pub async fn open(&self, url: &Url) -> Result<IscsiDisk, Failure> {
        let opened = match Port::random(self.initiator.clone()) {
            Ok(port) => stores::open_lun(url, self.chap.as_ref(), port).await,
            Err(error) => Err(error),
        };
        opened.map_err(|error| {
            let failure = Failure::new("open", url.to_string()).because(&error);
            match error {
                StoreError::Secret(_) => failure.remedy("name files that hold a secret each and that you can read"),
                _ => failure.remedy(
                    "see that the array runs and has this LUN, that its access list has the initiator (--initiator \
                     names another), and that --chap-user and --chap-secret-file are what it asks for",
                ),
            }
        })
    }
}
