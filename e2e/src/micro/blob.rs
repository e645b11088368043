//! The blob that is moved: random bytes, committed in a store, and as a plain file where nginx finds it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use rand::Rng as _;
use shoal_meta::{Digest, Geometry, Metainfo, PeerId};
use shoal_store::{Budget, Store};

/// The registry the blob is from, as the agent's clients call it.
pub(crate) const UPSTREAM: &str = "micro.test";
const LENGTH: usize = 512 << 20;

/// The files of a run. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) dir: PathBuf,
    /// A store that holds the blob, closed.
    pub(crate) store: PathBuf,
    pub(crate) metainfo: Metainfo,
    /// What a node on that store is called.
    pub(crate) peer_id: PeerId,
}

impl Scene {
    pub(crate) fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("shoal-micro-{}", std::process::id()));
        let mut content = vec![0; LENGTH];
        rand::rng().fill_bytes(&mut content);
        let content = Bytes::from(content);
        let digest = Digest::sha256_of(&content);
        let plain = plain(&dir, &digest);
        fs::create_dir_all(plain.parent().context("it has a parent")?)?;
        fs::write(&plain, &content)?;
        let store = dir.join("store");
        let (metainfo, peer_id) = runtime()?.block_on(fill(&store, digest, content))?;
        Ok(Self { dir, store, metainfo, peer_id })
    }

    /// The blob as a plain file.
    pub(crate) fn plain(&self) -> PathBuf {
        plain(&self.dir, &self.metainfo.digest())
    }

    /// An empty directory for a receiver; what the one before left there is removed.
    pub(crate) fn empty(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        let _not_there = fs::remove_dir_all(&path);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _nothing_left_to_do = fs::remove_dir_all(&self.dir);
    }
}

/// Where nginx finds the blob.
fn plain(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("www").join(path(digest).trim_start_matches('/'))
}

/// Where a registry serves the blob.
pub(crate) fn path(digest: &Digest) -> String {
    format!("/v2/bench/blobs/{digest}")
}

/// Opens a store that keeps everything.
pub(crate) async fn open(root: &Path) -> Result<Store> {
    let budget = Budget { bytes_max: Some(1 << 40), free_floor_bytes: 0 };
    Ok(Store::open(shoal_store::Config { root: root.to_owned(), budget }).await?)
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

async fn fill(root: &Path, digest: Digest, content: Bytes) -> Result<(Metainfo, PeerId)> {
    let store = open(root).await?;
    let partial = store.partial(digest, Geometry::for_length(content.len() as u64)?).await?;
    let geometry = partial.geometry();
    for piece in geometry.pieces() {
        let range = geometry.piece_range(piece);
        let bytes = content.slice(usize::try_from(range.start)?..usize::try_from(range.end)?);
        partial.ingest_piece(piece, vec![bytes]).await?;
    }
    Ok((partial.commit().await?.metainfo(), store.peer_id()))
}
