//! What the tests of the upstream client share: an embedded registry, a client of it with short time-outs.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use shoal_meta::Digest;
use shoal_registry::embedded::{Content, EmbeddedRegistry, Layer, Options};
use shoal_registry::{
    Access, BlobBody, Config, Reference, RegistryConfig, Repository, Secret, Timing, Upstream, UpstreamError,
};

/// The registry's name for its clients; where it is, the configuration says.
pub(crate) const REGISTRY: &str = "registry.example";
pub(crate) const NAME: &str = "org/app";

/// An embedded registry with one image of one layer.
pub(crate) struct Rig {
    pub(crate) registry: EmbeddedRegistry,
    pub(crate) layer: Digest,
    pub(crate) manifest: Digest,
    pub(crate) content: Bytes,
}

/// Bytes that differ everywhere, so that a wrong offset shows.
pub(crate) fn noise(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

pub(crate) async fn rig(options: Options) -> Rig {
    let content = noise(1_000_000);
    let mut served = Content::new();
    let image = served.add_image(NAME, "latest", vec![Layer::tar(content.clone())]);
    let registry = EmbeddedRegistry::start(any_port(), served, options).await.unwrap();
    Rig { registry, layer: image.layers[0], manifest: image.manifest, content }
}

pub(crate) fn any_port() -> std::net::SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Time-outs that let a test of silence end soon, and a loaded machine not fail the others.
pub(crate) fn timing() -> Timing {
    Timing {
        connect: Duration::from_secs(5),
        headers: Duration::from_secs(10),
        progress: Duration::from_secs(10),
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(1500),
        attempts: 3,
    }
}

pub(crate) fn config(registry: &EmbeddedRegistry) -> Config {
    let there = RegistryConfig { url: Some(registry.url()), ..RegistryConfig::default() };
    Config { registries: [(REGISTRY.to_owned(), there)].into(), timing: timing(), ..Config::default() }
}

impl Rig {
    pub(crate) fn config(&self) -> Config {
        config(&self.registry)
    }

    pub(crate) fn upstream(&self) -> Upstream {
        Upstream::new(self.config()).unwrap()
    }

    /// The paths of the requests for the layer's bytes, with their ranges.
    pub(crate) fn layer_gets(&self) -> Vec<Option<String>> {
        let path = format!("/blobs/{}", self.layer);
        let requests = self.registry.requests().into_iter();
        requests.filter(|r| r.method == "GET" && r.path.ends_with(&path)).map(|r| r.range).collect()
    }
}

pub(crate) fn access() -> Access {
    Access::new(Repository::new(REGISTRY, NAME).unwrap())
}

pub(crate) fn access_with(authorization: &str) -> Access {
    Access { authorization: Some(Secret::new(authorization)), ..access() }
}

pub(crate) fn latest() -> Reference {
    "latest".parse().unwrap()
}

/// Reads a body to its end.
pub(crate) async fn collect(mut body: BlobBody) -> Result<Vec<u8>, UpstreamError> {
    let mut all = Vec::new();
    while let Some(bytes) = body.next().await {
        all.extend_from_slice(&bytes?);
    }
    Ok(all)
}
