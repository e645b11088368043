//! The agent's store on a node, before the agent has it and after.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::root::Root;
use super::say;

/// Where the agent keeps its store, unless it is configured otherwise.
const STORE: &str = "/var/lib/shoal/agent";

/// Makes the store, if there is none, and gives it to a user with all that is in it.
///
/// # Errors
/// When a directory or file cannot be made or given.
pub(super) fn own(root: &Root, user: u32) -> Result<()> {
    let store = root.real(&root.resolve(Path::new(STORE))?);
    fs::create_dir_all(&store).with_context(|| store.display().to_string())?;
    give(&store, user)
}

fn give(path: &Path, user: u32) -> Result<()> {
    let failed = || path.display().to_string();
    let metadata = path.symlink_metadata().with_context(failed)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path).with_context(failed)? {
            give(&entry.with_context(failed)?.path(), user)?;
        }
    }
    if metadata.uid() != user {
        lchown(path, Some(user), Some(user)).with_context(failed)?;
    }
    Ok(())
}

/// Deletes the store, and its parent if nothing else is in that.
///
/// # Errors
/// When something cannot be deleted.
pub(super) fn purge(root: &Root) -> Result<()> {
    let store = root.real(&root.resolve(Path::new(STORE))?);
    match fs::remove_dir_all(&store) {
        Ok(()) => say(format!("removed {STORE}")),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| store.display().to_string()),
    }
    // Left alone where the state of edited files is still in it.
    let _not_empty = store.parent().map(fs::remove_dir);
    Ok(())
}
