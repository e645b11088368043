//! Zones: about one copy of a blob crosses into each. Leaders fetch across, and only what no peer of their zone has; the
//! others neither dial nor join far peers, until their zone has come to a standstill.

use std::time::Duration;

use rand::RngExt as _;
use shoal_meta::{Lead, PieceIndex, Role};

use super::Swarm;
use crate::connection::Remote;
use crate::dense::ConnIndex;
use crate::torrent::{Across, Torrent};
use crate::wire::Alias;
use crate::{Time, TorrentKey};

/// How long nothing comes to us nor to our near peers before some of us fetch across.
const STANDSTILL: Duration = Duration::from_secs(2);
/// How long nothing comes to us of what near peers say they have before some of us look for it across: they take and do not
/// give, or lie.
const NEAR_PATIENCE: Duration = Duration::from_secs(10);
/// About how many nodes of a zone at a standstill become leaders in a second.
const VOLUNTEERS: usize = 2;

impl Swarm {
    /// This node is a leader of its zone for a torrent (the tracker says so): it fetches its part of what the zone lacks
    /// from others.
    pub fn lead(&mut self, now: Time, torrent: TorrentKey, lead: Lead) {
        self.now = now;
        let Some(state) = self.torrents.get_mut(&torrent) else { return };
        if !state.is_leech() || state.crossing == Some(lead) {
            return;
        }
        state.crossing = Some(lead);
        let digest = state.digest;
        self.recount_far(torrent);
        for conn in self.far.clone().iter() {
            self.meet(conn, torrent, self.waiting_alias(conn, &digest), true);
        }
        self.dial_for(torrent);
    }

    /// Tells whether to join a peer in a torrent for what we may get there.
    fn seeks(&self, conn: ConnIndex, key: TorrentKey) -> bool {
        !self.far.contains(conn) || self.torrents[&key].crossing.is_some() || self.me.role == Role::Origin
    }

    /// Opens a torrent at a peer and joins it there: when we look for pieces and may get them there, or the peer has
    /// opened it, under this alias, and may get them here. Two who have it whole have nothing to open: each would answer the
    /// other, for ever.
    pub(super) fn meet(&mut self, conn: ConnIndex, key: TorrentKey, alias: Option<Alias>, looking: bool) {
        let (seeks, leech) = (self.seeks(conn, key), self.torrents[&key].is_leech());
        let joins = |alias| (seeks && (leech || self.lacks(conn, alias))) || self.is_leecher(conn, alias);
        if (looking && seeks) || alias.is_some_and(joins) {
            self.send_open(conn, key);
            if let Some(alias) = alias {
                self.attach(conn, alias, key);
            }
        }
    }

    /// Tells whether a peer is an agent that lacks pieces of a torrent it opened and that is not open here.
    fn is_leecher(&self, conn: ConnIndex, alias: Alias) -> bool {
        self.conns[conn].peer.role == Role::Agent && self.lacks(conn, alias)
    }

    /// Tells whether a peer did not say that it has all of a torrent that it opened and that is not open here.
    fn lacks(&self, conn: ConnIndex, alias: Alias) -> bool {
        let lacks = |remote: &Remote| matches!(remote, Remote::Waiting(waiting) if !waiting.have.is_full());
        self.conns[conn].remotes.get(&alias).is_some_and(lacks)
    }

    /// A near member got a piece: it need not be fetched across any more, as it was until now.
    pub(super) fn near_has(&mut self, key: TorrentKey, piece: PieceIndex, across: Across) {
        let Some(torrent) = self.torrents.get_mut(&key) else { return };
        torrent.near_progress_at = self.now;
        if across != Across::Nobody && torrent.across(piece) == Across::Nobody && torrent.open.contains(piece) {
            self.recount(key, piece, false, |member| member.far && member.gives(across));
        }
    }

    /// Counts anew what we want of far members, after a near one came or left or it became ours to fetch across.
    pub(super) fn recount_far(&mut self, key: TorrentKey) {
        for conn in self.far.clone().iter() {
            self.recount_member(conn, key);
        }
    }

    /// Counts anew what we want of a member, if it is far and we fetch across. What we want of near ones is kept by
    /// [`Self::recount`].
    pub(super) fn recount_member(&mut self, conn: ConnIndex, key: TorrentKey) {
        let Some(torrent) = self.torrents.get_mut(&key).filter(|torrent| torrent.crossing.is_some()) else { return };
        let far = torrent.members.get(conn).filter(|member| member.far);
        let Some(wanted) = far.map(|member| torrent.count_wanted(member)) else { return };
        let (Some(member), Some(state)) = (torrent.members.get_mut(conn), self.conns.get_mut(conn)) else { return };
        let before = std::mem::replace(&mut member.wanted, wanted);
        state.down.wanted -= u32::from(before > 0);
        state.down.wanted += u32::from(wanted > 0);
        self.dirty.interest.insert(conn);
        if wanted > before && self.allowed.contains(conn) {
            self.dirty.holding.insert(conn);
        }
    }

    /// Where nothing has come to a zone for a while its leaders are gone: some of those who wait take their place. So they do
    /// where near peers have what we lack and give none of it.
    pub(super) fn volunteer(&mut self) {
        if self.me.topology.zone.is_empty() {
            return;
        }
        let now = self.now;
        let failed = |torrent: &Torrent| {
            let near = |piece| torrent.availability.of(piece) > torrent.far.of(piece);
            !torrent.near_fails && now.since(torrent.gained_at) >= NEAR_PATIENCE && torrent.open.iter().any(near)
        };
        let stuck = |torrent: &Torrent| {
            let standstill = now.since(torrent.near_progress_at) >= STANDSTILL;
            torrent.is_leech() && ((torrent.crossing != Some(Lead::ALONE) && standstill) || failed(torrent))
        };
        let stuck: Vec<_> = self.torrents.iter().filter(|(_, torrent)| stuck(torrent)).map(|(&key, _)| key).collect();
        for key in stuck {
            let near = self.torrents[&key].members.values().filter(|member| !member.far && member.is_leecher()).count();
            if self.rng.random_range(0..=near) < VOLUNTEERS {
                self.lead(now, key, Lead::ALONE);
                if self.torrents.get(&key).is_some_and(failed)
                    && let Some(torrent) = self.torrents.get_mut(&key)
                {
                    torrent.near_fails = true;
                    self.recount_far(key);
                }
            }
        }
    }
}
