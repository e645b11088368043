//! Whole nodes on loopback swap blobs.

use crate::rig::{MIB, config, content, name, piece_of, read, soon, start, start_with_budget, until};
use bytes::Bytes;
use shoal_meta::{Bitfield, Digest, PieceHash, Role};
use shoal_peer::{Failure, JoinError, TorrentError, TorrentState};
use shoal_store::PartialError;

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_goes_from_node_to_node_and_a_third_gets_it_from_both() {
    let (a, b, c) = (start(config()).await, start(config()).await, start(config()).await);
    let content = content(20 * MIB, 1);
    let blob = a.hold(&content).await;
    let torrent = b.join(&blob, &[&a]).await;
    let copy = soon(torrent.committed()).await.unwrap();
    assert_eq!(read(&copy).await, content);
    assert!(matches!(torrent.progress().borrow().state, TorrentState::Committed));

    let late = c.join(&blob, &[&a, &b]).await;
    soon(late.committed()).await.unwrap();
    let status = c.node.status();
    assert_eq!((status.received.same_zone, status.received.origin), (20 * MIB, 0));
    assert_eq!((status.verified_pieces, status.committed_blobs), (160, 1));
    assert_eq!(status.connections, 2);
    until(|| b.node.status().sent_bytes > 0).await;
    assert_eq!(a.node.status().sent_bytes + b.node.status().sent_bytes, 40 * MIB + c.node.status().wasted.duplicate);
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_flow_on_while_the_origin_still_ingests() {
    let origin = start(shoal_peer::Config { role: Role::Origin, ..config() }).await;
    let agent = start(config()).await;
    let content = content(2 * MIB, 2);
    let (digest, geometry) = name(&content);
    let source = origin.node.join(origin.store.partial(digest, geometry).await.unwrap()).await.unwrap();
    let sink = agent.node.join(agent.store.partial(digest, geometry).await.unwrap()).await.unwrap();
    agent.node.add_peers(digest, vec![origin.info()]);
    let _reader = sink.reader(0);
    for piece in geometry.pieces() {
        let hash = source.ingest(piece, vec![piece_of(&content, &geometry, piece)]).await.unwrap();
        sink.extend_hashes(piece.get(), vec![hash.unwrap()]).await.unwrap();
        soon(sink.wait_piece(piece)).await.unwrap();
        let (offset, length) = (geometry.piece_range(piece).start, geometry.length_of(piece));
        let bytes = sink.read_source().read(offset, length).await.unwrap();
        assert_eq!(bytes, piece_of(&content, &geometry, piece));
    }
    soon(source.committed()).await.unwrap();
    assert_eq!(read(&soon(sink.committed()).await.unwrap()).await, content);
    assert_eq!(agent.node.status().received.origin, 2 * MIB);
    assert_eq!(origin.node.status().received.upstream, 2 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn leechers_swap_what_they_have() {
    let (a, b) = (start(config()).await, start(config()).await);
    let content = content(4 * MIB, 3);
    let (digest, geometry) = name(&content);
    let hashes = PieceHash::all(&geometry, &content);
    let mut torrents = Vec::new();
    for (rig, parity) in [(&a, 0), (&b, 1)] {
        let torrent = rig.node.join(rig.store.partial(digest, geometry).await.unwrap()).await.unwrap();
        torrent.extend_hashes(0, hashes.clone()).await.unwrap();
        for piece in geometry.pieces().filter(|piece| piece.get() % 2 == parity) {
            torrent.ingest(piece, vec![piece_of(&content, &geometry, piece)]).await.unwrap();
        }
        torrents.push(torrent);
    }
    a.node.add_peers(digest, vec![b.info()]);
    for torrent in torrents {
        soon(torrent.committed()).await.unwrap();
        let received = torrent.progress().borrow().received;
        assert_eq!((received.upstream, received.same_zone), (2 * MIB, 2 * MIB));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_with_another_digest_fails_and_is_withdrawn() {
    let node = start(config()).await;
    let content = content(MIB, 4);
    let geometry = name(&content).1;
    let digest = Digest::sha256_of(b"something else");
    let torrent = node.node.join(node.store.partial(digest, geometry).await.unwrap()).await.unwrap();
    for piece in geometry.pieces() {
        torrent.ingest(piece, vec![piece_of(&content, &geometry, piece)]).await.unwrap();
    }
    let failure = soon(torrent.committed()).await;
    let computed = Digest::sha256_of(&content);
    assert!(
        matches!(failure, Err(TorrentError::Failed(Failure::WrongContent { computed: found })) if found == computed)
    );
    until(|| node.node.status().torrents == 0).await;
    assert!(!node.store.contains(&digest));
    // What was read before is not read again as if it were right.
    assert!(torrent.read_source().read(0, 1).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_loses_a_blob_is_not_taken_for_a_wrong_digest() {
    let node = start(config()).await;
    let content = content(MIB, 9);
    let (digest, geometry) = name(&content);
    let torrent = node.node.join(node.store.partial(digest, geometry).await.unwrap()).await.unwrap();
    node.lose_partials();
    for piece in geometry.pieces() {
        torrent.ingest(piece, vec![piece_of(&content, &geometry, piece)]).await.unwrap();
    }
    assert!(matches!(soon(torrent.committed()).await, Err(TorrentError::Failed(Failure::Disk(_)))));
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_again_gives_the_same_torrent() {
    let node = start(config()).await;
    let content = content(MIB, 5);
    let (digest, geometry) = name(&content);
    let partial = node.store.partial(digest, geometry).await.unwrap();
    let one = node.node.join(partial.clone()).await.unwrap();
    let two = node.node.join(partial).await.unwrap();
    let piece = geometry.piece(0).unwrap();
    one.ingest(piece, vec![piece_of(&content, &geometry, piece)]).await.unwrap();
    soon(two.wait_piece(piece)).await.unwrap();
    assert_eq!(node.node.status().torrents, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_leecher_keeps_what_it_had() {
    let content = content(MIB, 6);
    let (digest, geometry) = name(&content);
    let seeder = start(config()).await;
    let blob = seeder.hold(&content).await;
    let leecher = start(config()).await;
    let partial = leecher.store.partial(digest, geometry).await.unwrap();
    partial.extend_hashes(0, blob.metainfo().hashes()).await.unwrap();
    let piece = geometry.piece(2).unwrap();
    partial.write_piece(piece, vec![piece_of(&content, &geometry, piece)]).await.unwrap();
    drop(partial);
    let torrent = leecher.join(&blob, &[&seeder]).await;
    soon(torrent.committed()).await.unwrap();
    assert_eq!(torrent.progress().borrow().received.total(), MIB - u64::from(geometry.piece_length()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_keeps_what_a_peer_lacks_and_lets_go_of_what_it_only_seeds() {
    let seeder = start_with_budget(config(), 3 * MIB).await;
    let (held, (digest, geometry)) = (content(2 * MIB, 1), name(&content(2 * MIB, 2)));
    let blob = seeder.hold(&held).await;
    let leecher = start(config()).await;
    let partial = leecher.store.partial(blob.digest(), blob.geometry()).await.unwrap();
    let torrent = leecher.node.join_lazily(partial).await.unwrap();
    torrent.extend_hashes(0, blob.metainfo().hashes().to_vec()).await.unwrap();
    leecher.node.add_peers(blob.digest(), vec![seeder.info()]);
    drop(blob);
    until(|| seeder.node.status().torrents == 1).await;
    let refused = seeder.node.partial(digest, geometry).await;
    assert!(matches!(refused, Err(PartialError::NoSpace { .. })), "{refused:?}");
    torrent.want(&Bitfield::full(&torrent.geometry()));
    assert_eq!(read(&soon(torrent.committed()).await.unwrap()).await, held);
    // It hears a little later that the last piece has come.
    let begun = async { while seeder.node.partial(digest, geometry).await.is_err() {} };
    soon(begun).await;
    assert!(!seeder.store.contains(&torrent.digest()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeder_whose_blob_has_rotted_sends_nothing_of_it_and_fetches_it_anew() {
    let (seeder, content) = (start(config()).await, content(4 * MIB, 9));
    let blob = seeder.hold(&content).await;
    let rotten = seeder.rotten(&blob, config()).await;
    let leecher = start(config()).await;
    let torrent = leecher.join(&blob, &[&rotten]).await;
    until(|| !rotten.store.contains(&blob.digest())).await;
    assert_eq!(rotten.store.usage().corrupt_blobs, 1);
    leecher.node.add_peers(blob.digest(), vec![seeder.info()]);
    assert_eq!(read(&soon(torrent.committed()).await.unwrap()).await, content);
    let anew = rotten.join(&blob, &[&leecher]).await;
    assert_eq!(read(&soon(anew.committed()).await.unwrap()).await, content);
    let (sent, cut) = (rotten.node.status().sent_bytes, leecher.node.status().violations);
    assert_eq!((sent, cut, leecher.node.status().wasted.bad_piece), (0, 0, 0), "nobody has seen a wrong byte");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_hear_of_a_withdrawal_and_of_the_nodes_end() {
    let node = start(config()).await;
    let join = async |seed| {
        let (digest, geometry) = name(&content(MIB, seed));
        node.node.join(node.store.partial(digest, geometry).await.unwrap()).await.unwrap()
    };
    let (first, second) = (join(7).await, join(8).await);
    let waiting = tokio::spawn({
        let first = first.clone();
        async move { first.committed().await.map(drop) }
    });
    node.node.withdraw(first.digest(), "upstream says no").await;
    let reason = soon(waiting).await.unwrap();
    assert!(matches!(reason, Err(TorrentError::Failed(Failure::Withdrawn(reason))) if reason == "upstream says no"));
    node.shutdown.cancel();
    assert!(matches!(soon(second.committed()).await, Err(TorrentError::Closed)));
    soon(node.node.stopped()).await;
    let partial = node.store.partial(second.digest(), second.geometry()).await.unwrap();
    assert!(matches!(node.node.join(partial).await, Err(JoinError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_blobs_share_one_connection() {
    let (a, b) = (start(config()).await, start(config()).await);
    let contents: Vec<Bytes> = (0..12).map(|n| content(300_000 + n * 7919, 100 + n)).collect();
    let mut torrents = Vec::new();
    for content in &contents {
        let blob = a.hold(content).await;
        torrents.push((b.join(&blob, &[&a]).await, content));
    }
    for (torrent, content) in torrents {
        assert_eq!(read(&soon(torrent.committed()).await.unwrap()).await, *content);
    }
    assert_eq!((a.node.status().connections, b.node.status().connections), (1, 1));
}
