//! Reads, writes and syncs of one file through an io_uring, many at a time by one thread.
//!
//! The thread alone touches the ring. It takes what was begun meanwhile, hands all of it to the kernel and waits for
//! the next completion with one system call, and answers all that completed. Whoever begins an operation puts it
//! into a queue and rings a bell only if the thread sleeps, so that what is begun in one go costs one submission. No
//! runtime is needed to begin an operation, nor to wait for one.
//!
//! It is a thread of its own, at the price of two wake-ups, for the kernel keeps to the thread that submitted: its limit
//! of threads for what waits (io-wq) is one for all rings of that thread, so that a disk that hangs would take those of
//! others; and a thread cannot end before what it submitted has.
//!
//! Owns: what is queued and what is in flight, with its buffers. Errors of the kernel are passed on as they are.
//! Crash: as of the file itself.
//!
//! What keeps this sound and alive:
//! - Memory that the kernel was told of is owned by a slot, from before its submission until after its completion was
//!   reaped. A slot knows nothing of whether anyone still waits for the answer.
//! - A slot has at most one entry in the ring, the bell has one, and the ring has an entry for each of them. So there
//!   is always room to submit, and completions, for which the kernel has at least as much room, never overflow.
//! - Once the [`Ring`] is dropped, the thread ends when nothing is queued or in flight, and gives up the file's lock
//!   then. Whoever drops the ring waits for that, for a while.
//! - If the thread panics, it waits for what is in flight before it lets go of the buffers, and the ring takes nothing
//!   any more. The lock stays, for others go on with the file.
//! - While anything may still be begun, the bell is armed whenever the thread waits, so it wakes for what is queued as
//!   well as for what completes.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::oneshot;

use super::Aligned;
use crate::disk::{DiskError, Errno, Pending, Result};

/// What is in flight at once, with the bell; more than any disk works on, and more waits in the queue.
const ENTRIES: u32 = 256;
/// The kernel's own threads for what it cannot begin without waiting: syncs, and writes that allocate blocks. As many
/// as a client keeps under way, for the kernel's own choice is some per processor.
const WORKERS_MAX: u32 = 64;
/// Until the kernel is asked again when it had no memory, or no thread, for what was submitted.
const PAUSE: Duration = Duration::from_millis(1);
/// How long the kernel may have no thread for an operation.
const THREADLESS_MAX: Duration = Duration::from_secs(30);
/// How long whoever drops a disk waits for what is in flight.
const LEAVE_MAX: Duration = Duration::from_secs(1);
/// Names the bell where others name their slots.
const BELL: u64 = u64::MAX;

pub(super) struct Ring {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Hangs up when the thread is through.
    ended: Mutex<mpsc::Receiver<()>>,
}

struct Shared {
    file: Arc<File>,
    /// An eventfd. It blocks: of one that does not, the kernel would not wait for a ring.
    bell: OwnedFd,
    queue: Mutex<Queue>,
    /// The thread is gone, or about to: nobody would take anything.
    closed: AtomicBool,
}

#[derive(Default)]
struct Queue {
    operations: VecDeque<Operation>,
    /// The thread took all there was, and hears of more only by the bell.
    asleep: bool,
    /// Nothing is begun any more.
    closing: bool,
}

impl Ring {
    /// Fails where the kernel has no io_uring, or not for us.
    pub fn start(file: Arc<File>) -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { file, bell, queue: Mutex::default(), closed: AtomicBool::new(false) });
        let (tell, told) = mpsc::sync_channel(1);
        let of_thread = shared.clone();
        let (ends, ended) = mpsc::channel();
        // The ring is set up by the only thread that it will ever serve, which lets the kernel do less.
        let thread = thread::Builder::new().name("umbra-ring".into()).spawn(move || match Driver::new(of_thread) {
            Ok(driver) => {
                let _ = tell.send(Ok(()));
                driver.run();
                drop(ends);
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        })?;
        if let Err(error) = told.recv().unwrap_or(Err(io::ErrorKind::BrokenPipe.into())) {
            let _ = thread.join();
            return Err(error);
        }
        Ok(Self { shared, thread: Some(thread), ended: Mutex::new(ended) })
    }

    /// Whether it still takes operations; what it was given before and does not do any more is lost.
    pub fn is_open(&self) -> bool {
        !self.shared.closed.load(Relaxed)
    }

    /// Fills the rest of `buffer`, of which `done` bytes are there. It need not have been written to before.
    pub fn read(&self, buffer: Aligned, done: usize, offset: u64) -> Pending<Bytes> {
        let (answer, answered) = oneshot::channel();
        self.begin(Operation { done, ..Operation::new(Work::Read { buffer, answer }, offset) }, answered)
    }

    /// With `fua`, each piece that the kernel takes is durable before the next one begins.
    pub fn write(&self, data: Bytes, offset: u64, fua: bool) -> Pending<()> {
        let (answer, answered) = oneshot::channel();
        self.begin(Operation::new(Work::Write { data, fua, answer }, offset), answered)
    }

    pub fn sync(&self) -> Pending<()> {
        let (answer, answered) = oneshot::channel();
        self.begin(Operation::new(Work::Sync { answer }, 0), answered)
    }

    fn begin<T: Send + 'static>(&self, operation: Operation, answered: oneshot::Receiver<Result<T>>) -> Pending<T> {
        let mut queue = self.shared.queue.lock();
        if self.is_open() {
            queue.operations.push_back(operation);
            let asleep = mem::take(&mut queue.asleep);
            drop(queue);
            if asleep {
                self.shared.ring_bell();
            }
        }
        // No answer comes only from a thread that died.
        Pending::later(async move { answered.await.unwrap_or(Err(DiskError::Lost)) })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.shared.queue.lock().closing = true;
        self.shared.ring_bell();
        let Some(thread) = self.thread.take() else { return };
        // A waker that it wakes may hold the last of the disk; and a disk that hangs holds up nobody but the thread.
        let own = thread.thread().id() == thread::current().id();
        if !own && self.ended.get_mut().recv_timeout(LEAVE_MAX) != Err(RecvTimeoutError::Timeout) {
            let _ = thread.join();
            // A thread that panicked left it.
            self.shared.unlock();
        }
    }
}

impl Shared {
    fn ring_bell(&self) {
        // Only a bell that was rung 2⁶⁴ times and never heard would refuse.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.bell, &1u64.to_ne_bytes()));
    }

    /// Nobody will change the file any more. The kernel's threads may hold it for a moment longer, and with it the lock.
    fn unlock(&self) {
        let _ = flock(&*self.file, FlockOperation::Unlock);
    }
}

/// One that was begun and not yet answered.
struct Operation {
    work: Work,
    offset: u64,
    /// Bytes that were read or written so far.
    done: usize,
    /// The kernel would not do it without waiting, so it is told to wait.
    refused: bool,
    /// Since when the kernel has no thread for it.
    threadless: Option<Instant>,
}

enum Work {
    Read { buffer: Aligned, answer: oneshot::Sender<Result<Bytes>> },
    Write { data: Bytes, fua: bool, answer: oneshot::Sender<Result<()>> },
    Sync { answer: oneshot::Sender<Result<()>> },
}

impl Operation {
    fn new(work: Work, offset: u64) -> Self {
        Self { work, offset, done: 0, refused: false, threadless: None }
    }

    /// What the kernel is asked for: all that is left to do.
    fn entry(&mut self, file: RawFd) -> squeue::Entry {
        let (file, done, offset) = (types::Fd(file), self.done, self.offset + self.done as u64);
        let entry = match &mut self.work {
            Work::Read { buffer, .. } => {
                let to = buffer.bytes.as_mut_ptr().wrapping_add(buffer.start + done);
                opcode::Read::new(file, to, (buffer.length - done) as u32).offset(offset).build()
            }
            Work::Write { data, fua, .. } => {
                let flags = if *fua { libc::RWF_DSYNC } else { 0 };
                let rest = &data[done..];
                opcode::Write::new(file, rest.as_ptr(), rest.len() as u32).offset(offset).rw_flags(flags).build()
            }
            Work::Sync { .. } => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        };
        if self.refused { entry.flags(squeue::Flags::ASYNC) } else { entry }
    }

    /// Takes what the kernel answered: how it ended, or nothing where it has to go on.
    fn advance(&mut self, answer: i32) -> Option<Result<()>> {
        if answer < 0 {
            let again = match -answer {
                libc::EINTR => true,
                // Said a second time, it is the disk's own answer. That of a sync is never another's, and a file tells
                // of what it could not write only once.
                libc::EAGAIN if !matches!(self.work, Work::Sync { .. }) => !mem::replace(&mut self.refused, true),
                // Nobody cancels but the kernel, and only what it has not begun: it got no thread for it.
                libc::ECANCELED => self.threadless.get_or_insert_with(Instant::now).elapsed() < THREADLESS_MAX,
                _ => false,
            };
            return (!again).then_some(Err(DiskError::Io(Errno(-answer))));
        }
        let length = match &self.work {
            Work::Read { buffer, .. } => buffer.length,
            Work::Write { data, .. } => data.len(),
            Work::Sync { .. } => return Some(Ok(())),
        };
        if answer == 0 {
            return Some(Err(DiskError::Io(Errno::EIO)));
        }
        self.done += answer as usize;
        (self.done >= length).then_some(Ok(()))
    }

    fn finish(self, outcome: Result<()>) {
        // Who does not wait any more gets no answer.
        match self.work {
            Work::Read { mut buffer, answer } => {
                let _ = answer.send(outcome.map(|()| {
                    let end = buffer.start + buffer.length;
                    assert!(self.done == buffer.length && end <= buffer.bytes.capacity());
                    // SAFETY: `end` is inside the capacity. What is before `start` was written when the buffer was
                    // made, and from there on the kernel wrote `done` bytes, without a gap, before it said so.
                    unsafe { buffer.bytes.set_len(end) };
                    buffer.into_bytes()
                }));
            }
            Work::Write { answer, .. } | Work::Sync { answer } => {
                let _ = answer.send(outcome);
            }
        }
    }
}

/// The thread's own.
struct Driver {
    shared: Arc<Shared>,
    flight: Flight,
    /// Completions under reaping: the slot's number, and what the kernel answered.
    reaped: VecDeque<(u64, i32)>,
}

struct Flight {
    ring: IoUring,
    slots: Vec<Option<Operation>>,
    free: Vec<usize>,
    armed: bool,
    /// What the kernel reads from the bell. Nobody else looks at it.
    rung: Box<UnsafeCell<u64>>,
}

impl Driver {
    fn new(shared: Arc<Shared>) -> io::Result<Self> {
        // Both save the kernel interrupting us: Linux 6.1.
        let newer = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(ENTRIES);
        let ring = match newer {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(ENTRIES)?,
            ring => ring?,
        };
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if ![opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE].iter().all(|code| probe.is_supported(*code))
        {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        // Before Linux 5.15, there are as many as the kernel chooses.
        let _ = ring.submitter().register_iowq_max_workers(&mut [WORKERS_MAX, 0]);
        let count = ENTRIES as usize - 1;
        let mut flight = Flight {
            ring,
            slots: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            armed: false,
            rung: Box::default(),
        };
        flight.try_threads()?;
        Ok(Self { shared, flight, reaped: VecDeque::with_capacity(ENTRIES as usize) })
    }

    fn run(mut self) {
        loop {
            let closing = self.take();
            if closing && self.flight.is_empty() {
                return;
            }
            self.flight.submit_and_wait();
            self.reaped.extend(self.flight.ring.completion().map(|entry| (entry.user_data(), entry.result())));
            if self.reaped.iter().any(|(_, answer)| *answer == -libc::ECANCELED) {
                thread::sleep(PAUSE);
            }
            while let Some((slot, answer)) = self.reaped.pop_front() {
                self.flight.complete(slot, answer, self.shared.file.as_raw_fd());
            }
        }
    }

    /// Moves what is queued into flight, as much as there is room for, and tells whether no more is to come.
    fn take(&mut self) -> bool {
        let mut queue = self.shared.queue.lock();
        while let Some(slot) = self.flight.free.pop() {
            let Some(operation) = queue.operations.pop_front() else {
                self.flight.free.push(slot);
                break;
            };
            self.flight.put(slot, operation, self.shared.file.as_raw_fd());
        }
        // If anything is left, a completion makes room for it, and the bell need not.
        queue.asleep = queue.operations.is_empty();
        // Once no more is to come, nobody would ring again, and what is left ends without it.
        let (closing, last) = (queue.closing, queue.operations.is_empty());
        drop(queue);
        if !self.flight.armed && !closing {
            self.flight.arm(self.shared.bell.as_raw_fd());
        }
        closing && last
    }
}

impl Drop for Driver {
    /// Finds something in flight only in a panic. The file's lock is held as long as anything may change it.
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        self.shared.closed.store(true, Relaxed);
        let queued = mem::take(&mut queue.operations);
        let closing = queue.closing;
        drop(queue);
        drop(queued);
        for (slot, _) in mem::take(&mut self.reaped) {
            drop(self.flight.remove(slot));
        }
        if self.flight.armed {
            self.shared.ring_bell();
        }
        while !self.flight.is_empty() {
            self.flight.submit_and_wait();
            let completed: Vec<u64> = self.flight.ring.completion().map(|entry| entry.user_data()).collect();
            for slot in completed {
                drop(self.flight.remove(slot));
            }
        }
        if closing {
            self.shared.unlock();
        }
    }
}

impl Flight {
    /// The kernel owns no memory of ours.
    fn is_empty(&self) -> bool {
        !self.armed && self.free.len() == self.slots.len()
    }

    /// Whether the kernel takes submissions, and has threads for what waits: a sandbox may forbid either.
    fn try_threads(&mut self) -> io::Result<()> {
        self.push(&opcode::Nop::new().build().flags(squeue::Flags::ASYNC));
        self.ring.submit_and_wait(1)?;
        let answer = self.ring.completion().next().map_or(-libc::EIO, |entry| entry.result());
        if answer < 0 { Err(io::Error::from_raw_os_error(-answer)) } else { Ok(()) }
    }

    fn put(&mut self, slot: usize, mut operation: Operation, file: RawFd) {
        let entry = operation.entry(file).user_data(slot as u64);
        // Heap memory, which stays where it is when the operation moves.
        self.slots[slot] = Some(operation);
        self.push(&entry);
    }

    fn arm(&mut self, bell: RawFd) {
        let to = self.rung.get().cast::<u8>();
        self.armed = true;
        self.push(&opcode::Read::new(types::Fd(bell), to, size_of::<u64>() as u32).build().user_data(BELL));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry points into memory that its slot (or `rung`) owns, which is given up only when the entry's
        // completion was reaped; so does `Driver::drop`. The file and the bell are kept open by `Shared`.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("there is an entry for each slot and the bell");
    }

    /// Returns when something completed, or when it is to be called again.
    fn submit_and_wait(&mut self) {
        match self.ring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                // What a ring that was set up refuses, it refuses for want of memory. What was not taken stays there.
                tracing::debug!(%error, "io_uring refused a submission for now");
                thread::sleep(PAUSE);
            }
            _ => {}
        }
    }

    fn complete(&mut self, slot: u64, answer: i32, file: RawFd) {
        let Some(mut operation) = self.remove(slot) else { return };
        match operation.advance(answer) {
            Some(outcome) => operation.finish(outcome),
            None => {
                // The same slot again: nothing else could have taken it yet.
                if let Some(slot) = self.free.pop() {
                    self.put(slot, operation, file);
                }
            }
        }
    }

    /// What was in a slot whose completion was reaped.
    fn remove(&mut self, slot: u64) -> Option<Operation> {
        if slot == BELL {
            self.armed = false;
            return None;
        }
        let slot = slot as usize;
        let operation = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(operation)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Wake, Waker};

    use super::*;

    fn write_and_sync() -> [Operation; 2] {
        let write = Work::Write { data: Bytes::from_static(b"data"), fua: false, answer: oneshot::channel().0 };
        [Operation::new(write, 0), Operation::new(Work::Sync { answer: oneshot::channel().0 }, 0)]
    }

    fn refused(errno: i32) -> Option<Result<()>> {
        Some(Err(DiskError::Io(Errno(errno))))
    }

    #[test]
    fn what_would_wait_is_asked_again_once_and_a_sync_never() {
        let [mut write, mut sync] = write_and_sync();
        assert_eq!(write.advance(-libc::EAGAIN), None);
        assert!(write.refused);
        assert_eq!(write.advance(-libc::EINTR), None);
        assert_eq!(write.advance(-libc::EAGAIN), refused(libc::EAGAIN), "the disk itself says so");
        assert_eq!(sync.advance(-libc::EINTR), None);
        assert_eq!(sync.advance(-libc::EAGAIN), refused(libc::EAGAIN), "another sync would say that all is well");
    }

    #[test]
    fn what_the_kernel_has_no_thread_for_is_asked_again_for_a_while() {
        for mut operation in write_and_sync() {
            assert!((0..100).all(|_| operation.advance(-libc::ECANCELED).is_none()));
            operation.threadless = Instant::now().checked_sub(THREADLESS_MAX);
            assert_eq!(operation.advance(-libc::ECANCELED), refused(libc::ECANCELED));
        }
    }

    /// Panics in whoever wakes it.
    struct Bomb;

    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("a waker that panics: the test means it");
        }
    }

    #[test]
    fn a_ring_whose_thread_panicked_takes_nothing_and_keeps_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, [7; 8192]).unwrap();
        let file = Arc::new(File::options().read(true).write(true).open(&path).unwrap());
        flock(&*file, FlockOperation::NonBlockingLockExclusive).unwrap();
        let Ok(ring) = Ring::start(file.clone()) else { return };
        let other = File::open(&path).unwrap();
        let is_locked = || flock(&other, FlockOperation::NonBlockingLockExclusive).is_err();

        let waker = Waker::from(Arc::new(Bomb));
        let mut begun = ring.sync();
        while Pin::new(&mut begun).poll(&mut Context::from_waker(&waker)).is_ready() {
            begun = ring.sync();
        }
        assert!(ring.ended.lock().recv().is_err());
        assert!(!ring.is_open());
        assert!(is_locked(), "others go on with the file");
        drop(ring);
        assert!(!is_locked());
    }
}
