//! Sees each `Preheat` through while this tracker leads: when to begin, what its images are, how far the nodes are, and its status.
//!
//! A task of its own sees to each object, one step after the other, and is ended when the spec changes or the object goes. A
//! status is written when it has changed, and at most every few seconds for each object. Errors of the registry and of the API
//! server stand in the status or the log, and the step is tried again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use shoal_kit::HumanDuration;
use shoal_kube::{
    COMPLETE, Change, Client, Condition, Preheat, PreheatSpec, PreheatStatus, Preheats, nodes, now, until,
    while_leading,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Shared;
use super::images::{Found, Images, Ticket};
use super::plan::{Begin, SILENT_MAX, Standings};

/// How often a status is written at most.
const STATUS_INTERVAL: Duration = Duration::from_secs(3);
/// How often it is looked whether a round is over.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often tickets are prolonged; an origin that has started anew learns of them then.
const GRANT_INTERVAL: Duration = Duration::from_secs(60);
/// The first pause before what failed is tried again, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// The rounds under way at a time; each holds some 200 bytes for each node.
const ROUNDS_MAX: usize = 32;
/// The shortest interval that is not a mistake.
const INTERVAL_MIN: Duration = Duration::from_secs(60);
/// Why a preheat is not complete that was given up.
pub(crate) const GIVEN_UP: &str = "DeadlineExceeded";

/// Leads, when its turn has come, until `shutdown`.
pub(crate) async fn run(client: Client, lease: &str, images: Images, plan: Shared, shutdown: CancellationToken) {
    let work = || {
        let (preheats, plan, images) = (Preheats::new(client.clone()), plan.clone(), images.clone());
        Arc::new(Desk { preheats, plan, images, rounds: Semaphore::new(ROUNDS_MAX) }).follow(client.clone())
    };
    while_leading(client.clone(), lease, shutdown, work).await;
}

/// What all objects have in common.
struct Desk {
    preheats: Preheats,
    plan: Shared,
    images: Images,
    rounds: Semaphore,
}

/// The task that sees to one object, and for which generation of its spec.
type Seen = HashMap<String, (Option<i64>, AbortOnDropHandle<()>)>;

impl Desk {
    /// Follows nodes and objects, for ever.
    async fn follow(self: Arc<Self>, client: Client) {
        self.plan.lock().clear();
        let mut nodes = nodes(client);
        // Before any round begins, so that it knows whom it selects.
        if let Some(all) = nodes.next().await {
            self.plan.lock().take_in(all);
        }
        let (mut preheats, mut seen) = (self.preheats.follow(), Seen::new());
        loop {
            tokio::select! {
                Some(change) = nodes.next() => self.plan.lock().take_in(change),
                Some(change) = preheats.next() => self.take_in(change, &mut seen),
                else => return,
            }
        }
    }

    fn take_in(self: &Arc<Self>, change: Change<Preheat>, seen: &mut Seen) {
        match change {
            Change::All(preheats) => {
                let there: Vec<_> = preheats.iter().map(id_of).collect();
                seen.retain(|id, _| there.contains(id));
                preheats.into_iter().for_each(|preheat| self.see_to(preheat, seen));
            }
            Change::Set(preheat) => self.see_to(preheat, seen),
            Change::Gone(preheat) => {
                seen.remove(&id_of(&preheat));
            }
        }
    }

    /// Begins with an object that is new or whose spec has changed; our own writes of its status are neither.
    fn see_to(self: &Arc<Self>, preheat: Preheat, seen: &mut Seen) {
        let (id, generation) = (id_of(&preheat), preheat.metadata.generation);
        if seen.get(&id).is_some_and(|(of, _)| *of == generation) {
            return;
        }
        // Before the new one begins its round.
        seen.remove(&id);
        let desk = Arc::clone(self);
        let task = tokio::spawn(async move { desk.see_through(Case::new(preheat)).await });
        seen.insert(id, (generation, AbortOnDropHandle::new(task)));
    }

    /// Round after round, until there is nothing more to do for this spec.
    async fn see_through(&self, mut case: Case) {
        loop {
            let due = case.due();
            if !due.is_zero() && !case.is_over() {
                case.conclude(false, "Scheduled", "its startTime has not come".to_owned());
                self.write(&case).await;
            }
            sleep(due).await;
            if !case.is_done() {
                let Ok(_permit) = self.rounds.acquire().await else { return };
                let _ended = EndsRound { plan: &self.plan, id: case.id.clone() };
                let allowed = case.preheat.spec.active_deadline_seconds.map(|s| Duration::from_secs(s.into()));
                let gives_up = tokio::select! {
                    () = self.round(&mut case) => false,
                    () = sleep(allowed.unwrap_or_default()), if allowed.is_some() => true,
                };
                if gives_up {
                    case.conclude(false, GIVEN_UP, format!("given up after {:?}", allowed.unwrap_or_default()));
                    self.write(&case).await;
                }
            }
            if case.preheat.spec.interval.is_some() {
                continue;
            }
            let Some(rest) = case.preheat.spec.ttl_seconds_after_finished else { return };
            sleep(Duration::from_secs(rest.into())).await;
            while let Err(error) = self.preheats.delete(&case.preheat).await {
                tracing::warn!(
                    preheat = case.name,
                    error = &error as &dyn std::error::Error,
                    "cannot delete a preheat that is over"
                );
                sleep(BACKOFF.1).await;
            }
            return;
        }
    }

    /// One time through the nodes.
    async fn round(&self, case: &mut Case) {
        case.begin();
        let found = self.found(case).await;
        let Found { tasks, statuses } = found.found;
        case.status.images = statuses;
        let PreheatSpec { node_selector, parallelism, .. } = &case.preheat.spec;
        let parallelism = parallelism.map_or(usize::MAX, |parallelism| parallelism as usize);
        let begin = Begin { selector: node_selector.clone(), parallelism, tasks };
        self.plan.lock().begin(Instant::now().into_std(), &case.id, begin);
        tracing::info!(preheat = case.name, "preheating");
        let (images, interval) = (case.preheat.spec.images.clone(), case.interval());
        tokio::select! {
            () = self.watch(case) => {}
            () = sleep(interval.unwrap_or_default()), if interval.is_some() => {}
            () = self.prolong(images, found.ticket.as_ref()) => {}
        }
    }

    /// Looks up what the images are, until that succeeds. The status says what is in the way.
    async fn found(&self, case: &mut Case) -> Granted {
        let mut pause = BACKOFF.0;
        loop {
            match self.try_to_find(&case.preheat, &case.id).await {
                Ok(found) => return found,
                Err(error) => {
                    tracing::warn!(preheat = case.name, error = %format!("{error:#}"), "cannot begin a preheat");
                    case.conclude(false, "Unavailable", format!("{error:#}"));
                    self.write(case).await;
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn try_to_find(&self, preheat: &Preheat, id: &str) -> anyhow::Result<Granted> {
        if let Some(interval) = &preheat.spec.interval {
            interval_of(interval)?;
        }
        let images = &preheat.spec.images;
        let ticket = Ticket::for_secrets(self.preheats.pull_secrets(preheat).await?);
        if let Some(ticket) = &ticket {
            self.images.grant(images, ticket).await?;
        }
        let platforms = self.plan.lock().platforms(&preheat.spec.node_selector);
        let found = self.images.find(id, images, &platforms, ticket.as_ref()).await?;
        Ok(Granted { found, ticket })
    }

    /// Keeps the ticket good, for ever.
    async fn prolong(&self, images: Vec<String>, ticket: Option<&Ticket>) {
        let Some(ticket) = ticket else { return std::future::pending().await };
        loop {
            sleep(GRANT_INTERVAL).await;
            if let Err(error) = self.images.grant(&images, ticket).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot prolong the leave to read private images"
                );
            }
        }
    }

    /// Writes how far the nodes are, until all are done.
    async fn watch(&self, case: &mut Case) {
        loop {
            let written = Instant::now();
            let Some(standings) = self.plan.lock().standings(Instant::now().into_std(), &case.id) else { return };
            let is_over = standings.is_over;
            if case.take_in(standings) {
                self.write(case).await;
            }
            if is_over {
                tracing::info!(preheat = case.name, nodes = case.status.nodes.complete, "preheated");
                return;
            }
            // The end is told at once.
            let ends = async {
                while !self.plan.lock().is_over(Instant::now().into_std(), &case.id) {
                    sleep(LOOK_INTERVAL).await;
                }
            };
            let _ = timeout(STATUS_INTERVAL.saturating_sub(written.elapsed()), ends).await;
        }
    }

    /// Writes the status; an end is written until the API server takes it.
    async fn write(&self, case: &Case) {
        let mut pause = BACKOFF.0;
        while let Err(error) = self.preheats.set_status(&case.preheat, &case.status).await {
            tracing::warn!(
                preheat = case.name,
                error = &error as &dyn std::error::Error,
                "cannot write a preheat's status"
            );
            if !case.is_over() {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }
}

/// What a round fetches, and the ticket it does so with.
struct Granted {
    found: Found,
    ticket: Option<Ticket>,
}

/// Ends a round, whatever ends the task that sees to it.
struct EndsRound<'a> {
    plan: &'a Shared,
    id: String,
}

impl Drop for EndsRound<'_> {
    fn drop(&mut self) {
        self.plan.lock().end(&self.id);
    }
}

/// One object and its status, as it was written last or will be.
struct Case {
    id: String,
    /// For the log.
    name: String,
    preheat: Preheat,
    status: PreheatStatus,
}

impl Case {
    fn new(preheat: Preheat) -> Self {
        let namespace = preheat.metadata.namespace.as_deref().unwrap_or_default();
        let name = format!("{namespace}/{}", preheat.metadata.name.as_deref().unwrap_or_default());
        Self { id: id_of(&preheat), name, status: preheat.status.clone().unwrap_or_default(), preheat }
    }

    /// Whether this spec was seen through already, and is not to be again.
    fn is_done(&self) -> bool {
        self.preheat.spec.interval.is_none() && self.is_over()
    }

    /// Whether the last round was completed or given up.
    fn is_over(&self) -> bool {
        let given_up = self.status.complete().is_some_and(|condition| condition.reason == GIVEN_UP);
        let is_over = self.status.completion_time.is_some() || given_up;
        is_over && self.status.observed_generation == self.preheat.metadata.generation
    }

    /// How long until the next round begins.
    fn due(&self) -> Duration {
        match (&self.status.start_time, self.interval()) {
            (Some(begun), Some(interval)) if self.is_over() => until(begun, interval),
            _ => self.preheat.spec.start_time.as_ref().map_or(Duration::ZERO, |start| until(start, Duration::ZERO)),
        }
    }

    /// How long after it began it is done again. One that cannot be read is told of when the round begins.
    fn interval(&self) -> Option<Duration> {
        self.preheat.spec.interval.as_deref().and_then(|interval| interval_of(interval).ok())
    }

    fn begin(&mut self) {
        let conditions = std::mem::take(&mut self.status.conditions);
        self.status = PreheatStatus {
            observed_generation: self.preheat.metadata.generation,
            start_time: Some(now()),
            conditions,
            ..PreheatStatus::default()
        };
    }

    /// Takes in how far the nodes are; tells whether the status says something else now.
    fn take_in(&mut self, standings: Standings) -> bool {
        let before = self.status.clone();
        let Standings { counts, held_bytes, wanted_bytes, nodes, is_over } = standings;
        let percent = (u128::from(held_bytes) * 100).checked_div(wanted_bytes.into()).unwrap_or(0);
        self.status.progress = format!("{percent}%");
        self.status.ready = format!("{}/{}", counts.complete, counts.selected);
        self.status.nodes = counts;
        self.status.node_statuses = nodes;
        let (reason, message) = match counts {
            _ if is_over && counts.absent == 0 => ("Complete", format!("{} nodes hold every layer", counts.complete)),
            _ if is_over => {
                let (complete, absent) = (counts.complete, counts.absent);
                (
                    "Complete",
                    format!("{complete} nodes hold every layer; of {absent} nothing was heard for {SILENT_MAX:?}"),
                )
            }
            _ if counts.selected == 0 => ("NoNodes", "no node has the labels of nodeSelector".to_owned()),
            _ if counts.absent == counts.selected => ("NoAgents", "no agent of these nodes has been heard".to_owned()),
            _ if counts.failed > 0 => {
                let failed = self.status.node_statuses.first();
                let message = failed.map(|node| format!("{}: {}", node.name, node.message)).unwrap_or_default();
                ("Failing", format!("{} nodes failed and are tried again, such as {message}", counts.failed))
            }
            _ => ("Fetching", format!("{} nodes fetch, {} wait", counts.fetching, counts.waiting)),
        };
        self.conclude(is_over, reason, message);
        if is_over {
            self.status.completion_time = Some(now());
        }
        self.status != before
    }

    fn conclude(&mut self, holds: bool, reason: &str, message: String) {
        let status = if holds { "True" } else { "False" };
        let since = self.status.complete().filter(|condition| condition.status == status);
        let last_transition_time = since.map_or_else(now, |condition| condition.last_transition_time.clone());
        self.status.conditions = vec![Condition {
            type_: COMPLETE.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time,
        }];
    }
}

fn id_of(preheat: &Preheat) -> String {
    preheat.metadata.uid.clone().unwrap_or_default()
}

fn interval_of(text: &str) -> anyhow::Result<Duration> {
    let interval: HumanDuration = text.parse().map_err(|error| anyhow::anyhow!("interval {text:?}: {error}"))?;
    anyhow::ensure!(interval.get() >= INTERVAL_MIN, "interval {text:?} is shorter than 1m");
    Ok(interval.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_kube::NodeCounts;

    fn case(spec: PreheatSpec) -> Case {
        let mut preheat = Preheat::new("web", spec);
        preheat.metadata.generation = Some(1);
        Case::new(preheat)
    }

    fn standings(complete: u32, absent: u32, failed: u32, is_over: bool) -> Standings {
        let counts =
            NodeCounts { selected: complete + absent + failed, complete, absent, failed, ..NodeCounts::default() };
        Standings { counts, held_bytes: u64::from(complete), wanted_bytes: 3, nodes: Vec::new(), is_over }
    }

    fn said(case: &Case) -> (&str, &str) {
        let condition = case.status.complete().unwrap();
        (&condition.status, &condition.reason)
    }

    #[test]
    fn the_status_says_what_is_missing_until_nothing_is() {
        let mut case = case(PreheatSpec::default());
        case.begin();
        assert!(case.take_in(standings(0, 0, 0, false)));
        assert_eq!(said(&case), ("False", "NoNodes"));
        assert!(case.take_in(standings(0, 3, 0, false)));
        assert_eq!(said(&case), ("False", "NoAgents"));
        assert!(case.take_in(standings(1, 1, 1, false)));
        assert_eq!(said(&case), ("False", "Failing"));
        assert!(!case.take_in(standings(1, 1, 1, false)), "nothing has changed");
        assert_eq!((case.status.ready.as_str(), case.status.progress.as_str()), ("1/3", "33%"));
        assert!(!case.is_done());
        assert!(case.take_in(standings(3, 0, 0, true)));
        assert_eq!(said(&case), ("True", "Complete"));
        assert!(case.is_done() && case.status.completion_time.is_some());
    }

    #[test]
    fn what_was_seen_through_is_so_until_the_spec_changes() {
        let mut case = case(PreheatSpec::default());
        case.begin();
        case.take_in(standings(3, 0, 0, true));
        case.preheat.status = Some(case.status.clone());
        assert!(Case::new(case.preheat.clone()).is_done());
        case.preheat.metadata.generation = Some(2);
        let mut anew = Case::new(case.preheat);
        assert!(!anew.is_done());
        anew.conclude(false, GIVEN_UP, String::new());
        anew.status.observed_generation = Some(2);
        anew.status.completion_time = None;
        assert!(anew.is_done(), "given up");
    }

    #[test]
    fn a_round_begins_when_it_shall_and_again_an_interval_after_it_began() {
        let hour = Duration::from_secs(3600);
        let nearly = |due: Duration, expected: Duration| due <= expected && due + Duration::from_secs(60) > expected;
        assert_eq!(case(PreheatSpec::default()).due(), Duration::ZERO);
        let mut case = case(PreheatSpec { interval: Some("1h".to_owned()), ..PreheatSpec::default() });
        assert_eq!(case.due(), Duration::ZERO);
        case.begin();
        assert_eq!(case.due(), Duration::ZERO, "a tracker that has just taken over goes on at once");
        case.take_in(standings(1, 0, 0, true));
        assert!(!case.is_done() && nearly(case.due(), hour), "{:?}", case.due());
    }

    #[test]
    fn an_interval_that_is_none_is_named() {
        assert_eq!(interval_of("24h").unwrap(), Duration::from_secs(24 * 3600));
        for (text, words) in [("soon", "soon"), ("10s", "shorter than 1m")] {
            let error = interval_of(text).unwrap_err().to_string();
            assert!(error.starts_with("interval ") && error.contains(words), "{error}");
        }
    }
}
