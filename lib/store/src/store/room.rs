//! Room on the disk: who has to go, and how what goes is removed.
//!
//! Part of what all handles share; runs on blocking threads, under `admission`.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use shoal_meta::{Digest, PieceIndex};
use tracing::{debug, error, warn};

use super::{PartialError, Shared};
use crate::checks::Checks;
use crate::index::{Kind, Limits, Plan};
use crate::lock;

impl Shared {
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
        self.evict(&plan.victims)
    }

    /// Evicts so that a blob of `length` bytes can be on disk whole. Evicts nothing when that would not suffice.
    pub(super) fn make_room(&self, digest: &Digest, length: u64) -> Result<(), PartialError> {
        let needed = length.saturating_sub(lock(&self.index).bytes(digest));
        let plan = self.plan(Some(digest), needed).map_err(PartialError::Disk)?;
        if plan.available_bytes < needed {
            return Err(PartialError::NoSpace { needed, available: plan.available_bytes });
        }
        self.evict(&plan.victims).map_err(PartialError::Disk)
    }

    fn plan(&self, spare: Option<&Digest>, need: u64) -> io::Result<Plan> {
        let free_bytes = (self.host.probe)(self.layout.root())?.free_bytes;
        let budget_bytes = self.budget_bytes.load(Ordering::Relaxed);
        let limits = Limits { budget_bytes, free_bytes, floor_bytes: self.budget.free_floor_bytes };
        let plan = lock(&self.index).plan(need, spare, limits);
        self.condition.counted(self.layout.root(), plan.disk_is_full);
        Ok(plan)
    }

    /// # Errors
    /// When the disk does not let one go: it stays, and the rest with it.
    fn evict(&self, victims: &[Digest]) -> io::Result<()> {
        for digest in victims {
            let Some(slot) = lock(&self.index).take_unpinned(digest) else { continue };
            debug!(%digest, "evicting");
            if let Err(error) = self.clear(digest, slot.kind()) {
                lock(&self.index).put_back(*digest, slot);
                return Err(error);
            }
            self.left(digest, slot.kind());
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes a blob or partial out of the index and off the disk. Admission is held by the caller.
    pub(super) fn drop_slot(&self, digest: &Digest) {
        let removed = lock(&self.index).remove(digest);
        if let Some(kind) = removed {
            if let Err(error) = self.clear(digest, &kind) {
                warn!(%digest, %error, "cannot remove from the store");
            }
            self.left(digest, &kind);
        }
    }

    fn left(&self, digest: &Digest, kind: &Kind) {
        if let Kind::Committed { .. } = kind {
            // Nobody listening is fine.
            let _ = self.gone.send(*digest);
        }
    }

    /// Takes off the disk what was taken out of the index.
    fn clear(&self, digest: &Digest, kind: &Kind) -> io::Result<()> {
        match kind {
            Kind::Committed { .. } => self.trash(&self.layout.blob_dir(digest)),
            Kind::Partial { live, .. } => {
                if let Some(partial) = live.upgrade() {
                    partial.end_withdrawn();
                }
                self.trash(&self.layout.partial_dir(digest))
            }
        }
    }

    /// Removes a directory: out of the way at once by a rename, then its content. A crash between leaves debris.
    ///
    /// # Errors
    /// When it is where it was.
    pub(crate) fn trash(&self, dir: &Path) -> io::Result<()> {
        let trash = self.layout.trash_dir();
        match fs::rename(dir, &trash) {
            // Somebody removed it; if it is there, it is where it was to go that is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => return Ok(()),
            renamed => renamed?,
        }
        if let Err(error) = self.host.step("trashed").and_then(|()| fs::remove_dir_all(&trash)) {
            warn!(path = %dir.display(), %error, "cannot remove from the store");
        }
        self.host.step("removed")
    }
}

/// Tells errors of reading that the content of a file is at fault for, from those of the moment.
fn is_damage(error: &io::Error) -> bool {
    let lost = [Errno::IO, Errno::BADMSG, Errno::UCLEAN].map(Errno::raw_os_error);
    let kinds = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
    kinds.contains(&error.kind()) || error.raw_os_error().is_some_and(|code| lost.contains(&code))
}
