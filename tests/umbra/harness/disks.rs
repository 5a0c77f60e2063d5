//! Disks that the kernel sees: exports as files through FUSE, files as loop devices, and filesystems on them. All of it
//! needs root, and all of it is undone when it is dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{COMMAND_LIMIT, Finished, Running, program, run};

/// Runs a program while dropping: a failure is told and cannot be more.
fn undo(name: &str, arguments: &[&Path]) -> bool {
    let done = Command::new(name).args(arguments).stdin(Stdio::null()).output();
    match done {
        Ok(output) if output.status.success() => true,
        other => {
            eprintln!("{name} {arguments:?}: {other:?}");
            false
        }
    }
}

/// A loop device on a file.
pub struct LoopDevice {
    device: PathBuf,
}

impl LoopDevice {
    #[track_caller]
    pub fn on(file: &Path) -> Self {
        let said = program("losetup", &["--find", "--show", file.to_str().unwrap()]).ok();
        Self { device: said.stdout.trim().into() }
    }

    pub fn path(&self) -> &str {
        self.device.to_str().unwrap()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        undo("losetup", &[Path::new("--detach"), &self.device]);
    }
}

/// Something mounted on a folder of its own.
pub struct Mount {
    folder: PathBuf,
}

impl Mount {
    /// Makes the folder and mounts the device there.
    #[track_caller]
    pub fn of(device: &str, folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        program("mount", &[device, folder.to_str().unwrap()]).ok();
        Self { folder: folder.to_owned() }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // What was killed a moment ago may hold a file of it still.
        let end = Instant::now() + Duration::from_secs(10);
        while !undo("umount", &[&self.folder]) {
            if Instant::now() > end {
                undo("umount", &[Path::new("--lazy"), &self.folder]);
                return;
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// An export that the kernel sees as a file.
pub struct NbdFuse {
    _mount: Mount,
    process: Running,
}

impl NbdFuse {
    #[track_caller]
    pub fn start(uri: &str, folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let mut process = Running::start(Command::new("nbdfuse").arg(folder).arg(uri), Stdio::null());
        let end = Instant::now() + Duration::from_secs(20);
        while !folder.join("nbd").exists() {
            assert!(process.is_running() && Instant::now() < end, "nbdfuse did not start\n{}", process.said());
            thread::sleep(Duration::from_millis(10));
        }
        Self { _mount: Mount { folder: folder.to_owned() }, process }
    }

    pub fn file(&self) -> PathBuf {
        self._mount.folder.join("nbd")
    }

    /// Unmounts it, and waits until nbdfuse has ended well.
    #[track_caller]
    pub fn stop(self) {
        let Self { _mount, process } = self;
        drop(_mount);
        process.finish(COMMAND_LIMIT).ok();
    }
}

/// A mounted filesystem on a loop device on a file. Dropped in this order.
pub struct Filesystem {
    mount: Mount,
    device: LoopDevice,
}

impl Filesystem {
    /// Makes an ext4 on the file and mounts it.
    #[track_caller]
    pub fn make(file: &Path, folder: &Path, options: &[&str]) -> Self {
        let device = LoopDevice::on(file);
        program("mkfs.ext4", &[&["-q", "-F"], options, &[device.path()]].concat()).ok();
        Self { mount: Mount::of(device.path(), folder), device }
    }

    /// Mounts what is on the file; the kernel replays the journal.
    #[track_caller]
    pub fn mount(file: &Path, folder: &Path) -> Self {
        let device = LoopDevice::on(file);
        Self { mount: Mount::of(device.path(), folder), device }
    }

    pub fn folder(&self) -> &Path {
        &self.mount.folder
    }

    /// Unmounts it and returns what e2fsck, which changes nothing, finds.
    #[track_caller]
    pub fn check(self) -> Finished {
        let Self { mount, device } = self;
        drop(mount);
        run(Command::new("e2fsck").args(["-f", "-n", device.path()]), COMMAND_LIMIT)
    }
}
