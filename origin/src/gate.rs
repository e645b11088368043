//! The one door to upstream registries: counts every request by kind and outcome, and keeps the door to a registry shut
//! for as long as that registry asked to be left alone. Called by ingest, manifests, authorisation and the HTTP front.

use std::sync::Mutex;
use std::time::Duration;

use shoal_meta::Digest;
use shoal_registry::{Access, BlobBody, Document, Manifest, Reference, Repository, Upstream, UpstreamError};
use tokio::time::Instant;

use crate::lock;
use crate::metrics::OriginMetrics;
use crate::recent::Recent;

/// How long a registry that limits us without saying for how long is left alone.
const PAUSE_DEFAULT: Duration = Duration::from_secs(30);
/// The longest a registry is left alone before it is asked again.
const PAUSE_MAX: Duration = Duration::from_secs(15 * 60);
/// The most registries remembered.
const REGISTRIES_MAX: usize = 1024;

/// What a digest names: registries keep blobs and manifests apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Kind {
    Blob,
    Manifest,
    /// Upstream is asked for both.
    Either,
}

/// The way to upstream.
pub(crate) struct Gate {
    upstream: Upstream,
    paused: Mutex<Recent<String, Instant>>,
    metrics: OriginMetrics,
}

impl Gate {
    pub(crate) fn new(upstream: Upstream, metrics: OriginMetrics) -> Self {
        Self { upstream, paused: Mutex::new(Recent::new(REGISTRIES_MAX)), metrics }
    }

    /// Whether the configuration lets this repository be served.
    pub(crate) fn permits(&self, repository: &Repository) -> Result<(), UpstreamError> {
        self.upstream.permits(repository)
    }

    /// Whether the door is shut for good: nobody is asked who may have what is held.
    pub(crate) fn is_offline(&self) -> bool {
        self.upstream.is_offline()
    }

    /// GET or HEAD of a manifest; `accept` may be empty.
    pub(crate) async fn manifest(
        &self,
        access: &Access,
        reference: &Reference,
        head: bool,
        accept: &[String],
    ) -> Result<Manifest, UpstreamError> {
        let kind = if head { "manifest_head" } else { "manifest" };
        self.pass(kind, access, self.upstream.manifest(access, reference, head, accept)).await
    }

    /// HEAD of a blob.
    pub(crate) async fn blob_length(&self, access: &Access, digest: &Digest) -> Result<u64, UpstreamError> {
        self.pass("blob_head", access, self.upstream.blob_length(access, digest)).await
    }

    /// GET of a blob from an offset.
    pub(crate) async fn blob(&self, access: &Access, digest: &Digest, offset: u64) -> Result<BlobBody, UpstreamError> {
        self.pass("blob", access, self.upstream.blob(access, digest, offset)).await
    }

    /// GET of a listing.
    pub(crate) async fn listing(
        &self,
        access: &Access,
        path_and_query: &str,
        accept: &[String],
    ) -> Result<Document, UpstreamError> {
        self.pass("listing", access, self.upstream.get(access, path_and_query, accept)).await
    }

    /// Asks by HEAD whether this caller may have this content from this repository.
    pub(crate) async fn authorize(&self, access: &Access, kind: Kind, digest: &Digest) -> Result<(), UpstreamError> {
        let what = Reference::Digest(*digest);
        match kind {
            Kind::Blob | Kind::Either => self.pass("authorize", access, self.upstream.authorize(access, &what)).await,
            Kind::Manifest => self.manifest(access, &what, true, &[]).await.map(drop),
        }
    }

    /// Notes an error that came after the headers, in the midst of a body.
    pub(crate) fn note_cut(&self, access: &Access, error: &UpstreamError) {
        self.note("blob_body", access, Some(error));
    }

    async fn pass<T>(
        &self,
        kind: &'static str,
        access: &Access,
        request: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        self.admit(&access.repository.registry)?;
        let result = request.await;
        self.note(kind, access, result.as_ref().err());
        result
    }

    fn admit(&self, registry: &str) -> Result<(), UpstreamError> {
        let now = Instant::now();
        let mut paused = lock(&self.paused);
        let until = paused.get(&registry.to_owned()).copied().filter(|_| !self.upstream.has_mirrors(registry));
        match until.map(|until| until.saturating_duration_since(now)) {
            Some(left) if !left.is_zero() => Err(UpstreamError::RateLimited { retry_after: Some(left) }),
            Some(_) | None => Ok(()),
        }
    }

    fn note(&self, kind: &'static str, access: &Access, error: Option<&UpstreamError>) {
        // Nobody was asked.
        if matches!(error, Some(UpstreamError::Offline { .. } | UpstreamError::Excluded { .. })) {
            return;
        }
        self.metrics.upstream_requests.with_label_values(&[kind, outcome(error)]).inc();
        let pause = match error {
            Some(UpstreamError::RateLimited { retry_after }) => Some(retry_after.unwrap_or(PAUSE_DEFAULT)),
            Some(error) => error.retry_after(),
            None => None,
        };
        if let Some(pause) = pause {
            let registry = &access.repository.registry;
            tracing::warn!(%registry, ?pause, "upstream limits us; leaving it alone");
            lock(&self.paused).put(registry.clone(), Instant::now() + pause.min(PAUSE_MAX));
        }
    }
}

fn outcome(error: Option<&UpstreamError>) -> &'static str {
    match error {
        None => "ok",
        Some(UpstreamError::Unauthorized { .. }) => "401",
        Some(UpstreamError::Denied { .. } | UpstreamError::Excluded { .. }) => "403",
        Some(UpstreamError::NotFound { .. } | UpstreamError::Offline { .. }) => "404",
        Some(UpstreamError::RateLimited { .. }) => "429",
        Some(UpstreamError::Server { .. }) => "5xx",
        Some(UpstreamError::Refused { .. }) => "4xx",
        Some(UpstreamError::Transport(_)) => "transport",
        Some(UpstreamError::Timeout { .. }) => "timeout",
        Some(UpstreamError::Protocol(_) | UpstreamError::TooLong { .. }) => "protocol",
        Some(UpstreamError::Request(_)) => "request",
    }
}
