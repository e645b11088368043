//! Tickets: a controller that may read pull secrets grants them, and nodes that have none show them to fetch an image ahead.
//!
//! Called by `grpc` alone: the HTTP front refuses tickets, and `shoal-registry` sends none upstream. A ticket opens one
//! repository, as far as its pull secret does there, until its time is over. What is exchanged for it is kept in memory only,
//! and tickets as SHA-256; after a restart they are granted anew.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_meta::Digest;
use shoal_registry::{Access, Account, Repository, Secret, SignedIn, UpstreamError};
use tokio::time::Instant;

use crate::error::OriginError;
use crate::gate::Gate;
use crate::lock;
use crate::recent::Recent;

/// The most tickets kept.
const TICKETS_MAX: usize = 4096;
/// The longest a ticket is good without being granted again.
const VALID_MAX: Duration = Duration::from_secs(60 * 60);
/// How long a refusal, or what there was before an outage, is used without asking again.
const FAILED_TTL: Duration = Duration::from_secs(5);
/// How long what upstream gave is used at least, for those who waited for it.
const GIVEN_TTL_MIN: Duration = Duration::from_secs(1);

/// The tickets that are good now.
pub(crate) struct Tickets<S = Gate> {
    door: Arc<S>,
    kept: Mutex<Recent<Key, Ticket>>,
}

/// The SHA-256 of a well-formed ticket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key(Digest);

/// Exchanges an account for what upstream takes.
pub(crate) trait SignIn {
    /// Signs in to pull from a repository.
    fn sign_in(
        &self,
        account: &Account,
        repository: &Repository,
    ) -> impl Future<Output = Result<SignedIn, UpstreamError>> + Send;
}

#[derive(Clone)]
struct Ticket {
    repository: Repository,
    /// None is nobody: no pull secret is for the registry, and the ticket opens what is open to anybody.
    account: Option<Account>,
    until: Instant,
    /// Held while the account signs in: everybody else waits for that one answer.
    pass: Arc<tokio::sync::Mutex<Option<Pass>>>,
}

/// What upstream answered last.
struct Pass {
    answer: Result<Option<Secret>, UpstreamError>,
    /// When to ask again.
    until: Instant,
}

impl Key {
    /// `None` if it is not 16 to 64 characters of letters, digits, `-` and `_`.
    pub(crate) fn of(ticket: &str) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let well_formed = (16..=64).contains(&ticket.len()) && ticket.bytes().all(is_plain);
        well_formed.then(|| Self(Digest::sha256_of(ticket.as_bytes())))
    }
}

impl<S: SignIn> Tickets<S> {
    pub(crate) fn new(door: Arc<S>) -> Self {
        Self { door, kept: Mutex::new(Recent::new(TICKETS_MAX)) }
    }

    /// Makes a ticket good for a repository from now on, or for longer. The account is tried at once; one that is refused changes
    /// nothing.
    pub(crate) async fn grant(
        &self,
        key: Key,
        repository: Repository,
        account: Option<Account>,
        valid: Duration,
    ) -> Result<(), OriginError> {
        let now = Instant::now();
        let before = {
            let mut kept = lock(&self.kept);
            kept.retain(|ticket| ticket.until > now);
            kept.get(&key).cloned()
        };
        let same = before.filter(|before| before.repository == repository && before.account == account);
        let pass = same.map(|before| before.pass).unwrap_or_default();
        let mut ticket = Ticket { repository, account, until: now, pass };
        ticket.authorization(&*self.door).await?;
        ticket.until = Instant::now() + valid.min(VALID_MAX);
        lock(&self.kept).put(key, ticket);
        Ok(())
    }

    /// Puts what a ticket stands for in its place. Any other access is left as it is.
    pub(crate) async fn redeem(&self, access: Access) -> Result<Access, OriginError> {
        let Some(shown) = access.authorization.as_ref().and_then(Secret::ticket) else { return Ok(access) };
        let known = Key::of(shown).and_then(|key| lock(&self.kept).get(&key).cloned());
        let ticket = known.filter(|ticket| ticket.repository == access.repository && ticket.until > Instant::now());
        let unknown = || UpstreamError::unauthorized("the ticket is not known here or has ended");
        let authorization = ticket.ok_or_else(unknown)?.authorization(&*self.door).await?;
        Ok(Access { authorization, ..access })
    }
}

impl Ticket {
    /// What it stands for now. While upstream is down that is what it stood for before, with which the caller has what upstream
    /// gave it lately.
    async fn authorization(&self, door: &impl SignIn) -> Result<Option<Secret>, UpstreamError> {
        let Some(account) = &self.account else { return Ok(None) };
        let mut pass = self.pass.lock().await;
        if let Some(pass) = pass.as_ref().filter(|pass| pass.until > Instant::now()) {
            return pass.answer.clone();
        }
        let signed_in = door.sign_in(account, &self.repository).await;
        let (answer, ttl) = match (signed_in, pass.take()) {
            (Ok(SignedIn { authorization, lifetime }), _) => (Ok(authorization), lifetime.max(GIVEN_TTL_MIN)),
            (Err(error), Some(Pass { answer: Ok(before), .. })) if error.is_retryable() => (Ok(before), FAILED_TTL),
            (Err(error), _) => (Err(error), FAILED_TTL),
        };
        pass.insert(Pass { answer, until: Instant::now() + ttl }).answer.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const LIFETIME: Duration = Duration::from_secs(300);
    const MINUTES_10: Duration = Duration::from_secs(600);

    /// Gives another authorization each time, a second after it was asked.
    #[derive(Default)]
    struct Registry {
        asked: AtomicU32,
        fails_with: Mutex<Option<UpstreamError>>,
    }

    impl Registry {
        fn fail(&self, error: Option<UpstreamError>) {
            *lock(&self.fails_with) = error;
        }
    }

    impl SignIn for Registry {
        async fn sign_in(&self, _: &Account, _: &Repository) -> Result<SignedIn, UpstreamError> {
            let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let given = SignedIn { authorization: Some(given(number)), lifetime: LIFETIME };
            lock(&self.fails_with).clone().map_or(Ok(given), Err)
        }
    }

    fn given(number: u32) -> Secret {
        Secret::new(format!("Bearer {number}"))
    }

    fn key() -> Key {
        Key::of("0123456789abcdef").unwrap()
    }

    fn shown(name: &str, authorization: &str) -> Access {
        Access {
            repository: Repository::new("r.example", name).unwrap(),
            authorization: Some(Secret::new(authorization)),
        }
    }

    fn ticket(name: &str) -> Access {
        shown(name, "Shoal-Ticket 0123456789abcdef")
    }

    /// Ann, by her password: `Basic <base64 of r.example/ann:password>`.
    fn ann(password: &str) -> Option<Account> {
        let encoded = match password {
            "pw" => "ci5leGFtcGxlL2Fubjpwdw==",
            "new" => "ci5leGFtcGxlL2FubjpuZXc=",
            other => panic!("{other}"),
        };
        Some(Account::parse(&format!("Basic {encoded}")).unwrap())
    }

    async fn grant(tickets: &Tickets<Registry>, account: Option<Account>, valid: Duration) -> Result<(), OriginError> {
        tickets.grant(key(), ticket("app").repository, account, valid).await
    }

    async fn redeemed(tickets: &Tickets<Registry>) -> Result<Option<Secret>, String> {
        let access = tickets.redeem(ticket("app")).await.map_err(|error| error.to_string())?;
        Ok(access.authorization)
    }

    fn is_unknown(redeemed: &Result<Option<Secret>, String>) -> bool {
        redeemed.as_ref().is_err_and(|message| message.ends_with("the ticket is not known here or has ended"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_opens_its_own_repository_and_only_once_it_is_granted() {
        let tickets = Tickets::new(Arc::new(Registry::default()));
        assert!(is_unknown(&redeemed(&tickets).await));
        grant(&tickets, ann("pw"), MINUTES_10).await.unwrap();
        assert_eq!(redeemed(&tickets).await, Ok(Some(given(1))));
        for other in [ticket("other"), shown("app", "Shoal-Ticket 0123456789abcdeX"), shown("app", "Shoal-Ticket x")] {
            assert!(tickets.redeem(other).await.is_err());
        }
        let client = shown("app", "Bearer of-a-client");
        assert_eq!(tickets.redeem(client.clone()).await.unwrap(), client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_ends_unless_it_is_granted_again_which_costs_upstream_nothing() {
        let tickets = Tickets::new(Arc::new(Registry::default()));
        grant(&tickets, ann("pw"), Duration::from_secs(90)).await.unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
        grant(&tickets, ann("pw"), Duration::from_secs(90)).await.unwrap();
        tokio::time::advance(Duration::from_secs(89)).await;
        assert_eq!(redeemed(&tickets).await, Ok(Some(given(1))));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is_unknown(&redeemed(&tickets).await));
        grant(&tickets, ann("pw"), Duration::MAX).await.unwrap();
        tokio::time::advance(VALID_MAX).await;
        assert!(is_unknown(&redeemed(&tickets).await), "an hour at most");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_ticket_stands_for_is_renewed_in_time_once_for_all_who_wait() {
        let tickets = Tickets::new(Arc::new(Registry::default()));
        grant(&tickets, ann("pw"), VALID_MAX).await.unwrap();
        tokio::time::advance(LIFETIME).await;
        let all = futures_util::future::join_all((0..100).map(|_| redeemed(&tickets))).await;
        assert!(all.iter().all(|redeemed| *redeemed == Ok(Some(given(2)))));
        assert_eq!(tickets.door.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_leaves_what_there_was_and_a_refusal_is_said_for_five_seconds() {
        let tickets = Tickets::new(Arc::new(Registry::default()));
        grant(&tickets, ann("pw"), VALID_MAX).await.unwrap();
        tokio::time::advance(LIFETIME).await;
        tickets.door.fail(Some(UpstreamError::Server { status: 502, retry_after: None }));
        assert_eq!(redeemed(&tickets).await, Ok(Some(given(1))));
        tokio::time::advance(FAILED_TTL).await;
        tickets.door.fail(Some(UpstreamError::unauthorized("ann is gone")));
        for _ in 0..10 {
            assert!(redeemed(&tickets).await.unwrap_err().ends_with("ann is gone"));
        }
        assert_eq!(tickets.door.asked.load(Ordering::Relaxed), 3);
        tickets.door.fail(None);
        tokio::time::advance(FAILED_TTL).await;
        assert_eq!(redeemed(&tickets).await, Ok(Some(given(4))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_password_is_tried_at_once_and_a_refused_one_changes_nothing() {
        let tickets = Tickets::new(Arc::new(Registry::default()));
        tickets.door.fail(Some(UpstreamError::unauthorized("wrong")));
        assert!(grant(&tickets, ann("pw"), MINUTES_10).await.unwrap_err().to_string().ends_with("wrong"));
        assert!(is_unknown(&redeemed(&tickets).await));
        tickets.door.fail(None);
        grant(&tickets, ann("pw"), MINUTES_10).await.unwrap();
        tickets.door.fail(Some(UpstreamError::unauthorized("wrong")));
        assert!(grant(&tickets, ann("new"), MINUTES_10).await.is_err());
        assert_eq!(redeemed(&tickets).await, Ok(Some(given(2))));
        tickets.door.fail(None);
        grant(&tickets, ann("new"), MINUTES_10).await.unwrap();
        assert_eq!(redeemed(&tickets).await, Ok(Some(given(4))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_of_nobody_opens_what_is_open_to_anybody() {
        let tickets = Tickets::new(Arc::new(Registry::default()));
        grant(&tickets, None, MINUTES_10).await.unwrap();
        assert_eq!(redeemed(&tickets).await, Ok(None));
        assert_eq!(tickets.door.asked.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_ticket_is_long_enough_to_be_no_guess_and_plain() {
        for ticket in ["0123456789-_azAZ", &"x".repeat(64)] {
            assert!(Key::of(ticket).is_some(), "{ticket}");
        }
        for ticket in ["", "0123456789abcde", &"x".repeat(65), "0123456789abcde ", "0123456789abcdeü"] {
            assert!(Key::of(ticket).is_none(), "{ticket}");
        }
    }
}
