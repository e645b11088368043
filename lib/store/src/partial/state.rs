//! What is known of a partial, in memory: hashes, verified pieces, and whether it still stands.
//!
//! Used under a brief lock by the handles and by the disk work. Does no IO.

use std::collections::BTreeMap;

use shoal_meta::{Bitfield, Metainfo, MetainfoError, PieceHash, PieceIndex};

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

/// Invariant: every piece in `have` has a hash, in `metainfo` or in `claimed`.
pub(super) struct State {
    metainfo: Metainfo,
    /// Hashes of pieces from upstream past the metainfo's end. At most one per piece.
    claimed: BTreeMap<u32, PieceHash>,
    have: Bitfield,
    /// Pieces an earlier run may have left on disk.
    suspect: Bitfield,
    phase: Phase,
}

impl State {
    pub(super) fn new(metainfo: Metainfo, reopened: bool) -> Self {
        let geometry = metainfo.geometry();
        let have = Bitfield::empty(&geometry);
        let suspect = if reopened { Bitfield::full(&geometry) } else { have.clone() };
        Self { metainfo, claimed: BTreeMap::new(), have, suspect, phase: Phase::Open }
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

    /// Tells whether bytes of this hash may become the piece, and whether they still need to be written.
    pub(super) fn admit(&mut self, piece: PieceIndex, hash: PieceHash, sender: Sender) -> Result<bool, WriteError> {
        self.check_known(piece, sender)?;
        let known = self.metainfo.hash(piece).or_else(|| self.claimed.get(&piece.get()).copied());
        // Claimed before it is written: two different versions must not race to the disk.
        let known = known.unwrap_or_else(|| *self.claimed.entry(piece.get()).or_insert(hash));
        if known != hash {
            return Err(WriteError::HashMismatch { piece: piece.get() });
        }
        Ok(!self.have.contains(piece))
    }

    /// Refuses, before any work, what could not be admitted whatever its hash.
    pub(super) fn check_known(&self, piece: PieceIndex, sender: Sender) -> Result<(), WriteError> {
        if let Phase::Withdrawn = self.phase {
            return Err(WriteError::Withdrawn);
        }
        let known = self.metainfo.hash(piece).is_some() || self.claimed.contains_key(&piece.get());
        if known || sender == Sender::Upstream { Ok(()) } else { Err(WriteError::UnknownHash { piece: piece.get() }) }
    }

    /// Counts an admitted piece as had, now that it is written. Says whether it was new.
    pub(super) fn written(&mut self, piece: PieceIndex) -> Result<bool, WriteError> {
        if let Phase::Withdrawn = self.phase {
            return Err(WriteError::Withdrawn);
        }
        self.suspect.remove(piece);
        let new = self.have.insert(piece);
        self.settle();
        Ok(new)
    }

    /// Adds published hashes; those of our own pieces must agree.
    pub(super) fn extend(&mut self, first: u32, hashes: &[PieceHash]) -> Result<(), ExtendError> {
        if let Phase::Withdrawn = self.phase {
            return Err(ExtendError::Withdrawn);
        }
        let disagrees = |(index, hash): &(u32, &PieceHash)| self.claimed.get(index).is_some_and(|own| own != *hash);
        if let Some((index, _)) = (first..).zip(hashes).find(disagrees) {
            return Err(ExtendError::Metainfo(MetainfoError::Contradiction(index)));
        }
        self.metainfo.extend(first, hashes).map_err(ExtendError::Metainfo)?;
        self.claimed = self.claimed.split_off(&self.metainfo.known());
        self.settle();
        Ok(())
    }

    /// Moves the hashes of our own pieces to the metainfo as far as they follow it and the pieces are written.
    fn settle(&mut self) {
        while let Some(piece) = self.metainfo.geometry().piece(self.metainfo.known())
            && self.have.contains(piece)
            && let Some(hash) = self.claimed.remove(&piece.get())
        {
            self.metainfo.extend(piece.get(), &[hash]).expect("it is the next hash in order");
        }
    }

    /// Tells whether a range lies in verified pieces.
    pub(super) fn can_read(&self, offset: u64, length: u32) -> bool {
        let Some(last) = offset.checked_add(u64::from(length.max(1)) - 1) else { return false };
        let geometry = self.metainfo.geometry();
        let (Some(first), Some(last)) = (geometry.piece_at(offset), geometry.piece_at(last)) else { return false };
        (first.get()..=last.get()).all(|index| geometry.piece(index).is_some_and(|piece| self.have.contains(piece)))
    }
}
