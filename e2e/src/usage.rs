//! What a running process has cost so far, from /proc. Read by the benchmarks and the soak, and by tests that watch over
//! some.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::process::Process;

/// How often those that are watched are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// For figures in reports.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "reports round far above the precision lost")]
pub fn to_f64(number: u64) -> f64 {
    number as f64
}

/// User and system time of all its threads, dead or alive, in clock ticks; `None` once it is gone.
#[must_use]
pub fn cpu_ticks(pid: u32) -> Option<u64> {
    // The 14th and 15th word of its line, of which the second, in brackets, may hold blanks.
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = line.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(words.next()?.parse::<u64>().ok()? + words.next()?.parse::<u64>().ok()?)
}

/// Its anonymous memory in bytes; `None` once it is gone.
#[must_use]
pub fn anon_bytes(pid: u32) -> Option<u64> {
    Some(status(pid, "RssAnon:")? * 1024)
}

/// Its threads; `None` once it is gone.
#[must_use]
pub fn threads(pid: u32) -> Option<u64> {
    status(pid, "Threads:")
}

/// Its open files, sockets among them; `None` once it is gone.
#[must_use]
pub fn open_files(pid: u32) -> Option<u64> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64)
}

fn status(pid: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

/// The most that a process had at a look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peak {
    /// Anonymous memory in bytes.
    pub anon_bytes: u64,
    /// Open files, sockets among them.
    pub open_files: u64,
}

impl Peak {
    /// What a process has now; nothing once it is gone.
    fn now(pid: u32) -> Self {
        Self { anon_bytes: anon_bytes(pid).unwrap_or(0), open_files: open_files(pid).unwrap_or(0) }
    }

    fn or(self, other: Self) -> Self {
        Self { anon_bytes: self.anon_bytes.max(other.anon_bytes), open_files: self.open_files.max(other.open_files) }
    }
}

/// Looks at processes until it is stopped.
#[derive(Debug)]
pub struct Watch {
    stopping: Arc<AtomicBool>,
    looking: JoinHandle<BTreeMap<String, Peak>>,
}

impl Watch {
    /// Begins to look at programs that run on nodes. One that has ended has nothing.
    #[must_use]
    pub fn start<'a>(processes: impl IntoIterator<Item = &'a Process>) -> Self {
        let pids =
            processes.into_iter().filter_map(|process| Some((process.name().to_owned(), process.pid_on_node()?)));
        let pids = pids.collect::<Vec<_>>();
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let looking = std::thread::spawn(move || {
            let mut peaks = BTreeMap::<String, Peak>::new();
            while !stop.load(Relaxed) {
                for (name, pid) in &pids {
                    let peak = peaks.entry(name.clone()).or_default();
                    *peak = peak.or(Peak::now(*pid));
                }
                std::thread::sleep(LOOK_EVERY);
            }
            peaks
        });
        Self { stopping, looking }
    }

    /// Ends it, and gives the most that each had, by its name.
    #[must_use]
    pub fn stop(self) -> BTreeMap<String, Peak> {
        self.stopping.store(true, Relaxed);
        self.looking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
