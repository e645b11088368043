//! What all handles of a store share, and the work behind the store's methods.
//!
//! Functions that change the disk run on blocking threads and hold `admission`, so that creating, committing and
//! removing never meet on one directory. The index is locked briefly, and never while files are touched.

use std::fs::{self, File, FileTimes};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use shoal_meta::{Digest, Geometry, Metainfo, PeerId};
use tokio::sync::broadcast;
use tracing::{debug, error, warn};

use super::{Budget, Config, OpenError, PartialError, Usage};
use crate::blob::BlobInner;
use crate::checks::Checks;
use crate::health::Condition;
use crate::host::Host;
use crate::index::{Index, Kind};
use crate::jobs::Jobs;
use crate::layout::{self, Layout};
use crate::partial::{PartialInner, same_cut};
use crate::pieces_file::{self, PiecesFile};
use crate::{Blob, BufferPool, Partial, lock};

/// Memory for reads that are on their way to a socket.
const READ_BYTES_MAX: usize = 16 << 20;
/// Digests kept for a slow listener to evictions.
const GONE_MAX: usize = 1024;

const GIB: u64 = 1 << 30;

pub(crate) struct Shared {
    pub(crate) layout: Layout,
    pub(crate) host: Host,
    pub(crate) jobs: Jobs,
    pub(crate) pool: BufferPool,
    pub(crate) condition: Condition,
    peer_id: OnceLock<PeerId>,
    pub(crate) index: Mutex<Index>,
    /// Held by one at a time who creates, publishes or removes a directory.
    pub(crate) admission: Mutex<()>,
    pub(crate) gone: broadcast::Sender<Digest>,
    pub(super) budget: Budget,
    /// The most bytes to hold; none while it is closed.
    pub(super) budget_bytes: AtomicU64,
    opened: SystemTime,
    pub(super) evictions: AtomicU64,
    pub(super) corrupt_blobs: AtomicU64,
}

/// What a new partial finds.
enum Before {
    Committed,
    Live(Partial),
    /// On disk, of this cut, held by nobody.
    Resumable,
    Nothing,
}

impl Shared {
    /// A store that is closed.
    pub(super) fn new(host: Host, config: Config) -> Self {
        Self {
            layout: Layout::new(config.root),
            opened: (host.clock)(),
            host,
            jobs: Jobs::new(),
            pool: BufferPool::new(READ_BYTES_MAX),
            condition: Condition::closed(),
            peer_id: OnceLock::new(),
            index: Mutex::default(),
            admission: Mutex::new(()),
            gone: broadcast::channel(GONE_MAX).0,
            budget: config.budget,
            budget_bytes: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            corrupt_blobs: AtomicU64::new(0),
        }
    }

    /// Opens a closed store.
    pub(super) fn open(&self) -> Result<(), OpenError> {
        let opened = self.fill();
        match &opened {
            Ok(()) => {
                self.condition.opened();
                if let Err(error) = self.trim() {
                    self.refused(&error);
                }
            }
            Err(error) => self.condition.refused_to_open(chain(error)),
        }
        opened
    }

    fn fill(&self) -> Result<(), OpenError> {
        let disk = |source| OpenError::Disk { root: self.layout.root().to_owned(), source };
        let peer_id = self.layout.prepare(&self.host, self.peer_id.get().copied())?;
        self.peer_id.get_or_init(|| peer_id);
        let tenth = (self.host.probe)(self.layout.root()).map_err(disk)?.total_bytes / 10;
        let budget_bytes = self.budget.bytes_max.unwrap_or(tenth.clamp(GIB, 50 * GIB));
        self.budget_bytes.store(budget_bytes, Ordering::Relaxed);
        for found in self.layout.scan().map_err(disk)? {
            let kind = match found.committed {
                true => {
                    let (live, checks) = (Weak::new(), Arc::default());
                    Kind::Committed { touched: found.used, live, checked: found.checked, checks }
                }
                false => Kind::Partial { geometry: found.geometry, live: Weak::new(), unwritten: Arc::default() },
            };
            lock(&self.index).insert(found.digest, found.bytes, kind);
        }
        Ok(())
    }

    pub(super) fn peer_id(&self) -> PeerId {
        *self.peer_id.get_or_init(|| PeerId(rand::random()))
    }

    /// The disk refused something: said once.
    pub(crate) fn refused(&self, error: &io::Error) {
        self.condition.refused(self.layout.root(), error);
    }

    pub(super) fn contains(&self, digest: &Digest) -> bool {
        matches!(lock(&self.index).get(digest), Some(Kind::Committed { .. }))
    }

    pub(super) fn usage(&self) -> Usage {
        let totals = lock(&self.index).totals();
        let evictions = self.evictions.load(Ordering::Relaxed);
        let corrupt_blobs = self.corrupt_blobs.load(Ordering::Relaxed);
        let (blobs, partials) = (totals.blobs, totals.partials);
        let budget_bytes = self.budget_bytes.load(Ordering::Relaxed);
        Usage { bytes: totals.bytes, budget_bytes, blobs, partials, evictions, corrupt_blobs }
    }

    /// How long it has been open, as far as the clock tells.
    pub(crate) fn age(&self) -> Duration {
        (self.host.clock)().duration_since(self.opened).unwrap_or_default()
    }

    pub(super) fn blob(self: &Arc<Self>, digest: &Digest) -> Option<Blob> {
        let (live, checks) = match lock(&self.index).get(digest)? {
            Kind::Committed { live, checks, .. } => (live.upgrade(), checks.clone()),
            Kind::Partial { .. } => return None,
        };
        let opened = match live {
            Some(blob) => blob,
            None => Arc::new(self.open_blob(digest, checks)?),
        };
        let now = (self.host.clock)();
        let (blob, persist) = {
            let mut index = lock(&self.index);
            (Blob(index.pin(digest, opened)?), index.touch(digest, now))
        };
        if persist && let Err(error) = blob.file().set_times(FileTimes::new().set_modified(now)) {
            debug!(%digest, %error, "cannot note the time of last use");
        }
        Some(blob)
    }

    /// Opens a committed blob's files. When they turn out damaged or gone, so is the blob.
    pub(crate) fn open_blob(self: &Arc<Self>, digest: &Digest, checks: Arc<Checks>) -> Option<BlobInner> {
        let dir = self.layout.blob_dir(digest);
        let opened = File::open(dir.join("pieces"))
            .and_then(|pieces| pieces_file::read_complete(&pieces, digest))
            .and_then(|metainfo| Ok((metainfo, Arc::new(File::open(dir.join("data"))?))));
        match opened {
            Ok((metainfo, file)) => Some(BlobInner { store: self.clone(), metainfo, file, checks }),
            Err(error) if layout::is_debris(&error) && self.contains(digest) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    self.corrupt_blobs.fetch_add(1, Ordering::Relaxed);
                }
                error!(%digest, path = %dir.display(), %error, "a committed blob is damaged: dropping it");
                self.remove(digest);
                None
            }
            Err(error) => {
                warn!(%digest, %error, "cannot open a committed blob");
                None
            }
        }
    }

    pub(super) fn partial(self: &Arc<Self>, digest: Digest, geometry: Geometry) -> Result<Partial, PartialError> {
        loop {
            let admission = lock(&self.admission);
            match self.before(&digest, &geometry) {
                Before::Live(partial) if partial.0.is_cut_as(&geometry) => return Ok(partial),
                Before::Live(partial) => return Err(PartialError::GeometryMismatch { known: partial.geometry() }),
                Before::Resumable => return self.begin_somewhere(digest, geometry, true),
                Before::Nothing => return self.begin_somewhere(digest, geometry, false),
                Before::Committed => {}
            }
            // Opening a blob may find it damaged, and removing it takes the lock.
            drop(admission);
            if let Some(blob) = self.blob(&digest) {
                return Err(PartialError::Committed(blob));
            }
            if self.contains(&digest) {
                return Err(PartialError::Disk(io::Error::other("a committed blob cannot be opened")));
            }
        }
    }

    /// Begins, in directories made again if somebody has removed them. Admission is held by the caller.
    fn begin_somewhere(
        self: &Arc<Self>,
        digest: Digest,
        geometry: Geometry,
        resumable: bool,
    ) -> Result<Partial, PartialError> {
        match self.begin(digest, geometry, resumable) {
            Err(PartialError::Disk(error)) if error.kind() == io::ErrorKind::NotFound => {
                warn!(root = %self.layout.root().display(), "the store's directories are gone: making them again");
                let prepared = self.layout.prepare(&self.host, Some(self.peer_id()));
                prepared.map_err(|error| PartialError::Disk(as_io(error)))?;
                self.begin(digest, geometry, resumable)
            }
            begun => begun,
        }
    }

    /// Makes room, then resumes what is on disk or begins afresh. Admission is held by the caller.
    fn begin(self: &Arc<Self>, digest: Digest, geometry: Geometry, resumable: bool) -> Result<Partial, PartialError> {
        if !resumable {
            self.drop_slot(&digest);
        }
        self.make_room(&digest, geometry.length())?;
        let resumed = if resumable { self.resume(&digest, geometry) } else { None };
        let inner = match resumed {
            Some(inner) => inner,
            None => self.create(digest, geometry).map_err(PartialError::Disk)?,
        };
        let inner = Arc::new(inner);
        lock(&self.index).insert(digest, geometry.length(), inner.kind());
        Ok(Partial(inner))
    }

    fn before(&self, digest: &Digest, wanted: &Geometry) -> Before {
        match lock(&self.index).get(digest) {
            Some(Kind::Committed { .. }) => Before::Committed,
            Some(Kind::Partial { geometry, live, .. }) => match live.upgrade() {
                Some(inner) => Before::Live(Partial(inner)),
                None if same_cut(geometry, wanted) => Before::Resumable,
                None => Before::Nothing,
            },
            None => Before::Nothing,
        }
    }

    /// Opens what an earlier run left; `None`, and nothing left of it, when it is damaged.
    fn resume(self: &Arc<Self>, digest: &Digest, geometry: Geometry) -> Option<PartialInner> {
        let dir = self.layout.partial_dir(digest);
        let opened = PiecesFile::open(&dir.join("pieces"), digest).and_then(|(pieces, on_disk)| {
            let data = File::options().read(true).write(true).open(dir.join("data"))?;
            // The same cut, with the blocks the caller wants.
            let mut metainfo = Metainfo::new(*digest, geometry);
            metainfo.extend(0, on_disk.hashes()).map_err(io::Error::other)?;
            PartialInner::new(self.clone(), metainfo, data, pieces, true)
        });
        match opened {
            Ok(inner) => Some(inner),
            Err(error) => {
                warn!(%digest, %error, "cannot resume a partial blob: starting afresh");
                self.drop_slot(digest);
                None
            }
        }
    }

    fn create(self: &Arc<Self>, digest: Digest, geometry: Geometry) -> io::Result<PartialInner> {
        let dir = self.layout.partial_dir(&digest);
        if dir.exists() {
            self.trash(&dir)?;
        }
        let created = fs::create_dir(&dir).and_then(|()| {
            self.host.step("partial made")?;
            let data = File::options().read(true).write(true).create_new(true).open(dir.join("data"))?;
            data.set_len(geometry.length())?;
            self.host.step("data made")?;
            let pieces = PiecesFile::create(&dir.join("pieces"), &digest, &geometry)?;
            self.host.step("pieces made")?;
            PartialInner::new(self.clone(), Metainfo::new(digest, geometry), data, pieces, false)
        });
        created.inspect_err(|_| _ = self.trash(&dir))
    }

    /// Renames a complete partial's directory among the blobs. Admission is held by the caller.
    pub(crate) fn publish_dir(&self, digest: &Digest) -> io::Result<()> {
        let blob = self.layout.blob_dir(digest);
        if blob.exists() {
            self.trash(&blob)?;
        }
        if let Some(shard) = blob.parent() {
            fs::create_dir_all(shard)?;
            self.host.step("shard made")?;
        }
        fs::rename(self.layout.partial_dir(digest), &blob)
    }

    /// Waits until the names on the way to a blob are on the disk.
    pub(crate) fn sync_blob_dir(&self, digest: &Digest) -> io::Result<()> {
        self.host.step("renamed")?;
        self.layout.blob_dir(digest).ancestors().skip(1).take(2).try_for_each(|dir| self.host.sync_dir(dir))?;
        self.host.step("blob synced")
    }
}

/// An error and its cause in one line.
fn chain(error: &OpenError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

fn as_io(error: OpenError) -> io::Error {
    match error {
        OpenError::Disk { source, .. } => source,
        error @ (OpenError::NewerVersion { .. } | OpenError::NotAStore { .. } | OpenError::InUse { .. }) => {
            io::Error::other(error)
        }
    }
}
