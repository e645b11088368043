//! Anonymous memory of an agent: at rest, while it serves fifty peers, and clients of its front beside them; and of a node
//! while it receives.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::Options;
use crate::blob::Scene;
use crate::receive;
use crate::serve::{at, get};
use crate::server::{self, FRONT_PORT, Server};
use crate::sink::Leecher;
use crate::space::End;

const PEERS: usize = 50;
const CLIENTS: usize = 16;
const LOOK_EVERY: Duration = Duration::from_millis(20);
const REST: Duration = Duration::from_secs(3);
const MIB: f64 = 1024.0 * 1024.0;

/// Prints the figures. To reach: 20 MiB at rest, 64 MiB while serving peers.
#[expect(clippy::print_stdout, reason = "its output is its purpose")]
pub(crate) fn run(options: &Options) -> Result<()> {
    let scene = Scene::new()?;
    let _upstream = server::nginx(&scene, &options.space)?;
    let agent = server::agent(&scene, &options.space, &[])?;
    let front = SocketAddr::new(agent.address.ip(), FRONT_PORT);
    let share = 2 * options.bytes / PEERS as u64;
    let leech = || Leecher::connect(agent.address, &scene.metainfo)?.fetch(share).map(drop);
    let client = || get(&scene, front, 1).map(drop);
    thread::sleep(REST);
    let rest = agent.anon_bytes()?;
    let peer = || at(&options.space, End::Client, leech);
    let client = || at(&options.space, End::Client, client);
    let mut clients: Vec<&Client<'_>> = vec![&peer; PEERS];
    let peers = peak_while(&agent, &clients)?;
    clients.extend([&client as &Client<'_>; CLIENTS]);
    let both = peak_while(&agent, &clients)?;
    thread::sleep(REST);
    let after = agent.anon_bytes()?;
    let received = receive::node(&scene, &options.space, agent.address, None, &[])?.anon_bytes;
    println!("\nAnonymous memory of an agent, MiB");
    for (what, bytes) in [
        ("at rest (to reach: 20)", rest),
        ("while 50 peers fetch at once (to reach: 64)", peers),
        ("while 50 peers and 16 clients fetch", both),
        ("after that", after),
        ("of a node that receives at full speed", received.unwrap_or_default()),
    ] {
        println!("  {what:44} {:>13.1}", bytes as f64 / MIB);
    }
    Ok(())
}

type Client<'a> = dyn Fn() -> Result<()> + Sync + 'a;

/// The most memory the agent has while all these clients run.
fn peak_while(agent: &Server, clients: &[&Client<'_>]) -> Result<u64> {
    let run = || {
        thread::scope(|scope| {
            let running: Vec<_> = clients.iter().map(|client| scope.spawn(client)).collect();
            running.into_iter().try_for_each(|client| client.join().unwrap_or(Ok(())))
        })
    };
    let (peak, ended) = peak(|| agent.anon_bytes().unwrap_or(u64::MAX), run);
    ended.map(|()| peak)
}

/// The most that a look tells while something is done, and what comes of that.
pub(crate) fn peak<T>(look: impl Fn() -> u64 + Sync, work: impl FnOnce() -> T) -> (u64, T) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Relaxed) {
                peak = peak.max(look());
                thread::sleep(LOOK_EVERY);
            }
            peak
        });
        let out = work();
        done.store(true, Relaxed);
        (watch.join().unwrap_or(u64::MAX), out)
    })
}
