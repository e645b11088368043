//! Preheating: asks the trackers what this node shall hold before anybody pulls it, fetches that, and says how far it is.
//!
//! One of the trackers leads and gives tasks; it is not known which, so all are asked. Blobs come from the swarm alone, as in a
//! prefetch, and pulls go first: a task is no reason to go upstream. Nothing is kept: after a restart the tasks are given again,
//! and what is in the store is there. It knows no images, only blobs and how to show origins that they may be read.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use shoal_meta::Digest;
use shoal_proto::preheat::v1 as proto;
use shoal_proto::preheat::v1::preheat_client::PreheatClient;
use shoal_registry::{Access, Repository, Secret};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::blobs::Blobs;

/// Blobs fetched at a time, over all tasks.
const BLOBS_AT_A_TIME: usize = 4;
/// Most tasks kept at a time; further ones are not begun.
const TASKS_MAX: usize = 64;
/// Most blobs of one task; further ones fail it.
const BLOBS_MAX: usize = 100 * 512;
/// How often trackers are asked unless they say otherwise, and what they may say.
const INTERVAL: Duration = Duration::from_secs(15);
/// How often it is looked whether trackers are known by now.
const INTERVAL_UNKNOWN: Duration = Duration::from_secs(1);
const INTERVAL_MIN: Duration = Duration::from_millis(500);
const INTERVAL_MAX: Duration = Duration::from_secs(300);
/// How long a tracker may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The tasks of one node, by their ids.
struct Preheat {
    node: String,
    blobs: Arc<Blobs>,
    tasks: BTreeMap<String, Task>,
    turns: Arc<Semaphore>,
    /// A task has ended.
    ended: Arc<Notify>,
}

struct Task {
    revision: u64,
    blobs: Arc<[Blob]>,
    /// How it ended, once it has.
    outcome: Arc<OnceLock<Result<(), String>>>,
    _work: AbortOnDropHandle<()>,
}

struct Blob {
    access: Access,
    digest: Digest,
}

/// Sees to the tasks of this node until shutdown.
pub(crate) async fn run(node: String, blobs: Arc<Blobs>, shutdown: CancellationToken) {
    let (turns, ended) = (Arc::new(Semaphore::new(BLOBS_AT_A_TIME)), Arc::new(Notify::new()));
    // Of each node its own, so that those that begin together do not stay together.
    let haste =
        0.9 + 0.1 * f64::from(Digest::sha256_of(node.as_bytes()).as_bytes().first().copied().unwrap_or(0)) / 255.0;
    let mut preheat = Preheat { node, blobs, tasks: BTreeMap::new(), turns, ended: ended.clone() };
    let work = async {
        loop {
            let interval = preheat.report().await.mul_f64(haste);
            let _ = timeout(interval, ended.notified()).await;
        }
    };
    shutdown.run_until_cancelled(work).await;
}

impl Preheat {
    /// Tells every tracker how far the tasks are and takes what it gives; says when to report next.
    async fn report(&mut self) -> Duration {
        let tasks = self.tasks.iter().map(|(id, task)| task.progress(id, &self.blobs)).collect();
        let request = proto::ReportRequest { node: self.node.clone(), tasks };
        let channels = self.blobs.node.tracker_channels();
        if channels.is_empty() {
            return INTERVAL_UNKNOWN;
        }
        let calls = channels.into_iter().map(|channel| {
            let request = request.clone();
            async move { timeout(CALL_TIMEOUT, PreheatClient::new(channel).report(request)).await }
        });
        let mut interval = INTERVAL;
        let mut gone = Vec::new();
        for answer in join_all(calls).await {
            // One that is away, or older than preheating, has nothing to give, and nothing is gone by its word.
            let answer = answer.ok().and_then(Result::ok).map(tonic::Response::into_inner).unwrap_or_default();
            if answer.interval_ms > 0 {
                interval = interval.min(Duration::from_millis(answer.interval_ms.into()));
            }
            gone.push(answer.gone);
            answer.tasks.into_iter().for_each(|task| self.begin(task));
        }
        // Only the one that leads knows a task: one that no tracker knows is gone.
        self.tasks.retain(|id, _| !gone.iter().all(|gone| gone.contains(id)));
        interval.clamp(INTERVAL_MIN, INTERVAL_MAX)
    }

    fn begin(&mut self, given: proto::Task) {
        if self.tasks.len() >= TASKS_MAX && !self.tasks.contains_key(&given.id) {
            tracing::warn!(tasks = TASKS_MAX, "more is to be preheated than is taken at a time");
            return;
        }
        let named = blobs_of(&given.images).map(Arc::<[Blob]>::from);
        let blobs = named.clone().unwrap_or_default();
        let outcome = Arc::new(OnceLock::new());
        let (room, turns) = (self.blobs.clone(), self.turns.clone());
        let (told, ended, id) = (outcome.clone(), self.ended.clone(), given.id.clone());
        tracing::info!(task = id, blobs = blobs.len(), "preheating");
        let work = tokio::spawn(async move {
            let result = match named {
                Ok(blobs) => fetch(room, blobs, turns).await,
                Err(reason) => Err(reason),
            };
            match &result {
                Ok(()) => tracing::info!(task = id, "preheated"),
                Err(reason) => tracing::warn!(task = id, reason, "not preheated"),
            }
            // Nobody else tells.
            let _ = told.set(result);
            ended.notify_one();
        });
        let task = Task { revision: given.revision, blobs, outcome, _work: AbortOnDropHandle::new(work) };
        self.tasks.insert(given.id, task);
    }
}

impl Task {
    fn progress(&self, id: &str, room: &Blobs) -> proto::Progress {
        let (state, message) = match self.outcome.get() {
            None => (proto::State::Fetching, String::new()),
            Some(Ok(())) => (proto::State::Complete, String::new()),
            Some(Err(message)) => (proto::State::Failed, message.clone()),
        };
        let held_bytes = self.blobs.iter().map(|blob| room.held_bytes(&blob.digest)).sum();
        proto::Progress { id: id.to_owned(), revision: self.revision, state: state.into(), held_bytes, message }
    }
}

/// Fetches blobs, a few at a time. All are tried; the first that fails is told of.
async fn fetch(room: Arc<Blobs>, blobs: Arc<[Blob]>, turns: Arc<Semaphore>) -> Result<(), String> {
    let fetched = stream::iter(0..blobs.len()).map(|index| {
        let (room, blobs, turns) = (room.clone(), blobs.clone(), turns.clone());
        async move {
            let Blob { access, digest } = &blobs[index];
            let Ok(_turn) = turns.acquire().await else { return Ok(()) };
            let done = room.preheat(access, digest).await;
            done.map_err(|reason| format!("{digest}: {reason}"))
        }
    });
    let outcomes: Vec<_> = fetched.buffered(BLOBS_AT_A_TIME).collect().await;
    outcomes.into_iter().collect()
}

/// What a task names.
fn blobs_of(images: &[proto::Image]) -> Result<Vec<Blob>, String> {
    let mut blobs = Vec::new();
    for image in images {
        let repository = Repository::new(&image.registry, &image.repository).map_err(|error| error.to_string())?;
        let authorization = (!image.authorization.is_empty()).then(|| Secret::new(image.authorization.as_str()));
        let access = Access { repository, authorization };
        for blob in &image.blobs {
            let digest = blob.digest.parse().map_err(|error| format!("{:?}: {error}", blob.digest))?;
            blobs.push(Blob { access: access.clone(), digest });
        }
    }
    if blobs.len() > BLOBS_MAX {
        return Err(format!("{} layers are more than the {BLOBS_MAX} taken at a time", blobs.len()));
    }
    Ok(blobs)
}
