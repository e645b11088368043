//! The tracker's soft state: peers with leases, torrents with members, and whom to hand out.
//!
//! Sans-IO: the gRPC service calls it, and the simulator may. Time is passed in and randomness is a seeded generator, so
//! the same calls give the same answers. It must not know of gRPC, clocks, locks or metrics.
//!
//! All of it may be lost at any time: a peer the tracker does not know is told to announce in full.
//!
//! What is handed out of a peer is a card `C`, made once when the peer comes or changes and cloned for each handout: the
//! service has its message encoded in it, tests have the peer itself.
//!
//! Inputs: [`State::announce`], [`State::leave`], [`State::expire`]. Outputs: [`State::poll_timeout`] and the getters.
//! An announced torrent costs O(peers handed out), however many members it has.

mod handout;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod torrent;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rand_pcg::Pcg64;
use shoal_kit::incoming::SHARES;
use shoal_meta::{Digest, Lead, PeerId, PeerInfo};
use slab::Slab;

pub use handout::{NEAR_SHARE_OF_4, ORIGINS_MAX};

use handout::Lottery;
use torrent::{Member, Scope, Standing, Torrent};

/// How many peers one answer holds at most, over all its torrents: at 200 bytes each it stays under gRPC's usual 4 MiB.
pub const ANSWER_PEERS_MAX: usize = 10_000;
/// How many peers one call of [`State::expire`] forgets at most, so that the others need not wait for long.
pub const EXPIRE_MAX: usize = 64;

/// Agents of a zone that fetch a blob across: two, so that one may be lost.
pub const LEADERS_MAX: usize = 2;

/// The bounds of the state. One member of one torrent costs about 150 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Peers known at a time; a further one is refused.
    pub peers_max: usize,
    /// Torrents recorded for one peer; further ones are answered but not recorded.
    pub torrents_per_peer_max: usize,
    /// Members recorded for one torrent; further ones are answered but not recorded.
    pub members_max: usize,
    /// Members recorded over all torrents; further ones are answered but not recorded.
    pub memberships_max: usize,
    /// Peers handed out for one torrent.
    pub handout_max: usize,
}

/// What a peer has of a torrent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Holding {
    /// Downloading: has some pieces, wants the rest.
    Leeching,
    /// Holds the whole verified blob.
    Seeding,
}

/// One call of a peer: what changed, or all it has.
#[derive(Clone, Debug)]
pub struct Announce {
    /// Who announces.
    pub peer: PeerInfo,
    /// Where it announces from; `None` takes from nobody's share.
    pub from: Option<IpAddr>,
    /// Whether `torrents` is all the peer has; what is not listed is forgotten then.
    pub full: bool,
    /// The torrents, applied in order.
    pub torrents: Vec<TorrentAnnounce>,
}

/// One torrent of an announce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TorrentAnnounce {
    /// Which.
    pub digest: Digest,
    /// What the peer has of it; `None` when it no longer has it.
    pub holding: Option<Holding>,
    /// How many peers to hand out; capped by [`Limits::handout_max`].
    pub peers_wanted: u32,
}

/// The answer to an announce.
#[derive(Clone, Debug)]
pub struct Answer<C> {
    /// The tracker does not know all the peer has: it shall announce in full.
    pub resync: bool,
    /// One entry for each torrent with peers wanted, in the order of the announce.
    pub handouts: Vec<Handout<C>>,
}

/// The peers to dial for one torrent.
#[derive(Clone, Debug)]
pub struct Handout<C> {
    /// Which torrent.
    pub digest: Digest,
    /// Nearest first, then random ones, origins last; never the asker.
    pub peers: Vec<C>,
    /// The asker's part when it is a leader of its zone.
    pub lead: Option<Lead>,
}

/// Says why an announce is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// There are as many peers as the tracker takes. Retryable after the next interval; the operator may raise the limit.
    #[error("the tracker knows {peers_max} peers already and takes no more")]
    PeersFull {
        /// The limit.
        peers_max: usize,
    },
    /// As many peers announce from one address as may. Retryable after the next interval; behind an address translation the
    /// operator may raise the limit of all peers.
    #[error("{peers_max} peers announce from {address} already, and no more may")]
    ShareFull {
        /// The address.
        address: IpAddr,
        /// Its share of the limit.
        peers_max: usize,
    },
}

/// How much there is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    /// Peers with a lease.
    pub peers: usize,
    /// Torrents with at least one member.
    pub torrents: usize,
    /// Members over all torrents.
    pub memberships: usize,
    /// Of those, the seeding ones.
    pub seeding: usize,
}

/// What has happened since the start. None of it ever falls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Announces answered.
    pub announces: u64,
    /// Announces refused because there were too many peers.
    pub announces_refused: u64,
    /// Torrents in the announces answered.
    pub torrents_announced: u64,
    /// Torrents that were answered but not recorded, because a limit was reached.
    pub torrents_unrecorded: u64,
    /// Peers handed out.
    pub peers_handed_out: u64,
    /// Answers that asked for a full announce.
    pub resyncs: u64,
    /// Peers forgotten because their lease ran out.
    pub lease_expiries: u64,
    /// Peers that left by themselves.
    pub leaves: u64,
}

/// The tracker's state. See the module's documentation.
#[derive(Debug)]
pub struct State<C> {
    limits: Limits,
    lease: Duration,
    card: fn(&PeerInfo) -> C,
    peers: Slab<Peer<C>>,
    peers_by_id: HashMap<PeerId, u32>,
    /// What came from each address.
    shares: HashMap<IpAddr, Share>,
    /// Exactly one entry for each peer: when its lease ends.
    leases: BTreeSet<(Instant, u32)>,
    torrents: Slab<Torrent>,
    torrents_by_digest: HashMap<Digest, u32>,
    lottery: Lottery,
    memberships: usize,
    seeding: usize,
    counters: Counters,
}

/// How much came from one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    peers: usize,
    memberships: usize,
}

/// A peer with a lease.
#[derive(Debug)]
struct Peer<C> {
    info: PeerInfo,
    /// Where it came from first.
    from: Option<IpAddr>,
    card: C,
    standing: Standing,
    lease_end: Instant,
    /// Whether it has announced in full since it became known.
    synced: bool,
    /// Its torrents, by their keys. Ordered, because whole lists of it are walked and the order must not be chance.
    torrents: BTreeMap<u32, Member>,
}

impl<C: Clone> State<C> {
    /// An empty state. A peer that does not announce within `lease` is forgotten by [`Self::expire`]; `card` makes what
    /// is handed out of a peer.
    #[must_use]
    pub fn new(limits: Limits, lease: Duration, card: fn(&PeerInfo) -> C, rng: Pcg64) -> Self {
        Self {
            limits,
            lease,
            card,
            peers: Slab::new(),
            peers_by_id: HashMap::new(),
            shares: HashMap::new(),
            leases: BTreeSet::new(),
            torrents: Slab::new(),
            torrents_by_digest: HashMap::new(),
            lottery: Lottery::new(rng),
            memberships: 0,
            seeding: 0,
            counters: Counters::default(),
        }
    }

    /// How much there is now.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes {
            peers: self.peers.len(),
            torrents: self.torrents.len(),
            memberships: self.memberships,
            seeding: self.seeding,
        }
    }

    /// What has happened since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// When the first lease ends, so when [`Self::expire`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.leases.first().map(|(end, _)| *end)
    }

    /// Records what a peer has, renews its lease and hands out peers. Repeating an announce only renews the lease.
    ///
    /// # Errors
    /// When the peer is new and there are too many already.
    pub fn announce(&mut self, now: Instant, announce: &Announce) -> Result<Answer<C>, AnnounceError> {
        let peer = self.admit(now, &announce.peer, announce.from)?;
        if announce.full {
            self.forget_unlisted(peer, &announce.torrents);
            self.peers[peer as usize].synced = true;
        }
        let resync = !self.peers[peer as usize].synced;
        let mut answer = Answer { resync, handouts: Vec::new() };
        let mut left = ANSWER_PEERS_MAX;
        for torrent in &announce.torrents {
            self.record(peer, torrent);
            if torrent.peers_wanted > 0 {
                let wanted = (torrent.peers_wanted as usize).min(self.limits.handout_max).min(left);
                let (peers, lead) = (self.hand_out(peer, &torrent.digest, wanted), self.lead(peer, &torrent.digest));
                left -= peers.len();
                answer.handouts.push(Handout { digest: torrent.digest, peers, lead });
            }
        }
        self.counters.announces += 1;
        self.counters.resyncs += u64::from(resync);
        self.counters.torrents_announced += announce.torrents.len() as u64;
        self.counters.peers_handed_out += (ANSWER_PEERS_MAX - left) as u64;
        Ok(answer)
    }

    /// Forgets a peer at once; `false` when it is not known.
    pub fn leave(&mut self, id: &PeerId) -> bool {
        let Some(&peer) = self.peers_by_id.get(id) else {
            return false;
        };
        self.forget(peer);
        self.counters.leaves += 1;
        true
    }

    /// Forgets peers whose lease has run out, at most [`EXPIRE_MAX`] of them, and says how many it forgot.
    pub fn expire(&mut self, now: Instant) -> usize {
        for forgotten in 0..EXPIRE_MAX {
            match self.leases.first() {
                Some(&(end, peer)) if end <= now => self.forget(peer),
                Some(_) | None => return forgotten,
            }
            self.counters.lease_expiries += 1;
        }
        EXPIRE_MAX
    }

    /// Finds or takes in a peer, with a lease from now on and its latest address and standing.
    fn admit(&mut self, now: Instant, info: &PeerInfo, from: Option<IpAddr>) -> Result<u32, AnnounceError> {
        let lease_end = now + self.lease;
        if let Some(&key) = self.peers_by_id.get(&info.id) {
            let peer = &mut self.peers[key as usize];
            self.leases.remove(&(peer.lease_end, key));
            self.leases.insert((lease_end, key));
            peer.lease_end = lease_end;
            if peer.info != *info {
                self.update(key, info);
            }
            return Ok(key);
        }
        if self.peers.len() >= self.limits.peers_max {
            self.counters.announces_refused += 1;
            return Err(AnnounceError::PeersFull { peers_max: self.limits.peers_max });
        }
        let peers_max = share_of(self.limits.peers_max);
        if let Some(address) = from.filter(|from| self.share(*from).peers >= peers_max) {
            self.counters.announces_refused += 1;
            return Err(AnnounceError::ShareFull { address, peers_max });
        }
        if let Some(from) = from {
            self.shares.entry(from).or_default().peers += 1;
        }
        let key = self.peers.insert(Peer {
            info: info.clone(),
            from,
            card: (self.card)(info),
            standing: Standing::of(info),
            lease_end,
            synced: false,
            torrents: BTreeMap::new(),
        }) as u32;
        self.peers_by_id.insert(info.id, key);
        self.leases.insert((lease_end, key));
        Ok(key)
    }

    fn share(&self, from: IpAddr) -> Share {
        self.shares.get(&from).copied().unwrap_or_default()
    }

    /// Takes a peer's new address, role or topology.
    fn update(&mut self, key: u32, info: &PeerInfo) {
        let standing = Standing::of(info);
        let moves = self.peers[key as usize].standing != standing;
        let torrents = if moves { self.forget_torrents(key, |_| true) } else { Vec::new() };
        let peer = &mut self.peers[key as usize];
        peer.info = info.clone();
        peer.card = (self.card)(info);
        peer.standing = standing;
        for (digest, holding) in torrents {
            self.enter(key, &digest, holding);
        }
    }

    fn forget(&mut self, key: u32) {
        self.forget_torrents(key, |_| true);
        let peer = self.peers.remove(key as usize);
        if let Some(from) = peer.from {
            let share = self.shares.entry(from).or_default();
            share.peers -= 1;
            if share.peers == 0 {
                self.shares.remove(&from);
            }
        }
        self.peers_by_id.remove(&peer.info.id);
        self.leases.remove(&(peer.lease_end, key));
    }

    /// Takes a peer out of the torrents that a full announce does not list.
    fn forget_unlisted(&mut self, key: u32, listed: &[TorrentAnnounce]) {
        let keys = listed.iter().filter_map(|torrent| self.torrents_by_digest.get(&torrent.digest).copied());
        let listed: BTreeSet<u32> = keys.collect();
        self.forget_torrents(key, |torrent| !listed.contains(&torrent));
    }

    /// Takes a peer out of some of its torrents; gives what it had of them.
    fn forget_torrents(&mut self, key: u32, which: impl Fn(u32) -> bool) -> Vec<(Digest, Holding)> {
        let members = self.peers[key as usize].torrents.iter().filter(|(torrent, _)| which(**torrent));
        let members: Vec<_> = members.map(|(torrent, member)| (*torrent, member.holding)).collect();
        let forget = |(torrent, holding): (u32, Holding)| {
            let digest = self.torrents[torrent as usize].digest;
            self.withdraw(key, torrent);
            (digest, holding)
        };
        members.into_iter().map(forget).collect()
    }

    /// Applies one torrent of an announce, within the limits.
    fn record(&mut self, key: u32, announce: &TorrentAnnounce) {
        let torrent = self.torrents_by_digest.get(&announce.digest).copied();
        let from = self.peers[key as usize].from;
        let share = from.map_or(0, |from| self.share(from).memberships);
        let peer = &mut self.peers[key as usize];
        let torrents = peer.torrents.len();
        let member = torrent.and_then(|torrent| Some((torrent, peer.torrents.get_mut(&torrent)?)));
        match (member, announce.holding) {
            (None, None) => {}
            (Some((torrent, _)), None) => self.withdraw(key, torrent),
            (Some((_, member)), Some(holding)) => {
                self.seeding -= usize::from(member.holding == Holding::Seeding);
                self.seeding += usize::from(holding == Holding::Seeding);
                member.holding = holding;
            }
            (None, Some(holding)) => {
                let members = torrent.map_or(0, |torrent| self.torrents[torrent as usize].members());
                let room = torrents < self.limits.torrents_per_peer_max
                    && members < self.limits.members_max
                    && self.memberships < self.limits.memberships_max
                    && share < share_of(self.limits.memberships_max);
                if room {
                    self.enter(key, &announce.digest, holding);
                } else {
                    self.counters.torrents_unrecorded += 1;
                }
            }
        }
    }

    /// Makes a peer a member of a torrent it is not a member of.
    fn enter(&mut self, key: u32, digest: &Digest, holding: Holding) {
        let torrents = &mut self.torrents;
        let entry = self.torrents_by_digest.entry(*digest);
        let torrent = *entry.or_insert_with(|| torrents.insert(Torrent::new(*digest)) as u32);
        let peer = &mut self.peers[key as usize];
        let spots = Scope::ALL.map(|scope| self.torrents[torrent as usize].push(&peer.standing, scope, key));
        peer.torrents.insert(torrent, Member { holding, spots });
        if let Some(from) = peer.from {
            self.shares.entry(from).or_default().memberships += 1;
        }
        self.memberships += 1;
        self.seeding += usize::from(holding == Holding::Seeding);
    }

    /// Takes a peer out of a torrent; one without members is forgotten.
    fn withdraw(&mut self, key: u32, torrent: u32) {
        let peer = &mut self.peers[key as usize];
        let standing = peer.standing;
        let Some(member) = peer.torrents.remove(&torrent) else {
            return;
        };
        if let Some(share) = peer.from.and_then(|from| self.shares.get_mut(&from)) {
            share.memberships -= 1;
        }
        let members = &mut self.torrents[torrent as usize];
        for (scope, spot) in Scope::ALL.into_iter().zip(member.spots) {
            if let Some(moved) = members.remove(&standing, scope, spot) {
                let moved = self.peers[moved as usize].torrents.get_mut(&torrent);
                moved.expect("who is in a roster is a member").spots[scope as usize] = spot;
            }
        }
        self.memberships -= 1;
        self.seeding -= usize::from(member.holding == Holding::Seeding);
        if members.members() == 0 {
            let empty = self.torrents.remove(torrent as usize);
            self.torrents_by_digest.remove(&empty.digest);
        }
    }

    fn hand_out(&mut self, asker: u32, digest: &Digest, wanted: usize) -> Vec<C> {
        let Some(&key) = self.torrents_by_digest.get(digest) else {
            return Vec::new();
        };
        let peer = &self.peers[asker as usize];
        let asker = handout::Asker { key: asker, member: peer.torrents.contains_key(&key), standing: &peer.standing };
        let drawn = self.lottery.draw(&self.torrents[key as usize], &asker, wanted);
        drawn.iter().map(|peer| self.peers[*peer as usize].card.clone()).collect()
    }

    /// The leaders of a zone are the first in its roster: who leaves is replaced by the last to come.
    fn lead(&self, asker: u32, digest: &Digest) -> Option<Lead> {
        let torrent = self.torrents_by_digest.get(digest)?;
        let peer = &self.peers[asker as usize];
        let member = peer.torrents.get(torrent)?;
        let zone = self.torrents[*torrent as usize].agents(&peer.standing, Scope::Zone);
        let leaders = zone.len().min(LEADERS_MAX) as u32;
        let lead = Lead::new(member.spots[Scope::Zone as usize], leaders);
        lead.filter(|_| !peer.standing.is_origin())
    }

    /// Panics when the indexes and counts do not agree with each other. For tests and the simulator: it reads everything.
    pub fn check_invariants(&self) {
        assert_eq!(self.peers_by_id.len(), self.peers.len());
        assert_eq!(self.leases.len(), self.peers.len());
        assert_eq!(self.torrents_by_digest.len(), self.torrents.len());
        let (mut memberships, mut seeding) = (0, 0);
        for (key, peer) in &self.peers {
            assert_eq!(self.peers_by_id.get(&peer.info.id), Some(&(key as u32)));
            assert!(self.leases.contains(&(peer.lease_end, key as u32)));
            assert_eq!(peer.standing, Standing::of(&peer.info));
            assert!(peer.torrents.len() <= self.limits.torrents_per_peer_max);
            for (torrent, member) in &peer.torrents {
                self.torrents[*torrent as usize].check_member(key as u32, &peer.standing, member);
                seeding += usize::from(member.holding == Holding::Seeding);
            }
            memberships += peer.torrents.len();
        }
        assert_eq!((memberships, seeding), (self.memberships, self.seeding));
        let mut shares = HashMap::<IpAddr, Share>::new();
        for (_, peer) in &self.peers {
            if let Some(from) = peer.from {
                let share = shares.entry(from).or_default();
                share.peers += 1;
                share.memberships += peer.torrents.len();
            }
        }
        assert_eq!(shares, self.shares);
        let members = |torrent: &Torrent| {
            torrent.check_rosters();
            assert!(torrent.members() <= self.limits.members_max);
            torrent.members()
        };
        assert_eq!(self.torrents.iter().map(|(_, torrent)| members(torrent)).sum::<usize>(), memberships);
        assert!(self.peers.len() <= self.limits.peers_max && memberships <= self.limits.memberships_max);
    }
}

/// What of a limit one address may take: whoever has taken over a node, and announces peers and torrents that are not there, leaves
/// room to the others.
fn share_of(limit: usize) -> usize {
    limit.div_ceil(SHARES)
}
