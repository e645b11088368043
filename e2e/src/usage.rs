//! What a running process has cost so far, from /proc. Read by both benchmarks.

use std::fs;

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
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
