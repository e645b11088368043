//! Caps on the bytes per second a node sends and receives, over all its connections together.
//!
//! Used by readers and writers, one slice at a time. Whoever asks first goes first, and one slice each: fair between
//! connections. It must not know what the bytes are.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A slice takes about this long, so that small rates flow smoothly and large ones cost few waits.
const SLICE_TIME: Duration = Duration::from_millis(5);
const SLICE_BYTES_MIN: u64 = 2 * 1024;
const SLICE_BYTES_MAX: u64 = 256 * 1024;
/// How far behind its rate the flow may catch up: a busy machine wakes us late.
const CATCH_UP: Duration = Duration::from_millis(50);
/// Time that socket buffers may hold of a capped flow.
const BUFFER_TIME: Duration = Duration::from_millis(50);
const BUFFER_BYTES_MIN: u64 = 32 * 1024;
const BUFFER_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A cap on a rate, or none.
#[derive(Debug)]
pub(crate) struct RateCap(Option<Bucket>);

#[derive(Debug)]
struct Bucket {
    bytes_per_second: u64,
    /// When the next byte may go.
    next: Mutex<Instant>,
}

impl RateCap {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        let bucket = |rate: u64| Bucket { bytes_per_second: rate.max(1), next: Mutex::new(Instant::now()) };
        Self(bytes_per_second.map(bucket))
    }

    /// The most bytes to take at a time.
    pub(crate) fn slice(&self) -> usize {
        self.0.as_ref().map_or(usize::MAX, |bucket| bucket.bytes_in(SLICE_TIME, SLICE_BYTES_MIN, SLICE_BYTES_MAX))
    }

    /// What a socket's buffer should be bounded to, so that the kernel does not run ahead of the cap.
    pub(crate) fn socket_buffer(&self) -> Option<usize> {
        self.0.as_ref().map(|bucket| bucket.bytes_in(BUFFER_TIME, BUFFER_BYTES_MIN, BUFFER_BYTES_MAX))
    }

    /// Waits until so many bytes may go.
    pub(crate) async fn take(&self, bytes: usize) {
        if let Some(bucket) = &self.0 {
            let at = bucket.reserve(bytes);
            if at > Instant::now() {
                sleep_until(at).await;
            }
        }
    }

    /// Counts bytes that do not wait (control frames): those that do, wait for them too.
    pub(crate) fn charge(&self, bytes: usize) {
        if let Some(bucket) = &self.0 {
            bucket.reserve(bytes);
        }
    }
}

impl Bucket {
    fn reserve(&self, bytes: usize) -> Instant {
        let now = Instant::now();
        let mut next = self.next.lock().expect("nothing panics while it holds this lock");
        let at = (*next).max(now.checked_sub(CATCH_UP).unwrap_or(now));
        *next = at + Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / self.bytes_per_second);
        at
    }

    #[expect(clippy::cast_possible_truncation, reason = "clamped to a few megabytes")]
    fn bytes_in(&self, time: Duration, min: u64, max: u64) -> usize {
        let bytes = u128::from(self.bytes_per_second) * time.as_micros() / 1_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX).clamp(min, max) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_capped_flow_keeps_its_rate() {
        let cap = RateCap::new(Some(1_000_000));
        let start = Instant::now();
        let mut left = 2_000_000;
        while left > 0 {
            let slice = cap.slice().min(left);
            cap.take(slice).await;
            left -= slice;
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((1.9..2.05).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn caps_from_slow_to_fast_are_held_within_a_twentieth() {
        for rate in [100_000, 6_250_000, 125_000_000, 3_125_000_000] {
            let cap = RateCap::new(Some(rate));
            let start = Instant::now();
            let flow = async || {
                let mut sent = 0;
                while start.elapsed() < Duration::from_secs(4) {
                    cap.take(cap.slice()).await;
                    sent += cap.slice() as u64;
                }
                sent
            };
            let (a, b, c) = tokio::join!(flow(), flow(), flow());
            let share = (a + b + c) as f64 / rate as f64 / start.elapsed().as_secs_f64();
            assert!((0.95..1.05).contains(&share), "{share} of {rate} bytes per second");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_connections_share_a_cap_evenly() {
        let cap = std::sync::Arc::new(RateCap::new(Some(1_000_000)));
        let flow = |cap: std::sync::Arc<RateCap>| async move {
            let start = Instant::now();
            for _ in 0..100 {
                cap.take(5_000).await;
            }
            start.elapsed().as_secs_f64()
        };
        let (a, b) = tokio::join!(flow(cap.clone()), flow(cap));
        assert!((a - b).abs() < 0.02 && (0.95..1.05).contains(&a), "{a} {b}");
    }

    #[tokio::test(start_paused = true)]
    async fn control_bytes_do_not_wait_but_count() {
        let cap = RateCap::new(Some(1_000));
        let start = Instant::now();
        cap.charge(1_000);
        assert_eq!(start.elapsed(), Duration::ZERO);
        cap.take(1).await;
        assert!(start.elapsed() > Duration::from_millis(900));
    }

    #[tokio::test]
    async fn no_cap_means_whole_blocks_and_the_kernels_own_buffers() {
        let cap = RateCap::new(None);
        cap.take(usize::MAX).await;
        assert_eq!((cap.slice(), cap.socket_buffer()), (usize::MAX, None));
    }
}
