//! An initiator that says anything, from its login on: entry point of [`crate::fuzzing`].
//!
//! Neither a socket nor a clock is needed: what the initiator says lies in memory, and whoever waits although nothing will
//! come is found at once. An input is a byte of [`mode`], and PDUs. Digests are not in it, nor is the answer to a challenge,
//! which differs each time: it is thirty-two zeroes there.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::Target;
use super::discovery::Targets;
use super::server::converse;
use super::session::{self, End, Opened};
use crate::disk::{BlockSizes, Disk, Geometry, MemoryDisk};
use crate::iscsi::chap::{self, Account, Chap, Secret};
use crate::iscsi::frames::Frames;
use crate::iscsi::parameters::Parameters;
use crate::iscsi::pdu::{self, BHS, FINAL, LoginRequest, LogoutRequest, ScsiCommand, command, login};
use crate::iscsi::text;
use crate::net::Inbox;
use crate::scsi::{InitiatorPort, Unit, UnitSettings};
use crate::task::drive;
use crate::units::{KIB, MIB};

/// Bits of the first byte of an input. The two lowest say in what pieces the rest comes.
mod mode {
    /// Nothing comes at every other attempt.
    pub const PAUSES: u8 = 1 << 2;
    /// The initiator has to prove who it is. One PDU comes at a time.
    pub const CHAP: u8 = 1 << 3;
    /// What follows the login gets digests: of headers, ...
    pub const HEADER_DIGEST: u8 = 1 << 4;
    /// ... and of data.
    pub const DATA_DIGEST: u8 = 1 << 5;
    /// No login: the rest is of a session.
    pub const AGREED: u8 = 1 << 6;
}

const NAME: &str = "iqn.2026-11.example:disk0";
const SECRET: &[u8] = b"secret-of-the-fuzzer";
/// What stands for the answer to a challenge.
const ANSWER: &[u8] = b"CHAP_R=0x00000000000000000000000000000000";
/// Small enough that an input full of reads takes no time.
const TRANSFER_MAX: u32 = 256 * KIB as u32;

/// Serves an initiator that says `input`, and after it one that is as it should be. Whether the first came to log out.
pub(crate) fn initiator(input: &[u8]) -> bool {
    let Some((&mode, said)) = input.split_first() else { return false };
    let _clock = clock().enter();
    let target = target();
    let left = serve(&target, mode, said) == Some(End::LoggedOut);
    assert_eq!(serve(&target, 0, &right()), Some(End::LoggedOut), "an initiator is not served after another");
    left
}

/// What timers need. It is never driven, so that none of them ends.
fn clock() -> &'static Runtime {
    static CLOCK: OnceLock<Runtime> = OnceLock::new();
    CLOCK.get_or_init(|| tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime"))
}

fn target() -> Arc<Target> {
    let able = MemoryDisk::new(MIB).geometry();
    let block = BlockSizes { maximum: TRANSFER_MAX, ..able.block };
    let disk = Arc::new(MemoryDisk::with_geometry(Geometry { block, ..able }));
    Target::new(NAME.into(), Unit::new(disk, UnitSettings::example(NAME)).expect("there is nothing to load"))
}

fn account(user: &str) -> Account {
    Account { user: user.into(), secret: Secret::new(SECRET.to_vec()).expect("long enough") }
}

/// Logs in, reads, and logs out.
fn right() -> Vec<u8> {
    let keys = format!("InitiatorName=iqn.2026-11.example:a\0TargetName={NAME}\0");
    let flags = login::TRANSIT | login::OPERATIONAL << 2 | login::FULL_FEATURE;
    let log_in = LoginRequest { flags, isid: [0x80, 0, 0, 0, 0, 1], command_sn: 1, ..Default::default() };
    let mut cdb = [0; 16];
    (cdb[0], cdb[8]) = (0x28, 8);
    let read =
        ScsiCommand { flags: FINAL | command::READ, task: 1, expected: 4096, command_sn: 1, cdb, ..Default::default() };
    let log_out = LogoutRequest { reason: FINAL, task: 2, command_sn: 2, ..Default::default() };
    let padding = &[0; 4][..pdu::padding(keys.len())];
    [&log_in.encode(keys.len())[..], keys.as_bytes(), padding, &read.encode(0), &log_out.encode(0)].concat()
}

/// How the session ended; none if there was none, or it was broken off.
fn serve(target: &Arc<Target>, mode: u8, said: &[u8]) -> Option<End> {
    let chap = Chap { initiator: account("alice"), target: Some(account("umbra")) };
    let chap = (mode & mode::CHAP != 0).then_some(&chap);
    let mut script = Script::new(mode, said);
    let targets = Targets { all: [target.clone()].into(), portals: vec!["192.0.2.1:3260".into()] };
    let (_go_on, stop) = watch::channel(false);
    let end = if mode & mode::AGREED == 0 {
        drive(converse(&mut script, &targets, chap, None, stop))
    } else {
        let nexus =
            target.unit.attach(InitiatorPort { name: "iqn.2026-11.example:a".into(), isid: [0; 6], target_port: 1 });
        let (header_digest, data_digest) = (mode & mode::HEADER_DIGEST != 0, mode & mode::DATA_DIGEST != 0);
        let parameters = Parameters { header_digest, data_digest, ..Parameters::default() };
        let mut frames = Frames::default();
        frames.agree(&parameters);
        let (_stays, leave) = watch::channel(false);
        let opened = Opened {
            stream: &mut script,
            inbox: Inbox::default(),
            frames,
            parameters,
            command_sn: 1,
            status_sn: 1,
            connection: 0,
            targets,
            unit: Some((target.clone(), nexus)),
        };
        drive(session::serve(opened, leave, stop)).ok()
    };
    assert!(end.is_none() || script.heard.is_whole(), "the last response is cut off");
    end
}

/// The bytes of the PDU that `said` begins with, without digests: of its header and of its data.
fn lengths(said: &[u8]) -> Option<(usize, usize)> {
    let bhs = said.first_chunk::<BHS>()?;
    let data = pdu::data_length(bhs);
    Some((BHS + pdu::ahs_length(bhs), data + pdu::padding(data)))
}

/// Adds the digests to all that follows the login.
fn with_digests(mode: u8, mut said: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(2 * said.len());
    let mut in_login = mode & mode::AGREED == 0;
    while let Some((header, data)) = lengths(said)
        && let Some((pdu, rest)) = said.split_at_checked(header + data)
    {
        said = rest;
        let (header, data) = pdu.split_at(header);
        in_login &= header[0] & 0x3f == LoginRequest::OPCODE;
        for (part, bit) in [(header, mode::HEADER_DIGEST), (data, mode::DATA_DIGEST)] {
            whole.extend_from_slice(part);
            if mode & bit != 0 && !in_login && !part.is_empty() {
                whole.extend_from_slice(&pdu::digest(part));
            }
        }
    }
    whole.extend_from_slice(said);
    whole
}

/// A connection to an initiator that says what was written down for it, and hangs up.
struct Script {
    mode: u8,
    said: Vec<u8>,
    at: usize,
    paused: bool,
    /// Login responses, as long as a challenge is awaited.
    challenge: Option<Vec<u8>>,
    heard: Heard,
}

/// What was answered; only its form is looked at.
#[derive(Default)]
struct Heard {
    digests: bool,
    head: Vec<u8>,
    data: usize,
}

impl Heard {
    fn hear(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.digests {
            let skipped = self.data.min(bytes.len());
            self.data -= skipped;
            let taken = (BHS - self.head.len()).min(bytes.len() - skipped);
            self.head.extend_from_slice(&bytes[skipped..skipped + taken]);
            bytes = &bytes[skipped + taken..];
            if let Some((header, data)) = lengths(&self.head) {
                assert!(header == BHS && self.head[0] & 0xe0 == 0x20, "{:02x?} is no response", self.head);
                self.data = data;
                self.head.clear();
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.head.is_empty() && self.data == 0
    }
}

impl Script {
    fn new(mode: u8, said: &[u8]) -> Self {
        let digests = mode & (mode::HEADER_DIGEST | mode::DATA_DIGEST) != 0;
        Self {
            mode,
            said: with_digests(mode, said),
            at: 0,
            paused: false,
            challenge: (mode & mode::CHAP != 0).then(Vec::new),
            heard: Heard { digests, ..Heard::default() },
        }
    }

    /// Whether it is the initiator's turn to let us wait.
    fn pauses(&mut self, cx: &Context<'_>) -> bool {
        self.paused = self.mode & mode::PAUSES != 0 && !self.paused;
        if self.paused {
            cx.waker().wake_by_ref();
        }
        self.paused
    }

    fn piece(&self) -> usize {
        [usize::MAX, 4096, 29, 1][usize::from(self.mode & 3)]
    }

    /// Bytes that come before an answer of ours is heard.
    fn ready(&self) -> usize {
        let rest = &self.said[self.at..];
        match (&self.challenge, lengths(rest)) {
            (Some(_), Some((header, data))) => rest.len().min(header + data),
            _ => rest.len(),
        }
    }

    /// Writes the right answer to the challenge to where it is to be said.
    fn meet_challenge(&mut self, bytes: &[u8]) {
        let Some(heard) = &mut self.challenge else { return };
        heard.extend_from_slice(bytes);
        let value = |key: &[u8]| {
            let at = heard.windows(key.len()).position(|window| window == key)? + key.len();
            let length = heard[at..].iter().position(|byte| *byte == 0)?;
            std::str::from_utf8(&heard[at..at + length]).ok()
        };
        let (Some(identifier), Some(challenge)) = (value(b"CHAP_I="), value(b"CHAP_C=")) else { return };
        let identifier = text::number(identifier).and_then(|number| u8::try_from(number).ok()).expect("a byte");
        let challenge = text::bytes(challenge, chap::CHALLENGE_MAX).expect("bytes");
        let response = text::hexadecimal(&chap::response_to(identifier, &account("alice").secret, &challenge));
        let rest = &mut self.said[self.at..];
        if let Some(at) = rest.windows(ANSWER.len()).position(|window| window == ANSWER) {
            rest[at + ANSWER.len() - response.len()..][..response.len()].copy_from_slice(response.as_bytes());
        }
        self.challenge = None;
    }
}

impl AsyncRead for &mut Script {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.pauses(cx) {
            return Poll::Pending;
        }
        let end = self.at + self.piece().min(self.ready()).min(buffer.remaining());
        buffer.put_slice(&self.said[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for &mut Script {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.pauses(cx) {
            return Poll::Pending;
        }
        let taken = &bytes[..self.piece().saturating_mul(64).min(bytes.len())];
        self.heard.hear(taken);
        self.meet_challenge(taken);
        Poll::Ready(Ok(taken.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
