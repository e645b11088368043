//! May this caller have this content? Asked before anything is served, over gRPC or HTTP, whether it is held here or not.
//! By the configuration the operator may vouch for what is held: then upstream is not asked.
//!
//! Upstream decides. Its answer is two facts, each remembered for a while: the caller's credentials are good for the
//! repository, and the content is in the repository. So a thousand nodes with a token each cost one HEAD a token and not
//! one a layer, and good credentials for one repository open nothing that is only in another. While upstream is down or
//! limiting, what it accepted within [`GRACE`] holds. Credentials are kept as SHA-256 only, and never on disk: after a
//! restart it holds for callers without any.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_meta::Digest;
use shoal_registry::{Access, Repository, UpstreamError};
use tokio::time::Instant;

use crate::error::OriginError;
use crate::flight::Flights;
use crate::gate::{Gate, Kind};
use crate::lock;
use crate::metrics::OriginMetrics;
use crate::notes::Notes;
use crate::recent::Recent;

/// How long accepted credentials are good without asking again.
pub(crate) const ACCEPTED_TTL: Duration = Duration::from_secs(60);
/// How long a refusal, or an outage, is answered without asking again.
const REFUSED_TTL: Duration = Duration::from_secs(5);
/// How long content is known to be in a repository.
const PLACED_TTL: Duration = Duration::from_secs(3600);
/// How long what upstream accepted holds while upstream is down.
const GRACE: Duration = Duration::from_secs(3600);
/// How long a caller whom the grace would let pass waits for a silent upstream.
const GRACE_PATIENCE: Duration = Duration::from_secs(2);
/// The most callers, and the most refusals, remembered.
const CALLERS_MAX: usize = 16 * 1024;
/// The most places remembered.
const PLACES_MAX: usize = 64 * 1024;

/// Checks callers.
pub(crate) struct Authorizer {
    gate: Arc<Gate>,
    known: Arc<Mutex<Known>>,
    asking: Flights<(Caller, Digest), Result<(), UpstreamError>>,
    notes: Notes,
    metrics: OriginMetrics,
}

/// Credentials for a repository.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Caller {
    repository: Repository,
    /// The SHA-256 of the `Authorization` header.
    authorization: Option<Digest>,
}

struct Known {
    accepted: Recent<Caller, Instant>,
    placed: Recent<(Repository, Digest), Instant>,
    refused: Recent<(Caller, Digest), (Instant, UpstreamError)>,
}

impl Authorizer {
    pub(crate) fn new(gate: Arc<Gate>, notes: Notes, metrics: OriginMetrics) -> Self {
        let known = Known {
            accepted: Recent::new(CALLERS_MAX),
            placed: Recent::new(PLACES_MAX),
            refused: Recent::new(CALLERS_MAX),
        };
        Self { gate, known: Arc::new(Mutex::new(known)), asking: Flights::new(), notes, metrics }
    }

    /// Whether those whom [`Authorizer::check`] lets pass were let pass by upstream.
    pub(crate) fn asks(&self) -> bool {
        self.gate.private_images().checks_digests()
    }

    /// Lets the caller have content that is held and named by its digest, for the time returned, or says what upstream says.
    pub(crate) async fn check(&self, access: &Access, kind: Kind, digest: &Digest) -> Result<Duration, OriginError> {
        if self.asks() { self.ask_once(access, kind, digest).await } else { Ok(ACCEPTED_TTL) }
    }

    /// Lets the caller know that a tag names this manifest, or says what upstream says.
    pub(crate) async fn check_tag(&self, access: &Access, digest: &Digest) -> Result<(), OriginError> {
        if self.gate.private_images().checks_tags() {
            self.ask_once(access, Kind::Manifest, digest).await?;
        }
        Ok(())
    }

    /// Whether a tag that is known is told to a caller for whom upstream gave this error.
    pub(crate) fn overrules(&self, error: &OriginError) -> bool {
        !self.gate.private_images().checks_tags() && matches!(error, OriginError::Upstream(error) if is_refusal(error))
    }

    /// What upstream says, or said lately.
    async fn ask_once(&self, access: &Access, kind: Kind, digest: &Digest) -> Result<Duration, OriginError> {
        let caller = Caller::of(access);
        let remembered = lock(&self.known).judge(&caller, digest, Instant::now());
        if let Some(verdict) = remembered {
            self.metrics.cache_requests.with_label_values(&["authorize", "hit"]).inc();
            return verdict.map_err(OriginError::from);
        }
        self.metrics.cache_requests.with_label_values(&["authorize", "miss"]).inc();
        let asked = self.ask(access.clone(), kind, *digest, caller.clone());
        if !self.has_grace(&caller, digest).await {
            return asked.await.map(|()| ACCEPTED_TTL);
        }
        match tokio::time::timeout(GRACE_PATIENCE, asked).await {
            Ok(Err(error)) if error.is_outage() => Ok(REFUSED_TTL),
            Ok(answer) => answer.map(|()| ACCEPTED_TTL),
            Err(_silent) => Ok(REFUSED_TTL),
        }
    }

    /// Whether the caller may know what a tag named without asking upstream, which is down or limiting.
    pub(crate) async fn knows_tag_unasked(&self, access: &Access, digest: &Digest) -> bool {
        !self.gate.private_images().checks_tags() || self.has_grace(&Caller::of(access), digest).await
    }

    /// Remembers that upstream has just given this content to this caller.
    pub(crate) async fn note_given(&self, access: &Access, digest: &Digest) {
        remember(&self.known, &self.notes, Caller::of(access), *digest, &Ok(())).await;
    }

    /// Whether the caller may pass while upstream is down: by what is remembered, or was noted before a restart.
    async fn has_grace(&self, caller: &Caller, digest: &Digest) -> bool {
        if lock(&self.known).has_grace(caller, digest, Instant::now()) {
            return true;
        }
        if caller.authorization.is_some() {
            return false;
        }
        let Some((accepted, _)) = self.notes.get(&about(&caller.repository)).await else { return false };
        let Some((placed, _)) = self.notes.get(&about_place(&caller.repository, digest)).await else { return false };
        let mut known = lock(&self.known);
        known.recall(caller, digest, accepted, placed);
        known.has_grace(caller, digest, Instant::now())
    }

    async fn ask(&self, access: Access, kind: Kind, digest: Digest, caller: Caller) -> Result<(), OriginError> {
        let (gate, known, notes) = (Arc::clone(&self.gate), Arc::clone(&self.known), self.notes.clone());
        let key = (caller.clone(), digest);
        let job = async move {
            let answer = gate.authorize(&access, kind, &digest).await;
            remember(&known, &notes, caller, digest, &answer).await;
            answer
        };
        let (answer, _) = self.asking.run(key, job).await.map_err(|_| OriginError::Lost)?;
        answer.map_err(OriginError::from)
    }
}

/// Remembers an answer, and notes it if it is what anybody gets.
async fn remember(
    known: &Mutex<Known>,
    notes: &Notes,
    caller: Caller,
    digest: Digest,
    answer: &Result<(), UpstreamError>,
) {
    let (is_anybody, repository) = (caller.authorization.is_none(), caller.repository.clone());
    lock(known).note(caller, digest, answer, Instant::now());
    match answer {
        Ok(()) if is_anybody => {
            notes.put(&about(&repository), String::new()).await;
            notes.put(&about_place(&repository, &digest), String::new()).await;
        }
        Err(error) if is_anybody && is_refusal(error) => notes.remove(&about(&repository)).await,
        Ok(()) | Err(_) => {}
    }
}

/// The note that a repository is open to anybody.
fn about(repository: &Repository) -> impl std::fmt::Debug {
    ("open", &repository.registry, &repository.name)
}

/// The note that content is in a repository that was open to anybody.
fn about_place(repository: &Repository, digest: &Digest) -> impl std::fmt::Debug {
    ("placed", &repository.registry, &repository.name, *digest)
}

/// Whether credentials were refused, rather than content not found.
fn is_refusal(error: &UpstreamError) -> bool {
    matches!(error, UpstreamError::Unauthorized { .. } | UpstreamError::Denied { .. })
}

impl Caller {
    fn of(access: &Access) -> Self {
        let authorization = access.authorization.as_ref().map(|secret| Digest::sha256_of(secret.expose().as_bytes()));
        Self { repository: access.repository.clone(), authorization }
    }
}

impl Known {
    /// What is remembered and fresh: how long the caller may pass, or why not.
    fn judge(&mut self, caller: &Caller, digest: &Digest, now: Instant) -> Option<Result<Duration, UpstreamError>> {
        if let Some((at, error)) = self.refused.get(&(caller.clone(), *digest))
            && now.duration_since(*at) < REFUSED_TTL
        {
            let error = error.clone();
            let passes = error.is_retryable() && self.has_grace(caller, digest, now);
            return Some(if passes { Ok(REFUSED_TTL) } else { Err(error) });
        }
        let accepted = self.age_of_acceptance(caller, now).filter(|age| *age < ACCEPTED_TTL)?;
        self.age_of_place(caller, digest, now).filter(|age| *age < PLACED_TTL)?;
        Some(Ok(ACCEPTED_TTL - accepted))
    }

    fn has_grace(&mut self, caller: &Caller, digest: &Digest, now: Instant) -> bool {
        let within = |age: Option<Duration>| age.is_some_and(|age| age < GRACE);
        within(self.age_of_acceptance(caller, now)) && within(self.age_of_place(caller, digest, now))
    }

    /// Takes in what was noted before a restart, where nothing is known since.
    fn recall(&mut self, caller: &Caller, digest: &Digest, accepted: Instant, placed: Instant) {
        if self.accepted.get(caller).is_none() {
            self.accepted.put(caller.clone(), accepted);
        }
        let place = (caller.repository.clone(), *digest);
        if self.placed.get(&place).is_none() {
            self.placed.put(place, placed);
        }
    }

    fn age_of_acceptance(&mut self, caller: &Caller, now: Instant) -> Option<Duration> {
        self.accepted.get(caller).map(|at| now.duration_since(*at))
    }

    fn age_of_place(&mut self, caller: &Caller, digest: &Digest, now: Instant) -> Option<Duration> {
        self.placed.get(&(caller.repository.clone(), *digest)).map(|at| now.duration_since(*at))
    }

    fn note(&mut self, caller: Caller, digest: Digest, answer: &Result<(), UpstreamError>, now: Instant) {
        match answer {
            Ok(()) => {
                self.refused.remove(&(caller.clone(), digest));
                self.placed.put((caller.repository.clone(), digest), now);
                self.accepted.put(caller, now);
            }
            Err(error) => {
                // Refused credentials lose what they had; content that is not there says nothing about them.
                if is_refusal(error) {
                    self.accepted.remove(&caller);
                }
                self.refused.put((caller, digest), (now, error.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known { accepted: Recent::new(8), placed: Recent::new(8), refused: Recent::new(8) }
    }

    fn caller(name: &str, authorization: &str) -> Caller {
        let repository = Repository::new("r.example", name).unwrap();
        Caller { repository, authorization: Some(Digest::sha256_of(authorization.as_bytes())) }
    }

    fn blob(name: &str) -> Digest {
        Digest::sha256_of(name.as_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn good_credentials_open_nothing_of_another_repository() {
        let (mut known, now) = (known(), Instant::now());
        known.note(caller("mine", "me"), blob("a"), &Ok(()), now);
        known.note(caller("theirs", "they"), blob("b"), &Ok(()), now);
        assert!(matches!(known.judge(&caller("mine", "me"), &blob("a"), now), Some(Ok(_))));
        assert!(known.judge(&caller("mine", "me"), &blob("b"), now).is_none());
        assert!(known.judge(&caller("theirs", "me"), &blob("b"), now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_token_opens_a_known_layer_once_it_is_accepted() {
        let (mut known, now) = (known(), Instant::now());
        known.note(caller("app", "one"), blob("a"), &Ok(()), now);
        assert!(known.judge(&caller("app", "two"), &blob("a"), now).is_none());
        known.note(caller("app", "two"), blob("b"), &Ok(()), now);
        assert!(matches!(known.judge(&caller("app", "two"), &blob("a"), now), Some(Ok(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn acceptance_ends_after_a_minute_and_refusal_after_five_seconds() {
        let (mut known, start) = (known(), Instant::now());
        known.note(caller("app", "me"), blob("a"), &Ok(()), start);
        assert!(known.judge(&caller("app", "me"), &blob("a"), start + ACCEPTED_TTL).is_none());
        let denied = Err(UpstreamError::Denied { message: "no".into() });
        known.note(caller("app", "you"), blob("a"), &denied, start);
        assert!(matches!(known.judge(&caller("app", "you"), &blob("a"), start), Some(Err(_))));
        assert!(known.judge(&caller("app", "you"), &blob("a"), start + REFUSED_TTL).is_none());
    }

    #[tokio::test]
    async fn what_anybody_may_have_is_noted_until_it_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let (known, notes) = (Mutex::new(known()), Notes::new(root.path().to_owned()));
        let anybody = Caller { authorization: None, ..caller("app", "") };
        let has_note = async || notes.get(&about(&anybody.repository)).await.is_some();
        remember(&known, &notes, caller("app", "me"), blob("a"), &Ok(())).await;
        assert!(!has_note().await, "nothing of callers with credentials");
        remember(&known, &notes, anybody.clone(), blob("a"), &Ok(())).await;
        assert!(has_note().await && notes.get(&about_place(&anybody.repository, &blob("a"))).await.is_some());
        let missing = UpstreamError::NotFound { code: shoal_registry::OciCode::BlobUnknown, message: String::new() };
        remember(&known, &notes, anybody.clone(), blob("b"), &Err(missing)).await;
        assert!(has_note().await);
        remember(&known, &notes, anybody.clone(), blob("b"), &Err(UpstreamError::unauthorized("no"))).await;
        assert!(!has_note().await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_leaves_what_was_accepted_and_a_refusal_ends_it() {
        let (mut known, start) = (known(), Instant::now());
        let (me, later) = (caller("app", "me"), start + 2 * ACCEPTED_TTL);
        known.note(me.clone(), blob("a"), &Ok(()), start);
        known.note(me.clone(), blob("a"), &Err(UpstreamError::Server { status: 502, retry_after: None }), later);
        assert!(matches!(known.judge(&me, &blob("a"), later), Some(Ok(_))));
        known.note(me.clone(), blob("a"), &Err(UpstreamError::unauthorized("no")), later);
        assert!(matches!(known.judge(&me, &blob("a"), later), Some(Err(_))));
        assert!(!known.has_grace(&me, &blob("a"), later));
    }
}
