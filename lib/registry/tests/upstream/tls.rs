//! A registry behind TLS, with a certificate of its own authority.
//!
//! `tls/` holds an authority, whose key was thrown away, and a certificate it gave to 127.0.0.1 for a hundred years.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shoal_registry::embedded::{Auth, Options};
use shoal_registry::{Access, Config, RegistryConfig, Repository, Upstream, UpstreamError};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::credentials::docker_config_for;
use crate::rig::{NAME, any_port, latest, rig, timing};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/upstream/tls").join(name)
}

/// Ends TLS in front of a registry, until the test ends.
async fn tls_in_front_of(registry: SocketAddr) -> SocketAddr {
    let chain = CertificateDer::pem_file_iter(fixture("server.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(fixture("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust us leaves; that is a test of its own.
            let Ok(mut inside) = acceptor.accept(stream).await else { continue };
            tokio::spawn(async move {
                let mut outside = TcpStream::connect(registry).await.unwrap();
                let _ = copy_bidirectional(&mut inside, &mut outside).await;
            });
        }
    });
    addr
}

fn upstream(addr: SocketAddr, ca_file: Option<PathBuf>, docker_config: Option<PathBuf>) -> (Upstream, Access) {
    let there = RegistryConfig { url: Some(format!("https://{addr}")), ca_file, ..RegistryConfig::default() };
    let config = Config { registries: [(addr.to_string(), there)].into(), docker_config, timing: timing() };
    (Upstream::new(config).unwrap(), Access::new(Repository::new(&addr.to_string(), NAME).unwrap()))
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
