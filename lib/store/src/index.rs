//! What the store holds, in memory: sizes, order of use, who is in use, and what to evict for room.
//!
//! Used under one lock by the store and by partials as they end. Does no IO; times and free space are given.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use shoal_meta::{Digest, Geometry};

use crate::blob::BlobInner;
use crate::checks::Checks;
use crate::partial::PartialInner;

/// The time of last use is written to the disk at most this often per blob.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);

/// Every blob and partial of the store.
#[derive(Default)]
pub(crate) struct Index {
    slots: HashMap<Digest, Slot>,
    /// Counts uses: the order of `Slot::used`.
    uses: u64,
}

/// One blob or partial.
pub(crate) struct Slot {
    /// Charged against the budget: the length of a blob or of a partial in use (all of it will be written), the
    /// bytes on disk of a partial nobody holds.
    bytes: u64,
    used: u64,
    kind: Kind,
}

/// What a slot holds. A partial becomes a blob by commit; either leaves by removal or eviction.
pub(crate) enum Kind {
    /// Whole on disk.
    Committed {
        /// When the time of last use was last written to the disk.
        touched: SystemTime,
        live: Weak<BlobInner>,
        /// When all of it was last compared with its hashes.
        checked: SystemTime,
        checks: Arc<Checks>,
    },
    /// Still arriving, or left behind by a crash.
    Partial {
        geometry: Geometry,
        live: Weak<PartialInner>,
        /// Charged but not on disk yet.
        unwritten: Arc<AtomicU64>,
    },
}

/// What room there is, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) budget_bytes: u64,
    pub(crate) free_bytes: u64,
    pub(crate) floor_bytes: u64,
}

/// What to evict, least recently used first, and the room there would be if everything evictable went.
pub(crate) struct Plan {
    pub(crate) victims: Vec<Digest>,
    pub(crate) available_bytes: u64,
    /// Whether the disk would have no room at all even then, whatever the budget allows and partials will still write.
    pub(crate) disk_is_full: bool,
}

/// Sums over the slots.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) bytes: u64,
    pub(crate) blobs: usize,
    pub(crate) partials: usize,
}

impl Index {
    /// Adds or replaces a slot, as the most recently used.
    pub(crate) fn insert(&mut self, digest: Digest, bytes: u64, kind: Kind) {
        let used = self.tick();
        self.slots.insert(digest, Slot { bytes, used, kind });
    }

    /// What is held of a digest.
    pub(crate) fn get(&self, digest: &Digest) -> Option<&Kind> {
        self.slots.get(digest).map(|slot| &slot.kind)
    }

    /// What a digest is charged, in bytes.
    pub(crate) fn bytes(&self, digest: &Digest) -> u64 {
        self.slots.get(digest).map_or(0, |slot| slot.bytes)
    }

    /// Takes a slot out.
    pub(crate) fn remove(&mut self, digest: &Digest) -> Option<Kind> {
        self.slots.remove(digest).map(|slot| slot.kind)
    }

    /// Marks a committed blob as used now. Says whether the disk should be told.
    pub(crate) fn touch(&mut self, digest: &Digest, now: SystemTime) -> bool {
        let used = self.tick();
        let Some(Slot { used: last, kind: Kind::Committed { touched, .. }, .. }) = self.slots.get_mut(digest) else {
            return false;
        };
        *last = used;
        // A clock that was set back counts as due.
        let due = now.duration_since(*touched).map_or(true, |age| age >= TOUCH_INTERVAL);
        if due {
            *touched = now;
        }
        due
    }

    /// Pins a committed blob just opened. Gives the one pinned before when there is, `None` when the blob is gone.
    pub(crate) fn pin(&mut self, digest: &Digest, blob: Arc<BlobInner>) -> Option<Arc<BlobInner>> {
        let Kind::Committed { live, .. } = &mut self.slots.get_mut(digest)?.kind else { return None };
        Some(live.upgrade().unwrap_or_else(|| {
            *live = Arc::downgrade(&blob);
            blob
        }))
    }

    /// Notes that a partial is no longer held; it stays on disk with so many bytes.
    pub(crate) fn release(&mut self, digest: &Digest, partial: *const PartialInner, bytes_on_disk: u64) {
        let now = self.tick();
        if let Some(Slot { bytes, used, kind: Kind::Partial { live, unwritten, .. } }) = self.slots.get_mut(digest)
            && std::ptr::eq(live.as_ptr(), partial)
        {
            (*bytes, *used) = (bytes_on_disk, now);
            unwritten.store(0, Ordering::Relaxed);
        }
    }

    /// Takes a slot out for eviction unless it was pinned since it was chosen.
    pub(crate) fn take_unpinned(&mut self, digest: &Digest) -> Option<Slot> {
        if self.slots.get(digest)?.is_pinned() { None } else { self.slots.remove(digest) }
    }

    /// Puts a slot back that could not be evicted.
    pub(crate) fn put_back(&mut self, digest: Digest, slot: Slot) {
        self.slots.insert(digest, slot);
    }

    /// Tells whether this very partial, not a later one of the same digest, is in the index.
    pub(crate) fn is_current(&self, digest: &Digest, partial: *const PartialInner) -> bool {
        matches!(self.get(digest), Some(Kind::Partial { live, .. }) if std::ptr::eq(live.as_ptr(), partial))
    }

    /// Tells whether this very blob, not a later one of the same digest, is in the index.
    pub(crate) fn is_committed_as(&self, digest: &Digest, checks: &Arc<Checks>) -> bool {
        matches!(self.get(digest), Some(Kind::Committed { checks: current, .. }) if Arc::ptr_eq(current, checks))
    }

    /// The committed blob that was checked longest ago, and when.
    pub(crate) fn checked_first(&self) -> Option<(Digest, SystemTime, Arc<Checks>)> {
        let committed = self.slots.iter().filter_map(|(digest, slot)| match &slot.kind {
            Kind::Committed { checked, checks, .. } => Some((*checked, *digest, checks)),
            Kind::Partial { .. } => None,
        });
        let (checked, digest, checks) = committed.min_by_key(|(checked, digest, _)| (*checked, *digest))?;
        Some((digest, checked, checks.clone()))
    }

    /// Notes that all of a committed blob was checked.
    pub(crate) fn was_checked(&mut self, digest: &Digest, of: &Arc<Checks>, now: SystemTime) {
        if let Some(Slot { kind: Kind::Committed { checked, checks, .. }, .. }) = self.slots.get_mut(digest)
            && Arc::ptr_eq(checks, of)
        {
            *checked = now;
        }
    }

    /// The committed blobs.
    pub(crate) fn committed(&self) -> Vec<Digest> {
        let committed =
            |(digest, slot): (&Digest, &Slot)| matches!(slot.kind, Kind::Committed { .. }).then_some(*digest);
        self.slots.iter().filter_map(committed).collect()
    }

    /// The partials nobody holds.
    pub(crate) fn resumable(&self) -> Vec<Digest> {
        let resumable = |(digest, slot): (&Digest, &Slot)| match &slot.kind {
            Kind::Partial { live, .. } if live.strong_count() == 0 => Some(*digest),
            Kind::Partial { .. } | Kind::Committed { .. } => None,
        };
        self.slots.iter().filter_map(resumable).collect()
    }

    /// Chooses what to evict so that `need` bytes fit, least recently used first. Takes nothing in use, nor `spare`.
    pub(crate) fn plan(&self, need: u64, spare: Option<&Digest>, limits: Limits) -> Plan {
        let unwritten: u64 = self.slots.values().map(Slot::unwritten).sum();
        let in_budget = i128::from(limits.budget_bytes) - i128::from(self.totals().bytes);
        let on_disk = i128::from(limits.free_bytes) - i128::from(limits.floor_bytes) - i128::from(unwritten);
        let mut room = in_budget.min(on_disk);

        let evictable = self.slots.iter().filter(|(digest, slot)| !slot.is_pinned() && Some(*digest) != spare);
        let mut evictable = evictable.map(|(digest, slot)| (slot.used, *digest, slot.bytes)).collect::<Vec<_>>();
        evictable.sort_unstable();
        let evictable_bytes = evictable.iter().map(|(_, _, bytes)| i128::from(*bytes)).sum::<i128>();
        let free_at_most = i128::from(limits.free_bytes) - i128::from(limits.floor_bytes) + evictable_bytes;
        let (available, disk_is_full) = (room + evictable_bytes, free_at_most <= 0);

        let mut victims = Vec::new();
        for (_, digest, bytes) in evictable {
            if room >= i128::from(need) {
                break;
            }
            room += i128::from(bytes);
            victims.push(digest);
        }
        Plan { victims, available_bytes: u64::try_from(available.max(0)).unwrap_or(u64::MAX), disk_is_full }
    }

    /// Sums up.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for slot in self.slots.values() {
            totals.bytes += slot.bytes;
            match slot.kind {
                Kind::Committed { .. } => totals.blobs += 1,
                Kind::Partial { .. } => totals.partials += 1,
            }
        }
        totals
    }

    fn tick(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }
}

impl Slot {
    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    fn is_pinned(&self) -> bool {
        match &self.kind {
            Kind::Committed { live, .. } => live.strong_count() > 0,
            Kind::Partial { live, .. } => live.strong_count() > 0,
        }
    }

    fn unwritten(&self) -> u64 {
        match &self.kind {
            Kind::Committed { .. } => 0,
            Kind::Partial { unwritten, .. } => unwritten.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMY: Limits = Limits { budget_bytes: 100, free_bytes: 1000, floor_bytes: 0 };

    fn digest(name: &str) -> Digest {
        Digest::sha256_of(name.as_bytes())
    }

    /// Blobs of 30 bytes each, in order of use, not pinned.
    fn index(names: &[&str]) -> Index {
        let mut index = Index::default();
        for name in names {
            let (live, checks) = (Weak::new(), Arc::default());
            let long_ago = SystemTime::UNIX_EPOCH;
            let kind = Kind::Committed { touched: long_ago, live, checked: long_ago, checks };
            index.insert(digest(name), 30, kind);
        }
        index
    }

    #[test]
    fn the_least_recently_used_goes_first_and_no_more_than_needed() {
        let mut index = index(&["a", "b", "c"]);
        assert!(index.plan(10, None, ROOMY).victims.is_empty());
        assert_eq!(index.plan(11, None, ROOMY).victims, [digest("a")]);
        index.touch(&digest("a"), SystemTime::UNIX_EPOCH);
        assert_eq!(index.plan(60, None, ROOMY).victims, [digest("b"), digest("c")]);
    }

    #[test]
    fn the_free_space_floor_counts_what_partials_will_still_write() {
        let mut index = index(&["a"]);
        let limits = Limits { budget_bytes: 1000, free_bytes: 50, floor_bytes: 20 };
        assert_eq!(index.plan(30, None, limits).victims, []);
        let unwritten = Arc::new(AtomicU64::new(25));
        let geometry = Geometry::for_length(25).unwrap();
        index.insert(digest("p"), 25, Kind::Partial { geometry, live: Weak::new(), unwritten });
        let plan = index.plan(6, Some(&digest("p")), limits);
        assert_eq!((plan.victims, plan.available_bytes), (vec![digest("a")], 35));
    }

    #[test]
    fn what_cannot_fit_says_how_much_could() {
        let index = index(&["a", "b"]);
        assert_eq!(index.plan(101, None, ROOMY).available_bytes, 100);
        let full = Limits { free_bytes: 10, floor_bytes: 500, ..ROOMY };
        assert_eq!(index.plan(1, None, full).available_bytes, 0);
    }

    #[test]
    fn the_disk_hears_of_a_use_once_a_minute() {
        let mut index = index(&["a"]);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let touched = [59, 60, 119, 120, 10].map(|seconds| index.touch(&digest("a"), at(seconds)));
        assert_eq!(touched, [false, true, false, true, true], "and when the clock was set back");
    }
}
