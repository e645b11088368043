//! The token service of the front, for clients that take the agent for the registry: dockerd, podman, and whoever names the
//! registry in the path. They ask `/v2/` how to sign in, and never learn upstream's own challenge.
//!
//! The front calls it. A user's name says for which registry the password is (see [`Account`]); it goes there and nowhere
//! else, and what comes back is the registry's own token. A client without a password for the registry it pulls from is
//! anonymous. Nothing is kept.

use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use shoal_registry::path::parameter;
use shoal_registry::reference::DOCKER_HUB;
use shoal_registry::upstream::Upstream;
use shoal_registry::{Account, OciCode, OciError, Repository, Secret, SignedIn};

use crate::answer::{VALID, full, respond};
use crate::body::Body;

/// Where it is.
pub(crate) const PATH: &str = "/token";
/// The token of one who is nobody.
const ANONYMOUS: &str = "shoal-anonymous";
/// Begins a token that is a user and a password in the form of the Basic scheme: for registries without tokens.
const BASIC: &str = "shoal-basic.";
/// How long [`ANONYMOUS`] is good, in seconds: it costs nothing to ask again.
const ANONYMOUS_LIFETIME_S: u64 = 300;

/// What a client is told that has to sign in, here and not at upstream. `None` if it does not say how it reaches the agent.
pub(crate) fn challenge(headers: &HeaderMap, repository: Option<&Repository>) -> Option<String> {
    let host = headers.get(header::HOST)?.to_str().ok()?.parse::<http::uri::Authority>().ok()?;
    let mut challenge = format!("Bearer realm=\"http://{host}{PATH}\",service=\"shoal\"");
    if let Some(Repository { registry, name, .. }) = repository {
        let name = if registry == DOCKER_HUB { name.clone() } else { format!("{registry}/{name}") };
        challenge += &format!(",scope=\"repository:{name}:pull\"");
    }
    if headers.contains_key(header::AUTHORIZATION) {
        // So that containerd does not come again with what was refused.
        challenge += ",error=\"insufficient_scope\"";
    }
    Some(challenge)
}

/// Answers a request for a token.
///
/// # Errors
/// When the password is refused or its registry cannot be asked, or the configuration does not let the repository be served.
pub(crate) async fn token(upstream: &Upstream, request: &Request<Incoming>) -> Result<Response<Body>, OciError> {
    let repository = parameter(request.uri().query(), "scope").as_deref().and_then(repository_of);
    let account = match request.headers().get(header::AUTHORIZATION) {
        None => None,
        Some(value) => Some(value.to_str().ok().and_then(Account::parse).ok_or_else(not_an_account)?),
    };
    let meant = |account: &Account| repository.as_ref().is_none_or(|it| it.registry == account.registry);
    let Some(account) = account.filter(meant) else { return Ok(granted(ANONYMOUS, ANONYMOUS_LIFETIME_S)) };
    let signed_in = upstream.sign_in(&account, repository.as_ref()).await;
    let SignedIn { authorization, lifetime } = signed_in.map_err(|error| error.to_oci_error())?;
    let token = authorization.as_ref().map_or(ANONYMOUS.to_owned(), wrapped);
    Ok(granted(&token, lifetime.as_secs()))
}

/// The client's credentials, out of what [`token`] made of them. `None` of one who is nobody.
pub(crate) fn unwrapped(authorization: &str) -> Option<Secret> {
    match authorization.strip_prefix("Bearer ") {
        Some(ANONYMOUS) => None,
        Some(token) => match token.strip_prefix(BASIC) {
            Some(encoded) => Some(Secret::new(format!("Basic {encoded}"))),
            None => Some(Secret::new(authorization)),
        },
        None => Some(Secret::new(authorization)),
    }
}

/// The token that stands for an `Authorization` header.
fn wrapped(authorization: &Secret) -> String {
    let value = authorization.expose();
    match value.strip_prefix("Basic ") {
        Some(encoded) => format!("{BASIC}{encoded}"),
        None => value.strip_prefix("Bearer ").unwrap_or(value).to_owned(),
    }
}

/// The repository of a scope such as `repository:ghcr.io/org/app:pull`.
fn repository_of(scope: &str) -> Option<Repository> {
    let (name, _actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
    Repository::parse(name).ok()
}

fn granted(token: &str, lifetime_s: u64) -> Response<Body> {
    let body = serde_json::json!({ "token": token, "access_token": token, "expires_in": lifetime_s });
    respond(StatusCode::OK, "application/json")
        .header(header::CACHE_CONTROL, "no-store")
        .body(full(body.to_string()))
        .expect(VALID)
}

fn not_an_account() -> OciError {
    let message =
        "the credentials are not a user and a password; name the user as registry/user, or user for docker.io";
    OciError::new(StatusCode::UNAUTHORIZED, OciCode::Unauthorized, message)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_challenge_names_the_agent_as_its_client_does() {
        let mut headers = HeaderMap::new();
        assert_eq!(challenge(&headers, None), None);
        headers.insert(header::HOST, HeaderValue::from_static("localhost:5050"));
        let expected = "Bearer realm=\"http://localhost:5050/token\",service=\"shoal\"";
        assert_eq!(challenge(&headers, None).unwrap(), expected);
        for (name, scope) in [("ghcr.io/a/b", "repository:ghcr.io/a/b:pull"), ("b", "repository:library/b:pull")] {
            let repository = Repository::parse(name).unwrap();
            assert_eq!(challenge(&headers, Some(&repository)).unwrap(), format!("{expected},scope=\"{scope}\""));
            assert_eq!(repository_of(scope), Some(repository));
        }
        headers.insert(header::HOST, HeaderValue::from_static("a\",x=\""));
        assert_eq!(challenge(&headers, None), None);
    }

    #[test]
    fn a_token_stands_for_the_credentials_it_was_made_of() {
        for given in ["Basic YW5uOnB3", "Bearer abc"] {
            let token = wrapped(&Secret::new(given));
            assert!(!token.contains(' '), "{token}");
            assert_eq!(unwrapped(&format!("Bearer {token}")), Some(Secret::new(given)));
        }
        assert_eq!(unwrapped(&format!("Bearer {ANONYMOUS}")), None);
        assert_eq!(unwrapped("Basic YW5uOnB3"), Some(Secret::new("Basic YW5uOnB3")));
    }
}
