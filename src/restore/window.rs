//! Walks through a point's content, from the volume's first block to its last, in windows of bounded memory.

use crate::chain::resolve::{Fragment, ResolveError, Resolver};
use crate::units::{BLOCK, Block, GIB, Span};

/// The longest window: large, so that what of one pack lies in it lies together in the pack as well.
const BLOCKS_MAX: u64 = 16 * GIB / BLOCK;
/// A window ends where it has so many fragments, 144 bytes each: some 36 MiB.
const FRAGMENTS_MAX: usize = 256 * 1024;
/// Blocks that are looked up at once: at first, and where little is found.
const STEP_MIN: u64 = 4096;
const STEP_MAX: u64 = 16 * STEP_MIN;

/// A stretch of the volume, and all that a point says about it.
#[derive(Debug)]
pub struct Window {
    /// Bytes; whole blocks, save at the end of the volume.
    pub span: Span,
    /// By block, disjoint. What none of them is about is zero.
    pub fragments: Vec<Fragment>,
}

/// Where the walk is.
pub struct Walk<'r> {
    resolver: &'r Resolver,
    at: u64,
    end: u64,
    step: u64,
}

impl<'r> Walk<'r> {
    pub fn new(resolver: &'r Resolver) -> Self {
        Self { resolver, at: 0, end: resolver.size().div_ceil(BLOCK), step: STEP_MIN }
    }

    /// The next window; none at the end of the volume.
    pub async fn next(&mut self) -> Result<Option<Window>, ResolveError> {
        let start = self.at;
        let mut fragments = Vec::new();
        while self.at < self.end && self.at - start < BLOCKS_MAX && fragments.len() < FRAGMENTS_MAX {
            let named = self.resolver.next_named(Block(self.at)).await?.map_or(self.end, |block| block.0);
            if named > self.at {
                self.at = named.min(self.end);
                continue;
            }
            let count = self.step.min(self.end - self.at);
            let found = self.resolver.resolve(Block(self.at), count).await?;
            self.at += count;
            // Twice as far next time where there was next to nothing, from the start again where there was plenty.
            self.step = if found.len() as u64 <= count / 16 { STEP_MAX.min(self.step * 2) } else { STEP_MIN };
            fragments.extend(found);
        }
        if self.at == start {
            return Ok(None);
        }
        let span = Span::new(start * BLOCK, (self.at * BLOCK).min(self.resolver.size()));
        Ok(Some(Window { span, fragments }))
    }
}
