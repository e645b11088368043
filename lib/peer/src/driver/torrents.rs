//! Torrents as the driver sees them: joined, fed by peers or upstream, committed, served from the store, given up.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use shoal_meta::{Bitfield, Digest, PieceIndex};
use shoal_store::{Blob, CommitError, Partial, Source, WriteError};
use shoal_swarm::{OpenTorrent, Time, TorrentKey};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::Driver;
use crate::announce::LocalState;
use crate::counters::{From, count};
use crate::entry::{Entry, Stage};
use crate::mailbox::Input;
use crate::node::JoinError;
use crate::torrent::{Failure, Shared};

/// Pieces in a row that the disk may refuse before the torrent is given up: each was fetched for nothing.
const DISK_FAILURES_MAX: u32 = 3;

impl Driver {
    pub(super) fn join(&mut self, now: Time, partial: Partial) -> Result<Arc<Shared>, JoinError> {
        let digest = partial.digest();
        if let Some(key) = self.swarm.key(&digest)
            && let Some(entry) = self.torrents.get(&key)
        {
            if entry.is_leeching() || self.store.contains(&digest) {
                return Ok(entry.shared.clone());
            }
            // Of a blob that has left the store, of which we have not heard yet.
            self.close(now, key);
        }
        let (known, geometry) = (partial.metainfo().known(), partial.geometry());
        let shared = Shared::new(Source::Partial(partial));
        let wanted = Bitfield::empty(&geometry);
        let torrent =
            OpenTorrent { digest, geometry, have: shared.have(), known, wanted, super_seed: self.is_origin() };
        let key = match self.open(now, &shared, torrent.clone()) {
            Some(key) => key,
            None => {
                self.release_idle(now);
                self.open(now, &shared, torrent).ok_or(JoinError::TooMany)?
            }
        };
        info!(%digest, length_bytes = shared.geometry.length(), "joined a torrent");
        self.announcer.set(digest, LocalState::Leeching);
        self.commit_if_full(key);
        Ok(shared)
    }

    /// A peer opened a torrent that we have not: serve it if the blob is here.
    pub(super) fn wanted(&mut self, now: Time, digest: &Digest) {
        if self.swarm.key(digest).is_some() {
            return;
        }
        let Some(blob) = self.store.blob(digest) else { return };
        let geometry = blob.geometry();
        let shared = Shared::new(Source::Blob(blob));
        let (have, wanted, known) = (Bitfield::full(&geometry), Bitfield::full(&geometry), geometry.piece_count());
        let torrent = OpenTorrent { digest: *digest, geometry, have, known, wanted, super_seed: false };
        // When too many torrents are open the peer finds another seeder.
        let _ = self.open(now, &shared, torrent);
    }

    fn open(&mut self, now: Time, shared: &Arc<Shared>, torrent: OpenTorrent) -> Option<TorrentKey> {
        let key = self.swarm.open(now, torrent)?;
        self.torrents.insert(key, Entry::new(shared.clone()));
        self.count_torrents();
        Some(key)
    }

    /// Closes a torrent; its handles stay as they are.
    pub(super) fn close(&mut self, now: Time, key: TorrentKey) {
        self.swarm.close(now, key);
        self.torrents.remove(&key);
        self.count_torrents();
    }

    /// Closes what is whole here and wanted by no connected peer: the store may evict it then.
    pub(super) fn release_idle(&mut self, now: Time) {
        self.swarm.release_idle(now);
        self.act_all();
    }

    pub(super) fn idle(&mut self, now: Time, key: TorrentKey) {
        // While the store checks the whole somebody waits for it.
        if self.torrents.get(&key).is_some_and(|entry| !entry.is_leeching()) {
            debug!(torrent = ?key, "closing an idle torrent");
            self.close(now, key);
        }
    }

    fn count_torrents(&self) {
        let counters = &self.net.handle.counters;
        counters.torrents.store(self.torrents.len(), Relaxed);
        counters.leeching.store(self.torrents.values().filter(|entry| entry.is_leeching()).count(), Relaxed);
    }

    pub(super) fn sync_readers(&mut self, digest: &Digest) {
        let now = self.now();
        if let Some(key) = self.swarm.key(digest)
            && let Some(entry) = self.torrents.get_mut(&key)
        {
            entry.sync_readers(&mut self.swarm, now, key);
        }
    }

    /// Every block of a piece is in: the store verifies and writes it.
    pub(super) fn piece_received(&mut self, key: TorrentKey, piece: PieceIndex) {
        let job = self.next_job;
        self.next_job += 1;
        let Some(entry) = self.torrents.get_mut(&key) else { return };
        let whole = entry.take_piece(piece, job);
        let Some(partial) = entry.partial().cloned() else { return };
        let handle = self.net.handle.clone();
        self.net.tasks.spawn(async move {
            let result = partial.write_piece(piece, whole.blocks).await;
            let written = Input::Written { torrent: key, piece, job, received: whole.received, result };
            // The driver's end is the node's end.
            let _ = handle.send(written).await;
        });
    }

    pub(super) fn written(
        &mut self,
        now: Time,
        key: TorrentKey,
        piece: PieceIndex,
        job: u64,
        received: &[(From, u64)],
        result: Result<(), WriteError>,
    ) {
        let counters = self.net.handle.counters.clone();
        let Some(entry) = self.torrents.get_mut(&key) else { return };
        let awaited = entry.end_job(piece, job);
        let bytes = received.iter().map(|(_, bytes)| bytes).sum();
        match result {
            Ok(()) => {
                entry.disk_failed(false);
                received.iter().for_each(|&(from, bytes)| counters.received(from, bytes));
                count(&counters.verified, 1);
                if awaited {
                    self.swarm.handle_verified(now, key, piece, true);
                } else {
                    self.swarm.add_piece(now, key, piece);
                }
                self.had(key, piece, received);
            }
            Err(WriteError::HashMismatch { .. }) => {
                count(&counters.bad_piece, bytes);
                if awaited {
                    self.swarm.handle_verified(now, key, piece, false);
                }
            }
            Err(error @ WriteError::Withdrawn) => self.fail(now, key, error.into()),
            Err(error @ (WriteError::Disk(_) | WriteError::Length { .. } | WriteError::UnknownHash { .. })) => {
                count(&counters.dropped, bytes);
                self.write_failed(now, key, piece, awaited, error);
            }
        }
    }

    fn write_failed(&mut self, now: Time, key: TorrentKey, piece: PieceIndex, awaited: bool, error: WriteError) {
        let Some(entry) = self.torrents.get_mut(&key) else { return };
        let failures = entry.disk_failed(true);
        warn!(digest = %entry.shared.digest, piece = piece.get(), error = chain(&error), "cannot write a piece");
        if failures >= DISK_FAILURES_MAX {
            self.fail(now, key, error.into());
        } else if awaited {
            self.swarm.handle_write_failed(now, key, piece);
        }
    }

    pub(super) fn ingested(&mut self, now: Time, digest: &Digest, piece: PieceIndex, bytes: u64) {
        let Some(key) = self.swarm.key(digest) else { return };
        let Some(partial) = self.torrents.get(&key).and_then(Entry::partial) else { return };
        self.swarm.set_known(now, key, partial.metainfo().known());
        self.swarm.add_piece(now, key, piece);
        if bytes > 0 {
            count(&self.net.handle.counters.verified, 1);
        }
        self.had(key, piece, &[(From::Upstream, bytes)]);
    }

    /// More hashes are known, and the store may have verified more of what an earlier run left.
    pub(super) fn grown(&mut self, now: Time, digest: &Digest) {
        let Some(key) = self.swarm.key(digest) else { return };
        let Some(entry) = self.torrents.get(&key) else { return };
        let Some(partial) = entry.partial() else { return };
        let found: Vec<_> =
            partial.have().iter().filter(|&piece| !entry.shared.has(piece) && !entry.is_writing(piece)).collect();
        self.swarm.set_known(now, key, partial.metainfo().known());
        for piece in found {
            self.swarm.add_piece(now, key, piece);
            self.had(key, piece, &[]);
        }
    }

    /// A piece is verified and on disk.
    fn had(&mut self, key: TorrentKey, piece: PieceIndex, received: &[(From, u64)]) {
        let Some(entry) = self.torrents.get(&key) else { return };
        entry.shared.add_piece(piece, received);
        self.commit_if_full(key);
    }

    fn commit_if_full(&mut self, key: TorrentKey) {
        let Some(entry) = self.torrents.get_mut(&key) else { return };
        let Stage::Leeching(partial) = &entry.stage else { return };
        if !entry.shared.is_full() {
            return;
        }
        let partial = partial.clone();
        entry.stage = Stage::Committing(partial.clone());
        let handle = self.net.handle.clone();
        self.net.tasks.spawn(async move {
            let result = partial.commit().await;
            // The driver's end is the node's end.
            let _ = handle.send(Input::Committed { torrent: key, result }).await;
        });
    }

    pub(super) fn committed(&mut self, now: Time, key: TorrentKey, result: Result<Blob, CommitError>) {
        let Some(entry) = self.torrents.get_mut(&key) else { return };
        match result {
            Ok(blob) => {
                let digest = blob.digest();
                info!(%digest, "committed a blob");
                entry.stage = Stage::Seeding(Source::Blob(blob.clone()));
                let shared = entry.shared.clone();
                count(&self.net.handle.counters.committed, 1);
                self.count_torrents();
                self.announcer.set(digest, LocalState::Seeding);
                // Last: who waits for it sees the rest.
                shared.commit(blob);
            }
            Err(error) => self.fail(now, key, error.into()),
        }
    }

    /// Gives a torrent up, here and at every peer.
    fn fail(&mut self, now: Time, key: TorrentKey, failure: Failure) {
        let Some(entry) = self.torrents.get(&key) else { return };
        let shared = entry.shared.clone();
        warn!(digest = %shared.digest, error = chain(&failure), "a torrent was given up");
        self.close(now, key);
        self.announcer.remove(shared.digest);
        shared.fail(failure);
    }

    pub(super) fn withdraw(&mut self, now: Time, digest: Digest, reason: String, done: oneshot::Sender<()>) {
        if let Some(key) = self.swarm.key(&digest) {
            self.fail(now, key, Failure::Withdrawn(reason));
        }
        self.announcer.remove(digest);
        let store = self.store.clone();
        self.net.tasks.spawn(async move {
            store.remove(&digest).await;
            // The caller may have gone.
            let _ = done.send(());
        });
    }

    /// A committed blob left the store.
    pub(super) fn blob_gone(&mut self, gone: Result<Digest, RecvError>) {
        let gone = match gone {
            Ok(digest) => vec![digest],
            Err(RecvError::Lagged(_)) => self.announcer.seeding(),
            Err(RecvError::Closed) => return,
        };
        let now = self.now();
        for digest in gone {
            if self.store.contains(&digest) {
                continue;
            }
            let key = self.swarm.key(&digest);
            match key.and_then(|key| self.torrents.get(&key)).map(Entry::is_leeching) {
                // Fetched anew already.
                Some(true) => continue,
                Some(false) => key.into_iter().for_each(|key| self.close(now, key)),
                None => {}
            }
            self.announcer.remove(digest);
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        out.push_str(": ");
        out.push_str(&error.to_string());
        cause = error.source();
    }
    out
}
