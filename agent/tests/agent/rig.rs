//! What the tests stand on: an upstream registry, perhaps an origin and a tracker, agents, and a plain HTTP client.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use shoal_agent::{Config, Running};
use shoal_kit::{ByteSize, HumanDuration};
use shoal_meta::Digest;
use shoal_registry::RegistryConfig;
use shoal_registry::embedded::{Content, EmbeddedRegistry, Image, Layer, Options};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// The registry's name, as clients call it.
pub(crate) const REGISTRY: &str = "registry.test";
/// The longest any test waits for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A registry and what is built around it. Dropping it ends everything.
pub(crate) struct Rig {
    pub(crate) registry: EmbeddedRegistry,
    pub(crate) image: Image,
    pub(crate) shutdown: CancellationToken,
    directory: TempDir,
    agents: std::sync::atomic::AtomicU32,
    agents_stop: std::sync::Mutex<CancellationToken>,
}

/// An answer, with its body as far as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The body ended cleanly.
    pub(crate) whole: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::sha256_of(&self.body)
    }
}

/// Bytes that look random and differ by seed.
pub(crate) fn noise(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out.into()
}

impl Rig {
    /// A registry with one image `app:v1` of two layers: 3 MiB and a bit, and 1 MiB.
    pub(crate) async fn start(options: Options) -> Self {
        Self::with_layers(options, &[(3 << 20) + 12345, 1 << 20]).await
    }

    pub(crate) async fn with_layers(options: Options, lengths: &[usize]) -> Self {
        Self::with_content(options, lengths, |_, _| {}).await
    }

    /// A registry with such an image, and what the test adds.
    pub(crate) async fn with_content(
        options: Options,
        lengths: &[usize],
        add: impl FnOnce(&mut Content, &Image),
    ) -> Self {
        let mut content = Content::new();
        let layers = (1..).zip(lengths).map(|(seed, length)| Layer::tar(noise(seed, *length))).collect();
        let image = content.add_image("app", "v1", layers);
        add(&mut content, &image);
        let registry = EmbeddedRegistry::start(LOCAL, content, options).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        Self {
            registry,
            image,
            shutdown: CancellationToken::new(),
            directory,
            agents: 0.into(),
            agents_stop: std::sync::Mutex::default(),
        }
    }

    pub(crate) fn registries(&self) -> BTreeMap<String, RegistryConfig> {
        let config = RegistryConfig { url: Some(self.registry.url()), ..RegistryConfig::default() };
        BTreeMap::from([(REGISTRY.to_owned(), config)])
    }

    /// An agent with a store of its own, and a setting or two of the test's.
    pub(crate) async fn agent(&self, adapt: impl FnOnce(&mut Config)) -> Running {
        let number = self.agents.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut config = Config {
            listen: LOCAL,
            admin_listen: LOCAL,
            peer_listen: LOCAL,
            store: self.directory.path().join(format!("agent-{number}")),
            store_max: Some(ByteSize::gib(1)),
            free_floor: ByteSize::bytes(0),
            stall_timeout: HumanDuration(Duration::from_millis(500)),
            registries: self.registries(),
            ..Config::default()
        };
        adapt(&mut config);
        let stop = self.agents_stop.lock().unwrap().clone();
        shoal_agent::start(config, stop).await.unwrap()
    }

    /// Ends the agents there are.
    pub(crate) fn stop_agents(&self) {
        std::mem::take(&mut *self.agents_stop.lock().unwrap()).cancel();
    }

    pub(crate) async fn origin(&self, shutdown: CancellationToken, trackers: Vec<String>) -> shoal_origin::Running {
        self.origin_at(LOCAL, shutdown, trackers).await
    }

    pub(crate) async fn origin_at(
        &self,
        listen: SocketAddr,
        shutdown: CancellationToken,
        trackers: Vec<String>,
    ) -> shoal_origin::Running {
        self.origin_with(shutdown, |config| {
            config.listen = listen;
            config.trackers = trackers;
        })
        .await
    }

    /// An origin on the directory all origins of the rig use, with a setting or two of the test's.
    pub(crate) async fn origin_with(
        &self,
        shutdown: CancellationToken,
        adapt: impl FnOnce(&mut shoal_origin::Config),
    ) -> shoal_origin::Running {
        let mut config = shoal_origin::Config {
            listen: LOCAL,
            peer_listen: LOCAL,
            admin_listen: LOCAL,
            http_listen: LOCAL,
            store: self.directory.path().join("origin"),
            store_max: Some(ByteSize::gib(1)),
            free_floor: ByteSize::bytes(0),
            registries: self.registries(),
            ..shoal_origin::Config::default()
        };
        adapt(&mut config);
        shoal_origin::start(config, shutdown).await.unwrap()
    }

    pub(crate) async fn tracker(&self, shutdown: CancellationToken) -> shoal_tracker::Running {
        self.tracker_with(shutdown, |_| {}).await
    }

    pub(crate) async fn tracker_with(
        &self,
        shutdown: CancellationToken,
        adapt: impl FnOnce(&mut shoal_tracker::Config),
    ) -> shoal_tracker::Running {
        let mut config =
            shoal_tracker::Config { listen: LOCAL, admin_listen: LOCAL, ..shoal_tracker::Config::default() };
        adapt(&mut config);
        shoal_tracker::start(config, shutdown).await.unwrap()
    }

    pub(crate) fn content(&self, digest: &Digest) -> Bytes {
        self.registry.content().blob(digest).unwrap().clone()
    }

    /// How often a blob left the registry, and how many of its bytes.
    pub(crate) fn sent(&self, digest: &Digest) -> (u64, u64) {
        self.registry.counters().blobs.get(digest).map_or((0, 0), |count| (count.gets, count.bytes))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.stop_agents();
    }
}

pub(crate) fn blob(digest: &Digest) -> String {
    format!("/v2/app/blobs/{digest}?ns={REGISTRY}")
}

pub(crate) fn manifest(reference: &str) -> String {
    format!("/v2/app/manifests/{reference}?ns={REGISTRY}")
}

fn client() -> Client<HttpConnector, Empty<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

/// Sends a request and reads the answer as far as it comes.
pub(crate) async fn send(agent: &Running, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(format!("http://{}{path}", agent.front_addr()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::new()).unwrap();
    let exchange = async {
        let response = client().request(request).await.unwrap();
        let (parts, mut incoming) = response.into_parts();
        let (mut body, mut whole) = (Vec::new(), true);
        while let Some(frame) = incoming.frame().await {
            match frame {
                Ok(frame) => body.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        Answer { status: parts.status, headers: parts.headers, body: body.into(), whole }
    };
    tokio::time::timeout(DEADLINE, exchange).await.expect("an answer in time")
}

pub(crate) async fn get(agent: &Running, path: &str) -> Answer {
    send(agent, Method::GET, path, &[]).await
}

pub(crate) async fn get_range(agent: &Running, path: &str, range: &str) -> Answer {
    send(agent, Method::GET, path, &[("range", range)]).await
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "never came true: {what}");
}

/// Asks again until an answer is good; gives that.
pub(crate) async fn answered(ask: impl AsyncFn() -> Answer, is_good: impl Fn(&Answer) -> bool) -> Answer {
    let asking = async {
        loop {
            let answer = ask().await;
            if is_good(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(DEADLINE, asking).await.expect("no answer was good in time")
}

/// Gets a document as text.
pub(crate) async fn fetch(url: &str) -> String {
    String::from_utf8(fetch_bytes(url).await.to_vec()).unwrap()
}

/// Gets a document.
pub(crate) async fn fetch_bytes(url: &str) -> Bytes {
    let response = client().get(url.parse().unwrap()).await.unwrap();
    response.into_body().collect().await.unwrap().to_bytes()
}

/// Gets a document as text, with credentials.
pub(crate) async fn fetch_as(url: &str, authorization: &str) -> String {
    let request = Request::get(url).header("authorization", authorization).body(Empty::new()).unwrap();
    let response = client().request(request).await.unwrap();
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// The challenge that a URL answers with.
pub(crate) async fn challenge(url: &str) -> String {
    let response = client().get(url.parse().unwrap()).await.unwrap();
    response.headers()["www-authenticate"].to_str().unwrap().to_owned()
}

/// Reads the first frame of a body; gives its length.
pub(crate) async fn first_bytes(agent: &Running, path: &str) -> usize {
    first_bytes_of(&format!("http://{}{path}", agent.front_addr())).await
}

/// The same of any URL.
pub(crate) async fn first_bytes_of(url: &str) -> usize {
    let exchange = async {
        let mut response = client().get(url.parse().unwrap()).await.unwrap();
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        frame.into_data().unwrap().len()
    };
    tokio::time::timeout(DEADLINE, exchange).await.expect("a first byte in time")
}
