//! How fast bytes have been moving lately, and how long things took.

use std::time::Duration;

use crate::Time;

/// An exponentially weighted rate over about the last [`WINDOW_BYTES`], but no less than [`SHORTEST`] and no more than [`LONGEST`].
/// How much may be under way follows it and grows with it, and each doubling takes about as long as it remembers: on a fast path
/// seconds are longer than the blob. On a slow one less is too few blocks (docs/adr/0004).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rate {
    bytes_per_second: f64,
    /// Bytes since `since`, not yet in the average.
    pending: u64,
    since: Time,
}

const WINDOW_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(5);

impl Rate {
    pub(crate) fn add(&mut self, now: Time, bytes: u64) {
        self.fold(now);
        self.pending += bytes;
    }

    /// Bytes per second, as of `now`.
    pub(crate) fn get(&self, now: Time) -> f64 {
        let mut copy = *self;
        copy.fold(now);
        copy.bytes_per_second
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
    fn fold(&mut self, now: Time) {
        let elapsed = now.since(self.since);
        if elapsed < STEP {
            return;
        }
        let seconds = elapsed.as_secs_f64();
        let window = (WINDOW_BYTES / self.bytes_per_second).clamp(SHORTEST.as_secs_f64(), LONGEST.as_secs_f64());
        let keep = (-seconds / window).exp();
        self.bytes_per_second = self.bytes_per_second * keep + self.pending as f64 / seconds * (1.0 - keep);
        self.pending = 0;
        self.since = now;
    }
}

/// The least time that something took, over the last one to two [`Quickest::WINDOW`]s.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quickest {
    now: Option<Duration>,
    before: Option<Duration>,
    since: Time,
}

impl Quickest {
    const WINDOW: Duration = Duration::from_secs(5);

    pub(crate) fn add(&mut self, now: Time, took: Duration) {
        if now.since(self.since) >= Self::WINDOW {
            *self = Self { now: None, before: self.now, since: now };
        }
        self.now = Some(self.now.map_or(took, |least| least.min(took)));
    }

    /// `None` before the first.
    pub(crate) fn get(&self) -> Option<Duration> {
        self.now.into_iter().chain(self.before).min()
    }
}

/// How long something usually takes: smoothed as TCP does its round trips (RFC 6298, section 2).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usual(Option<Duration>);

impl Usual {
    pub(crate) fn add(&mut self, took: Duration) {
        self.0 = Some(self.0.map_or(took, |usual| usual * 7 / 8 + took / 8));
    }

    /// `None` before the first.
    pub(crate) fn get(&self) -> Option<Duration> {
        self.0
    }
}

/// How many times what the measured rate moves may be under way: twice, so that the rate can grow (BBR's start-up, Cardwell
/// et al. 2016).
const GROWTH: f64 = 2.0;

/// The bytes that may be under way at a rate in bytes per second on a path that takes a time; none before it is measured.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is an estimate")]
pub(crate) fn under_way(rate: f64, time: Option<Duration>) -> u64 {
    (rate * GROWTH * time.unwrap_or_default().as_secs_f64()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_is_forgotten_after_two_windows() {
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let ms = Duration::from_millis;
        let mut quickest = Quickest::default();
        assert_eq!(quickest.get(), None);
        quickest.add(at(1), ms(5));
        quickest.add(at(2), ms(9));
        assert_eq!(quickest.get(), Some(ms(5)));
        quickest.add(at(6), ms(9));
        assert_eq!(quickest.get(), Some(ms(5)));
        quickest.add(at(12), ms(9));
        assert_eq!(quickest.get(), Some(ms(9)));
    }

    #[test]
    fn a_fast_flow_is_measured_sooner_than_a_slow_one() {
        let after = |flow: u64, time: Duration| {
            let (mut rate, mut now) = (Rate::default(), Time::ZERO);
            let block = Duration::from_nanos(131_072_000_000_000 / flow);
            while now.since(Time::ZERO) < time {
                now += block;
                rate.add(now, 131_072);
            }
            rate.get(now) / flow as f64
        };
        let soon = Duration::from_millis(150);
        let (fast, slow) = (after(1_250_000_000, soon), after(6_250_000, soon));
        assert!(fast > 0.8 && slow < 0.3, "{fast} {slow}");
        let slow = after(6_250_000, Duration::from_secs(10));
        assert!((slow - 1.0).abs() < 0.1, "{slow}");
    }

    #[test]
    fn a_steady_flow_is_measured_and_forgotten() {
        let mut rate = Rate::default();
        let mut now = Time::ZERO;
        for _ in 0..200 {
            now += Duration::from_millis(50);
            rate.add(now, 50_000);
        }
        assert!((rate.get(now) / 1e6 - 1.0).abs() < 0.05, "{}", rate.get(now));
        assert!(rate.get(now + Duration::from_secs(20)) < 10_000.0, "one per cent at most is left");
    }
}
