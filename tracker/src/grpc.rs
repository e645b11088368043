//! The gRPC server: paths to calls of the service. It is written by hand because tonic's generated server can only answer
//! with the generated messages, and the service's answers are encoded in part already.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::task::{Context, Poll};

use prost::Message;
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
                let now = tokio::time::Instant::now().into_std();
                service.answer(now, request.remote_addr().map(|address| address.ip()), request.get_ref())
            })),
            Some("/Leave") => Box::pin(unary(request, move |request| service.leave(request.get_ref()))),
            Some(_) | None => Box::pin(ready(Ok(Status::unimplemented("the tracker has no such method").into_http()))),
        }
    }
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
