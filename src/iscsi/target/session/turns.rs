//! Whose turn it is among the tasks of a session: their attributes (SAM-5, 8.6).
//!
//! ```text
//!  simple   simple │ ordered │ simple   head of queue │ ordered │ simple      in the order in which they came
//!    0        0    │    1    │   2            0       │    3    │   4         their eras
//! ```
//! Owns: who may begin. Leaves to `commands` whether there is room. Nothing is counted: who has to wait follows from what
//! has not ended, so that a task that was aborted is in nobody's way.

use crate::iscsi::pdu::command;

/// Odd for an ordered task, which has it alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Era(u64);

impl Era {
    /// Of what is older than any ordered task.
    pub const FIRST: Self = Self(0);

    fn is_ordered(self) -> bool {
        self.0 % 2 == 1
    }

    /// The era of a task that comes now, and the one that lasts from then on; none for an attribute that is not ours.
    pub fn with(self, attribute: u8) -> Option<(Self, Self)> {
        match attribute {
            command::UNTAGGED | command::SIMPLE => Some((self, self)),
            command::ORDERED => Some((Self(self.0 + 1), Self(self.0 + 2))),
            // It passes all that wait, and those that are ordered wait for it.
            command::HEAD_OF_QUEUE => Some((Self::FIRST, self)),
            // ACA: there is no auto contingent allegiance here (NormACA is zero).
            _ => None,
        }
    }
}

/// The eldest of what has not ended: of all tasks, and of the ordered ones.
pub struct Turn {
    eldest: Era,
    eldest_ordered: Era,
}

impl Turn {
    pub const EVERYBODYS: Self = Self { eldest: Era(u64::MAX), eldest_ordered: Era(u64::MAX) };

    pub fn after(unfinished: impl Iterator<Item = Era>) -> Self {
        unfinished.fold(Self::EVERYBODYS, |turn, era| Self {
            eldest: turn.eldest.min(era),
            eldest_ordered: if era.is_ordered() { turn.eldest_ordered.min(era) } else { turn.eldest_ordered },
        })
    }

    /// An ordered task waits for all that are older, and the others for the ordered ones among them.
    pub fn is_of(&self, era: Era) -> bool {
        era <= if era.is_ordered() { self.eldest } else { self.eldest_ordered }
    }
}
