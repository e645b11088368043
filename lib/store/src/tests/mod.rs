//! Facts about the store as a whole; the parts have their own beside them.

mod crash;
mod disks;
mod eviction;
mod model;
mod mount;
mod opening;
mod partials;
mod power;
mod rot;
mod seals;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use shoal_meta::{Digest, Geometry, PieceHash, PieceIndex};

use crate::host::{Host, Space};
use crate::{Blob, Budget, Config, OpenError, Partial, Store, lock};

const PIECE: u64 = 16 * 1024;

/// A blob whose content is known.
#[derive(Clone)]
struct Sample {
    content: Bytes,
    digest: Digest,
    geometry: Geometry,
}

impl Sample {
    /// Bytes that differ from piece to piece and from seed to seed.
    fn new(seed: u8, length: u64) -> Self {
        let mut state = u64::from(seed) + 1;
        let content = (0..length).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        });
        let content = content.collect::<Bytes>();
        let digest = Digest::sha256_of(&content);
        Self { content, digest, geometry: Geometry::new(length, PIECE as u32).unwrap() }
    }

    fn piece(&self, index: u32) -> PieceIndex {
        self.geometry.piece(index).unwrap()
    }

    /// A piece's bytes, in blocks as they come from the wire.
    fn blocks(&self, index: u32) -> Vec<Bytes> {
        let range = self.geometry.piece_range(self.piece(index));
        let bytes = self.content.slice(range.start as usize..range.end as usize);
        (0..bytes.len()).step_by(5000).map(|at| bytes.slice(at..bytes.len().min(at + 5000))).collect()
    }

    fn hashes(&self) -> Vec<PieceHash> {
        PieceHash::all(&self.geometry, &self.content)
    }

    async fn begin(&self, store: &Store) -> Partial {
        store.partial(self.digest, self.geometry).await.unwrap()
    }

    async fn ingest(&self, partial: &Partial, pieces: impl IntoIterator<Item = u32>) {
        for index in pieces {
            partial.ingest_piece(self.piece(index), self.blocks(index)).await.unwrap();
        }
    }

    /// Brings the whole blob into the store.
    async fn commit(&self, store: &Store) -> Blob {
        let partial = self.begin(store).await;
        self.ingest(&partial, 0..self.geometry.piece_count()).await;
        partial.commit().await.unwrap()
    }
}

/// A machine of the tests' own: a directory, a clock and a disk whose free space is told.
struct Scene {
    dir: tempfile::TempDir,
    now: Arc<Mutex<SystemTime>>,
    free_bytes: Arc<AtomicU64>,
    budget: Budget,
}

impl Scene {
    fn new(budget_bytes: u64) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            now: Arc::new(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000))),
            free_bytes: Arc::new(AtomicU64::new(1 << 40)),
            budget: Budget { bytes_max: Some(budget_bytes), free_floor_bytes: 1 << 20 },
        }
    }

    /// One on a disk that costs no time.
    fn in_memory() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { dir, ..Self::new(1 << 30) }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn host(&self) -> Host {
        let (now, free) = (self.now.clone(), self.free_bytes.clone());
        Host {
            clock: Box::new(move || *now.lock().unwrap()),
            probe: Box::new(move |_| Ok(Space { total_bytes: 1 << 41, free_bytes: free.load(Ordering::Relaxed) })),
            watch: Box::new(|_| Ok(())),
            synced: Box::new(|_| ()),
        }
    }

    async fn try_open(&self) -> Result<Store, OpenError> {
        Store::open_on(self.host(), Config { root: self.root(), budget: self.budget }).await
    }

    async fn open(&self) -> Store {
        self.try_open().await.unwrap()
    }

    fn pass(&self, seconds: u64) {
        *self.now.lock().unwrap() += Duration::from_secs(seconds);
    }

    fn data_of_partial(&self, sample: &Sample) -> PathBuf {
        self.root().join("partial").join(format!("sha256-{}", sample.digest.hex())).join("data")
    }

    fn dir_of_blob(&self, sample: &Sample) -> PathBuf {
        let hex = sample.digest.hex();
        self.root().join("blobs/sha256").join(&hex[..2]).join(hex)
    }
}

async fn assert_whole(blob: &Blob, sample: &Sample) {
    assert_eq!(blob.read(0, sample.content.len() as u32).await.unwrap(), sample.content);
    assert_eq!(blob.metainfo().hashes(), sample.hashes());
}
