//! A real process that works on a store is killed, again and again, at any moment; what it leaves is right.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use shoal_meta::{Digest, Geometry, PieceIndex};
use shoal_store::{Blob, Budget, Config, Health, Partial, PartialError, Store};

const PIECE: u64 = 16 * 1024;
/// Where the process that is killed works, and its luck.
const CHILD: &str = "SHOAL_STORE_CHILD";
const KILLS: u64 = 100;
/// Operations at most before a kill.
const OPERATIONS: u64 = 8;
/// After the last of these, so long at most: as long as an operation takes.
const MOMENT: Duration = Duration::from_millis(3);

/// A choice among what may be done.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// A blob whose content is known.
struct Sample {
    content: Bytes,
    digest: Digest,
    geometry: Geometry,
}

impl Sample {
    fn new(pieces: u64) -> Self {
        let (length, mut dice) = (pieces * PIECE + pieces, Dice(pieces));
        let content = (0..length).map(|_| dice.below(256) as u8).collect::<Bytes>();
        let geometry = Geometry::new(length, PIECE as u32).unwrap();
        Self { digest: Digest::sha256_of(&content), content, geometry }
    }

    fn bytes(&self, piece: PieceIndex) -> Bytes {
        let range = self.geometry.piece_range(piece);
        self.content.slice(range.start as usize..range.end as usize)
    }

    async fn ingest(&self, partial: &Partial, index: u32) {
        let piece = self.geometry.piece(index).unwrap();
        partial.ingest_piece(piece, vec![self.bytes(piece)]).await.unwrap();
    }

    async fn assert_whole(&self, blob: &Blob) {
        assert!(blob.read(0, self.content.len() as u32).await.unwrap() == self.content);
    }
}

fn samples() -> [Sample; 5] {
    [4, 3, 2, 5, 1].map(Sample::new)
}

/// Room for some of them, so that there is eviction.
fn config(root: PathBuf) -> Config {
    Config { root, budget: Budget { bytes_max: Some(11 * PIECE), free_floor_bytes: 0 } }
}

#[tokio::test]
#[ignore = "the process that is killed"]
async fn child() {
    let (root, seed) = (std::env::var_os(CHILD).unwrap(), std::env::var("SHOAL_STORE_SEED").unwrap());
    let (mut dice, samples) = (Dice(seed.parse().unwrap()), samples());
    let store = Store::open(config(root.into())).await.unwrap();
    loop {
        let sample = &samples[dice.below(5) as usize];
        match dice.below(8) {
            0 => store.remove(&sample.digest).await,
            1 => drop(store.blob(&sample.digest)),
            _ => work_on(&store, sample, &mut dice).await,
        }
        let mut out = std::io::stdout().lock();
        out.write_all(b".").and_then(|()| out.flush()).unwrap();
    }
}

/// Fetches a blob in part or whole.
async fn work_on(store: &Store, sample: &Sample, dice: &mut Dice) {
    let partial = match store.partial(sample.digest, sample.geometry).await {
        Ok(partial) => partial,
        Err(PartialError::Committed(_)) => return,
        Err(error) => panic!("{error:?}"),
    };
    let pieces = sample.geometry.piece_count();
    let have = partial.recheck().await.unwrap();
    let (first, count) = (dice.below(pieces.into()) as u32, dice.below(2 * u64::from(pieces)) as u32);
    for index in (0..pieces.min(count)).map(|step| (first + step) % pieces) {
        if !have.contains(sample.geometry.piece(index).unwrap()) {
            sample.ingest(&partial, index).await;
        }
    }
    if partial.have().is_full() {
        partial.commit().await.unwrap();
    }
}

fn spawn(root: &Path, seed: u64) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    child.env(CHILD, root).env("SHOAL_STORE_SEED", seed.to_string());
    child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Lets a process do so many operations and a little more, and kills it.
fn kill_after(mut child: Child, operations: u64, moment: Duration) {
    let mut out = child.stdout.take().unwrap();
    let (mut done, mut byte) = (0, [0]);
    while done < operations {
        assert_eq!(out.read(&mut byte).unwrap(), 1, "the process ended by itself");
        done += u64::from(byte == *b".");
    }
    // A moment that is shorter than what a timer can wait for.
    let began = Instant::now();
    while began.elapsed() < moment {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Checks what is there; gives how many blobs and pieces that was.
async fn check(root: PathBuf) -> (usize, u32) {
    let store = Store::open(config(root.clone())).await.unwrap();
    assert_eq!(store.health(), Health::Well);
    let (mut blobs, mut pieces) = (0, 0);
    for sample in &samples() {
        if let Some(blob) = store.blob(&sample.digest) {
            sample.assert_whole(&blob).await;
            blobs += 1;
        } else if store.resumable().contains(&sample.digest) {
            let partial = store.partial(sample.digest, sample.geometry).await.unwrap();
            for piece in partial.recheck().await.unwrap().iter() {
                let start = sample.geometry.piece_range(piece).start;
                let read = partial.read(start, sample.geometry.length_of(piece)).await.unwrap();
                assert!(read == sample.bytes(piece));
                pieces += 1;
            }
        }
    }
    assert_eq!(store.usage().corrupt_blobs, 0);
    let on_disk = fs::read_dir(root.join("partial")).unwrap().count();
    assert_eq!(on_disk, store.usage().partials, "debris");
    (blobs, pieces)
}

#[tokio::test]
async fn a_process_killed_at_any_moment_leaves_nothing_wrong() {
    let seed = std::env::var("SHOAL_STORE_SEED").map_or(1, |seed| seed.parse().unwrap());
    let (directory, samples, mut dice) = (tempfile::tempdir().unwrap(), samples(), Dice(seed));
    let (root, mut found) = (directory.path().join("store"), (0, 0));
    for kill in 0..KILLS {
        let moment = MOMENT * dice.below(1000) as u32 / 1000;
        kill_after(spawn(&root, dice.below(u64::MAX) | 1), dice.below(OPERATIONS), moment);
        let checked = tokio::spawn(check(root.clone())).await;
        let Ok((blobs, pieces)) = checked else {
            panic!("after kill {kill}; again: SHOAL_STORE_SEED={seed} cargo test -p shoal-store --test kills")
        };
        found = (found.0 + blobs, found.1 + pieces);
    }
    assert!(found.0 > 50 && found.1 > 50, "hardly anything was on the disk: {found:?}");
    let store = Store::open(config(root)).await.unwrap();
    for sample in &samples {
        if !store.contains(&sample.digest) {
            let partial = store.partial(sample.digest, sample.geometry).await.unwrap();
            for index in 0..sample.geometry.piece_count() {
                sample.ingest(&partial, index).await;
            }
            partial.commit().await.unwrap();
        }
        sample.assert_whole(&store.blob(&sample.digest).unwrap()).await;
    }
}
