//! The store as its users see it: open, look up, begin or resume, remove, and what it holds.
//!
//! Used by the peer driver, the agent and the origin. The work behind it is in `shared`.

mod room;
mod seals;
mod shared;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use shoal_meta::{Digest, Geometry, PeerId};
use tokio::sync::broadcast;
use tracing::{debug, error, info};

use crate::host::Host;
use crate::{Blob, BufferPool, Health, Partial, jobs, lock, scrub};
pub(crate) use shared::Shared;

/// Where a store lies and how much of the disk it may take.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory that is the store's own; made if missing.
    pub root: PathBuf,
    /// How much of the disk it may take.
    pub budget: Budget,
}

/// How much of the disk a store may take. Blobs count by length; hash lists, 0.01 % more, are not counted.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// The most bytes to hold; `None` is 10 % of the disk, at least 1 GiB, at most 50 GiB.
    pub bytes_max: Option<u64>,
    /// Free space to leave to others on the same disk, in bytes. Default 1 GiB.
    pub free_floor_bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes_max: None, free_floor_bytes: 1 << 30 }
    }
}

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes charged: blobs and partials in use by their length, other partials by what they take on disk.
    pub bytes: u64,
    /// The most bytes it may hold.
    pub budget_bytes: u64,
    /// Committed blobs.
    pub blobs: usize,
    /// Blobs still arriving, or left behind and resumable.
    pub partials: usize,
    /// Blobs and partials evicted since it was opened.
    pub evictions: u64,
    /// Blobs dropped since it was opened because the disk no longer held what it was given.
    pub corrupt_blobs: u64,
}

/// Says why a store cannot be opened. None is worth a retry before the operator acts, but [`OpenError::InUse`] while
/// another process ends.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer program wrote it.
    #[error("the store {root:?} has layout version {found}; this program knows up to {supported}")]
    NewerVersion {
        /// The directory.
        root: PathBuf,
        /// The version found.
        found: u32,
        /// The newest version this program knows.
        supported: u32,
    },
    /// The directory holds something else, which we will not touch.
    #[error("{root:?} holds files but is not a store of ours; choose an empty directory")]
    NotAStore {
        /// The directory.
        root: PathBuf,
    },
    /// Another process has it open, or an earlier handle in this one is not dropped yet.
    #[error("the store {root:?} is in use by another process")]
    InUse {
        /// The directory.
        root: PathBuf,
    },
    /// The disk failed or denied access.
    #[error("cannot open the store {root:?}")]
    Disk {
        /// The directory.
        root: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Says why a partial cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PartialError {
    /// Evicting everything not in use would not make room; nothing was evicted. Pass the blob through instead.
    #[error("no room for {needed} bytes: at most {available} can be made available")]
    NoSpace {
        /// Bytes the blob still needs.
        needed: u64,
        /// Bytes there could be if everything not in use were evicted.
        available: u64,
    },
    /// Others hold it with another length or piece length. Fault of whoever announced one of the two.
    #[error("the blob is being fetched with another length or piece length")]
    GeometryMismatch {
        /// The cut in use.
        known: Geometry,
    },
    /// It is whole already; here it is.
    #[error("the blob is committed already")]
    Committed(Blob),
    /// The disk failed or is full.
    #[error("cannot create the partial blob on disk")]
    Disk(#[source] io::Error),
}

/// A handle on the store of one node. Clones share it; the last to go, partials and blobs included, closes it.
#[derive(Clone)]
pub struct Store(pub(crate) Arc<Shared>);

impl Store {
    /// Opens a store or makes a new one: locks it, removes what a crash left incomplete, and evicts down to the
    /// budget.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        Self::open_on(Host::real(), config).await
    }

    /// Opens a store as [`Store::open`] does. One that cannot be opened is [`Health::Closed`] instead: it holds nothing and takes
    /// nothing until [`Store::trim`] can open it.
    pub async fn open_or_pass(config: Config) -> Self {
        Self::open_or_pass_on(Host::real(), config).await
    }

    pub(crate) async fn open_on(host: Host, config: Config) -> Result<Self, OpenError> {
        let store = Self(Arc::new(Shared::new(host, config)));
        store.try_open().await?;
        Ok(store)
    }

    pub(crate) async fn open_or_pass_on(host: Host, config: Config) -> Self {
        let store = Self(Arc::new(Shared::new(host, config)));
        if let Err(error) = store.try_open().await {
            let error = &error as &dyn std::error::Error;
            error!(error, "the store cannot be opened: every blob passes by it until it can");
        }
        store
    }

    async fn try_open(&self) -> Result<(), OpenError> {
        let shared = self.0.clone();
        let opened = jobs::run(move || shared.open()).await;
        opened.map_err(|source| OpenError::Disk { root: self.root().to_owned(), source })?
    }

    /// The name of this node among its peers: drawn when the store was made, kept with it. That of a closed store is drawn anew by
    /// every run.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.0.peer_id()
    }

    /// Whether it takes blobs.
    #[must_use]
    pub fn health(&self) -> Health {
        self.0.condition.health()
    }

    /// Why it does not take blobs, in words; none while it does.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.0.condition.why()
    }

    /// Gives a committed blob and counts as a use of it. It is not evicted while a clone of the handle lives.
    ///
    /// Opens its two files if nobody has: a few system calls on the calling thread.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> Option<Blob> {
        self.0.blob(digest)
    }

    /// Tells whether a blob is committed; does not count as a use.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.0.contains(digest)
    }

    /// The committed blobs, in no order.
    #[must_use]
    pub fn committed(&self) -> Vec<Digest> {
        lock(&self.0.index).committed()
    }

    /// The partials on disk that nobody holds, in no order.
    #[must_use]
    pub fn resumable(&self) -> Vec<Digest> {
        lock(&self.0.index).resumable()
    }

    /// Its directory.
    #[must_use]
    pub fn root(&self) -> &std::path::Path {
        self.0.layout.root()
    }

    /// What the store holds.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.0.usage()
    }

    /// The pool that reads draw their buffers from: 16 MiB at most.
    #[must_use]
    pub fn pool(&self) -> &BufferPool {
        &self.0.pool
    }

    /// Begins a blob, or gives the partial that is there: everyone who asks shares it. Makes room by evicting what
    /// was used least recently and is not in use. One left by an earlier run has no pieces until
    /// [`Partial::recheck`] finds them; if it was cut differently it starts afresh.
    ///
    /// # Errors
    /// See [`PartialError`].
    pub async fn partial(&self, digest: Digest, geometry: Geometry) -> Result<Partial, PartialError> {
        self.0.condition.check().map_err(PartialError::Disk)?;
        let shared = self.0.clone();
        let open = move || shared.partial(digest, geometry);
        let opened = self.0.jobs.changes.run(open).await.map_err(PartialError::Disk).and_then(|done| done);
        if let Err(PartialError::Disk(error)) = &opened {
            self.0.refused(error);
        }
        opened
    }

    /// Removes a blob or partial. Handles on a blob stay readable; those on a partial are withdrawn.
    pub async fn remove(&self, digest: &Digest) {
        let (shared, digest) = (self.0.clone(), *digest);
        // It fails only while the runtime shuts down; the blob then stays.
        let _ = self.0.jobs.changes.run(move || shared.remove(&digest)).await;
    }

    /// Evicts until the budget and the free-space floor are kept again, as far as what is not in use allows.
    ///
    /// [`Self::partial`] does this for its own needs; call it now and then, as others fill the disk too. A store that is
    /// closed is opened, if that can be done by now.
    pub async fn trim(&self) {
        if self.health() == Health::Closed {
            match self.try_open().await {
                Ok(()) => info!(root = %self.root().display(), "the store is open"),
                Err(error) => debug!(%error, "the store cannot be opened yet"),
            }
            return;
        }
        let shared = self.0.clone();
        let trimmed = self.0.jobs.changes.run(move || shared.trim()).await.and_then(|done| done);
        if let Err(error) = trimmed {
            self.0.refused(&error);
        }
    }

    /// Reads committed blobs again, for ever, and drops those that are damaged: each at most once a day, the one that was checked
    /// longest ago first, at 8 MiB/s and with the lowest priority. Run one of these.
    pub async fn scrub(&self) {
        scrub::run(&self.0).await;
    }

    /// Hears of each committed blob that leaves, by eviction, removal or damage. One who falls behind by more than
    /// 1024 hears so and compares with [`Self::committed`].
    #[must_use]
    pub fn evictions(&self) -> broadcast::Receiver<Digest> {
        self.0.gone.subscribe()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("root", &self.0.layout.root()).field("usage", &self.usage()).finish()
    }
}
