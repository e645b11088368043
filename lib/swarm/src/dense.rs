//! Dense maps and sets over connections: each connection of a swarm has a small index while it lasts.
//!
//! Every message looks into several of these, and a node's share of a big simulation is cold in the cache: an array is one
//! access where a search tree is several.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Index;

use rand::RngExt as _;
use rand_pcg::Pcg64;
use smallvec::SmallVec;

use crate::ConnId;

/// The driver's names of connections, and ours.
pub(crate) type ConnIds = HashMap<ConnId, ConnIndex, BuildHasherDefault<IdHasher>>;

/// Hashes the driver's names. The driver draws them, not a peer: nobody can choose them to collide, and every message
/// looks one up, so one multiplication has to do.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, id: u64) {
        let product = (self.0 ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The map takes its buckets from the low bits, which the multiplication mixes least.
        self.0 = product ^ product >> 32;
    }
}

/// A connection's place in this swarm; used again when it is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ConnIndex(u16);

impl ConnIndex {
    /// `None` for more than a swarm can have.
    pub(crate) fn new(index: usize) -> Option<Self> {
        u16::try_from(index).ok().map(Self)
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

fn conn(index: usize) -> ConnIndex {
    ConnIndex::new(index).expect("what is in a map or set went in by its index")
}

/// Something for some of the connections, in the order of their indices.
#[derive(Debug)]
pub(crate) struct ConnMap<T> {
    entries: Vec<Option<T>>,
    /// The indices of those that are there.
    taken: ConnSet,
}

impl<T> Default for ConnMap<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), taken: ConnSet::default() }
    }
}

impl<T> ConnMap<T> {
    /// The first index that is free; `None` when none is.
    pub(crate) fn vacant(&self) -> Option<ConnIndex> {
        ConnIndex::new(self.entries.iter().position(Option::is_none).unwrap_or(self.entries.len()))
    }

    pub(crate) fn insert(&mut self, at: ConnIndex, value: T) {
        if at.index() >= self.entries.len() {
            self.entries.resize_with(at.index() + 1, || None);
        }
        self.entries[at.index()] = Some(value);
        self.taken.insert(at);
    }

    pub(crate) fn remove(&mut self, at: ConnIndex) -> Option<T> {
        self.taken.remove(at);
        self.entries.get_mut(at.index())?.take()
    }

    pub(crate) fn get(&self, at: ConnIndex) -> Option<&T> {
        self.entries.get(at.index())?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, at: ConnIndex) -> Option<&mut T> {
        self.entries.get_mut(at.index())?.as_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.taken.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ConnIndex, &T)> {
        self.taken.iter().filter_map(|at| Some((at, self.get(at)?)))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (ConnIndex, &mut T)> {
        self.entries.iter_mut().enumerate().filter_map(|(index, entry)| Some((conn(index), entry.as_mut()?)))
    }

    /// The indices taken.
    pub(crate) fn indices(&self) -> ConnSet {
        self.taken.clone()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, value)| value)
    }
}

impl<T> Index<ConnIndex> for ConnMap<T> {
    type Output = T;

    /// # Panics
    /// When nothing is there.
    fn index(&self, at: ConnIndex) -> &T {
        self.get(at).expect("the connection is there")
    }
}

/// A set of connections, in the order of their indices.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnSet {
    /// Two words are in place: as many as the connections of an agent.
    words: SmallVec<[u64; 2]>,
}

impl ConnSet {
    pub(crate) fn insert(&mut self, at: ConnIndex) {
        let word = at.index() / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (at.index() % 64);
    }

    pub(crate) fn remove(&mut self, at: ConnIndex) {
        if let Some(word) = self.words.get_mut(at.index() / 64) {
            *word &= !(1 << (at.index() % 64));
        }
    }

    pub(crate) fn contains(&self, at: ConnIndex) -> bool {
        self.words.get(at.index() / 64).is_some_and(|word| word >> (at.index() % 64) & 1 == 1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        other.iter().for_each(|at| self.insert(at));
    }

    /// Those that are in the other set too.
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self { words: self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect() }
    }

    /// Those that are not in the other set.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let others = other.words.iter().copied().chain(std::iter::repeat(0));
        Self { words: self.words.iter().zip(others).map(|(a, b)| a & !b).collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Takes out one that is in `first` too, or any if none is, each as likely; `None` of an empty set.
    pub(crate) fn draw(&mut self, first: &Self, rng: &mut Pcg64) -> Option<ConnIndex> {
        let mut random = |set: &Self| {
            let at = if set.len() > 1 { rng.random_range(0..set.len()) } else { 0 };
            set.iter().nth(at)
        };
        let drawn = random(&self.and(first)).or_else(|| random(self))?;
        self.remove(drawn);
        Some(drawn)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = ConnIndex> {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            let ones = std::iter::successors(Some(word), |word| Some(word & word.wrapping_sub(1)));
            ones.take_while(|word| *word != 0).map(move |word| conn(index * 64 + word.trailing_zeros() as usize))
        })
    }
}

impl FromIterator<ConnIndex> for ConnSet {
    fn from_iter<I: IntoIterator<Item = ConnIndex>>(indices: I) -> Self {
        let mut out = Self::default();
        indices.into_iter().for_each(|at| out.insert(at));
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;

    #[test]
    fn the_first_index_that_is_free_is_used_again() {
        let mut map = ConnMap::default();
        for name in ["a", "b", "c"] {
            let at = map.vacant().unwrap();
            map.insert(at, name);
        }
        assert_eq!(map.remove(conn(1)), Some("b"));
        assert_eq!(map.len(), 2);
        assert_eq!(map.vacant(), Some(conn(1)));
        assert_eq!(map.iter().collect::<Vec<_>>(), [(conn(0), &"a"), (conn(2), &"c")]);
    }

    proptest! {
        #[test]
        fn a_set_of_connections_is_a_set(changes in prop::collection::vec((0..200usize, any::<bool>()), 0..60)) {
            let (mut set, mut model) = (ConnSet::default(), BTreeSet::new());
            for (index, put) in changes {
                if put { set.insert(conn(index)); model.insert(index) } else { set.remove(conn(index)); model.remove(&index) };
            }
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert_eq!(set.iter().map(ConnIndex::index).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert!((0..200).all(|index| set.contains(conn(index)) == model.contains(&index)));
            prop_assert_eq!(set.len(), model.len());
        }

        #[test]
        fn all_are_drawn_those_in_the_other_set_first(
            all in prop::collection::btree_set(0..200usize, 0..60),
            first in prop::collection::btree_set(0..200usize, 0..60),
        ) {
            let [set, other] = [&all, &first].map(|model| model.iter().map(|&index| conn(index)).collect::<ConnSet>());
            let both: BTreeSet<_> = set.and(&other).iter().map(ConnIndex::index).collect();
            prop_assert_eq!(&both, &all.intersection(&first).copied().collect());
            let rest: BTreeSet<_> = set.without(&other).iter().map(ConnIndex::index).collect();
            prop_assert_eq!(&rest, &all.difference(&first).copied().collect());
            let (mut left, mut rng) = (set, Pcg64::seed_from_u64(1));
            let drawn: Vec<_> = std::iter::from_fn(|| left.draw(&other, &mut rng)).map(ConnIndex::index).collect();
            prop_assert_eq!(drawn.iter().copied().take(both.len()).collect::<BTreeSet<_>>(), both);
            prop_assert_eq!(drawn.len(), all.len());
            prop_assert_eq!(drawn.into_iter().collect::<BTreeSet<_>>(), all);
        }
    }
}
