//! Where a registry is, and the HTTP client that reaches it: TLS with the system's certificates, connections kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::{ConfigError, RegistryConfig, UpstreamError};
use crate::reference::{DOCKER_HUB, Repository};

/// Idle connections kept to one host.
const IDLE_CONNECTIONS_MAX: usize = 8;
/// How long an idle connection is kept; shorter than the servers' usual minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// After how much silence TCP asks whether the other side still lives.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The most a connection buffers while it reads, in bytes; the headers of an answer must fit.
const READ_BUFFER_MAX: usize = 256 * 1024;

pub(super) type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// One registry: its URL up to `/v2/` and the client to use.
#[derive(Clone)]
pub(super) struct Endpoint {
    base: String,
    pub(super) client: HttpClient,
}

/// All registries: those configured, and the rule for any other.
pub(super) struct Endpoints {
    configured: BTreeMap<String, Endpoint>,
    client: HttpClient,
}

impl Endpoints {
    pub(super) fn new(
        registries: BTreeMap<String, RegistryConfig>,
        connect_timeout: Duration,
    ) -> Result<Self, ConfigError> {
        let client = http_client(system_roots().clone(), connect_timeout);
        let mut configured = BTreeMap::new();
        for (registry, config) in registries {
            // The name inside does not matter: only the registry is checked and brought to its one spelling.
            let name = Repository::new(&registry, "any/name").map_err(ConfigError::Registry)?.registry;
            let client = match &config.ca_file {
                None => client.clone(),
                Some(path) => http_client(roots_with(&registry, path)?, connect_timeout),
            };
            let base = match &config.url {
                None if config.plain_http => format!("http://{}", host_of(&name)),
                None => base_of(&name),
                Some(url) => configured_base(&registry, url, config.plain_http)?,
            };
            configured.insert(name, Endpoint { base, client });
        }
        Ok(Self { configured, client })
    }

    pub(super) fn find(&self, registry: &str) -> Endpoint {
        let by_rule = || Endpoint { base: base_of(registry), client: self.client.clone() };
        self.configured.get(registry).cloned().unwrap_or_else(by_rule)
    }
}

impl Endpoint {
    /// The URL of something in a repository; `rest` follows `/v2/<name>/`.
    pub(super) fn uri(&self, repository: &Repository, rest: &str) -> Result<Uri, UpstreamError> {
        format!("{}/v2/{}/{rest}", self.base, repository.name)
            .parse()
            .map_err(|_| UpstreamError::Request("the path is not one of a URL".to_owned()))
    }

    pub(super) fn is_plain(&self) -> bool {
        self.base.starts_with("http:")
    }
}

/// Whether two URLs are of one server, so that what is meant for the first may go to the second.
pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().or(if uri.scheme_str() == Some("https") { Some(443) } else { Some(80) });
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// Resolves a `Location` against the URL it came from (RFC 3986, section 5.2, without dot segments).
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let absolute = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    absolute.parse::<Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty()))
}

fn base_of(registry: &str) -> String {
    let scheme = if is_local(registry) { "http" } else { "https" };
    format!("{scheme}://{}", host_of(registry))
}

/// Docker Hub's registry is not where its name says.
fn host_of(registry: &str) -> &str {
    if registry == DOCKER_HUB { "registry-1.docker.io" } else { registry }
}

/// `localhost` and loopback addresses: Docker trusts those without TLS.
fn is_local(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => registry.split(':').next().unwrap_or(registry),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn configured_base(registry: &str, url: &str, plain_http: bool) -> Result<String, ConfigError> {
    let refused = || ConfigError::Url { registry: registry.to_owned(), url: url.to_owned() };
    let scheme = if plain_http { "http" } else { "https" };
    let absolute = if url.contains("://") { url.to_owned() } else { format!("{scheme}://{url}") };
    let uri: Uri = absolute.parse().map_err(|_| refused())?;
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(refused)?;
    match uri.scheme_str() {
        Some(scheme @ ("http" | "https")) if uri.query().is_none() => {
            let path = uri.path().trim_end_matches('/');
            Ok(format!("{scheme}://{authority}{}", path.strip_suffix("/v2").unwrap_or(path)))
        }
        Some(_) | None => Err(refused()),
    }
}

fn http_client(roots: RootCertStore, connect_timeout: Duration) -> HttpClient {
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider offers the default versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(connect_timeout));
    http.set_nodelay(true);
    http.set_keepalive(Some(KEEPALIVE));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(http);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .http1_max_buf_size(READ_BUFFER_MAX)
        .build(connector)
}

/// The system's certificates, or those of webpki-roots where the system has none; read once.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            tracing::debug!("the system has no certificates; using the built-in ones");
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        roots
    })
}

fn roots_with(registry: &str, path: &Path) -> Result<RootCertStore, ConfigError> {
    let refused = |cause| ConfigError::CaFile { registry: registry.to_owned(), path: path.to_owned(), cause };
    let mut roots = system_roots().clone();
    let mut found = false;
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| refused(error.into()))? {
        let certificate = certificate.map_err(|error| refused(error.into()))?;
        roots.add(certificate).map_err(|error| refused(error.into()))?;
        found = true;
    }
    if found { Ok(roots) } else { Err(refused("it holds no PEM certificate".into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_on_this_machine_are_reached_without_tls() {
        assert_eq!(base_of("docker.io"), "https://registry-1.docker.io");
        assert_eq!(base_of("ghcr.io"), "https://ghcr.io");
        assert_eq!(base_of("10.0.0.5:5000"), "https://10.0.0.5:5000");
        for local in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.8.7", "[::1]:5000"] {
            assert_eq!(base_of(local), format!("http://{local}"));
        }
        assert_eq!(base_of("localhost.example"), "https://localhost.example");
    }

    #[test]
    fn a_configured_url_is_taken_with_or_without_scheme_and_path() {
        let base = |url, plain| configured_base("r", url, plain).map_err(|error| error.to_string());
        assert_eq!(base("https://mirror.example:5000/", false).unwrap(), "https://mirror.example:5000");
        assert_eq!(base("mirror.example/prefix/v2/", true).unwrap(), "http://mirror.example/prefix");
        assert_eq!(base("http://10.0.0.1", false).unwrap(), "http://10.0.0.1");
        for url in ["ftp://x", "", "http://", "https://user:secret@x", "https://x/?q", "a b"] {
            assert!(base(url, false).is_err(), "{url:?}");
        }
    }

    #[test]
    fn a_location_is_resolved_against_where_it_came_from() {
        let base: Uri = "https://r.example:5000/v2/a/blobs/x".parse().unwrap();
        let resolved = |location| resolve(&base, location).map(|uri| uri.to_string());
        assert_eq!(resolved("http://s3.example/o?sig=1").unwrap(), "http://s3.example/o?sig=1");
        assert_eq!(resolved("//s3.example/o").unwrap(), "https://s3.example/o");
        assert_eq!(resolved("/o?x").unwrap(), "https://r.example:5000/o?x");
        assert_eq!(resolved("y").unwrap(), "https://r.example:5000/v2/a/blobs/y");
        assert_eq!(resolved("?y").unwrap(), "https://r.example:5000/v2/a/blobs/x?y");
        assert_eq!(resolved("http://"), None);
    }

    #[test]
    fn another_scheme_host_or_port_is_another_server() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://a/x", "https://A:443/y"));
        assert!(same("http://a:80/x", "http://a/y"));
        assert!(!same("https://a/x", "http://a/x"));
        assert!(!same("https://a/x", "https://b.a/x"));
        assert!(!same("https://a:1/x", "https://a:2/x"));
    }

    #[test]
    fn a_ca_file_without_certificate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        assert!(roots_with("r", &path).is_err());
        std::fs::write(&path, "nothing").unwrap();
        assert!(roots_with("r", &path).is_err());
    }
}
