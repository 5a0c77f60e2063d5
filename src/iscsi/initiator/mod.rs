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
mod watch;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep, timeout};

pub use connect::ConnectError;
pub(crate) use connect::Dial;
pub use login::LoginError;
pub use unit::UnitError;
pub use url::{Url, UrlError};

use super::chap::Account;
use crate::disk::away::{self, Carrier, Jobs, PAUSE_FIRST, PAUSE_LAST, RECONNECT_MAX, come_back};
use crate::disk::{Abilities, DiskError, Errno, Geometry};
use crate::net::Chain;
use command::{Direct, Effect, Patience, Submit, execute};
use connect::{Tcp, connect};
use link::{Ended, Job, LinkError, Transfer};
use unit::{Facts, inspect};
use watch::Watch;

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
    jobs: Jobs<Sender>,
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

impl From<StillAway> for away::StillAway {
    fn from(error: StillAway) -> Self {
        Self { is_another: matches!(error, StillAway::Changed(_)), why: Chain(&error).to_string() }
    }
}

/// To a session's task.
type Sender = mpsc::UnboundedSender<Job>;

impl Carrier for Sender {
    type Job = Job;

    fn carry(&mut self, job: Job) -> Result<(), Job> {
        self.send(job).map_err(|unsent| unsent.0)
    }

    fn refuse(job: Job) {
        // Whoever asked may not care any more.
        let _ = job.answer.send(Err(DiskError::Refused(Errno::ESHUTDOWN)));
    }
}

/// A session, what it is with, and the task that drives it.
struct Session {
    jobs: Sender,
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
        let shared = Arc::new(Shared::new(options, facts, reconnect_max, patience, watch, jobs));
        tokio::spawn(keep(dial, shared.clone(), link, session));
        Ok(Self { shared })
    }
}

impl Drop for IscsiDisk {
    fn drop(&mut self) {
        self.shared.dropped.notify_one();
    }
}

/// Logs in, and looks at the unit. One that may have become another meanwhile is to be looked at anew.
async fn begin(dial: &impl Dial, options: &Options, watch: &Watch, patience: Patience) -> Result<Session, OpenError> {
    let url = &options.url;
    let connection = connect(dial, options).await.map_err(|source| OpenError::Connect { url: url.clone(), source })?;
    let (jobs, receiver) = mpsc::unbounded_channel();
    // Without senders it logs out by itself.
    let watch = watch.of_a_session();
    let mut link = tokio::spawn(link::run(connection, lun_field(url.lun), receiver, watch.clone()));
    let direct = Direct { jobs, patience };
    let asked = timeout(INSPECT_MAX, async {
        // Fetches what a new initiator is told, whatever else becomes of it; what the unit is, is asked only then.
        let _ = execute(&direct, cdb::test_unit_ready(), || Transfer::None, Effect::Repeatable).await;
        watch.heed();
        inspect(&direct, url).await
    });
    let facts = tokio::select! {
        biased;
        facts = asked => facts.map_err(|_| OpenError::NotReady(url.clone()))?,
        // What it gives back as not done nobody sends again.
        ended = &mut link => Err(match ended {
            Ok(Ended { why: Err(LinkError::Changed(sense)), .. }) => UnitError::Changed(sense),
            _ => UnitError::Left,
        }),
    };
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
                shared.jobs.wait(unsent);
                changed
            }
            End::Ended(Err(error)) => {
                tracing::error!(%url, %error, "a session's task failed; this is a bug");
                shared.jobs.wait(Vec::new());
                false
            }
            End::Changed(changed) => {
                tracing::error!(%url, error = %changed, "the unit has changed; requests are refused until it is back");
                // First of all: what is queued must not go to it.
                session.halt();
                shared.jobs.refuse();
                link.await.into_iter().flat_map(|ended| ended.unsent).for_each(Sender::refuse);
                true
            }
        };
        // A unit that ends each session as it begins is not asked without a pause.
        pause = if unit_ended_it && begun.elapsed() < PAUSE_LAST {
            (pause * 2).clamp(PAUSE_FIRST, PAUSE_LAST)
        } else {
            Duration::ZERO
        };
        let next = tokio::select! {
            () = shared.dropped.notified() => {
                shared.jobs.refuse();
                return;
            }
            session = reconnect(&dial, &shared, pause) => session,
        };
        let incarnation = 1 + shared.watch.incarnation.fetch_add(1, Ordering::SeqCst);
        tracing::info!(%url, incarnation, "logged in anew");
        shared.jobs.go_on(next.jobs);
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
    shared.jobs.refuse();
    match timeout(LEAVE_MAX, &mut link).await {
        // It broke before it had sent all.
        Ok(ended) => ended.into_iter().flat_map(|ended| ended.unsent).for_each(Sender::refuse),
        Err(_) => {
            tracing::warn!(url = %shared.options.url, "the target did not answer in time; leaving");
            link.abort();
        }
    }
}

/// Tries until the unit is back, after a pause that counts as part of the time that requests wait.
async fn reconnect(dial: &impl Dial, shared: &Shared, pause: Duration) -> Session {
    sleep(pause).await;
    let patience = shared.reconnect_max.saturating_sub(pause);
    come_back(&shared.options.url, &shared.jobs, patience, async || Ok(shared.begin_again(dial).await?)).await
}

impl Shared {
    fn new(
        options: Options,
        facts: Facts,
        reconnect_max: Duration,
        patience: Patience,
        watch: Watch,
        jobs: Sender,
    ) -> Self {
        Self {
            options,
            geometry: facts.geometry(),
            name: facts.name.clone(),
            facts: RwLock::new(Arc::new(facts)),
            patience,
            reconnect_max,
            watch,
            jobs: Jobs::new(jobs),
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
        let Some(jobs) = self.jobs.carrier() else { return Ok(()) };
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
}

impl Submit for Shared {
    fn submit(&self, job: Job) {
        self.jobs.submit(job);
    }
    fn patience(&self) -> Patience {
        self.patience
    }
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
