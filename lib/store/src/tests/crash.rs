//! Crashes: the disk as it is after every single change is opened again, as it is and torn; nothing wrong is served
//! and every blob can be finished.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::{CommitError, ExtendError};

/// Copies of the store's directory, one for each change made to it.
#[derive(Clone)]
struct Snapshots {
    root: PathBuf,
    into: PathBuf,
    names: Arc<Mutex<Vec<String>>>,
}

impl Snapshots {
    fn take(&self, step: &'static str) {
        let mut names = self.names.lock().unwrap();
        let name = format!("{:03} {step}", names.len());
        copy(&self.root, &self.into.join(&name));
        names.push(name);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Runs a life of the store with a snapshot after every change on the disk.
async fn snapshots(scene: &Scene, samples: &[Sample; 3]) -> Vec<PathBuf> {
    let names = Arc::default();
    let snapshots = Snapshots { root: scene.root(), into: scene.dir.path().join("snapshots"), names };
    let mut host = scene.host();
    let taker = snapshots.clone();
    host.watch = Box::new(move |step| {
        taker.take(step);
        Ok(())
    });
    let store = Store::open_on(host, Config { root: scene.root(), budget: scene.budget }).await.unwrap();
    let [origins, peers, wrong] = samples;

    let partial = origins.begin(&store).await;
    origins.ingest(&partial, [0, 2, 1]).await;
    drop(partial.commit().await.unwrap());

    let partial = peers.begin(&store).await;
    for (index, piece) in [3, 0, 2, 1].into_iter().enumerate() {
        partial.extend_hashes(index as u32, &peers.hashes()[index..=index]).await.unwrap();
        let _ = partial.write_piece(peers.piece(piece), peers.blocks(piece)).await;
    }
    for piece in 0..4 {
        partial.write_piece(peers.piece(piece), peers.blocks(piece)).await.unwrap();
    }
    drop(partial.commit().await.unwrap());

    let partial = wrong.begin(&store).await;
    wrong.ingest(&partial, [1]).await;
    partial.ingest_piece(wrong.piece(0), origins.blocks(0)).await.unwrap();
    assert!(matches!(partial.commit().await, Err(CommitError::DigestMismatch { .. })));
    store.remove(&origins.digest).await;
    peers.ingest(&peers_again(&store, peers).await, [0]).await;
    let names = snapshots.names.lock().unwrap();
    names.iter().map(|name| snapshots.into.join(name)).collect()
}

/// Removes the blob and begins it again.
async fn peers_again(store: &Store, sample: &Sample) -> Partial {
    store.remove(&sample.digest).await;
    sample.begin(store).await
}

/// Opens what a crash left and checks every promise: what is committed is right, what is had is right, all can be
/// finished.
async fn check(scene: &Scene, root: &Path, samples: &[Sample]) {
    let store = Store::open_on(scene.host(), Config { root: root.to_owned(), budget: scene.budget }).await.unwrap();
    let at = root.file_name().unwrap();
    for sample in samples {
        if let Some(blob) = store.blob(&sample.digest) {
            assert_whole(&blob, sample).await;
            continue;
        }
        let mut partial = sample.begin(&store).await;
        if let Err(error) = partial.extend_hashes(0, &sample.hashes()).await {
            // Left by an upstream that lied, or torn: the caller drops it.
            assert!(matches!(error, ExtendError::Metainfo(_)), "{at:?}: {error:?}");
            partial.discard().await;
            partial = sample.begin(&store).await;
            partial.extend_hashes(0, &sample.hashes()).await.unwrap();
        }
        let have = partial.recheck().await.unwrap();
        for piece in have.iter() {
            let range = sample.geometry.piece_range(piece);
            let read = partial.read(range.start, sample.geometry.length_of(piece)).await.unwrap();
            assert_eq!(read, sample.content[range.start as usize..range.end as usize], "{at:?}: {piece:?}");
        }
        for piece in sample.geometry.pieces().filter(|piece| !have.contains(*piece)) {
            partial.write_piece(piece, sample.blocks(piece.get())).await.unwrap();
        }
        assert_whole(&partial.commit().await.unwrap(), sample).await;
    }
    assert_eq!(store.usage().blobs, samples.len(), "{at:?}");
    assert_eq!(fs::read_dir(root.join("partial")).unwrap().count(), 0, "{at:?}: debris");
}

fn samples() -> [Sample; 3] {
    [Sample::new(1, 3 * PIECE), Sample::new(2, 3 * PIECE + 9), Sample::new(3, 2 * PIECE)]
}

#[tokio::test]
async fn a_crash_after_any_change_leaves_nothing_wrong() {
    let (scene, samples) = (Scene::new(1 << 30), samples());
    let snapshots = snapshots(&scene, &samples).await;
    assert!(snapshots.len() > 40, "only {} changes seen", snapshots.len());
    for snapshot in snapshots {
        check(&scene, &snapshot, &samples).await;
    }
}

#[tokio::test]
async fn a_power_cut_that_tears_the_partials_files_leaves_nothing_wrong() {
    let (scene, samples) = (Scene::new(1 << 30), samples());
    for (round, snapshot) in snapshots(&scene, &samples).await.into_iter().enumerate() {
        for partial in fs::read_dir(snapshot.join("partial")).into_iter().flatten().map(Result::unwrap) {
            tear(&partial.path(), round as u64).unwrap();
        }
        check(&scene, &snapshot, &samples).await;
    }
}

/// Loses what a power cut may lose of files never synced: the tail of the hashes, pages of the data.
fn tear(dir: &Path, round: u64) -> io::Result<()> {
    let open = |name: &str| fs::File::options().write(true).open(dir.join(name));
    if let Ok(pieces) = open("pieces") {
        let length = pieces.metadata()?.len();
        pieces.set_len(length.saturating_sub(round * 7 % 70))?;
        // Grown, but never filled.
        pieces.set_len(length)?;
    }
    if let Ok(data) = open("data") {
        let page = round % 12 * 4096;
        if page + 4096 <= data.metadata()?.len() {
            data.write_all_at(&[if round.is_multiple_of(2) { 0 } else { 0xaa }; 4096], page)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_disk_that_refuses_to_sync_loses_the_partial_and_a_full_one_does_not() {
    let (scene, sample) = (Scene::new(1 << 30), Sample::new(1, 2 * PIECE));
    let fail = Arc::new(Mutex::new(""));
    let mut host = scene.host();
    let failing = fail.clone();
    host.watch = Box::new(move |step| match *failing.lock().unwrap() == step {
        true => Err(io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    });
    let store = Store::open_on(host, Config { root: scene.root(), budget: scene.budget }).await.unwrap();
    let partial = sample.begin(&store).await;
    *fail.lock().unwrap() = "block";
    let full = partial.ingest_piece(sample.piece(0), sample.blocks(0)).await;
    assert!(matches!(full, Err(crate::WriteError::Disk(_))), "{full:?}");
    assert!(partial.have().is_empty());
    *fail.lock().unwrap() = "data synced";
    sample.ingest(&partial, [0, 1]).await;
    assert!(matches!(partial.commit().await, Err(CommitError::Disk(_))));
    assert!(matches!(partial.commit().await, Err(CommitError::Withdrawn)));
    assert_eq!(store.usage().partials, 0);

    *fail.lock().unwrap() = "data made";
    assert!(store.partial(sample.digest, sample.geometry).await.is_err());
    *fail.lock().unwrap() = "renamed";
    assert_whole(&sample.commit(&store).await, &sample).await;
}
