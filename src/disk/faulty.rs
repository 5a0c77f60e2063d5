//! A disk with faults on order, for tests: it wraps any other and does to it what the script says.
//!
//! A [`Fault`] names operations (by kind, range and how many times) and what becomes of them. The first one that fits
//! is the one that happens. An operation that no fault names passes through untouched.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::{Disk, DiskError, Extent, Geometry, Identity, Pending, Result, Rewrite, ZeroMode};
use crate::units::Span;

/// The kinds of operations that a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Flush,
    Trim,
    Zeroes,
    Cache,
    Extents,
}

const KINDS: usize = Kind::Extents as usize + 1;

/// What becomes of an operation.
#[derive(Clone)]
enum Action {
    /// Not passed on; answered so.
    Instead(DiskError),
    /// Passed on and waited for; answered so whatever it answered.
    After(DiskError),
    /// The first half of a write is passed on (of all else nothing); answered so.
    Halfway(DiskError),
    /// Lost at once; passed on when the gate opens.
    LostUntil(Gate),
    /// Passed on when the gate opens, and answered as the disk answers.
    Hold(Gate),
    /// Passed on after a while.
    Delay(Duration),
    /// Passed on and waited for; the answer is kept back until the gate opens.
    HoldAnswer(Gate),
}

/// One line of a script: which operations, and what becomes of them.
#[derive(Clone)]
pub struct Fault {
    kind: Kind,
    span: Option<Span>,
    skip: u64,
    times: u64,
    action: Action,
}

impl Fault {
    fn new(kind: Kind, action: Action) -> Self {
        Self { kind, span: None, skip: 0, times: u64::MAX, action }
    }

    /// The operation has no effect and answers with this error.
    pub fn instead(kind: Kind, error: DiskError) -> Self {
        Self::new(kind, Action::Instead(error))
    }

    /// The operation has its effect, yet answers with this error.
    pub fn after(kind: Kind, error: DiskError) -> Self {
        Self::new(kind, Action::After(error))
    }

    /// A write has half of its effect and answers with this error; other operations have none.
    pub fn halfway(kind: Kind, error: DiskError) -> Self {
        Self::new(kind, Action::Halfway(error))
    }

    /// The operation is lost for the caller, and has its effect when the gate opens: a write that an old connection
    /// still carries.
    pub fn lost_until(kind: Kind, gate: &Gate) -> Self {
        Self::new(kind, Action::LostUntil(gate.clone()))
    }

    /// The operation waits for the gate to open; only then it has its effect and its answer.
    pub fn hold(kind: Kind, gate: &Gate) -> Self {
        Self::new(kind, Action::Hold(gate.clone()))
    }

    /// The operation has its effect at once; the answer waits for the gate to open.
    pub fn hold_answer(kind: Kind, gate: &Gate) -> Self {
        Self::new(kind, Action::HoldAnswer(gate.clone()))
    }

    /// The operation waits for a while first.
    pub fn delay(kind: Kind, time: Duration) -> Self {
        Self::new(kind, Action::Delay(time))
    }

    /// Only operations that touch this range; a flush touches none.
    #[must_use]
    pub fn at(self, span: Span) -> Self {
        Self { span: Some(span), ..self }
    }

    /// Not the first `skip` operations that it fits.
    #[must_use]
    pub fn skipping(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// That many operations; then it is spent. Without this, all of them.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    /// One operation.
    #[must_use]
    pub fn once(self) -> Self {
        self.times(1)
    }

    fn fits(&self, kind: Kind, span: Option<Span>) -> bool {
        self.kind == kind
            && match (self.span, span) {
                (None, _) => true,
                (Some(wanted), Some(span)) => wanted.overlaps(span),
                (Some(_), None) => false,
            }
    }
}

/// Holds operations until it is opened. Clones are the same gate.
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<GateState>>);

#[derive(Clone, Copy, Default)]
struct GateState {
    open: bool,
    arrived: u64,
}

impl Gate {
    /// A closed gate.
    #[allow(clippy::new_without_default, reason = "a default gate would not say whether it is open")]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::default()))
    }

    /// Lets everything through, for ever.
    pub fn open(&self) {
        self.0.send_modify(|state| state.open = true);
    }

    /// Waits until `count` operations have come to the gate, in all.
    pub async fn arrived(&self, count: u64) {
        self.until(|state| state.arrived >= count).await;
    }

    async fn pass(&self) {
        self.0.send_modify(|state| state.arrived += 1);
        self.until(|state| state.open).await;
    }

    async fn until(&self, condition: impl FnMut(&GateState) -> bool) {
        // It cannot fail: the sender lives in `self`.
        let _ = self.0.subscribe().wait_for(condition).await;
    }
}

/// Wraps a disk and does to it what the script says.
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    script: Mutex<Vec<Fault>>,
    calls: [AtomicU64; KINDS],
    incarnations: AtomicU64,
    keeps_cached: AtomicBool,
}

impl FaultyDisk {
    /// Faultless until told otherwise.
    pub fn new(inner: impl Disk) -> Self {
        Self {
            inner: Arc::new(inner),
            script: Mutex::default(),
            calls: Default::default(),
            incarnations: AtomicU64::new(0),
            keeps_cached: AtomicBool::new(false),
        }
    }

    /// Adds a line to the end of the script.
    pub fn inject(&self, fault: Fault) {
        self.script().push(fault);
    }

    /// Ends all faults; operations that are held stay held.
    pub fn heal(&self) {
        self.script().clear();
    }

    /// Pretends that the disk was lost and came back.
    pub fn come_back(&self) {
        self.incarnations.fetch_add(1, SeqCst);
    }

    /// From now on no cache can be given up, as behind an NBD server.
    pub fn keep_cached(&self) {
        self.keeps_cached.store(true, SeqCst);
    }

    /// How many operations of this kind were asked for, with those that never reached the disk.
    pub fn calls(&self, kind: Kind) -> u64 {
        self.calls[kind as usize].load(SeqCst)
    }

    /// The disk beneath.
    pub fn inner(&self) -> &Arc<dyn Disk> {
        &self.inner
    }

    fn script(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_action(&self, kind: Kind, span: Option<Span>) -> Option<Action> {
        self.calls[kind as usize].fetch_add(1, SeqCst);
        let mut script = self.script();
        let fitting = script.iter_mut().filter(|fault| fault.times > 0 && fault.fits(kind, span));
        for fault in fitting {
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.times -= 1;
            return Some(fault.action.clone());
        }
        None
    }

    /// `issue` passes the operation on; `half` does half of it.
    fn run<T: Send + Unpin + 'static>(
        &self,
        kind: Kind,
        span: Option<Span>,
        issue: impl Fn(&dyn Disk) -> Pending<T> + Send + 'static,
        half: impl Fn(&dyn Disk) -> Pending<()> + Send + 'static,
    ) -> Pending<T> {
        let Some(action) = self.next_action(kind, span) else { return issue(&self.inner) };
        let inner = self.inner.clone();
        if let Action::Instead(error) = action {
            return Pending::ready(Err(error));
        }
        // A task of its own: whoever drops the answer does not take the operation back.
        let task = tokio::spawn(async move {
            match action {
                Action::Instead(error) => Err(error),
                Action::After(error) => {
                    let _: Result<T> = issue(&inner).await;
                    Err(error)
                }
                Action::Halfway(error) => {
                    let _: Result<()> = half(&inner).await;
                    Err(error)
                }
                Action::LostUntil(gate) => {
                    tokio::spawn(async move {
                        gate.pass().await;
                        let _: Result<T> = issue(&inner).await;
                    });
                    Err(DiskError::Lost)
                }
                Action::Hold(gate) => {
                    gate.pass().await;
                    issue(&inner).await
                }
                Action::HoldAnswer(gate) => {
                    let answer = issue(&inner).await;
                    gate.pass().await;
                    answer
                }
                Action::Delay(time) => {
                    tokio::time::sleep(time).await;
                    issue(&inner).await
                }
            }
        });
        Pending::later(async move { task.await.unwrap_or(Err(DiskError::Lost)) })
    }
}

fn nothing(_: &dyn Disk) -> Pending<()> {
    Pending::ready(Ok(()))
}

/// For ranges that no disk has, which the disk beneath refuses.
fn span(offset: u64, length: u64) -> Option<Span> {
    Some(Span::new(offset, offset.saturating_add(length)))
}

impl Disk for FaultyDisk {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        self.run(Kind::Read, span(offset, length.into()), move |disk| disk.read(offset, length), nothing)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        let block = self.inner.geometry().block.minimum as usize;
        let first = data.slice(..data.len() / 2 / block * block);
        self.run(
            Kind::Write,
            span(offset, data.len() as u64),
            move |disk| disk.write(offset, data.clone(), fua),
            move |disk| disk.write(offset, first.clone(), false),
        )
    }

    /// No fault names it: what stands above reads and writes instead.
    fn rewrite(&self, offset: u64, length: u32, change: Rewrite, fua: bool) -> Pending<bool> {
        self.inner.rewrite(offset, length, change, fua)
    }

    fn flush(&self) -> Pending<()> {
        self.run(Kind::Flush, None, |disk| disk.flush(), nothing)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> Pending<()> {
        self.run(Kind::Trim, span(offset, length), move |disk| disk.trim(offset, length, fua), nothing)
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode, fua: bool) -> Pending<()> {
        let issue = move |disk: &dyn Disk| disk.write_zeroes(offset, length, mode, fua);
        self.run(Kind::Zeroes, span(offset, length), issue, nothing)
    }

    fn cache(&self, offset: u64, length: u64) -> Pending<()> {
        self.run(Kind::Cache, span(offset, length), move |disk| disk.cache(offset, length), nothing)
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        let issue = move |disk: &dyn Disk| disk.extents(offset, length, limit);
        self.run(Kind::Extents, span(offset, length), issue, nothing)
    }

    fn forget_cached(&self) -> Pending<bool> {
        if self.keeps_cached.load(SeqCst) {
            return Pending::ready(Ok(false));
        }
        self.inner.forget_cached()
    }

    fn identity(&self) -> Identity {
        self.inner.identity()
    }

    fn incarnation(&self) -> u64 {
        self.inner.incarnation() + self.incarnations.load(SeqCst)
    }

    fn owe(&self, error: DiskError) {
        self.inner.owe(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Errno, MemoryDisk, conformance};
    use crate::units::MIB;

    const EIO: DiskError = DiskError::Io(Errno::EIO);

    fn disk() -> FaultyDisk {
        FaultyDisk::new(MemoryDisk::new(MIB))
    }

    async fn first_byte(disk: &FaultyDisk) -> u8 {
        disk.inner().read(0, 1).await.unwrap()[0]
    }

    #[tokio::test]
    async fn without_faults_it_is_the_disk_beneath() {
        conformance::check(Arc::new(disk())).await;
    }

    #[tokio::test]
    async fn an_error_comes_instead_of_the_effect_or_after_it() {
        let disk = disk();
        disk.inject(Fault::instead(Kind::Write, EIO).once());
        disk.inject(Fault::after(Kind::Write, DiskError::Lost).once());
        assert_eq!(disk.write(0, Bytes::from_static(b"a"), false).await, Err(EIO));
        assert_eq!(first_byte(&disk).await, 0);
        assert_eq!(disk.write(0, Bytes::from_static(b"b"), false).await, Err(DiskError::Lost));
        assert_eq!(first_byte(&disk).await, b'b');
        assert_eq!(disk.write(0, Bytes::from_static(b"c"), false).await, Ok(()));
        assert_eq!(disk.calls(Kind::Write), 3);
    }

    #[tokio::test]
    async fn a_write_that_fails_halfway_leaves_its_first_half() {
        let disk = disk();
        disk.inject(Fault::halfway(Kind::Write, EIO));
        assert_eq!(disk.write(0, Bytes::from_static(b"abcd"), true).await, Err(EIO));
        assert_eq!(disk.read(0, 4).await.unwrap(), Bytes::from_static(b"ab\0\0"));
    }

    #[tokio::test]
    async fn a_lost_write_has_its_effect_when_the_gate_opens_and_not_before() {
        let (disk, gate) = (disk(), Gate::new());
        disk.inject(Fault::lost_until(Kind::Write, &gate).at(Span::new(0, 1)));
        assert_eq!(disk.write(0, Bytes::from_static(b"a"), false).await, Err(DiskError::Lost));
        gate.arrived(1).await;
        assert_eq!(first_byte(&disk).await, 0);
        gate.open();
        while first_byte(&disk).await == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(disk.write(1, Bytes::from_static(b"b"), false).await, Ok(()), "outside the range of the fault");
    }

    #[tokio::test]
    async fn a_held_operation_happens_though_its_answer_was_dropped() {
        let (disk, gate) = (disk(), Gate::new());
        disk.inject(Fault::hold(Kind::Write, &gate).once());
        drop(disk.write(0, Bytes::from_static(b"a"), false));
        gate.arrived(1).await;
        gate.open();
        while first_byte(&disk).await == 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_second_of_three_flushes_fails() {
        let disk = disk();
        disk.inject(Fault::instead(Kind::Flush, EIO).skipping(1).once());
        assert_eq!(disk.flush().await, Ok(()));
        assert_eq!(disk.flush().await, Err(EIO));
        assert_eq!(disk.flush().await, Ok(()));
        disk.come_back();
        assert_eq!(disk.incarnation(), 1);
    }
}
