//! Whom we know: candidates to dial, peer exchange, searches among neighbours, bans.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{Rng as _, RngExt as _};
use shoal_meta::{Digest, PeerId, PeerInfo, Role};

use super::Swarm;
use crate::dense::ConnIndex;
use crate::torrent::{CANDIDATES_MAX, Member};
use crate::wire::{FindPeers, PEERS_LENGTH_MAX, PeerExchange};
use crate::{ConnId, DisconnectReason, Event, Time, TorrentKey, Violation, Who};

/// Candidates that are all dialled: in a small swarm everyone is connected to everyone.
const DIALS_MIN: usize = 16;
/// Peers in other zones that a leader is connected to for a torrent: as many as a random quarter of a handout.
const FAR_DIALS: usize = 12;
/// Members told to a newcomer.
const INTRODUCTIONS: usize = 16;
/// Neighbours asked in one search.
const SEARCH_NEIGHBOURS: usize = 8;
/// How long a leecher without peers waits between searches.
const SEARCH_INTERVAL: Duration = Duration::from_secs(2);
/// Searches of others remembered, to drop repeats and carry answers back.
const QUERIES_MAX: usize = 1024;
/// Of those, from one peer: one that floods us takes no room from the others, and is not answered at their cost.
const QUERIES_PER_PEER_MAX: usize = 64;
/// Bans and back-offs remembered.
const GRUDGES_MAX: usize = 4096;
/// The longest ban.
const BAN_MAX: Duration = Duration::from_secs(3600);
/// A connection younger than this is not pruned: its torrents may be about to open.
const GRACE: Duration = Duration::from_secs(5);
/// How long no piece comes of a torrent before as many are dialled as may be: those we are connected to may lack the same.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of peers we are not connected to.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    /// Dials under way, and the torrent each is for.
    pub(super) dialling: BTreeMap<PeerId, TorrentKey>,
    /// Peers not to be dialled before a time, and how often that happened.
    pub(super) backoff: BTreeMap<PeerId, (Time, u32)>,
    banned: BTreeMap<Who, Ban>,
    /// Searches seen: who asked us, for what, until when that matters.
    queries: BTreeMap<u64, (Option<ConnId>, Digest, Time)>,
}

/// Somebody is kept out until a time, and that is remembered for as long again: one that offends meanwhile is kept out for twice
/// as long.
#[derive(Debug, Clone, Copy)]
struct Ban {
    until: Time,
    length: Duration,
}

impl Ban {
    fn is_remembered(&self, now: Time) -> bool {
        now < self.until + self.length
    }
}

impl Discovery {
    pub(super) fn is_banned(&self, who: Who, now: Time) -> bool {
        self.banned.get(&who).is_some_and(|ban| now < ban.until)
    }

    /// Panics when more is remembered than may be.
    pub(super) fn check_limits(&self) {
        assert!(self.backoff.len() <= GRUDGES_MAX && self.banned.len() <= GRUDGES_MAX, "grudges");
        assert!(self.queries.len() <= QUERIES_MAX, "{} searches", self.queries.len());
    }

    pub(super) fn forget(&mut self, key: TorrentKey) {
        self.dialling.retain(|_, of| *of != key);
    }

    fn is_avoided(&self, peer: &PeerInfo, now: Time) -> bool {
        self.is_banned(Who::is(peer.id, peer.address.ip()), now)
            || self.backoff.get(&peer.id).is_some_and(|(until, _)| now < *until)
    }
}

impl Swarm {
    /// Peers known to take part (from the tracker, or the origin of a metainfo): candidates to dial.
    pub fn add_peers(&mut self, now: Time, torrent: TorrentKey, peers: &[PeerInfo]) {
        self.now = now;
        let Some(state) = self.torrents.get_mut(&torrent) else { return };
        for peer in peers {
            if peer.id != self.me.id && (state.candidates.len() < CANDIDATES_MAX || peer.role == Role::Origin) {
                state.candidates.insert(peer.id, peer.clone());
            }
        }
        self.dial_for(torrent);
    }

    /// A peer says that others take part. That may be made up: it takes half of the room at most, says nothing of peers
    /// that we know of, and makes nobody an origin.
    fn hear_of(&mut self, key: TorrentKey, peers: &[PeerInfo]) {
        let Some(torrent) = self.torrents.get_mut(&key) else { return };
        for peer in peers.iter().filter(|peer| peer.id != self.me.id) {
            if torrent.candidates.len() < CANDIDATES_MAX / 2 && !torrent.candidates.contains_key(&peer.id) {
                torrent.candidates.insert(peer.id, PeerInfo { role: Role::Agent, ..peer.clone() });
            }
        }
        self.dial_for(key);
    }

    /// A dial asked for by `Event::Dial` failed.
    pub fn handle_dial_failed(&mut self, now: Time, peer: PeerId) {
        self.now = now;
        if let Some(key) = self.discovery.dialling.remove(&peer) {
            self.back_off(peer);
            self.dial_for(key);
        }
    }

    pub(super) fn back_off(&mut self, peer: PeerId) {
        if self.discovery.backoff.len() >= GRUDGES_MAX {
            self.discovery.backoff.pop_first();
        }
        let entry = self.discovery.backoff.entry(peer).or_insert((self.now, 0));
        entry.1 = (entry.1 + 1).min(6);
        entry.0 = self.now + self.config.redial_delay * (1 << (entry.1 - 1)) / 2;
    }

    /// Closes the connections to somebody, and keeps them out for a while.
    pub(super) fn ban(&mut self, who: Who, reason: DisconnectReason) {
        let banned = &mut self.discovery.banned;
        let first = self.config.ban_first;
        let last = banned.get(&who).filter(|ban| ban.is_remembered(self.now));
        let length = last.map_or(first, |ban| (ban.length * 2).min(BAN_MAX));
        if banned.len() >= GRUDGES_MAX {
            banned.pop_first();
        }
        banned.insert(who, Ban { until: self.now + length, length });
        self.events.push_back(Event::Banned { who, length });
        let theirs: Vec<_> = self.conns.iter().filter(|(_, conn)| conn.who == who).map(|(conn, _)| conn).collect();
        theirs.into_iter().for_each(|conn| self.disconnect(conn, reason));
    }

    /// Dials candidates of a torrent we lack pieces of until enough are members: a share of the connections we may have, and
    /// no more than half of those we know unless they are few. The others dial us; and in a crowd that comes at once the
    /// first to come know only each other, and would fill up with each other. A leader of its zone dials some far ones.
    pub(super) fn dial_for(&mut self, key: TorrentKey) {
        let Some(torrent) = self.torrents.get(&key).filter(|torrent| torrent.is_leech()) else { return };
        let known = torrent.candidates.values().filter(|peer| !self.is_far(peer)).count();
        let (crosses, room) = (torrent.crossing.is_some(), self.config.connections_soft_max);
        let enough = (known / 2).max(DIALS_MIN).min(room * 4 / 5).max(1);
        let stuck = self.now.since(torrent.gained_at) >= PATIENCE;
        self.dial_some(key, false, if stuck { room } else { enough }, room);
        if crosses {
            self.dial_some(key, true, FAR_DIALS, self.config.connections_max);
        }
    }

    /// Dials near or far candidates, an origin first, the rest at random, until so many are members or under way. An origin
    /// is never one too many: after it was away everyone is connected to others, and all of them lack the same pieces.
    fn dial_some(&mut self, key: TorrentKey, far: bool, target: usize, room: usize) {
        let torrent = &self.torrents[&key];
        let mut reached = torrent.members.values().filter(|member| member.far == far).count();
        let dialling = self.discovery.dialling.iter().filter(|(_, of)| **of == key);
        let dialled = dialling.filter_map(|(peer, _)| torrent.candidates.get(peer));
        reached += dialled.filter(|peer| self.is_far(peer) == far).count();
        let is_ready = |peer: &&PeerInfo| {
            self.is_far(peer) == far
                && !self.by_peer.contains_key(&peer.id)
                && !self.discovery.dialling.contains_key(&peer.id)
                && !self.discovery.is_avoided(peer, self.now)
        };
        let concerned = torrent.candidates.values().filter(|peer| reached < target || peer.role == Role::Origin);
        let mut ready: Vec<PeerInfo> = concerned.filter(is_ready).cloned().collect();
        while !ready.is_empty() {
            let origin = ready.iter().position(|peer| peer.role == Role::Origin);
            let full = self.conns.len() + self.discovery.dialling.len() >= room;
            if origin.is_none() && (reached >= target || (full && !self.prune())) {
                return;
            }
            let index = origin.unwrap_or_else(|| self.rng.random_range(0..ready.len()));
            let peer = ready.swap_remove(index);
            self.discovery.dialling.insert(peer.id, key);
            self.events.push_back(Event::Dial(peer));
            reached += 1;
        }
    }

    fn is_far(&self, peer: &PeerInfo) -> bool {
        self.me.topology.is_far(&peer.topology)
    }

    /// Connections to leave free when others dial us: for our dials under way, and for the far ones of a leader. Half of all
    /// at most: where everyone keeps every place for those it dials, nobody is let in anywhere.
    pub(super) fn reserved(&self) -> usize {
        let leads = self.torrents.values().any(|torrent| torrent.is_leech() && torrent.crossing.is_some());
        let far = if leads { FAR_DIALS.saturating_sub(self.far.iter().count()) } else { 0 };
        self.discovery.dialling.len().max(far).min(self.config.connections_max / 2)
    }

    /// Dials for every torrent we lack pieces of.
    pub(super) fn dial_all(&mut self) {
        for key in self.torrents.keys().copied().collect::<Vec<_>>() {
            self.dial_for(key);
        }
    }

    /// Makes room by closing the least useful connection: one that shares no torrent and moves nothing.
    pub(super) fn prune(&mut self) -> bool {
        let useless = self
            .conns
            .iter()
            .filter(|(_, c)| c.is_useless() && self.now.since(c.connected_at) > GRACE)
            .min_by(|(_, a), (_, b)| {
                let moved = |c: &crate::connection::Connection| c.down.rate.get(self.now) + c.up.rate.get(self.now);
                moved(a).total_cmp(&moved(b))
            })
            .map(|(conn, _)| conn);
        if let Some(conn) = useless {
            self.disconnect(conn, DisconnectReason::Surplus);
        }
        useless.is_some()
    }

    /// Tells a newcomer some of the torrent's other members (peer exchange, BEP 11).
    pub(super) fn introduce(&mut self, conn: ConnIndex, key: TorrentKey) {
        let torrent = &self.torrents[&key];
        if torrent.members.len() < 2 || !torrent.members.get(conn).is_some_and(Member::is_leecher) {
            return;
        }
        let mut others: Vec<_> = torrent.members.indices().iter().filter(|&other| other != conn).collect();
        let mut peers = Vec::new();
        while peers.len() < INTRODUCTIONS && !others.is_empty() {
            let other = others.swap_remove(self.rng.random_range(0..others.len()));
            peers.push(self.conns[other].peer.clone());
        }
        let digest = torrent.digest;
        self.send(conn, PeerExchange { digest, peers, query: None }.into());
    }

    /// A peer told us of others: candidates, and maybe the answer to a search that another asked us. It goes back the way
    /// the search came: passed on to all who search for the blob, two who search for the same would never stop.
    pub(super) fn exchanged(&mut self, conn: ConnIndex, exchange: PeerExchange) -> Result<(), Violation> {
        let PeerExchange { digest, peers, query } = &exchange;
        if let Some(&key) = self.by_digest.get(digest) {
            self.hear_of(key, peers);
        }
        if query.is_none() {
            let member = self.by_digest.get(digest).and_then(|key| self.torrents[key].members.get(conn));
            let alias = member.map(|member| member.alias).or_else(|| self.waiting_alias(conn, digest));
            alias.map_or(Ok(()), |alias| self.idle_words(conn, alias, 1 + peers.len()))?;
        }
        let asker = query.and_then(|query| self.asker(query, digest)).filter(|asker| *asker != conn);
        if let Some(asker) = asker {
            self.send(asker, exchange.into());
        }
        Ok(())
    }

    /// Who asked us a search that still matters.
    fn asker(&self, query: u64, digest: &Digest) -> Option<ConnIndex> {
        let (asker, of, until) = self.discovery.queries.get(&query)?;
        let asked = of == digest && self.now < *until;
        if asked { self.by_id.get(&(*asker)?).copied() } else { None }
    }

    /// A neighbour searches for peers: answer what we know, and pass the search on while it has hops left.
    pub(super) fn asked_for_peers(&mut self, conn: ConnIndex, find: FindPeers) {
        let FindPeers { digest, hops, query } = find;
        if !self.remember_query(query, self.conns.get(conn).map(|state| state.id), digest) {
            return;
        }
        match self.by_digest.get(&digest).and_then(|key| self.torrents.get(key)) {
            Some(torrent) => {
                let others = torrent.members.iter().filter(|(other, _)| *other != conn);
                let mut peers: Vec<_> = others.map(|(other, _)| self.conns[other].peer.clone()).collect();
                peers.truncate(PEERS_LENGTH_MAX - 1);
                if !torrent.have.is_empty() {
                    peers.push(self.me.clone());
                }
                self.send(conn, PeerExchange { digest, peers, query: Some(query) }.into());
            }
            None => self.events.push_back(Event::FindTorrent { digest, query }),
        }
        if hops > 1 {
            self.search(digest, hops - 1, query, Some(conn));
        }
    }

    /// The answer to an `Event::FindTorrent`: whether the store holds the blob.
    pub fn handle_find_answer(&mut self, now: Time, query: u64, digest: Digest, held: bool) {
        self.now = now;
        if let (true, Some(asker)) = (held, self.asker(query, &digest)) {
            let peers = vec![self.me.clone()];
            self.send(asker, PeerExchange { digest, peers, query: Some(query) }.into());
        }
    }

    fn remember_query(&mut self, query: u64, asker: Option<ConnId>, digest: Digest) -> bool {
        let now = self.now;
        if self.discovery.queries.len() >= QUERIES_MAX {
            self.discovery.queries.retain(|_, (_, _, until)| now < *until);
            if self.discovery.queries.len() >= QUERIES_MAX {
                return false;
            }
        }
        let of_peer = |(of, _, until): &&(Option<ConnId>, Digest, Time)| *of == asker && now < *until;
        if asker.is_some() && self.discovery.queries.values().filter(of_peer).count() >= QUERIES_PER_PEER_MAX {
            return false;
        }
        let until = now + SEARCH_INTERVAL * 4;
        let entry = self.discovery.queries.entry(query);
        let new = matches!(entry, std::collections::btree_map::Entry::Vacant(_));
        entry.or_insert((asker, digest, until));
        new
    }

    fn search(&mut self, digest: Digest, hops: u32, query: u64, not: Option<ConnIndex>) {
        let mut neighbours: Vec<_> = self.conns.indices().iter().filter(|&conn| Some(conn) != not).collect();
        for _ in 0..SEARCH_NEIGHBOURS.min(neighbours.len()) {
            let conn = neighbours.swap_remove(self.rng.random_range(0..neighbours.len()));
            self.send(conn, FindPeers { digest, hops, query }.into());
        }
    }

    /// Leechers without peers search among neighbours, two hops far (the seeds' Spotify overlay).
    pub(super) fn search_for_lonely(&mut self) {
        let now = self.now;
        let lonely: Vec<_> = self
            .torrents
            .iter()
            .filter(|(_, t)| t.is_leech() && t.members.is_empty() && now.since(t.searched_at) >= SEARCH_INTERVAL)
            .map(|(&key, torrent)| (key, torrent.digest))
            .collect();
        for (key, digest) in lonely {
            let query = self.rng.next_u64();
            self.remember_query(query, None, digest);
            self.search(digest, 2, query, None);
            if let Some(torrent) = self.torrents.get_mut(&key) {
                torrent.searched_at = now;
            }
        }
    }

    /// Forgets grudges and searches that have run out.
    pub(super) fn expire_grudges(&mut self) {
        let now = self.now;
        self.discovery.banned.retain(|_, ban| ban.is_remembered(now));
        self.discovery.queries.retain(|_, (_, _, until)| now < *until);
    }
}
