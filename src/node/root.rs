//! The root directory of a node: `/`, or where a container has the host's mounted. Every path of the modules beside this
//! one is a path inside it; symbolic links are followed inside it too, so that an absolute one does not lead into the
//! container that looks.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// Most symbolic links followed in one path, as Linux has it.
const LINKS_MAX: usize = 40;
/// The longest file read, in bytes: no configuration is longer.
const FILE_LENGTH_MAX: u64 = 1 << 20;

/// A node's root directory.
#[derive(Debug, Clone)]
pub(crate) struct Root(PathBuf);

impl Root {
    /// Takes a directory as the root.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let directory = directory.canonicalize().with_context(|| format!("--root {}", directory.display()))?;
        ensure!(directory.is_dir(), "--root {} is refused: expected a directory", directory.display());
        Ok(Self(directory))
    }

    /// Whether it is the root of this very machine or container.
    pub(crate) fn is_own(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Where a path that [`Root::resolve`] gave is, seen from here.
    pub(crate) fn real(&self, resolved: &Path) -> PathBuf {
        self.0.join(resolved.strip_prefix("/").unwrap_or(resolved))
    }

    /// The path without symbolic links; what does not exist of it is kept as it is.
    ///
    /// # Errors
    /// When links form a loop, or a directory cannot be looked into.
    pub(crate) fn resolve(&self, path: &Path) -> Result<PathBuf> {
        let mut left = names(path);
        let (mut resolved, mut links) = (PathBuf::from("/"), 0);
        while let Some(name) = left.pop_front() {
            if name == ".." {
                resolved.pop();
                continue;
            }
            let next = resolved.join(name);
            let Ok(target) = std::fs::read_link(self.real(&next)) else {
                resolved = next;
                continue;
            };
            links += 1;
            ensure!(links <= LINKS_MAX, "{}: too many symbolic links", path.display());
            if target.is_absolute() {
                resolved = PathBuf::from("/");
            }
            let mut names = names(&target);
            names.append(&mut left);
            left = names;
        }
        Ok(resolved)
    }

    /// The text of a file; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, is longer than 1 MiB or is not UTF-8.
    pub(crate) fn read(&self, path: &Path) -> Result<Option<String>> {
        let real = self.real(&self.resolve(path)?);
        let length = match real.metadata() {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => bail!("{} is not a file", real.display()),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(error).with_context(|| real.display().to_string()),
        };
        ensure!(length <= FILE_LENGTH_MAX, "{} is longer than 1 MiB: no runtime's configuration", real.display());
        std::fs::read_to_string(&real).map(Some).with_context(|| real.display().to_string())
    }

    /// What is in a directory, in order; empty when there is none.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub(crate) fn list(&self, directory: &Path) -> Result<Vec<String>> {
        let real = self.real(&self.resolve(directory)?);
        let entries = match std::fs::read_dir(&real) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error).with_context(|| real.display().to_string()),
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    /// Whether a path is a directory.
    pub(crate) fn is_directory(&self, path: &Path) -> bool {
        self.resolve(path).is_ok_and(|path| self.real(&path).is_dir())
    }

    /// The first of these paths that exists.
    pub(crate) fn first_of<'a>(&self, paths: &[&'a str]) -> Option<&'a str> {
        let exists = |path: &&&str| self.resolve(Path::new(path)).is_ok_and(|path| self.real(&path).exists());
        paths.iter().find(exists).copied()
    }
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path()).unwrap();
        std::fs::create_dir_all(root.real(Path::new("/opt/etc"))).unwrap();
        std::fs::write(root.real(Path::new("/opt/etc/a.toml")), "a").unwrap();
        symlink("/opt/etc", root.real(Path::new("/etc"))).unwrap();
        symlink("../../../../opt/./etc/a.toml", root.real(Path::new("/opt/etc/b.toml"))).unwrap();
        assert_eq!(root.resolve(Path::new("/etc/b.toml")).unwrap(), Path::new("/opt/etc/a.toml"));
        assert_eq!(root.read(Path::new("/etc/b.toml")).unwrap().as_deref(), Some("a"));
        assert_eq!(root.resolve(Path::new("/etc/new/c")).unwrap(), Path::new("/opt/etc/new/c"));
        assert_eq!(root.read(Path::new("/etc/new/c")).unwrap(), None);
        assert_eq!(root.list(Path::new("/etc")).unwrap(), ["a.toml", "b.toml"]);
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path()).unwrap();
        symlink("b", directory.path().join("a")).unwrap();
        symlink("a", directory.path().join("b")).unwrap();
        assert!(root.resolve(Path::new("/a")).unwrap_err().to_string().contains("too many symbolic links"));
    }
}
