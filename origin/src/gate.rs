//! The one door to upstream registries: counts every request by kind and outcome. Called by ingest, manifests, authorisation,
//! tickets and the HTTP front.

use shoal_meta::Digest;
use shoal_registry::{
    Access, Account, BlobBody, Document, Manifest, PrivateImages, Reference, Repository, SignedIn, Upstream,
    UpstreamError,
};

use crate::metrics::OriginMetrics;
use crate::tickets::SignIn;

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
    metrics: OriginMetrics,
}

impl Gate {
    pub(crate) fn new(upstream: Upstream, metrics: OriginMetrics) -> Self {
        Self { upstream, metrics }
    }

    /// Whether the configuration lets this repository be served.
    pub(crate) fn permits(&self, repository: &Repository) -> Result<(), UpstreamError> {
        self.upstream.permits(repository)
    }

    /// What must be shown before content that is held is given.
    pub(crate) fn private_images(&self) -> PrivateImages {
        self.upstream.private_images()
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
    pub(crate) fn note_cut(&self, error: &UpstreamError) {
        self.count("blob_body", Some(error));
    }

    async fn pass<T>(
        &self,
        kind: &'static str,
        access: &Access,
        request: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        let rests = self.upstream.rests(&access.repository.registry).is_some();
        let result = request.await;
        let error = result.as_ref().err();
        if !(rests && matches!(error, Some(UpstreamError::RateLimited { .. }))) {
            self.count(kind, error);
        }
        result
    }

    fn count(&self, kind: &'static str, error: Option<&UpstreamError>) {
        // Nobody was asked.
        if !matches!(error, Some(UpstreamError::Offline { .. } | UpstreamError::Excluded { .. })) {
            self.metrics.upstream_requests.with_label_values(&[kind, outcome(error)]).inc();
        }
    }
}

impl SignIn for Gate {
    async fn sign_in(&self, account: &Account, repository: &Repository) -> Result<SignedIn, UpstreamError> {
        let access = Access::new(repository.clone());
        self.pass("sign_in", &access, self.upstream.sign_in(account, Some(repository))).await
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
