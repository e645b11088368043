//! A real Kubernetes on nodes of the lab: a control plane on a node of its own, and workers with containerd, kubelet and kube-proxy.
//! Made by the tests, which install charts on it; knows nothing of Shoal.
//!
//! A worker has /etc, /var and /run for itself: it neither sees nor changes what the machine has configured. Pods of all workers reach
//! each other, the control plane and the upstream through the hub, without address translation, and resolve the names of the
//! lab; no DNS knows services. All of it is gone when this is dropped.

mod access;
mod cgroup;
mod control_plane;
pub mod schemas;
mod worker;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::harness::{Bench, Skip};
use crate::image::{Image, Recipe};
use crate::lab::{Lab, in_hub};
use crate::node::{Link, Node};
use crate::process::tail;
use crate::registry::{Guard, HOST, Registry};
use crate::tools;
use control_plane::ControlPlane;
use worker::Worker;

/// Every pod of every worker has an address in here; worker N's are in 10.244.N.0/24.
const PODS: &str = "10.244.0.0/16";
const SERVICES: &str = "10.96.0.0/16";
/// What every pod holds its namespaces by. No registry is asked for it.
const PAUSE: &str = "registry.k8s.io/pause:lab";
/// The label that says of a worker whether its number is `odd` or `even`.
pub const PARITY: &str = "shoal.test/parity";
/// Makes a router of the network it is run in.
const FORWARD: &str = "echo 1 >/proc/sys/net/ipv4/ip_forward";
/// How long a node or a pod may take to become what it should be.
const PATIENCE: Duration = Duration::from_secs(120);

/// The shape of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// How many workers there are at first.
    pub workers: u8,
    /// The link of each worker and of the upstream.
    pub link: Link,
    /// Who may read from the upstream.
    pub guard: Guard,
    /// What each worker has before it asks any registry, and the name by which pods call it.
    pub images: &'a [(Recipe, String)],
}

/// A running cluster.
#[derive(Debug)]
pub struct Kubernetes {
    /// The upstream registry, which nodes and pods resolve as [`HOST`].
    pub upstream: Registry,
    control_plane: ControlPlane,
    workers: Vec<Worker>,
    /// What each worker has before it asks any registry.
    archives: Vec<PathBuf>,
    link: Link,
    lab: Lab,
}

impl Kubernetes {
    /// Starts a cluster, whose workers are `n1`, `n2` …, and waits until all are Ready.
    ///
    /// # Errors
    /// When anything of it does not start; [`Skip`] where its programs are not to be had.
    pub fn start(bench: &Bench, plan: Plan<'_>) -> Result<Self> {
        let tools = tools::kubernetes().map_err(Skip)?;
        let mut lab = bench.lab()?;
        in_hub(&["ip", "address", "add", &format!("{}/24", Lab::HUB_IP), "dev", crate::lab::BRIDGE])?;
        in_hub(&["sh", "-c", FORWARD])?;
        let upstream_node = add_routed(&mut lab, "upstream", plan.link)?;
        lab.add_alias(HOST, &upstream_node)?;
        let upstream = Registry::start_guarded(&upstream_node, None, plan.guard)?;
        let control_node = add_routed(&mut lab, "control", Link::default())?;
        let mut archives = Vec::new();
        for (recipe, name) in [(pause(), PAUSE.to_owned())].iter().chain(plan.images) {
            let file = lab.dir().join(format!("image-{}.tar", archives.len()));
            Image::build(&lab.dir().join("images"), recipe)?.archive(&file, name)?;
            archives.push(file);
        }
        let control_plane = ControlPlane::start(control_node, tools, lab.dir())?;
        let mut kubernetes = Self { upstream, control_plane, workers: Vec::new(), archives, link: plan.link, lab };
        for _ in 0..plan.workers {
            kubernetes.start_worker()?;
        }
        kubernetes.wait_ready()?;
        Ok(kubernetes)
    }

    /// Adds a worker and waits until it is Ready.
    ///
    /// # Errors
    /// When it does not start.
    pub fn add_node(&mut self) -> Result<()> {
        self.start_worker()?;
        self.wait_ready()
    }

    /// Cuts a worker's power: everything on it is dead at once.
    pub fn kill_node(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        self.lab.remove_node(worker.name());
        worker.kill();
    }

    /// Starts a worker again, with the files it had, and waits until all are Ready.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_node(&mut self, index: usize) -> Result<()> {
        let node = add_routed(&mut self.lab, self.workers[index].name(), self.link)?;
        self.workers[index].boot(node, &self.control_plane, &self.archives)?;
        self.wait_ready()
    }

    /// The node of a worker.
    ///
    /// # Errors
    /// When it was killed.
    pub fn node(&self, index: usize) -> Result<&Arc<Node>> {
        self.workers[index].node()
    }

    /// How many workers there are, dead ones too.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Runs `kubectl` as the administrator, and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.control_plane.run("kubectl", words)
    }

    /// What `kubectl get` says of objects.
    ///
    /// # Errors
    /// When it fails.
    pub fn get(&self, words: &[&str]) -> Result<Value> {
        let printed = self.kubectl(&[&["get", "-o", "json"], words].concat())?;
        serde_json::from_str(&printed).context("what kubectl get printed")
    }

    /// Applies an object.
    ///
    /// # Errors
    /// When the cluster does not take it.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let file = self.lab.dir().join("applied.json");
        fs::write(&file, object.to_string())?;
        self.kubectl(&["apply", "-f", &file.to_string_lossy()]).map(drop)
    }

    /// Creates objects, one after the other.
    ///
    /// # Errors
    /// When the cluster does not take one of them.
    pub fn create(&self, objects: &[Value]) -> Result<()> {
        let file = self.lab.dir().join("created.json");
        fs::write(&file, serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string())?;
        self.kubectl(&["create", "-f", &file.to_string_lossy()]).map(drop)
    }

    /// The node that the control plane is on.
    #[must_use]
    pub fn control_node(&self) -> &Arc<Node> {
        self.control_plane.node()
    }

    /// A kubeconfig file of an administrator of whom each request is noted in [`Self::audit_log`].
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn audited(&self) -> Result<PathBuf> {
        self.control_plane.audited()
    }

    /// The audit events there are, oldest first.
    ///
    /// # Errors
    /// When the API server wrote none.
    pub fn audit_log(&self) -> Result<Vec<Value>> {
        let log = fs::read_to_string(self.control_plane.audit_log()).context("the audit log")?;
        log.lines().map(|line| serde_json::from_str(line).context("an audit event")).collect()
    }

    /// Waits until objects have a condition, as `kubectl wait --for` names it.
    ///
    /// # Errors
    /// When they do not in time.
    pub fn wait(&self, condition: &str, objects: &[&str]) -> Result<()> {
        let (condition, timeout) = (format!("--for={condition}"), format!("--timeout={}s", PATIENCE.as_secs()));
        self.kubectl(&[&["wait", &condition, &timeout], objects].concat()).map(drop)
    }

    /// Waits until all pods of a Deployment are available.
    ///
    /// # Errors
    /// When they are not in time; the text says what became of pods and pulls.
    pub fn wait_rolled_out(&self, deployment: &str) -> Result<()> {
        let (name, timeout) = (format!("deployment/{deployment}"), format!("--timeout={}s", PATIENCE.as_secs()));
        let rolled_out = self.kubectl(&["rollout", "status", &name, &timeout]).map(drop);
        rolled_out.with_context(|| self.kubectl(&["get", "pods,events", "-o", "wide"]).unwrap_or_default())
    }

    /// Runs `helm` as the administrator, and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn helm(&self, words: &[&str]) -> Result<String> {
        self.control_plane.run("helm", words)
    }

    fn start_worker(&mut self) -> Result<()> {
        let number = u8::try_from(self.workers.len() + 1).context("more workers than addresses")?;
        let mut worker = Worker::new(number);
        let node = add_routed(&mut self.lab, worker.name(), self.link)?;
        in_hub(&["ip", "route", "add", &worker.pods(), "via", &node.ip().to_string()])?;
        worker.boot(node, &self.control_plane, &self.archives)?;
        self.workers.push(worker);
        Ok(())
    }

    fn wait_ready(&self) -> Result<()> {
        for worker in &self.workers {
            self.wait("create", &["node", worker.name()])?;
        }
        if self.workers.is_empty() {
            return Ok(());
        }
        let ready = self.wait("condition=Ready", &["node", "--all"]);
        ready.with_context(|| self.workers.iter().filter_map(Worker::kubelet_log).map(tail).collect::<String>())
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        // Before their cgroups are removed.
        (0..self.workers.len()).for_each(|index| self.kill_node(index));
    }
}

/// A node that reaches pods.
fn add_routed(lab: &mut Lab, name: &str, link: Link) -> Result<Arc<Node>> {
    let node = lab.add_node(name, link)?;
    node.run("ip", &["route", "add", "default", "via", Lab::HUB_IP])?;
    Ok(node)
}

/// What does nothing until it is told to end, and buries processes that the pod's others left.
fn pause() -> Recipe {
    let script = "trap 'exit 0' TERM; while :; do /bin/busybox sleep 3600 & wait; done";
    let entrypoint = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    Recipe::Program { name: "pause", entrypoint, files: Vec::new() }
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
