//! The lab: a hub with a bridge and nodes around it, each with its own network, mount and process namespaces, all removed when
//! dropped. Made by [`crate::harness`] for one test at a time; knows nothing of registries, runtimes or Shoal.
//!
//! A node's processes live in its process namespace, whose first process dies with the test program, so a killed test leaves
//! no process and no mount, only named network namespaces, which the next run removes.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{Process, output, run};
use crate::wait::{wait_for, wait_until};

/// Every network namespace of the lab begins with this.
const PREFIX: &str = "shoal-";
const HUB: &str = "shoal-hub";
const BRIDGE: &str = "br0";
/// Sockets live here: a socket's path must be short, wherever the sources are.
const RUN_DIR: &str = "/run/shoal-e2e";
const LOCK: &str = "/run/shoal-e2e.lock";
/// The longest a command on a node may take, in seconds.
const COMMAND_TIMEOUT_S: &str = "400";

/// One direction of a link, in bits per second on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// A rate in megabits (10^6) per second.
    #[must_use]
    pub const fn mbit(megabits: u64) -> Self {
        Self(megabits * 1_000_000)
    }

    /// Bytes per second on the wire, headers included.
    #[must_use]
    pub const fn bytes_per_second(self) -> u64 {
        self.0 / 8
    }
}

/// A node's link to the hub: the rate of each direction, `None` for as fast as the machine goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    /// What the node can send.
    pub up: Option<Rate>,
    /// What the node can receive.
    pub down: Option<Rate>,
}

impl Link {
    /// The same rate both ways.
    #[must_use]
    pub const fn symmetric(rate: Rate) -> Self {
        Self { up: Some(rate), down: Some(rate) }
    }
}

/// A network of nodes. Dropping it and the last `Arc` of each node removes everything.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    nodes: Vec<Arc<Node>>,
    aliases: Mutex<Vec<(String, Ipv4Addr)>>,
    _lock: File,
}

impl Lab {
    /// Removes what a killed run left, and makes the hub. Files of the test go under `dir`, which is emptied.
    ///
    /// One lab at a time on a machine: waits while another program has one.
    ///
    /// # Errors
    /// When a namespace or a directory cannot be made.
    pub fn new(dir: &Path) -> Result<Self> {
        let lock = File::create(LOCK).context(LOCK)?;
        lock.lock().context(LOCK)?;
        remove_debris()?;
        allow_cubic()?;
        for emptied in [dir, Path::new(RUN_DIR)] {
            if emptied.exists() {
                fs::remove_dir_all(emptied).with_context(|| format!("empty {}", emptied.display()))?;
            }
            fs::create_dir_all(emptied).with_context(|| format!("make {}", emptied.display()))?;
        }
        fs::write(dir.join("hosts"), "127.0.0.1 localhost\n")?;
        fs::write(dir.join("resolv.conf"), "")?;
        run("ip", ["netns", "add", HUB])?;
        let lab = Self { dir: dir.to_owned(), nodes: Vec::new(), aliases: Mutex::default(), _lock: lock };
        in_hub(&["ip", "link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0"])?;
        in_hub(&["ip", "link", "set", BRIDGE, "up"])?;
        Ok(lab)
    }

    /// Where the files of this test are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds a node, whose name all nodes resolve from now on. `name` is short: it is the name of a network interface too.
    ///
    /// # Errors
    /// When a namespace or link cannot be made.
    pub fn add_node(&mut self, name: &str, link: Link) -> Result<Arc<Node>> {
        ensure!(name.len() <= 12, "{name}: a node's name has at most 12 characters");
        let last_octet = u8::try_from(self.nodes.len() + 1).context("more nodes than addresses")?;
        let ip = Ipv4Addr::new(10, 77, 0, last_octet);
        let node = Arc::new(Node::new(name, ip, &self.dir)?);
        node.plug_in(link)?;
        self.nodes.push(Arc::clone(&node));
        self.add_alias(name, &node)?;
        Ok(node)
    }

    /// Makes every node resolve `host` to this node.
    ///
    /// # Errors
    /// When the hosts file cannot be written.
    pub fn add_alias(&self, host: &str, node: &Node) -> Result<()> {
        let mut aliases = self.aliases.lock().unwrap_or_else(PoisonError::into_inner);
        aliases.push((host.to_owned(), node.ip));
        let lines = aliases.iter().map(|(host, ip)| format!("{ip} {host}\n")).collect::<String>();
        // Written in place: the nodes have this very file mounted.
        fs::write(self.dir.join("hosts"), format!("127.0.0.1 localhost\n{lines}")).context("hosts file")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.nodes.clear();
        let _best_effort = run("ip", ["netns", "del", HUB]);
    }
}

/// What a node's interface has carried, in bytes with headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Received from the hub.
    pub received_bytes: u64,
    /// Sent to the hub.
    pub sent_bytes: u64,
}

/// One machine of the lab.
#[derive(Debug)]
pub struct Node {
    name: String,
    ip: Ipv4Addr,
    dir: PathBuf,
    /// Holds the namespaces: its child is the first process of the node's process namespace.
    holder: Mutex<Child>,
    first_pid: u32,
}

impl Node {
    /// The name that the other nodes resolve.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    #[must_use]
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// A directory for the node's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A directory with a short name, for sockets.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        Path::new(RUN_DIR).join(&self.name)
    }

    /// A command that will run on this node.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        // No `ip netns exec`: it mounts a new /sys, which hides the cgroups.
        command.args(["-t", &self.first_pid.to_string(), "--net", "--mount", "--pid", program]);
        command
    }

    /// Runs a program on this node to its end, which comes soon: see [`output`].
    ///
    /// # Errors
    /// When it fails or takes longer than a few minutes.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        output(self.bounded(program).args(args)).with_context(|| format!("on {}", self.name))
    }

    /// A command on this node that is killed when it takes longer than a few minutes.
    #[must_use]
    pub fn bounded(&self, program: &str) -> Command {
        let mut command = self.command("timeout");
        command.args(["-k", "5", COMMAND_TIMEOUT_S, program]);
        command
    }

    /// Starts a program on this node; its log is `<name>.log` in the node's directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, command: Command) -> Result<Process> {
        Process::start(&format!("{name} on {}", self.name), command, &self.dir.join(format!("{name}.log")))
    }

    /// What its link has carried so far.
    ///
    /// # Errors
    /// When the node is gone.
    pub fn traffic(&self) -> Result<Traffic> {
        let table = fs::read_to_string(format!("/proc/{}/net/dev", self.first_pid)).context("traffic of a node")?;
        parse_traffic(&table).with_context(|| format!("no eth0 on {}:\n{table}", self.name))
    }

    /// Waits until something listens on a TCP port of the node. `process` is what should.
    ///
    /// # Errors
    /// When it ends, or does not listen in time.
    pub fn wait_listening(&self, process: &mut Process, port: u16) -> Result<()> {
        let name = format!("{} to listen on port {port}", process.name());
        wait_for(&name, Duration::from_secs(30), || {
            process.check_running()?;
            let tables = ["tcp", "tcp6"].map(|table| format!("/proc/{}/net/{table}", self.first_pid));
            let listening = tables.iter().filter_map(|table| fs::read_to_string(table).ok()).any(|t| listens(&t, port));
            Ok(listening.then_some(()))
        })
        .with_context(|| format!("log of {}:\n{}", process.name(), crate::process::tail(process.log())))
    }

    fn new(name: &str, ip: Ipv4Addr, lab_dir: &Path) -> Result<Self> {
        let dir = lab_dir.join(name);
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(Path::new(RUN_DIR).join(name))?;
        let netns = format!("{PREFIX}{name}");
        run("ip", ["netns", "add", &netns])?;
        // The holder is killed with this program (--pdeathsig), its child with the holder (--kill-child), and with that child,
        // the first process of its namespace, the kernel kills all others of the node.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "nsenter", &format!("--net=/run/netns/{netns}")])
            .args(["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL"])
            .args(["--mount-proc", "sh", "-c", "sleep infinity & wait"])
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let holder = command.spawn().context("start the holder of a node")?;
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let first_pid = wait_for("the node's first process", Duration::from_secs(5), || {
            Ok(fs::read_to_string(&children)?.split_whitespace().next().and_then(|pid| pid.parse().ok()))
        })?;
        let node = Self { name: name.to_owned(), ip, dir, holder: Mutex::new(holder), first_pid };
        node.wait_for_own_proc()?;
        for file in ["hosts", "resolv.conf"] {
            let source = lab_dir.join(file);
            node.run("mount", &["--bind", &source.to_string_lossy(), &format!("/etc/{file}")])?;
        }
        Ok(node)
    }

    /// `unshare` mounts the new /proc after the fork: before that the namespaces are not complete.
    fn wait_for_own_proc(&self) -> Result<()> {
        let comm = format!("/proc/{}/comm", self.first_pid);
        wait_until("the node's namespaces", Duration::from_secs(5), || Ok(fs::read_to_string(&comm)?.trim() == "sh"))
    }

    fn plug_in(&self, link: Link) -> Result<()> {
        let (name, netns) = (self.name.as_str(), format!("{PREFIX}{}", self.name));
        let port = format!("v-{name}");
        in_hub(&["ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &netns])?;
        in_hub(&["ip", "link", "set", &port, "master", BRIDGE, "up"])?;
        self.run("ip", &["address", "add", &format!("{}/24", self.ip), "dev", "eth0"])?;
        self.run("ip", &["link", "set", "lo", "up"])?;
        self.run("ip", &["link", "set", "eth0", "up"])?;
        // The machine's default may be bbr, which measures differently on shaped links.
        self.run("sysctl", &["-qw", "net.ipv4.tcp_congestion_control=cubic"])?;
        if let Some(up) = link.up {
            self.run("tc", &shape("eth0", up).each_ref().map(String::as_str))?;
        }
        if let Some(down) = link.down {
            let words = shape(&port, down);
            in_hub(&[&["tc"], &words.each_ref().map(String::as_str)[..]].concat())?;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let holder = self.holder.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The first process goes last of its namespace, and the holder ends after it: then all of the node is gone.
        if matches!(holder.try_wait(), Ok(None))
            && let Some(first) = i32::try_from(self.first_pid).ok().and_then(Pid::from_raw)
        {
            let _gone_already = kill_process(first, Signal::KILL);
            let _gone_already = holder.wait();
        }
        let _best_effort = run("ip", ["netns", "del", &format!("{PREFIX}{}", self.name)]);
    }
}

/// The arguments of `tc` for a token bucket of this rate. It counts the headers of each segment of an offloaded packet, so
/// offloading stays on; the bucket must hold one whole such packet.
fn shape(device: &str, rate: Rate) -> [String; 12] {
    let bytes = rate.bytes_per_second();
    let burst_bytes = (72 * 1024).max(bytes / 250);
    let queue_bytes = (768 * 1024).max(bytes / 20);
    let words = ["qdisc", "add", "dev", device, "root", "tbf", "rate", "", "burst", "", "limit", ""];
    let mut words = words.map(str::to_owned);
    words[7] = format!("{}bit", rate.0);
    words[9] = format!("{burst_bytes}b");
    words[11] = format!("{queue_bytes}b");
    words
}

fn in_hub(words: &[&str]) -> Result<String> {
    run("nsenter", [&[format!("--net=/run/netns/{HUB}").as_str()], words].concat())
}

/// Kills what still runs in the namespaces of a killed run and removes them.
fn remove_debris() -> Result<()> {
    let listed = run("ip", ["netns", "list"])?;
    for name in listed.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| name.starts_with(PREFIX))
    {
        for pid in run("ip", ["netns", "pids", name]).unwrap_or_default().split_whitespace() {
            let _gone_already = run("kill", ["-9", pid]);
        }
        run("ip", ["netns", "del", name])?;
    }
    Ok(())
}

/// Lets namespaces choose cubic: only what the machine allows to unprivileged users may be chosen in them.
fn allow_cubic() -> Result<()> {
    let path = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    let allowed = fs::read_to_string(path).context(path)?;
    if !allowed.split_whitespace().any(|name| name == "cubic") {
        fs::write(path, format!("{} cubic", allowed.trim())).context(path)?;
    }
    Ok(())
}

/// Reads the line of eth0 in /proc/net/dev: received bytes come first, sent bytes ninth.
fn parse_traffic(table: &str) -> Option<Traffic> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"))?;
    let mut numbers = line.split_whitespace();
    let received_bytes = numbers.next()?.parse().ok()?;
    let sent_bytes = numbers.nth(7)?.parse().ok()?;
    Some(Traffic { received_bytes, sent_bytes })
}

/// Whether /proc/net/tcp shows a listener (state 0A) on the port.
fn listens(table: &str, port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace();
        words.nth(1).is_some_and(|local| local.ends_with(&suffix)) && words.nth(1) == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_read_from_the_line_of_eth0() {
        let table = "Inter-|   Receive\n face |bytes\n    lo: 9 9 9 9 9 9 9 9 9 9\n  eth0: 123 4 0 0 0 0 0 0 456 7 0 0 0 0 0 0\n";
        assert_eq!(parse_traffic(table), Some(Traffic { received_bytes: 123, sent_bytes: 456 }));
    }

    #[test]
    fn a_listener_is_told_from_a_connection() {
        let table = "sl local rem st\n 0: 0100007F:13BA 00000000:0000 0A x\n 1: 0100007F:13BB 0100007F:0001 01 x\n";
        assert!(listens(table, 5050));
        assert!(!listens(table, 5051));
    }
}
