//! The gateway: assembles the parts, keeps them running, and takes them down in order.
//!
//! Order of a start: state folder, stores, log, volumes, listeners; then clients are served. The remote is looked at
//! only after that: a client never waits for it. Order of a stop: clients, what is left to publish, the stores'
//! flush, the clean marks.

pub mod check;
pub mod notify;
mod offers;
mod scrubs;
pub mod secrets;
pub mod state;
pub mod stores;
mod targets;
mod watched;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OnceCell, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::admin::{self, Desk};
use crate::chain::Opening;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::disk::{Disk, DiskError, Identity};
use crate::format::VolumeId;
use crate::iscsi::{self, target::Target};
use crate::nbd::{BindError, Export, Server};
use crate::net::Address;
use crate::remote::probe::{ConditionalPuts, conditional_puts};
use crate::remote::{Limits, Remote};
use crate::snapshot::compare::Comparer;
use crate::snapshot::publisher::{self, Expected, Left, Parts};
use crate::snapshot::status::Report;
use crate::snapshot::upload::Memory;
use crate::status::{self, StatusError};
use crate::units::Generation;
use crate::volume::boot::{self, Found};
use crate::volume::{self, MarksFail, Sequences, Volume};
use crate::{marks, task, writelog};

pub use offers::Offer;

use offers::address;
use secrets::SecretError;
use state::{Clean, StateError, StateFolder, VolumeState};
use stores::{Port, StoreError};
use targets::TargetError;
use watched::{Watched, keep_house, reserve_sequences, status_of};

/// How long a stop goes on uploading what is left.
pub const LEAVE_MAX: Duration = Duration::from_secs(60);
/// How long a store may take for its last flush.
const FLUSH_MAX: Duration = Duration::from_secs(30);
/// How long a server that lost its connection to us may still carry out what it was asked. NBD cannot tell it not to. With
/// iSCSI a login of the same port ends the old session's tasks (RFC 7143, 6.3.5), but nothing says that they have ended
/// when the login has: tgt lets go on what its threads have begun. And where an address has moved to another portal
/// group, that login is no such thing.
const QUARANTINE: Duration = Duration::from_secs(10 * 60);
/// What a start may do besides what the configuration says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Compare every store with its remote copy in full.
    pub compare: bool,
    /// Take names and stores that this state folder does not know.
    pub adopt: bool,
    /// Open although another gateway seems to be alive.
    pub take_over: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("open the store of volume {volume}")]
    Store { volume: String, source: StoreError },
    #[error(
        "the store of volume {volume} is {found:?}, and {recorded:?} was shadowed by this name; if it holds the \
         volume's data (restored, moved), start with --adopt: it is then compared in full"
    )]
    OtherStore { volume: String, recorded: String, found: String },
    #[error(
        "the store of volume {volume} has {found} bytes, and {recorded} were shadowed: what was cut off is in the \
         remote; enlarge the store, or begin a new volume under another name"
    )]
    Shrunk { volume: String, recorded: u64, found: u64 },
    #[error("open the remote {url}")]
    Remote { url: String, source: crate::remote::OpenError },
    #[error("write the region marks of volume {volume} in the state folder")]
    Marks { volume: String, source: std::io::Error },
    #[error("open the log in {}", path.display())]
    Log { path: PathBuf, source: writelog::OpenError },
    #[error("listen")]
    Listen(#[from] BindError),
    #[error("listen for iSCSI")]
    ListenForIscsi(#[from] iscsi::target::BindError),
    #[error("offer iSCSI targets")]
    Target(#[from] TargetError),
    #[error("read what initiators have to prove, [iscsi] chap")]
    Secret(#[from] SecretError),
    #[error("offer the status")]
    Status(#[from] StatusError),
}

/// Something is not in the remote that should be: the gateway has stopped, but not cleanly.
#[derive(Debug, thiserror::Error)]
#[error(
    "stopped, but not all of {} is known to be in a recovery point; the next start reads again what may be missing",
    .volumes.join(", ")
)]
pub struct Unfinished {
    pub volumes: Vec<String>,
}

/// A gateway that serves.
pub struct Gateway {
    state: Arc<StateFolder>,
    volumes: Vec<Running>,
    exports: Vec<Offer>,
    servers: JoinSet<()>,
    stop_server: watch::Sender<bool>,
    stop_publishing: watch::Sender<bool>,
    comparers: Vec<Comparer>,
    /// Tasks that need no end of their own.
    background: JoinSet<()>,
}

struct Running {
    name: String,
    volume: Volume,
    store: Arc<dyn Disk>,
    /// The mark that it was started with.
    clean: Option<Clean>,
    publisher: Option<JoinHandle<Option<Left>>>,
}

impl Gateway {
    /// Returns when clients can connect.
    pub async fn start(config: &Config, options: Options) -> Result<Self, StartError> {
        let clock = Clock::system();
        let state = Arc::new(StateFolder::open(&config.state)?);
        let remote = remote(config)?;
        let initiator = config.initiator.name(state.instance());
        let mut stores = Vec::with_capacity(config.volumes.len());
        for volume in &config.volumes {
            let kept = state.volume(volume.name.as_str())?;
            let opened = stores::open(&volume.store, Port::new(initiator.clone(), &kept.log.0)).await;
            let store = opened.map_err(|source| StartError::Store { volume: volume.name.to_string(), source })?;
            stores.push((volume, store, kept));
        }
        let mut found = Vec::with_capacity(stores.len());
        for (written, store, kept) in stores {
            let name = written.name.to_string();
            same_store(&name, kept.store.as_ref(), &store.identity(), options)?;
            let marks = find_marks(&state, &name, &kept, store.as_ref(), options).await?;
            found.push((written, store, kept, marks));
        }
        let (pool, opened) = open_log(config, &state, found.iter_mut().map(|(.., marks)| marks)).await?;
        let sequences = Arc::new(Sequences::above(state.sequence(clock.now())?));
        reserve_sequences(&state, &sequences)?;

        let (stop_publishing, stopping) = watch::channel(false);
        let memory = Memory::default();
        let conditional = Arc::new(OnceCell::new());
        let mut starting = Vec::with_capacity(found.len());
        let mut watched = Vec::with_capacity(found.len());
        let mut exports = Vec::with_capacity(found.len());
        let mut targets = Vec::new();
        for (written, store, kept, marks) in found {
            let name = written.name.to_string();
            let (from, clean) = (pool.clone(), kept.clean.is_some());
            let start =
                task::blocking(move || marks.start(&from, opened, clean)).await.expect("a start does not panic");
            let start = start.map_err(|source| match source {
                boot::StartError::Log(source) => StartError::Log { path: state.log(), source },
                boot::StartError::Marks(source) => StartError::Marks { volume: name.clone(), source },
            })?;
            if start.unclean {
                // A flush may have failed, and nobody was left to say so: what is read is to be what the medium holds.
                let _ = store.forget_cached().await;
            }
            let settings = volume::Settings {
                sync_log: config.log.sync == config::SyncMode::Flush,
                quarantine: written.store.is_networked().then_some(QUARANTINE),
                throttle: config.log.throttle,
                marks_fail: match config.log.when_marks_fail {
                    config::WhenMarksFail::Forward => MarksFail::Forward,
                    config::WhenMarksFail::Refuse => MarksFail::Refuse,
                },
                ..volume::Settings::default()
            };
            let volume = Volume::new(&name, store.clone(), sequences.clone(), settings, start);
            let report = Arc::new(Report::new(&name));
            let identity = store.identity();
            let parts = Parts {
                volume: volume.clone(),
                remote: remote.clone(),
                name: written.name.clone(),
                opening: Opening {
                    instance: state.instance(),
                    store: identity.name,
                    size: identity.size,
                    adopt: options.adopt,
                    take_over: options.take_over,
                    created: clock.now(),
                    known: kept.remote,
                },
                expected: Expected { entry: kept.clean.as_ref().map(|clean| clean.entry), generation: kept.generation },
                epoch: config.snapshot.epoch,
                scan_rate: config.snapshot.scan_rate.limit(),
                clock: clock.clone(),
                sequences: sequences.clone(),
                memory: memory.clone(),
                report: report.clone(),
                opened: {
                    let (state, name) = (state.clone(), name.clone());
                    Box::new(move |volume, generation| remember_opened(&state, &name, volume, generation))
                },
            };
            let fenced = config.remote.fencing == config::Fencing::ConditionalPut;
            let publisher = publish(parts, fenced.then(|| conditional.clone()), stopping.clone());
            exports.push(Export { name: name.clone(), description: String::new(), disk: Arc::new(volume.clone()) });
            if let Some(iscsi) = &config.iscsi {
                targets.push(targets::target(&state, &iscsi.iqn, &volume, kept.log.0).await?);
            }
            let comparer = Comparer::new(volume.clone(), report.clone(), config.snapshot.scan_rate.limit());
            watched.push(Watched::new(volume.clone(), report, comparer, written.max_age));
            starting.push((Running { name, volume, store, clean: kept.clean, publisher: None }, publisher));
        }
        pool.release_unclaimed();

        let addresses: Vec<Address> = config.listen.iter().map(address).collect();
        let server = Server::bind(&addresses, exports).await?;
        let iscsi_server = match &config.iscsi {
            Some(iscsi) => Some(iscsi_server(iscsi, &targets).await?),
            None => None,
        };
        let status_socket = status::listen(state.path())?;
        let mut volumes = Vec::with_capacity(starting.len());
        for (mut running, publisher) in starting {
            // Gone before the first write, and not before all is ready for it.
            let store = Some(running.store.identity());
            state.change_volume(&running.name, |kept| {
                (kept.clean, kept.store, kept.stuck) = (None, store, running.volume.stuck());
            })?;
            running.publisher = Some(tokio::spawn(publisher));
            volumes.push(running);
        }
        let mut exports = Vec::new();
        for (at, Running { name, .. }) in volumes.iter().enumerate() {
            exports.extend(server.addresses().iter().map(|address| Offer::nbd(name, address)));
            let portals = iscsi_server.iter().flat_map(|server| server.addresses());
            exports.extend(portals.map(|portal| Offer::iscsi(name, &portal, targets[at].name())));
        }
        let (stop_server, stopped) = watch::channel(false);
        let mut servers = JoinSet::new();
        if let Some(iscsi_server) = iscsi_server {
            servers.spawn(iscsi_server.run(stopped.clone()));
        }
        servers.spawn(server.run(stopped));
        let watched: Arc<[Watched]> = watched.into();
        let mut background = JoinSet::new();
        let of_status = watched.clone();
        let comparers: Vec<Comparer> = watched.iter().map(|watched| watched.comparer().clone()).collect();
        let by_name =
            comparers.iter().map(|comparer| (comparer.volume().name().to_owned(), comparer.clone())).collect();
        let desk = Desk { status: Box::new(move || status_of(&of_status)), comparers: by_name };
        background.spawn(admin::answer(status_socket, Arc::new(desk)));
        if let Some(period) = config.snapshot.scrub {
            for comparer in &comparers {
                background.spawn(scrubs::schedule(&state, comparer, period, &clock).run(comparer.clone()));
            }
        }
        background.spawn(keep_house(state.clone(), sequences, watched));
        Ok(Self { state, volumes, exports, servers, stop_server, stop_publishing, comparers, background })
    }

    /// Each volume with each address it is served at.
    pub fn exports(&self) -> &[Offer] {
        &self.exports
    }

    /// Volumes by name, for whoever runs a gateway in its own process.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|running| running.name == name).map(|running| &running.volume)
    }

    /// Takes no more requests, finishes those in flight, publishes what is left, and marks what is clean.
    pub async fn stop(mut self) -> Result<(), Unfinished> {
        notify::systemd("STOPPING=1");
        info!("stopping: finishing what clients have asked for");
        self.stop_server.send_replace(true);
        while let Some(ended) = self.servers.join_next().await {
            if let Err(error) = ended {
                error!(%error, "a server ended unexpectedly");
            }
        }
        // Nobody logs anything behind the last cut.
        for comparer in &self.comparers {
            comparer.stop().await;
        }
        info!(at_most = ?LEAVE_MAX, "stopping: publishing what is left");
        self.stop_publishing.send_replace(true);
        let deadline = Instant::now() + LEAVE_MAX;
        let mut unfinished = Vec::new();
        for mut running in self.volumes {
            let left = match running.publisher.take() {
                Some(publisher) => end_of(publisher, deadline).await,
                None => None,
            };
            if !mark_clean(&self.state, &running, left).await {
                unfinished.push(running.name);
            }
        }
        self.background.shutdown().await;
        if unfinished.is_empty() { Ok(()) } else { Err(Unfinished { volumes: unfinished }) }
    }
}

/// What the publisher left, if it ends in time.
async fn end_of(mut publisher: JoinHandle<Option<Left>>, deadline: Instant) -> Option<Left> {
    match tokio::time::timeout_at(deadline, &mut publisher).await {
        Ok(left) => left.ok().flatten(),
        Err(_) => {
            publisher.abort();
            None
        }
    }
}

fn remote(config: &Config) -> Result<Remote, StartError> {
    let limits =
        Limits { parallel: config.upload.parallel as usize, rate: config.upload.rate.limit(), ..Limits::default() };
    let url = config.remote.place.to_string();
    Remote::create(&url, config.remote.options.expose(), limits).map_err(|source| StartError::Remote { url, source })
}

/// The marks of a volume. What they do not say by themselves: the store was changed since a clean stop, or the user
/// wants everything to be compared.
async fn find_marks(
    state: &StateFolder,
    name: &str,
    kept: &VolumeState,
    store: &dyn Disk,
    options: Options,
) -> Result<Found, StartError> {
    let failed = |source| StartError::Marks { volume: name.to_owned(), source };
    let path = state.marks(name)?;
    let (of, log, size) = (name.to_owned(), kept.log, store.geometry().size);
    let found = task::blocking(move || Found::read(&of, log, size, marks::open_io(&path)?)).await;
    let mut found = found.expect("reading marks does not panic").map_err(failed)?;
    if !options.compare {
        found.stick(kept.stuck.iter().cloned()).map_err(failed)?;
    }
    let identity = store.identity();
    let modified = |kept: &Identity| (kept.name.clone(), kept.modified) != (identity.name.clone(), identity.modified);
    let left = kept.clean.as_ref().map(|clean| &clean.store).filter(|left| modified(left));
    let other = kept.store.as_ref().filter(|last| last.name != identity.name);
    if left.is_some() || other.is_some() {
        let (last, modified) = (left.or(other).map(|last| &last.name), left.is_some());
        warn!(
            volume = name,
            ?last,
            found = identity.name,
            modified,
            "the store is not as the last stop left it; comparing it in full"
        );
    } else if !options.compare {
        return Ok(found);
    }
    found.distrust().map_err(failed)?;
    Ok(found)
}

/// Refuses a store that is not the one that was shadowed by this name, and one that was cut.
fn same_store(name: &str, last: Option<&Identity>, found: &Identity, options: Options) -> Result<(), StartError> {
    let Some(last) = last else { return Ok(()) };
    if last.name != found.name && !options.adopt {
        let (recorded, found) = (last.name.clone(), found.name.clone());
        return Err(StartError::OtherStore { volume: name.to_owned(), recorded, found });
    }
    if found.size < last.size {
        return Err(StartError::Shrunk { volume: name.to_owned(), recorded: last.size, found: found.size });
    }
    if found.size > last.size {
        info!(volume = name, from = last.size, to = found.size, "the store has grown; what is new is compared");
    }
    Ok(())
}

/// Opens the log, or makes it anew; before that the marks take note of what is lost with the old one.
async fn open_log(
    config: &Config,
    state: &StateFolder,
    marks: impl Iterator<Item = &mut Found>,
) -> Result<(writelog::Pool, writelog::Opened), StartError> {
    let path = state.log();
    let settings = writelog::Settings { size: config.log.size, volumes: config.volumes.len() as u32, discard: true };
    let log = |source| StartError::Log { path: path.clone(), source };
    let look = writelog::Pool::look(&path, settings).map_err(log)?;
    for marks in marks {
        let volume = marks.name().to_owned();
        marks.log_found(look).map_err(|source| StartError::Marks { volume, source })?;
    }
    let dir = path.clone();
    let opened = task::blocking(move || writelog::Pool::open(&dir, settings)).await;
    opened.expect("opening the log does not panic").map_err(log)
}

fn remember_opened(state: &StateFolder, name: &str, volume: VolumeId, generation: Generation) {
    let remembered = state.change_volume(name, |kept| {
        kept.remote = Some(volume);
        kept.generation = Some(generation);
    });
    if let Err(error) = remembered {
        warn!(volume = name, %error, "the state folder cannot be written");
    }
}

type Conditional = Arc<OnceCell<ConditionalPuts>>;

/// Makes sure that the remote keeps the fence, then publishes.
async fn publish(parts: Parts, fence: Option<Conditional>, stop: watch::Receiver<bool>) -> Option<Left> {
    if let Some(conditional) = fence {
        let kept = tokio::select! {
            biased;
            kept = conditional.get_or_init(|| probe(&parts.remote, &parts.report)) => *kept,
            () = publisher::stopped_untouched(&parts.volume, stop.clone()) => return None,
        };
        if kept == ConditionalPuts::Ignored {
            let why = "the remote ignores conditional puts, so that two gateways could overwrite each other; use \
                       another remote, or set [remote] fencing = \"none\" if no second gateway can exist";
            publisher::end(&parts.volume, &parts.report, why.to_owned());
            return None;
        }
    }
    publisher::run(parts, stop).await
}

async fn probe(remote: &Remote, report: &Report) -> ConditionalPuts {
    crate::snapshot::upload::persist(report, || conditional_puts(remote)).await
}

/// Makes the store durable and marks the volume clean, if all that was read of it is published. True if a point has all.
async fn mark_clean(state: &StateFolder, running: &Running, left: Option<Left>) -> bool {
    let name = &running.name;
    let left = match (left, &running.clean) {
        (Some(left), _) => left,
        // The chain could not be reached, and nothing has happened since the last stop.
        (None, Some(clean)) if running.volume.is_untouched() => Left { entry: clean.entry },
        (None, _) => return false,
    };
    if !running.volume.is_settled() {
        warn!(volume = name, "not everything was published; what is hot will be read again");
        return false;
    }
    if running.store.geometry().abilities.flush
        && !running.store.geometry().abilities.read_only
        && let Err(error) = flush(running.store.as_ref()).await
    {
        error!(volume = name, %error, "the store failed its last flush; what is hot will be read again");
        return false;
    }
    if !running.volume.is_settled() {
        error!(volume = name, "the store came back while it was flushed; what is hot will be read again");
        return false;
    }
    if !running.volume.settle_marks().await {
        error!(volume = name, "the marks cannot be written; what they call hot is read again");
        return false;
    }
    if running.volume.is_suspect() {
        info!(
            volume = name,
            "the store was lost a short while ago; what is hot will be read again, in case it still writes"
        );
        return true;
    }
    let clean = Clean { entry: left.entry, store: running.store.identity() };
    match state.change_volume(name, |kept| kept.clean = Some(clean)) {
        Ok(()) => {
            let left = running.volume.scan_left();
            if left > 0 {
                warn!(
                    volume = name,
                    bytes = left,
                    "not everything was compared or copied; the next start goes on with it"
                );
            }
            left == 0
        }
        Err(error) => {
            error!(volume = name, %error, "the state folder cannot be written");
            false
        }
    }
}

/// A last flush; a store that hangs does not hold up the stop for ever.
async fn flush(store: &dyn Disk) -> Result<(), DiskError> {
    tokio::time::timeout(FLUSH_MAX, store.flush()).await.unwrap_or(Err(DiskError::Lost))
}

async fn iscsi_server(config: &config::Iscsi, targets: &[Arc<Target>]) -> Result<iscsi::target::Server, StartError> {
    let chap = config.chap.as_ref().map(secrets::chap).transpose()?;
    let addresses: Vec<Address> = config.listen.iter().map(address).collect();
    Ok(iscsi::target::Server::bind(&addresses, targets.to_vec(), chap).await?)
}
