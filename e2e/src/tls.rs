//! A certificate authority of the test's own, and certificates of it: for hosts it impersonates, and for the parts of a
//! Kubernetes. Used by the tests that play Docker Hub and by [`crate::kubernetes`]; made with the `openssl` command.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::process::run;

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

/// Who signs certificates.
#[derive(Debug, Clone)]
pub struct Authority {
    dir: PathBuf,
    /// Its certificate: what clients must trust.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one under `dir`.
    ///
    /// # Errors
    /// When `openssl` fails.
    pub fn make(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        let request = ["req", "-x509", "-days", "2", "-subj", "/CN=shoal e2e", "-out"];
        openssl(&[&request, &[&text(&certificate), "-keyout", &text(&key)], &NEW_KEY])?;
        Ok(Self { dir: dir.to_owned(), certificate, key })
    }

    /// Certifies a new key for a subject (`/CN=…`) and its names (`DNS:…` or `IP:…`, with commas between them).
    ///
    /// # Errors
    /// When `openssl` fails.
    pub fn issue(&self, name: &str, subject: &str, names: &str) -> Result<Identity> {
        let path = |suffix: &str| self.dir.join(format!("{name}.{suffix}"));
        let (certificate, key, request, extensions) = (path("pem"), path("key"), path("csr"), path("extensions"));
        openssl(&[&["req", "-subj", subject, "-out", &text(&request), "-keyout", &text(&key)], &NEW_KEY])?;
        fs::write(&extensions, format!("subjectAltName={names}\n"))?;
        openssl(&[
            &["x509", "-req", "-days", "2", "-in", &text(&request), "-out", &text(&certificate)],
            &["-CA", &text(&self.certificate), "-CAkey", &text(&self.key), "-CAcreateserial"],
            &["-extfile", &text(&extensions)],
        ])?;
        Ok(Identity { ca: self.certificate.clone(), certificate, key })
    }
}

/// Files of an identity.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The authority's certificate: what the other side must trust.
    pub ca: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Identity {
    /// Makes an authority and a certificate for `host` under `dir`.
    ///
    /// # Errors
    /// When `openssl` fails.
    pub fn make(dir: &Path, host: &str) -> Result<Self> {
        Authority::make(dir)?.issue("server", &format!("/CN={host}"), &format!("DNS:{host}"))
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn openssl(words: &[&[&str]]) -> Result<()> {
    run("openssl", words.concat()).map(drop)
}
