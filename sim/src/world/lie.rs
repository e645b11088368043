//! What liars send: their own swarms' messages twisted, and others out of turn. Each lies in one way and is honest else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::{Rng as _, RngExt as _};
use shoal_meta::{Bitfield, Digest, Geometry, PeerId, PeerInfo, PieceIndex, Role};
use shoal_swarm::wire::{Alias, FindPeers, Message, Opened, PEERS_LENGTH_MAX, PeerExchange, WireBlock};
use shoal_swarm::{Frame, TorrentKey};
use smallvec::smallvec;

use super::{Happening, World, slot};
use crate::link::End;
use crate::scenario::{Bug, Lie};

/// Messages of a flood on one connection at a time.
const FLOOD: usize = 16;
/// The share of Haves that get lost, when they do.
const LOST_SHARE: f64 = 0.125;

impl World<'_> {
    /// What a node really sends in place of what its swarm asks for.
    pub(super) fn twist(&mut self, node: u32, frame: Frame) -> Option<Frame> {
        match (self.nodes[node as usize].lies, frame) {
            (Some(Lie::BogusHaves), Frame::Control(Message::OpenTorrent(mut open))) => {
                open.have = Bitfield::full(&open.geometry);
                Some(Frame::Control(Message::OpenTorrent(open)))
            }
            (Some(Lie::BadBitfields), Frame::Control(Message::OpenTorrent(open))) if self.rng.random_bool(0.3) => {
                let geometry = Geometry::new(open.geometry.length(), open.geometry.piece_length() * 2);
                let geometry = geometry.unwrap_or(open.geometry);
                Some(Frame::Control(Opened { geometry, have: Bitfield::full(&geometry), ..*open }.into()))
            }
            (Some(Lie::EndlessChokes), Frame::Block { .. }) => None,
            (_, frame) => Some(frame),
        }
    }

    /// Whether the block that a node sends is right: what a liar sends is as it likes, what another sends as on its disk.
    pub(super) fn is_good(&mut self, node: u32, torrent: TorrentKey, piece: PieceIndex) -> bool {
        let state = &self.nodes[node as usize];
        match state.lies {
            Some(Lie::BadBlocks) => self.rng.random_bool(0.5),
            Some(Lie::SlowDrip) => self.rng.random_bool(0.75),
            Some(Lie::BogusHaves | Lie::BadBitfields | Lie::EndlessChokes | Lie::Flood | Lie::PeerPoison) | None => {
                state.blob_of(torrent).is_none_or(|blob| !state.blobs[blob].rotten.contains(&piece))
            }
        }
    }

    /// Whether a message gets lost, which none does but for a bug.
    pub(super) fn is_lost(&mut self, message: &Message) -> bool {
        let bug = self.scenario.bug == Some(Bug::LoseHave);
        bug && matches!(message, Message::Have { .. }) && self.rng.random_bool(LOST_SHARE)
    }

    /// A liar says on every connection what nobody asked for, and does so again.
    pub(super) fn lie(&mut self, node: u32) {
        let state = &self.nodes[node as usize];
        let Some(lie) = state.lies.filter(|_| state.is_live()) else { return };
        let every = match lie {
            Lie::EndlessChokes => Duration::from_millis(50),
            Lie::Flood => Duration::from_millis(100),
            Lie::PeerPoison => Duration::from_millis(200),
            Lie::BadBitfields => Duration::from_millis(500),
            Lie::BadBlocks | Lie::BogusHaves | Lie::SlowDrip => return,
        };
        for (conn, end) in self.ends_at(node) {
            if self.links[conn as usize].ends[end] == End::Open {
                for message in self.lies(node, lie) {
                    let message = slot(self.messages.insert(smallvec![message]));
                    self.send_message(conn, end, message);
                }
            }
        }
        self.push_after(every, Happening::Lie(node));
    }

    fn lies(&mut self, node: u32, lie: Lie) -> Vec<Message> {
        match lie {
            Lie::EndlessChokes => vec![Message::Unchoke { pieces: 1 }, Message::Choke],
            Lie::Flood => (0..FLOOD).map(|_| self.anything(node)).collect(),
            Lie::PeerPoison => vec![self.poison()],
            Lie::BadBitfields => {
                let (alias, blob) = self.some_torrent(node);
                let beyond = self.blobs[blob].geometry.piece_count();
                match self.rng.random_range(0..4u32) {
                    0 => vec![Message::Have { alias, pieces: smallvec![beyond] }],
                    1 => vec![Message::Have { alias: Alias(u32::MAX), pieces: smallvec![0] }],
                    2 => vec![Message::CloseTorrent { alias: Alias(u32::MAX) }],
                    _ => vec![Message::HaveAll { alias }],
                }
            }
            Lie::BadBlocks | Lie::BogusHaves | Lie::SlowDrip => Vec::new(),
        }
    }

    /// A torrent by a liar's name for it; its first blob's, and a name that it never gave, when it has none open.
    fn some_torrent(&mut self, node: u32) -> (Alias, usize) {
        let open = self.nodes[node as usize].blobs.iter().enumerate();
        let open: Vec<_> = open.filter_map(|(blob, held)| Some((held.torrent?.alias(), blob))).collect();
        if open.is_empty() { (Alias(u32::MAX), 0) } else { open[self.rng.random_range(0..open.len())] }
    }

    /// Any message that an honest peer may send, at any time.
    fn anything(&mut self, node: u32) -> Message {
        let (alias, blob) = self.some_torrent(node);
        let (geometry, digest) = (self.blobs[blob].geometry, self.blobs[blob].digest);
        let piece = geometry.piece(self.rng.random_range(0..geometry.piece_count()));
        let blocks: Vec<WireBlock> =
            piece.into_iter().flat_map(|piece| geometry.blocks(piece)).map(Into::into).collect();
        let unknown = Digest::sha256_of(&self.rng.next_u64().to_be_bytes());
        match self.rng.random_range(0..12u32) {
            0 => Message::Interested,
            1 => Message::NotInterested { no_room: self.rng.random() },
            2 => Message::Unchoke { pieces: self.rng.next_u32() },
            3 => Message::Choke,
            4 => Message::Request { alias, blocks },
            5 => Message::Cancel { alias, blocks },
            6 => Message::Reject { alias, blocks },
            7 => Message::Have { alias, pieces: piece.into_iter().map(PieceIndex::get).collect() },
            8 => FindPeers { digest, hops: 2, query: self.rng.next_u64() }.into(),
            9 => FindPeers { digest: unknown, hops: 2, query: self.rng.next_u64() }.into(),
            10 => PeerExchange { digest: unknown, peers: Vec::new(), query: Some(self.rng.next_u64()) }.into(),
            _ => {
                let alias = Alias(self.rng.next_u32() | 1 << 31);
                Opened { alias, digest: unknown, geometry, have: Bitfield::full(&geometry) }.into()
            }
        }
    }

    /// As many peers as a message takes: made up, or real ones where they are not.
    fn poison(&mut self) -> Message {
        let blob = self.rng.random_range(0..self.blobs.len());
        let peers = (0..PEERS_LENGTH_MAX).map(|_| self.nobody()).collect();
        PeerExchange { digest: self.blobs[blob].digest, peers, query: None }.into()
    }

    fn nobody(&mut self) -> PeerInfo {
        let like = self.rng.random_range(0..self.nodes.len());
        let real = self.nodes[like].swarm.me().clone();
        let (b, c) = (self.rng.random_range(0..=255u8), self.rng.random_range(0..=255u8));
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 255, b, c)), 5051);
        if self.rng.random_bool(0.25) {
            return PeerInfo { address, ..real };
        }
        let mut id = [0xff; 16];
        self.rng.fill_bytes(&mut id[..12]);
        let role = if self.rng.random_bool(0.25) { Role::Origin } else { Role::Agent };
        PeerInfo { id: PeerId(id), address, role, ..real }
    }
}
