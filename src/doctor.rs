//! `shoal doctor`: says of a node what works, what does not, and the command that mends it.
//!
//! [`runtimes`] looks at the files and daemons of the runtimes, [`agent`] asks the agent over HTTP. Nothing is changed.

mod agent;
mod runtimes;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args as ClapArgs;
use serde::Serialize;

use crate::node::mirror::Mirror;
use crate::node::root::Root;
use crate::node::say;

/// Flags of `shoal doctor`.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// The node's root directory, such as /host in a container.
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// Where runtimes reach the agent.
    #[arg(long, default_value = "http://127.0.0.1:5050", value_name = "URL")]
    mirror: Mirror,
    /// Where the agent serves health and status.
    #[arg(long, default_value = "http://127.0.0.1:5052", value_name = "URL")]
    admin: Mirror,
    /// Print a JSON list.
    #[arg(long)]
    json: bool,
}

/// What was looked at, and what was found.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    status: Status,
    why: String,
    /// The command that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// It works, but not as it could.
    Warn,
    /// It does not work.
    Fail,
}

impl Check {
    fn ok(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Ok, why: why.into(), mend: None }
    }

    fn warn(name: impl Into<String>, why: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { status: Status::Warn, mend: Some(mend.into()), ..Self::ok(name, why) }
    }

    fn fail(name: impl Into<String>, why: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::warn(name, why, mend) }
    }
}

/// Runs `shoal doctor`; fails when any check failed.
///
/// # Errors
/// When the node cannot be looked at.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = Root::new(&args.root)?;
    let checks = crate::block_on(async {
        let mut checks = runtimes::check(&root, &args.mirror).await;
        checks.extend(agent::check(&root, &args.mirror, &args.admin).await);
        checks
    })?;
    if args.json {
        say(serde_json::to_string_pretty(&checks)?);
    } else {
        checks.iter().for_each(show);
    }
    let failed = checks.iter().any(|check| check.status == Status::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn show(check: &Check) {
    let status = match check.status {
        Status::Ok => "ok  ",
        Status::Warn => "warn",
        Status::Fail => "fail",
    };
    say(format!("{status}  {}: {}", check.name, check.why));
    if let Some(mend) = &check.mend {
        say(format!("      mend: {}", mend.replace('\n', "\n            ")));
    }
}
