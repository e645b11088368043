//! Disks that are full, read-only, slow or gone: what is held is served, the rest passes by, and all mends itself.

use std::fs;
use std::io::ErrorKind;
use std::sync::mpsc;

use rustix::mount::MountFlags;

use super::mount::Mount;
use super::*;
use crate::{Health, PartialError, WriteError};

/// What a watched step fails with, as long as it does.
type Fault = Arc<Mutex<Option<(&'static str, ErrorKind)>>>;

/// A host on which one step can be made to fail.
fn faulty(scene: &Scene) -> (Host, Fault) {
    let fault = Fault::default();
    let (mut host, watched) = (scene.host(), fault.clone());
    host.watch = Box::new(move |step| match *watched.lock().unwrap() {
        Some((failing, kind)) if failing == step => Err(kind.into()),
        _ => Ok(()),
    });
    (host, fault)
}

fn config(scene: &Scene) -> Config {
    Config { root: scene.root(), budget: scene.budget }
}

#[tokio::test]
async fn a_disk_that_refuses_pieces_says_so_once_and_is_well_when_it_takes_one() {
    let (scene, sample) = (Scene::new(1 << 30), Sample::new(1, 2 * PIECE));
    let (host, fault) = faulty(&scene);
    let store = Store::open_on(host, config(&scene)).await.unwrap();
    assert_eq!((store.health(), store.trouble()), (Health::Well, None));
    let partial = sample.begin(&store).await;
    for (kind, health) in [
        (ErrorKind::StorageFull, Health::Full),
        (ErrorKind::QuotaExceeded, Health::Full),
        (ErrorKind::ReadOnlyFilesystem, Health::ReadOnly),
        (ErrorKind::Other, Health::Failing),
    ] {
        *fault.lock().unwrap() = Some(("block", kind));
        let refused = partial.ingest_piece(sample.piece(0), sample.blocks(0)).await;
        assert!(matches!(refused, Err(WriteError::Disk(_))), "{refused:?}");
        assert_eq!(store.health(), health);
        assert!(store.trouble().is_some() && partial.have().is_empty());
    }
    *fault.lock().unwrap() = None;
    sample.ingest(&partial, [0]).await;
    assert_eq!((store.health(), store.trouble()), (Health::Well, None));
}

#[tokio::test]
async fn a_disk_without_any_room_is_full_and_one_too_small_for_a_blob_is_not() {
    let scene = Scene::new(1 << 30);
    let (small, big) = (Sample::new(1, PIECE), Sample::new(2, 4 * PIECE));
    let store = scene.open().await;
    scene.free_bytes.store(scene.budget.free_floor_bytes + 2 * PIECE, Ordering::Relaxed);
    assert!(matches!(store.partial(big.digest, big.geometry).await, Err(PartialError::NoSpace { .. })));
    assert_eq!(store.health(), Health::Well);
    scene.free_bytes.store(0, Ordering::Relaxed);
    assert!(matches!(store.partial(small.digest, small.geometry).await, Err(PartialError::NoSpace { .. })));
    assert_eq!(store.health(), Health::Full);
    scene.free_bytes.store(1 << 40, Ordering::Relaxed);
    let partial = small.begin(&store).await;
    assert_eq!(store.health(), Health::Well);
    scene.free_bytes.store(scene.budget.free_floor_bytes, Ordering::Relaxed);
    store.trim().await;
    small.ingest(&partial, [0]).await;
    assert_eq!(store.health(), Health::Full, "what is begun goes on in the room that is to stay free");
    scene.free_bytes.store(1 << 40, Ordering::Relaxed);
    store.trim().await;
    assert_eq!(store.health(), Health::Well);
}

#[tokio::test]
async fn a_file_system_that_fills_up_keeps_what_it_has_and_takes_more_when_there_is_room() {
    let mut scene = Scene::new(1 << 30);
    scene.budget.free_floor_bytes = 0;
    let Some(_mount) = Mount::tmpfs(&scene.root(), c"size=256k", MountFlags::empty()) else { return };
    // The store thinks that there is room, as it does until others have filled the disk.
    let store = scene.open().await;
    let (first, second) = (Sample::new(1, 4 * PIECE), Sample::new(2, 8 * PIECE));
    drop(first.commit(&store).await);
    let partial = second.begin(&store).await;
    second.ingest(&partial, [0, 1]).await;
    let ballast = scene.root().join("ballast");
    let _full = fs::write(&ballast, vec![1; 1 << 20]).unwrap_err();
    let refused = partial.ingest_piece(second.piece(2), second.blocks(2)).await;
    assert!(matches!(&refused, Err(WriteError::Disk(error)) if error.kind() == ErrorKind::StorageFull), "{refused:?}");
    assert_eq!(store.health(), Health::Full);
    let third = Sample::new(3, PIECE);
    assert!(store.partial(third.digest, third.geometry).await.is_err());
    assert_whole(&store.blob(&first.digest).unwrap(), &first).await;
    assert_eq!(partial.read(0, 9).await.unwrap(), second.content[..9]);
    fs::remove_file(&ballast).unwrap();
    store.trim().await;
    second.ingest(&partial, 2..8).await;
    assert_whole(&partial.commit().await.unwrap(), &second).await;
    assert_eq!(store.health(), Health::Well);
}

#[tokio::test]
async fn a_read_only_file_system_is_served_from_and_nothing_of_it_is_forgotten() {
    let mut scene = Scene::new(8 * PIECE);
    let Some(mount) = Mount::tmpfs(&scene.root(), c"size=1m", MountFlags::empty()) else { return };
    let (held, new) = (Sample::new(1, 8 * PIECE), Sample::new(2, 2 * PIECE));
    let store = scene.open().await;
    drop(held.commit(&store).await);
    let peer_id = store.peer_id();
    drop(store);
    mount.remount(MountFlags::RDONLY);

    let store = scene.open().await;
    let mut gone = store.evictions();
    assert_eq!((store.peer_id(), store.health()), (peer_id, Health::Well), "nobody has asked it for anything");
    assert_whole(&store.blob(&held.digest).unwrap(), &held).await;
    for _ in 0..2 {
        let refused = store.partial(new.digest, new.geometry).await.unwrap_err();
        assert!(matches!(refused, PartialError::Disk(_)), "{refused:?}");
    }
    assert_eq!(store.health(), Health::ReadOnly);
    assert!(store.contains(&held.digest) && gone.try_recv().is_err(), "what cannot be evicted stays");
    assert_whole(&store.blob(&held.digest).unwrap(), &held).await;
    assert!(matches!(scene.try_open().await, Err(OpenError::InUse { .. })), "it is locked all the same");
    drop(store);
    scene.budget.bytes_max = Some(PIECE);
    let store = Store::open_or_pass_on(scene.host(), config(&scene)).await;
    assert_eq!(store.health(), Health::ReadOnly, "though it cannot keep its budget");
    assert!(store.contains(&held.digest));
    mount.remount(MountFlags::empty());
    store.trim().await;
    assert!(!store.contains(&held.digest));
    drop(Sample::new(3, PIECE).commit(&store).await);
    assert_eq!(store.health(), Health::Well);
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_lets_all_pass_until_it_can() {
    let (scene, sample) = (Scene::new(1 << 30), Sample::new(1, 2 * PIECE));
    drop(sample.commit(&scene.open().await).await);
    let version = scene.root().join("version");
    let occupant = scene.open().await;
    let spoil: [(&str, &dyn Fn()); 3] = [
        ("in use by another process", &|| ()),
        ("layout version 2", &|| fs::write(&version, "2\n").unwrap()),
        ("not a store of ours", &|| fs::write(&version, "latest").unwrap()),
    ];
    for (why, spoil) in spoil {
        spoil();
        let store = Store::open_or_pass_on(scene.host(), config(&scene)).await;
        assert_eq!(store.health(), Health::Closed);
        assert!(store.trouble().unwrap().contains(why), "{:?}", store.trouble());
        assert_eq!((store.usage().budget_bytes, store.committed().len()), (0, 0));
        assert!(store.blob(&sample.digest).is_none());
        assert!(matches!(store.partial(sample.digest, sample.geometry).await, Err(PartialError::Disk(_))));
        store.remove(&sample.digest).await;
        store.trim().await;
        assert_eq!(store.health(), Health::Closed);
    }
    drop(occupant);
    let store = Store::open_or_pass_on(scene.host(), config(&scene)).await;
    let peer_id = store.peer_id();
    fs::write(&version, "1\n").unwrap();
    store.trim().await;
    assert_eq!((store.health(), store.trouble()), (Health::Well, None));
    assert_whole(&store.blob(&sample.digest).unwrap(), &sample).await;
    assert_eq!(store.peer_id(), peer_id, "peers know it by this name");
    drop(Sample::new(2, PIECE).commit(&store).await);
}

#[tokio::test]
async fn directories_that_somebody_removed_are_made_again() {
    let (scene, sample, other) = (Scene::new(1 << 30), Sample::new(1, 2 * PIECE), Sample::new(2, PIECE));
    let store = scene.open().await;
    let peer_id = store.peer_id();
    let held = sample.commit(&store).await;
    let partial = other.begin(&store).await;
    fs::remove_dir_all(scene.root()).unwrap();
    assert_whole(&held, &sample).await;
    other.ingest(&partial, [0]).await;
    assert!(partial.commit().await.is_err(), "what is gone cannot be committed");
    drop((partial, held));

    assert_whole(&other.commit(&store).await, &other).await;
    assert!(store.blob(&sample.digest).is_none());
    assert_whole(&sample.commit(&store).await, &sample).await;
    assert!(matches!(scene.try_open().await, Err(OpenError::InUse { .. })), "it is ours again");
    drop(store);
    let store = scene.open().await;
    assert_eq!(store.peer_id(), peer_id);
    assert_whole(&store.blob(&other.digest).unwrap(), &other).await;

    fs::remove_dir_all(scene.root().join("partial")).unwrap();
    store.remove(&other.digest).await;
    assert_whole(&other.commit(&store).await, &other).await;
}

/// A host whose disk stands still at a step until it is let go.
fn stalling(scene: &Scene, at: &'static str) -> (Host, mpsc::Sender<()>) {
    let (let_go, waits) = mpsc::channel::<()>();
    let (mut host, waits) = (scene.host(), Mutex::new(waits));
    host.watch = Box::new(move |step| {
        if step == at {
            // Until the sender is dropped.
            let _ = waits.lock().unwrap().recv();
        }
        Ok(())
    });
    (host, let_go)
}

/// Lets the time pass that is needed for something that waits for a thread.
async fn passing<T>(work: impl Future<Output = T>) -> T {
    tokio::select! {
        out = work => out,
        () = async { loop { tokio::time::advance(Duration::from_millis(100)).await } } => unreachable!(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_stands_still_is_given_up_in_time_and_asked_again_later() {
    let (scene, sample, other) = (Scene::new(1 << 30), Sample::new(1, PIECE), Sample::new(2, PIECE));
    let (host, let_go) = stalling(&scene, "block");
    let store = Store::open_on(host, config(&scene)).await.unwrap();
    let partial = sample.begin(&store).await;
    let began = tokio::time::Instant::now();
    let stalled = passing(partial.ingest_piece(sample.piece(0), sample.blocks(0))).await;
    assert!(matches!(&stalled, Err(WriteError::Disk(error)) if error.kind() == ErrorKind::TimedOut), "{stalled:?}");
    assert!(began.elapsed() < Duration::from_secs(11));
    assert_eq!(store.health(), Health::Stalled);
    assert!(matches!(store.partial(other.digest, other.geometry).await, Err(PartialError::Disk(_))), "at once");
    drop(let_go);
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_whole(&other.commit(&store).await, &other).await;
    assert_eq!(store.health(), Health::Well);
    sample.ingest(&partial, [0]).await;
    assert_whole(&partial.commit().await.unwrap(), &sample).await;
}

#[tokio::test(start_paused = true)]
async fn reads_and_new_blobs_do_not_wait_for_a_disk_that_stands_still() {
    let (scene, sample, new) = (Scene::new(1 << 30), Sample::new(1, PIECE), Sample::new(2, PIECE));
    drop(sample.commit(&scene.open().await).await);
    let (host, _let_go) = stalling(&scene, "read");
    let store = Store::open_on(host, config(&scene)).await.unwrap();
    let blob = store.blob(&sample.digest).unwrap();
    let began = tokio::time::Instant::now();
    let reads = (0..100).map(|_| blob.clone()).map(|blob| async move { blob.read(0, 1).await });
    let reads = reads.collect::<tokio::task::JoinSet<_>>();
    for read in passing(reads.join_all()).await {
        assert_eq!(read.unwrap_err().kind(), ErrorKind::TimedOut, "threads are not taken without end");
    }
    assert!(began.elapsed() < Duration::from_secs(6));
    assert!(store.contains(&sample.digest), "it may be right");
    drop(new.commit(&store).await);

    let scene = Scene::new(1 << 30);
    let (host, _let_go) = stalling(&scene, "partial made");
    let store = Store::open_on(host, config(&scene)).await.unwrap();
    let began = tokio::time::Instant::now();
    let refused = passing(store.partial(new.digest, new.geometry)).await;
    assert!(matches!(refused, Err(PartialError::Disk(_))));
    assert!(began.elapsed() < Duration::from_secs(4), "a client waits for five");
}
