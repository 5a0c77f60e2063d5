//! Safeguards that a test can take away, to show that it would notice.
//!
//! In a build that is not a test every safeguard stands, and asking costs nothing.

/// A rule on which a promise rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safeguard {
    /// Changes that overlap wait for each other.
    RangeLock,
    /// A change waits until its regions are durably hot.
    HotBeforeWrite,
    /// A region stays hot until a flush of the store that was submitted after its last change has succeeded.
    CoolAfterFlush,
    /// A region stays hot until the log that has its changes is synced.
    CoolAfterSync,
    /// A region stays hot while an outcome on it is unknown.
    CoolAfterReadBack,
    /// What was scanned stays hot until it is published.
    CoolAfterPublish,
    /// A region that cools with unpublished changes becomes diverged.
    DivergedWhenCooled,
    /// Of the log only the gap-free prefix is replayed.
    GapFreePrefix,
    /// A range of unknown outcome bars cuts until it was read back.
    Barrier,
    /// Who finds its number in the chain taken publishes no more.
    Fence,
    /// What a scan read stands below what the log says in the same entry.
    ScanBelowLog,
    /// A piece of a scan is read with its range held.
    ScanHoldsRange,
    /// A store that came back is distrusted.
    DistrustAfterLoss,
    /// What a store answers that came back, or was distrusted meanwhile, is an unknown outcome.
    StaleAnswers,
    /// So is one that failed a flush.
    DistrustAfterFailedFlush,
    /// After a failed flush the store is read past its caches.
    ForgottenCaches,
    /// A client's flush is answered when the store has flushed.
    FlushForwarded,
    /// A record that the log refused ends logging.
    OverflowEndsLogging,
    /// What was written last is compared at a start, whatever the marks say.
    SampleAtOpen,
    /// Log and chain are told that the marks may be wrong before changes go unmarked.
    Foretold,
}

/// Whether it stands.
#[inline]
pub fn stands(safeguard: Safeguard) -> bool {
    #[cfg(test)]
    return missing::MISSING.get() & missing::bit(safeguard) == 0;
    #[cfg(not(test))]
    {
        let _ = safeguard;
        true
    }
}

#[cfg(test)]
pub use missing::without;

#[cfg(test)]
mod missing {
    use super::Safeguard;
    use std::cell::Cell;

    thread_local! {
        /// A bit for each.
        pub(super) static MISSING: Cell<u64> = const { Cell::new(0) };
    }

    pub(super) fn bit(safeguard: Safeguard) -> u64 {
        1 << safeguard as u64
    }

    /// Until it is dropped, the safeguard is missing on this thread.
    #[must_use]
    pub struct Without(Safeguard);

    pub fn without(safeguard: Safeguard) -> Without {
        MISSING.set(MISSING.get() | bit(safeguard));
        Without(safeguard)
    }

    impl Drop for Without {
        fn drop(&mut self) {
            MISSING.set(MISSING.get() & !bit(self.0));
        }
    }
}
