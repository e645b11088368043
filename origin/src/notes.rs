//! What upstream said, noted on disk, so that a restarted origin knows it while upstream is down. Called by `manifests`
//! (what tags name) and `authorize` (what anybody may have). A note is a hint: whatever goes wrong with it is a miss.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use std::{fs, io};

use shoal_meta::Digest;
use tokio::time::Instant;

use crate::disk;

/// The most notes on a shelf, of which there are 256; the oldest go first.
const SHELF_NOTES_MAX: usize = 256;

/// One file for each note at `<2 hex>/<hex>`, named by a hash of what it is about; its time is the note's.
#[derive(Clone)]
pub(crate) struct Notes(Arc<PathBuf>);

impl Notes {
    /// Keeps notes in a directory, which is made when the first is.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self(Arc::new(root))
    }

    /// Gives a note, and when it was written.
    pub(crate) async fn get(&self, about: &impl Debug) -> Option<(Instant, String)> {
        let path = self.path(about);
        let read = disk::blocking(move || Ok((fs::metadata(&path)?.modified()?, fs::read_to_string(&path)?)));
        let (written, text) = read.await.ok()?;
        // None from the future, as a clock that was set back leaves behind.
        let age = SystemTime::now().duration_since(written).ok()?;
        Some((Instant::now().checked_sub(age)?, text))
    }

    /// Writes a note, or writes it anew.
    pub(crate) async fn put(&self, about: &impl Debug, text: String) {
        let path = self.path(about);
        let write = disk::blocking(move || {
            disk::replace(&path, text.as_bytes())?;
            path.parent().map_or(Ok(()), tidy)
        });
        if let Err(error) = write.await {
            tracing::warn!(%error, "what upstream said cannot be noted");
        }
    }

    /// Takes a note back.
    pub(crate) async fn remove(&self, about: &impl Debug) {
        let path = self.path(about);
        match disk::blocking(move || fs::remove_file(path)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%error, "what upstream takes back cannot be struck from the notes");
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn path(&self, about: &impl Debug) -> PathBuf {
        // Debug, as it leaves no two things alike.
        let hex = Digest::sha256_of(format!("{about:?}").as_bytes()).hex();
        self.0.join(&hex[..2]).join(hex)
    }
}

/// Removes the oldest notes of a shelf that has too many.
fn tidy(shelf: &Path) -> io::Result<()> {
    let mut notes = Vec::new();
    for note in fs::read_dir(shelf)? {
        notes.push(note?.path());
    }
    if notes.len() <= SHELF_NOTES_MAX {
        return Ok(());
    }
    notes.sort_by_cached_key(|path| fs::metadata(path).and_then(|about| about.modified()).ok());
    notes[..notes.len() - SHELF_NOTES_MAX].iter().try_for_each(fs::remove_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_note_is_found_by_what_it_is_about() {
        let root = tempfile::tempdir().unwrap();
        let notes = Notes::new(root.path().join("notes"));
        assert!(notes.get(&("a", "b")).await.is_none());
        notes.put(&("a", "b"), "one".to_owned()).await;
        notes.put(&("a\", \"b"), "two".to_owned()).await;
        notes.put(&("a", "b"), "three".to_owned()).await;
        let again = Notes::new(root.path().join("notes"));
        assert_eq!(again.get(&("a", "b")).await.unwrap().1, "three");
        again.remove(&("a", "b")).await;
        assert!(notes.get(&("a", "b")).await.is_none());
        assert_eq!(notes.get(&("a\", \"b")).await.unwrap().1, "two");
    }

    #[tokio::test]
    async fn a_full_shelf_keeps_the_newest() {
        let root = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - std::time::Duration::from_secs(60);
        for name in 0..=SHELF_NOTES_MAX {
            let file = fs::File::create(root.path().join(name.to_string())).unwrap();
            file.set_modified(old + std::time::Duration::from_millis(name as u64)).unwrap();
        }
        tidy(root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), SHELF_NOTES_MAX);
        assert!(!root.path().join("0").exists());
    }
}
