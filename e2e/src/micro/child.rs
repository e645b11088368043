//! The receivers, each run in a process of its own: they measure themselves and print bytes, seconds of
//! CPU, seconds, and the most anonymous memory they had.

use std::fs::File;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest as _, Sha256};
use shoal_e2e::usage;
use shoal_identity::{Identity, Part};
use shoal_meta::{Digest, Geometry, PeerInfo, PieceHash, Role, Topology};
use shoal_peer::{Node, Torrent};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{blob, memory};

/// The environment variable that names the receiver's certificates.
pub(crate) const CERTIFICATES: &str = "SHOAL_CERTIFICATES";
const READ_BYTES: usize = 256 * 1024;

/// Runs what the words say.
#[expect(clippy::print_stdout, reason = "its output is read by the parent")]
pub(crate) fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let look = || usage::anon_bytes(std::process::id()).unwrap_or(u64::MAX);
    let (anon_bytes, received) = memory::peak(look, || receive_as(&words));
    let (bytes, cpu_seconds, seconds) = received?;
    println!("{bytes} {cpu_seconds} {seconds} {anon_bytes}");
    Ok(())
}

fn receive_as(words: &[&str]) -> Result<(u64, f64, f64)> {
    match *words {
        ["bare", address, out, length, piece_length, hashes] => {
            bare(address.parse()?, Path::new(out), length.parse()?, piece_length.parse()?, hashes.parse()?)
        }
        ["receive", store, listen, seeder, id, digest, length, ref rest @ ..] => {
            let rate = rest.first().map(|rate| rate.parse()).transpose()?;
            let geometry = Geometry::for_length(length.parse()?)?;
            let (address, id, topology) = (seeder.parse()?, id.parse()?, Topology::default());
            let seeder = PeerInfo { id, address, role: Role::Agent, topology };
            let node = receive(Path::new(store), listen.parse()?, seeder, digest.parse()?, geometry, rate);
            blob::runtime()?.block_on(node)
        }
        _ => bail!("no such child: {words:?}"),
    }
}

/// Reads, hashes and writes, one piece after the other, in one thread and one buffer.
fn bare(address: SocketAddr, out: &Path, length: u64, piece_length: usize, hashes: u32) -> Result<(u64, f64, f64)> {
    let file = File::create(out)?;
    let mut stream = TcpStream::connect(address)?;
    let (mut piece, mut whole) = (vec![0; piece_length], Sha256::new());
    let (cpu, began) = (process_seconds(), Instant::now());
    let mut offset = 0;
    while offset < length {
        let wanted = piece_length.min(usize::try_from(length - offset)?);
        let mut filled = 0;
        while filled < wanted {
            let end = wanted.min(filled + READ_BYTES);
            let got = stream.read(&mut piece[filled..end])?;
            ensure!(got > 0, "the sender ended early");
            filled += got;
        }
        if hashes > 0 {
            std::hint::black_box(Sha256::digest(&piece[..wanted]));
        }
        if hashes > 1 {
            whole.update(&piece[..wanted]);
        }
        file.write_all_at(&piece[..wanted], offset)?;
        offset += wanted as u64;
    }
    std::hint::black_box(whole.finalize());
    file.sync_all()?;
    Ok((length, process_seconds() - cpu, began.elapsed().as_secs_f64()))
}

/// Fetches a blob as a node of the swarm that knows its metainfo and one seeder.
async fn receive(
    store: &Path,
    listen: SocketAddr,
    seeder: PeerInfo,
    digest: Digest,
    geometry: Geometry,
    download_rate: Option<u64>,
) -> Result<(u64, f64, f64)> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let hashes = bytes.as_chunks().0.iter().copied().map(PieceHash).collect();
    let store = blob::open(store).await?;
    let shutdown = CancellationToken::new();
    let certificates = std::env::var_os(CERTIFICATES).map(PathBuf::from);
    let identity = Identity::start(certificates.as_deref(), Part::Agent, shutdown.clone())?;
    let config = shoal_peer::Config {
        listen,
        advertise: None,
        role: Role::Agent,
        topology: Topology::default(),
        upload_rate: None,
        download_rate,
        background: false,
        trackers: watch::channel(Vec::new()).1,
        identity,
        swarm: shoal_swarm::Config::default(),
    };
    let node = Node::start(config, store.clone(), shutdown.clone()).await?;
    let (cpu, began) = (process_seconds(), Instant::now());
    let torrent = node.join(store.partial(digest, geometry).await?).await?;
    torrent.extend_hashes(0, hashes).await?;
    node.add_peers(digest, vec![seeder]);
    if download_rate.is_some() {
        return transfer(&torrent, cpu).await;
    }
    torrent.committed().await.context("fetch the blob")?;
    let took = (process_seconds() - cpu, began.elapsed().as_secs_f64());
    shutdown.cancel();
    node.stopped().await;
    Ok((geometry.length(), took.0, took.1))
}

/// What a cap is about: the bytes after the first piece, and how long they took. Neither connecting nor the disk counts.
async fn transfer(torrent: &Torrent, cpu: f64) -> Result<(u64, f64, f64)> {
    let mut progress = torrent.progress();
    let before = progress.wait_for(|progress| progress.have > 0).await?.received.total();
    let began = Instant::now();
    let pieces = torrent.geometry().piece_count();
    let after = progress.wait_for(|progress| progress.have == pieces).await?.received.total();
    Ok((after - before, process_seconds() - cpu, began.elapsed().as_secs_f64()))
}

fn process_seconds() -> f64 {
    cpu_seconds(ClockId::ProcessCPUTime)
}

/// What a thread or process has taken.
pub(crate) fn cpu_seconds(clock: ClockId) -> f64 {
    let spent = clock_gettime(clock);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}
