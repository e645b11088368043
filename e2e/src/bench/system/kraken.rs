//! Kraken: an origin that fetches from the registry, a tracker, a build-index for tags, and an agent on every node. Each part
//! starts an nginx of its own.

use std::fs;
use std::sync::Arc;

use anyhow::Result;

use super::{Ground, Running, yaml_list};
use crate::node::{Link, Node};
use crate::process::Process;
use crate::registry::PORT;

pub(super) const NEEDS: [&str; 5] = ["kraken-agent", "kraken-origin", "kraken-tracker", "kraken-build-index", "nginx"];

const ORIGIN_PORT: u16 = 15002;
const TRACKER_PORT: u16 = 15003;
const INDEX_PORT: u16 = 15004;
const REGISTRY_PORT: u16 = 16000;

pub(super) fn start(ground: &mut Ground) -> Result<Running> {
    let origin = ground.lab.add_node("origin", ground.link)?;
    let tracker = ground.lab.add_node("tracker", Link::default())?;
    let index = ground.lab.add_node("index", Link::default())?;
    let hosts = |node: &Node, port: u16| {
        let hosts = yaml_list([format!("{}:{port}", node.ip())]);
        format!("  hosts: {{static: {hosts}}}\n")
    };
    let origins = format!("origin:\n{}", hosts(&origin, ORIGIN_PORT));
    let upstream = ground.upstream.node().ip();
    let backend = |kind: &str| {
        let security = "security: {tls: {client: {disabled: true}}}";
        format!("backends: [{{namespace: .*, backend: {{{kind}: {{address: '{upstream}:{PORT}', {security}}}}}}}]\n")
    };
    let mut processes = Vec::new();

    let config = backend("registry_blob") + ORIGIN + "cluster:\n" + &hosts(&origin, ORIGIN_PORT);
    let ip = origin.ip().to_string();
    let flags = [
        format!("--blobserver-hostname={ip}"),
        format!("--blobserver-port={ORIGIN_PORT}"),
        format!("--peer-ip={ip}"),
        "--peer-port=15001".to_owned(),
    ];
    processes.push(launch(&origin, "kraken-origin", &config, &flags, ORIGIN_PORT)?);

    let config = origins.clone() + TRACKER;
    processes.push(launch(&tracker, "kraken-tracker", &config, &[format!("--port={TRACKER_PORT}")], TRACKER_PORT)?);

    let config = backend("registry_tag") + &origins + INDEX + "cluster:\n" + &hosts(&index, INDEX_PORT);
    processes.push(launch(&index, "kraken-build-index", &config, &[format!("--port={INDEX_PORT}")], INDEX_PORT)?);

    let trackers = format!("tracker:\n{}build_index:\n{}", hosts(&tracker, TRACKER_PORT), hosts(&index, INDEX_PORT));
    for node in &ground.nodes {
        let flags = [
            format!("--peer-ip={}", node.ip()),
            "--peer-port=16001".to_owned(),
            "--agent-server-port=16002".to_owned(),
            format!("--agent-registry-port={REGISTRY_PORT}"),
        ];
        processes.push(launch(node, "kraken-agent", &(trackers.clone() + AGENT), &flags, REGISTRY_PORT)?);
    }
    let fronts = ground.fronts(&format!("http://127.0.0.1:{REGISTRY_PORT}"), false);
    Ok(Running { fronts, origin: Some(origin), warm: None, payload: None, processes })
}

fn launch(node: &Arc<Node>, part: &str, config: &str, flags: &[String], port: u16) -> Result<Process> {
    let (dir, run_dir) = (node.dir().display().to_string(), node.run_dir().display().to_string());
    // Kraken writes its nginx configuration here, on every node the same.
    let generated = node.dir().join("nginx");
    for made in [generated.clone(), node.dir().join("nginx-cache"), node.dir().join("log"), "/tmp/nginx".into()] {
        fs::create_dir_all(made)?;
    }
    node.run("mount", &["--bind", &generated.to_string_lossy(), "/tmp/nginx"])?;
    let file = node.dir().join(format!("{part}.yaml"));
    let text = format!("{COMMON}nginx: {{name: {part}, cache_dir: DIR/nginx-cache, log_dir: DIR/log}}\n{config}");
    fs::write(&file, text.replace("DIR", &dir).replace("RUN", &run_dir))?;
    let mut command = node.command(part);
    command.arg(format!("--config={}", file.display())).args(flags);
    let mut process = node.start(part, command)?;
    node.wait_listening(&mut process, port)?;
    Ok(process)
}

/// Of every part. `DIR` and `RUN` stand for the node's directories.
const COMMON: &str = "\
zap:
  level: warn
  encoding: console
  disableStacktrace: true
  encoderConfig: {messageKey: message, levelKey: level, timeKey: ts, levelEncoder: capital, timeEncoder: iso8601,
    durationEncoder: seconds, callerEncoder: short}
  outputPaths: [stdout]
  errorOutputPaths: [stdout]
tls: {client: {disabled: true}, server: {disabled: true}}
";

/// As the shipped base configuration has it: pieces of 4 MB.
const ORIGIN: &str = "\
peer_id_factory: addr_hash
metainfogen: {piece_lengths: {0: 4MB}}
scheduler: {log: {timeEncoder: iso8601}, torrentlog: {disable: true}}
localdb: {source: DIR/origin.db}
castore: {upload_dir: DIR/upload/, cache_dir: DIR/cache/}
cadownloadstore: {download_dir: DIR/download/, cache_dir: DIR/cache-partial/}
blobserver: {listener: {net: unix, addr: RUN/origin.sock}}
hashring: {max_replica: 1}
writeback: {retry_interval: 100ms, poll_retries_interval: 250ms}
";

const TRACKER: &str = "\
peerhandoutpolicy: {priority: completeness}
trackerserver: {announce_interval: 3s, listener: {net: unix, addr: RUN/tracker.sock}}
";

const INDEX: &str = "\
localdb: {source: DIR/index.db}
store: {upload_dir: DIR/upload/, cache_dir: DIR/cache/}
remotes: {}
tag_types: [{namespace: .*, type: docker, root: tags}]
tag_store: {write_through: false}
tag_replication: {retry_interval: 100ms, poll_retries_interval: 250ms}
writeback: {retry_interval: 100ms, poll_retries_interval: 250ms}
tagserver: {listener: {net: unix, addr: RUN/index.sock}}
";

/// Both keys of the store: the newer versions read `diskstore`.
const AGENT: &str = "\
peer_id_factory: addr_hash
scheduler: {log: {timeEncoder: iso8601}, torrentlog: {disable: true}, dispatch: {piece_request_policy: rarest_first}}
store: {download_dir: DIR/download/, cache_dir: DIR/cache/}
diskstore: {root_dir: DIR/store/, reboot_incomplete_blobs: true, shard_length: 2}
registry: {docker: {version: 0.1, log: {level: error}, http: {net: unix, addr: RUN/registry.sock}}}
allowed_cidrs: [127.0.0.1]
";
