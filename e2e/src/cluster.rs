//! A whole cluster: an upstream, a tracker, an origin, and nodes with an agent each. Made by the tests; the runtimes on the
//! nodes are theirs to start.
//!
//! Where bytes came from is counted by the kernel on each node's link, not by Shoal.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::faulty::Faulty;
use crate::harness::{Bench, note};
use crate::image::Image;
use crate::lab::Lab;
use crate::node::{Link, Node, Rate};
use crate::process::Process;
use crate::program::{ADMIN, FRONT, Program};
use crate::registry::{Guard, HOST, Registry};
use crate::runtime::{Client, pull_at_once};
use crate::tls::Identity;

/// Docker Hub's address, which a test can give to its own upstream.
const DOCKER_HUB: &str = "registry-1.docker.io";
/// How long a part may take to say what it counts: what its server takes at most.
const METRICS_TIMEOUT_SECONDS: &str = "10";

/// The shape of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many nodes have an agent.
    pub nodes: u8,
    /// The link of each of them.
    pub node_link: Link,
    /// The upstream's link.
    pub upstream_link: Link,
    /// The origin's link.
    pub origin_link: Link,
    /// Whether the upstream is Docker Hub too, with a certificate of [`Cluster::identity`].
    pub docker_hub: bool,
    /// Whether a front that misbehaves stands before the upstream, and has its names and its link.
    pub faulty: bool,
    /// Who may read from the upstream.
    pub guard: Guard,
    /// Whether parts have certificates.
    pub certificates: bool,
}

impl Plan {
    /// This many nodes; every link, the upstream's and the origin's too, has the same rate both ways.
    #[must_use]
    pub const fn equal(nodes: u8, rate: Rate) -> Self {
        let link = Link::symmetric(rate);
        Self {
            nodes,
            node_link: link,
            upstream_link: link,
            origin_link: link,
            docker_hub: false,
            faulty: false,
            guard: Guard::Open,
            certificates: false,
        }
    }
}

/// A node with an agent.
#[derive(Debug)]
pub struct Agent {
    /// The node.
    pub node: Arc<Node>,
    process: Process,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes with an agent; `n1`, `n2` ….
    pub agents: Vec<Agent>,
    /// The tracker.
    pub tracker: Process,
    /// The origin.
    pub origin: Process,
    /// The origin's node.
    pub origin_node: Arc<Node>,
    /// The upstream registry, which every node resolves as [`HOST`] unless a front stands before it.
    pub upstream: Registry,
    /// The front before the upstream, when the plan says so.
    pub faulty: Option<Faulty>,
    /// Docker Hub's, when the plan says so.
    pub identity: Option<Identity>,
    /// The tracker's node.
    pub tracker_node: Arc<Node>,
    program: Program,
    lab: Lab,
}

impl Cluster {
    /// Starts a cluster; the upstream holds `image` as `name:1`.
    ///
    /// # Errors
    /// When anything of it does not start.
    pub fn start(bench: &Bench, plan: Plan, image: &Image, name: &str) -> Result<Self> {
        let mut program = Program::find()?;
        let mut lab = bench.lab()?;
        if plan.certificates {
            program = program.with_certificates(&lab.dir().join("certificates"))?;
        }
        let upstream_link = if plan.faulty { Link::default() } else { plan.upstream_link };
        let upstream_node = lab.add_node("upstream", upstream_link)?;
        let front = if plan.faulty { Some(lab.add_node("faulty", plan.upstream_link)?) } else { None };
        let front_node = front.as_ref().unwrap_or(&upstream_node);
        lab.add_alias(HOST, front_node)?;
        let identity = if plan.docker_hub {
            lab.add_alias(DOCKER_HUB, front_node)?;
            Some(Identity::make(&lab.dir().join("identity"), DOCKER_HUB)?)
        } else {
            None
        };
        let upstream = Registry::start_guarded(&upstream_node, identity.as_ref(), plan.guard)?;
        let faulty = match &front {
            Some(node) => Some(Faulty::start(node, &upstream_node, identity.as_ref())?),
            None => None,
        };
        upstream.push(image, name, "1")?;
        let tracker_node = lab.add_node("tracker", Link::default())?;
        let origin_node = lab.add_node("origin", plan.origin_link)?;
        let tracker = program.tracker(&tracker_node)?;
        let origin = program.origin(&origin_node, &tracker_node)?;
        let names = (1..=plan.nodes).map(|number| format!("n{number}"));
        let nodes = names.map(|name| lab.add_node(&name, plan.node_link)).collect::<Result<Vec<_>>>()?;
        let mut agents = Vec::new();
        for node in &nodes {
            let others = nodes.iter().filter(|other| !Arc::ptr_eq(other, node));
            let sources = [&origin_node, front.as_ref().unwrap_or(&upstream_node)];
            node.count_received_from(others.chain(sources).map(Arc::as_ref))?;
            let process = program.agent(node, &tracker_node, &origin_node)?;
            agents.push(Agent { node: Arc::clone(node), process });
        }
        Ok(Self { agents, tracker, origin, origin_node, upstream, faulty, identity, tracker_node, program, lab })
    }

    /// Adds a node without an agent.
    ///
    /// # Errors
    /// As [`Lab::add_node`].
    pub fn add_node(&mut self, name: &str, link: Link) -> Result<Arc<Node>> {
        self.lab.add_node(name, link)
    }

    /// Starts the tracker again.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_tracker(&mut self) -> Result<()> {
        self.tracker.kill_dash_9()?;
        self.tracker = self.program.tracker(&self.tracker_node)?;
        Ok(())
    }

    /// Starts the origin again, with the store it had.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_origin(&mut self) -> Result<()> {
        self.origin.kill_dash_9()?;
        self.origin = self.program.origin(&self.origin_node, &self.tracker_node)?;
        Ok(())
    }

    /// The program under test.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The agent on a node.
    #[must_use]
    pub fn agent(&self, index: usize) -> &Process {
        &self.agents[index].process
    }

    /// `kill -9` of the agent on a node.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill_agent(&mut self, index: usize) -> Result<()> {
        self.agents[index].process.kill_dash_9()
    }

    /// Starts the agent on a node again, with the store it had.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_agent(&mut self, index: usize) -> Result<()> {
        self.restart_agent_with(index, "")
    }

    /// The same with more lines of configuration.
    ///
    /// # Errors
    /// As [`Cluster::restart_agent`].
    pub fn restart_agent_with(&mut self, index: usize, more: &str) -> Result<()> {
        let agent = &mut self.agents[index];
        agent.process.kill_dash_9()?;
        agent.process = self.program.agent_with(&agent.node, &self.tracker_node, &self.origin_node, more)?;
        Ok(())
    }

    /// Shows that every blob of the image left the upstream exactly once.
    ///
    /// # Errors
    /// Naming the blobs that did not.
    pub fn check_fetched_once(&self, image: &Image) -> Result<()> {
        self.upstream.check_fetched(image, 1)
    }

    /// Shows that at least half of what each node received came from other nodes, and that it received no blob twice.
    ///
    /// # Errors
    /// Naming the node and the bytes from each source.
    pub fn check_bytes_from_peers(&self, image: &Image) -> Result<()> {
        for agent in &self.agents {
            let node = &agent.node;
            let from_origin = node.received_from(&self.origin_node)?;
            let from_upstream = node.received_from(self.upstream.node())?;
            let others = self.agents.iter().filter(|other| !Arc::ptr_eq(&other.node, node));
            let from_peers = others.map(|other| node.received_from(&other.node)).sum::<Result<u64>>()?;
            let received = from_peers + from_origin + from_upstream;
            let sources =
                format!("{from_peers} bytes from peers, {from_origin} from the origin, {from_upstream} from upstream");
            ensure!(2 * from_peers >= received, "{}: less than half from peers: {sources}", node.name());
            note(format!("{}: {sources}", node.name()));
            ensure!(10 * received <= 11 * image.length(), "{}: {} bytes took {sources}", node.name(), image.length());
        }
        Ok(())
    }
}

/// Pulls with all clients at the same time, each by its own reference, and shows that each has the image, by its digest, and
/// that a program in it runs, where the client can run one.
///
/// # Errors
/// When one of them fails.
pub fn check_pulls(pulls: &[(&dyn Client, &str)], image: &Image) -> Result<()> {
    pull_at_once(pulls)?;
    for (client, reference) in pulls {
        let name = client.node().name();
        let digest = client.digest(reference)?;
        ensure!(digest == image.digest, "{name} pulled {digest} instead of {}", image.digest);
        let printed = client.run(reference, &["/bin/cat", "/etc/image"])?;
        let name_of_image = image.dir.file_name().unwrap_or_default().to_string_lossy();
        ensure!(
            printed.as_deref().is_none_or(|printed| printed == name_of_image),
            "{name} ran and printed {printed:?}"
        );
    }
    Ok(())
}

/// What the part that has this admin address on a node counts, as Prometheus reads it.
///
/// # Errors
/// When it does not tell.
pub fn metrics(node: &Node, admin: &str) -> Result<String> {
    node.run("curl", &["-sf", "-m", METRICS_TIMEOUT_SECONDS, &format!("http://{admin}/metrics")])
}

/// Pulls a blob by the agent of a node, and checks its bytes.
///
/// # Errors
/// When it does not come in time, or is another.
pub fn pull_blob(node: &Node, repository: &str, digest: &str, within: Duration) -> Result<()> {
    let (url, seconds) = (format!("http://{FRONT}/v2/{repository}/blobs/{digest}?ns={HOST}"), within.as_secs());
    let command = format!("set -o pipefail; curl -sSf --max-time {seconds} '{url}' | sha256sum");
    let printed = node.run("bash", &["-c", &command])?;
    ensure!(format!("sha256:{printed}").starts_with(digest), "{}: other bytes than {digest}: {printed}", node.name());
    Ok(())
}

/// How many requests of a kind, `manifest` or `blob`, the agent of a node has answered with this status.
///
/// # Errors
/// When the agent does not tell.
pub fn answered(node: &Node, kind: &str, status: &str) -> Result<u64> {
    let metrics = metrics(node, ADMIN)?;
    let name = format!("shoal_agent_requests_total{{route=\"{kind}\",status=\"{status}\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
    count.map_or(Ok(0), |count| count.parse().context("a counter"))
}

/// Bytes that the files under a directory take on the disk: holes do not count.
///
/// # Errors
/// When the directory itself cannot be read; files may vanish meanwhile.
pub fn disk_bytes(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)?.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { disk_bytes(&entry.path()).unwrap_or(0) } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}
