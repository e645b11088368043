//! What all handles of a store share, and the work behind the store's methods.
//!
//! Functions that change the disk run on blocking threads and hold `admission`, so that creating, committing and
//! removing never meet on one directory. The index is locked briefly, and never while files are touched.

use std::fs::{self, File, FileTimes};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use shoal_meta::{Digest, Geometry, Metainfo, PeerId, PieceIndex};
use tokio::sync::broadcast;
use tracing::{debug, error, warn};

use super::{Config, OpenError, PartialError, Usage};
use crate::blob::BlobInner;
use crate::checks::Checks;
use crate::host::Host;
use crate::index::{Index, Kind, Limits, Plan};
use crate::jobs::Jobs;
use crate::layout::{self, Layout, sync_dir};
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
    pub(crate) peer_id: PeerId,
    pub(crate) index: Mutex<Index>,
    /// Held by one at a time who creates, publishes or removes a directory.
    pub(crate) admission: Mutex<()>,
    pub(crate) gone: broadcast::Sender<Digest>,
    budget_bytes: u64,
    floor_bytes: u64,
    opened: SystemTime,
    evictions: AtomicU64,
    corrupt_blobs: AtomicU64,
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
    pub(super) fn open(host: Host, config: Config) -> Result<Self, OpenError> {
        let root = config.root.clone();
        let disk = |source| OpenError::Disk { root: root.clone(), source };
        let (layout, peer_id) = Layout::open(config.root)?;
        let tenth = (host.probe)(&root).map_err(disk)?.total_bytes / 10;
        let budget_bytes = config.budget.bytes_max.unwrap_or(tenth.clamp(GIB, 50 * GIB));
        let mut index = Index::default();
        for found in layout.scan().map_err(disk)? {
            let kind = match found.committed {
                true => {
                    let (live, checks) = (Weak::new(), Arc::default());
                    Kind::Committed { touched: found.used, live, checked: found.checked, checks }
                }
                false => Kind::Partial { geometry: found.geometry, live: Weak::new(), unwritten: Arc::default() },
            };
            index.insert(found.digest, found.bytes, kind);
        }
        let opened = (host.clock)();
        let shared = Self {
            layout,
            host,
            jobs: Jobs::new(),
            pool: BufferPool::new(READ_BYTES_MAX),
            peer_id,
            index: Mutex::new(index),
            admission: Mutex::new(()),
            gone: broadcast::channel(GONE_MAX).0,
            budget_bytes,
            floor_bytes: config.budget.free_floor_bytes,
            opened,
            evictions: AtomicU64::new(0),
            corrupt_blobs: AtomicU64::new(0),
        };
        shared.trim().map_err(disk)?;
        Ok(shared)
    }

    pub(super) fn contains(&self, digest: &Digest) -> bool {
        matches!(lock(&self.index).get(digest), Some(Kind::Committed { .. }))
    }

    pub(super) fn usage(&self) -> Usage {
        let totals = lock(&self.index).totals();
        let evictions = self.evictions.load(Ordering::Relaxed);
        let corrupt_blobs = self.corrupt_blobs.load(Ordering::Relaxed);
        let (blobs, partials) = (totals.blobs, totals.partials);
        Usage { bytes: totals.bytes, budget_bytes: self.budget_bytes, blobs, partials, evictions, corrupt_blobs }
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
                Before::Resumable => return self.begin(digest, geometry, true),
                Before::Nothing => return self.begin(digest, geometry, false),
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
            self.trash(&dir);
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
        created.inspect_err(|_| self.trash(&dir))
    }

    /// Renames a complete partial's directory among the blobs. Admission is held by the caller.
    pub(crate) fn publish_dir(&self, digest: &Digest) -> io::Result<()> {
        let blob = self.layout.blob_dir(digest);
        if blob.exists() {
            self.trash(&blob);
        }
        if let Some(shard) = blob.parent() {
            fs::create_dir_all(shard)?;
        }
        fs::rename(self.layout.partial_dir(digest), &blob)
    }

    /// Waits until the names on the way to a blob are on the disk.
    pub(crate) fn sync_blob_dir(&self, digest: &Digest) -> io::Result<()> {
        self.host.step("renamed")?;
        self.layout.blob_dir(digest).ancestors().skip(1).take(2).try_for_each(sync_dir)
    }

    pub(super) fn remove(&self, digest: &Digest) {
        let _admission = lock(&self.admission);
        self.drop_slot(digest);
    }

    /// Drops a blob of which a piece cannot be read or is not what its hash says; by now it may be another of the same digest,
    /// which stays.
    pub(crate) fn drop_if_damaged(&self, digest: &Digest, of: &Arc<Checks>, piece: PieceIndex, error: &io::Error) {
        if !is_damage(error) {
            return;
        }
        of.failed(piece);
        let _admission = lock(&self.admission);
        let current = lock(&self.index).is_committed_as(digest, of);
        if current {
            let path = self.layout.blob_dir(digest);
            error!(%digest, piece = piece.get(), path = %path.display(), %error, "a blob has rotted on the disk: dropping it");
            self.corrupt_blobs.fetch_add(1, Ordering::Relaxed);
            self.drop_slot(digest);
        }
    }

    pub(super) fn trim(&self) -> io::Result<()> {
        let _admission = lock(&self.admission);
        let plan = self.plan(None, 0)?;
        self.evict(&plan.victims);
        Ok(())
    }

    /// Evicts so that a blob of `length` bytes can be on disk whole. Evicts nothing when that would not suffice.
    fn make_room(&self, digest: &Digest, length: u64) -> Result<(), PartialError> {
        let needed = length.saturating_sub(lock(&self.index).bytes(digest));
        let plan = self.plan(Some(digest), needed).map_err(PartialError::Disk)?;
        if plan.available_bytes < needed {
            return Err(PartialError::NoSpace { needed, available: plan.available_bytes });
        }
        self.evict(&plan.victims);
        Ok(())
    }

    fn plan(&self, spare: Option<&Digest>, need: u64) -> io::Result<Plan> {
        let free_bytes = (self.host.probe)(self.layout.root())?.free_bytes;
        let limits = Limits { budget_bytes: self.budget_bytes, free_bytes, floor_bytes: self.floor_bytes };
        Ok(lock(&self.index).plan(need, spare, limits))
    }

    fn evict(&self, victims: &[Digest]) {
        for digest in victims {
            let removed = lock(&self.index).remove_unpinned(digest);
            if let Some(kind) = removed {
                debug!(%digest, "evicting");
                self.evictions.fetch_add(1, Ordering::Relaxed);
                self.clear(digest, &kind);
            }
        }
    }

    /// Takes a blob or partial out of the index and off the disk. Admission is held by the caller.
    fn drop_slot(&self, digest: &Digest) {
        let removed = lock(&self.index).remove(digest);
        if let Some(kind) = removed {
            self.clear(digest, &kind);
        }
    }

    /// Takes off the disk what was taken out of the index.
    fn clear(&self, digest: &Digest, kind: &Kind) {
        match kind {
            Kind::Committed { .. } => {
                self.trash(&self.layout.blob_dir(digest));
                // Nobody listening is fine.
                let _ = self.gone.send(*digest);
            }
            Kind::Partial { live, .. } => {
                if let Some(partial) = live.upgrade() {
                    partial.end_withdrawn();
                }
                self.trash(&self.layout.partial_dir(digest));
            }
        }
    }

    /// Removes a directory: out of the way at once by a rename, then its content. A crash between leaves debris.
    pub(crate) fn trash(&self, dir: &Path) {
        let trash = self.layout.trash_dir();
        let removed = fs::rename(dir, &trash).and_then(|()| {
            self.host.step("trashed")?;
            fs::remove_dir_all(&trash)
        });
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %dir.display(), %error, "cannot remove from the store");
        }
    }
}

/// Tells errors of reading that the content of a file is at fault for, from those of the moment.
fn is_damage(error: &io::Error) -> bool {
    let lost = [Errno::IO, Errno::BADMSG, Errno::UCLEAN].map(Errno::raw_os_error);
    let kinds = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
    kinds.contains(&error.kind()) || error.raw_os_error().is_some_and(|code| lost.contains(&code))
}
