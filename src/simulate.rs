//! `shoal sim`: flags, as people write them, for the simulator.

mod pages;
mod plot;
mod sweep;

use std::io;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use shoal_kit::{ByteSize, HumanDuration, Rate};
use shoal_sim::faults::{FaultArgs, run_faults};
use shoal_sim::{Named, Value, cli};

/// Flags of `shoal sim`.
#[derive(ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
    /// Check invariants after each event (slow).
    #[arg(long)]
    check: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// List the scenarios: name, default size, what happens.
    List,
    /// Play small swarms in which much goes wrong at random, and check that nothing is lost, wrong or stuck.
    Faults(Faults),
    /// Run a scenario for every combination of some settings' values, and print the figures as a table.
    Sweep(Box<sweep::Args>),
}

/// Flags of `shoal sim faults`.
#[derive(ClapArgs)]
struct Faults {
    /// How many schedules, one after the other.
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Play this one alone.
    #[arg(long, conflicts_with_all = ["seeds", "first_seed"])]
    seed: Option<u64>,
}

/// What a scenario is made of; what is left out is as the scenario has it.
#[derive(ClapArgs)]
struct Flags {
    /// Which scenario; `shoal sim list` lists them.
    #[arg(long, default_value_t, value_name = "NAME")]
    scenario: Named,
    /// How many nodes want the blobs.
    #[arg(long)]
    nodes: Option<u32>,
    /// Length of the blobs.
    #[arg(long, value_name = "SIZE")]
    blob: Option<ByteSize>,
    /// Length of their pieces; default: as each blob's length gives it.
    #[arg(long, value_name = "SIZE")]
    piece_length: Option<ByteSize>,
    /// Draws everything that is random; the same seed gives the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Each node's rate, both ways.
    #[arg(long)]
    rate: Option<Rate>,
    /// The origin's rate; default: as the nodes'.
    #[arg(long)]
    origin_rate: Option<Rate>,
    /// The rate at which the origin gets the blobs from upstream; default: it has them.
    #[arg(long)]
    upstream_rate: Option<Rate>,
    /// Latency between any two nodes, one way, in microseconds.
    #[arg(long)]
    latency_us: Option<u64>,
    /// Nodes arrive at random within this time, in milliseconds.
    #[arg(long)]
    arrivals_ms: Option<u64>,
    /// Share of the nodes that crash while the blobs are spread.
    #[arg(long, default_value_t = 0.0)]
    crash_share: f64,
    /// Share of the nodes that lose all connections while the blobs are spread.
    #[arg(long, default_value_t = 0.0)]
    cut_share: f64,
    /// The origin crashes at this time, in milliseconds.
    #[arg(long)]
    origin_crash_ms: Option<u64>,
    /// Each node has a reader that takes each blob in order, as a pull does.
    #[arg(long)]
    readers: bool,
    /// Set something by its name, such as `upload_slots=2`; a wrong name lists them all.
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<(String, Value)>,
}

/// Runs a simulation, or many, and prints the figures; fails when a node did not get the blobs.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(Command::List) = &args.command {
        return Ok(cli::list(&mut io::stdout().lock())?);
    }
    if let Some(Command::Faults(faults)) = &args.command {
        let Faults { seeds, first_seed, seed } = *faults;
        let (first_seed, seeds) = seed.map_or((first_seed, seeds), |seed| (seed, 1));
        let told = FaultArgs { first_seed, seeds };
        return Ok(run_faults(told, &mut io::stdout().lock())?);
    }
    pages::ask_for_huge();
    if let Some(Command::Sweep(sweep)) = &args.command {
        return sweep::run(sweep);
    }
    let told = cli::Args { check: args.check, json: args.json, ..args.flags.read()? };
    let report = cli::run_cli(&told, &mut io::stdout().lock())?;
    anyhow::ensure!(report.all_completed(), "not every node got the blobs; replay: {told}");
    Ok(())
}

impl Flags {
    fn read(&self) -> anyhow::Result<cli::Args> {
        let mut told = cli::Args {
            named: self.scenario,
            nodes: self.nodes,
            blob_length: self.blob.map(ByteSize::get),
            piece_length: self.piece_length.map(|length| u32::try_from(length.get()).unwrap_or(u32::MAX)),
            seed: self.seed,
            rate: self.rate.map(Rate::get),
            origin_rate: self.origin_rate.map(Rate::get),
            upstream_rate: self.upstream_rate.map(Rate::get),
            latency: self.latency_us.map(Duration::from_micros),
            arrivals_ms: self.arrivals_ms,
            crash_share: self.crash_share,
            cut_share: self.cut_share,
            origin_crash_ms: self.origin_crash_ms,
            ..cli::Args::default()
        };
        let readers = self.readers.then(|| ("readers".to_owned(), Value::Word("true".to_owned())));
        for (key, value) in self.set.iter().cloned().chain(readers) {
            told.set(&key, value)?;
        }
        Ok(told)
    }
}

/// Reads `KEY=VALUE`.
fn setting(text: &str) -> Result<(String, Value), String> {
    let (key, text) = text.split_once('=').ok_or("give it as KEY=VALUE")?;
    Ok((key.to_owned(), value(text)))
}

/// Reads a value as people write it: a number, a share, a time, a size or a rate; else it is a word.
fn value(text: &str) -> Value {
    let number = text.parse().ok().map(Value::Number);
    number
        .or_else(|| text.parse().ok().map(Value::Share))
        .or_else(|| text.parse().ok().map(|time: HumanDuration| Value::Time(time.get())))
        .or_else(|| text.parse().ok().map(|size: ByteSize| Value::Number(size.get())))
        .or_else(|| text.parse().ok().map(|rate: Rate| Value::Number(rate.get())))
        .unwrap_or_else(|| Value::Word(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_as_people_write_them() {
        assert_eq!(value("8"), Value::Number(8));
        assert_eq!(value("0.05"), Value::Share(0.05));
        assert_eq!(value("250us"), Value::Time(Duration::from_micros(250)));
        assert_eq!(value("2s"), Value::Time(Duration::from_secs(2)));
        assert_eq!(value("256KiB"), Value::Number(256 << 10));
        assert_eq!(value("1gbit"), Value::Number(125_000_000));
        assert_eq!(value("reciprocal"), Value::Word("reciprocal".to_owned()));
    }
}
