//! Whether the disk takes what it is given; said once, when it changes.
//!
//! Told by the async methods of this crate, which all end in the same few errors; asked by status pages and metrics.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info};

use crate::lock;

/// How long a disk that did not answer in time is left alone.
const STALLED_FOR: Duration = Duration::from_secs(30);

/// Whether a store takes blobs. What it does not take has to pass by it; what it holds is served in every state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The disk took what it was given last. Left when it refuses something; entered when it has taken a piece again.
    Well,
    /// There is no room on the disk, whatever is evicted.
    Full,
    /// The file system is read-only.
    ReadOnly,
    /// The disk does not answer in time. For half a minute it is not asked for new blobs.
    Stalled,
    /// The disk fails in another way.
    Failing,
    /// The store could not be opened and holds nothing. Left when [`Store::trim`](crate::Store::trim) can open it.
    Closed,
}

impl Health {
    /// Every state.
    pub const ALL: [Self; 6] = [Self::Well, Self::Full, Self::ReadOnly, Self::Stalled, Self::Failing, Self::Closed];

    /// The state as a label of metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::Stalled => "stalled",
            Self::Failing => "failing",
            Self::Closed => "closed",
        }
    }

    /// What an error of the disk means; nothing, when it is none of the disk's.
    fn after(error: &io::Error) -> Option<Self> {
        use io::ErrorKind::{Interrupted, QuotaExceeded, ReadOnlyFilesystem, StorageFull, TimedOut};
        let known = [
            (StorageFull, Some(Self::Full)),
            (QuotaExceeded, Some(Self::Full)),
            (ReadOnlyFilesystem, Some(Self::ReadOnly)),
            (TimedOut, Some(Self::Stalled)),
            // The runtime ends.
            (Interrupted, None),
        ];
        let found = known.into_iter().find(|(kind, _)| *kind == error.kind());
        found.map_or(Some(Self::Failing), |(_, health)| health)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state a store is in, and why.
pub(crate) struct Condition(Mutex<State>);

struct State {
    health: Health,
    why: Option<String>,
    since: Instant,
    /// Full as the room was counted, and not as the disk refused a piece: pieces may be written in the room that is to stay free.
    is_counted: bool,
}

impl State {
    fn well() -> Self {
        Self { health: Health::Well, why: None, since: Instant::now(), is_counted: false }
    }
}

impl Condition {
    /// That of a store which is not open yet.
    pub(crate) fn closed() -> Self {
        Self(Mutex::new(State { health: Health::Closed, ..State::well() }))
    }

    pub(crate) fn health(&self) -> Health {
        lock(&self.0).health
    }

    /// What is wrong, in words; none while it is well.
    pub(crate) fn why(&self) -> Option<String> {
        lock(&self.0).why.clone()
    }

    /// The store was opened.
    pub(crate) fn opened(&self) {
        *lock(&self.0) = State::well();
    }

    /// The disk took a piece.
    pub(crate) fn took(&self, root: &Path) {
        let mut state = lock(&self.0);
        if !matches!(state.health, Health::Well | Health::Closed) && !state.is_counted {
            *state = State::well();
            info!(root = %root.display(), "the disk takes blobs again");
        }
    }

    /// The room on the disk was counted.
    pub(crate) fn counted(&self, root: &Path, is_full: bool) {
        if is_full && matches!(self.health(), Health::Well | Health::Full) {
            return self.enter(root, Health::Full, &io::ErrorKind::StorageFull.into(), true);
        }
        let mut state = lock(&self.0);
        if state.is_counted && !is_full {
            *state = State::well();
            info!(root = %root.display(), "the disk has room again");
        }
    }

    /// The disk refused something.
    pub(crate) fn refused(&self, root: &Path, error: &io::Error) {
        if let Some(health) = Health::after(error) {
            self.enter(root, health, error, false);
        }
    }

    fn enter(&self, root: &Path, health: Health, error: &io::Error, is_counted: bool) {
        let mut state = lock(&self.0);
        if state.health == Health::Closed {
            return;
        }
        if state.health != health {
            error!(root = %root.display(), state = %health, %error, "the disk does not take blobs: they pass by the store");
        }
        *state = State { health, why: Some(error.to_string()), since: Instant::now(), is_counted };
    }

    /// The store cannot be opened.
    pub(crate) fn refused_to_open(&self, why: String) {
        lock(&self.0).why = Some(why);
    }

    /// Says that nothing new may be asked of the disk now.
    ///
    /// # Errors
    /// When the store is closed, or a moment after it stalled.
    pub(crate) fn check(&self) -> io::Result<()> {
        let state = lock(&self.0);
        match state.health {
            Health::Closed => Err(io::Error::other("the store is closed")),
            Health::Stalled if state.since.elapsed() < STALLED_FOR => {
                Err(io::Error::new(io::ErrorKind::WouldBlock, "the disk did not answer in time a moment ago"))
            }
            Health::Stalled | Health::Well | Health::Full | Health::ReadOnly | Health::Failing => Ok(()),
        }
    }
}
