use std::os::unix::net::UnixListener;

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
