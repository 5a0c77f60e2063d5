//! What a session learns of the unit behind it, apart from how commands end: [`Watch`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::scsi::{Key, Received};

/// What is to be known of a unit before the answer that tells of it is passed on.
#[derive(Clone, Default)]
pub struct Watch {
    /// Rises when the unit may have forgotten what was not flushed.
    pub incarnation: Arc<AtomicU64>,
    /// A change that was answered as done was not, and no flush has told of it yet.
    pub deferred_error: Arc<AtomicBool>,
    /// Told when the unit says that it is not what it was.
    pub look_again: Arc<Notify>,
    /// The unit has told what it tells a new initiator: what it tells now is news, to whoever asks it what it is, too. Of
    /// one session, as the next; all else is the disk's.
    heeded: Arc<AtomicBool>,
    /// It was found not to be the right one: nothing more is sent.
    halt: Arc<Notify>,
}

/// ADDITIONAL SENSE CODEs (SPC-4, annex F).
pub const LOGICAL_UNIT_NOT_SUPPORTED: u16 = 0x2500;
/// With all qualifiers: NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED; POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
const MEDIUM_MAY_HAVE_CHANGED: u8 = 0x28;
const RESET: u8 = 0x29;
const CAPACITY_DATA_HAS_CHANGED: u16 = 0x2A09;
const INQUIRY_DATA_HAS_CHANGED: u16 = 0x3F03;
const DEVICE_IDENTIFIER_CHANGED: u16 = 0x3F05;
const REPORTED_LUNS_DATA_HAS_CHANGED: u16 = 0x3F0E;

/// Whether the unit that says so may be another from now on, or will be soon: behind a LUN that was mapped anew, or behind
/// what was powered off meanwhile. The command that it came with was not done.
fn may_be_another(sense: Received) -> bool {
    if sense.deferred {
        return false;
    }
    let attention = matches!(sense.code.to_be_bytes()[0], MEDIUM_MAY_HAVE_CHANGED | RESET)
        || [INQUIRY_DATA_HAS_CHANGED, DEVICE_IDENTIFIER_CHANGED, REPORTED_LUNS_DATA_HAS_CHANGED].contains(&sense.code);
    let gone = sense.is(Key::IllegalRequest) && sense.code == LOGICAL_UNIT_NOT_SUPPORTED;
    sense.is(Key::UnitAttention) && attention || gone
}

impl Watch {
    /// For a session that begins.
    pub fn of_a_session(&self) -> Self {
        Self { heeded: Arc::default(), halt: Arc::default(), ..self.clone() }
    }

    /// From here on what the unit says of itself counts.
    pub fn heed(&self) {
        self.heeded.store(true, Ordering::SeqCst);
    }

    /// Ends the link; what is in flight is lost.
    pub fn halt(&self) {
        self.halt.notify_one();
    }

    /// When [`halt`](Self::halt) is called.
    pub fn halted(&self) -> impl Future<Output = ()> + Send + use<> {
        let halt = self.halt.clone();
        async move { halt.notified().await }
    }

    /// Takes what came with CHECK CONDITION, or by itself; none if it could not be read. Says whether the unit may be another.
    pub fn see(&self, sense: Option<Received>) -> bool {
        let heeded = self.heeded.load(Ordering::SeqCst);
        let Some(sense) = sense else {
            // It may have said that it was reset.
            self.incarnation.fetch_add(heeded.into(), Ordering::SeqCst);
            return false;
        };
        if sense.deferred && !sense.is(Key::NoSense) && !sense.is(Key::RecoveredError) {
            self.deferred_error.store(true, Ordering::SeqCst);
            self.incarnation.fetch_add(1, Ordering::SeqCst);
        }
        // A new session counts as such, whatever the unit tells a new initiator.
        let another = heeded && may_be_another(sense);
        if another {
            self.incarnation.fetch_add(1, Ordering::SeqCst);
        }
        if heeded && sense.is(Key::UnitAttention) && sense.code == CAPACITY_DATA_HAS_CHANGED {
            self.look_again.notify_one();
        }
        another
    }
}
