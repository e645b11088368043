//! A user and a password taken to the registry they are for, on behalf of clients that sign in at a mirror: dockerd, podman.
//!
//! Called by the agent's token service. Nothing is kept here: a client asks again when its token ends.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use tokio::time::Instant;

use super::challenge::{self, Challenge};
use super::credentials::Credential;
use super::endpoint::{Endpoint, registry_name};
use super::request::{Answer, challenge_of, send};
use super::{Upstream, UpstreamError, retry};
use crate::error::OciCode;
use crate::reference::{Repository, is_registry_like, split_registry};
use crate::secret::Secret;

/// A user of one registry, with the password.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// The registry, as in [`Repository`].
    pub registry: String,
    /// The `Authorization` header of the Basic scheme, for that registry alone.
    authorization: Secret,
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
        let authorization = Secret::basic(user, password);
        Some(Self { registry: registry_name(registry).ok()?, authorization })
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
        let asked = retry(self.0.timing, || ping(None)).await?;
        let Some(challenge) = asked else {
            return Ok(SignedIn { authorization: None, lifetime: LIFETIME_ENDLESS });
        };
        match challenge::parse(&challenge) {
            Some(Challenge::Bearer { realm, service, scopes: _ }) => {
                let name = repository.map(|repository| endpoint.locate(repository)).transpose()?;
                let scopes: Vec<_> = name.iter().map(|located| format!("repository:{}:pull", located.name)).collect();
                let credential = Credential::Basic(account.authorization.clone());
                let bought = self.buy_token(&endpoint, &realm, service.as_deref(), &scopes, Some(&credential)).await;
                let granted = bought.map_err(refused)?;
                let lifetime = granted.until.saturating_duration_since(Instant::now());
                Ok(SignedIn { authorization: Some(granted.authorization), lifetime })
            }
            Some(Challenge::Basic) => {
                let again = retry(self.0.timing, || ping(Some(&account.authorization))).await?;
                match again {
                    None => {
                        Ok(SignedIn { authorization: Some(account.authorization.clone()), lifetime: LIFETIME_ENDLESS })
                    }
                    Some(_) => Err(UpstreamError::Unauthorized { challenge: None }),
                }
            }
            None => Err(UpstreamError::Unauthorized { challenge: Some(challenge) }),
        }
    }

    /// Asks a registry's `/v2/`. Gives its challenge, or nothing if it has none.
    async fn ping(&self, endpoint: &Endpoint, authorization: Option<&Secret>) -> Result<Option<String>, UpstreamError> {
        let uri: Uri = endpoint.ping()?;
        let mut request = Request::get(&uri);
        if let Some(value) = authorization.and_then(Secret::header) {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Full::<Bytes>::default()).map_err(|e| UpstreamError::Request(e.to_string()))?;
        let response = send(endpoint.client_for(&uri), request, self.0.timing).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED => Ok(Some(challenge_of(response.headers()).unwrap_or_default())),
            status if status.is_success() => Ok(None),
            _ => {
                let answer = Answer { response, from_registry: true };
                Err(answer.into_error(OciCode::Unsupported, self.0.timing).await)
            }
        }
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

/// A token service that refuses refuses the password.
fn refused(error: UpstreamError) -> UpstreamError {
    let is_refusal = matches!(error, UpstreamError::Refused { status: 400 | 401 | 403, .. });
    if is_refusal { UpstreamError::Unauthorized { challenge: None } } else { error }
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
            let expected = Account { registry: registry.to_owned(), authorization: Secret::basic(user, password) };
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
}
