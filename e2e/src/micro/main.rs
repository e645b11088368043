//! Micro-benchmarks of the data plane: what a byte costs the agent's process, beside nginx and beside bare loops.
//!
//! `cargo run --release -p shoal-e2e --bin micro [-- seed receive warm memory caps --rounds 5 --mib 4096 --loopback]`.
//! Every subject is a process of its own, and what it costs is read from /proc around a transfer: seconds of CPU of all its
//! threads, whatever else the machine does. Compared subjects take turns in one run; the best round of each counts, as other
//! load on the machine only ever makes one look worse. As root the ends of a transfer are in network namespaces of their
//! own: on loopback, sendfile's gain is hidden, as both ends share pages.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

mod blob;
mod caps;
mod child;
mod memory;
mod receive;
mod serve;
mod server;
mod sink;
mod space;
mod table;

use anyhow::{Context as _, Result, bail};

use crate::space::Space;

/// What the command line says.
#[derive(Debug)]
struct Options {
    benches: Vec<String>,
    rounds: u32,
    /// Bytes of one transfer.
    bytes: u64,
    space: Space,
}

const BENCHES: [&str; 5] = ["seed", "receive", "warm", "memory", "caps"];
const MIB: u64 = 1 << 20;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("child", rest)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return child::run(rest);
    }
    let options = parse(&words)?;
    println!("{} bytes a transfer, {} rounds, {}", options.bytes, options.rounds, options.space.name());
    for bench in &options.benches {
        match bench.as_str() {
            "seed" => serve::seed(&options)?,
            "warm" => serve::warm(&options)?,
            "receive" => receive::run(&options)?,
            "memory" => memory::run(&options)?,
            "caps" => caps::run(&options)?,
            other => bail!("{other}: not one of {BENCHES:?}"),
        }
    }
    Ok(())
}

fn parse(words: &[String]) -> Result<Options> {
    let (mut benches, mut rounds, mut bytes, mut loopback) = (Vec::new(), 5, 2048 * MIB, false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut number = || words.next().context("a number is missing")?.parse::<u64>().context("not a number");
        match word.as_str() {
            "--rounds" => rounds = u32::try_from(number()?)?,
            "--mib" => bytes = number()? * MIB,
            "--loopback" => loopback = true,
            bench => benches.push(bench.to_owned()),
        }
    }
    if benches.is_empty() {
        benches = BENCHES.map(str::to_owned).to_vec();
    }
    Ok(Options { benches, rounds, bytes, space: Space::new(loopback)? })
}
