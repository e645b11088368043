//! The Pods bound to one node that have not started yet: the images that the kubelet there is about to pull.
//!
//! The agent follows them. Of a Pod no more is read than its images, and nothing is kept but that it was seen. It knows no
//! registries: names of images are as Pods and kubelet write them.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::core::{ApiResource, Object};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// Most Pods remembered to have been seen; the oldest is forgotten first. A node has some hundreds at most.
const SEEN_MAX: usize = 1024;
/// Most images taken of one Pod.
const IMAGES_MAX: usize = 64;
/// The length of the list that kubelets cut theirs to, unless they are told otherwise (`nodeStatusMaxImages`).
const LISTED_MAX: usize = 50;
/// How long the images that a node lists are taken for those there. Pods come in crowds, and the kubelet lists them rarely.
const LISTED_FOR: Duration = Duration::from_secs(10);
/// How long the API server may take for them.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long after a refusal it is tried again whether Pods may be watched.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// A Pod that was bound to the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BoundPod {
    /// What the kubelet pulls for it, in that order.
    pub images: Vec<PodImage>,
    /// It brings secrets to pull its images with.
    pub has_secrets: bool,
    /// What the node said of its images when the Pod was seen.
    pub listed: Arc<ListedImages>,
}

/// An image of a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodImage {
    /// As the Pod names it: `nginx:1.27`.
    pub name: String,
    /// Its policy is `Always`: the kubelet looks what the name means now, even if it has an image of that name.
    pub looked_up: bool,
}

/// The images that a node says it has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListedImages {
    /// Their names, with tag or digest: `docker.io/library/nginx:1.27`.
    pub names: Vec<String>,
    /// The size in bytes of the smallest, if the list was cut: images that it leaves out are no larger. Which size that is,
    /// compressed or not, is the runtime's business.
    pub smallest: Option<u64>,
}

/// As much of a Pod as is read.
type Bound = Object<Spec, Status>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    init_containers: Vec<Container>,
    containers: Vec<Container>,
    volumes: Vec<Volume>,
    image_pull_secrets: Vec<Secret>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    image: String,
    image_pull_policy: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Volume {
    image: Option<ImageVolume>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ImageVolume {
    reference: String,
    pull_policy: String,
}

/// That it is there is all that is asked.
#[derive(Debug, Clone, Default, Deserialize)]
struct Secret {}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
}

/// Tells of each Pod that is bound to the node of this name and has not started, once. A receiver that is slow is waited for.
/// Returns when there is none any more, or no way to an API server is configured; an API server that is away, or lets nobody
/// watch Pods, is asked again.
pub async fn follow_pods(node: &str, pods: mpsc::Sender<BoundPod>) {
    match Client::try_default().await {
        Ok(client) => follow(client, node, pods).await,
        Err(error) => tracing::warn!(
            error = &error as &dyn std::error::Error,
            "no way to the Kubernetes API server: Pods are not watched"
        ),
    }
}

async fn follow(client: Client, node: &str, pods: mpsc::Sender<BoundPod>) {
    let mut listing = Listing::of(client.clone(), node);
    let (mut seen, mut is_told) = (Seen::default(), false);
    loop {
        let mut events = pin!(events(client.clone(), node));
        while let Some(event) = events.next().await {
            let pod = match event {
                Ok(Event::InitApply(pod) | Event::Apply(pod)) => pod,
                Ok(Event::Init | Event::InitDone | Event::Delete(_)) => continue,
                Err(error) if is_refusal(&error) => break,
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot watch Pods");
                    continue;
                }
            };
            if !is_waiting(&pod) || !seen.is_new(&pod) {
                continue;
            }
            let (images, has_secrets) = (images(&pod.spec), !pod.spec.image_pull_secrets.is_empty());
            if pods.send(BoundPod { images, has_secrets, listed: listing.now().await }).await.is_err() {
                return;
            }
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::info!("may not watch Pods: their layers are not fetched ahead");
        }
        sleep(REFUSED_PAUSE).await;
    }
}

/// The node's Pods that are still to be started, as they come and change. The list comes from the API server's cache, which finds
/// the Pods of a node without looking at all others: all agents may ask at once.
fn events(client: Client, node: &str) -> BoxStream<'static, watcher::Result<Event<Bound>>> {
    let api: Api<Bound> = Api::all_with(client, &ApiResource::erase::<Pod>(&()));
    let selected = format!("spec.nodeName={node},status.phase=Pending");
    let mut config = watcher::Config::default().fields(&selected).any_semantic();
    // A list in pages comes from etcd.
    config.page_size = None;
    watcher(api, config).default_backoff().boxed()
}

fn is_refusal(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status,
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => return false,
    };
    matches!(status.code, 401 | 403)
}

/// Whether it is still to be started, and stays.
fn is_waiting(pod: &Bound) -> bool {
    let is_pending = pod.status.as_ref().is_some_and(|status| status.phase == "Pending");
    is_pending && pod.metadata.deletion_timestamp.is_none()
}

/// What the kubelet pulls, in its order: image volumes, init containers, containers. Each once.
fn images(spec: &Spec) -> Vec<PodImage> {
    let volumes = spec.volumes.iter().filter_map(|volume| volume.image.as_ref());
    let volumes = volumes.map(|image| (&image.reference, &image.pull_policy));
    let containers = spec.init_containers.iter().chain(&spec.containers);
    let containers = containers.map(|container| (&container.image, &container.image_pull_policy));
    let mut images: Vec<PodImage> = Vec::new();
    for (name, policy) in volumes.chain(containers) {
        let known = images.iter().any(|image| image.name == *name);
        if !known && !name.is_empty() && policy != "Never" && images.len() < IMAGES_MAX {
            images.push(PodImage { name: name.clone(), looked_up: policy == "Always" });
        }
    }
    images
}

/// The Pods seen, by their uid, oldest first.
#[derive(Default)]
struct Seen(VecDeque<String>);

impl Seen {
    /// Tells whether it was not seen before, and remembers it.
    fn is_new(&mut self, pod: &Bound) -> bool {
        let Some(uid) = pod.metadata.uid.as_ref().filter(|uid| !self.0.contains(uid)) else { return false };
        self.0.push_back(uid.clone());
        if self.0.len() > SEEN_MAX {
            self.0.pop_front();
        }
        true
    }
}

/// The images that a node lists, read when they are asked for.
struct Listing {
    nodes: Api<Node>,
    name: String,
    read: Option<Instant>,
    images: Arc<ListedImages>,
}

impl Listing {
    fn of(client: Client, node: &str) -> Self {
        Self { nodes: Api::all(client), name: node.to_owned(), read: None, images: Arc::default() }
    }

    /// What was known last where the API server does not say.
    async fn now(&mut self) -> Arc<ListedImages> {
        if self.read.is_none_or(|at| at.elapsed() >= LISTED_FOR) {
            match timeout(PATIENCE, self.nodes.get(&self.name)).await {
                Ok(Ok(node)) => self.images = Arc::new(listed(&node)),
                Ok(Err(error)) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot read which images the node has")
                }
                Err(_) => tracing::debug!("the Kubernetes API server does not say which images the node has"),
            }
            self.read = Some(Instant::now());
        }
        self.images.clone()
    }
}

fn listed(node: &Node) -> ListedImages {
    let images = node.status.as_ref().and_then(|status| status.images.as_deref()).unwrap_or_default();
    let names = images.iter().flat_map(|image| image.names.iter().flatten()).cloned().collect();
    let sizes = images.iter().filter_map(|image| u64::try_from(image.size_bytes?).ok());
    ListedImages { names, smallest: sizes.min().filter(|_| images.len() >= LISTED_MAX) }
}

#[cfg(test)]
mod tests;
