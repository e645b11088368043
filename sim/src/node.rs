//! One simulated node: its swarm, its links, what its store holds.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use shoal_meta::{Bitfield, Geometry, PeerId, PeerInfo, PieceIndex, Role, Topology};
use shoal_swarm::wire::Alias;
use shoal_swarm::{ReaderId, Swarm, Time, TorrentKey};

use crate::link::Downlink;
use crate::scenario::{Group, Lie, Rates, Scenario};
use crate::uplink::Uplink;

/// How long after its first short handout an agent announces again, as the real one does.
const ANNOUNCE_AGAIN: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) state: State,
    pub(crate) swarm: Swarm,
    rates: Rates,
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
    pub(crate) lies: Option<Lie>,
    /// How often it came back: what was under way in an earlier life is void.
    pub(crate) life: u32,
    /// How far its clock is ahead of the world's.
    pub(crate) ahead: Duration,
    /// Until when its process stands still.
    pub(crate) paused_until: Time,
    /// How late messages from it and to it may be, and until when.
    pub(crate) lag: (Duration, Time),
    /// When a fault last touched it.
    pub(crate) rough_at: Time,
    /// Pieces being fetched that have a wrong block.
    pub(crate) wrong: BTreeSet<(TorrentKey, PieceIndex)>,
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
    /// Of `have`, what has wrong bytes on disk: nothing, while the store verifies.
    pub(crate) rotten: BTreeSet<PieceIndex>,
    /// What an earlier life left on disk and is not checked again yet.
    pub(crate) left: Bitfield,
    /// Whether the whole was committed to this disk.
    pub(crate) committed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Does not want the blobs yet; left on arrival.
    Away,
    /// Takes part; left by a crash.
    Live,
    /// Gone; left when it comes back, if it does.
    Dead,
}

impl Holding {
    fn new(geometry: &Geometry) -> Self {
        Self {
            torrent: None,
            have: Bitfield::empty(geometry),
            reader: None,
            announce_again: ANNOUNCE_AGAIN,
            rotten: BTreeSet::new(),
            left: Bitfield::empty(geometry),
            committed: false,
        }
    }
}

impl Node {
    pub(crate) fn origin(scenario: &Scenario, geometries: &[Geometry]) -> Self {
        let like = Group { rates: scenario.origin_rates, gives: true, lies: None, ..scenario.groups[0].clone() };
        Self::new(scenario, geometries, 0, 0, &like)
    }

    pub(crate) fn new(scenario: &Scenario, geometries: &[Geometry], node: u32, group: usize, like: &Group) -> Self {
        Self {
            state: State::Away,
            swarm: Swarm::new(scenario.swarm.clone(), peer_info(scenario, node), mix(scenario.seed, node)),
            rates: like.rates,
            up: Uplink::new(like.rates.up),
            down: Downlink::new(like.rates.down),
            blobs: geometries.iter().map(Holding::new).collect(),
            begun: 0,
            whole: 0,
            group,
            zone: scenario.zone_of(node),
            gives: like.gives,
            lies: like.lies,
            life: 0,
            ahead: Duration::ZERO,
            paused_until: Time::ZERO,
            lag: (Duration::ZERO, Time::ZERO),
            rough_at: Time::ZERO,
            wrong: BTreeSet::new(),
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

    /// Starts anew after a crash. What its disk had is to be checked again, but for what was committed, or is gone.
    pub(crate) fn come_back(&mut self, scenario: &Scenario, geometries: &[Geometry], disk: bool) {
        self.life += 1;
        self.state = State::Live;
        let seed = mix(scenario.seed ^ u64::from(self.life) << 40, node_of(&self.swarm.me().id));
        self.swarm = Swarm::new(scenario.swarm.clone(), self.swarm.me().clone(), seed);
        (self.up, self.down) = (Uplink::new(self.rates.up), Downlink::new(self.rates.down));
        (self.wake_at, self.touched, self.paused_until) = (None, false, Time::ZERO);
        self.wrong.clear();
        for (held, geometry) in self.blobs.iter_mut().zip(geometries) {
            let before = std::mem::replace(held, Holding::new(geometry));
            if disk && before.committed {
                *held = Holding { have: before.have, rotten: before.rotten, committed: true, ..Holding::new(geometry) };
            } else if disk {
                (held.left, held.rotten) = (before.left, before.rotten);
                before.have.iter().for_each(|piece| {
                    held.left.insert(piece);
                });
            }
        }
        self.begun = 0;
        self.whole = self.blobs.iter().filter(|held| held.have.is_full()).count();
        if self.whole < self.blobs.len() {
            self.completed_at = None;
        }
    }

    /// Tells whether it is no liar.
    pub(crate) fn is_honest(&self) -> bool {
        self.lies.is_none()
    }

    /// Its clock.
    pub(crate) fn clock(&self, now: Time) -> Time {
        now + self.ahead
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

/// The node at an address, if it is one of the simulation's.
pub(crate) fn node_at(address: &SocketAddr) -> Option<u32> {
    match address {
        SocketAddr::V4(address) => {
            let [net, a, b, c] = address.ip().octets();
            (net == 10).then(|| u32::from_be_bytes([0, a, b, c]))
        }
        SocketAddr::V6(_) => None,
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
