//! `umbra serve`: runs the gateway until it is told to stop.

use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use super::ServeArgs;
use super::failure::Failure;
use super::output;
use super::stops::Stops;
use crate::config;
use crate::daemon::{Gateway, Offer, Options, notify};

pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    let file = args.config.display().to_string();
    let failed = |error: &dyn std::error::Error| Failure::new("serve", &file).because(error);
    let config = config::load(&args.config).map_err(|error| failed(&error))?;
    let mut stops = Stops::new().map_err(|error| failed(&error))?;
    // A write past a limit on the size of files is to fail like any write, and not to end the process for all clients.
    let _past_a_limit = signal(SignalKind::from_raw(libc::SIGXFSZ)).map_err(|error| failed(&error))?;
    let options = Options { compare: args.compare, adopt: args.adopt, take_over: args.take_over };
    let gateway = tokio::select! {
        started = Gateway::start(&config, options) => started.map_err(|error| failed(&error))?,
        () = stops.next() => return Ok(()),
    };
    for Offer { volume, uri } in gateway.exports() {
        output::print(&format!("ready {volume} {uri}\n"))?;
    }
    notify::systemd("READY=1");
    stops.next().await;
    info!("told to stop");
    tokio::select! {
        stopped = gateway.stop() => stopped.map_err(|error| failed(&error)),
        () = stops.next() => {
            warn!("told to stop again: stopping at once");
            Err(Failure::new("stop", &file)
                .why("stopped before everything was published; the next start reads again what may be missing"))
        }
    }
}
