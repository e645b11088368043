//! The simulated tracker: who takes part in one torrent, and whom to hand out.

use rand::RngExt as _;
use rand_pcg::Pcg64;
use shoal_meta::Lead;

/// How many quarters of a handout come from the asker's zone, as the real tracker has it.
const NEAR_SHARE_OF_4: usize = 3;
/// How many agents of a zone fetch across, as the real tracker has it.
const LEADERS: u32 = 2;

#[derive(Debug)]
pub(crate) struct Tracker {
    origin: u32,
    everyone: Roster,
    zones: Vec<Roster>,
}

/// Agents in no order.
#[derive(Clone, Debug, Default)]
struct Roster {
    agents: Vec<u32>,
    /// Where each agent stands in `agents`, by node; kept so that leases end in constant time.
    places: Vec<Option<u32>>,
}

impl Tracker {
    pub(crate) fn new(origin: u32, zones: u32) -> Self {
        Self { origin, everyone: Roster::default(), zones: vec![Roster::default(); zones as usize] }
    }

    /// An agent announces; it gets the origin and up to `max` other agents: most of its zone, the rest at random; and hears
    /// its part if it is a leader of its zone.
    pub(crate) fn announce(&mut self, node: u32, zone: u32, max: usize, rng: &mut Pcg64) -> (Vec<u32>, Option<Lead>) {
        let mut out = vec![self.origin];
        let others = self.everyone.agents.len() - usize::from(self.everyone.place(node).is_some());
        let near = if self.zones.len() > 1 && others > max { max * NEAR_SHARE_OF_4 / 4 } else { 0 };
        self.zones[zone as usize].draw(node, 1 + near, &mut out, rng);
        self.everyone.draw(node, 1 + max, &mut out, rng);
        self.everyone.add(node);
        self.zones[zone as usize].add(node);
        let zone = &self.zones[zone as usize];
        let leaders = LEADERS.min(u32::try_from(zone.agents.len()).unwrap_or(LEADERS));
        (out, zone.place(node).and_then(|place| Lead::new(place, leaders)))
    }

    /// An agent's lease is over.
    pub(crate) fn expire(&mut self, node: u32, zone: u32) {
        self.everyone.remove(node);
        self.zones[zone as usize].remove(node);
    }
}

impl Roster {
    /// Draws agents other than the asker until `total` are drawn or none is left.
    fn draw(&self, asker: u32, total: usize, out: &mut Vec<u32>, rng: &mut Pcg64) {
        let missing = total.saturating_sub(out.len());
        // In a roster of more than twice what is drawn every other try hits; a small one is gone through.
        if self.agents.len() > 2 * (total + 1) {
            while out.len() < total {
                let agent = self.agents[rng.random_range(0..self.agents.len())];
                if agent != asker && !out.contains(&agent) {
                    out.push(agent);
                }
            }
        } else if missing > 0 {
            let mut rest: Vec<u32> =
                self.agents.iter().copied().filter(|agent| *agent != asker && !out.contains(agent)).collect();
            while rest.len() > missing {
                rest.swap_remove(rng.random_range(0..rest.len()));
            }
            out.append(&mut rest);
        }
    }

    fn add(&mut self, node: u32) {
        if self.place(node).is_none() {
            self.places.resize(self.places.len().max(node as usize + 1), None);
            self.places[node as usize] = u32::try_from(self.agents.len()).ok();
            self.agents.push(node);
        }
    }

    fn remove(&mut self, node: u32) {
        let Some(place) = self.place(node) else { return };
        self.places[node as usize] = None;
        self.agents.swap_remove(place as usize);
        if let Some(&moved) = self.agents.get(place as usize) {
            self.places[moved as usize] = Some(place);
        }
    }

    fn place(&self, node: u32) -> Option<u32> {
        self.places.get(node as usize).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    /// Agents `1..=agents`, agent `n` in zone `n % zones`.
    fn tracker(agents: u32, zones: u32) -> (Tracker, Pcg64) {
        let (mut tracker, mut rng) = (Tracker::new(0, zones), Pcg64::seed_from_u64(1));
        for node in 1..=agents {
            tracker.announce(node, node % zones, 50, &mut rng);
        }
        (tracker, rng)
    }

    #[test]
    fn a_handout_is_the_origin_and_distinct_others() {
        for agents in [60, 100, 1000] {
            let (mut tracker, mut rng) = tracker(agents, 1);
            let (mut handout, _) = tracker.announce(7, 0, 50, &mut rng);
            assert_eq!(handout[0], 0);
            handout.sort_unstable();
            handout.dedup();
            assert_eq!(handout.len(), 51);
            assert!(!handout.contains(&7));
        }
    }

    #[test]
    fn a_small_swarm_is_handed_out_whole() {
        let (mut tracker, mut rng) = tracker(4, 2);
        let (mut handout, _) = tracker.announce(2, 0, 50, &mut rng);
        handout.sort_unstable();
        assert_eq!(handout, [0, 1, 3, 4]);
    }

    #[test]
    fn who_let_the_lease_end_is_not_handed_out() {
        let (mut tracker, mut rng) = tracker(4, 1);
        for node in [1, 4, 4] {
            tracker.expire(node, 0);
        }
        assert_eq!(tracker.announce(2, 0, 50, &mut rng).0, [0, 3]);
    }

    #[test]
    fn most_of_a_handout_is_of_the_askers_zone() {
        let (mut tracker, mut rng) = tracker(900, 3);
        let (handout, _) = tracker.announce(1, 1, 50, &mut rng);
        let near = handout[1..].iter().filter(|agent| *agent % 3 == 1).count();
        assert!((37..50).contains(&near), "{near}");
    }
}
