//! What we tell peers of ourselves: pieces we got, and whether we want any.

use shoal_meta::Role;

use super::Swarm;
use crate::TorrentKey;
use crate::connection::Interest;
use crate::dense::ConnIndex;
use crate::wire::{LIST_LENGTH_MAX, Message, Pieces};

/// Of those that want nothing of us, so many are told of a piece at once: it leaves to one after the other, and whoever else hears
/// of it shows interest in vain.
const TOLD_AT_ONCE: usize = 3;

impl Swarm {
    /// Tells members of a torrent of pieces we got: origins, which count copies, and some of those that want nothing of us, far
    /// ones first. Who is interested already, or will be when it has room, hears of it when it is unchoked, for then it
    /// chooses; all others hear by and by (docs/adr/0004).
    pub(super) fn tell_some(&mut self, key: TorrentKey) {
        let Some(torrent) = self.torrents.get(&key) else { return };
        let members = torrent.members.indices();
        let mut told = members.and(&self.origins);
        let mut idle = members.without(&told).without(&self.wanting).without(&self.full);
        for _ in 0..TOLD_AT_ONCE {
            if let Some(conn) = idle.draw(&self.far, &mut self.rng) {
                told.insert(conn);
            }
        }
        for conn in told.iter() {
            self.tell_news(conn, key);
        }
    }

    /// Tells every member of every torrent what it has not been told.
    pub(super) fn tell_everyone(&mut self) {
        let news = self.torrents.iter().filter(|(_, torrent)| !torrent.gained.is_empty());
        let news = news.map(|(&key, torrent)| (key, torrent.members.indices()));
        for (key, members) in news.collect::<Vec<_>>() {
            for conn in members.iter() {
                self.tell_news(conn, key);
            }
        }
    }

    /// Tells a peer of the pieces of every torrent that it has not been told of.
    pub(super) fn tell_all_news(&mut self, conn: ConnIndex) {
        let keys: Vec<_> = self.conns.get(conn).map(|state| state.shared.iter().copied().collect()).unwrap_or_default();
        for key in keys {
            self.tell_news(conn, key);
        }
    }

    fn tell_news(&mut self, conn: ConnIndex, key: TorrentKey) {
        let Some(torrent) = self.torrents.get_mut(&key) else { return };
        let Some(member) = torrent.members.get_mut(conn) else { return };
        let told = std::mem::replace(&mut member.told, torrent.gained.len());
        // A peer that has a piece need not hear of it, but for an origin, which counts copies.
        let news = torrent.gained.iter().skip(told);
        let news = news.filter(|piece| member.role == Role::Origin || !member.have.contains(**piece));
        let pieces: Pieces = news.map(|piece| piece.get()).collect();
        for pieces in pieces.chunks(LIST_LENGTH_MAX) {
            self.send(conn, Message::Have { alias: key.alias(), pieces: pieces.into() });
        }
    }

    /// Tells a peer whether we want something of it. That we no longer do, or have no room for it, is said only to take back an
    /// allowance: until then it costs nobody anything, and may have changed again.
    pub(super) fn tell_interest(&mut self, conn: ConnIndex) {
        let Some(state) = self.conns.get_mut(conn) else { return };
        let interest = match state.down.wanted {
            0 => Interest::None,
            _ if self.declined.contains(conn) => Interest::NoRoom,
            _ => Interest::Shown,
        };
        let waits = match state.down.interest {
            Interest::Shown => state.down.allowance == 0,
            Interest::NoRoom => false,
            Interest::None => interest == Interest::NoRoom,
        };
        if waits || interest == state.down.interest {
            return;
        }
        state.down.interest = interest;
        if interest == Interest::Shown {
            self.send(conn, Message::Interested);
        } else {
            self.void_allowance(conn);
            self.send(conn, Message::NotInterested { no_room: interest == Interest::NoRoom });
        }
    }
}
