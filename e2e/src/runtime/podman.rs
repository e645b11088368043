//! podman, skopeo and buildah: no daemons, one library (containers/image), configured by registries.conf.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::Client;
use crate::node::Node;
use crate::process::output;
use crate::tokens::User;

/// A registry in registries.conf.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// What references begin with.
    pub registry: String,
    /// Where to ask first: host, port and what goes before the image's name. Without one, the registry alone is asked.
    pub mirror: Option<String>,
}

impl Mirror {
    /// Writes registries.conf; all lab registries speak plain HTTP.
    fn write(mirrors: &[Self], path: &Path) -> Result<()> {
        let registries = mirrors.iter().map(|Self { registry, mirror }| {
            let own = format!("[[registry]]\nprefix = {registry:?}\nlocation = {registry:?}\ninsecure = true\n");
            let mirror = mirror.iter().map(|at| format!("[[registry.mirror]]\nlocation = {at:?}\ninsecure = true\n"));
            own + &mirror.collect::<String>()
        });
        fs::write(path, registries.collect::<String>()).context("registries.conf")
    }
}

/// podman on a node.
#[derive(Debug)]
pub struct Podman {
    node: Arc<Node>,
    /// Without one it reads those of the system.
    configuration: Option<Configuration>,
}

impl Podman {
    /// Prepares podman on a node to read the registries.conf and drop-ins of the system.
    ///
    /// # Errors
    /// When its directories cannot be made.
    pub fn installed(node: &Arc<Node>) -> Result<Self> {
        hide_shared_state(node)?;
        Ok(Self { node: Arc::clone(node), configuration: None })
    }

    /// Prepares podman on a node.
    ///
    /// # Errors
    /// When its directories cannot be made.
    pub fn new(node: &Arc<Node>, mirrors: &[Mirror]) -> Result<Self> {
        Ok(Self { node: Arc::clone(node), configuration: Some(Configuration::write(node, mirrors)?) })
    }

    /// `podman login` at a registry, or at a path in it, without TLS.
    ///
    /// # Errors
    /// When the password is refused, with what it said.
    pub fn login(&self, registry: &str, user: &str, password: &str) -> Result<()> {
        self.podman(&login(registry, user, password)).map(drop)
    }

    fn podman(&self, words: &[&str]) -> Result<String> {
        let (dir, run_dir) = (self.node.dir().join("podman"), self.node.run_dir());
        let mut command = self.node.bounded("podman");
        command.envs(self.configuration.iter().map(|own| ("CONTAINERS_REGISTRIES_CONF", &own.registries_conf)));
        command.arg("--root").arg(dir).arg("--runroot").arg(run_dir.join("podman"));
        command.arg("--tmpdir").arg(run_dir.join("libpod"));
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc"]);
        output(command.args(words)).with_context(|| format!("on {}", self.node.name()))
    }
}

impl Client for Podman {
    fn node(&self) -> &Node {
        &self.node
    }

    fn pull(&self, reference: &str) -> Result<()> {
        self.podman(&["pull", "--quiet", reference]).map(drop)
    }

    fn pull_as(&self, reference: &str, user: &User) -> Result<()> {
        let at = self.configuration.as_ref().map(|own| own.login_at.as_str()).context("no mirror to sign in at")?;
        self.login(at, user.name, user.password)?;
        self.pull(reference)
    }

    fn digest(&self, reference: &str) -> Result<String> {
        Ok(self.podman(&["image", "inspect", "--format", "{{.Digest}}", reference])?.trim().to_owned())
    }

    fn run(&self, reference: &str, words: &[&str]) -> Result<Option<String>> {
        self.podman(&[&["run", "--rm", "--network", "none", reference], words].concat()).map(Some)
    }
}

/// skopeo on a node: copies an image into a directory.
#[derive(Debug)]
pub struct Skopeo {
    node: Arc<Node>,
    configuration: Configuration,
}

impl Skopeo {
    /// Prepares skopeo on a node.
    ///
    /// # Errors
    /// When its directories cannot be made.
    pub fn new(node: &Arc<Node>, mirrors: &[Mirror]) -> Result<Self> {
        Ok(Self { node: Arc::clone(node), configuration: Configuration::write(node, mirrors)? })
    }

    fn target(&self, reference: &str) -> PathBuf {
        self.node.dir().join("skopeo").join(reference.replace(['/', ':'], "_"))
    }

    fn skopeo(&self, words: &[&str]) -> Result<String> {
        let mut command = self.node.bounded("skopeo");
        command.arg("--registries-conf").arg(&self.configuration.registries_conf).arg("--insecure-policy").args(words);
        output(&mut command).with_context(|| format!("on {}", self.node.name()))
    }
}

impl Client for Skopeo {
    fn node(&self) -> &Node {
        &self.node
    }

    fn pull(&self, reference: &str) -> Result<()> {
        let target = self.target(reference);
        fs::create_dir_all(&target)?;
        let target = format!("dir:{}", target.display());
        self.skopeo(&["copy", "--quiet", &format!("docker://{reference}"), &target]).map(drop)
    }

    fn pull_as(&self, reference: &str, user: &User) -> Result<()> {
        self.skopeo(&login(&self.configuration.login_at, user.name, user.password))?;
        self.pull(reference)
    }

    fn digest(&self, reference: &str) -> Result<String> {
        let manifest = self.target(reference).join("manifest.json");
        Ok(self.skopeo(&["manifest-digest", &manifest.to_string_lossy()])?.trim().to_owned())
    }

    fn run(&self, _reference: &str, _words: &[&str]) -> Result<Option<String>> {
        Ok(None)
    }
}

/// buildah on a node.
#[derive(Debug)]
pub struct Buildah {
    node: Arc<Node>,
    configuration: Configuration,
}

impl Buildah {
    /// Prepares buildah on a node.
    ///
    /// # Errors
    /// When its directories cannot be made.
    pub fn new(node: &Arc<Node>, mirrors: &[Mirror]) -> Result<Self> {
        Ok(Self { node: Arc::clone(node), configuration: Configuration::write(node, mirrors)? })
    }

    fn buildah(&self, words: &[&str]) -> Result<String> {
        let mut command = self.node.bounded("buildah");
        command.arg("--root").arg(self.node.dir().join("buildah"));
        command.arg("--runroot").arg(self.node.run_dir().join("buildah"));
        command.arg("--registries-conf").arg(&self.configuration.registries_conf);
        output(command.args(words)).with_context(|| format!("on {}", self.node.name()))
    }
}

impl Client for Buildah {
    fn node(&self) -> &Node {
        &self.node
    }

    fn pull(&self, reference: &str) -> Result<()> {
        self.buildah(&["pull", "--quiet", reference]).map(drop)
    }

    fn pull_as(&self, reference: &str, user: &User) -> Result<()> {
        self.buildah(&login(&self.configuration.login_at, user.name, user.password))?;
        self.pull(reference)
    }

    fn digest(&self, reference: &str) -> Result<String> {
        let digest = self.buildah(&["inspect", "--type", "image", "--format", "{{.FromImageDigest}}", reference])?;
        Ok(digest.trim().to_owned())
    }

    fn run(&self, reference: &str, words: &[&str]) -> Result<Option<String>> {
        let container = self.buildah(&["from", "--pull-never", reference])?;
        self.buildah(&[&["run", "--isolation", "chroot", container.trim(), "--"], words].concat()).map(Some)
    }
}

/// What a node's program is told of registries.
#[derive(Debug)]
struct Configuration {
    /// The only one it reads.
    registries_conf: PathBuf,
    /// Where users sign in: at the first mirror, or else its registry.
    login_at: String,
}

impl Configuration {
    /// Writes it, and keeps what these programs share on a machine apart.
    fn write(node: &Node, mirrors: &[Mirror]) -> Result<Self> {
        let registries_conf = node.dir().join("registries.conf");
        Mirror::write(mirrors, &registries_conf)?;
        hide_shared_state(node)?;
        let login_at = mirrors.first().map(|first| first.mirror.as_ref().unwrap_or(&first.registry).clone());
        Ok(Self { registries_conf, login_at: login_at.unwrap_or_default() })
    }
}

/// The words that sign a user in without TLS.
fn login<'a>(registry: &'a str, user: &'a str, password: &'a str) -> [&'a str; 7] {
    ["login", "--tls-verify=false", "--username", user, "--password", password, registry]
}

/// Gives a node its own copies of the directories that containers/image and libpod share on a machine.
fn hide_shared_state(node: &Node) -> Result<()> {
    for dir in ["/dev/shm", "/run/containers", "/var/lib/containers"] {
        node.run("mkdir", &["-p", dir])?;
        node.run("mount", &["-t", "tmpfs", "tmpfs", dir])?;
    }
    Ok(())
}
