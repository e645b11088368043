//! The program `shoal`: one binary for every part. It assembles; the parts know nothing of it or of each other.

mod demo;
mod doctor;
mod http;
mod node;
mod parts;
mod simulate;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use shoal_kit::telemetry::{self, LogFormat};

/// Distributes container image layers inside a cluster: the registry sends each layer once, and every node that has one
/// is a source of it.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// What to log: directives such as info, or warn,shoal_agent=debug.
    #[arg(long, global = true, env = "SHOAL_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How log lines are written to stderr: text or json.
    #[arg(long, global = true, env = "SHOAL_LOG_FORMAT", default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node agent: a registry mirror for this node's runtime, and a peer for its neighbours.
    Agent(parts::AgentArgs),
    /// Run an origin: fetches each blob from upstream once, publishes its pieces and seeds them.
    Origin(parts::OriginArgs),
    /// Run a tracker: tells peers of each other.
    Tracker(parts::TrackerArgs),
    /// Make an authority and a certificate for each part, for TLS between parts: DIR/agent, DIR/origin and DIR/tracker are what
    /// their --certificates take. The authority's key is not kept. On Kubernetes the chart does this.
    Certificates {
        /// Where they are written; nothing is overwritten.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Configure this node's runtimes: containerd, docker, CRI-O, podman.
    Node(node::Args),
    /// Say what works on this node, what is misconfigured, and the command that mends it.
    Doctor(doctor::Args),
    /// Show it at work: a whole cluster in this process pulls an image through its agents.
    Demo(demo::Args),
    /// Simulate a whole swarm, with the code that agents run, in virtual time.
    Sim(simulate::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let quiet = match cli.command {
        Command::Agent(_) | Command::Origin(_) | Command::Tracker(_) => false,
        Command::Certificates { .. } | Command::Node(_) | Command::Doctor(_) | Command::Demo(_) | Command::Sim(_) => {
            true
        }
    };
    let filter = cli.log.as_deref().unwrap_or(if quiet { "off" } else { "info" });
    let ran = telemetry::init(cli.log_format, filter).map_err(anyhow::Error::from).and_then(|()| run(cli.command));
    ran.unwrap_or_else(|error| {
        report(&error);
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Agent(args) => parts::agent(args)?,
        Command::Origin(args) => parts::origin(args)?,
        Command::Tracker(args) => parts::tracker(args)?,
        Command::Certificates { directory } => shoal_identity::issue(&directory)?,
        Command::Node(args) => node::run(args)?,
        Command::Doctor(args) => return doctor::run(&args),
        Command::Demo(args) => demo::run(args)?,
        Command::Sim(args) => simulate::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs something on a runtime of its own.
fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("async runtime")?.block_on(future))
}

/// Prints what went wrong, causes and all, once.
#[expect(clippy::print_stderr, reason = "the program's last word goes to its user")]
fn report(error: &anyhow::Error) {
    eprintln!("shoal: {error:#}");
    eprintln!("hint: `shoal <command> --help` lists flags; config files are described in docs/configuration.md");
}
