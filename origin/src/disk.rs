//! Small files, whole or not at all, off the async threads. Called by the shelf of manifests and by the notes.

use std::path::Path;
use std::{fs, io};

/// Runs work that waits for the disk.
pub(crate) async fn blocking<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(job).await.map_err(io::Error::other)?
}

/// Puts a file in place of what is there. Its writers write one at a time, or the same bytes; what a crash tears, its reader
/// must find out.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let beside = path.with_extension("new");
    fs::write(&beside, bytes)?;
    fs::rename(&beside, path)
}
