//! A logical unit of an iSCSI array as a disk: [`IscsiDisk`].
//!
//! ```text
//!  disk ── parts ──► command ── jobs ──► link ── PDUs ──► target
//!            limits    status, sense,      window, data,
//!            (unit)    sent again?         time (connect, login before it)
//! ```
//! Owns: one session with one connection, logging in anew within a bound, splitting what is too large for the unit, and
//! sending again what the unit says it has not done. Leaves to its caller the alignment to logical blocks, and every
//! other retry: what was in flight when the session broke is answered as [`Lost`](DiskError::Lost).
//!
//! After a loss requests wait for the next session, for at most 30 s; then they are refused, having never been issued,
//! until the target is back, with the same unit. [`incarnation`](crate::disk::Disk::incarnation) has risen by then.
//!
//! A unit that says that it was reset, or that it may be another (its data or the LUNs have changed), ends the session:
//! nothing is sent to it before it was asked again who it is.
//!
//! Whether there is SYNCHRONIZE CACHE is asked and never tried, for a unit tells once what it could not write, and must tell
//! it to a client's flush. Where it does not say, the first flush shows it.
//!
//! A new session has the initiator's name and ISID of the old one, and so takes its place (RFC 7143, 6.3.5, session
//! reinstatement): the target is to end all tasks of the old session. Nothing says when they have ended, and not every
//! target waits for that before it lets us in (tgt does not): what was lost may still be done after that.
//!
//! Not here: several connections to a session, error recovery levels above 0, discovery, reservations, and task
//! management (a command that has no answer costs the session, which ends it).

mod cdb;
mod command;
mod connect;
mod disk;
pub(crate) mod fuzzing;
mod link;
mod login;
mod unit;
mod url;

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep, timeout, timeout_at};

pub use connect::ConnectError;
pub(crate) use connect::Dial;
pub use login::LoginError;
pub use unit::UnitError;
pub use url::{Url, UrlError};

use super::chap::Account;
use crate::disk::{Abilities, DiskError, Errno, Geometry};
use crate::net::Chain;
use command::{Direct, Patience, Submit};
use connect::{Tcp, connect};
use link::{Ended, Job, LinkError, Watch};
use unit::{Facts, inspect};

/// How long requests wait for a lost target to come back.
const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// Pauses between attempts to reconnect: doubled from the first to the last.
const RECONNECT_PAUSE_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_PAUSE_LAST: Duration = Duration::from_secs(5);
/// Between two looks at a unit that says again and again that it has changed.
const LOOK_AGAIN_PAUSE: Duration = Duration::from_secs(1);
/// From the login to the last answer about the unit, which may be just becoming ready.
const INSPECT_MAX: Duration = Duration::from_secs(60);
/// What is in flight when the disk is dropped may take this long, with the logout.
const LEAVE_MAX: Duration = Duration::from_secs(20);

const _: () = assert!(INSPECT_MAX.as_secs() > Patience::USUAL.busy.as_secs());

/// Which unit to open, and as whom.
#[derive(Clone, Debug)]
pub struct Options {
    pub url: Url,
    /// Our iSCSI name, which the target may know and allow.
    pub initiator: String,
    /// With the name, what tells our session from others; the same at every start, and another for every disk that is
    /// open with this name, for one of two sessions ends the other.
    pub isid: [u8; 6],
    /// Without it, the target must not ask for a proof.
    pub chap: Option<Credentials>,
}

/// What CHAP proves.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// What we prove to the target.
    pub ours: Account,
    /// What it must prove to us (mutual CHAP).
    pub theirs: Option<Account>,
}

/// Why a unit is not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0:?} is not the name of an initiator; it begins with iqn., eui. or naa.")]
    Initiator(String),
    #[error("the target and this initiator have the same secret; mutual CHAP needs two")]
    SameSecret,
    #[error("open {url}")]
    Connect { url: Url, source: ConnectError },
    #[error("open {url}")]
    Unit { url: Url, source: UnitError },
    #[error("open {0}: the unit did not become ready within {INSPECT_MAX:?}")]
    NotReady(Url),
}

/// Why a unit that came back, or that says it has changed, is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Changed {
    #[error("the unit was {before} and is {now}")]
    Name { before: String, now: String },
    #[error("the unit shrank from {before} to {now} bytes")]
    Shrunk { before: u64, now: u64 },
    #[error("the unit's logical blocks changed from {before} to {now} bytes")]
    BlockLength { before: u32, now: u32 },
    #[error("the unit lost an ability: it had {before:?} and has {now:?}")]
    Abilities { before: Box<Abilities>, now: Box<Abilities> },
}

/// A logical unit of an iSCSI target. Must be dropped inside the runtime that it was opened in, to log out in order.
pub struct IscsiDisk {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    /// As of the start.
    geometry: Geometry,
    name: String,
    /// As of the last look: limits may change under a disk, what was promised may not.
    facts: RwLock<Arc<Facts>>,
    patience: Patience,
    /// How long requests wait for a lost target.
    reconnect_max: Duration,
    watch: Watch,
    phase: Mutex<Phase>,
    /// The disk was dropped.
    dropped: Notify,
}

/// Why requests go on waiting, or being refused.
#[derive(Debug, thiserror::Error)]
enum StillAway {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("another unit is there")]
    Changed(#[from] Changed),
}

enum Phase {
    Up(mpsc::UnboundedSender<Job>),
    /// Jobs wait for a session.
    Waiting(Vec<Job>),
    /// The target has been away for too long, the unit is another for now, or was left: jobs are refused.
    Away,
}

/// A session, what it is with, and the task that drives it.
struct Session {
    jobs: mpsc::UnboundedSender<Job>,
    link: JoinHandle<Ended>,
    /// The disk's, as this session sees it.
    watch: Watch,
    facts: Facts,
}

impl IscsiDisk {
    /// Connects, once: whoever wants to wait for a target asks again.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        Self::open_with(Tcp, options, RECONNECT_MAX, Patience::USUAL).await
    }

    /// As [`Self::open`], but with connections of another kind.
    #[cfg(test)]
    pub(crate) async fn open_over(dial: impl Dial, options: Options) -> Result<Self, OpenError> {
        Self::open_with(dial, options, RECONNECT_MAX, Patience::USUAL).await
    }

    async fn open_with(
        dial: impl Dial,
        options: Options,
        reconnect_max: Duration,
        patience: Patience,
    ) -> Result<Self, OpenError> {
        if !url::is_name(&options.initiator) {
            return Err(OpenError::Initiator(options.initiator));
        }
        if let Some(Credentials { ours, theirs: Some(theirs) }) = &options.chap
            && ours.secret == theirs.secret
        {
            // Else the target could have us answer its own proof.
            return Err(OpenError::SameSecret);
        }
        let watch = Watch::default();
        let Session { jobs, link, watch: session, facts } = begin(&dial, &options, &watch, patience).await?;
        session.adopt();
        let shared = Arc::new(Shared::new(options, facts, reconnect_max, patience, watch, Phase::Up(jobs)));
        tokio::spawn(keep(dial, shared.clone(), link, session));
        Ok(Self { shared })
    }
}

impl Drop for IscsiDisk {
    fn drop(&mut self) {
        self.shared.dropped.notify_one();
    }
}

/// Logs in, and looks at the unit.
async fn begin(dial: &impl Dial, options: &Options, watch: &Watch, patience: Patience) -> Result<Session, OpenError> {
    let url = &options.url;
    let connection = connect(dial, options).await.map_err(|source| OpenError::Connect { url: url.clone(), source })?;
    let (jobs, receiver) = mpsc::unbounded_channel();
    // Without senders it logs out by itself.
    let watch = watch.of_a_session();
    let link = tokio::spawn(link::run(connection, lun_field(url.lun), receiver, watch.clone()));
    let direct = Direct { jobs, patience };
    let facts = timeout(INSPECT_MAX, inspect(&direct, url)).await;
    let facts = facts.map_err(|_| OpenError::NotReady(url.clone()))?;
    let facts = facts.map_err(|source| OpenError::Unit { url: url.clone(), source })?;
    Ok(Session { jobs: direct.jobs, link, watch, facts })
}

/// A LUN as it stands in a header: peripheral device addressing as far as it reaches, then flat space (SAM-5, 4.7.7).
fn lun_field(lun: u16) -> u64 {
    let level = if lun < 256 { lun } else { 0x4000 | lun };
    u64::from(level) << 48
}

/// How the time with a session ends.
enum End {
    Dropped,
    Ended(Result<Ended, JoinError>),
    Changed(Changed),
}

/// Owns the session: sees it end, and begins another, until the disk is dropped.
async fn keep(dial: impl Dial, shared: Arc<Shared>, mut link: JoinHandle<Ended>, mut session: Watch) {
    let url = &shared.options.url;
    let mut pause = Duration::ZERO;
    loop {
        let begun = Instant::now();
        let unit_ended_it = match watch_over(&shared, &mut link).await {
            End::Dropped => return leave(&shared, link).await,
            End::Ended(Ok(Ended { why, unsent })) => {
                let changed = matches!(why, Err(LinkError::Changed(_)));
                match why {
                    Ok(()) => tracing::info!(%url, "logged out; logging in anew"),
                    Err(error) => tracing::warn!(%url, error = %Chain(&error), "session lost; logging in anew"),
                }
                shared.wait(unsent);
                changed
            }
            End::Ended(Err(error)) => {
                tracing::error!(%url, %error, "a session's task failed; this is a bug");
                shared.wait(Vec::new());
                false
            }
            End::Changed(changed) => {
                tracing::error!(%url, error = %changed, "the unit has changed; requests are refused until it is back");
                // First of all: what is queued must not go to it.
                session.halt();
                shared.refuse();
                link.await.into_iter().flat_map(|ended| ended.unsent).for_each(refuse);
                true
            }
        };
        // A unit that ends each session as it begins is not asked without a pause.
        pause = if unit_ended_it && begun.elapsed() < RECONNECT_PAUSE_LAST {
            (pause * 2).clamp(RECONNECT_PAUSE_FIRST, RECONNECT_PAUSE_LAST)
        } else {
            Duration::ZERO
        };
        let next = tokio::select! {
            () = shared.dropped.notified() => {
                shared.refuse();
                return;
            }
            session = reconnect(&dial, &shared, pause) => session,
        };
        let incarnation = 1 + shared.watch.incarnation.fetch_add(1, Ordering::SeqCst);
        tracing::info!(%url, incarnation, "logged in anew");
        next.watch.adopt();
        shared.go_on(next.jobs);
        (link, session) = (next.link, next.watch);
    }
}

/// Looks at the unit whenever it says that it has changed.
async fn watch_over(shared: &Shared, link: &mut JoinHandle<Ended>) -> End {
    let looking = async {
        loop {
            shared.watch.look_again.notified().await;
            if let Err(changed) = shared.look_again().await {
                return changed;
            }
            sleep(LOOK_AGAIN_PAUSE).await;
        }
    };
    tokio::select! {
        biased;
        () = shared.dropped.notified() => End::Dropped,
        ended = link => End::Ended(ended),
        changed = looking => End::Changed(changed),
    }
}

/// Lets the session end in order: without senders it logs out when the last job is answered.
async fn leave(shared: &Shared, mut link: JoinHandle<Ended>) {
    shared.refuse();
    match timeout(LEAVE_MAX, &mut link).await {
        // It broke before it had sent all.
        Ok(ended) => ended.into_iter().flat_map(|ended| ended.unsent).for_each(refuse),
        Err(_) => {
            tracing::warn!(url = %shared.options.url, "the target did not answer in time; leaving");
            link.abort();
        }
    }
}

/// Tries until the unit is back; whoever waits is refused when patience ends, or another one is there.
async fn reconnect(dial: &impl Dial, shared: &Shared, first_pause: Duration) -> Session {
    let url = &shared.options.url;
    let last = Mutex::new(String::new());
    let attempts = async {
        sleep(first_pause).await;
        let mut pause = RECONNECT_PAUSE_FIRST;
        loop {
            let error = match shared.begin_again(dial).await {
                Ok(session) => return session,
                Err(error) => error,
            };
            let why = Chain(&error).to_string();
            let before = mem::replace(&mut *last.lock(), why.clone());
            let (first, news) = (before.is_empty(), before != why);
            match error {
                StillAway::Changed(_) => {
                    if news {
                        tracing::error!(%url, error = why, "another unit came back; requests are refused until it is the same");
                    }
                    shared.refuse();
                    pause = RECONNECT_PAUSE_LAST;
                }
                StillAway::Open(_) if news && !first => tracing::warn!(%url, error = why, "still away"),
                StillAway::Open(_) => tracing::debug!(%url, error = why, "still away"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_PAUSE_LAST);
        }
    };
    let mut attempts = std::pin::pin!(attempts);
    match timeout_at(Instant::now() + shared.reconnect_max, &mut attempts).await {
        Ok(session) => session,
        Err(_) => {
            if shared.refuse() {
                let (after, error) = (shared.reconnect_max, last.lock().clone());
                tracing::error!(%url, ?after, error, "the target is away; requests are refused");
            }
            attempts.await
        }
    }
}

impl Shared {
    fn new(
        options: Options,
        facts: Facts,
        reconnect_max: Duration,
        patience: Patience,
        watch: Watch,
        phase: Phase,
    ) -> Self {
        Self {
            options,
            geometry: facts.geometry(),
            name: facts.name.clone(),
            facts: RwLock::new(Arc::new(facts)),
            patience,
            reconnect_max,
            watch,
            phase: Mutex::new(phase),
            dropped: Notify::new(),
        }
    }

    /// Logs in, and takes the unit that is there if it is the same one. One that is not is left.
    async fn begin_again(&self, dial: &impl Dial) -> Result<Session, StillAway> {
        let session = begin(dial, &self.options, &self.watch, self.patience).await?;
        self.adopt(session.facts.clone())?;
        Ok(session)
    }

    fn facts(&self) -> Arc<Facts> {
        self.facts.read().clone()
    }

    /// Asks the unit again what it is, which said that it has changed. A session that breaks meanwhile is another's
    /// business.
    async fn look_again(&self) -> Result<(), Changed> {
        let jobs = match &*self.phase.lock() {
            Phase::Up(jobs) => jobs.clone(),
            Phase::Waiting(_) | Phase::Away => return Ok(()),
        };
        let direct = Direct { jobs, patience: self.patience };
        match timeout(INSPECT_MAX, inspect(&direct, &self.options.url)).await {
            Ok(Ok(facts)) => self.adopt(facts),
            Ok(Err(error)) => {
                tracing::warn!(url = %self.options.url, error = %Chain(&error), "the unit does not say what has changed");
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    /// Takes what a unit is now, if that is all that was promised.
    fn adopt(&self, facts: Facts) -> Result<(), Changed> {
        compare(&self.name, &self.geometry, &facts)?;
        let (before, now) = (self.geometry.size, facts.geometry().size);
        if now > before {
            tracing::warn!(url = %self.options.url, before, now, "the unit has grown; restart to use all of it");
        }
        *self.facts.write() = Arc::new(facts);
        Ok(())
    }

    /// Jobs wait from here on, those that were not sent before all others.
    fn wait(&self, mut unsent: Vec<Job>) {
        let mut phase = self.phase.lock();
        if let Phase::Waiting(jobs) = &mut *phase {
            unsent.append(jobs);
        }
        *phase = Phase::Waiting(unsent);
    }

    /// Gives the session the jobs that wait.
    fn go_on(&self, sender: mpsc::UnboundedSender<Job>) {
        let mut phase = self.phase.lock();
        if let Phase::Waiting(jobs) = mem::replace(&mut *phase, Phase::Up(sender)) {
            jobs.into_iter().for_each(|job| phase.submit(job));
        }
    }

    /// False if jobs were refused already.
    fn refuse(&self) -> bool {
        let before = mem::replace(&mut *self.phase.lock(), Phase::Away);
        let is_news = !matches!(before, Phase::Away);
        if let Phase::Waiting(jobs) = before {
            jobs.into_iter().for_each(refuse);
        }
        is_news
    }
}

impl Submit for Shared {
    fn submit(&self, job: Job) {
        self.phase.lock().submit(job);
    }
    fn patience(&self) -> Patience {
        self.patience
    }
}

impl Phase {
    fn submit(&mut self, job: Job) {
        match self {
            // The link ended just now, and the job was not issued on it.
            Self::Up(jobs) => {
                if let Err(unsent) = jobs.send(job) {
                    *self = Self::Waiting(vec![unsent.0]);
                }
            }
            Self::Waiting(jobs) => jobs.push(job),
            Self::Away => refuse(job),
        }
    }
}

fn refuse(job: Job) {
    // Whoever asked may not care any more.
    let _ = job.answer.send(Err(DiskError::Refused(Errno::ESHUTDOWN)));
}

/// A unit must be the same one, and able to do all that was promised.
fn compare(name: &str, before: &Geometry, facts: &Facts) -> Result<(), Changed> {
    let now = facts.geometry();
    if facts.name != name {
        return Err(Changed::Name { before: name.to_owned(), now: facts.name.clone() });
    }
    if facts.block_length != before.block.minimum {
        return Err(Changed::BlockLength { before: before.block.minimum, now: facts.block_length });
    }
    if now.size < before.size {
        return Err(Changed::Shrunk { before: before.size, now: now.size });
    }
    let (had, has) = (before.abilities, now.abilities);
    if !had.are_kept_by(&has) {
        return Err(Changed::Abilities { before: Box::new(had), now: Box::new(has) });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
