//! Verified parts of indexes, bounded by the memory that they take; what was used longest ago goes first.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// `V` is shared by cloning. What is heavier than the whole cache is not kept.
pub(super) struct Cache<K, V> {
    capacity: usize,
    weight: usize,
    clock: u64,
    kept: HashMap<K, Kept<V>>,
    by_use: BTreeMap<u64, K>,
}

struct Kept<V> {
    value: V,
    weight: usize,
    used: u64,
}

impl<K: Clone + Eq + Hash, V: Clone> Cache<K, V> {
    /// `capacity` in bytes, as weights are.
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, weight: 0, clock: 0, kept: HashMap::new(), by_use: BTreeMap::new() }
    }

    pub(super) fn get(&mut self, key: &K) -> Option<V> {
        let kept = self.kept.get_mut(key)?;
        self.clock += 1;
        if let Some(key) = self.by_use.remove(&kept.used) {
            self.by_use.insert(self.clock, key);
        }
        kept.used = self.clock;
        Some(kept.value.clone())
    }

    pub(super) fn insert(&mut self, key: K, value: V, weight: usize) {
        self.remove(&key);
        self.clock += 1;
        self.weight += weight;
        self.by_use.insert(self.clock, key.clone());
        self.kept.insert(key, Kept { value, weight, used: self.clock });
        while self.weight > self.capacity {
            let Some((_, oldest)) = self.by_use.first_key_value() else { break };
            let oldest = oldest.clone();
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &K) {
        if let Some(kept) = self.kept.remove(key) {
            self.weight -= kept.weight;
            self.by_use.remove(&kept.used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut cache = Cache::new(10);
        cache.insert('a', 1, 4);
        cache.insert('b', 2, 4);
        assert_eq!(cache.get(&'a'), Some(1));
        cache.insert('c', 3, 4);
        assert_eq!([cache.get(&'a'), cache.get(&'b'), cache.get(&'c')], [Some(1), None, Some(3)]);
        cache.insert('c', 4, 10);
        assert_eq!([cache.get(&'a'), cache.get(&'c')], [None, Some(4)]);
        cache.insert('d', 5, 11);
        assert_eq!([cache.get(&'c'), cache.get(&'d')], [None, None]);
        assert_eq!((cache.weight, cache.by_use.len()), (0, 0));
    }
}
