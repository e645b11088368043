//! The runtimes of a node: their versions, what their files say of the mirror, and what their daemons have loaded of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use super::{Check, Status};
use crate::http::get_at;
use crate::node::containerd::config::Config;
use crate::node::containerd::hosts::{self, Standing};
use crate::node::containerd::{self, Installation};
use crate::node::mirror::Mirror;
use crate::node::root::Root;
use crate::node::{Runtime, containers, detect, docker};

const BIN: [&str; 3] = ["/usr/bin", "/usr/sbin", "/usr/local/bin"];

/// All checks of the runtimes.
pub(super) async fn check(root: &Root, mirror: &Mirror) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut served = 0;
    let runtimes = detect(root);
    for runtime in &runtimes {
        let (found, serves) = match runtime {
            Runtime::Containerd => each_containerd(root, mirror),
            Runtime::Docker => dockerd(root, mirror).await,
            Runtime::Crio => drop_in(root, mirror, "crio"),
            Runtime::Podman => drop_in(root, mirror, "podman"),
        };
        checks.extend(found);
        served += usize::from(serves);
    }
    checks.push(match (runtimes.len(), served) {
        (0, _) => Check::fail(
            "runtimes",
            "no containerd, docker, crio or podman is found",
            "give the node's root with --root",
        ),
        (_, 0) => Check::fail("runtimes", "none asks the agent", configure(root)),
        (found, served) => Check::ok("runtimes", format!("{served} of {found} ask the agent first")),
    });
    checks
}

fn configure(root: &Root) -> String {
    if root.is_own() {
        "shoal node configure".to_owned()
    } else {
        format!("shoal node configure --root {}", root.real(Path::new("/")).display())
    }
}

/// A check, and whether the runtime asks the agent.
type Found = (Vec<Check>, bool);

fn each_containerd(root: &Root, mirror: &Mirror) -> Found {
    let (mut checks, mut serves) = (Vec::new(), false);
    for installation in containerd::found(root) {
        match one_containerd(root, mirror, installation) {
            Ok((found, asks)) => {
                checks.extend(found);
                serves |= asks;
            }
            Err(error) => {
                checks.push(Check::fail(installation.name, format!("{error:#}"), "mend the file, then run this again"))
            }
        }
    }
    (checks, serves)
}

fn one_containerd(root: &Root, mirror: &Mirror, installation: &Installation) -> Result<Found> {
    let name = installation.name;
    let config = installation.config(root)?;
    let mut checks = Vec::new();
    let version = if name == "containerd" { version_of(root, "containerd") } else { None };
    if let Some(version) = &version {
        checks.push(match numbers(version) {
            (1, ..5) => Check::fail(
                name,
                format!("version {version} does not know hosts.toml"),
                "upgrade containerd to 1.6 or later",
            ),
            _ => Check::ok(name, format!("version {version}")),
        });
    }
    if config.cri_disabled {
        let why = format!("its CRI plugin is disabled in {}: no kubelet pulls through it", installation.config);
        checks.push(Check::ok(format!("{name} config_path"), why));
        return Ok((checks, false));
    }
    let (standings, asks) = standings(root, mirror, installation, &config)?;
    let path = config_path(root, installation, &config, version.as_deref(), asks);
    let serves = asks && path.status != Status::Fail && path.status != Status::Warn;
    checks.push(path);
    checks.extend(standings);
    if config.discard_unpacked_layers {
        let why = "compressed layers are dropped after they are unpacked: no matter, the agent has a store of its own";
        checks.push(Check::ok(format!("{name} discard_unpacked_layers"), why));
    }
    Ok((checks, serves))
}

fn config_path(root: &Root, installation: &Installation, config: &Config, version: Option<&str>, asks: bool) -> Check {
    let name = format!("{} config_path", installation.name);
    let file = installation.config;
    let paths = config.config_path.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":");
    if config.deprecated_mirrors {
        let why = format!("{file} has registry.mirrors, which is deprecated and refused beside config_path");
        return Check::fail(
            name,
            why,
            format!("move what they say to hosts.toml files, remove them, and {}", installation.advice(root)),
        );
    }
    if installation.is_told(config, root) {
        // https://github.com/containerd/containerd/issues/12808
        if config.config_path.len() > 1 && version.is_none_or(|version| numbers(version) >= (2, 1)) {
            let why = format!(
                "{paths} are several directories: the transfer service of containerd 2.1 and later takes them for one name"
            );
            return Check::warn(
                name,
                why,
                format!("name one directory alone in {file}, then {}", installation.restart),
            );
        }
        return Check::ok(name, if paths.is_empty() { "the distribution sets it".to_owned() } else { paths });
    }
    let misplaced = config
        .misplaced
        .as_ref()
        .map(|plugin| format!(", but under {plugin}, which this version of config is not read for"));
    let why = format!("it is unset in {file}{}: hosts.toml files are not read", misplaced.unwrap_or_default());
    let mend = format!("{} --set-config-path, or {}", configure(root), installation.advice(root));
    if asks { Check::fail(name, why, mend) } else { Check::warn(name, why, mend) }
}

/// Where the mirror stands in each hosts.toml, and whether it is first in any.
fn standings(root: &Root, mirror: &Mirror, installation: &Installation, config: &Config) -> Result<Found> {
    let (mut checks, mut first) = (Vec::new(), Vec::new());
    for directory in installation.directories(config) {
        for name in root.list(&directory)? {
            let file = directory.join(&name).join("hosts.toml");
            if root.is_directory(&directory.join(&name)) {
                match standing(root, mirror, installation, &file)? {
                    None => first.push(name),
                    Some(check) => checks.push(check),
                }
            }
        }
    }
    let name = format!("{} hosts.toml", installation.name);
    if first.iter().any(|name| name == "_default") {
        checks.insert(0, Check::ok(name, format!("the mirror is first for {}", first.join(", "))));
    } else if first.is_empty() {
        checks.insert(0, Check::warn(name, "the mirror is in none", configure(root)));
    } else {
        let why = format!("the mirror is first for {} alone, as there is none in _default", first.join(", "));
        checks.insert(0, Check::ok(name, why));
    }
    Ok((checks, !first.is_empty()))
}

/// What is wrong with one hosts.toml.
fn standing(root: &Root, mirror: &Mirror, installation: &Installation, file: &Path) -> Result<Option<Check>> {
    let name = format!("{} {}", installation.name, file.display());
    let Some(text) = root.read(file)? else {
        return Ok(Some(Check::warn(name, "there is none in this directory, which hides _default", configure(root))));
    };
    Ok(match hosts::standing(&text, mirror) {
        Ok(Standing::First) => None,
        Ok(Standing::Absent) => {
            Some(Check::warn(name, "the mirror is not in it, and it hides _default", configure(root)))
        }
        Ok(Standing::Behind(host)) => {
            Some(Check::warn(name, format!("{host} is asked before the mirror"), configure(root)))
        }
        Ok(Standing::Incapable) => {
            Some(Check::warn(name, "the mirror may not pull and resolve there", configure(root)))
        }
        Ok(Standing::Server) => {
            let why = "the mirror is its `server`: pulls fail while the agent is down, as nobody else is asked";
            Some(Check::fail(name, why, configure(root)))
        }
        Err(refused) => Some(Check::fail(name, refused.to_string(), "mend the file by hand")),
    })
}

async fn dockerd(root: &Root, mirror: &Mirror) -> Found {
    let name = "docker";
    let socket = socket(root);
    let info = match get_at(&socket, "/info").await {
        Ok(answer) => serde_json::from_slice::<Value>(&answer.body).ok(),
        Err(_) => None,
    };
    let version = info.as_ref().and_then(|info| info["ServerVersion"].as_str().map(str::to_owned));
    let running = version.is_some();
    let version = version.or_else(|| version_of(root, "dockerd")).unwrap_or_else(|| "unknown".to_owned());
    let mut checks = vec![Check::ok(
        name,
        format!("version {version}, {}", if running { "running" } else { "not reached at its socket" }),
    )];
    let text = root.read(Path::new(docker::FILE)).map(Option::unwrap_or_default);
    let named = match text.and_then(|text| docker::mirrors(&text)) {
        Ok(mirrors) => mirrors.first().is_some_and(|first| mirror.is(first)),
        Err(error) => {
            let why = format!("{}: {error:#}: dockerd will not start again", docker::FILE);
            checks.push(Check::fail(
                "docker daemon.json",
                why,
                format!("mend {}; dockerd --validate checks it", docker::FILE),
            ));
            return (checks, false);
        }
    };
    let loaded = info.as_ref().and_then(|info| info["RegistryConfig"]["Mirrors"].as_array()?.first()?.as_str());
    let loaded = loaded.is_some_and(|first| mirror.is(first));
    if !named && loaded {
        let why = "dockerd still has the mirror, which daemon.json names no more";
        checks.push(Check::warn("docker mirrors", why, "systemctl restart docker"));
        return (checks, true);
    }
    if !named {
        checks.push(Check::warn("docker daemon.json", "the mirror is not first in registry-mirrors", configure(root)));
        return (checks, false);
    }
    checks.push(Check::ok(
        "docker daemon.json",
        "the mirror is first in registry-mirrors, which are for docker.io alone",
    ));
    if !running {
        return (checks, true);
    }
    checks.push(if loaded {
        Check::ok("docker mirrors", "dockerd has loaded them")
    } else {
        Check::fail("docker mirrors", "dockerd has not loaded them", "systemctl reload docker (or SIGHUP to dockerd)")
    });
    (checks, loaded)
}

/// Where dockerd is asked: as its own client does it, or in the node's root.
fn socket(root: &Root) -> PathBuf {
    let host = std::env::var("DOCKER_HOST").ok().and_then(|host| host.strip_prefix("unix://").map(PathBuf::from));
    host.unwrap_or_else(|| root.real(&root.resolve(Path::new("/var/run/docker.sock")).unwrap_or_default()))
}

fn drop_in(root: &Root, mirror: &Mirror, program: &str) -> Found {
    let version = version_of(root, program).unwrap_or_else(|| "unknown".to_owned());
    let mut checks = vec![Check::ok(program, format!("version {version}"))];
    let name = format!("{program} registries.conf");
    let found = match containers::first_mirrors(root) {
        Ok(found) => found,
        Err(error) => {
            checks.push(Check::fail(name, format!("{error:#}: no image can be pulled"), "mend the file by hand"));
            return (checks, false);
        }
    };
    // Of two for the same registry the later counts.
    let effective =
        found.iter().enumerate().filter(|(at, (name, _))| !found[at + 1..].iter().any(|(later, _)| later == name));
    let ours =
        |(registry, first): &(String, Option<String>)| *first == Some(format!("{}/{registry}", mirror.authority()));
    let (served, others): (Vec<_>, Vec<_>) = effective.map(|(_, found)| found).partition(|found| ours(found));
    let names = |found: &[&(String, Option<String>)]| {
        found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    };
    checks.push(if served.is_empty() {
        Check::warn(name, "the mirror is in none", configure(root))
    } else if others.is_empty() {
        Check::ok(name, format!("the mirror is first for {}", names(&served)))
    } else {
        Check::ok(name, format!("the mirror is first for {}, and not for {}", names(&served), names(&others)))
    });
    (checks, !served.is_empty())
}

/// What a program of the node says its version is; `None` when it cannot be run from here.
fn version_of(root: &Root, program: &str) -> Option<String> {
    let paths = BIN.map(|directory| format!("{directory}/{program}"));
    let path = root.first_of(&paths.each_ref().map(String::as_str))?;
    let path = root.real(&root.resolve(Path::new(path)).ok()?);
    let output = Command::new(path).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.split_whitespace().map(|word| word.trim_start_matches('v').trim_end_matches(','));
    words.into_iter().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned)
}

/// Major and minor version.
fn numbers(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or_default());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(numbers("1.6.20~ds1"), (1, 6));
        assert!(numbers("2.10.0") > numbers("2.9.1") && numbers("") == (0, 0));
    }
}
