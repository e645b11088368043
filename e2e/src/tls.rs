//! A certificate authority of the test's own, and a server certificate for a host it impersonates. Used for the tests that
//! play Docker Hub; made with the `openssl` command.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::process::run;

/// Files of a server's identity.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The authority's certificate: what clients must trust.
    pub ca: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// The server's key.
    pub key: PathBuf,
}

impl Identity {
    /// Makes an authority and a certificate for `host` under `dir`.
    ///
    /// # Errors
    /// When `openssl` fails.
    pub fn make(dir: &Path, host: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let path = |name: &str| dir.join(name);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (ca, ca_key) = (path("ca.pem"), path("ca.key"));
        let (certificate, key, request) = (path("server.pem"), path("server.key"), path("server.csr"));
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        openssl(&[
            &["req", "-x509", "-subj", "/CN=shoal e2e", "-out", &text(&ca), "-keyout", &text(&ca_key)],
            &new_key[..],
        ])?;
        let subject = format!("/CN={host}");
        openssl(&[&["req", "-subj", &subject, "-out", &text(&request), "-keyout", &text(&key)], &new_key[..5]])?;
        let extensions = path("extensions");
        fs::write(&extensions, format!("subjectAltName=DNS:{host}\n"))?;
        openssl(&[
            &["x509", "-req", "-days", "2", "-in", &text(&request), "-out", &text(&certificate)],
            &["-CA", &text(&ca), "-CAkey", &text(&ca_key), "-CAcreateserial", "-extfile", &text(&extensions)],
        ])?;
        Ok(Self { ca, certificate, key })
    }
}

fn openssl(words: &[&[&str]; 2]) -> Result<()> {
    run("openssl", words.concat()).map(drop)
}
