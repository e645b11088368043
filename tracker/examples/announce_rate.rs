//! Prints how many announced torrents one core answers per second, with 10,000 agents of state.
//!
//! `cargo run --release -p shoal-tracker --example announce_rate`. One thread decodes each request from its bytes, asks
//! the service and encodes the answer, as the gRPC server does; the network and HTTP/2 are not in the figure. Seconds are
//! seconds of CPU, so that other load on the machine hardly shows.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::{Duration, Instant};

use prost::Message as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use shoal_meta::Digest;
use shoal_proto::tracker::v1::{AnnounceRequest, Peer, Role, TorrentAnnounce, TorrentState};
use shoal_tracker::Config;
use shoal_tracker::service::Service;

const AGENTS: u32 = 10_000;
const TORRENTS: u32 = 2_000;
const TORRENTS_PER_AGENT: u32 = 100;
const MEASURED_FOR: Duration = Duration::from_secs(2);

fn main() {
    let (service, mut rng) = (Service::new(Config::default(), 7), Pcg64::seed_from_u64(7));
    let (now, began) = (Instant::now(), cpu_time());
    for agent in 0..AGENTS {
        let torrents: Vec<_> = (0..TORRENTS_PER_AGENT).map(|_| torrent(popular(&mut rng), 0)).collect();
        service.answer(now, None, &announce(agent, true, torrents)).expect("the announce is well-formed");
    }
    let sizes = service.sizes();
    println!("state: {} agents, {} torrents, {} memberships", sizes.peers, sizes.torrents, sizes.memberships);
    println!(
        "full announces, {TORRENTS_PER_AGENT} new torrents each: {:.0} torrents/s",
        f64::from(AGENTS * TORRENTS_PER_AGENT) / (cpu_time() - began).as_secs_f64()
    );
    for (batch, wanted) in [(1, 50), (10, 50), (10, 10), (100, 0)] {
        let rate = measure(&service, &mut rng, batch, wanted);
        println!("announces of {batch:>3} torrents, {wanted:>2} peers wanted for each: {rate:>9.0} torrents/s");
    }
}

/// Announces as random agents until the time is up; gives announced torrents per second.
fn measure(service: &Service, rng: &mut Pcg64, batch: u32, wanted: u32) -> f64 {
    let requests: Vec<Vec<u8>> = (0..2_000)
        .map(|_| {
            let torrents = (0..batch).map(|_| torrent(popular(rng), wanted)).collect();
            announce(rng.random_range(0..AGENTS), false, torrents).encode_to_vec()
        })
        .collect();
    let (began, mut torrents, mut answer) = (cpu_time(), 0, Vec::new());
    for request in requests.iter().cycle() {
        let request = AnnounceRequest::decode(request.as_slice()).expect("it was encoded above");
        let response = service.answer(Instant::now(), None, &request).expect("the announce is well-formed");
        answer.clear();
        response.encode(&mut answer).expect("a vector grows");
        torrents += batch;
        if cpu_time() - began > MEASURED_FOR {
            break;
        }
    }
    f64::from(torrents) / (cpu_time() - began).as_secs_f64()
}

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).try_into().expect("CPU time is never negative")
}

/// A torrent's number; low ones are far more popular, as base layers are: the first has nearly every agent.
fn popular(rng: &mut Pcg64) -> u32 {
    let x: f64 = rng.random();
    (x.powi(4) * f64::from(TORRENTS)) as u32
}

fn torrent(number: u32, peers_wanted: u32) -> TorrentAnnounce {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&number.to_be_bytes());
    TorrentAnnounce { digest: Digest::Sha256(hash).to_string(), state: TorrentState::Leeching.into(), peers_wanted }
}

fn announce(agent: u32, full: bool, torrents: Vec<TorrentAnnounce>) -> AnnounceRequest {
    let mut id = vec![0; 16];
    id[..4].copy_from_slice(&agent.to_be_bytes());
    let peer = Peer {
        id,
        address: format!("10.{}.{}.{}:5051", agent >> 16, agent >> 8 & 255, agent & 255),
        role: Role::Agent.into(),
        zone: format!("europe-west1-{}", agent % 3),
        rack: format!("rack-{}", agent / 40),
    };
    AnnounceRequest { peer: Some(peer), full, torrents }
}
