//! The chart asks for what there is: its alerts and dashboard for metrics that the parts expose, its alerts for runbooks, and its
//! configuration is one that agents and origins take.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use shoal_registry::RegistryConfig;
use shoal_registry::embedded::{Content, EmbeddedRegistry, Layer, Options};
use tokio_util::sync::CancellationToken;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Labels that Prometheus and the PodMonitor give.
const TARGET_LABELS: [&str; 4] = ["job", "container", "pod", "node"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Metrics by name, each with the labels it has.
type Metrics = BTreeMap<String, BTreeSet<String>>;

/// A metric's name at the beginning of a text, and the text between the braces after it.
fn metric(text: &str) -> (&str, &str) {
    let (name, rest) = text.split_at(text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len()));
    (name, rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(labels, _)| labels))
}

/// The names of the labels between braces; no value in the chart has a comma.
fn labels(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter_map(|label| label.split_once(['=', '!'])).map(|(name, _)| name.trim())
}

/// What the parts expose after a pull by way of the origin and one of an agent that is alone.
async fn exposed() -> Metrics {
    let mut content = Content::new();
    let image = content.add_image("app", "1", vec![Layer::tar(vec![7; 1 << 20])]);
    let registry = EmbeddedRegistry::start(ANY_PORT, content, Options::default()).await.unwrap();
    let upstream = RegistryConfig { url: Some(registry.url()), ..RegistryConfig::default() };
    let registries = BTreeMap::from([("registry.test".to_owned(), upstream)]);
    let (stores, shutdown) = (tempfile::tempdir().unwrap(), CancellationToken::new());

    let config = shoal_tracker::Config { listen: ANY_PORT, admin_listen: ANY_PORT, ..shoal_tracker::Config::default() };
    let tracker = shoal_tracker::start(config, shutdown.clone()).await.unwrap();
    let config = shoal_origin::Config {
        listen: ANY_PORT,
        http_listen: ANY_PORT,
        admin_listen: ANY_PORT,
        peer_listen: ANY_PORT,
        store: stores.path().join("origin"),
        registries: registries.clone(),
        ..shoal_origin::Config::default()
    };
    let origin = shoal_origin::start(config, shutdown.clone()).await.unwrap();
    let agent = |name: &str, origins| shoal_agent::Config {
        listen: ANY_PORT,
        admin_listen: ANY_PORT,
        peer_listen: ANY_PORT,
        store: stores.path().join(name),
        registries: registries.clone(),
        origins,
        ..shoal_agent::Config::default()
    };
    let with_origin = agent("agent", vec![format!("http://{}", origin.grpc_addr)]);
    let with_origin = shoal_agent::start(with_origin, shutdown.clone()).await.unwrap();
    let alone = shoal_agent::start(agent("alone", Vec::new()), shutdown.clone()).await.unwrap();

    for agent in [&with_origin, &alone] {
        for what in ["manifests/1".to_owned(), format!("blobs/{}", image.layers[0])] {
            get(agent.front_addr(), &format!("/v2/app/{what}?ns=registry.test")).await;
        }
    }
    let mut metrics = Metrics::new();
    for admin in [with_origin.admin_addr(), alone.admin_addr(), origin.admin_addr, tracker.admin_addr] {
        for line in get(admin, "/metrics").await.lines().filter(|line| !line.starts_with('#')) {
            let (name, braced) = metric(line);
            metrics.entry(name.to_owned()).or_default().extend(labels(braced).map(str::to_owned));
        }
    }
    shutdown.cancel();
    metrics
}

async fn get(address: SocketAddr, path: &str) -> String {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let answer = client.get(format!("http://{address}{path}").parse().unwrap()).await.unwrap();
    assert!(answer.status().is_success(), "{path}: {}", answer.status());
    String::from_utf8_lossy(&answer.into_body().collect().await.unwrap().to_bytes()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_and_dashboard_name_only_metrics_and_labels_that_the_parts_expose() {
    let exposed = exposed().await;
    for file in ["charts/shoal/files/rules.yaml", "charts/shoal/files/dashboard.json"] {
        let text = read(file).replace("\\\"", "\"");
        let has = |name: &str, label: &str| TARGET_LABELS.contains(&label) || exposed[name].contains(label);
        let mut named = 0;
        for (at, _) in text.match_indices("shoal_") {
            let (name, braced) = metric(&text[at..]);
            assert!(exposed.contains_key(name), "{file}: nothing exposes {name}");
            for label in labels(braced) {
                assert!(has(name, label), "{file}: {name} has no label {label}");
            }
            named += 1;
        }
        assert!(named > 10, "{file}: {named} metrics");
        for (at, _) in text.match_indices(" by (") {
            let (by, rest) = text[at + " by (".len()..].split_once(')').unwrap();
            let (name, _) = metric(&rest[rest.find("shoal_").unwrap()..]);
            for label in by.split(", ") {
                assert!(has(name, label), "{file}: {name} has no label {label}");
            }
        }
    }
}

#[test]
fn the_chart_installs_the_version_it_lies_beside() {
    let version = format!("\nappVersion: {}\n", env!("CARGO_PKG_VERSION"));
    assert!(read("charts/shoal/Chart.yaml").contains(&version));
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let (rules, runbooks) = (read("charts/shoal/files/rules.yaml"), read("docs/runbooks.md"));
    let after = |text: &str, mark: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.trim().strip_prefix(mark)).map(str::to_owned).collect()
    };
    let alerts = after(&rules, "- alert: ");
    assert!(!alerts.is_empty());
    assert_eq!(after(&runbooks, "## "), alerts);
    let anchors: Vec<_> = alerts.iter().map(|alert| alert.to_lowercase()).collect();
    assert_eq!(after(&rules, "runbook_url: RUNBOOKS#"), anchors);
}

#[test]
#[expect(clippy::print_stdout, reason = "says that it is skipped")]
fn the_configuration_of_every_example_is_one_that_agents_and_origins_take() {
    if Command::new("helm").arg("version").output().is_err() {
        println!("skipped: helm is missing");
        return;
    }
    let readme = read("charts/shoal/README.md");
    let examples = readme.split("```yaml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0.to_owned());
    let everything = read("charts/shoal/ci/everything-values.yaml");
    for values in [String::new(), everything].into_iter().chain(examples) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, &values).unwrap();
        let mut helm = Command::new("helm");
        helm.args(["template", "shoal", "charts/shoal", "--show-only", "templates/config.yaml", "--values"]);
        let output = helm.arg(file.path()).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{values}{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let toml = text.split_once("shoal.toml: |\n").unwrap().1.replace("\n    ", "\n");
        let toml = toml.trim_start();
        let agent: shoal_agent::Config = shoal_kit::config::parse(toml, "shoal.toml".as_ref()).unwrap();
        let origin: shoal_origin::Config = shoal_kit::config::parse(toml, "shoal.toml".as_ref()).unwrap();
        agent.validate().unwrap();
        origin.validate().unwrap();
        assert_eq!(agent.registries.len(), origin.registries.len());
    }
}

/// After changing the types: `SHOAL_REGENERATE=1 cargo test --test chart`.
#[test]
fn the_definition_of_preheats_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/shoal/files/preheats.json");
    let fresh = serde_json::to_string_pretty(&shoal_kube::definition()).unwrap() + "\n";
    if std::env::var_os("SHOAL_REGENERATE").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == fresh, "{} is not that of the types; run with SHOAL_REGENERATE=1", path.display());
}
