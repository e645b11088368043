//! A node of the lab: network, mount, host name, IPC and process namespaces of its own, and a shaped link to the hub. Made by
//! [`crate::lab`]; starts programs for the modules above.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::lab::{BRIDGE, PREFIX, RUN_DIR, in_hub};
use crate::process::{Process, output, run};
use crate::wait::{wait_for, wait_until};

/// The longest a command on a node may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(400);
/// The exit status of a bounded command that took too long.
pub const TIMED_OUT: i32 = 124;

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

/// What a node's interface has carried, in bytes with headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Received from the hub.
    pub received_bytes: u64,
    /// Sent to the hub.
    pub sent_bytes: u64,
}

impl Traffic {
    /// What was carried since an earlier look.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            received_bytes: self.received_bytes - earlier.received_bytes,
            sent_bytes: self.sent_bytes - earlier.sent_bytes,
        }
    }
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
    /// The directories it has for itself.
    owned: Mutex<BTreeSet<String>>,
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

    /// Gives the node a directory of the system for itself, empty the first time, and returns where it is on the machine. Asked
    /// again, it returns the same.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn own(&self, path: &str) -> Result<PathBuf> {
        let own = self.dir.join("own").join(path.trim_start_matches('/'));
        if self.owned.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned()) {
            fs::create_dir_all(&own)?;
            self.run("mkdir", &["-p", path])?;
            self.run("mount", &["--bind", &own.to_string_lossy(), path])?;
        }
        Ok(own)
    }

    /// Moves the calling thread into its network, for good. Threads that it starts, and sockets, are there too.
    ///
    /// # Errors
    /// When the node is gone.
    pub fn enter_network(&self) -> Result<()> {
        let path = format!("/run/netns/{PREFIX}{}", self.name);
        let network = File::open(&path).context(path)?;
        Ok(move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Does something on a thread in its network, and waits for that.
    ///
    /// # Errors
    /// When the node is gone, or what `work` says.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let working = scope.spawn(|| {
                self.enter_network()?;
                work()
            });
            working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Listens on a port of it, and hands the listener to a thread in its network.
    ///
    /// # Errors
    /// When the port is taken or the node is gone, or what `then` says.
    pub fn listen<T: Send>(&self, port: u16, then: impl FnOnce(TcpListener) -> Result<T> + Send) -> Result<T> {
        let listening = self.in_network(|| then(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?));
        listening.with_context(|| format!("listen on port {port} of {}", self.name))
    }

    /// What /proc says of the process namespace of each of its processes, and of no other.
    ///
    /// # Errors
    /// When the node is gone.
    pub fn pid_namespace(&self) -> Result<PathBuf> {
        fs::read_link(format!("/proc/{}/ns/pid", self.first_pid)).context("process namespace of a node")
    }

    /// A command that will run on this node.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        // No `ip netns exec`: it mounts a new /sys, which hides the cgroups.
        command.args(["-t", &self.first_pid.to_string(), "--net", "--mount", "--uts", "--ipc", "--pid", program]);
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
        self.bounded_by(COMMAND_TIMEOUT, program)
    }

    /// A command on this node that is killed when it takes longer; it then ends with the status [`TIMED_OUT`].
    #[must_use]
    pub fn bounded_by(&self, timeout: Duration, program: &str) -> Command {
        let mut command = self.command("timeout");
        command.args(["-k", "5", &timeout.as_secs().to_string(), program]);
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

    /// Counts from now on what arrives from each of these nodes: see [`Node::received_from`].
    ///
    /// # Errors
    /// When the kernel has no iptables.
    pub fn count_received_from<'a>(&self, sources: impl IntoIterator<Item = &'a Node>) -> Result<()> {
        for source in sources {
            self.run("iptables", &["-w", "-A", "INPUT", "-s", &source.ip.to_string()])?;
        }
        Ok(())
    }

    /// Bytes, with headers, that arrived from a node since they are counted.
    ///
    /// # Errors
    /// When they are not counted.
    pub fn received_from(&self, source: &Node) -> Result<u64> {
        let table = self.run("iptables", &["-w", "-nvxL", "INPUT"])?;
        let ip = source.ip.to_string();
        let line = table.lines().find(|line| line.split_whitespace().any(|word| word == ip));
        let bytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        bytes.with_context(|| format!("{} does not count what comes from {}:\n{table}", self.name, source.name))
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
    }

    pub(crate) fn new(name: &str, ip: Ipv4Addr, lab_dir: &Path) -> Result<Self> {
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
            .args(["unshare", "--mount", "--propagation", "private", "--uts", "--ipc", "--pid", "--fork"])
            .args([
                "--kill-child=KILL",
                "--mount-proc",
                "sh",
                "-c",
                "echo \"$0\" >/proc/sys/kernel/hostname; sleep infinity & wait",
                name,
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let holder = command.spawn().context("start the holder of a node")?;
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let first_pid = wait_for("the node's first process", Duration::from_secs(5), || {
            Ok(fs::read_to_string(&children)?.split_whitespace().next().and_then(|pid| pid.parse().ok()))
        })?;
        let node =
            Self { name: name.to_owned(), ip, dir, holder: Mutex::new(holder), first_pid, owned: Mutex::default() };
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

    pub(crate) fn plug_in(&self, link: Link) -> Result<()> {
        let (name, netns) = (self.name.as_str(), format!("{PREFIX}{}", self.name));
        let port = format!("v-{name}");
        in_hub(&["ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &netns])?;
        in_hub(&["ip", "link", "set", &port, "master", BRIDGE, "up"])?;
        self.run("ip", &["address", "add", &format!("{}/24", self.ip), "dev", "eth0"])?;
        self.run("ip", &["link", "set", "lo", "up"])?;
        self.run("ip", &["link", "set", "eth0", "up"])?;
        // The machine's default may be bbr, which measures differently on shaped links.
        self.run("sh", &["-c", "echo cubic >/proc/sys/net/ipv4/tcp_congestion_control"])?;
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
        // Without its end at the hub, which else goes some time after the namespace: a node of the same name may follow.
        let _best_effort = in_hub(&["ip", "link", "del", &format!("v-{}", self.name)]);
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
