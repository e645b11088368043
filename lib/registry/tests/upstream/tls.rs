//! A registry behind TLS, with a certificate of its own authority.
//!
//! `tls/` holds two authorities, whose keys were thrown away: one for servers, with a certificate for 127.0.0.1 for a hundred
//! years, and one for clients, with a certificate as long.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use shoal_registry::embedded::{Auth, Options};
use shoal_registry::{Access, Config, RegistryConfig, Repository, Upstream, UpstreamError};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::credentials::docker_config_for;
use crate::rig::{NAME, any_port, collect, latest, rig, timing};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/upstream/tls").join(name)
}

/// Whether each client that came showed a certificate.
type Shown = Arc<Mutex<Vec<bool>>>;

/// Ends TLS in front of a registry, until the test ends.
async fn tls_in_front_of(registry: SocketAddr) -> SocketAddr {
    asking_for_certificates(registry, None).await.0
}

/// Ends TLS in front of a registry for clients with a certificate of `client-ca.pem`: `Some(true)` turns others away.
async fn asking_for_certificates(registry: SocketAddr, must: Option<bool>) -> (SocketAddr, Shown) {
    let chain = CertificateDer::pem_file_iter(fixture("server.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(fixture("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match must {
        None => builder.with_no_client_auth(),
        Some(must) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(fixture("client-ca.pem")).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            let verifier = if must { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shown = Shown::default();
    let noted = shown.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust us leaves; that is a test of its own.
            let Ok(mut inside) = acceptor.accept(stream).await else { continue };
            noted.lock().unwrap().push(inside.get_ref().1.peer_certificates().is_some());
            tokio::spawn(async move {
                let mut outside = TcpStream::connect(registry).await.unwrap();
                let _ = copy_bidirectional(&mut inside, &mut outside).await;
            });
        }
    });
    (addr, shown)
}

fn upstream(addr: SocketAddr, ca_file: Option<PathBuf>, docker_config: Option<PathBuf>) -> (Upstream, Access) {
    configured(addr, RegistryConfig { ca_file, ..RegistryConfig::default() }, docker_config)
}

fn configured(addr: SocketAddr, there: RegistryConfig, docker_config: Option<PathBuf>) -> (Upstream, Access) {
    let there = RegistryConfig { url: Some(format!("https://{addr}")), ..there };
    let registries = [(addr.to_string(), there)].into();
    let config = Config { registries, docker_config, timing: timing(), ..Config::default() };
    (Upstream::new(config).unwrap(), Access::new(Repository::new(&addr.to_string(), NAME).unwrap()))
}

/// A registry's table with the certificate that `client-ca.pem` gave us.
fn with_certificate() -> RegistryConfig {
    RegistryConfig {
        ca_file: Some(fixture("ca.pem")),
        client_cert_file: Some(fixture("client.pem")),
        client_key_file: Some(fixture("client.key")),
        ..RegistryConfig::default()
    }
}

#[tokio::test]
async fn a_registry_with_its_own_authority_is_trusted_through_its_ca_file() {
    let rig = rig(Options::default()).await;
    let addr = tls_in_front_of(rig.registry.addr()).await;
    let (upstream, access) = upstream(addr, Some(fixture("ca.pem")), None);
    assert_eq!(upstream.manifest(&access, &latest(), false, &[]).await.unwrap().digest, rig.manifest);
}

#[tokio::test]
async fn a_registry_with_an_unknown_authority_is_not_trusted() {
    let rig = rig(Options::default()).await;
    let addr = tls_in_front_of(rig.registry.addr()).await;
    let (upstream, access) = upstream(addr, None, None);
    let error = upstream.manifest(&access, &latest(), false, &[]).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Transport(_)), "{error:?}");
    assert!(error.to_parts().message.contains("certificate"), "{}", error.to_parts().message);
    assert_eq!(rig.registry.requests(), []);
}

#[tokio::test]
async fn a_password_does_not_go_from_tls_to_a_token_service_without() {
    let user = Some(("me".to_owned(), "s3cret".to_owned()));
    let auth = Some(Auth::Token { user, lifetime: std::time::Duration::from_secs(300) });
    let rig = rig(Options { auth, ..Options::default() }).await;
    let addr = tls_in_front_of(rig.registry.addr()).await;
    let (_directory, credentials) = docker_config_for(&addr.to_string(), "me", "s3cret");
    let (upstream, access) = upstream(addr, Some(fixture("ca.pem")), Some(credentials));
    let error = upstream.authorize(&access, &latest()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Unauthorized { .. }), "{error:?}");
    assert!(rig.registry.requests().iter().all(|request| request.authorization.is_none()));
}

#[tokio::test]
async fn a_registry_that_wants_a_certificate_is_shown_the_configured_one() {
    let rig = rig(Options::default()).await;
    let (addr, _) = asking_for_certificates(rig.registry.addr(), Some(true)).await;
    let (shown, access) = configured(addr, with_certificate(), None);
    assert_eq!(shown.manifest(&access, &latest(), false, &[]).await.unwrap().digest, rig.manifest);
    let (bare, access) = upstream(addr, Some(fixture("ca.pem")), None);
    let error = bare.manifest(&access, &latest(), false, &[]).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Transport(_)), "{error:?}");
}

#[tokio::test]
async fn a_certificate_is_not_shown_to_where_a_registry_redirects() {
    let store = rig(Options::default()).await;
    let (elsewhere, shown_elsewhere) = asking_for_certificates(store.registry.addr(), Some(false)).await;
    let front = rig(Options { redirect_blobs: Some(format!("https://{elsewhere}")), ..Options::default() }).await;
    let (addr, shown) = asking_for_certificates(front.registry.addr(), Some(true)).await;
    let (upstream, access) = configured(addr, with_certificate(), None);
    let body = upstream.blob(&access, &front.layer, 0).await.unwrap();
    assert_eq!(collect(body).await.unwrap(), front.content);
    assert_eq!(*shown.lock().unwrap(), [true]);
    assert_eq!(*shown_elsewhere.lock().unwrap(), [false]);
}

#[tokio::test]
async fn a_redirect_from_tls_to_plain_http_is_refused() {
    let store = rig(Options::default()).await;
    let front = rig(Options { redirect_blobs: Some(store.registry.url()), ..Options::default() }).await;
    let addr = tls_in_front_of(front.registry.addr()).await;
    let (upstream, access) = upstream(addr, Some(fixture("ca.pem")), None);
    let error = upstream.blob(&access, &front.layer, 0).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Protocol(_)), "{error:?}");
    assert_eq!(store.registry.requests(), []);
}

#[tokio::test]
async fn a_mirror_is_trusted_by_the_table_of_its_own_host() {
    let rig = rig(Options::default()).await;
    let (addr, shown) = asking_for_certificates(rig.registry.addr(), Some(true)).await;
    let mirrored = RegistryConfig {
        url: Some("http://127.0.0.1:1".to_owned()),
        mirrors: vec![format!("https://{addr}")],
        ..RegistryConfig::default()
    };
    let registries = [("r.example".to_owned(), mirrored), (addr.to_string(), with_certificate())].into();
    let upstream = Upstream::new(Config { registries, timing: timing(), ..Config::default() }).unwrap();
    let access = Access::new(Repository::new("r.example", NAME).unwrap());
    assert_eq!(upstream.manifest(&access, &latest(), false, &[]).await.unwrap().digest, rig.manifest);
    assert_eq!(*shown.lock().unwrap(), [true]);
}
