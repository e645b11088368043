//! Makes an authority and a certificate for each part, for clusters without anything that does, and for tests.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use crate::Part;

/// Says why certificates were not made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A file could not be written, or is there already.
    #[error("cannot write {}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The cryptographic library failed.
    #[error("cannot make a certificate")]
    Crypto(#[from] rcgen::Error),
}

/// Makes a new authority and writes, for each part, a directory that its key `certificates` may name: `DIR/agent`,
/// `DIR/origin`, `DIR/tracker`. The authority's key is kept nowhere: for more certificates, make all anew. They hold until the
/// end of the year 9999 (RFC 5280, 4.1.2.5). Nothing is overwritten.
///
/// # Errors
/// See [`IssueError`].
pub fn issue(directory: &Path) -> Result<(), IssueError> {
    let mut params = params("Shoal")?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_key = KeyPair::generate()?;
    let authority = params.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(params, authority_key);
    for part in Part::ALL {
        let key = KeyPair::generate()?;
        let own = part_params(part)?.signed_by(&key, &issuer)?.pem();
        let directory = directory.join(part.label());
        fs::create_dir_all(&directory).map_err(|source| IssueError::Write { file: directory.clone(), source })?;
        write(directory.join("ca.crt"), 0o644, &authority)?;
        write(directory.join("tls.crt"), 0o644, &own)?;
        write(directory.join("tls.key"), 0o600, &key.serialize_pem())?;
    }
    Ok(())
}

fn params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(9999, 12, 31);
    Ok(params)
}

fn part_params(part: Part) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(part.name())?;
    params.subject_alt_names = CertificateParams::new(vec![part.name().to_owned()])?.subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn write(file: PathBuf, mode: u32, content: &str) -> Result<(), IssueError> {
    let created = File::options().write(true).create_new(true).mode(mode).open(&file);
    created
        .and_then(|mut created| created.write_all(content.as_bytes()))
        .map_err(|source| IssueError::Write { file, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overwritten_and_keys_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = tempfile::tempdir().unwrap();
        issue(scratch.path()).unwrap();
        let mode = fs::metadata(scratch.path().join("tracker/tls.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let refused = issue(scratch.path()).unwrap_err().to_string();
        assert!(refused.ends_with("agent/ca.crt"), "{refused}");
    }
}
