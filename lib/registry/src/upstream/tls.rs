//! The HTTP clients that reach registries: TLS with the system's certificates and a registry's own, connections kept.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::dial::Dialler;
use super::{ConfigError, RegistryConfig};

/// Idle connections kept to one host.
const IDLE_CONNECTIONS_MAX: usize = 8;
/// How long an idle connection is kept; shorter than the servers' usual minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// After how much silence TCP asks whether the other side still lives.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// The most a connection buffers while it reads, in bytes; the headers of an answer must fit.
const READ_BUFFER_MAX: usize = 256 * 1024;

pub(super) type HttpClient = Client<HttpsConnector<Dialler>, Full<Bytes>>;

/// The clients for one host.
#[derive(Clone)]
pub(super) struct Clients {
    /// For the host itself: shows it our certificate.
    pub(super) host: HttpClient,
    /// For where it sends us: trusts the same authorities, and shows nobody a certificate.
    pub(super) elsewhere: HttpClient,
}

impl Clients {
    /// Those for hosts nothing is configured of.
    pub(super) fn common(connect_timeout: Duration) -> Self {
        let client = http_client(system_roots().clone(), None, connect_timeout);
        Self { host: client.clone(), elsewhere: client }
    }

    /// Those for a configured registry; `self` where it has no certificates of its own.
    pub(super) fn with(
        &self,
        registry: &str,
        config: &RegistryConfig,
        connect_timeout: Duration,
    ) -> Result<Self, ConfigError> {
        let identity = match (&config.client_cert_file, &config.client_key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(Identity::read(registry, certificate, key)?),
            (Some(_), None) | (None, Some(_)) => {
                return Err(ConfigError::HalfCertificate { registry: registry.to_owned() });
            }
        };
        let roots = config.ca_file.as_ref().map(|path| roots_with(registry, path)).transpose()?;
        let elsewhere = match &roots {
            None => self.elsewhere.clone(),
            Some(roots) => http_client(roots.clone(), None, connect_timeout),
        };
        let host = match identity {
            None => elsewhere.clone(),
            Some(_) => {
                let roots = roots.unwrap_or_else(|| system_roots().clone());
                http_client(roots, identity, connect_timeout)
            }
        };
        Ok(Self { host, elsewhere })
    }
}

/// The certificate we show, checked to fit its key.
struct Identity(Arc<dyn rustls::client::ResolvesClientCert>);

impl Identity {
    fn read(registry: &str, certificate: &Path, key: &Path) -> Result<Self, ConfigError> {
        let refused = |of, path: &Path, cause| tls_error(registry, of, path, cause);
        let chain = certificates(certificate).map_err(|cause| refused("client_cert_file", certificate, cause))?;
        let of_key = |cause| refused("client_key_file", key, cause);
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| of_key(error.into()))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified = rustls::sign::CertifiedKey::from_der(chain, private, &provider);
        let certified = certified.map_err(|error| of_key(error.into()))?;
        Ok(Self(Arc::new(rustls::sign::SingleCertAndKey::from(certified))))
    }
}

fn http_client(roots: RootCertStore, identity: Option<Identity>, connect_timeout: Duration) -> HttpClient {
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider offers the default versions of TLS")
        .with_root_certificates(roots);
    let tls = match identity {
        None => tls.with_no_client_auth(),
        Some(Identity(resolver)) => tls.with_client_cert_resolver(resolver),
    };
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(connect_timeout));
    http.set_nodelay(true);
    http.set_keepalive(Some(KEEPALIVE));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(Dialler::new(http));
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
    let refused = |cause| tls_error(registry, "ca_file", path, cause);
    let mut roots = system_roots().clone();
    for certificate in certificates(path).map_err(refused)? {
        roots.add(certificate).map_err(|error| refused(error.into()))?;
    }
    Ok(roots)
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The certificates of a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Cause> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
    if found.is_empty() { Err("it holds no PEM certificate".into()) } else { Ok(found) }
}

fn tls_error(registry: &str, key: &'static str, path: &Path, cause: Cause) -> ConfigError {
    ConfigError::Tls { registry: registry.to_owned(), key, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_without_certificate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        assert!(roots_with("r", &path).is_err());
        std::fs::write(&path, "nothing").unwrap();
        assert!(roots_with("r", &path).is_err());
    }

    #[test]
    fn a_certificate_without_its_key_is_refused() {
        let common = Clients::common(Duration::from_secs(1));
        let half = RegistryConfig { client_cert_file: Some("cert.pem".into()), ..RegistryConfig::default() };
        let error = common.with("r", &half, Duration::from_secs(1)).err().unwrap();
        assert!(matches!(error, ConfigError::HalfCertificate { .. }), "{error}");
    }
}
