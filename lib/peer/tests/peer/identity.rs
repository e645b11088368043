//! Nodes that have certificates swap with their like, and with nobody else.

use crate::rig::{MIB, Rig, config, content, read, soon, start, until};
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

/// As a power cut may have torn it.
#[tokio::test(flavor = "multi_thread")]
async fn a_seal_that_does_not_hold_is_not_passed_on() {
    let authority = Authority::new();
    let (torn, good, asker) = (authority.agent().await, authority.agent().await, authority.agent().await);
    let content = content(MIB, 4);
    let blob = torn.hold(&content).await;
    good.hold(&content).await;
    let seal = authority.identity(Part::Origin, "origin").seal(&blob.metainfo().statement()).unwrap();
    torn.node.keep_seal(&blob.digest(), seal[..seal.len() / 2].to_vec()).await;
    good.node.keep_seal(&blob.digest(), seal).await;

    let partial = asker.store.partial(blob.digest(), blob.geometry()).await.unwrap();
    let torrent = asker.node.join(partial).await.unwrap();
    asker.node.add_peers(blob.digest(), vec![torn.info()]);
    until(|| asker.node.status().connections == 1).await;
    let mut asked = 0;
    until(|| {
        torrent.find_metainfo();
        asked += 1;
        asked > 20
    })
    .await;
    asker.node.add_peers(blob.digest(), vec![good.info()]);
    until(|| {
        torrent.find_metainfo();
        torrent.progress().borrow().have > 0
    })
    .await;
    soon(torrent.committed()).await.unwrap();
    assert_eq!((asker.node.status().violations, asker.node.status().connections), (0, 2));
}
