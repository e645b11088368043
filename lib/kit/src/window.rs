//! How many bytes the kernel may take ahead on a connection that receives: what arrives within some milliseconds at its rate.
//!
//! Used by readers of connections to peers, and to registries nearby; a [`Run`] also by writers to peers. A node receives from a
//! dozen peers at once, and sends to as many. On a slow link the windows that the kernel gives them fill every queue on the way
//! until it drops, so that links are full and idle by turns, and what is small waits behind what is large. It knows no socket.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::Instant;

/// A connection may have under way what arrives in this time: longer than any round trip within a zone, so that a window
/// that is too small grows.
const AHEAD_TIME: Duration = Duration::from_millis(25);
/// The least that may be under way. Twelve such windows fill 120 ms of a 50 Mbit/s link.
pub const AHEAD_BYTES_MIN: u32 = 64 * 1024;
const AHEAD_BYTES_MAX: u32 = 2 * 1024 * 1024;
/// The rate is measured over this many bytes.
const MEASURED_BYTES: u64 = 256 * 1024;

/// A connection on which nothing moved for this long is measured anew.
pub const PAUSE: Duration = Duration::from_millis(20);

/// Blocks that moved one after the other, without a pause.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    began: Instant,
    ended: Instant,
    /// How many bytes moved.
    pub bytes: u64,
}

/// The window of one connection.
#[derive(Debug)]
pub struct Window {
    slow_bytes: u32,
    /// `None`: the kernel decides, until the connection is found to be slow.
    ahead_bytes: Option<u32>,
    /// What was received since measuring began.
    run: Option<Run>,
}

impl Window {
    /// Of a connection that counts as slow when no more than so many bytes arrive on it in 25 ms, [`AHEAD_BYTES_MIN`] or more.
    #[must_use]
    pub fn new(slow_bytes: u32) -> Self {
        Self { slow_bytes, ahead_bytes: None, run: None }
    }

    /// Counts a block that came in between two moments. Gives what the kernel may take ahead from now on, when that changes.
    pub fn received(&mut self, began: Instant, ended: Instant, bytes: u64) -> Option<u32> {
        let run = Run::go_on(self.run.take(), began, ended, bytes);
        if run.bytes < MEASURED_BYTES {
            self.run = Some(run);
            return None;
        }
        let wanted = run.bytes_in(AHEAD_TIME, run.bytes, AHEAD_BYTES_MIN..=AHEAD_BYTES_MAX);
        if self.ahead_bytes.is_none() && wanted > self.slow_bytes {
            return None;
        }
        (self.ahead_bytes.replace(wanted) != Some(wanted)).then_some(wanted)
    }
}

impl Run {
    /// A block moved between two moments: it belongs to the run before, or begins one after a pause.
    #[must_use]
    pub fn go_on(before: Option<Self>, began: Instant, ended: Instant, bytes: u64) -> Self {
        match before {
            Some(run) if began.duration_since(run.ended) < PAUSE => Self { ended, bytes: run.bytes + bytes, ..run },
            Some(_) | None => Self { began, ended, bytes },
        }
    }

    /// The bytes that move in a time when so many moved during the run: a power of two, as the bounds are.
    #[must_use]
    pub fn bytes_in(&self, time: Duration, moved: u64, bounds: RangeInclusive<u32>) -> u32 {
        let took = self.ended.duration_since(self.began).as_nanos().max(1);
        let bytes = u128::from(moved) * time.as_nanos() / took;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(*bounds.start(), *bounds.end());
        (bytes / 4 * 3).next_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 256 * 1024;

    /// Receives blocks at a rate in bytes per second; gives what changed.
    fn receive(window: &mut Window, rate: u64, blocks: u64) -> Vec<u32> {
        let mut now = Instant::now();
        let mut block = || {
            let began = now;
            now += Duration::from_nanos(BLOCK * 1_000_000_000 / rate);
            window.received(began, now, BLOCK)
        };
        (0..blocks).filter_map(|_| block()).collect()
    }

    #[test]
    fn a_fast_connection_is_the_kernels_affair() {
        for rate in [6_250_000, 125_000_000, 3_000_000_000] {
            assert_eq!(receive(&mut Window::new(AHEAD_BYTES_MIN), rate, 100), [0; 0], "{rate} bytes per second");
        }
    }

    #[test]
    fn a_slow_connection_gets_a_small_window_that_grows_with_its_rate() {
        let mut window = Window::new(AHEAD_BYTES_MIN);
        assert_eq!(receive(&mut window, 500_000, 10), [AHEAD_BYTES_MIN]);
        assert_eq!(receive(&mut window, 2_500_000, 10), [0; 0]);
        assert_eq!(receive(&mut window, 10_000_000, 10), [4 * AHEAD_BYTES_MIN]);
        assert_eq!(receive(&mut window, 3_000_000_000, 10), [AHEAD_BYTES_MAX]);
        assert_eq!(receive(&mut window, 500_000, 10), [AHEAD_BYTES_MIN]);
    }

    #[test]
    fn how_fast_is_slow_is_the_callers_affair() {
        assert_eq!(receive(&mut Window::new(256 * 1024), 6_250_000, 10), [2 * AHEAD_BYTES_MIN]);
        assert_eq!(receive(&mut Window::new(256 * 1024), 125_000_000, 10), [0; 0]);
    }

    #[test]
    fn a_pause_is_not_taken_for_slowness() {
        let mut window = Window::new(AHEAD_BYTES_MIN);
        let mut now = Instant::now();
        for _ in 0..100 {
            let ended = now + Duration::from_millis(1);
            assert_eq!(window.received(now, ended, BLOCK / 2), None);
            now = ended + Duration::from_secs(1);
        }
    }
}
