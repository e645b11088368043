//! One simulated node: its swarm, its links, what its store holds.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use shoal_meta::{Bitfield, Geometry, PeerId, PeerInfo, Role, Topology};
use shoal_swarm::wire::Alias;
use shoal_swarm::{ReaderId, Swarm, Time, TorrentKey};

use crate::link::Downlink;
use crate::scenario::{Group, Scenario};
use crate::uplink::Uplink;

/// How long after its first short handout an agent announces again, as the real one does.
const ANNOUNCE_AGAIN: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) state: State,
    pub(crate) swarm: Swarm,
    pub(crate) up: Uplink,
    pub(crate) down: Downlink,
    /// What the node has of each blob.
    pub(crate) blobs: Vec<Holding>,
    /// Blobs asked for so far, from the first.
    pub(crate) begun: usize,
    /// Blobs that are whole here.
    pub(crate) whole: usize,
    /// The place of its group in the scenario; the origin's is that of the first.
    pub(crate) group: usize,
    pub(crate) zone: u32,
    /// Whether it serves others.
    pub(crate) gives: bool,
    pub(crate) arrived_at: Time,
    /// When it had the first piece of the first blob: what a reader waits for.
    pub(crate) first_at: Option<Time>,
    /// When it had every blob.
    pub(crate) completed_at: Option<Time>,
    /// When the one pending wake-up is due.
    pub(crate) wake_at: Option<Time>,
    /// Whether an input came since the outputs were drained.
    pub(crate) touched: bool,
    /// Payload bytes that came in, and those of them we had already.
    pub(crate) received_bytes: u64,
    pub(crate) duplicate_bytes: u64,
}

/// What a node has of one blob.
#[derive(Debug)]
pub(crate) struct Holding {
    /// The blob's torrent, while open.
    pub(crate) torrent: Option<TorrentKey>,
    /// Pieces verified and on disk.
    pub(crate) have: Bitfield,
    /// The reader and the piece it waits for.
    pub(crate) reader: Option<(ReaderId, u32)>,
    /// How long after a short handout it announces again.
    pub(crate) announce_again: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Does not want the blobs yet; left on arrival.
    Away,
    /// Takes part; left by a crash.
    Live,
    /// Gone for good.
    Dead,
}

impl Node {
    pub(crate) fn origin(scenario: &Scenario, geometries: &[Geometry]) -> Self {
        let like = Group { rates: scenario.origin_rates, gives: true, ..scenario.groups[0].clone() };
        Self::new(scenario, geometries, 0, 0, &like)
    }

    pub(crate) fn new(scenario: &Scenario, geometries: &[Geometry], node: u32, group: usize, like: &Group) -> Self {
        let blob = |geometry| Holding {
            torrent: None,
            have: Bitfield::empty(geometry),
            reader: None,
            announce_again: ANNOUNCE_AGAIN,
        };
        Self {
            state: State::Away,
            swarm: Swarm::new(scenario.swarm.clone(), peer_info(scenario, node), mix(scenario.seed, node)),
            up: Uplink::new(like.rates.up),
            down: Downlink::new(like.rates.down),
            blobs: geometries.iter().map(blob).collect(),
            begun: 0,
            whole: 0,
            group,
            zone: scenario.zone_of(node),
            gives: like.gives,
            arrived_at: Time::ZERO,
            first_at: None,
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

    /// The blob of an open torrent.
    pub(crate) fn blob_of(&self, torrent: TorrentKey) -> Option<usize> {
        self.blobs.iter().position(|blob| blob.torrent == Some(torrent))
    }

    /// The blob of an open torrent, by what this node's messages call it.
    pub(crate) fn blob_named(&self, alias: Alias) -> Option<usize> {
        self.blobs.iter().position(|blob| blob.torrent.is_some_and(|torrent| torrent.alias() == alias))
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
    let zone = scenario.zones.map(|_| format!("zone-{}", scenario.zone_of(node))).unwrap_or_default();
    PeerInfo {
        id: PeerId(id),
        address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, a, b, c)), 5051),
        role: if node == 0 { Role::Origin } else { Role::Agent },
        topology: Topology { zone, rack: String::new() },
    }
}

/// A seed of its own for each node (splitmix64).
fn mix(seed: u64, node: u32) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(node) + 1));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
