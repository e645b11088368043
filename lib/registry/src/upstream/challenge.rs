//! The `WWW-Authenticate` header (RFC 9110, section 11.6.1): which scheme upstream wants, with which parameters.

/// The longest header we read, in bytes; a longer one is passed on but not answered.
const CHALLENGE_LENGTH_MAX: usize = 8 * 1024;

/// A challenge we can answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Challenge {
    /// Wants a token.
    Bearer {
        /// Where it is fetched.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what.
        scopes: Vec<String>,
    },
    /// Wants a user and a password.
    Basic,
}

/// Finds the challenge to answer: Bearer before Basic, as Docker does.
#[must_use]
pub fn parse(header: &str) -> Option<Challenge> {
    if header.len() > CHALLENGE_LENGTH_MAX {
        return None;
    }
    let offers = offers(header);
    let bearer = offers.iter().find(|offer| offer.scheme.eq_ignore_ascii_case("bearer")).and_then(|offer| {
        let realm = offer.parameter("realm")?.to_owned();
        let scopes = offer.parameter("scope").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        Some(Challenge::Bearer { realm, service: offer.parameter("service").map(str::to_owned), scopes })
    });
    bearer.or_else(|| offers.iter().any(|offer| offer.scheme.eq_ignore_ascii_case("basic")).then_some(Challenge::Basic))
}

struct Offer {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Offer {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Splits a header of one or several challenges. A word followed by `=` is a parameter of the challenge before it, any
/// other word begins a challenge; what fits neither is skipped.
fn offers(header: &str) -> Vec<Offer> {
    let mut offers: Vec<Offer> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let word_length = rest.find([' ', '\t', ',', '=', '"']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_length);
        if word.is_empty() {
            let mut skipped = after.chars();
            if skipped.next().is_none() {
                return offers;
            }
            rest = skipped.as_str();
            continue;
        }
        match after.trim_start_matches([' ', '\t']).strip_prefix('=') {
            Some(value) => {
                let (value, after) = parameter_value(value.trim_start_matches([' ', '\t']));
                if let Some(offer) = offers.last_mut() {
                    offer.parameters.push((word.to_owned(), value));
                }
                rest = after;
            }
            None => {
                offers.push(Offer { scheme: word.to_owned(), parameters: Vec::new() });
                rest = after;
            }
        }
    }
}

/// A token or a quoted string with its escapes undone, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => value.extend(characters.next()),
            other => value.push(other),
        }
    }
    (value, characters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scopes: &[&str]) -> Option<Challenge> {
        let scopes = scopes.iter().map(ToString::to_string).collect();
        Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned), scopes })
    }

    #[test]
    fn docker_hubs_challenge_is_read() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#;
        let expected =
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), &["repository:library/nginx:pull"]);
        assert_eq!(parse(header), expected);
    }

    #[test]
    fn spacing_case_order_and_escapes_do_not_matter() {
        assert_eq!(parse("bearer  scope=a , Realm = \"r\""), bearer("r", None, &["a"]));
        assert_eq!(parse(r#"Bearer realm="a\"b\\c,d=e",scope="x y""#), bearer(r#"a"b\c,d=e"#, None, &["x", "y"]));
    }

    #[test]
    fn bearer_goes_before_basic() {
        assert_eq!(parse(r#"Basic realm="x", Bearer realm="r",service="s""#), bearer("r", Some("s"), &[]));
        assert_eq!(parse(r#"Basic realm="x""#), Some(Challenge::Basic));
        assert_eq!(parse("Basic"), Some(Challenge::Basic));
    }

    #[test]
    fn what_we_cannot_answer_is_none() {
        for header in ["", "Negotiate", "Bearer", "Bearer service=\"s\"", "realm=\"x\"", ",,,", "\"", "= ="] {
            assert_eq!(parse(header), None, "{header:?}");
        }
        assert_eq!(parse(&format!("Bearer realm=\"{}\"", "r".repeat(CHALLENGE_LENGTH_MAX))), None);
    }

    proptest! {
        #[test]
        fn no_header_panics(header in "[A-Za-z=\\\\\", \t\u{e9}]{0,60}") {
            let _ = parse(&header);
        }
    }
}
