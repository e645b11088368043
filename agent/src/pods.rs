//! What is done ahead of the kubelet: the layers of a Pod that was just bound to this node are on their way before it asks.
//!
//! Fed with Pods by `shoal_kube`, or by a test. For each image it asks an origin for the manifest and hands the layers to
//! `blobs`, which fetches them from the swarm alone. It asks on nobody's behalf, and so with no credentials but those that the
//! configuration gives to everybody: what upstream refuses then is left to the kubelet. It never asks upstream directly: a
//! swarm that is away is no reason to.
//!
//! A layer fetched in vain is a layer sent in vain. So nothing is fetched of an image that the node says it has, and no layer that
//! the front has given to the runtime before; nor of registries that the runtime does not ask for here.

use std::collections::VecDeque;
use std::env::consts::ARCH;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use oci_spec::image::{ImageIndex, ImageManifest};
use shoal_kube::{BoundPod, ListedImages, PodImage};
use shoal_meta::Digest;
use shoal_registry::image::manifest_for;
use shoal_registry::reference::parse_image;
use shoal_registry::upstream::Upstream;
use shoal_registry::{Access, Reference, ReferenceError, Repository, UpstreamError};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::blobs::Blobs;
use crate::given::Given;
use crate::manifests::{Found, Manifests};
use crate::origin::OriginError;

/// Most Pods looked after at a time, each one image after the other, as the kubelet pulls them.
const PODS_MAX: usize = 4;
/// Most Pods that wait for their turn; then the watch waits.
pub(crate) const QUEUE_MAX: usize = 64;
/// How long a Pod waits for an origin: on a node that has just started Pods may be known before origins are.
const ORIGIN_PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks whether there is one.
const ORIGIN_INTERVAL: Duration = Duration::from_millis(250);
/// How long a repository that upstream refused to anybody is not asked for again.
const REFUSED_FOR: Duration = Duration::from_secs(600);
/// Most such repositories remembered; the oldest goes first.
const REFUSED_MAX: usize = 256;

/// Fetches ahead for Pods.
#[derive(Debug)]
pub(crate) struct Pods {
    pub(crate) manifests: Arc<Manifests>,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) upstream: Upstream,
    pub(crate) given: Arc<Given>,
    /// The registries that the runtime asks for here; empty if all.
    pub(crate) registries: Vec<String>,
    pub(crate) refused: Refused,
}

/// What became of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its layers are fetched, or some of them.
    Fetched,
    /// It is on the node, as far as can be told.
    There,
    /// Upstream does not give it to anybody, or its Pod brings secrets.
    Private,
    /// The runtime does not ask for it here, or would be refused.
    Excluded,
    /// It could not be looked up.
    Failed,
}

impl Outcome {
    pub(crate) const ALL: [Self; 5] = [Self::Fetched, Self::There, Self::Private, Self::Excluded, Self::Failed];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Fetched => "fetched",
            Self::There => "there",
            Self::Private => "private",
            Self::Excluded => "excluded",
            Self::Failed => "failed",
        }
    }
}

/// Why an image was not looked up.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("it is not the name of an image")]
    Name(#[from] ReferenceError),
    #[error("no manifest")]
    Manifest(#[from] OriginError),
    #[error("no manifest for this node's platform")]
    Platform,
    #[error("no origin is up")]
    Alone,
}

impl Pods {
    /// Takes care of Pods as they come, until there are no more.
    pub(crate) async fn run(self, mut pods: mpsc::Receiver<BoundPod>) {
        let pods = stream::poll_fn(move |cx| pods.poll_recv(cx));
        pods.for_each_concurrent(PODS_MAX, |pod| self.fetch_for(pod)).await;
    }

    async fn fetch_for(&self, pod: BoundPod) {
        self.origin_comes().await;
        for image in &pod.images {
            let outcome = if pod.has_secrets {
                // They would be asked for with other rights, and against other limits, than the kubelet does.
                Outcome::Private
            } else {
                self.fetch(image, &pod.listed).await.unwrap_or_else(|failure| failure.outcome(image))
            };
            tracing::debug!(image = image.name, outcome = outcome.as_str(), "an image of a Pod bound to this node");
            self.blobs.counters.pod_images.with_label_values(&[outcome.as_str()]).inc();
        }
    }

    async fn origin_comes(&self) {
        let deadline = Instant::now() + ORIGIN_PATIENCE;
        while !self.blobs.origins.is_up() && Instant::now() < deadline {
            sleep(ORIGIN_INTERVAL).await;
        }
    }

    async fn fetch(&self, image: &PodImage, listed: &ListedImages) -> Result<Outcome, Failure> {
        let (repository, reference) = parse_image(&image.name)?;
        let is_asked_for = self.registries.is_empty() || self.registries.contains(&repository.registry);
        if !is_asked_for || self.upstream.permits(&repository).is_err() {
            return Ok(Outcome::Excluded);
        }
        if !image.looked_up && is_listed(listed, &repository, &reference) {
            return Ok(Outcome::There);
        }
        if self.refused.has(&repository) {
            return Ok(Outcome::Private);
        }
        if !self.blobs.origins.is_up() {
            return Err(Failure::Alone);
        }
        let access = Access { repository, authorization: None };
        match self.fetch_layers(&access, &reference, listed).await {
            Err(Failure::Manifest(OriginError::Upstream(error))) if is_refusal(&error) => {
                self.refused.note(access.repository);
                Ok(Outcome::Private)
            }
            done => done,
        }
    }

    async fn fetch_layers(
        &self,
        access: &Access,
        reference: &Reference,
        listed: &ListedImages,
    ) -> Result<Outcome, Failure> {
        let mut found = self.manifests.get_of_origin(access, reference).await?;
        let is_here = |found: &Found| is_listed(listed, &access.repository, &Reference::Digest(found.manifest.digest));
        if is_here(&found) {
            return Ok(Outcome::There);
        }
        if let Ok(index) = ImageIndex::from_reader(&*found.manifest.content) {
            let digest = of_platform(&index, ARCH).ok_or(Failure::Platform)?;
            found = self.manifests.get_of_origin(access, &Reference::Digest(digest)).await?;
        }
        let image = ImageManifest::from_reader(&*found.manifest.content).map_err(|_| Failure::Platform)?;
        if is_here(&found) || may_be_left_out(listed, &image) {
            return Ok(Outcome::There);
        }
        let config = image.config().digest().as_ref().parse::<Digest>().ok();
        let lacking = |digest: &Digest| !self.given.has(digest) && !self.blobs.store.contains(digest);
        let wanted: Vec<_> = config.into_iter().chain(found.layers.iter().copied()).filter(lacking).collect();
        if wanted.is_empty() {
            return Ok(Outcome::There);
        }
        self.blobs.prefetch(access, wanted);
        Ok(Outcome::Fetched)
    }
}

impl Failure {
    fn outcome(self, image: &PodImage) -> Outcome {
        let error = &self as &dyn std::error::Error;
        tracing::debug!(image = image.name, error, "an image is not fetched ahead");
        Outcome::Failed
    }
}

fn is_refusal(error: &UpstreamError) -> bool {
    matches!(error, UpstreamError::Unauthorized { .. } | UpstreamError::Denied { .. })
}

/// Whether the node says that it has an image, by whatever name means the same.
fn is_listed(listed: &ListedImages, repository: &Repository, reference: &Reference) -> bool {
    let same = |name: &String| parse_image(name).is_ok_and(|(r, what)| r == *repository && what == *reference);
    listed.names.iter().any(same)
}

/// Whether the node may have an image that its list leaves out: it names the largest, and runtimes that tell another size than the
/// layers' tell a larger one.
fn may_be_left_out(listed: &ListedImages, image: &ImageManifest) -> bool {
    let bytes = image.layers().iter().map(|layer| layer.size()).fold(0, u64::saturating_add);
    listed.smallest.is_some_and(|smallest| bytes <= smallest)
}

/// The manifest in an index for Linux on an architecture as Rust calls it.
fn of_platform(index: &ImageIndex, arch: &str) -> Option<Digest> {
    let arch = match arch {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        // As with `arm`, `riscv64` and `s390x`.
        same => same,
    };
    manifest_for(index, "linux", arch)?.digest().as_ref().parse().ok()
}

/// The repositories that upstream refused to anybody lately. Bounded.
#[derive(Debug, Default)]
pub(crate) struct Refused(Mutex<VecDeque<(Repository, Instant)>>);

impl Refused {
    fn note(&self, repository: Repository) {
        let mut refused = self.lock();
        refused.retain(|(known, _)| *known != repository);
        refused.push_back((repository, Instant::now()));
        if refused.len() > REFUSED_MAX {
            refused.pop_front();
        }
    }

    fn has(&self, repository: &Repository) -> bool {
        self.lock().iter().any(|(known, at)| known == repository && at.elapsed() < REFUSED_FOR)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Repository, Instant)>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::sha256_of(name.as_bytes())
    }

    fn list(names: &[String], smallest: Option<u64>) -> ListedImages {
        ListedImages { names: names.to_vec(), smallest }
    }

    #[test]
    fn an_image_is_there_by_any_name_that_means_the_same() {
        let names =
            ["docker.io/library/nginx:1.27".to_owned(), format!("ghcr.io/org/app@{}", digest("app")), "<none>".into()];
        let has = |name: &str| {
            let (repository, reference) = parse_image(name).unwrap();
            is_listed(&list(&names, None), &repository, &reference)
        };
        assert!(has("nginx:1.27") && has("index.docker.io/library/nginx:1.27"));
        assert!(has(&format!("ghcr.io/org/app@{}", digest("app"))));
        assert!(has(&format!("ghcr.io/org/app:v1@{}", digest("app"))));
        assert!(!has("nginx") && !has("nginx:1.28") && !has("ghcr.io/org/app:v1") && !has("ghcr.io/nginx:1.27"));
        assert!(!has(&format!("ghcr.io/org/other@{}", digest("app"))));
    }

    #[test]
    fn an_image_that_is_not_in_a_cut_list_is_there_only_if_it_is_small() {
        let blob = |name: &str, size: u64| {
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            json!({ "mediaType": media_type, "digest": digest(name).to_string(), "size": size })
        };
        let image = json!({ "schemaVersion": 2, "config": blob("c", 7), "layers": [blob("a", 600), blob("b", 400)] });
        let image = ImageManifest::from_reader(image.to_string().as_bytes()).unwrap();
        assert!(!may_be_left_out(&list(&[], None), &image));
        assert!(!may_be_left_out(&list(&[], Some(999)), &image));
        assert!(may_be_left_out(&list(&[], Some(1000)), &image));
    }

    #[test]
    fn an_index_gives_the_manifest_for_linux_on_the_nodes_architecture() {
        let entry = |name: &str, os: &str, architecture: &str, variant: Option<&str>| {
            let media_type = "application/vnd.oci.image.manifest.v1+json";
            let mut platform = json!({ "os": os, "architecture": architecture });
            if let Some(variant) = variant {
                platform["variant"] = variant.into();
            }
            json!({ "mediaType": media_type, "digest": digest(name).to_string(), "size": 1, "platform": platform })
        };
        let manifests = [
            entry("attestation", "unknown", "unknown", None),
            entry("windows", "windows", "amd64", None),
            entry("new", "linux", "amd64", Some("v3")),
            entry("amd64", "linux", "amd64", None),
            entry("arm64", "linux", "arm64", Some("v8")),
            entry("ppc64le", "linux", "ppc64le", None),
        ];
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        let index = ImageIndex::from_reader(index.to_string().as_bytes()).unwrap();
        assert_eq!(of_platform(&index, "x86_64"), Some(digest("amd64")));
        assert_eq!(of_platform(&index, "aarch64"), Some(digest("arm64")));
        assert_eq!(of_platform(&index, "powerpc64"), Some(digest("ppc64le")));
        assert_eq!(of_platform(&index, "s390x"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_remembered_for_its_repository_alone_for_a_while_and_the_memory_is_bounded() {
        let repository = |n: usize| Repository::parse(&format!("registry.test/app{n}")).unwrap();
        let refused = Refused::default();
        refused.note(repository(0));
        assert!(refused.has(&repository(0)) && !refused.has(&repository(1)));
        tokio::time::advance(REFUSED_FOR).await;
        assert!(!refused.has(&repository(0)));
        (0..=REFUSED_MAX).for_each(|n| refused.note(repository(n)));
        assert_eq!(refused.lock().len(), REFUSED_MAX);
        assert!(refused.has(&repository(REFUSED_MAX)));
    }
}
