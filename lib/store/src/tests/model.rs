//! Random operations against a model: the same blobs, pieces, order of use and bytes, at every step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use proptest::prelude::*;

use super::*;
use crate::layout::allocated;
use crate::{CommitError, PartialError, WriteError};

const BUDGET: u64 = 8 * PIECE;

/// What may be done; the first number chooses the blob.
#[derive(Debug, Clone, Copy)]
enum Op {
    Begin(usize),
    Write(usize, u32),
    WriteWrong(usize, u32),
    Commit(usize),
    Release(usize),
    Pin(usize),
    Unpin(usize),
    Remove(usize),
    Trim,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let blob = 0..5usize;
    prop_oneof![
        4 => blob.clone().prop_map(Op::Begin),
        12 => (blob.clone(), 0..4u32).prop_map(|(blob, piece)| Op::Write(blob, piece)),
        1 => (blob.clone(), 0..4u32).prop_map(|(blob, piece)| Op::WriteWrong(blob, piece)),
        4 => blob.clone().prop_map(Op::Commit),
        3 => blob.clone().prop_map(Op::Release),
        3 => blob.clone().prop_map(Op::Pin),
        3 => blob.clone().prop_map(Op::Unpin),
        1 => blob.prop_map(Op::Remove),
        1 => Just(Op::Trim),
        1 => Just(Op::Restart),
    ]
}

#[derive(Debug, Clone, PartialEq)]
enum Held {
    /// Pieces written so far, and whether a handle is alive.
    Partial(BTreeSet<u32>, bool),
    Committed,
}

/// The system under test beside its model.
struct World {
    scene: Scene,
    store: Option<Store>,
    samples: Vec<Sample>,
    partials: BTreeMap<usize, Partial>,
    pins: BTreeMap<usize, Blob>,
    model: BTreeMap<usize, Held>,
    /// Least recently used first.
    order: Vec<usize>,
}

impl World {
    async fn new() -> Self {
        let scene = Scene::new(BUDGET);
        let store = Some(scene.open().await);
        let samples = [4, 3, 2, 1, 3].into_iter().zip(0..).map(|(pieces, seed)| Sample::new(seed, pieces * PIECE));
        let (samples, order) = (samples.collect(), Vec::new());
        let (partials, pins, model) = Default::default();
        Self { scene, store, samples, partials, pins, model, order }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    async fn apply(&mut self, op: Op) {
        match op {
            Op::Begin(blob) => self.begin(blob).await,
            Op::Write(blob, piece) => self.write(blob, piece).await,
            Op::WriteWrong(blob, piece) => self.write_wrong(blob, piece).await,
            Op::Commit(blob) => self.commit(blob).await,
            Op::Release(blob) => self.release(blob),
            Op::Pin(blob) => self.pin(blob).await,
            Op::Unpin(blob) => drop(self.pins.remove(&blob)),
            Op::Remove(blob) => self.remove(blob).await,
            Op::Trim => self.store().trim().await,
            Op::Restart => self.restart().await,
        }
        self.check();
    }

    async fn begin(&mut self, blob: usize) {
        let sample = self.samples[blob].clone();
        let needed = sample.geometry.length() - self.charge(blob);
        let victims = self.victims(needed, blob);
        let began = self.store().partial(sample.digest, sample.geometry).await;
        match self.model.get(&blob) {
            Some(Held::Committed) => {
                assert!(matches!(began, Err(PartialError::Committed(_))));
                return self.use_now(blob);
            }
            Some(Held::Partial(_, true)) => return drop(began.unwrap()),
            Some(Held::Partial(_, false)) | None => {}
        }
        let Some(victims) = victims else {
            assert!(matches!(began, Err(PartialError::NoSpace { needed: n, .. }) if n == needed), "{began:?}");
            return;
        };
        self.partials.insert(blob, began.unwrap());
        victims.into_iter().for_each(|victim| self.forget(victim));
        match self.model.entry(blob).or_insert_with(|| Held::Partial(BTreeSet::new(), true)) {
            Held::Partial(_, held) => *held = true,
            Held::Committed => panic!("dealt with above"),
        }
        self.use_now(blob);
        let partial = &self.partials[&blob];
        partial.extend_hashes(0, &sample.hashes()).await.unwrap();
        partial.recheck().await.unwrap();
    }

    async fn write(&mut self, blob: usize, piece: u32) {
        let sample = &self.samples[blob];
        let (Some(partial), Some(piece)) = (self.partials.get(&blob), sample.geometry.piece(piece)) else { return };
        partial.write_piece(piece, sample.blocks(piece.get())).await.unwrap();
        let Some(Held::Partial(pieces, _)) = self.model.get_mut(&blob) else { panic!("the model holds a partial") };
        pieces.insert(piece.get());
    }

    async fn write_wrong(&mut self, blob: usize, piece: u32) {
        let sample = &self.samples[blob];
        let (Some(partial), Some(piece)) = (self.partials.get(&blob), sample.geometry.piece(piece)) else { return };
        let wrong = vec![Bytes::from(vec![0; PIECE as usize])];
        let refused = partial.ingest_piece(piece, wrong).await;
        assert!(matches!(refused, Err(WriteError::HashMismatch { .. })));
    }

    async fn commit(&mut self, blob: usize) {
        let Some(partial) = self.partials.get(&blob) else { return };
        let full = partial.have().is_full();
        let committed = partial.commit().await;
        if full {
            drop(committed.unwrap());
            self.partials.remove(&blob);
            self.model.insert(blob, Held::Committed);
            self.use_now(blob);
        } else {
            assert!(matches!(committed, Err(CommitError::Incomplete { .. })));
        }
    }

    fn release(&mut self, blob: usize) {
        if self.partials.remove(&blob).is_some() {
            let Some(Held::Partial(_, held)) = self.model.get_mut(&blob) else { panic!("the model holds a partial") };
            *held = false;
            self.use_now(blob);
        }
    }

    async fn pin(&mut self, blob: usize) {
        let found = self.store().blob(&self.samples[blob].digest);
        assert_eq!(found.is_some(), self.model.get(&blob) == Some(&Held::Committed));
        if let Some(found) = found {
            assert_whole(&found, &self.samples[blob]).await;
            self.pins.insert(blob, found);
            self.use_now(blob);
        }
    }

    async fn remove(&mut self, blob: usize) {
        self.store().remove(&self.samples[blob].digest).await;
        if let Some(partial) = self.partials.remove(&blob) {
            assert!(matches!(partial.commit().await, Err(CommitError::Withdrawn)));
        }
        if let Some(pin) = self.pins.remove(&blob) {
            assert_whole(&pin, &self.samples[blob]).await;
        }
        self.forget(blob);
    }

    fn forget(&mut self, blob: usize) {
        self.model.remove(&blob);
        self.order.retain(|used| *used != blob);
    }

    async fn restart(&mut self) {
        self.partials.clear();
        self.pins.clear();
        self.store = None;
        self.store = Some(self.scene.open().await);
        for held in self.model.values_mut() {
            if let Held::Partial(_, held) = held {
                *held = false;
            }
        }
        // Every use was a minute after the last, so the disk heard of it; partials were used when last written.
        let mut order = std::mem::take(&mut self.order);
        order.sort_by_key(|blob| (self.data(*blob).modified().unwrap(), self.samples[*blob].digest));
        self.order = order;
    }

    /// The model's eviction: `None` when there is no room.
    fn victims(&self, needed: u64, spare: usize) -> Option<Vec<usize>> {
        let mut room = i128::from(BUDGET) - self.model.keys().map(|blob| i128::from(self.charge(*blob))).sum::<i128>();
        let mut victims = Vec::new();
        for &blob in self.order.iter().filter(|blob| **blob != spare && !self.is_pinned(**blob)) {
            if room >= i128::from(needed) {
                break;
            }
            room += i128::from(self.charge(blob));
            victims.push(blob);
        }
        (room >= i128::from(needed)).then_some(victims)
    }

    fn is_pinned(&self, blob: usize) -> bool {
        self.partials.contains_key(&blob) || self.pins.contains_key(&blob)
    }

    fn use_now(&mut self, blob: usize) {
        self.order.retain(|used| *used != blob);
        self.order.push(blob);
        self.scene.pass(61);
    }

    /// The file that holds a blob's content, by the model.
    fn data(&self, blob: usize) -> fs::Metadata {
        let sample = &self.samples[blob];
        let path = match &self.model[&blob] {
            Held::Committed => self.scene.dir_of_blob(sample).join("data"),
            Held::Partial(..) => self.scene.data_of_partial(sample),
        };
        fs::metadata(path).unwrap()
    }

    fn charge(&self, blob: usize) -> u64 {
        match self.model.get(&blob) {
            Some(Held::Committed | Held::Partial(_, true)) => self.samples[blob].geometry.length(),
            Some(Held::Partial(_, false)) => allocated(&self.data(blob)),
            None => 0,
        }
    }

    fn check(&self) {
        let digests = |wanted: fn(&Held) -> bool| {
            let wanted = self.model.iter().filter(move |(_, held)| wanted(held));
            wanted.map(|(blob, _)| self.samples[*blob].digest).collect::<BTreeSet<_>>()
        };
        let committed = self.store().committed().into_iter().collect::<BTreeSet<_>>();
        assert_eq!(committed, digests(|held| *held == Held::Committed));
        let resumable = self.store().resumable().into_iter().collect::<BTreeSet<_>>();
        assert_eq!(resumable, digests(|held| matches!(held, Held::Partial(_, false))));
        for (blob, partial) in &self.partials {
            let have = partial.have().iter().map(PieceIndex::get).collect();
            assert_eq!(self.model[blob], Held::Partial(have, true));
        }
        let usage = self.store().usage();
        assert_eq!(usage.bytes, self.model.keys().map(|blob| self.charge(*blob)).sum::<u64>());
        assert!(usage.bytes <= BUDGET);
        let on_disk = fs::read_dir(self.scene.root().join("partial")).unwrap().count();
        assert_eq!((usage.partials, usage.blobs), (on_disk, committed.len()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_as_the_model_says(ops in prop::collection::vec(op(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for op in ops {
                world.apply(op).await;
            }
        });
    }
}
