//! The chart on a real Kubernetes: one release, from its installation to its end, and what befalls it in between.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shoal_e2e::harness::{Bench, Skip, note};
use shoal_e2e::image::{Image, Recipe};
use shoal_e2e::kubernetes::{Kubernetes, Plan, schemas};
use shoal_e2e::node::{Link, Node, Rate};
use shoal_e2e::process::output;
use shoal_e2e::program::Program;
use shoal_e2e::registry::{Guard, HOST};
use shoal_e2e::tokens::User;
use shoal_e2e::tools;
use shoal_e2e::wait::wait_until;

use super::dashboard::Prometheus;
use super::{on_every_node, pod};

/// Slow enough that a pull takes some seconds, so there is a middle.
const LINK: Link = Link::symmetric(Rate::mbit(50));
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
pub(super) const NAMESPACE: &str = "shoal-system";
/// Alice pushes, and everybody may pull `org/app`.
const USERS: &[User] = &[ALICE, User { name: "", password: "", repositories: &["org/app"] }];
pub(super) const ALICE: User = User { name: "alice", password: "al1ce", repositories: &["org/app", "org/private"] };
/// The upstream has no TLS.
const PLAIN_HTTP: &str = r"registries.registry\.lab.plainHttp=true";

pub(super) fn is_valid(bench: &Bench) -> Result<()> {
    let tools = tools::kubernetes().map_err(Skip)?;
    let lab = bench.lab()?;
    let dir = lab.dir().join("schemas");
    schemas::write(&tools.join("kubernetes-swagger.json"), &dir)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([tools.to_owned()].into_iter().chain(std::env::split_paths(&path)))?;
    let mut check = Command::new(chart().with_file_name("check.sh"));
    output(check.env("PATH", path).env("SCHEMAS", schemas::location(&dir))).map(drop)
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/shoal")
}

pub(super) fn life_of_a_release(bench: &Bench) -> Result<()> {
    let name = format!("localhost/shoal:{}", env!("CARGO_PKG_VERSION"));
    let images = [(Program::find()?.recipe()?, name)];
    let plan = Plan { workers: 3, link: LINK, guard: Guard::Tokens(USERS), images: &images };
    let mut release = Release { bench, cluster: Kubernetes::start(bench, plan)?, pulls: 0 };
    let steps: [(&str, Step<'_>); 15] = [
        ("installs with no values, and all of it becomes ready", Release::install),
        ("three nodes pull one copy, mostly from each other", Release::pull_shared),
        ("a fourth node joins and gets its first pull from peers", Release::join),
        ("every panel of the dashboard has data", Release::watch),
        ("an agent is deleted in mid-pull", Release::lose_agent),
        ("an agent hangs, and its node asks it no more until it is back", Release::hang_agent),
        ("a node dies in mid-pull and comes back", Release::lose_node),
        ("every origin and tracker is killed in mid-pull", Release::lose_sources),
        ("values change in mid-pull", Release::change_values),
        ("a private image goes to who has its secret alone", Release::pull_private),
        ("a preheat fills the nodes of a label, and a pod then starts without a byte from anywhere", Release::preheat),
        ("a private image is preheated with its secret alone", Release::preheat_private),
        ("Harbor lets an image be preheated, with its token alone", Release::preheat_for_harbor),
        ("is uninstalled, and pulls go to the registry again", Release::uninstall),
        ("no pull was backed off", Release::check_no_pull_failed),
    ];
    let before = release.configuration_of(0)?;
    for (what, step) in steps {
        let started = Instant::now();
        step(&mut release).context(what)?;
        note(format!("{what} ({:.1} s)", started.elapsed().as_secs_f64()));
    }
    for index in 0..release.cluster.workers() {
        let after = release.configuration_of(index)?;
        ensure!(before == after, "the runtimes of worker {index} were told {before:?} and now {after:?}");
        let store = release.cluster.node(index)?.own("/var")?.join("lib/shoal");
        ensure!(!store.exists(), "layers are left at {}", store.display());
    }
    Ok(())
}

/// What is done to a release, or befalls it.
type Step<'a> = fn(&mut Release<'a>) -> Result<()>;

/// A release of the chart, and the images pulled while it is there.
pub(super) struct Release<'a> {
    bench: &'a Bench,
    pub(super) cluster: Kubernetes,
    pulls: u64,
}

impl Release<'_> {
    fn install(&mut self) -> Result<()> {
        self.helm("install", &["--create-namespace", "--wait"])?;
        self.wait_ready()?;
        self.check_encrypted()?;
        ["origin", "tracker"].iter().try_for_each(|component| self.check_spread(component))
    }

    /// Parts have the certificates that the chart made, and who has none reads nothing of an origin.
    fn check_encrypted(&self) -> Result<()> {
        let node = self.cluster.node(0)?;
        wait_until("the agent to know its trackers", PATIENCE, || {
            let status: Value = serde_json::from_str(&node.run("curl", &["-sf", "http://127.0.0.1:5052/status"])?)?;
            ensure!(status["transport"] == "mutual TLS", "parts talk in {}", status["transport"]);
            Ok(status["trackers_up"] == 2)
        })?;
        let label = "app.kubernetes.io/component=origin";
        let pods = self.cluster.get(&["pods", "--namespace", NAMESPACE, "--selector", label])?;
        let address = pods["items"][0]["status"]["podIP"].as_str().context("an address")?;
        for port in [7500, 7501, 7503] {
            let url = format!("http://{address}:{port}/v2/");
            ensure!(node.run("curl", &["-s", "--max-time", "10", &url]).is_err(), "{url} answers anybody");
        }
        Ok(())
    }

    /// The certificates, which an upgrade must leave as they are.
    fn certificates(&self) -> Result<Value> {
        let secret = self.cluster.get(&["secret", "--namespace", NAMESPACE, "shoal-agent-tls"])?;
        Ok(secret["data"].clone())
    }

    /// No node has two of a component.
    fn check_spread(&self, component: &str) -> Result<()> {
        let label = format!("app.kubernetes.io/component={component}");
        let pods = self.cluster.get(&["pods", "--namespace", NAMESPACE, "--selector", &label])?;
        let pods = pods["items"].as_array().context("no pods")?;
        let nodes = pods.iter().map(|pod| pod["spec"]["nodeName"].to_string()).collect::<BTreeSet<_>>();
        ensure!(nodes.len() == pods.len() && pods.len() > 1, "{} of {component} are on {nodes:?}", pods.len());
        Ok(())
    }

    fn pull_shared(&mut self) -> Result<()> {
        // All agents at once, which takes less time than one by one.
        let values = [PLAIN_HTTP, "agent.maxUnavailable=100%", "preheat.secretNamespaces={default}"];
        let values = values.map(|value| ["--set", value]);
        let certificates = self.certificates()?;
        self.helm("upgrade", &[&["--wait"], values.as_flattened()].concat())?;
        ensure!(certificates == self.certificates()?, "an upgrade made new certificates");
        self.wait_ready()?;
        for index in 0..self.cluster.workers() {
            self.count_from_peers(index)?;
        }
        let image = self.pull("shared", |_| Ok(()))?;
        self.cluster.upstream.check_fetched(&image, 1)?;
        for index in 0..self.cluster.workers() {
            self.check_fetched_ahead(index)?;
        }
        let received = (0..self.cluster.workers()).map(|index| self.received_from_peers(index));
        let received = received.collect::<Result<Vec<_>>>()?;
        note(format!("of {} bytes nodes got {received:?} from each other", image.length()));
        // Origins are pods, whose addresses are not their nodes'.
        ensure!(received.iter().sum::<u64>() >= image.length(), "nodes got {received:?} from each other");
        Ok(())
    }

    fn join(&mut self) -> Result<()> {
        let image = self.image()?;
        self.cluster.add_node()?;
        self.wait_ready()?;
        let joined = self.cluster.workers() - 1;
        self.count_from_peers(joined)?;
        self.cluster.kubectl(&["scale", "deployment/shared", "--replicas", &self.cluster.workers().to_string()])?;
        self.cluster.wait_rolled_out("shared")?;
        self.cluster.upstream.check_fetched(&image, 1)?;
        let received = self.received_from_peers(joined)?;
        note(format!("the node that joined got {received} of {} bytes from its peers", image.length()));
        ensure!(2 * received >= image.length(), "the node that joined got {received} bytes from its peers");
        Ok(())
    }

    fn watch(&mut self) -> Result<()> {
        let parts = ["pods", "--namespace", NAMESPACE, "--selector", "app.kubernetes.io/name=shoal"];
        let prometheus = Prometheus::start(self.cluster.upstream.node(), &self.cluster.get(&parts)?)?;
        self.pull("watched", |_| Ok(()))?;
        prometheus.check(&chart().join("files/dashboard.json"))
    }

    fn lose_agent(&mut self) -> Result<()> {
        self.pull("loses-agent", |release| {
            let node = release.cluster.node(0)?.name().to_owned();
            release.kill_pods("agent", &["--field-selector", &format!("spec.nodeName={node}")])
        })?;
        self.wait_ready()
    }

    /// It takes connections and says nothing, for less time than it takes to be restarted for that.
    fn hang_agent(&mut self) -> Result<()> {
        let node = Arc::clone(self.cluster.node(0)?);
        let signal = |name: &str| node.run("pkill", &["--signal", name, "--full", "[s]hoal agent"]);
        let wait_told = |release: &Self, told: bool| {
            wait_until(&format!("the mirror to be told: {told}"), PATIENCE, || {
                let mut files = release.configuration_of(0)?.into_values();
                Ok(files.any(|text| String::from_utf8_lossy(&text).contains("127.0.0.1:5050")) == told)
            })
        };
        signal("STOP")?;
        wait_told(self, false)?;
        let image = self.pull("hangs", |_| Ok(()))?;
        self.cluster.upstream.check_fetched(&image, 2)?;
        signal("CONT")?;
        wait_told(self, true)?;
        self.wait_ready()
    }

    fn lose_node(&mut self) -> Result<()> {
        let last = self.cluster.workers() - 1;
        self.pull("loses-node", |release| {
            release.cluster.kill_node(last);
            let others = format!("jsonpath={{.status.readyReplicas}}={last}");
            release.cluster.wait(&others, &["deployment/loses-node"])?;
            release.cluster.restart_node(last)
        })?;
        self.wait_ready()
    }

    fn lose_sources(&mut self) -> Result<()> {
        self.pull("loses-sources", |release| {
            release.kill_pods("origin", &[])?;
            release.kill_pods("tracker", &[])
        })?;
        self.wait_ready()
    }

    fn change_values(&mut self) -> Result<()> {
        self.pull("changes-values", |release| release.helm("upgrade", &["--reuse-values", "--set", "storeMax=8GiB"]))?;
        self.wait_ready()
    }

    fn pull_private(&mut self) -> Result<()> {
        let image = self.next_image()?;
        self.cluster.upstream.push(&image, "org/private", "1")?;
        let User { name, password, .. } = ALICE;
        let login = [&format!("--docker-username={name}"), &format!("--docker-password={password}")];
        let server = format!("--docker-server={HOST}");
        self.cluster.kubectl(&["create", "secret", "docker-registry", name, &server, login[0], login[1]])?;
        let mut allowed = pod_on("n1", "org/private:1");
        allowed["spec"]["imagePullSecrets"] = json!([{ "name": name }]);
        self.cluster.apply(&allowed)?;
        self.cluster.wait("condition=Ready", &["pod/on-n1"])?;
        self.cluster.upstream.check_fetched(&image, 1)?;

        let mut refused = pod_on("n1", "org/private:1");
        refused["metadata"]["namespace"] = json!("strangers");
        self.cluster.kubectl(&["create", "namespace", "strangers"])?;
        self.cluster.wait("create", &["--namespace", "strangers", "serviceaccount/default"])?;
        self.cluster.apply(&refused)?;
        wait_until("a pod without the secret to be refused", PATIENCE, || {
            let pod = self.cluster.get(&["--namespace", "strangers", "pod/on-n1"])?;
            let state = &pod["status"]["containerStatuses"][0]["state"];
            ensure!(state["running"].is_null(), "a pod without the secret runs");
            Ok(state["waiting"]["reason"] == "ErrImagePull")
        })?;
        // The pod that was refused stays until the end: of what it pulled nothing may be given to others either.
        Ok(())
    }

    /// As the events of the pods say that came from [`Release::pull`].
    fn check_no_pull_failed(&mut self) -> Result<()> {
        let events = self.cluster.get(&["events", "--namespace", "default"])?;
        let failed = events["items"].as_array().into_iter().flatten();
        let failed = failed.filter(|event| event["reason"] == "Failed" || event["reason"] == "BackOff");
        let failed = failed.map(|event| event["message"].to_string()).collect::<Vec<_>>();
        ensure!(failed.is_empty(), "pulls failed: {failed:?}");
        Ok(())
    }

    fn uninstall(&mut self) -> Result<()> {
        self.cluster.helm(&["uninstall", "shoal", "--namespace", NAMESPACE, "--wait", "--timeout", "3m"])?;
        for (kinds, scope) in [
            (
                "leases,serviceaccounts,roles,rolebindings,configmaps,services,pods,poddisruptionbudgets,resourcequotas",
                NAMESPACE,
            ),
            ("clusterroles,clusterrolebindings,customresourcedefinitions,priorityclasses", "default"),
        ] {
            // The pods of the hook take some time to end.
            wait_until(&format!("nothing to be left of {kinds}"), PATIENCE, || {
                let left = self.cluster.kubectl(&["get", kinds, "--namespace", scope, "-o", "name"])?;
                Ok(!left.lines().any(|name| name.contains("shoal")))
            })?;
        }
        let image = self.pull("pulls-directly", |_| Ok(()))?;
        self.cluster.upstream.check_fetched(&image, self.cluster.workers() as u64)
    }

    /// Lets a new image be pulled on every node, and does `meanwhile` when a part of it has come. Shows that all pods run.
    fn pull(&mut self, name: &str, meanwhile: impl FnOnce(&mut Self) -> Result<()>) -> Result<Image> {
        let image = self.next_image()?;
        let tag = self.pulls.to_string();
        self.cluster.upstream.push(&image, "org/app", &tag)?;
        let node = Arc::clone(self.cluster.node(0)?);
        let before = node.traffic()?;
        self.cluster.apply(&on_every_node(name, &format!("org/app:{tag}"), self.cluster.workers()))?;
        wait_until("a fifth of the image", PATIENCE, || {
            Ok(5 * node.traffic()?.since(before).received_bytes >= image.length())
        })?;
        // Others may have it before: links are not shared evenly.
        let deployment = self.cluster.get(&[&format!("deployment/{name}")])?;
        let ready = deployment["status"]["readyReplicas"].as_u64().unwrap_or_default();
        ensure!(ready < self.cluster.workers() as u64, "all pods run before anything could befall their pulls");
        meanwhile(self)?;
        self.cluster.wait_rolled_out(name)?;
        Ok(image)
    }

    /// The image of the last pull.
    fn image(&self) -> Result<Image> {
        self.bench.image(&Recipe::Random { layers_mib: vec![16, 8], seed: 50 + self.pulls })
    }

    pub(super) fn next_image(&mut self) -> Result<Image> {
        self.pulls += 1;
        self.image()
    }

    pub(super) fn helm(&self, verb: &str, flags: &[&str]) -> Result<()> {
        let chart = chart().display().to_string();
        let words = [verb, "shoal", &chart, "--namespace", NAMESPACE, "--timeout", "3m"];
        let done = self.cluster.helm(&[&words[..], flags].concat()).map(drop);
        done.with_context(|| self.cluster.kubectl(&["get", "pods,events", "-A", "-o", "wide"]).unwrap_or_default())
    }

    /// Waits until every node has an agent of the newest values, and all other parts are there. An agent is ready some time before it
    /// counts as available.
    pub(super) fn wait_ready(&self) -> Result<()> {
        let namespace = ["--namespace", NAMESPACE];
        for field in ["updatedNumberScheduled", "numberReady"] {
            let agents = format!("jsonpath={{.status.{field}}}={}", self.cluster.workers());
            self.cluster.wait(&agents, &[&["daemonset/shoal-agent"], &namespace[..]].concat())?;
        }
        for part in ["statefulset/shoal-origin", "deployment/shoal-tracker"] {
            self.cluster.kubectl(&[&["rollout", "status", part, "--timeout", "3m"], &namespace[..]].concat())?;
        }
        Ok(())
    }

    fn kill_pods(&self, component: &str, flags: &[&str]) -> Result<()> {
        let label = format!("app.kubernetes.io/component={component}");
        let words = ["delete", "pods", "--namespace", NAMESPACE, "--selector", &label, "--now", "--wait=false"];
        self.cluster.kubectl(&[&words[..], flags].concat()).map(drop)
    }

    fn count_from_peers(&self, index: usize) -> Result<()> {
        self.cluster.node(index)?.count_received_from(self.others(index)?)
    }

    fn received_from_peers(&self, index: usize) -> Result<u64> {
        self.others(index)?.into_iter().map(|other| self.cluster.node(index)?.received_from(other)).sum()
    }

    fn others(&self, index: usize) -> Result<Vec<&Node>> {
        let others = (0..self.cluster.workers()).filter(|other| *other != index);
        others.map(|other| Ok(&**self.cluster.node(other)?)).collect()
    }

    /// What a node's runtimes are told: the files of their directories.
    fn configuration_of(&self, index: usize) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let etc = self.cluster.node(index)?.own("/etc")?;
        let mut files = BTreeMap::new();
        let mut directories = ["containerd", "containers", "crio", "docker"].map(|runtime| etc.join(runtime)).to_vec();
        directories.retain(|directory| directory.exists());
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    files.insert(path.strip_prefix(&etc)?.to_owned(), fs::read(path)?);
                }
            }
        }
        Ok(files)
    }
}

/// A pod on one worker.
pub(super) fn pod_on(worker: &str, image: &str) -> Value {
    let mut spec = pod(image);
    spec["nodeName"] = json!(worker);
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("on-{worker}") }, "spec": spec })
}
