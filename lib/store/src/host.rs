//! What the store asks of the machine besides files: the time of day, the room on the disk, and to wait until something is on it.
//!
//! Made by [`crate::Store::open`]; the tests put their own in its place, and watch or fail single steps on the disk.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// Room on the file system that holds the store, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Space {
    pub(crate) total_bytes: u64,
    /// What an unprivileged user may still write.
    pub(crate) free_bytes: u64,
}

type Clock = Box<dyn Fn() -> SystemTime + Send + Sync>;
type Probe = Box<dyn Fn(&Path) -> io::Result<Space> + Send + Sync>;
#[cfg(test)]
type Watch = Box<dyn Fn(&'static str) -> io::Result<()> + Send + Sync>;
#[cfg(test)]
type Synced = Box<dyn Fn(&Path) + Send + Sync>;

/// The machine as the store sees it.
pub(crate) struct Host {
    pub(crate) clock: Clock,
    pub(crate) probe: Probe,
    #[cfg(test)]
    pub(crate) watch: Watch,
    /// Hears of each file and directory that is on the disk now.
    #[cfg(test)]
    pub(crate) synced: Synced,
}

impl Host {
    /// The machine we run on.
    pub(crate) fn real() -> Self {
        Self {
            clock: Box::new(SystemTime::now),
            probe: Box::new(probe),
            #[cfg(test)]
            watch: Box::new(|_| Ok(())),
            #[cfg(test)]
            synced: Box::new(|_| ()),
        }
    }

    /// Waits until a file, or the names in a directory, are on the disk.
    pub(crate) fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        file.sync_all()?;
        #[cfg(test)]
        (self.synced)(path);
        let _ = path;
        Ok(())
    }

    /// Waits until a directory's names are on the disk.
    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.sync(&File::open(path)?, path)
    }

    /// Marks a point just after a change on the disk: a crash may fall there, and the tests let it.
    #[cfg(test)]
    pub(crate) fn step(&self, name: &'static str) -> io::Result<()> {
        (self.watch)(name)
    }

    /// Marks a point just after a change on the disk; only the tests look.
    #[cfg(not(test))]
    pub(crate) fn step(&self, _name: &'static str) -> io::Result<()> {
        Ok(())
    }
}

fn probe(root: &Path) -> io::Result<Space> {
    let stat = rustix::fs::statvfs(root)?;
    Ok(Space { total_bytes: stat.f_blocks * stat.f_frsize, free_bytes: stat.f_bavail * stat.f_frsize })
}
