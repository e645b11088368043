//! Preheats in a release of the chart: layers are on nodes before anybody pulls them, and private ones only with their secret.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shoal_e2e::cluster::metrics;
use shoal_e2e::harness::note;
use shoal_e2e::kubernetes::PARITY;
use shoal_e2e::node::Node;
use shoal_e2e::program::ADMIN;
use shoal_e2e::registry::HOST;
use shoal_e2e::wait::wait_until;

use super::chart::{ALICE, NAMESPACE, PATIENCE, Release, pod_on};

type Counters = BTreeMap<String, u64>;
/// What an agent has received since it began, by where from.
const RECEIVED: &str = "shoal_agent_bytes_total";
/// What Harbor has to show.
const TOKEN: &str = "0123456789abcdef";

impl Release<'_> {
    pub(super) fn preheat(&mut self) -> Result<()> {
        let image = self.next_image()?;
        self.cluster.upstream.push(&image, "org/app", "preheated")?;
        let odd = json!({ "nodeSelector": { PARITY: "odd" } });
        self.cluster.apply(&preheat("odd", "default", "org/app:preheated", &odd))?;
        self.cluster.wait("condition=Complete", &["preheat/odd"])?;
        let status = &self.cluster.get(&["preheat/odd"])?["status"];
        note(format!("preheat: {} nodes, {} of the bytes", status["ready"], status["progress"]));
        let counts = &status["nodes"];
        ensure!(counts["complete"] == 2 && counts["selected"] == 2 && status["progress"] == "100%", "{status}");
        let names = status["nodeStatuses"].as_array().into_iter().flatten().map(|node| node["name"].clone());
        ensure!(names.collect::<Vec<_>>() == ["n1", "n3"], "{status}");
        self.cluster.upstream.check_fetched(&image, 1)?;

        let node = self.cluster.node(0)?;
        let (before, traffic) = (counters(node, RECEIVED)?, node.traffic()?);
        self.cluster.kubectl(&["delete", "pod/on-n1"])?;
        self.cluster.apply(&pod_on("n1", "org/app:preheated"))?;
        self.cluster.wait("condition=Ready", &["pod/on-n1"])?;
        let (after, came) = (counters(node, RECEIVED)?, node.traffic()?.since(traffic).received_bytes);
        for source in ["peer_same_zone", "peer_other_zone", "origin", "upstream"] {
            ensure!(before.get(source) == after.get(source), "bytes came from {source}: {before:?}, then {after:?}");
        }
        let local = after.get("local").copied().unwrap_or(0) - before.get("local").copied().unwrap_or(0);
        note(format!("the pod got {local} bytes from its node; {came} bytes of any kind reached the node"));
        ensure!(local >= image.length(), "the pod got {local} of {} bytes from its node", image.length());
        self.cluster.upstream.check_fetched(&image, 1)
    }

    /// With the secret it is fetched; where the secret may not be read or is missing, the status says so.
    pub(super) fn preheat_private(&mut self) -> Result<()> {
        let image = self.next_image()?;
        self.cluster.upstream.push(&image, "org/private", "preheated")?;
        let secrets = json!({ "imagePullSecrets": [{ "name": ALICE.name }] });
        for (namespace, more, words) in
            [("default", json!({}), "UNAUTHORIZED"), ("strangers", secrets.clone(), "preheat.secretNamespaces")]
        {
            self.cluster.apply(&preheat("refused", namespace, "org/private:preheated", &more))?;
            wait_until("a preheat to be refused", PATIENCE, || {
                let object = self.cluster.get(&["--namespace", namespace, "preheat/refused"])?;
                let condition = &object["status"]["conditions"][0];
                ensure!(condition["status"] != "True", "a preheat without the secret is complete");
                Ok(condition["message"].as_str().is_some_and(|message| message.contains(words)))
            })?;
            self.cluster.kubectl(&["delete", "--namespace", namespace, "preheat/refused"])?;
        }
        self.cluster.upstream.check_fetched(&image, 0)?;
        self.cluster.apply(&preheat("private", "default", "org/private:preheated", &secrets))?;
        self.cluster.wait("condition=Complete", &["preheat/private"])?;
        self.cluster.upstream.check_fetched(&image, 1)?;
        self.cluster.kubectl(&["delete", "namespace", "strangers", "--wait=false"]).map(drop)
    }

    /// As Harbor's driver for Dragonfly asks.
    pub(super) fn preheat_for_harbor(&mut self) -> Result<()> {
        let token = format!("--from-literal=token={TOKEN}");
        let words = ["create", "secret", "generic", "harbor-token", "--namespace", NAMESPACE, &token];
        self.cluster.kubectl(&words)?;
        self.helm("upgrade", &["--reuse-values", "--wait", "--set", "preheat.harbor.tokenSecret=harbor-token"])?;
        self.wait_ready()?;
        let image = self.next_image()?;
        self.cluster.upstream.push(&image, "org/app", "harbor")?;
        let trackers = ["pods", "--namespace", NAMESPACE, "--selector", "app.kubernetes.io/component=tracker"];
        let address = |index: usize| -> Result<String> {
            let pods = self.cluster.get(&trackers)?;
            let pods = pods["items"].as_array().into_iter().flatten();
            let mut there = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
            let ip = there.nth(index).context("no tracker")?["status"]["podIP"].clone();
            Ok(format!("http://{}:7404/preheats", ip.as_str().unwrap_or_default()))
        };
        let harbor = self.cluster.upstream.node();
        let ask = |token: &str, words: &[&str]| {
            let authorization = format!("Authorization: Bearer {token}");
            let told = harbor.run("curl", &[&["-s", "--fail-with-body", "-H", &authorization], words].concat())?;
            Ok::<Value, anyhow::Error>(serde_json::from_str(&told)?)
        };
        let url = format!("https://{HOST}/v2/org/app/manifests/harbor");
        let body =
            json!({ "type": "image", "url": url, "headers": { "Authorization": "Bearer of-harbor" } }).to_string();
        let request = ["-H", "Content-Type: application/json", "-d", &body, &address(0)?];
        ensure!(ask("another-token-than-it", &request).is_err(), "a preheat without the token is taken");
        let id = ask(TOKEN, &request)?["ID"].as_str().context("no id")?.to_owned();
        // Asked of the other one, as a Service would.
        let progress = format!("{}/{id}", address(1)?);
        wait_until("Harbor's preheat to succeed", PATIENCE, || Ok(ask(TOKEN, &[&progress])?["status"] == "SUCCESS"))?;
        self.cluster.upstream.check_fetched(&image, 1)
    }

    /// The agent learnt of a pod before the runtime asked for its image.
    pub(super) fn check_fetched_ahead(&self, index: usize) -> Result<()> {
        let outcomes = counters(self.cluster.node(index)?, "shoal_agent_pod_images_total")?;
        note(format!("images of pods, before they are pulled: {outcomes:?}"));
        ensure!(outcomes.get("fetched").is_some_and(|count| *count > 0), "nothing was fetched ahead: {outcomes:?}");
        Ok(())
    }
}

/// The counters of one name of an agent, by the value of their label.
fn counters(node: &Node, name: &str) -> Result<Counters> {
    let metrics = metrics(node, ADMIN)?;
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once("=\""));
    let counted = lines.filter_map(|(_, rest)| rest.split_once("\"} "));
    counted.map(|(value, count)| Ok((value.to_owned(), count.parse().context("a counter")?))).collect()
}

fn preheat(name: &str, namespace: &str, image: &str, more: &Value) -> Value {
    let mut spec = more.clone();
    spec["images"] = json!([format!("{HOST}/{image}")]);
    json!({
        "apiVersion": "shoal.dev/v1alpha1", "kind": "Preheat",
        "metadata": { "name": name, "namespace": namespace }, "spec": spec,
    })
}
