//! The dashboard's queries, asked of a real Prometheus that scrapes the parts as the chart's PodMonitor has it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shoal_e2e::harness::note;
use shoal_e2e::node::Node;
use shoal_e2e::process::Process;
use shoal_e2e::wait::wait_until;

/// The job that the PodMonitor makes of a release `shoal`.
const JOB: &str = "shoal-system/shoal";
const LISTEN: &str = "127.0.0.1:9090";
const PATIENCE: Duration = Duration::from_secs(60);
/// What is counted only once it has happened, and need not have.
const NEED_NOT_HAPPEN: &str = "shoal_agent_fallbacks_total";

/// A Prometheus that scrapes pods every second.
pub(super) struct Prometheus {
    node: Arc<Node>,
    _process: Process,
}

impl Prometheus {
    /// Starts it on a node that reaches these pods, as kubectl lists them, and waits until it has scraped them all.
    pub(super) fn start(node: &Arc<Node>, pods: &Value) -> Result<Self> {
        let pods = pods["items"].as_array().context("no pods")?;
        let targets = pods.iter().map(target).collect::<Result<Vec<_>>>()?;
        let scrape = json!({ "job_name": JOB, "static_configs": targets });
        // YAML reads JSON.
        let config = json!({ "global": { "scrape_interval": "1s" }, "scrape_configs": [scrape] });
        let file = node.dir().join("prometheus.yml");
        fs::write(&file, config.to_string())?;
        let mut command = node.command("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", node.dir().join("prometheus").display()));
        command.arg(format!("--web.listen-address={LISTEN}"));
        let mut process = node.start("prometheus", command)?;
        node.wait_listening(&mut process, 9090)?;
        let prometheus = Self { node: Arc::clone(node), _process: process };
        wait_until("every part to be scraped", PATIENCE, || Ok(prometheus.query("up == 1")?.len() == pods.len()))?;
        Ok(prometheus)
    }

    /// Shows that every panel of a dashboard has data.
    pub(super) fn check(&self, dashboard: &Path) -> Result<()> {
        let dashboard: Value = serde_json::from_slice(&fs::read(dashboard)?)?;
        let panels = dashboard["panels"].as_array().into_iter().flatten();
        let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
        let queries = targets.filter_map(|target| target["expr"].as_str());
        let queries = queries.filter(|query| !query.contains(NEED_NOT_HAPPEN)).collect::<Vec<_>>();
        ensure!(!queries.is_empty(), "a dashboard without queries");
        for query in &queries {
            let query = query.replace("$job", JOB).replace("$__rate_interval", "30s").replace("$__range", "2m");
            wait_until(&format!("data for {query}"), PATIENCE, || {
                let numbers =
                    self.query(&query)?.into_iter().filter_map(|series| series["value"][1].as_str()?.parse().ok());
                Ok(numbers.into_iter().any(f64::is_finite))
            })?;
        }
        note(format!("all {} queries of the dashboard have data", queries.len()));
        Ok(())
    }

    /// The series that a query gives now.
    fn query(&self, query: &str) -> Result<Vec<Value>> {
        let (words, url) = (format!("query={query}"), format!("http://{LISTEN}/api/v1/query"));
        let printed = self.node.run("curl", &["-sS", "--get", "--data-urlencode", &words, &url])?;
        let mut answer: Value = serde_json::from_str(&printed).with_context(|| format!("{query}: {printed}"))?;
        ensure!(answer["status"] == "success", "{query}: {answer}");
        serde_json::from_value(answer["data"]["result"].take()).context("the result is no list of series")
    }
}

/// Where a pod serves its metrics, and what is known of it.
fn target(pod: &Value) -> Result<Value> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|container| {
        let ports = container["ports"].as_array().into_iter().flatten();
        ports.map(move |port| (&container["name"], port))
    });
    let (container, port) = ports.into_iter().find(|(_, port)| port["name"] == "admin").context("no port admin")?;
    let address = pod["status"]["podIP"].as_str().with_context(|| format!("{name} has no address"))?;
    let labels = json!({ "pod": name, "container": container, "node": pod["spec"]["nodeName"] });
    Ok(json!({ "targets": [format!("{address}:{}", port["containerPort"])], "labels": labels }))
}
