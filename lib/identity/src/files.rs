//! Certificates on disk, named as Kubernetes and cert-manager name them, and what rustls makes of them.
//!
//! Files that change are taken as they are then; new ones that cannot be used leave the old in force. Connections that
//! stand are not touched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, Weak};
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SigningKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::Part;

/// The authority's certificates, the part's own with those between it and the authority, and its key.
const NAMES: [&str; 3] = ["ca.crt", "tls.crt", "tls.key"];
/// How often files are looked at. A kubelet takes a minute to show a Secret's new content anyway.
const INTERVAL: Duration = Duration::from_secs(10);
/// The longest file read, in bytes.
const LENGTH_MAX: u64 = 1 << 20;

/// Says why certificates cannot be used. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what its name says.
    #[error("{} holds no {expected} in PEM", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
        /// What was expected.
        expected: &'static str,
    },
    /// What the files hold does not fit together, or is of a kind that is not known.
    #[error("the certificates in {} cannot be used", directory.display())]
    Unusable {
        /// The directory.
        directory: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The certificate is another part's.
    #[error("{} is not for the DNS name {}", file.display(), expected.name())]
    OtherPart {
        /// The file.
        file: PathBuf,
        /// The part that wants to show it.
        expected: Part,
    },
}

/// The files in force.
pub(crate) struct Held {
    directory: PathBuf,
    me: Part,
    files: Files,
    pub(crate) configs: Arc<Configs>,
}

/// The two ends of TLS, and what seals are made with and checked against.
pub(crate) struct Configs {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) own: Vec<CertificateDer<'static>>,
    pub(crate) key: Arc<dyn SigningKey>,
    pub(crate) verifier: Arc<WebPkiServerVerifier>,
}

type Files = [Vec<u8>; NAMES.len()];

impl Held {
    pub(crate) fn open(directory: &Path, me: Part) -> Result<Self, IdentityError> {
        let files = read(directory)?;
        let configs = Arc::new(configs(directory, me, &files)?);
        Ok(Self { directory: directory.to_owned(), me, files, configs })
    }
}

/// Takes up files that have changed, for as long as somebody has the identity.
pub(crate) async fn follow(held: Weak<RwLock<Held>>, shutdown: CancellationToken) {
    // What was found unusable is told once.
    let mut refused = None;
    while shutdown.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        let Some(held) = held.upgrade() else { return };
        let renewed = tokio::task::spawn_blocking(move || renew(&held, refused));
        let Ok(still_refused) = renewed.await else { return };
        refused = still_refused;
    }
}

/// Reads the files, and takes them up if they are new and can be used. Gives what was refused, now or before.
fn renew(held: &RwLock<Held>, refused: Option<Files>) -> Option<Files> {
    let (directory, me, before) = {
        let held = held.read().expect("nothing panics while it holds this lock");
        (held.directory.clone(), held.me, held.files.clone())
    };
    // In the midst of being replaced, perhaps: the next look finds them whole.
    let Ok(files) = read(&directory) else { return refused };
    if files == before || refused.as_ref() == Some(&files) {
        return refused;
    }
    match configs(&directory, me, &files) {
        Ok(configs) => {
            let mut held = held.write().expect("nothing panics while it holds this lock");
            (held.configs, held.files) = (Arc::new(configs), files);
            tracing::info!(directory = %directory.display(), "certificates renewed");
            None
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "new certificates cannot be used: those before stay in force");
            Some(files)
        }
    }
}

fn read(directory: &Path) -> Result<Files, IdentityError> {
    let mut files = Files::default();
    for (content, name) in files.iter_mut().zip(NAMES) {
        let file = directory.join(name);
        let refused = |source| IdentityError::Read { file: file.clone(), source };
        let length = fs::metadata(&file).map_err(refused)?.len();
        if length > LENGTH_MAX {
            return Err(refused(io::Error::other("it is longer than 1MiB")));
        }
        *content = fs::read(&file).map_err(refused)?;
    }
    Ok(files)
}

fn configs(directory: &Path, me: Part, [authority, own, key]: &Files) -> Result<Configs, IdentityError> {
    let [authority_file, own_file, key_file] = NAMES.map(|name| directory.join(name));
    let authority = certificates(authority, authority_file)?;
    let own = certificates(own, own_file.clone())?;
    let no_key = IdentityError::Empty { file: key_file, expected: "private key" };
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| no_key)?;
    if !me.is_named_by(&own[0]) {
        return Err(IdentityError::OtherPart { file: own_file, expected: me });
    }
    tls(authority, &own, &key, me).map_err(|source| IdentityError::Unusable { directory: directory.to_owned(), source })
}

fn certificates(pem: &[u8], file: PathBuf) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().unwrap_or_default();
    if found.is_empty() { Err(IdentityError::Empty { file, expected: "certificate" }) } else { Ok(found) }
}

fn tls(
    authority: Vec<CertificateDer<'static>>,
    own: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    me: Part,
) -> Result<Configs, Box<dyn std::error::Error + Send + Sync>> {
    let provider: Arc<CryptoProvider> = aws_lc_rs::default_provider().into();
    let mut roots = RootCertStore::empty();
    authority.into_iter().try_for_each(|root| roots.add(root))?;
    let roots = Arc::new(roots);
    let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
    if let Err(error) = servers.verify_server_cert(&own[0], &own[1..], &me.server_name(), &[], UnixTime::now()) {
        // It may be a matter of time, or of the others having another authority; alone we can do no better.
        tracing::warn!(%error, "other parts will refuse our certificate");
    }
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_webpki_verifier(servers.clone())
        .with_client_auth_cert(own.to_vec(), key.clone_key())?;
    // Connections last; and what was resumed would be judged by an older certificate.
    client.resumption = Resumption::disabled();
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(own.to_vec(), key.clone_key())?;
    server.send_tls13_tickets = 0;
    let key = provider.key_provider.load_private_key(key.clone_key())?;
    Ok(Configs { client: Arc::new(client), server: Arc::new(server), own: own.to_vec(), key, verifier: servers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue;

    #[test]
    fn files_that_do_not_fit_are_named() {
        let scratch = tempfile::tempdir().unwrap();
        issue(scratch.path()).unwrap();
        let (agent, origin) = (scratch.path().join("agent"), scratch.path().join("origin"));
        let refused = |part| Held::open(&agent, part).err().unwrap().to_string();
        assert!(Held::open(&agent, Part::Agent).is_ok());
        assert!(refused(Part::Origin).ends_with("agent/tls.crt is not for the DNS name origin.shoal"));
        fs::copy(origin.join("tls.key"), agent.join("tls.key")).unwrap();
        assert!(refused(Part::Agent).ends_with("agent cannot be used"), "{}", refused(Part::Agent));
        fs::write(agent.join("tls.key"), "a key").unwrap();
        assert!(refused(Part::Agent).ends_with("agent/tls.key holds no private key in PEM"));
        fs::write(agent.join("ca.crt"), "").unwrap();
        assert!(refused(Part::Agent).ends_with("agent/ca.crt holds no certificate in PEM"));
        fs::remove_file(agent.join("tls.crt")).unwrap();
        assert!(refused(Part::Agent).starts_with("cannot read "));
    }

    #[test]
    fn new_files_are_taken_up_and_bad_ones_leave_the_old_in_force() {
        let scratch = tempfile::tempdir().unwrap();
        issue(scratch.path()).unwrap();
        let agent = scratch.path().join("agent");
        let held = RwLock::new(Held::open(&agent, Part::Agent).unwrap());
        let configs = || held.read().unwrap().configs.clone();
        let first = configs();
        assert!(renew(&held, None).is_none() && Arc::ptr_eq(&first, &configs()));
        let good = fs::read(agent.join("tls.crt")).unwrap();
        fs::write(agent.join("tls.crt"), "nonsense").unwrap();
        let refused = renew(&held, None);
        assert!(refused.is_some() && Arc::ptr_eq(&first, &configs()));
        fs::remove_file(agent.join("tls.crt")).unwrap();
        assert!(renew(&held, refused).is_some() && Arc::ptr_eq(&first, &configs()));
        fs::write(agent.join("tls.crt"), [good, b"\n".to_vec()].concat()).unwrap();
        assert!(renew(&held, None).is_none() && !Arc::ptr_eq(&first, &configs()));
    }

    #[tokio::test(start_paused = true)]
    async fn files_are_followed_until_nobody_has_the_identity() {
        let scratch = tempfile::tempdir().unwrap();
        issue(scratch.path()).unwrap();
        let held = Arc::new(RwLock::new(Held::open(&scratch.path().join("agent"), Part::Agent).unwrap()));
        let first = held.read().unwrap().configs.clone();
        let following = tokio::spawn(follow(Arc::downgrade(&held), CancellationToken::new()));
        issue(scratch.path().join("new").as_path()).unwrap();
        for name in NAMES {
            fs::copy(scratch.path().join("new/agent").join(name), scratch.path().join("agent").join(name)).unwrap();
        }
        let renewed = async {
            while Arc::ptr_eq(&first, &held.read().unwrap().configs) {
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::time::timeout(10 * INTERVAL, renewed).await.unwrap();
        drop(held);
        following.await.unwrap();
    }
}
