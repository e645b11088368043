//! The clients that pull: one container runtime a node. Used by the tests through [`Client`]; knows nothing of Shoal but the
//! address of a mirror.

mod containerd;
mod crane;
mod cri;
mod docker;
mod podman;

use anyhow::{Context, Result};

pub use containerd::Containerd;
pub use crane::Crane;
pub use cri::Cri;
pub use docker::{Docker, Options as DockerOptions};
pub use podman::{Buildah, Mirror, Podman, Skopeo};

use crate::node::Node;

/// Something on a node that pulls images.
pub trait Client: Sync {
    /// The node it runs on.
    fn node(&self) -> &Node;

    /// Pulls an image.
    ///
    /// # Errors
    /// When the pull fails, with what the client said.
    fn pull(&self, reference: &str) -> Result<()>;

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
