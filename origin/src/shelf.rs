//! Manifests on disk, by digest, kept for ever within a limit: what a digest names does not change. Called by
//! `manifests.rs` only; knows nothing of tags, callers or upstream.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use shoal_meta::Digest;
use shoal_registry::{MANIFEST_LENGTH_MAX, Manifest};

use crate::disk::{self, blocking};
use crate::lock;

/// What a file takes on the disk at least; counted so, that many small manifests stay within the limit too.
const FILE_BYTES_MIN: u64 = 4096;
/// The longest media type kept.
const MEDIA_TYPE_LENGTH_MAX: usize = 255;

/// The manifests kept: one file each at `<algorithm>/<2 hex>/<hex>`, the media type on its first line and then the bytes.
/// A file is checked against its digest when it is read, so a torn one is only a miss.
#[derive(Clone)]
pub(crate) struct Shelf(Arc<Inner>);

struct Inner {
    root: PathBuf,
    bytes_max: u64,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    entries: HashMap<Digest, Entry>,
    by_use: BTreeMap<u64, Digest>,
    uses: u64,
    bytes: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    bytes: u64,
    used: u64,
}

impl Shelf {
    /// Opens the directory and finds what is there; the oldest files are the first to go.
    pub(crate) async fn open(root: PathBuf, bytes_max: u64) -> io::Result<Self> {
        blocking(move || {
            let mut found = Vec::new();
            for algorithm in ["sha256", "sha512"] {
                scan(&root.join(algorithm), algorithm, &mut found)?;
            }
            found.sort_by_key(|(written, _, _)| *written);
            let inner = Inner { root, bytes_max, index: Mutex::default() };
            for (_, digest, bytes) in found {
                inner.keep(digest, bytes);
            }
            Ok(Self(Arc::new(inner)))
        })
        .await
    }

    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        lock(&self.0.index).entries.contains_key(digest)
    }

    /// How many manifests are kept, and their bytes on disk.
    pub(crate) fn usage(&self) -> (usize, u64) {
        let index = lock(&self.0.index);
        (index.entries.len(), index.bytes)
    }

    /// Reads a manifest and checks its digest. Whatever goes wrong is a miss.
    pub(crate) async fn get(&self, digest: &Digest) -> Option<Manifest> {
        if !lock(&self.0.index).touch(digest) {
            return None;
        }
        let (inner, digest) = (Arc::clone(&self.0), *digest);
        let read = blocking(move || {
            let manifest = read(&inner.path(&digest), digest);
            if manifest.is_err() {
                inner.drop_entry(&digest);
            }
            manifest
        });
        read.await.inspect_err(|error| tracing::warn!(%digest, %error, "kept manifest is of no use")).ok()
    }

    /// Keeps a manifest with its content. The caller has checked its digest.
    pub(crate) async fn put(&self, manifest: &Manifest) -> io::Result<()> {
        let (inner, manifest) = (Arc::clone(&self.0), manifest.clone());
        let is_line = !manifest.media_type.contains(['\n', '\r']) && manifest.media_type.len() <= MEDIA_TYPE_LENGTH_MAX;
        if !is_line || self.contains(&manifest.digest) {
            return Ok(());
        }
        blocking(move || {
            let bytes = write(&inner.path(&manifest.digest), &manifest)?;
            inner.keep(manifest.digest, bytes);
            Ok(())
        })
        .await
    }
}

impl Inner {
    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join(digest.algorithm()).join(&hex[..2]).join(hex)
    }

    /// Enters a file into the index, and removes the least recently used until the limit holds.
    fn keep(&self, digest: Digest, bytes: u64) {
        let mut index = lock(&self.index);
        index.insert(digest, bytes.max(FILE_BYTES_MIN));
        while index.bytes > self.bytes_max
            && let Some((_, oldest)) = index.by_use.first_key_value().map(|(used, digest)| (*used, *digest))
        {
            index.remove(&oldest);
            let _ = std::fs::remove_file(self.path(&oldest));
        }
    }

    fn drop_entry(&self, digest: &Digest) {
        lock(&self.index).remove(digest);
        let _ = std::fs::remove_file(self.path(digest));
    }
}

impl Index {
    fn insert(&mut self, digest: Digest, bytes: u64) {
        self.remove(&digest);
        self.uses += 1;
        self.entries.insert(digest, Entry { bytes, used: self.uses });
        self.by_use.insert(self.uses, digest);
        self.bytes += bytes;
    }

    fn touch(&mut self, digest: &Digest) -> bool {
        let Some(bytes) = self.entries.get(digest).map(|entry| entry.bytes) else { return false };
        self.insert(*digest, bytes);
        true
    }

    fn remove(&mut self, digest: &Digest) {
        if let Some(entry) = self.entries.remove(digest) {
            self.by_use.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}

fn scan(directory: &Path, algorithm: &str, found: &mut Vec<(SystemTime, Digest, u64)>) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for shelf in std::fs::read_dir(directory)? {
        let shelf = shelf?;
        if !shelf.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(shelf.path())? {
            let file = file?;
            let name = file.file_name();
            match name.to_str().and_then(|hex| format!("{algorithm}:{hex}").parse().ok()) {
                Some(digest) => {
                    let about = file.metadata()?;
                    found.push((about.modified()?, digest, about.len()));
                }
                // Left by a crash in the midst of a write.
                None => std::fs::remove_file(file.path())?,
            }
        }
    }
    Ok(())
}

fn read(path: &Path, digest: Digest) -> io::Result<Manifest> {
    let invalid = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    if std::fs::metadata(path)?.len() > (MANIFEST_LENGTH_MAX + MEDIA_TYPE_LENGTH_MAX + 1) as u64 {
        return Err(invalid("the file is too long"));
    }
    let mut content = Bytes::from(std::fs::read(path)?);
    let line = content.iter().position(|byte| *byte == b'\n').ok_or_else(|| invalid("there is no media type"))?;
    let media_type = content.split_to(line);
    let content = content.split_off(1);
    let mut hasher = digest.hasher();
    hasher.update(&content);
    if hasher.finish() != digest {
        return Err(invalid("the bytes are not those of the digest"));
    }
    let media_type = String::from_utf8(media_type.to_vec()).map_err(|_| invalid("the media type is not text"))?;
    Ok(Manifest { digest, media_type, length: content.len() as u64, content })
}

fn write(path: &Path, manifest: &Manifest) -> io::Result<u64> {
    let mut bytes = Vec::with_capacity(manifest.media_type.len() + 1 + manifest.content.len());
    bytes.extend_from_slice(manifest.media_type.as_bytes());
    bytes.push(b'\n');
    bytes.extend_from_slice(&manifest.content);
    disk::replace(path, &bytes)?;
    Ok(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(content: &str) -> Manifest {
        let content = Bytes::from(content.to_owned());
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        Manifest { digest: Digest::sha256_of(&content), media_type, length: content.len() as u64, content }
    }

    #[tokio::test]
    async fn what_is_kept_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(directory.path().to_owned(), 1 << 20).await.unwrap();
        shelf.put(&manifest("{}")).await.unwrap();
        let shelf = Shelf::open(directory.path().to_owned(), 1 << 20).await.unwrap();
        assert_eq!(shelf.get(&manifest("{}").digest).await, Some(manifest("{}")));
        assert_eq!(shelf.usage(), (1, FILE_BYTES_MIN));
    }

    #[tokio::test]
    async fn the_least_recently_used_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(directory.path().to_owned(), 2 * FILE_BYTES_MIN).await.unwrap();
        let [a, b, c] = ["a", "b", "c"].map(manifest);
        shelf.put(&a).await.unwrap();
        shelf.put(&b).await.unwrap();
        assert!(shelf.get(&a.digest).await.is_some());
        shelf.put(&c).await.unwrap();
        let held = [&a, &b, &c].map(|manifest| shelf.contains(&manifest.digest));
        assert_eq!(held, [true, false, true]);
        assert!(!shelf.0.path(&b.digest).exists());
    }

    #[tokio::test]
    async fn a_torn_file_is_a_miss() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(directory.path().to_owned(), 1 << 20).await.unwrap();
        let kept = manifest("{\"layers\":[]}");
        shelf.put(&kept).await.unwrap();
        std::fs::write(shelf.0.path(&kept.digest), "application/json\n{\"lay").unwrap();
        assert_eq!(shelf.get(&kept.digest).await, None);
        assert!(!shelf.contains(&kept.digest));
    }
}
