//! Crashes: the disk as it is after every single change is opened again, as a killed process leaves it and as power cuts do.
//! Nothing wrong is served, no commit that was reported is lost, and every blob can be finished.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use super::power::{Dice, View, root_of};
use super::*;
use crate::{CommitError, ExtendError};

/// Power cuts tried at each change, each with its own luck.
const CUTS: u64 = 6;

/// The disk as a crash leaves it: copies of the store's directory, after each change made to it.
#[derive(Clone)]
struct Crashes {
    root: PathBuf,
    into: PathBuf,
    seed: u64,
    /// What is on the disk, whatever becomes of the machine.
    synced: Arc<Mutex<View>>,
    /// Blobs whose commit has been reported.
    promised: Arc<Mutex<BTreeSet<Digest>>>,
    taken: Arc<Mutex<Vec<Crash>>>,
}

struct Crash {
    root: PathBuf,
    promised: BTreeSet<Digest>,
}

impl Crashes {
    /// The process is killed here, or the power is cut.
    fn take(&self, step: &'static str) {
        let mut taken = self.taken.lock().unwrap();
        let (number, promised) = (taken.len(), self.promised.lock().unwrap().clone());
        let (now, synced, top) = (View::of(&self.root), self.synced.lock().unwrap(), root_of(&self.root));
        for cut in 0..=CUTS {
            let (root, at) = (self.into.join(format!("{number:03} {step} {cut}")), number as u64 * 100 + cut);
            match cut {
                0 => now.cut(&now, top, &root, &mut Dice::new(0)),
                _ => now.cut(&synced, top, &root, &mut Dice::new(self.seed.wrapping_add(at))),
            }
            taken.push(Crash { root, promised: promised.clone() });
        }
    }

    fn promise(&self, blob: &Blob) {
        self.promised.lock().unwrap().insert(blob.digest());
    }

    fn release(&self, sample: &Sample) {
        self.promised.lock().unwrap().remove(&sample.digest);
    }
}

/// Runs a life of the store with crashes after every change on the disk.
async fn crashes(scene: &Scene, samples: &[Sample; 3], seed: u64) -> Vec<Crash> {
    let (synced, promised, taken) = Default::default();
    let crashes = Crashes { root: scene.root(), into: scene.dir.path().join("crashed"), seed, synced, promised, taken };
    let mut host = scene.host();
    let (taker, synced) = (crashes.clone(), crashes.synced.clone());
    host.watch = Box::new(move |step| {
        taker.take(step);
        Ok(())
    });
    host.synced = Box::new(move |path| synced.lock().unwrap().add_synced(path));
    let store = Store::open_on(host, Config { root: scene.root(), budget: scene.budget }).await.unwrap();
    let [origins, peers, wrong] = samples;

    let partial = origins.begin(&store).await;
    origins.ingest(&partial, [0, 2, 1]).await;
    crashes.promise(&partial.commit().await.unwrap());

    let partial = peers.begin(&store).await;
    for (index, piece) in [3, 0, 2, 1].into_iter().enumerate() {
        partial.extend_hashes(index as u32, &peers.hashes()[index..=index]).await.unwrap();
        let _ = partial.write_piece(peers.piece(piece), peers.blocks(piece)).await;
    }
    store.set_seal(&origins.digest, vec![7; 1000]).await;
    store.set_seal(&peers.digest, vec![8; 1000]).await;
    for piece in 0..4 {
        partial.write_piece(peers.piece(piece), peers.blocks(piece)).await.unwrap();
    }
    crashes.promise(&partial.commit().await.unwrap());

    let partial = wrong.begin(&store).await;
    wrong.ingest(&partial, [1]).await;
    partial.ingest_piece(wrong.piece(0), origins.blocks(0)).await.unwrap();
    assert!(matches!(partial.commit().await, Err(CommitError::DigestMismatch { .. })));
    crashes.release(origins);
    store.remove(&origins.digest).await;
    crashes.release(peers);
    store.remove(&peers.digest).await;
    peers.ingest(&peers.begin(&store).await, [0]).await;
    std::mem::take(&mut *crashes.taken.lock().unwrap())
}

/// Opens what a crash left and checks every promise: what is committed is right, what is had is right, all can be
/// finished.
async fn check(scene: &Scene, crash: &Crash, samples: &[Sample]) {
    let root = &crash.root;
    let at = root.file_name().unwrap();
    let opened = Store::open_on(scene.host(), Config { root: root.clone(), budget: scene.budget }).await;
    let store = opened.unwrap_or_else(|error| panic!("{at:?}: {error:?}"));
    for digest in &crash.promised {
        assert!(store.contains(digest), "{at:?}: a commit was reported and is lost");
    }
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

/// Prints how to repeat a test that fails.
struct Seed(u64);

impl Seed {
    fn given_or(default: u64) -> Self {
        Self(std::env::var("SHOAL_STORE_SEED").map_or(default, |seed| seed.parse().unwrap()))
    }
}

impl Drop for Seed {
    #[expect(clippy::print_stderr, reason = "who sees a test fail repeats it with this")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again: SHOAL_STORE_SEED={} cargo test -p shoal-store --lib", self.0);
        }
    }
}

#[tokio::test]
async fn a_crash_or_a_power_cut_after_any_change_leaves_nothing_wrong() {
    let (scene, samples, seed) = (Scene::in_memory(), samples(), Seed::given_or(1));
    let crashes = crashes(&scene, &samples, seed.0).await;
    assert!(crashes.len() as u64 > 60 * (CUTS + 1), "only {} crashes seen", crashes.len());
    for crash in crashes {
        check(&scene, &crash, &samples).await;
        fs::remove_dir_all(&crash.root).unwrap();
    }
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
