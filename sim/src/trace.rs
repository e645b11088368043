//! The trace: a hash over every delivered event, equal for equal runs on every machine.

use shoal_swarm::Time;

/// FNV-1a's 64-bit offset basis and prime.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
}

impl Trace {
    pub(crate) fn new() -> Self {
        Self { hash: BASIS, events: 0 }
    }

    /// Adds an event: when, from which node, to which node, of what kind.
    ///
    /// FNV-1a over 64-bit words, each folded (high half onto low) so that no bit stays in the upper half unmixed.
    pub(crate) fn record(&mut self, at: Time, from: u32, to: u32, kind: u32) {
        self.events += 1;
        for word in [at.as_nanos(), u64::from(from) << 32 | u64::from(to), u64::from(kind)] {
            let mixed = (self.hash ^ word).wrapping_mul(PRIME);
            self.hash = mixed ^ mixed >> 32;
        }
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_trace_does_not_change_between_versions() {
        let mut trace = Trace::new();
        trace.record(Time::from_nanos(1), 2, 3, 4);
        trace.record(Time::from_nanos(5), 3, 2, 1);
        assert_eq!(trace.hash(), 0x8c0e2d918e28aa31);
    }

    #[test]
    fn each_field_and_the_order_count() {
        let hash = |events: &[(u64, u32, u32, u32)]| {
            let mut trace = Trace::new();
            events.iter().for_each(|&(at, from, to, kind)| trace.record(Time::from_nanos(at), from, to, kind));
            trace.hash()
        };
        let all =
            [&[(1, 2, 3, 4)][..], &[(2, 2, 3, 4)], &[(1, 3, 2, 4)], &[(1, 2, 3, 5)], &[(1, 2, 3, 4), (1, 2, 3, 4)]];
        let distinct: std::collections::BTreeSet<u64> = all.iter().map(|events| hash(events)).collect();
        assert_eq!(distinct.len(), all.len());
        assert_ne!(hash(&[(1, 2, 3, 4), (2, 2, 3, 4)]), hash(&[(2, 2, 3, 4), (1, 2, 3, 4)]));
    }
}
