//! From an address to a session: connects, logs in, and goes where the target points to.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::login::{Login, LoginError, Next, Request};
use super::{Options, url};
use crate::iscsi::frames::{FrameError, Frames};
use crate::iscsi::parameters::Parameters;
use crate::iscsi::pdu::{self, IMMEDIATE, LoginResponse, login};
use crate::net::{Inbox, Outbox, Stream};

/// From the first packet to the end of the login, at one portal.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Portals that point to others: there is a balancer, perhaps a second one, and else a circle.
const REDIRECTIONS_MAX: usize = 3;
/// Number of the session's first command; any will do.
const FIRST_COMMAND: u32 = 1;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the target could not be reached")]
    Unreachable(#[source] io::Error),
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the target closed the connection")]
    Closed,
    #[error("no session within {CONNECT_MAX:?}")]
    TimedOut,
    #[error("this is not an iSCSI target")]
    NotIscsi,
    #[error("bytes that are no PDU")]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Login(#[from] LoginError),
    #[error("more than {REDIRECTIONS_MAX} portals point to others")]
    Redirections,
}

/// A connection whose session has begun.
pub(super) struct Connection<S> {
    pub stream: S,
    pub inbox: Inbox,
    pub frames: Frames,
    pub parameters: Parameters,
    /// Number of the next command, and the last that may be used.
    pub command_sn: u32,
    pub command_sn_max: u32,
    /// Number of the next response.
    pub status_sn: u32,
}

/// How a portal is reached.
pub(crate) trait Dial: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn dial(&self, host: &str, port: u16) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// Over the network.
pub(super) struct Tcp;

impl Dial for Tcp {
    type Stream = Stream;
    async fn dial(&self, host: &str, port: u16) -> io::Result<Stream> {
        TcpStream::connect((host, port)).await.and_then(Stream::tcp)
    }
}

pub(super) async fn connect<D: Dial>(dial: &D, options: &Options) -> Result<Connection<D::Stream>, ConnectError> {
    let (mut host, mut port) = (options.url.host.clone(), options.url.port);
    for _ in 0..=REDIRECTIONS_MAX {
        let attempt = async {
            let stream = dial.dial(&host, port).await.map_err(ConnectError::Unreachable)?;
            log_in(stream, options).await
        };
        match timeout(CONNECT_MAX, attempt).await.unwrap_or(Err(ConnectError::TimedOut))? {
            LoggedIn::Session(connection) => return Ok(connection),
            LoggedIn::Elsewhere(address) => {
                tracing::debug!(url = %options.url, to = address, "the target points to another portal");
                (host, port) = url::authority(&address).ok_or(LoginError::Redirect(address))?;
            }
        }
    }
    Err(ConnectError::Redirections)
}

pub(super) enum LoggedIn<S> {
    Session(Connection<S>),
    /// At another portal.
    Elsewhere(String),
}

pub(super) async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    options: &Options,
) -> Result<LoggedIn<S>, ConnectError> {
    let (mut phase, mut request) = Login::new(options);
    let (mut inbox, mut frames) = (Inbox::default(), Frames::default());
    let mut status_sn = None;
    loop {
        send(&mut stream, &frames, request, status_sn.unwrap_or(0)).await?;
        let (response, text) = receive(&mut stream, &mut inbox, &mut frames).await?;
        // Of a refusal the number is not valid (11.13.4).
        let counts = response.status == login::SUCCESS;
        if counts && status_sn.is_some_and(|expected| expected != response.status_sn) {
            return Err(LoginError::Broken("responses out of order").into());
        }
        status_sn = Some(response.status_sn.wrapping_add(1));
        request = match phase.take(&response, &text)? {
            Next::Request(request) => request,
            Next::Elsewhere(address) => return Ok(LoggedIn::Elsewhere(address)),
            Next::Session(parameters) => {
                frames.agree(&parameters);
                return Ok(LoggedIn::Session(Connection {
                    stream,
                    inbox,
                    frames,
                    parameters,
                    command_sn: FIRST_COMMAND,
                    command_sn_max: response.command_sn_max,
                    status_sn: response.status_sn.wrapping_add(1),
                }));
            }
        }
    }
}

async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    frames: &Frames,
    request: Request,
    status_sn: u32,
) -> io::Result<()> {
    let Request { mut head, text } = request;
    // Logins are immediate: they take no number (4.2.2.1).
    (head.command_sn, head.expected_status_sn) = (FIRST_COMMAND, status_sn);
    let mut bhs = head.encode(text.len());
    bhs[0] |= IMMEDIATE;
    let mut outbox = Outbox::default();
    frames.put(&mut outbox, &bhs, text.into());
    poll_fn(|cx| outbox.poll_send(cx, stream)).await
}

async fn receive(
    stream: &mut (impl AsyncRead + Unpin),
    inbox: &mut Inbox,
    frames: &mut Frames,
) -> Result<(LoginResponse, Bytes), ConnectError> {
    loop {
        // The first byte says whether it is worth waiting for more.
        if let Some([opcode]) = inbox.peek::<1>()
            && frames.is_between()
            && *opcode != LoginResponse::OPCODE
        {
            return Err(ConnectError::NotIscsi);
        }
        if let Some(frame) = frames.take(inbox)? {
            debug_assert_eq!(pdu::opcode(&frame.bhs), LoginResponse::OPCODE);
            return Ok((LoginResponse::decode(&frame.bhs), frame.data));
        }
        if poll_fn(|cx| inbox.poll_fill(cx, stream)).await? == 0 {
            return Err(ConnectError::Closed);
        }
    }
}
