//! The lab: a hub with a bridge and nodes around it, all removed when dropped. Made by [`crate::harness`] for one test at a
//! time; knows nothing of registries, runtimes or Shoal.
//!
//! A node's processes live in its process namespace, whose first process dies with the test program, so a killed test leaves
//! no process and no mount, only named network namespaces, which the next run removes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::node::{Link, Node};
use crate::process::run;

/// Every network namespace of the lab begins with this.
pub(crate) const PREFIX: &str = "shoal-";
const HUB: &str = "shoal-hub";
pub(crate) const BRIDGE: &str = "br0";
/// Sockets live here: a socket's path must be short, wherever the sources are.
pub(crate) const RUN_DIR: &str = "/run/shoal-e2e";
const LOCK: &str = "/run/shoal-e2e.lock";

/// A network of nodes. Dropping it and the last `Arc` of each node removes everything.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    nodes: Vec<Arc<Node>>,
    /// The last number of the address of each node there is or was.
    addresses: BTreeMap<String, u8>,
    aliases: Mutex<Vec<(String, Ipv4Addr)>>,
    _lock: File,
}

impl Lab {
    /// An address that no node gets, for a hub that is a router too.
    pub(crate) const HUB_IP: &str = "10.77.0.254";

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
        let lab = Self {
            dir: dir.to_owned(),
            nodes: Vec::new(),
            addresses: BTreeMap::new(),
            aliases: Mutex::default(),
            _lock: lock,
        };
        in_hub(&["ip", "link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0"])?;
        in_hub(&["ip", "link", "set", BRIDGE, "up"])?;
        Ok(lab)
    }

    /// Where the files of this test are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds a node, whose name all nodes resolve from now on. `name` is short: it is the name of a network interface too. One
    /// that was removed comes back with its address and its files.
    ///
    /// # Errors
    /// When a namespace or link cannot be made.
    pub fn add_node(&mut self, name: &str, link: Link) -> Result<Arc<Node>> {
        ensure!(name.len() <= 12, "{name}: a node's name has at most 12 characters");
        let known = self.addresses.get(name).copied();
        let last_octet = known.map_or_else(|| u8::try_from(self.addresses.len() + 1), Ok);
        let last_octet = last_octet.ok().filter(|octet| *octet < 254).context("more nodes than addresses")?;
        let node = Arc::new(Node::new(name, Ipv4Addr::new(10, 77, 0, last_octet), &self.dir)?);
        node.plug_in(link)?;
        self.nodes.push(Arc::clone(&node));
        if self.addresses.insert(name.to_owned(), last_octet).is_none() {
            self.add_alias(name, &node)?;
        }
        Ok(node)
    }

    /// Lets go of a node, which dies with its last `Arc`.
    pub fn remove_node(&mut self, name: &str) {
        self.nodes.retain(|node| node.name() != name);
    }

    /// Makes every node resolve `host` to this node.
    ///
    /// # Errors
    /// When the hosts file cannot be written.
    pub fn add_alias(&self, host: &str, node: &Node) -> Result<()> {
        let mut aliases = self.aliases.lock().unwrap_or_else(PoisonError::into_inner);
        aliases.push((host.to_owned(), node.ip()));
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

pub(crate) fn in_hub(words: &[&str]) -> Result<String> {
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
///
/// # Errors
/// When the machine's setting cannot be read or changed.
pub fn allow_cubic() -> Result<()> {
    let path = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    let allowed = fs::read_to_string(path).context(path)?;
    if !allowed.split_whitespace().any(|name| name == "cubic") {
        fs::write(path, format!("{} cubic", allowed.trim())).context(path)?;
    }
    Ok(())
}
