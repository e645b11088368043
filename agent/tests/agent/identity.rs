//! A whole cluster with certificates: what parts say to each other is for parts alone, each in its role.

use std::path::Path;

use http::StatusCode;
use shoal_agent::Running;
use shoal_identity::{Identity, Part, endpoint, issue};
use shoal_proto::origin::v1::origin_client::OriginClient;
use shoal_proto::origin::v1::{GrantRequest, ResolveRequest};
use shoal_proto::tracker::v1::tracker_client::TrackerClient;
use shoal_proto::tracker::v1::{AnnounceRequest, Peer, Role};
use shoal_registry::embedded::Options;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;

use crate::rig::{DEADLINE, REGISTRY, Rig, blob, eventually, get};

/// A channel to a part, as a part with certificates would make it.
fn channel(certificates: &Path, me: Part, to: Part, address: std::net::SocketAddr) -> Channel {
    let identity = Identity::start(Some(certificates), me, CancellationToken::new()).unwrap();
    identity.channel(&endpoint(&format!("http://{address}")).unwrap(), to)
}

fn announce(role: Role) -> AnnounceRequest {
    let peer = Peer { id: vec![9; 16], address: "10.0.0.9:5051".into(), role: role.into(), ..Peer::default() };
    AnnounceRequest { peer: Some(peer), full: true, torrents: Vec::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_with_certificates_pull_as_ever_and_everyone_else_is_refused() {
    let rig = Rig::with_layers(Options::default(), &[4 << 20]).await;
    let scratch = tempfile::tempdir().unwrap();
    issue(scratch.path()).unwrap();
    let of = |part: &str| Some(scratch.path().join(part));
    let tracker = rig.tracker_with(rig.shutdown.child_token(), |config| config.certificates = of("tracker")).await;
    let trackers = vec![format!("http://{}", tracker.addr)];
    let adapt = |config: &mut shoal_origin::Config| {
        (config.certificates, config.trackers) = (of("origin"), trackers.clone());
    };
    let origin = rig.origin_with(rig.shutdown.child_token(), adapt).await;
    let origins = vec![format!("http://{}", origin.grpc_addr)];
    let adapt = |config: &mut shoal_agent::Config| {
        config.certificates = of("agent");
        (config.origins, config.trackers) = (origins.clone(), trackers.clone());
    };
    let (first, second) = (rig.agent(adapt).await, rig.agent(adapt).await);
    let layer = rig.image.layers[0];
    for agent in [&first, &second] {
        let answer = get(agent, &blob(&layer)).await;
        assert_eq!((answer.status, answer.digest()), (StatusCode::OK, layer));
        assert_eq!((agent.status().transport, agent.status().received.upstream), ("mutual TLS", 0));
    }
    assert_eq!(rig.sent(&layer), (1, 4 << 20));

    // A part may do what its role does, and no more.
    let agent = &scratch.path().join("agent");
    let mut as_agent = OriginClient::new(channel(agent, Part::Agent, Part::Origin, origin.grpc_addr));
    let access = Some(shoal_proto::access(REGISTRY, "app", None));
    let resolve = ResolveRequest { access, reference: "v1".into(), head: true, accept: Vec::new() };
    assert!(as_agent.resolve(resolve.clone()).await.is_ok());
    let refused = as_agent.grant(GrantRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), "only a caller with a certificate for tracker.shoal may ask this");
    let mut as_agent = TrackerClient::new(channel(agent, Part::Agent, Part::Tracker, tracker.addr));
    assert!(as_agent.announce(announce(Role::Agent)).await.is_ok());
    assert_eq!(as_agent.announce(announce(Role::Origin)).await.unwrap_err().code(), Code::PermissionDenied);
    // Where a tracker is meant to be and an agent's certificate is shown, nobody talks.
    let mut misled = TrackerClient::new(channel(agent, Part::Agent, Part::Tracker, first.peer().address));
    assert!(misled.announce(announce(Role::Agent)).await.is_err());

    // Without certificates there is no port to read from but those of health and metrics.
    let mut plain = OriginClient::new(endpoint(&origins[0]).unwrap().connect_lazy());
    assert!(tokio::time::timeout(DEADLINE, plain.resolve(resolve)).await.unwrap().is_err());
    let ports = [origin.grpc_addr, origin.http_addr, origin.peer.address, tracker.addr, first.peer().address];
    for address in ports {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET /v2/app/manifests/v1?ns={REGISTRY} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.len() < 10, "{address} said more than an alert: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_certificates_are_not_those_of_the_others_pulls_from_upstream() {
    let rig = Rig::with_layers(Options::default(), &[1 << 20]).await;
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    issue(ours.path()).unwrap();
    issue(theirs.path()).unwrap();
    let adapt = |config: &mut shoal_origin::Config| config.certificates = Some(theirs.path().join("origin"));
    let origin = rig.origin_with(rig.shutdown.child_token(), adapt).await;
    let agent = rig.agent(|config| {
        config.certificates = Some(ours.path().join("agent"));
        config.origins = vec![format!("http://{}", origin.grpc_addr)];
    });
    let (agent, layer) = (agent.await, rig.image.layers[0]);
    assert_eq!(get(&agent, &blob(&layer)).await.digest(), layer);
    assert_eq!((agent.status().received.upstream, agent.status().origin_up), (1 << 20, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_origin_is_gone_peers_tell_what_it_said_and_sealed() {
    // Slow enough that what comes from there is not all before a peer can tell what the pieces are.
    let rig = Rig::with_layers(Options { rate: Some(2 << 20), ..Options::default() }, &[4 << 20]).await;
    let scratch = tempfile::tempdir().unwrap();
    issue(scratch.path()).unwrap();
    let of = |part: &str| Some(scratch.path().join(part));
    let tracker = rig.tracker_with(rig.shutdown.child_token(), |config| config.certificates = of("tracker")).await;
    let trackers = vec![format!("http://{}", tracker.addr)];
    let stop = CancellationToken::new();
    let adapt = |config: &mut shoal_origin::Config| {
        (config.certificates, config.trackers) = (of("origin"), trackers.clone());
    };
    let origin = rig.origin_with(stop.clone(), adapt).await;
    let origins = vec![format!("http://{}", origin.grpc_addr)];
    let adapt = |config: &mut shoal_agent::Config| {
        config.certificates = of("agent");
        // Long enough for a busy machine: nothing may come from upstream.
        config.stall_timeout = shoal_kit::HumanDuration::from_secs(30);
        (config.origins, config.trackers) = (origins.clone(), trackers.clone());
    };
    let (first, second) = (rig.agent(adapt).await, rig.agent(adapt).await);
    let layer = rig.image.layers[0];
    assert_eq!(get(&first, &blob(&layer)).await.digest(), layer);
    let hex = layer.hex();
    let seal =
        |agent: &Running| agent.status().store.join("blobs/sha256").join(&hex[..2]).join(&hex).join("seal").exists();
    eventually("the seal came", || seal(&first)).await;
    stop.cancel();
    origin.stopped().await;
    assert_eq!(get(&second, &blob(&layer)).await.digest(), layer);
    assert!(second.status().received.same_zone > 0, "{:?}", second.status().received);
    eventually("the seal came from a peer", || seal(&second)).await;
}
