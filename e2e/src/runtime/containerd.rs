//! containerd with `ctr`, which reads certs.d/hosts.toml.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Client;
use crate::node::Node;
use crate::process::{Process, output};
use crate::wait::wait_until;

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    node: Arc<Node>,
    socket: PathBuf,
    certs_d: PathBuf,
    ca: Option<PathBuf>,
    containers: AtomicU32,
    _process: Process,
}

impl Containerd {
    /// Starts containerd on a node and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(node: &Arc<Node>) -> Result<Self> {
        let certs_d = node.dir().join("certs.d");
        Self::start_without(node, &["io.containerd.grpc.v1.cri"], &node.dir().join("containerd.toml"), certs_d)
    }

    /// Starts containerd with its CRI plugin, which is told of the same mirrors.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn start_with_cri(node: &Arc<Node>) -> Result<Self> {
        Self::start_without(node, &[], &node.dir().join("containerd.toml"), node.dir().join("certs.d"))
    }

    /// Starts containerd with its CRI plugin and its files where packages put them, which the node has for itself: see
    /// [`Node::own`]. Registries are trusted as `ca` says.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn start_installed(node: &Arc<Node>, ca: &Path) -> Result<Self> {
        let config = node.own("/etc/containerd")?.join("config.toml");
        let containerd = Self::start_without(node, &[], &config, PathBuf::from("/etc/containerd/certs.d"))?;
        Ok(Self { ca: Some(ca.to_owned()), ..containerd })
    }

    fn start_without(node: &Arc<Node>, plugins: &[&str], config: &Path, certs_d: PathBuf) -> Result<Self> {
        let disabled = ["snapshotter.v1.btrfs", "snapshotter.v1.devmapper", "internal.v1.opt"];
        let disabled = disabled.map(|name| format!("io.containerd.{name}"));
        let disabled = disabled.iter().map(String::as_str).chain(plugins.iter().copied()).collect::<Vec<_>>();
        let socket = node.run_dir().join("containerd.sock");
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = {disabled:?}\n[grpc]\naddress = {socket:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = {:?}\n",
            node.dir().join("containerd"),
            node.run_dir().join("containerd"),
            certs_d,
        );
        fs::write(config, text)?;
        node.run("mkdir", &["-p", &certs_d.to_string_lossy()])?;
        let mut command = node.command("containerd");
        command.arg("--config").arg(config);
        let process = node.start("containerd", command)?;
        let mut containerd = Self {
            node: Arc::clone(node),
            socket,
            certs_d,
            ca: None,
            containers: AtomicU32::new(0),
            _process: process,
        };
        wait_until("containerd to answer", Duration::from_secs(60), || {
            containerd._process.check_running()?;
            Ok(output(ctr(&containerd.node, &containerd.socket).arg("version")).is_ok())
        })?;
        Ok(containerd)
    }

    /// Writes the hosts.toml of a registry: its `mirrors` in order, then the registry itself at `server`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_hosts(&self, registry: &str, server: &str, mirrors: &[&str]) -> Result<()> {
        let dir = self.certs_d().join(registry);
        fs::create_dir_all(&dir)?;
        // Without any [host] table the file is refused.
        let mirrors = if mirrors.is_empty() { &[server] } else { mirrors };
        let hosts = mirrors.iter().map(|url| format!("[host.{url:?}]\ncapabilities = [\"pull\", \"resolve\"]\n"));
        fs::write(dir.join("hosts.toml"), format!("server = {server:?}\n{}", hosts.collect::<String>()))
            .context("hosts.toml")
    }

    /// Where hosts.toml files are.
    #[must_use]
    pub fn certs_d(&self) -> PathBuf {
        self.certs_d.clone()
    }

    /// The socket it listens on.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where it keeps blobs.
    #[must_use]
    pub fn content(&self) -> PathBuf {
        self.node.dir().join("containerd/io.containerd.content.v1.content")
    }

    /// Pulls an image without unpacking it.
    ///
    /// # Errors
    /// When the pull fails, with what `ctr` said.
    pub fn fetch(&self, reference: &str) -> Result<()> {
        self.ctr(&["content", "fetch", "--hosts-dir", &self.certs_d().to_string_lossy(), reference]).map(drop)
    }

    fn ctr(&self, words: &[&str]) -> Result<String> {
        let mut command = ctr(&self.node, &self.socket);
        if let Some(ca) = &self.ca {
            command.env("SSL_CERT_FILE", ca).env("SSL_CERT_DIR", "/nonexistent");
        }
        output(command.args(words)).with_context(|| format!("on {}", self.node.name()))
    }
}

fn ctr(node: &Node, socket: &Path) -> Command {
    let mut command = node.bounded("ctr");
    command.arg("--address").arg(socket);
    command
}

impl Client for Containerd {
    fn node(&self) -> &Node {
        &self.node
    }

    fn pull(&self, reference: &str) -> Result<()> {
        self.ctr(&["images", "pull", "--hosts-dir", &self.certs_d().to_string_lossy(), reference]).map(drop)
    }

    fn digest(&self, reference: &str) -> Result<String> {
        let table = self.ctr(&["images", "list", &format!("name=={reference}")])?;
        let digest = table.split_whitespace().find(|word| word.starts_with("sha256:"));
        digest.map(str::to_owned).with_context(|| format!("no digest of {reference} in\n{table}"))
    }

    fn run(&self, reference: &str, words: &[&str]) -> Result<Option<String>> {
        // Cgroups are named after containers, and all nodes share the machine's cgroups.
        let id = format!("{}-{}", self.node.name(), self.containers.fetch_add(1, Ordering::Relaxed));
        self.ctr(&[&["run", "--rm", "--net-host", reference, &id], words].concat()).map(Some)
    }
}
