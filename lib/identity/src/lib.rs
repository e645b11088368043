//! Who a part is to the others: certificates from files, TLS 1.3 both ways, and gRPC over it.
//!
//! The agent, the origin, the tracker and lib/peer use an [`Identity`] wherever one part connects to another. It knows what
//! parts are called, and nothing of what they do or say.
//!
//! A certificate names its part as a DNS name ([`Part::name`]), so who dials asks for that name as any TLS client does
//! (RFC 9525), whatever the address, and who accepts sees which parts the caller may be. All certificates come from one
//! authority, which signs for nothing else. Without certificates everything is plaintext, and anybody may be any part.

mod files;
mod grpc;
mod issue;
mod seal;
mod stream;

pub use files::IdentityError;
pub use grpc::{Caller, Connection, endpoint, only};
pub use issue::{IssueError, issue};
pub use seal::{SEAL_LENGTH_MAX, SealError};
pub use stream::Stream;

use std::path::Path;
use std::sync::{Arc, RwLock};

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use tokio_util::sync::CancellationToken;

use files::Held;

/// A part of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A node's registry mirror and peer.
    Agent,
    /// What fetches from upstream and publishes metainfo.
    Origin,
    /// What knows who has which blob.
    Tracker,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Agent, Self::Origin, Self::Tracker];

    /// Its name in certificates: a subjectAltName of kind DNS.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent.shoal",
            Self::Origin => "origin.shoal",
            Self::Tracker => "tracker.shoal",
        }
    }

    /// The first word of its name: what its directory is called where all parts' certificates are made.
    fn label(self) -> &'static str {
        self.name().trim_end_matches(".shoal")
    }

    fn server_name(self) -> ServerName<'static> {
        ServerName::try_from(self.name()).expect("these are DNS names")
    }

    /// Whether a certificate, known to be the authority's, is this part's.
    fn is_named_by(self, certificate: &CertificateDer<'_>) -> bool {
        let parsed = ParsedCertificate::try_from(certificate);
        parsed.is_ok_and(|parsed| verify_server_name(&parsed, &self.server_name()).is_ok())
    }
}

/// The parts that whoever is at the other end of a connection may be, by the certificate shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts([bool; Part::ALL.len()]);

impl Parts {
    /// Any part: nothing has to be shown in plaintext.
    pub const ANY: Self = Self([true; Part::ALL.len()]);

    /// Whether it may be this part.
    #[must_use]
    pub fn contain(self, part: Part) -> bool {
        self.0[part as usize]
    }

    /// Those that a certificate, known to be the authority's, names.
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Part::ALL.map(|part| part.is_named_by(certificate)))
    }
}

/// What a part shows others and asks of them; clones share it. The default is plaintext.
#[derive(Clone, Default)]
pub struct Identity(Option<Arc<RwLock<Held>>>);

impl Identity {
    /// Plaintext: nothing is shown, and nothing is asked of others.
    #[must_use]
    pub fn plaintext() -> Self {
        Self::default()
    }

    /// Reads the certificates in a directory, and again whenever they change, until shutdown: `tls.crt` and `tls.key` are the
    /// part's own, `ca.crt` is the authority's, all in PEM. Without a directory it is plaintext, which is said aloud.
    ///
    /// # Errors
    /// When a file cannot be read, or the part could not show what is in them. See [`IdentityError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime, if there is a directory.
    pub fn start(directory: Option<&Path>, me: Part, shutdown: CancellationToken) -> Result<Self, IdentityError> {
        let Some(directory) = directory else {
            tracing::warn!(
                "no certificates: parts talk in plaintext, and whoever reaches their ports may read, or pose as one of them \
                 (key `certificates`)"
            );
            return Ok(Self::plaintext());
        };
        let held = Arc::new(RwLock::new(Held::open(directory, me)?));
        tokio::spawn(files::follow(Arc::downgrade(&held), shutdown));
        Ok(Self(Some(held)))
    }

    /// Whether it is plaintext.
    #[must_use]
    pub fn is_plaintext(&self) -> bool {
        self.0.is_none()
    }

    /// For status pages: how parts talk.
    #[must_use]
    pub fn transport(&self) -> &'static str {
        if self.is_plaintext() { "plaintext" } else { "mutual TLS" }
    }

    fn held(&self) -> Option<Arc<files::Configs>> {
        let held = self.0.as_ref()?.read().expect("nothing panics while it holds this lock");
        Some(held.configs.clone())
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.transport())
    }
}

/// A part, with what [`issue`] wrote for it.
#[cfg(test)]
fn identity(directory: &Path, part: Part) -> Identity {
    Identity::start(Some(&directory.join(part.label())), part, CancellationToken::new()).unwrap()
}
