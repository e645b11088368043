//! What the runtimes are known to do and to expect, as docs/clients.md lists it: each test behaves as one of them.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Method;
use shoal_agent::Running;
use shoal_registry::RegistryConfig;
use shoal_registry::embedded::{EmbeddedRegistry, Fault, Options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{DEADLINE, LOCAL, REGISTRY, Rig, answered, blob, eventually, get, get_range, manifest, send};

const MIB: usize = 1 << 20;

/// One request of each kind that clients make.
fn requests(rig: &Rig) -> Vec<(Method, String)> {
    let (image, layer) = (rig.image.manifest.to_string(), rig.image.layers[0]);
    vec![
        (Method::HEAD, manifest("v1")),
        (Method::GET, manifest("v1")),
        (Method::GET, manifest(&image)),
        (Method::HEAD, blob(&layer)),
        (Method::GET, blob(&layer)),
        (Method::GET, format!("/v2/app/tags/list?ns={REGISTRY}")),
        (Method::GET, format!("/v2/app/referrers/{image}?ns={REGISTRY}")),
    ]
}

/// containerd resolves a tag by HEAD, and gives up without the next host when digest, length or type is missing.
#[tokio::test]
async fn a_head_that_upstream_answers_by_half_or_not_at_all_is_whole() {
    let faults = ["docker-content-digest", "content-length", "content-type"].map(|name| Fault::WithoutHeader { name });
    for fault in faults.into_iter().chain([Fault::Status { status: 405, retry_after: None }]) {
        let rig = Rig::start(Options::default()).await;
        let agent = rig.agent(|_| {}).await;
        rig.registry.inject("HEAD /v2/app/manifests/", 1, fault.clone());
        let head = send(&agent, Method::HEAD, &manifest("v1"), &[]).await;
        let whole = get(&agent, &manifest("v1")).await;
        assert_eq!((head.status.as_u16(), whole.status.as_u16()), (200, 200), "{fault:?}");
        for name in ["docker-content-digest", "content-length", "content-type"] {
            assert_eq!(head.header(name), whole.header(name), "{fault:?}");
        }
    }
}

/// containerd repeats 408 and 429 at once at the same host, and dockerd does not fall back on TOOMANYREQUESTS: whatever keeps
/// upstream from answering is 503 UNAVAILABLE, with upstream's `Retry-After`.
#[tokio::test]
async fn an_upstream_that_limits_fails_or_redirects_in_vain_is_told_as_503() {
    for status in [408, 429, 500, 502, 504, 301, 307, 400, 418] {
        let rig = Rig::start(Options::default()).await;
        let agent = rig.agent(|_| {}).await;
        rig.registry.inject("/v2/", 1_000, Fault::Status { status, retry_after: Some(77) });
        let requests = requests(&rig);
        let answers = requests.iter().map(|(method, path)| send(&agent, method.clone(), path, &[]));
        for (answer, (method, path)) in join_all(answers).await.iter().zip(&requests) {
            let retry_after = if [408, 429, 500, 502, 504].contains(&status) { "77" } else { "" };
            assert_eq!(
                (answer.status.as_u16(), answer.header("retry-after")),
                (503, retry_after),
                "{method} {path}, {status}"
            );
            let unavailable = answer.body.starts_with(br#"{"errors":[{"code":"UNAVAILABLE""#);
            assert!(unavailable || method == Method::HEAD, "{status}: {:?}", answer.body);
        }
    }
}

/// containerd takes a bare redirect for a failure without fallback: redirects are followed here.
#[tokio::test]
async fn a_redirect_of_upstream_is_followed_and_not_passed_on() {
    let rig = Rig::start(Options::default()).await;
    let options = Options { redirect_blobs: Some(rig.registry.url()), ..Options::default() };
    let redirecting = EmbeddedRegistry::start(LOCAL, rig.registry.content().clone(), options).await.unwrap();
    let agent = rig.agent(|config| {
        let to = RegistryConfig { url: Some(redirecting.url()), ..RegistryConfig::default() };
        config.registries.insert(REGISTRY.to_owned(), to);
    });
    let agent = agent.await;
    let layer = rig.image.layers[0];
    let head = send(&agent, Method::HEAD, &blob(&layer), &[]).await;
    assert_eq!((head.status.as_u16(), head.header("location")), (200, ""));
    let answer = get(&agent, &blob(&layer)).await;
    assert_eq!((answer.status.as_u16(), answer.digest()), (200, layer));
}

/// containerd before 2.3 waits for headers without end: they come, or an error, within five seconds.
#[tokio::test]
async fn a_silent_upstream_is_told_as_an_error_within_five_seconds() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    rig.registry.inject("/v2/", 1_000, Fault::Silence);
    let began = Instant::now();
    let requests = requests(&rig);
    let answers = join_all(requests.iter().map(|(method, path)| send(&agent, method.clone(), path, &[]))).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(answers.iter().all(|answer| answer.status == 503), "{answers:?}");
}

/// containerd, dockerd and podman resume with `bytes=N-` and take nothing but 206 from exactly there: dockerd and podman fail
/// on a 200. Here nothing of the blob is held.
#[tokio::test]
async fn a_resume_is_206_from_exactly_there() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    let content = rig.content(&layer);
    let last = content.len() - 1;
    let answer = get_range(&agent, &blob(&layer), "bytes=1234567-").await;
    assert_eq!((answer.status.as_u16(), answer.whole), (206, true));
    assert_eq!(answer.header("content-range"), format!("bytes 1234567-{last}/{}", content.len()));
    assert!(answer.body == content[1_234_567..]);
}

/// Reads the first bytes of an open-ended range and drops the connection, as containerd from 2.1 on reads its share of a layer.
async fn share(agent: &Running, path: &str, from: usize, length: usize) -> Vec<u8> {
    let mut stream = TcpStream::connect(agent.front_addr()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: agent\r\nrange: bytes={from}-\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    let end = loop {
        let head = received.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head) = head.filter(|head| received.len() >= head + length) {
            break head;
        }
        assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0, "cut after {} bytes", received.len());
    };
    let head = String::from_utf8_lossy(&received[..end]).into_owned();
    assert!(head.starts_with("HTTP/1.1 206") && head.contains(&format!("content-range: bytes {from}-")), "{head}");
    received[end..end + length].to_vec()
}

/// containerd from 2.1 on, with `concurrent_layer_fetch_buffer`: open-ended ranges side by side, each dropped after its share.
#[tokio::test]
async fn open_ended_ranges_side_by_side_are_exact_and_one_download() {
    let rig = Rig::with_layers(Options { rate: Some(16 << 20), ..Options::default() }, &[8 * MIB]).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    let path = blob(&layer);
    let shares = (0..8).map(|number| share(&agent, &path, number * MIB, MIB));
    let shares = tokio::time::timeout(DEADLINE, join_all(shares)).await.unwrap();
    assert!(shares.concat() == rig.content(&layer));
    eventually("the blob is whole", || agent.status().blobs == 1).await;
    let (_, bytes) = rig.sent(&layer);
    assert!(bytes < 9 * MIB as u64, "{bytes} bytes left upstream");
}

/// The same client asks nobody else when a range other than the first is refused, but does so when it was cut, came back and was
/// refused then. Nothing else of the layer is under way, as containerd counts its ranges over all layers of an image.
#[tokio::test]
async fn a_later_share_that_nobody_can_deliver_is_cut_and_refused_when_it_comes_back() {
    let rig = Rig::with_layers(Options { rate: Some(4 << 20), ..Options::default() }, &[16 * MIB]).await;
    let agent = rig.agent(|_| {}).await;
    let path = blob(&rig.image.layers[0]);
    rig.registry.inject("GET /v2/app/blobs/", 1, Fault::Cut { after: 6 << 20 });
    rig.registry.inject("GET /v2/app/blobs/", 1_000, Fault::Status { status: 500, retry_after: None });
    share(&agent, &path, 0, MIB).await;
    let later = ["bytes=12582912-", "bytes=13631488-"].map(|range| get_range(&agent, &path, range));
    for (answer, from) in join_all(later).await.iter().zip([12 * MIB, 13 * MIB]) {
        assert_eq!((answer.status.as_u16(), answer.whole, answer.body.len()), (206, false, 0));
        assert_eq!(answer.header("content-range"), format!("bytes {from}-{}/{}", 16 * MIB - 1, 16 * MIB));
    }
    assert_eq!(get_range(&agent, &path, "bytes=12582912-").await.status, 503);
    assert_eq!(get(&agent, &path).await.status, 503);
}

/// containerd 2.x accepts compressed blobs: what comes is the blob itself, and upstream is asked for nothing else.
#[tokio::test]
async fn a_blob_is_not_encoded_whatever_the_client_accepts() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    for _held in [false, true] {
        let accept = [("accept-encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")];
        let answer = send(&agent, Method::GET, &blob(&layer), &accept).await;
        assert_eq!((answer.header("content-encoding"), answer.digest()), ("", layer));
    }
    let asked = rig.registry.requests();
    assert!(asked.iter().all(|request| request.accept_encoding.as_deref() == Some("identity")), "{asked:?}");
}

/// containerd looks for a bare digest by HEAD as a blob and then as a manifest, and believes the length it is told.
#[tokio::test]
async fn a_bare_digest_is_told_apart_with_exact_length_and_type() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let (image, layer) = (rig.image.manifest, rig.image.layers[1]);
    assert_eq!(send(&agent, Method::HEAD, &blob(&image), &[]).await.status, 404);
    let told = send(&agent, Method::HEAD, &manifest(&image.to_string()), &[("accept", "*/*")]).await;
    let whole = get(&agent, &manifest(&image.to_string())).await;
    assert_eq!(told.header("content-length"), whole.body.len().to_string());
    assert_eq!(told.header("content-type"), "application/vnd.oci.image.manifest.v1+json");
    let told = send(&agent, Method::HEAD, &blob(&layer), &[("accept", "*/*")]).await;
    assert_eq!(told.header("content-length"), rig.content(&layer).len().to_string());
    assert_eq!(told.header("content-type"), "application/octet-stream");
}

/// containerd takes no manifest over 4 MiB or so: one that is longer is an error here, and the client may try elsewhere.
#[tokio::test]
async fn a_manifest_over_four_mebibytes_is_503() {
    let rig = Rig::with_content(Options::default(), &[1], |content, _| {
        let long = format!("{{\"x\":\"{}\"}}", "a".repeat(4 * MIB));
        content.add_manifest("app", Some("long"), "application/vnd.oci.image.manifest.v1+json", long);
    })
    .await;
    let agent = rig.agent(|_| {}).await;
    let answer = get(&agent, &manifest("long")).await;
    assert_eq!(answer.status, 503);
    assert!(String::from_utf8_lossy(&answer.body).contains("longer than 4194304 bytes"), "{:?}", answer.body);
}

/// dockerd pings, and names no registry, as it asks mirrors for docker.io alone; podman and CRI-O put the registry into the
/// path; containerd and BuildKit name it as `ns`.
#[tokio::test]
async fn the_registry_is_found_as_each_client_names_it() {
    let rig = Rig::with_content(Options::default(), &[1], |content, _| {
        content.add_manifest("library/app", Some("hub"), "application/vnd.oci.image.manifest.v1+json", "{}");
    })
    .await;
    let agent = rig.agent(|config| {
        let registry = config.registries[REGISTRY].clone();
        config.registries.insert("docker.io".to_owned(), registry);
    });
    let agent = agent.await;
    assert_eq!(get(&agent, "/v2/").await.header("docker-distribution-api-version"), "registry/2.0");
    for path in [
        "/v2/library/app/manifests/hub".to_owned(),
        "/v2/docker.io/library/app/manifests/hub".to_owned(),
        "/v2/library/app/manifests/hub?ns=docker.io".to_owned(),
        format!("/v2/{REGISTRY}/app/manifests/v1"),
        manifest("v1"),
    ] {
        assert_eq!(get(&agent, &path).await.status, 200, "{path}");
    }
}

/// On one node dockerd takes a blob from its beginning, another goes on with what it had, podman names the registry in the path,
/// containerd takes a share.
#[tokio::test]
async fn clients_of_every_kind_share_one_download() {
    let rig = Rig::with_layers(Options { rate: Some(8 << 20), ..Options::default() }, &[8 * MIB]).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    let content = rig.content(&layer);
    let (by_ns, by_path) = (blob(&layer), format!("/v2/{REGISTRY}/app/blobs/{layer}"));
    let (whole, resumed, path_named, shared) = tokio::join!(
        get(&agent, &by_ns),
        get_range(&agent, &by_ns, "bytes=3000000-"),
        get(&agent, &by_path),
        share(&agent, &by_ns, 5 * MIB, MIB),
    );
    assert!(whole.digest() == layer && path_named.digest() == layer);
    assert!(resumed.status == 206 && resumed.body == content[3_000_000..]);
    assert!(shared == content[5 * MIB..6 * MIB]);
    let (_, bytes) = rig.sent(&layer);
    assert!(bytes < 9 * MIB as u64, "{bytes} bytes left upstream");
}

/// A runtime that waits for an agent which serves others would wait longer than for its next host.
#[tokio::test]
async fn one_client_too_many_is_sent_to_its_next_host_at_once() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let mut idle = Vec::new();
    for _ in 0..256 {
        idle.push(TcpStream::connect(agent.front_addr()).await.unwrap());
    }
    let refused = get(&agent, &manifest("v1")).await;
    assert_eq!((refused.status.as_u16(), refused.header("connection")), (503, "close"));
    idle.pop();
    answered(async || get(&agent, &manifest("v1")).await, |answer| answer.status == 200).await;
}
