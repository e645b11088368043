//! `shoal node configure`: tells the runtimes of a node to ask the agent first, and puts everything back.
//!
//! Each runtime has a module that says what its files should be ([`state::Wanted`]); [`state`] writes and restores them.
//! It runs as root on the node, or in a container that has the node's root mounted.

pub(crate) mod containerd;
pub(crate) mod containers;
mod diff;
pub(crate) mod docker;
mod fixed;
pub(crate) mod mirror;
pub(crate) mod root;
pub(crate) mod state;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use mirror::Mirror;
use root::Root;
use state::{Node, Plan, Wanted};

/// Flags of `shoal node`.
#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tell this node's runtimes to ask the agent first; run again, it changes nothing.
    Configure(ConfigureArgs),
}

#[derive(ClapArgs)]
struct ConfigureArgs {
    /// The node's root directory, such as /host in a container.
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// Put back all that was written, byte for byte.
    #[arg(long, conflicts_with_all = ["registries", "mirror", "runtimes", "set_config_path"])]
    remove: bool,
    /// Show what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// A registry to mirror, such as ghcr.io; may be repeated. Default: all; for CRI-O and podman, the well-known ones.
    #[arg(long = "registry", value_name = "HOST", value_parser = mirror::registry)]
    registries: Vec<String>,
    /// Where runtimes reach the agent.
    #[arg(long, default_value = "http://127.0.0.1:5050", value_name = "URL")]
    mirror: Mirror,
    /// A runtime to configure; may be repeated. Default: those that are found.
    #[arg(long = "runtime", value_name = "NAME")]
    runtimes: Vec<Runtime>,
    /// Set containerd's config_path where it is unset; containerd has to be restarted then.
    #[arg(long)]
    set_config_path: bool,
}

/// A runtime that can have mirrors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Runtime {
    Containerd,
    Docker,
    Crio,
    Podman,
}

/// Runs `shoal node`.
///
/// # Errors
/// When nothing could be configured, or a file not be read or written.
pub(crate) fn run(args: Args) -> Result<()> {
    let Command::Configure(args) = args.command;
    let root = Root::new(&args.root)?;
    let node = if args.dry_run { Node::open(root)? } else { Node::open_to_change(root)? };
    let wanted = if args.remove { Ok(Wanted::default()) } else { want(&node, &args) };
    let planned = wanted.and_then(|wanted| Ok((node.plan(&wanted.files)?, wanted)));
    // A refusal leaves no trace of the directory that was locked.
    let (plan, wanted) = planned.or_else(|error| node.forget_unused().and(Err(error)))?;
    if args.dry_run {
        for change in &plan.changes {
            let path = change.path.display().to_string();
            say(diff::diff(&path, change.from.as_deref(), change.to.as_deref()).trim_end());
        }
        tell(&plan, &wanted, &[]);
    } else {
        let kept = node.apply(&plan)?;
        for change in &plan.changes {
            let done = match (&change.to, change.restores) {
                (None, _) => "removed",
                (Some(_), true) => "restored",
                (Some(_), false) => "wrote",
            };
            say(format!("{done} {}", change.path.display()));
        }
        tell(&plan, &wanted, &kept);
    }
    if plan.changes.is_empty() {
        say("nothing to change");
    }
    Ok(())
}

/// The runtimes that are found on a node.
pub(crate) fn detect(root: &Root) -> Vec<Runtime> {
    let found = |runtime: &Runtime| match runtime {
        Runtime::Containerd => !containerd::found(root).is_empty(),
        Runtime::Docker => docker::is_found(root),
        Runtime::Crio => containers::has_crio(root),
        Runtime::Podman => containers::has_podman(root),
    };
    Runtime::value_variants().iter().copied().filter(found).collect()
}

fn want(node: &Node, args: &ConfigureArgs) -> Result<Wanted> {
    if let Some(snippet) = fixed::snippet(node.root(), &args.mirror)? {
        bail!("{snippet}");
    }
    let runtimes = if args.runtimes.is_empty() { detect(node.root()) } else { args.runtimes.clone() };
    if runtimes.is_empty() {
        let root = args.root.display();
        bail!(
            "no containerd, docker, crio or podman is found under {root}: give the node's root with --root, or name one with --runtime"
        );
    }
    let (registries, mirror) = (&args.registries, &args.mirror);
    let mut all = Wanted::default();
    for runtime in runtimes {
        let wanted = match runtime {
            Runtime::Containerd => {
                let mut found = containerd::found(node.root());
                if found.is_empty() {
                    found.push(containerd::plain());
                }
                let each = found.iter().map(|one| one.want(node, registries, mirror, args.set_config_path));
                each.collect::<Result<Vec<_>>>()?
            }
            Runtime::Docker => vec![docker::want(node, registries, mirror)?],
            Runtime::Crio | Runtime::Podman => vec![containers::want(node, registries, mirror)?],
        };
        for mut wanted in wanted {
            all.files.append(&mut wanted.files);
            all.notes.append(&mut wanted.notes);
            all.todo.append(&mut wanted.todo);
        }
    }
    all.todo.dedup();
    Ok(all)
}

/// Says what was left alone and what is left to do.
fn tell(plan: &Plan, wanted: &Wanted, kept: &[PathBuf]) {
    for path in &plan.edited {
        let state = state::DIRECTORY;
        say(format!(
            "kept {}: it was edited since shoal wrote it; what was there before is in {state}/state.json",
            path.display()
        ));
    }
    kept.iter().for_each(|path| say(format!("kept {}: something else is in it", path.display())));
    wanted.notes.iter().for_each(|note| say(format!("note: {note}")));
    let after = plan.changes.iter().filter_map(|change| {
        let of_docker = docker::after_change(&change.path, change.to.as_deref());
        of_docker.or_else(|| containerd::after_change(&change.path)).or_else(|| containers::after_change(&change.path))
    });
    let after = after.map(str::to_owned);
    let todo = wanted.todo.iter().cloned().chain(after);
    todo.for_each(|todo| say(format!("to do: {}", todo.replace('\n', "\n       "))));
}

/// Prints a line of the answer. Whoever reads it may leave early, as `head` does.
pub(crate) fn say(line: impl std::fmt::Display) {
    let _reader_left = writeln!(std::io::stdout(), "{line}");
}

#[cfg(test)]
mod tests;
