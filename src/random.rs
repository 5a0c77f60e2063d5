//! Randomness as a parameter: the kernel's, or in a simulated world that of the world's seed.

/// Fills `bytes`.
pub fn fill(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    #[cfg(test)]
    if seeded::fill(bytes) {
        return Ok(());
    }
    getrandom::fill(bytes)
}

pub fn u32() -> Result<u32, getrandom::Error> {
    let mut bytes = [0; 4];
    fill(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Simulated worlds: all that a thread draws comes from a seed, and what would run beside it runs on it.
#[cfg(test)]
pub mod seeded {
    use std::cell::Cell;

    thread_local! {
        static STATE: Cell<Option<u64>> = const { Cell::new(None) };
        static LASTS: Cell<u64> = const { Cell::new(0) };
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(state: u64) -> (u64, u64) {
        let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (state, z ^ (z >> 31))
    }

    /// While it lives, this thread is in a simulated world.
    #[must_use]
    pub struct Seeded(());

    pub fn with(seed: u64) -> Seeded {
        STATE.set(Some(seed));
        Seeded(())
    }

    impl Drop for Seeded {
        fn drop(&mut self) {
            STATE.set(None);
        }
    }

    /// Whether this thread is in a simulated world.
    pub fn is_here() -> bool {
        STATE.get().is_some()
    }

    /// The blocking call that a device is in lasts so many milliseconds at least.
    pub fn lasts(millis: u64) {
        LASTS.set(LASTS.get().max(millis));
    }

    /// How long the call that has ended lasts.
    pub fn lasted() -> u64 {
        LASTS.take()
    }

    /// The next number of the world; none outside of one.
    pub fn draw() -> Option<u64> {
        let (state, drawn) = next(STATE.get()?);
        STATE.set(Some(state));
        Some(drawn)
    }

    pub(super) fn fill(bytes: &mut [u8]) -> bool {
        for part in bytes.chunks_mut(8) {
            let Some(drawn) = draw() else { return false };
            part.copy_from_slice(&drawn.to_le_bytes()[..part.len()]);
        }
        true
    }
}
