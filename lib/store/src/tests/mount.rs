//! A file system of a test's own, made full or read-only. The agent's tests include this file too.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// It is there as long as this lives. Needs root.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// By system calls: a process that is made for it would hold the locks of other stores for a moment.
    pub(crate) fn tmpfs(at: &Path, size: &CStr, flags: MountFlags) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        match mount("tmpfs", at, "tmpfs", flags, size) {
            Ok(()) => Some(Self(at.to_owned())),
            Err(error) => {
                skipped(&format!("a file system cannot be mounted here: {error}"));
                None
            }
        }
    }

    pub(crate) fn remount(&self, flags: MountFlags) {
        mount_remount(&self.0, flags, "").unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Says that a test, or a part of it, cannot run here.
#[expect(clippy::print_stderr, reason = "a test that could not run must not look as if it had")]
pub(crate) fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}
