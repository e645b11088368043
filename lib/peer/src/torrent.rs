//! The handle on one torrent, and what it shares with the driver: progress, verified pieces, readers.
//!
//! Used by the agent's bodies and the origin's ingest. It must not know of connections or of the swarm's state.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use shoal_meta::{Bitfield, Digest, Geometry, PieceHash, PieceIndex};
use shoal_store::{Blob, CommitError, ExtendError, Source, WriteError};
use tokio::sync::watch;

use crate::counters::{From, ReceivedBytes};
use crate::mailbox::{Handle, Input};

/// How far a torrent is.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Pieces verified on disk.
    pub have: u32,
    /// Pieces of the blob.
    pub pieces: u32,
    /// Where the torrent stands.
    pub state: TorrentState,
    /// Payload bytes verified and written since it was joined, by where they came from.
    pub received: ReceivedBytes,
}

/// Where a torrent stands.
#[derive(Debug, Clone)]
pub enum TorrentState {
    /// Pieces are missing, or the whole is being checked. Left when the blob is committed or given up.
    Leeching,
    /// The whole blob is verified and in the store. Never left.
    Committed,
    /// Given up and withdrawn. Never left; joining again starts anew.
    Failed(Failure),
}

/// Says why a torrent was given up.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// Every piece matched its hash and the whole is another blob: fault of whoever published the hashes, upstream if
    /// they are our own. What arrived is gone. Not retryable before others are published.
    #[error("the content has the digest {computed}")]
    WrongContent {
        /// The digest of what arrived.
        computed: Digest,
    },
    /// The disk failed or is full, for pieces in a row or for the whole: our fault. Retryable once an operator has made
    /// room; until then the blob can only pass by the store.
    #[error("the disk does not take the blob")]
    Disk(#[source] Arc<io::Error>),
    /// A caller of [`Node::withdraw`](crate::Node::withdraw) or the store took it away, for the reason told. Retryable as
    /// far as that reason is.
    #[error("the blob was withdrawn: {0}")]
    Withdrawn(String),
}

/// Says why a torrent did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TorrentError {
    /// The torrent was given up.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Closed,
    /// An ingested piece was not written.
    #[error("an ingested piece was not written")]
    Write(#[source] WriteError),
    /// Piece hashes were not added.
    #[error("piece hashes were not added")]
    Hashes(#[source] ExtendError),
}

impl Failure {
    /// The failure as a label of metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::WrongContent { .. } => "wrong_content",
            Self::Disk(_) => "disk",
            Self::Withdrawn(_) => "withdrawn",
        }
    }
}

impl std::convert::From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::DigestMismatch { computed } => Self::WrongContent { computed },
            CommitError::Disk(error) => Self::Disk(Arc::new(error)),
            CommitError::Incomplete { .. } | CommitError::Withdrawn => Self::Withdrawn(error.to_string()),
        }
    }
}

impl std::convert::From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Disk(error) => Self::Disk(Arc::new(error)),
            WriteError::Length { .. }
            | WriteError::HashMismatch { .. }
            | WriteError::UnknownHash { .. }
            | WriteError::Withdrawn => Self::Withdrawn(error.to_string()),
        }
    }
}

/// A handle on one blob of the swarm; clones share it. Dropping it stops nothing.
#[derive(Clone)]
pub struct Torrent {
    pub(crate) shared: Arc<Shared>,
    pub(crate) node: Handle,
}

/// Someone who reads the blob in order: the swarm prefers the pieces ahead of it. Dropping it takes the wish back.
#[derive(Debug)]
pub struct Reader {
    torrent: Torrent,
    number: u64,
    piece: Option<PieceIndex>,
}

/// What the driver and all handles of a torrent share.
pub(crate) struct Shared {
    pub(crate) digest: Digest,
    pub(crate) geometry: Geometry,
    progress: watch::Sender<Progress>,
    state: Mutex<State>,
}

struct State {
    have: Bitfield,
    source: Source,
    readers: BTreeMap<u64, PieceIndex>,
    next_reader: u64,
    /// Pieces wanted since the driver looked.
    wanted: Option<Bitfield>,
}

impl Torrent {
    /// The blob's digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.shared.digest
    }

    /// The blob's cut.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    /// How far it is, now and from now on.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Waits until a piece is verified and on disk.
    ///
    /// # Errors
    /// When the torrent is given up or the node shuts down first.
    pub async fn wait_piece(&self, piece: PieceIndex) -> Result<(), TorrentError> {
        self.wait(|_| self.shared.has(piece).then_some(())).await
    }

    /// Wants these pieces too. Nothing takes that back.
    pub fn want(&self, pieces: &Bitfield) {
        self.shared.want(pieces);
        self.node.readers_changed(self.digest());
    }

    /// Asks for the pieces from this offset on before others, until the reader is dropped.
    #[must_use]
    pub fn reader(&self, from: u64) -> Reader {
        let number = self.shared.new_reader();
        let mut reader = Reader { torrent: self.clone(), number, piece: None };
        reader.advance(from);
        reader
    }

    /// Adds the hashes of pieces `first..` as the origin published them. Repeating those known is harmless.
    ///
    /// # Errors
    /// [`TorrentError::Hashes`] when they leave a gap or contradict those known, or cannot be persisted.
    pub async fn extend_hashes(&self, first: u32, hashes: Vec<PieceHash>) -> Result<(), TorrentError> {
        let Source::Partial(partial) = self.read_source() else { return Ok(()) };
        partial.extend_hashes(first, &hashes).await.map_err(TorrentError::Hashes)?;
        // What an earlier run left on disk can be verified now; if it cannot be read it is fetched again.
        if let Err(error) = partial.recheck().await {
            tracing::warn!(digest = %self.digest(), %error, "cannot recheck a partial blob");
        }
        self.node.send(Input::Grown(self.digest())).await.map_err(|_closed| TorrentError::Closed)
    }

    /// Asks connected peers for the hashes, as no origin tells them. What an origin has sealed is taken in as if it came from
    /// there. A hint: lost when the node has no time for it, and without certificates, which seals are checked against.
    pub fn find_metainfo(&self) {
        let _ = self.node.try_send(Input::FindMetainfo(self.digest()));
    }

    /// Adds a piece that came from upstream: the origin's way, and the agent's when it falls back. Gives its hash, unless
    /// that of the piece before is not known yet.
    ///
    /// # Errors
    /// [`TorrentError::Write`] when it does not match its known hash, or the disk fails; [`TorrentError::Failed`] when
    /// the torrent was given up.
    pub async fn ingest(&self, piece: PieceIndex, blocks: Vec<Bytes>) -> Result<Option<PieceHash>, TorrentError> {
        let partial = match self.read_source() {
            Source::Partial(partial) => partial,
            Source::Blob(blob) => return Ok(blob.metainfo().hash(piece)),
        };
        let bytes = u64::from(self.shared.geometry.length_of(piece));
        let new = !self.shared.has(piece);
        let hash = partial.ingest_piece(piece, blocks).await.map_err(|error| self.ingest_error(error))?;
        if new {
            self.node.counters.received(From::Upstream, bytes);
        }
        let ingested = Input::Ingested { digest: self.digest(), piece, bytes: if new { bytes } else { 0 } };
        self.node.send(ingested).await.map_err(|_closed| TorrentError::Closed)?;
        Ok(hash)
    }

    /// Where verified bytes can be read: the blob once it is committed, the partial before.
    #[must_use]
    pub fn read_source(&self) -> Source {
        self.shared.state().source.clone()
    }

    /// Waits for the whole blob.
    ///
    /// # Errors
    /// When the torrent is given up or the node shuts down first.
    pub async fn committed(&self) -> Result<Blob, TorrentError> {
        let blob = |progress: &Progress| match self.shared.state().source.clone() {
            Source::Blob(blob) if matches!(progress.state, TorrentState::Committed) => Some(blob),
            Source::Blob(_) | Source::Partial(_) => None,
        };
        self.wait(blob).await
    }

    fn ingest_error(&self, error: WriteError) -> TorrentError {
        match (error, &self.shared.progress.borrow().state) {
            (WriteError::Withdrawn, TorrentState::Failed(failure)) => failure.clone().into(),
            (error, _) => TorrentError::Write(error),
        }
    }

    /// Waits for something to come true as progress is made.
    async fn wait<T>(&self, done: impl Fn(&Progress) -> Option<T>) -> Result<T, TorrentError> {
        let mut progress = self.progress();
        loop {
            {
                let now = progress.borrow_and_update();
                if let Some(out) = done(&now) {
                    return Ok(out);
                }
                if let TorrentState::Failed(failure) = &now.state {
                    return Err(failure.clone().into());
                }
            }
            tokio::select! {
                changed = progress.changed() => changed.map_err(|_| TorrentError::Closed)?,
                () = self.node.shutdown.cancelled() => return Err(TorrentError::Closed),
            }
        }
    }
}

impl fmt::Debug for Torrent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Torrent({})", self.shared.digest)
    }
}

impl Reader {
    /// Says that everything before this offset is read.
    pub fn advance(&mut self, offset: u64) {
        let piece = self.torrent.shared.geometry.piece_at(offset);
        if piece != self.piece {
            self.piece = piece;
            self.torrent.shared.set_reader(self.number, piece);
            self.torrent.node.readers_changed(self.torrent.digest());
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.torrent.shared.set_reader(self.number, None);
        self.torrent.node.readers_changed(self.torrent.digest());
    }
}

impl Shared {
    pub(crate) fn new(source: Source) -> Arc<Self> {
        let (digest, geometry, have) = (source.digest(), source.geometry(), source.have());
        let state = match source {
            Source::Blob(_) => TorrentState::Committed,
            Source::Partial(_) => TorrentState::Leeching,
        };
        let (count, pieces) = (have.count(), geometry.piece_count());
        let progress = Progress { have: count, pieces, state, received: ReceivedBytes::default() };
        let state = State { have, source, readers: BTreeMap::new(), next_reader: 0, wanted: None };
        Arc::new(Self { digest, geometry, progress: watch::Sender::new(progress), state: Mutex::new(state) })
    }

    pub(crate) fn has(&self, piece: PieceIndex) -> bool {
        self.state().have.contains(piece)
    }

    pub(crate) fn have(&self) -> Bitfield {
        self.state().have.clone()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.state().have.is_full()
    }

    pub(crate) fn source(&self) -> Source {
        self.state().source.clone()
    }

    /// The readers' places, by their numbers.
    pub(crate) fn readers(&self) -> BTreeMap<u64, PieceIndex> {
        self.state().readers.clone()
    }

    fn want(&self, pieces: &Bitfield) {
        let mut state = self.state();
        let wanted = state.wanted.get_or_insert_with(|| Bitfield::empty(&self.geometry));
        pieces.iter().for_each(|piece| _ = wanted.insert(piece));
    }

    /// What is wanted since the last call.
    pub(crate) fn take_wanted(&self) -> Option<Bitfield> {
        self.state().wanted.take()
    }

    /// Marks a piece as verified and counts where its bytes came from.
    pub(crate) fn add_piece(&self, piece: PieceIndex, received: &[(From, u64)]) {
        let count = {
            let mut state = self.state();
            state.have.insert(piece);
            state.have.count()
        };
        self.progress.send_modify(|progress| {
            progress.have = count;
            received.iter().for_each(|&(from, bytes)| progress.received.add(from, bytes));
        });
    }

    pub(crate) fn commit(&self, blob: Blob) {
        self.state().source = Source::Blob(blob);
        self.progress.send_modify(|progress| progress.state = TorrentState::Committed);
    }

    pub(crate) fn fail(&self, failure: Failure) {
        self.progress.send_if_modified(|progress| {
            let leeching = matches!(progress.state, TorrentState::Leeching);
            if leeching {
                progress.state = TorrentState::Failed(failure);
            }
            leeching
        });
    }

    fn new_reader(&self) -> u64 {
        let mut state = self.state();
        state.next_reader += 1;
        state.next_reader
    }

    fn set_reader(&self, number: u64, piece: Option<PieceIndex>) {
        let mut state = self.state();
        match piece {
            Some(piece) => state.readers.insert(number, piece),
            None => state.readers.remove(&number),
        };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}
