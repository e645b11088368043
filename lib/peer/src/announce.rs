//! Tells the trackers which blobs this node wants and has, and learns whom to dial.
//!
//! [`Announcer`] is what the driver writes to, at once and without waiting; [`run`] is a task that speaks to the trackers,
//! each on its own: one that is away is retried with back-off while the next one in rendezvous order stands in for it.
//! It must not know of connections or pieces. Nothing in the node waits for it.

mod tracker;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use shoal_identity::Identity;
use shoal_meta::{Digest, Lead, PeerInfo, Server, rendezvous_order};
use shoal_proto::tracker::v1 as proto;
use shoal_proto::{peer_from_proto, peer_to_proto};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use crate::mailbox::{Handle, Input};
use tracker::{Held, Tracker};

/// How long trackers have to hear that we leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Peers taken from the handout of one torrent.
const HANDOUT_MAX: usize = 64;

/// What we tell trackers of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LocalState {
    /// Pieces are missing.
    Leeching,
    /// The whole blob is here, verified.
    Seeding,
}

/// What this node announces. Bounded by what its store holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Announcer(Arc<Board>);

#[derive(Debug, Default)]
struct Board {
    state: Mutex<State>,
    changed: Notify,
    /// The ways to the trackers there are.
    channels: Mutex<Vec<Channel>>,
}

#[derive(Debug, Default)]
struct State {
    held: Held,
    changed: BTreeSet<Digest>,
}

impl Announcer {
    /// Announces a blob, or its new state.
    pub(crate) fn set(&self, digest: Digest, to: LocalState) {
        self.change(digest, |held| held.insert(digest, to) != Some(to));
    }

    /// Announces that a blob is gone.
    pub(crate) fn remove(&self, digest: Digest) {
        self.change(digest, |held| held.remove(&digest).is_some());
    }

    /// The blobs announced as whole.
    pub(crate) fn seeding(&self) -> Vec<Digest> {
        let state = self.lock();
        state.held.iter().filter(|(_, held)| **held == LocalState::Seeding).map(|(digest, _)| *digest).collect()
    }

    /// The ways to the trackers there are, for others that have something to ask them.
    pub(crate) fn channels(&self) -> Vec<Channel> {
        self.0.channels.lock().expect("nothing panics while it holds this lock").clone()
    }

    fn change(&self, digest: Digest, change: impl FnOnce(&mut Held) -> bool) {
        let mut state = self.lock();
        if change(&mut state.held) {
            state.changed.insert(digest);
            drop(state);
            self.0.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nothing panics while it holds this lock")
    }
}

/// Speaks to the trackers that there are until the node shuts down, then takes leave of them.
pub(crate) async fn run(
    announcer: Announcer,
    mut servers: watch::Receiver<Vec<Server>>,
    identity: Identity,
    me: PeerInfo,
    handle: Handle,
) {
    let mut desk = Desk { trackers: Vec::new(), identity, me: peer_to_proto(&me), announcer, handle };
    desk.follow(&servers.borrow_and_update());
    let mut calls = JoinSet::new();
    loop {
        desk.call_ready(&mut calls);
        let wake = desk.trackers.iter().filter_map(Tracker::ready_at).min();
        tokio::select! {
            () = desk.handle.shutdown.cancelled() => break,
            () = desk.announcer.0.changed.notified() => desk.sort_changes(),
            Ok(()) = servers.changed() => desk.follow(&servers.borrow_and_update()),
            Some(Ok((server, answer))) = calls.join_next() => desk.settle(&server, answer).await,
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
    }
    calls.abort_all();
    desk.leave().await;
}

type Answer = Result<proto::AnnounceResponse, tonic::Status>;

/// The announcing task's state.
struct Desk {
    trackers: Vec<Tracker>,
    identity: Identity,
    me: proto::Peer,
    announcer: Announcer,
    handle: Handle,
}

impl Desk {
    /// Goes on with these trackers; those that stay are kept.
    fn follow(&mut self, servers: &[Server]) {
        let before = std::mem::take(&mut self.trackers);
        let mut before: BTreeMap<_, _> = before.into_iter().map(|tracker| (tracker.server.clone(), tracker)).collect();
        for server in servers {
            match before.remove(server).or_else(|| Tracker::new(server.clone(), &self.identity)) {
                Some(tracker) => self.trackers.push(tracker),
                None => warn!(tracker = %server.url, "a tracker's address is not http://host:port"),
            }
        }
        // What belongs to whom has changed: everyone is told anew what is theirs.
        self.trackers.iter_mut().for_each(|tracker| tracker.synced = false);
        let channels = self.trackers.iter().map(|tracker| tracker.channel.clone()).collect();
        *self.announcer.0.channels.lock().expect("nothing panics while it holds this lock") = channels;
        self.count();
    }

    /// Hands what changed to the trackers it belongs to.
    fn sort_changes(&mut self) {
        let changed = std::mem::take(&mut self.announcer.lock().changed);
        for digest in changed {
            if let Some(owner) = self.owner(&digest, None) {
                self.trackers[owner].pending.insert(digest);
            }
        }
    }

    /// The tracker a blob belongs to: the first in rendezvous order that is up, or if none is the very first. `up` counts
    /// as up in any case. `None` when there is no tracker.
    fn owner(&self, digest: &Digest, up: Option<usize>) -> Option<usize> {
        if self.trackers.len() <= 1 {
            return self.trackers.len().checked_sub(1);
        }
        let names: Vec<_> = self.trackers.iter().map(|tracker| tracker.server.name.as_str()).collect();
        let order = rendezvous_order(digest.as_bytes(), &names);
        let index = |name: &&str| names.iter().position(|known| known == name);
        let mut order = order.iter().filter_map(index);
        let first = order.clone().next();
        order.find(|&index| self.trackers[index].up || up == Some(index)).or(first)
    }

    /// Calls each tracker whose time has come.
    fn call_ready(&mut self, calls: &mut JoinSet<(Server, Answer)>) {
        let now = Instant::now();
        for index in 0..self.trackers.len() {
            if self.trackers[index].ready_at().is_none_or(|at| at > now) {
                continue;
            }
            let request = self.request(index, now);
            let Tracker { server, client, .. } = &self.trackers[index];
            debug!(tracker = %server.url, full = request.full, torrents = request.torrents.len(), "announcing");
            let (server, mut client) = (server.clone(), client.clone());
            calls.spawn(async move { (server, client.announce(request).await.map(tonic::Response::into_inner)) });
        }
    }

    fn request(&mut self, index: usize, now: Instant) -> proto::AnnounceRequest {
        let held = self.announcer.lock().held.clone();
        let owned: Held = match self.trackers.len() {
            1 => held,
            _ => held.into_iter().filter(|(digest, _)| self.owner(digest, Some(index)) == Some(index)).collect(),
        };
        let (full, torrents) = self.trackers[index].next_call(&owned, now);
        proto::AnnounceRequest { peer: Some(self.me.clone()), full, torrents }
    }

    /// Takes a tracker's answer, or that there was none.
    async fn settle(&mut self, server: &Server, answer: Answer) {
        // One that is no longer there has nothing to say.
        let Some(index) = self.trackers.iter().position(|tracker| tracker.server == *server) else { return };
        let tracker = &mut self.trackers[index];
        let was_up = tracker.up;
        match answer {
            Ok(answer) => {
                if !tracker.answered {
                    info!(tracker = %tracker.server.url, "the tracker answers");
                }
                tracker.settled(Instant::now(), &answer);
                self.hand_out(answer.torrents).await;
            }
            Err(status) => {
                if tracker.answered || tracker.failures == 0 {
                    warn!(tracker = %tracker.server.url, code = ?status.code(), message = status.message(), "the tracker is away");
                }
                tracker.failed(Instant::now());
            }
        }
        if self.trackers[index].up != was_up {
            // What belongs to whom has changed: everyone is told anew what is theirs.
            let others = self.trackers.iter_mut().enumerate().filter(|(other, _)| *other != index);
            others.for_each(|(_, tracker)| tracker.synced = false);
        }
        self.count();
    }

    fn count(&self) {
        let answering = self.trackers.iter().filter(|tracker| tracker.answered).count();
        self.handle.counters.trackers.store(self.trackers.len(), Relaxed);
        self.handle.counters.trackers_up.store(answering, Relaxed);
    }

    async fn hand_out(&self, torrents: Vec<proto::TorrentPeers>) {
        for torrent in torrents {
            let Ok(digest) = torrent.digest.parse() else { continue };
            let peers: Vec<_> =
                torrent.peers.iter().take(HANDOUT_MAX).filter_map(|peer| peer_from_proto(Some(peer)).ok()).collect();
            let lead = torrent.lead.and_then(|lead| Lead::new(lead.rank, lead.leaders));
            if !peers.is_empty() || lead.is_some() {
                // The driver's end is the node's end.
                let _ = self.handle.send(Input::Peers { digest, peers, lead }).await;
            }
        }
    }

    async fn leave(self) {
        let mut calls = JoinSet::new();
        for mut tracker in self.trackers.into_iter().filter(|tracker| tracker.answered) {
            let request = proto::LeaveRequest { peer_id: self.me.id.clone() };
            calls.spawn(async move { tracker.client.leave(request).await.map(drop) });
        }
        // Those that do not hear it forget us when the lease ends.
        let _ = tokio::time::timeout(LEAVE_TIMEOUT, calls.join_all()).await;
    }
}
