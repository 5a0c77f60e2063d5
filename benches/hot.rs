//! What is done for each request, record or megabyte, timed alone: `cargo bench --bench hot [-- NAME]`.
//!
//! Owns: bytes or items per second of single functions, on one core, with files in memory. Does not own: how fast the
//! whole program is beside others; that is `benches/compare`.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use umbra::format::log::{LogOp, crc32c};
use umbra::format::pack::{PackBuilder, decode_record};
use umbra::format::{Keys, ObjectHash, PackContent, VolumeId};
use umbra::marks::{Change, Facts, MarksFile, RegionSet, open_io};
use umbra::nbd::wire::{Request, command};
use umbra::snapshot::coalesce::visible;
use umbra::units::{
    BLOCK, Block, GIB, Generation, KIB, LogIndex, MIB, Mask, REGION, SECTOR, SECTORS_PER_BLOCK, Sequence, Span, TIB,
};
use umbra::volume::heat::{HOT_MAX, Heat};
use umbra::volume::ranges::RangeLock;
use umbra::writelog::{Pool, Record, SEGMENT, Settings, Start, VolumeLog};

fn main() {
    divan::main();
}

const VOLUME: VolumeId = VolumeId([7; 16]);
/// The largest there is: what costs time by the size of the volume shows here.
const SIZE: u64 = 64 * TIB;
/// Operations in one measured call where a single one is too short to be timed.
const MANY: usize = 1024;

/// Numbers without a pattern that matters here, the same in every run (xorshift*).
struct Numbers(u64);

impl Numbers {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }
    /// A page of 4 KiB, anywhere in `size` bytes.
    fn page(&mut self, size: u64) -> Span {
        Span::at(self.below(size / (4 * KIB)) * 4 * KIB, 4 * KIB)
    }
}

/// In memory, so that no disk is measured; elsewhere where the system has no such place.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("umbra-hot-").tempdir_in(place).expect("a folder for temporary files")
}

/// What a client's data may be like.
#[derive(Clone, Copy, Debug)]
enum Data {
    /// As encrypted or compressed files are.
    Incompressible,
    /// Machine code and tables: this program's own file.
    Executable,
}

const KINDS: [Data; 2] = [Data::Incompressible, Data::Executable];
/// Bytes in one pack: beyond what a core caches.
const PACK: u64 = 16 * MIB;

impl Data {
    fn bytes(self) -> &'static [u8] {
        static INCOMPRESSIBLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let mut numbers = Numbers::new();
            (0..PACK / 8).flat_map(|_| numbers.below(u64::MAX).to_le_bytes()).collect()
        });
        static EXECUTABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let path = std::env::current_exe().expect("the program has a file");
            let file = std::fs::read(path).expect("the program's file can be read");
            file.into_iter().cycle().take(PACK as usize).collect()
        });
        match self {
            Self::Incompressible => &INCOMPRESSIBLE,
            Self::Executable => &EXECUTABLE,
        }
    }
}

mod nbd {
    use super::*;

    #[divan::bench]
    fn parse_requests(bencher: Bencher) {
        let mut numbers = Numbers::new();
        let sent: Vec<[u8; Request::LENGTH]> = (0..MANY as u64)
            .map(|cookie| {
                let command = if cookie % 4 == 0 { command::WRITE } else { command::READ };
                Request { flags: 0, command, cookie, offset: numbers.page(SIZE).start, length: 4096 }.encode()
            })
            .collect();
        bencher
            .counter(ItemsCount::new(MANY))
            .bench_local(|| black_box(&sent).iter().filter_map(Request::decode).fold(0, |sum, it| sum ^ it.offset));
    }
}

mod log {
    use super::*;

    /// Bytes of payload in one measured call: less than may wait for the log's writer, more than it takes at once.
    const BATCH: u64 = 32 * MIB;

    /// From the queue through headers and checksums to synced segment files.
    #[divan::bench(args = [4 * KIB, 128 * KIB, MIB], sample_count = 20)]
    fn append(bencher: Bencher, size: u64) {
        let folder = folder();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let log = open(folder.path());
        let payload = Bytes::copy_from_slice(&Data::Incompressible.bytes()[..size as usize]);
        let mut next = LogIndex(1);
        bencher.counter(BytesCount::new(BATCH)).bench_local(|| {
            next = append_batch(&log, &runtime, &payload, next);
        });
    }

    fn open(folder: &Path) -> VolumeLog {
        let settings = Settings { size: 4 * SEGMENT, volumes: 1, discard: false };
        let (pool, _) = Pool::open(folder, settings).expect("a log in an empty folder");
        pool.volume(VOLUME, Start::Empty(LogIndex(1))).expect("the first volume of a log")
    }

    fn append_batch(log: &VolumeLog, runtime: &Runtime, payload: &Bytes, mut next: LogIndex) -> LogIndex {
        let length = payload.len() as u64;
        let mut last = next;
        for offset in (0..BATCH).step_by(payload.len()) {
            let sequence = Sequence(next.0);
            let payload = payload.clone();
            log.append(Record { index: next, sequence, op: LogOp::Write, offset, length, payload })
                .expect("room, for every batch before was freed");
            (last, next) = (next, next.next());
        }
        runtime.block_on(log.sync(last)).expect("a log in memory does not fail");
        log.free(last);
        next
    }

    #[divan::bench(args = [4 * KIB, 128 * KIB])]
    fn crc(bencher: Bencher, size: u64) {
        let bytes = &Data::Incompressible.bytes()[..size as usize];
        bencher.counter(BytesCount::new(size)).bench_local(|| crc32c(black_box(bytes)));
    }
}

mod pack {
    use super::*;

    fn keys() -> Keys {
        Keys::unencrypted(VOLUME)
    }

    /// All bytes of `data`, in records of `mask` of one block each.
    fn built(data: Data, mask: Mask) -> PackBuilder {
        let mut pack = PackBuilder::new(&keys(), Generation(1), 1);
        for (block, bytes) in (0..).zip(data.bytes().chunks_exact(mask.count() as usize * SECTOR as usize)) {
            pack.push_data(Block(block), 0, mask, bytes).expect("records in order, each of its mask's size");
        }
        pack
    }

    /// Whole blocks, as a scan and a sequential stream leave them.
    #[divan::bench(args = KINDS, sample_count = 20)]
    fn encode_blocks(bencher: Bencher, data: Data) {
        data.bytes();
        bencher.counter(BytesCount::new(PACK)).bench_local(|| built(data, Mask::FULL).finish());
    }

    /// Records of 4 KiB, as random writes leave them.
    #[divan::bench(args = KINDS, sample_count = 20)]
    fn encode_pages(bencher: Bencher, data: Data) {
        data.bytes();
        bencher.counter(BytesCount::new(PACK)).bench_local(|| built(data, Mask::range(8, 8)).finish());
    }

    /// As a restore does: decompressed, hashed, compared.
    #[divan::bench(args = KINDS, sample_count = 20)]
    fn decode_blocks(bencher: Bencher, data: Data) {
        let (bytes, object) = built(data, Mask::FULL).finish();
        let keys = keys();
        let records = umbra::format::pack::verify_pack(&keys, &bytes, &object).expect("a pack that was just made");
        bencher.counter(BytesCount::new(PACK)).bench_local(|| {
            for record in &records {
                let PackContent::Data(stored) = &record.content else { continue };
                let stored = &bytes[stored.offset as usize..][..stored.length as usize];
                black_box(decode_record(&keys, record, stored).expect("a record that was just verified"));
            }
        });
    }

    #[divan::bench(args = [4 * KIB, BLOCK])]
    fn content_hash(bencher: Bencher, size: u64) {
        let keys = keys();
        let bytes = &Data::Incompressible.bytes()[..size as usize];
        bencher.counter(BytesCount::new(size)).bench_local(|| keys.content_hash(black_box(bytes)));
    }

    #[divan::bench(sample_count = 20)]
    fn object_hash(bencher: Bencher) {
        let bytes = Data::Incompressible.bytes();
        bencher.counter(BytesCount::new(PACK)).bench_local(|| ObjectHash::of(black_box(bytes)));
    }
}

mod marks {
    use super::*;

    fn pages(size: u64) -> Vec<Span> {
        let mut numbers = Numbers::new();
        (0..MANY).map(|_| numbers.page(size)).collect()
    }

    /// What each write asks of the marks when all that it touches is hot.
    #[divan::bench]
    fn claim_hot(bencher: Bencher) {
        let pages = pages(HOT_MAX * REGION);
        let mut hot = RegionSet::new(SIZE);
        hot.insert_regions(0..HOT_MAX);
        let diverged = hot.emptied();
        let mut heat = Heat::new(hot, diverged, LogIndex(0), Facts::default(), HOT_MAX);
        bencher.counter(ItemsCount::new(MANY)).bench_local(|| {
            for &page in &pages {
                heat.claim(page).expect("hot");
                black_box(heat.touch(page));
            }
        });
    }

    #[divan::bench]
    fn insert_and_remove(bencher: Bencher) {
        let pages = pages(SIZE);
        let mut set = RegionSet::new(SIZE);
        bencher.counter(ItemsCount::new(MANY)).bench_local(|| {
            pages.iter().for_each(|&page| set.insert(page));
            pages.iter().for_each(|&page| set.remove(page));
            set.len()
        });
    }

    /// The runs of a set that is hot here and there: what a checkpoint or a restart walks over.
    #[divan::bench]
    fn runs(bencher: Bencher) {
        let mut set = RegionSet::new(SIZE);
        pages(SIZE).into_iter().for_each(|page| set.insert(page));
        bencher.counter(ItemsCount::new(set.regions())).bench_local(|| black_box(&set).runs().count());
    }

    /// Makes 32 cold regions hot, and those before cold, in a file in memory: all that a mark costs but for the disk.
    #[divan::bench]
    fn commit(bencher: Bencher) {
        let folder = folder();
        let io = open_io(&folder.path().join("marks")).expect("a file in an empty folder");
        let mut file = MarksFile::begin(io, VOLUME, TIB, Facts::default()).expect("marks in memory");
        let all = Change { cool: std::iter::once(0..TIB / REGION).collect(), ..Change::default() };
        file.commit(&all).expect("marks in memory");
        let mut numbers = Numbers::new();
        let mut cool = Vec::new();
        bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
            let regions = (0..32).map(|_| numbers.below(TIB / REGION));
            let heat: Vec<_> = regions.map(|region| region..region + 1).collect();
            let change = Change { cool: std::mem::replace(&mut cool, heat.clone()), heat, ..Change::default() };
            file.commit(&change).expect("marks in memory");
        });
    }
}

mod ranges {
    use super::*;

    /// As many others as four busy connections have in flight.
    const HELD: usize = 128;

    #[divan::bench]
    fn acquire_and_release(bencher: Bencher) {
        let lock = Arc::new(RangeLock::default());
        let mut numbers = Numbers::new();
        let held: Vec<_> = (0..HELD).filter_map(|_| lock.try_acquire(numbers.page(SIZE))).collect();
        let pages: Vec<Span> = (0..MANY).map(|_| numbers.page(SIZE)).collect();
        bencher.counter(ItemsCount::new(MANY)).bench_local(|| {
            for &page in &pages {
                black_box(lock.try_acquire(page));
            }
        });
        drop(held);
    }

    /// Two that want the same range: one waits and is handed it.
    #[divan::bench]
    fn hand_over(bencher: Bencher) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let lock = Arc::new(RangeLock::default());
        let span = Span::at(0, 4 * KIB);
        bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
            runtime.block_on(async {
                let first = lock.acquire(span).await;
                let second = async { drop(lock.acquire(span).await) };
                // Polled first, so that it waits before the range is given back.
                futures_util::future::join(second, async { drop(first) }).await
            })
        });
    }
}

mod coalesce {
    use super::*;

    /// An epoch of a busy volume.
    const OPERATIONS: u64 = 200_000;

    #[derive(Clone, Copy, Debug)]
    enum Load {
        /// Pages anywhere in 64 GiB: hardly any meet.
        Scattered,
        /// Pages in 64 MiB: each is written again and again.
        Rewritten,
        /// One stream of 128 KiB writes.
        Sequential,
    }

    #[divan::bench(args = [Load::Scattered, Load::Rewritten, Load::Sequential], sample_count = 20)]
    fn batch(bencher: Bencher, load: Load) {
        let mut numbers = Numbers::new();
        let mut span = |at: u64| match load {
            Load::Scattered => numbers.page(64 * GIB),
            Load::Rewritten => numbers.page(64 * MIB),
            Load::Sequential => Span::at(at * 128 * KIB, 128 * KIB),
        };
        let operations: Vec<(u64, u64)> =
            (0..OPERATIONS).map(&mut span).map(|span| (span.start / SECTOR, span.len() / SECTOR)).collect();
        bencher.counter(ItemsCount::new(OPERATIONS)).bench_local(|| visible(black_box(&operations)));
    }
}

mod masks {
    use super::*;

    /// Eight pages of a block, one after the other, as pieces of a block are gathered; then what is left to name.
    #[divan::bench]
    fn gather(bencher: Bencher) {
        let mut numbers = Numbers::new();
        let pages: Vec<[u32; 8]> = (0..MANY)
            .map(|_| std::array::from_fn(|_| numbers.below(u64::from(SECTORS_PER_BLOCK) / 8) as u32 * 8))
            .collect();
        bencher.counter(ItemsCount::new(MANY)).bench_local(|| {
            black_box(&pages).iter().fold(0, |sum, firsts| {
                let gathered = firsts.iter().fold(Mask::NONE, |mask, &first| mask.or(Mask::range(first, 8)));
                sum + Mask::FULL.minus(gathered).count()
            })
        });
    }

    #[divan::bench]
    fn runs(bencher: Bencher) {
        let mut numbers = Numbers::new();
        let half = |numbers: &mut Numbers| u128::from(numbers.below(u64::MAX));
        let masks: Vec<Mask> = (0..MANY).map(|_| Mask(half(&mut numbers) << 64 | half(&mut numbers))).collect();
        bencher
            .counter(ItemsCount::new(MANY))
            .bench_local(|| black_box(&masks).iter().map(|mask| mask.runs().count()).sum::<usize>());
    }
}
