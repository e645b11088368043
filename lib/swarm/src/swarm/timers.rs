//! Time passing.

use std::time::Duration;

use super::Swarm;
use crate::torrent::Torrent;
use crate::{Event, Time};

/// How often late pieces, snubbed peers and unused grants are looked for while anything is under way.
const TICK: Duration = Duration::from_millis(100);
/// The longest that a peer waits to hear of a piece. With a tick there are 13 % more messages, and nobody is done sooner.
const NEWS: Duration = Duration::from_millis(400);
/// How often dials, searches and idle torrents are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

impl Swarm {
    /// The time of [`poll_timeout`](Self::poll_timeout) has come. Calling early or late is harmless.
    pub fn handle_timeout(&mut self, now: Time) {
        self.now = now;
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.check_progress();
            self.check_grants();
            if now >= self.next_news {
                self.next_news = now + NEWS;
                self.tell_everyone();
            }
            // For those that were freed just now, and those that were refused while blocks left, if none has left since.
            self.dirty.slots = true;
        }
        if self.choker.timeout().is_some_and(|at| now >= at) {
            self.dirty.slots = true;
        }
        if now >= self.next_housekeeping {
            self.next_housekeeping = now + HOUSEKEEPING;
            self.keep_house();
        }
    }

    pub(super) fn needs_housekeeping(&self) -> bool {
        let active =
            |torrent: &Torrent| torrent.is_leech() || torrent.idle_since.is_some() || torrent.super_seed.is_some();
        self.torrents.values().any(active)
    }

    /// The room of what nobody needs is wanted now: [`Event::TorrentIdle`] tells of every torrent that is whole here and that no
    /// connected peer lacks a piece of. Whoever wants one later opens it again.
    pub fn release_idle(&mut self, now: Time) {
        self.now = now;
        self.offer_idle(|_, _| true);
    }

    /// Tells of those torrents that are whole here and without a leecher that are due, by how long they have been idle.
    fn offer_idle(&mut self, is_due: impl Fn(&Torrent, Duration) -> bool) {
        for (&key, torrent) in self.torrents.iter_mut() {
            let idle = torrent.idle_since.is_some_and(|since| is_due(torrent, self.now.since(since)));
            if idle && !torrent.is_leech() {
                torrent.idle_since = Some(self.now);
                self.events.push_back(Event::TorrentIdle(key));
            }
        }
    }

    fn keep_house(&mut self) {
        self.dial_all();
        let timeout = self.config.idle_timeout;
        self.offer_idle(|torrent, idle| idle >= timeout && torrent.super_seed.is_none());
        self.search_for_lonely();
        self.hurry_metainfo();
        self.unstick();
        self.volunteer();
        self.expire_grudges();
    }
}
