//! What receiving costs: a blob over the peer wire, verified, written and committed, beside bare loops that read the same
//! bytes from a socket, hash them not at all, once (each piece) or twice (each piece and the whole), write them to a file
//! with one call a piece, and sync it at the end.
//!
//! The receivers are children of this program, see [`crate::child`]; the seeder is an agent, and a thread that calls sendfile
//! for the bare loops.

use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::sendfile;
use rustix::time::ClockId;

use crate::Options;
use crate::blob::Scene;
use crate::child::{CERTIFICATES, cpu_seconds};
use crate::serve::at;
use crate::server::{self, NGINX_PORT};
use crate::space::{End, Space};
use crate::table::{self, Row, Sample};

/// The peer's receiver: a port of the client's end.
const RECEIVER_PORT: u16 = 5061;

/// Compares them. To reach: within 1.3 of the CPU of the loop that hashes once. Beside it, what TLS between parts adds.
pub(crate) fn run(options: &Options) -> Result<()> {
    let scene = Scene::new()?;
    let certificates = scene.dir.join("certificates");
    shoal_identity::issue(&certificates)?;
    let certificates = certificates.join("agent");
    let mut rows = [
        Row::new("bare loop: read, hash once, write"),
        Row::new("bare loop: read, hash twice, write"),
        Row::new("bare loop: read, write"),
        Row::new("node: fetch, verify, commit (to reach: 0.77)"),
        Row::new("node: the same over TLS"),
    ];
    for _ in 0..options.rounds {
        for (row, hashes) in rows.iter_mut().zip(["1", "2", "0"]) {
            row.add(bare(&scene, &options.space, hashes)?);
        }
        for (row, certificates) in rows[3..].iter_mut().zip([None, Some(certificates.as_path())]) {
            let flags = certificates.map(|path| format!("--certificates={}", path.display()));
            let flags: Vec<_> = flags.iter().map(String::as_str).collect();
            let agent = server::agent(&scene, &options.space, &flags)?;
            let before = agent.cpu_seconds()?;
            let fetched = node(&scene, &options.space, agent.address, certificates, &[])?;
            row.add(Sample { other_cpu_seconds: agent.cpu_seconds()? - before, ..fetched });
        }
    }
    table::print("Receiving 512 MiB: CPU of the receiver", &rows);
    Ok(())
}

/// Lets a node fetch the blob from the agent.
pub(crate) fn node(
    scene: &Scene,
    space: &Space,
    seeder: SocketAddr,
    certificates: Option<&Path>,
    words: &[&str],
) -> Result<Sample> {
    let store = scene.empty("receiver")?;
    let listen = SocketAddr::from((space.address(End::Client), RECEIVER_PORT));
    let geometry = scene.metainfo.geometry();
    let arguments = [
        "receive".to_owned(),
        store.display().to_string(),
        listen.to_string(),
        seeder.to_string(),
        scene.peer_id.to_string(),
        scene.metainfo.digest().to_string(),
        geometry.length().to_string(),
    ];
    let hashes: Vec<u8> = scene.metainfo.hashes().iter().flat_map(|hash| hash.0).collect();
    child(space, &[&arguments.each_ref().map(String::as_str)[..], words].concat(), certificates, &hashes)
}

/// Lets a bare loop fetch the blob from a thread that calls sendfile.
fn bare(scene: &Scene, space: &Space, hashes: &str) -> Result<Sample> {
    let address = SocketAddr::from((space.address(End::Server), NGINX_PORT));
    let geometry = scene.metainfo.geometry();
    let listener = at(space, End::Server, || Ok(TcpListener::bind(address)?))?;
    let file = File::open(scene.plain())?;
    let out = scene.empty("receiver")?.join("data");
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<f64> {
            let (stream, _) = listener.accept()?;
            let mut offset = 0;
            while sendfile(&stream, &file, Some(&mut offset), 1 << 20)? > 0 {}
            Ok(cpu_seconds(ClockId::ThreadCPUTime))
        });
        let (length, piece) = (geometry.length().to_string(), geometry.piece_length().to_string());
        let words = ["bare", &address.to_string(), &out.display().to_string(), &length, &piece, hashes];
        let sample = child(space, &words, None, &[])?;
        let other_cpu_seconds = sender.join().ok().context("the sender panicked")??;
        Ok(Sample { other_cpu_seconds, ..sample })
    })
}

/// Runs a child of this program at the client's end. It says how many bytes it got, and in what time.
fn child(space: &Space, words: &[&str], certificates: Option<&Path>, input: &[u8]) -> Result<Sample> {
    let program = std::env::current_exe()?;
    let mut command = space.command(End::Client, program.to_str().context("path")?);
    command.arg("child").args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.envs(certificates.map(|path| (CERTIFICATES, path)));
    let mut child = command.spawn()?;
    child.stdin.take().context("stdin")?.write_all(input)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "child {words:?}: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    let mut number = || numbers.next().context("a number is missing").and_then(|number| Ok(number?));
    let (bytes, cpu_seconds, seconds, anon_bytes) = (number()? as u64, number()?, number()?, number()? as u64);
    Ok(Sample { bytes, cpu_seconds, other_cpu_seconds: 0.0, seconds, anon_bytes: Some(anon_bytes) })
}
