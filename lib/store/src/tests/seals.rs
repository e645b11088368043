//! Seals stay with their blobs.

use super::*;

#[tokio::test]
async fn a_seal_is_kept_from_the_partial_on_and_goes_with_the_blob() {
    let scene = Scene::new(1 << 30);
    let sample = Sample::new(1, 2 * PIECE);
    let store = scene.open().await;
    store.set_seal(&sample.digest, b"of nothing".to_vec()).await;
    let partial = sample.begin(&store).await;
    store.set_seal(&sample.digest, b"first".to_vec()).await;
    assert_eq!(store.seal(&sample.digest).await, None);
    sample.ingest(&partial, 0..2).await;
    drop(partial.commit().await.unwrap());
    assert_eq!(store.seal(&sample.digest).await.unwrap(), b"first");
    drop((store, partial));
    let store = scene.open().await;
    store.set_seal(&sample.digest, b"second".to_vec()).await;
    assert_eq!(store.seal(&sample.digest).await.unwrap(), b"second");
    store.remove(&sample.digest).await;
    assert_eq!(store.seal(&sample.digest).await, None);
    assert!(!scene.dir_of_blob(&sample).exists());
}
