//! Content digests as OCI writes them, and the hasher that computes them.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// Identifies a blob by its content, as in OCI image-spec "Digests": `sha256:<64 hex>` or `sha512:<128 hex>`.
///
/// It is also the identity of a torrent: the same layer in two images or registries is one torrent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// SHA-256, the algorithm every registry supports.
    Sha256([u8; 32]),
    /// SHA-512, allowed by the image specification.
    Sha512([u8; 64]),
}

/// Says why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// There is no `:` between algorithm and hash.
    #[error("digest {0:?} has no algorithm; expected sha256:<64 hex> or sha512:<128 hex>")]
    NoAlgorithm(String),
    /// The algorithm is not one we can verify.
    #[error("digest algorithm {0:?} is not supported; expected sha256 or sha512")]
    UnsupportedAlgorithm(String),
    /// The hash has the wrong length or holds something other than lower-case hex (OCI image-spec "Digests").
    #[error("digest hash of {algorithm} must be {expected} lower-case hex characters")]
    MalformedHash {
        /// The algorithm named.
        algorithm: &'static str,
        /// The number of hex characters it takes.
        expected: usize,
    },
}

impl Digest {
    /// Computes the SHA-256 digest of bytes in memory, for manifests and other small documents.
    #[must_use]
    pub fn sha256_of(bytes: &[u8]) -> Self {
        Self::Sha256(sha2::Sha256::digest(bytes).into())
    }

    /// Starts hashing with this digest's algorithm; compare the result of [`Hasher::finish`] with `self`.
    #[must_use]
    pub fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::sha256(),
            Self::Sha512(_) => Hasher(State::Sha512(sha2::Sha512::new())),
        }
    }

    /// The algorithm's registered name: `sha256` or `sha512`.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// The hash in lower-case hex, without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        let mut out = String::with_capacity(self.as_bytes().len() * 2);
        for byte in self.as_bytes() {
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
        out
    }

    /// The raw hash: 32 or 64 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(hash) => hash,
            Self::Sha512(hash) => hash,
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, hex) =
            text.split_once(':').ok_or_else(|| ParseDigestError::NoAlgorithm(text.chars().take(80).collect()))?;
        match algorithm {
            "sha256" => parse_hex(hex).map(Self::Sha256).ok_or(malformed("sha256", 64)),
            "sha512" => parse_hex(hex).map(Self::Sha512).ok_or(malformed("sha512", 128)),
            other => Err(ParseDigestError::UnsupportedAlgorithm(other.chars().take(40).collect())),
        }
    }
}

fn malformed(algorithm: &'static str, expected: usize) -> ParseDigestError {
    ParseDigestError::MalformedHash { algorithm, expected }
}

/// Parses exactly `N` bytes of lower-case hex.
pub(crate) fn parse_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let hex = hex.as_bytes();
    if hex.len() != N * 2 {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

fn nibble(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Hashes a stream of bytes into a [`Digest`].
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Starts a SHA-256 hash.
    #[must_use]
    pub fn sha256() -> Self {
        Self(State::Sha256(sha2::Sha256::new()))
    }

    /// Adds the next bytes of the stream.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// Ends the stream and gives its digest.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest::Sha256(state.finalize().into()),
            State::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_prints_as_it_was_parsed() {
        assert_eq!(EMPTY.parse::<Digest>().unwrap().to_string(), EMPTY);
        let long = format!("sha512:{}", "0f".repeat(64));
        assert_eq!(long.parse::<Digest>().unwrap().to_string(), long);
    }

    #[test]
    fn the_empty_blob_has_the_well_known_digest() {
        assert_eq!(Digest::sha256_of(b"").to_string(), EMPTY);
        assert_eq!(Hasher::sha256().finish().to_string(), EMPTY);
    }

    #[test]
    fn a_malformed_digest_is_named() {
        let parse = |text: &str| text.parse::<Digest>().unwrap_err();
        assert!(matches!(parse("latest"), ParseDigestError::NoAlgorithm(_)));
        assert!(matches!(parse("md5:00"), ParseDigestError::UnsupportedAlgorithm(_)));
        assert!(matches!(parse("sha256:00"), ParseDigestError::MalformedHash { expected: 64, .. }));
        assert!(matches!(parse(&EMPTY.to_uppercase().replace("SHA", "sha")), ParseDigestError::MalformedHash { .. }));
    }
}
