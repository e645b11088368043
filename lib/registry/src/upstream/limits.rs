//! Registries that limit our requests. One that said so is left alone until its time is over, whoever asks meanwhile: a
//! `Retry-After` is heeded once, and not found out anew by each request.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::UpstreamError;

/// How long a registry that limits us without saying for how long is left alone.
const PAUSE_DEFAULT: Duration = Duration::from_secs(30);
/// The longest a registry is left alone before it is asked again.
const PAUSE_MAX: Duration = Duration::from_secs(15 * 60);
/// The most registries remembered.
const REGISTRIES_MAX: usize = 1024;

/// Until when each of these registries is left alone.
#[derive(Debug, Default)]
pub(super) struct Limits(Mutex<BTreeMap<String, Instant>>);

impl Limits {
    /// For how long a registry is still left alone.
    pub(super) fn rests(&self, registry: &str) -> Option<Duration> {
        let left = self.lock().get(registry).map(|until| until.saturating_duration_since(Instant::now()));
        left.filter(|left| !left.is_zero())
    }

    /// Leaves a registry alone if this error says so.
    pub(super) fn heed(&self, registry: &str, error: &UpstreamError) {
        let limits = matches!(error, UpstreamError::RateLimited { .. });
        let Some(pause) = error.retry_after().or(limits.then_some(PAUSE_DEFAULT)) else { return };
        let pause = pause.min(PAUSE_MAX);
        let (now, mut registries) = (Instant::now(), self.lock());
        if registries.len() >= REGISTRIES_MAX {
            registries.retain(|_, until| *until > now);
        }
        if registries.len() < REGISTRIES_MAX {
            tracing::warn!(%registry, ?pause, %error, "leaving a registry alone");
            registries.insert(registry.to_owned(), now + pause);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(seconds: Option<u64>) -> UpstreamError {
        UpstreamError::RateLimited { retry_after: seconds.map(Duration::from_secs) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_rests_for_as_long_as_it_says_and_no_other_does() {
        let limits = Limits::default();
        limits.heed("a", &limited(Some(7)));
        assert_eq!((limits.rests("a"), limits.rests("b")), (Some(Duration::from_secs(7)), None));
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(limits.rests("a"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_is_bounded_and_has_a_default() {
        let limits = Limits::default();
        limits.heed("a", &limited(Some(7 * 60 * 60)));
        limits.heed("b", &limited(None));
        limits.heed("c", &UpstreamError::Server { status: 503, retry_after: Some(Duration::from_secs(3)) });
        limits.heed("d", &UpstreamError::Server { status: 503, retry_after: None });
        let rest = |registry| limits.rests(registry).map(|left| left.as_secs());
        assert_eq!(["a", "b", "c", "d"].map(rest), [Some(900), Some(30), Some(3), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_registries_is_bounded() {
        let limits = Limits::default();
        for number in 0..=REGISTRIES_MAX {
            limits.heed(&number.to_string(), &limited(Some(1)));
        }
        assert_eq!(limits.lock().len(), REGISTRIES_MAX);
        tokio::time::advance(Duration::from_secs(1)).await;
        limits.heed("more", &limited(Some(1)));
        assert_eq!(limits.lock().len(), 1);
    }
}
