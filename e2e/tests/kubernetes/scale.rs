//! Preheating two thousand nodes that are objects of a real API server and nothing more: what that costs the tracker and the API.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::{Value, json};
use shoal_e2e::cluster::metrics;
use shoal_e2e::harness::{Bench, note};
use shoal_e2e::image::Recipe;
use shoal_e2e::kubernetes::{Kubernetes, Plan};
use shoal_e2e::node::{Link, Node};
use shoal_e2e::program::{Program, TRACKER_ADMIN, TRACKER_PORT};
use shoal_e2e::registry::{Guard, HOST};
use shoal_e2e::wait::wait_until;
use shoal_proto::preheat::v1::preheat_client::PreheatClient;
use shoal_proto::preheat::v1::{Progress, ReportRequest, State};
use tonic::transport::Channel;

const NODES: usize = 2_000;
/// How many of them may fetch at a time.
const PARALLELISM: usize = 100;
/// How many report at a time: a connection has room for twice as many.
const REPORTS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(120);
/// The most that all of it may cost, with room for a slow machine: requests to the API server, and the tracker's memory.
const REQUESTS_MAX: usize = 150;
const ANON_BYTES_MAX: u64 = 64 << 20;

pub(super) fn two_thousand_nodes(bench: &Bench) -> Result<()> {
    let image = bench.image(&Recipe::Random { layers_mib: vec![2, 1], seed: 61 })?;
    let plan = Plan { workers: 0, link: Link::default(), guard: Guard::Open, images: &[] };
    let cluster = Kubernetes::start(bench, plan)?;
    cluster.upstream.push(&image, "org/app", "1")?;
    let definition = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/shoal/files/preheats.json"))?;
    cluster.apply(&serde_json::from_slice(&definition)?)?;
    cluster.wait("condition=Established", &["crd/preheats.shoal.dev"])?;
    let nodes = (0..NODES).map(|n| {
        let labels = json!({ "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux", "role": "web" });
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name(n), "labels": labels } })
    });
    cluster.create(&nodes.collect::<Vec<_>>())?;

    let program = Program::find()?;
    let (control, upstream) = (cluster.control_node(), cluster.upstream.node());
    let _origin = program.origin(upstream, control)?;
    let _tracker = program.preheating_tracker(control, upstream, &cluster.audited()?)?;
    let at_rest = wait_for_nodes(control)?;
    let spec = json!({ "images": [format!("{HOST}/org/app:1")], "nodeSelector": { "role": "web" }, "parallelism": PARALLELISM });
    let began = Instant::now();
    cluster.apply(&json!({
        "apiVersion": "shoal.dev/v1alpha1", "kind": "Preheat", "metadata": { "name": "all" }, "spec": spec,
    }))?;
    let reports = control.in_network(|| preheat_all(image.length()))?;
    cluster.wait("condition=Complete", &["preheat/all"])?;
    let took = began.elapsed();
    let anon = anon_bytes(control)?;
    let object = cluster.get(&["preheat/all"])?;
    let status = &object["status"];
    let told = status["nodeStatuses"].as_array().map_or(0, Vec::len);
    ensure!(status["nodes"]["complete"] == NODES && told == 500, "{}", status["nodes"]);
    cluster.upstream.check_fetched(&image, 0)?;

    let requests = requests(&cluster.audit_log()?);
    note(format!(
        "{NODES} nodes, {PARALLELISM} at a time: {took:.1?}, {reports} reports; status of {} bytes",
        object.to_string().len()
    ));
    note(format!("tracker: {} KiB anonymous with the nodes known, {} KiB at the end", at_rest >> 10, anon >> 10));
    note(format!("requests to the API server: {requests:?}"));
    let count = requests.values().sum::<usize>();
    ensure!(count <= REQUESTS_MAX, "{count} requests to the API server: {requests:?}");
    ensure!(anon <= ANON_BYTES_MAX, "the tracker takes {anon} bytes");
    Ok(())
}

fn name(n: usize) -> String {
    format!("node-{n:04}")
}

/// Waits until the tracker leads and knows the nodes; gives its memory then.
fn wait_for_nodes(control: &Node) -> Result<u64> {
    wait_until("the tracker to lead", PATIENCE, || {
        Ok(metrics(control, TRACKER_ADMIN)?.lines().any(|line| line == format!("shoal_tracker_nodes {NODES}")))
    })?;
    anon_bytes(control)
}

/// The anonymous memory of the tracker on a node.
fn anon_bytes(node: &Node) -> Result<u64> {
    let status = "cat /proc/$(pgrep --full '[s]hoal tracker')/status";
    let status = node.run("sh", &["-c", status]).context("the tracker is gone")?;
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix("kB"));
    Ok(kib.context("no RssAnon")?.trim().parse::<u64>()? * 1024)
}

/// Plays the agents of all nodes, which fetch in no time, until each is done. Gives how often they reported.
fn preheat_all(bytes: u64) -> Result<usize> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = Channel::from_shared(format!("http://127.0.0.1:{TRACKER_PORT}"))?.connect().await?;
        let mut agents: Vec<_> =
            (0..NODES).map(|n| Agent { name: name(n), held: Vec::new(), is_done: false }).collect();
        let (mut reports, deadline) = (0, Instant::now() + PATIENCE);
        while agents.iter().any(|agent| !agent.is_done) {
            ensure!(Instant::now() < deadline, "only some nodes were preheated");
            let waiting = agents.iter_mut().filter(|agent| !agent.is_done);
            let told = stream::iter(waiting).map(|agent| agent.report(channel.clone(), bytes));
            let told: Vec<Result<()>> = told.buffer_unordered(REPORTS).collect().await;
            reports += told.len();
            told.into_iter().collect::<Result<()>>()?;
        }
        Ok(reports)
    })
}

/// One agent, as the tracker sees it.
struct Agent {
    name: String,
    held: Vec<Progress>,
    is_done: bool,
}

impl Agent {
    async fn report(&mut self, channel: Channel, bytes: u64) -> Result<()> {
        let request = ReportRequest { node: self.name.clone(), tasks: self.held.clone() };
        let answer = PreheatClient::new(channel).report(request).await?.into_inner();
        self.is_done = !self.held.is_empty() && answer.tasks.is_empty();
        for task in answer.tasks {
            let held = task.images.iter().flat_map(|image| &image.blobs).map(|blob| blob.length_bytes).sum();
            ensure!(held >= bytes, "the task is of {held} bytes");
            let state = State::Complete.into();
            self.held = vec![Progress {
                id: task.id,
                revision: task.revision,
                state,
                held_bytes: held,
                message: String::new(),
            }];
        }
        Ok(())
    }
}

/// The requests of an audit log by verb and resource, each once.
fn requests(log: &[Value]) -> BTreeMap<String, usize> {
    let mut requests = BTreeMap::<_, usize>::new();
    let mut seen = std::collections::BTreeSet::new();
    for event in log.iter().filter(|event| seen.insert(event["auditID"].to_string())) {
        let object = &event["objectRef"];
        let of =
            [&object["resource"], &object["subresource"]].into_iter().filter_map(Value::as_str).collect::<Vec<_>>();
        *requests.entry(format!("{} {}", event["verb"].as_str().unwrap_or_default(), of.join("/"))).or_default() += 1;
    }
    requests
}
