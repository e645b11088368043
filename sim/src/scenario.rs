//! What is to be simulated.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use shoal_meta::{Geometry, GeometryError};

/// Most agents of one scenario.
const NODES_MAX: u32 = 100_000;

/// One swarm that fetches one blob. Node 0 is the origin, nodes `1..=nodes` are the agents that want the blob.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Agents that want the blob.
    pub nodes: u32,
    /// Length of the blob in bytes.
    pub blob_length: u64,
    /// Length of its pieces in bytes; `None`: as the blob's length gives it.
    pub piece_length: Option<u32>,
    /// Draws everything that is random. The same scenario with the same seed gives the same run.
    pub seed: u64,
    /// The agents' links: agent `n` has entry `(n - 1) % len`, so one entry makes all equal.
    pub rates: Vec<Rates>,
    /// The origin's links.
    pub origin_rates: Rates,
    /// Bytes per second at which the origin gets the blob from upstream; `None`: it has the blob.
    pub upstream_rate: Option<u64>,
    /// One way, between any two nodes.
    pub latency: Duration,
    /// From a piece's last block to its being verified and on disk.
    pub verify_delay: Duration,
    /// When agents want the blob.
    pub arrivals: Arrivals,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Most agents in one answer of the tracker.
    pub handout_max: usize,
    /// How often an agent that lacks pieces asks the tracker.
    pub announce_interval: Duration,
    /// How long the tracker hands out an agent that has crashed.
    pub lease: Duration,
    /// The settings of every node's swarm.
    pub swarm: shoal_swarm::Config,
    /// Whether each agent has a reader that takes the blob in order, as an HTTP body does.
    pub readers: bool,
    /// Checks the swarms' invariants and the simulation's own after each event, and panics when one is broken.
    pub check_invariants: bool,
    /// Virtual time after which the run ends, complete or not; `None`: far past any sensible end.
    pub time_limit: Option<Duration>,
}

/// The rates of a node's two links, in payload bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Away from the node.
    pub up: u64,
    /// To the node.
    pub down: u64,
}

/// When agents want the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// All at time zero: a flash crowd.
    Together,
    /// Each at a random time from zero to this.
    Spread(Duration),
}

/// Something that goes wrong at one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When.
    pub at: Duration,
    /// Which node; 0 is the origin.
    pub node: u32,
    /// What.
    pub kind: FaultKind,
}

/// What can go wrong at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The process dies; its peers' connections break at once.
    Crash,
    /// The machine is gone; its peers learn of it only when their connections time out.
    Vanish,
    /// All its connections break; it goes on.
    CutConnections,
}

/// Says why a scenario cannot be simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScenarioError {
    /// The number of agents is out of bounds.
    #[error("{0} nodes; a simulation takes 1 to 100000")]
    Nodes(u32),
    /// The blob cannot be cut that way.
    #[error("the blob cannot be cut into pieces")]
    Geometry(#[source] GeometryError),
    /// A rate is zero, or no rate is given.
    #[error("rates must be given, and above zero")]
    Rates,
    /// The latency is zero: cause and effect would fall together.
    #[error("the latency must be above zero")]
    Latency,
    /// A fault names a node that does not exist.
    #[error("a fault names node {0}, which does not exist")]
    FaultyNode(u32),
}

impl Rates {
    /// The same rate both ways.
    #[must_use]
    pub const fn equal(rate: u64) -> Self {
        Self { up: rate, down: rate }
    }
}

impl Default for Scenario {
    /// A flash crowd of 16 equal nodes at 1 Gbit/s for 512 MiB that the origin has, with the swarm's defaults.
    fn default() -> Self {
        Self {
            nodes: 16,
            blob_length: 512 << 20,
            piece_length: None,
            seed: 1,
            rates: vec![Rates::equal(125_000_000)],
            origin_rates: Rates::equal(125_000_000),
            upstream_rate: None,
            latency: Duration::from_micros(250),
            verify_delay: Duration::from_millis(2),
            arrivals: Arrivals::Together,
            faults: Vec::new(),
            handout_max: 50,
            announce_interval: Duration::from_secs(10),
            lease: Duration::from_secs(30),
            swarm: shoal_swarm::Config::default(),
            readers: false,
            check_invariants: false,
            time_limit: None,
        }
    }
}

impl Scenario {
    /// The cut of the blob.
    ///
    /// # Errors
    /// When the blob is empty or too long, or the piece length is not acceptable.
    pub fn geometry(&self) -> Result<Geometry, ScenarioError> {
        let geometry = match self.piece_length {
            Some(piece_length) => Geometry::new(self.blob_length, piece_length),
            None => Geometry::for_length(self.blob_length),
        };
        geometry.map_err(ScenarioError::Geometry)
    }

    /// Adds a fault at this share of the agents, chosen at random, each at a random time up to `within`.
    pub fn add_random_faults(&mut self, kind: FaultKind, share: f64, within: Duration) {
        let mut rng = Pcg64::seed_from_u64(self.seed ^ 0x5eed_fa17 ^ (kind as u64) << 40);
        let mut agents: Vec<u32> = (1..=self.nodes).collect();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a u32")]
        let count = (f64::from(self.nodes) * share.clamp(0.0, 1.0)).round() as usize;
        for _ in 0..count {
            let node = agents.swap_remove(rng.random_range(0..agents.len()));
            self.faults.push(Fault { at: within.mul_f64(rng.random_range(0.0..1.0)), node, kind });
        }
    }

    /// The rates of a node.
    pub(crate) fn rates_of(&self, node: u32) -> Rates {
        match node.checked_sub(1) {
            None => self.origin_rates,
            Some(agent) => self.rates[agent as usize % self.rates.len()],
        }
    }

    pub(crate) fn check(&self) -> Result<(), ScenarioError> {
        if !(1..=NODES_MAX).contains(&self.nodes) {
            return Err(ScenarioError::Nodes(self.nodes));
        }
        let rates = self.rates.iter().chain([&self.origin_rates]).flat_map(|rates| [rates.up, rates.down]);
        if self.rates.is_empty() || rates.chain(self.upstream_rate).any(|rate| rate == 0) {
            return Err(ScenarioError::Rates);
        }
        if self.latency.is_zero() {
            return Err(ScenarioError::Latency);
        }
        match self.faults.iter().find(|fault| fault.node > self.nodes) {
            Some(fault) => Err(ScenarioError::FaultyNode(fault.node)),
            None => self.geometry().map(|_| ()),
        }
    }

    /// The shortest time in which the last agent can have the blob, in seconds from its arrival.
    ///
    /// The fluid bound `max(F/us, F/dmin, N·F/(us + Σui))`, the upstream's time, and among equals
    /// `M + floor(log2 N)` piece times (Mundinger, Weber & Weiss 2008), whichever is longest.
    #[must_use]
    pub fn optimum_seconds(&self) -> f64 {
        let Ok(geometry) = self.geometry() else { return 0.0 };
        let length = geometry.length() as f64;
        let agents = || (1..=self.nodes).map(|node| self.rates_of(node));
        let up = self.origin_rates.up as f64;
        let up_all = up + agents().map(|rates| rates.up as f64).sum::<f64>();
        let down_min = agents().map(|rates| rates.down).min().unwrap_or(1) as f64;
        let fluid = (length / up).max(length / down_min).max(f64::from(self.nodes) * length / up_all);
        let upstream = self.upstream_rate.map_or(0.0, |rate| length / rate as f64);
        let rate = self.rates.first().map_or(1, |rates| rates.up);
        let equal = agents().all(|rates| rates == Rates::equal(rate));
        let steps = f64::from(self.nodes.max(1).ilog2());
        let discrete = (length + steps * f64::from(geometry.piece_length())) / rate as f64;
        fluid.max(upstream).max(if equal { discrete } else { 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(scenario: &Scenario) -> f64 {
        (scenario.optimum_seconds() * 1000.0).round() / 1000.0
    }

    #[test]
    fn the_optimum_of_equals_is_pieces_plus_doublings() {
        let rates = Rates::equal(1 << 20);
        let scenario = Scenario { nodes: 1000, rates: vec![rates], origin_rates: rates, ..Scenario::default() };
        assert_eq!(seconds(&scenario), 512.0 + 9.0);
        assert_eq!(seconds(&Scenario { nodes: 1, ..scenario }), 512.0);
    }

    #[test]
    fn the_slowest_link_bounds_unequal_nodes() {
        let fast = Rates::equal(4 << 20);
        let slow = Rates { up: 4 << 20, down: 1 << 20 };
        let scenario = Scenario { nodes: 4, rates: vec![fast, slow], origin_rates: fast, ..Scenario::default() };
        assert_eq!(seconds(&scenario), 512.0);
        let weak = Rates { up: 1 << 19, down: 4 << 20 };
        let scenario = Scenario { rates: vec![weak], origin_rates: Rates::equal(2 << 20), ..scenario };
        assert_eq!(seconds(&scenario), 512.0);
    }

    #[test]
    fn a_slow_upstream_bounds_everyone() {
        let scenario = Scenario { upstream_rate: Some(1 << 20), ..Scenario::default() };
        assert_eq!(seconds(&scenario), 512.0);
    }

    #[test]
    fn random_faults_hit_distinct_agents_and_replay() {
        let mut a = Scenario { nodes: 40, ..Scenario::default() };
        a.add_random_faults(FaultKind::Crash, 0.5, Duration::from_secs(3));
        let mut nodes: Vec<_> = a.faults.iter().map(|fault| fault.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        assert_eq!(nodes.len(), 20);
        assert!(a.faults.iter().all(|fault| fault.node >= 1 && fault.at <= Duration::from_secs(3)));
        let mut b = Scenario { nodes: 40, ..Scenario::default() };
        b.add_random_faults(FaultKind::Crash, 0.5, Duration::from_secs(3));
        assert_eq!(a, b);
    }

    #[test]
    fn what_cannot_be_simulated_is_named() {
        let check = |change: fn(&mut Scenario)| {
            let mut scenario = Scenario::default();
            change(&mut scenario);
            scenario.check().unwrap_err()
        };
        assert_eq!(check(|s| s.nodes = 0), ScenarioError::Nodes(0));
        assert_eq!(check(|s| s.rates.clear()), ScenarioError::Rates);
        assert_eq!(check(|s| s.origin_rates.up = 0), ScenarioError::Rates);
        assert_eq!(check(|s| s.latency = Duration::ZERO), ScenarioError::Latency);
        assert_eq!(check(|s| s.blob_length = 0), ScenarioError::Geometry(GeometryError::Empty));
        let fault = Fault { at: Duration::ZERO, node: 17, kind: FaultKind::Crash };
        assert_eq!(Scenario { faults: vec![fault], ..Scenario::default() }.check(), Err(ScenarioError::FaultyNode(17)));
    }
}
