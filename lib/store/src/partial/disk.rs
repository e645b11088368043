//! The disk work of a partial: verify and write pieces, verify what was left, commit, withdraw.
//!
//! Every function here runs on a blocking thread, to its end. Lock order: `ahead`, the store's admission, `pieces`;
//! `state` and the index are taken briefly and alone.

use std::fs::{self, FileTimes};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use shoal_meta::{Digest, Geometry, Metainfo, PieceHash, PieceIndex};
use tracing::{debug, warn};

use super::state::{Contradiction, Phase, Sender, State};
use super::{CommitError, PartialInner, WriteError};
use crate::blob::BlobInner;
use crate::checks::Checks;
use crate::index::Kind;
use crate::layout;
use crate::pieces_file::PiecesFile;
use crate::store::Shared;
use crate::{Blob, lock, whole};

/// How many pieces written before they could be hashed one write may read again; the rest waits for the next, or commit.
const READ_BACK_MAX: u32 = 2;

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
            ahead: Mutex::new(()),
            read_back: AtomicU32::new(0),
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

    /// Verifies a piece and writes it. Gives its hash, if that can be told.
    pub(super) fn write(
        &self,
        piece: PieceIndex,
        blocks: &[Bytes],
        sender: Sender,
    ) -> Result<Option<PieceHash>, WriteError> {
        let Some(before) = lock(&self.state).hash_before(piece, sender)? else {
            // One at a time: nobody could tell two versions of a piece apart.
            let _ahead = lock(&self.ahead);
            if lock(&self.state).admit_unhashed(piece)? {
                self.put(piece, blocks)?;
            }
            return Ok(None);
        };
        let hash = before.then(&self.geometry, piece, blocks.iter().map(AsRef::as_ref));
        if lock(&self.state).admit(piece, hash)? {
            self.put(piece, blocks)?;
            self.persist().map_err(WriteError::Disk)?;
            // Trouble reading is left for commit to meet.
            if let Err(error) = self.follow(READ_BACK_MAX) {
                warn!(digest = %self.digest, %error, "cannot read back a piece");
            }
        }
        Ok(Some(hash))
    }

    /// Writes a piece and counts it as had.
    fn put(&self, piece: PieceIndex, blocks: &[Bytes]) -> Result<(), WriteError> {
        let mut offset = self.geometry.piece_range(piece).start;
        for block in blocks {
            self.file.write_all_at(block, offset).map_err(WriteError::Disk)?;
            self.store.host.step("block").map_err(WriteError::Disk)?;
            offset += block.len() as u64;
        }
        self.store.condition.took(self.store.layout.root());
        if lock(&self.state).written(piece)? {
            let bytes = u64::from(self.geometry.length_of(piece));
            self.unwritten.update(Ordering::Relaxed, Ordering::Relaxed, |left| left.saturating_sub(bytes));
        }
        Ok(())
    }

    /// Hashes pieces that were written before they could be and now can, as many as that, and gives how many it were.
    pub(super) fn follow(&self, most: u32) -> io::Result<u32> {
        if lock(&self.state).next_unhashed().is_none() {
            return Ok(0);
        }
        let _ahead = lock(&self.ahead);
        self.follow_locked(most)
    }

    fn follow_locked(&self, most: u32) -> io::Result<u32> {
        for done in 0..most {
            let Some((piece, before)) = lock(&self.state).next_unhashed() else { return Ok(done) };
            let hash = whole::piece_hash(&self.file, self.geometry, piece, before)?;
            self.read_back.fetch_add(1, Ordering::Relaxed);
            let noted = lock(&self.state).hashed(piece, hash);
            if let Err(Contradiction) = noted {
                warn!(digest = %self.digest, piece = piece.get(), "upstream and the published hashes contradict each other");
                self.withdraw();
            }
        }
        Ok(most)
    }

    /// How many pieces had to be read again to be hashed.
    #[cfg(test)]
    pub(crate) fn read_back(&self) -> u32 {
        self.read_back.load(Ordering::Relaxed)
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
            let before =
                lock(&self.state).metainfo().hash_before(piece).expect("its own hash is known, which comes after");
            let hash = whole::piece_hash(&self.file, self.geometry, piece, before)?;
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
        let _ahead = lock(&self.ahead);
        self.check_full()?;
        self.follow_locked(u32::MAX).map_err(CommitError::Disk)?;
        // Upstream may have been found to contradict the hashes.
        if let Some(blob) = self.check_full()? {
            return Ok(blob);
        }
        let computed = self.computed().map_err(CommitError::Disk)?;
        if computed != self.digest {
            self.withdraw();
            return Err(CommitError::DigestMismatch { computed });
        }
        debug!(digest = %self.digest, pieces = self.geometry.piece_count(), read_back = ?self.read_back, "digest checked");
        self.persist().map_err(CommitError::Disk)?;
        if let Err(error) = self.sync() {
            self.withdraw();
            return Err(CommitError::Disk(error));
        }
        self.publish()
    }

    /// Checks that every piece is had. Gives the blob if it is one already.
    fn check_full(&self) -> Result<Option<Blob>, CommitError> {
        let state = lock(&self.state);
        let have = state.have();
        match state.phase() {
            Phase::Committed(blob) => Ok(Some(blob.clone())),
            Phase::Withdrawn => Err(CommitError::Withdrawn),
            Phase::Open if have.is_full() => Ok(None),
            Phase::Open => Err(CommitError::Incomplete { have: have.count(), pieces: have.length() }),
        }
    }

    /// The digest of what is on disk, every piece of which was verified.
    fn computed(&self) -> io::Result<Digest> {
        match self.digest {
            Digest::Sha256(_) => {
                let last = lock(&self.state).metainfo().hashes().last().copied();
                Ok(Digest::Sha256(last.expect("every piece is had and was hashed").0))
            }
            Digest::Sha512(_) => whole::digest(&self.file, self.geometry, &self.digest),
        }
    }

    /// Waits until everything inside the directory is on the disk.
    fn sync(&self) -> io::Result<()> {
        let (host, dir) = (&self.store.host, self.store.layout.partial_dir(&self.digest));
        let now = (host.clock)();
        self.file.set_times(FileTimes::new().set_modified(now))?;
        host.sync(&self.file, &dir.join("data"))?;
        host.step("data synced")?;
        lock(&self.pieces).sync(now, host, &dir.join("pieces"))?;
        host.step("pieces synced")?;
        host.sync_dir(&dir)?;
        host.step("names synced")
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
        let checks = Arc::new(Checks::all_passed(&self.geometry, self.store.age()));
        let inner = BlobInner { store: self.store.clone(), metainfo, file: self.file.clone(), checks: checks.clone() };
        let blob = Blob(Arc::new(inner));
        let now = (self.store.host.clock)();
        let kind = Kind::Committed { touched: now, live: Arc::downgrade(&blob.0), checked: now, checks };
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
        if current && let Err(error) = self.store.trash(&self.store.layout.partial_dir(&self.digest)) {
            warn!(digest = %self.digest, %error, "cannot remove from the store");
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
