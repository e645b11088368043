//! Opening a store: versions, strangers, debris, the peer id.

use std::fs;

use super::*;

#[tokio::test]
async fn the_peer_id_is_drawn_once() {
    let scene = Scene::new(1 << 30);
    let first = scene.open().await.peer_id();
    assert_eq!(scene.open().await.peer_id(), first);
    assert_ne!(Scene::new(1 << 30).open().await.peer_id(), first);
}

#[tokio::test]
async fn a_damaged_peer_id_is_drawn_anew() {
    let scene = Scene::new(1 << 30);
    let first = scene.open().await.peer_id();
    fs::write(scene.root().join("peer_id"), [0xff, 0xfe]).unwrap();
    let second = scene.open().await.peer_id();
    assert_ne!(second, first);
    assert_eq!(scene.open().await.peer_id(), second);
}

#[tokio::test]
async fn a_newer_layout_is_refused_and_left_alone() {
    let scene = Scene::new(1 << 30);
    drop(scene.open().await);
    fs::write(scene.root().join("version"), "2\n").unwrap();
    fs::create_dir(scene.root().join("partial/of a later design")).unwrap();
    let error = scene.try_open().await.unwrap_err();
    assert!(matches!(error, OpenError::NewerVersion { found: 2, supported: 1, .. }), "{error}");
    assert!(error.to_string().contains("layout version 2"), "{error}");
    assert!(scene.root().join("partial/of a later design").exists());
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_refused_and_left_alone() {
    let scene = Scene::new(1 << 30);
    let theirs = scene.root().join("blobs/sha256/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    fs::create_dir_all(theirs.parent().unwrap()).unwrap();
    fs::write(&theirs, "").unwrap();
    assert!(matches!(scene.try_open().await, Err(OpenError::NotAStore { .. })));
    fs::write(scene.root().join("version"), "latest").unwrap();
    assert!(matches!(scene.try_open().await, Err(OpenError::NotAStore { .. })));
    assert!(theirs.exists());
}

#[tokio::test]
async fn two_stores_on_one_directory_are_refused() {
    let scene = Scene::new(1 << 30);
    let store = scene.open().await;
    assert!(matches!(scene.try_open().await, Err(OpenError::InUse { .. })));
    drop(store);
    scene.open().await;
}

#[tokio::test]
async fn debris_is_removed_and_what_is_whole_stays() {
    let scene = Scene::new(1 << 30);
    let (blob, torn, partial) = (Sample::new(1, PIECE), Sample::new(2, PIECE), Sample::new(3, 2 * PIECE));
    let store = scene.open().await;
    drop((blob.commit(&store).await, torn.commit(&store).await));
    partial.ingest(&partial.begin(&store).await, [0]).await;
    drop(store);

    fs::File::options().write(true).open(scene.dir_of_blob(&torn).join("data")).unwrap().set_len(100).unwrap();
    let debris = ["partial/trash-7", "partial/sha256-00", "blobs/sha256/zz", "blobs/sha256/ab/abc"];
    for path in debris.map(|name| scene.root().join(name)) {
        fs::create_dir_all(path).unwrap();
    }
    fs::write(scene.root().join("partial/file"), "x").unwrap();
    // A commit that a crash split in two: the blob is there, the partial came back.
    let twin = scene.data_of_partial(&blob);
    fs::create_dir_all(twin.parent().unwrap()).unwrap();
    for file in ["data", "pieces"] {
        fs::copy(scene.dir_of_blob(&blob).join(file), twin.with_file_name(file)).unwrap();
    }

    let store = scene.open().await;
    assert_eq!(store.committed(), [blob.digest]);
    assert_eq!(store.resumable(), [partial.digest]);
    assert!(!scene.dir_of_blob(&torn).exists() && !twin.exists());
    let left = fs::read_dir(scene.root().join("partial")).unwrap().count();
    assert_eq!(left, 1, "only the true partial");
    assert!(!scene.root().join("blobs/sha256/ab/abc").exists());
    assert_whole(&store.blob(&blob.digest).unwrap(), &blob).await;
}

#[tokio::test]
async fn a_blob_damaged_while_open_is_dropped_and_can_be_fetched_again() {
    let scene = Scene::new(1 << 30);
    let sample = Sample::new(1, 2 * PIECE);
    let store = scene.open().await;
    drop(sample.commit(&store).await);
    let mut gone = store.evictions();
    fs::write(scene.dir_of_blob(&sample).join("pieces"), "short").unwrap();
    assert!(store.blob(&sample.digest).is_none());
    assert!(!store.contains(&sample.digest));
    assert_eq!(gone.try_recv(), Ok(sample.digest));
    assert_whole(&sample.commit(&store).await, &sample).await;

    fs::remove_dir_all(scene.dir_of_blob(&sample)).unwrap();
    let partial = sample.begin(&store).await;
    assert!(partial.have().is_empty(), "an operator's rm is taken for what it is");
}

#[tokio::test]
async fn without_a_budget_it_is_a_tenth_of_the_disk_within_bounds() {
    let mut scene = Scene::new(0);
    scene.budget.bytes_max = None;
    assert_eq!(scene.open().await.usage().budget_bytes, 50 << 30, "of 2 TiB");
}
