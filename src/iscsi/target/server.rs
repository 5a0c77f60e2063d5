//! The portals: who connects logs in, and gets a session.
//!
//! Owns: how long a login may take, and what is logged of a connection. Leaves to `login` and `session` what is said, and
//! to [`Listeners`] where. A connection that fails is logged and closed; nothing that one initiator does ends another's.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::Instrument;

use super::Target;
use super::discovery::{Targets, portals};
use super::login::{Agreed, Login, Next, Refusal, Step};
use super::seats::Port;
use super::session::{self, End, Opened};
use crate::iscsi::chap::Chap;
use crate::iscsi::frames::{Frame, FrameError, Frames};
use crate::iscsi::pdu::{self, LoginRequest, login};
use crate::net::{Address, Chain, Connection, Inbox, ListenError, Listeners, Outbox, Stream};
use crate::scsi::InitiatorPort;

/// Every initiator that is alive is through its login by then; the others shall not hold a connection.
const LOGIN_MAX: Duration = Duration::from_secs(30);
/// Requests of one login: more than any exchange of keys needs.
const LOGIN_REQUESTS_MAX: usize = 64;
/// Before an initiator is told that it is not let in: who tries secrets tries few.
const REFUSAL_PAUSE: Duration = Duration::from_millis(500);
/// All portals are one target port to SCSI.
const TARGET_PORT: u16 = 1;

/// Why a target does not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("two targets are named {0}")]
    Name(String),
}

/// Listens, but accepts nothing before it [runs](Server::run).
pub struct Server {
    listeners: Listeners,
    targets: Arc<[Arc<Target>]>,
    chap: Option<Arc<Chap>>,
}

impl Server {
    /// As [`Listeners::bind`]. With `chap` nobody is let in who does not prove who it is.
    pub async fn bind(addresses: &[Address], targets: Vec<Arc<Target>>, chap: Option<Chap>) -> Result<Self, BindError> {
        for (at, target) in targets.iter().enumerate() {
            if targets[..at].iter().any(|other| other.name.eq_ignore_ascii_case(&target.name)) {
                return Err(BindError::Name(target.name.clone()));
            }
        }
        let listeners = Listeners::bind(addresses).await?;
        Ok(Self { listeners, targets: targets.into(), chap: chap.map(Arc::new) })
    }

    /// As [`Listeners::addresses`].
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners.addresses()
    }

    /// Serves until `stop` becomes true (or has no sender any more); then accepts nothing new, asks initiators to log
    /// out, answers what is in flight (for at most 20 s), and closes.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let Self { listeners, targets, chap } = self;
        let (sessions_stop, listening) = (stop.clone(), Arc::from(listeners.addresses()));
        let connected = |Connection { stream, number, peer }| {
            let span = tracing::info_span!("iscsi", connection = number, peer);
            serve(stream, targets.clone(), Arc::clone(&listening), chap.clone(), sessions_stop.clone()).instrument(span)
        };
        listeners.serve(stop, connected).await;
    }
}

/// Why a connection ended before its session began.
#[derive(Debug, thiserror::Error)]
enum LoginError {
    #[error("connection")]
    Io(#[from] io::Error),
    #[error("bytes that are no PDU")]
    Frame(#[from] FrameError),
    #[error("it sent something else than a login")]
    NotALogin,
    #[error("more than {LOGIN_REQUESTS_MAX} requests")]
    TooMany,
    #[error("the initiator is not let in")]
    Refused(#[from] Refusal),
    #[error("operations of the initiator's old session do not end")]
    Occupied,
}

/// One connection from its first byte to its last.
async fn serve(
    stream: Stream,
    targets: Arc<[Arc<Target>]>,
    listening: Arc<[Address]>,
    chap: Option<Arc<Chap>>,
    stop: watch::Receiver<bool>,
) {
    match stream.local_address() {
        Ok(own) => {
            let targets = Targets { all: targets, portals: portals(own, &listening) };
            converse(stream, &targets, chap.as_deref(), Some(REFUSAL_PAUSE), stop).await;
        }
        Err(error) => tracing::info!(%error, "a connection that was gone at once"),
    }
}

/// The same on any stream; how its session ended, if it had one that did so in peace.
pub(super) async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    targets: &Targets,
    chap: Option<&Chap>,
    refusal_pause: Option<Duration>,
    mut stop: watch::Receiver<bool>,
) -> Option<End> {
    let (inbox, frames) = (Inbox::default(), Frames::default());
    let mut connection = Half { stream, inbox, frames, status_sn: 0, command_sn: 0, refusal_pause };
    let logged_in = tokio::select! {
        _ = stop.wait_for(|stop| *stop) => return None,
        logged_in = timeout(LOGIN_MAX, connection.log_in(targets, chap)) => logged_in,
    };
    let (agreed, request, step) = match logged_in {
        Ok(Ok(logged_in)) => logged_in,
        Ok(Err(error)) => {
            match &error {
                LoginError::Refused(_) => tracing::warn!(error = %Chain(&error), "the login failed"),
                _ => tracing::info!(error = %Chain(&error), "the login failed"),
            }
            return None;
        }
        Err(_) => {
            tracing::info!(limit = ?LOGIN_MAX, "the login took too long");
            return None;
        }
    };
    let Agreed { initiator, isid, parameters, target, connection: cid } = agreed;
    let seat = match &target {
        Some(target) => match target.seats.take(Port::new(&initiator, isid)).await {
            Some(seat) => Some(seat),
            None => {
                // Told as well as it can be: the initiator tries again.
                let _ = connection.refuse(&request, login::SERVICE_UNAVAILABLE).await;
                tracing::warn!(initiator, error = %LoginError::Occupied, "the login failed");
                return None;
            }
        },
        None => None,
    };
    // Whoever is not told that it is let in has no session.
    if let Err(error) = connection.answer(&request, step, SESSION).await {
        tracing::info!(%error, "the login failed");
        return None;
    }
    let name = target.as_ref().map_or("", |target| target.name());
    tracing::info!(initiator, target_name = name, "logged in");
    let Half { stream, inbox, mut frames, status_sn, command_sn, .. } = connection;
    frames.agree(&parameters);
    let unit = target.clone().map(|target| {
        let nexus = target.unit.attach(InitiatorPort { name: initiator.clone(), isid, target_port: TARGET_PORT });
        (target, nexus)
    });
    let targets = targets.clone();
    let opened = Opened { stream, inbox, frames, parameters, command_sn, status_sn, connection: cid, targets, unit };
    // Nobody wants the place of a discovery session.
    let (_stays, remains) = watch::channel(false);
    let leave = seat.as_ref().map_or(remains, |seat| seat.leave());
    let ended = session::serve(opened, leave, stop).await;
    match &ended {
        Ok(end) => tracing::info!(initiator, target_name = name, ?end, "session ended"),
        Err(error @ session::SessionError::StoreLost) => {
            tracing::warn!(initiator, target_name = name, %error, "session dropped")
        }
        // The initiator's fault, or its network's.
        Err(error) => tracing::info!(initiator, target_name = name, error = %Chain(error), "session dropped"),
    }
    ended.ok()
}

/// Number of every session: there is one for each initiator port, which is found by its name.
const SESSION: u16 = 1;

/// A connection that is not let in yet.
struct Half<S> {
    stream: S,
    inbox: Inbox,
    frames: Frames,
    status_sn: u32,
    command_sn: u32,
    refusal_pause: Option<Duration>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Half<S> {
    /// Goes through the login. The last response is the caller's to send.
    async fn log_in(
        &mut self,
        targets: &Targets,
        chap: Option<&Chap>,
    ) -> Result<(Agreed, LoginRequest, Step), LoginError> {
        let find = |name: &str| targets.find(name);
        let mut phase = Login::new(&find, chap);
        for _ in 0..LOGIN_REQUESTS_MAX {
            let Frame { bhs, data, .. } = self.receive().await?;
            if pdu::opcode(&bhs) != LoginRequest::OPCODE {
                return Err(LoginError::NotALogin);
            }
            let request = LoginRequest::decode(&bhs);
            self.command_sn = request.command_sn;
            let mut step = phase.step(&request, &data);
            match std::mem::replace(&mut step.next, Next::Request) {
                Next::Request => self.answer(&request, step, 0).await?,
                Next::Session(agreed) => return Ok((agreed, request, step)),
                Next::Refused(refusal) => {
                    if let Some(pause) = self.refusal_pause {
                        tokio::time::sleep(pause).await;
                    }
                    self.answer(&request, step, 0).await?;
                    return Err(refusal.into());
                }
            }
        }
        Err(LoginError::TooMany)
    }

    async fn receive(&mut self) -> Result<Frame, LoginError> {
        loop {
            if let Some(frame) = self.frames.take(&mut self.inbox)? {
                return Ok(frame);
            }
            if poll_fn(|cx| self.inbox.poll_fill(cx, &mut self.stream)).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    async fn answer(&mut self, request: &LoginRequest, step: Step, session: u16) -> io::Result<()> {
        let Step { mut response, text, .. } = step;
        response.tsih = session;
        response.status_sn = self.status_sn;
        response.expected_command_sn = request.command_sn;
        response.command_sn_max = session::window_from(request.command_sn);
        self.status_sn += 1;
        let mut outbox = Outbox::default();
        self.frames.put(&mut outbox, &response.encode(text.len()), Bytes::from(text));
        poll_fn(|cx| outbox.poll_send(cx, &mut self.stream)).await
    }

    async fn refuse(&mut self, request: &LoginRequest, status: u16) -> io::Result<()> {
        let response = pdu::LoginResponse { isid: request.isid, task: request.task, status, ..Default::default() };
        self.answer(request, Step { response, text: Vec::new(), next: Next::Request }, 0).await
    }
}
