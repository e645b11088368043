//! An origin before an embedded registry, over real sockets, and what its clients would do.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use shoal_meta::{Digest, Geometry, PieceHash};
use shoal_origin::{Config, Running};
use shoal_proto::origin::v1::metainfo_update::{Header, Update};
use shoal_proto::origin::v1::origin_client::OriginClient;
use shoal_proto::origin::v1::{Access, MetainfoRequest, MetainfoUpdate, ResolveRequest, ResolveResponse};
use shoal_registry::embedded::{Content, EmbeddedRegistry, Options};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

pub(crate) const REPOSITORY: &str = "team/app";
/// Nothing in these tests takes nearly as long.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Lab {
    pub(crate) registry: EmbeddedRegistry,
    pub(crate) origin: Running,
    config: Config,
    root: tempfile::TempDir,
    shutdown: CancellationToken,
}

/// What one metainfo stream told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) header: Option<Header>,
    pub(crate) hashes: Vec<PieceHash>,
    pub(crate) complete: bool,
}

impl Lab {
    pub(crate) async fn start(content: Content, options: Options) -> Self {
        Self::start_with(content, options, |_| {}).await
    }

    pub(crate) async fn start_with(content: Content, options: Options, adjust: impl FnOnce(&mut Config)) -> Self {
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let registry = EmbeddedRegistry::start(any, content, options).await.unwrap();
        let root = tempfile::tempdir().unwrap();
        let mut config = Config {
            listen: any,
            peer_listen: any,
            admin_listen: any,
            http_listen: any,
            store: root.path().to_owned(),
            ..Config::default()
        };
        config.upstream_timing.attempts = 2;
        config.upstream_timing.backoff_first = Duration::from_millis(5);
        config.upstream_timing.backoff_max = Duration::from_millis(20);
        config.upstream_timing.progress = Duration::from_secs(5);
        adjust(&mut config);
        let shutdown = CancellationToken::new();
        let origin = shoal_origin::start(config.clone(), shutdown.clone()).await.unwrap();
        Self { registry, origin, config, root, shutdown }
    }

    /// Stops the origin and starts another on the same directory.
    pub(crate) async fn restart(self) -> Self {
        self.restart_with(|_| {}).await
    }

    /// The same, with another configuration.
    pub(crate) async fn restart_with(mut self, adjust: impl FnOnce(&mut Config)) -> Self {
        adjust(&mut self.config);
        self.shutdown.cancel();
        self.origin.stopped().await;
        let shutdown = CancellationToken::new();
        let origin = within(async {
            loop {
                // The last tasks of the first may still hold the store.
                match shoal_origin::start(self.config.clone(), shutdown.clone()).await {
                    Ok(origin) => return origin,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        Self { origin: origin.await, shutdown, ..self }
    }

    /// Changes a byte of a blob that is held, as a disk may in time.
    pub(crate) fn rot(&self, digest: &Digest, at: u64) {
        let hex = digest.hex();
        let data = self.root.path().join("store/blobs/sha256").join(&hex[..2]).join(hex).join("data");
        let (data, mut byte) = (std::fs::File::options().read(true).write(true).open(data).unwrap(), [0]);
        data.read_exact_at(&mut byte, at).unwrap();
        data.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    /// Takes the files of unfinished blobs away, as a disk that fails may.
    pub(crate) fn lose_partials(&self) {
        std::fs::remove_dir_all(self.root.path().join("store/partial")).unwrap();
    }

    pub(crate) fn access(&self, authorization: &str) -> Access {
        shoal_proto::access(&self.registry.addr().to_string(), REPOSITORY, Some(authorization))
    }

    pub(crate) async fn client(&self) -> OriginClient<Channel> {
        OriginClient::connect(format!("http://{}", self.origin.grpc_addr)).await.unwrap()
    }

    pub(crate) async fn open(&self, digest: &Digest, as_whom: &str) -> Result<Streaming<MetainfoUpdate>, Status> {
        let access = Some(self.access(as_whom));
        let request = MetainfoRequest { access, digest: digest.to_string(), ..MetainfoRequest::default() };
        self.client().await.metainfo(request).await.map(tonic::Response::into_inner)
    }

    /// Follows the metainfo of a blob to its end.
    pub(crate) async fn metainfo(&self, digest: &Digest) -> Result<Told, Status> {
        within(async { Told::all(self.open(digest, "").await?).await }).await
    }

    /// Follows the metainfo of a blob to its end, if the origin holds or is fetching it.
    pub(crate) async fn held(&self, digest: &Digest, as_whom: &str) -> Result<Told, Status> {
        let access = Some(self.access(as_whom));
        let request =
            MetainfoRequest { access, digest: digest.to_string(), held_only: true, ..MetainfoRequest::default() };
        within(async { Told::all(self.client().await.metainfo(request).await?.into_inner()).await }).await
    }

    pub(crate) async fn resolve(&self, reference: &str, head: bool) -> Result<ResolveResponse, Status> {
        let access = Some(self.access(""));
        let request = ResolveRequest { access, reference: reference.to_owned(), head, accept: Vec::new() };
        within(self.client().await.resolve(request)).await.map(tonic::Response::into_inner)
    }

    /// Asks the registry front for what is in this lab's repository, naming the registry by `ns`.
    pub(crate) async fn http(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        let separator = if path.contains('?') { '&' } else { '?' };
        let url =
            format!("http://{}/v2/{REPOSITORY}/{path}{separator}ns={}", self.origin.http_addr, self.registry.addr());
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client = Client::builder(TokioExecutor::new()).build_http();
        within(async {
            let response = client.request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
            let (status, headers) = (response.status(), response.headers().clone());
            let body = response.into_body().collect().await.map(|body| body.to_bytes()).map_err(|_| Cut);
            Answer { status, headers, body }
        })
        .await
    }

    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.http(Method::GET, path, headers).await
    }
}

/// An answer of the registry front.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Result<Bytes, Cut>,
}

/// The connection broke before the declared end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cut;

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(self.body.as_ref().unwrap()).unwrap();
        body["errors"][0]["code"].as_str().unwrap().to_owned()
    }
}

impl Told {
    async fn all(mut stream: Streaming<MetainfoUpdate>) -> Result<Self, Status> {
        let mut told = Self::default();
        while let Some(update) = stream.message().await? {
            told.take(update);
        }
        Ok(told)
    }

    pub(crate) fn take(&mut self, update: MetainfoUpdate) {
        match update.update.unwrap() {
            Update::Header(header) => self.header = Some(header),
            Update::Hashes(hashes) => {
                assert_eq!(hashes.first_piece as usize, self.hashes.len(), "hashes come in order");
                let (hashes, rest) = hashes.states.as_chunks::<32>();
                assert!(rest.is_empty());
                self.hashes.extend(hashes.iter().map(|hash| PieceHash(*hash)));
            }
            Update::Complete(_) => self.complete = true,
        }
    }
}

/// Bytes that look like nothing in particular, the same for the same seed.
pub(crate) fn noise(length: usize, seed: u64) -> Bytes {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect::<Vec<_>>().into()
}

/// The hashes the pieces of this content must have.
pub(crate) fn hashes_of(content: &[u8]) -> Vec<PieceHash> {
    let geometry = Geometry::for_length(content.len() as u64).unwrap();
    PieceHash::all(&geometry, content)
}

pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("it takes too long")
}
