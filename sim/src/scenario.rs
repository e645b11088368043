//! What is to be simulated.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use shoal_meta::{Geometry, GeometryError};
use shoal_swarm::Time;

/// Most agents of one scenario.
const NODES_MAX: u32 = 100_000;

/// Agents that fetch the same blobs. Node 0 is the origin; the agents are numbered from 1, group after group.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Lengths in bytes of the blobs that each agent wants, in the order it asks for them.
    pub blobs: Vec<u64>,
    /// How many of them an agent fetches at a time.
    pub parallel: usize,
    /// Length of their pieces in bytes; `None`: as each blob's length gives it.
    pub piece_length: Option<u32>,
    /// Length of their blocks in bytes; `None`: as long as a request may ask for.
    pub block_length: Option<u32>,
    /// Draws everything that is random. The same scenario with the same seed gives the same run.
    pub seed: u64,
    /// The agents.
    pub groups: Vec<Group>,
    /// The origin's links.
    pub origin_rates: Rates,
    /// Bytes per second at which the origin gets the blobs from upstream; `None`: it has them.
    pub upstream_rate: Option<u64>,
    /// One way, between any two nodes of a zone.
    pub latency: Duration,
    /// Parts of the network that are far from each other; `None`: there is one.
    pub zones: Option<Zones>,
    /// Whether a block counts as sent when its connection's socket takes it, and not when it has left the node: so it is
    /// where sockets buffer a block.
    pub sockets_buffer: bool,
    /// From a piece's last block to its being verified and on disk.
    pub verify_delay: Duration,
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
    /// Whether each agent has a reader that takes each blob in order, as an HTTP body does.
    pub readers: bool,
    /// A bug put into the world on purpose, to see that the checks find it.
    pub bug: Option<Bug>,
    /// Checks the swarms' invariants and the simulation's own after each event, and panics when one is broken.
    pub check_invariants: bool,
    /// Virtual time after which the run ends, complete or not; `None`: far past any sensible end.
    pub time_limit: Option<Duration>,
}

/// Agents that are alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What the report calls them.
    pub name: &'static str,
    /// How many they are.
    pub nodes: u32,
    /// Each one's links.
    pub rates: Rates,
    /// When they want the blobs.
    pub arrivals: Arrivals,
    /// Whether they serve others. One that does not takes all the same.
    pub gives: bool,
    /// How they lie, if they do. Whether a liar completes is its own affair.
    pub lies: Option<Lie>,
}

/// How a peer means harm. All the rest of it is as an honest one's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// Half of the blocks it sends are wrong.
    BadBlocks,
    /// It says that it has every piece.
    BogusHaves,
    /// What it says of torrents fits nothing: other cuts, pieces outside the blob, names that stand for nothing.
    BadBitfields,
    /// It grants and takes back at once, and never sends what it was asked for.
    EndlessChokes,
    /// It sends a block now and then, late, and some of them wrong.
    SlowDrip,
    /// It sends whatever messages there are as fast as it may.
    Flood,
    /// It names peers that do not exist, and real ones at wrong addresses.
    PeerPoison,
}

/// A bug of the world, not of the swarm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The store takes every piece for verified.
    SkipVerification,
    /// One Have in eight gets lost.
    LoseHave,
    /// A node that comes back commits what it had committed.
    CommitTwice,
}

/// The rates of a node's two links, in payload bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Away from the node.
    pub up: u64,
    /// To the node.
    pub down: u64,
}

/// When agents want the blobs: each at a random time from `after` to `after + within`. By default all at time zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Arrivals {
    /// When the first may come.
    pub after: Duration,
    /// From the first to the last.
    pub within: Duration,
}

/// Zones, and the links between them. Agent `n` is in zone `(n - 1) % count`, the origin in zone 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Zones {
    /// How many there are.
    pub count: u32,
    /// The rate, each way, of the one link that all of a zone share to the others, in payload bytes per second.
    pub rate: u64,
    /// One way, between nodes of different zones.
    pub latency: Duration,
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

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The process dies; its peers' connections break at once.
    Crash,
    /// The machine is gone; its peers learn of it only when their connections time out.
    Vanish,
    /// All its connections break; it goes on.
    CutConnections,
    /// One that crashed or vanished comes back, with its disk or an empty one.
    Return {
        /// Whether the pieces on its disk are still there, to be checked again.
        disk: bool,
    },
    /// Its process stands still for so long; what comes in waits.
    Pause(Duration),
    /// Its clock jumps forward by so much.
    Jump(Duration),
    /// For a while what it sends and what is sent to it takes up to so much longer, at random.
    Lag {
        /// The most that a message is late.
        by: Duration,
        /// For how long.
        lasts: Duration,
    },
    /// Nothing gets from some nodes to some others for a while; what they send meanwhile comes when that is over, or their
    /// connections have timed out before. The fault's own node does not matter.
    Part(Part),
    /// The tracker forgets everyone; its agents tell it again when they next announce. The fault's own node does not matter.
    Amnesia,
}

/// Who cannot reach whom, and for how long. Node `n` is bit `n`; nodes above 63 are in neither set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// From these nodes,
    pub from: u64,
    /// to these.
    pub to: u64,
    /// And back: whether these cannot reach those either.
    pub both_ways: bool,
    /// For how long.
    pub lasts: Duration,
}

/// Says why a scenario cannot be simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScenarioError {
    /// The number of agents is out of bounds.
    #[error("{0} nodes; a simulation takes 1 to 100000")]
    Nodes(u32),
    /// No blob is wanted, or none at a time.
    #[error("agents must want a blob, and fetch at least one at a time")]
    Blobs,
    /// A blob cannot be cut that way.
    #[error("the blob cannot be cut into pieces")]
    Geometry(#[source] GeometryError),
    /// A rate is zero.
    #[error("rates must be above zero")]
    Rates,
    /// A latency is zero: cause and effect would fall together.
    #[error("the latency must be above zero")]
    Latency,
    /// There are zones, but none.
    #[error("there must be a zone at least")]
    Zones,
    /// A fault names a node that does not exist.
    #[error("a fault names node {0}, which does not exist")]
    FaultyNode(u32),
}

impl FaultKind {
    /// Sets the random draws of one kind apart from those of others.
    fn number(self) -> u64 {
        match self {
            Self::Crash => 0,
            Self::Vanish => 1,
            Self::CutConnections => 2,
            Self::Return { .. } => 3,
            Self::Pause(_) => 4,
            Self::Jump(_) => 5,
            Self::Lag { .. } => 6,
            Self::Part(_) => 7,
            Self::Amnesia => 8,
        }
    }

    /// How long after it happens it is over; `None` for what a run does not wait for.
    pub(crate) fn lasts(self) -> Option<Duration> {
        match self {
            Self::Crash | Self::Vanish | Self::CutConnections => None,
            Self::Return { .. } | Self::Jump(_) | Self::Amnesia => Some(Duration::ZERO),
            Self::Pause(lasts) | Self::Lag { lasts, .. } | Self::Part(Part { lasts, .. }) => Some(lasts),
        }
    }
}

impl Part {
    /// Tells whether nothing gets from one node to another.
    pub(crate) fn cuts(&self, from: u32, to: u32) -> bool {
        let is_in = |set: u64, node: u32| set.checked_shr(node).is_some_and(|set| set & 1 == 1);
        let cuts = |from, to| is_in(self.from, from) && is_in(self.to, to);
        cuts(from, to) || (self.both_ways && cuts(to, from))
    }
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
        Self::crowd(16, 512 << 20, 125_000_000)
    }
}

impl Scenario {
    /// Equal nodes that want one blob at the same time, which an origin like them has.
    #[must_use]
    pub fn crowd(nodes: u32, blob_length: u64, rate: u64) -> Self {
        let rates = Rates::equal(rate);
        Self {
            blobs: vec![blob_length],
            parallel: 3,
            piece_length: None,
            block_length: None,
            seed: 1,
            groups: vec![Group { name: "all", nodes, rates, arrivals: Arrivals::default(), gives: true, lies: None }],
            origin_rates: rates,
            upstream_rate: None,
            latency: Duration::from_micros(250),
            zones: None,
            sockets_buffer: false,
            verify_delay: Duration::from_millis(2),
            faults: Vec::new(),
            handout_max: 50,
            announce_interval: Duration::from_secs(10),
            lease: Duration::from_secs(30),
            swarm: shoal_swarm::Config::default(),
            readers: false,
            bug: None,
            check_invariants: false,
            time_limit: None,
        }
    }

    /// How many agents there are.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.groups.iter().map(|group| group.nodes).sum()
    }

    /// Bytes that each agent wants.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.blobs.iter().sum()
    }

    /// The cuts of the blobs.
    ///
    /// # Errors
    /// When a blob is empty or too long, or the piece length is not acceptable.
    pub fn geometries(&self) -> Result<Vec<Geometry>, ScenarioError> {
        let geometry = |&length| {
            let geometry = match self.piece_length {
                Some(piece_length) => Geometry::new(length, piece_length),
                None => Geometry::for_length(length),
            };
            geometry.map(|geometry| geometry.with_block_length(self.block_length.unwrap_or(u32::MAX)))
        };
        self.blobs.iter().map(geometry).collect::<Result<_, _>>().map_err(ScenarioError::Geometry)
    }

    /// Moves some of the first group into a group of their own, alike but for the name, after the others.
    pub fn split(&mut self, name: &'static str, nodes: u32) -> &mut Group {
        let first = &mut self.groups[0];
        let nodes = nodes.min(first.nodes);
        first.nodes -= nodes;
        let group = Group { name, nodes, ..first.clone() };
        self.groups.push(group);
        let last = self.groups.len() - 1;
        &mut self.groups[last]
    }

    /// Adds a fault at this share of the agents, chosen at random, each at a random time up to `within`; the kinds take
    /// turns.
    pub fn add_random_faults(&mut self, kinds: &[FaultKind], share: f64, within: Duration) {
        let kind = kinds.first().map_or(0, |kind| kind.number());
        let mut rng = Pcg64::seed_from_u64(self.seed ^ 0x5eed_fa17 ^ kind << 40);
        let mut agents: Vec<u32> = (1..=self.nodes()).collect();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a u32")]
        let count = (f64::from(self.nodes()) * share.clamp(0.0, 1.0)).round() as usize;
        for &kind in kinds.iter().cycle().take(count) {
            let node = agents.swap_remove(rng.random_range(0..agents.len()));
            self.faults.push(Fault { at: within.mul_f64(rng.random_range(0.0..1.0)), node, kind });
        }
    }

    /// Whether more goes wrong than that nodes are lost: then what changes slowly is looked at too.
    pub(crate) fn is_rough(&self) -> bool {
        self.faults.iter().any(|fault| fault.kind.lasts().is_some())
            || self.honest() < self.nodes()
            || self.bug.is_some()
    }

    /// How many of the agents are no liars.
    pub(crate) fn honest(&self) -> u32 {
        self.groups.iter().filter(|group| group.lies.is_none()).map(|group| group.nodes).sum()
    }

    /// When the last fault is over that a run waits for.
    pub(crate) fn faults_until(&self) -> Time {
        let over = self.faults.iter().filter_map(|fault| Some(fault.at + fault.kind.lasts()?));
        Time::ZERO + over.max().unwrap_or_default()
    }

    /// How many zones there are.
    pub(crate) fn zone_count(&self) -> u32 {
        self.zones.map_or(1, |zones| zones.count)
    }

    /// The zone of a node.
    pub(crate) fn zone_of(&self, node: u32) -> u32 {
        node.saturating_sub(1) % self.zone_count()
    }

    pub(crate) fn check(&self) -> Result<(), ScenarioError> {
        let nodes = self.groups.iter().fold(0u32, |sum, group| sum.saturating_add(group.nodes));
        if !(1..=NODES_MAX).contains(&nodes) {
            return Err(ScenarioError::Nodes(nodes));
        }
        if self.blobs.is_empty() || self.parallel == 0 {
            return Err(ScenarioError::Blobs);
        }
        let rates = self.groups.iter().map(|group| &group.rates).chain([&self.origin_rates]);
        let shared = self.upstream_rate.into_iter().chain(self.zones.map(|zones| zones.rate));
        if rates.flat_map(|rates| [rates.up, rates.down]).chain(shared).any(|rate| rate == 0) {
            return Err(ScenarioError::Rates);
        }
        if self.latency.is_zero() || self.zones.is_some_and(|zones| zones.latency.is_zero()) {
            return Err(ScenarioError::Latency);
        }
        if self.zone_count() == 0 {
            return Err(ScenarioError::Zones);
        }
        match self.faults.iter().find(|fault| fault.node > nodes) {
            Some(fault) => Err(ScenarioError::FaultyNode(fault.node)),
            None => self.geometries().map(|_| ()),
        }
    }

    /// The shortest time in which the last agent can have every blob, in seconds from its arrival, if all come together.
    ///
    /// The fluid bound `max(F/us, F/dmin, N·F/(us + Σui))` with the uplinks of those who give, the times that upstream and
    /// the links between zones take for one copy, and among equals who give `M + floor(log2 N)` piece times (Mundinger,
    /// Weber & Weiss 2008), whichever is longest.
    #[must_use]
    pub fn optimum_seconds(&self) -> f64 {
        let Ok(geometries) = self.geometries() else { return 0.0 };
        let (length, nodes) = (self.length() as f64, f64::from(self.nodes()));
        let up = self.origin_rates.up as f64;
        let given = |group: &Group| f64::from(group.nodes) * group.rates.up as f64 * f64::from(u8::from(group.gives));
        let up_all = up + self.groups.iter().map(given).sum::<f64>();
        let down_min = self.groups.iter().map(|group| group.rates.down).min().unwrap_or(1) as f64;
        let fluid = (length / up).max(length / down_min).max(nodes * length / up_all);
        let upstream = self.upstream_rate.map_or(0.0, |rate| length / rate as f64);
        let across = self.zones.filter(|zones| zones.count > 1).map_or(0.0, |zones| length / zones.rate as f64);
        let rate = self.groups.first().map_or(1, |group| group.rates.up);
        let equal = self.groups.iter().all(|group| group.gives && group.rates == Rates::equal(rate));
        let steps = f64::from(self.nodes().max(1).ilog2());
        let piece_length = geometries.iter().map(Geometry::piece_length).min().unwrap_or(0);
        let discrete = (length + steps * f64::from(piece_length)) / rate as f64;
        fluid.max(upstream).max(across).max(if equal { discrete } else { 0.0 })
    }

    /// What an agent of a group would take for every blob with the origin to itself, in seconds.
    #[must_use]
    pub fn alone_seconds(&self, group: &Group) -> f64 {
        let rate = self.origin_rates.up.min(group.rates.down).min(self.upstream_rate.unwrap_or(u64::MAX));
        self.length() as f64 / rate as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn seconds(scenario: &Scenario) -> f64 {
        (scenario.optimum_seconds() * 1000.0).round() / 1000.0
    }

    #[test]
    fn the_optimum_of_equals_is_pieces_plus_doublings() {
        assert_eq!(seconds(&Scenario::crowd(1000, 1024 * MIB, MIB)), 1024.0 + 9.0 / 2.0);
        assert_eq!(seconds(&Scenario::crowd(1, 512 * MIB, MIB)), 512.0);
    }

    #[test]
    fn several_blobs_take_as_long_as_one_of_their_length() {
        let scenario = Scenario { blobs: vec![500 * MIB, 8 * MIB, 4 * MIB], ..Scenario::crowd(1000, 1, MIB) };
        assert_eq!(seconds(&scenario), 512.0 + 9.0 / 8.0);
    }

    #[test]
    fn the_slowest_link_bounds_unequal_nodes() {
        let mut scenario = Scenario::crowd(4, 512 * MIB, 4 * MIB);
        scenario.split("slow", 2).rates.down = MIB;
        assert_eq!(seconds(&scenario), 512.0);
        let mut scenario = Scenario::crowd(4, 512 * MIB, 4 * MIB);
        scenario.origin_rates = Rates::equal(2 * MIB);
        scenario.groups[0].rates.up = MIB / 2;
        assert_eq!(seconds(&scenario), 512.0);
    }

    #[test]
    fn those_who_only_take_bring_no_uplink() {
        let mut scenario = Scenario::crowd(4, 512 * MIB, 4 * MIB);
        scenario.split("takers", 3).gives = false;
        assert_eq!(seconds(&scenario), 256.0);
    }

    #[test]
    fn a_slow_upstream_or_a_slow_link_between_zones_bounds_everyone() {
        let scenario = Scenario { upstream_rate: Some(MIB), ..Scenario::default() };
        assert_eq!(seconds(&scenario), 512.0);
        let zones = Zones { count: 2, rate: MIB, latency: Duration::from_millis(1) };
        assert_eq!(seconds(&Scenario { zones: Some(zones), ..Scenario::default() }), 512.0);
    }

    #[test]
    fn random_faults_hit_distinct_agents_and_replay() {
        let faulty = || {
            let mut scenario = Scenario::crowd(40, MIB, MIB);
            let kinds = [FaultKind::Crash, FaultKind::Vanish];
            scenario.add_random_faults(&kinds, 0.5, Duration::from_secs(3));
            scenario
        };
        let a = faulty();
        let mut nodes: Vec<_> = a.faults.iter().map(|fault| fault.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        assert_eq!(nodes.len(), 20);
        assert!(a.faults.iter().all(|fault| fault.node >= 1 && fault.at <= Duration::from_secs(3)));
        assert_eq!(a.faults.iter().filter(|fault| fault.kind == FaultKind::Vanish).count(), 10);
        assert_eq!(a, faulty());
    }

    #[test]
    fn what_cannot_be_simulated_is_named() {
        let check = |change: fn(&mut Scenario)| {
            let mut scenario = Scenario::default();
            change(&mut scenario);
            scenario.check().unwrap_err()
        };
        assert_eq!(check(|s| s.groups.clear()), ScenarioError::Nodes(0));
        assert_eq!(check(|s| s.blobs.clear()), ScenarioError::Blobs);
        assert_eq!(check(|s| s.parallel = 0), ScenarioError::Blobs);
        assert_eq!(check(|s| s.origin_rates.up = 0), ScenarioError::Rates);
        assert_eq!(check(|s| s.latency = Duration::ZERO), ScenarioError::Latency);
        assert_eq!(check(|s| s.blobs = vec![0]), ScenarioError::Geometry(GeometryError::Empty));
        let zones = Zones { count: 0, rate: 1, latency: Duration::from_secs(1) };
        assert_eq!(Scenario { zones: Some(zones), ..Scenario::default() }.check(), Err(ScenarioError::Zones));
        let fault = Fault { at: Duration::ZERO, node: 17, kind: FaultKind::Crash };
        assert_eq!(Scenario { faults: vec![fault], ..Scenario::default() }.check(), Err(ScenarioError::FaultyNode(17)));
    }
}
