//! A target that says anything: an entry point of [`crate::fuzzing`].

use std::cell::OnceCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::{join, join_all};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::cdb::Form;
use super::connect::{Connection, LoggedIn, log_in};
use super::unit::{Synchronizes, Unmaps, WritesSame};
use super::*;
use crate::disk::{self, Disk, ZeroMode};
use crate::iscsi::chap::Secret;
use crate::iscsi::frames::Frames;
use crate::iscsi::parameters::Parameters;
use crate::iscsi::pdu::{self, BHS};
use crate::net::Inbox;
use crate::units::{KIB, MIB};

/// Bits of the first byte of an input. The two lowest say in what pieces the rest comes.
mod mode {
    /// Nothing comes at every other attempt.
    pub const PAUSES: u8 = 1 << 2;
    /// With CHAP, of both.
    pub const CHAP: u8 = 1 << 3;
    /// The unit is looked at; else it is known.
    pub const INSPECTED: u8 = 1 << 4;
    /// No login: the rest is what is answered to commands.
    pub const AGREED: u8 = 1 << 6;
}

/// Opens a unit of a target that says `input`, and asks for everything at once. Whether all of it was answered.
pub(crate) fn target(input: &[u8]) -> bool {
    let Some((&mode, said)) = input.split_first() else { return false };
    // Clocks run, but nothing waits for them: what the target says lies there, and then it hangs up.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime without a driver of sockets");
    runtime.block_on(async {
        let all = session(mode, Script::new(mode, said));
        timeout(Duration::from_secs(20), all).await.expect("it waits for what never comes")
    })
}

async fn session(mode: u8, stream: Script<'_>) -> bool {
    let account =
        |user: &str, secret: &[u8]| Secret::new(secret.to_vec()).map(|secret| Account { user: user.into(), secret });
    let chap = account("umbra", b"secret-of-umbra").filter(|_| mode & mode::CHAP != 0);
    let chap = chap.map(|ours| Credentials { ours, theirs: account("array", b"secret-of-array") });
    let url = Url { host: "array".into(), port: 3260, target: "iqn.2026-11.example:disk0".into(), lun: 0 };
    let options = Options { url, initiator: "iqn.2026-11.example:gateway".into(), isid: [0x80, 0, 0, 0, 0, 1], chap };
    let connection = if mode & mode::AGREED != 0 {
        agreed(stream)
    } else {
        match log_in(stream, &options).await {
            Ok(LoggedIn::Session(connection)) => connection,
            Ok(LoggedIn::Elsewhere(address)) => return url::authority(&address).is_some(),
            Err(_) => return false,
        }
    };
    let watch = Watch::default();
    let (jobs, receiver) = mpsc::unbounded_channel();
    let link = link::run(connection, 0, receiver, watch.clone());
    let patience = Patience::NONE;
    let opened = OnceCell::new();
    let work = async {
        let facts = if mode & mode::INSPECTED != 0 {
            let direct = Direct { jobs: jobs.clone(), patience };
            let Ok(facts) = inspect(&direct, &options.url).await else { return false };
            facts
        } else {
            facts()
        };
        watch.heed();
        let is_over = jobs.is_closed();
        let shared = Arc::new(Shared::new(options, facts, Duration::ZERO, patience, watch, jobs));
        if is_over {
            shared.jobs.refuse();
        }
        let disk = IscsiDisk { shared: opened.get_or_init(|| shared).clone() };
        let answered = requests(&disk).await;
        // The link shall see that nobody sends any more.
        disk.shared.jobs.refuse();
        answered
    };
    let watched = async {
        let ended = link.await;
        // Whoever waits for another session waits in vain.
        if let Some(shared) = opened.get() {
            shared.jobs.wait(ended.unsent);
            shared.jobs.refuse();
        }
    };
    // Commands go before what is answered to them comes.
    join(work, watched).await.0
}

fn agreed(stream: Script<'_>) -> Connection<Script<'_>> {
    Connection {
        stream,
        inbox: Inbox::default(),
        frames: Frames::default(),
        parameters: Parameters { initial_r2t: false, sent_max: 4096, first_burst_max: 8192, ..Parameters::default() },
        command_sn: 1,
        command_sn_max: 32,
        status_sn: 1,
    }
}

fn facts() -> Facts {
    Facts {
        name: "disk0".into(),
        block_length: 512,
        blocks: MIB / 512,
        preferred: 4096,
        transfer_max: 128,
        form: Form::Sixteen,
        synchronize: Synchronizes::By(Form::Sixteen),
        unmap: Some(Unmaps { count_max: 1024, granularity: 8, alignment: 3 }),
        write_same: Some(WritesSame { count_max: 1024, unmaps: true }),
        lba_status: true,
        unmapped_is_zero: true,
        read_only: false,
        fua: true,
        rotational: false,
    }
}

/// Issues requests of every kind, checks what they are answered, and says whether all were.
async fn requests(disk: &IscsiDisk) -> bool {
    let Geometry { size, block, abilities } = disk.geometry();
    let minimum = u64::from(block.minimum);
    let length = |most: u64| size.min(most.max(minimum)) / minimum * minimum;
    let (short, long) = (length(4 * KIB), length(256 * KIB));
    let offset = length(u64::MAX) - short;
    let reads = [(0, short), (offset, short), (0, long)].map(|(offset, length)| async move {
        let answer = disk.read(offset, length as u32).await;
        if let Ok(data) = &answer {
            assert_eq!(data.len() as u64, length);
        }
        answered(&answer)
    });
    let extents = [(0, length(u64::MAX), 16), (offset, short, 1)].map(|(offset, length, limit)| async move {
        let answer = disk.extents(offset, length, limit).await;
        if let Ok(extents) = &answer {
            assert!((1..=limit).contains(&extents.len()) && extents.iter().all(|extent| extent.length > 0));
            assert!(extents.iter().map(|extent| extent.length).sum::<u64>() <= length, "{extents:?}");
        }
        answered(&answer)
    });
    let changes = [
        disk.write(0, vec![7; short as usize].into(), false),
        disk.write(0, vec![7; long as usize].into(), abilities.fua),
        disk.flush(),
        disk.trim(0, long, abilities.fua),
        disk.write_zeroes(offset, short, ZeroMode { no_hole: true, fast_only: false }, false),
        disk.write_zeroes(0, long, ZeroMode::default(), false),
    ];
    let (reads, (extents, changes)) = join(join_all(reads), join(join_all(extents), join_all(changes))).await;
    reads.into_iter().chain(extents).chain(changes.iter().map(answered)).all(|answered| answered)
}

fn answered<T>(answer: &disk::Result<T>) -> bool {
    !matches!(answer, Err(DiskError::Lost | DiskError::Refused(Errno::ESHUTDOWN)))
}

/// A connection to a target that says what was written down for it, and hangs up. It takes a breath before each PDU, so
/// that what follows an answer is sent before the next one comes.
struct Script<'a> {
    said: &'a [u8],
    piece: usize,
    pauses: bool,
    paused: bool,
    /// Bytes of the PDU at hand that were not said.
    rest: usize,
    breath: u8,
}

/// Attempts at which nothing comes: whoever was answered, and then the link, must have had their turn.
const BREATH: u8 = 3;

impl<'a> Script<'a> {
    fn new(mode: u8, said: &'a [u8]) -> Self {
        let piece = [usize::MAX, 4096, 29, 1][usize::from(mode & 3)];
        Self { said, piece, pauses: mode & mode::PAUSES != 0, paused: false, rest: 0, breath: BREATH }
    }

    fn begin_pdu(&mut self) {
        self.rest = self.said.first_chunk::<BHS>().map_or(self.said.len(), |bhs| {
            let data = pdu::data_length(bhs);
            let length = BHS + pdu::ahs_length(bhs) + data + pdu::padding(data);
            length.min(self.said.len())
        });
        self.breath = BREATH;
    }
}

impl AsyncRead for Script<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.rest == 0 && !self.said.is_empty() {
            self.begin_pdu();
        }
        self.paused = self.pauses && !self.paused;
        if self.paused || self.breath > 0 {
            self.breath = self.breath.saturating_sub(1);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let (piece, said) = self.said.split_at(self.piece.min(self.rest).min(buffer.remaining()));
        buffer.put_slice(piece);
        self.rest -= piece.len();
        self.said = said;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
