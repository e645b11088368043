//! Shoal in a real Kubernetes: a control plane and three workers, each with containerd, kubelet and kube-proxy.

mod chart;
mod dashboard;
mod preheat;
mod scale;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shoal_e2e::harness::{Bench, Test};
use shoal_e2e::image::Recipe;
use shoal_e2e::kubernetes::{Kubernetes, Plan};
use shoal_e2e::node::Link;
use shoal_e2e::process::run;
use shoal_e2e::registry::{Guard, HOST};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "kubernetes_without_shoal_pulls_on_three_nodes_takes_back_a_dead_one_and_leaves_nothing_behind",
        needs: NEEDS,
        run: bare_cluster,
    },
    Test { name: "the_chart_passes_lint_and_the_schemas_of_kubernetes", needs: &[], run: chart::is_valid },
    Test {
        name: "in_kubernetes_no_pull_fails_whatever_happens_to_shoal_and_uninstalling_leaves_nodes_as_they_were",
        needs: NEEDS_WITH_PROMETHEUS,
        run: chart::life_of_a_release,
    },
    Test {
        name: "a_preheat_of_two_thousand_nodes_costs_the_api_server_and_the_tracker_little",
        needs: NEEDS,
        run: scale::two_thousand_nodes,
    },
];

const NEEDS_WITH_PROMETHEUS: &[&str] =
    &["prometheus", "etcd", "containerd", "ctr", "runc", "nft", "dnsmasq", "/usr/lib/cni/bridge"];
const NEEDS: &[&str] = NEEDS_WITH_PROMETHEUS.split_at(1).1;

fn bare_cluster(bench: &Bench) -> Result<()> {
    let image = bench.image(&Recipe::Random { layers_mib: vec![4, 2], seed: 41 })?;
    let before = Machine::look()?;
    let namespaces = {
        let plan = Plan { workers: 3, link: Link::default(), guard: Guard::Open, images: &[] };
        let mut cluster = Kubernetes::start(bench, plan)?;
        cluster.upstream.push(&image, "org/app", "1")?;
        cluster.apply(&on_every_node("app", "org/app:1", 3))?;
        cluster.wait_rolled_out("app")?;
        cluster.upstream.check_fetched(&image, 3)?;
        let printed = cluster.kubectl(&["exec", "deployment/app", "--", "/bin/cat", "/etc/image"])?;
        ensure!(printed.starts_with("random-41"), "the pod runs {printed}");

        cluster.kill_node(1);
        cluster.wait("condition=Ready=Unknown", &["node", "n2"])?;
        cluster.restart_node(1)?;
        cluster.wait_rolled_out("app")?;
        (0..3).map(|index| cluster.node(index)?.pid_namespace()).collect::<Result<Vec<_>>>()?
    };
    let left = processes_in(&namespaces)?;
    ensure!(left.is_empty(), "processes are left: {left:?}");
    before.check_same(&Machine::look()?)
}

/// A Deployment with a pod on each worker that does nothing.
fn on_every_node(name: &str, image: &str, workers: usize) -> Value {
    let labels = json!({ "app": name });
    let apart = json!({ "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": labels } });
    let mut pod = pod(image);
    pod["affinity"] = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [apart] } });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": workers, "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": pod },
        },
    })
}

/// What a pod is that runs an image of the upstream, asks for it whatever the node holds, and does nothing.
fn pod(image: &str) -> Value {
    let container = json!({
        "name": "app", "image": format!("{HOST}/{image}"), "imagePullPolicy": "Always",
        "command": ["/bin/busybox", "sleep", "1000000"],
    });
    json!({ "containers": [container], "terminationGracePeriodSeconds": 0 })
}

/// What this machine shows of a cluster on it, and of what one must not touch.
#[derive(Debug, PartialEq, Eq)]
struct Machine(BTreeSet<String>);

impl Machine {
    /// Directories that the parts of a cluster make where they are not given others.
    const MADE: [&str; 12] = [
        "/etc/cni",
        "/etc/containerd/certs.d",
        "/etc/kubernetes",
        "/opt/cni",
        "/opt/containerd",
        "/run/containerd",
        "/run/kubernetes",
        "/usr/libexec/kubernetes",
        "/var/lib/cni",
        "/var/lib/kubelet",
        "/var/log/containers",
        "/var/log/pods",
    ];

    fn look() -> Result<Self> {
        let networks = run("ip", ["netns", "list"])?;
        let networks = networks.lines().filter(|name| name.starts_with("shoal-")).map(|name| format!("network {name}"));
        let tables = run("nft", ["list", "tables"])?;
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mounts = mounts.lines().filter(|line| line.contains("e2e/.state")).map(str::to_owned);
        let cgroups =
            entries(Path::new("/sys/fs/cgroup"))?.into_iter().flat_map(|dir| entries(&dir).unwrap_or_default());
        let cgroups =
            cgroups.filter(|dir| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("shoal-")));
        let made = Self::MADE.iter().map(PathBuf::from).filter(|path| path.exists());
        let paths = cgroups.chain(made).map(|path| path.display().to_string());
        Ok(Self(networks.chain(tables.lines().map(str::to_owned)).chain(mounts).chain(paths).collect()))
    }

    fn check_same(&self, now: &Self) -> Result<()> {
        let left = now.0.difference(&self.0).collect::<Vec<_>>();
        ensure!(left.is_empty(), "left behind on this machine: {left:?}");
        Ok(())
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

/// The processes of these process namespaces.
fn processes_in(namespaces: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let processes = entries(Path::new("/proc"))?;
    let inside = |process: &PathBuf| fs::read_link(process.join("ns/pid")).is_ok_and(|of| namespaces.contains(&of));
    Ok(processes.into_iter().filter(inside).collect())
}
