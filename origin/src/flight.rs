//! One running job per key: whoever asks for the same meanwhile waits for its result. Called by everything of the origin
//! that goes upstream. Knows nothing of what the jobs do.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::lock;

/// Jobs that run, by key. Bounded by those who ask: an asker that leaves lets its job end by itself.
pub(crate) struct Flights<K, V> {
    running: Running<K, V>,
}

type Running<K, V> = Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>;

/// Whether the asker's own job ran, on its own behalf, or that of somebody before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// The asker's job ran.
    Started,
    /// Another asker's job ran.
    Joined,
}

/// Says that a job was lost, by a panic or because the program ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost;

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self { running: Arc::default() }
    }

    /// Gives the result of the running job of this key, or else starts `job` and gives its result. The job ends even if
    /// every asker leaves.
    pub(crate) async fn run<J>(&self, key: K, job: J) -> Result<(V, Turn), Lost>
    where
        J: Future<Output = V> + Send + 'static,
    {
        let (mut result, turn) = self.join(key, job);
        let value = result.wait_for(Option::is_some).await.map_err(|_| Lost)?.clone();
        Ok((value.ok_or(Lost)?, turn))
    }

    fn join<J>(&self, key: K, job: J) -> (watch::Receiver<Option<V>>, Turn)
    where
        J: Future<Output = V> + Send + 'static,
    {
        let mut running = lock(&self.running);
        if let Some(result) = running.get(&key) {
            return (result.clone(), Turn::Joined);
        }
        let (sender, result) = watch::channel(None);
        running.insert(key.clone(), result.clone());
        let landing = Landing { running: Arc::clone(&self.running), key };
        tokio::spawn(async move {
            let value = job.await;
            // Before the result is out: whoever asks after it is known starts afresh.
            drop(landing);
            let _ = sender.send(Some(value));
        });
        (result, Turn::Started)
    }
}

/// Takes the job off the list, also when it panics.
struct Landing<K: Eq + Hash, V> {
    running: Running<K, V>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_askers_share_one_job() {
        let flights = Flights::new();
        let runs = Arc::new(AtomicU32::new(0));
        let job = || {
            let runs = Arc::clone(&runs);
            async move {
                tokio::task::yield_now().await;
                runs.fetch_add(1, Ordering::Relaxed) + 1
            }
        };
        let asked = (0..8).map(|_| flights.run("key", job()));
        let results = futures_util::future::join_all(asked).await;
        assert!(results.iter().all(|result| matches!(result, Ok((1, _)))));
        assert_eq!(results.iter().filter(|result| matches!(result, Ok((_, Turn::Started)))).count(), 1);
        assert_eq!(flights.run("key", job()).await.unwrap().0, 2, "a later asker starts afresh");
    }

    #[tokio::test]
    async fn a_job_ends_though_its_asker_left() {
        let flights = Flights::new();
        let (done, seen) = tokio::sync::oneshot::channel();
        let asked = flights.run((), async move {
            tokio::task::yield_now().await;
            let _ = done.send(());
        });
        let mut asked = Box::pin(asked);
        assert!(futures_util::poll!(asked.as_mut()).is_pending());
        drop(asked);
        seen.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_reported_and_clears_the_key() {
        let flights = Flights::<(), u8>::new();
        assert!(flights.run((), async { panic!("on purpose") }).await.is_err());
        assert_eq!(flights.run((), async { 7 }).await.unwrap().0, 7);
    }
}
