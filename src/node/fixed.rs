//! Systems whose files nobody writes: they have a way of their own to be told of a mirror.

use std::path::Path;

use anyhow::Result;

use super::mirror::Mirror;
use super::root::Root;

/// What to give such a system; `None` for one whose files can be written. Sources: Talos `RegistryMirrorConfig` (1.12 on;
/// `machine.registries` before), Bottlerocket `settings.container-registry`.
pub(super) fn snippet(root: &Root, mirror: &Mirror) -> Result<Option<String>> {
    let release = root.read(Path::new("/etc/os-release"))?.unwrap_or_default();
    let id = release.lines().find_map(|line| line.strip_prefix("ID=")).unwrap_or_default().trim_matches(['"', '\'']);
    Ok(match id {
        "talos" => Some(format!(
            "this is Talos, whose files are not written: patch the machine configuration (talosctl patch machineconfig) with\n\
             machine:\n  registries:\n    mirrors:\n      \"*\":\n        endpoints:\n          - {mirror}"
        )),
        "bottlerocket" => Some(format!(
            "this is Bottlerocket, whose files are not written: give its settings, for each registry,\n\
             [[settings.container-registry.mirrors]]\nregistry = \"docker.io\"\nendpoint = [\"{mirror}\"]"
        )),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn talos_and_bottlerocket_get_a_snippet_and_others_none() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        let root = Root::new(directory.path()).unwrap();
        let mirror = "http://127.0.0.1:5050".parse().unwrap();
        for (release, expected) in
            [("ID=talos\n", Some("machine:")), ("ID=\"bottlerocket\"\n", Some("settings.")), ("ID=debian\n", None)]
        {
            std::fs::write(directory.path().join("etc/os-release"), format!("NAME=x\n{release}")).unwrap();
            let snippet = snippet(&root, &mirror).unwrap();
            assert_eq!(snippet.is_some(), expected.is_some(), "{release}");
            assert!(snippet.is_none_or(|snippet| snippet.contains(expected.unwrap_or_default())));
        }
    }
}
