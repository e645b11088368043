//! Small files, whole or not at all, off the async threads. Called by the shelf of manifests and by the notes.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::{fs, io};

/// Runs work that waits for the disk.
pub(crate) async fn blocking<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(job).await.map_err(io::Error::other)?
}

/// Puts a file in place of what is there; of several writers at a time, the last to end. What a crash tears, its reader must find
/// out.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let beside = path.with_extension(format!("{}.new", WRITES.fetch_add(1, Relaxed)));
    fs::write(&beside, bytes)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_of_the_same_bytes_do_not_fail_each_other() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("aa/note");
        let write = || (0..500).try_for_each(|_| replace(&path, b"the same"));
        std::thread::scope(|scope| {
            let writers = [(); 4].map(|()| scope.spawn(write));
            writers.into_iter().for_each(|writer| writer.join().unwrap().unwrap());
        });
        assert_eq!(fs::read(&path).unwrap(), b"the same");
    }
}
