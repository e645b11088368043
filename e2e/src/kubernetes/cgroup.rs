//! The cgroup in which a kubelet keeps its pods: named after the worker, as all workers share the machine's cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::wait_until;

const MOUNT: &str = "/sys/fs/cgroup";
/// What a cgroup of version 1 may run on has to be set before anything runs in it.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
/// What a kubelet wants to be in a cgroup of version 2, which has what its parent passes on.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "hugetlb", "memory", "pids"];

/// One directory in each hierarchy (version 1), or one (version 2); removed when dropped, when nothing runs in it any more.
#[derive(Debug)]
pub(super) struct Cgroup {
    name: String,
}

impl Cgroup {
    /// Makes it, without what a killed run left in it: a kubelet looks for seconds at each cgroup of a container that is no more.
    pub(super) fn make(name: &str) -> Result<Self> {
        let cgroup = Self { name: name.to_owned() };
        for hierarchy in hierarchies()? {
            let dir = hierarchy.join(name);
            remove(&dir);
            for controller in CONTROLLERS.iter().filter(|_| hierarchy == Path::new(MOUNT)) {
                let _not_of_this_kernel = fs::write(hierarchy.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
            for file in CPUSET.iter().filter(|file| hierarchy.ends_with("cpuset") && hierarchy.join(file).exists()) {
                fs::write(dir.join(file), fs::read(hierarchy.join(file))?)?;
            }
        }
        Ok(cgroup)
    }

    /// How the kubelet names it.
    pub(super) fn path(&self) -> String {
        format!("/{}", self.name)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A killed process leaves its cgroup some time after it was waited for.
        let removed = || Ok(hierarchies()?.iter().all(|hierarchy| remove(&hierarchy.join(&self.name))));
        let _best_effort = wait_until("cgroups to be empty", Duration::from_secs(5), removed);
    }
}

fn hierarchies() -> Result<Vec<PathBuf>> {
    let mount = Path::new(MOUNT);
    if mount.join("cgroup.controllers").exists() {
        return Ok(vec![mount.to_owned()]);
    }
    let mut hierarchies = Vec::new();
    for entry in fs::read_dir(mount)? {
        let entry = entry?;
        // Some have two names, of which one is a link.
        if entry.file_type()?.is_dir() {
            hierarchies.push(entry.path());
        }
    }
    Ok(hierarchies)
}

/// Removes a cgroup with those below it; true when it is gone.
fn remove(dir: &Path) -> bool {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _looked_at_below = fs::remove_dir(dir);
    !dir.exists()
}
