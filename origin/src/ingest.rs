//! Blobs from upstream into the swarm, each fetched once however many ask: one HTTP body at a time per digest, cut into
//! pieces, hashed and written in order through the peer node, so that peers swap what has arrived while the rest comes.
//!
//! The gRPC service and the HTTP front ask [`Ingests::open`]; both follow the [`Ingest`] they get. What arrived stays on
//! disk when upstream fails, and the next request goes on from there. A blob that the disk does not take passes by the store:
//! the front streams it from upstream, agents go there themselves. Nothing here knows of HTTP answers or messages.
//!
//! Memory: two pieces for each blob being fetched, one that is written and one that arrives, from one bounded pool.

mod fetch;
mod opening;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use shoal_meta::{Digest, Geometry, PieceHash, PieceIndex};
use shoal_peer::{Node, Torrent};
use shoal_registry::Access;
use shoal_store::{Blob, BufferPool, Partial, Store};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::authorize::Authorizer;
use crate::error::OriginError;
use crate::flight::{Flights, Turn};
use crate::gate::{Gate, Kind};
use crate::lock;
use crate::metrics::OriginMetrics;
use crate::recent::Recent;
use opening::Opened;

/// How long a request waits for its turn when as many blobs as allowed are being fetched.
const TURN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a blob that upstream serves wrongly is refused without asking again.
const WRONG_CONTENT_TTL: Duration = Duration::from_secs(60);
/// The most of those remembered.
const WRONG_CONTENT_MAX: usize = 1024;
/// How long a blob that the disk did not take passes by the store before that is tried again.
const PASSING_TTL: Duration = Duration::from_secs(30);
/// The most of those remembered.
const PASSING_MAX: usize = 4096;
/// The most unfinished blobs remembered.
const BEGUN_MAX: usize = 4096;
/// The most lengths remembered of blobs that are not here.
const LENGTHS_MAX: usize = 16 * 1024;
/// How often a caller tries for itself after sharing in the refusal of another.
const TRIES: usize = 3;

/// Everything the origin holds or fetches. A cheap handle.
#[derive(Clone)]
pub(crate) struct Ingests(Arc<Inner>);

struct Inner {
    gate: Arc<Gate>,
    authorizer: Arc<Authorizer>,
    store: Store,
    node: Node,
    metrics: OriginMetrics,
    turns: Arc<Semaphore>,
    pool: BufferPool,
    opening: Flights<Digest, Result<Holding, OriginError>>,
    measuring: Flights<Digest, Result<u64, OriginError>>,
    /// What upstream said of blobs that are not here; it stays true.
    lengths: Mutex<Recent<Digest, u64>>,
    open: Mutex<HashMap<Digest, Arc<Ingest>>>,
    wrong: Mutex<Recent<Digest, Instant>>,
    begun: Mutex<Recent<Digest, Begun>>,
    /// Lengths of the blobs that the disk did not take, and since when.
    passing: Mutex<Recent<Digest, (u64, Instant)>>,
}

/// A blob that was begun and is not committed.
#[derive(Clone, Copy)]
struct Begun {
    /// Its length, to go on with it without asking upstream twice.
    length: u64,
    /// When its last ingest failed, unless one is running.
    failed: Option<Instant>,
}

/// A blob that can be served.
#[derive(Clone)]
pub(crate) enum Holding {
    /// The blob without bytes; it has no pieces and is never stored.
    Empty,
    /// Committed: all of it is here.
    Whole(Blob),
    /// Being fetched from upstream.
    Growing(Arc<Ingest>),
    /// The disk does not take it: there is no metainfo, and who wants its bytes reads them from upstream.
    Passing {
        /// Its length in bytes.
        length: u64,
    },
}

/// A blob being fetched from upstream.
pub(crate) struct Ingest {
    digest: Digest,
    partial: Partial,
    torrent: Torrent,
    /// The hashes of pieces `0..len`. Grows only, and before `progress` says so.
    hashes: RwLock<Vec<PieceHash>>,
    progress: watch::Sender<Progress>,
    /// The last caller known to be let in: its credentials take over when those of the first have expired.
    access: Mutex<Access>,
}

/// How far an [`Ingest`] is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// How many pieces' hashes are known, from the first.
    pub(crate) known: u32,
    /// How many pieces are on disk, from the first without a gap.
    pub(crate) ready: u32,
    /// How it ended; nothing changes after.
    pub(crate) end: Option<Result<Blob, OriginError>>,
}

/// One line of the status page.
#[derive(Debug, serde::Serialize)]
pub(crate) struct IngestStatus {
    digest: String,
    length_bytes: u64,
    pieces: u32,
    ready: u32,
}

impl Ingests {
    /// `fetches_max` blobs are fetched at a time; their buffers take up to 8 MiB each.
    pub(crate) fn new(
        gate: Arc<Gate>,
        authorizer: Arc<Authorizer>,
        store: Store,
        node: Node,
        fetches_max: usize,
        metrics: OriginMetrics,
    ) -> Self {
        let pool = BufferPool::new(fetches_max.saturating_mul(2 * shoal_meta::PIECE_LENGTH_MAX as usize));
        Self(Arc::new(Inner {
            gate,
            authorizer,
            store,
            node,
            metrics,
            turns: Arc::new(Semaphore::new(fetches_max)),
            pool,
            opening: Flights::new(),
            measuring: Flights::new(),
            lengths: Mutex::new(Recent::new(LENGTHS_MAX)),
            open: Mutex::default(),
            wrong: Mutex::new(Recent::new(WRONG_CONTENT_MAX)),
            begun: Mutex::new(Recent::new(BEGUN_MAX)),
            passing: Mutex::new(Recent::new(PASSING_MAX)),
        }))
    }

    /// Gives a blob to a caller that may have it, and starts fetching it if it is not here. Returns when its length is
    /// known.
    pub(crate) async fn open(&self, access: &Access, digest: &Digest) -> Result<Holding, OriginError> {
        let inner = &self.0;
        for _ in 0..TRIES {
            if let Some(holding) = self.known(access, digest).await? {
                return Ok(holding);
            }
            inner.metrics.cache_requests.with_label_values(&["blob", "miss"]).inc();
            // Upstream's answer to the fetch is the check of the one it was made for: a miss costs no round trip more.
            let job = begin(Arc::clone(inner), access.clone(), *digest);
            let (answer, turn) = inner.opening.run(*digest, job).await.map_err(|_| OriginError::Lost)?;
            match (answer, turn) {
                (Ok(holding), Turn::Started) => return Ok(holding),
                (Ok(holding), Turn::Joined) => {
                    inner.authorizer.check(access, Kind::Blob, digest).await?;
                    return Ok(inner.renewed(holding, access));
                }
                // Its own credentials decide, before it tries itself.
                (Err(error), Turn::Joined) if error.is_about_the_caller() => {
                    inner.authorizer.check(access, Kind::Blob, digest).await?;
                }
                (Err(error), _) => return Err(error),
            }
        }
        Err(OriginError::Busy("too many callers are refused this blob"))
    }

    /// Gives a blob that is here or on its way to a caller that may have it; starts nothing.
    pub(crate) async fn held(&self, access: &Access, digest: &Digest) -> Result<Option<Holding>, OriginError> {
        let known = self.known(access, digest).await?;
        Ok(known.filter(|holding| !matches!(holding, Holding::Passing { .. })))
    }

    async fn known(&self, access: &Access, digest: &Digest) -> Result<Option<Holding>, OriginError> {
        let Some(holding) = self.0.held(digest) else { return Ok(None) };
        self.0.metrics.cache_requests.with_label_values(&["blob", "hit"]).inc();
        self.0.authorizer.check(access, Kind::Blob, digest).await?;
        Ok(Some(self.0.renewed(holding, access)))
    }

    /// The length of a blob for a caller that may have it; does not fetch it. Upstream is asked once at a time, and once for
    /// all whom it lets have the blob.
    pub(crate) async fn length(&self, access: &Access, digest: &Digest) -> Result<u64, OriginError> {
        let inner = &self.0;
        for _ in 0..TRIES {
            let held = inner.held(digest).map(|holding| holding.length());
            if let Some(length) = held.or_else(|| lock(&inner.lengths).get(digest).copied()) {
                inner.authorizer.check(access, Kind::Blob, digest).await?;
                return Ok(length);
            }
            let job = measure(Arc::clone(inner), access.clone(), *digest);
            let (answer, turn) = inner.measuring.run(*digest, job).await.map_err(|_| OriginError::Lost)?;
            match (answer, turn) {
                (Ok(length), Turn::Started) => return Ok(length),
                (Ok(_), Turn::Joined) => {}
                (Err(error), Turn::Joined) if error.is_about_the_caller() => {}
                (Err(error), _) => return Err(error),
            }
        }
        Err(OriginError::Busy("too many callers are refused this blob"))
    }

    /// Whether the blob is here or on its way, whoever may have it.
    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.0.store.contains(digest) || lock(&self.0.open).contains_key(digest)
    }

    /// The blobs being fetched.
    pub(crate) fn status(&self) -> Vec<IngestStatus> {
        let open = lock(&self.0.open);
        let mut all: Vec<_> = open.values().map(|ingest| ingest.status()).collect();
        all.sort_by(|a, b| a.digest.cmp(&b.digest));
        all
    }
}

impl Inner {
    fn held(&self, digest: &Digest) -> Option<Holding> {
        if let Some(ingest) = lock(&self.open).get(digest) {
            return Some(Holding::Growing(Arc::clone(ingest)));
        }
        if let Some(blob) = self.store.blob(digest) {
            return Some(Holding::Whole(blob));
        }
        if let Some((length, since)) = lock(&self.passing).get(digest).copied()
            && since.elapsed() < PASSING_TTL
        {
            return Some(Holding::Passing { length });
        }
        let mut hasher = digest.hasher();
        hasher.update(&[]);
        (hasher.finish() == *digest).then_some(Holding::Empty)
    }

    /// Lends the credentials of a caller that upstream lets in to the ingest, as they are fresher.
    fn renewed(&self, holding: Holding, access: &Access) -> Holding {
        if let Holding::Growing(ingest) = &holding
            && self.authorizer.asks()
        {
            *lock(&ingest.access) = access.clone();
        }
        holding
    }

    /// Lets a blob that the disk does not take pass by the store for a while.
    fn pass(&self, digest: Digest, length: u64, error: &OriginError) {
        // What is wrong with the disk is said once, by the store.
        tracing::warn!(%digest, error = error as &dyn std::error::Error, "blob passes by the store");
        lock(&self.passing).put(digest, (length, Instant::now()));
        self.metrics.blobs.with_label_values(&["passed"]).inc();
    }

    fn refused_lately(&self, digest: &Digest) -> bool {
        lock(&self.wrong).get(digest).is_some_and(|at| at.elapsed() < WRONG_CONTENT_TTL)
    }
}

/// Opens the blob upstream and here, and leaves it to a task of its own.
async fn begin(inner: Arc<Inner>, access: Access, digest: Digest) -> Result<Holding, OriginError> {
    if let Some(holding) = inner.held(&digest) {
        inner.authorizer.check(&access, Kind::Blob, &digest).await?;
        return Ok(holding);
    }
    if inner.refused_lately(&digest) {
        return Err(OriginError::WrongContent(digest));
    }
    let turn = tokio::time::timeout(TURN_PATIENCE, Arc::clone(&inner.turns).acquire_owned()).await;
    let turn = turn.map_err(|_| OriginError::Busy("as many blobs as allowed are being fetched"))?;
    let turn = turn.map_err(|_| OriginError::Lost)?;
    let (partial, body) = match opening::open(&inner, &access, &digest).await? {
        Opened::Partial(partial, body) => (partial, body),
        Opened::Whole(blob) => {
            inner.authorizer.check(&access, Kind::Blob, &digest).await?;
            return Ok(Holding::Whole(blob));
        }
        Opened::Refused(length, error) => {
            inner.pass(digest, length, &error);
            inner.authorizer.check(&access, Kind::Blob, &digest).await?;
            return Ok(Holding::Passing { length });
        }
    };
    inner.authorizer.note_given(&access, &digest).await;
    let torrent = inner.node.join(partial.clone()).await.map_err(OriginError::local)?;
    let ingest = Arc::new(Ingest::new(partial, torrent, access));
    lock(&inner.open).insert(digest, Arc::clone(&ingest));
    let landing = Landing { inner: Arc::clone(&inner), ingest: Arc::clone(&ingest), _turn: turn };
    tokio::spawn(fetch::run(landing, body));
    Ok(Holding::Growing(ingest))
}

/// Asks upstream how long a blob is.
async fn measure(inner: Arc<Inner>, access: Access, digest: Digest) -> Result<u64, OriginError> {
    let length = inner.gate.blob_length(&access, &digest).await?;
    inner.authorizer.note_given(&access, &digest).await;
    lock(&inner.lengths).put(digest, length);
    Ok(length)
}

/// Where a piece begins, or the end of the blob if there is none.
fn offset_of(geometry: &Geometry, piece: Option<u32>) -> u64 {
    piece.and_then(|piece| geometry.piece(piece)).map_or(geometry.length(), |piece| geometry.piece_range(piece).start)
}

/// Takes the ingest off the list and tells how it ended, also when its task panics.
struct Landing {
    inner: Arc<Inner>,
    ingest: Arc<Ingest>,
    _turn: OwnedSemaphorePermit,
}

impl Landing {
    fn land(self, end: Result<Blob, OriginError>) {
        // The list first: whoever hears of the end and asks again starts afresh.
        lock(&self.inner.open).remove(&self.ingest.digest);
        self.ingest.progress.send_modify(|progress| progress.end = Some(end));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut open = lock(&self.inner.open);
        if open.get(&self.ingest.digest).is_some_and(|ingest| Arc::ptr_eq(ingest, &self.ingest)) {
            open.remove(&self.ingest.digest);
        }
        drop(open);
        let _ = self.ingest.progress.send_if_modified(|progress| {
            let lost = progress.end.is_none();
            progress.end.get_or_insert(Err(OriginError::Lost));
            lost
        });
    }
}

impl Ingest {
    fn new(partial: Partial, torrent: Torrent, access: Access) -> Self {
        let hashes = partial.metainfo().hashes().to_vec();
        let pieces = partial.geometry().piece_count();
        let ready = partial.have().first_missing(0).unwrap_or(pieces);
        let known = u32::try_from(hashes.len()).unwrap_or(pieces);
        let (progress, _) = watch::channel(Progress { known, ready, end: None });
        let digest = partial.digest();
        Self { digest, partial, torrent, hashes: RwLock::new(hashes), progress, access: Mutex::new(access) }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.partial.geometry()
    }

    /// Where verified bytes are read from; stays readable after the end if that was good.
    pub(crate) fn partial(&self) -> &Partial {
        &self.partial
    }

    /// Follows the ingest.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The hashes of up to `count` pieces from `first` on, as far as they are known.
    pub(crate) fn hashes(&self, first: u32, count: usize) -> Vec<PieceHash> {
        let hashes = self.hashes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        hashes.iter().skip(first as usize).take(count).copied().collect()
    }

    /// A piece is on disk: its hash is published.
    fn publish(&self, piece: PieceIndex, hash: PieceHash) {
        let mut hashes = self.hashes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if hashes.len() == piece.index() {
            hashes.push(hash);
        }
        let known = u32::try_from(hashes.len()).unwrap_or(u32::MAX);
        drop(hashes);
        self.progress.send_modify(|progress| {
            progress.known = known;
            progress.ready = progress.ready.max(piece.get() + 1);
        });
    }

    fn status(&self) -> IngestStatus {
        let geometry = self.geometry();
        IngestStatus {
            digest: self.digest.to_string(),
            length_bytes: geometry.length(),
            pieces: geometry.piece_count(),
            ready: self.progress.borrow().ready,
        }
    }
}

impl Holding {
    /// The blob's length in bytes.
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Whole(blob) => blob.length(),
            Self::Growing(ingest) => ingest.geometry().length(),
            Self::Passing { length } => *length,
        }
    }
}
