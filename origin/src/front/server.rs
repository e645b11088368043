//! Accepts the front's connections and answers on them until the origin stops.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
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
/// The pause after a failed accept, as when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is cancelled, then ends what is being answered.
pub(crate) async fn serve(listener: TcpListener, rooms: Rooms, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let next = async || {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        (permit, listener.accept().await)
    };
    while let Some((permit, accepted)) = shutdown.run_until_cancelled(next()).await {
        match accepted {
            Ok((stream, _)) => {
                let served = connection(stream, rooms.clone(), shutdown.clone());
                connections.spawn(async move {
                    served.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "registry front cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, rooms: Rooms, shutdown: CancellationToken) {
    let _ = stream.set_nodelay(true);
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
