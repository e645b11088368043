//! One simulated node: its swarm, its links, what its store holds.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use shoal_meta::{Bitfield, Geometry, PeerId, PeerInfo, Role, Topology};
use shoal_swarm::{ReaderId, Swarm, Time, TorrentKey};

use crate::link::{Downlink, Uplink};
use crate::scenario::Scenario;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) state: State,
    pub(crate) swarm: Swarm,
    pub(crate) up: Uplink,
    pub(crate) down: Downlink,
    /// The blob's torrent, while open.
    pub(crate) torrent: Option<TorrentKey>,
    /// Pieces verified and on disk.
    pub(crate) have: Bitfield,
    /// The reader and the piece it waits for.
    pub(crate) reader: Option<(ReaderId, u32)>,
    pub(crate) arrived_at: Time,
    pub(crate) completed_at: Option<Time>,
    /// When the one pending wake-up is due.
    pub(crate) wake_at: Option<Time>,
    /// Whether an input came since the outputs were drained.
    pub(crate) touched: bool,
    /// Payload bytes that came in, and those of them we had already.
    pub(crate) received_bytes: u64,
    pub(crate) duplicate_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Does not want the blob yet; left on arrival.
    Away,
    /// Takes part; left by a crash.
    Live,
    /// Gone for good.
    Dead,
}

impl Node {
    pub(crate) fn new(scenario: &Scenario, geometry: &Geometry, node: u32) -> Self {
        let rates = scenario.rates_of(node);
        Self {
            state: State::Away,
            swarm: Swarm::new(scenario.swarm.clone(), peer_info(scenario, node), mix(scenario.seed, node)),
            up: Uplink::new(rates.up),
            down: Downlink::new(rates.down),
            torrent: None,
            have: Bitfield::empty(geometry),
            reader: None,
            arrived_at: Time::ZERO,
            completed_at: None,
            wake_at: None,
            touched: false,
            received_bytes: 0,
            duplicate_bytes: 0,
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.state == State::Live
    }
}

/// The node a peer id stands for.
pub(crate) fn node_of(id: &PeerId) -> u32 {
    let [.., a, b, c, d] = id.0;
    u32::from_be_bytes([a, b, c, d])
}

fn peer_info(scenario: &Scenario, node: u32) -> PeerInfo {
    let mut id = [0; 16];
    // Random in front, so that the order of ids is not the order of arrival.
    id[..8].copy_from_slice(&mix(!scenario.seed, node).to_be_bytes());
    id[12..].copy_from_slice(&node.to_be_bytes());
    let [_, a, b, c] = node.to_be_bytes();
    PeerInfo {
        id: PeerId(id),
        address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, a, b, c)), 5051),
        role: if node == 0 { Role::Origin } else { Role::Agent },
        topology: Topology::default(),
    }
}

/// A seed of its own for each node (splitmix64).
fn mix(seed: u64, node: u32) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(node) + 1));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
