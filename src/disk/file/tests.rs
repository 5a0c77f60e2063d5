use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_util::future::join_all;

use super::*;
use crate::disk::{DiskError, conformance};
use crate::units::MIB;

const BUFFERED: Options = Options { direct: false, read_only: false, create: Some(3 * MIB + 77) };
const DIRECT: Options = Options { direct: true, read_only: false, create: Some(3 * MIB) };
const READ_ONLY: Options = Options { direct: false, read_only: true, create: None };

/// On a disk, where direct I/O and NOWAIT work, and not on the tmpfs that /tmp may be.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffered_file_is_a_disk() {
    let folder = folder();
    conformance::check(Arc::new(FileDisk::open(folder.path().join("disk"), BUFFERED).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_file_is_a_disk() {
    let folder = folder();
    conformance::check(Arc::new(FileDisk::open(folder.path().join("disk"), DIRECT).unwrap())).await;
}

/// As where io_uring is forbidden, by a container's filter for instance.
fn open_without_ring(path: &Path, options: Options) -> FileDisk {
    FileDisk::open_with(path, options, |_| Err(io::Errno::PERM.into())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_io_uring_is_a_disk() {
    let folder = folder();
    for (name, options) in [("buffered", BUFFERED), ("direct", DIRECT)] {
        let disk = open_without_ring(&folder.path().join(name), options);
        assert!(disk.inner.ring.is_none());
        conformance::check(Arc::new(disk)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_memory_is_a_disk() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = FileDisk::open(folder.path().join("disk"), BUFFERED).unwrap();
    assert!(disk.inner.in_memory);
    conformance::check(Arc::new(disk)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_file_is_a_disk() {
    let folder = folder();
    let path = folder.path().join("disk");
    std::fs::write(&path, vec![7; 300_001]).unwrap();
    conformance::check(Arc::new(FileDisk::open(&path, READ_ONLY).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filesystem_that_knows_no_holes_is_a_disk() {
    let folder = folder();
    let disk = FileDisk::open(folder.path().join("disk"), BUFFERED).unwrap();
    let inner = Arc::into_inner(disk.inner).unwrap();
    let eraser = Eraser::ignorant(inner.abilities.trim_reads_zero);
    let abilities = Abilities { fast_zeroes: true, ..inner.abilities };
    conformance::check(Arc::new(FileDisk { inner: Arc::new(Inner { eraser, abilities, ..inner }) })).await;
}

#[tokio::test]
async fn what_is_in_the_page_cache_is_answered_at_once() {
    let folder = folder();
    let disk = FileDisk::open(folder.path().join("disk"), BUFFERED).unwrap();
    disk.write(5, Bytes::from_static(b"cached"), false).await.unwrap();
    let Pending::Ready(Some(Ok(bytes))) = disk.read(5, 6) else { panic!("a cached read went to another thread") };
    assert_eq!(&*bytes, b"cached");
}

#[tokio::test]
async fn a_punched_range_becomes_a_hole_and_a_zeroed_one_without_holes_does_not_shrink_the_file() {
    let folder = folder();
    let disk = FileDisk::open(folder.path().join("disk"), BUFFERED).unwrap();
    let blocks = || disk.inner.file.metadata().unwrap().blocks() * 512;
    disk.write(0, vec![1; MIB as usize].into(), true).await.unwrap();
    let full = blocks();
    assert!(full >= MIB);
    disk.write_zeroes(0, MIB, ZeroMode { no_hole: true, fast_only: false }, true).await.unwrap();
    assert_eq!(blocks(), full);
    disk.trim(0, MIB, true).await.unwrap();
    assert_eq!(blocks(), full - MIB);
    assert_eq!(disk.extents(0, MIB, 9).await.unwrap(), [Extent { length: MIB, hole: true, zero: true }]);
}

/// Where the end of data is found page by page, too.
#[tokio::test]
async fn a_hole_that_is_punched_into_data_shows_at_once() {
    for place in ["/var/tmp", "/dev/shm"] {
        let folder = tempfile::tempdir_in(place).unwrap();
        let disk = FileDisk::open(folder.path().join("disk"), BUFFERED).unwrap();
        disk.write(0, vec![1; MIB as usize].into(), true).await.unwrap();
        let [data, hole] = [false, true].map(|hole| Extent { length: 64 * KIB, hole, zero: hole });
        assert_eq!(disk.extents(0, 64 * KIB, 9).await.unwrap(), [data]);
        assert_eq!(disk.extents(128 * KIB, 64 * KIB, 9).await.unwrap(), [data], "of the same run");
        disk.trim(128 * KIB, 64 * KIB, false).await.unwrap();
        assert_eq!(disk.extents(64 * KIB, 192 * KIB, 9).await.unwrap(), [data, hole, data]);
    }
}

#[tokio::test]
async fn a_second_writer_is_refused_and_a_reader_is_not() {
    let folder = folder();
    let path = folder.path().join("disk");
    let first = FileDisk::open(&path, BUFFERED).unwrap();
    let error = FileDisk::open(&path, BUFFERED).err().unwrap();
    assert!(matches!(&error, OpenError::Locked { path: named } if *named == path), "{error}");
    FileDisk::open(&path, READ_ONLY).unwrap();
    drop(first);
    FileDisk::open(&path, BUFFERED).unwrap();
}

#[test]
fn what_is_no_disk_is_refused_by_what_it_is() {
    let folder = folder();
    let open = |path: &Path, options| FileDisk::open(path, options).err().unwrap();
    let error = open(folder.path(), BUFFERED);
    assert!(matches!(error, OpenError::NotADisk { kind: "a directory", .. }), "{error}");
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let error = open(&socket, BUFFERED);
    assert!(matches!(error, OpenError::NotADisk { kind: "a socket", .. }), "{error}");
    let error = open(Path::new("/dev/null"), BUFFERED);
    assert!(matches!(error, OpenError::NotADisk { kind: "a character device", .. }), "{error}");

    let absent = folder.path().join("absent");
    let error = open(&absent, Options { create: None, ..BUFFERED });
    assert!(matches!(&error, OpenError::Io { action: "open", .. }), "{error}");
    let error = open(&absent, Options { read_only: true, ..BUFFERED });
    assert!(matches!(&error, OpenError::Io { action: "open", .. }), "{error}");
    let empty = folder.path().join("empty");
    File::create(&empty).unwrap();
    let error = open(&empty, Options { create: None, ..BUFFERED });
    assert!(matches!(error, OpenError::Empty { .. }), "{error}");
    let error = open(&folder.path().join("ragged"), Options { create: Some(MIB + 1), ..DIRECT });
    assert!(matches!(error, OpenError::Ragged { .. }), "{error}");
}

#[test]
fn a_file_keeps_its_size_and_its_time_when_it_is_opened_again() {
    let folder = folder();
    let path = folder.path().join("disk");
    let before = FileDisk::open(&path, BUFFERED).unwrap().identity();
    let again = FileDisk::open(&path, Options { create: Some(MIB), ..BUFFERED }).unwrap().identity();
    assert_eq!(before, again);
    assert_eq!(again.size, 3 * MIB + 77);
}

#[tokio::test]
async fn a_change_of_the_file_shows_in_its_identity() {
    let folder = folder();
    let path = folder.path().join("disk");
    let disk = FileDisk::open(&path, BUFFERED).unwrap();
    let before = disk.identity();
    std::thread::sleep(std::time::Duration::from_millis(20));
    disk.write(0, Bytes::from_static(b"x"), true).await.unwrap();
    assert_eq!(disk.identity().name, before.name);
    assert!(disk.identity().modified > before.modified);
}

#[tokio::test]
async fn a_file_that_was_cut_off_answers_with_an_error_and_not_with_zeroes() {
    let folder = folder();
    let path = folder.path().join("disk");
    let disk = FileDisk::open(&path, BUFFERED).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(MIB).unwrap();
    assert_eq!(disk.read(2 * MIB, 512).await, Err(DiskError::Io(Errno::EIO)));
    assert_eq!(disk.read(MIB - 256, 512).await, Err(DiskError::Io(Errno::EIO)));
    assert_eq!(disk.refresh().unwrap().size, MIB);
    assert_eq!(disk.read(MIB - 256, 512).await, Err(DiskError::Refused(Errno::EINVAL)));
}

#[tokio::test]
async fn the_kernels_error_is_passed_on_as_it_is() {
    // Of a descriptor that is not open for writing, the kernel says EBADF; nothing of ours does.
    let folder = folder();
    let path = folder.path().join("disk");
    drop(FileDisk::open(&path, BUFFERED).unwrap());
    let disk = FileDisk::open(&path, READ_ONLY).unwrap();
    let inner = Arc::into_inner(disk.inner).unwrap();
    let abilities = Abilities { read_only: false, ..inner.abilities };
    let disk = FileDisk { inner: Arc::new(Inner { abilities, ..inner }) };
    assert_eq!(disk.write(0, Bytes::from_static(b"x"), false).await, Err(DiskError::Io(Errno(libc::EBADF))));
}

#[tokio::test]
async fn errors_are_the_same_through_the_ring_and_without_it() {
    let folder = folder();
    let path = folder.path().join("disk");
    for start in [Ring::start, |_| Err(io::Errno::NOSYS.into())] {
        let disk = FileDisk::open_with(&path, DIRECT, start).unwrap();
        disk.write(0, vec![1; 2 * MIB as usize].into(), false).await.unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(MIB).unwrap();
        assert_eq!(disk.read(2 * MIB, 4096).await, Err(DiskError::Io(Errno::EIO)));
        assert_eq!(disk.read(MIB - 4096, 8192).await, Err(DiskError::Io(Errno::EIO)));
        assert_eq!(disk.read(MIB - 4096, 4096).await.unwrap(), vec![1; 4096]);
        file.set_len(3 * MIB).unwrap();
        drop(disk);

        let disk = FileDisk::open_with(&path, Options { direct: true, ..READ_ONLY }, start).unwrap();
        let inner = Arc::into_inner(disk.inner).unwrap();
        let abilities = Abilities { read_only: false, ..inner.abilities };
        let disk = FileDisk { inner: Arc::new(Inner { abilities, ..inner }) };
        let data = Bytes::from(vec![0; 4096]);
        assert_eq!(disk.write(0, data, true).await, Err(DiskError::Io(Errno(libc::EBADF))));
    }
}

/// Whether this kernel lets us have a ring, found out without our own code.
fn kernel_has_rings() -> bool {
    io_uring::IoUring::new(8).is_ok()
}

/// Waits outside of any runtime, where nothing could reach a blocking thread.
fn wait<T: Unpin>(mut pending: Pending<T>) -> Result<T> {
    loop {
        match Pin::new(&mut pending).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

#[test]
fn a_kernel_with_io_uring_serves_direct_io_cache_misses_and_flushes_without_a_runtime() {
    if !kernel_has_rings() {
        return;
    }
    let folder = folder();
    let path = folder.path().join("disk");
    let disk = FileDisk::open(&path, DIRECT).unwrap();
    // Neither at the start of a block in memory nor at the end of its buffer.
    let data = Bytes::from((0..300_000).map(|at| (at / 512) as u8).collect::<Vec<_>>());
    wait(disk.write(4096, data.slice(1..131_073), true)).unwrap();
    wait(disk.flush()).unwrap();
    assert_eq!(wait(disk.read(4096, 131_072)).unwrap(), data.slice(1..131_073));
    drop(disk);

    let disk = FileDisk::open(&path, BUFFERED).unwrap();
    rustix::fs::fadvise(&disk.inner.file, 0, None, Advice::DontNeed).unwrap();
    assert_eq!(wait(disk.read(4096 + 77, 131_072 - 77)).unwrap(), data.slice(78..131_073));
    // Where a part was in the page cache, the rest follows it.
    let ring = disk.inner.ring.as_ref().unwrap();
    let buffer = Aligned { bytes: vec![0xEE; 1000], start: 0, length: 1000 };
    let read = wait(ring.read(buffer, 600, 4096)).unwrap();
    assert_eq!((&read[..600], &read[600..]), (&[0xEE; 600][..], &data[601..1001]));
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_operations_at_once_wait_for_each_other_and_all_end() {
    const COUNT: u64 = 5000;
    let folder = folder();
    let disk = FileDisk::open(folder.path().join("disk"), DIRECT).unwrap();
    let block = u64::from(disk.geometry().block.minimum);
    let blocks = disk.geometry().size / block;
    let fill = |number: u64| number.wrapping_mul(0x9E37_79B9) as u8;
    let data = |number| Bytes::from(vec![fill(number); block as usize]);
    let first = COUNT.min(blocks);
    for answer in join_all((0..first).map(|number| disk.write(number * block, data(number), false))).await {
        answer.unwrap();
    }
    let reads = (0..COUNT).map(|number| disk.read(number % first * block, block as u32));
    for (number, answer) in join_all(reads.collect::<Vec<_>>()).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), data(number as u64 % first), "block {number}");
    }
}

#[test]
fn what_was_begun_is_done_when_the_disk_is_dropped_whoever_waits_for_it() {
    if !kernel_has_rings() {
        return;
    }
    const COUNT: usize = 1000;
    let folder = folder();
    let path = folder.path().join("disk");
    let disk = FileDisk::open(&path, DIRECT).unwrap();
    let block = disk.geometry().block.minimum as usize;
    let data = |number: usize| Bytes::from(vec![number as u8 | 1; block]);
    let begun: Vec<_> = (0..COUNT)
        .filter_map(|number| {
            let write = disk.write((number * block) as u64, data(number), false);
            // Neither polled nor waited for, every other one.
            (number % 2 == 0).then_some(write)
        })
        .collect();
    // The memory of a read that nobody waits for is the kernel's until it is done.
    drop((0..COUNT).map(|number| disk.read((number * block) as u64, block as u32)).collect::<Vec<_>>());
    drop(disk);
    // A slow disk may take longer than its dropping waits.
    for write in begun {
        assert_eq!(wait(write), Ok(()));
    }
    let file = File::open(&path).unwrap();
    for number in 0..COUNT {
        let mut found = vec![0; block];
        file.read_exact_at(&mut found, (number * block) as u64).unwrap();
        assert_eq!(found, data(number), "block {number}");
    }
}

#[test]
fn a_disk_in_use_by_several_runtimes_outlives_each_of_them() {
    let folder = folder();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let disk = first.block_on(async { FileDisk::open(folder.path().join("disk"), DIRECT).unwrap() });
    let write = |number: u8| disk.write(u64::from(number) * 4096, vec![number; 4096].into(), false);
    // Begun in the one, which then ends, and waited for in the other.
    let begun = first.block_on(async { (1..100).map(write).collect::<Vec<_>>() });
    let second = runtime();
    if kernel_has_rings() {
        drop(first);
    }
    second.block_on(async {
        assert!(join_all(begun).await.iter().all(Result::is_ok));
        for number in 1..100 {
            assert_eq!(disk.read(u64::from(number) * 4096, 4096).await.unwrap(), vec![number; 4096]);
        }
    });
}

/// A gateway that was killed is started again at once.
#[test]
fn a_file_is_opened_whose_holder_is_gone_in_a_moment() {
    let folder = folder();
    let path = folder.path().join("disk");
    let held = open_without_ring(&path, BUFFERED);
    let holder = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(held);
    });
    FileDisk::open(&path, BUFFERED).unwrap();
    holder.join().unwrap();
}

#[tokio::test]
async fn the_lock_is_held_without_io_uring_too_and_gone_with_the_disk() {
    let folder = folder();
    let path = folder.path().join("disk");
    let without = open_without_ring(&path, DIRECT);
    assert!(matches!(FileDisk::open(&path, DIRECT), Err(OpenError::Locked { .. })));
    drop(without);
    for _ in 0..50 {
        let disk = FileDisk::open(&path, DIRECT).unwrap();
        disk.write(0, vec![1; 4096].into(), true).await.unwrap();
        disk.flush().await.unwrap();
    }
}

/// A loop device over a file, for as long as it lives.
struct Loop(String);

impl Loop {
    fn over(path: &Path) -> Self {
        let output = std::process::Command::new("losetup").args(["--find", "--show"]).arg(path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn a_block_device_is_a_disk() {
    let folder = folder();
    let path = folder.path().join("disk");
    File::create(&path).unwrap().set_len(3 * MIB).unwrap();
    let device = Loop::over(&path);
    for direct in [false, true] {
        let options = Options { direct, ..Options::default() };
        let disk = FileDisk::open(&device.0, options).unwrap();
        assert!(disk.is_device());
        assert_eq!(disk.geometry().block.minimum, if direct { 512 } else { 1 });
        let error = FileDisk::open(&device.0, options).err().unwrap();
        assert!(matches!(error, OpenError::InUse { .. } | OpenError::Locked { .. }), "{error}");
        conformance::check(Arc::new(disk)).await;
    }
    conformance::check(Arc::new(FileDisk::open(&device.0, READ_ONLY).unwrap())).await;
}
