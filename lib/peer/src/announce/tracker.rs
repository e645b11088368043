//! One tracker as the announcer sees it: what it has not heard yet, and when it is to be called next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_identity::{Identity, Part};
use shoal_meta::{Digest, Server};
use shoal_proto::tracker::v1 as proto;
use shoal_proto::tracker::v1::tracker_client::TrackerClient;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::LocalState;

/// Changes that follow a call within this time go together in the next one.
const BATCH_TIME: Duration = Duration::from_millis(50);
/// Torrents in one call at most; the rest follows in the next.
const CALL_TORRENTS_MAX: usize = 5000;
/// Torrents of one call for which peers are asked.
const CALL_ASKS_MAX: usize = 100;
/// Peers asked for, for each torrent that lacks pieces; the tracker's own limit.
const PEERS_WANTED: u32 = 50;
/// What a tracker may say of its interval; also how often an unknown one is called.
const INTERVAL_MIN: Duration = Duration::from_millis(500);
const INTERVAL_MAX: Duration = Duration::from_secs(300);
/// How long after a short handout, a young swarm's, more peers are asked for; twice as long after each further one.
const AGAIN: Duration = Duration::from_millis(250);
/// First and longest wait after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// The longest answer accepted: [`CALL_ASKS_MAX`] handouts take a tenth of it.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The blobs we announce.
pub(super) type Held = BTreeMap<Digest, LocalState>;

/// A tracker, and how it stands with us.
pub(super) struct Tracker {
    pub(super) server: Server,
    pub(super) channel: Channel,
    pub(super) client: TrackerClient<Channel>,
    /// Thought to be up: the last call was answered, or there was none.
    pub(super) up: bool,
    /// The last call was answered.
    pub(super) answered: bool,
    /// It knows all that is its own but for `pending`.
    pub(super) synced: bool,
    pub(super) pending: BTreeSet<Digest>,
    /// Calls in a row that failed.
    pub(super) failures: u32,
    calling: bool,
    /// The last call told all.
    told_all: bool,
    /// It was told all and still asks for all: its limits are too small for us, so that asking at once is no use.
    unsatisfied: bool,
    called_at: Option<Instant>,
    /// How long after the next short handout it is called again.
    again: Duration,
    /// When the lease is to be renewed; or, when it is away, when it is tried again.
    due: Instant,
}

impl Tracker {
    /// `None` when its URL is not `http://host:port`.
    pub(super) fn new(server: Server, identity: &Identity) -> Option<Self> {
        let endpoint = shoal_identity::endpoint(&server.url)?;
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT);
        let channel = identity.channel(&endpoint.http2_keep_alive_interval(KEEPALIVE_INTERVAL), Part::Tracker);
        let client = TrackerClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        Some(Self {
            server,
            channel,
            client,
            up: true,
            answered: false,
            synced: false,
            pending: BTreeSet::new(),
            failures: 0,
            calling: false,
            told_all: false,
            unsatisfied: false,
            called_at: None,
            again: AGAIN,
            due: Instant::now(),
        })
    }

    /// When it is to be called next; `None` while it is being called.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        let prompt = (!self.synced && !self.unsatisfied) || !self.pending.is_empty();
        match self.called_at {
            _ if self.calling => None,
            Some(at) if self.up && prompt => Some((at + BATCH_TIME).min(self.due)),
            _ => Some(self.due),
        }
    }

    /// What to say in a call made now, when these blobs are the tracker's: whether it is all, and the list.
    pub(super) fn next_call(&mut self, owned: &Held, now: Instant) -> (bool, Vec<proto::TorrentAnnounce>) {
        let full = !self.synced;
        if full {
            self.pending.clear();
            self.pending.extend(owned.keys());
        } else if now >= self.due {
            let leeching = owned.iter().filter(|(_, state)| **state == LocalState::Leeching);
            self.pending.extend(leeching.map(|(digest, _)| digest));
        }
        if self.pending.iter().any(|digest| owned.get(digest) == Some(&LocalState::Leeching)) && now < self.due {
            self.again = AGAIN;
        }
        let mut list = Vec::new();
        let mut asks = 0;
        // Those who wait for peers first.
        let asking = |digest: &Digest| owned.get(digest) == Some(&LocalState::Leeching);
        let (first, rest): (Vec<_>, Vec<_>) = self.pending.iter().partition(|digest| asking(digest));
        for digest in first.into_iter().chain(rest) {
            let (state, peers_wanted) = match owned.get(digest) {
                Some(LocalState::Leeching) if asks == CALL_ASKS_MAX => continue,
                Some(LocalState::Leeching) => (proto::TorrentState::Leeching, PEERS_WANTED),
                Some(LocalState::Seeding) => (proto::TorrentState::Seeding, 0),
                None => (proto::TorrentState::Gone, 0),
            };
            asks += usize::from(peers_wanted > 0);
            list.push((
                *digest,
                proto::TorrentAnnounce { digest: digest.to_string(), state: state.into(), peers_wanted },
            ));
            if list.len() == CALL_TORRENTS_MAX {
                break;
            }
        }
        list.iter().for_each(|(digest, _)| {
            self.pending.remove(digest);
        });
        self.synced = true;
        self.told_all = full;
        self.calling = true;
        self.called_at = Some(now);
        (full, list.into_iter().map(|(_, torrent)| torrent).collect())
    }

    /// The call was answered.
    pub(super) fn settled(&mut self, now: Instant, answer: &proto::AnnounceResponse) {
        let interval = Duration::from_millis(answer.interval_ms.into());
        let third = Duration::from_millis(answer.lease_ms.into()) / 3;
        self.due = now + interval.min(third).clamp(INTERVAL_MIN, INTERVAL_MAX);
        if answer.torrents.iter().any(|torrent| torrent.peers.len() < PEERS_WANTED as usize) {
            self.due = self.due.min(now + self.again);
            self.again = (self.again * 2).min(INTERVAL_MAX);
        }
        self.calling = false;
        self.up = true;
        self.answered = true;
        self.failures = 0;
        self.unsatisfied = answer.resync && self.told_all;
        if answer.resync {
            self.synced = false;
        }
    }

    /// The call failed: all is said anew when it is back.
    pub(super) fn failed(&mut self, now: Instant) {
        let (first, longest) = BACK_OFF;
        self.due = now + (first * (1 << self.failures.min(8))).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.calling = false;
        self.up = false;
        self.answered = false;
        self.synced = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker() -> Tracker {
        Tracker::new(Server::at("http://127.0.0.1:1"), &Identity::plaintext()).unwrap()
    }

    fn held(leeching: u32, seeding: u32) -> Held {
        let digest = |n: u32| Digest::sha256_of(&n.to_be_bytes());
        let leeching = (0..leeching).map(|n| (digest(n), LocalState::Leeching));
        leeching.chain((0..seeding).map(|n| (digest(n + 1_000_000), LocalState::Seeding))).collect()
    }

    fn answer(resync: bool) -> proto::AnnounceResponse {
        proto::AnnounceResponse { lease_ms: 45_000, interval_ms: 15_000, resync, torrents: Vec::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_young_swarm_is_asked_for_again_soon_and_then_less_often() {
        let (mut tracker, mut now) = (tracker(), Instant::now());
        let short = proto::TorrentPeers { digest: String::new(), peers: Vec::new(), lead: None };
        let answer = proto::AnnounceResponse { torrents: vec![short], ..answer(false) };
        let mut waits = Vec::new();
        // A swarm that stays small, for half an hour.
        for _ in 0..128 {
            tracker.next_call(&held(1, 0), now);
            tracker.settled(now, &answer);
            waits.push(tracker.ready_at().unwrap().duration_since(now).as_millis());
            now = tracker.ready_at().unwrap();
        }
        assert_eq!(waits[..8], [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
        assert_eq!(waits[8..], [15_000; 120]);
    }

    fn states(list: &[proto::TorrentAnnounce]) -> Vec<(proto::TorrentState, u32)> {
        list.iter().map(|torrent| (torrent.state(), torrent.peers_wanted)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn all_is_told_first_and_changes_after() {
        let (mut tracker, now) = (tracker(), Instant::now());
        let (full, list) = tracker.next_call(&held(1, 1), now);
        assert!(full);
        assert_eq!(states(&list), [(proto::TorrentState::Leeching, 50), (proto::TorrentState::Seeding, 0)]);
        assert_eq!(tracker.ready_at(), None, "one call at a time");
        tracker.settled(now, &answer(false));
        assert_eq!(tracker.ready_at(), Some(now + Duration::from_secs(15)));

        let gone = *held(1, 0).keys().next().unwrap();
        tracker.pending.insert(gone);
        assert_eq!(tracker.ready_at(), Some(now + BATCH_TIME));
        let (full, list) = tracker.next_call(&held(0, 1), now + BATCH_TIME);
        assert_eq!((full, states(&list)), (false, vec![(proto::TorrentState::Gone, 0)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_asks_again_for_peers_of_what_is_missing() {
        let (mut tracker, now) = (tracker(), Instant::now());
        tracker.next_call(&held(1, 9), now);
        tracker.settled(now, &answer(false));
        let (full, list) = tracker.next_call(&held(1, 9), now + Duration::from_secs(15));
        assert_eq!((full, states(&list)), (false, vec![(proto::TorrentState::Leeching, 50)]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_much_for_one_call_follows_in_the_next() {
        let (mut tracker, now) = (tracker(), Instant::now());
        let held = held(130, 6000);
        let (full, first) = tracker.next_call(&held, now);
        assert!(full);
        assert_eq!((first.len(), first.iter().filter(|t| t.peers_wanted > 0).count()), (5000, 100));
        tracker.settled(now, &answer(false));
        let (full, second) = tracker.next_call(&held, now + BATCH_TIME);
        assert!(!full);
        assert_eq!((second.len(), second.iter().filter(|t| t.peers_wanted > 0).count()), (1130, 30));
        assert!(tracker.pending.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tracker_that_forgot_is_told_all_at_once_but_not_over_and_over() {
        let (mut tracker, now) = (tracker(), Instant::now());
        tracker.next_call(&held(0, 1), now);
        tracker.settled(now, &answer(false));
        tracker.next_call(&held(0, 1), now);
        tracker.settled(now, &answer(true));
        assert_eq!(tracker.ready_at(), Some(now + BATCH_TIME));
        assert!(tracker.next_call(&held(0, 1), now).0);
        tracker.settled(now, &answer(true));
        assert_eq!(tracker.ready_at(), Some(now + Duration::from_secs(15)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tracker_that_is_away_is_tried_less_and_less_often() {
        let (mut tracker, now) = (tracker(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..8 {
            tracker.next_call(&held(1, 0), now);
            tracker.failed(now);
            tracker.pending.extend(held(1, 0).keys());
            waits.push(tracker.ready_at().unwrap().duration_since(now).as_millis());
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
    }
}
