//! What the node's runtime has been given: the digests of blobs that the front served whole, across restarts.
//!
//! The front notes them, and `pods` fetches none of them ahead: the runtime has them, or had them and threw them away. Nothing else
//! is decided by it. It is a memory and no proof: what is lost of it costs a layer fetched in vain, what is wrong in it a layer not
//! fetched ahead.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use shoal_meta::Digest;
use shoal_registry::range::RangeSet;

/// Most digests remembered; the one given longest ago goes first. Some hundred images: 1 MiB.
const DIGESTS_MAX: usize = 16 * 1024;
/// The longest file read, in bytes: more than as many digests take.
const FILE_LENGTH_MAX: u64 = 4 << 20;
/// How often what has changed is written. What a crash loses is harmless.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// Its name beside the store's own files: a digest a line, oldest first.
const FILE: &str = "given";

/// The memory. Bounded.
#[derive(Debug)]
pub(crate) struct Given {
    directory: PathBuf,
    memory: Mutex<Memory>,
    /// Held by who writes the file.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Memory {
    /// In the order in which they were given last, oldest first.
    digests: VecDeque<Digest>,
    /// Not all of it is in the file.
    is_changed: bool,
}

impl Given {
    /// Reads what an earlier run left in a store's directory: nothing, if that is missing or broken.
    pub(crate) async fn open(directory: &Path) -> Arc<Self> {
        let directory = directory.to_owned();
        let given = tokio::task::spawn_blocking(move || {
            let digests = read(&directory.join(FILE)).unwrap_or_else(|error| {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "cannot read which layers the runtime was given: none is known");
                }
                VecDeque::new()
            });
            let memory = Mutex::new(Memory { digests, is_changed: false });
            Self { directory, memory, writing: Mutex::default() }
        });
        Arc::new(given.await.expect("reading does not panic"))
    }

    /// Remembers that the runtime was given a blob.
    pub(crate) fn note(&self, digest: Digest) {
        let mut memory = self.lock();
        if let Some(known) = memory.digests.iter().rposition(|given| *given == digest) {
            memory.digests.remove(known);
        }
        memory.digests.push_back(digest);
        if memory.digests.len() > DIGESTS_MAX {
            memory.digests.pop_front();
        }
        memory.is_changed = true;
    }

    /// Tells whether the runtime was given a blob.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.lock().digests.contains(digest)
    }

    /// Saves it now and then, for ever.
    pub(crate) async fn save_now_and_then(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(SAVE_INTERVAL).await;
            self.save().await;
        }
    }

    /// Writes the file, if there is something new. A disk that does not take it is tried again next time.
    pub(crate) async fn save(self: &Arc<Self>) {
        let given = self.clone();
        let saved = tokio::task::spawn_blocking(move || given.write()).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "cannot write which layers the runtime was given");
            self.lock().is_changed = true;
        }
    }

    fn write(&self) -> io::Result<()> {
        let _writing = self.writing.lock().expect("nothing panics while it holds this lock");
        let digests: Vec<_> = {
            let mut memory = self.lock();
            if !std::mem::take(&mut memory.is_changed) {
                return Ok(());
            }
            memory.digests.iter().copied().collect()
        };
        let text: String = digests.iter().map(|digest| format!("{digest}\n")).collect();
        let new = self.directory.join(format!("{FILE}.new"));
        fs::write(&new, text)?;
        fs::rename(new, self.directory.join(FILE))
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("nothing panics while it holds this lock")
    }
}

/// Whether a client has all of a blob with this answer: be it that it goes on where another was cut, or that containerd fetches
/// open-ended ranges side by side, of which this is the last. Closed ranges are those of lazy snapshotters, which look at the end
/// first.
pub(crate) fn completes(ranges: &RangeSet, wanted: Option<&str>, length: u64) -> bool {
    match ranges {
        RangeSet::Whole => true,
        RangeSet::Single(range) => {
            let is_open = wanted.is_some_and(|wanted| wanted.trim_end().ends_with('-'));
            range.end == length && (range.start == 0 || is_open)
        }
        RangeSet::Multi(_) | RangeSet::Unsatisfiable => false,
    }
}

fn read(file: &Path) -> io::Result<VecDeque<Digest>> {
    if fs::metadata(file)?.len() > FILE_LENGTH_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let text = fs::read_to_string(file)?;
    let digests: Result<VecDeque<Digest>, _> = text.lines().map(str::parse).collect();
    let mut digests = digests.map_err(io::Error::other)?;
    digests.drain(..digests.len().saturating_sub(DIGESTS_MAX));
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use shoal_registry::range;

    use super::*;

    fn digest(n: usize) -> Digest {
        Digest::sha256_of(&n.to_le_bytes())
    }

    #[test]
    fn a_blob_is_given_by_a_whole_answer_or_an_open_range_to_its_end() {
        let whole = |wanted| completes(&range::parse(wanted, 100), Some(wanted), 100);
        assert!(completes(&RangeSet::Whole, None, 100));
        assert!(whole("bytes=0-99") && whole("bytes=0-") && whole("bytes=60-"));
        assert!(!whole("bytes=60-99") && !whole("bytes=-10") && !whole("bytes=0-98") && !whole("bytes=0-1,5-"));
    }

    #[tokio::test]
    async fn what_was_given_is_known_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let given = Given::open(directory.path()).await;
        let long: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
        given.note(digest(1));
        given.note(long);
        given.save().await;
        let again = Given::open(directory.path()).await;
        assert!(again.has(&digest(1)) && again.has(&long) && !again.has(&digest(2)));
        assert!(!directory.path().join("given.new").exists());
    }

    #[tokio::test]
    async fn the_memory_is_bounded_and_what_was_given_longest_ago_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let given = Given::open(directory.path()).await;
        (0..DIGESTS_MAX).for_each(|n| given.note(digest(n)));
        given.note(digest(0));
        given.note(digest(DIGESTS_MAX));
        assert!(given.has(&digest(0)) && !given.has(&digest(1)) && given.has(&digest(2)));
        given.save().await;
        let again = Given::open(directory.path()).await;
        assert_eq!(again.lock().digests, given.lock().digests);
        assert_eq!(again.lock().digests.len(), DIGESTS_MAX);
    }

    #[tokio::test]
    async fn a_broken_file_is_an_empty_memory_and_is_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        let whole = format!("{}\n", digest(1));
        for broken in [b"sha256:zz\n".to_vec(), vec![0xff; 80], vec![0; 80], whole.as_bytes()[..40].to_vec()] {
            fs::write(&file, broken).unwrap();
            let given = Given::open(directory.path()).await;
            assert!(given.lock().digests.is_empty());
            given.note(digest(1));
            given.save().await;
            assert_eq!(fs::read_to_string(&file).unwrap(), whole);
        }
        fs::write(&file, whole.repeat(DIGESTS_MAX * 4)).unwrap();
        assert!(Given::open(directory.path()).await.lock().digests.is_empty());
    }

    #[tokio::test]
    async fn a_disk_that_fails_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let given = Given::open(&directory.path().join("missing")).await;
        given.note(digest(1));
        given.save().await;
        fs::create_dir(directory.path().join("missing")).unwrap();
        given.save().await;
        assert!(Given::open(&directory.path().join("missing")).await.has(&digest(1)));
    }
}
