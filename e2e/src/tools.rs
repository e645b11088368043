//! Programs that Debian lacks or has too old, built by e2e/tools.sh and e2e/kubernetes.sh. Asked for by the tests that run them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::harness::state_dir;
use crate::process::output;

type Found = OnceLock<Result<PathBuf, String>>;

/// Where the clients are: containerd 2.x, its `ctr` and shim, `crane`, `crictl`. Builds them when they are not there, which takes
/// some minutes.
///
/// # Errors
/// Why they are not to be had, such as a machine without Go.
pub fn find() -> Result<&'static Path, String> {
    static FOUND: Found = OnceLock::new();
    built_by("tools.sh", &FOUND)
}

/// Where the programs of Kubernetes are, `kubectl`, `helm` and `kubeconform` among them. Builds them when they are not there, which
/// takes a quarter of an hour.
///
/// # Errors
/// Why they are not to be had, such as a machine without Go.
pub fn kubernetes() -> Result<&'static Path, String> {
    static FOUND: Found = OnceLock::new();
    built_by("kubernetes.sh", &FOUND)
}

fn built_by(script: &str, found: &'static Found) -> Result<&'static Path, String> {
    let found = found.get_or_init(|| {
        let dir = state_dir().join("tools");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
        match output(Command::new("sh").arg(script).arg(&dir)) {
            Ok(_) => Ok(dir),
            Err(error) => Err(error.to_string().lines().last().unwrap_or_default().to_owned()),
        }
    });
    found.as_deref().map_err(Clone::clone)
}
