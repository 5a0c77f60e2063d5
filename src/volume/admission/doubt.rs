//! What the store, the marks or the chain are found not to be: logging ends, and what may differ is marked.

use super::{Admission, State};
use crate::failpoint::{self, Safeguard};
use crate::marks::Facts;
use crate::units::Span;
use crate::volume::heat::Cold;
use crate::writelog::VolumeLog;

impl Admission {
    /// The store may have forgotten whatever is not proven to be flushed: logging ends, and all that is hot is marked.
    pub fn distrust(&mut self) {
        self.stop_logging(Span::new(0, 0));
        self.marked.add(self.heat.hot());
        self.heat.disprove();
        self.distrusts += 1;
    }

    /// As [`Self::distrust`], and what the store holds where it is hot now cannot be known by reading it.
    pub fn distrust_for_good(&mut self) {
        self.heat.stick();
        self.distrust();
    }

    /// How often the store was distrusted: what was read of it before says nothing of what is read after.
    pub fn distrusts(&self) -> u64 {
        self.distrusts
    }

    /// Whether the store, now of that incarnation, may have forgotten something since it was distrusted so many times: an
    /// operation that was admitted then and is answered now says nothing of what stands beside it.
    pub fn is_stale(&self, incarnation: u64, distrusts: u64) -> bool {
        (incarnation > self.incarnation || distrusts != self.distrusts) && failpoint::stands(Safeguard::StaleAnswers)
    }

    /// Takes note of the store's incarnation; a higher one than before is a reason for distrust.
    pub fn came_back(&mut self, incarnation: u64) -> bool {
        let came_back = incarnation > self.incarnation && failpoint::stands(Safeguard::DistrustAfterLoss);
        if came_back {
            self.incarnation = incarnation;
            self.distrust();
        }
        came_back
    }

    /// What the store is compared with is not what it was thought to be, or the store is not: nothing logged so far makes
    /// it exact, and everything is to be compared. Says when that is durably known.
    pub fn distrust_base(&mut self) -> Cold {
        self.heat.doubt(true);
        self.mark_all()
    }

    fn mark_all(&mut self) -> Cold {
        self.chain_seen = true;
        self.distrust();
        self.exact_from = None;
        if self.state == State::Replaying {
            self.forget();
        }
        self.marked.insert(Span::new(0, self.size));
        self.heat.want(Span::new(0, self.size))
    }

    pub fn fence(&mut self, log: &VolumeLog) {
        self.mark_all();
        self.state = State::Fenced;
        self.forget();
        self.release(log);
    }

    /// The store is the one that was shadowed, as far as that can be known.
    pub fn believe(&mut self) {
        self.heat.doubt(false);
    }

    /// In Fenced the log is of no use; but it stays until the marks say durably what it covered.
    pub fn release(&mut self, log: &VolumeLog) {
        if self.state == State::Fenced && !self.heat.is_heating() && log.appended() < self.newest().next() {
            log.reset(self.newest().next());
        }
    }

    /// The marks cannot be written: nothing is known of what changes from now on.
    pub fn untrack(&mut self) {
        if self.unmarked {
            return;
        }
        self.unmarked = true;
        self.distrust();
        self.exact_from = None;
        self.marked.insert(Span::new(0, self.size));
        if self.state != State::Fenced {
            self.state = State::Untracked;
        }
    }

    pub fn is_unmarked(&self) -> bool {
        self.unmarked
    }

    /// The marks were begun anew: all is hot.
    pub fn track_again(&mut self, facts: Facts) {
        self.heat.all_hot(self.size, facts);
        self.unmarked = false;
        if self.state == State::Untracked {
            self.state = State::Overflowed;
        }
    }

    /// Changes of a store that an old connection may still carry are read once more, later: what is hot now stays so.
    pub fn suspect(&mut self) {
        self.heat.suspect();
    }

    /// The time of suspicion is over: what was suspect is read again. False if there was nothing.
    pub fn read_suspects(&mut self) -> bool {
        let suspects = self.heat.suspects();
        if suspects.is_empty() {
            return false;
        }
        self.stop_logging(Span::new(0, 0));
        self.marked.add(&suspects);
        true
    }
}
