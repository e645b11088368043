//! Waiting for a fact with a deadline. Called wherever a daemon needs time; nothing in this crate sleeps for a guessed time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a fact is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Calls `probe` until it gives a value and returns that.
///
/// # Errors
/// When `timeout` has passed first, naming `what`; or at once when `probe` itself fails (the fact can no longer come true).
pub fn wait_for<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {timeout:?} in vain for: {what}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Calls `probe` until it says true.
///
/// # Errors
/// As [`wait_for`].
pub fn wait_until(what: &str, timeout: Duration, mut probe: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(what, timeout, || Ok(probe()?.then_some(())))
}
