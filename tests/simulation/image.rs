//! The store as it was after exactly some operations: what a recovery point must be, bit for bit (T4).

use super::pages::Pages;
use super::store::Effect;
use crate::units::SECTOR;

/// Tells images by ascending sequence, each from the one before.
#[derive(Default)]
pub struct Images {
    base: Pages,
    /// So many effects are in it for good.
    folded: usize,
    through: u64,
}

impl Images {
    pub fn new(size: u64) -> Self {
        Self { base: Pages::zero(size.next_multiple_of(SECTOR)), folded: 0, through: 0 }
    }

    /// Whether the store, after exactly the operations up to `sequence`, was what `is_it` takes it for.
    ///
    /// Operations that took no sequence, and changes of the store by itself, come after the newest sequence of their
    /// time. Those that came right after `sequence` may be in the image or not, in their order.
    pub fn any(&mut self, effects: &[Effect], sequence: u64, is_it: impl Fn(&Pages) -> bool) -> bool {
        if sequence < self.through {
            self.base = Pages::zero(self.base.len());
            self.folded = 0;
        }
        self.through = sequence;
        // Operations that had no effect tell no moments apart.
        let newest = effects.iter().filter_map(|effect| effect.sequence).filter(|&own| own <= sequence).max();
        let newest = newest.unwrap_or(0);
        let certain = |effect: &Effect| match effect.sequence {
            Some(own) => own <= sequence,
            None => effect.after < newest,
        };
        let possible_at = |effect: &Effect| effect.sequence.is_none() && (newest..=sequence).contains(&effect.after);
        while let Some(effect) = effects.get(self.folded).filter(|effect| certain(effect)) {
            apply(effect, &mut self.base);
            self.folded += 1;
        }
        let rest = &effects[self.folded..];
        let possible = rest.iter().filter(|effect| possible_at(effect)).count();
        if !rest.iter().any(certain) && possible == 0 {
            return is_it(&self.base);
        }
        let image = |with: usize| {
            let mut image = self.base.clone();
            let mut had = 0;
            for effect in rest {
                let may = possible_at(effect);
                if certain(effect) || (may && had < with) {
                    apply(effect, &mut image);
                }
                had += usize::from(may);
            }
            image
        };
        // Mostly it is all of them or none.
        std::iter::once(possible).chain(0..possible).any(|with| is_it(&image(with)))
    }
}

fn apply(effect: &Effect, image: &mut Pages) {
    effect.changes.iter().for_each(|(offset, change)| change.apply(*offset, image));
}
