//! Unit attention conditions: what happened to the unit that an initiator does not know of yet (SAM-5, 5.14).
//!
//! Each nexus has its own, one of a kind at a time. A reset makes those before it meaningless.

use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

use super::sense::{Key, Sense};

/// In the order in which they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Attention {
    /// The nexus is new.
    PowerOn,
    /// LOGICAL UNIT RESET.
    Reset,
    /// CLEAR TASK SET of another.
    CommandsCleared,
    CapacityChanged,
    ModeParametersChanged,
    ReservationsPreempted,
    ReservationsReleased,
    RegistrationsPreempted,
}

const ALL: [Attention; 8] = [
    Attention::PowerOn,
    Attention::Reset,
    Attention::CommandsCleared,
    Attention::CapacityChanged,
    Attention::ModeParametersChanged,
    Attention::ReservationsPreempted,
    Attention::ReservationsReleased,
    Attention::RegistrationsPreempted,
];

impl Attention {
    fn bit(self) -> u8 {
        1 << self as u8
    }

    fn sense(self) -> Sense {
        let code = match self {
            Self::PowerOn => 0x2900,
            Self::Reset => 0x2903,
            Self::CommandsCleared => 0x2F00,
            Self::CapacityChanged => 0x2A09,
            Self::ModeParametersChanged => 0x2A01,
            Self::ReservationsPreempted => 0x2A03,
            Self::ReservationsReleased => 0x2A04,
            Self::RegistrationsPreempted => 0x2A05,
        };
        Sense::new(Key::UnitAttention, code)
    }
}

/// What one nexus is still to be told: a bit for each.
#[derive(Default)]
pub(super) struct Attentions(AtomicU8);

impl Attentions {
    pub fn raise(&self, attention: Attention) {
        match attention {
            Attention::PowerOn | Attention::Reset => self.0.store(attention.bit(), SeqCst),
            _ => drop(self.0.fetch_or(attention.bit(), SeqCst)),
        }
    }

    /// The first there is, which is told with this.
    pub fn take(&self) -> Option<Sense> {
        let pending = self.0.load(SeqCst);
        if pending == 0 {
            return None;
        }
        let first = ALL.into_iter().find(|attention| pending & attention.bit() != 0)?;
        let taken = self.0.fetch_and(!first.bit(), SeqCst) & first.bit() != 0;
        taken.then(|| first.sense())
    }
}
