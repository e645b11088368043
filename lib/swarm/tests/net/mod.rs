//! A handful of swarms joined by ideal links in virtual time: every frame takes 1 ms unless said, a block as long as its sender's rate
//! says. Stores verify at once. For facts about the protocol; whole swarms are the simulator's.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(dead_code, reason = "each test file uses its own part of the net")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use shoal_meta::{Bitfield, Digest, Geometry, PeerId, PeerInfo, PieceHash, PieceIndex, Role, Topology};
use shoal_swarm::wire::{Alias, BlockHeader, Message, Opened, WireBlock};
use shoal_swarm::{BlockOutcome, Config, ConnId, DisconnectReason, Event, Frame, OpenTorrent, Swarm, Time, TorrentKey};

pub(crate) type Node = usize;

/// The origin's seal on the metainfo.
pub(crate) const SEAL: &[u8] = b"sealed";

pub(crate) struct Net {
    pub(crate) now: Time,
    pub(crate) nodes: Vec<Swarm>,
    pub(crate) digest: Digest,
    pub(crate) geometry: Geometry,
    /// Bytes per second a node sends.
    pub(crate) rate: f64,
    /// How long a frame takes.
    pub(crate) latency: Duration,
    /// Frames sent from node to node, payload left out.
    pub(crate) sent: Vec<(Node, Node, Frame)>,
    pub(crate) disconnects: Vec<(Node, Node, DisconnectReason)>,
    pub(crate) events: Vec<(Node, Event)>,
    /// What the store of a node says of a piece; absent means good.
    pub(crate) bad: BTreeSet<(Node, PieceIndex)>,
    /// Nodes that swallow every block and all metainfo they should send.
    pub(crate) silent: BTreeSet<Node>,
    /// Nodes that went without a word: nothing comes from them, and their connections stay.
    pub(crate) vanished: BTreeSet<Node>,
    /// Nodes that take no block, and what waits for them: who sends it, by which connection, and what.
    pub(crate) deaf: BTreeMap<Node, Vec<(Node, ConnId, TorrentKey, shoal_meta::BlockRef)>>,
    pub(crate) duplicates: usize,
    /// What nodes say is the origin's seal; [`SEAL`] is.
    pub(crate) seals: BTreeMap<Node, Vec<u8>>,
    /// Pieces in the order in which a node verified them.
    pub(crate) verified: BTreeMap<Node, Vec<u32>>,
    links: BTreeMap<(Node, ConnId), (Node, ConnId)>,
    queue: BTreeMap<(Time, u64), Delivery>,
    busy: BTreeMap<Node, Time>,
    order: u64,
    next_conn: u64,
}

enum Delivery {
    Frame(Node, ConnId, Frame),
    Sent(Node, ConnId, shoal_meta::BlockRef),
}

pub(crate) fn peer(node: Node, role: Role) -> PeerInfo {
    PeerInfo {
        id: PeerId([u8::try_from(node).unwrap() + 1; 16]),
        address: format!("10.0.0.{}:1", node + 1).parse().unwrap(),
        role,
        topology: Topology::default(),
    }
}

impl Net {
    pub(crate) fn new(nodes: usize, pieces: u64) -> Self {
        Self::with(nodes, pieces, Config::default())
    }

    pub(crate) fn with(nodes: usize, pieces: u64, config: Config) -> Self {
        let me = |node| peer(node, if node == 0 { Role::Origin } else { Role::Agent });
        Self {
            now: Time::ZERO,
            nodes: (0..nodes).map(|node| Swarm::new(config.clone(), me(node), node as u64)).collect(),
            digest: Digest::sha256_of(b"the blob"),
            geometry: Geometry::new(pieces * 262_144, 262_144).unwrap(),
            rate: 12.5e6,
            latency: Duration::from_millis(1),
            sent: Vec::new(),
            disconnects: Vec::new(),
            events: Vec::new(),
            bad: BTreeSet::new(),
            silent: BTreeSet::new(),
            vanished: BTreeSet::new(),
            deaf: BTreeMap::new(),
            duplicates: 0,
            seals: BTreeMap::new(),
            verified: BTreeMap::new(),
            links: BTreeMap::new(),
            queue: BTreeMap::new(),
            busy: BTreeMap::new(),
            order: 0,
            next_conn: 0,
        }
    }

    /// Two zones: the first nodes in one, the rest in the other.
    pub(crate) fn zones(first: usize, second: usize, pieces: u64) -> Self {
        let mut net = Self::new(first + second, pieces);
        for node in 0..first + second {
            let mut me = net.nodes[node].me().clone();
            me.topology.zone = if node < first { "a" } else { "b" }.to_owned();
            net.nodes[node] = Swarm::new(Config::default(), me, node as u64);
        }
        net
    }

    pub(crate) fn torrent(&self, have: Bitfield) -> OpenTorrent {
        let known = self.geometry.piece_count();
        OpenTorrent {
            digest: self.digest,
            geometry: self.geometry,
            have,
            known,
            wanted: Bitfield::full(&self.geometry),
            super_seed: false,
        }
    }

    pub(crate) fn seed(&mut self, node: Node) -> TorrentKey {
        let torrent = self.torrent(Bitfield::full(&self.geometry));
        self.nodes[node].open(self.now, torrent).unwrap()
    }

    pub(crate) fn leech(&mut self, node: Node) -> TorrentKey {
        let torrent = self.torrent(Bitfield::empty(&self.geometry));
        self.nodes[node].open(self.now, torrent).unwrap()
    }

    /// Has some pieces, and shows each to one peer at a time.
    pub(crate) fn super_seed(&mut self, node: Node, have: Bitfield) -> TorrentKey {
        let torrent = OpenTorrent { super_seed: true, ..self.torrent(have) };
        self.nodes[node].open(self.now, torrent).unwrap()
    }

    /// Wants some pieces.
    pub(crate) fn leech_some(&mut self, node: Node, wanted: Bitfield) -> TorrentKey {
        let torrent = OpenTorrent { wanted, ..self.torrent(Bitfield::empty(&self.geometry)) };
        self.nodes[node].open(self.now, torrent).unwrap()
    }

    /// Wants a blob of which no hash is known.
    pub(crate) fn leech_blindly(&mut self, node: Node) -> TorrentKey {
        let torrent = OpenTorrent { known: 0, ..self.torrent(Bitfield::empty(&self.geometry)) };
        self.nodes[node].open(self.now, torrent).unwrap()
    }

    pub(crate) fn connect(&mut self, dialler: Node, listener: Node) -> (ConnId, ConnId) {
        let (a, b) = (ConnId(self.next_conn), ConnId(self.next_conn + 1));
        self.next_conn += 2;
        self.links.insert((dialler, a), (listener, b));
        self.links.insert((listener, b), (dialler, a));
        let (left, right) = (self.nodes[dialler].me().clone(), self.nodes[listener].me().clone());
        self.nodes[dialler].handle_connected(self.now, a, right.address.ip(), right, true);
        self.nodes[listener].handle_connected(self.now, b, left.address.ip(), left, false);
        (a, b)
    }

    pub(crate) fn connect_all(&mut self) {
        for a in 0..self.nodes.len() {
            for b in 0..a {
                self.connect(a, b);
            }
        }
    }

    pub(crate) fn cut(&mut self, a: Node, b: Node) {
        let conns: Vec<_> =
            self.links.iter().filter(|((n, _), (m, _))| *n == a && *m == b).map(|(k, v)| (*k, *v)).collect();
        for ((a, at_a), (b, at_b)) in conns {
            self.links.remove(&(a, at_a));
            self.links.remove(&(b, at_b));
            self.nodes[a].handle_disconnected(self.now, at_a);
            self.nodes[b].handle_disconnected(self.now, at_b);
        }
    }

    /// A deaf node takes what waits for it.
    pub(crate) fn hear(&mut self, node: Node) {
        for (from, conn, torrent, block) in self.deaf.remove(&node).unwrap_or_default() {
            self.send_block(from, conn, torrent, block);
        }
    }

    /// Puts a message on the wire as if a node had sent it.
    pub(crate) fn forge(&mut self, from: Node, conn: ConnId, message: Message) {
        self.deliver(from, conn, Frame::Control(message), self.latency);
    }

    /// Opens the torrent on the wire as if a node had, with these pieces.
    pub(crate) fn forge_open(&mut self, from: Node, conn: ConnId, alias: Alias, have: Bitfield) {
        let (digest, geometry) = (self.digest, self.geometry);
        self.forge(from, conn, Opened { alias, digest, geometry, have }.into());
    }

    pub(crate) fn view(&self, node: Node) -> shoal_swarm::TorrentView {
        let key = self.nodes[node].key(&self.digest).expect("the torrent is open");
        self.nodes[node].torrent(key).unwrap()
    }

    pub(crate) fn is_complete(&self, node: Node) -> bool {
        let view = self.view(node);
        view.have == view.pieces
    }

    /// Runs until the condition holds; panics when it does not within a virtual deadline.
    pub(crate) fn run_until(&mut self, what: &str, seconds: u64, mut done: impl FnMut(&Self) -> bool) {
        let deadline = self.now + Duration::from_secs(seconds);
        self.drain();
        while !done(self) {
            assert!(self.step(deadline), "not within {seconds} s: {what}\n{}", self.transcript());
        }
    }

    /// Runs for a while.
    pub(crate) fn run_for(&mut self, seconds: u64) {
        let deadline = self.now + Duration::from_secs(seconds);
        self.drain();
        while self.step(deadline) {}
        self.now = deadline;
    }

    fn step(&mut self, deadline: Time) -> bool {
        let timers = self.nodes.iter().enumerate().filter_map(|(node, swarm)| Some((swarm.poll_timeout()?.0, node)));
        let timer = timers.min();
        let frame = self.queue.first_key_value().map(|((at, _), _)| *at);
        let next = timer.map(|(at, _)| at).into_iter().chain(frame).min();
        let Some(next) = next.filter(|at| *at <= deadline) else { return false };
        self.now = self.now.max(next);
        if frame == Some(next) {
            let (_, delivery) = self.queue.pop_first().unwrap();
            self.handle(delivery);
        } else if let Some((_, node)) = timer {
            self.nodes[node].handle_timeout(self.now);
        }
        self.drain();
        true
    }

    fn handle(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Sent(node, conn, block) => {
                self.nodes[node].handle_block_sent(self.now, conn, block);
            }
            Delivery::Frame(node, conn, _) if !self.links.contains_key(&(node, conn)) => {}
            Delivery::Frame(node, conn, Frame::Control(message)) => {
                self.nodes[node].handle_message(self.now, conn, message);
            }
            Delivery::Frame(node, conn, Frame::Block { torrent, block }) => {
                let header = BlockHeader { alias: torrent.alias(), block: WireBlock::from(block) };
                match self.nodes[node].handle_block(self.now, conn, header) {
                    Ok(BlockOutcome::Accepted { .. }) => {}
                    Ok(BlockOutcome::Duplicate) => self.duplicates += 1,
                    Err(_) => {}
                }
            }
        }
    }

    fn deliver(&mut self, from: Node, conn: ConnId, frame: Frame, delay: Duration) {
        let Some(&(to, there)) = self.links.get(&(from, conn)) else { return };
        if self.vanished.contains(&from) {
            return;
        }
        self.sent.push((from, to, frame.clone()));
        self.order += 1;
        self.queue.insert((self.now + delay, self.order), Delivery::Frame(to, there, frame));
    }

    fn drain(&mut self) {
        let mut again: VecDeque<Node> = (0..self.nodes.len()).collect();
        while let Some(node) = again.pop_front() {
            while let Some(transmit) = self.nodes[node].poll_transmit() {
                match transmit.frame {
                    Frame::Block { torrent, block } => self.send_block(node, transmit.conn, torrent, block),
                    frame @ Frame::Control(_) => self.deliver(node, transmit.conn, frame, self.latency),
                }
            }
            while let Some(event) = self.nodes[node].poll_event() {
                self.events.push((node, event.clone()));
                self.act(node, event);
                again.push_back(node);
            }
            self.nodes[node].check_invariants();
        }
    }

    fn send_block(&mut self, node: Node, conn: ConnId, torrent: TorrentKey, block: shoal_meta::BlockRef) {
        if let Some(waiting) = self.links.get(&(node, conn)).and_then(|(to, _)| self.deaf.get_mut(to)) {
            return waiting.push((node, conn, torrent, block));
        }
        let start = self.busy.get(&node).copied().unwrap_or_default().max(self.now);
        let end = start + Duration::from_secs_f64(f64::from(block.length) / self.rate);
        self.busy.insert(node, end);
        if !self.silent.contains(&node) {
            self.deliver(node, conn, Frame::Block { torrent, block }, end.since(self.now) + self.latency);
        }
        self.order += 1;
        self.queue.insert((end, self.order), Delivery::Sent(node, conn, block));
    }

    fn act(&mut self, node: Node, event: Event) {
        match event {
            Event::PieceReceived { torrent, piece } => {
                let good = !self.bad.contains(&(node, piece));
                if good {
                    self.verified.entry(node).or_default().push(piece.get());
                }
                self.nodes[node].handle_verified(self.now, torrent, piece, good);
            }
            Event::Disconnect { conn, reason } => {
                if let Some((other, there)) = self.links.remove(&(node, conn)) {
                    self.disconnects.push((node, other, reason));
                    self.links.remove(&(other, there));
                    self.nodes[other].handle_disconnected(self.now, there);
                }
            }
            Event::Dial(info) => match self.nodes.iter().position(|swarm| swarm.me().id == info.id) {
                Some(other) => {
                    self.connect(node, other);
                }
                None => self.nodes[node].handle_dial_failed(self.now, info.id),
            },
            Event::FindTorrent { digest, query } => {
                self.nodes[node].handle_find_answer(self.now, query, digest, false);
            }
            Event::MetainfoAsked { .. } if self.silent.contains(&node) => {}
            Event::MetainfoAsked { torrent, conn } => {
                let hashes: Vec<_> = self.geometry.pieces().map(|piece| PieceHash([piece.get() as u8; 32])).collect();
                let metainfo = self.seals.get(&node).map(|seal| (hashes.as_slice(), seal.clone()));
                self.nodes[node].give_metainfo(self.now, conn, torrent, metainfo);
            }
            Event::MetainfoFound { torrent, hashes, seal } => {
                let good = seal == SEAL;
                self.nodes[node].handle_metainfo_checked(self.now, torrent, good);
                if good {
                    self.nodes[node].set_known(self.now, torrent, hashes.len() as u32);
                }
            }
            Event::PieceDropped { .. } | Event::TorrentWanted(_) | Event::TorrentIdle(_) | Event::Banned { .. } => {}
        }
    }
}

impl Net {
    /// What was said, for a failing test's message.
    pub(crate) fn transcript(&self) -> String {
        self.sent.iter().map(|(from, to, frame)| format!("{from}>{to} {frame:?}\n")).collect()
    }
}
