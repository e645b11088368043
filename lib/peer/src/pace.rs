//! How many unsent bytes the kernel may hold on a connection: what leaves within some milliseconds at the rate it has.
//!
//! Used by a connection's writer. What is unsent holds up control frames, and blocks that another connection could send
//! sooner; but with too little a fast connection runs dry between two wakes of its writer. It knows no socket.

use std::time::Duration;

use shoal_kit::window::Run;
use tokio::time::Instant;

/// Unsent bytes leave in about this time.
const UNSENT_TIME: Duration = Duration::from_millis(4);
/// The fewest unsent bytes allowed, and what a connection begins with. With more, requests and grants wait for as long as ten
/// connections take to send that over a slow link.
pub(crate) const UNSENT_BYTES_MIN: u32 = 64 * 1024;
const UNSENT_BYTES_MAX: u32 = 4 * 1024 * 1024;

/// The pace of one connection.
#[derive(Debug)]
pub(crate) struct Pace {
    unsent_bytes_max: u32,
    /// What was handed over since measuring began. The kernel holds `unsent_bytes_max` of it.
    run: Option<Run>,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { unsent_bytes_max: UNSENT_BYTES_MIN, run: None }
    }

    /// Whether blocks of so many bytes, handed to the kernel, are worth a report: half of what it may hold. It then sends on
    /// while the swarm thinks.
    pub(crate) fn is_worth_a_report(&self, bytes: u64) -> bool {
        bytes >= u64::from(self.unsent_bytes_max / 2)
    }

    /// Counts bytes that were handed to the kernel between two moments. Gives how many it may hold from now on, when that
    /// changes.
    pub(crate) fn sent(&mut self, began: Instant, ended: Instant, bytes: u64) -> Option<u32> {
        let run = Run::go_on(self.run, began, ended, bytes);
        let held = u64::from(self.unsent_bytes_max);
        if run.bytes < 4 * held {
            self.run = Some(run);
            return None;
        }
        let wanted = run.bytes_in(UNSENT_TIME, run.bytes - held, UNSENT_BYTES_MIN..=UNSENT_BYTES_MAX);
        self.run = Some(Run::go_on(None, ended, ended, wanted.into()));
        (std::mem::replace(&mut self.unsent_bytes_max, wanted) != wanted).then_some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 256 * 1024;

    /// Sends blocks at a rate in bytes per second; gives what the kernel may hold in the end.
    fn after(pace: &mut Pace, rate: u64, blocks: u64) -> u32 {
        let mut now = Instant::now();
        for _ in 0..blocks {
            let ended = now + Duration::from_nanos(BLOCK * 1_000_000_000 / rate);
            pace.sent(now, ended, BLOCK);
            now = ended;
        }
        pace.unsent_bytes_max
    }

    #[test]
    fn what_may_be_unsent_follows_the_rate() {
        for (rate, unsent) in [(1_000_000, 64), (6_250_000, 64), (125_000_000, 512), (5_000_000_000, 4096)] {
            let mut pace = Pace::new();
            assert_eq!(after(&mut pace, rate, 100), unsent * 1024, "{rate} bytes per second");
            assert_eq!(after(&mut pace, 1_000_000, 100), UNSENT_BYTES_MIN, "it slows down again");
        }
    }

    #[test]
    fn a_pause_is_not_taken_for_slowness() {
        let mut pace = Pace::new();
        after(&mut pace, 5_000_000_000, 100);
        let mut now = Instant::now();
        for _ in 0..100 {
            let ended = now + Duration::from_micros(50);
            assert_eq!(pace.sent(now, ended, BLOCK), None);
            now = ended + Duration::from_secs(1);
        }
    }
}
