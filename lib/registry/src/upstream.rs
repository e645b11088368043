//! The client of upstream registries: manifests, blobs, listings, over HTTP/1.1 with or without TLS.
//!
//! Called by the origin, and by an agent that falls back. It asks mirrors first, follows redirects, answers challenges when
//! the caller brought no credentials of its own, retries what may succeed later, and takes a broken body up again at the
//! exact offset. It does not cache content, does not join equal requests, and does not check a blob's digest: who stores it
//! hashes it.

mod backoff;
mod body;
pub mod challenge;
mod config;
mod credentials;
mod dial;
mod endpoint;
mod error;
mod limits;
mod remap;
mod request;
mod rules;
mod sign_in;
mod tls;
mod token;

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, Method, Response, header};
use hyper::body::Incoming;
use serde::Deserialize;
use shoal_meta::Digest;

use self::backoff::retry;
use self::credentials::Credentials;
use self::endpoint::{Endpoint, Endpoints};
use self::limits::Limits;
use self::request::{Ask, document, text_header};
use self::rules::Rules;
use self::token::Tokens;
use crate::error::OciCode;
use crate::private_images::PrivateImages;
use crate::reference::{Reference, Repository};
use crate::secret::Secret;

pub use config::{Config, RegistryConfig, Timing};
pub use error::{ConfigError, ErrorParts, UpstreamError};
pub use sign_in::{Account, SignedIn};

/// What is asked of upstream on whose behalf.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Access {
    /// The repository asked.
    pub repository: Repository,
    /// The client's `Authorization` header, used as it is; without one the configured credentials are.
    pub authorization: Option<Secret>,
}

/// A manifest or index, or what HEAD says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its digest: verified when there is content.
    pub digest: Digest,
    /// Its media type, as upstream's `Content-Type` says.
    pub media_type: String,
    /// Its length in bytes.
    pub length: u64,
    /// Its bytes; empty for HEAD.
    pub content: Bytes,
}

/// A listing passed through: tags or referrers.
#[derive(Debug, Clone)]
pub struct Document {
    /// The headers a client needs: `Content-Type`, `Link`, `OCI-Filters-Applied`.
    pub headers: HeaderMap,
    /// The bytes, at most [`MANIFEST_LENGTH_MAX`](crate::MANIFEST_LENGTH_MAX).
    pub content: Bytes,
}

/// The bytes of a blob from an offset to its end. It ends with an error unless exactly `length - offset` bytes came.
pub struct BlobBody {
    /// The whole blob's length in bytes.
    pub length: u64,
    /// Where this body begins, in bytes.
    pub offset: u64,
    givers: Givers,
    stream: Pin<Box<dyn Stream<Item = Result<Bytes, UpstreamError>> + Send>>,
}

/// The mirrors that gave a body or a part of it. A cheap handle.
#[derive(Clone, Default)]
pub struct Givers(Arc<Mutex<Vec<Arc<Endpoint>>>>);

/// The client of all upstream registries. A cheap handle: clones share connections and tokens.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

struct Inner {
    rules: Rules,
    private_images: PrivateImages,
    offline: bool,
    endpoints: Endpoints,
    credentials: Credentials,
    tokens: Tokens,
    limits: Limits,
    timing: Timing,
}

impl Upstream {
    /// Reads the certificates and credentials named by the configuration; asks nobody yet.
    ///
    /// # Errors
    /// When a file cannot be read, or a URL or a rule is not one.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Ok(Self(Arc::new(Inner {
            rules: Rules::new(&config.allow, &config.deny)?,
            private_images: config.private_images,
            offline: config.offline,
            endpoints: Endpoints::new(&config.registries, config.timing.connect)?,
            credentials: Credentials::open(&config)?,
            tokens: Tokens::default(),
            limits: Limits::default(),
            timing: config.timing,
        })))
    }

    /// Whether the configuration lets this repository be served: what it excludes is neither fetched nor given.
    ///
    /// # Errors
    /// [`UpstreamError::Excluded`], which names the rule.
    pub fn permits(&self, repository: &Repository) -> Result<(), UpstreamError> {
        self.0.rules.check(repository)
    }

    /// For how long a registry that limits our requests is still left alone: until then it is not asked, and what its mirrors
    /// do not give fails with [`UpstreamError::RateLimited`].
    #[must_use]
    pub fn rests(&self, registry: &str) -> Option<Duration> {
        self.0.limits.rests(registry)
    }

    /// Leaves a registry alone if this error says so. The client heeds its own answers by itself; this is for those that
    /// others got.
    pub fn heed(&self, registry: &str, error: &UpstreamError) {
        self.0.limits.heed(registry, error);
    }

    /// Whether upstream is never asked: every method then fails with [`UpstreamError::Offline`].
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.0.offline
    }

    /// What must be shown before content that is held is given. Offline that is nothing, as nobody can say who may have it.
    #[must_use]
    pub fn private_images(&self) -> PrivateImages {
        if self.0.offline { PrivateImages::Off } else { self.0.private_images }
    }

    /// Gets a manifest or index, or with `head` only its digest, type and length. `accept` are media types in order of
    /// preference; if empty, [`MANIFEST_ACCEPT`](crate::MANIFEST_ACCEPT).
    ///
    /// # Errors
    /// As [`UpstreamError`] says; content that does not have the digest asked for or declared is a protocol error.
    pub async fn manifest(
        &self,
        access: &Access,
        reference: &Reference,
        head: bool,
        accept: &[String],
    ) -> Result<Manifest, UpstreamError> {
        let (path, timing) = (format!("manifests/{reference}"), self.0.timing);
        if head {
            let ask = Ask::new(access, Method::HEAD, &path, OciCode::ManifestUnknown).accept(accept);
            let take = |response: Response<Incoming>| async move { described(response.headers(), reference) };
            match retry(timing, || self.ask_for(&ask, take)).await {
                Ok(Some(manifest)) => return Ok(manifest),
                Ok(None) | Err(UpstreamError::Refused { status: 405, .. }) => {}
                Err(error) => return Err(error),
            }
            // Registries may leave the digest or length out of HEAD, or not offer it; the content tells both.
        }
        let ask = Ask::new(access, Method::GET, &path, OciCode::ManifestUnknown).accept(accept);
        let take = |response| async move {
            let (headers, content) = document(response, timing).await?;
            verified(&headers, reference, content)
        };
        let mut manifest = retry(timing, || self.ask_for(&ask, take)).await?;
        if head {
            manifest.content = Bytes::new();
        }
        Ok(manifest)
    }

    /// Asks for the length of a blob in bytes.
    ///
    /// # Errors
    /// As [`UpstreamError`] says; a protocol error if upstream tells no length at all.
    pub async fn blob_length(&self, access: &Access, digest: &Digest) -> Result<u64, UpstreamError> {
        body::length(self, access, digest).await
    }

    /// Opens a blob at an offset in bytes. A body that is cut, or stalls for [`Timing::progress`], is taken up again at
    /// the exact offset, as often as it moves on; [`Timing::attempts`] failures in a row end it with an error.
    ///
    /// # Errors
    /// As [`UpstreamError`] says, from here until headers came, and from the body afterwards.
    pub async fn blob(&self, access: &Access, digest: &Digest, offset: u64) -> Result<BlobBody, UpstreamError> {
        body::open(self, access, digest, offset).await
    }

    /// Gets a listing of a repository: `path_and_query` is what follows `/v2/<name>/`, such as `tags/list?n=10`.
    ///
    /// # Errors
    /// As [`UpstreamError`] says.
    pub async fn get(
        &self,
        access: &Access,
        path_and_query: &str,
        accept: &[String],
    ) -> Result<Document, UpstreamError> {
        let ask = Ask::new(access, Method::GET, path_and_query, OciCode::NameUnknown).listing(accept);
        let timing = self.0.timing;
        let (all, content) = retry(timing, || self.ask_for(&ask, |response| document(response, timing))).await?;
        let mut headers = HeaderMap::new();
        for name in [header::CONTENT_TYPE, header::LINK, header::HeaderName::from_static("oci-filters-applied")] {
            if let Some(value) = all.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        Ok(Document { headers, content })
    }

    /// Asks whether upstream lets the caller read this; no content moves. A digest may be a blob's or a manifest's.
    ///
    /// # Errors
    /// As [`UpstreamError`] says.
    pub async fn authorize(&self, access: &Access, what: &Reference) -> Result<(), UpstreamError> {
        if let Reference::Digest(digest) = what {
            let path = format!("blobs/{digest}");
            let ask = Ask::new(access, Method::HEAD, &path, OciCode::BlobUnknown).permission_only();
            match retry(self.0.timing, || self.ask(&ask)).await {
                Ok(_) => return Ok(()),
                Err(UpstreamError::NotFound { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        let path = format!("manifests/{what}");
        let ask = Ask::new(access, Method::HEAD, &path, OciCode::ManifestUnknown).accept(&[]).permission_only();
        retry(self.0.timing, || self.ask(&ask)).await.map(|_| ())
    }
}

/// What HEAD says of a manifest; `None` if it leaves out what we need.
fn described(headers: &HeaderMap, reference: &Reference) -> Result<Option<Manifest>, UpstreamError> {
    let declared = text_header(headers, DOCKER_CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
    if let (Some(asked), Some(declared)) = (reference.digest(), &declared)
        && differs(asked, declared)
    {
        return Err(wrong_digest(asked, declared));
    }
    let length = text_header(headers, header::CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
    let (digest, media_type) = (reference.digest().copied().or(declared), media_type(headers));
    let told = digest.zip(length).zip(media_type);
    Ok(told.map(|((digest, length), media_type)| Manifest { digest, media_type, length, content: Bytes::new() }))
}

/// Checks content against the digest asked for, or for a tag the one declared.
fn verified(headers: &HeaderMap, reference: &Reference, content: Bytes) -> Result<Manifest, UpstreamError> {
    let declared = text_header(headers, DOCKER_CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
    let expected = reference.digest().copied().or(declared);
    let digest = match expected {
        Some(expected) => {
            let mut hasher = expected.hasher();
            hasher.update(&content);
            let actual = hasher.finish();
            if actual != expected {
                return Err(wrong_digest(&expected, &actual));
            }
            actual
        }
        None => Digest::sha256_of(&content),
    };
    let media_type = media_type(headers).or_else(|| embedded_media_type(&content)).unwrap_or(FALLBACK_TYPE.to_owned());
    Ok(Manifest { digest, media_type, length: content.len() as u64, content })
}

const DOCKER_CONTENT_DIGEST: &str = "docker-content-digest";
/// The type of a document that neither its headers nor itself name.
const FALLBACK_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn differs(a: &Digest, b: &Digest) -> bool {
    a.algorithm() == b.algorithm() && a != b
}

fn wrong_digest(expected: &Digest, actual: &Digest) -> UpstreamError {
    UpstreamError::Protocol(format!("the manifest is {actual} where {expected} was expected"))
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = text_header(headers, header::CONTENT_TYPE.as_str())?;
    let essence = value.split(';').next().unwrap_or(value).trim();
    (!essence.is_empty()).then(|| essence.to_owned())
}

fn embedded_media_type(content: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Typed {
        #[serde(rename = "mediaType")]
        media_type: String,
    }
    serde_json::from_slice::<Typed>(content).ok().map(|typed| typed.media_type)
}

impl Access {
    /// Access with the configured credentials, or anonymously.
    #[must_use]
    pub fn new(repository: Repository) -> Self {
        Self { repository, authorization: None }
    }

    /// Whether a ticket is shown, which an origin redeems: upstream never sees one.
    #[must_use]
    pub fn is_ticket(&self) -> bool {
        self.authorization.as_ref().is_some_and(|authorization| authorization.ticket().is_some())
    }
}

impl BlobBody {
    /// Who gave it, for when its bytes turn out to be wrong.
    #[must_use]
    pub fn givers(&self) -> Givers {
        self.givers.clone()
    }
}

impl Givers {
    /// Says that the bytes were not those of the blob: the mirrors among the givers are left alone for a while. Tells whether
    /// there were any, so that asking again may bring others.
    #[must_use]
    pub fn disown(&self) -> bool {
        let mirrors = self.lock();
        mirrors.iter().for_each(|mirror| mirror.shun());
        !mirrors.is_empty()
    }

    fn add(&self, mirror: &Arc<Endpoint>) {
        self.lock().push(Arc::clone(mirror));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Endpoint>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Givers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Givers").field(&self.lock().len()).finish()
    }
}

impl Stream for BlobBody {
    type Item = Result<Bytes, UpstreamError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(context)
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobBody").field("length", &self.length).field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("timing", &self.0.timing).finish_non_exhaustive()
    }
}
