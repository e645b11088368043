//! Whom to hand out: the nearest, a share of random others so that swarms stay connected, origins last.
//!
//! Only the state uses it. It sees keys of peers, not peers. It costs O(handed out), also when a torrent has 10,000
//! members: members are drawn from rosters, which are never walked or shuffled as a whole.
//!
//! Leechers and seeders are drawn alike, so an answer mixes them as the swarm does.

use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use rand_pcg::Pcg64;

use super::torrent::{Scope, Standing, Torrent};

/// How many quarters of the agents handed out may be chosen for being near; the rest are drawn from the whole torrent.
///
/// The random quarter (13 of 50, and as many the other way, since whom one peer dials accepts) keeps a swarm of any
/// racks and zones one connected graph with few hops; three quarters keep most bytes inside the zone.
pub const NEAR_SHARE_OF_4: usize = 3;
/// How many origins one answer holds at most.
pub const ORIGINS_MAX: usize = 4;

/// Who asks.
pub(super) struct Asker<'a> {
    pub(super) key: u32,
    /// Whether it is a member of the torrent itself.
    pub(super) member: bool,
    pub(super) standing: &'a Standing,
}

/// Draws members of torrents by chance.
#[derive(Debug)]
pub(super) struct Lottery {
    rng: Pcg64,
    /// For each key of a peer, the last round it was drawn in: membership of `drawn` in O(1), never cleared.
    rounds: Vec<u64>,
    round: u64,
    drawn: Vec<u32>,
    candidates: Vec<u32>,
}

impl Lottery {
    pub(super) fn new(rng: Pcg64) -> Self {
        Self { rng, rounds: Vec::new(), round: 0, drawn: Vec::new(), candidates: Vec::new() }
    }

    /// Draws up to `wanted` members for the asker, never itself: agents of its rack, of its zone, others, origins.
    pub(super) fn draw(&mut self, torrent: &Torrent, asker: &Asker<'_>, wanted: usize) -> &[u32] {
        self.round += 1;
        self.drawn.clear();
        self.mark(asker.key);
        let everyone = torrent.agents(asker.standing, Scope::Whole);
        let (self_agents, self_origins) = match (asker.member, asker.standing.is_origin()) {
            (false, _) => (0, 0),
            (true, false) => (1, 0),
            (true, true) => (0, 1),
        };
        let origins = (torrent.origins().len() - self_origins).min(ORIGINS_MAX).min(wanted);
        let agents = wanted - origins;
        // When all fit, all are handed out, and nothing is left to chance but their order.
        let all_fit = everyone.len() - self_agents <= agents;
        let near = if all_fit { agents } else { agents * NEAR_SHARE_OF_4 / 4 };
        self.extend(torrent.agents(asker.standing, Scope::Rack), near);
        self.extend(torrent.agents(asker.standing, Scope::Zone), near);
        self.extend(everyone, agents);
        self.extend(torrent.origins(), self.drawn.len() + origins);
        &self.drawn
    }

    /// Draws members of a roster that were not drawn before, until `total` are drawn or the roster is used up.
    fn extend(&mut self, roster: &[u32], total: usize) {
        let missing = total.saturating_sub(self.drawn.len());
        // Drawn ones and the asker are at most `total + 1`: in a roster of twice that, every other try hits.
        if roster.len() > 2 * (total + 1) {
            let mut tries = 64 * missing;
            while self.drawn.len() < total && tries > 0 {
                let index = self.rng.random_range(0..roster.len());
                self.take(roster[index]);
                tries -= 1;
            }
        } else if missing > 0 {
            let mut candidates = std::mem::take(&mut self.candidates);
            candidates.clear();
            candidates.extend_from_slice(roster);
            candidates.shuffle(&mut self.rng);
            for key in &candidates {
                if self.drawn.len() < total {
                    self.take(*key);
                }
            }
            self.candidates = candidates;
        }
    }

    fn take(&mut self, key: u32) {
        if self.mark(key) {
            self.drawn.push(key);
        }
    }

    /// Marks a key for this round; `false` when it was marked before.
    fn mark(&mut self, key: u32) -> bool {
        let index = key as usize;
        if index >= self.rounds.len() {
            self.rounds.resize(index + 1, 0);
        }
        std::mem::replace(&mut self.rounds[index], self.round) != self.round
    }
}
