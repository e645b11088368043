//! The origin as a plain pull-through registry over HTTP.

use std::time::Duration;

use crate::rig::{Cut, Lab, REPOSITORY, noise};
use http::Method;
use shoal_kit::HumanDuration;
use shoal_meta::Digest;
use shoal_registry::embedded::{Content, Fault, Image, Layer, Options};

const MIB: usize = 1024 * 1024;

async fn lab_with_image(seed: u64) -> (Lab, Image, bytes::Bytes) {
    let (mut content, layer) = (Content::new(), noise(2 * MIB + 17, seed));
    let image = content.add_image(REPOSITORY, "v1", vec![Layer::tar(layer.clone())]);
    let lab = Lab::start_with(content, Options::default(), |config| config.tag_ttl = HumanDuration(Duration::ZERO));
    (lab.await, image, layer)
}

#[tokio::test]
async fn an_image_is_pulled_and_upstream_is_asked_once() {
    let (lab, image, layer) = lab_with_image(1).await;
    let head = lab.http(Method::HEAD, "manifests/v1", &[]).await;
    assert_eq!(head.header("docker-content-digest"), image.manifest.to_string());
    assert_eq!(head.header("content-type"), "application/vnd.oci.image.manifest.v1+json");
    for _ in 0..2 {
        let manifest = lab.get(&format!("manifests/{}", image.manifest), &[]).await;
        assert_eq!(Digest::sha256_of(&manifest.body.unwrap()), image.manifest);
        assert_eq!(head.header("content-length"), manifest.headers["content-length"].to_str().unwrap());
        let blob = lab.get(&format!("blobs/{}", image.layers[0]), &[]).await;
        assert_eq!(blob.status, 200);
        assert_eq!(blob.header("docker-content-digest"), image.layers[0].to_string());
        assert_eq!(blob.header("accept-ranges"), "bytes");
        assert_eq!(blob.body.unwrap(), layer);
    }
    let upstream = lab.registry.counters();
    assert_eq!(upstream.manifest_gets, 1);
    assert_eq!(upstream.blobs[&image.layers[0]].gets, 1);
}

#[tokio::test]
async fn ranges_of_a_cold_blob_are_exact() {
    let (lab, image, layer) = lab_with_image(2).await;
    let path = format!("blobs/{}", image.layers[0]);
    let length = layer.len();
    let range = async |range: &str| lab.get(&path, &[("range", range)]).await;
    let middle = range("bytes=300000-1300000").await;
    assert_eq!(middle.status, 206);
    assert_eq!(middle.header("content-range"), format!("bytes 300000-1300000/{length}"));
    assert_eq!(middle.body.unwrap(), layer.slice(300_000..1_300_001));
    let open = range("bytes=2097152-").await;
    assert_eq!((open.status.as_u16(), open.body.unwrap()), (206, layer.slice(2 * MIB..)));
    assert_eq!(range("bytes=-5").await.body.unwrap(), layer.slice(length - 5..));
    let beyond = range("bytes=9999999-").await;
    assert_eq!((beyond.status.as_u16(), beyond.header("content-range")), (416, &*format!("bytes */{length}")));
    let several = range("bytes=0-3,10-12").await;
    assert!(several.header("content-type").starts_with("multipart/byteranges; boundary="));
    let body = several.body.unwrap();
    assert_eq!(several.headers["content-length"].to_str().unwrap(), body.len().to_string());
    assert!(body.windows(3).any(|window| window == &layer[10..13]));
    assert_eq!(lab.registry.counters().blobs[&image.layers[0]].gets, 1);
}

#[tokio::test]
async fn the_body_begins_while_upstream_still_sends() {
    use http_body_util::BodyExt as _;
    let (mut content, blob) = (Content::new(), noise(4 * MIB, 3));
    let digest = content.add_blob(blob.clone());
    let lab = Lab::start(content, Options { rate: Some(2 * MIB as u64), ..Options::default() }).await;
    let url = format!("http://{}/v2/{REPOSITORY}/blobs/{digest}?ns={}", lab.origin.http_addr, lab.registry.addr());
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build_http::<http_body_util::Empty<bytes::Bytes>>();
    let mut response = client.get(url.parse().unwrap()).await.unwrap();
    let first = response.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, blob.slice(..first.len()));
    let left = lab.registry.counters().blobs[&digest].bytes;
    assert!(left < blob.len() as u64 / 2, "{left} bytes had left upstream");
}

#[tokio::test]
async fn a_blob_with_wrong_bytes_is_never_sent_whole() {
    let (lab, image, _) = lab_with_image(4).await;
    let path = format!("blobs/{}", image.layers[0]);
    lab.registry.inject(&path, 1, Fault::Corrupt);
    let answer = lab.get(&path, &[]).await;
    assert_eq!((answer.status.as_u16(), answer.body), (200, Err(Cut)));
    let again = lab.get(&path, &[]).await;
    assert_eq!((again.status.as_u16(), again.code().as_str()), (503, "UNAVAILABLE"));
}

#[tokio::test]
async fn errors_are_those_of_a_registry() {
    let (lab, _, _) = lab_with_image(5).await;
    let unknown = lab.get("manifests/v2", &[]).await;
    assert_eq!((unknown.status.as_u16(), unknown.code().as_str()), (404, "MANIFEST_UNKNOWN"));
    let unknown = lab.get(&format!("blobs/{}", Digest::sha256_of(b"?")), &[]).await;
    assert_eq!((unknown.status.as_u16(), unknown.code().as_str()), (404, "BLOB_UNKNOWN"));
    let malformed = lab.get("blobs/sha256:12", &[]).await;
    assert_eq!((malformed.status.as_u16(), malformed.code().as_str()), (400, "DIGEST_INVALID"));
    let push = lab.http(Method::POST, "blobs/uploads/", &[]).await;
    assert_eq!((push.status.as_u16(), push.header("allow")), (405, "GET, HEAD"));
    assert_eq!(push.code(), "UNSUPPORTED");
}

#[tokio::test]
async fn tags_are_passed_through() {
    let (lab, _, _) = lab_with_image(6).await;
    let tags = lab.get("tags/list?n=10", &[]).await;
    assert_eq!(tags.status, 200);
    assert!(String::from_utf8_lossy(&tags.body.unwrap()).contains("\"v1\""));
    assert!(lab.registry.requests().pop().unwrap().path.ends_with("/tags/list?n=10"));
}

#[tokio::test]
async fn a_tag_is_served_stale_and_marked_while_upstream_is_down() {
    let (lab, image, _) = lab_with_image(7).await;
    assert!(!lab.resolve("v1", false).await.unwrap().stale);
    lab.registry.inject("/manifests/", 1000, Fault::Status { status: 502, retry_after: None });
    let stale = lab.resolve("v1", false).await.unwrap();
    assert!(stale.stale);
    assert_eq!(stale.digest, image.manifest.to_string());
    assert_eq!(Digest::sha256_of(&stale.content), image.manifest);
    let over_http = lab.get("manifests/v1", &[]).await;
    assert_eq!((over_http.status.as_u16(), over_http.header("warning")), (200, "299 - \"Response is Stale\""));
    assert_eq!(lab.get("manifests/v2", &[]).await.status, 503);
}

#[tokio::test]
async fn a_tag_is_the_same_in_whatever_order_media_types_are_accepted() {
    let mut content = Content::new();
    let image = content.add_image(REPOSITORY, "v1", vec![]);
    let lab = Lab::start(content, Options::default()).await;
    let orders = ["application/vnd.oci.image.manifest.v1+json, */*", "*/*, application/vnd.oci.image.manifest.v1+json"];
    for accept in orders {
        let head = lab.http(Method::HEAD, "manifests/v1", &[("accept", accept)]).await;
        assert_eq!(head.header("docker-content-digest"), image.manifest.to_string());
    }
    assert_eq!(lab.registry.counters().manifest_heads, 1);
}

#[tokio::test]
async fn while_upstream_is_down_a_tag_is_what_it_was_for_another_clients_media_types() {
    let (lab, image, _) = lab_with_image(11).await;
    lab.get("manifests/v1", &[("accept", "application/vnd.oci.image.manifest.v1+json")]).await;
    lab.registry.inject("/manifests/", 1000, Fault::Status { status: 502, retry_after: None });
    let stale = lab.get("manifests/v1", &[("accept", "*/*")]).await;
    assert_eq!((stale.status.as_u16(), stale.header("warning")), (200, "299 - \"Response is Stale\""));
    assert_eq!(Digest::sha256_of(&stale.body.unwrap()), image.manifest);
}

#[tokio::test]
async fn a_restarted_origin_gives_what_anybody_may_have_while_upstream_is_down() {
    let (lab, image, layer) = lab_with_image(10).await;
    let path = format!("blobs/{}", image.layers[0]);
    lab.resolve("v1", false).await.unwrap();
    lab.get(&path, &[]).await.body.unwrap();
    let lab = lab.restart().await;
    lab.registry.inject("/v2/", 1000, Fault::Status { status: 502, retry_after: None });
    let stale = lab.resolve("v1", false).await.unwrap();
    assert!(stale.stale);
    assert_eq!(stale.media_type, "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(Digest::sha256_of(&stale.content), image.manifest);
    assert_eq!(lab.get(&path, &[]).await.body.unwrap(), layer);
    let with_credentials = lab.get("manifests/v1", &[("authorization", "Basic YW5uOnNlY3JldA==")]).await;
    assert_eq!(with_credentials.status, 503, "nobody can say whether these are good");
    assert_eq!(lab.get("manifests/v2", &[]).await.status, 503);
}

#[tokio::test]
async fn a_tag_within_its_time_costs_upstream_nothing() {
    let mut content = Content::new();
    content.add_image(REPOSITORY, "v1", vec![]);
    let lab = Lab::start(content, Options::default()).await;
    for head in [true, false, true, false] {
        lab.resolve("v1", head).await.unwrap();
    }
    let upstream = lab.registry.counters();
    assert_eq!((upstream.manifest_heads, upstream.manifest_gets), (1, 1));
}

#[tokio::test]
async fn a_registry_that_limits_is_left_alone() {
    let (lab, image, _) = lab_with_image(8).await;
    lab.registry.inject("/manifests/", 1000, Fault::Status { status: 429, retry_after: Some(60) });
    let limited = lab.get("manifests/v1", &[]).await;
    assert_eq!((limited.status.as_u16(), limited.header("retry-after")), (503, "60"));
    let asked = lab.registry.requests().len();
    assert_eq!(lab.resolve("v1", false).await.unwrap_err().code(), tonic::Code::ResourceExhausted);
    assert_eq!(lab.get(&format!("blobs/{}", image.layers[0]), &[]).await.status, 503);
    assert_eq!(lab.registry.requests().len(), asked);
}

#[tokio::test]
async fn metrics_and_status_tell_what_happened() {
    use http_body_util::BodyExt as _;
    let (lab, image, layer) = lab_with_image(9).await;
    lab.get(&format!("blobs/{}", image.layers[0]), &[]).await.body.unwrap();
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build_http::<http_body_util::Empty<bytes::Bytes>>();
    let read = async |path: &str| {
        let url = format!("http://{}{path}", lab.origin.admin_addr).parse().unwrap();
        let body = client.get(url).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    };
    let metrics = read("/metrics").await;
    for line in [
        &format!("shoal_origin_upstream_bytes_total {}", layer.len()),
        "shoal_origin_upstream_requests_total{kind=\"blob\",status=\"ok\"} 1",
        "shoal_origin_blobs_total{outcome=\"ingested\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    let status: serde_json::Value = serde_json::from_str(&read("/status").await).unwrap();
    assert_eq!(status["store"]["blobs"], 1);
}
