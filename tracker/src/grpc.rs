//! The gRPC server: paths to calls of the service. It is written by hand because tonic's generated server can only answer
//! with the generated messages, and the service's answers are encoded in part already.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::task::{Context, Poll};

use prost::Message;
use shoal_identity::{Caller, Part, only};
use shoal_proto::tracker::v1 as proto;
use shoal_proto::tracker::v1::AnnounceRequest;
use shoal_proto::tracker::v1::tracker_server::SERVICE_NAME;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, http};
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::service::{REQUEST_LENGTH_MAX, Service};

/// `shoal.tracker.v1.Tracker` for tonic's router.
#[derive(Clone, Debug)]
pub(crate) struct Tracker(pub(crate) Arc<Service>);

impl NamedService for Tracker {
    const NAME: &'static str = SERVICE_NAME;
}

impl tonic::codegen::Service<http::Request<Body>> for Tracker {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.0.clone();
        match request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME)) {
            Some("/Announce") => Box::pin(unary(request, move |request| {
                only(&request, &announcer(request.get_ref()))?;
                let from = Caller::of(&request).map(|caller| caller.address.ip());
                service.answer(tokio::time::Instant::now().into_std(), from, request.get_ref())
            })),
            Some("/Leave") => Box::pin(unary(request, move |request| {
                only(&request, &PEERS)?;
                service.leave(request.get_ref())
            })),
            Some(_) | None => Box::pin(ready(Ok(Status::unimplemented("the tracker has no such method").into_http()))),
        }
    }
}

/// Those who have blobs.
const PEERS: [Part; 2] = [Part::Agent, Part::Origin];

/// Who may announce this: what the peer says it is. Nobody is handed out as an origin who is none.
fn announcer(request: &AnnounceRequest) -> [Part; 1] {
    let says = request.peer.as_ref().map(proto::Peer::role);
    [if says == Some(proto::Role::Origin) { Part::Origin } else { Part::Agent }]
}

async fn unary<Q, A>(
    request: http::Request<Body>,
    answer: impl Fn(Request<Q>) -> Result<A, Status>,
) -> Result<http::Response<Body>, Infallible>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
{
    let codec = ProstCodec::<A, Q>::default();
    let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(REQUEST_LENGTH_MAX), None);
    let answer = tower::service_fn(|request| ready(answer(request).map(Response::new)));
    Ok(grpc.unary(answer, request).await)
}
