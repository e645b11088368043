//! The driver's side of one open torrent: where its bytes are, the blocks of pieces in flight, the readers.
//!
//! Owned by the driver. The swarm decides; this keeps what the swarm must not see.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use shoal_meta::{BlockRef, PieceIndex};
use shoal_store::{Partial, Source};
use shoal_swarm::{ReaderId, Swarm, Time, TorrentKey};

use crate::counters::From;
use crate::torrent::Shared;

/// An open torrent.
pub(crate) struct Entry {
    pub(crate) shared: Arc<Shared>,
    pub(crate) stage: Stage,
    /// Blocks of pieces that are not whole, by their offsets.
    arriving: BTreeMap<PieceIndex, BTreeMap<u32, (From, Bytes)>>,
    /// Pieces at the store, and the number of the job.
    writing: BTreeMap<PieceIndex, u64>,
    readers: BTreeMap<u64, (ReaderId, PieceIndex)>,
    /// Pieces that could not be written since the last that could.
    disk_failures: u32,
}

/// What an entry is at.
pub(crate) enum Stage {
    /// Pieces are missing. Left when the last is in.
    Leeching(Partial),
    /// The store checks the whole. Left when it answers.
    Committing(Partial),
    /// The blob is whole. Never left: the torrent is closed when idle.
    Seeding(Source),
}

/// A whole piece, unverified.
pub(crate) struct Piece {
    pub(crate) blocks: Vec<Bytes>,
    /// Who sent how much of it.
    pub(crate) received: Vec<(From, u64)>,
}

impl Entry {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let stage = match shared.source() {
            Source::Partial(partial) => Stage::Leeching(partial),
            blob @ Source::Blob(_) => Stage::Seeding(blob),
        };
        Self {
            shared,
            stage,
            arriving: BTreeMap::new(),
            writing: BTreeMap::new(),
            readers: BTreeMap::new(),
            disk_failures: 0,
        }
    }

    /// Where its bytes can be read.
    pub(crate) fn source(&self) -> Source {
        match &self.stage {
            Stage::Leeching(partial) | Stage::Committing(partial) => Source::Partial(partial.clone()),
            Stage::Seeding(source) => source.clone(),
        }
    }

    /// The partial, until the blob is whole.
    pub(crate) fn partial(&self) -> Option<&Partial> {
        match &self.stage {
            Stage::Leeching(partial) | Stage::Committing(partial) => Some(partial),
            Stage::Seeding(_) => None,
        }
    }

    pub(crate) fn is_leeching(&self) -> bool {
        self.partial().is_some()
    }

    /// Keeps a block until its piece is whole or dropped.
    pub(crate) fn add_block(&mut self, block: BlockRef, from: From, payload: Bytes) {
        self.arriving.entry(block.piece).or_default().insert(block.offset, (from, payload));
    }

    /// Takes the blocks of a piece that is to be verified as a job of this number.
    pub(crate) fn take_piece(&mut self, piece: PieceIndex, job: u64) -> Piece {
        self.writing.insert(piece, job);
        let blocks = self.arriving.remove(&piece).unwrap_or_default();
        let mut out = Piece { blocks: Vec::with_capacity(blocks.len()), received: Vec::new() };
        for (from, bytes) in blocks.into_values() {
            let length = bytes.len() as u64;
            match out.received.iter_mut().find(|(known, _)| *known == from) {
                Some((_, sum)) => *sum += length,
                None => out.received.push((from, length)),
            }
            out.blocks.push(bytes);
        }
        out
    }

    /// Drops the blocks of a piece and no longer waits for its job; tells how many bytes were thrown away.
    pub(crate) fn drop_piece(&mut self, piece: PieceIndex) -> u64 {
        self.writing.remove(&piece);
        let blocks = self.arriving.remove(&piece).unwrap_or_default();
        blocks.values().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Tells whether a job is at the store.
    pub(crate) fn is_writing(&self, piece: PieceIndex) -> bool {
        self.writing.contains_key(&piece)
    }

    /// Ends a job; tells whether it was still waited for.
    pub(crate) fn end_job(&mut self, piece: PieceIndex, job: u64) -> bool {
        let current = self.writing.get(&piece) == Some(&job);
        if current {
            self.writing.remove(&piece);
        }
        current
    }

    /// Counts a failure of the disk (`true`), or that it works again; gives how many there were in a row.
    pub(crate) fn disk_failed(&mut self, failed: bool) -> u32 {
        self.disk_failures = if failed { self.disk_failures + 1 } else { 0 };
        self.disk_failures
    }

    /// Tells the swarm what is wanted and where the readers are now.
    pub(crate) fn sync_readers(&mut self, swarm: &mut Swarm, now: Time, key: TorrentKey) {
        if let Some(more) = self.shared.take_wanted() {
            swarm.want(now, key, &more);
        }
        let wanted = self.shared.readers();
        self.readers.retain(|number, (reader, _)| {
            let stays = wanted.contains_key(number);
            if !stays {
                swarm.remove_reader(key, *reader);
            }
            stays
        });
        for (number, piece) in wanted {
            match self.readers.get_mut(&number) {
                Some((_, at)) if *at == piece => {}
                Some((reader, at)) => {
                    *at = piece;
                    swarm.move_reader(now, key, *reader, piece);
                }
                None => {
                    if let Some(reader) = swarm.add_reader(now, key, piece) {
                        self.readers.insert(number, (reader, piece));
                    }
                }
            }
        }
    }
}
