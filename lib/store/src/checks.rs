//! When each piece of a committed blob was last compared with its hash.
//!
//! Bits rot on disks. So a piece is served only if it was compared since this process began, and one that has to be read from
//! the disk is compared again (docs/adr/0014). Kept by the index for each blob, shared by the handles on it; does no IO.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use shoal_meta::{Geometry, PieceIndex};

/// A piece compared less long ago is read from the disk without: where memory is short the slices of one piece may each
/// come from the disk, and each would cost the whole piece.
const FRESH_FOR: Duration = Duration::from_secs(60);

/// For each piece, in seconds since the store opened and one more; 0 is never. None is made before a blob is read: 4 bytes
/// for each piece of what was.
#[derive(Default)]
pub(crate) struct Checks(OnceLock<Box<[AtomicU32]>>);

impl Checks {
    /// Those of a blob whose pieces have all been compared just now.
    pub(crate) fn all_passed(geometry: &Geometry, now: Duration) -> Self {
        let checks = Self::default();
        geometry.pieces().for_each(|piece| checks.passed(geometry, piece, now));
        checks
    }

    /// A piece was compared, and is right.
    pub(crate) fn passed(&self, geometry: &Geometry, piece: PieceIndex, now: Duration) {
        let pieces = self.0.get_or_init(|| geometry.pieces().map(|_| AtomicU32::new(0)).collect());
        pieces[piece.get() as usize].store(stamp(now), Ordering::Relaxed);
    }

    /// A piece is wrong, whatever was found before.
    pub(crate) fn failed(&self, piece: PieceIndex) {
        if let Some(pieces) = self.0.get() {
            pieces[piece.get() as usize].store(0, Ordering::Relaxed);
        }
    }

    /// Whether a piece was compared since the store opened.
    pub(crate) fn has_passed(&self, piece: PieceIndex) -> bool {
        self.at(piece) != 0
    }

    /// Whether a piece was compared a moment ago.
    pub(crate) fn is_fresh(&self, piece: PieceIndex, now: Duration) -> bool {
        let (at, now) = (self.at(piece), stamp(now));
        at != 0 && now.abs_diff(at) < stamp(FRESH_FOR)
    }

    fn at(&self, piece: PieceIndex) -> u32 {
        self.0.get().map_or(0, |pieces| pieces[piece.get() as usize].load(Ordering::Relaxed))
    }
}

fn stamp(at: Duration) -> u32 {
    u32::try_from(at.as_secs()).unwrap_or(u32::MAX - 1).saturating_add(1)
}
