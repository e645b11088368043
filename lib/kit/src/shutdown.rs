//! Ending well: a signal becomes a cancelled token, and what must finish after it has a limited time.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Says that work did not end within the drain limit after shutdown began; it was dropped where it stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("shutdown took longer than {}", crate::HumanDuration(*limit))]
pub struct DrainExpired {
    /// The limit that was passed.
    pub limit: Duration,
}

/// A token that the first SIGTERM or SIGINT cancels. A second signal ends the process at once.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let first = next().await;
        tracing::info!(signal = first, "shutting down");
        token.cancel();
        let second = next().await;
        tracing::warn!(signal = second, "ending at once");
        std::process::exit(130);
    });
    Ok(shutdown)
}

/// Waits for work to end by itself; once `shutdown` is cancelled it has `limit` left.
///
/// # Errors
/// When the limit passes first; the work is dropped then.
pub async fn drained<T>(
    shutdown: &CancellationToken,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, DrainExpired> {
    let expiry = async {
        shutdown.cancelled().await;
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        biased;
        output = work => Ok(output),
        () = expiry => Err(DrainExpired { limit }),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn work_is_not_hurried_before_shutdown() {
        let work = tokio::time::sleep(Duration::from_secs(3600));
        assert_eq!(drained(&CancellationToken::new(), LIMIT, work).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_outlives_the_limit_is_dropped() {
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let began = tokio::time::Instant::now();
        assert_eq!(drained(&shutdown, LIMIT, pending::<()>()).await, Err(DrainExpired { limit: LIMIT }));
        assert_eq!(began.elapsed(), LIMIT);
    }

    #[tokio::test]
    async fn a_signal_cancels_the_token() {
        let shutdown = on_signal().unwrap();
        let sent = std::process::Command::new("kill").args(["-TERM", &std::process::id().to_string()]).status();
        assert!(sent.unwrap().success());
        tokio::time::timeout(LIMIT, shutdown.cancelled()).await.unwrap();
    }
}
