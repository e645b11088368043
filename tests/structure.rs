//! The house rules that a compiler does not hold: which crate may know which, and how long a file may be.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of our crates each crate may depend on. Arrows point one way; parts never know parts.
const ARROWS: [(&str, &[&str]); 16] = [
    ("shoal-meta", &[]),
    ("shoal-proto", &["meta"]),
    ("shoal-swarm", &["meta", "proto"]),
    ("shoal-store", &["meta"]),
    ("shoal-registry", &["meta", "kit"]),
    ("shoal-kit", &[]),
    ("shoal-kube", &["meta", "kit"]),
    ("shoal-identity", &["kit"]),
    ("shoal-peer", &["meta", "proto", "swarm", "store", "identity", "kit"]),
    ("shoal-tracker", &["meta", "proto", "registry", "kit", "kube", "identity"]),
    ("shoal-origin", &["meta", "proto", "swarm", "store", "peer", "registry", "kit", "kube", "identity"]),
    ("shoal-agent", &["meta", "proto", "swarm", "store", "peer", "registry", "kit", "kube", "identity"]),
    ("shoal-sim", &["meta", "swarm"]),
    ("shoal-fuzz", &["meta", "proto", "swarm", "registry", "identity", "kit", "agent", "origin", "tracker"]),
    ("shoal-e2e", &["meta", "proto", "swarm", "store", "peer", "identity"]),
    ("shoal", &["meta", "kit", "kube", "registry", "identity", "agent", "origin", "tracker", "sim"]),
];

/// A file longer than this fails.
const LINES_MAX: usize = 1000;
/// A file longer than this needs a reason here.
const LINES_WITHOUT_REASON: usize = 700;
const REASONS: [(&str, &str); 0] = [];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).current_dir(root()).args(arguments).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn arrows_between_crates_point_one_way() {
    let metadata: serde_json::Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1", "--offline"])).unwrap();
    let allowed: BTreeMap<_, BTreeSet<_>> =
        ARROWS.iter().map(|(name, to)| (*name, to.iter().map(|to| format!("shoal-{to}")).collect())).collect();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let may = allowed.get(name).unwrap_or_else(|| panic!("{name} has no place in ARROWS"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = dependency["name"].as_str().unwrap();
            // Tests may see more: they put parts together.
            if to.starts_with("shoal") && dependency["kind"].is_null() {
                assert!(may.contains(to), "{name} must not know {to}");
            }
        }
    }
}

#[test]
fn the_sans_io_core_has_no_runtime_beneath_it() {
    for name in ["shoal-meta", "shoal-swarm", "shoal-sim"] {
        let tree = cargo(&["tree", "-p", name, "-e", "normal", "--prefix", "none", "--offline"]);
        for banned in ["tokio", "hyper", "tonic", "socket2", "mio"] {
            let found = tree.lines().any(|line| line.split(' ').next() == Some(banned));
            assert!(!found, "{name} depends on {banned}");
        }
    }
}

#[test]
fn files_stay_short_enough_to_read() {
    let reasons: BTreeMap<_, _> = REASONS.into_iter().collect();
    let mut long = Vec::new();
    for file in sources(root()) {
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        if lines > LINES_MAX || (lines > LINES_WITHOUT_REASON && !reasons.contains_key(name.as_str())) {
            long.push(format!("{name}: {lines} lines"));
        }
    }
    assert!(long.is_empty(), "too long: {long:?}");
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<_> =
        sources(root()).into_iter().filter(|file| !fs::read_to_string(file).unwrap().starts_with("//!")).collect();
    assert!(silent.is_empty(), "no module doc: {silent:?}");
}

/// Every Rust file of ours, generated code left out.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "generated" {
            out.extend(sources(&path));
        } else if name.ends_with(".rs") {
            out.push(path);
        }
    }
    out
}
