//! Peers that break the protocol lose their connection, and nothing else happens.

use std::time::Duration;

use crate::rig::{MIB, Rig, config, content, soon, start, until};
use shoal_meta::{Bitfield, PeerId, PeerInfo, Role, Topology};
use shoal_swarm::wire::{self, Alias, Header, Message, Opened};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A peer whose every byte is the test's.
struct Rogue(TcpStream);

impl Rogue {
    async fn dial(node: &Rig) -> Self {
        Self(TcpStream::connect(node.info().address).await.unwrap())
    }

    async fn greet(node: &Rig, id: u8) -> Self {
        let mut rogue = Self::dial(node).await;
        rogue.say(&Message::Hello { version: wire::VERSION, peer: Box::new(me(id)) }).await;
        rogue
    }

    async fn say(&mut self, message: &Message) {
        let mut out = Vec::new();
        wire::encode_control(message, &mut out);
        self.0.write_all(&out).await.unwrap();
    }

    /// Reads frames until the node closes the connection.
    async fn loses_its_connection(mut self) {
        let mut sink = [0; 4096];
        soon(async { while !matches!(self.0.read(&mut sink).await, Ok(0) | Err(_)) {} }).await;
    }

    async fn hear(&mut self) -> Option<Message> {
        let mut header = [0; wire::HEADER_LENGTH];
        self.0.read_exact(&mut header).await.unwrap();
        let Header::Control { length } = wire::decode_header(header).unwrap() else { panic!("a block") };
        let mut body = vec![0; length as usize];
        self.0.read_exact(&mut body).await.unwrap();
        wire::decode_control(&body).unwrap()
    }
}

fn me(id: u8) -> PeerInfo {
    let address = ([127, 0, 0, 1], 1).into();
    PeerInfo { id: PeerId([id; 16]), address, role: Role::Agent, topology: Topology::default() }
}

/// A pair of nodes swaps a blob, whatever else goes on.
async fn still_works(node: &Rig) {
    let content = content(MIB, 99);
    let blob = node.hold(&content).await;
    let other = start(config()).await;
    soon(other.join(&blob, &[node]).await.committed()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_loses_its_connection() {
    let node = start(config()).await;
    let mut rogue = Rogue::dial(&node).await;
    rogue.0.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    rogue.loses_its_connection().await;
    still_works(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_frame_is_refused_by_its_header() {
    let node = start(config()).await;
    let mut rogue = Rogue::greet(&node, 1).await;
    until(|| node.node.status().connections == 1).await;
    rogue.0.write_all(&[0x7f, 0xff, 0xff, 0xff, 0]).await.unwrap();
    rogue.loses_its_connection().await;
    until(|| node.node.status().connections == 0).await;
    assert_eq!(node.node.status().violations, 1);
    still_works(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_says_nothing_is_let_go() {
    let node = start(config()).await;
    let rogue = Rogue::dial(&node).await;
    still_works(&node).await;
    rogue.loses_its_connection().await;
    until(|| node.node.status().violations == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_not_spoken_to() {
    let node = start(config()).await;
    let mut rogue = Rogue::dial(&node).await;
    rogue.say(&Message::Hello { version: 999, peer: Box::new(me(1)) }).await;
    rogue.loses_its_connection().await;
    assert_eq!(node.node.status().connections, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_nobody_asked_for_loses_its_connection() {
    let node = start(config()).await;
    let mut rogue = Rogue::greet(&node, 1).await;
    let content = content(MIB, 1);
    let (digest, geometry) = crate::rig::name(&content);
    let _torrent = node.node.join(node.store.partial(digest, geometry).await.unwrap()).await.unwrap();
    rogue.say(&Opened { alias: Alias(7), digest, geometry, have: Bitfield::full(&geometry) }.into()).await;
    let block = geometry.blocks(geometry.piece(0).unwrap()).next().unwrap();
    let frame = [&encode(7, block)[..], &content[..block.length as usize]].concat();
    // It may be cut off before it is done.
    let _ = rogue.0.write_all(&frame).await;
    rogue.loses_its_connection().await;
    until(|| node.node.status().violations == 1).await;
    assert_eq!(node.node.status().wasted.dropped, u64::from(block.length));
    still_works(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_banned_and_the_blob_still_arrives() {
    let (node, honest) = (start(config()).await, start(config()).await);
    let content = content(MIB, 2);
    let blob = honest.hold(&content).await;
    let torrent = node.join(&blob, &[]).await;
    let (digest, geometry) = (blob.digest(), blob.geometry());
    let mut liar = Rogue::greet(&node, 9).await;
    let alias = Alias(3);
    liar.say(&Opened { alias, digest, geometry, have: Bitfield::full(&geometry) }.into()).await;
    liar.say(&Message::Unchoke { pieces: 1 }).await;
    let lie = async {
        loop {
            match liar.hear().await {
                Some(Message::Interested) => liar.say(&Message::Unchoke { pieces: 1 }).await,
                Some(Message::Request { blocks, .. }) => {
                    for block in blocks {
                        let block = block.check(&geometry).unwrap();
                        liar.0.write_all(&encode(alias.0, block)).await.unwrap();
                        liar.0.write_all(&vec![0xee; block.length as usize]).await.unwrap();
                    }
                    break;
                }
                _ => {}
            }
        }
    };
    soon(lie).await;
    liar.loses_its_connection().await;
    until(|| node.node.status().wasted.bad_piece == u64::from(geometry.piece_length())).await;
    Rogue::greet(&node, 9).await.loses_its_connection().await;
    node.node.add_peers(digest, vec![honest.info()]);
    soon(torrent.committed()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_floods_and_reads_nothing_is_let_go() {
    let node = start(config()).await;
    let content = content(MIB, 3);
    node.hold(&content).await;
    let (digest, geometry) = crate::rig::name(&content);
    let mut rogue = Rogue::greet(&node, 1).await;
    rogue.say(&Opened { alias: Alias(1), digest, geometry, have: Bitfield::empty(&geometry) }.into()).await;
    // Each request is answered by a reject, which it does not read.
    let block = wire::WireBlock { piece: 0, offset: 0, length: 1 };
    let mut flood = Vec::new();
    wire::encode_control(&Message::Request { alias: Alias(1), blocks: vec![block; 4000] }, &mut flood);
    let flooding = async { while rogue.0.write_all(&flood).await.is_ok() {} };
    soon(flooding).await;
    until(|| node.node.status().connections == 0).await;
    still_works(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_strangers_do_not_keep_others_out() {
    let node = start(config()).await;
    let mut strangers = Vec::new();
    for _ in 0..100 {
        strangers.push(Rogue::dial(&node).await);
    }
    tokio::time::timeout(Duration::from_secs(60), still_works(&node)).await.unwrap();
}

fn encode(alias: u32, block: shoal_meta::BlockRef) -> Vec<u8> {
    // The node's own encoder takes a torrent's key for the alias only in the driver; here any number will do.
    wire::encode_block_header(Alias(alias), block).to_vec()
}
