//! Programs run on a node: long-lived ones with a log file, killed on drop, and commands that are waited for. Started by the
//! modules above [`crate::lab`]; knows nothing of what it runs.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait::{wait_for, wait_until};

/// How many bytes of a log a failure shows.
const LOG_TAIL_BYTES: usize = 3_000;

/// The longest that a killed program may be there.
const GONE_TIMEOUT: Duration = Duration::from_secs(60);

/// A program running in a process group of its own; the whole group is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program not be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let out =
            File::options().create(true).append(true).open(log).with_context(|| format!("log {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let child = command.spawn().with_context(|| format!("start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The name given at the start.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds its output.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process number, by which [`crate::usage`] finds what it costs.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process number of a program on a node, which is a child of the one that entered the node; `None` before it runs.
    #[must_use]
    pub fn pid_on_node(&self) -> Option<u32> {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id())).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// SIGTERM to a program on a node, and does not wait for its end.
    ///
    /// # Errors
    /// When it is gone.
    pub fn terminate(&self) -> Result<()> {
        let pid = self.pid_on_node().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        Ok(kill_process(pid.context("it has ended")?, Signal::TERM)?)
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Returns an error that shows the end of the log when the program has ended.
    ///
    /// # Errors
    /// See above: fit for the probe of [`crate::wait::wait_for`].
    pub fn check_running(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended early, {status}:\n{}", self.name, tail(&self.log)),
        }
    }

    /// Waits for the program to end by itself; true when it succeeded.
    ///
    /// # Errors
    /// When it still runs after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        let Self { name, child, .. } = self;
        let status = wait_for(&format!("{name} to end"), timeout, || Ok(child.try_wait()?))?;
        Ok(status.success())
    }

    /// Stops the program where it is: the kernel goes on taking its connections, and nobody answers. Or lets it go on.
    ///
    /// # Errors
    /// When it is gone.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process has a number")?;
        Ok(kill_process_group(group, if frozen { Signal::STOP } else { Signal::CONT })?)
    }

    /// `kill -9` of the program and everything in its process group, and waits until it is gone.
    ///
    /// # Errors
    /// When the program cannot be waited for.
    pub fn kill_dash_9(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            let on_node = self.pid_on_node();
            if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                let _gone_already = kill_process_group(group, Signal::KILL);
            }
            self.child.wait()?;
            // Nobody waits for this one, and until the disk lets go of it, it has its ports.
            let gone = |pid| wait_until(&format!("{} to be gone", self.name), GONE_TIMEOUT, || Ok(is_gone(pid)));
            on_node.map_or(Ok(()), gone)?;
        }
        Ok(())
    }
}

/// Whether a process has let go of all it had: it is not there, or nothing but its first thread is, which has ended.
fn is_gone(pid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let of = |key| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim).unwrap_or_default();
    of("State:").starts_with('Z') && matches!(of("Threads:"), "0" | "1")
}

impl Drop for Process {
    fn drop(&mut self) {
        let _nothing_left_to_do = self.kill_dash_9();
    }
}

/// The last lines of a log, for a failure's text.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let from = text.len().saturating_sub(LOG_TAIL_BYTES);
    String::from_utf8_lossy(&text[from..]).into_owned()
}

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails; the text holds the command and its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let result = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    let stdout = String::from_utf8_lossy(&result.stdout).into_owned();
    if !result.status.success() {
        let stderr = String::from_utf8_lossy(&result.stderr);
        bail!("{}: {command:?}\n{}{}", result.status, last(&stdout), last(&stderr));
    }
    Ok(stdout)
}

/// Runs a program of the machine itself, outside every node.
///
/// # Errors
/// As [`output`].
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
    output(Command::new(program).args(args))
}

fn last(text: &str) -> String {
    let characters = text.chars().count();
    text.chars().skip(characters.saturating_sub(LOG_TAIL_BYTES)).collect()
}
