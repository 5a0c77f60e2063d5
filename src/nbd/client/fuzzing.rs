//! A server that says anything: an entry point of [`crate::fuzzing`].

use futures_util::future::{join, join_all};
use tokio::sync::mpsc;

use super::*;
use crate::disk::{Abilities, BlockSizes};
use crate::nbd::fuzzing::Script;
use crate::nbd::uri::ServerAddress;
use crate::task::drive;
use crate::units::{KIB, MIB};

/// Bits of the first byte of an input, besides those of [`Script`].
mod mode {
    /// No negotiation: the rest is replies.
    pub const AGREED: u8 = 1 << 6;
    /// Of what was agreed on without negotiation: structured replies, and block status under number 1.
    pub const STRUCTURED: u8 = 1 << 7;
}

/// Opens an export of a server that says `input`, and asks for everything at once.
pub(crate) fn server(input: &[u8]) -> bool {
    let Some((&mode, said)) = input.split_first() else { return false };
    let mut stream = Script::new(mode, said);
    drive(async {
        let terms = if mode & mode::AGREED != 0 {
            Ok(agreed(mode & mode::STRUCTURED != 0))
        } else {
            handshake::negotiate(&mut stream, "disk0").await
        };
        let Ok(terms) = terms else { return false };
        let (disk, jobs) = disk(terms);
        let dialect = Dialect { structured_replies: terms.structured_replies, context: terms.context };
        let requests = requests(&disk);
        // The server hangs up in the end; then every request has an answer.
        let (end, answered) = join(link::run(&mut stream, dialect, jobs), requests).await;
        assert!(end.is_err());
        answered
    })
}

fn agreed(structured_replies: bool) -> Terms {
    let block = BlockSizes { minimum: 512, preferred: 4096, maximum: 64 * KIB as u32 };
    let abilities = Abilities {
        flush: true,
        fua: true,
        trim: true,
        write_zeroes: true,
        fast_zeroes: true,
        cache: true,
        extents: structured_replies,
        ..Abilities::default()
    };
    let geometry = Geometry { size: MIB, block, abilities };
    Terms { geometry, structured_replies, context: structured_replies.then_some(1) }
}

/// With one connection, which nobody renews.
fn disk(terms: Terms) -> (NbdDisk, mpsc::UnboundedReceiver<Job>) {
    let (sender, jobs) = mpsc::unbounded_channel();
    let server = ServerAddress::Tcp { host: "localhost".into(), port: 1 };
    let shared = Shared {
        uri: Uri { server, export: "disk0".into() },
        geometry: terms.geometry,
        has_context: terms.context.is_some(),
        patience: Duration::ZERO,
        incarnation: AtomicU64::new(0),
        jobs: Jobs::new(Ways { ways: vec![Way::new(sender)], current: 0 }),
        dropped: Notify::new(),
    };
    (NbdDisk { shared: Arc::new(shared) }, jobs)
}

/// Issues requests of every kind, checks what they are answered, and says whether all were.
fn requests(disk: &NbdDisk) -> impl Future<Output = bool> + use<> {
    let Geometry { size, block, .. } = disk.geometry();
    let minimum = u64::from(block.minimum);
    let length = |most: u64| size.min(most.max(minimum)) / minimum * minimum;
    let (short, long) = (length(4 * KIB), length(256 * KIB));
    let offset = length(u64::MAX) - short;

    let reads = [(0, short), (offset, short), (0, long)].map(|(offset, length)| {
        let answer = disk.read(offset, length as u32);
        async move {
            let answer = answer.await;
            if let Ok(data) = &answer {
                assert_eq!(data.len() as u64, length);
            }
            answered(&answer)
        }
    });
    let extents = [(0, length(u64::MAX), 16), (offset, short, 1)].map(|(offset, length, limit)| {
        let answer = disk.extents(offset, length, limit);
        async move {
            let answer = answer.await;
            if let Ok(extents) = &answer {
                assert!((1..=limit).contains(&extents.len()) && extents.iter().all(|extent| extent.length > 0));
                assert!(extents.iter().map(|extent| extent.length).sum::<u64>() <= length, "{extents:?}");
            }
            answered(&answer)
        }
    });
    let changes = [
        disk.write(0, vec![7; short as usize].into(), false),
        disk.flush(),
        disk.trim(0, long, true),
        disk.write_zeroes(offset, short, ZeroMode { no_hole: true, fast_only: false }, false),
        disk.cache(0, long),
    ];
    async {
        let (reads, (extents, changes)) = join(join_all(reads), join(join_all(extents), join_all(changes))).await;
        reads.into_iter().chain(extents).chain(changes.iter().map(answered)).all(|answered| answered)
    }
}

fn answered<T>(answer: &disk::Result<T>) -> bool {
    !matches!(answer, Err(DiskError::Lost))
}
