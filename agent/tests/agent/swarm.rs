//! Several agents with a real origin and tracker: one copy leaves the registry, and the rest is swapped.

use std::time::Duration;

use shoal_agent::Running;
use shoal_registry::embedded::Options;
use tokio_util::sync::CancellationToken;

use crate::rig::{Rig, blob, eventually, get, manifest};

#[tokio::test]
async fn agents_that_pull_together_take_one_copy_from_upstream() {
    let rig = Rig::with_layers(Options::default(), &[8 << 20]).await;
    let tracker = rig.tracker(rig.shutdown.child_token()).await;
    let trackers = vec![format!("http://{}", tracker.addr)];
    let origin = rig.origin(rig.shutdown.child_token(), trackers.clone()).await;
    let origins = vec![format!("http://{}", origin.grpc_addr)];
    let mut agents = Vec::new();
    for _ in 0..3 {
        let (origins, trackers) = (origins.clone(), trackers.clone());
        agents.push(rig.agent(|config| (config.origins, config.trackers) = (origins, trackers)).await);
    }
    let layer = rig.image.layers[0];
    let path = blob(&layer);
    let answers = futures_util::future::join_all(agents.iter().map(|agent| get(agent, &path))).await;
    assert!(answers.iter().all(|answer| answer.whole && answer.digest() == layer));
    assert_eq!(rig.sent(&layer), (1, 8 << 20));
    assert!(agents.iter().all(|agent| agent.status().received.upstream == 0));
}

#[tokio::test]
async fn the_body_flows_while_the_origin_is_still_fetching() {
    let rig = Rig::with_layers(Options { rate: Some(4 << 20), ..Options::default() }, &[16 << 20]).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let agent = rig.agent(|config| config.origins = vec![format!("http://{}", origin.grpc_addr)]).await;
    let layer = rig.image.layers[0];
    let first = crate::rig::first_bytes(&agent, &blob(&layer)).await;
    let arrived = rig.sent(&layer).1;
    assert!(first > 0);
    assert!(arrived < 4 << 20, "{arrived} bytes had left the registry when the first byte came");
}

#[tokio::test]
async fn an_origin_that_stops_sees_the_blob_under_way_to_its_end() {
    let rig = Rig::with_layers(Options { rate: Some(4 << 20), ..Options::default() }, &[8 << 20]).await;
    let stop = CancellationToken::new();
    let origin = rig.origin(stop.clone(), Vec::new()).await;
    let agent = rig.agent(|config| config.origins = vec![format!("http://{}", origin.grpc_addr)]).await;
    let end = async {
        stop.cancel();
        origin.stopped().await;
    };
    pulls_one_copy_while(&rig, &agent, end).await;
}

#[tokio::test]
async fn an_agent_that_stops_sees_the_answer_under_way_to_its_end_with_the_swarm() {
    let rig = Rig::with_layers(Options { rate: Some(4 << 20), ..Options::default() }, &[8 << 20]).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let agent = rig.agent(|config| config.origins = vec![format!("http://{}", origin.grpc_addr)]).await;
    let end = async {
        rig.stop_agents();
        let connects = || std::net::TcpStream::connect(agent.front_addr()).is_ok();
        eventually("new clients go to their next host", || !connects()).await;
        assert!(agent.status().received.origin < 8 << 20, "it has to end before the blob does");
    };
    pulls_one_copy_while(&rig, &agent, end).await;
    agent.stopped().await;
}

/// Pulls a layer of 8 MiB, while something happens in the midst of it, and shows that one copy left the registry, for the origin.
async fn pulls_one_copy_while(rig: &Rig, agent: &Running, happens: impl Future<Output = ()>) {
    let layer = rig.image.layers[0];
    let path = blob(&layer);
    let midst = async {
        eventually("some pieces came", || agent.status().received.origin > 1 << 20).await;
        happens.await;
    };
    let (answer, ()) = tokio::join!(get(agent, &path), midst);
    assert!(answer.whole && answer.digest() == layer);
    assert_eq!(agent.status().received.upstream, 0);
    assert_eq!(rig.sent(&layer), (1, 8 << 20));
}

#[tokio::test]
async fn the_first_layer_asked_for_starts_those_above_and_none_below() {
    let rig = Rig::with_layers(Options::default(), &[1 << 20, 2 << 20, 3 << 20]).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let agent = rig.agent(|config| config.origins = vec![format!("http://{}", origin.grpc_addr)]).await;
    get(&agent, &manifest("v1")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(rig.registry.counters().blob_bytes(), 0, "a manifest alone moves no payload");
    let [below, asked, above] = rig.image.layers[..] else { panic!("three layers") };
    assert_eq!(get(&agent, &blob(&asked)).await.digest(), asked);
    eventually("the layer above is whole", || agent.status().blobs == 2).await;
    assert_eq!((rig.sent(&below).0, rig.sent(&above).0), (0, 1));
}

#[tokio::test]
async fn an_agent_that_holds_a_blob_serves_its_neighbour_without_the_origin() {
    let rig = Rig::with_layers(Options::default(), &[4 << 20]).await;
    let tracker = rig.tracker(rig.shutdown.child_token()).await;
    let trackers = vec![format!("http://{}", tracker.addr)];
    let stop = CancellationToken::new();
    let origin = rig.origin(stop.clone(), trackers.clone()).await;
    let origins = vec![format!("http://{}", origin.grpc_addr)];
    let adapt = |config: &mut shoal_agent::Config| {
        (config.origins, config.trackers) = (origins.clone(), trackers.clone());
    };
    let (first, second) = (rig.agent(adapt).await, rig.agent(adapt).await);
    let layer = rig.image.layers[0];
    assert_eq!(get(&first, &blob(&layer)).await.digest(), layer);
    eventually("the blob is whole", || first.status().blobs == 1).await;
    assert_eq!(get(&second, &blob(&layer)).await.digest(), layer);
    assert_eq!(rig.sent(&layer).0, 1);
    let received = second.status().received;
    assert_eq!(received.same_zone + received.origin, 4 << 20);
    stop.cancel();
    origin.stopped().await;
}

#[tokio::test]
async fn an_origin_that_comes_back_in_mid_blob_takes_over_from_upstream() {
    let rig = Rig::with_layers(Options { rate: Some(4 << 20), ..Options::default() }, &[16 << 20]).await;
    let stop = CancellationToken::new();
    let origin = rig.origin(stop.clone(), Vec::new()).await;
    let address = origin.grpc_addr;
    let other = rig.agent(|config| config.origins = vec![format!("http://{address}")]).await;
    get(&other, &blob(&rig.image.layers[0])).await;
    stop.cancel();
    origin.stopped().await;
    let agent = rig.agent(|config| config.origins = vec![format!("http://{address}")]).await;
    let layer = rig.image.layers[0];
    let path = blob(&layer);
    let revive = async {
        eventually("upstream is asked directly", || agent.status().received.upstream > 0).await;
        rig.origin_at(address, rig.shutdown.child_token(), Vec::new()).await
    };
    let (answer, _origin) = tokio::join!(get(&agent, &path), revive);
    assert!(answer.whole && answer.digest() == layer);
    assert!(agent.status().received.origin > 0);
}
