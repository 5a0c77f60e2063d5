//! Tells where a volume was written last, as far as its newest objects say.
//!
//! A store that went back to an earlier state behind the gateway's back differs there first: whoever opens a volume
//! compares these places and nothing else.

use super::resolve::Resolver;
use super::source::{Named, Result, What};
use crate::format::index::Kind;
use crate::units::{BLOCK, SECTOR, Span};

/// Pages of one object that are looked at, spread evenly over it: a run may have very many, in the order of blocks.
const PAGES_MAX: usize = 64;

impl Resolver {
    /// Ranges in whole sectors that hold data, those of the newest objects first: until they are `bytes` together, or
    /// nothing more is listed. Some may be named twice.
    pub async fn recently_written(&self, bytes: u64) -> Result<Vec<Span>> {
        let layers = self.layers();
        let mut found = Vec::new();
        let mut left = bytes;
        for head in layers.heads().await? {
            let pages = head.head.pages().len();
            let step = pages.div_ceil(PAGES_MAX).max(1);
            let mut of_run = Vec::new();
            for number in (0..pages).step_by(step) {
                if left == 0 {
                    return Ok(found);
                }
                for page in self.source().pages(head, &[number]).await? {
                    for named in page.iter() {
                        match (head.kind, named.what) {
                            (Kind::Pack, What::Stored(_)) => push(named, &mut found, &mut left),
                            (Kind::Run, What::Pack(pack)) => {
                                let pack = head.pack(self.keys().volume(), pack)?;
                                of_run.push(((pack.generation, pack.number), *named));
                            }
                            _ => {}
                        }
                    }
                }
            }
            // A run is in the order of blocks; its packs are numbered in the order in which they were begun.
            of_run.sort_unstable_by_key(|(pack, named)| (std::cmp::Reverse(*pack), named.first));
            of_run.iter().for_each(|(_, named)| push(named, &mut found, &mut left));
        }
        Ok(found)
    }
}

/// Adds the sectors of a record, as long as something is left. The last block of a volume may have more than it.
fn push(named: &Named, found: &mut Vec<Span>, left: &mut u64) {
    for block in named.first.0..named.end() {
        for (first, count) in named.mask.runs() {
            if *left == 0 {
                return;
            }
            let span = Span::at(block * BLOCK + u64::from(first) * SECTOR, u64::from(count) * SECTOR);
            *left = left.saturating_sub(span.len());
            found.push(span);
        }
    }
}
