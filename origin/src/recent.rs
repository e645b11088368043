//! A bounded map that forgets what was not used lately. Its users keep times in the values and judge their age.

use std::collections::HashMap;
use std::hash::Hash;

/// Two generations of entries: a lookup moves an entry to the young one; when that is full the old one is dropped. Every
/// operation is O(1), and at least the last `entries_max / 2` entries used are kept.
pub(crate) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (entries_max / 2).max(1) }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<&V> {
        if let Some((key, value)) = self.old.remove_entry(key) {
            self.put(key, value);
        }
        self.young.get(key).or_else(|| self.old.get(key))
    }

    pub(crate) fn put(&mut self, key: K, value: V) {
        self.old.remove(&key);
        self.young.insert(key, value);
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
    }

    /// Forgets the entries of which this does not hold.
    pub(crate) fn retain(&mut self, holds: impl Fn(&V) -> bool) {
        self.young.retain(|_, value| holds(value));
        self.old.retain(|_, value| holds(value));
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_is_bounded() {
        let mut recent = Recent::new(8);
        recent.put(0, "kept");
        for key in 1..1000 {
            recent.put(key, "passing");
            assert_eq!(recent.get(&0), Some(&"kept"));
            assert!(recent.len() <= 8);
        }
        assert_eq!(recent.get(&1), None);
    }

    #[test]
    fn the_last_value_put_is_the_one_found() {
        let mut recent = Recent::new(2);
        recent.put("a", 1);
        recent.put("a", 2);
        assert_eq!(recent.get(&"a"), Some(&2));
        recent.remove(&"a");
        assert_eq!(recent.get(&"a"), None);
        recent.put("b", 3);
        recent.retain(|value| *value != 3);
        assert_eq!(recent.get(&"b"), None);
    }
}
