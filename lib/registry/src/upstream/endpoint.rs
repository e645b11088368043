//! Where a registry can be asked: its mirrors in order, then itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use tokio::time::Instant;

use super::remap::Remap;
use super::tls::{Clients, HttpClient};
use super::{ConfigError, RegistryConfig, UpstreamError};
use crate::reference::{DOCKER_HUB, Repository};

/// How long a mirror that is down is left alone.
const PAUSE: Duration = Duration::from_secs(30);
/// The longest a server is left alone, whatever it asks for.
const PAUSE_MAX: Duration = Duration::from_secs(15 * 60);

/// One server that has a registry's content: its URL up to `/v2/`, what names are there, and the clients to use.
pub(super) struct Endpoint {
    base: String,
    /// What stands before every name: empty, or words and a `/`.
    prefix: String,
    remap: Remap,
    clients: Clients,
    /// Of a mirror: what it is called, and so whose credentials are used.
    host: Option<String>,
    /// Of a mirror that is left alone.
    resume_at: Mutex<Option<Instant>>,
}

/// All servers of one registry.
#[derive(Clone)]
pub(super) struct Places {
    mirrors: Vec<Arc<Endpoint>>,
    pub(super) registry: Arc<Endpoint>,
}

/// All registries: those configured, and the rule for any other.
pub(super) struct Endpoints {
    configured: BTreeMap<String, Places>,
    common: Clients,
}

impl Endpoints {
    pub(super) fn new(
        registries: &BTreeMap<String, RegistryConfig>,
        connect_timeout: Duration,
    ) -> Result<Self, ConfigError> {
        let common = Clients::common(connect_timeout);
        let mut clients = BTreeMap::new();
        for (registry, config) in registries {
            clients.insert(registry_name(registry)?, common.with(registry, config, connect_timeout)?);
        }
        let clients_of = |host: &str| clients.get(host).unwrap_or(&common).clone();
        let mut configured = BTreeMap::new();
        for (registry, config) in registries {
            let name = registry_name(registry)?;
            let remap = Remap::new(registry, &config.remap)?;
            if config.url.is_none() && config.mirrors.is_empty() {
                remap.unused(registry).map_or(Ok(()), Err)?;
            }
            let own = match &config.url {
                None if config.plain_http => Endpoint::new(format!("http://{}", host_of(&name)), clients_of(&name)),
                None => Endpoint::new(base_of(&name), clients_of(&name)),
                Some(url) => {
                    let refused = || refused_url(registry, "url", url);
                    let (base, prefix) = configured_base(url, config.plain_http).ok_or_else(refused)?;
                    Endpoint { prefix, remap: remap.clone(), ..Endpoint::new(base, clients_of(&name)) }
                }
            };
            let mirrors = config.mirrors.iter().map(|url| {
                let refused = || refused_url(registry, "mirrors", url);
                let (base, prefix) = configured_base(url, false).ok_or_else(refused)?;
                let authority = base.split("://").nth(1).and_then(|rest| rest.split('/').next()).ok_or_else(refused)?;
                let host = registry_name(authority)?;
                let remap = remap.clone();
                let endpoint = Endpoint::new(base, clients_of(&host));
                Ok(Arc::new(Endpoint { prefix, remap, host: Some(host), ..endpoint }))
            });
            let mirrors = mirrors.collect::<Result<_, ConfigError>>()?;
            configured.insert(name, Places { mirrors, registry: Arc::new(own) });
        }
        Ok(Self { configured, common })
    }

    pub(super) fn find(&self, registry: &str) -> Places {
        self.configured.get(registry).cloned().unwrap_or_else(|| {
            let endpoint = Endpoint::new(base_of(registry), self.common.clone());
            Places { mirrors: Vec::new(), registry: Arc::new(endpoint) }
        })
    }
}

impl Places {
    /// The mirrors to ask now. What a caller proves itself with is the registry's to check: with `brought`, only mirrors at
    /// the registry's own server are.
    pub(super) fn mirrors(&self, brought: bool) -> impl Iterator<Item = &Arc<Endpoint>> {
        let now = Instant::now();
        let registry: Option<Uri> = self.registry.base.parse().ok();
        self.mirrors.iter().filter(move |mirror| {
            let own = || registry.as_ref().zip(mirror.base.parse().ok()).is_some_and(|(a, b)| same_origin(a, &b));
            mirror.rests(now).is_none() && (!brought || own())
        })
    }
}

impl Endpoint {
    fn new(base: String, clients: Clients) -> Self {
        let (prefix, remap, host, resume_at) = (String::new(), Remap::default(), None, Mutex::default());
        Self { base, prefix, remap, clients, host, resume_at }
    }

    /// What a repository is called here: its name, below the host whose credentials are to be used.
    pub(super) fn locate(&self, repository: &Repository) -> Result<Located, UpstreamError> {
        let name = format!("{}{}", self.prefix, self.remap.apply(&repository.name));
        let account = match &self.host {
            None => repository.clone(),
            Some(host) => Repository::new(host, &name)
                .map_err(|_| UpstreamError::Request(format!("{name:?} is no name of a repository")))?,
        };
        Ok(Located { name, account })
    }

    /// The URL of something in a repository; `rest` follows `/v2/<name>/`.
    pub(super) fn uri(&self, located: &Located, rest: &str) -> Result<Uri, UpstreamError> {
        format!("{}/v2/{}/{rest}", self.base, located.name)
            .parse()
            .map_err(|_| UpstreamError::Request("the path is not one of a URL".to_owned()))
    }

    /// The URL that says whether it is a registry, and how it is signed in at.
    pub(super) fn ping(&self) -> Result<Uri, UpstreamError> {
        format!("{}/v2/", self.base).parse().map_err(|_| UpstreamError::Request("the address is no URL".to_owned()))
    }

    /// The client for a URL we were sent to.
    pub(super) fn client_for(&self, uri: &Uri) -> &HttpClient {
        let own = self.base.parse().is_ok_and(|base| same_origin(&base, uri));
        if own { &self.clients.host } else { &self.clients.elsewhere }
    }

    pub(super) fn is_plain(&self) -> bool {
        self.base.starts_with("http:")
    }

    /// Leaves it alone for a while after an error that another request would meet too.
    pub(super) fn note(&self, error: &UpstreamError) {
        tracing::debug!(server = self.base, %error, "asking the next server");
        if error.is_retryable() {
            let pause = error.retry_after().unwrap_or_default().clamp(PAUSE, PAUSE_MAX);
            let until = self.resume_at().replace(Instant::now() + pause);
            if until.is_none() {
                tracing::warn!(server = self.base, %error, ?pause, "leaving a server alone");
            }
        }
    }

    /// Leaves it alone for long: it gave wrong bytes.
    pub(super) fn shun(&self) {
        tracing::error!(server = self.base, pause = ?PAUSE_MAX, "a mirror gives wrong bytes; leaving it alone");
        *self.resume_at() = Some(Instant::now() + PAUSE_MAX);
    }

    /// Notes that it gave something.
    pub(super) fn note_good(&self) {
        if self.resume_at().take().is_some() {
            tracing::info!(server = self.base, "server is back");
        }
    }

    /// For how long it is still left alone.
    pub(super) fn rests(&self, now: Instant) -> Option<Duration> {
        let left = self.resume_at().map(|at| at.saturating_duration_since(now));
        left.filter(|left| !left.is_zero())
    }

    fn resume_at(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.resume_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A repository at one server.
pub(super) struct Located {
    /// Its name there.
    pub(super) name: String,
    /// Under which credentials and tokens are kept.
    pub(super) account: Repository,
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

/// Brings a registry's name to its one spelling.
pub(super) fn registry_name(text: &str) -> Result<String, ConfigError> {
    // The name inside does not matter.
    Ok(Repository::new(text, "any/name").map_err(ConfigError::Registry)?.registry)
}

fn refused_url(registry: &str, key: &'static str, url: &str) -> ConfigError {
    ConfigError::Url { registry: registry.to_owned(), key, url: url.to_owned() }
}

/// Splits a URL into what is before `/v2/` and what is to be put before each name.
fn configured_base(url: &str, plain_http: bool) -> Option<(String, String)> {
    let scheme = if plain_http { "http" } else { "https" };
    let absolute = if url.contains("://") { url.to_owned() } else { format!("{scheme}://{url}") };
    let uri: Uri = absolute.parse().ok()?;
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https") && uri.query().is_none())?;
    let path = format!("{}/", uri.path().trim_end_matches('/'));
    let (before, prefix) = path.split_once("/v2/").unwrap_or((path.trim_end_matches('/'), ""));
    if !prefix.is_empty() {
        Repository::new("r.example", prefix.trim_end_matches('/')).ok()?;
    }
    Some((format!("{scheme}://{authority}{before}"), prefix.to_owned()))
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
        let base = |url, plain| configured_base(url, plain).map(|(base, prefix)| format!("{base} {prefix}"));
        assert_eq!(base("https://mirror.example:5000/", false).unwrap(), "https://mirror.example:5000 ");
        assert_eq!(base("mirror.example/prefix/v2/", true).unwrap(), "http://mirror.example/prefix ");
        assert_eq!(base("http://10.0.0.1", false).unwrap(), "http://10.0.0.1 ");
        assert_eq!(base("https://harbor.example/v2/proxy", false).unwrap(), "https://harbor.example proxy/");
        assert_eq!(base("https://a.example/api/v2/x/y/", false).unwrap(), "https://a.example/api x/y/");
        for url in ["ftp://x", "", "http://", "https://user:secret@x", "https://x/?q", "a b", "https://x/v2/A"] {
            assert_eq!(base(url, false), None, "{url:?}");
        }
    }

    fn places(config: RegistryConfig) -> Result<Places, ConfigError> {
        let registries = [("docker.io".to_owned(), config)].into();
        Ok(Endpoints::new(&registries, Duration::from_secs(1))?.find("docker.io"))
    }

    #[test]
    fn a_mirror_has_its_own_names_and_credentials_and_the_registry_keeps_its_own() {
        let config = RegistryConfig {
            mirrors: vec!["https://harbor.example/v2/proxy".to_owned(), "http://10.0.0.1:5000".to_owned()],
            remap: [("library".to_owned(), "hub/library".to_owned())].into(),
            ..RegistryConfig::default()
        };
        let places = places(config).unwrap();
        let all = places.mirrors(false).chain([&places.registry]);
        let repository = Repository::parse("nginx").unwrap();
        let located: Vec<_> = all
            .map(|endpoint| {
                let located = endpoint.locate(&repository).unwrap();
                (endpoint.uri(&located, "x").unwrap().to_string(), located.account.to_string())
            })
            .collect();
        let expected = [
            ("https://harbor.example/v2/proxy/hub/library/nginx/x", "harbor.example/proxy/hub/library/nginx"),
            ("http://10.0.0.1:5000/v2/hub/library/nginx/x", "10.0.0.1:5000/hub/library/nginx"),
            ("https://registry-1.docker.io/v2/library/nginx/x", "docker.io/library/nginx"),
        ];
        assert_eq!(located, expected.map(|(uri, account)| (uri.to_owned(), account.to_owned())));
    }

    #[test]
    fn a_callers_credentials_go_to_mirrors_at_the_registrys_own_server_alone() {
        let mirrors =
            ["https://mirror.example", "https://registry-1.docker.io:443/v2/mirror", "http://registry-1.docker.io"];
        let mirrors = mirrors.map(str::to_owned).to_vec();
        let places = places(RegistryConfig { mirrors, ..RegistryConfig::default() }).unwrap();
        let bases: Vec<_> = places.mirrors(true).map(|mirror| mirror.base.as_str()).collect();
        assert_eq!(bases, ["https://registry-1.docker.io:443"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_fails_is_left_alone_for_a_while() {
        let mirrors = vec!["https://mirror.example".to_owned()];
        let places = places(RegistryConfig { mirrors, ..RegistryConfig::default() }).unwrap();
        let mirror = &places.mirrors[0];
        mirror.note(&UpstreamError::unauthorized("no"));
        assert_eq!(places.mirrors(false).count(), 1);
        mirror.note(&UpstreamError::Server { status: 500, retry_after: None });
        assert_eq!(places.mirrors(false).count(), 0);
        tokio::time::advance(PAUSE).await;
        assert_eq!(places.mirrors(false).count(), 1);
    }

    #[test]
    fn a_remap_that_nothing_uses_is_refused() {
        let remap = [("library".to_owned(), "hub/library".to_owned())].into();
        let error = places(RegistryConfig { remap, ..RegistryConfig::default() }).err().unwrap();
        assert!(matches!(error, ConfigError::Remap { .. }), "{error}");
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
}
