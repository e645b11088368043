//! What a client asks for: the path of a pull request, and the registry it means. Called by the agent's front and the
//! origin's HTTP side.

use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use shoal_meta::Digest;

use crate::error::{OciCode, OciError};
use crate::excerpt;
use crate::reference::{Reference, Repository};

/// The longest path we read, in bytes; names and digests together stay far below.
pub const PATH_LENGTH_MAX: usize = 1024;

/// A request of the pull category of the distribution-spec.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// `/v2/`: is this a registry?
    Ping,
    /// `/v2/<name>/manifests/<reference>`.
    Manifest {
        /// Whose manifest.
        repository: Repository,
        /// Which one.
        reference: Reference,
    },
    /// `/v2/<name>/blobs/<digest>`.
    Blob {
        /// Whose blob.
        repository: Repository,
        /// Which one.
        digest: Digest,
    },
    /// `/v2/<name>/tags/list`.
    Tags {
        /// Whose tags.
        repository: Repository,
    },
    /// `/v2/<name>/referrers/<digest>`.
    Referrers {
        /// Whose referrers.
        repository: Repository,
        /// The manifest referred to.
        digest: Digest,
    },
}

/// Reads a path, without its query. The registry is `ns` if the client sent that query parameter (containerd, BuildKit),
/// else the first word of the name if it looks like a host (podman, `localhost:5050/ghcr.io/…`), else Docker Hub (dockerd).
///
/// # Errors
/// With the answer for the client, when the path is not one of a pull or a name in it is malformed.
pub fn parse(path: &str, ns: Option<&str>) -> Result<Route, OciError> {
    if matches!(path, "/v2/" | "/v2") {
        return Ok(Route::Ping);
    }
    let rest = path.strip_prefix("/v2/").filter(|_| path.len() <= PATH_LENGTH_MAX).ok_or_else(|| not_offered(path))?;
    // The one character of a digest that some clients escape.
    let rest = rest.replace("%3A", ":").replace("%3a", ":");
    // From the right: `manifests` and `blobs` are words a name may hold too.
    let mut words = rest.rsplitn(3, '/');
    let (Some(last), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
        return Err(not_offered(path));
    };
    let repository = || repository(name, ns);
    match kind {
        "manifests" => Ok(Route::Manifest { repository: repository()?, reference: last.parse()? }),
        "blobs" if last != "uploads" && !last.is_empty() => {
            Ok(Route::Blob { repository: repository()?, digest: digest(last)? })
        }
        "tags" if last == "list" => Ok(Route::Tags { repository: repository()? }),
        "referrers" => Ok(Route::Referrers { repository: repository()?, digest: digest(last)? }),
        _ => Err(not_offered(path)),
    }
}

fn repository(name: &str, ns: Option<&str>) -> Result<Repository, OciError> {
    Ok(match ns.filter(|ns| !ns.is_empty()) {
        Some(ns) => Repository::new(ns, name)?,
        None => Repository::parse(name)?,
    })
}

fn digest(text: &str) -> Result<Digest, OciError> {
    text.parse().map_err(|error: shoal_meta::ParseDigestError| {
        OciError::new(StatusCode::BAD_REQUEST, OciCode::DigestInvalid, error.to_string())
    })
}

fn not_offered(path: &str) -> OciError {
    let message = format!("{:?} is not a path to pull from", excerpt(path));
    OciError::new(StatusCode::NOT_FOUND, OciCode::Unsupported, message)
}

impl Route {
    /// What is asked for, in one word: for logs and metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Manifest { .. } => "manifest",
            Self::Blob { .. } => "blob",
            Self::Tags { .. } => "tags",
            Self::Referrers { .. } => "referrers",
        }
    }

    /// The registry and name the request is about; none for [`Route::Ping`].
    #[must_use]
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Ping => None,
            Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Tags { repository }
            | Self::Referrers { repository, .. } => Some(repository),
        }
    }
}

/// Finds the `ns` parameter in a query string, percent-decoded.
#[must_use]
pub fn ns_of(query: Option<&str>) -> Option<String> {
    parameter(query, "ns")
}

/// Finds the first parameter of this name in a query string, percent-decoded.
#[must_use]
pub fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let value = query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    Some(percent_decoded(value))
}

/// A path for upstream with the query of a client's request, but for `ns`, which is for us.
#[must_use]
pub fn with_query_of(asked: &Uri, path: &str) -> String {
    let pairs = asked.query().unwrap_or_default().split('&');
    let pairs: Vec<_> = pairs.filter(|pair| !pair.is_empty() && !pair.starts_with("ns=")).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

/// Makes the `Link` to a listing's next page (RFC 8288) one that a client of ours can follow; it asked for `asked`. Upstream's
/// own target names the repository as upstream does, and perhaps upstream's host: from here it would lead to another
/// registry, or past us. A link without a query is none to a page of the same listing, and stays as it is.
pub fn link_here(headers: &mut HeaderMap, asked: &Uri) {
    let link = headers.get(header::LINK).and_then(|link| next_page(link.to_str().ok()?, asked.path(), asked.query()));
    if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
        headers.insert(header::LINK, link);
    }
}

fn next_page(link: &str, path: &str, query: Option<&str>) -> Option<String> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let (_, page) = target.split_once('?')?;
    let ns = query.unwrap_or_default().split('&').find(|pair| pair.starts_with("ns="));
    let ns = ns.map(|ns| format!("&{ns}")).unwrap_or_default();
    Some(format!("<{path}?{page}{ns}>{parameters}"))
}

/// Decodes `%XX`; what is not an escape stays as it is, and what is not UTF-8 becomes U+FFFD.
fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => {
                let nibble = |digit: &u8| char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
                nibble(high).zip(nibble(low)).map(|(high, low)| high << 4 | low)
            }
            _ => None,
        };
        out.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(path: &str, ns: Option<&str>) -> String {
        parse(path, ns).unwrap().repository().unwrap().to_string()
    }

    #[test]
    fn the_ping_is_both_spellings() {
        assert_eq!(parse("/v2/", None), Ok(Route::Ping));
        assert_eq!(parse("/v2", None), Ok(Route::Ping));
    }

    #[test]
    fn ns_goes_before_the_path_and_the_path_before_docker_hub() {
        assert_eq!(named("/v2/org/app/manifests/v1", Some("ghcr.io")), "ghcr.io/org/app");
        assert_eq!(named("/v2/quay.io/app/manifests/v1", Some("ghcr.io")), "ghcr.io/quay.io/app");
        assert_eq!(named("/v2/ghcr.io/org/app/manifests/v1", None), "ghcr.io/org/app");
        assert_eq!(named("/v2/localhost:5000/app/manifests/v1", None), "localhost:5000/app");
        assert_eq!(named("/v2/nginx/manifests/v1", None), "docker.io/library/nginx");
        assert_eq!(named("/v2/nginx/manifests/v1", Some("docker.io")), "docker.io/library/nginx");
        assert_eq!(named("/v2/library/nginx/manifests/v1", Some("registry-1.docker.io")), "docker.io/library/nginx");
    }

    #[test]
    fn every_route_of_a_pull_is_known() {
        let digest = Digest::sha256_of(b"");
        let repository = Repository::new("ghcr.io", "org/app").unwrap();
        let parse = |path: String| super::parse(&path, Some("ghcr.io")).unwrap();
        let blob = Route::Blob { repository: repository.clone(), digest };
        assert_eq!(parse(format!("/v2/org/app/blobs/{digest}")), blob);
        assert_eq!(parse(format!("/v2/org/app/blobs/{}", digest.to_string().replace(':', "%3A"))), blob);
        let by_digest = Route::Manifest { repository: repository.clone(), reference: digest.into() };
        assert_eq!(parse(format!("/v2/org/app/manifests/{digest}")), by_digest);
        assert_eq!(parse("/v2/org/app/tags/list".to_owned()), Route::Tags { repository: repository.clone() });
        assert_eq!(parse(format!("/v2/org/app/referrers/{digest}")), Route::Referrers { repository, digest });
    }

    #[test]
    fn a_name_may_hold_the_words_of_the_protocol() {
        let digest = Digest::sha256_of(b"");
        assert_eq!(named(&format!("/v2/blobs/manifests/tags/blobs/{digest}"), None), "docker.io/blobs/manifests/tags");
    }

    #[test]
    fn other_paths_and_malformed_names_get_a_clear_answer() {
        let code = |path: &str| parse(path, None).map_err(|error| (error.status.as_u16(), error.code));
        for path in ["", "/", "/v1/", "/v2/_catalog", "/v2/a/blobs/uploads/", "/v2/a/tags/other", "/metrics"] {
            assert_eq!(code(path), Err((404, OciCode::Unsupported)), "{path:?}");
        }
        assert_eq!(code(&format!("/v2/{}/manifests/a", "a/".repeat(600))), Err((404, OciCode::Unsupported)));
        assert_eq!(code("/v2/UPPER/manifests/a"), Err((400, OciCode::NameInvalid)));
        assert_eq!(code("/v2/a/../b/manifests/a"), Err((400, OciCode::NameInvalid)));
        assert_eq!(code("/v2/a/manifests/.a"), Err((400, OciCode::TagInvalid)));
        assert_eq!(code("/v2/a/blobs/sha256:12"), Err((400, OciCode::DigestInvalid)));
        assert_eq!(parse("/v2/a/manifests/a", Some("a b")).map_err(|e| e.code), Err(OciCode::NameInvalid));
    }

    #[test]
    fn ns_is_found_in_the_query() {
        assert_eq!(ns_of(Some("ns=ghcr.io")).as_deref(), Some("ghcr.io"));
        assert_eq!(ns_of(Some("n=3&ns=localhost%3A5000&last=a")).as_deref(), Some("localhost:5000"));
        assert_eq!(ns_of(Some("ns=a%2")).as_deref(), Some("a%2"));
        assert_eq!(ns_of(Some("dns=x")), None);
        assert_eq!(ns_of(None), None);
    }

    #[test]
    fn the_next_page_is_asked_for_as_the_first_was() {
        let path = "/v2/ghcr.io/org/app/tags/list";
        for target in
            ["/v2/org/app/tags/list?n=2&last=b", "https://ghcr.io/v2/org/app/tags/list?n=2&last=b", "?n=2&last=b"]
        {
            let link = format!("<{target}>; rel=\"next\"");
            assert_eq!(next_page(&link, path, None), Some(format!("<{path}?n=2&last=b>; rel=\"next\"")));
            let with_ns = next_page(&link, "/v2/org/app/tags/list", Some("n=2&ns=ghcr.io"));
            assert_eq!(with_ns.as_deref(), Some("</v2/org/app/tags/list?n=2&last=b&ns=ghcr.io>; rel=\"next\""));
        }
        for link in ["", "<", "</v2/app/tags/next/17>; rel=\"next\""] {
            assert_eq!(next_page(link, path, None), None, "{link}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics(path in ".{0,80}", ns in proptest::option::of(".{0,20}")) {
            let _ = parse(&path, ns.as_deref());
            let _ = parse(&format!("/v2/{path}"), ns.as_deref());
            let _ = ns_of(Some(&path));
            let _ = next_page(&path, "/v2/a/tags/list", ns.as_deref());
        }
    }
}
