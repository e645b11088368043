//! Bits that rot under a committed blob: found as they are served, found by the scrub, and never given out.

use std::fs;
use std::io::{Error, ErrorKind, Result as IoResult};
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;

use super::mount::skipped;
use super::*;
use crate::Region;

const A_DAY: u64 = 24 * 3600;

/// Changes one byte under a blob.
fn rot(scene: &Scene, sample: &Sample, at: u64) {
    let data = fs::File::options().write(true).open(scene.dir_of_blob(sample).join("data")).unwrap();
    data.write_all_at(&[sample.content[at as usize] ^ 1], at).unwrap();
}

/// A store that has not seen its blob since it was opened.
async fn reopened(scene: &Scene, sample: &Sample) -> Store {
    drop(sample.commit(&scene.open().await).await);
    scene.open().await
}

/// Runs the scrub until a blob has gone, which takes no time here.
async fn scrub_until_gone(store: &Store) -> Digest {
    let mut gone = store.evictions();
    tokio::select! {
        () = store.scrub() => panic!("the scrub never ends"),
        gone = gone.recv() => gone.unwrap(),
    }
}

/// Runs the scrub until nothing is left to check.
async fn scrub_all(store: &Store) {
    let checked =
        || lock(&store.0.index).checked_first().is_none_or(|(_, checked, _)| checked == (store.0.host.clock)());
    tokio::select! {
        () = store.scrub() => panic!("the scrub never ends"),
        // The clock stands until nothing else is to be done.
        () = async { while !checked() { tokio::time::sleep(Duration::from_millis(1)).await } } => {}
    }
}

#[tokio::test]
async fn a_rotten_piece_is_never_given_out_and_costs_the_blob() {
    let (scene, sample) = (Scene::new(1 << 30), Sample::new(1, 3 * PIECE + 9));
    drop(sample.commit(&scene.open().await).await);
    rot(&scene, &sample, PIECE + 7);
    let store = scene.open().await;
    let mut gone = store.evictions();
    let blob = store.blob(&sample.digest).unwrap();
    assert_eq!(blob.read(0, PIECE as u32).await.unwrap(), sample.content[..PIECE as usize], "others are right");
    assert!(store.contains(&sample.digest));
    for (offset, length) in [(PIECE, 1), (PIECE - 1, 2), (0, 3 * PIECE as u32), (2 * PIECE - 1, 9)] {
        assert_eq!(blob.read(offset, length).await.unwrap_err().kind(), ErrorKind::InvalidData, "{offset}");
        assert!(blob.region(offset, length).is_err(), "{offset}");
    }
    assert_eq!(gone.try_recv(), Ok(sample.digest));
    assert!(!store.contains(&sample.digest) && !scene.dir_of_blob(&sample).exists());
    assert_eq!((store.usage().corrupt_blobs, store.usage().bytes), (1, 0));
    assert_eq!(blob.read(2 * PIECE, 9).await.unwrap(), sample.content[2 * PIECE as usize..][..9]);

    let again = sample.commit(&store).await;
    assert!(blob.read(PIECE, 1).await.is_err(), "who holds the old one still reads that");
    assert!(store.contains(&sample.digest), "and cannot take the new one away");
    assert_whole(&again, &sample).await;
}

#[tokio::test]
async fn each_piece_is_compared_before_it_is_served_for_the_first_time() {
    let (scene, sample) = (Scene::new(1 << 30), Sample::new(1, 3 * PIECE));
    let store = scene.open().await;
    let blob = sample.commit(&store).await;
    assert!(blob.region(0, 3 * PIECE as u32).is_ok(), "what was written was compared");
    drop((blob, store));
    let store = scene.open().await;
    let blob = store.blob(&sample.digest).unwrap();
    assert!(blob.region(0, 1).is_err());
    assert_eq!(blob.read(PIECE + 5, 1).await.unwrap(), sample.content[PIECE as usize + 5..][..1]);
    assert!(blob.region(PIECE, PIECE as u32).is_ok() && blob.region(PIECE - 1, 2).is_err());
    drop(blob);
    assert!(store.blob(&sample.digest).unwrap().region(PIECE, 1).is_ok(), "and not again when it is opened again");
}

/// Throws a blob's pages out of memory; tells whether the file system does so.
fn forget(region: &Region) -> bool {
    region.file.sync_all().unwrap();
    fadvise(&region.file, 0, None, Advice::DontNeed).unwrap();
    !region.is_cached()
}

#[tokio::test]
async fn what_is_read_from_the_disk_again_is_compared_again() {
    let (scene, sample) = (Scene::new(1 << 30), Sample::new(1, 2 * PIECE));
    let store = scene.open().await;
    let blob = sample.commit(&store).await;
    rot(&scene, &sample, 3);
    if !forget(&blob.region(0, 9).unwrap()) {
        return skipped("this file system keeps files in memory");
    }
    scene.pass(61);
    assert_eq!(blob.read(9, 9).await.unwrap_err().kind(), ErrorKind::InvalidData);
    assert!(!store.contains(&sample.digest));
}

#[tokio::test]
async fn a_disk_that_cannot_read_a_blob_loses_it_and_one_that_is_busy_does_not() {
    let (scene, sample) = (Scene::new(1 << 30), Sample::new(1, 2 * PIECE));
    drop(sample.commit(&scene.open().await).await);
    let errors = Arc::new(Mutex::new(vec![Error::from(Errno::IO), Error::from(Errno::NFILE)]));
    let mut host = scene.host();
    host.watch = Box::new(move |step| match step {
        "read" => errors.lock().unwrap().pop().map_or(Ok(()), Err),
        _ => Ok(()),
    });
    let store = Store::open_on(host, Config { root: scene.root(), budget: scene.budget }).await.unwrap();
    let blob = store.blob(&sample.digest).unwrap();
    assert!(blob.read(0, 1).await.is_err());
    assert!(store.contains(&sample.digest), "out of file handles, or what else passes");
    assert!(blob.read(0, 1).await.is_err());
    assert!(!store.contains(&sample.digest));
    assert_eq!(store.usage().corrupt_blobs, 1);
}

#[tokio::test]
async fn a_blob_that_is_too_short_is_dropped() {
    let (scene, sample) = (Scene::new(1 << 30), Sample::new(1, 2 * PIECE));
    let store = reopened(&scene, &sample).await;
    let blob = store.blob(&sample.digest).unwrap();
    fs::File::options().write(true).open(scene.dir_of_blob(&sample).join("data")).unwrap().set_len(PIECE + 1).unwrap();
    assert_eq!(blob.read(0, 1).await.unwrap(), sample.content[..1]);
    assert_eq!(blob.read(PIECE, 1).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert!(!store.contains(&sample.digest));
}

#[tokio::test(start_paused = true)]
async fn the_scrub_finds_rot_that_nobody_asks_for() {
    let (scene, all) = (Scene::new(1 << 30), [1, 2, 3].map(|seed| Sample::new(seed, 2 * PIECE)));
    let store = scene.open().await;
    for sample in &all {
        drop(sample.commit(&store).await);
    }
    rot(&scene, &all[1], 2 * PIECE - 1);
    scene.pass(A_DAY);
    assert_eq!(scrub_until_gone(&store).await, all[1].digest);
    assert_eq!((store.usage().corrupt_blobs, store.usage().blobs), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn rotten_hashes_are_found_too() {
    let (scene, sample) = (Scene::new(1 << 30), Sample::new(1, 2 * PIECE));
    let store = scene.open().await;
    drop(sample.commit(&store).await);
    let pieces = fs::File::options().write(true).open(scene.dir_of_blob(&sample).join("pieces")).unwrap();
    pieces.write_all_at(&[7], 40).unwrap();
    scene.pass(A_DAY);
    assert_eq!(scrub_until_gone(&store).await, sample.digest);
    assert_eq!(store.usage().corrupt_blobs, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_checked_longest_ago_is_checked_first_and_once_a_day_across_restarts() -> IoResult<()> {
    let (scene, all) = (Scene::new(1 << 30), [1, 2, 3].map(|seed| Sample::new(seed, PIECE)));
    let store = scene.open().await;
    for sample in &all {
        drop(sample.commit(&store).await);
        scene.pass(10);
    }
    let first = |store: &Store| lock(&store.0.index).checked_first().unwrap();
    assert_eq!(first(&store).0, all[0].digest);
    scene.pass(A_DAY);
    drop(store.blob(&all[0].digest));
    let began = tokio::time::Instant::now();
    scrub_all(&store).await;
    let pace = Duration::from_secs(3 * PIECE) / (8 << 20);
    assert!(began.elapsed() >= pace, "{:?} for three blobs", began.elapsed());
    let checked = first(&store).1;
    drop(store);
    let store = scene.open().await;
    assert_eq!(first(&store).1, checked, "the disk knows when");
    let mtime = fs::metadata(scene.dir_of_blob(&all[2]).join("data"))?.modified()?;
    assert!(mtime < checked, "to be checked is not to be used");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_scrub_leaves_memory_as_it_was_and_pins_nothing() {
    let (scene, sample) = (Scene::new(2 * PIECE), Sample::new(1, 2 * PIECE));
    let store = scene.open().await;
    let region = sample.commit(&store).await.region(PIECE, PIECE as u32).unwrap();
    scene.pass(A_DAY);
    assert!(region.is_cached());
    scrub_all(&store).await;
    assert!(region.is_cached());
    scene.pass(A_DAY);
    if forget(&region) {
        scrub_all(&store).await;
        assert!(!region.is_cached(), "nothing stays that was not there");
    } else {
        skipped("in part: this file system keeps files in memory");
    }
    scene.pass(A_DAY);
    let other = Sample::new(2, 2 * PIECE);
    tokio::select! {
        () = store.scrub() => panic!("the scrub never ends"),
        blob = other.commit(&store) => assert_whole(&blob, &other).await,
    }
}
