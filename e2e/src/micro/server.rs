//! The subjects: processes that serve or receive, what they have cost so far, and how to start each.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use shoal_e2e::process::{output, tail};
use shoal_e2e::wait::wait_for;

use crate::blob::{Scene, UPSTREAM};
use crate::space::{End, Space};

pub(crate) const FRONT_PORT: u16 = 5050;
pub(crate) const PEER_PORT: u16 = 5051;
pub(crate) const NGINX_PORT: u16 = 5080;

/// A running process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts a command and waits until it listens.
    pub(crate) fn start(mut command: Command, log: &Path, space: &Space, address: SocketAddr) -> Result<Self> {
        let out = File::create(log).context("log")?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let mut server = Self { child, address };
        let listens = || {
            ensure!(server.child.try_wait()?.is_none(), "{command:?} ended early:\n{}", tail(log));
            Ok(std::thread::scope(|scope| scope.spawn(|| knock(space, address)).join().unwrap_or(false)).then_some(()))
        };
        wait_for(&format!("{command:?} to listen on {address}"), Duration::from_secs(20), listens)?;
        Ok(server)
    }

    /// Seconds of CPU that all its threads, dead or alive, have taken.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // After the name in parentheses come the fields from the third on; 14 and 15 are user and system time.
        let fields = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect::<Vec<_>>();
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// A field of its status file, in bytes.
    pub(crate) fn memory_bytes(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).context("status")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _nothing_to_wait_for = self.child.wait();
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
    let program = shoal()?;
    let mut command = space.command(End::Server, program.to_str().context("path")?);
    command.arg("agent").arg("--config").arg(config).arg("--store").arg(&scene.store).args(flags);
    command.args(["--listen", &format!("{ip}:{FRONT_PORT}"), "--peer-listen", &format!("{ip}:{PEER_PORT}")]);
    command.args(["--admin-listen", "127.0.0.1:0"]).env("SHOAL_LOG", "warn");
    Server::start(command, &scene.dir.join("agent.log"), space, SocketAddr::from((ip, PEER_PORT)))
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
    Server::start(command, &scene.dir.join("nginx.out"), space, address)
}

/// The program under test: what `SHOAL_BIN` names, or what cargo builds beside this program.
fn shoal() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SHOAL_BIN") {
        return Ok(path.into());
    }
    let path = std::env::current_exe()?.with_file_name("shoal");
    let mut cargo = Command::new("cargo");
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--release", "-p", "shoal"]);
    output(&mut cargo).context("build shoal")?;
    ensure!(path.is_file(), "no program at {}", path.display());
    Ok(path)
}
