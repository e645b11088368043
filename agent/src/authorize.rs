//! Who may have what: bytes that lie on the node are served only to a request that upstream would serve too.
//!
//! Called before anything is served that upstream was not asked for on this very request's behalf. The answer is kept
//! for a short while, for this repository, blob and credential alone. It holds no credential, only hashes of them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_meta::Digest;
use shoal_registry::upstream::Upstream;
use shoal_registry::{Access, UpstreamError};
use tokio::time::Instant;

use crate::origin::{OriginError, Origins, is_verdict};

/// How long leave is kept at most.
const ALLOWED_FOR: Duration = Duration::from_secs(60);
/// How long a refusal is kept.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Most answers kept; the oldest goes first.
const ANSWERS_MAX: usize = 4096;

/// Asks upstream, through the origin while there is one, whether an access covers a blob.
#[derive(Debug)]
pub(crate) struct Authorizer {
    origins: Arc<Origins>,
    upstream: Upstream,
    answers: Mutex<Answers>,
}

/// A bounded memory of answers. Invariant: `order` holds each key of `kept` exactly once.
#[derive(Debug, Default)]
struct Answers {
    kept: HashMap<Key, Kept>,
    order: VecDeque<Key>,
}

/// The hash of registry, repository, credential and digest.
type Key = Digest;

#[derive(Debug, Clone)]
struct Kept {
    answer: Result<(), UpstreamError>,
    until: Instant,
}

impl Authorizer {
    pub(crate) fn new(origins: Arc<Origins>, upstream: Upstream) -> Self {
        Self { origins, upstream, answers: Mutex::default() }
    }

    /// Whether upstream is asked at all: by the configuration the operator may vouch for what is held.
    pub(crate) fn asks(&self) -> bool {
        self.upstream.private_images().checks_digests()
    }

    /// Returns when upstream lets this access have the blob.
    ///
    /// # Errors
    /// With upstream's refusal, or with its failure to answer: what cannot be checked is not served.
    pub(crate) async fn check(&self, access: &Access, digest: &Digest) -> Result<(), UpstreamError> {
        if !self.asks() {
            return Ok(());
        }
        let key = key(access, digest);
        if let Some(answer) = self.lock().get(&key, Instant::now()) {
            return answer;
        }
        let (answer, valid) = match self.origins.authorize(access, digest).await {
            Ok(valid) => (Ok(()), valid.min(ALLOWED_FOR)),
            Err(OriginError::Upstream(error)) if is_verdict(&error) => (Err(error), REFUSED_FOR),
            Err(OriginError::Upstream(_) | OriginError::Away) => {
                let answer = self.upstream.blob_length(access, digest).await.map(|_| ());
                let valid = if answer.is_ok() { ALLOWED_FOR } else { REFUSED_FOR };
                (answer, valid)
            }
        };
        self.remember(key, &answer, valid);
        answer
    }

    /// Notes what upstream said while something else was asked of it.
    pub(crate) fn note(&self, access: &Access, digest: &Digest, answer: &Result<(), UpstreamError>) {
        let valid = if answer.is_ok() { ALLOWED_FOR } else { REFUSED_FOR };
        self.remember(key(access, digest), answer, valid);
    }

    /// A refusal that still holds.
    pub(crate) fn refused(&self, access: &Access, digest: &Digest) -> Option<UpstreamError> {
        self.lock().get(&key(access, digest), Instant::now()).and_then(Result::err)
    }

    fn remember(&self, key: Key, answer: &Result<(), UpstreamError>, valid: Duration) {
        if answer.as_ref().err().is_none_or(is_verdict) {
            self.lock().put(key, Kept { answer: answer.clone(), until: Instant::now() + valid });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.answers.lock().expect("nothing panics while it holds this lock")
    }
}

impl Answers {
    fn get(&self, key: &Key, now: Instant) -> Option<Result<(), UpstreamError>> {
        self.kept.get(key).filter(|kept| kept.until > now).map(|kept| kept.answer.clone())
    }

    fn put(&mut self, key: Key, kept: Kept) {
        if self.kept.insert(key, kept).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > ANSWERS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.kept.remove(&oldest);
            }
        }
    }
}

fn key(access: &Access, digest: &Digest) -> Key {
    let Access { repository, authorization } = access;
    let authorization = authorization.as_ref().map_or("", shoal_registry::Secret::expose);
    // Names hold no line feed, so no two accesses read alike.
    Digest::sha256_of(format!("{}\n{}\n{digest}\n{authorization}", repository.registry, repository.name).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_registry::Repository;

    fn access(name: &str, authorization: Option<&str>) -> Access {
        let repository = Repository::new("r.example", name).unwrap();
        Access { repository, authorization: authorization.map(Into::into) }
    }

    #[test]
    fn leave_for_one_credential_repository_or_blob_is_no_leave_for_another() {
        let blob = Digest::sha256_of(b"blob");
        let keys = [
            key(&access("a", None), &blob),
            key(&access("a", Some("Bearer x")), &blob),
            key(&access("b", None), &blob),
            key(&access("a", None), &Digest::sha256_of(b"other")),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys.iter().skip(i + 1).all(|b| a != b));
        }
        assert_eq!(keys[0], key(&access("a", None), &blob));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_expire_and_are_bounded() {
        let now = Instant::now();
        let mut answers = Answers::default();
        for n in 0..=ANSWERS_MAX {
            let until = now + ALLOWED_FOR;
            answers.put(Digest::sha256_of(&n.to_le_bytes()), Kept { answer: Ok(()), until });
        }
        assert_eq!((answers.kept.len(), answers.order.len()), (ANSWERS_MAX, ANSWERS_MAX));
        assert!(answers.get(&Digest::sha256_of(&0usize.to_le_bytes()), now).is_none());
        let last = Digest::sha256_of(&ANSWERS_MAX.to_le_bytes());
        assert!(answers.get(&last, now).is_some());
        assert!(answers.get(&last, now + ALLOWED_FOR).is_none());
    }
}
