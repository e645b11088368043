//! Spegel (v0.7): beside every node's containerd; peers find each other by a name that all nodes' addresses have.

use std::sync::Arc;

use anyhow::Result;

use super::{Ground, Running};
use crate::bench::pull::Front;
use crate::registry::HOST;
use crate::runtime::Containerd;

/// All nodes' addresses have this name.
const PEERS: &str = "spegel.lab";
const REGISTRY_PORT: u16 = 5000;

pub(super) fn start(ground: &mut Ground) -> Result<Running> {
    let mut running = Running::default();
    for node in &ground.nodes {
        ground.lab.add_alias(PEERS, node)?;
    }
    for node in &ground.nodes {
        // Spegel asks containerd's CRI plugin where mirrors are configured.
        let containerd = Containerd::start_with_cri(node)?;
        containerd.set_hosts(HOST, &format!("http://{HOST}"), &[&format!("http://127.0.0.1:{REGISTRY_PORT}")])?;
        let mut command = node.command("spegel");
        command
            .args(["--log-level", "WARN", "registry", "--containerd-namespace", "default"])
            .args([
                "--registry-addr",
                &format!(":{REGISTRY_PORT}"),
                "--router-addr",
                ":5001",
                "--metrics-addr",
                ":9090",
            ])
            .args(["--bootstrap-kind", "dns", "--dns-bootstrap-domain", PEERS])
            .args(["--mirrored-registries", &format!("http://{HOST}")])
            .arg("--containerd-sock")
            .arg(containerd.socket())
            .arg("--containerd-registry-config-path")
            .arg(containerd.certs_d())
            .arg("--containerd-content-path")
            .arg(containerd.content())
            .arg("--data-dir")
            .arg(node.dir().join("spegel"));
        running.processes.push(node.start("spegel", command)?);
        running.fronts.push(Front::Containerd(containerd));
    }
    for (process, node) in running.processes.iter_mut().zip(&ground.nodes) {
        Arc::clone(node).wait_listening(process, REGISTRY_PORT)?;
    }
    Ok(running)
}
