//! The origin's seal of a blob's metainfo, kept beside it for peers that hear of the blob when no origin answers.
//!
//! Opaque here. A seal that is lost costs nothing but that: it is written without waiting for the disk, and a power cut may leave
//! one torn, which who reads it has to tell.

use std::fs;
use std::io;

use shoal_meta::Digest;
use tracing::warn;

use super::Store;

const NAME: &str = "seal";

impl Store {
    /// Keeps the seal of a blob or partial that is here.
    pub async fn set_seal(&self, digest: &Digest, seal: Vec<u8>) {
        let (shared, digest) = (self.0.clone(), *digest);
        let kept = self.0.jobs.changes.run(move || {
            let layout = &shared.layout;
            // The partial may be committed in between.
            let (blob, partial) = (layout.blob_dir(&digest), layout.partial_dir(&digest));
            let mut kept = Ok(());
            for dir in [&blob, &partial, &blob] {
                let new = dir.join("seal.new");
                kept = fs::write(&new, &seal)
                    .and_then(|()| shared.host.step("seal"))
                    .and_then(|()| fs::rename(new, dir.join(NAME)))
                    .and_then(|()| shared.host.step("seal in place"));
                if !kept.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                    break;
                }
            }
            kept
        });
        match kept.await {
            Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => warn!(%digest, %error, "cannot keep a seal"),
            // Removed meanwhile, or the runtime shuts down.
            Ok(_) | Err(_) => {}
        }
    }

    /// The seal of a committed blob, if one is kept.
    pub async fn seal(&self, digest: &Digest) -> Option<Vec<u8>> {
        let file = self.0.layout.blob_dir(digest).join(NAME);
        self.0.jobs.reads.run(move || fs::read(file).ok()).await.ok().flatten()
    }
}
