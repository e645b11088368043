//! What is known of a partial, in memory: hashes, verified pieces, and whether it still stands.
//!
//! Used under a brief lock by the handles and by the disk work. Does no IO.

use shoal_meta::{Bitfield, Metainfo, PieceHash, PieceIndex};

use crate::{Blob, ExtendError, WriteError};

/// Who a piece came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// A peer: believed only as far as a known hash confirms it.
    Peer,
    /// Upstream: its hash is ours to publish when none is known.
    Upstream,
}

/// How far a partial has come.
pub(super) enum Phase {
    /// Pieces are arriving. Left by commit or withdrawal.
    Open,
    /// It is a blob now; the handle keeps that pinned. Final.
    Committed(Blob),
    /// Discarded, removed, or not what its digest promised. Final; nothing is had.
    Withdrawn,
}

/// Says that a piece from upstream is not the one whose hash was published since: one of the two is wrong.
#[derive(Debug)]
pub(super) struct Contradiction;

/// Invariant: every piece in `have` was compared with its hash in `metainfo`, or is in `unhashed`.
pub(super) struct State {
    metainfo: Metainfo,
    have: Bitfield,
    /// Pieces from upstream, written or being written, whose hash could not be told as they came.
    unhashed: Bitfield,
    /// Pieces an earlier run may have left on disk.
    suspect: Bitfield,
    phase: Phase,
}

impl State {
    pub(super) fn new(metainfo: Metainfo, reopened: bool) -> Self {
        let geometry = metainfo.geometry();
        let none = Bitfield::empty(&geometry);
        let suspect = if reopened { Bitfield::full(&geometry) } else { none.clone() };
        Self { metainfo, have: none.clone(), unhashed: none, suspect, phase: Phase::Open }
    }

    pub(super) fn metainfo(&self) -> &Metainfo {
        &self.metainfo
    }

    pub(super) fn have(&self) -> &Bitfield {
        &self.have
    }

    pub(super) fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Ends the open phase.
    pub(super) fn end(&mut self, phase: Phase) {
        if let Phase::Withdrawn = phase {
            self.have = Bitfield::empty(&self.metainfo.geometry());
        }
        self.phase = phase;
    }

    /// The pieces to verify: perhaps on disk, hash known.
    pub(super) fn suspects(&self) -> Vec<PieceIndex> {
        self.suspect.iter().take_while(|piece| self.metainfo.hash(*piece).is_some()).collect()
    }

    /// Notes what the disk holds of a suspect.
    pub(super) fn checked(&mut self, piece: PieceIndex, hash: Option<PieceHash>) {
        self.suspect.remove(piece);
        if hash.is_some() && hash == self.metainfo.hash(piece) && !matches!(self.phase, Phase::Withdrawn) {
            self.have.insert(piece);
        }
    }

    /// Refuses, before any work, what could not be admitted whatever its bytes. Gives the hash that a piece is hashed
    /// after: none while it is not known, and the piece comes from upstream.
    pub(super) fn hash_before(&self, piece: PieceIndex, sender: Sender) -> Result<Option<PieceHash>, WriteError> {
        self.check_stands()?;
        if sender == Sender::Peer && self.metainfo.hash(piece).is_none() {
            return Err(WriteError::UnknownHash { piece: piece.get() });
        }
        Ok(self.metainfo.hash_before(piece))
    }

    /// Tells whether bytes of this hash, computed after that of the piece before, may become the piece, and whether they
    /// still need to be written. An unknown hash is known from here on: two versions must not race to the disk.
    pub(super) fn admit(&mut self, piece: PieceIndex, hash: PieceHash) -> Result<bool, WriteError> {
        self.check_stands()?;
        match self.metainfo.extend(piece.get(), &[hash]) {
            Ok(()) => Ok(!self.have.contains(piece)),
            Err(_contradiction) => Err(WriteError::HashMismatch { piece: piece.get() }),
        }
    }

    /// Tells whether a piece from upstream whose hash cannot be told yet needs to be written.
    pub(super) fn admit_unhashed(&mut self, piece: PieceIndex) -> Result<bool, WriteError> {
        self.check_stands()?;
        let new = !self.have.contains(piece);
        if new {
            self.unhashed.insert(piece);
        }
        Ok(new)
    }

    /// Counts an admitted piece as had, now that it is written. Says whether it was new.
    pub(super) fn written(&mut self, piece: PieceIndex) -> Result<bool, WriteError> {
        self.check_stands()?;
        self.suspect.remove(piece);
        Ok(self.have.insert(piece))
    }

    /// The first piece written before it could be hashed that can be now, and the hash of the one before it.
    pub(super) fn next_unhashed(&self) -> Option<(PieceIndex, PieceHash)> {
        let piece = self.unhashed.iter_and(&self.have).next()?;
        Some((piece, self.metainfo.hash_before(piece)?))
    }

    /// Notes the hash of such a piece.
    pub(super) fn hashed(&mut self, piece: PieceIndex, hash: PieceHash) -> Result<(), Contradiction> {
        self.metainfo.extend(piece.get(), &[hash]).map_err(|_| Contradiction)?;
        self.unhashed.remove(piece);
        Ok(())
    }

    /// Adds published hashes.
    pub(super) fn extend(&mut self, first: u32, hashes: &[PieceHash]) -> Result<(), ExtendError> {
        if let Phase::Withdrawn = self.phase {
            return Err(ExtendError::Withdrawn);
        }
        self.metainfo.extend_published(first, hashes).map_err(ExtendError::Metainfo)
    }

    /// Tells whether a range lies in verified pieces.
    pub(super) fn can_read(&self, offset: u64, length: u32) -> bool {
        let Some(last) = offset.checked_add(u64::from(length.max(1)) - 1) else { return false };
        let geometry = self.metainfo.geometry();
        let (Some(first), Some(last)) = (geometry.piece_at(offset), geometry.piece_at(last)) else { return false };
        (first.get()..=last.get()).all(|index| geometry.piece(index).is_some_and(|piece| self.have.contains(piece)))
    }

    fn check_stands(&self) -> Result<(), WriteError> {
        match self.phase {
            Phase::Open | Phase::Committed(_) => Ok(()),
            Phase::Withdrawn => Err(WriteError::Withdrawn),
        }
    }
}
