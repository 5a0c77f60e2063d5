//! Randomness as a parameter: the kernel's, or in a simulated world that of the world's seed; and numbers that only
//! look random, for what a seed is to bring back.

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

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014) from a seed on. The same seed
/// has the same numbers for ever, for seeds are written down; who sees one number knows those that follow, so nothing
/// is to be named by them.
#[derive(Clone, Debug)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    #[expect(clippy::should_implement_trait, reason = "it has no end, so that there is nothing to ask about each")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `end` − 1; `end` is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Simulated worlds: all that a thread draws comes from a seed, and what would run beside it runs on it.
#[cfg(test)]
pub mod seeded {
    use std::cell::Cell;

    use super::SplitMix64;

    thread_local! {
        static STATE: Cell<Option<u64>> = const { Cell::new(None) };
        static LASTS: Cell<u64> = const { Cell::new(0) };
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
        let mut random = SplitMix64(STATE.get()?);
        let drawn = random.next();
        STATE.set(Some(random.0));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of seed 1234567, as other programs have them too.
    #[test]
    fn a_seed_has_the_same_numbers_for_ever() {
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        let mut random = SplitMix64(1_234_567);
        assert_eq!(expected.map(|_| random.next()), expected);
        let _world = seeded::with(1_234_567);
        assert_eq!(expected.map(|_| seeded::draw().unwrap()), expected);
    }
}
