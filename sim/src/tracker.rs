//! The simulated tracker: who takes part, and whom to hand out.

use rand::RngExt as _;
use rand_pcg::Pcg64;

#[derive(Debug, Default)]
pub(crate) struct Tracker {
    origins: Vec<u32>,
    agents: Vec<u32>,
    /// Where each agent stands in `agents`, by node; kept so that leases end in constant time.
    places: Vec<Option<usize>>,
}

impl Tracker {
    pub(crate) fn add_origin(&mut self, node: u32) {
        self.origins.push(node);
    }

    /// An agent announces; it gets the origins and up to `max` other agents at random.
    pub(crate) fn announce(&mut self, node: u32, max: usize, rng: &mut Pcg64) -> Vec<u32> {
        let mut out: Vec<u32> = self.origins.iter().copied().filter(|&origin| origin != node).collect();
        let fixed = out.len();
        let others = self.agents.len() - usize::from(self.place(node).is_some());
        if others <= max {
            out.extend(self.agents.iter().copied().filter(|&agent| agent != node));
        }
        while others > max && out.len() < fixed + max {
            let agent = self.agents[rng.random_range(0..self.agents.len())];
            if agent != node && !out[fixed..].contains(&agent) {
                out.push(agent);
            }
        }
        if !self.origins.contains(&node) && self.place(node).is_none() {
            self.places.resize(self.places.len().max(node as usize + 1), None);
            self.places[node as usize] = Some(self.agents.len());
            self.agents.push(node);
        }
        out
    }

    /// An agent's lease is over.
    pub(crate) fn expire(&mut self, node: u32) {
        let Some(place) = self.place(node) else { return };
        self.places[node as usize] = None;
        self.agents.swap_remove(place);
        if let Some(&moved) = self.agents.get(place) {
            self.places[moved as usize] = Some(place);
        }
    }

    fn place(&self, node: u32) -> Option<usize> {
        self.places.get(node as usize).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    fn tracker(agents: u32) -> (Tracker, Pcg64) {
        let (mut tracker, mut rng) = (Tracker::default(), Pcg64::seed_from_u64(1));
        tracker.add_origin(0);
        for node in 1..=agents {
            tracker.announce(node, 50, &mut rng);
        }
        (tracker, rng)
    }

    #[test]
    fn a_handout_is_the_origin_and_distinct_others() {
        let (mut tracker, mut rng) = tracker(100);
        let mut handout = tracker.announce(7, 50, &mut rng);
        assert_eq!(handout[0], 0);
        handout.sort_unstable();
        handout.dedup();
        assert_eq!(handout.len(), 51);
        assert!(!handout.contains(&7));
    }

    #[test]
    fn a_small_swarm_is_handed_out_whole() {
        let (mut tracker, mut rng) = tracker(4);
        assert_eq!(tracker.announce(2, 50, &mut rng), [0, 1, 3, 4]);
    }

    #[test]
    fn who_let_the_lease_end_is_not_handed_out() {
        let (mut tracker, mut rng) = tracker(4);
        tracker.expire(1);
        tracker.expire(4);
        tracker.expire(4);
        assert_eq!(tracker.announce(2, 50, &mut rng), [0, 3]);
    }
}
