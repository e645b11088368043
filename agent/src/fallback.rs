//! The ladder a blob climbs down when the swarm does not deliver: peers and origin, then upstream as a web seed (BEP 19).
//!
//! One runs for each download. It watches the piece somebody needs; when that makes no progress it fetches from upstream
//! from that piece on, with a client's own access, and hands the pieces to the torrent, until the swarm delivers again.
//! It knows nothing of HTTP bodies: readers see the pieces appear, or learn that every source failed.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use shoal_meta::PieceIndex;
use shoal_peer::{Node, Torrent, TorrentError};
use shoal_registry::{BlobBody, Givers, UpstreamError};
use shoal_store::WriteError;
use tokio::time::{Instant, sleep, sleep_until};

use crate::blobs::Blobs;
use crate::download::{Download, Link};
use crate::metrics::Fallback;

/// A needed piece that waits longer than this many stall time-outs is fetched from upstream although others arrive.
const HEDGE_FACTOR: u32 = 5;
/// An origin that is not away and has not published the needed piece is itself waiting for upstream: it gets this many stall
/// time-outs, as going there beside it gains little and costs a copy.
const ORIGIN_FACTOR: u32 = 4;
/// Where upstream may not be asked, nothing is gained by giving the swarm up sooner than after this many stall time-outs.
const OFFLINE_FACTOR: u32 = 20;
/// How long a node without peers waits for a tracker that answers to name some, who may know what the origin said.
const INTRODUCTION: Duration = Duration::from_millis(500);
/// How often the connected peers are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long readers are told that every source failed, before upstream is tried again for new ones.
const EXHAUSTED_FOR: Duration = Duration::from_secs(5);

/// Watches over one download.
#[derive(Debug)]
pub(crate) struct Ladder<'a> {
    /// The download.
    pub(crate) download: &'a Download,
    /// Its torrent.
    pub(crate) torrent: &'a Torrent,
    /// The room it belongs to.
    pub(crate) blobs: &'a Blobs,
    /// Who gave what came from upstream last.
    pub(crate) givers: Mutex<Givers>,
}

impl Ladder<'_> {
    /// Works until the store fails the torrent, and says how: the blob can then only be read past the store.
    pub(crate) async fn run(&self) -> TorrentError {
        loop {
            // A blob that turns out wrong as a whole lacks its pieces again before its torrent says that it is over: whoever
            // waits for that beside this ladder is let on before it looks again.
            tokio::task::yield_now().await;
            let changed = self.download.readers_changed();
            let Some(piece) = self.download.needed() else {
                changed.await;
                continue;
            };
            if let Some(reason) = self.swarm_fails(piece).await {
                tracing::info!(digest = %self.download.digest(), piece = piece.get(), reason = reason.as_str(), "going upstream");
                self.blobs.counters.fell_back(reason);
                if let Err(error) = self.seed_from_upstream(piece).await {
                    return error;
                }
            }
        }
    }

    /// Waits for the swarm to bring a piece. Says why to stop waiting; `None` when there is nothing to wait for any more.
    async fn swarm_fails(&self, piece: PieceIndex) -> Option<Fallback> {
        let since = Instant::now();
        let mut link = self.download.link();
        loop {
            let origin = *link.borrow_and_update();
            if origin == Link::Away && self.is_alone(since) {
                return Some(Fallback::Alone);
            }
            let deadline = self.deadline(piece, since, origin);
            if Instant::now() >= deadline {
                return Some(Fallback::Stalled);
            }
            tokio::select! {
                biased;
                arrived = self.torrent.wait_piece(piece) => match arrived {
                    Ok(()) => return None,
                    // The torrent is over, and with it this ladder.
                    Err(_) => std::future::pending().await,
                },
                _ = link.changed() => {}
                () = sleep_until(deadline.min(Instant::now() + TICK)) => {}
            }
            // A reader that jumped ahead or left needs another piece.
            if self.download.needed() != Some(piece) {
                return None;
            }
        }
    }

    /// Whether there is nobody to wait for, when no origin answers.
    fn is_alone(&self, since: Instant) -> bool {
        let node = &self.blobs.node;
        let status = node.status();
        let introduced = !node.identity().is_plaintext() && status.trackers_up > 0 && since.elapsed() < INTRODUCTION;
        status.connections == 0 && !introduced
    }

    /// When a piece that somebody needs since `since` counts as stalled.
    fn deadline(&self, piece: PieceIndex, since: Instant, origin: Link) -> Instant {
        let stall = self.blobs.stall_timeout;
        if self.blobs.upstream.is_offline() || self.download.access().is_ticket() {
            return since.max(self.blobs.pulse.last()) + stall * OFFLINE_FACTOR;
        }
        let published = self.download.partial().metainfo().hash(piece).is_some();
        let limit = if origin != Link::Away && !published { stall * ORIGIN_FACTOR } else { stall };
        (since.max(self.blobs.pulse.last()) + limit).min(since + stall * HEDGE_FACTOR)
    }

    /// Fetches what is missing from upstream, from a piece on, until the swarm delivers again or the end.
    async fn seed_from_upstream(&self, first: PieceIndex) -> Result<(), TorrentError> {
        let Ok(_permit) = self.blobs.web_seeds.acquire().await else { return Ok(()) };
        let (before, mut next) = (self.swarm_bytes(), Some(first));
        let error = loop {
            let Some(piece) = next else { return Ok(()) };
            match self.stream_pieces(piece, before).await {
                // Behind what the node has already, the next gap: a swarm that is still silent is not waited for again.
                Ok(()) => next = self.download.needed().filter(|next| *next > piece && self.swarm_bytes() == before),
                Err(Failure::Upstream(error)) => break error,
                Err(Failure::Torrent(error)) => return Err(error),
            }
        };
        tracing::warn!(digest = %self.download.digest(), %error, "every source of a blob failed");
        self.download.set_exhausted(error);
        let mut progress = self.torrent.progress();
        progress.mark_unchanged();
        tokio::select! {
            _ = progress.changed() => {}
            () = sleep(EXHAUSTED_FOR) => {}
        }
        self.download.clear_exhausted();
        Ok(())
    }

    /// Fetches the pieces from one on up to the next that is here, or until the swarm has brought more than `before`.
    async fn stream_pieces(&self, first: PieceIndex, before: u64) -> Result<(), Failure> {
        let geometry = self.download.geometry();
        let start = geometry.piece_range(first).start;
        let (access, digest) = (self.download.access(), self.download.digest());
        let body = tokio::select! {
            biased;
            // First: upstream is not asked for what is here.
            Ok(()) = self.torrent.wait_piece(first) => return Ok(()),
            body = self.blobs.upstream.blob(&access, &digest, start) => body?,
        };
        if body.length != geometry.length() {
            return Err(UpstreamError::Protocol(format!("the blob has {} bytes", body.length)).into());
        }
        *self.givers.lock().expect("nothing panics while it holds this lock") = body.givers();
        let mut body = Cutter { body, rest: Bytes::new() };
        for index in first.get()..geometry.piece_count() {
            let Some(piece) = geometry.piece(index) else { break };
            // A swarm that lives again takes over, and what it brought meanwhile is not fetched twice.
            if self.swarm_bytes() > before || self.download.partial().have().contains(piece) {
                return Ok(());
            }
            let blocks = tokio::select! {
                biased;
                blocks = body.take(geometry.length_of(piece) as usize) => blocks?,
                Ok(()) = self.torrent.wait_piece(piece) => return Ok(()),
            };
            self.blobs.counters.upstream_bytes.inc_by(geometry.length_of(piece).into());
            match self.torrent.ingest(piece, blocks).await {
                Ok(_) => {}
                Err(error @ TorrentError::Write(WriteError::HashMismatch { .. })) => {
                    self.blame(&error);
                    return Err(UpstreamError::Protocol(error.to_string()).into());
                }
                Err(error) => return Err(Failure::Torrent(error)),
            }
        }
        Ok(())
    }

    /// Leaves mirrors alone that gave what was found to be wrong.
    pub(crate) fn blame(&self, error: &TorrentError) {
        if matches!(
            error,
            TorrentError::Write(WriteError::HashMismatch { .. })
                | TorrentError::Failed(shoal_peer::Failure::WrongContent { .. })
        ) {
            let _any = self.givers.lock().expect("nothing panics while it holds this lock").disown();
        }
    }

    /// The bytes of this torrent that peers and origin brought.
    fn swarm_bytes(&self) -> u64 {
        let received = self.torrent.progress().borrow().received;
        received.total() - received.upstream
    }
}

/// Why pieces no longer come from upstream.
enum Failure {
    /// Upstream gives them no more, or wrong ones.
    Upstream(UpstreamError),
    /// The torrent or the disk does not take them.
    Torrent(TorrentError),
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Self {
        Self::Upstream(error)
    }
}

/// Cuts a body into runs of an exact length.
struct Cutter {
    body: BlobBody,
    rest: Bytes,
}

impl Cutter {
    async fn take(&mut self, mut length: usize) -> Result<Vec<Bytes>, UpstreamError> {
        let mut blocks = Vec::new();
        while length > 0 {
            if self.rest.is_empty() {
                self.rest = match self.body.next().await {
                    Some(bytes) => bytes?,
                    None => return Err(UpstreamError::Protocol("the blob ended early".to_owned())),
                };
            }
            let taken = self.rest.split_to(length.min(self.rest.len()));
            length -= taken.len();
            blocks.push(taken);
        }
        Ok(blocks)
    }
}

/// When the swarm last brought this node anything, over all its torrents: a node that is busy elsewhere is not stalled.
pub(crate) struct Pulse {
    node: Node,
    /// The bytes received when last looked at, and when they were last seen to grow.
    seen: Mutex<(u64, Instant)>,
}

impl Pulse {
    pub(crate) fn new(node: Node) -> Self {
        Self { node, seen: Mutex::new((0, Instant::now())) }
    }

    fn last(&self) -> Instant {
        let received = self.node.status().received;
        let from_swarm = received.total() - received.upstream;
        let mut seen = self.seen.lock().expect("nothing panics while it holds this lock");
        if seen.0 != from_swarm {
            *seen = (from_swarm, Instant::now());
        }
        seen.1
    }
}
