//! The one task that owns the swarm: takes inputs from the mailbox, applies them one at a time, and does what the swarm
//! asks for. It never waits for a connection, a disk, a tracker or a handle.
//!
//! `torrents` holds what concerns torrents and the store, `metainfo` what peers tell each other of hashes; this file the loop, connections and the swarm's outputs.

mod metainfo;
mod torrents;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use shoal_meta::{Digest, Role};
use shoal_store::Store;
use shoal_swarm::wire::{BlockHeader, Message, WireBlock};
use shoal_swarm::{BlockOutcome, ConnId, DisconnectReason, Event, Frame, Swarm, Time, TorrentKey, Transmit};
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use crate::announce::Announcer;
use crate::conn::{Connected, Net};
use crate::counters::{From, count};
use crate::dial::dial;
use crate::entry::Entry;
use crate::mailbox::{Input, Mailbox};
use crate::outbox::{Outbox, OutgoingBlock};
use crate::send::Payload;

/// Inputs applied before the swarm's decisions are asked for: under load many inputs cost one decision.
const BATCH_MAX: usize = 64;

/// The swarm's owner.
pub(crate) struct Driver {
    swarm: Swarm,
    epoch: Instant,
    net: Arc<Net>,
    store: Store,
    announcer: Announcer,
    conns: BTreeMap<ConnId, Conn>,
    torrents: BTreeMap<TorrentKey, Entry>,
    /// Connections with frames queued since the last flush.
    unflushed: BTreeSet<ConnId>,
    next_job: u64,
}

/// The driver's side of a connection.
struct Conn {
    outbox: Arc<Outbox>,
    /// What its payload counts as.
    from: From,
}

impl Driver {
    pub(crate) fn new(swarm: Swarm, net: Arc<Net>, store: Store, announcer: Announcer) -> Self {
        Self {
            swarm,
            epoch: Instant::now(),
            net,
            store,
            announcer,
            conns: BTreeMap::new(),
            torrents: BTreeMap::new(),
            unflushed: BTreeSet::new(),
            next_job: 0,
        }
    }

    /// Drives the swarm until the node shuts down; connections end with it.
    pub(crate) async fn run(mut self, mut mailbox: Mailbox, mut evictions: broadcast::Receiver<Digest>) {
        let readers = mailbox.readers();
        let mut inputs = Vec::with_capacity(BATCH_MAX);
        let shutdown = self.net.handle.shutdown.clone();
        // Also when this panics: without it nobody would answer those who wait.
        let _end = shutdown.clone().drop_guard();
        loop {
            let wake = self.swarm.poll_timeout().map(|(at, _reason)| self.epoch + at.since(Time::ZERO));
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = mailbox.receive(&mut inputs, BATCH_MAX) => {}
                () = sleep_until(wake.unwrap_or(self.epoch)), if wake.is_some() => {
                    let now = self.now();
                    self.swarm.handle_timeout(now);
                }
                moved = readers.changed() => moved.iter().for_each(|digest| self.sync_readers(digest)),
                gone = evictions.recv() => self.blob_gone(gone),
            }
            for input in inputs.drain(..) {
                self.apply(input);
                self.act_all();
            }
            self.drain();
        }
        self.conns.values().for_each(|conn| conn.outbox.close());
    }

    fn now(&self) -> Time {
        Time::ZERO + self.epoch.elapsed()
    }

    fn apply(&mut self, input: Input) {
        let now = self.now();
        match input {
            Input::Connected(connected) => self.connected(now, connected),
            Input::DialFailed(peer) => self.swarm.handle_dial_failed(now, peer),
            Input::Disconnected(conn) => self.disconnected(now, conn),
            Input::Malformed(conn) => self.swarm.handle_malformed(now, conn),
            Input::Message(conn, message) => self.swarm.handle_message(now, conn, message),
            Input::Block { conn, header, payload, _place } => self.block(now, conn, header, payload),
            Input::BlocksSent { conn, blocks } => {
                blocks.into_iter().for_each(|block| self.swarm.handle_block_sent(now, conn, block));
            }
            Input::Written { torrent, piece, job, received, result } => {
                self.written(now, torrent, piece, job, &received, result);
            }
            Input::Committed { torrent, result } => self.committed(now, torrent, result),
            Input::Ingested { digest, piece, bytes } => self.ingested(now, &digest, piece, bytes),
            Input::Grown(digest) => self.grown(now, &digest),
            Input::Join { partial, reply } => {
                // Nobody may wait for the answer any more; the torrent goes on all the same.
                let _ = reply.send(self.join(now, partial));
            }
            Input::ReleaseIdle { done } => {
                self.release_idle(now);
                // The caller may have gone.
                let _ = done.send(());
            }
            Input::Withdraw { digest, reason, done } => self.withdraw(now, digest, reason, done),
            Input::FindMetainfo(digest) => {
                if let Some(key) = self.swarm.key(&digest) {
                    self.swarm.find_metainfo(now, key);
                }
            }
            Input::MetainfoRead { conn, torrent, metainfo } => {
                let metainfo = metainfo.as_ref().map(|(metainfo, seal)| (metainfo.hashes(), seal.clone()));
                self.swarm.give_metainfo(now, conn, torrent, metainfo);
            }
            Input::MetainfoChecked { torrent, good } => self.swarm.handle_metainfo_checked(now, torrent, good),
            Input::Peers { digest, peers, lead } => {
                if let Some(key) = self.swarm.key(&digest) {
                    if let Some(lead) = lead {
                        self.swarm.lead(now, key, lead);
                    }
                    self.swarm.add_peers(now, key, &peers);
                }
            }
        }
    }

    /// Sends and does all that the swarm asks for.
    fn drain(&mut self) {
        loop {
            while let Some(transmit) = self.swarm.poll_transmit() {
                self.transmit(transmit);
            }
            if !self.act_all() {
                break;
            }
        }
        for conn in std::mem::take(&mut self.unflushed) {
            if let Some(conn) = self.conns.get(&conn) {
                conn.outbox.flush();
            }
        }
        self.net.handle.counters.connections.store(self.conns.len(), Relaxed);
    }

    /// Does what the swarm's events ask for; tells whether there was any.
    fn act_all(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.swarm.poll_event() {
            any = true;
            self.act(event);
        }
        any
    }

    fn act(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Dial(peer) => {
                self.net.tasks.spawn(dial(self.net.clone(), peer));
            }
            Event::Disconnect { conn, reason } => self.disconnect(conn, reason),
            Event::PieceReceived { torrent, piece } => self.piece_received(torrent, piece),
            Event::PieceDropped { torrent, piece } => {
                if let Some(entry) = self.torrents.get_mut(&torrent) {
                    count(&self.net.handle.counters.dropped, entry.drop_piece(piece));
                }
            }
            Event::TorrentWanted(digest) => self.wanted(now, &digest),
            Event::TorrentIdle(torrent) => self.idle(now, torrent),
            Event::FindTorrent { digest, query } => {
                let held = self.store.contains(&digest);
                self.swarm.handle_find_answer(now, query, digest, held);
            }
            Event::MetainfoAsked { torrent, conn } => self.read_metainfo(torrent, conn),
            Event::MetainfoFound { torrent, hashes, seal } => self.check_metainfo(torrent, hashes, seal),
            Event::Banned { who, length } => info!(?who, ?length, "a peer lied or broke the protocol, and is banned"),
        }
    }

    fn connected(&mut self, now: Time, connected: Connected) {
        let Connected { conn, remote, peer, dialled, outbox } = connected;
        debug!(peer = %peer.id, %remote, dialled, "connected");
        let from = From::of(&self.net.me, &peer);
        self.conns.insert(conn, Conn { outbox, from });
        self.swarm.handle_connected(now, conn, remote.ip(), peer, dialled);
    }

    fn disconnected(&mut self, now: Time, conn: ConnId) {
        // When we closed it the swarm knows already.
        if self.conns.remove(&conn).is_some() {
            self.swarm.handle_disconnected(now, conn);
        }
    }

    /// Closes a connection at the swarm's wish.
    fn disconnect(&mut self, conn: ConnId, reason: DisconnectReason) {
        let Some(closed) = self.conns.remove(&conn) else { return };
        debug!(?conn, ?reason, "closing a connection");
        closed.outbox.close();
        match reason {
            DisconnectReason::Violation(_)
            | DisconnectReason::BadPiece
            | DisconnectReason::FalseMetainfo
            | DisconnectReason::Snubbed => {
                count(&self.net.handle.counters.violations, 1);
            }
            DisconnectReason::Duplicate | DisconnectReason::Surplus | DisconnectReason::Banned => {}
        }
    }

    fn block(&mut self, now: Time, conn: ConnId, header: BlockHeader, payload: bytes::Bytes) {
        let Some(from) = self.conns.get(&conn).map(|conn| conn.from) else { return };
        let counters = &self.net.handle.counters;
        let length = payload.len() as u64;
        match self.swarm.handle_block(now, conn, header) {
            Ok(BlockOutcome::Accepted { torrent, block }) => {
                if let Some(entry) = self.torrents.get_mut(&torrent) {
                    entry.add_block(block, from, payload);
                }
            }
            Ok(BlockOutcome::Duplicate) => count(&counters.duplicate, length),
            // The swarm closes the connection.
            Err(_violation) => count(&counters.dropped, length),
        }
    }

    fn transmit(&mut self, Transmit { conn, frame }: Transmit) {
        let Some(to) = self.conns.get(&conn) else { return };
        self.unflushed.insert(conn);
        let queued = match frame {
            Frame::Control(message) => to.outbox.push_control(&message),
            Frame::Block { torrent, block } => match self.torrents.get(&torrent) {
                Some(entry) => {
                    to.outbox.push_block(OutgoingBlock {
                        torrent,
                        block,
                        payload: Payload::begin(entry.source(), block),
                    });
                    Ok(())
                }
                None => {
                    // Closed since: what was promised is taken back.
                    let blocks = vec![WireBlock::from(block)];
                    let queued = to.outbox.push_control(&Message::Reject { alias: torrent.alias(), blocks });
                    let now = self.now();
                    self.swarm.handle_block_sent(now, conn, block);
                    queued
                }
            },
        };
        if let Err(full) = queued {
            debug!(?conn, ?full, "closing a connection");
            count(&self.net.handle.counters.violations, 1);
            if let Some(closed) = self.conns.remove(&conn) {
                closed.outbox.close();
            }
            let now = self.now();
            self.swarm.handle_disconnected(now, conn);
        }
    }

    fn is_origin(&self) -> bool {
        self.net.me.role == Role::Origin
    }
}
