//! What a Pod bound to the node starts: its layers come before the kubelet asks, and no others do.

use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use shoal_agent::Running;
use shoal_kube::{BoundPod, ListedImages, PodImage};
use shoal_meta::Digest;
use shoal_registry::embedded::{Auth, Content, Image, Layer, Options};

use crate::rig::{REGISTRY, Rig, blob, eventually, fetch, get, manifest, noise};

/// A Pod with one image, on a node that lists none.
fn pod(image: &str) -> BoundPod {
    let image = PodImage { name: format!("{REGISTRY}/{image}"), looked_up: false };
    BoundPod { images: vec![image], ..BoundPod::default() }
}

async fn bind(agent: &Running, pod: BoundPod) {
    agent.pods().send(pod).await.unwrap();
}

/// An agent that asks an origin.
async fn agent_of(rig: &Rig) -> Running {
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    rig.agent(|config| config.origins = vec![format!("http://{}", origin.grpc_addr)]).await
}

/// Waits until so many images have ended so.
async fn came_out(agent: &Running, outcome: &str, count: u32) {
    let line = format!("\nshoal_agent_pod_images_total{{outcome=\"{outcome}\"}} {count}\n");
    let url = format!("http://{}/metrics", agent.admin_addr());
    let waited = tokio::time::timeout(crate::rig::DEADLINE, async { while !fetch(&url).await.contains(&line) {} });
    assert!(waited.await.is_ok(), "never came: {line}");
}

async fn comes(agent: &Running, blobs: usize) {
    let is_idle = || agent.status().torrents.is_empty();
    eventually("what is fetched ahead is there", || agent.status().blobs == blobs && is_idle()).await;
}

#[tokio::test]
async fn the_layers_of_a_bound_pod_are_here_before_anybody_asks() {
    let rig = Rig::start(Options::default()).await;
    let agent = agent_of(&rig).await;
    came_out(&agent, "fetched", 0).await;
    bind(&agent, pod("app:v1")).await;
    comes(&agent, 3).await;
    came_out(&agent, "fetched", 1).await;
    let asked = rig.registry.requests().len();
    for digest in rig.image.layers.iter().chain([&rig.image.config]) {
        assert_eq!(rig.sent(digest).0, 1);
        let request = agent.status().received;
        assert_eq!(get(&agent, &blob(digest)).await.digest(), *digest);
        assert_eq!(agent.status().received.origin, request.origin);
    }
    assert_eq!((rig.registry.requests().len(), agent.status().received.upstream), (asked, 0));
}

#[tokio::test]
async fn layers_that_the_runtime_was_given_before_a_restart_are_not_fetched_ahead() {
    let rig = Rig::start(Options::default()).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let origins = vec![format!("http://{}", origin.grpc_addr)];
    let mut store = std::path::PathBuf::new();
    let agent = rig
        .agent(|config| {
            config.origins.clone_from(&origins);
            store.clone_from(&config.store);
        })
        .await;
    let (given, part, config) = (rig.image.layers[0], rig.image.layers[1], rig.image.config);
    assert!(get(&agent, &blob(&given)).await.whole);
    assert!(crate::rig::get_range(&agent, &blob(&part), "bytes=1048000-1048575").await.whole);
    rig.stop_agents();
    agent.stopped().await;
    // The store has evicted everything since.
    fs::remove_dir_all(store.join("blobs")).unwrap();
    fs::remove_dir_all(store.join("partial")).unwrap();
    let agent = rig
        .agent(|config| {
            config.origins = origins;
            config.store = store;
        })
        .await;
    bind(&agent, pod("app:v1")).await;
    came_out(&agent, "fetched", 1).await;
    comes(&agent, 2).await;
    // Had it been left to be fetched, it would be now.
    bind(&agent, pod("app:v1")).await;
    came_out(&agent, "there", 1).await;
    assert_eq!(agent.status().blobs, 2);
    for here in [part, config] {
        assert_eq!(get(&agent, &blob(&here)).await.digest(), here);
    }
    let received = agent.status().received.origin;
    assert_eq!(get(&agent, &blob(&given)).await.digest(), given);
    assert!(agent.status().received.origin > received, "a layer was fetched that the runtime has");
}

#[tokio::test]
async fn a_private_image_costs_two_questions_without_credentials_and_nothing_is_fetched() {
    let auth = Auth::Basic { user: "ann".to_owned(), password: "secret".to_owned() };
    let rig = Rig::start(Options { auth: Some(auth), ..Options::default() }).await;
    let agent = agent_of(&rig).await;
    let credentials = [("authorization", "Basic YW5uOnNlY3JldA==")];
    // Whoever may have it pulls it through the same agent: that opens nothing to the Pod.
    let asked = crate::rig::send(&agent, http::Method::GET, &manifest("v1"), &credentials).await;
    assert_eq!(asked.status, 200);
    let before = rig.registry.requests().len();
    bind(&agent, pod("app:v1")).await;
    came_out(&agent, "private", 1).await;
    let requests = rig.registry.requests();
    assert!(requests[before..].iter().all(|request| request.authorization.is_none()), "{requests:?}");
    assert!(requests.len() <= before + 2, "{requests:?}");
    // What was refused once is not asked for again, and an image of a Pod with secrets never.
    bind(&agent, pod("app:v2")).await;
    bind(&agent, BoundPod { has_secrets: true, ..pod("other:v1") }).await;
    came_out(&agent, "private", 3).await;
    assert_eq!(rig.registry.requests().len(), requests.len());
    assert!(rig.registry.counters().blobs.is_empty());
    assert!(agent.status().torrents.is_empty() && agent.status().blobs == 0);
    assert_eq!(get(&agent, &blob(&rig.image.layers[0])).await.status, 401);
}

/// An index `many` of the image, of one for another architecture and of an attestation; gives the index's digest.
fn add_index(content: &mut Content, image: &Image) -> Digest {
    const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
    let other = content.add_image("app", "other", vec![Layer::tar(noise(9, 1000))]);
    let ours = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        same => same,
    };
    let entry = |digest: &Digest, os: &str, architecture: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": 1,
            "platform": { "os": os, "architecture": architecture },
        })
    };
    let manifests = [
        entry(&other.manifest, "unknown", "unknown"),
        entry(&other.manifest, "linux", "mips"),
        entry(&image.manifest, "linux", ours),
    ];
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests });
    content.add_manifest("app", Some("many"), INDEX_TYPE, Bytes::from(index.to_string()))
}

#[tokio::test]
async fn of_an_index_the_image_of_this_platform_alone_is_fetched_ahead() {
    let rig = Rig::with_content(Options::default(), &[70_000], |content, image| _ = add_index(content, image)).await;
    let agent = agent_of(&rig).await;
    bind(&agent, pod("app:many")).await;
    comes(&agent, 2).await;
    let fetched: Vec<_> = rig.registry.counters().blobs.into_keys().collect();
    let mut expected = vec![rig.image.layers[0], rig.image.config];
    expected.sort();
    assert_eq!(fetched, expected);
}

#[tokio::test]
async fn nothing_is_fetched_ahead_of_an_image_that_the_node_lists() {
    let mut index = None;
    let add = |content: &mut Content, image: &Image| index = Some(add_index(content, image));
    let rig = Rig::with_content(Options::default(), &[70_000], add).await;
    let agent = agent_of(&rig).await;
    let lists = |names: Vec<String>, smallest| Arc::new(ListedImages { names, smallest });
    let listed = lists(vec![format!("{REGISTRY}/app:many")], None);
    bind(&agent, BoundPod { listed: listed.clone(), ..pod("app:many") }).await;
    came_out(&agent, "there", 1).await;
    assert!(rig.registry.requests().is_empty());
    // By the digest of what a tag names: its policy has the kubelet look it up anew.
    let listed = lists(vec![format!("{REGISTRY}/app@{}", index.unwrap())], None);
    let mut looked_up = BoundPod { listed, ..pod("app:many") };
    looked_up.images[0].looked_up = true;
    bind(&agent, looked_up).await;
    came_out(&agent, "there", 2).await;
    // By its size: the list leaves out small ones.
    bind(&agent, BoundPod { listed: lists(Vec::new(), Some(70_000)), ..pod("app:v1") }).await;
    came_out(&agent, "there", 3).await;
    assert!(rig.registry.counters().blobs.is_empty());
    bind(&agent, BoundPod { listed: lists(Vec::new(), Some(69_999)), ..pod("app:v1") }).await;
    comes(&agent, 2).await;
}

#[tokio::test]
async fn nothing_is_asked_for_that_the_runtime_would_not_get_here() {
    let rig = Rig::start(Options::default()).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let agent = rig
        .agent(|config| {
            config.origins = vec![format!("http://{}", origin.grpc_addr)];
            config.prefetch_registries = vec![REGISTRY.to_owned()];
            config.deny = vec![format!("{REGISTRY}/app")];
        })
        .await;
    let image = |name: &str| PodImage { name: name.to_owned(), looked_up: false };
    let images = vec![image("nginx"), image(&format!("{REGISTRY}/app:v1")), image("not an image")];
    bind(&agent, BoundPod { images, ..BoundPod::default() }).await;
    came_out(&agent, "excluded", 2).await;
    came_out(&agent, "failed", 1).await;
    assert!(rig.registry.requests().is_empty());
}
