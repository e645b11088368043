//! What a cluster costs its upstream: one request at a time for each thing, and none while upstream wants to be left alone.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Method;
use shoal_agent::Running;
use shoal_kit::HumanDuration;
use shoal_registry::embedded::{Auth, Fault, Options};

use crate::rig::{Answer, REGISTRY, Rig, blob, get, manifest, send};

const AGENTS: usize = 4;

/// Agents with one origin, for which a tag is good for this long.
async fn cluster(rig: &Rig, tag_ttl: Duration) -> (shoal_origin::Running, Vec<Running>) {
    let origin = rig.origin_with(rig.shutdown.clone(), |config| config.tag_ttl = HumanDuration(tag_ttl)).await;
    let url = format!("http://{}", origin.grpc_addr);
    let agents = join_all((0..AGENTS).map(|_| rig.agent(|config| config.origins = vec![url.clone()]))).await;
    (origin, agents)
}

/// What all agents answer when asked at the same time.
async fn all(agents: &[Running], method: Method, path: &str) -> Vec<Answer> {
    join_all(agents.iter().map(|agent| send(agent, method.clone(), path, &[]))).await
}

/// A registry far enough away that requests of the same moment overlap.
fn far() -> Options {
    Options { latency: Duration::from_millis(100), ..Options::default() }
}

#[tokio::test]
async fn a_manifest_wanted_everywhere_is_asked_for_once() {
    let rig = Rig::start(far()).await;
    let (_origin, agents) = cluster(&rig, Duration::from_secs(30)).await;
    for path in [manifest("v1"), manifest(&rig.image.manifest.to_string())] {
        let answers = all(&agents, Method::GET, &path).await;
        assert!(answers.iter().all(|answer| answer.digest() == rig.image.manifest), "{path}");
    }
    let upstream = rig.registry.counters();
    assert_eq!((upstream.manifest_gets, upstream.manifest_heads), (1, 0));
}

#[tokio::test]
async fn a_tag_past_its_time_is_confirmed_by_one_head() {
    let rig = Rig::start(far()).await;
    let (_origin, agents) = cluster(&rig, Duration::ZERO).await;
    get(&agents[0], &manifest("v1")).await;
    let answers = all(&agents, Method::GET, &manifest("v1")).await;
    assert!(answers.iter().all(|answer| answer.digest() == rig.image.manifest && answer.header("warning").is_empty()));
    let upstream = rig.registry.counters();
    assert_eq!((upstream.manifest_gets, upstream.manifest_heads), (1, 1));
}

#[tokio::test]
async fn the_length_of_a_cold_blob_is_asked_for_once() {
    let rig = Rig::start(far()).await;
    let (_origin, agents) = cluster(&rig, Duration::ZERO).await;
    let layer = rig.image.layers[0];
    let length = rig.content(&layer).len().to_string();
    for _ in 0..2 {
        let answers = all(&agents, Method::HEAD, &blob(&layer)).await;
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.header("content-length") == length));
    }
    let upstream = rig.registry.counters().blobs[&layer];
    assert_eq!((upstream.heads, upstream.gets), (1, 0));
}

#[tokio::test]
async fn one_token_is_good_for_the_whole_cluster() {
    let auth = Auth::Token { user: None, lifetime: Duration::from_secs(300) };
    let rig = Rig::start(Options { auth: Some(auth), ..far() }).await;
    let (_origin, agents) = cluster(&rig, Duration::ZERO).await;
    for path in [manifest("v1"), blob(&rig.image.layers[0]), blob(&rig.image.layers[1])] {
        let answers = all(&agents, Method::GET, &path).await;
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.whole), "{path}");
    }
    assert_eq!(rig.registry.counters().tokens, 1);
}

#[tokio::test]
async fn a_tag_is_served_stale_and_marked_while_upstream_fails_limits_or_is_silent() {
    let faults = [
        Fault::Status { status: 502, retry_after: None },
        Fault::Status { status: 429, retry_after: Some(3600) },
        Fault::Silence,
    ];
    for fault in faults {
        let rig = Rig::start(Options::default()).await;
        let (_origin, agents) = cluster(&rig, Duration::ZERO).await;
        assert_eq!(get(&agents[0], &manifest("v1")).await.header("warning"), "");
        rig.registry.inject("", u32::MAX, fault.clone());
        let began = Instant::now();
        let answers = all(&agents, Method::GET, &manifest("v1")).await;
        let marked = |answer: &Answer| answer.header("warning") == "299 - \"Response is Stale\"";
        assert!(answers.iter().all(|answer| answer.digest() == rig.image.manifest && marked(answer)), "{fault:?}");
        assert!(began.elapsed() < Duration::from_secs(3), "{fault:?} took {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_limit_is_heeded_once_and_by_every_agent() {
    let rig = Rig::start(Options::default()).await;
    let (_origin, agents) = cluster(&rig, Duration::ZERO).await;
    rig.registry.inject("", 1, Fault::Status { status: 429, retry_after: Some(3600) });
    let limited = get(&agents[0], &manifest("v1")).await;
    assert_eq!((limited.status.as_u16(), limited.header("retry-after")), (503, "3600"));
    let layer = blob(&rig.image.layers[0]);
    let tags = format!("/v2/app/tags/list?ns={}", REGISTRY);
    for (method, path) in [
        (Method::GET, manifest("v1")),
        (Method::HEAD, manifest("v1")),
        (Method::GET, layer.clone()),
        (Method::HEAD, layer),
        (Method::GET, tags),
    ] {
        let answers = all(&agents, method.clone(), &path).await;
        assert!(answers.iter().all(|answer| answer.status == 503), "{method} {path}: {:?}", answers[0]);
    }
    assert_eq!(rig.registry.requests().len(), 1);
}

#[tokio::test]
async fn a_limit_met_in_mid_blob_is_heeded_by_the_agents_that_wait_for_the_rest() {
    let rig = Rig::start(Options { rate: Some(4 << 20), ..Options::default() }).await;
    let (_origin, agents) = cluster(&rig, Duration::ZERO).await;
    let layer = rig.image.layers[0];
    rig.registry.inject("GET /v2/app/blobs/", 1, Fault::Cut { after: 1_500_000 });
    rig.registry.inject("GET /v2/app/blobs/", 1, Fault::Status { status: 429, retry_after: Some(3600) });
    let answers = all(&agents, Method::GET, &blob(&layer)).await;
    let content = rig.content(&layer);
    assert!(answers.iter().all(|answer| answer.status == 200 && !answer.whole && content.starts_with(&answer.body)));
    assert_eq!(rig.registry.requests().len(), 2);
}

#[tokio::test]
async fn when_a_limit_ends_pulls_go_on() {
    let rig = Rig::start(Options::default()).await;
    let (_origin, agents) = cluster(&rig, Duration::ZERO).await;
    rig.registry.inject("", 1, Fault::Status { status: 429, retry_after: Some(1) });
    // Shorter than the origin waits anyway: nobody is told.
    let answers = all(&agents, Method::GET, &manifest("v1")).await;
    assert!(answers.iter().all(|answer| answer.digest() == rig.image.manifest));
    let upstream = rig.registry.counters();
    assert_eq!((rig.registry.requests().len(), upstream.manifest_gets), (2, 1));
}
