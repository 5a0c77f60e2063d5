//! One command until it has its outcome: what its status means, and whether it is sent again.
//!
//! Sent again is only what the unit says it has not done (BUSY, TASK SET FULL, unit attentions, deferred errors, a unit
//! that is becoming ready), and what can be done twice (a read, a flush). What it does not do for too long is refused; but
//! of a change that a unit was not ready for it may have made a part. A change whose outcome is unknown is lost: the unit
//! may have done it, or part of it.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::cdb::Cdb;
use super::link::{Completion, Job, Residual, Transfer};
use super::watch::LOGICAL_UNIT_NOT_SUPPORTED;
use crate::disk::{DiskError, Errno};
use crate::scsi::{Key, Received, Status};

/// How often a command is sent again, and how long that may go on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// A unit that is busy, or becoming ready.
    pub busy: Duration,
    /// Pauses: doubled from the first to the last.
    pub pause_first: Duration,
    pub pause_last: Duration,
    /// Unit attentions, and aborted commands that can be done twice.
    pub attempts: u32,
}

impl Patience {
    /// A unit attention for each thing that can have happened since it was asked last, and some more.
    const ATTEMPTS: u32 = 16;

    pub const USUAL: Self = Self {
        busy: Duration::from_secs(30),
        pause_first: Duration::from_millis(5),
        pause_last: Duration::from_secs(1),
        attempts: Self::ATTEMPTS,
    };
    /// For fuzzing, which has no time.
    pub const NONE: Self =
        Self { busy: Duration::ZERO, pause_first: Duration::ZERO, pause_last: Duration::ZERO, attempts: 3 };
}

/// Where commands go.
pub(super) trait Submit: Sync {
    fn submit(&self, job: Job);
    fn patience(&self) -> Patience;
}

/// A link of its own, before there is a disk.
pub(super) struct Direct {
    pub jobs: mpsc::UnboundedSender<Job>,
    pub patience: Patience,
}

impl Submit for Direct {
    fn submit(&self, job: Job) {
        // Without a link nobody answers, and that is told.
        let _ = self.jobs.send(job);
    }
    fn patience(&self) -> Patience {
        self.patience
    }
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing, or what can be done twice.
    Repeatable,
    Changes,
}

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It was not answered, or not sent.
    #[error(transparent)]
    Disk(DiskError),
    #[error("sense key {:#x}, code {:#06x}", .0.key, .0.code)]
    Sense(Received),
    #[error("the unit stays busy")]
    Busy,
    #[error("it conflicts with another initiator's reservation")]
    ReservationConflict,
    #[error("a status that does not belong there, a failure without sense data, or not all of the data")]
    Status,
}

/// Additional sense codes (SPC-4, annex F).
const INVALID_COMMAND_OPERATION_CODE: u16 = 0x2000;
const SPACE_ALLOCATION_FAILED: u16 = 0x2707;
/// LOGICAL UNIT IS IN PROCESS OF BECOMING READY, … ASYMMETRIC ACCESS STATE TRANSITION, … SPACE ALLOCATION IN PROGRESS.
const BECOMING_READY: [u16; 3] = [0x0401, 0x040A, 0x0414];

impl Failure {
    /// What a client is told, and the one place that says.
    pub fn to_disk(self) -> DiskError {
        match self {
            Self::Disk(error) => error,
            // It was never done, however often it was sent: a change left nothing behind, and a flush has not failed. EBADE
            // is what Linux says of a reservation conflict; no protocol of ours knows it, so that all of them say EIO. Of
            // NOT READY nobody promises that: SPACE ALLOCATION IN PROGRESS may come in the midst of a change.
            Self::Busy | Self::ReservationConflict => DiskError::Refused(Errno::EIO),
            Self::Sense(sense) if was_not_done(sense) => DiskError::Refused(Errno::EIO),
            Self::Status => DiskError::Io(Errno::EIO),
            Self::Sense(sense) => DiskError::Io(match sense.code {
                SPACE_ALLOCATION_FAILED => Errno::ENOSPC,
                _ if sense.is(Key::DataProtect) => Errno::EPERM,
                INVALID_COMMAND_OPERATION_CODE if sense.is(Key::IllegalRequest) => Errno::ENOTSUP,
                _ if sense.is(Key::IllegalRequest) => Errno::EINVAL,
                _ => Errno::EIO,
            }),
        }
    }

    /// What becomes of a change that was sent before, when the unit was not ready: a part of it may have been made then.
    fn behind(self, not_ready: Option<Received>) -> Self {
        match (self, not_ready) {
            (Self::Disk(DiskError::Refused(_)), Some(_)) => Self::Disk(DiskError::Lost),
            (failure, Some(sense)) if matches!(failure.to_disk(), DiskError::Refused(_)) => Self::Sense(sense),
            (failure, _) => failure,
        }
    }

    /// The unit does not know the command, or not in this form; not, that there is no unit.
    pub fn is_unsupported(self) -> bool {
        matches!(self, Self::Sense(sense) if sense.is(Key::IllegalRequest) && sense.code != LOGICAL_UNIT_NOT_SUPPORTED)
    }

    /// The unit does not know the operation code.
    pub fn is_unknown(self) -> bool {
        let code = INVALID_COMMAND_OPERATION_CODE;
        matches!(self, Self::Sense(sense) if sense.is(Key::IllegalRequest) && sense.code == code)
    }

    pub fn is(self, key: Key) -> bool {
        matches!(self, Self::Sense(sense) if !sense.deferred && sense.is(key))
    }
}

/// What a completion means for its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    /// Not done, and may be at once.
    Again,
    /// Not done, and may be after a while.
    Later,
    Failed(Failure),
}

fn judge(completion: &Completion, effect: Effect) -> Verdict {
    match (completion.status, completion.sense) {
        (Some(Status::Good), _) => Verdict::Done,
        (Some(Status::Busy | Status::TaskSetFull), _) => Verdict::Later,
        (Some(Status::ReservationConflict), _) => Verdict::Failed(Failure::ReservationConflict),
        (Some(Status::TaskAborted), _) => aborted(effect),
        (Some(Status::CheckCondition), Some(sense)) => of_sense(sense, effect),
        // Without sense data a change may have been made in part.
        (Some(Status::CheckCondition) | None, _) => Verdict::Failed(Failure::Status),
    }
}

fn of_sense(sense: Received, effect: Effect) -> Verdict {
    match sense {
        _ if is_becoming_ready(sense) => Verdict::Later,
        _ if was_not_done(sense) => Verdict::Again,
        _ if sense.is(Key::NoSense) || sense.is(Key::RecoveredError) => Verdict::Done,
        // The unit has ended it itself: of a change it may have made a part, and goes on with none.
        _ if sense.is(Key::AbortedCommand) && effect == Effect::Repeatable => Verdict::Again,
        _ => Verdict::Failed(Failure::Sense(sense)),
    }
}

fn is_becoming_ready(sense: Received) -> bool {
    !sense.deferred && sense.is(Key::NotReady) && BECOMING_READY.contains(&sense.code)
}

/// The command that the sense data came with was not done; a deferred error is about another (SPC-4, 4.5.7).
fn was_not_done(sense: Received) -> bool {
    sense.deferred || sense.is(Key::UnitAttention)
}

/// Another initiator ended it, whose doing says nothing of how far it had come or whether all of it has stopped (SAM-5,
/// 5.3.1).
fn aborted(effect: Effect) -> Verdict {
    match effect {
        Effect::Repeatable => Verdict::Again,
        Effect::Changes => Verdict::Failed(Failure::Disk(DiskError::Lost)),
    }
}

/// Sends a command until it has its outcome. What comes back has as many bytes as the target had.
pub(super) async fn execute(
    to: &impl Submit,
    cdb: Cdb,
    transfer: impl Fn() -> Transfer,
    effect: Effect,
) -> Result<Completion, Failure> {
    let patience = to.patience();
    let begun = Instant::now();
    let (mut attempts, mut pause) = (0, patience.pause_first);
    let mut not_ready = None;
    loop {
        let (answer, receiver) = oneshot::channel();
        to.submit(Job { cdb, transfer: transfer(), answer });
        let completion = receiver.await.unwrap_or(Err(DiskError::Lost));
        let completion = completion.map_err(|error| Failure::Disk(error).behind(not_ready))?;
        if effect == Effect::Changes {
            not_ready = completion.sense.filter(|sense| is_becoming_ready(*sense)).or(not_ready);
        }
        match judge(&completion, effect) {
            Verdict::Done => return Ok(completion),
            Verdict::Failed(failure) => {
                tracing::debug!(operation_code = cdb[0], %failure, "a command failed");
                return Err(failure.behind(not_ready));
            }
            Verdict::Again => {
                attempts += 1;
                if attempts > patience.attempts {
                    return Err(completion.sense.map_or(Failure::Status, Failure::Sense).behind(not_ready));
                }
            }
            Verdict::Later => {
                if begun.elapsed() >= patience.busy {
                    return Err(completion.sense.map_or(Failure::Busy, Failure::Sense).behind(not_ready));
                }
                sleep(pause).await;
                pause = (pause * 2).min(patience.pause_last);
            }
        }
    }
}

/// As [`execute`], of a command that moves exactly so many bytes: less, or more to be moved, is no success.
pub(super) async fn execute_exactly(
    to: &impl Submit,
    cdb: Cdb,
    transfer: impl Fn() -> Transfer,
    effect: Effect,
    length: u32,
) -> Result<Completion, Failure> {
    let completion = execute(to, cdb, transfer, effect).await?;
    let reads = effect == Effect::Repeatable;
    match completion.residual {
        Residual::None | Residual::Under(0) | Residual::Over(0)
            if !reads || completion.data.len() == length as usize =>
        {
            Ok(completion)
        }
        residual => {
            let moved = completion.data.len();
            tracing::debug!(
                operation_code = cdb[0],
                length,
                moved,
                ?residual,
                "a command moved another amount of data"
            );
            Err(Failure::Status)
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use parking_lot::Mutex;

    use super::*;
    use crate::disk;

    fn of(status: Status, sense: Option<(Key, u16)>, effect: Effect) -> Verdict {
        let sense = sense.map(|(key, code)| Received { key: key as u8, code, deferred: false });
        let completion = Completion { status: Some(status), sense, data: Bytes::new(), residual: Residual::None };
        judge(&completion, effect)
    }

    fn errno(key: Key, code: u16) -> DiskError {
        match of(Status::CheckCondition, Some((key, code)), Effect::Changes) {
            Verdict::Failed(failure) => failure.to_disk(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_unit_says_of_a_failure_becomes_an_errno() {
        for (key, code, expected) in [
            (Key::MediumError, 0x1100, Errno::EIO),
            (Key::HardwareError, 0x4400, Errno::EIO),
            (Key::DataProtect, 0x2700, Errno::EPERM),
            (Key::DataProtect, 0x2707, Errno::ENOSPC),
            (Key::IllegalRequest, 0x2000, Errno::ENOTSUP),
            (Key::IllegalRequest, 0x2100, Errno::EINVAL),
            (Key::NotReady, 0x3A00, Errno::EIO),
        ] {
            assert_eq!(errno(key, code), DiskError::Io(expected), "{key:?} {code:#06x}");
        }
    }

    #[test]
    fn what_was_never_done_is_refused() {
        let attention = Received { key: Key::UnitAttention as u8, code: 0x2A01, deferred: false };
        let deferred = Received { key: Key::MediumError as u8, code: 0x0C00, deferred: true };
        let senses = [attention, deferred].map(Failure::Sense);
        for failure in [Failure::Busy, Failure::ReservationConflict].into_iter().chain(senses) {
            assert_eq!(failure.to_disk(), DiskError::Refused(Errno::EIO), "{failure:?}");
        }
    }

    /// How a command ends, and with which code of NOT READY.
    type Said = disk::Result<(Status, Option<u16>)>;

    /// Answers commands as written down, in this order.
    struct Scripted(Mutex<std::vec::IntoIter<Said>>);

    impl Submit for Scripted {
        fn submit(&self, job: Job) {
            let answer = self.0.lock().next().expect("sent once more");
            let _ = job.answer.send(answer.map(|(status, not_ready)| {
                let sense = not_ready.map(|code| Received { key: Key::NotReady as u8, code, deferred: false });
                Completion { status: Some(status), sense, data: Bytes::new(), residual: Residual::None }
            }));
        }
        fn patience(&self) -> Patience {
            // The second answer is the last.
            let pause = Duration::from_millis(1);
            Patience { busy: pause, pause_first: pause, ..Patience::USUAL }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_the_unit_was_not_ready_for_may_have_been_made_in_part() {
        let outcome = async |effect, answers: Vec<Said>| {
            let to = Scripted(Mutex::new(answers.into_iter()));
            execute(&to, [0; 16], || Transfer::None, effect).await.map(drop).map_err(Failure::to_disk)
        };
        let allocating = || Ok((Status::CheckCondition, Some(0x0414)));
        let away = || Err(DiskError::Refused(Errno::ESHUTDOWN));
        for (last, expected) in [
            (Ok((Status::Good, None)), Ok(())),
            (allocating(), Err(DiskError::Io(Errno::EIO))),
            (Ok((Status::Busy, None)), Err(DiskError::Io(Errno::EIO))),
            (Ok((Status::ReservationConflict, None)), Err(DiskError::Io(Errno::EIO))),
            (away(), Err(DiskError::Lost)),
        ] {
            assert_eq!(outcome(Effect::Changes, vec![allocating(), last]).await, expected, "{last:?}");
        }
        let busy = || Ok((Status::Busy, None));
        assert_eq!(outcome(Effect::Changes, vec![busy(), busy()]).await, Err(DiskError::Refused(Errno::EIO)));
        assert_eq!(outcome(Effect::Repeatable, vec![allocating(), away()]).await, away().map(drop));
    }

    #[test]
    fn only_what_was_not_done_or_can_be_done_twice_is_sent_again() {
        let check = Status::CheckCondition;
        for effect in [Effect::Changes, Effect::Repeatable] {
            assert_eq!(of(Status::Busy, None, effect), Verdict::Later);
            assert_eq!(of(Status::TaskSetFull, None, effect), Verdict::Later);
            assert_eq!(of(check, Some((Key::UnitAttention, 0x2900)), effect), Verdict::Again);
            assert_eq!(of(check, Some((Key::NotReady, 0x0401)), effect), Verdict::Later);
            assert_eq!(of(check, Some((Key::RecoveredError, 0x1701)), effect), Verdict::Done);
        }
        let lost = Verdict::Failed(Failure::Disk(DiskError::Lost));
        assert_eq!(of(Status::TaskAborted, None, Effect::Changes), lost);
        assert_eq!(errno(Key::AbortedCommand, 0), DiskError::Io(Errno::EIO), "nothing of it is still to come");
        assert_eq!(of(check, Some((Key::AbortedCommand, 0)), Effect::Repeatable), Verdict::Again);
        assert_eq!(of(check, None, Effect::Changes), Verdict::Failed(Failure::Status));
    }
}
