//! What a manifest warms: metainfo that an origin holds, and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use http::Method;
use shoal_agent::Running;
use shoal_proto::origin::v1 as proto;
use shoal_proto::origin::v1::origin_client::OriginClient;
use shoal_proto::origin::v1::origin_server::{Origin, OriginServer};
use shoal_registry::embedded::{Auth, Options};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::rig::{LOCAL, Rig, blob, eventually, get, manifest, send};

/// Stands before a real origin and counts how it is asked for metainfo.
#[derive(Clone)]
struct Doorman {
    origin: OriginClient<Channel>,
    held_only: Arc<AtomicU32>,
    fetching: Arc<AtomicU32>,
}

#[tonic::async_trait]
impl Origin for Doorman {
    type MetainfoStream = Streaming<proto::MetainfoUpdate>;

    async fn resolve(
        &self,
        request: Request<proto::ResolveRequest>,
    ) -> Result<Response<proto::ResolveResponse>, Status> {
        self.origin.clone().resolve(request).await
    }

    async fn metainfo(
        &self,
        request: Request<proto::MetainfoRequest>,
    ) -> Result<Response<Self::MetainfoStream>, Status> {
        let held_only = request.get_ref().held_only;
        let answer = self.origin.clone().metainfo(request).await;
        if held_only { &self.held_only } else { &self.fetching }.fetch_add(1, Relaxed);
        answer
    }

    async fn authorize(
        &self,
        request: Request<proto::AuthorizeRequest>,
    ) -> Result<Response<proto::AuthorizeResponse>, Status> {
        self.origin.clone().authorize(request).await
    }

    async fn grant(&self, request: Request<proto::GrantRequest>) -> Result<Response<proto::GrantResponse>, Status> {
        self.origin.clone().grant(request).await
    }
}

impl Doorman {
    /// Listens until `shutdown`.
    async fn before(origin: SocketAddr, shutdown: CancellationToken) -> (Self, String) {
        let origin = OriginClient::connect(format!("http://{origin}")).await.unwrap();
        let doorman = Self { origin, held_only: Arc::default(), fetching: Arc::default() };
        let incoming = TcpIncoming::bind(LOCAL).unwrap();
        let url = format!("http://{}", incoming.local_addr().unwrap());
        let server = Server::builder().add_service(OriginServer::new(doorman.clone()));
        tokio::spawn(async move { server.serve_with_incoming_shutdown(incoming, shutdown.cancelled()).await });
        (doorman, url)
    }

    fn asked(&self) -> (u32, u32) {
        (self.held_only.load(Relaxed), self.fetching.load(Relaxed))
    }
}

/// An agent whose origin has a doorman, and one that asks the same origin directly.
async fn two_agents(rig: &Rig) -> (Doorman, Running, Running) {
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let (doorman, url) = Doorman::before(origin.grpc_addr, rig.shutdown.child_token()).await;
    let agent = rig.agent(|config| config.origins = vec![url]).await;
    let other = rig.agent(|config| config.origins = vec![format!("http://{}", origin.grpc_addr)]).await;
    (doorman, agent, other)
}

#[tokio::test]
async fn layers_that_the_origin_holds_are_opened_with_the_metainfo_their_manifest_warmed() {
    let rig = Rig::start(Options::default()).await;
    let (doorman, agent, other) = two_agents(&rig).await;
    for layer in &rig.image.layers {
        assert_eq!(get(&other, &blob(layer)).await.digest(), *layer);
    }
    get(&agent, &manifest("v1")).await;
    eventually("both layers are warm", || agent.status().warm == 2).await;
    // The top one first: it starts no other.
    for layer in rig.image.layers.iter().rev() {
        assert_eq!(get(&agent, &blob(layer)).await.digest(), *layer);
    }
    assert_eq!(doorman.asked(), (2, 0));
    assert!(rig.image.layers.iter().all(|layer| rig.sent(layer).0 == 1));
    assert_eq!(agent.status().received.upstream, 0);
}

#[tokio::test]
async fn a_manifest_makes_nobody_fetch_layers_that_the_origin_lacks() {
    let rig = Rig::start(Options::default()).await;
    let (doorman, agent, _other) = two_agents(&rig).await;
    get(&agent, &manifest("v1")).await;
    eventually("the origin was asked for both layers", || doorman.asked() == (2, 0)).await;
    let gets = || rig.image.layers.iter().map(|layer| rig.sent(layer).0).sum::<u64>();
    assert_eq!(gets(), 0);
    let layer = rig.image.layers[1];
    assert_eq!(get(&agent, &blob(&layer)).await.digest(), layer);
    assert_eq!((doorman.asked(), gets()), ((2, 1), 1));
}

#[tokio::test]
async fn warm_metainfo_opens_nothing_to_other_credentials() {
    let auth = Auth::Basic { user: "ann".to_owned(), password: "secret".to_owned() };
    let rig = Rig::start(Options { auth: Some(auth), ..Options::default() }).await;
    let (doorman, agent, other) = two_agents(&rig).await;
    let credentials = [("authorization", "Basic YW5uOnNlY3JldA==")];
    let layer = rig.image.layers[1];
    assert_eq!(send(&other, Method::GET, &blob(&layer), &credentials).await.digest(), layer);
    send(&agent, Method::GET, &manifest("v1"), &credentials).await;
    eventually("the layer is warm", || agent.status().warm == 1).await;
    for stranger in [None, Some("Basic YW5uOndyb25n")] {
        let headers: Vec<_> = stranger.map(|value| ("authorization", value)).into_iter().collect();
        let answer = send(&agent, Method::GET, &blob(&layer), &headers).await;
        assert_eq!(answer.status, 401, "{stranger:?}");
        assert!(answer.header("www-authenticate").starts_with("Basic "));
    }
    assert_eq!((agent.status().blobs, agent.status().received.origin), (0, 0));
    assert_eq!(send(&agent, Method::GET, &blob(&layer), &credentials).await.digest(), layer);
    assert_eq!(doorman.asked().1, 0);
}
