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
//! until the target is back. [`incarnation`](crate::disk::Disk::incarnation) has risen by then. It also rises when the
//! unit says that it was reset, before anybody is told of a command that came after that.
//!
//! A new session has the initiator's name and ISID of the old one, and so takes its place (RFC 7143, 6.3.5, session
//! reinstatement): the target ends all tasks of the old session, so that what was lost is done behind our back no more,
//! once they have ended. Not every target waits for that before it lets us in; tgt does not.
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
use tokio::task::JoinHandle;
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
use link::{Ended, Job, Watch};
use unit::{Facts, inspect};

/// How long requests wait for a lost target to come back.
const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// Pauses between attempts to reconnect: doubled from the first to the last.
const RECONNECT_PAUSE_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_PAUSE_LAST: Duration = Duration::from_secs(5);
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

/// Why a unit that came back, or that says it has changed, is not used any more.
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

enum Phase {
    Up(mpsc::UnboundedSender<Job>),
    /// Jobs wait for a session.
    Waiting(Vec<Job>),
    /// The target has been away for too long, the unit is another, or was left: jobs are refused.
    Away,
}

/// A session, what it is with, and the task that drives it.
struct Session {
    jobs: mpsc::UnboundedSender<Job>,
    link: JoinHandle<Ended>,
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
        let Session { jobs, link, facts } = begin(&dial, &options, &watch, patience).await?;
        // What a unit tells a new initiator is about the time before it.
        watch.incarnation.store(0, Ordering::SeqCst);
        watch.deferred_error.store(false, Ordering::SeqCst);
        let shared = Arc::new(Shared::new(options, facts, reconnect_max, patience, watch, Phase::Up(jobs)));
        tokio::spawn(keep(dial, shared.clone(), link));
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
    let link = tokio::spawn(link::run(connection, lun_field(url.lun), receiver, watch.clone()));
    let direct = Direct { jobs, patience };
    let facts = timeout(INSPECT_MAX, inspect(&direct, url)).await;
    let facts = facts.map_err(|_| OpenError::NotReady(url.clone()))?;
    let facts = facts.map_err(|source| OpenError::Unit { url: url.clone(), source })?;
    Ok(Session { jobs: direct.jobs, link, facts })
}

/// A LUN as it stands in a header: peripheral device addressing as far as it reaches, then flat space (SAM-5, 4.7.7).
fn lun_field(lun: u16) -> u64 {
    let level = if lun < 256 { lun } else { 0x4000 | lun };
    u64::from(level) << 48
}

/// Owns the session: sees it end, and begins another, until the disk is dropped.
async fn keep(dial: impl Dial, shared: Arc<Shared>, mut link: JoinHandle<Ended>) {
    let url = &shared.options.url;
    loop {
        let ended = tokio::select! {
            biased;
            () = shared.dropped.notified() => return leave(&shared, link).await,
            ended = &mut link => ended,
            () = shared.watch.look_again.notified() => {
                if let Err(changed) = shared.look_again().await {
                    tracing::error!(%url, error = %changed, "the unit has changed; it is not used before a restart");
                    return leave(&shared, link).await;
                }
                continue;
            }
        };
        let unsent = match ended {
            Ok(Ended { why, unsent }) => {
                match why {
                    Ok(()) => tracing::info!(%url, "logged out; logging in anew"),
                    Err(error) => tracing::warn!(%url, error = %Chain(&error), "session lost; logging in anew"),
                }
                unsent
            }
            Err(error) => {
                tracing::error!(%url, %error, "a session's task failed; this is a bug");
                Vec::new()
            }
        };
        shared.wait(unsent);
        let Session { jobs, link: next, facts } = tokio::select! {
            () = shared.dropped.notified() => return shared.refuse(),
            session = reconnect(&dial, &shared) => session,
        };
        if let Err(changed) = shared.adopt(facts) {
            tracing::error!(%url, error = %changed, "another disk came back; it is not used before a restart");
            shared.refuse();
            drop(jobs);
            return leave(&shared, next).await;
        }
        let incarnation = 1 + shared.watch.incarnation.fetch_add(1, Ordering::SeqCst);
        tracing::info!(%url, incarnation, "logged in anew");
        shared.go_on(jobs);
        link = next;
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

/// Tries until it succeeds; whoever waits is refused when patience ends.
async fn reconnect(dial: &impl Dial, shared: &Shared) -> Session {
    let url = &shared.options.url;
    let attempts = async {
        let mut pause = RECONNECT_PAUSE_FIRST;
        loop {
            match begin(dial, &shared.options, &shared.watch, shared.patience).await {
                Ok(session) => return session,
                Err(error) => tracing::debug!(%url, error = %Chain(&error), "still away"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_PAUSE_LAST);
        }
    };
    let mut attempts = std::pin::pin!(attempts);
    match timeout_at(Instant::now() + shared.reconnect_max, &mut attempts).await {
        Ok(session) => session,
        Err(_) => {
            tracing::error!(%url, after = ?shared.reconnect_max, "the target is away; requests are refused");
            shared.refuse();
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

    fn refuse(&self) {
        if let Phase::Waiting(jobs) = mem::replace(&mut *self.phase.lock(), Phase::Away) {
            jobs.into_iter().for_each(refuse);
        }
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
