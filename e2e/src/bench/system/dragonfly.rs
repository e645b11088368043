//! Dragonfly v2 without manager: a scheduler, a seed peer, and a dfdaemon on every node, whose proxy is the registry mirror.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::Result;

use super::{Ground, Running, yaml_list};
use crate::bench::pull::Front;
use crate::node::{Link, Node};
use crate::process::Process;
use crate::registry::HOST;

const SCHEDULER_PORT: u16 = 8002;
const PROXY_PORT: u16 = 4001;

pub(super) fn start(ground: &mut Ground) -> Result<Running> {
    let scheduler = ground.lab.add_node("scheduler", Link::default())?;
    let seed = ground.lab.add_node("origin", ground.link)?;
    let mut processes = vec![start_scheduler(&scheduler)?, start_dfdaemon(&seed, &scheduler, true)?];
    for node in &ground.nodes {
        processes.push(start_dfdaemon(node, &scheduler, false)?);
    }
    let url = format!("http://127.0.0.1:{PROXY_PORT}");
    let warm = Front::Http { node: Arc::clone(&seed), url: url.clone(), ns: true };
    Ok(Running { fronts: ground.fronts(&url, true), origin: Some(seed), warm: Some(warm), payload: None, processes })
}

fn start_scheduler(node: &Node) -> Result<Process> {
    let (dir, ip) = (node.dir().display(), node.ip());
    let config = node.dir().join("scheduler.yaml");
    let text = format!(
        "server: {{advertiseIP: {ip}, listenIP: 0.0.0.0, port: {SCHEDULER_PORT}, workHome: {dir}/work, logDir: {dir}/log, \
         cacheDir: {dir}/cache, pluginDir: {dir}/plugins, dataDir: {dir}/data}}\nmetrics: {{enable: false}}\nconsole: true\n",
    );
    fs::write(&config, text)?;
    // A missing dynconfig file is made with default values.
    let mut process = node.start("scheduler", configured(node, "scheduler", &config))?;
    node.wait_listening(&mut process, SCHEDULER_PORT)?;
    Ok(process)
}

fn start_dfdaemon(node: &Node, scheduler: &Node, seed: bool) -> Result<Process> {
    let (dir, run_dir, name, ip) = (node.dir().display(), node.run_dir().display().to_string(), node.name(), node.ip());
    let config = node.dir().join("dfdaemon.yaml");
    let text = format!(
        "host: {{hostname: {name}, ip: {ip}}}\n\
         server: {{pluginDir: {dir}/plugins, cacheDir: {dir}/cache}}\n\
         download: {{server: {{socketPath: {run_dir}/dfdaemon.sock}}}}\n\
         storage: {{dir: {dir}/storage}}\nseedPeer: {{enable: {seed}, type: super}}\n\
         proxy:\n  server: {{port: {PROXY_PORT}}}\n  rules: [{{regex: 'blobs/sha256.*'}}]\n  \
         registryMirror: {{addr: 'http://{HOST}'}}\n",
    );
    fs::write(&config, text)?;
    let schedulers = yaml_list([format!("{}:{SCHEDULER_PORT}", scheduler.ip())]);
    fs::write(node.dir().join("dynconfig.yaml"), format!("scheduler:\n  addrs: {schedulers}\n"))?;
    let mut command = configured(node, "dfdaemon", &config);
    command.arg("--log-dir").arg(node.dir().join("log"));
    let mut process = node.start("dfdaemon", command)?;
    node.wait_listening(&mut process, PROXY_PORT)?;
    Ok(process)
}

fn configured(node: &Node, program: &str, config: &Path) -> Command {
    let mut command = node.command(program);
    command.arg("--config").arg(config).arg("--dynconfig").arg(node.dir().join("dynconfig.yaml"));
    command
}
