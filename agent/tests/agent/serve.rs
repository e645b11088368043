//! What a client sees of the front, with upstream alone behind it.

use http::Method;
use shoal_registry::embedded::{Fault, Options};

use crate::rig::{Rig, blob, eventually, get, get_range, manifest, send};

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
async fn manifests_come_by_tag_and_digest_with_exact_headers() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let digest = rig.image.manifest;
    for reference in ["v1".to_owned(), digest.to_string()] {
        for method in [Method::GET, Method::HEAD] {
            let head = method == Method::HEAD;
            let answer = send(&agent, method, &manifest(&reference), &[]).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("docker-content-digest"), digest.to_string());
            assert_eq!(answer.header("content-type"), "application/vnd.oci.image.manifest.v1+json");
            assert_ne!(answer.header("content-length"), "0");
            assert_eq!(answer.body.is_empty(), head);
            if !head {
                assert_eq!(answer.digest(), digest);
                assert_eq!(answer.header("content-length"), answer.body.len().to_string());
            }
        }
    }
}

#[tokio::test]
async fn the_registry_may_be_in_the_path() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let answer = get(&agent, "/v2/registry.test/app/manifests/v1").await;
    assert_eq!(answer.digest(), rig.image.manifest);
    assert_eq!(get(&agent, "/v2/").await.status, 200);
}

#[tokio::test]
async fn ranges_of_a_held_blob_are_exact() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    let (content, path) = (rig.content(&layer), blob(&layer));
    get(&agent, &path).await;
    let length = content.len();
    for (range, start, end) in [
        ("bytes=0-".to_owned(), 0, length),
        ("bytes=262143-262145".to_owned(), 262_143, 262_146),
        ("bytes=1000000-".to_owned(), 1_000_000, length),
        ("bytes=-10".to_owned(), length - 10, length),
        (format!("bytes=5-{}", length * 2), 5, length),
    ] {
        let answer = get_range(&agent, &path, &range).await;
        assert_eq!((answer.status.as_u16(), answer.whole), (206, true), "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {start}-{}/{length}", end - 1));
        assert_eq!(answer.header("content-length"), (end - start).to_string());
        assert!(answer.body == content[start..end], "{range}");
    }
    let outside = get_range(&agent, &path, &format!("bytes={length}-")).await;
    assert_eq!((outside.status.as_u16(), outside.header("content-range")), (416, &*format!("bytes */{length}")));
}

#[tokio::test]
async fn several_ranges_come_as_multipart() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    let (content, path) = (rig.content(&layer), blob(&layer));
    get(&agent, &path).await;
    let answer = get_range(&agent, &path, "bytes=10-19,300000-300009").await;
    assert_eq!((answer.status.as_u16(), answer.whole), (206, true));
    assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    let boundary = answer.header("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap();
    let mut expected = Vec::new();
    for (start, end) in [(10, 20), (300_000, 300_010)] {
        let range = format!("content-range: bytes {start}-{}/{}", end - 1, content.len());
        let text = format!("\r\n--{boundary}\r\ncontent-type: application/octet-stream\r\n{range}\r\n\r\n");
        expected.extend_from_slice(text.as_bytes());
        expected.extend_from_slice(&content[start..end]);
    }
    expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert!(answer.body == expected);
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
async fn what_upstream_lacks_is_404_with_its_code() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let unknown = shoal_meta::Digest::sha256_of(b"unknown");
    let answer = get(&agent, &blob(&unknown)).await;
    assert_eq!(answer.status, 404);
    assert!(answer.body.starts_with(br#"{"errors":[{"code":"BLOB_UNKNOWN""#), "{:?}", answer.body);
    let answer = get(&agent, &manifest("none")).await;
    assert_eq!(answer.status, 404);
    assert!(answer.body.starts_with(br#"{"errors":[{"code":"MANIFEST_UNKNOWN""#), "{:?}", answer.body);
}

#[tokio::test]
async fn only_get_and_head_are_served() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    for method in [Method::PUT, Method::POST, Method::DELETE, Method::PATCH] {
        let answer = send(&agent, method, &manifest("v1"), &[]).await;
        assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "GET, HEAD"));
    }
}

#[tokio::test]
async fn an_upstream_that_limits_is_told_as_503() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    rig.registry.inject("/manifests/", 100, Fault::Status { status: 429, retry_after: Some(7) });
    let answer = get(&agent, &manifest("v1")).await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "7"));
}

#[tokio::test]
async fn a_silent_upstream_is_told_as_an_error_within_five_seconds() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    rig.registry.inject("/v2/", 100, Fault::Silence);
    let began = std::time::Instant::now();
    let (layer, manifest) = (blob(&rig.image.layers[0]), manifest("v1"));
    let (a, b) = tokio::join!(get(&agent, &layer), get(&agent, &manifest));
    assert_eq!((a.status.as_u16(), b.status.as_u16()), (503, 503));
    assert!(began.elapsed() < std::time::Duration::from_secs(5));
}

#[tokio::test]
async fn tags_are_passed_through() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let answer = get(&agent, "/v2/app/tags/list?n=5&ns=registry.test").await;
    assert_eq!(answer.status, 200);
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["tags"], serde_json::json!(["v1"]));
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
