//! Answers on the front's connections until the origin stops.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shoal_identity::{Connection, Identity};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer;
use crate::rooms::Rooms;

/// The most connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// How long a client may take for the head of a request, and how long an idle connection is kept.
const HEAD_PATIENCE: Duration = Duration::from_secs(60);
/// How much of a response waits in memory for a slow client, in bytes.
const WRITE_BUFFER_BYTES: usize = 512 * 1024;

/// Serves until `shutdown` is cancelled, then ends what is being answered.
pub(crate) async fn serve(listener: TcpListener, identity: Identity, rooms: Rooms, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    let mut incoming = pin!(identity.incoming(listener, CONNECTIONS_MAX, shutdown.clone()));
    while let Some(Ok(stream)) = incoming.next().await {
        connections.spawn(connection(stream, rooms.clone(), shutdown.clone()));
    }
    connections.close();
    connections.wait().await;
}

async fn connection(stream: Connection, rooms: Rooms, shutdown: CancellationToken) {
    let service = service_fn(|request| {
        let rooms = rooms.clone();
        async move { Ok::<_, Infallible>(answer(&rooms, request).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE).max_buf_size(WRITE_BUFFER_BYTES);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients leave in the midst of bodies as a matter of course; ours that break off are logged where they broke.
        tracing::debug!(%error, "registry connection ended");
    }
}
