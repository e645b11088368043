//! The client: pulls an image as runtimes do, three blobs at a time, checks every byte and keeps none. The same for all systems
//! with an HTTP front; a system without one is pulled from with containerd.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sha2::{Digest as _, Sha256};

use super::{NAME, TAG};
use crate::image::{Blob, Image, hex};
use crate::node::Node;
use crate::registry::HOST;
use crate::runtime::{Client as _, Containerd};

/// Blobs fetched at a time: containerd's default.
const CONCURRENT_DOWNLOADS: usize = 3;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// From when all pulls are told to when they start: each thread is in its node by then.
const LEAD: Duration = Duration::from_millis(300);

/// Where a node pulls from.
#[derive(Debug)]
pub(super) enum Front {
    /// A registry front.
    Http {
        /// The node that pulls.
        node: Arc<Node>,
        /// `http://address:port`, by address: the client resolves no names.
        url: String,
        /// Whether it is told the upstream registry as containerd does, by `?ns=`.
        ns: bool,
    },
    /// Whatever the node's containerd is set to.
    Containerd(Containerd),
}

/// A finished pull. All times in seconds since all pulls started.
#[derive(Debug, Clone)]
pub(super) struct Pulled {
    /// The last byte, checked.
    pub(super) seconds: f64,
    /// From the request for the longest layer to its first byte; unknown of containerd.
    pub(super) first_byte: Option<f64>,
    /// Each blob: the configuration, then the layers, lowest first; unknown of containerd.
    pub(super) blobs: Vec<BlobTimes>,
}

/// When a blob came.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlobTimes {
    pub(super) asked: f64,
    pub(super) first_byte: f64,
    pub(super) done: f64,
}

/// Pulls through all fronts at the same time; gives each one's result, in order.
pub(super) fn pull_at_once(fronts: &[Front], image: &Image, patience: Duration) -> Vec<Result<Pulled>> {
    let start = Instant::now() + LEAD;
    std::thread::scope(|scope| {
        let pull = |front| move || pull(front, image, start, patience);
        let pulls = fronts.iter().map(|front| scope.spawn(pull(front))).collect::<Vec<_>>();
        pulls.into_iter().map(|pull| pull.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

fn pull(front: &Front, image: &Image, start: Instant, patience: Duration) -> Result<Pulled> {
    match front {
        Front::Http { node, url, ns } => {
            let query = if *ns { format!("?ns={HOST}") } else { String::new() };
            let target = Target { base: format!("{url}/v2/{NAME}"), query, start };
            let pulled = on_node(node, start, async { tokio::time::timeout(patience, target.image(image)).await });
            pulled.and_then(|in_time| in_time.context("not done in time")?).with_context(|| node.name().to_owned())
        }
        Front::Containerd(containerd) => {
            std::thread::sleep(start.saturating_duration_since(Instant::now()));
            containerd.fetch(&format!("{HOST}/{NAME}:{TAG}"))?;
            Ok(Pulled { seconds: start.elapsed().as_secs_f64(), first_byte: None, blobs: Vec::new() })
        }
    }
}

/// Runs `work` from `start` on, on this thread, in the node's network.
fn on_node<T>(node: &Node, start: Instant, work: impl Future<Output = T>) -> Result<T> {
    node.enter_network()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::sleep(start.saturating_duration_since(Instant::now()));
    Ok(runtime.block_on(work))
}

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

struct Target {
    base: String,
    query: String,
    start: Instant,
}

impl Target {
    async fn image(&self, image: &Image) -> Result<Pulled> {
        let client: HttpClient = Client::builder(TokioExecutor::new()).build_http();
        let manifest = self.get(&client, &format!("manifests/{TAG}")).await?.collect().await?.to_bytes();
        let digest = format!("sha256:{}", hex(Sha256::digest(&manifest).as_slice()));
        ensure!(digest == image.digest, "the manifest is {digest}, not {}", image.digest);
        // Boxed: the compiler cannot see through a stream of borrowing futures.
        let blobs = [&image.config].into_iter().chain(&image.layers);
        let fetches = blobs.clone().map(|blob| self.blob(&client, blob).boxed_local()).collect::<Vec<_>>();
        let numbered = stream::iter(fetches.into_iter().enumerate());
        let fetched = numbered.map(|(index, fetch)| async move { Ok::<_, anyhow::Error>((index, fetch.await?)) });
        let mut times = fetched.buffer_unordered(CONCURRENT_DOWNLOADS).try_collect::<Vec<_>>().await?;
        times.sort_by_key(|(index, _)| *index);
        let times = times.into_iter().map(|(_, times)| times).collect::<Vec<_>>();
        // The first of them: when a later one is asked depends on when others end.
        let longest = blobs.zip(&times).reduce(|a, b| if b.0.length > a.0.length { b } else { a });
        let first_byte = longest.map(|(_, times)| times.first_byte - times.asked);
        Ok(Pulled { seconds: self.now(), first_byte, blobs: times })
    }

    async fn blob(&self, client: &HttpClient, blob: &Blob) -> Result<BlobTimes> {
        let asked = self.now();
        let mut body = self.get(client, &format!("blobs/{}", blob.digest)).await?;
        let (mut hasher, mut received, mut first_byte) = (Sha256::new(), 0, None);
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.with_context(|| format!("{} broke off at {received}", blob.digest))?.into_data() {
                first_byte.get_or_insert_with(|| self.now());
                received += data.len() as u64;
                hasher.update(&data);
            }
        }
        ensure!(received == blob.length, "{} has {received} bytes, not {}", blob.digest, blob.length);
        let digest = format!("sha256:{}", hex(hasher.finalize().as_slice()));
        ensure!(digest == blob.digest, "{} has the content of {digest}", blob.digest);
        let done = self.now();
        Ok(BlobTimes { asked, first_byte: first_byte.unwrap_or(done), done })
    }

    async fn get(&self, client: &HttpClient, path: &str) -> Result<Incoming> {
        let url = format!("{}/{path}{}", self.base, self.query);
        let request = Request::get(&url).header("accept", MANIFEST_TYPE).body(Empty::new())?;
        let response = client.request(request).await.with_context(|| format!("GET {url}"))?;
        if !response.status().is_success() {
            bail!("GET {url}: {}", response.status());
        }
        Ok(response.into_body())
    }

    fn now(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}
