//! What serving costs: blocks to a peer, and a warm blob to a runtime, each beside nginx with sendfile.

use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};
use rustix::time::ClockId;

use crate::Options;
use crate::blob::{Scene, UPSTREAM, path};
use crate::child::cpu_seconds;
use crate::server::{self, FRONT_PORT, Server};
use crate::sink::{self, Leecher};
use crate::space::{End, Space};
use crate::table::{self, Row, Sample};

/// A committed blob over the peer wire, to one leecher that throws it away. To reach: 0.8 of nginx.
pub(crate) fn seed(options: &Options) -> Result<()> {
    let scene = Scene::new()?;
    let (nginx, agent) = (server::nginx(&scene, &options.space)?, server::agent(&scene, &options.space, &[])?);
    let (mut beside, mut ours) =
        (Row::new("nginx, sendfile, HTTP"), Row::new("agent, peer wire (to reach: 0.80 of the CPU)"));
    for _ in 0..options.rounds {
        beside.add(measure(&nginx, &options.space, || get(&scene, nginx.address, options.bytes))?);
        ours.add(measure(&agent, &options.space, || {
            let mut leecher = Leecher::connect(agent.address, &scene.metainfo)?;
            leecher.fetch(options.bytes).map(|_seconds| options.bytes)
        })?);
    }
    table::print("Seeding: CPU of the sender", &[beside, ours]);
    Ok(())
}

/// A committed blob from the agent's registry front. To reach: 0.8 of nginx's throughput.
pub(crate) fn warm(options: &Options) -> Result<()> {
    let scene = Scene::new()?;
    let (nginx, agent) = (server::nginx(&scene, &options.space)?, server::agent(&scene, &options.space, &[])?);
    let front = SocketAddr::new(agent.address.ip(), FRONT_PORT);
    let (mut beside, mut ours) = (Row::new("nginx, sendfile"), Row::new("agent, front (to reach: 0.80 of the speed)"));
    for _ in 0..options.rounds {
        beside.add(measure(&nginx, &options.space, || get(&scene, nginx.address, options.bytes))?);
        ours.add(measure(&agent, &options.space, || get(&scene, front, options.bytes))?);
    }
    table::print("Warm blob of 512 MiB over HTTP: CPU and speed of the server", &[beside, ours]);
    Ok(())
}

/// GETs the blob as often as it takes.
pub(crate) fn get(scene: &Scene, address: SocketAddr, bytes: u64) -> Result<u64> {
    let path = format!("{}?ns={UPSTREAM}", path(&scene.metainfo.digest()));
    let mut got = 0;
    while got < bytes {
        got += sink::http(address, &path)?;
    }
    Ok(got)
}

/// Runs a client on the other end and reads what it cost the server.
pub(crate) fn measure(server: &Server, space: &Space, client: impl FnOnce() -> Result<u64> + Send) -> Result<Sample> {
    let (before, began) = (server.cpu_seconds()?, Instant::now());
    let (bytes, other_cpu_seconds) = at(space, End::Client, || Ok((client()?, cpu_seconds(ClockId::ThreadCPUTime))))?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Sample { bytes, cpu_seconds: server.cpu_seconds()? - before, other_cpu_seconds, seconds, anon_bytes: None })
}

/// Runs something at an end, on a thread of its own.
pub(crate) fn at<T: Send>(space: &Space, end: End, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            space.enter(end)?;
            work()
        });
        match run.join() {
            Ok(done) => done,
            Err(_panicked) => bail!("a client panicked"),
        }
    })
}
