//! `shoal node`: tells the runtimes of a node to ask the agent first, and puts everything back.
//!
//! Each runtime has a module that says what its files should be ([`state::Wanted`]); [`state`] writes and restores them, once
//! or, as [`watch`] does, whenever the agent comes and goes. It runs as root on the node, or in a container that has the node's
//! root mounted.

pub(crate) mod containerd;
pub(crate) mod containers;
mod diff;
pub(crate) mod docker;
mod fixed;
pub(crate) mod mirror;
pub(crate) mod root;
pub(crate) mod state;
mod store;
mod watch;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use shoal_kit::{HumanDuration, shutdown};

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
    /// Tell them so for as long as the agent answers, and put everything back while it does not, and at the end.
    Watch(WishArgs),
    /// Wait until a `DaemonSet` of this pod's namespace is ready on every node that it wants.
    Await(AwaitArgs),
}

#[derive(ClapArgs)]
struct ConfigureArgs {
    #[command(flatten)]
    wish: WishArgs,
    /// Put back all that was written, byte for byte.
    #[arg(long, conflicts_with_all = ["registries", "mirror", "runtimes", "set_config_path", "own_store"])]
    remove: bool,
    /// Delete the agent's store too.
    #[arg(long, requires = "remove", conflicts_with = "dry_run")]
    purge: bool,
    /// Show what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Make the agent's store belong to this user, for an agent that does not run as root.
    #[arg(long, value_name = "UID", conflicts_with = "dry_run")]
    own_store: Option<u32>,
    /// When done, stay until told to end.
    #[arg(long)]
    hold: bool,
}

/// What is wanted of which node.
#[derive(ClapArgs)]
struct WishArgs {
    /// The node's root directory, such as /host in a container.
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
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

#[derive(ClapArgs)]
struct AwaitArgs {
    /// Its name.
    daemon_set: String,
    /// How long to wait, such as 2m.
    #[arg(long, default_value = "2m", value_name = "DURATION")]
    timeout: HumanDuration,
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
    match args.command {
        Command::Configure(args) => configure(&args),
        Command::Watch(wish) => watch::run(&wish),
        Command::Await(args) => {
            let ready = shoal_kube::await_daemon_set(&args.daemon_set, args.timeout.get());
            Ok(crate::block_on(ready)??)
        }
    }
}

fn configure(args: &ConfigureArgs) -> Result<()> {
    if args.dry_run {
        show(&args.wish, args.remove)?;
    } else {
        let (plan, wanted, kept) = change(&args.wish, args.remove)?;
        tell(&plan, &wanted, &kept);
    }
    if let Some(user) = args.own_store {
        store::own(&Root::new(&args.wish.root)?, user)?;
    }
    if args.purge {
        store::purge(&Root::new(&args.wish.root)?)?;
    }
    if args.hold {
        crate::block_on(until_told())??;
    }
    Ok(())
}

async fn until_told() -> Result<()> {
    shutdown::on_signal()?.cancelled().await;
    Ok(())
}

/// Shows what would change.
fn show(wish: &WishArgs, remove: bool) -> Result<()> {
    let node = Node::open(Root::new(&wish.root)?)?;
    let wanted = want(&node, wish, remove)?;
    let plan = node.plan(&wanted.files)?;
    for change in &plan.changes {
        let path = change.path.display().to_string();
        say(diff::diff(&path, change.from.as_deref(), change.to.as_deref()).trim_end());
    }
    tell(&plan, &wanted, &[]);
    Ok(())
}

/// Makes the node's files as wished, or as they were, and says which were changed. Gives what was planned and wanted, and the
/// directories that stay as something else is in them.
fn change(wish: &WishArgs, remove: bool) -> Result<(Plan, Wanted, Vec<PathBuf>)> {
    let node = Node::open_to_change(Root::new(&wish.root)?)?;
    let planned = want(&node, wish, remove).and_then(|wanted| Ok((node.plan(&wanted.files)?, wanted)));
    // A refusal leaves no trace of the directory that was locked.
    let (plan, wanted) = planned.or_else(|error| node.forget_unused().and(Err(error)))?;
    let kept = node.apply(&plan)?;
    for change in &plan.changes {
        let done = match (&change.to, change.restores) {
            (None, _) => "removed",
            (Some(_), true) => "restored",
            (Some(_), false) => "wrote",
        };
        say(format!("{done} {}", change.path.display()));
    }
    Ok((plan, wanted, kept))
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

/// What is wished of a node, or nothing.
fn want(node: &Node, wish: &WishArgs, remove: bool) -> Result<Wanted> {
    if remove {
        return Ok(Wanted::default());
    }
    if let Some(snippet) = fixed::snippet(node.root(), &wish.mirror)? {
        return Ok(Wanted { todo: vec![snippet], ..Wanted::default() });
    }
    let runtimes = if wish.runtimes.is_empty() { detect(node.root()) } else { wish.runtimes.clone() };
    if runtimes.is_empty() {
        let root = wish.root.display();
        bail!(
            "no containerd, docker, crio or podman is found under {root}: give the node's root with --root, or name one with --runtime"
        );
    }
    let (registries, mirror) = (&wish.registries, &wish.mirror);
    let mut all = Wanted::default();
    for runtime in runtimes {
        let wanted = match runtime {
            Runtime::Containerd => {
                let mut found = containerd::found(node.root());
                if found.is_empty() {
                    found.push(containerd::plain());
                }
                let each = found.iter().map(|one| one.want(node, registries, mirror, wish.set_config_path));
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
    if plan.changes.is_empty() {
        say("nothing to change");
    }
}

/// Prints a line of the answer. Whoever reads it may leave early, as `head` does.
pub(crate) fn say(line: impl std::fmt::Display) {
    let _reader_left = writeln!(std::io::stdout(), "{line}");
}

#[cfg(test)]
mod tests;
