//! What a client sees of the front, with upstream alone behind it.

use http::Method;
use shoal_registry::embedded::Options;

use crate::rig::{Rig, blob, eventually, get, get_range, send};

#[tokio::test]
async fn a_cold_blob_comes_whole_and_then_from_the_store() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    let cold = get(&agent, &blob(&layer)).await;
    assert_eq!((cold.status.as_u16(), cold.whole, cold.digest()), (200, true, layer));
    assert_eq!(cold.header("docker-content-digest"), layer.to_string());
    assert_eq!(cold.header("content-length"), rig.content(&layer).len().to_string());
    assert_eq!(cold.header("content-type"), "application/octet-stream");
    assert_eq!(cold.header("accept-ranges"), "bytes");
    eventually("the blob is whole", || agent.status().blobs == 1).await;
    let warm = get(&agent, &blob(&layer)).await;
    assert_eq!((warm.status.as_u16(), warm.digest()), (200, layer));
    assert_eq!(rig.sent(&layer), (1, rig.content(&layer).len() as u64));
    assert_eq!(agent.status().received.local, rig.content(&layer).len() as u64);
}

#[tokio::test]
async fn many_who_ask_at_once_share_one_download() {
    let rig = Rig::start(Options { rate: Some(4 << 20), ..Options::default() }).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    let path = blob(&layer);
    let answers = futures_util::future::join_all((0..8).map(|_| get(&agent, &path))).await;
    assert!(answers.iter().all(|answer| answer.whole && answer.digest() == layer));
    assert_eq!(rig.sent(&layer), (1, rig.content(&layer).len() as u64));
}

#[tokio::test]
async fn the_registry_may_be_in_the_path() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let answer = get(&agent, "/v2/registry.test/app/manifests/v1").await;
    assert_eq!(answer.digest(), rig.image.manifest);
    assert_eq!(send(&agent, Method::GET, "/v2/", &[("authorization", "Bearer any")]).await.status, 200);
}

#[tokio::test]
async fn a_small_range_of_a_cold_blob_does_not_fetch_it_whole() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    let answer = get_range(&agent, &blob(&layer), "bytes=2000000-2000999").await;
    assert_eq!((answer.status.as_u16(), answer.whole), (206, true));
    assert!(answer.body == rig.content(&layer)[2_000_000..2_001_000]);
    assert!(agent.status().torrents.is_empty());
}

#[tokio::test]
async fn head_tells_the_length_and_fetches_nothing() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    let answer = send(&agent, Method::HEAD, &blob(&layer), &[]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("content-length")),
        (200, &*rig.content(&layer).len().to_string())
    );
    assert_eq!(answer.header("docker-content-digest"), layer.to_string());
    assert_eq!(rig.sent(&layer).0, 0);
}

#[tokio::test]
async fn a_client_that_leaves_does_not_stop_the_download() {
    let rig = Rig::start(Options { rate: Some(4 << 20), ..Options::default() }).await;
    let agent = rig.agent(|_| {}).await;
    let path = blob(&rig.image.layers[0]);
    let left = tokio::time::timeout(std::time::Duration::from_millis(300), get(&agent, &path)).await;
    assert!(left.is_err(), "the pull was meant to be slow");
    eventually("the blob is whole", || agent.status().blobs == 1).await;
    assert_eq!(rig.sent(&rig.image.layers[0]).0, 1);
}

#[tokio::test]
async fn health_metrics_and_status_are_served() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    get(&agent, &blob(&rig.image.layers[0])).await;
    let url = format!("http://{}", agent.admin_addr());
    let text = crate::rig::fetch(&format!("{url}/metrics")).await;
    assert!(text.contains("shoal_agent_requests_total{route=\"blob\",status=\"200\"} 1"), "{text}");
    assert!(text.contains("shoal_agent_bytes_total{source=\"upstream\"}"), "{text}");
    assert!(crate::rig::fetch(&format!("{url}/status")).await.contains("\"received\""));
    assert_eq!(crate::rig::fetch(&format!("{url}/readyz")).await, "ready\n");
}
