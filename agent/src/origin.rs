//! The client of the origins: which one owns a digest, failover to the next, and upstream's own words carried back.
//!
//! Called by the rooms that need metainfo, manifests or leave to serve. It does not go upstream, but lets the client of
//! upstream know when a registry told an origin to leave it alone; it knows no HTTP.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use prost::Message as _;
use shoal_identity::{Identity, Part};
use shoal_kit::Rejected;
use shoal_meta::{Digest, Geometry, PeerInfo, PieceHash, Server, rendezvous_order};
use shoal_proto::UPSTREAM_ERROR_METADATA;
use shoal_proto::origin::v1::metainfo_update::Update as Wire;
use shoal_proto::origin::v1::origin_client::OriginClient;
use shoal_proto::origin::v1::{self as proto, MetainfoUpdate};
use shoal_registry::upstream::{ErrorParts, Upstream};
use shoal_registry::{Access, MANIFEST_LENGTH_MAX, Reference, UpstreamError};
use tokio::sync::watch;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// How long a connection to an origin may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A call in flight pings a silent origin this often, and gives the connection up after as long again without an answer.
const KEEP_ALIVE: Duration = Duration::from_millis(1_500);
/// How long an origin that answers pings may take for a call, or to begin a stream.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an answer is waited for before upstream is asked as well. A dead origin has been found out by its pings before;
/// one that lives waits for upstream itself, and if every node went there beside it, it would be the busier.
pub(crate) const PATIENCE: Duration = Duration::from_millis(3_200);
/// How long an unreachable origin is left alone at first; it doubles with each failure.
const AWAY_FIRST: Duration = Duration::from_secs(1);
/// The longest an unreachable origin is left alone.
const AWAY_MAX: Duration = Duration::from_secs(30);

/// Why the origins did not give what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum OriginError {
    /// The origin asked upstream, and this is what upstream said.
    #[error("the origin reports that {0}")]
    Upstream(UpstreamError),
    /// No origin answered, or what it said made no sense. The origin's fault; retryable, or go upstream directly.
    #[error("no origin can be reached")]
    Away,
}

/// Whether upstream or the configuration decided, rather than failed. 429 is a decision: the cluster heeds it as a whole. An
/// origin that is offline has asked nobody.
pub(crate) fn is_verdict(error: &UpstreamError) -> bool {
    match error {
        UpstreamError::Unauthorized { .. }
        | UpstreamError::Denied { .. }
        | UpstreamError::Excluded { .. }
        | UpstreamError::NotFound { .. }
        | UpstreamError::RateLimited { .. } => true,
        UpstreamError::Offline { .. }
        | UpstreamError::Server { .. }
        | UpstreamError::Refused { .. }
        | UpstreamError::Transport(_)
        | UpstreamError::Timeout { .. }
        | UpstreamError::Protocol(_)
        | UpstreamError::TooLong { .. }
        | UpstreamError::Request(_) => false,
    }
}

/// The origins of the cluster, as they come and go; perhaps none.
#[derive(Debug)]
pub(crate) struct Origins {
    known: Mutex<Known>,
    identity: Identity,
    upstream: Upstream,
}

#[derive(Debug)]
struct Known {
    servers: watch::Receiver<Vec<Server>>,
    endpoints: Vec<Arc<Endpoint>>,
}

#[derive(Debug)]
struct Endpoint {
    server: Server,
    client: OriginClient<Channel>,
    health: Mutex<Health>,
}

/// An endpoint that failed is left alone until `resume_at`; the first call after that probes it while others stay away.
#[derive(Debug, Default)]
struct Health {
    failures: u32,
    resume_at: Option<Instant>,
}

/// A blob's metainfo as an origin streams it.
#[derive(Debug)]
pub(crate) struct Feed {
    /// The blob's cut; none of an empty blob, which has no pieces.
    pub(crate) geometry: Option<Geometry>,
    /// The origin as a peer.
    pub(crate) peer: Option<PeerInfo>,
    updates: Updates,
}

#[derive(Debug)]
enum Updates {
    /// As they come from the origin.
    Streamed(Box<Streaming<MetainfoUpdate>>),
    /// All of them are at hand: every hash, until it is taken, and the seal.
    Gathered(Option<Vec<PieceHash>>, Vec<u8>),
}

/// What a [`Feed`] brings after its header.
#[derive(Debug)]
pub(crate) enum Update {
    /// The hashes of pieces `first..`.
    Hashes {
        /// The first piece.
        first: u32,
        /// One hash for each piece.
        hashes: Vec<PieceHash>,
    },
    /// The origin has checked the whole blob. Its seal on all of this; empty without certificates.
    Complete(Vec<u8>),
}

impl Origins {
    /// Prepares connections; none is made before the first call. Needs a tokio runtime.
    ///
    /// # Errors
    /// When an address is not `http://host:port`.
    pub(crate) fn new(
        mut servers: watch::Receiver<Vec<Server>>,
        identity: Identity,
        upstream: Upstream,
    ) -> Result<Self, Rejected> {
        let refused = |url| Rejected::new("origins", url, "addresses such as http://origin.shoal:7500");
        let endpoint = |server| Endpoint::new(server, &identity).map(Arc::new).ok_or_else(|| refused(&server.url));
        let endpoints = servers.borrow_and_update().iter().map(endpoint).collect::<Result<_, _>>()?;
        Ok(Self { known: Mutex::new(Known { servers, endpoints }), identity, upstream })
    }

    /// The origins that there are now. What is known of those that stay is kept.
    fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        let mut known = self.known.lock().expect("nothing panics while it holds this lock");
        let Known { servers, endpoints } = &mut *known;
        if servers.has_changed().unwrap_or(false) {
            let before = std::mem::take(endpoints);
            endpoints.extend(servers.borrow_and_update().iter().filter_map(|server| {
                let kept = before.iter().find(|endpoint| endpoint.server == *server).cloned();
                kept.or_else(|| Endpoint::new(server, &self.identity).map(Arc::new))
            }));
        }
        endpoints.clone()
    }

    /// Origins known.
    pub(crate) fn count(&self) -> usize {
        self.endpoints().len()
    }

    /// Whether an origin is known and thought to be up.
    pub(crate) fn is_up(&self) -> bool {
        self.endpoints().iter().any(|endpoint| endpoint.lock().resume_at.is_none())
    }

    /// Asks for a manifest.
    pub(crate) async fn resolve(
        &self,
        access: &Access,
        reference: &Reference,
        head: bool,
        accept: &[String],
    ) -> Result<proto::ResolveResponse, OriginError> {
        let request = proto::ResolveRequest {
            access: Some(access_to_proto(access)),
            reference: reference.to_string(),
            head,
            accept: accept.to_vec(),
        };
        let key = format!("{}:{reference}", access.repository);
        self.call(access, key.as_bytes(), CALL_TIMEOUT, |mut client| {
            let request = request.clone();
            async move { client.resolve(request).await.map(tonic::Response::into_inner) }
        })
        .await
    }

    /// Asks whether upstream lets this access have a blob; says for how long the answer holds.
    pub(crate) async fn authorize(&self, access: &Access, digest: &Digest) -> Result<Duration, OriginError> {
        let request = proto::AuthorizeRequest { access: Some(access_to_proto(access)), digest: digest.to_string() };
        self.call(access, digest.as_bytes(), PATIENCE, |mut client| {
            let request = request.clone();
            async move {
                let answer = client.authorize(request).await?.into_inner();
                Ok(Duration::from_millis(answer.valid_ms.into()))
            }
        })
        .await
    }

    /// Opens a blob's metainfo from a piece on, and waits for its header. A silent origin is given up by its pings.
    pub(crate) async fn metainfo(&self, access: &Access, digest: &Digest, first: u32) -> Result<Feed, OriginError> {
        let request = metainfo_request(access, digest, first);
        self.call(access, digest.as_bytes(), CALL_TIMEOUT, |client| opened(client, request.clone())).await
    }

    /// Asks how long a blob is; makes the origin fetch nothing.
    pub(crate) async fn length(&self, access: &Access, digest: &Digest) -> Result<u64, OriginError> {
        let request = proto::MetainfoRequest { header_only: true, ..metainfo_request(access, digest, 0) };
        let feed = self.call(access, digest.as_bytes(), PATIENCE, |client| opened(client, request.clone())).await?;
        Ok(feed.geometry.map_or(0, |geometry| geometry.length()))
    }

    /// Opens a blob's metainfo if the origin holds the blob or is fetching it; makes it fetch nothing.
    pub(crate) async fn metainfo_held(&self, access: &Access, digest: &Digest) -> Result<Option<Feed>, OriginError> {
        let request = proto::MetainfoRequest { held_only: true, ..metainfo_request(access, digest, 0) };
        self.call(access, digest.as_bytes(), CALL_TIMEOUT, |client| open(client, request.clone())).await
    }

    /// Leaves a registry alone if an origin reports that it said so.
    pub(crate) fn heed(&self, access: &Access, error: &UpstreamError) {
        self.upstream.heed(&access.repository.registry, error);
    }

    /// Tries the origins in the order in which they own the key. One that is silent for the caller's patience has the key in
    /// hand, and no other is asked. The call goes on alone, so that a silent origin is found out by its pings.
    async fn call<T: Send + 'static, F: Future<Output = Result<T, Status>> + Send + 'static>(
        &self,
        access: &Access,
        key: &[u8],
        patience: Duration,
        ask: impl Fn(OriginClient<Channel>) -> F + Send,
    ) -> Result<T, OriginError> {
        let deadline = Instant::now() + patience;
        let endpoints = self.endpoints();
        let names: Vec<_> = endpoints.iter().map(|endpoint| endpoint.server.name.as_str()).collect();
        for name in rendezvous_order(key, &names) {
            let Some(endpoint) = endpoints.iter().find(|endpoint| endpoint.server.name == name) else { continue };
            if !endpoint.admits() {
                continue;
            }
            let asked = ask(endpoint.client.clone());
            let endpoint = endpoint.clone();
            let answer = tokio::spawn(async move { endpoint.judge(timeout(CALL_TIMEOUT, asked).await) });
            match timeout_at(deadline, answer).await {
                Ok(Ok(Some(Ok(answer)))) => return Ok(answer),
                Ok(Ok(Some(Err(error)))) => {
                    self.heed(access, &error);
                    return Err(OriginError::Upstream(error));
                }
                Ok(Ok(None) | Err(_)) => {}
                Err(_) => {
                    tracing::debug!(origin = name, "origin is slow");
                    break;
                }
            }
        }
        Err(OriginError::Away)
    }
}

impl Endpoint {
    /// `None` when the server's URL is not `http://host:port`.
    fn new(server: &Server, identity: &Identity) -> Option<Self> {
        let endpoint = shoal_identity::endpoint(&server.url)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let client = OriginClient::new(identity.channel(&endpoint, Part::Origin))
            .max_decoding_message_size(MANIFEST_LENGTH_MAX + (64 << 10));
        Some(Self { server: server.clone(), client, health: Mutex::default() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().expect("nothing panics while it holds this lock")
    }

    /// Whether to try it now. The one that may after a pause is the probe; others wait for its outcome.
    fn admits(&self) -> bool {
        let mut health = self.lock();
        let now = Instant::now();
        match health.resume_at {
            None => true,
            Some(at) if at <= now => {
                health.resume_at = Some(now + CONNECT_TIMEOUT + 2 * KEEP_ALIVE);
                true
            }
            Some(_) => false,
        }
    }

    /// Notes what an answer says of the origin's health. `None` when it is no answer.
    fn judge<T>(&self, answer: Result<Result<T, Status>, Elapsed>) -> Option<Result<T, UpstreamError>> {
        let status = match answer {
            Ok(Ok(answer)) => {
                self.succeeded();
                return Some(Ok(answer));
            }
            Ok(Err(status)) => status,
            Err(_) => return None,
        };
        let error = upstream_error(&status);
        if error.is_some() {
            self.succeeded();
        } else if is_outage(&status) {
            self.failed(&status);
        } else {
            tracing::warn!(origin = self.server.url, error = %status.message(), "origin refuses a call");
        }
        error.map(Err)
    }

    fn succeeded(&self) {
        let mut health = self.lock();
        if health.failures > 0 {
            tracing::info!(origin = self.server.url, "origin is back");
        }
        *health = Health::default();
    }

    fn failed(&self, status: &Status) {
        let mut health = self.lock();
        let pause = AWAY_FIRST.saturating_mul(1 << health.failures.min(10)).min(AWAY_MAX);
        if health.failures == 0 {
            tracing::warn!(origin = self.server.url, error = %status.message(), "origin does not answer");
        }
        // Calls that were in flight together fail together: that is one failure.
        if health.resume_at.is_none_or(|at| at <= Instant::now()) || health.failures == 0 {
            health.failures += 1;
        }
        health.resume_at = Some(Instant::now() + pause);
    }
}

impl Feed {
    /// The next update; `None` when the stream ended without `Complete`.
    pub(crate) async fn next(&mut self) -> Result<Option<Update>, OriginError> {
        let updates = match &mut self.updates {
            Updates::Streamed(updates) => updates,
            Updates::Gathered(hashes, seal) => {
                let end = || Update::Complete(std::mem::take(seal));
                let rest = hashes.take().map_or_else(end, |hashes| Update::Hashes { first: 0, hashes });
                return Ok(Some(rest));
            }
        };
        let Some(message) = updates.next().await else { return Ok(None) };
        let message = message.map_err(|status| match upstream_error(&status) {
            Some(error) => OriginError::Upstream(error),
            None => OriginError::Away,
        })?;
        match message.update {
            Some(Wire::Hashes(hashes)) => {
                let list = PieceHash::list(&hashes.states).ok_or(OriginError::Away)?;
                Ok(Some(Update::Hashes { first: hashes.first_piece, hashes: list }))
            }
            Some(Wire::Complete(complete)) => Ok(Some(Update::Complete(complete.seal))),
            Some(Wire::Header(_)) | None => Err(OriginError::Away),
        }
    }

    /// Reads it from the first piece to its end, to be at hand later. `None` when the origin has not all of it.
    pub(crate) async fn gathered(mut self) -> Result<Option<Self>, OriginError> {
        let pieces = self.geometry.map_or(0, |geometry| geometry.piece_count() as usize);
        let mut all = Vec::new();
        let seal = loop {
            match self.next().await? {
                Some(Update::Hashes { first, hashes })
                    if first as usize == all.len() && hashes.len() <= pieces - all.len() =>
                {
                    all.extend(hashes);
                }
                Some(Update::Complete(seal)) if all.len() == pieces => break seal,
                Some(Update::Hashes { .. } | Update::Complete(_)) | None => return Ok(None),
            }
        };
        Ok(Some(Self { updates: Updates::Gathered(Some(all), seal), ..self }))
    }

    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        Self { geometry: None, peer: None, updates: Updates::Gathered(None, Vec::new()) }
    }
}

fn metainfo_request(access: &Access, digest: &Digest, first_piece: u32) -> proto::MetainfoRequest {
    let access = Some(access_to_proto(access));
    proto::MetainfoRequest { access, digest: digest.to_string(), first_piece, ..proto::MetainfoRequest::default() }
}

/// Opens a metainfo stream that is not empty.
async fn opened(client: OriginClient<Channel>, request: proto::MetainfoRequest) -> Result<Feed, Status> {
    let feed = open(client, request).await?;
    feed.ok_or_else(|| Status::internal("a metainfo stream begins with its header"))
}

/// Opens a metainfo stream; `None` when it is empty.
async fn open(mut client: OriginClient<Channel>, request: proto::MetainfoRequest) -> Result<Option<Feed>, Status> {
    let mut updates = client.metainfo(request).await?.into_inner();
    match updates.message().await? {
        None => Ok(None),
        Some(MetainfoUpdate { update: Some(Wire::Header(header)) }) => feed(&header, updates).map(Some),
        Some(_) => Err(Status::internal("a metainfo stream begins with its header")),
    }
}

fn feed(header: &proto::metainfo_update::Header, updates: Streaming<MetainfoUpdate>) -> Result<Feed, Status> {
    let geometry = match header.length_bytes {
        0 => None,
        length => Some(
            Geometry::new(length, header.piece_length_bytes).map_err(|error| Status::internal(error.to_string()))?,
        ),
    };
    let peer = shoal_proto::peer_from_proto(header.origin.as_ref()).ok();
    Ok(Feed { geometry, peer, updates: Updates::Streamed(Box::new(updates)) })
}

fn access_to_proto(access: &Access) -> proto::Access {
    let Access { repository, authorization } = access;
    let authorization = authorization.as_ref().map(shoal_registry::Secret::expose);
    shoal_proto::access(&repository.registry, &repository.name, authorization)
}

/// Whether the origin, or the way there, is broken: such a status is made here, with its cause. One that the origin sent
/// has none: it is alive.
fn is_outage(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// What upstream said, if the origin relays it. A bare `NOT_FOUND` or the like is the origin's own confusion.
fn upstream_error(status: &Status) -> Option<UpstreamError> {
    if status.code() == Code::Ok {
        return None;
    }
    let bytes = status.metadata().get_bin(UPSTREAM_ERROR_METADATA)?.to_bytes().ok()?;
    let message = proto::UpstreamError::decode(bytes).ok()?;
    Some(UpstreamError::from_parts(ErrorParts {
        status: u16::try_from(message.status).unwrap_or(0),
        code: message.code,
        message: message.message,
        www_authenticate: Some(message.www_authenticate).filter(|challenge| !challenge.is_empty()),
        retry_after: (message.retry_after_ms > 0).then(|| Duration::from_millis(message.retry_after_ms.into())),
    }))
}
