//! The disk work of a partial: verify and write pieces, verify what was left, commit, withdraw.
//!
//! Every function here runs on a blocking thread, to its end. Lock order: `whole`, the store's admission, `pieces`;
//! `state` and the index are taken briefly and alone.

use std::fs::{self, FileTimes};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};

use bytes::Bytes;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use shoal_meta::{Geometry, Metainfo, PieceHash, PieceIndex};
use tracing::{debug, warn};

use super::state::{Phase, Sender, State};
use super::{CommitError, PartialInner, WriteError};
use crate::blob::BlobInner;
use crate::index::Kind;
use crate::layout::{self, sync_dir};
use crate::pieces_file::PiecesFile;
use crate::store::Shared;
use crate::whole::{self, Whole};
use crate::{Blob, lock};

/// How many pieces that came early one write may read back for the whole blob's hash; the rest waits for commit.
const READ_ON_PIECES: u32 = 2;

impl PartialInner {
    /// Takes the open files of a partial, fresh or left by an earlier run.
    pub(crate) fn new(
        store: Arc<Shared>,
        metainfo: Metainfo,
        data: fs::File,
        pieces: PiecesFile,
        reopened: bool,
    ) -> io::Result<Self> {
        let geometry = metainfo.geometry();
        let unwritten = geometry.length() - layout::allocated(&data.metadata()?);
        let digest = metainfo.digest();
        Ok(Self {
            store,
            digest,
            geometry,
            file: Arc::new(data),
            state: Mutex::new(State::new(metainfo, reopened)),
            pieces: Mutex::new(pieces),
            whole: Mutex::new(Whole::new(&digest)),
            unwritten: Arc::new(AtomicU64::new(unwritten)),
        })
    }

    /// What the index holds of this partial.
    pub(crate) fn kind(self: &Arc<Self>) -> Kind {
        Kind::Partial { geometry: self.geometry, live: Arc::downgrade(self), unwritten: self.unwritten.clone() }
    }

    /// Tells whether the other cut is the same on disk; blocks are cut for the wire only.
    pub(crate) fn is_cut_as(&self, geometry: &Geometry) -> bool {
        same_cut(&self.geometry, geometry)
    }

    pub(super) fn write(&self, piece: PieceIndex, blocks: &[Bytes], sender: Sender) -> Result<PieceHash, WriteError> {
        lock(&self.state).check_known(piece, sender)?;
        let hash = PieceHash::of(blocks.iter().map(AsRef::as_ref));
        if !lock(&self.state).admit(piece, hash, sender)? {
            return Ok(hash);
        }
        let mut offset = self.geometry.piece_range(piece).start;
        for block in blocks {
            self.file.write_all_at(block, offset).map_err(WriteError::Disk)?;
            self.store.host.step("block").map_err(WriteError::Disk)?;
            offset += block.len() as u64;
        }
        if lock(&self.state).written(piece)? {
            let bytes = u64::from(self.geometry.length_of(piece));
            self.unwritten.update(Ordering::Relaxed, Ordering::Relaxed, |left| left.saturating_sub(bytes));
        }
        self.persist().map_err(WriteError::Disk)?;
        self.advance(piece, blocks);
        Ok(hash)
    }

    /// Takes the whole blob's hash further if nobody else is at it. Trouble reading is left for commit to meet.
    fn advance(&self, piece: PieceIndex, blocks: &[Bytes]) {
        let mut whole = match self.whole.try_lock() {
            Ok(whole) => whole,
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => return,
        };
        whole.offer(piece, blocks);
        let have = lock(&self.state).have().clone();
        if let Err(error) = whole.read_on(&self.file, self.geometry, &have, READ_ON_PIECES) {
            warn!(digest = %self.digest, %error, "cannot read back a piece");
        }
    }

    /// How many pieces the whole blob's hash had to read again.
    #[cfg(test)]
    pub(crate) fn read_back(&self) -> u32 {
        lock(&self.whole).read_back()
    }

    /// Appends the hashes that are known but not on disk yet.
    pub(super) fn persist(&self) -> io::Result<()> {
        let mut pieces = lock(&self.pieces);
        let fresh = lock(&self.state).metainfo().hashes()[pieces.known() as usize..].to_vec();
        if fresh.is_empty() {
            return Ok(());
        }
        pieces.append(&fresh)?;
        self.store.host.step("hashes")
    }

    /// Verifies the first of these pieces that is not a hole, beginning at `from`. Gives where to go on.
    pub(super) fn recheck(&self, suspects: &[PieceIndex], from: usize) -> io::Result<usize> {
        for (position, &piece) in suspects.iter().enumerate().skip(from) {
            let range = self.geometry.piece_range(piece);
            if self.next_data(range.start)? >= range.end {
                lock(&self.state).checked(piece, None);
                continue;
            }
            let hash = whole::piece_hash(&self.file, self.geometry, piece)?;
            lock(&self.state).checked(piece, Some(hash));
            return Ok(position + 1);
        }
        Ok(suspects.len())
    }

    /// Where the first data at or after `offset` begins, as far as the file system tells.
    fn next_data(&self, offset: u64) -> io::Result<u64> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(found) => Ok(found),
            Err(Errno::NXIO) => Ok(u64::MAX),
            Err(Errno::INVAL | Errno::NOTSUP) => Ok(offset),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn commit(self: &Arc<Self>) -> Result<Blob, CommitError> {
        let mut whole = lock(&self.whole);
        let have = {
            let state = lock(&self.state);
            match state.phase() {
                Phase::Open => state.have().clone(),
                Phase::Committed(blob) => return Ok(blob.clone()),
                Phase::Withdrawn => return Err(CommitError::Withdrawn),
            }
        };
        if !have.is_full() {
            return Err(CommitError::Incomplete { have: have.count(), pieces: have.length() });
        }
        whole.read_on(&self.file, self.geometry, &have, u32::MAX).map_err(CommitError::Disk)?;
        let computed = whole.digest(self.geometry).expect("every piece was had and has been read");
        if computed != self.digest {
            self.withdraw();
            return Err(CommitError::DigestMismatch { computed });
        }
        debug!(digest = %self.digest, pieces = have.length(), read_back = whole.read_back(), "digest checked");
        self.persist().map_err(CommitError::Disk)?;
        if let Err(error) = self.sync() {
            self.withdraw();
            return Err(CommitError::Disk(error));
        }
        self.publish()
    }

    /// Waits until everything inside the directory is on the disk.
    fn sync(&self) -> io::Result<()> {
        let now = (self.store.host.clock)();
        self.file.set_times(FileTimes::new().set_modified(now))?;
        self.file.sync_all()?;
        self.store.host.step("data synced")?;
        lock(&self.pieces).sync()?;
        self.store.host.step("pieces synced")?;
        sync_dir(&self.store.layout.partial_dir(&self.digest))
    }

    /// Renames the directory among the blobs, says so, and waits until the name is on the disk.
    ///
    /// The content is there before. Whether the name is when a crash comes decides only which of the two it is, so
    /// trouble with the name is not the blob's.
    fn publish(self: &Arc<Self>) -> Result<Blob, CommitError> {
        let blob = self.rename()?;
        if let Err(error) = self.store.sync_blob_dir(&self.digest) {
            warn!(digest = %self.digest, %error, "a committed blob may be a partial again after a crash");
        }
        Ok(blob)
    }

    fn rename(self: &Arc<Self>) -> Result<Blob, CommitError> {
        let _admission = lock(&self.store.admission);
        if let Phase::Withdrawn = lock(&self.state).phase() {
            return Err(CommitError::Withdrawn);
        }
        self.store.publish_dir(&self.digest).map_err(CommitError::Disk)?;
        let metainfo = lock(&self.state).metainfo().clone();
        let inner = BlobInner { store: self.store.clone(), metainfo, file: self.file.clone() };
        let blob = Blob(Arc::new(inner));
        let kind = Kind::Committed { touched: (self.store.host.clock)(), live: Arc::downgrade(&blob.0) };
        lock(&self.store.index).insert(self.digest, self.geometry.length(), kind);
        lock(&self.state).end(Phase::Committed(blob.clone()));
        Ok(blob)
    }

    /// Removes the partial unless it is committed.
    pub(super) fn withdraw(&self) {
        let _admission = lock(&self.store.admission);
        if !self.end_withdrawn() {
            return;
        }
        let current = {
            let mut index = lock(&self.store.index);
            index.is_current(&self.digest, self) && index.remove(&self.digest).is_some()
        };
        if current {
            self.store.trash(&self.store.layout.partial_dir(&self.digest));
        }
    }

    /// Ends the open phase in memory; the caller removes the files. Says whether it was open.
    pub(crate) fn end_withdrawn(&self) -> bool {
        let mut state = lock(&self.state);
        let open = matches!(state.phase(), Phase::Open);
        if open {
            state.end(Phase::Withdrawn);
        }
        open
    }
}

/// Tells whether two cuts are the same on disk.
pub(crate) fn same_cut(a: &Geometry, b: &Geometry) -> bool {
    a.length() == b.length() && a.piece_length() == b.piece_length()
}

impl Drop for PartialInner {
    fn drop(&mut self) {
        let on_disk = self.file.metadata().map_or(self.geometry.length(), |data| layout::allocated(&data));
        lock(&self.store.index).release(&self.digest, self, on_disk);
    }
}
