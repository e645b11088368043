//! One node's swarm: every torrent and every connection, owned by one caller.
//!
//! This file holds the state, the commands and the outputs; the inputs are in `message` (what peers say), `download`
//! (what we ask and get), `upload` (what we serve), `metainfo` (hashes from peers), `discovery` (whom we know) and `timers`; `tell` is what
//! peers are told of us, `reveal` what a super-seeder shows them.

mod discovery;
mod download;
mod message;
mod metainfo;
mod reveal;
mod tell;
mod timers;
mod upload;
mod zones;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::SeedableRng as _;
use rand_pcg::Pcg64;
use shoal_meta::{Bitfield, Digest, Geometry, PeerId, PeerInfo, PieceIndex, Role};

use crate::choker::Choker;
use crate::connection::{Connection, REMOTE_BITFIELD_BYTES_MAX, REMOTES_MAX, Remote};
use crate::dense::{ConnIds, ConnIndex, ConnMap, ConnSet};
use crate::rate::{Quickest, Rate, Usual};
use crate::sorted::{SortedMap, SortedSet};
use crate::torrent::{CANDIDATES_MAX, CONTESTED_MAX, Member, Reader, Torrent};
use crate::wire::Message;
use crate::{
    Config, ConnId, DisconnectReason, Event, Frame, ReaderId, Time, TimeoutReason, TorrentKey, Transmit, Violation,
};
use discovery::Discovery;
pub(crate) use metainfo::Search;
use upload::QUEUE_MAX;

/// Blocks given to the driver and not yet reported sent, at most, per connection; only a fast one has more than two.
pub const SEND_WINDOW_BLOCKS: usize = 32;

/// What [`Swarm::open`] needs to know of a torrent.
#[derive(Clone, Debug)]
pub struct OpenTorrent {
    /// The blob.
    pub digest: Digest,
    /// Its cut.
    pub geometry: Geometry,
    /// Pieces verified on disk.
    pub have: Bitfield,
    /// Pieces whose hash is known, counted from the first; others are not requested yet.
    pub known: u32,
    /// Pieces to fetch; [`Swarm::want`] adds others.
    pub wanted: Bitfield,
    /// Reveal different pieces to different peers until each has left once (the origin's way).
    pub super_seed: bool,
}

/// What can be seen of a torrent from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TorrentView {
    /// Pieces we have.
    pub have: u32,
    /// Pieces of the blob.
    pub pieces: u32,
    /// Pieces requested or being verified.
    pub active: u32,
    /// Connected peers in the torrent.
    pub peers: usize,
    /// Of those, the agents that lack a piece.
    pub leechers: usize,
}

/// One node's swarm, without IO.
///
/// **Inputs** are `handle_*`: what connections, store and clock report. **Commands** are verbs: [`open`](Self::open),
/// [`close`](Self::close), [`add_piece`](Self::add_piece), readers. After any of them, drain the **outputs**, in this order:
/// 1. [`poll_transmit`](Self::poll_transmit) until `None`, and send what came in one flush;
/// 2. [`poll_event`](Self::poll_event) until `None`, and act; if an act is itself an input, start again;
/// 3. [`poll_timeout`](Self::poll_timeout), and call [`handle_timeout`](Self::handle_timeout) at that time.
///
/// Decisions that follow from inputs (whom to ask, whom to serve, what to announce) are made when transmits are polled,
/// so that many inputs before one drain cost one decision.
#[derive(Debug)]
pub struct Swarm {
    config: Config,
    me: PeerInfo,
    rng: Pcg64,
    now: Time,
    conns: ConnMap<Connection>,
    /// Connections to peers in other zones.
    far: ConnSet,
    /// Connections to origins.
    origins: ConnSet,
    /// The driver's names of connections, and ours. Only looked up: its order is not the same in every run.
    by_id: ConnIds,
    torrents: SortedMap<TorrentKey, Torrent>,
    by_digest: BTreeMap<Digest, TorrentKey>,
    by_peer: BTreeMap<PeerId, ConnIndex>,
    choker: Choker,
    discovery: Discovery,
    /// Bytes requested and not received, over all connections.
    requested_bytes: u64,
    /// Bytes received and not verified.
    unverified_bytes: u64,
    rate_in: Rate,
    rate_out: Rate,
    /// From the first request for a piece to its being verified.
    quickest: Quickest,
    /// From a grant of ours to the first request for it: a round trip, with what waits in queues on the way.
    answer: Usual,
    /// Bytes of the slot handed out last.
    slot_bytes: u64,
    /// Connections whose peers would request something from us.
    wanting: ConnSet,
    /// Connections whose peers would if they had room.
    full: ConnSet,
    /// Connections with a grant, or with blocks that have not left.
    serving: ConnSet,
    /// Upload slots taken, over all connections.
    slots_used: u64,
    /// Connections with an allowance of ours.
    allowed: ConnSet,
    /// Connections told that we want nothing although we do: there is no room in flight for what they would grant.
    declined: ConnSet,
    dirty: Dirty,
    transmits: VecDeque<(ConnIndex, Frame)>,
    events: VecDeque<Event>,
    next_key: u32,
    next_reader: u64,
    /// When a block last left, a piece came or a peer joined a torrent.
    moved_at: Time,
    next_tick: Time,
    next_news: Time,
    next_housekeeping: Time,
}

/// What the next flush has to look at.
#[derive(Debug, Default)]
struct Dirty {
    /// Connections with an allowance that may be spent.
    holding: ConnSet,
    /// Connections whose interest may have changed.
    interest: ConnSet,
    /// Connections with blocks to hand to the driver.
    sending: ConnSet,
    /// Torrents with pieces to announce.
    fresh: SortedSet<TorrentKey>,
    /// Members of super-seeded torrents that may be shown more.
    reveal: BTreeSet<(TorrentKey, ConnIndex)>,
    /// Slots may be free.
    slots: bool,
}

impl Swarm {
    /// Starts without torrents or connections. The same seed and inputs give the same outputs.
    #[must_use]
    pub fn new(config: Config, me: PeerInfo, seed: u64) -> Self {
        Self {
            choker: Choker::new(config.choke_policy, config.upload_slots),
            config,
            me,
            rng: Pcg64::seed_from_u64(seed),
            now: Time::ZERO,
            conns: ConnMap::default(),
            far: ConnSet::default(),
            origins: ConnSet::default(),
            by_id: ConnIds::default(),
            torrents: SortedMap::default(),
            by_digest: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            discovery: Discovery::default(),
            requested_bytes: 0,
            unverified_bytes: 0,
            rate_in: Rate::default(),
            rate_out: Rate::default(),
            quickest: Quickest::default(),
            answer: Usual::default(),
            slot_bytes: 0,
            wanting: ConnSet::default(),
            full: ConnSet::default(),
            serving: ConnSet::default(),
            slots_used: 0,
            allowed: ConnSet::default(),
            declined: ConnSet::default(),
            dirty: Dirty::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            next_key: 0,
            next_reader: 0,
            moved_at: Time::ZERO,
            next_tick: Time::ZERO,
            next_news: Time::ZERO,
            next_housekeeping: Time::ZERO,
        }
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> &PeerInfo {
        &self.me
    }

    // Commands.

    /// Opens a torrent and gives its key, or the key of the one open for this digest. `None` when too many are open, or
    /// when it is open with another geometry.
    pub fn open(&mut self, now: Time, torrent: OpenTorrent) -> Option<TorrentKey> {
        self.now = now;
        let digest = torrent.digest;
        if let Some(&key) = self.by_digest.get(&digest) {
            return (self.torrents[&key].geometry == torrent.geometry).then_some(key);
        }
        if self.torrents.len() >= self.config.torrents_max {
            return None;
        }
        let key = TorrentKey(self.next_key);
        self.next_key += 1;
        self.torrents.insert(key, Torrent::new(now, torrent));
        self.by_digest.insert(digest, key);
        let leech = self.torrents[&key].is_leech();
        for conn in self.conns.indices().iter() {
            self.meet(conn, key, self.waiting_alias(conn, &digest), leech);
        }
        Some(key)
    }

    /// Closes a torrent here and at every peer. Pieces not yet verified are dropped.
    pub fn close(&mut self, now: Time, torrent: TorrentKey) {
        self.now = now;
        let Some(state) = self.torrents.get(&torrent) else { return };
        for piece in state.active.keys().copied().collect::<Vec<_>>() {
            self.drop_piece(torrent, piece);
        }
        for conn in self.conns.indices().iter() {
            self.detach(conn, torrent);
            self.send_close(conn, torrent);
        }
        if let Some(state) = self.torrents.remove(&torrent) {
            self.by_digest.remove(&state.digest);
        }
        self.dirty.fresh.remove(&torrent);
        self.discovery.forget(torrent);
    }

    /// A piece came another way (from upstream) and is verified and on disk.
    pub fn add_piece(&mut self, now: Time, torrent: TorrentKey, piece: PieceIndex) {
        self.now = now;
        if self.torrents.get(&torrent).is_some_and(|state| !state.have.contains(piece)) {
            self.drop_piece(torrent, piece);
            self.set_open(torrent, piece, false);
            self.gain(torrent, piece);
        }
    }

    /// The hashes of pieces `0..known` are known now: those pieces may be asked for.
    pub fn set_known(&mut self, now: Time, torrent: TorrentKey, known: u32) {
        self.now = now;
        let Some(state) = self.torrents.get_mut(&torrent) else { return };
        let from = state.known;
        state.known = known.clamp(from, state.geometry.piece_count());
        if state.known == state.geometry.piece_count() {
            state.search = None;
        }
        let fresh = (from..state.known).filter_map(|index| state.geometry.piece(index)).collect();
        self.open_due(torrent, fresh);
    }

    /// These pieces are to be fetched too. Nothing takes that back: what was worth asking for is worth having.
    pub fn want(&mut self, now: Time, torrent: TorrentKey, pieces: &Bitfield) {
        self.now = now;
        let Some(state) = self.torrents.get_mut(&torrent) else { return };
        let more = pieces.iter().filter(|&piece| state.wanted.insert(piece)).collect();
        self.open_due(torrent, more);
    }

    /// A reader needs the blob in order from this piece on. `None` when the torrent is not open.
    pub fn add_reader(&mut self, now: Time, torrent: TorrentKey, piece: PieceIndex) -> Option<ReaderId> {
        self.now = now;
        let state = self.torrents.get_mut(&torrent)?;
        let reader = ReaderId(self.next_reader);
        self.next_reader += 1;
        state.readers.insert(reader, Reader { piece, since: now, fresh: true });
        Some(reader)
    }

    /// The reader has got on to this piece.
    pub fn move_reader(&mut self, now: Time, torrent: TorrentKey, reader: ReaderId, piece: PieceIndex) {
        self.now = now;
        if let Some(reader) = self.torrents.get_mut(&torrent).and_then(|state| state.readers.get_mut(&reader))
            && reader.piece != piece
        {
            *reader = Reader { piece, since: now, fresh: false };
        }
    }

    /// The reader is gone; the download goes on.
    pub fn remove_reader(&mut self, torrent: TorrentKey, reader: ReaderId) {
        if let Some(state) = self.torrents.get_mut(&torrent) {
            state.readers.remove(&reader);
        }
    }

    // Outputs.

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        if self.transmits.is_empty() {
            // From the front of its memory again, which is in the cache.
            self.transmits.clear();
            self.flush();
        }
        let (conn, frame) = self.transmits.pop_front()?;
        Some(Transmit { conn: self.conns[conn].id, frame })
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        // A leecher may have come since a torrent was idle.
        let leechers = |key: &TorrentKey| self.torrents.get(key).is_none_or(|torrent| torrent.leechers > 0);
        let stale = |event: &Event| matches!(event, Event::TorrentIdle(key) if leechers(key));
        while self.events.front().is_some_and(stale) {
            self.events.pop_front();
        }
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why; `None` while nothing is under way.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, TimeoutReason)> {
        let moving = self.requested_bytes > 0 || !self.serving.is_empty();
        let progress = moving.then_some((self.next_tick, TimeoutReason::Progress));
        let rechoke = self.choker.timeout().filter(|_| !self.wanting.is_empty()).map(|at| (at, TimeoutReason::Rechoke));
        let housekeeping = self.needs_housekeeping().then_some((self.next_housekeeping, TimeoutReason::Housekeeping));
        [progress, rechoke, housekeeping].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    // Getters.

    /// Looks at a torrent.
    #[must_use]
    pub fn torrent(&self, torrent: TorrentKey) -> Option<TorrentView> {
        self.torrents.get(&torrent).map(|state| TorrentView {
            have: state.have.count(),
            pieces: state.geometry.piece_count(),
            active: u32::try_from(state.active.len()).unwrap_or(u32::MAX),
            peers: state.members.len(),
            leechers: state.leechers,
        })
    }

    /// The torrent open for a digest.
    #[must_use]
    pub fn key(&self, digest: &Digest) -> Option<TorrentKey> {
        self.by_digest.get(digest).copied()
    }

    /// How many peers are connected.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// The peer at the other end of a connection.
    #[must_use]
    pub fn peer(&self, conn: ConnId) -> Option<&PeerInfo> {
        self.conns.get(*self.by_id.get(&conn)?).map(|conn| &conn.peer)
    }

    // What every input shares.

    fn send(&mut self, conn: ConnIndex, message: Message) {
        self.transmits.push_back((conn, Frame::Control(message)));
    }

    fn disconnect(&mut self, conn: ConnIndex, reason: DisconnectReason) {
        if let Some(id) = self.conns.get(conn).map(|state| state.id) {
            self.forget_conn(conn);
            self.events.push_back(Event::Disconnect { conn: id, reason });
        }
    }

    fn violate(&mut self, conn: ConnIndex, violation: Violation) {
        if let Some(who) = self.conns.get(conn).map(|state| state.who) {
            self.ban(who, DisconnectReason::Violation(violation));
        }
    }

    fn forget_conn(&mut self, conn: ConnIndex) {
        for key in self.conns.get(conn).map(|state| state.shared.clone()).unwrap_or_default() {
            self.detach(conn, key);
        }
        if let Some(state) = self.conns.remove(conn) {
            self.by_id.remove(&state.id);
            if self.by_peer.get(&state.peer.id) == Some(&conn) {
                self.by_peer.remove(&state.peer.id);
            }
            self.slots_used -= state.up.slots;
        }
        self.choker.forget(conn);
        let dirty = &mut self.dirty;
        for set in [
            &mut self.far,
            &mut self.origins,
            &mut self.wanting,
            &mut self.full,
            &mut self.serving,
            &mut self.allowed,
            &mut self.declined,
            &mut dirty.holding,
            &mut dirty.interest,
            &mut dirty.sending,
        ] {
            set.remove(conn);
        }
        self.dirty.slots = true;
        self.transmits.retain(|(to, _)| *to != conn);
    }

    /// Opens those of some pieces that may be asked for now.
    fn open_due(&mut self, key: TorrentKey, pieces: Vec<PieceIndex>) {
        for piece in pieces {
            if self.torrents.get(&key).is_some_and(|torrent| torrent.is_due(piece)) {
                self.set_open(key, piece, true);
            }
        }
    }

    /// Opens or closes a piece to requests, keeping every peer's count of what we want from it.
    fn set_open(&mut self, key: TorrentKey, piece: PieceIndex, open: bool) {
        let Some(torrent) = self.torrents.get_mut(&key) else { return };
        let changed = if open { torrent.open.insert(piece) } else { torrent.open.remove(piece) };
        if open && torrent.active.contains_key(&piece) {
            torrent.begun.insert(piece);
        } else {
            torrent.begun.remove(&piece);
        }
        if !changed {
            return;
        }
        let across = torrent.across(piece);
        self.recount(key, piece, open, |member| member.gives(across));
        if open {
            self.dirty.holding.extend(&self.allowed);
        }
    }

    /// A piece became, or ceased to be, something to ask of the members concerned that have it.
    fn recount(&mut self, key: TorrentKey, piece: PieceIndex, more: bool, concerned: impl Fn(&Member) -> bool) {
        let Some(torrent) = self.torrents.get_mut(&key) else { return };
        for (conn, member) in torrent.members.iter_mut().filter(|(_, m)| m.have.contains(piece) && concerned(m)) {
            if more {
                member.wanted += 1;
            } else {
                member.wanted -= 1;
            }
            // Only the first and the last open piece of a torrent change what we want of the peer.
            let Some(state) = (if member.wanted == u32::from(more) { self.conns.get_mut(conn) } else { None }) else {
                continue;
            };
            if more {
                state.down.wanted += 1;
            } else {
                state.down.wanted -= 1;
            }
            self.dirty.interest.insert(conn);
        }
    }

    /// A piece is verified and on disk.
    fn gain(&mut self, key: TorrentKey, piece: PieceIndex) {
        let Some(torrent) = self.torrents.get_mut(&key) else { return };
        torrent.have.insert(piece);
        torrent.near_progress_at = self.now;
        torrent.gained_at = self.now;
        self.moved_at = self.now;
        if torrent.super_seed.is_some() {
            self.dirty.reveal.extend(torrent.members.iter().map(|(conn, _)| (key, conn)));
            self.end_super_seed(key);
        } else if torrent.is_leech() {
            torrent.gained.push(piece);
            self.dirty.fresh.insert(key);
        } else {
            torrent.gained.clear();
            for conn in torrent.members.indices().iter() {
                self.send(conn, Message::HaveAll { alias: key.alias() });
                self.part_if_both_full(conn, key);
            }
        }
    }

    /// Makes the decisions that follow from the inputs since the last flush.
    fn flush(&mut self) {
        if !self.dirty.holding.is_empty() {
            self.fill_all();
        }
        self.decline_surplus();
        if !self.dirty.reveal.is_empty() {
            self.reveal_all();
        }
        if self.dirty.slots {
            self.dirty.slots = false;
            self.hand_out_slots();
        }
        for conn in std::mem::take(&mut self.dirty.sending).iter() {
            self.release_blocks(conn);
        }
        for key in std::mem::take(&mut self.dirty.fresh) {
            self.tell_some(key);
        }
        for conn in std::mem::take(&mut self.dirty.interest).iter() {
            self.tell_interest(conn);
        }
    }

    /// Panics when an invariant is broken; for tests and the simulator.
    ///
    /// # Panics
    /// When counts and sets that must agree do not.
    pub fn check_invariants(&self) {
        let inflight = |conn: &Connection| conn.down.inflight.iter().map(|(_, b)| u64::from(b.length)).sum::<u64>();
        assert_eq!(self.requested_bytes, self.conns.values().map(inflight).sum::<u64>(), "requested bytes");
        for (at, conn) in self.conns.iter() {
            assert_eq!(self.by_peer.get(&conn.peer.id), Some(&at), "one connection per peer");
            let wanted = conn.shared.iter().filter(|key| self.torrents[key].members[at].wanted > 0).count();
            assert_eq!(conn.down.wanted as usize, wanted, "wanted at {at:?}");
            let holds = |torrent: &Torrent| torrent.active.values().filter(|a| a.holders().contains(&at)).count();
            let pieces: usize = self.torrents.values().map(holds).sum();
            assert_eq!(conn.down.pieces as usize, pieces, "pieces asked of {at:?}");
            assert_eq!(self.wanting.contains(at), conn.up.interested, "wanting {at:?}");
            assert!(!(self.wanting.contains(at) && self.full.contains(at)), "{at:?} wants and has no room");
            assert_eq!(self.origins.contains(at), conn.peer.role == Role::Origin, "{at:?} is an origin");
            assert_eq!(self.allowed.contains(at), conn.down.allowance > 0, "allowed {at:?}");
            assert_eq!(conn.up.slots, conn.up.slots_taken(), "slots of {at:?}");
            let serving = conn.up.granted > 0 || conn.up.queued_bytes > 0;
            assert_eq!(self.serving.contains(at), serving, "serving {at:?}");
            assert!(conn.up.sending <= SEND_WINDOW_BLOCKS, "send window at {at:?}");
            for (key, block) in &conn.down.inflight {
                let active = self.torrents[key].active.get(&block.piece).expect("a requested block's piece is active");
                assert!(active.holders().contains(&at), "{at:?} holds {block:?}");
            }
        }
        self.check_limits();
        assert_eq!(self.slots_used, self.conns.values().map(|conn| conn.up.slots).sum::<u64>(), "upload slots");
        for (key, torrent) in self.torrents.iter() {
            assert_eq!(self.by_digest.get(&torrent.digest), Some(key));
            for (at, member) in torrent.members.iter() {
                assert!(self.conns[at].shared.contains(key), "{at:?} knows {key:?}");
                assert_eq!(member.wanted, torrent.count_wanted(member), "wanted of {key:?} at {at:?}");
                assert_eq!(member.far, self.far.contains(at), "{at:?} is far");
            }
            assert_eq!(torrent.leechers, torrent.members.values().filter(|m| m.is_leecher()).count(), "leechers");
            for piece in torrent.geometry.pieces() {
                let (have, open) = (torrent.have.contains(piece), torrent.open.contains(piece));
                assert!(!(have && open), "piece {piece:?} is had and open");
                assert!(!(have && torrent.active.contains_key(&piece)), "piece {piece:?} is had and active");
                let begun = open || torrent.active.contains_key(&piece);
                let may = piece.get() < torrent.known && torrent.wanted.contains(piece);
                assert!(have || begun == may, "piece {piece:?} of {key:?} is lost, or fetched unasked");
            }
            for (piece, active) in &torrent.active {
                let orphan = active.holders().is_empty() && active.is_fetching();
                assert!(!orphan || torrent.begun.contains(piece), "piece {piece:?} of {key:?} is asked of nobody");
            }
        }
    }

    /// Whatever peers do, what we hold for them stays within its limits.
    fn check_limits(&self) {
        let origins = self.conns.values().filter(|conn| conn.dialled && conn.peer.role == Role::Origin).count();
        assert!(self.conns.len() <= self.config.connections_max + origins, "{} connections", self.conns.len());
        let (requested, unverified) = (self.requested_bytes, self.unverified_bytes);
        let longest =
            self.torrents.values().map(|torrent| u64::from(torrent.geometry.piece_length())).max().unwrap_or(0);
        // A second source may be asked for a late piece, without room; and a piece goes out when a byte is free.
        let most = self.config.inflight_bytes_max.max(longest) + longest * (CONTESTED_MAX as u64 + 1);
        assert!(requested + unverified <= most, "{requested} bytes requested and {unverified} not verified");
        for conn in self.conns.values() {
            assert!(conn.remotes.len() <= REMOTES_MAX, "{} torrents opened by a peer", conn.remotes.len());
            assert!(conn.remote_bytes <= REMOTE_BITFIELD_BYTES_MAX, "{} bytes of bitfields", conn.remote_bytes);
            assert!(conn.up.queue.len() <= QUEUE_MAX, "{} blocks queued for a peer", conn.up.queue.len());
        }
        for torrent in self.torrents.values() {
            let origins = torrent.candidates.values().filter(|peer| peer.role == Role::Origin).count();
            assert!(torrent.candidates.len() <= CANDIDATES_MAX + origins, "{} candidates", torrent.candidates.len());
        }
        self.discovery.check_limits();
    }

    /// The alias under which a peer opened a digest that is not open here.
    pub(super) fn waiting_alias(&self, conn: ConnIndex, digest: &Digest) -> Option<crate::wire::Alias> {
        let remotes = &self.conns.get(conn)?.remotes;
        remotes
            .iter()
            .find(|(_, remote)| matches!(remote, Remote::Waiting(waiting) if waiting.digest == *digest))
            .map(|(alias, _)| *alias)
    }
}
