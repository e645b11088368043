//! The upstream: Debian's docker-registry on a node, and what its access log says was fetched. Started by the tests; knows
//! nothing of Shoal.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::image::Image;
use crate::node::Node;
use crate::process::Process;
use crate::tls::Identity;

/// What images of the upstream begin with: a name without a port, so that it can stand in a mirror's path too.
pub const HOST: &str = "registry.lab";
/// The port of the plain HTTP listener.
pub const PORT: u16 = 80;
/// The port of the TLS listener.
pub const TLS_PORT: u16 = 443;

/// What was fetched of one blob.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetches {
    /// Answered GET requests.
    pub count: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// A docker-registry, with plain HTTP on [`PORT`] and, when it has an identity, TLS on [`TLS_PORT`].
#[derive(Debug)]
pub struct Registry {
    node: Arc<Node>,
    processes: Vec<Process>,
}

impl Registry {
    /// Starts an empty registry on a node and waits until it listens.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(node: &Arc<Node>, identity: Option<&Identity>) -> Result<Self> {
        let mut registry = Self { node: Arc::clone(node), processes: Vec::new() };
        registry.listen("registry", PORT, "")?;
        if let Some(Identity { certificate, key, .. }) = identity {
            let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
            registry.listen("registry-tls", TLS_PORT, &tls)?;
        }
        Ok(registry)
    }

    /// The node it runs on.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Pushes an image from the registry's own node, so no shaped link is crossed, and keeps the manifest's bytes.
    ///
    /// # Errors
    /// When skopeo fails.
    pub fn push(&self, image: &Image, name: &str, tag: &str) -> Result<()> {
        let source = format!("oci:{}:latest", image.dir.display());
        let target = format!("docker://127.0.0.1:{PORT}/{name}:{tag}");
        let flags = ["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"];
        self.node.run("skopeo", &[&flags[..], &[&source, &target]].concat()).context("push an image").map(drop)
    }

    /// What the access log says of each blob, by digest, over all listeners.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn fetches(&self) -> Result<BTreeMap<String, Fetches>> {
        let mut fetches = BTreeMap::<String, Fetches>::new();
        for process in &self.processes {
            let log = fs::read_to_string(process.log()).context("access log of the registry")?;
            for (digest, bytes) in log.lines().filter_map(parse_blob_get) {
                let of_blob = fetches.entry(digest.to_owned()).or_default();
                of_blob.count += 1;
                of_blob.bytes += bytes;
            }
        }
        Ok(fetches)
    }

    fn listen(&mut self, name: &str, port: u16, tls: &str) -> Result<()> {
        let storage = self.node.dir().join("storage");
        let config: PathBuf = self.node.dir().join(format!("{name}.yml"));
        let text = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 0.0.0.0:{port}\n  secret: e2e\n{tls}",
            storage.display()
        );
        fs::write(&config, text)?;
        let mut command = self.node.command("docker-registry");
        command.arg("serve").arg(&config);
        let mut process = self.node.start(name, command)?;
        self.node.wait_listening(&mut process, port)?;
        self.processes.push(process);
        Ok(())
    }
}

/// Reads a line of the access log (Apache's combined format): digest and body length of a successful GET of a blob.
fn parse_blob_get(line: &str) -> Option<(&str, u64)> {
    let mut quoted = line.split('"');
    let mut request = quoted.nth(1)?.split(' ');
    let mut answer = quoted.next()?.split_whitespace();
    let (method, path) = (request.next()?, request.next()?);
    let (status, length) = (answer.next()?, answer.next()?);
    let (_, digest) = path.split('?').next()?.split_once("/blobs/")?;
    let counts = method == "GET" && (status == "200" || status == "206") && digest.starts_with("sha256:");
    counts.then(|| Some((digest, length.parse().ok()?))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "10.77.0.2 - - [21/Nov/2026:09:16:10 +0000]";

    #[test]
    fn a_blob_that_was_sent_counts() {
        let line = format!(r#"{DATE} "GET /v2/library/app/blobs/sha256:ab?ns=x HTTP/1.1" 206 17 "" "shoal""#);
        assert_eq!(parse_blob_get(&line), Some(("sha256:ab", 17)));
    }

    #[test]
    fn uploads_heads_manifests_and_failures_do_not_count() {
        for request in [
            r#""HEAD /v2/a/blobs/sha256:ab HTTP/1.1" 200 0"#,
            r#""GET /v2/a/blobs/sha256:ab HTTP/1.1" 404 9"#,
            r#""GET /v2/a/manifests/sha256:ab HTTP/1.1" 200 9"#,
            r#""PATCH /v2/a/blobs/uploads/1 HTTP/1.1" 202 0"#,
            "level=warning",
        ] {
            assert_eq!(parse_blob_get(&format!(r#"{DATE} {request} "" "x""#)), None, "{request}");
        }
    }
}
