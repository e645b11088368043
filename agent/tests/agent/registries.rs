//! What an agent gives when its configuration says what may be served, or that upstream is not asked.

use http::Method;
use shoal_agent::Running;
use shoal_registry::embedded::{EmbeddedRegistry, Fault, Options};
use tokio_util::sync::CancellationToken;

use crate::rig::{Answer, LOCAL, REGISTRY, Rig, answered, blob, eventually, get, get_range, manifest, send};

/// The code and the message of an error.
fn said(answer: &Answer) -> (u16, String, String) {
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let text = |key: &str| body["errors"][0][key].as_str().unwrap().to_owned();
    (answer.status.as_u16(), text("code"), text("message"))
}

/// Refused by this rule, and upstream has not heard of it.
async fn assert_excluded(rig: &Rig, agent: &Running, paths: &[String], rule: &str) {
    for path in paths {
        let (status, code, message) = said(&get(agent, path).await);
        assert_eq!((status, code.as_str()), (403, "DENIED"), "{path}");
        assert!(message.contains(rule), "{message}");
    }
    assert_eq!(rig.registry.requests(), []);
}

#[tokio::test]
async fn an_excluded_repository_is_refused_with_its_rule_and_nobody_is_asked() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|config| config.deny = vec![format!("{REGISTRY}/app")]).await;
    let tags = format!("/v2/app/tags/list?ns={REGISTRY}");
    let rule = "registry.test/app is in deny, by \"registry.test/app\"";
    assert_excluded(&rig, &agent, &[manifest("v1"), blob(&rig.image.layers[0]), tags], rule).await;
}

#[tokio::test]
async fn what_the_origin_excludes_the_agent_does_not_fetch_past_it() {
    let rig = Rig::start(Options::default()).await;
    let deny = |config: &mut shoal_origin::Config| config.deny = vec![REGISTRY.to_owned()];
    let origin = rig.origin_with(rig.shutdown.clone(), deny).await;
    let agent = rig.agent(|config| config.origins = vec![format!("http://{}", origin.grpc_addr)]).await;
    assert_excluded(&rig, &agent, &[manifest("v1"), blob(&rig.image.layers[0])], "is in deny").await;
}

#[tokio::test]
async fn offline_what_the_store_holds_is_served_and_anything_else_is_404_at_once() {
    let rig = Rig::start(Options::default()).await;
    let store = tempfile::tempdir().unwrap();
    let online = rig.agent(|config| config.store = store.path().to_owned()).await;
    let [held, other] = [rig.image.layers[0], rig.image.layers[1]];
    assert_eq!(get(&online, &blob(&held)).await.digest(), held);
    eventually("the blob is whole", || online.status().blobs == 1).await;
    rig.stop_agents();
    online.stopped().await;
    let asked = rig.registry.requests().len();

    let agent = rig.agent(|config| (config.store, config.offline) = (store.path().to_owned(), true)).await;
    assert_eq!(get(&agent, &blob(&held)).await.digest(), held);
    for path in [blob(&other), manifest("v1")] {
        let (status, _, message) = said(&get(&agent, &path).await);
        assert!(status == 404 && message.contains("offline"), "{path}: {status} {message}");
    }
    assert_eq!(send(&agent, Method::HEAD, &blob(&other), &[]).await.status, 404);
    assert_eq!(rig.registry.requests().len(), asked);
}

#[tokio::test]
async fn offline_an_image_that_the_origin_holds_is_pulled_through_the_swarm() {
    let rig = Rig::start(Options::default()).await;
    let first = CancellationToken::new();
    let online = rig.origin(first.clone(), Vec::new()).await;
    let filling = rig.agent(|config| config.origins = vec![format!("http://{}", online.grpc_addr)]).await;
    assert_eq!(get(&filling, &manifest("v1")).await.digest(), rig.image.manifest);
    for layer in &rig.image.layers {
        assert_eq!(get(&filling, &blob(layer)).await.digest(), *layer);
    }
    eventually("the origin has all of it", || online.counters().blobs_ingested == 2).await;
    rig.stop_agents();
    filling.stopped().await;
    first.cancel();
    online.stopped().await;
    let asked = rig.registry.requests().len();

    let origin = rig.origin_with(rig.shutdown.clone(), |config| config.offline = true).await;
    let agent = rig.agent(|config| {
        config.origins = vec![format!("http://{}", origin.grpc_addr)];
        config.offline = true;
    });
    let agent = agent.await;
    let layer = rig.image.layers[0];
    assert_eq!(send(&agent, Method::HEAD, &manifest("v1"), &[]).await.status, 200);
    assert_eq!(get(&agent, &manifest("v1")).await.digest(), rig.image.manifest);
    let length = rig.content(&layer).len().to_string();
    assert_eq!(send(&agent, Method::HEAD, &blob(&layer), &[]).await.header("content-length"), length);
    // A small range does not go past the swarm either.
    assert_eq!(get_range(&agent, &blob(&layer), "bytes=5-9").await.body, rig.content(&layer).slice(5..10));
    for layer in &rig.image.layers {
        assert_eq!(get(&agent, &blob(layer)).await.digest(), *layer);
    }
    assert_eq!(rig.registry.requests().len(), asked);
}

#[tokio::test]
async fn a_mirror_that_gives_wrong_bytes_is_found_out_and_the_blob_comes_from_elsewhere() {
    let rig = Rig::start(Options::default()).await;
    let mirror = EmbeddedRegistry::start(LOCAL, rig.registry.content().clone(), Options::default()).await.unwrap();
    mirror.inject("GET /v2/app/blobs/", u32::MAX, Fault::Corrupt);
    let mut registries = rig.registries();
    registries.get_mut(REGISTRY).unwrap().mirrors = vec![mirror.url()];
    let origin = rig.origin_with(rig.shutdown.clone(), |config| config.registries = registries.clone()).await;
    let agent = rig.agent(|config| {
        config.origins = vec![format!("http://{}", origin.grpc_addr)];
        config.registries = registries;
    });
    let agent = agent.await;
    let layer = rig.image.layers[1];
    let spoilt = get(&agent, &blob(&layer)).await;
    assert!(!spoilt.whole || spoilt.digest() != layer, "{:?}", spoilt.status);
    let path = blob(&layer);
    answered(async || get(&agent, &path).await, |answer| answer.whole && answer.digest() == layer).await;
    eventually("the good copy is kept", || agent.status().blobs == 1).await;
    assert_eq!(rig.sent(&layer).0, 1);
}
