//! The upstream: Debian's docker-registry on a node, and what its access log says was fetched. Started by the tests; knows
//! nothing of Shoal.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::image::{Image, hex};
use crate::node::Node;
use crate::process::{Process, run};
use crate::tls::Identity;
use crate::tokens::{self, TokenService, User};

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

/// A blob's body, or a part of it, that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The address of who asked.
    pub by: String,
    /// What it says it is.
    pub agent: String,
    /// The blob.
    pub digest: String,
    /// Bytes sent.
    pub bytes: u64,
}

/// Who may read and write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Guard {
    /// Anybody.
    #[default]
    Open,
    /// Who has a token for the repository, of a [`TokenService`] on the registry's node. The first user pushes.
    Tokens(&'static [User]),
    /// Whoever is in its htpasswd file; the Basic scheme knows no repositories. The first user pushes.
    Passwords(&'static [User]),
}

/// A docker-registry, with plain HTTP on [`PORT`] and, when it has an identity, TLS on [`TLS_PORT`].
#[derive(Debug)]
pub struct Registry {
    node: Arc<Node>,
    pusher: Option<User>,
    tokens: Option<TokenService>,
    processes: Vec<Process>,
}

impl Registry {
    /// Starts an empty registry on a node and waits until it listens.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(node: &Arc<Node>, identity: Option<&Identity>) -> Result<Self> {
        Self::start_guarded(node, identity, Guard::Open)
    }

    /// The same, for those whom the guard lets in.
    ///
    /// # Errors
    /// When it or its token service does not start.
    pub fn start_guarded(node: &Arc<Node>, identity: Option<&Identity>, guard: Guard) -> Result<Self> {
        let (auth, tokens) = match guard {
            Guard::Open => (String::new(), None),
            Guard::Tokens(users) => {
                let service = TokenService::start(node, &node.dir().join("tokens"), users)?;
                (auth_by_token(&service), Some(service))
            }
            Guard::Passwords(users) => (auth_by_password(node, users)?, None),
        };
        let pusher = match guard {
            Guard::Open => None,
            Guard::Tokens(users) | Guard::Passwords(users) => users.first().copied(),
        };
        let mut registry = Self { node: Arc::clone(node), pusher, tokens, processes: Vec::new() };
        registry.listen("registry", PORT, &auth)?;
        if let Some(Identity { certificate, key, .. }) = identity {
            let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
            registry.listen("registry-tls", TLS_PORT, &format!("{tls}{auth}"))?;
        }
        Ok(registry)
    }

    /// The node it runs on.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// `kill -9` of its listeners.
    ///
    /// # Errors
    /// When one cannot be waited for.
    pub fn kill_dash_9(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(Process::kill_dash_9)
    }

    /// Pushes an image from the registry's own node, so no shaped link is crossed, and keeps the manifest's bytes.
    ///
    /// # Errors
    /// When skopeo fails.
    pub fn push(&self, image: &Image, name: &str, tag: &str) -> Result<()> {
        self.copy(image, &Self::target(name, tag), "--preserve-digests")
    }

    fn target(name: &str, tag: &str) -> String {
        format!("docker://127.0.0.1:{PORT}/{name}:{tag}")
    }

    fn copy(&self, image: &Image, target: &str, flag: &str) -> Result<()> {
        let source = format!("oci:{}:latest", image.dir.display());
        let credentials = self.pusher.map_or("--dest-no-creds".to_owned(), |User { name, password, .. }| {
            format!("--dest-creds={name}:{password}")
        });
        let words = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", flag, &credentials];
        self.node.run("skopeo", &[&words[..], &[&source, target]].concat()).context("push an image").map(drop)
    }

    /// Its token service.
    ///
    /// # Errors
    /// When it is not guarded by tokens.
    pub fn tokens(&self) -> Result<&TokenService> {
        self.tokens.as_ref().context("the registry asks for no tokens")
    }

    /// Pushes an image with its layers compressed by zstd instead. Returns the digest its manifest has then.
    ///
    /// # Errors
    /// When skopeo fails, or leaves the layers as they are.
    pub fn push_zstd(&self, image: &Image, name: &str, tag: &str) -> Result<String> {
        let target = Self::target(name, tag);
        self.copy(image, &target, "--dest-compress-format=zstd")?;
        let manifest = self.node.run("skopeo", &["inspect", "--raw", "--tls-verify=false", &target])?;
        ensure!(!manifest.contains("tar+gzip"), "a layer is as it was: {manifest}");
        Ok(format!("sha256:{}", hex(Sha256::digest(&manifest).as_slice())))
    }

    /// Puts an index of images that the repository holds under a tag. Returns its digest.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn put_index(&self, name: &str, tag: &str, images: &[(&str, &Image)]) -> Result<String> {
        let listed = images.iter().map(|(architecture, image)| {
            let mut descriptor = image.descriptor()?;
            descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
            Ok(descriptor)
        });
        let listed = listed.collect::<Result<Vec<_>>>()?;
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": listed }).to_string();
        let url = format!("http://127.0.0.1:{PORT}/v2/{name}/manifests/{tag}");
        let kind = format!("Content-Type: {media_type}");
        self.node.run("curl", &["-sSf", "-X", "PUT", "-H", &kind, "--data-binary", &index, &url])?;
        Ok(format!("sha256:{}", hex(Sha256::digest(&index).as_slice())))
    }

    /// What the access log says of each blob, by digest, over all listeners.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn fetches(&self) -> Result<BTreeMap<String, Fetches>> {
        let mut fetches = BTreeMap::<String, Fetches>::new();
        for Fetched { digest, bytes, .. } in self.fetched()? {
            let of_blob = fetches.entry(digest).or_default();
            of_blob.count += 1;
            of_blob.bytes += bytes;
        }
        Ok(fetches)
    }

    /// What the access log says of each body of a blob that was sent, over all listeners.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn fetched(&self) -> Result<Vec<Fetched>> {
        let mut fetched = Vec::new();
        for process in &self.processes {
            let log = fs::read_to_string(process.log()).context("access log of the registry")?;
            fetched.extend(log.lines().filter_map(parse_blob_get));
        }
        Ok(fetched)
    }

    /// Shows that every blob of an image was fetched this many times.
    ///
    /// # Errors
    /// Naming the blobs that were not.
    pub fn check_fetched(&self, image: &Image, times: u64) -> Result<()> {
        let fetches = self.fetches()?;
        for (index, blob) in image.blobs().enumerate() {
            let fetched = fetches.get(&blob.digest).copied().unwrap_or_default();
            let expected = (fetched.count, fetched.bytes) == (times, times * blob.length);
            ensure!(expected, "blob {index} of {} bytes, {}, was fetched {fetched:?}", blob.length, blob.digest);
        }
        Ok(())
    }

    /// Starts a listener; `more` is YAML that goes on within `http`.
    fn listen(&mut self, name: &str, port: u16, more: &str) -> Result<()> {
        let storage = self.node.dir().join("storage");
        let config: PathBuf = self.node.dir().join(format!("{name}.yml"));
        let text = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 0.0.0.0:{port}\n  secret: e2e\n{more}",
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

fn auth_by_token(service: &TokenService) -> String {
    format!(
        "auth:\n  token:\n    realm: http://{HOST}:{}/token\n    service: {}\n    issuer: {}\n    rootcertbundle: {}\n",
        tokens::PORT,
        tokens::SERVICE,
        tokens::ISSUER,
        service.root().display(),
    )
}

fn auth_by_password(node: &Node, users: &[User]) -> Result<String> {
    let path = node.dir().join("htpasswd");
    let lines = users.iter().map(|user| run("htpasswd", ["-nbB", user.name, user.password]));
    fs::write(&path, lines.collect::<Result<String>>()?)?;
    Ok(format!("auth:\n  htpasswd:\n    realm: lab\n    path: {}\n", path.display()))
}

/// Reads a line of the access log (Apache's combined format) when it is a successful GET of a blob.
fn parse_blob_get(line: &str) -> Option<Fetched> {
    let mut quoted = line.split('"');
    let by = quoted.next()?.split(' ').next()?.to_owned();
    let mut request = quoted.next()?.split(' ');
    let mut answer = quoted.next()?.split_whitespace();
    let (method, path) = (request.next()?, request.next()?);
    let (status, length) = (answer.next()?, answer.next()?);
    let (_, digest) = path.split('?').next()?.split_once("/blobs/")?;
    let counts = method == "GET" && (status == "200" || status == "206") && digest.starts_with("sha256:");
    let agent = quoted.nth(2)?.to_owned();
    counts.then(|| Some(Fetched { by, agent, digest: digest.to_owned(), bytes: length.parse().ok()? })).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "10.77.0.2 - - [21/Nov/2026:09:16:10 +0000]";

    #[test]
    fn a_blob_that_was_sent_counts() {
        let line = format!(r#"{DATE} "GET /v2/library/app/blobs/sha256:ab?ns=x HTTP/1.1" 206 17 "" "shoal""#);
        let [by, agent, digest] = ["10.77.0.2", "shoal", "sha256:ab"].map(str::to_owned);
        assert_eq!(parse_blob_get(&line), Some(Fetched { by, agent, digest, bytes: 17 }));
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
