//! When to try again: pauses that double, with jitter, and upstream's own `Retry-After` within reason.

use std::future::Future;
use std::time::Duration;

use super::{Timing, UpstreamError};

/// Counts failures in a row and says how long to pause after each.
#[derive(Debug)]
pub(super) struct Backoff {
    timing: Timing,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(timing: Timing) -> Self {
        Self { timing, failures: 0 }
    }

    /// Something moved: the next failure is the first again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause before the next attempt; `None` when the error is final: not retryable, the attempts used up, or
    /// upstream wants to be left alone for longer than we wait.
    pub(super) fn pause_after(&mut self, error: &UpstreamError) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        if !error.is_retryable() || self.failures >= self.timing.attempts {
            return None;
        }
        let most =
            self.timing.backoff_first.saturating_mul(1 << (self.failures - 1).min(16)).min(self.timing.backoff_max);
        let jittered = most.mul_f64(rand::random_range(0.5..1.0));
        match error.retry_after() {
            None => Some(jittered),
            Some(wait) if wait <= self.timing.backoff_max => Some(wait.max(jittered)),
            Some(_) => None,
        }
    }
}

/// Makes a request until it succeeds or its error is final.
pub(super) async fn retry<T, F>(timing: Timing, attempt: impl Fn() -> F) -> Result<T, UpstreamError>
where
    F: Future<Output = Result<T, UpstreamError>>,
{
    let mut backoff = Backoff::new(timing);
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let Some(pause) = backoff.pause_after(&error) else { return Err(error) };
        tracing::debug!(%error, pause_ms = pause.as_millis(), "retrying upstream");
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing() -> Timing {
        Timing {
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_millis(250),
            attempts: 5,
            ..Timing::default()
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_then_end() {
        let mut backoff = Backoff::new(timing());
        let error = UpstreamError::Server { status: 500, retry_after: None };
        for most in [100, 200, 250, 250] {
            let pause = backoff.pause_after(&error).unwrap();
            assert!((most / 2..=most).contains(&u64::try_from(pause.as_millis()).unwrap()), "{pause:?} of {most}");
        }
        assert_eq!(backoff.pause_after(&error), None);
        backoff.reset();
        assert!(backoff.pause_after(&error).is_some());
    }

    #[test]
    fn retry_after_is_waited_for_unless_it_is_long() {
        let mut backoff = Backoff::new(timing());
        let limited = |millis| UpstreamError::RateLimited { retry_after: Some(Duration::from_millis(millis)) };
        assert_eq!(backoff.pause_after(&limited(240)), Some(Duration::from_millis(240)));
        assert_eq!(backoff.pause_after(&limited(251)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_error_is_not_repeated() {
        let asked = std::cell::Cell::new(0);
        let outcome: Result<(), _> = retry(timing(), || {
            asked.set(asked.get() + 1);
            async { Err(UpstreamError::Denied { message: String::new() }) }
        })
        .await;
        assert!(matches!(outcome, Err(UpstreamError::Denied { .. })));
        assert_eq!(asked.get(), 1);
    }
}
