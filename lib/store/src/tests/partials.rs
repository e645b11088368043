//! Partials: verification, hashes, sharing, commit, withdrawal, resuming.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use shoal_meta::MetainfoError;

use super::*;
use crate::{CommitError, ExtendError, PartialError, Source, WriteError};

async fn fresh(sample: &Sample) -> (Scene, Store, Partial) {
    let scene = Scene::new(1 << 30);
    let store = scene.open().await;
    let partial = sample.begin(&store).await;
    (scene, store, partial)
}

/// Blocks of the right length and the wrong content.
fn wrong(sample: &Sample, index: u32) -> Vec<Bytes> {
    let mut bytes = sample.blocks(index).concat();
    bytes[0] ^= 1;
    vec![bytes.into()]
}

#[tokio::test]
async fn pieces_in_any_order_become_the_blob() {
    let sample = Sample::new(1, 4 * PIECE + 77);
    let (scene, store, partial) = fresh(&sample).await;
    partial.extend_hashes(0, &sample.hashes()).await.unwrap();
    for index in [3, 0, 4, 2, 1] {
        let early = partial.commit().await;
        assert!(matches!(early, Err(CommitError::Incomplete { pieces: 5, .. })));
        partial.write_piece(sample.piece(index), sample.blocks(index)).await.unwrap();
    }
    assert!(!store.contains(&sample.digest));
    let blob = partial.commit().await.unwrap();
    assert_eq!(partial.0.read_back(), 0, "every byte is hashed once");
    assert!(store.contains(&sample.digest));
    assert_whole(&blob, &sample).await;
    assert!(!scene.data_of_partial(&sample).exists());

    drop((store, partial, blob));
    let store = scene.open().await;
    assert_whole(&store.blob(&sample.digest).unwrap(), &sample).await;
}

#[tokio::test]
async fn a_blob_named_by_another_algorithm_is_read_again_to_be_checked() {
    let mut sample = Sample::new(1, 3 * PIECE + 5);
    let mut hasher = Digest::Sha512([0; 64]).hasher();
    hasher.update(&sample.content);
    sample.digest = hasher.finish();
    let (_scene, store, partial) = fresh(&sample).await;
    sample.ingest(&partial, 0..4).await;
    assert_whole(&partial.commit().await.unwrap(), &sample).await;
    sample.digest = Digest::Sha512([7; 64]);
    let partial = sample.begin(&store).await;
    sample.ingest(&partial, 0..4).await;
    assert!(matches!(partial.commit().await, Err(CommitError::DigestMismatch { .. })));
}

#[tokio::test]
async fn pieces_that_came_early_are_read_back_as_the_gap_closes() {
    let sample = Sample::new(1, 6 * PIECE);
    let (_scene, _store, partial) = fresh(&sample).await;
    sample.ingest(&partial, [1, 2, 3, 4, 0]).await;
    assert_eq!(partial.0.read_back(), 2, "no more than two by one write");
    sample.ingest(&partial, [5]).await;
    partial.commit().await.unwrap();
    assert_eq!(partial.0.read_back(), 5);
}

#[tokio::test]
async fn a_wrong_piece_from_a_peer_is_refused_and_leaves_no_trace() {
    let sample = Sample::new(1, 2 * PIECE);
    let (scene, _store, partial) = fresh(&sample).await;
    partial.extend_hashes(0, &sample.hashes()).await.unwrap();
    let error = partial.write_piece(sample.piece(1), wrong(&sample, 1)).await.unwrap_err();
    assert!(matches!(error, WriteError::HashMismatch { piece: 1 }));
    assert!(partial.have().is_empty());
    assert_eq!(fs::metadata(scene.data_of_partial(&sample)).unwrap().blocks(), 0);
    sample.ingest(&partial, [1]).await;
    let error = partial.write_piece(sample.piece(1), wrong(&sample, 1)).await.unwrap_err();
    assert!(matches!(error, WriteError::HashMismatch { piece: 1 }), "checked even when we have it");
}

#[tokio::test]
async fn a_peers_piece_waits_for_its_hash_and_must_have_its_length() {
    let sample = Sample::new(1, PIECE + 5);
    let (_scene, _store, partial) = fresh(&sample).await;
    let error = partial.write_piece(sample.piece(1), sample.blocks(1)).await.unwrap_err();
    assert!(matches!(error, WriteError::UnknownHash { piece: 1 }));
    let error = partial.write_piece(sample.piece(1), sample.blocks(0)).await.unwrap_err();
    assert!(matches!(error, WriteError::Length { piece: 1, expected: 5, given: PIECE }));
}

#[tokio::test]
async fn what_upstream_sends_becomes_metainfo_in_order() {
    let sample = Sample::new(1, 4 * PIECE);
    let (_scene, _store, partial) = fresh(&sample).await;
    sample.ingest(&partial, [0, 2]).await;
    assert_eq!(partial.metainfo().hashes(), &sample.hashes()[..1]);
    assert_eq!(format!("{:?}", partial.have()), "#.#.");
    sample.ingest(&partial, [1]).await;
    assert_eq!(partial.metainfo().hashes(), &sample.hashes()[..3]);

    let error = partial.ingest_piece(sample.piece(2), wrong(&sample, 2)).await.unwrap_err();
    assert!(matches!(error, WriteError::HashMismatch { piece: 2 }));
}

#[tokio::test]
async fn published_hashes_must_agree_with_what_upstream_sent() {
    let sample = Sample::new(1, 4 * PIECE);
    let (_scene, store, partial) = fresh(&sample).await;
    sample.ingest(&partial, [0, 2]).await;
    let mut lies = sample.hashes();
    lies[0] = PieceHash([7; 32]);
    let error = partial.extend_hashes(0, &lies).await.unwrap_err();
    assert!(matches!(error, ExtendError::Metainfo(MetainfoError::Contradiction(0))), "{error:?}");
    assert_eq!(partial.metainfo().known(), 1, "nothing is changed");

    // A piece that could not be hashed as it came is compared as soon as it can be.
    partial.extend_hashes(0, &sample.hashes()[..3]).await.unwrap();
    assert_eq!((format!("{:?}", partial.recheck().await.unwrap()), partial.0.read_back()), ("#.#.".to_owned(), 1));
    store.remove(&sample.digest).await;
    let partial = sample.begin(&store).await;
    sample.ingest(&partial, [2]).await;
    let mut lies = sample.hashes();
    lies[2] = PieceHash([7; 32]);
    partial.extend_hashes(0, &lies).await.unwrap();
    assert!(partial.recheck().await.unwrap().is_empty());
    assert!(matches!(partial.commit().await, Err(CommitError::Withdrawn)), "one of the two is wrong");
}

#[tokio::test]
async fn all_callers_share_one_partial() {
    let sample = Sample::new(1, 2 * PIECE);
    let (_scene, store, partial) = fresh(&sample).await;
    let (again, too) = tokio::join!(sample.begin(&store), sample.begin(&store));
    sample.ingest(&again, [0]).await;
    assert_eq!(format!("{:?}{:?}", partial.have(), too.have()), "#.#.");
    let other = Geometry::new(2 * PIECE, 2 * PIECE as u32).unwrap();
    let error = store.partial(sample.digest, other).await.unwrap_err();
    assert!(matches!(error, PartialError::GeometryMismatch { known } if known == sample.geometry));
    sample.ingest(&too, [1]).await;
    let (a, b) = tokio::join!(partial.commit(), again.commit());
    assert_eq!(a.unwrap().digest(), b.unwrap().digest());
    let error = store.partial(sample.digest, sample.geometry).await.unwrap_err();
    let PartialError::Committed(blob) = error else { panic!("{error:?}") };
    assert_whole(&blob, &sample).await;
}

#[tokio::test]
async fn a_whole_that_is_another_blob_drops_everything() {
    let (sample, other) = (Sample::new(1, 3 * PIECE), Sample::new(2, 3 * PIECE));
    let (scene, store, partial) = fresh(&sample).await;
    sample.ingest(&partial, [0, 2]).await;
    partial.ingest_piece(sample.piece(1), other.blocks(1)).await.unwrap();
    let holder = partial.clone();
    let error = partial.commit().await.unwrap_err();
    assert!(matches!(error, CommitError::DigestMismatch { computed } if computed != sample.digest));
    assert!(!scene.data_of_partial(&sample).exists());
    assert_eq!((store.usage().bytes, store.usage().partials), (0, 0));

    assert!(holder.have().is_empty());
    assert!(holder.read(0, 1).await.is_err());
    assert!(matches!(holder.commit().await, Err(CommitError::Withdrawn)));
    assert!(matches!(holder.ingest_piece(sample.piece(0), sample.blocks(0)).await, Err(WriteError::Withdrawn)));
    assert!(matches!(holder.extend_hashes(0, &sample.hashes()).await, Err(ExtendError::Withdrawn)));
    assert_whole(&sample.commit(&store).await, &sample).await;
    drop(holder);
    assert!(store.contains(&sample.digest), "the withdrawn handle does not touch the new blob");
}

#[tokio::test]
async fn only_verified_ranges_can_be_read() {
    let sample = Sample::new(1, 3 * PIECE);
    let (_scene, _store, partial) = fresh(&sample).await;
    sample.ingest(&partial, [1]).await;
    let source = Source::from(partial.clone());
    assert_eq!(source.read(PIECE, 100).await.unwrap(), sample.content[PIECE as usize..][..100]);
    for (offset, length) in [(PIECE - 1, 2), (2 * PIECE - 1, 2), (3 * PIECE, 1), (u64::MAX, 2)] {
        let error = source.read(offset, length).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{offset}+{length}");
    }
    sample.ingest(&partial, [0, 2]).await;
    let source = Source::from(partial.commit().await.unwrap());
    assert_eq!(source.read(0, 3 * PIECE as u32).await.unwrap(), sample.content);
    assert!(source.read(1, 3 * PIECE as u32).await.is_err());
    assert!(partial.read(0, 10).await.is_ok(), "readers of the partial go on");
}

#[tokio::test]
async fn a_torn_piece_is_found_by_recheck() {
    let sample = Sample::new(1, 5 * PIECE);
    let (scene, store, partial) = fresh(&sample).await;
    partial.extend_hashes(0, &sample.hashes()).await.unwrap();
    sample.ingest(&partial, [0, 1, 3]).await;
    drop((partial, store));
    let data = fs::File::options().write(true).open(scene.data_of_partial(&sample)).unwrap();
    data.write_all_at(&[0; 4096], PIECE + 8192).unwrap();
    data.write_all_at(&sample.content[4 * PIECE as usize..][..4096], 4 * PIECE).unwrap();

    let store = scene.open().await;
    assert_eq!(store.resumable(), [sample.digest]);
    let partial = sample.begin(&store).await;
    assert_eq!(partial.metainfo().hashes(), sample.hashes());
    assert!(partial.have().is_empty(), "nothing is believed before it is checked");
    assert_eq!(format!("{:?}", partial.recheck().await.unwrap()), "#..#.");
    sample.ingest(&partial, [1, 2, 4]).await;
    assert_whole(&partial.commit().await.unwrap(), &sample).await;
}

#[tokio::test]
async fn pieces_on_disk_are_found_when_their_hashes_come_later() {
    let sample = Sample::new(1, 4 * PIECE);
    let (scene, store, partial) = fresh(&sample).await;
    sample.ingest(&partial, [0, 2, 3]).await;
    drop((partial, store));
    let partial = sample.begin(&scene.open().await).await;
    assert_eq!(format!("{:?}", partial.recheck().await.unwrap()), "#...");
    partial.extend_hashes(1, &sample.hashes()[1..]).await.unwrap();
    assert_eq!(format!("{:?}", partial.recheck().await.unwrap()), "#.##");
}

#[tokio::test]
async fn a_partial_cut_differently_starts_afresh() {
    let sample = Sample::new(1, 4 * PIECE);
    let (_scene, store, partial) = fresh(&sample).await;
    sample.ingest(&partial, [0]).await;
    drop(partial);
    let other = Geometry::new(4 * PIECE, 2 * PIECE as u32).unwrap();
    let partial = store.partial(sample.digest, other).await.unwrap();
    assert_eq!((partial.metainfo().known(), partial.geometry()), (0, other));
    assert!(partial.recheck().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_discarded_partial_is_gone_for_all() {
    let sample = Sample::new(1, 2 * PIECE);
    let (scene, store, partial) = fresh(&sample).await;
    let holder = partial.clone();
    partial.discard().await;
    assert!(!scene.data_of_partial(&sample).exists());
    assert!(matches!(holder.commit().await, Err(CommitError::Withdrawn)));

    let again = sample.begin(&store).await;
    partial.discard().await;
    drop((partial, holder));
    assert_eq!(store.usage().bytes, 2 * PIECE, "the new one is charged, whatever becomes of the old");
    sample.ingest(&again, [0, 1]).await;
    let blob = again.commit().await.unwrap();
    again.discard().await;
    assert!(store.contains(&sample.digest) && again.have().is_full(), "what is committed stays");
    assert_whole(&blob, &sample).await;
}

#[tokio::test]
async fn a_removed_blob_stays_readable_for_those_who_hold_it() {
    let sample = Sample::new(1, 2 * PIECE);
    let scene = Scene::new(1 << 30);
    let store = scene.open().await;
    let mut gone = store.evictions();
    let blob = sample.commit(&store).await;
    store.remove(&sample.digest).await;
    assert_eq!(gone.try_recv(), Ok(sample.digest));
    assert!(store.blob(&sample.digest).is_none() && !scene.dir_of_blob(&sample).exists());
    assert_whole(&blob, &sample).await;

    let partial = sample.begin(&store).await;
    store.remove(&sample.digest).await;
    assert!(matches!(partial.commit().await, Err(CommitError::Withdrawn)));
    store.remove(&Digest::sha256_of(b"nobody")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_written_at_once_and_twice_add_up() {
    let sample = Sample::new(1, 40 * PIECE + 1);
    let (_scene, _store, partial) = fresh(&sample).await;
    let mut jobs = tokio::task::JoinSet::new();
    for index in (0..41).rev().chain(0..41) {
        let (sample, partial) = (sample.clone(), partial.clone());
        jobs.spawn(async move { sample.ingest(&partial, [index]).await });
    }
    jobs.join_all().await;
    assert_whole(&partial.commit().await.unwrap(), &sample).await;
}
