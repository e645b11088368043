//! Where the two ends of a transfer are: in two network namespaces joined by a pair of interfaces, or both on loopback.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use shoal_e2e::lab::allow_cubic;
use shoal_e2e::process::run;

/// The namespaces of servers and of clients. Not named as the lab's are, which removes its own when it begins.
const NAMES: [&str; 2] = ["micro-server", "micro-client"];
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 79, 0, 1), Ipv4Addr::new(10, 79, 0, 2)];

/// An end of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The subject's, when it serves.
    Server,
    /// The other one.
    Client,
}

/// The network between the two ends. Dropping it removes the namespaces.
#[derive(Debug)]
pub(crate) enum Space {
    /// Both ends on 127.0.0.1.
    Loopback,
    /// Two namespaces.
    Pair,
}

impl Space {
    /// Makes the namespaces, or takes loopback when told to or without root.
    pub(crate) fn new(loopback: bool) -> Result<Self> {
        if loopback || !rustix::process::geteuid().is_root() {
            return Ok(Self::Loopback);
        }
        remove();
        for name in NAMES {
            run("ip", ["netns", "add", name])?;
        }
        let space = Self::Pair;
        run("ip", ["link", "add", "m0", "netns", NAMES[0], "type", "veth", "peer", "name", "m0", "netns", NAMES[1]])?;
        allow_cubic()?;
        for (name, address) in NAMES.into_iter().zip(ADDRESSES) {
            // Not the machine's own choice: pacing would be in the figures, and they would differ from machine to machine.
            let cubic = "echo cubic > /proc/sys/net/ipv4/tcp_congestion_control";
            run("nsenter", [&format!("--net=/run/netns/{name}"), "sh", "-c", cubic])?;
            run("ip", ["-n", name, "addr", "add", &format!("{address}/24"), "dev", "m0"])?;
            run("ip", ["-n", name, "link", "set", "m0", "up"])?;
            run("ip", ["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(space)
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Loopback => "both ends on loopback",
            Self::Pair => "two network namespaces",
        }
    }

    /// The address of an end.
    pub(crate) fn address(&self, end: End) -> Ipv4Addr {
        match self {
            Self::Loopback => Ipv4Addr::LOCALHOST,
            Self::Pair => ADDRESSES[end as usize],
        }
    }

    /// A command that runs at an end.
    pub(crate) fn command(&self, end: End, program: &str) -> Command {
        match self {
            Self::Loopback => Command::new(program),
            Self::Pair => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{}", NAMES[end as usize])).arg(program);
                command
            }
        }
    }

    /// Moves the calling thread to an end, for good.
    pub(crate) fn enter(&self, end: End) -> Result<()> {
        match self {
            Self::Loopback => Ok(()),
            Self::Pair => {
                let path = format!("/run/netns/{}", NAMES[end as usize]);
                let file = File::open(&path).context(path)?;
                Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
            }
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        match self {
            Self::Loopback => {}
            Self::Pair => remove(),
        }
    }
}

fn remove() {
    for name in NAMES {
        let _not_there = run("ip", ["netns", "del", name]);
    }
}
