//! Eviction: order, pins, budget, free-space floor, across restarts.

use super::*;
use crate::PartialError;

const THREE: u64 = 3 * 2 * PIECE;

fn samples<const N: usize>() -> [Sample; N] {
    std::array::from_fn(|seed| Sample::new(seed as u8, 2 * PIECE))
}

fn held(store: &Store, samples: &[Sample]) -> String {
    samples.iter().map(|sample| if store.contains(&sample.digest) { '#' } else { '.' }).collect()
}

#[tokio::test]
async fn the_least_recently_used_blob_goes_first_and_the_tracker_hears_of_it() {
    let scene = Scene::new(THREE);
    let store = scene.open().await;
    let mut gone = store.evictions();
    let all = samples::<4>();
    for sample in &all[..3] {
        drop(sample.commit(&store).await);
    }
    drop(store.blob(&all[0].digest));
    assert!(store.contains(&all[1].digest), "asking is not using");
    drop(all[3].commit(&store).await);
    assert_eq!(held(&store, &all), "#.##");
    assert_eq!(gone.try_recv(), Ok(all[1].digest));
    assert_eq!((store.usage().evictions, store.usage().bytes), (1, THREE));
    assert!(!scene.dir_of_blob(&all[1]).exists());
}

#[tokio::test]
async fn the_order_of_use_outlives_a_restart() {
    let scene = Scene::new(THREE);
    let store = scene.open().await;
    let all = samples::<4>();
    for sample in &all[..3] {
        drop(sample.commit(&store).await);
        scene.pass(1);
    }
    scene.pass(60);
    drop(store.blob(&all[0].digest));
    drop(store);
    let store = scene.open().await;
    drop(all[3].commit(&store).await);
    assert_eq!(held(&store, &all), "#.##");
}

#[tokio::test]
async fn what_is_in_use_stays_and_without_room_nothing_goes() {
    let scene = Scene::new(THREE);
    let store = scene.open().await;
    let all = samples::<4>();
    let pin = all[0].commit(&store).await;
    drop(all[1].commit(&store).await);
    let partial = all[2].begin(&store).await;

    let big = Sample::new(9, 4 * PIECE);
    let error = store.partial(big.digest, big.geometry).await.unwrap_err();
    let room = 2 * PIECE;
    assert!(
        matches!(error, PartialError::NoSpace { needed, available } if (needed, available) == (2 * room, room)),
        "{error:?}"
    );
    assert_eq!(held(&store, &all), "##..", "nothing was evicted in vain");

    let clone = pin.clone();
    drop(pin);
    drop(all[3].commit(&store).await);
    assert_eq!(held(&store, &all), "#..#");
    drop(clone);
    drop(partial);
    drop(big.commit(&store).await);
    assert_eq!(held(&store, &all), "...#", "the oldest of the rest went: the blob, not the empty partial");
}

#[tokio::test]
async fn a_blob_used_at_the_last_moment_is_spared() {
    let scene = Scene::new(THREE);
    let all = samples::<2>();
    let pinned: Arc<Mutex<(Option<Store>, Option<Blob>)>> = Arc::default();
    let mut host = scene.host();
    let (late, second) = (pinned.clone(), all[1].digest);
    // While the first victim goes, somebody asks for the second.
    host.watch = Box::new(move |step| {
        let mut late = late.lock().unwrap();
        if step == "trashed"
            && let Some(store) = late.0.take()
        {
            late.1 = store.blob(&second);
        }
        Ok(())
    });
    let store = Store::open_on(host, Config { root: scene.root(), budget: scene.budget }).await.unwrap();
    drop((all[0].commit(&store).await, all[1].commit(&store).await));
    pinned.lock().unwrap().0 = Some(store.clone());
    let big = Sample::new(9, 6 * PIECE);
    big.begin(&store).await;
    assert_eq!(held(&store, &all), ".#");
    let blob = pinned.lock().unwrap().1.take().unwrap();
    assert_whole(&blob, &all[1]).await;
}

#[tokio::test]
async fn a_committed_partials_handle_pins_the_blob() {
    let scene = Scene::new(2 * PIECE);
    let store = scene.open().await;
    let all = samples::<2>();
    let partial = all[0].begin(&store).await;
    all[0].ingest(&partial, 0..2).await;
    drop(partial.commit().await.unwrap());
    assert!(store.partial(all[1].digest, all[1].geometry).await.is_err());
    drop(partial);
    all[1].begin(&store).await;
}

#[tokio::test]
async fn partials_nobody_holds_are_charged_what_they_take_and_evicted_in_turn() {
    let scene = Scene::new(THREE);
    let store = scene.open().await;
    let all = samples::<4>();
    let partial = all[0].begin(&store).await;
    all[0].ingest(&partial, [0]).await;
    assert_eq!(store.usage().bytes, 2 * PIECE, "all of it will be written");
    drop(partial);
    assert_eq!(store.usage().bytes, PIECE);
    drop(all[1].commit(&store).await);
    drop(all[2].commit(&store).await);
    assert_eq!((store.usage().bytes, store.usage().partials), (THREE - PIECE, 1));
    drop(all[3].commit(&store).await);
    assert_eq!((held(&store, &all).as_str(), store.usage().partials), (".###", 0));
    assert!(!scene.data_of_partial(&all[0]).exists());
}

#[tokio::test]
async fn resuming_needs_room_only_for_the_rest_and_never_evicts_itself() {
    let scene = Scene::new(THREE);
    let store = scene.open().await;
    let all = samples::<3>();
    all[0].ingest(&all[0].begin(&store).await, [0]).await;
    let pins = (all[1].commit(&store).await, all[2].commit(&store).await);
    let partial = all[0].begin(&store).await;
    assert_eq!(format!("{:?}", partial.recheck().await.unwrap()), "#.");
    assert_eq!(store.usage().evictions, 0);
    drop(pins);
}

#[tokio::test]
async fn the_free_space_floor_is_kept() {
    let scene = Scene::new(1 << 30);
    let floor = scene.budget.free_floor_bytes;
    let store = scene.open().await;
    let all = samples::<3>();
    drop(all[0].commit(&store).await);
    let partial = all[1].begin(&store).await;
    // The held partial will write all of its length yet.
    scene.free_bytes.store(floor + 3 * PIECE, Ordering::Relaxed);
    drop(all[2].commit(&store).await);
    assert_eq!(held(&store, &all), "..#");
    scene.free_bytes.store(floor - 1, Ordering::Relaxed);
    drop(partial);
    store.trim().await;
    assert_eq!(held(&store, &all), "...");
    let error = store.partial(all[0].digest, all[0].geometry).await.unwrap_err();
    assert!(matches!(error, PartialError::NoSpace { available: 0, .. }), "{error:?}");
}

#[tokio::test]
async fn a_smaller_budget_evicts_when_the_store_opens() {
    let mut scene = Scene::new(THREE);
    let store = scene.open().await;
    let all = samples::<3>();
    for sample in &all {
        drop(sample.commit(&store).await);
        scene.pass(1);
    }
    drop(store);
    scene.budget.bytes_max = Some(3 * PIECE);
    assert_eq!(held(&scene.open().await, &all), "..#");
}
