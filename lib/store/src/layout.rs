//! Where everything lies under the store's root (docs/adr/0003), and what is there when the store opens.
//!
//! Called by [`crate::Store::open`] and by the work that creates, commits and removes. Knows names and files; knows
//! nothing of pins, budgets or hashes in memory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use shoal_meta::{Digest, Geometry, PeerId};
use tracing::warn;

use crate::host::Host;
use crate::{OpenError, lock, pieces_file};

/// The layout this program writes, and the newest it reads.
const VERSION: u32 = 1;
const ALGORITHMS: [&str; 2] = ["sha256", "sha512"];

/// The paths under one root.
pub(crate) struct Layout {
    root: PathBuf,
    trashed: AtomicU64,
    /// Locked while this store lives, once it is open; two stores on one directory would undo each other's work.
    lock: Mutex<Option<File>>,
}

/// A blob or a partial found on disk, whole as far as sizes tell.
pub(crate) struct Found {
    pub(crate) digest: Digest,
    pub(crate) geometry: Geometry,
    /// What it takes on disk, in bytes.
    pub(crate) bytes: u64,
    pub(crate) used: SystemTime,
    /// When its hashes were last written or compared with its content.
    pub(crate) checked: SystemTime,
    pub(crate) committed: bool,
}

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, trashed: AtomicU64::new(0), lock: Mutex::new(None) }
    }

    /// Locks the root and makes what is missing in it, be it for the first time or because somebody removed it. Gives the peer
    /// id kept in it, which is the one `in_use` when there is none to read.
    pub(crate) fn prepare(&self, host: &Host, in_use: Option<PeerId>) -> Result<PeerId, OpenError> {
        self.make(host)?;
        Ok(self.peer_id(host, in_use))
    }

    /// A read-only file system is taken as it is.
    fn make(&self, host: &Host) -> Result<(), OpenError> {
        let root = &self.root;
        let disk = |source| OpenError::Disk { root: root.clone(), source };
        fs::create_dir_all(root).map_err(disk)?;
        host.step("root made").map_err(disk)?;
        let version = check_version(root)?;
        let file = match File::options().create(true).truncate(false).write(true).open(root.join("lock")) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem && version.is_some() => {
                return self.take(File::open(root.join("lock")).map_err(disk)?);
            }
            opened => opened.map_err(disk)?,
        };
        self.take(file)?;
        host.step("lock made").map_err(disk)?;
        if version.is_none() {
            write_whole(host, root, "version", &format!("{VERSION}\n")).map_err(disk)?;
        }
        fs::create_dir_all(root.join("partial")).map_err(disk)?;
        for algorithm in ALGORITHMS {
            fs::create_dir_all(root.join("blobs").join(algorithm)).map_err(disk)?;
        }
        host.step("rooms made").map_err(disk)?;
        host.sync_dir(&root.join("blobs")).and_then(|()| host.sync_dir(root)).map_err(disk)
    }

    /// Locks the lock file, unless it is locked by this very store.
    fn take(&self, file: File) -> Result<(), OpenError> {
        let disk = |source| OpenError::Disk { root: self.root.clone(), source };
        let identity = |file: &File| file.metadata().map(|about| (about.dev(), about.ino()));
        let mut held = lock(&self.lock);
        if let Some(held) = &*held
            && identity(held).map_err(disk)? == identity(&file).map_err(disk)?
        {
            return Ok(());
        }
        match file.try_lock() {
            Ok(()) => *held = Some(file),
            Err(fs::TryLockError::WouldBlock) => return Err(OpenError::InUse { root: self.root.clone() }),
            Err(fs::TryLockError::Error(error)) => return Err(disk(error)),
        }
        Ok(())
    }

    /// A disk that does not take it costs the next run another one.
    fn peer_id(&self, host: &Host, in_use: Option<PeerId>) -> PeerId {
        match fs::read_to_string(self.root.join("peer_id")).map(|text| text.trim().parse()) {
            Ok(Ok(peer_id)) => return peer_id,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(Err(_)) | Err(_) => warn!("the peer id in the store cannot be read: drawing a new one"),
        }
        let peer_id = in_use.unwrap_or_else(|| PeerId(rand::random()));
        if let Err(error) = write_whole(host, &self.root, "peer_id", &format!("{peer_id}\n")) {
            warn!(%error, "cannot keep the peer id in the store");
        }
        peer_id
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a committed blob.
    pub(crate) fn blob_dir(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs").join(digest.algorithm()).join(&hex[..2]).join(hex)
    }

    /// The directory of a partial.
    pub(crate) fn partial_dir(&self, digest: &Digest) -> PathBuf {
        self.root.join("partial").join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    /// A name under `partial/` that is nobody's: what lies there is removed when the store opens.
    pub(crate) fn trash_dir(&self) -> PathBuf {
        self.root.join("partial").join(format!("trash-{}", self.trashed.fetch_add(1, Ordering::Relaxed)))
    }

    /// Lists what is on disk, oldest use first, and removes debris: whatever a crash left incomplete.
    pub(crate) fn scan(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for algorithm in ALGORITHMS {
            for shard in entries(&self.root.join("blobs").join(algorithm))? {
                let Ok(blobs) = entries(&shard) else {
                    remove_debris(&shard);
                    continue;
                };
                for path in blobs {
                    let digest = format!("{algorithm}:{}", name(&path)).parse().ok();
                    found.extend(inspect(&path, digest.filter(|digest| self.blob_dir(digest) == path), true));
                }
            }
        }
        for path in entries(&self.root.join("partial"))? {
            let digest = name(&path).split_once('-').and_then(|(alg, hex)| format!("{alg}:{hex}").parse().ok());
            let digest = digest.filter(|digest| !self.blob_dir(digest).exists());
            found.extend(inspect(&path, digest, false));
        }
        found.sort_by_key(|found| (found.used, found.digest));
        Ok(found)
    }
}

/// Gives the layout version on disk, or `None` for a directory that is not a store yet.
fn check_version(root: &Path) -> Result<Option<u32>, OpenError> {
    let foreign = || OpenError::NotAStore { root: root.to_owned() };
    match fs::read_to_string(root.join("version")) {
        Ok(text) => match text.trim().parse() {
            Ok(0) | Err(_) => Err(foreign()),
            Ok(found) if found > VERSION => {
                Err(OpenError::NewerVersion { root: root.to_owned(), found, supported: VERSION })
            }
            Ok(found) => Ok(Some(found)),
        },
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(foreign()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::Disk { root: root.to_owned(), source: error })
        }
        // What we would take for debris in it may be somebody's OCI layout.
        Err(_) if root.join("blobs").exists() || root.join("partial").exists() => Err(foreign()),
        Err(_) => Ok(None),
    }
}

/// Tells what a directory holds; removes it when that is not a blob or partial of this digest.
fn inspect(path: &Path, digest: Option<Digest>, committed: bool) -> Option<Found> {
    let found = digest.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData)).and_then(|digest| {
        let pieces = File::open(path.join("pieces"))?;
        let (geometry, complete) = pieces_file::read_geometry(&pieces, &digest)?;
        let data = fs::metadata(path.join("data"))?;
        if data.len() != geometry.length() || (committed && !complete) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let bytes = if committed { geometry.length() } else { allocated(&data) };
        let (used, checked) = (data.modified()?, pieces.metadata()?.modified()?);
        Ok(Found { digest, geometry, bytes, used, checked, committed })
    });
    match found {
        Ok(found) => Some(found),
        Err(error) if is_debris(&error) => {
            remove_debris(path);
            None
        }
        Err(error) => {
            warn!(path = %path.display(), %error, "left out what cannot be read");
            None
        }
    }
}

/// Tells errors that mean "this is not what it should be" from those of a disk or of permissions.
pub(crate) fn is_debris(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound};
    [InvalidData, IsADirectory, NotADirectory, NotFound].contains(&error.kind())
}

/// What a sparse file takes on disk, in bytes.
pub(crate) fn allocated(data: &fs::Metadata) -> u64 {
    (data.blocks() * 512).min(data.len())
}

fn write_whole(host: &Host, root: &Path, name: &str, content: &str) -> io::Result<()> {
    let new = root.join(format!("{name}.new"));
    fs::write(&new, content)?;
    host.step("small file")?;
    host.sync(&File::open(&new)?, &new)?;
    fs::rename(&new, root.join(name))?;
    host.step("small file in place")?;
    host.sync_dir(root)
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn remove_debris(path: &Path) {
    let removed = fs::remove_dir_all(path).or_else(|error| match error.kind() == io::ErrorKind::NotADirectory {
        true => fs::remove_file(path),
        false => Err(error),
    });
    match removed {
        Ok(()) => warn!(path = %path.display(), "removed what a crash left behind"),
        Err(error) => warn!(path = %path.display(), %error, "cannot remove what a crash left behind"),
    }
}
