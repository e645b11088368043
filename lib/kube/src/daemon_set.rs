//! Whether a `DaemonSet` is ready on every node that it wants.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use tokio::time::{Instant, sleep};

/// How often the API server is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Says why a `DaemonSet` was not seen to be ready.
#[derive(Debug, thiserror::Error)]
pub enum AwaitError {
    /// No way to an API server is configured.
    #[error("cannot reach the Kubernetes API server")]
    Client(#[source] Box<kube::Error>),
    /// It was not ready in time.
    #[error("{name} was ready on {ready} of {wanted} nodes after {after:?}")]
    Timeout {
        /// Its name.
        name: String,
        /// The nodes it was ready on.
        ready: i32,
        /// The nodes it wants.
        wanted: i32,
        /// The time it was given.
        after: Duration,
        /// What the API server said last, if it was no answer.
        #[source]
        source: Option<Box<kube::Error>>,
    },
}

/// Waits until the `DaemonSet` of the pod's own namespace is ready on every node that it wants.
///
/// # Errors
/// As [`AwaitError`] says.
pub async fn await_daemon_set(name: &str, patience: Duration) -> Result<(), AwaitError> {
    let client = Client::try_default().await.map_err(|error| AwaitError::Client(Box::new(error)))?;
    let api = Api::<DaemonSet>::default_namespaced(client);
    let deadline = Instant::now() + patience;
    loop {
        let asked = api.get(name).await;
        let (ready, wanted) = asked.as_ref().ok().and_then(counts).unwrap_or_default();
        if asked.as_ref().is_ok_and(|set| counts(set).is_some()) && ready == wanted {
            return Ok(());
        }
        if Instant::now() + INTERVAL > deadline {
            let source = asked.err().map(Box::new);
            return Err(AwaitError::Timeout { name: name.to_owned(), ready, wanted, after: patience, source });
        }
        sleep(INTERVAL).await;
    }
}

/// The nodes it is ready on and those it wants; `None` until its controller has looked at it.
fn counts(set: &DaemonSet) -> Option<(i32, i32)> {
    let status = set.status.as_ref()?;
    let seen = status.observed_generation >= set.metadata.generation && status.observed_generation.is_some();
    seen.then_some((status.number_ready, status.desired_number_scheduled))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(generation: i64, observed: Option<i64>) -> DaemonSet {
        serde_json::from_value(serde_json::json!({
            "metadata": { "generation": generation },
            "status": {
                "observedGeneration": observed, "currentNumberScheduled": 3, "desiredNumberScheduled": 3, "numberReady": 2,
                "numberMisscheduled": 0,
            },
        }))
        .unwrap()
    }

    #[test]
    fn what_the_controller_has_not_seen_yet_does_not_count() {
        assert_eq!(counts(&set(1, None)), None);
        assert_eq!(counts(&set(2, Some(1))), None);
        assert_eq!(counts(&set(2, Some(2))), Some((2, 3)));
        assert_eq!(counts(&DaemonSet::default()), None);
    }
}
