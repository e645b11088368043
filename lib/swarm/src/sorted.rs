//! Maps and sets of a few entries, in order of their keys: a list, the first entry in place.
//!
//! For what is mostly one or two (the torrents of a node, those that a peer has open) and looked into by every message: a
//! search tree's node is cold in the cache when a list in place is not. Adding the greatest key and looking up are cheap
//! however many there are; other changes move what comes after.

use std::ops::Index;

use smallvec::SmallVec;

/// A map in order of its keys.
#[derive(Debug)]
pub(crate) struct SortedMap<K, V> {
    entries: SmallVec<[(K, V); 1]>,
}

impl<K, V> Default for SortedMap<K, V> {
    fn default() -> Self {
        Self { entries: SmallVec::new() }
    }
}

impl<K: Ord, V> SortedMap<K, V> {
    fn find(&self, key: &K) -> Result<usize, usize> {
        self.entries.binary_search_by(|(other, _)| other.cmp(key))
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        match self.find(&key) {
            Ok(at) => self.entries[at].1 = value,
            Err(at) => self.entries.insert(at, (key, value)),
        }
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(key).ok()?;
        Some(self.entries.remove(at).1)
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        Some(&self.entries[self.find(key).ok()?].1)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.find(key).ok()?;
        Some(&mut self.entries[at].1)
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.entries.iter_mut().map(|(key, value)| (&*key, value))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> Index<&K> for SortedMap<K, V> {
    type Output = V;

    /// # Panics
    /// When nothing is there.
    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the key is there")
    }
}

/// A set in order.
#[derive(Clone, Debug)]
pub(crate) struct SortedSet<K> {
    keys: SmallVec<[K; 2]>,
}

impl<K> Default for SortedSet<K> {
    fn default() -> Self {
        Self { keys: SmallVec::new() }
    }
}

impl<K: Ord> SortedSet<K> {
    /// Tells whether the key was new.
    pub(crate) fn insert(&mut self, key: K) -> bool {
        let at = self.keys.binary_search(&key);
        if let Err(at) = at {
            self.keys.insert(at, key);
        }
        at.is_err()
    }

    /// Tells whether the key was there.
    pub(crate) fn remove(&mut self, key: &K) -> bool {
        let at = self.keys.binary_search(key);
        if let Ok(at) = at {
            self.keys.remove(at);
        }
        at.is_ok()
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.keys.binary_search(key).is_ok()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &K> {
        self.keys.iter()
    }
}

impl<K> IntoIterator for SortedSet<K> {
    type Item = K;
    type IntoIter = smallvec::IntoIter<[K; 2]>;

    fn into_iter(self) -> Self::IntoIter {
        self.keys.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sorted_list_is_a_map_and_a_set(changes in prop::collection::vec((0..8u8, any::<Option<u8>>()), 0..40)) {
            let (mut map, mut map_model) = (SortedMap::default(), BTreeMap::new());
            let (mut set, mut set_model) = (SortedSet::default(), BTreeSet::new());
            for (key, change) in changes {
                if let Some(value) = change {
                    map.insert(key, value);
                    map_model.insert(key, value);
                    prop_assert_eq!(set.insert(key), set_model.insert(key));
                } else {
                    prop_assert_eq!(map.remove(&key), map_model.remove(&key));
                    prop_assert_eq!(set.remove(&key), set_model.remove(&key));
                }
            }
            prop_assert_eq!(map.len(), map_model.len());
            prop_assert!(map.iter().eq(&map_model));
            prop_assert!((0..8).all(|key| map.get(&key) == map_model.get(&key) && map.contains_key(&key) == set.contains(&key)));
            prop_assert_eq!(set.is_empty(), set_model.is_empty());
            prop_assert!(set.into_iter().eq(set_model));
        }
    }
}
