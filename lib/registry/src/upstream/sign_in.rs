//! A user and a password taken to the registry they are for: on behalf of clients that sign in at a mirror, dockerd and podman, and
//! of pull secrets that an origin is given.
//!
//! Called by the agent's token service and the origin's tickets. Nothing is kept here: they ask again when a token ends.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::Full;
use tokio::time::Instant;

use super::challenge::{self, Challenge};
use super::credentials::{Credential, entry_of};
use super::endpoint::{Endpoint, registry_name};
use super::request::{Answer, send};
use super::{Upstream, UpstreamError, retry};
use crate::error::OciCode;
use crate::reference::{Repository, is_registry_like, split_registry};
use crate::secret::Secret;

/// A user of one registry, with what proves it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// The registry, as in [`Repository`].
    pub registry: String,
    /// For that registry, and the token service it names, alone.
    credential: Credential,
}

/// What a registry gave for a password.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedIn {
    /// The `Authorization` to send; none to a registry that asks for none.
    pub authorization: Option<Secret>,
    /// For how long it is good.
    pub lifetime: Duration,
}

/// How long what does not end is used before it is checked again.
const LIFETIME_ENDLESS: Duration = Duration::from_secs(300);
/// The most pull secrets looked through for one account.
const CONFIGS_MAX: usize = 16;
/// The most bytes of pull secrets looked through for one account.
const CONFIGS_LENGTH_MAX: usize = 1024 * 1024;
/// The longest password or token of a pull secret, in bytes: it is kept, and goes into a header.
const CREDENTIAL_LENGTH_MAX: usize = 16 * 1024;

impl Account {
    /// Reads an `Authorization` header of the Basic scheme (RFC 7617). The user's name says for which registry the password
    /// is, by the rule for repositories: `ghcr.io/ann` is ann at ghcr.io, `ann` is ann at Docker Hub. `None` if it is not one.
    #[must_use]
    pub fn parse(authorization: &str) -> Option<Self> {
        let (scheme, encoded) = authorization.split_once(' ')?;
        let decoded = STANDARD.decode(encoded.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (name, password) = split_name(&decoded)?;
        let (registry, user) = split_registry(name);
        let credential = Credential::Basic(Secret::basic(user, password));
        Some(Self { registry: registry_name(registry).ok()?, credential })
    }

    /// Finds the account for a repository in pull secrets, each in one of the forms a `docker_config` may have: the first that has
    /// an entry counts, and one that cannot be read only if no other has. They come from elsewhere: credential helpers that
    /// they name are not run. `None` when no entry is for the repository.
    ///
    /// # Errors
    /// [`UpstreamError::Request`] when they are more than 16 or more than 1 MiB, or one that cannot be read may have had the entry.
    pub fn from_docker_configs(configs: &[Vec<u8>], repository: &Repository) -> Result<Option<Self>, UpstreamError> {
        let length: usize = configs.iter().map(Vec::len).sum();
        if configs.len() > CONFIGS_MAX || length > CONFIGS_LENGTH_MAX {
            let message = format!("pull secrets are more than {CONFIGS_MAX} or than {CONFIGS_LENGTH_MAX} bytes");
            return Err(UpstreamError::Request(message));
        }
        let mut unreadable = None;
        for config in configs {
            match entry_of(config, repository) {
                Ok(Some(Credential::Basic(secret) | Credential::Identity(secret)))
                    if secret.expose().len() > CREDENTIAL_LENGTH_MAX =>
                {
                    return Err(UpstreamError::Request(
                        "the password in a pull secret is longer than 16 KiB".to_owned(),
                    ));
                }
                Ok(Some(credential)) => {
                    return Ok(Some(Self { registry: repository.registry.clone(), credential }));
                }
                Ok(None) => {}
                Err(cause) => unreadable = Some(format!("a pull secret cannot be read: {cause}")),
            }
        }
        unreadable.map_or(Ok(None), |message| Err(UpstreamError::Request(message)))
    }
}

impl Upstream {
    /// Signs in as Docker does: answers the challenge of the registry's `/v2/`, to pull from `repository`, or from none when only
    /// the password is to be checked. The registry's mirrors see nothing of it. Offline nobody is asked.
    ///
    /// # Errors
    /// [`UpstreamError::Unauthorized`] if the password is refused, [`UpstreamError::Excluded`] if the configuration lets nothing of
    /// it be served; else as [`UpstreamError`] says.
    pub async fn sign_in(&self, account: &Account, repository: Option<&Repository>) -> Result<SignedIn, UpstreamError> {
        match repository {
            Some(repository) => self.permits(repository)?,
            None => self.0.rules.check_registry(&account.registry)?,
        }
        if self.is_offline() {
            return Ok(SignedIn { authorization: None, lifetime: LIFETIME_ENDLESS });
        }
        let endpoint = self.0.endpoints.find(&account.registry).registry;
        let ping = |authorization| self.unless_it_rests(&account.registry, self.ping(&endpoint, authorization));
        let challenge = match retry(self.0.timing, || ping(None)).await {
            Ok(()) => return Ok(SignedIn { authorization: None, lifetime: LIFETIME_ENDLESS }),
            Err(UpstreamError::Unauthorized { challenge, .. }) => challenge.unwrap_or_default(),
            Err(error) => return Err(error),
        };
        match (challenge::parse(&challenge), &account.credential) {
            (Some(Challenge::Bearer { realm, service, scopes: _ }), credential) => {
                let name = repository.map(|repository| endpoint.locate(repository)).transpose()?;
                let scopes: Vec<_> = name.iter().map(|located| format!("repository:{}:pull", located.name)).collect();
                let bought = self.buy_token(&endpoint, &realm, service.as_deref(), &scopes, Some(credential)).await;
                let granted = bought.map_err(refused)?;
                let lifetime = granted.until.saturating_duration_since(Instant::now());
                Ok(SignedIn { authorization: Some(granted.authorization), lifetime })
            }
            (Some(Challenge::Basic), Credential::Basic(authorization)) => {
                retry(self.0.timing, || ping(Some(authorization))).await.map_err(refused)?;
                Ok(SignedIn { authorization: Some(authorization.clone()), lifetime: LIFETIME_ENDLESS })
            }
            (Some(Challenge::Basic), Credential::Identity(_)) => {
                Err(UpstreamError::unauthorized("it wants a user and a password, and the credentials are a token"))
            }
            (None, _) => {
                let message = "the registry's challenge is not understood".to_owned();
                Err(UpstreamError::Unauthorized { challenge: Some(challenge), message })
            }
        }
    }

    /// Asks a registry's `/v2/`. A challenge is an error.
    async fn ping(&self, endpoint: &Endpoint, authorization: Option<&Secret>) -> Result<(), UpstreamError> {
        let uri: Uri = endpoint.ping()?;
        let mut request = Request::get(&uri);
        if let Some(value) = authorization.and_then(Secret::header) {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Full::<Bytes>::default()).map_err(|e| UpstreamError::Request(e.to_string()))?;
        let response = send(endpoint.client_for(&uri), request, self.0.timing).await?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(Answer { response, from_registry: true }.into_error(OciCode::Unsupported, self.0.timing).await)
    }
}

/// Splits `name:password`. A name with a port in its registry has a colon of its own, which RFC 7617 does not know.
fn split_name(text: &str) -> Option<(&str, &str)> {
    let (host, rest) = text.split_once(':')?;
    let with_port = || {
        let (port, rest) = rest.split_once('/')?;
        let (user, password) = rest.split_once(':')?;
        let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let is_registry = is_port && !host.contains('/') && is_registry_like(host);
        is_registry.then(|| (&text[..host.len() + port.len() + user.len() + 2], password))
    };
    with_port().or(Some((host, rest)))
}

/// A token service that refuses refuses the password; and upstream's challenge is not for a client that signs in elsewhere.
fn refused(error: UpstreamError) -> UpstreamError {
    if let UpstreamError::Refused { status: 400 | 401 | 403, message } | UpstreamError::Unauthorized { message, .. } =
        error
    {
        UpstreamError::unauthorized(message)
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name_and_password: &str) -> Option<Account> {
        Account::parse(&format!("Basic {}", STANDARD.encode(name_and_password)))
    }

    #[test]
    fn a_users_name_says_for_which_registry_the_password_is() {
        for (given, registry, user, password) in [
            ("ann:pw", "docker.io", "ann", "pw"),
            ("ann:5000/x:pw", "docker.io", "ann", "5000/x:pw"),
            ("ghcr.io/ann:5000/x:pw", "ghcr.io", "ann", "5000/x:pw"),
            ("R.example:5000/robot$x:p:w", "r.example:5000", "robot$x", "p:w"),
            ("localhost/team/ann:", "localhost", "team/ann", ""),
        ] {
            let credential = Credential::Basic(Secret::basic(user, password));
            let expected = Account { registry: registry.to_owned(), credential };
            assert_eq!(parse(given), Some(expected), "{given}");
        }
    }

    #[test]
    fn what_is_not_a_user_and_a_password_is_none() {
        assert_eq!(Account::parse("Bearer abc"), None);
        assert_eq!(Account::parse("Basic"), None);
        assert_eq!(Account::parse("Basic !"), None);
        assert_eq!(parse("ann"), None);
        assert_eq!(parse("-.example/ann:pw"), None);
    }

    fn config(registry: &str, user: &str) -> Vec<u8> {
        let entry = serde_json::json!({ "username": user, "password": "pw" });
        serde_json::json!({ "auths": { registry: entry } }).to_string().into_bytes()
    }

    fn from(configs: &[Vec<u8>]) -> Result<Option<Account>, UpstreamError> {
        Account::from_docker_configs(configs, &Repository::new("r.example", "team/app").unwrap())
    }

    #[test]
    fn the_first_pull_secret_that_knows_the_registry_counts_and_a_broken_one_does_not_keep_it_out() {
        let found =
            Account { registry: "r.example".to_owned(), credential: Credential::Basic(Secret::basic("ann", "pw")) };
        let configs = [config("other.example", "x"), config("r.example/team", "ann"), config("r.example", "bob")];
        assert_eq!(from(&configs).unwrap(), Some(found.clone()));
        let broken = br#"{"auths":{"r.example":{"auth":"s3cret!"}}}"#.to_vec();
        assert_eq!(from(&[broken.clone(), config("r.example", "ann")]).unwrap(), Some(found));
        assert_eq!(from(&[]).unwrap(), None);
        assert_eq!(from(&[config("other.example", "x")]).unwrap(), None);
        let message = from(&[broken]).unwrap_err().to_string();
        assert!(message.contains("a pull secret cannot be read") && !message.contains("s3cret"), "{message}");
    }

    #[test]
    fn pull_secrets_are_bounded_and_their_helpers_are_no_accounts() {
        assert!(from(&vec![config("r.example", "ann"); CONFIGS_MAX]).is_ok());
        assert!(from(&vec![config("r.example", "ann"); CONFIGS_MAX + 1]).is_err());
        assert!(from(&[vec![b' '; CONFIGS_LENGTH_MAX], config("r.example", "ann")]).is_err());
        assert!(from(&[config("r.example", &"x".repeat(CREDENTIAL_LENGTH_MAX))]).is_err());
        let helper = br#"{"credHelpers":{"r.example":"any"},"credsStore":"any"}"#.to_vec();
        assert_eq!(from(&[helper]).unwrap(), None);
    }
}
