//! dockerd with its own containerd, classic image store.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Bounded, Client};
use crate::node::Node;
use crate::process::{Process, output};
use crate::tokens::User;
use crate::wait::wait_until;

/// What a test sets of dockerd.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--registry-mirror`: an URL; used for docker.io alone.
    pub mirror: Option<String>,
    /// `--insecure-registry`: host and port of a registry without TLS.
    pub insecure: Vec<String>,
    /// The only authority dockerd trusts.
    pub ca: Option<PathBuf>,
    /// `--max-download-attempts` of a layer at one registry before it falls back to the next. The default, 5, takes over a
    /// minute of pauses.
    pub download_attempts: Option<u8>,
}

/// A running dockerd.
#[derive(Debug)]
pub struct Docker {
    node: Arc<Node>,
    socket: String,
    _process: Process,
}

impl Docker {
    /// Starts dockerd on a node and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(node: &Arc<Node>, options: &Options) -> Result<Self> {
        let run_dir = node.run_dir();
        let socket = format!("unix://{}/docker.sock", run_dir.display());
        fs::create_dir_all(node.dir().join("docker-config"))?;
        let mut command = node.command("dockerd");
        command.arg("--data-root").arg(node.dir().join("docker")).arg("--exec-root").arg(run_dir.join("docker"));
        command.arg("--pidfile").arg(run_dir.join("docker.pid")).args(["--host", &socket]);
        command.args(["--bridge", "none", "--iptables=false", "--ip6tables=false"]);
        command.args(options.mirror.iter().flat_map(|url| ["--registry-mirror", url]));
        command.args(options.insecure.iter().flat_map(|host| ["--insecure-registry", host]));
        if let Some(attempts) = options.download_attempts {
            command.args(["--max-download-attempts", &attempts.to_string()]);
        }
        if let Some(ca) = &options.ca {
            command.env("SSL_CERT_FILE", ca).env("SSL_CERT_DIR", "/nonexistent");
        }
        let mut process = node.start("dockerd", command)?;
        let node = Arc::clone(node);
        let version = |node: &Node| output(docker(node, &socket).args(["version", "--format", "{{.Server.Version}}"]));
        wait_until("dockerd to answer", Duration::from_secs(60), || {
            process.check_running()?;
            Ok(version(&node).is_ok())
        })?;
        Ok(Self { node, socket, _process: process })
    }

    /// Where it listens, as `DOCKER_HOST` has it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.socket
    }

    /// Makes it read daemon.json again, and waits until it has these mirrors.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn reload(&self, mirrors: &str) -> Result<()> {
        let pid = fs::read_to_string(self.node.run_dir().join("docker.pid")).context("docker.pid")?;
        self.node.run("kill", &["-HUP", pid.trim()])?;
        wait_until(&format!("dockerd to have the mirrors {mirrors:?}"), Duration::from_secs(30), || {
            let now = self.docker(&["info", "--format", "{{join .RegistryConfig.Mirrors \",\"}}"])?;
            Ok(now.trim() == mirrors)
        })
    }

    /// Ends it as a service manager does, and waits until it has ended.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn stop(self) -> Result<()> {
        let pid_file = self.node.run_dir().join("docker.pid");
        let pid = fs::read_to_string(&pid_file).context("docker.pid")?;
        self.node.run("kill", &["-TERM", pid.trim()])?;
        wait_until("dockerd to end", Duration::from_secs(30), || Ok(!pid_file.exists()))
    }

    /// `docker login` at a registry, or at Docker Hub if it is empty.
    ///
    /// # Errors
    /// When the password is refused, with what it said.
    pub fn login(&self, registry: &str, user: &str, password: &str) -> Result<()> {
        let words = ["login", "--username", user, "--password", password];
        let registry = if registry.is_empty() { vec![] } else { vec![registry] };
        self.docker(&[&words[..], &registry].concat()).map(drop)
    }

    /// `docker logout` from a registry, or from Docker Hub if it is empty.
    ///
    /// # Errors
    /// When it fails.
    pub fn logout(&self, registry: &str) -> Result<()> {
        let registry = if registry.is_empty() { vec![] } else { vec![registry] };
        self.docker(&[&["logout"][..], &registry].concat()).map(drop)
    }

    fn docker(&self, words: &[&str]) -> Result<String> {
        output(docker(&self.node, &self.socket).args(words)).with_context(|| format!("on {}", self.node.name()))
    }
}

fn docker(node: &Node, socket: &str) -> Command {
    on_socket(node.bounded("docker"), node, socket)
}

fn on_socket(mut docker: Command, node: &Node, socket: &str) -> Command {
    docker.env("DOCKER_CONFIG", node.dir().join("docker-config")).env_remove("DOCKER_CONTEXT").args(["--host", socket]);
    docker
}

impl Bounded for Docker {
    fn pull_within(&self, deadline: Duration, reference: &str) -> Command {
        let mut docker = on_socket(self.node.bounded_by(deadline, "docker"), &self.node, &self.socket);
        docker.args(["pull", reference]);
        docker
    }
}

impl Client for Docker {
    fn node(&self) -> &Node {
        &self.node
    }

    fn pull(&self, reference: &str) -> Result<()> {
        self.docker(&["pull", reference]).map(drop)
    }

    fn pull_as(&self, reference: &str, user: &User) -> Result<()> {
        let (registry, _) = reference.split_once('/').context("a reference that names a registry")?;
        self.login(registry, user.name, user.password)?;
        self.pull(reference)
    }

    fn digest(&self, reference: &str) -> Result<String> {
        let name = self.docker(&["image", "inspect", "--format", "{{index .RepoDigests 0}}", reference])?;
        let (_, digest) = name.trim().split_once('@').with_context(|| format!("no digest in {name}"))?;
        Ok(digest.to_owned())
    }

    fn run(&self, reference: &str, words: &[&str]) -> Result<Option<String>> {
        self.docker(&[&["run", "--rm", "--network", "none", reference], words].concat()).map(Some)
    }
}
