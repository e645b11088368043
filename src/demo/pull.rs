//! A runtime's part: pulls an image from a registry front, three layers at a time as containerd does, and checks every byte.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::header::ACCEPT;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest};
use shoal_meta::{Digest, Geometry};
use shoal_registry::image::manifest_for;
use shoal_registry::reference::{Reference, Repository, parse_image};

/// Layers fetched at a time: containerd's default.
const CONCURRENT_DOWNLOADS: usize = 3;
/// The longest manifest read: containerd's bound.
const MANIFEST_LENGTH_MAX: usize = 4 << 20;
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A finished pull.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pulled {
    /// From the start of all pulls to the last verified byte.
    pub(super) seconds: f64,
    /// Bytes of blobs received.
    pub(super) bytes: u64,
}

/// An image as its manifest describes it.
#[derive(Debug)]
pub(super) struct Image {
    blobs: Vec<Descriptor>,
}

impl Image {
    /// Bytes of all blobs.
    pub(super) fn length(&self) -> u64 {
        self.blobs.iter().map(Descriptor::size).sum()
    }

    /// How many blobs, the configuration included.
    pub(super) fn blobs(&self) -> usize {
        self.blobs.len()
    }

    /// The longest piece of any blob, in bytes.
    pub(super) fn piece_bytes(&self) -> u64 {
        let geometries = self.blobs.iter().filter_map(|blob| Geometry::for_length(blob.size()).ok());
        geometries.map(|geometry| u64::from(geometry.piece_length()).min(geometry.length())).max().unwrap_or(0)
    }
}

/// Reads an image's manifest through a front, the one for this machine where there are several.
pub(super) async fn look(front: &str, reference: &str) -> anyhow::Result<Image> {
    let (repository, reference) = parse_image(reference)?;
    let target = Target { front, repository: &repository };
    let reference = match &reference {
        Reference::Tag(tag) => tag.clone(),
        Reference::Digest(digest) => digest.to_string(),
    };
    let mut manifest = target.manifest(&reference).await?;
    if let Ok(index) = ImageIndex::from_reader(manifest.as_ref()) {
        manifest = target.manifest(choose(&index)?.digest().as_ref()).await?;
    }
    let manifest = ImageManifest::from_reader(manifest.as_ref())
        .with_context(|| format!("{reference} of {} is no image", repository.name))?;
    Ok(Image { blobs: std::iter::once(manifest.config()).chain(manifest.layers()).cloned().collect() })
}

/// Of an index, the manifest for this machine, or the first.
fn choose(index: &ImageIndex) -> anyhow::Result<&Descriptor> {
    let found = manifest_for(index, "linux", &Arch::default().to_string());
    found.or(index.manifests().first()).context("the index is empty")
}

/// Pulls an image through a front and checks the digest of every blob.
pub(super) async fn pull(front: &str, reference: &str, start: Instant) -> anyhow::Result<Pulled> {
    let image = look(front, reference).await?;
    let (repository, _) = parse_image(reference)?;
    let target = Target { front, repository: &repository };
    // Boxed: the compiler cannot see that a stream of borrowing futures may be sent between threads.
    let fetches = image.blobs.iter().map(|blob| target.blob(blob).boxed()).collect::<Vec<_>>();
    let fetched = stream::iter(fetches).buffer_unordered(CONCURRENT_DOWNLOADS);
    let bytes = fetched.try_fold(0, async |sum, bytes| Ok(sum + bytes)).await?;
    Ok(Pulled { seconds: start.elapsed().as_secs_f64(), bytes })
}

struct Target<'a> {
    front: &'a str,
    repository: &'a Repository,
}

impl Target<'_> {
    async fn get(&self, path: &str) -> anyhow::Result<Response<Incoming>> {
        let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let Self { front, repository } = self;
        let url = format!("{front}/v2/{}/{path}?ns={}", repository.name, repository.registry);
        let request = Request::get(&url).header(ACCEPT, ACCEPTED).body(Empty::new())?;
        let response = client.request(request).await.with_context(|| format!("GET {url}"))?;
        let status = response.status();
        if !status.is_success() {
            let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let said = String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned();
            bail!("GET {url}: {status}: {said}");
        }
        Ok(response)
    }

    async fn manifest(&self, reference: &str) -> anyhow::Result<Bytes> {
        let response = self.get(&format!("manifests/{reference}")).await?;
        let body = http_body_util::Limited::new(response.into_body(), MANIFEST_LENGTH_MAX).collect().await;
        Ok(body.map_err(|error| anyhow::anyhow!("manifest {reference}: {error}"))?.to_bytes())
    }

    /// Fetches a blob and throws its bytes away, once they are hashed.
    async fn blob(&self, blob: &Descriptor) -> anyhow::Result<u64> {
        let digest: Digest = blob.digest().as_ref().parse()?;
        let mut body = self.get(&format!("blobs/{digest}")).await?.into_body();
        let mut hasher = digest.hasher();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.with_context(|| format!("blob {digest} broke off"))?.into_data() {
                received += data.len() as u64;
                hasher.update(&data);
            }
        }
        ensure!(received == blob.size(), "blob {digest} has {received} bytes, not {}", blob.size());
        ensure!(hasher.finish() == digest, "blob {digest} has other content than its digest says");
        Ok(received)
    }
}
