//! Small ranges, as a lazy snapshotter reads a layer: only the pieces they touch move, until so much was read that the
//! rest may as well come.

use shoal_agent::Running;
use shoal_registry::embedded::Options;

use crate::rig::{Rig, blob, eventually, get, get_range};

const LENGTH: usize = 32 * PIECE;
const PIECE: usize = 128 << 10;

async fn agent(rig: &Rig, origin: &shoal_origin::Running) -> Running {
    rig.agent(|config| config.origins = vec![format!("http://{}", origin.grpc_addr)]).await
}

async fn assert_range(rig: &Rig, agent: &Running, start: usize, length: usize) {
    let layer = rig.image.layers[0];
    let answer = get_range(agent, &blob(&layer), &format!("bytes={start}-{}", start + length - 1)).await;
    assert_eq!((answer.status.as_u16(), answer.whole), (206, true), "from {start}");
    assert!(answer.body == rig.content(&layer)[start..start + length], "from {start}");
}

#[tokio::test]
async fn a_small_range_moves_only_the_pieces_it_touches_and_a_quarter_of_them_the_whole_blob() {
    let rig = Rig::with_layers(Options::default(), &[LENGTH]).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let layer = rig.image.layers[0];
    let first = agent(&rig, &origin).await;
    assert!(get(&first, &blob(&layer)).await.whole);
    let lazy = agent(&rig, &origin).await;
    assert_range(&rig, &lazy, 9 * PIECE - 10, 20).await;
    assert_range(&rig, &lazy, 8 * PIECE, 1000).await;
    let view = lazy.status().torrents.remove(0);
    assert_eq!((view.have, view.wanted), (2, false));
    for piece in [1, 12, 20, 25, 30] {
        assert_range(&rig, &lazy, piece * PIECE, 100).await;
    }
    let view = lazy.status().torrents.remove(0);
    assert_eq!((view.have, view.pieces), (7, 32));
    assert_range(&rig, &lazy, 31 * PIECE, 100).await;
    eventually("the blob is complete", || lazy.status().blobs == 1).await;
    assert_eq!(rig.sent(&layer), (1, LENGTH as u64));
    assert_eq!(lazy.status().received.upstream, 0);
}

#[tokio::test]
async fn a_client_that_wants_the_rest_after_a_small_range_gets_it() {
    let rig = Rig::with_layers(Options::default(), &[LENGTH]).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let lazy = agent(&rig, &origin).await;
    let layer = rig.image.layers[0];
    assert_range(&rig, &lazy, LENGTH - 100, 100).await;
    let answer = get(&lazy, &blob(&layer)).await;
    assert!(answer.whole && answer.digest() == layer);
}

#[tokio::test]
async fn a_small_range_that_the_origin_has_not_reached_comes_from_upstream() {
    let rig = Rig::with_layers(Options { rate: Some(1 << 20), ..Options::default() }, &[LENGTH]).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let lazy = agent(&rig, &origin).await;
    assert_range(&rig, &lazy, LENGTH - 100, 100).await;
    let (gets, bytes) = rig.sent(&rig.image.layers[0]);
    assert!(gets == 2 && bytes < LENGTH as u64, "{bytes} bytes left in {gets} answers before the range came");
    assert_eq!(lazy.status().received.upstream, 100);
}

#[tokio::test]
async fn a_range_past_the_end_fetches_nothing() {
    let rig = Rig::with_layers(Options::default(), &[LENGTH]).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let lazy = agent(&rig, &origin).await;
    let answer = get_range(&lazy, &blob(&rig.image.layers[0]), &format!("bytes={LENGTH}-{}", LENGTH + 9)).await;
    assert_eq!(answer.status, 416);
    assert_eq!(lazy.status().torrents.remove(0).have, 0);
}
