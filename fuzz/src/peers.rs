//! What peers say: to each other over the wire, and to trackers.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use prost::Message as _;
use shoal_meta::{Bitfield, Digest, Geometry, PeerId, PeerInfo, Role, Topology};
use shoal_proto::tracker::v1::{AnnounceRequest, LeaveRequest};
use shoal_swarm::wire::{self, BLOCK_HEADER_LENGTH, HEADER_LENGTH, Header};
use shoal_swarm::{Config, ConnId, Event, OpenTorrent, Swarm, Time};
use shoal_tracker::service::{REQUEST_LENGTH_MAX, Service};

/// The frames of the peer wire: a message that is understood is said in a way that is understood alike.
///
/// # Panics
/// When it is not.
pub fn wire(data: &[u8]) {
    if let Some((header, body)) = data.split_first_chunk::<HEADER_LENGTH>()
        && let Ok(Header::Block { length }) = wire::decode_header(*header)
        && let Some((header, _)) = body.split_first_chunk::<BLOCK_HEADER_LENGTH>()
    {
        let _ = wire::decode_block_header(*header, length);
    }
    let Ok(Some(message)) = wire::decode_control(data) else { return };
    let mut frame = Vec::new();
    wire::encode_control(&message, &mut frame);
    assert_eq!(wire::decode_control(&frame[HEADER_LENGTH..]), Ok(Some(message)));
}

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn peer(number: u64) -> PeerInfo {
    let id = PeerId(u128::from(number).to_be_bytes());
    let role = if number == 1 { Role::Origin } else { Role::Agent };
    PeerInfo { id, address: ([10, 0, 0, 1], 5051).into(), role, topology: Topology::default() }
}

/// A swarm with one torrent it fetches and one it has, and two peers that say anything: its invariants hold all the time.
///
/// The bytes are steps: what it is and whose, then a length and a message, or a block, or a time to pass.
///
/// # Panics
/// When an invariant is broken.
pub fn swarm(data: &[u8]) {
    let config = Config { connections_max: 4, ..Config::default() };
    let mut world =
        World { swarm: Swarm::new(config, peer(9), 1), now: Time::ZERO, conns: [ConnId(0), ConnId(1)], next: 2 };
    let geometry = Geometry::new(8 << 18, 1 << 18).expect("a cut");
    for (name, have) in [("fetched", Bitfield::empty(&geometry)), ("held", Bitfield::full(&geometry))] {
        let wanted = Bitfield::full(&geometry);
        let torrent = OpenTorrent {
            digest: Digest::sha256_of(name.as_bytes()),
            geometry,
            have,
            known: 6,
            wanted,
            super_seed: false,
        };
        let key = world.swarm.open(world.now, torrent);
        key.into_iter().for_each(|key| world.swarm.find_metainfo(world.now, key));
    }
    for (number, conn) in (1..).zip(world.conns) {
        world.swarm.handle_connected(world.now, conn, LOCAL, peer(number), false);
    }
    world.drain(true);
    let mut rest = data;
    while let [step, length, after @ ..] = rest {
        let (body, after) = after.split_at(usize::from(*length).min(after.len()));
        world.step(*step, body);
        rest = after;
    }
}

struct World {
    swarm: Swarm,
    now: Time,
    conns: [ConnId; 2],
    next: u64,
}

impl World {
    fn step(&mut self, step: u8, body: &[u8]) {
        let conn = self.conns[usize::from(step & 1)];
        match step >> 1 & 7 {
            0 => {
                self.now += Duration::from_millis(body.len() as u64 * 50);
                self.swarm.handle_timeout(self.now);
            }
            1 => {
                if let Some((header, _)) = body.split_first_chunk::<BLOCK_HEADER_LENGTH>() {
                    let _ = self.swarm.handle_block(self.now, conn, wire::decode_block_header(*header, 1 << 18));
                }
            }
            _ => {
                if let Ok(Some(message)) = wire::decode_control(body) {
                    self.swarm.handle_message(self.now, conn, message);
                }
            }
        }
        self.drain(step & 16 == 0);
    }

    /// Does what the swarm asks for; a peer that is cut off comes back as another.
    fn drain(&mut self, verified: bool) {
        loop {
            while let Some(transmit) = self.swarm.poll_transmit() {
                if let shoal_swarm::Frame::Block { block, .. } = transmit.frame {
                    self.swarm.handle_block_sent(self.now, transmit.conn, block);
                }
            }
            let Some(event) = self.swarm.poll_event() else { break };
            match event {
                Event::PieceReceived { torrent, piece } => {
                    self.swarm.handle_verified(self.now, torrent, piece, verified);
                }
                Event::Disconnect { conn, .. } => {
                    if let Some(place) = self.conns.iter().position(|known| *known == conn) {
                        self.conns[place] = ConnId(self.next);
                        self.next += 1;
                        self.swarm.handle_connected(self.now, self.conns[place], LOCAL, peer(10 + self.next), false);
                    }
                }
                Event::MetainfoAsked { torrent, conn } => self.swarm.give_metainfo(self.now, conn, torrent, None),
                Event::MetainfoFound { torrent, hashes, .. } => {
                    self.swarm.handle_metainfo_checked(self.now, torrent, verified);
                    if verified {
                        self.swarm.set_known(self.now, torrent, u32::try_from(hashes.len()).unwrap_or(u32::MAX));
                    }
                }
                Event::Dial(peer) => self.swarm.handle_dial_failed(self.now, peer.id),
                Event::FindTorrent { digest, query } => {
                    self.swarm.handle_find_answer(self.now, query, digest, verified)
                }
                Event::PieceDropped { .. } | Event::TorrentWanted(_) | Event::TorrentIdle(_) | Event::Banned { .. } => {
                }
            }
        }
        self.swarm.check_invariants();
    }
}

/// A tracker that is told anything, a message after the other, each after its length in two bytes: its limits hold.
///
/// # Panics
/// When they do not.
pub fn tracker(data: &[u8]) {
    let config = shoal_tracker::Config {
        peers_max: 8,
        torrents_per_peer_max: 8,
        members_max: 4,
        memberships_max: 16,
        ..shoal_tracker::Config::default()
    };
    let service = Service::new(config, 1);
    let from = Some(LOCAL);
    let began = Instant::now();
    let mut rest = data;
    for step in 0_u64.. {
        let Some((length, after)) = rest.split_first_chunk::<2>() else { break };
        let length = usize::from(u16::from_le_bytes(*length));
        let (message, after) = after.split_at(length.min(after.len()).min(REQUEST_LENGTH_MAX));
        if let Ok(announce) = AnnounceRequest::decode(message) {
            let _ = service.answer(began + Duration::from_secs(step), from, &announce);
        }
        if let Ok(leave) = LeaveRequest::decode(message) {
            let _ = service.leave(&leave);
        }
        let sizes = service.sizes();
        assert!(sizes.peers <= 8 && sizes.memberships <= 16, "{sizes:?}");
        rest = after;
    }
}
