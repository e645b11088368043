//! The admin server every part runs: `/healthz`, `/readyz`, `/metrics` (Prometheus text format) and `/status` (JSON).
//!
//! Kubelets, Prometheus and people call it. It knows the part only through the closures in [`AdminParts`]. It is
//! bounded: [`CONNECTIONS_MAX`] connections at a time, one request on each, [`CONNECTION_TIMEOUT`] for all of it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::incoming::Incoming;

/// How many connections are served at a time; further ones wait to be accepted.
pub const CONNECTIONS_MAX: usize = 64;
/// How long one connection may take, from its first byte to the last of its answer.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// What the admin server asks the part.
pub struct AdminParts {
    /// The part's metrics.
    pub registry: prometheus::Registry,
    /// Whether the part can serve; the error says why not, in words for an operator.
    pub ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// The part's state for people and tools.
    pub status: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
}

impl fmt::Debug for AdminParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminParts")
    }
}

/// A running admin server. Dropping it does not stop it; its shutdown token does.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    server: JoinHandle<()>,
}

/// Says that the admin server cannot listen. The operator's fault: another program has the port.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen} for health and metrics")]
pub struct AdminError {
    /// The address configured.
    pub listen: SocketAddr,
    /// Why not.
    #[source]
    pub source: std::io::Error,
}

/// Listens on `listen` and serves until `shutdown` is cancelled. Port 0 takes a free one; see [`Admin::address`].
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve_admin(
    listen: SocketAddr,
    parts: AdminParts,
    shutdown: CancellationToken,
) -> Result<Admin, AdminError> {
    let failed = |source| AdminError { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let server = tokio::spawn(serve_router(listener, router(parts), shutdown));
    Ok(Admin { address, server })
}

impl Admin {
    /// Where it listens, with the real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until it has shut down and answered what was asked before; at most [`CONNECTION_TIMEOUT`].
    pub async fn stopped(self) {
        if let Err(error) = self.server.await {
            tracing::error!(%error, "admin server failed");
        }
    }
}

fn router(parts: AdminParts) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(async |State(parts): State<Arc<AdminParts>>| Json((parts.status)())))
        .with_state(Arc::new(parts))
}

#[allow(clippy::unused_async, reason = "axum handlers are async")]
async fn ready(State(parts): State<Arc<AdminParts>>) -> (StatusCode, String) {
    match (parts.ready)() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}

#[allow(clippy::unused_async, reason = "axum handlers are async")]
async fn metrics(State(parts): State<Arc<AdminParts>>) -> Response {
    match prometheus::TextEncoder::new().encode_to_string(&parts.registry.gather()) {
        Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Serves a few callers until `shutdown` is cancelled: [`CONNECTIONS_MAX`] connections at a time, one request on each,
/// [`CONNECTION_TIMEOUT`] for all of it.
pub async fn serve_router(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    let mut incoming = Incoming::new(listener, CONNECTIONS_MAX, shutdown);
    while let Some((stream, _, place)) = incoming.next().await {
        let served = serve(stream, router.clone());
        connections.spawn(async move {
            served.await;
            drop(place);
        });
    }
    connections.close();
    connections.wait().await;
}

/// Answers one request. Without keep-alive an idle client cannot hold one of the few connections.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin connection failed"),
        Err(_) => tracing::debug!("admin connection took too long"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::Metrics;

    async fn start(ready: Arc<AtomicBool>) -> (Admin, CancellationToken) {
        let metrics = Metrics::new("agent");
        metrics.counter("requests_total", "Requests.").inc();
        let parts = AdminParts {
            registry: metrics.registry(),
            ready: Box::new(move || ready.load(Ordering::Relaxed).then_some(()).ok_or("the store is opening".into())),
            status: Box::new(|| serde_json::json!({ "torrents": 3 })),
        };
        let shutdown = CancellationToken::new();
        let admin = serve_admin("127.0.0.1:0".parse().unwrap(), parts, shutdown.clone()).await.unwrap();
        (admin, shutdown)
    }

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn health_is_independent_of_readiness() {
        let ready = Arc::new(AtomicBool::new(false));
        let (admin, _shutdown) = start(ready.clone()).await;
        assert!(ask(admin.address(), "/healthz").await.starts_with("HTTP/1.1 200"));
        let answer = ask(admin.address(), "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("the store is opening\n"), "{answer}");
        ready.store(true, Ordering::Relaxed);
        assert!(ask(admin.address(), "/readyz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn metrics_and_status_are_served() {
        let (admin, _shutdown) = start(Arc::default()).await;
        let answer = ask(admin.address(), "/metrics").await;
        assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.contains("\nshoal_agent_requests_total 1\n"), "{answer}");
        let answer = ask(admin.address(), "/status").await;
        assert!(answer.ends_with("{\"torrents\":3}"), "{answer}");
    }

    #[tokio::test]
    async fn an_unknown_path_is_not_found() {
        let (admin, _shutdown) = start(Arc::default()).await;
        assert!(ask(admin.address(), "/v2/").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_cut_off() {
        let (_silent, stream) = tokio::io::duplex(64);
        let began = tokio::time::Instant::now();
        serve(stream, Router::new()).await;
        assert_eq!(began.elapsed(), CONNECTION_TIMEOUT);
    }

    #[tokio::test]
    async fn a_cancelled_token_stops_the_server() {
        let (admin, shutdown) = start(Arc::default()).await;
        let address = admin.address();
        shutdown.cancel();
        tokio::time::timeout(CONNECTION_TIMEOUT, admin.stopped()).await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let (admin, _shutdown) = start(Arc::default()).await;
        let parts = AdminParts {
            registry: Metrics::new("agent").registry(),
            ready: Box::new(|| Ok(())),
            status: Box::new(|| serde_json::Value::Null),
        };
        let error = serve_admin(admin.address(), parts, CancellationToken::new()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot listen on {} for health and metrics", admin.address()));
    }
}
