//! Who may read from the embedded registry: Basic, or tokens of its own token service.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::Auth;
use crate::secret::Secret;

/// Tokens given out and not yet expired that are kept; more are refused.
const TOKENS_MAX: usize = 100_000;

#[derive(Debug)]
pub(super) struct Gate {
    auth: Auth,
    /// Each token's scope and end.
    tokens: Mutex<BTreeMap<String, (String, Instant)>>,
}

/// What the token service gives.
pub(super) struct Token {
    pub(super) token: String,
    pub(super) lifetime_s: u64,
}

impl Gate {
    pub(super) fn new(auth: Auth) -> Self {
        Self { auth, tokens: Mutex::default() }
    }

    /// Lets a request for a repository through, or gives the challenge.
    pub(super) fn check(&self, name: &str, authorization: Option<&str>, host: &str) -> Result<(), String> {
        let scope = scope_of(name);
        match &self.auth {
            Auth::Basic { user, password } if authorization == Some(Secret::basic(user, password).expose()) => Ok(()),
            Auth::Basic { .. } => Err("Basic realm=\"embedded\"".to_owned()),
            Auth::Token { .. } => {
                let token = authorization.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
                let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                match tokens.get(token) {
                    Some((granted, until)) if *granted == scope && *until > Instant::now() => Ok(()),
                    Some(_) | None => {
                        Err(format!("Bearer realm=\"http://{host}/token\",service=\"embedded\",scope=\"{scope}\""))
                    }
                }
            }
        }
    }

    /// Gives a token for the scope in the query of a request to `/token`, or in its form.
    pub(super) fn grant(&self, query: &str, authorization: Option<&str>) -> Option<Token> {
        let Auth::Token { user, lifetime } = &self.auth else { return None };
        let refresh = query.split('&').find_map(|pair| pair.strip_prefix("refresh_token="));
        if let Some((user, password)) = user
            && authorization != Some(Secret::basic(user, password).expose())
            && refresh != Some(password)
        {
            return None;
        }
        let scope =
            query.split('&').find_map(|pair| pair.strip_prefix("scope="))?.replace("%3A", ":").replace("%2F", "/");
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tokens.retain(|_, (_, until)| *until > now);
        if tokens.len() >= TOKENS_MAX {
            return None;
        }
        let token = format!("{:032x}", rand::random::<u128>());
        tokens.insert(token.clone(), (scope, now + *lifetime));
        Some(Token { token, lifetime_s: lifetime.as_secs() })
    }
}

fn scope_of(name: &str) -> String {
    format!("repository:{name}:pull")
}
