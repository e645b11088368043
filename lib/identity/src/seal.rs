//! Seals: what a part has said, for those who hear it later from somebody else. Signed with the key of its certificate.

use prost::Message;
use rustls::SignatureScheme;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::{Identity, Part};

/// Before each message: a seal is never a signature of anything else made with the same key, as those of TLS 1.3 begin with
/// spaces (RFC 8446, 4.4.3).
const CONTEXT: &[u8] = b"shoal seal 1\0";
/// What is chosen of, by what the key can.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
];
/// The longest seal accepted, in bytes: a chain of a few certificates and a signature.
pub const SEAL_LENGTH_MAX: usize = 16 * 1024;

/// Says why a seal is worth nothing.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Without certificates there is nothing to check it against.
    #[error("there are no certificates to check it against")]
    Plaintext,
    /// It is no seal.
    #[error("it is malformed")]
    Malformed,
    /// Its certificate is not the authority's for that part, or its time has passed.
    #[error("its certificate is not that of {}", .0.name())]
    Stranger(Part, #[source] rustls::Error),
    /// It is of another message.
    #[error("the signature is not of this message")]
    Forged,
}

/// A seal as it is written.
#[derive(Clone, PartialEq, Message)]
struct Seal {
    /// The signer's certificate, and those between it and the authority, in DER.
    #[prost(bytes = "vec", repeated, tag = "1")]
    certificates: Vec<Vec<u8>>,
    /// As TLS numbers them.
    #[prost(uint32, tag = "2")]
    scheme: u32,
    #[prost(bytes = "vec", tag = "3")]
    signature: Vec<u8>,
}

impl Identity {
    /// Seals a message as the part it is. `None` in plaintext.
    #[must_use]
    pub fn seal(&self, message: &[u8]) -> Option<Vec<u8>> {
        let configs = self.held()?;
        let signer = configs.key.choose_scheme(&SCHEMES)?;
        let signature = signer.sign(&[CONTEXT, message].concat()).ok()?;
        let certificates = configs.own.iter().map(|certificate| certificate.to_vec()).collect();
        Some(Seal { certificates, scheme: u16::from(signer.scheme()).into(), signature }.encode_to_vec())
    }

    /// Checks that a part has sealed a message, with a certificate that is good now.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn check_seal(&self, message: &[u8], seal: &[u8], by: Part) -> Result<(), SealError> {
        let configs = self.held().ok_or(SealError::Plaintext)?;
        if seal.len() > SEAL_LENGTH_MAX {
            return Err(SealError::Malformed);
        }
        let seal = Seal::decode(seal).map_err(|_| SealError::Malformed)?;
        let chain: Vec<_> = seal.certificates.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let (own, between) = chain.split_first().ok_or(SealError::Malformed)?;
        let known = configs.verifier.verify_server_cert(own, between, &by.server_name(), &[], UnixTime::now());
        known.map_err(|error| SealError::Stranger(by, error))?;
        let certificate = webpki::EndEntityCert::try_from(own).map_err(|_| SealError::Malformed)?;
        let message = [CONTEXT, message].concat();
        let mapping = configs.client.crypto_provider().signature_verification_algorithms.mapping;
        let of_scheme = mapping.iter().filter(|(scheme, _)| u32::from(u16::from(*scheme)) == seal.scheme);
        let verified = of_scheme
            .flat_map(|(_, algorithms)| algorithms.iter())
            .any(|algorithm| certificate.verify_signature(*algorithm, &message, &seal.signature).is_ok());
        if verified { Ok(()) } else { Err(SealError::Forged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity, issue};

    #[tokio::test]
    async fn a_seal_is_of_one_message_and_one_part() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        issue(ours.path()).unwrap();
        issue(theirs.path()).unwrap();
        let [agent, origin, _] = Part::ALL.map(|part| identity(ours.path(), part));
        let seal = origin.seal(b"the hashes").unwrap();
        assert!(seal.len() < SEAL_LENGTH_MAX / 8, "{} bytes", seal.len());
        agent.check_seal(b"the hashes", &seal, Part::Origin).unwrap();
        let refused = |message: &[u8], seal: &[u8]| agent.check_seal(message, seal, Part::Origin).unwrap_err();
        assert!(matches!(refused(b"other hashes", &seal), SealError::Forged));
        // An agent may not publish.
        let by_agent = agent.seal(b"the hashes").unwrap();
        assert!(matches!(refused(b"the hashes", &by_agent), SealError::Stranger(Part::Origin, _)));
        let by_stranger = identity(theirs.path(), Part::Origin).seal(b"the hashes").unwrap();
        assert!(matches!(refused(b"the hashes", &by_stranger), SealError::Stranger(Part::Origin, _)));
        for malformed in [&seal[..seal.len() / 2], b"", &[0xff; 100], &vec![0; SEAL_LENGTH_MAX + 1]] {
            assert!(matches!(refused(b"the hashes", malformed), SealError::Malformed));
        }
        assert!(Identity::plaintext().seal(b"x").is_none());
        let unchecked = Identity::plaintext().check_seal(b"the hashes", &seal, Part::Origin);
        assert!(matches!(unchecked, Err(SealError::Plaintext)));
    }

    #[tokio::test]
    async fn a_bit_that_is_changed_anywhere_is_seen() {
        let scratch = tempfile::tempdir().unwrap();
        issue(scratch.path()).unwrap();
        let origin = identity(scratch.path(), Part::Origin);
        let seal = origin.seal(b"the hashes").unwrap();
        for byte in 0..seal.len() {
            let mut changed = seal.clone();
            changed[byte] ^= 1;
            assert!(origin.check_seal(b"the hashes", &changed, Part::Origin).is_err(), "byte {byte}");
        }
    }
}
