//! The subjects: processes that serve or receive, what they have cost so far, and how to start each.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use shoal_e2e::process::Process;
use shoal_e2e::program::Program;
use shoal_e2e::usage;
use shoal_e2e::wait::wait_for;

use crate::blob::{Scene, UPSTREAM};
use crate::space::{End, Space};

pub(crate) const FRONT_PORT: u16 = 5050;
pub(crate) const PEER_PORT: u16 = 5051;
pub(crate) const NGINX_PORT: u16 = 5080;

/// A running process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts a command and waits until it listens.
    pub(crate) fn start(name: &str, command: Command, log: &Path, space: &Space, address: SocketAddr) -> Result<Self> {
        let mut process = Process::start(name, command, log)?;
        let listens = || {
            process.check_running()?;
            Ok(std::thread::scope(|scope| scope.spawn(|| knock(space, address)).join().unwrap_or(false)).then_some(()))
        };
        wait_for(&format!("{name} to listen on {address}"), Duration::from_secs(20), listens)?;
        Ok(Self { process, address })
    }

    /// Seconds of CPU that all its threads, dead or alive, have taken.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let ticks = usage::cpu_ticks(self.process.pid()).context("it has ended")?;
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Its anonymous memory.
    pub(crate) fn anon_bytes(&self) -> Result<u64> {
        usage::anon_bytes(self.process.pid()).context("it has ended")
    }
}

fn knock(space: &Space, address: SocketAddr) -> bool {
    space.enter(End::Client).is_ok() && TcpStream::connect(address).is_ok()
}

/// Starts a real agent on the scene's store, with more flags.
pub(crate) fn agent(scene: &Scene, space: &Space, flags: &[&str]) -> Result<Server> {
    let ip = space.address(End::Server);
    let config = scene.dir.join("agent.toml");
    // Its upstream only says that the blob may be read; it is nginx, which has the blob too.
    let upstream = format!("http://{ip}:{NGINX_PORT}");
    fs::write(&config, format!("[registries.{UPSTREAM:?}]\nurl = {upstream:?}\n"))?;
    let program = Program::find()?;
    let mut command = space.command(End::Server, program.path().to_str().context("path")?);
    command.arg("agent").arg("--config").arg(config).arg("--store").arg(&scene.store).args(flags);
    command.args(["--listen", &format!("{ip}:{FRONT_PORT}"), "--peer-listen", &format!("{ip}:{PEER_PORT}")]);
    command.args(["--admin-listen", "127.0.0.1:0"]).env("SHOAL_LOG", "warn");
    Server::start("agent", command, &scene.dir.join("agent.log"), space, SocketAddr::from((ip, PEER_PORT)))
}

/// Starts nginx with sendfile on the scene's blob: one process, so that its CPU is all in one place.
pub(crate) fn nginx(scene: &Scene, space: &Space) -> Result<Server> {
    let address = SocketAddr::from((space.address(End::Server), NGINX_PORT));
    let dir = scene.dir.display();
    let config = format!(
        "daemon off; master_process off; user root; pid {dir}/nginx.pid; error_log {dir}/nginx.log; events {{}}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream;\n\
         server {{ listen {address}; root {dir}/www; }} }}\n"
    );
    let file = scene.dir.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = space.command(End::Server, "nginx");
    command.arg("-p").arg(&scene.dir).arg("-c").arg(file);
    Server::start("nginx", command, &scene.dir.join("nginx.out"), space, address)
}
