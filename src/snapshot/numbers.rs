//! Names of packs and runs: unique within a generation.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::units::Generation;

/// Hands out the numbers 1, 2, 3 … of one generation, to packs and runs alike.
pub struct ObjectNumbers {
    generation: Generation,
    newest: AtomicU64,
}

impl ObjectNumbers {
    pub fn new(generation: Generation) -> Self {
        Self { generation, newest: AtomicU64::new(0) }
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    pub fn next(&self) -> u64 {
        self.newest.fetch_add(1, Ordering::Relaxed) + 1
    }
}
