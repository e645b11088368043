//! What peers say: connections that come and go, torrents opened and closed, haves, interest.

use std::net::IpAddr;

use shoal_meta::{Bitfield, Geometry, PeerInfo, PieceIndex, Role};

use super::Swarm;
use crate::connection::{Connection, Interest, REMOTE_BITFIELD_BYTES_MAX, REMOTES_MAX, Remote, Waiting};
use crate::dense::ConnIndex;
use crate::torrent::Member;
use crate::wire::{Alias, LIST_LENGTH_MAX, Message, Opened};
use crate::{ConnId, DisconnectReason, Event, Time, TorrentKey, Violation, Who};

/// Words of one torrent that tell nothing new, after which a peer is a flood. When a torrent is opened what was had may be told again:
/// 256 lists of a million pieces. Nobody asks for the names of peers, which count one by one: 17 words come so when a torrent is opened.
const IDLE_WORDS_MAX: usize = 1024;

impl Swarm {
    /// A connection is up and both Hellos are exchanged; `at` is the address it is with, whatever the peer says. The swarm may answer with `Event::Disconnect` at once: one
    /// connection per pair of peers, a bounded number in all, none to the banned.
    pub fn handle_connected(&mut self, now: Time, conn: ConnId, at: IpAddr, peer: PeerInfo, dialled: bool) {
        self.now = now;
        self.discovery.dialling.remove(&peer.id);
        let who = Who::is(peer.id, at);
        let index = match self.admit(&peer, who, dialled) {
            Ok(index) => index,
            Err(reason) => {
                if reason == DisconnectReason::Surplus {
                    self.back_off(peer.id);
                }
                self.events.push_back(Event::Disconnect { conn, reason });
                return;
            }
        };
        self.discovery.backoff.remove(&peer.id);
        self.by_peer.insert(peer.id, index);
        self.by_id.insert(conn, index);
        if self.me.topology.is_far(&peer.topology) {
            self.far.insert(index);
        }
        if peer.role == Role::Origin {
            self.origins.insert(index);
        }
        self.conns.insert(index, Connection::new(now, conn, peer, who, dialled));
        for key in self.torrents.keys().copied().collect::<Vec<_>>() {
            self.meet(index, key, None, self.torrents[&key].is_leech());
        }
    }

    /// Makes room for a connection.
    fn admit(&mut self, peer: &PeerInfo, who: Who, dialled: bool) -> Result<ConnIndex, DisconnectReason> {
        if peer.id == self.me.id {
            return Err(DisconnectReason::Duplicate);
        }
        if self.discovery.is_banned(who, self.now) {
            return Err(DisconnectReason::Banned);
        }
        if let Some(&old) = self.by_peer.get(&peer.id) {
            // Another host may say that it is this peer, so as to take its place.
            if self.conns[old].who != who {
                return Err(DisconnectReason::Duplicate);
            }
            // Both ends dialled at once: both keep the connection that the lower id dialled. The same end dialled
            // twice: the old connection is dead and it knows.
            let dialler = |dialled: bool| if dialled { self.me.id } else { peer.id };
            let (ours, theirs) = (dialler(self.conns[old].dialled), dialler(dialled));
            if ours < theirs {
                return Err(DisconnectReason::Duplicate);
            }
            self.disconnect(old, DisconnectReason::Duplicate);
        }
        // Those who dial us may be faster than our own dial of the origin: it is never surplus.
        let origin = dialled && peer.role == Role::Origin;
        // Our own dials under way have their room: in a crowd that comes at once the first are dialled by everyone, and
        // would refuse each other.
        let reserved = if dialled { 0 } else { self.reserved() };
        // More than one may have to go: with an origin there is one more than may be, and it may be what goes.
        while !origin && self.conns.len() + reserved >= self.config.connections_max {
            if !self.prune() {
                return Err(DisconnectReason::Surplus);
            }
        }
        self.conns.vacant().ok_or(DisconnectReason::Surplus)
    }

    /// A connection is gone.
    pub fn handle_disconnected(&mut self, now: Time, conn: ConnId) {
        self.now = now;
        if let Some(&conn) = self.by_id.get(&conn) {
            self.back_off(self.conns[conn].peer.id);
            self.forget_conn(conn);
        }
        // The peer may have refused us for want of room: there are others.
        self.dial_all();
    }

    /// What came is no frame: `Event::Disconnect` follows.
    pub fn handle_malformed(&mut self, now: Time, conn: ConnId) {
        self.now = now;
        if let Some(&conn) = self.by_id.get(&conn) {
            self.violate(conn, Violation::Malformed);
        }
    }

    /// A control message came (Hello excepted). When it breaks the protocol, `Event::Disconnect` follows. A message from
    /// a connection that is gone is ignored.
    pub fn handle_message(&mut self, now: Time, conn: ConnId, message: Message) {
        self.now = now;
        let Some(&conn) = self.by_id.get(&conn) else { return };
        let result = match message {
            Message::Hello { .. } => Err(Violation::OutOfPlace),
            Message::OpenTorrent(open) => self.remote_opened(conn, *open),
            Message::CloseTorrent { alias } => self.remote_closed(conn, alias),
            Message::Have { alias, pieces } => self.remote_has(conn, alias, &pieces),
            Message::HaveAll { alias } => self.remote_has_all(conn, alias),
            Message::Interested => self.remote_interested(conn, Interest::Shown),
            Message::NotInterested { no_room: true } => self.remote_interested(conn, Interest::NoRoom),
            Message::NotInterested { no_room: false } => self.remote_interested(conn, Interest::None),
            Message::Unchoke { pieces } => self.unchoked(conn, pieces),
            Message::Choke => self.choked(conn),
            Message::Request { alias, blocks } => self.requested(conn, alias, &blocks),
            Message::Reject { alias, blocks } => self.rejected(conn, alias, &blocks),
            Message::Cancel { alias, blocks } => self.cancelled(conn, alias, &blocks),
            Message::PeerExchange(exchange) => self.exchanged(conn, *exchange),
            Message::FindMetainfo { alias } => self.metainfo_asked(conn, alias),
            Message::MetainfoPart(part) => self.metainfo_part(conn, *part),
            Message::FindPeers(find) => {
                self.asked_for_peers(conn, *find);
                Ok(())
            }
        };
        if let Err(violation) = result {
            self.violate(conn, violation);
        }
    }

    /// Tells a peer that we take part in a torrent.
    pub(super) fn send_open(&mut self, conn: ConnIndex, key: TorrentKey) {
        let (Some(state), Some(torrent)) = (self.conns.get_mut(conn), self.torrents.get(&key)) else { return };
        if !state.opened.insert(key) {
            return;
        }
        let have = if torrent.super_seed.is_some() { Bitfield::empty(&torrent.geometry) } else { torrent.have.clone() };
        let (digest, geometry) = (torrent.digest, torrent.geometry);
        self.send(conn, Opened { alias: key.alias(), digest, geometry, have }.into());
    }

    /// Tells a peer what we got between our OpenTorrent and its own: only members are told as it comes.
    fn catch_up(&mut self, conn: ConnIndex, key: TorrentKey) {
        let torrent = &self.torrents[&key];
        let alias = key.alias();
        if torrent.super_seed.is_some() {
            return;
        }
        if !torrent.is_leech() {
            self.send(conn, Message::HaveAll { alias });
            return;
        }
        let pieces: Vec<u32> = torrent.have.iter().map(PieceIndex::get).collect();
        for pieces in pieces.chunks(LIST_LENGTH_MAX) {
            self.send(conn, Message::Have { alias, pieces: pieces.into() });
        }
    }

    /// Tells a peer that we no longer take part.
    pub(super) fn send_close(&mut self, conn: ConnIndex, key: TorrentKey) {
        if self.conns.get_mut(conn).is_some_and(|state| state.opened.remove(&key)) {
            self.send(conn, Message::CloseTorrent { alias: key.alias() });
        }
    }

    fn remote_opened(&mut self, conn: ConnIndex, open: Opened) -> Result<(), Violation> {
        let Opened { alias, digest, geometry, have } = open;
        let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
        if state.remotes.contains_key(&alias) {
            return Err(Violation::OutOfPlace);
        }
        state.remote_bytes += bitfield_bytes(&geometry);
        if state.remotes.len() >= REMOTES_MAX || state.remote_bytes > REMOTE_BITFIELD_BYTES_MAX {
            return Err(Violation::LimitExceeded("open torrents"));
        }
        state.remotes.insert(alias, Remote::Waiting(Box::new(Waiting { digest, geometry, have })));
        match self.by_digest.get(&digest) {
            Some(&key) if self.conns[conn].opened.contains(&key) => {
                self.catch_up(conn, key);
                self.attach(conn, alias, key);
            }
            Some(&key) => self.meet(conn, key, Some(alias), false),
            None => self.events.push_back(Event::TorrentWanted(digest)),
        }
        Ok(())
    }

    fn remote_closed(&mut self, conn: ConnIndex, alias: Alias) -> Result<(), Violation> {
        if let Some(key) = self.conns.get(conn).and_then(|state| state.attached(alias)) {
            self.detach(conn, key);
        }
        let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
        match state.remotes.remove(&alias).ok_or(Violation::UnknownAlias)? {
            Remote::Waiting(waiting) => state.remote_bytes -= bitfield_bytes(&waiting.geometry),
            Remote::Attached(_) => {}
        }
        state.idle_words.remove(&alias);
        Ok(())
    }

    /// A peer said of a torrent what tells nothing new, or what nobody asked for.
    pub(super) fn idle_words(&mut self, conn: ConnIndex, alias: Alias, words: usize) -> Result<(), Violation> {
        let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
        let said = state.idle_words.entry(alias).or_default();
        *said += words;
        if *said > IDLE_WORDS_MAX { Err(Violation::LimitExceeded("words that tell nothing new")) } else { Ok(()) }
    }

    fn remote_has(&mut self, conn: ConnIndex, alias: Alias, pieces: &[u32]) -> Result<(), Violation> {
        let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
        let mut is_new = false;
        match state.remotes.get_mut(&alias).ok_or(Violation::UnknownAlias)? {
            Remote::Waiting(waiting) => {
                for &piece in pieces {
                    is_new |= waiting.have.insert(waiting.geometry.piece(piece).ok_or(Violation::OutOfRange)?);
                }
            }
            &mut Remote::Attached(key) => {
                let geometry = self.torrents[&key].geometry;
                for &piece in pieces {
                    let piece = geometry.piece(piece).ok_or(Violation::OutOfRange)?;
                    is_new |= self.member_has(conn, key, piece);
                }
                self.had_pieces(conn, key);
            }
        }
        if is_new { Ok(()) } else { self.idle_words(conn, alias, 1) }
    }

    fn remote_has_all(&mut self, conn: ConnIndex, alias: Alias) -> Result<(), Violation> {
        let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
        let is_new = match state.remotes.get_mut(&alias).ok_or(Violation::UnknownAlias)? {
            Remote::Waiting(waiting) => {
                let is_new = !waiting.have.is_full();
                waiting.have = Bitfield::full(&waiting.geometry);
                is_new
            }
            &mut Remote::Attached(key) => {
                let pieces = self.torrents[&key].geometry.pieces();
                let new = pieces.filter(|&piece| self.member_has(conn, key, piece)).count();
                self.had_pieces(conn, key);
                new > 0
            }
        };
        if is_new { Ok(()) } else { self.idle_words(conn, alias, 1) }
    }

    /// Tells whether that was new.
    fn member_has(&mut self, conn: ConnIndex, key: TorrentKey, piece: PieceIndex) -> bool {
        let Some(torrent) = self.torrents.get_mut(&key) else { return false };
        let across = torrent.across(piece);
        let Some(member) = torrent.members.get_mut(conn) else { return false };
        let leecher = member.is_leecher();
        if !member.have.insert(piece) {
            return false;
        }
        let far = member.far;
        torrent.availability.add(piece);
        if far {
            torrent.far.add(piece);
        }
        if leecher && !member.is_leecher() {
            torrent.leechers -= 1;
            torrent.idle_since = (torrent.leechers == 0).then_some(self.now);
        }
        if torrent.open.contains(piece) && !far {
            member.wanted += 1;
            if let (1, Some(state)) = (member.wanted, self.conns.get_mut(conn)) {
                state.down.wanted += 1;
                self.dirty.interest.insert(conn);
            }
            if self.allowed.contains(conn) {
                self.dirty.holding.insert(conn);
            }
        }
        if let Some(seed) = &mut torrent.super_seed {
            if member.revealed.contains(piece) {
                member.unfetched -= 1;
                seed.settle(piece);
            }
            self.dirty.reveal.insert((key, conn));
        }
        if !far {
            self.near_has(key, piece, across);
        }
        true
    }

    /// What follows from pieces that a member got.
    fn had_pieces(&mut self, conn: ConnIndex, key: TorrentKey) {
        self.recount_member(conn, key);
        self.ask_for_metainfo(key);
        self.end_super_seed(key);
        self.part_if_both_full(conn, key);
    }

    /// Brings together a torrent open here and the peer's side of it. One who cuts the blob otherwise, as another build may, is
    /// no member: the torrent's peers are those who cut it alike.
    pub(super) fn attach(&mut self, conn: ConnIndex, alias: Alias, key: TorrentKey) {
        let (Some(state), Some(torrent)) = (self.conns.get_mut(conn), self.torrents.get_mut(&key)) else { return };
        let Some(remote) = state.remotes.get_mut(&alias) else { return };
        let Remote::Waiting(waiting) = remote else { return };
        if waiting.geometry != torrent.geometry {
            return;
        }
        if state.shared.contains(&key) {
            self.violate(conn, Violation::OutOfPlace);
            return;
        }
        let have = std::mem::replace(&mut waiting.have, Bitfield::empty(&torrent.geometry));
        *remote = Remote::Attached(key);
        torrent.availability.add_all(&have);
        state.up.piece_length = state.up.piece_length.max(u64::from(torrent.geometry.piece_length()));
        let revealed = Bitfield::empty(&torrent.geometry);
        let (role, far, told) = (state.peer.role, self.far.contains(conn), torrent.gained.len());
        if far {
            torrent.far.add_all(&have);
        }
        let mut member = Member { alias, role, far, have, wanted: 0, revealed, unfetched: 0, told };
        member.wanted = torrent.count_wanted(&member);
        state.down.wanted += u32::from(member.wanted > 0);
        if member.is_leecher() {
            torrent.leechers += 1;
            torrent.idle_since = None;
        }
        torrent.members.insert(conn, member);
        self.moved_at = self.now;
        state.shared.insert(key);
        self.dirty.interest.insert(conn);
        if torrent.super_seed.is_some() {
            self.dirty.reveal.insert((key, conn));
        }
        self.note_serving(conn);
        if !far {
            self.recount_far(key);
        }
        self.end_super_seed(key);
        self.introduce(conn, key);
        self.ask_for_metainfo(key);
        self.part_if_both_full(conn, key);
    }

    /// Takes a peer out of a torrent; what it was asked for is open again.
    pub(super) fn detach(&mut self, conn: ConnIndex, key: TorrentKey) {
        let Some(member) = self.torrents.get(&key).and_then(|torrent| torrent.members.get(conn)) else { return };
        let alias = member.alias;
        self.take_back(conn, key, alias, |_| true);
        self.drop_uploads(conn, key);
        let (Some(state), Some(torrent)) = (self.conns.get_mut(conn), self.torrents.get_mut(&key)) else { return };
        let Some(member) = torrent.members.remove(conn) else { return };
        state.shared.remove(&key);
        state.down.wanted -= u32::from(member.wanted > 0);
        torrent.availability.remove_all(&member.have);
        if member.far {
            torrent.far.remove_all(&member.have);
        }
        if let Some(seed) = &mut torrent.super_seed {
            let unfetched = member.revealed.iter().filter(|&piece| !member.have.contains(piece));
            unfetched.for_each(|piece| seed.settle(piece));
        }
        if member.is_leecher() {
            torrent.leechers -= 1;
            torrent.idle_since = (torrent.leechers == 0).then_some(self.now);
        }
        self.dirty.interest.insert(conn);
        self.dirty.slots = true;
        if let Some(remote) = state.remotes.get_mut(&member.alias) {
            let waiting = Waiting { digest: torrent.digest, geometry: torrent.geometry, have: member.have };
            *remote = Remote::Waiting(Box::new(waiting));
        }
        let longest = state.shared.iter().map(|key| u64::from(self.torrents[key].geometry.piece_length())).max();
        state.up.piece_length = longest.unwrap_or(0);
        self.note_serving(conn);
        self.metainfo_lost(conn, key);
        self.recount_far(key);
    }

    /// Two seeders have nothing to tell each other about a torrent.
    pub(super) fn part_if_both_full(&mut self, conn: ConnIndex, key: TorrentKey) {
        let parting = self.torrents.get(&key).is_some_and(|torrent| {
            let full = torrent.members.get(conn).is_some_and(|member| member.have.is_full());
            full && !torrent.is_leech() && torrent.super_seed.is_none()
        });
        if parting {
            self.detach(conn, key);
            self.send_close(conn, key);
        }
    }
}

fn bitfield_bytes(geometry: &Geometry) -> usize {
    geometry.piece_count().div_ceil(8) as usize
}
