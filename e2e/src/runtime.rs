//! The clients that pull: one container runtime a node. Used by the tests through [`Client`]; knows nothing of Shoal but the
//! address of a mirror.

mod containerd;
mod crane;
mod cri;
mod docker;
mod podman;

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

pub use containerd::Containerd;
pub use crane::Crane;
pub use cri::Cri;
pub use docker::{Docker, Options as DockerOptions};
pub use podman::{Buildah, Mirror, Podman, Skopeo};

use crate::node::{Node, TIMED_OUT};
use crate::tokens::User;

/// Something on a node that pulls images.
pub trait Client: Sync {
    /// The node it runs on.
    fn node(&self) -> &Node;

    /// Pulls an image.
    ///
    /// # Errors
    /// When the pull fails, with what the client said.
    fn pull(&self, reference: &str) -> Result<()>;

    /// Pulls as a user who gives this client a password, in the way that it has for that.
    ///
    /// # Errors
    /// When the password is refused or the pull fails, with what the client said.
    fn pull_as(&self, reference: &str, user: &User) -> Result<()>;

    /// Pulls what is no image, as it need not be unpacked.
    ///
    /// # Errors
    /// When the pull fails, with what the client said.
    fn fetch(&self, reference: &str) -> Result<()> {
        self.pull(reference)
    }

    /// The manifest digest of a pulled image, as this client knows it.
    ///
    /// # Errors
    /// When the image is not there.
    fn digest(&self, reference: &str) -> Result<String>;

    /// Runs a program of a pulled image to its end and returns what it printed; `None` for a client that cannot run images.
    ///
    /// # Errors
    /// When the program fails.
    fn run(&self, reference: &str, words: &[&str]) -> Result<Option<String>>;
}

/// How a pull ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Not at all: it was given up after its time.
    Hung,
    /// With an error, of which this is the end.
    Failed(String),
    /// With the image.
    Pulled,
}

/// A client whose pull can be given up.
pub trait Bounded: Client {
    /// The command that pulls an image and is killed when it takes longer: see [`Node::bounded_by`].
    fn pull_within(&self, deadline: Duration, reference: &str) -> Command;

    /// Pulls an image, and gives it up when that takes longer.
    ///
    /// # Errors
    /// When the client cannot be started.
    fn try_pull(&self, deadline: Duration, reference: &str) -> Result<Ended> {
        let mut command = self.pull_within(deadline, reference);
        let ended = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
        let said = String::from_utf8_lossy(&ended.stderr);
        Ok(match ended.status.code() {
            Some(0) => Ended::Pulled,
            Some(TIMED_OUT) => Ended::Hung,
            Some(_) | None => Ended::Failed(said.trim().lines().last().unwrap_or_default().to_owned()),
        })
    }
}

/// Pulls with all clients at the same time; each has its own reference.
///
/// # Errors
/// The first client that failed; all have ended then.
pub fn pull_at_once(pulls: &[(&dyn Client, &str)]) -> Result<()> {
    std::thread::scope(|scope| {
        let handles =
            pulls.iter().map(|(client, reference)| scope.spawn(|| client.pull(reference))).collect::<Vec<_>>();
        let results = handles.into_iter().map(|handle| handle.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
        let results = results.collect::<Vec<_>>();
        for ((client, reference), result) in pulls.iter().zip(results) {
            result.with_context(|| format!("{} pulls {reference}", client.node().name()))?;
        }
        Ok(())
    })
}
