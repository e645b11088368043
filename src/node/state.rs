//! What was written on a node and what was there before, so that it can be put back byte for byte.
//!
//! Participants: a runtime's module says what each of its files should be ([`Wanted`]); [`Node::plan`] compares that with
//! the disk and with what earlier runs wrote; [`Node::apply`] does it. The wish is the whole of it: what an earlier run
//! wrote and this one does not want is put back, so removing is wanting nothing.
//!
//! A crash at any point leaves each file old or new (temporary file, fsync, rename), and the state says before the first
//! write what is about to be written: a second run finishes. A file that is neither what we wrote nor what we found
//! was edited by someone: it is left to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use shoal_meta::Digest;

use super::root::Root;

/// Where the state is, inside the node's root.
pub(super) const DIRECTORY: &str = "/var/lib/shoal/node";
const FILE: &str = "/var/lib/shoal/node/state.json";
const VERSION: u32 = 1;

/// What a runtime's files should be, and what only a person or a restart can do.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// Whole texts by path.
    pub(crate) files: BTreeMap<PathBuf, String>,
    /// What is left alone, and why.
    pub(crate) notes: Vec<String>,
    /// What is left to do for it to take effect.
    pub(crate) todo: Vec<String>,
}

/// One file's change; `None` stands for no file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) path: PathBuf,
    pub(super) from: Option<String>,
    pub(super) to: Option<String>,
    /// Whether this puts back what was there before.
    pub(super) restores: bool,
}

/// What has to be done to a node.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) changes: Vec<Change>,
    /// Files that someone edited since they were written.
    pub(super) edited: Vec<PathBuf>,
    /// The state while it is done.
    pending: State,
    /// The state afterwards.
    after: State,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    files: BTreeMap<PathBuf, Entry>,
    /// Directories made for them.
    directories: BTreeSet<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// What was there before; `None`: no file.
    original: Option<String>,
    /// The digests of what we wrote; more than one while a run is under way.
    written: Vec<String>,
}

impl Entry {
    fn wrote(&self, text: &str) -> bool {
        self.written.contains(&digest(text))
    }
}

/// A node's files, with what is known of earlier runs.
#[derive(Debug)]
pub(crate) struct Node {
    root: Root,
    state: State,
    /// Held while the node is changed, so that two runs take turns.
    lock: Option<File>,
}

impl Node {
    /// Opens a node to look at it.
    ///
    /// # Errors
    /// When the state is there but cannot be read, or was written by a newer program.
    pub(crate) fn open(root: Root) -> Result<Self> {
        let state = match root.read(Path::new(FILE))? {
            None => State { version: VERSION, ..State::default() },
            Some(text) => serde_json::from_str(&text).with_context(|| format!("{FILE} is not what shoal wrote"))?,
        };
        ensure!(state.version == VERSION, "{FILE} has version {}; this program knows {VERSION}", state.version);
        Ok(Self { root, state, lock: None })
    }

    /// Opens a node to change it: waits until no other run does.
    ///
    /// # Errors
    /// As [`Node::open`], and when the directory of the state cannot be made.
    pub(super) fn open_to_change(root: Root) -> Result<Self> {
        let directory = root.resolve(Path::new(DIRECTORY))?;
        let missing = missing_directories(&root, &directory);
        let real = root.real(&directory);
        let lock = locked(&real).with_context(|| real.display().to_string())?;
        let mut node = Self::open(root)?;
        node.state.directories.extend(missing);
        node.lock = Some(lock);
        Ok(node)
    }

    /// Its root directory.
    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// The text of a file as it would be without us.
    ///
    /// # Errors
    /// As [`Root::read`].
    pub(crate) fn before(&self, path: &Path) -> Result<Option<String>> {
        let path = self.root.resolve(path)?;
        let text = self.root.read(&path)?;
        Ok(match (self.state.files.get(&path), text) {
            (Some(entry), Some(text)) if entry.wrote(&text) => entry.original.clone(),
            (_, text) => text,
        })
    }

    /// What would be in a directory without us.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub(crate) fn list_before(&self, directory: &Path) -> Result<Vec<String>> {
        let directory = self.root.resolve(directory)?;
        let mut names = self.root.list(&directory)?;
        names.retain(|name| {
            let path = directory.join(name);
            let ours = if self.state.files.contains_key(&path) {
                self.before(&path).is_ok_and(|text| text.is_none())
            } else {
                self.state.directories.contains(&path) && self.list_before(&path).is_ok_and(|names| names.is_empty())
            };
            !ours
        });
        Ok(names)
    }

    /// What has to be done so that exactly these files are as given and all others as they were.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn plan(&self, wanted: &BTreeMap<PathBuf, String>) -> Result<Plan> {
        let mut resolved = BTreeMap::new();
        for (path, text) in wanted {
            resolved.insert(self.root.resolve(path)?, text);
        }
        let known = self.state.files.keys().cloned();
        let paths = resolved.keys().cloned().chain(known).collect::<BTreeSet<_>>();
        let mut after = State { version: VERSION, ..State::default() };
        let mut plan =
            Plan { changes: Vec::new(), edited: Vec::new(), pending: self.state.clone(), after: State::default() };
        for path in paths {
            let (from, entry) = (self.root.read(&path)?, self.state.files.get(&path));
            let ours = entry.filter(|entry| from.as_ref().is_some_and(|text| entry.wrote(text)));
            let original = ours.map_or_else(|| from.clone(), |entry| entry.original.clone());
            let to = resolved.get(&path).map(|text| (*text).clone()).or_else(|| original.clone());
            if to != original
                && let Some(text) = &to
            {
                let mut written = ours.map(|entry| entry.written.clone()).unwrap_or_default();
                written.retain(|known| *known != digest(text));
                written.push(digest(text));
                after.files.insert(path.clone(), Entry { original: original.clone(), written: vec![digest(text)] });
                plan.pending.files.insert(path.clone(), Entry { original: original.clone(), written });
            } else if let Some(entry) = entry.filter(|entry| ours.is_none() && from != entry.original) {
                after.files.insert(path.clone(), entry.clone());
                plan.edited.push(path.clone());
            }
            if from != to {
                plan.changes.push(Change { restores: to == original, path, from, to });
            }
        }
        for change in plan.changes.iter().filter(|change| change.to.is_some()) {
            let parent = change.path.parent().unwrap_or(Path::new("/"));
            plan.pending.directories.extend(missing_directories(&self.root, parent));
        }
        let state = self.root.resolve(Path::new(FILE))?;
        let needed = |directory: &&PathBuf| {
            let mut files = after.files.keys().map(PathBuf::as_path).chain([state.as_path()]);
            !after.files.is_empty() && files.any(|file| file.starts_with(directory))
        };
        after.directories = plan.pending.directories.iter().filter(needed).cloned().collect();
        plan.after = after;
        Ok(plan)
    }

    /// Does it, and returns the directories that were made for files and stay, as something else is in them now.
    ///
    /// # Errors
    /// When a file or directory cannot be written. A second run finishes what this one began.
    pub(super) fn apply(&self, plan: &Plan) -> Result<Vec<PathBuf>> {
        debug_assert!(self.lock.is_some(), "a node is opened to change it before it is changed");
        let state = self.root.resolve(Path::new(FILE))?;
        let nothing_to_do = plan.changes.is_empty() && plan.after.files == self.state.files;
        if !nothing_to_do && plan.pending != self.saved()? {
            self.save(&state, &plan.pending)?;
        }
        for change in &plan.changes {
            self.change(change)?;
        }
        for path in plan.pending.files.keys() {
            // Left behind by a run that was killed.
            remove_file(&temporary(&self.root.real(path)))?;
        }
        if plan.after.files.is_empty() {
            remove_file(&temporary(&self.root.real(&state)))?;
            remove_file(&self.root.real(&state))?;
        } else if plan.after != self.saved()? {
            self.save(&state, &plan.after)?;
        }
        self.remove_directories(plan)
    }

    /// Removes the state's directories when nothing is in them, as after a run that was refused.
    ///
    /// # Errors
    /// When a directory cannot be removed.
    pub(super) fn forget_unused(&self) -> Result<()> {
        if self.lock.is_some() && self.state.files.is_empty() {
            let state = State { version: VERSION, ..State::default() };
            let plan = Plan { changes: Vec::new(), edited: Vec::new(), pending: self.state.clone(), after: state };
            self.apply(&plan)?;
        }
        Ok(())
    }

    /// The state on the disk, which lacks the directories that this run made.
    fn saved(&self) -> Result<State> {
        Ok(Self::open(self.root.clone())?.state)
    }

    fn save(&self, path: &Path, state: &State) -> Result<()> {
        let text = serde_json::to_string_pretty(state).context("state")? + "\n";
        // It holds what was in files that may hold secrets.
        write(&self.root.real(path), &text, &Permissions::from_mode(0o600), None)
    }

    fn change(&self, change: &Change) -> Result<()> {
        let real = self.root.real(&change.path);
        let Some(text) = &change.to else { return remove_file(&real) };
        if let Some(parent) = real.parent() {
            fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        match real.metadata() {
            Ok(old) => write(&real, text, &old.permissions(), Some((old.uid(), old.gid()))),
            Err(_) => write(&real, text, &Permissions::from_mode(0o644), None),
        }
    }

    fn remove_directories(&self, plan: &Plan) -> Result<Vec<PathBuf>> {
        let mut kept = Vec::new();
        let mut done = plan.pending.directories.clone();
        if plan.after.files.is_empty() {
            done.insert(self.root.resolve(Path::new(DIRECTORY))?);
        }
        // Children come after their parents in order.
        for directory in done.iter().rev().filter(|directory| !plan.after.directories.contains(*directory)) {
            match fs::remove_dir(self.root.real(directory)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // Busy: it is mounted.
                Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy) => {
                    kept.push(directory.clone());
                }
                Err(error) => return Err(error).with_context(|| directory.display().to_string()),
            }
        }
        Ok(kept)
    }
}

/// Makes a directory and holds its lock; made again when the run that had the lock removed it.
fn locked(directory: &Path) -> std::io::Result<File> {
    loop {
        fs::create_dir_all(directory)?;
        let lock = File::open(directory)?;
        lock.lock()?;
        let held = lock.metadata()?.ino();
        if directory.metadata().is_ok_and(|now| now.ino() == held) {
            return Ok(lock);
        }
    }
}

/// The directories on the way to `directory`, and itself, that do not exist.
fn missing_directories(root: &Root, directory: &Path) -> BTreeSet<PathBuf> {
    directory.ancestors().take_while(|ancestor| !root.real(ancestor).exists()).map(Path::to_owned).collect()
}

fn digest(text: &str) -> String {
    Digest::sha256_of(text.as_bytes()).to_string()
}

/// Where a file's next version is written; runtimes that read whole directories go by the ending and do not read it.
fn temporary(real: &Path) -> PathBuf {
    let name = real.file_name().unwrap_or_default().to_string_lossy();
    real.with_file_name(format!(".{name}.shoal-tmp"))
}

/// Puts a text in a file's place, at once or not at all.
fn write(real: &Path, text: &str, permissions: &Permissions, owner: Option<(u32, u32)>) -> Result<()> {
    let temporary = temporary(real);
    let written = || -> std::io::Result<()> {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        if let Some((user, group)) = owner {
            fchown(&file, Some(user), Some(group))?;
        }
        file.set_permissions(permissions.clone())?;
        file.sync_all()?;
        fs::rename(&temporary, real)?;
        sync_directory_of(real)
    };
    written().with_context(|| format!("write {}", real.display()))
}

fn remove_file(real: &Path) -> Result<()> {
    match fs::remove_file(real) {
        Ok(()) => sync_directory_of(real).with_context(|| real.display().to_string()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", real.display())),
    }
}

fn sync_directory_of(real: &Path) -> std::io::Result<()> {
    real.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests;
