//! One of several replicas leads, by a Lease of their namespace (`coordination.k8s.io/v1`), as Kubernetes' own controllers do.
//!
//! Whether a holder still lives is judged by whether it renews, and by our own clock: clocks of machines may differ.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How long a holder that renews no more is believed to lead.
const DURATION: Duration = Duration::from_secs(15);
/// How often the holder renews, and the others look.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long after its last renewal a holder stops leading by itself: before the others can begin.
const RENEWED_WITHIN: Duration = Duration::from_secs(10);

/// A Lease, and one of those who want it.
struct Claim {
    api: Api<Lease>,
    name: String,
    view: View,
}

/// How the Lease looks to one of those who want it.
struct View {
    /// Who we are.
    holder: String,
    /// The version in which another was seen to hold it, and when that was first seen.
    other: Option<(String, Instant)>,
}

/// Does `work` whenever this replica leads, until `shutdown`, and drops it when the lead is lost. Gives the lead away at the end.
pub async fn while_leading<F>(client: Client, name: &str, shutdown: CancellationToken, work: impl Fn() -> F)
where
    F: Future<Output = ()>,
{
    // A pod's host name is its own; what follows tells two processes in one place apart.
    let host = std::env::var("HOSTNAME").unwrap_or_default();
    let holder = format!("{host}_{}", std::process::id());
    let view = View { holder, other: None };
    let mut claim = Claim { api: Api::default_namespaced(client), name: name.to_owned(), view };
    while !shutdown.is_cancelled() {
        if claim.take_or_log().await {
            tracing::info!(lease = name, "leading");
            tokio::select! {
                () = claim.renew() => {}
                () = work() => {}
                () = shutdown.cancelled() => {}
            }
            tracing::info!(lease = name, "no longer leading");
        }
        shutdown.run_until_cancelled(sleep(INTERVAL)).await;
    }
    claim.give_away().await;
}

impl Claim {
    /// Renews the Lease for as long as that succeeds.
    async fn renew(&mut self) {
        let mut renewed = Instant::now();
        loop {
            sleep(INTERVAL).await;
            let left = (renewed + RENEWED_WITHIN).saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.take()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::warn!(lease = self.name, error = &error as &dyn std::error::Error, "cannot renew the lead")
                }
            }
        }
    }

    async fn take_or_log(&mut self) -> bool {
        self.take().await.unwrap_or_else(|error| {
            tracing::warn!(lease = self.name, error = &error as &dyn std::error::Error, "cannot ask who leads");
            false
        })
    }

    /// Takes or renews the Lease; `false` while another holds it, or was faster.
    async fn take(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease { metadata: self.metadata(), spec: Some(self.view.spec(None)) };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        if !self.view.may_take(&lease, Instant::now()) {
            return Ok(false);
        }
        let spec = self.view.spec(lease.spec.as_ref());
        // The version that was read goes with it: whoever writes first wins.
        let lease = Lease { metadata: lease.metadata, spec: Some(spec) };
        won(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    async fn give_away(&mut self) {
        let given = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
            if let Some(spec) = lease.spec.as_mut()
                && spec.holder_identity.as_deref() == Some(&self.view.holder)
            {
                spec.holder_identity = None;
                self.api.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        // The others wait for its end otherwise.
        let _ = tokio::time::timeout(Duration::from_secs(2), given).await;
    }

    fn metadata(&self) -> kube::api::ObjectMeta {
        kube::api::ObjectMeta { name: Some(self.name.clone()), ..kube::api::ObjectMeta::default() }
    }
}

impl View {
    /// Whether it is ours, or nobody's, or of one who has not renewed it for as long as it lasts.
    fn may_take(&mut self, lease: &Lease, now: Instant) -> bool {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == self.holder {
            self.other = None;
            return true;
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        match &self.other {
            Some((seen, since)) if *seen == version => now.duration_since(*since) >= DURATION,
            Some(_) | None => {
                self.other = Some((version, now));
                false
            }
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before.filter(|spec| spec.holder_identity.as_deref() == Some(&self.holder));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: ours.and_then(|spec| spec.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if ours.is_some() { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        }
    }
}

/// Whether a write went through; `false` when another was faster.
fn won(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str, version: &str) -> Lease {
        serde_json::from_value(serde_json::json!({
            "metadata": { "resourceVersion": version }, "spec": { "holderIdentity": holder },
        }))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_lead_is_taken_over_only_from_one_who_has_not_renewed_it_for_as_long_as_it_lasts() {
        let (mut view, start) = (View { holder: "me".into(), other: None }, Instant::now());
        assert!(view.may_take(&held_by("", "1"), start) && view.may_take(&held_by("me", "2"), start));
        assert!(!view.may_take(&held_by("other", "3"), start));
        assert!(!view.may_take(&held_by("other", "3"), start + DURATION - INTERVAL));
        assert!(!view.may_take(&held_by("other", "4"), start + DURATION), "it has renewed");
        assert!(!view.may_take(&held_by("third", "5"), start + 2 * DURATION), "another has taken it");
        assert!(view.may_take(&held_by("third", "5"), start + 3 * DURATION));
    }

    #[test]
    fn a_lead_that_goes_on_keeps_when_it_began() {
        let (me, other) = (View { holder: "me".into(), other: None }, View { holder: "other".into(), other: None });
        let first = me.spec(None);
        let renewed = me.spec(Some(&first));
        assert_eq!((renewed.acquire_time, renewed.lease_transitions), (first.acquire_time.clone(), Some(1)));
        assert_eq!(other.spec(Some(&first)).lease_transitions, Some(2));
    }
}
