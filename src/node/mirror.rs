//! The mirror's address and the names of registries, as users give them.

use std::fmt;
use std::str::FromStr;

/// The agent's registry front, as an address that runtimes reach: `http://127.0.0.1:5050`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    scheme: String,
    authority: String,
}

impl Mirror {
    /// Host and port.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether it speaks plain HTTP.
    pub(crate) fn is_plain(&self) -> bool {
        self.scheme == "http"
    }

    /// Whether a URL in a runtime's configuration is this mirror.
    pub(crate) fn is(&self, url: &str) -> bool {
        let url = url.trim_end_matches('/');
        url.strip_suffix("/v2").unwrap_or(url) == self.to_string()
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

impl FromStr for Mirror {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || "expected http://host:port or https://host:port, such as http://127.0.0.1:5050".to_owned();
        let (scheme, authority) = text.trim_end_matches('/').split_once("://").ok_or_else(refused)?;
        let known = matches!(scheme, "http" | "https");
        if !known || !is_authority(authority) {
            return Err(refused());
        }
        Ok(Self { scheme: scheme.to_owned(), authority: authority.to_owned() })
    }
}

/// Reads the name of a registry, as references begin with it.
///
/// # Errors
/// Saying what is accepted.
pub(crate) fn registry(text: &str) -> Result<String, String> {
    let named = text.contains(['.', ':']) || text == "localhost";
    if named && is_authority(text) {
        return Ok(text.to_owned());
    }
    Err("expected a registry as image references begin with it, such as ghcr.io or registry.local:5000".to_owned())
}

fn is_authority(text: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[') && text.chars().all(valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_recognised_however_it_is_written() {
        let mirror: Mirror = "http://127.0.0.1:5050/".parse().unwrap();
        assert_eq!(mirror.to_string(), "http://127.0.0.1:5050");
        for same in ["http://127.0.0.1:5050", "http://127.0.0.1:5050/", "http://127.0.0.1:5050/v2"] {
            assert!(mirror.is(same), "{same}");
        }
        assert!(!mirror.is("https://127.0.0.1:5050") && !mirror.is("http://127.0.0.1:5051"));
    }

    #[test]
    fn what_is_neither_address_nor_registry_is_refused() {
        for wrong in ["127.0.0.1:5050", "ftp://a", "http://", "http://a/b", "http://a\"b"] {
            assert!(wrong.parse::<Mirror>().unwrap_err().contains("http://host:port"), "{wrong}");
        }
        for right in ["docker.io", "localhost:5000", "localhost", "[::1]:5000"] {
            assert_eq!(registry(right).unwrap(), right);
        }
        for wrong in ["", "https://ghcr.io", "ghcr.io/org", "nginx", "../etc", "_default"] {
            assert!(registry(wrong).is_err(), "{wrong}");
        }
    }
}
