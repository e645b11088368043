//! The ladder: what happens when the swarm, the origin or upstream fail, before and after headers.

use std::time::{Duration, Instant};

use http::Method;
use shoal_registry::embedded::{Fault, Options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::{LOCAL, Rig, answered, blob, eventually, fetch, fetch_bytes, get, get_range, manifest, send};

/// Accepts and never says a word. Dropping it ends it.
async fn black_hole() -> (String, TcpListener) {
    let listener = TcpListener::bind(LOCAL).await.unwrap();
    (format!("http://{}", listener.local_addr().unwrap()), listener)
}

#[tokio::test]
async fn an_origin_that_is_gone_costs_no_time() {
    let rig = Rig::start(Options::default()).await;
    let (url, listener) = black_hole().await;
    drop(listener);
    let agent = rig.agent(|config| config.origins = vec![url]).await;
    let began = Instant::now();
    assert_eq!(get(&agent, &manifest("v1")).await.digest(), rig.image.manifest);
    for layer in &rig.image.layers {
        assert_eq!(get(&agent, &blob(layer)).await.digest(), *layer);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(!agent.status().origin_up);
}

#[tokio::test]
async fn an_origin_that_is_a_black_hole_costs_seconds_once() {
    let rig = Rig::start(Options::default()).await;
    let (url, swallowing) = swallowing().await;
    let agent = rig.agent(|config| config.origins = vec![url]).await;
    let began = Instant::now();
    let layer = rig.image.layers[0];
    assert_eq!(get(&agent, &blob(&layer)).await.digest(), layer);
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    eventually("the origin is known to be away", || !agent.status().origin_up).await;
    let again = Instant::now();
    let layer = rig.image.layers[1];
    assert_eq!(get(&agent, &blob(&layer)).await.digest(), layer);
    assert!(again.elapsed() < Duration::from_secs(4), "{:?}", again.elapsed());
    swallowing.abort();
}

/// Takes every connection and says nothing, until the task is aborted.
async fn swallowing() -> (String, tokio::task::JoinHandle<()>) {
    let (url, listener) = black_hole().await;
    let task = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    (url, task)
}

#[tokio::test]
async fn when_origin_and_upstream_are_black_holes_every_answer_comes_within_five_seconds() {
    let rig = Rig::start(Options::default()).await;
    let (url, swallowing) = swallowing().await;
    rig.registry.inject("", u32::MAX, Fault::Silence);
    let agent = rig.agent(|config| config.origins = vec![url]).await;
    let paths = [
        (Method::GET, blob(&rig.image.layers[0])),
        (Method::HEAD, blob(&rig.image.layers[1])),
        (Method::GET, manifest("v1")),
        (Method::HEAD, manifest("v1")),
        (Method::GET, "/v2/app/tags/list?ns=registry.test".to_owned()),
    ];
    // Once while nobody knows it, and once when the origin is known to be away.
    for _ in 0..2 {
        let began = Instant::now();
        let answers = paths.iter().map(|(method, path)| send(&agent, method.clone(), path, &[]));
        for answer in futures_util::future::join_all(answers).await {
            assert_eq!(answer.status, 503);
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        eventually("the origin is known to be away", || !agent.status().origin_up).await;
    }
    swallowing.abort();
}

#[tokio::test]
async fn an_origin_whose_upstream_stalls_in_mid_blob_is_passed_by() {
    let rig = Rig::start(Options::default()).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let agent = rig.agent(|config| config.origins = vec![format!("http://{}", origin.grpc_addr)]).await;
    let layer = rig.image.layers[0];
    rig.registry.inject("GET /v2/app/blobs/", 1, Fault::Stall { after: 1_500_000 });
    let began = Instant::now();
    let answer = get(&agent, &blob(&layer)).await;
    assert!(answer.whole && answer.digest() == layer);
    // The origin itself would wait for ten seconds.
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert!(agent.status().received.upstream > 0);
}

#[tokio::test]
async fn an_upstream_that_is_slow_to_answer_is_waited_for_by_the_origin_alone() {
    let rig = Rig::start(Options { latency: Duration::from_secs(2), ..Options::default() }).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let origins = vec![format!("http://{}", origin.grpc_addr)];
    let mut agents = Vec::new();
    for _ in 0..3 {
        agents.push(rig.agent(|config| config.origins = origins.clone()).await);
    }
    for path in [manifest("v1"), blob(&rig.image.layers[1])] {
        let answers = futures_util::future::join_all(agents.iter().map(|agent| get(agent, &path))).await;
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.whole), "{path}");
    }
    assert_eq!(rig.registry.requests().len(), 2);
}

#[tokio::test]
async fn an_upstream_that_cuts_is_resumed_at_the_same_offset() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    rig.registry.inject("GET /v2/app/blobs/", 2, Fault::Cut { after: 500_000 });
    let answer = get(&agent, &blob(&layer)).await;
    assert!(answer.whole && answer.digest() == layer);
    assert_eq!(rig.sent(&layer).1, rig.content(&layer).len() as u64);
}

/// Reads one answer raw: what came, and whether the connection ended with FIN and not with a reset.
async fn raw(agent: &shoal_agent::Running, path: &str) -> (Vec<u8>, bool) {
    let mut stream = TcpStream::connect(agent.front_addr()).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: agent\r\n\r\n").as_bytes()).await.unwrap();
    let mut received = Vec::new();
    let ended = tokio::time::timeout(crate::rig::DEADLINE, stream.read_to_end(&mut received)).await.unwrap();
    (received, ended.is_ok())
}

#[tokio::test]
async fn when_all_fails_in_mid_blob_the_body_is_cut_with_fin_and_the_resume_is_503() {
    let rig = Rig::start(Options { rate: Some(2 << 20), ..Options::default() }).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    rig.registry.inject("GET /v2/app/blobs/", 1, Fault::Cut { after: 1_000_000 });
    rig.registry.inject("GET /v2/app/blobs/", 1_000, Fault::Status { status: 500, retry_after: None });
    let (received, fin) = raw(&agent, &blob(&layer)).await;
    assert!(fin, "a reset takes back bytes the client has not read yet");
    let text = String::from_utf8_lossy(&received[..400]);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    let body = &received[received.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4..];
    assert!(!body.is_empty() && rig.content(&layer).starts_with(body) && body.len() < rig.content(&layer).len());
    let resume = get_range(&agent, &blob(&layer), &format!("bytes={}-", body.len())).await;
    assert_eq!(resume.status, 503);
}

#[tokio::test]
async fn when_upstream_is_back_the_blob_goes_on_where_it_stood() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    rig.registry.inject("GET /v2/app/blobs/", 1, Fault::Cut { after: 1_500_000 });
    rig.registry.inject("GET /v2/app/blobs/", 2, Fault::Status { status: 500, retry_after: None });
    let cut = get(&agent, &blob(&layer)).await;
    assert!(!cut.whole);
    let (path, range) = (blob(&layer), format!("bytes={}-", cut.body.len()));
    let rest = answered(async || get_range(&agent, &path, &range).await, |answer| answer.status == 206).await;
    assert!(rest.whole && rest.body == rig.content(&layer)[cut.body.len()..]);
    eventually("the blob is whole", || agent.status().blobs == 1).await;
}

#[tokio::test]
async fn a_store_without_room_lets_blobs_through() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|config| config.store_max = Some(shoal_kit::ByteSize::mib(2))).await;
    let layer = rig.image.layers[0];
    let answer = get(&agent, &blob(&layer)).await;
    assert!(answer.whole && answer.digest() == layer);
    let range = get_range(&agent, &blob(&layer), "bytes=2000000-").await;
    assert!(range.status == 206 && range.body == rig.content(&layer)[2_000_000..]);
    assert_eq!(agent.status().blobs, 0);
}

#[tokio::test]
async fn wrong_bytes_of_upstream_are_never_kept() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[1];
    rig.registry.inject("GET /v2/app/blobs/", 1, Fault::Corrupt);
    get(&agent, &blob(&layer)).await;
    eventually("the bad copy is thrown away", || agent.status().torrents.is_empty()).await;
    assert_eq!(agent.status().blobs, 0);
    let answer = get(&agent, &blob(&layer)).await;
    assert!(answer.whole && answer.digest() == layer);
}

#[tokio::test]
async fn what_a_killed_agent_had_is_not_fetched_again() {
    let rig = Rig::start(Options { rate: Some(2 << 20), ..Options::default() }).await;
    let layer = rig.image.layers[0];
    let mut kept = None;
    let first = rig.agent(|config| kept = Some(config.store.clone())).await;
    let path = blob(&layer);
    let pull = tokio::time::timeout(Duration::from_millis(900), get(&first, &path)).await;
    assert!(pull.is_err(), "the pull was meant to be slow");
    let had = first.status().torrents.first().map_or(0, |torrent| torrent.have);
    assert!(had > 0);
    rig.stop_agents();
    first.stopped().await;

    let before = rig.sent(&layer).1;
    let second = rig.agent(|config| config.store = kept.unwrap()).await;
    let answer = get(&second, &path).await;
    assert!(answer.whole && answer.digest() == layer);
    let fetched = rig.sent(&layer).1 - before;
    let lacked = rig.content(&layer).len() as u64 - u64::from(had) * 131_072;
    assert!(fetched <= lacked, "{fetched} bytes fetched, {had} pieces had");
}

/// One fallback for each gap would cost a stall each.
#[tokio::test]
async fn gaps_between_what_a_node_has_are_filled_after_one_fallback() {
    const PIECE: usize = 128 << 10;
    let rig = Rig::with_layers(Options::default(), &[32 * PIECE]).await;
    let (shutdown, layer) = (rig.shutdown.child_token(), rig.image.layers[0]);
    let origin = rig.origin(shutdown.clone(), Vec::new()).await;
    let agent = rig.agent(|config| config.origins = vec![format!("http://{}", origin.grpc_addr)]).await;
    assert!(fetch_bytes(&format!("http://{}{}", origin.http_addr, blob(&layer))).await == rig.content(&layer));
    let had = || agent.status().torrents.first().map_or(0, |torrent| torrent.have);
    for (held, piece) in (1..).zip([3, 9, 15, 21, 27]) {
        let (path, range) = (blob(&layer), format!("bytes={}-{}", piece * PIECE, piece * PIECE + 99));
        // The first ones may be read past the store.
        answered(async || get_range(&agent, &path, &range).await, |_| had() == held).await;
    }
    shutdown.cancel();
    origin.stopped().await;
    let (before, _) = rig.sent(&layer);
    let answer = get(&agent, &blob(&layer)).await;
    assert!(answer.whole && answer.digest() == layer);
    let (gets, _) = rig.sent(&layer);
    assert_eq!(gets - before, 6, "one for each gap");
    let metrics = fetch(&format!("http://{}/metrics", agent.admin_addr())).await;
    let fallbacks = metrics.lines().filter(|line| line.starts_with("shoal_agent_fallbacks_total{"));
    let fallbacks = fallbacks.filter(|line| !line.contains("small_range"));
    let fallbacks = fallbacks.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>();
    assert_eq!(fallbacks, 1);
}
