//! A value that must never reach a log: the agent and the origin carry clients' credentials in it, unread.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

/// The scheme of an `Authorization` that stands for credentials which origins were given: `Shoal-Ticket <ticket>`.
pub const TICKET_SCHEME: &str = "Shoal-Ticket";

/// A credential, such as the whole value of an `Authorization` header.
///
/// It can be compared and hashed, so it can be part of a cache's key, but `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps a credential.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The `Authorization` header of a user (RFC 7617).
    pub(crate) fn basic(user: &str, password: &str) -> Self {
        Self(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
    }

    /// The ticket, if this is an `Authorization` of [`TICKET_SCHEME`].
    #[must_use]
    pub fn ticket(&self) -> Option<&str> {
        let value = self.0.trim_start();
        let (scheme, ticket) = value.split_once(' ').unwrap_or((value, ""));
        scheme.eq_ignore_ascii_case(TICKET_SCHEME).then(|| ticket.trim())
    }

    /// The credential itself, to be put on the wire and nowhere else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The credential as a header that HTTP libraries keep out of their logs; `None` if it cannot be a header.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&self.0).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self(value.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_nothing_of_itself() {
        let secret = Secret::new("Bearer abcdef");
        assert_eq!(format!("{secret:?}"), "Secret(redacted)");
        assert_eq!(format!("{:?}", secret.header().unwrap()), "Sensitive");
    }

    #[test]
    fn a_ticket_is_known_by_its_scheme_however_it_is_written() {
        for (value, ticket) in [
            ("Shoal-Ticket abc", Some("abc")),
            (" shoal-ticket  abc ", Some("abc")),
            ("Shoal-Ticket", Some("")),
            ("Bearer Shoal-Ticket abc", None),
            ("Shoal-Tickets abc", None),
        ] {
            assert_eq!(Secret::new(value).ticket(), ticket, "{value}");
        }
    }
}
