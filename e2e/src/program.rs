//! The program under test: the one place that knows Shoal's command line and configuration keys. Used by [`crate::cluster`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::harness::state_dir;
use crate::image::Recipe;
use crate::node::Node;
use crate::process::{Process, output, run};
use crate::registry::HOST;

/// The agent's registry front, on its node's loopback address.
pub const FRONT: &str = "127.0.0.1:5050";
/// The agent's status, on its node's loopback address.
pub const ADMIN: &str = "127.0.0.1:5052";
/// The origin as a plain registry, on its node's loopback address.
pub const ORIGIN_FRONT: &str = "127.0.0.1:7503";
/// The origin's status, on its node's loopback address.
pub const ORIGIN_ADMIN: &str = "127.0.0.1:7502";

/// What a test needs to look into a failure.
const LOG: &str = "info,shoal=debug";
const FRONT_PORT: u16 = 5050;
/// Where agents take peers.
pub const AGENT_PEER_PORT: u16 = 5051;
const ORIGIN_PORT: u16 = 7500;
/// Where origins take peers.
pub const ORIGIN_PEER_PORT: u16 = 7501;
/// Where trackers say how they are.
pub const TRACKER_ADMIN: &str = "0.0.0.0:7402";
/// Where trackers listen.
pub const TRACKER_PORT: u16 = 7400;

/// What a part is told beside who it is.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// The trackers.
    pub trackers: &'a [&'a Node],
    /// The origins.
    pub origins: &'a [&'a Node],
    /// The most it may keep.
    pub store_max: &'a str,
}

impl<'a> Setting<'a> {
    const fn plain(trackers: &'a [&'a Node], origins: &'a [&'a Node]) -> Self {
        Self { trackers, origins, store_max: "20GiB" }
    }

    /// The lines of a part that keeps blobs.
    fn lines(&self, node: &Node, part: &str, peer_port: u16) -> String {
        format!(
            "store = {:?}\nstore_max = {:?}\npeer_advertise = \"{}:{peer_port}\"\ntrackers = {}\n",
            store_dir(node, part),
            self.store_max,
            node.ip(),
            urls(self.trackers, TRACKER_PORT),
        )
    }
}

/// The `shoal` program.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    /// What it logs, unless `SHOAL_LOG` says otherwise.
    log: &'static str,
    /// Where each part that it starts has its certificate, in a directory of the part's name.
    certificates: Option<PathBuf>,
}

impl Program {
    /// The program that `SHOAL_BIN` names, or else the one cargo builds in the profile of this program, once.
    ///
    /// # Errors
    /// When it does not build or is not there.
    pub fn find() -> Result<Self> {
        static FOUND: OnceLock<PathBuf> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(Self { path: found.clone(), log: LOG, certificates: None });
        }
        let path = match std::env::var_os("SHOAL_BIN") {
            Some(path) => PathBuf::from(path).canonicalize().context("SHOAL_BIN")?,
            None => build()?,
        };
        ensure!(path.is_file(), "no program at {}", path.display());
        Ok(Self { path: FOUND.get_or_init(|| path).clone(), log: LOG, certificates: None })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How to make an image of it, with the libraries it loads.
    ///
    /// # Errors
    /// When they cannot be found.
    pub fn recipe(&self) -> Result<Recipe> {
        let path = PathBuf::from("/usr/local/bin/shoal");
        let entrypoint = vec![path.display().to_string()];
        // Most of a program is what only debuggers read.
        let stripped = state_dir().join("shoal-stripped");
        run("strip", [Path::new("-o"), &stripped, &self.path])?;
        let files = libraries(&stripped)?.into_iter().map(|library| (library.clone(), library));
        let files = files.chain([(stripped, path)]).collect();
        Ok(Recipe::Program { name: "shoal", entrypoint, files })
    }

    /// The same program with another log filter.
    #[must_use]
    pub fn with_log(self, log: &'static str) -> Self {
        Self { log, ..self }
    }

    /// The same program, whose parts have certificates of a new authority, which it makes in a directory.
    ///
    /// # Errors
    /// When it cannot.
    pub fn with_certificates(self, dir: &Path) -> Result<Self> {
        run(&self.path.to_string_lossy(), [Path::new("certificates"), dir])?;
        Ok(Self { certificates: Some(dir.to_owned()), ..self })
    }

    /// Where a part that it starts has its certificate, if it has one.
    #[must_use]
    pub fn certificates(&self, part: &str) -> Option<PathBuf> {
        self.certificates.as_ref().map(|dir| dir.join(part))
    }

    /// Starts a tracker and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub fn tracker(&self, node: &Node) -> Result<Process> {
        start(node, "tracker", self.tracker_command(node), TRACKER_PORT)
    }

    /// Starts a tracker that sees to the preheats of a cluster, as the user of a kubeconfig file, and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub fn preheating_tracker(&self, node: &Node, origin: &Node, kubeconfig: &Path) -> Result<Process> {
        let mut command = self.tracker_command(node);
        command.args(["--preheat-lease", "shoal", "--origin", &format!("http://{}:{ORIGIN_PORT}", origin.name())]);
        command.env("KUBECONFIG", kubeconfig);
        start(node, "tracker", command, TRACKER_PORT)
    }

    fn tracker_command(&self, node: &Node) -> Command {
        let mut command = self.command(node, "tracker");
        command.args(["--listen", &format!("0.0.0.0:{TRACKER_PORT}"), "--admin-listen", TRACKER_ADMIN]);
        if let Some(certificates) = self.certificates("tracker") {
            command.arg("--certificates").arg(certificates);
        }
        command
    }

    /// Starts an origin that knows the tracker and waits until it listens. Its blobs are under [`store_dir`].
    ///
    /// # Errors
    /// When it does not.
    pub fn origin(&self, node: &Node, tracker: &Node) -> Result<Process> {
        self.origin_in(node, &Setting::plain(&[tracker], &[]))
    }

    /// The same in a setting.
    ///
    /// # Errors
    /// As [`Program::origin`].
    pub fn origin_in(&self, node: &Node, setting: &Setting<'_>) -> Result<Process> {
        let config = format!("{}{}", setting.lines(node, "origin", ORIGIN_PEER_PORT), registries());
        let command = self.configured(node, "origin", &config)?;
        start(node, "origin", command, ORIGIN_PORT)
    }

    /// Starts an agent that knows the tracker and the origin and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub fn agent(&self, node: &Node, tracker: &Node, origin: &Node) -> Result<Process> {
        self.agent_with(node, tracker, origin, "")
    }

    /// The same with more lines of configuration.
    ///
    /// # Errors
    /// As [`Program::agent`].
    pub fn agent_with(&self, node: &Node, tracker: &Node, origin: &Node, more: &str) -> Result<Process> {
        self.agent_in(node, &Setting::plain(&[tracker], &[origin]), more)
    }

    /// The same in a setting.
    ///
    /// # Errors
    /// As [`Program::agent`].
    pub fn agent_in(&self, node: &Node, setting: &Setting<'_>, more: &str) -> Result<Process> {
        let lines = setting.lines(node, "agent", AGENT_PEER_PORT);
        let origins = urls(setting.origins, ORIGIN_PORT);
        let config = format!("{more}{lines}origins = {origins}\n{}", registries());
        let command = self.configured(node, "agent", &config)?;
        start(node, "agent", command, FRONT_PORT)
    }

    /// Runs `shoal node configure` on a node, and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn configure(&self, node: &Node, flags: &[&str]) -> Result<String> {
        node.run(&self.path.to_string_lossy(), &[&["node", "configure"], flags].concat())
    }

    /// Runs `shoal doctor` on a node; dockerd listens at `docker_host`. Returns its checks, and whether none failed.
    ///
    /// # Errors
    /// When it cannot be run or does not print a list.
    pub fn doctor(&self, node: &Node, docker_host: &str) -> Result<(Vec<serde_json::Value>, bool)> {
        let mut command = node.bounded("env");
        command.arg(format!("DOCKER_HOST={docker_host}")).arg(&self.path).args(["doctor", "--json"]);
        let ended = command.output().context("shoal doctor")?;
        let checks = serde_json::from_slice(&ended.stdout);
        let checks = checks.with_context(|| format!("shoal doctor: {}", String::from_utf8_lossy(&ended.stderr)))?;
        Ok((checks, ended.status.success()))
    }

    fn command(&self, node: &Node, part: &str) -> Command {
        let mut command = node.command("env");
        let filter = std::env::var("SHOAL_LOG").unwrap_or_else(|_| self.log.to_owned());
        command.arg(format!("SHOAL_LOG={filter}")).arg(&self.path).arg(part);
        command
    }

    fn configured(&self, node: &Node, part: &str, config: &str) -> Result<Command> {
        let file = node.dir().join(format!("{part}.toml"));
        let certificates = self.certificates(part).map(|dir| format!("certificates = {dir:?}\n")).unwrap_or_default();
        fs::write(&file, certificates + config).context("config file")?;
        let mut command = self.command(node, part);
        command.arg("--config").arg(file);
        Ok(command)
    }
}

/// The tables of the two registries that the upstream plays.
fn registries() -> String {
    ["docker.io", HOST].map(|name| format!("[registries.{name:?}]\nurl = \"http://{HOST}\"\n")).concat()
}

/// A list of URLs, in TOML.
fn urls(nodes: &[&Node], port: u16) -> String {
    format!("{:?}", nodes.iter().map(|node| format!("http://{}:{port}", node.name())).collect::<Vec<_>>())
}

/// Where a part on a node keeps its blobs.
#[must_use]
pub fn store_dir(node: &Node, part: &str) -> PathBuf {
    node.dir().join(format!("{part}-store"))
}

fn start(node: &Node, part: &str, command: Command, port: u16) -> Result<Process> {
    let mut process = node.start(part, command)?;
    node.wait_listening(&mut process, port)?;
    Ok(process)
}

/// The libraries that a program loads, and what loads them, as `ldd` names them; none of a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = match run("ldd", [program]) {
        Err(error) if error.to_string().contains("not a dynamic executable") => return Ok(Vec::new()),
        listed => listed?,
    };
    let paths = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// Builds the program beside this one: tests are in `target/<profile>/deps`, programs in `target/<profile>`.
fn build() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    // A test is among the dependencies, a benchmark beside what is built.
    let dir = program.parent().filter(|dir| !dir.ends_with("deps"));
    let profile_dir =
        dir.or_else(|| program.parent()?.parent()).context("this program is not in a target directory")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).args(["build", "--quiet", "--bin", "shoal"]);
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    output(&mut cargo).context("build shoal")?;
    Ok(profile_dir.join("shoal"))
}
