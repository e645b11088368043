//! Metainfo from peers: when no origin answers, the hashes of a torrent's pieces are asked of a peer that has them all, one
//! peer after the other. They are worth what the origin's seal on them is worth, which is the driver's to check.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_meta::{PeerId, PieceHash};

use super::Swarm;
use crate::dense::ConnIndex;
use crate::wire::{Alias, HASHES_LENGTH_MAX, Message, MetainfoPart};
use crate::{ConnId, DisconnectReason, Event, Time, TorrentKey, Violation, Who};

/// How long a peer may be silent before another is asked.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// A torrent's search for its metainfo.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// Those who were asked, and have not answered well.
    asked: BTreeSet<PeerId>,
    asking: Option<Asking>,
}

/// The question that is open.
#[derive(Debug)]
struct Asking {
    of: ConnIndex,
    who: Who,
    /// When it was asked, or last said something.
    heard_at: Time,
    hashes: Vec<PieceHash>,
    /// The driver has all of it.
    checking: bool,
}

impl Swarm {
    /// The hashes of a torrent's pieces are wanted of peers. [`Event::MetainfoFound`] brings them. While a peer is being asked
    /// nothing changes; else those asked before may be asked again.
    pub fn find_metainfo(&mut self, now: Time, torrent: TorrentKey) {
        self.now = now;
        let Some(state) = self.torrents.get_mut(&torrent) else { return };
        if state.known == state.geometry.piece_count() {
            return;
        }
        let search = state.search.get_or_insert_default();
        if search.asking.is_none() {
            search.asked.clear();
            self.ask_for_metainfo(torrent);
        }
    }

    /// What [`Event::MetainfoFound`] brought is checked. Hashes that are not the origin's cost the peer its connection.
    pub fn handle_metainfo_checked(&mut self, now: Time, torrent: TorrentKey, good: bool) {
        self.now = now;
        let Some(search) = self.torrents.get_mut(&torrent).and_then(|state| state.search.as_mut()) else { return };
        let Some(asking) = search.asking.take_if(|asking| asking.checking) else { return };
        if !good {
            self.ban(asking.who, DisconnectReason::FalseMetainfo);
            self.ask_for_metainfo(torrent);
        }
    }

    /// Answers [`Event::MetainfoAsked`] with every hash and the origin's seal, or with `None`.
    pub fn give_metainfo(
        &mut self,
        now: Time,
        conn: ConnId,
        torrent: TorrentKey,
        metainfo: Option<(&[PieceHash], Vec<u8>)>,
    ) {
        self.now = now;
        let Some(&conn) = self.by_id.get(&conn) else { return };
        let Some(state) = self.conns.get_mut(conn) else { return };
        state.up.metainfo_asked = false;
        let (hashes, mut seal) = metainfo.unwrap_or_default();
        let alias = torrent.alias();
        let count = hashes.len().div_ceil(HASHES_LENGTH_MAX).max(1);
        for part in 0..count {
            let first = part * HASHES_LENGTH_MAX;
            let hashes = &hashes[first..hashes.len().min(first + HASHES_LENGTH_MAX)];
            let seal = if part + 1 == count { std::mem::take(&mut seal) } else { Vec::new() };
            let first = u32::try_from(first).unwrap_or(u32::MAX);
            self.send(conn, MetainfoPart { alias, first, hashes: hashes.to_vec(), seal }.into());
        }
    }

    /// A peer asks; one question at a time.
    pub(super) fn metainfo_asked(&mut self, conn: ConnIndex, alias: Alias) -> Result<(), Violation> {
        let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
        // Closed here meanwhile, perhaps: the peer finds another.
        let Some(torrent) = state.attached(alias) else { return Ok(()) };
        if std::mem::replace(&mut state.up.metainfo_asked, true) {
            return Err(Violation::LimitExceeded("questions for metainfo"));
        }
        self.events.push_back(Event::MetainfoAsked { torrent, conn: state.id });
        Ok(())
    }

    /// A peer answers.
    pub(super) fn metainfo_part(&mut self, conn: ConnIndex, part: MetainfoPart) -> Result<(), Violation> {
        let MetainfoPart { alias, first, hashes, seal } = part;
        let Some(key) = self.conns.get(conn).and_then(|state| state.attached(alias)) else { return Ok(()) };
        let peer = self.conns[conn].peer.id;
        let now = self.now;
        let Some(state) = self.torrents.get_mut(&key) else { return Ok(()) };
        let pieces = state.geometry.piece_count() as usize;
        // What is known by now is not asked for any more.
        let Some(search) = &mut state.search else { return Ok(()) };
        let Some(asking) = search.asking.as_mut().filter(|asking| asking.of == conn && !asking.checking) else {
            // One that was slow, and not one that was never asked.
            return if search.asked.contains(&peer) { Ok(()) } else { Err(Violation::OutOfPlace) };
        };
        if hashes.is_empty() {
            search.asking = None;
            self.ask_for_metainfo(key);
            return Ok(());
        }
        if first as usize != asking.hashes.len() || asking.hashes.len() + hashes.len() > pieces {
            return Err(Violation::OutOfRange);
        }
        asking.heard_at = now;
        asking.hashes.extend(hashes);
        if asking.hashes.len() == pieces {
            asking.checking = true;
            let hashes = std::mem::take(&mut asking.hashes);
            self.events.push_back(Event::MetainfoFound { torrent: key, hashes, seal });
        }
        Ok(())
    }

    /// Asks the next peer, if there is one that was not asked.
    pub(super) fn ask_for_metainfo(&mut self, key: TorrentKey) {
        let now = self.now;
        let Some(state) = self.torrents.get_mut(&key) else { return };
        let Some(search) = state.search.as_mut().filter(|search| search.asking.is_none()) else { return };
        let whole = state.members.iter().filter(|(_, member)| member.have.is_full());
        let known = whole.filter_map(|(conn, _)| Some((conn, self.conns.get(conn)?)));
        let next = known.map(|(conn, state)| (conn, state.peer.id, state.who));
        let Some((of, peer, who)) = next.into_iter().find(|(_, peer, _)| !search.asked.contains(peer)) else { return };
        search.asked.insert(peer);
        search.asking = Some(Asking { of, who, heard_at: now, hashes: Vec::new(), checking: false });
        self.send(of, Message::FindMetainfo { alias: key.alias() });
    }

    /// A peer has left a torrent: another is asked for what it was asked.
    pub(super) fn metainfo_lost(&mut self, conn: ConnIndex, key: TorrentKey) {
        let Some(search) = self.torrents.get_mut(&key).and_then(|state| state.search.as_mut()) else { return };
        if search.asking.take_if(|asking| asking.of == conn && !asking.checking).is_some() {
            self.ask_for_metainfo(key);
        }
    }

    /// Passes over peers that are silent.
    pub(super) fn hurry_metainfo(&mut self) {
        let now = self.now;
        let mut late = Vec::new();
        for (&key, state) in self.torrents.iter_mut() {
            let Some(search) = &mut state.search else { continue };
            let is_late = |asking: &mut Asking| !asking.checking && now.since(asking.heard_at) >= ANSWER_PATIENCE;
            if search.asking.take_if(is_late).is_some() {
                late.push(key);
            }
        }
        late.into_iter().for_each(|key| self.ask_for_metainfo(key));
    }
}
