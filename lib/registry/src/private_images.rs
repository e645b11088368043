//! What must be shown before content that is held is given: one setting of agent and origin.
//!
//! Held is what lies here or is on its way. Content that is not held comes from upstream with the caller's own credentials, in
//! every mode, so upstream decides about it.

use serde::Deserialize;

/// How far content that is held is kept to those who may read it upstream. Each variant checks less than the one before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrivateImages {
    /// Upstream is asked, for the repository and with the caller's credentials, before anything is given. Answers are remembered
    /// for a short while.
    #[default]
    Strict,
    /// Who names content by its digest may have it, as only those know the digest who have read the manifest that holds it,
    /// or were told. What a tag names is told only to who may read it.
    DigestKnown,
    /// Whoever asks may have it. What a tag names is told too, as it was when upstream was last asked, if upstream refuses
    /// the caller.
    Off,
}

impl PrivateImages {
    /// Whether upstream is asked who may have content that was named by its digest.
    #[must_use]
    pub fn checks_digests(self) -> bool {
        self == Self::Strict
    }

    /// Whether upstream is asked who may be told what a tag names.
    #[must_use]
    pub fn checks_tags(self) -> bool {
        self != Self::Off
    }
}
