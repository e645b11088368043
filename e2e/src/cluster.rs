//! The program under test: the one place that knows Shoal's command line, configuration and metrics. Used by the tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::process::output;

/// The `shoal` program.
#[derive(Debug, Clone)]
pub struct Program(PathBuf);

impl Program {
    /// The program that `SHOAL_BIN` names, or else the one cargo builds in the profile of this test program, once.
    ///
    /// # Errors
    /// When it does not build or is not there.
    pub fn find() -> Result<Self> {
        static FOUND: OnceLock<PathBuf> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(Self(found.clone()));
        }
        let path = match std::env::var_os("SHOAL_BIN") {
            Some(path) => PathBuf::from(path).canonicalize().context("SHOAL_BIN")?,
            None => build()?,
        };
        ensure!(path.is_file(), "no program at {}", path.display());
        Ok(Self(FOUND.get_or_init(|| path).clone()))
    }
}

/// Builds the program beside this one: tests are in `target/<profile>/deps`, programs in `target/<profile>`.
fn build() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile_dir = test.parent().and_then(Path::parent).context("this program is not in a target directory")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).args(["build", "--quiet", "--bin", "shoal"]);
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    output(&mut cargo).context("build shoal")?;
    Ok(profile_dir.join("shoal"))
}
