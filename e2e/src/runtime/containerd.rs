//! containerd with `ctr`, which reads certs.d/hosts.toml.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Bounded, Client};
use crate::node::Node;
use crate::process::{Process, output};
use crate::tokens::User;
use crate::wait::wait_until;

/// How many ranges of a layer containerd 2.x fetches at a time.
const RANGES: u8 = 3;
/// The length of each of them.
const RANGE_BYTES: u32 = 1 << 20;

/// Plugins that no test needs; the last one writes to /opt.
const DISABLED: [&str; 3] =
    ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"];

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    node: Arc<Node>,
    socket: PathBuf,
    certs_d: PathBuf,
    ca: Option<PathBuf>,
    /// Where its programs are, unless they are those on `PATH`.
    programs: Option<PathBuf>,
    containers: AtomicU32,
    _process: Process,
}

/// Configuration of containerd 1.6 and 2.x: what differs between the two.
#[derive(Debug, Clone, Copy)]
enum Series<'a> {
    One,
    /// With its programs in a directory.
    Two(&'a Path),
}

impl Containerd {
    /// Starts containerd on a node and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(node: &Arc<Node>) -> Result<Self> {
        let certs_d = node.dir().join("certs.d");
        let plugins = ["io.containerd.grpc.v1.cri"];
        Self::start_without(node, Series::One, &plugins, &node.dir().join("containerd.toml"), certs_d)
    }

    /// Starts containerd, and tells it of a registry without TLS and its mirrors.
    ///
    /// # Errors
    /// As [`Containerd::start`] and [`Containerd::set_hosts`].
    pub fn start_with_mirrors(node: &Arc<Node>, registry: &str, mirrors: &[&str]) -> Result<Self> {
        let containerd = Self::start(node)?;
        containerd.set_hosts(registry, &format!("http://{registry}"), mirrors)?;
        Ok(containerd)
    }

    /// Starts containerd with its CRI plugin, which is told of the same mirrors.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn start_with_cri(node: &Arc<Node>) -> Result<Self> {
        let config = node.dir().join("containerd.toml");
        Self::start_without(node, Series::One, &[], &config, node.dir().join("certs.d"))
    }

    /// Starts containerd 2.x of [`crate::tools`] with its CRI plugin, which is told of the same mirrors, and lets it fetch a layer by
    /// three ranges of 1 MiB at a time.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn start_2(node: &Arc<Node>, programs: &Path) -> Result<Self> {
        let config = node.dir().join("containerd.toml");
        Self::start_without(node, Series::Two(programs), &[], &config, node.dir().join("certs.d"))
    }

    /// Starts containerd with its CRI plugin and its files where packages put them, which the node has for itself: see
    /// [`Node::own`]. Registries are trusted as `ca` says.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn start_installed(node: &Arc<Node>, ca: &Path) -> Result<Self> {
        let config = node.own("/etc/containerd")?.join("config.toml");
        let containerd =
            Self::start_without(node, Series::One, &[], &config, PathBuf::from("/etc/containerd/certs.d"))?;
        Ok(Self { ca: Some(ca.to_owned()), ..containerd })
    }

    /// Starts containerd for a kubelet, with its files and its socket where packages put them; the node has /etc, /var and /run for
    /// itself. Pods get their network from the plugins of Debian's package, and `pause` is in every one of them.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn start_for_kubelet(node: &Arc<Node>, pause: &str) -> Result<Self> {
        let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
        // Without the last one no sandbox starts where root may not lower an OOM score.
        let settings = format!(
            "version = 2\ndisabled_plugins = {DISABLED:?}\n[{cri}]\nsandbox_image = {pause:?}\ndisable_apparmor = true\n\
             restrict_oom_score_adj = true\n\
             [{cri}.cni]\nbin_dir = \"/usr/lib/cni\"\n[{cri}.registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
        );
        let etc = node.own("/etc")?.join("containerd");
        let (config, certs_d) = (etc.join("config.toml"), etc.join("certs.d"));
        fs::create_dir_all(&certs_d)?;
        if !config.exists() {
            fs::write(config, settings)?;
        }
        let socket = PathBuf::from("/run/containerd/containerd.sock");
        Self::start_at(node, None, Path::new("/etc/containerd/config.toml"), certs_d, socket)
    }

    fn start_without(
        node: &Arc<Node>,
        series: Series<'_>,
        plugins: &[&str],
        config: &Path,
        certs_d: PathBuf,
    ) -> Result<Self> {
        let disabled = [&DISABLED[..], plugins].concat();
        let socket = node.run_dir().join("containerd.sock");
        let text = format!(
            "root = {:?}\nstate = {:?}\ndisabled_plugins = {disabled:?}\n{}[grpc]\naddress = {socket:?}\n",
            node.dir().join("containerd"),
            node.run_dir().join("containerd"),
            series.settings(&certs_d),
        );
        fs::write(config, text)?;
        node.run("mkdir", &["-p", &certs_d.to_string_lossy()])?;
        Self::start_at(node, series.programs(), config, certs_d, socket)
    }

    fn start_at(
        node: &Arc<Node>,
        programs: Option<&Path>,
        config: &Path,
        certs_d: PathBuf,
        socket: PathBuf,
    ) -> Result<Self> {
        let mut command = node.command("env");
        // It looks for its shim there.
        command.arg(path_with(programs)).arg("containerd").arg("--config").arg(config);
        let process = node.start("containerd", command)?;
        let mut containerd = Self {
            node: Arc::clone(node),
            socket,
            certs_d,
            ca: None,
            programs: programs.map(Path::to_owned),
            containers: AtomicU32::new(0),
            _process: process,
        };
        wait_until("containerd to answer", Duration::from_secs(60), || {
            containerd._process.check_running()?;
            Ok(output(containerd.command().arg("version")).is_ok())
        })?;
        Ok(containerd)
    }

    /// Takes an image from a file, as [`crate::image::Image::archive`] writes it, for the kubelet to find.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.ctr(&["--namespace", "k8s.io", "images", "import", &archive.to_string_lossy()]).map(drop)
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

    /// The command that fetches an image's content, unpacks nothing, and is killed when it takes longer: see [`Node::bounded_by`].
    #[must_use]
    pub fn fetch_within(&self, deadline: Duration, reference: &str) -> Command {
        let mut ctr = self.ctr_by(self.node.bounded_by(deadline, "env"));
        ctr.args(["content", "fetch", "--hosts-dir"]).arg(&self.certs_d).arg(reference);
        ctr
    }

    /// Removes an image, and with it what no other holds of its content.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub fn remove(&self, reference: &str) -> Result<()> {
        self.ctr(&["images", "rm", "--sync", reference]).map(drop)
    }

    /// Runs a program of an image in one of its namespaces.
    pub(super) fn run_in(&self, namespace: &str, reference: &str, words: &[&str]) -> Result<String> {
        // Cgroups are named after containers, and all nodes share the machine's cgroups.
        let id = format!("{}-{}", self.node.name(), self.containers.fetch_add(1, Ordering::Relaxed));
        self.ctr(&[&["--namespace", namespace, "run", "--rm", "--net-host", reference, &id], words].concat())
    }

    fn command(&self) -> Command {
        self.ctr_by(self.node.bounded("env"))
    }

    /// `ctr`, started by `env`.
    fn ctr_by(&self, mut command: Command) -> Command {
        command.arg(path_with(self.programs.as_deref())).arg("ctr").arg("--address").arg(&self.socket);
        command
    }

    fn ctr(&self, words: &[&str]) -> Result<String> {
        let mut command = self.command();
        if let Some(ca) = &self.ca {
            command.env("SSL_CERT_FILE", ca).env("SSL_CERT_DIR", "/nonexistent");
        }
        output(command.args(words)).with_context(|| format!("on {}", self.node.name()))
    }
}

impl Bounded for Containerd {
    fn pull_within(&self, deadline: Duration, reference: &str) -> Command {
        let mut ctr = self.ctr_by(self.node.bounded_by(deadline, "env"));
        ctr.args(["images", "pull", "--hosts-dir"]).arg(&self.certs_d).arg(reference);
        ctr
    }
}

/// A `PATH` on which these programs come first.
fn path_with(programs: Option<&Path>) -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut assignment = OsString::from("PATH=");
    if let Some(programs) = programs {
        assignment.push(programs);
        assignment.push(":");
    }
    assignment.push(path);
    assignment
}

impl Series<'_> {
    fn programs(&self) -> Option<&Path> {
        match self {
            Self::One => None,
            Self::Two(programs) => Some(programs),
        }
    }

    /// Where it learns of mirrors, and what else it has to be told.
    fn settings(&self, certs_d: &Path) -> String {
        match self {
            Self::One => {
                format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = {certs_d:?}\n")
            }
            // The CRI plugin pulls by the transfer service, whose settings count for both.
            Self::Two(_) => format!(
                "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = {certs_d:?}\n\
                 [plugins.\"io.containerd.transfer.v1.local\"]\nmax_concurrent_downloads = {RANGES}\n\
                 concurrent_layer_fetch_buffer = {RANGE_BYTES}\n\
                 [plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n"
            ),
        }
    }
}

impl Client for Containerd {
    fn node(&self) -> &Node {
        &self.node
    }

    fn pull(&self, reference: &str) -> Result<()> {
        self.ctr(&["images", "pull", "--hosts-dir", &self.certs_d().to_string_lossy(), reference]).map(drop)
    }

    /// `ctr` gives the password to any host that asks for it.
    fn pull_as(&self, reference: &str, user: &User) -> Result<()> {
        let (credentials, hosts) = (user.with_password(), self.certs_d());
        self.ctr(&["images", "pull", "--user", &credentials, "--hosts-dir", &hosts.to_string_lossy(), reference])
            .map(drop)
    }

    fn fetch(&self, reference: &str) -> Result<()> {
        self.ctr(&["content", "fetch", "--hosts-dir", &self.certs_d().to_string_lossy(), reference]).map(drop)
    }

    fn digest(&self, reference: &str) -> Result<String> {
        let table = self.ctr(&["images", "list", &format!("name=={reference}")])?;
        let digest = table.split_whitespace().find(|word| word.starts_with("sha256:"));
        digest.map(str::to_owned).with_context(|| format!("no digest of {reference} in\n{table}"))
    }

    fn run(&self, reference: &str, words: &[&str]) -> Result<Option<String>> {
        self.run_in("default", reference, words).map(Some)
    }
}
