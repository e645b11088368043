//! Nodes that have certificates swap with their like, and with nobody else.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod rig;

use rig::{MIB, Rig, config, content, read, soon, start, until};
use shoal_identity::{Identity, Part, issue};
use shoal_meta::{PeerInfo, Role};
use shoal_peer::Config;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

struct Authority(TempDir);

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        issue(directory.path()).unwrap();
        Self(directory)
    }

    /// What a part of this name shows.
    fn identity(&self, part: Part, name: &str) -> Identity {
        Identity::start(Some(&self.0.path().join(name)), part, CancellationToken::new()).unwrap()
    }

    async fn agent(&self) -> Rig {
        start(Config { identity: self.identity(Part::Agent, "agent"), ..config() }).await
    }

    async fn origin(&self) -> Rig {
        start(Config { identity: self.identity(Part::Origin, "origin"), role: Role::Origin, ..config() }).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn they_swap_over_tls() {
    let authority = Authority::new();
    let (origin, a, b) = (authority.origin().await, authority.agent().await, authority.agent().await);
    let content = content(20 * MIB + 77, 1);
    let blob = origin.hold(&content).await;
    soon(a.join(&blob, &[&origin]).await.committed()).await.unwrap();
    let copy = soon(b.join(&blob, &[&a]).await.committed()).await.unwrap();
    assert_eq!(read(&copy).await, content);
    assert_eq!((a.node.status().received.origin, b.node.status().received.same_zone), (20 * MIB + 77, 20 * MIB + 77));
    assert_eq!([&origin, &a, &b].map(|rig| rig.node.status().violations), [0; 3]);
    assert_eq!(a.node.identity().transport(), "mutual TLS");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_plaintext_get_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (node, stranger, plain) = (authority.agent().await, other.agent().await, start(config()).await);
    let blob = node.hold(&content(MIB, 2)).await;
    for (rig, violations) in [(&stranger, 1), (&plain, 2)] {
        let torrent = rig.join(&blob, &[&node]).await;
        until(|| node.node.status().violations >= violations).await;
        assert_eq!((torrent.progress().borrow().have, rig.node.status().connections), (0, 0));
    }
    assert_eq!((node.node.status().connections, node.node.status().sent_bytes), (0, 0));

    // Not even who the node is can be read without a certificate.
    let mut stream = TcpStream::connect(node.info().address).await.unwrap();
    stream.write_all(b"\0\0\0\x05\0hello").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    assert!(answer.len() < 10, "more than an alert: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_cannot_pose_as_an_origin() {
    let authority = Authority::new();
    let node = authority.agent().await;
    let blob = node.hold(&content(MIB, 3)).await;
    let agents = authority.identity(Part::Agent, "agent");
    let impostor = start(Config { identity: agents, role: Role::Origin, ..config() }).await;
    // It dials, and says Hello.
    let _torrent = impostor.join(&blob, &[&node]).await;
    until(|| node.node.status().violations == 1).await;
    // It is dialled, as somebody said that an origin is there.
    let mine = start(Config { identity: authority.identity(Part::Agent, "agent"), ..config() }).await;
    let torrent = mine.join(&blob, &[]).await;
    mine.node.add_peers(blob.digest(), vec![PeerInfo { role: Role::Origin, ..impostor.info() }]);
    until(|| mine.node.status().violations == 1).await;
    assert_eq!((mine.node.status().connections, torrent.progress().borrow().have), (0, 0));
    soon(async {
        mine.node.add_peers(blob.digest(), vec![node.info()]);
        torrent.committed().await.unwrap();
    })
    .await;
}
