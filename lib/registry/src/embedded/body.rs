//! The bodies of the embedded registry: paced by a limit shared over all connections, counted, and broken when asked.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use shoal_meta::Digest;
use tokio::time::Instant;

use super::{Fault, Shared};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The most bytes handed to a connection at once.
const STEP_MAX: u64 = 64 * 1024;
/// The fewest, so that a slow registry still sends a byte now and then.
const STEP_MIN: u64 = 256;

/// An uplink: bytes leave in the order they were asked for, at a rate.
#[derive(Debug)]
pub(super) struct Limiter {
    rate: u64,
    /// When the uplink is free again.
    free: Mutex<Instant>,
}

impl Limiter {
    pub(super) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), free: Mutex::new(Instant::now()) }
    }

    /// Waits until these bytes have left.
    async fn send(&self, length: u64) {
        let sent = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            *free = (*free).max(Instant::now()) + self.time_of(length);
            *free
        };
        tokio::time::sleep_until(sent).await;
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate and a step need no more digits")]
    fn time_of(&self, length: u64) -> Duration {
        Duration::from_secs_f64(length as f64 / self.rate as f64)
    }

    /// About 20 ms of the uplink, so that several connections share it evenly.
    fn step(&self) -> u64 {
        (self.rate / 50).clamp(STEP_MIN, STEP_MAX)
    }
}

/// A body to be sent: where it ends, and how.
struct Sending {
    shared: Arc<Shared>,
    content: Bytes,
    /// Whose bytes are counted.
    blob: Option<Digest>,
    corrupt: bool,
    ending: Ending,
}

#[derive(Clone, Copy)]
enum Ending {
    Clean,
    Cut,
    Stall,
}

/// Makes a body of `content`, with a fault of it if there is one.
pub(super) fn body(shared: &Arc<Shared>, mut content: Bytes, blob: Option<Digest>, fault: Option<&Fault>) -> Body {
    let mut cut_at = |after: u64, ending| {
        content.truncate(usize::try_from(after).unwrap_or(usize::MAX));
        ending
    };
    let ending = match fault {
        Some(Fault::Cut { after }) => cut_at(*after, Ending::Cut),
        Some(Fault::Stall { after }) => cut_at(*after, Ending::Stall),
        Some(Fault::EndEarly { after }) => cut_at(*after, Ending::Clean),
        Some(Fault::DeclareMore { .. }) => Ending::Cut,
        Some(
            Fault::Status { .. }
            | Fault::Corrupt
            | Fault::Silence
            | Fault::WithoutHeader { .. }
            | Fault::WithHeader { .. },
        )
        | None => Ending::Clean,
    };
    let corrupt = matches!(fault, Some(Fault::Corrupt));
    let sending = Sending { shared: Arc::clone(shared), content, blob, corrupt, ending };
    let stream = stream::try_unfold(sending, |mut sending| async move {
        Ok(sending.next().await?.map(|bytes| (Frame::data(bytes), sending)))
    });
    StreamBody::new(stream).boxed_unsync()
}

impl Sending {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.content.is_empty() {
            return self.end().await;
        }
        let limiter = self.shared.limiter.as_ref();
        let step = limiter.map_or(STEP_MAX, Limiter::step).min(self.content.len() as u64);
        if let Some(limiter) = limiter {
            limiter.send(step).await;
        }
        if let Some(digest) = self.blob {
            self.shared.state().counters.blobs.entry(digest).or_default().bytes += step;
        }
        let bytes = self.content.split_to(usize::try_from(step).expect("it is at most the content's length"));
        Ok(Some(if self.corrupt { bytes.iter().map(|byte| !byte).collect() } else { bytes }))
    }

    async fn end(&mut self) -> io::Result<Option<Bytes>> {
        match self.ending {
            Ending::Clean => Ok(None),
            Ending::Cut => {
                // Lets hyper flush what it holds, so that the cut is where it was asked for.
                tokio::task::yield_now().await;
                Err(io::Error::other("cut as asked"))
            }
            Ending::Stall => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_connections_share_one_uplink() {
        let limiter = Limiter::new(1000);
        let start = Instant::now();
        let both = async {
            for _ in 0..10 {
                limiter.send(100).await;
            }
        };
        tokio::join!(both, async {
            for _ in 0..10 {
                limiter.send(100).await;
            }
        });
        let took = start.elapsed().as_millis();
        assert!((2000..2050).contains(&took), "{took} ms");
    }
}
