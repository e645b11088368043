//! What the tests of whole nodes share: nodes on loopback with stores of their own, blobs, deadlines.

pub(crate) mod tracker;

use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use bytes::Bytes;
use shoal_identity::Identity;
use shoal_meta::{Digest, Geometry, PeerInfo, PieceIndex, Role, Topology};
use shoal_peer::{Config, Node, Torrent};
use shoal_store::{Blob, Budget, Store};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) const MIB: u64 = 1 << 20;

/// A node and its store; both end with it.
pub(crate) struct Rig {
    pub(crate) node: Node,
    pub(crate) store: Store,
    pub(crate) shutdown: CancellationToken,
    root: TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A configuration for loopback without trackers or caps.
pub(crate) fn config() -> Config {
    Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        advertise: None,
        role: Role::Agent,
        topology: Topology::default(),
        upload_rate: None,
        download_rate: None,
        background: true,
        trackers: watch::channel(Vec::new()).1,
        identity: Identity::plaintext(),
        swarm: shoal_swarm::Config::default(),
    }
}

pub(crate) async fn start(config: Config) -> Rig {
    start_with_budget(config, 1 << 30).await
}

pub(crate) async fn start_with_budget(config: Config, bytes_max: u64) -> Rig {
    start_on(config, bytes_max, tempfile::tempdir().unwrap()).await
}

async fn start_on(config: Config, bytes_max: u64, root: TempDir) -> Rig {
    let budget = Budget { bytes_max: Some(bytes_max), free_floor_bytes: 0 };
    let store = Store::open(shoal_store::Config { root: root.path().join("store"), budget }).await.unwrap();
    let shutdown = CancellationToken::new();
    let node = Node::start(config, store.clone(), shutdown.clone()).await.unwrap();
    Rig { node, store, shutdown, root }
}

impl Rig {
    /// Puts a blob into the store, as the origin's ingest does.
    pub(crate) async fn hold(&self, content: &Bytes) -> Blob {
        let (digest, geometry) = name(content);
        let partial = self.store.partial(digest, geometry).await.unwrap();
        for piece in geometry.pieces() {
            partial.ingest_piece(piece, vec![piece_of(content, &geometry, piece)]).await.unwrap();
        }
        let blob = partial.commit().await.unwrap();
        self.node.seed(digest);
        blob
    }

    /// Another node that holds a blob of this one, a byte of each piece of which has rotted.
    pub(crate) async fn rotten(&self, blob: &Blob, config: Config) -> Rig {
        let (root, hex) = (tempfile::tempdir().unwrap(), blob.digest().hex());
        let directory = format!("store/blobs/sha256/{}/{hex}", &hex[..2]);
        std::fs::create_dir_all(root.path().join(&directory)).unwrap();
        for file in ["store/version".to_owned(), format!("{directory}/pieces"), format!("{directory}/data")] {
            std::fs::copy(self.root.path().join(&file), root.path().join(&file)).unwrap();
        }
        let data =
            std::fs::File::options().write(true).read(true).open(root.path().join(directory).join("data")).unwrap();
        for piece in blob.geometry().pieces() {
            let (mut byte, at) = ([0], blob.geometry().piece_range(piece).start);
            data.read_exact_at(&mut byte, at).unwrap();
            data.write_all_at(&[byte[0] ^ 1], at).unwrap();
        }
        start_on(config, 1 << 30, root).await
    }

    /// Takes the files of unfinished blobs away, as a disk that fails may.
    pub(crate) fn lose_partials(&self) {
        std::fs::remove_dir_all(self.root.path().join("store/partial")).unwrap();
    }

    /// Joins a blob's torrent knowing all hashes, with these peers.
    pub(crate) async fn join(&self, blob: &Blob, peers: &[&Rig]) -> Torrent {
        let partial = self.store.partial(blob.digest(), blob.geometry()).await.unwrap();
        let torrent = self.node.join(partial).await.unwrap();
        torrent.extend_hashes(0, blob.metainfo().hashes().to_vec()).await.unwrap();
        self.node.add_peers(blob.digest(), peers.iter().map(|peer| peer.node.info()).collect());
        torrent
    }

    pub(crate) fn info(&self) -> PeerInfo {
        self.node.info()
    }
}

/// Bytes that differ from piece to piece.
pub(crate) fn content(length: u64, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(usize::try_from(length).unwrap());
    while (out.len() as u64) < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(usize::try_from(length).unwrap());
    out.into()
}

pub(crate) fn name(content: &Bytes) -> (Digest, Geometry) {
    (Digest::sha256_of(content), Geometry::for_length(content.len() as u64).unwrap())
}

pub(crate) fn piece_of(content: &Bytes, geometry: &Geometry, piece: PieceIndex) -> Bytes {
    let range = geometry.piece_range(piece);
    content.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
}

/// The bytes of a committed blob.
pub(crate) async fn read(blob: &Blob) -> Bytes {
    let mut out = Vec::new();
    for piece in blob.geometry().pieces() {
        let range = blob.geometry().piece_range(piece);
        out.extend_from_slice(&blob.read(range.start, blob.geometry().length_of(piece)).await.unwrap());
    }
    out.into()
}

/// Waits for something that must come, with a deadline generous enough for a busy machine.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it comes before the deadline")
}

/// Polls until something is true.
pub(crate) async fn until(mut done: impl FnMut() -> bool) {
    soon(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
