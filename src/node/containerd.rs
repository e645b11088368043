//! containerd, by itself and inside Kubernetes distributions: hosts.toml files under its `config_path`.
//!
//! `_default` catches every registry that has no directory of its own, so the mirror goes into `_default` and into every
//! directory there is. Of several directories in `config_path` containerd takes the first that knows the registry or has a
//! `_default`. Changes to hosts.toml need no restart.

pub(crate) mod config;
pub(crate) mod hosts;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::mirror::Mirror;
use super::root::Root;
use super::state::{Node, Wanted};
use config::Config;

const DEFAULT: &str = "_default";

/// How containerd of one distribution is told its `config_path`.
#[derive(Debug, Clone, Copy)]
enum Told {
    /// In its config.toml.
    InConfig,
    /// In a file that its config.toml imports.
    In(&'static str),
    /// By the distribution itself.
    ByItself,
}

/// A containerd that may be on a node.
#[derive(Debug)]
pub(crate) struct Installation {
    /// What users call it.
    pub(crate) name: &'static str,
    /// It is there when one of these is.
    signs: &'static [&'static str],
    /// Its config.toml.
    pub(crate) config: &'static str,
    /// Where hosts.toml files go unless its config.toml says otherwise.
    certs: &'static str,
    told: Told,
    /// The command that makes it read its config.toml again.
    pub(crate) restart: &'static str,
}

/// Where distributions keep containerd's files. Sources: k3s and RKE2 `docs/installation/private-registry`, MicroK8s
/// "Configure registry mirrors", k0s "Runtime" (configuration drop-ins, from 1.27.1 on).
static INSTALLATIONS: [Installation; 5] = [
    Installation {
        name: "containerd",
        signs: &[
            "/usr/bin/containerd",
            "/usr/local/bin/containerd",
            "/usr/sbin/containerd",
            "/etc/containerd/config.toml",
        ],
        config: "/etc/containerd/config.toml",
        certs: "/etc/containerd/certs.d",
        told: Told::InConfig,
        restart: "systemctl restart containerd",
    },
    Installation {
        name: "k3s",
        signs: &["/var/lib/rancher/k3s/agent", "/etc/rancher/k3s"],
        config: "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
        certs: "/var/lib/rancher/k3s/agent/etc/containerd/certs.d",
        told: Told::ByItself,
        restart: "systemctl restart k3s",
    },
    Installation {
        name: "rke2",
        signs: &["/var/lib/rancher/rke2/agent", "/etc/rancher/rke2"],
        config: "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        certs: "/var/lib/rancher/rke2/agent/etc/containerd/certs.d",
        told: Told::ByItself,
        restart: "systemctl restart rke2-agent",
    },
    Installation {
        name: "microk8s",
        signs: &["/var/snap/microk8s/current/args"],
        config: "/var/snap/microk8s/current/args/containerd.toml",
        certs: "/var/snap/microk8s/current/args/certs.d",
        told: Told::ByItself,
        restart: "snap restart microk8s",
    },
    Installation {
        name: "k0s",
        signs: &["/etc/k0s/containerd.toml", "/var/lib/k0s/bin/containerd"],
        config: "/etc/k0s/containerd.toml",
        certs: "/etc/k0s/certs.d",
        told: Told::In("/etc/k0s/containerd.d/shoal.toml"),
        restart: "systemctl restart k0sworker",
    },
];

/// The containerds on a node.
pub(crate) fn found(root: &Root) -> Vec<&'static Installation> {
    INSTALLATIONS.iter().filter(|installation| root.first_of(installation.signs).is_some()).collect()
}

/// containerd by itself, for those who name it although it is not found.
pub(super) fn plain() -> &'static Installation {
    &INSTALLATIONS[0]
}

/// What to do after one of its files changed.
pub(super) fn after_change(path: &Path) -> Option<&'static str> {
    let of = |installation: &&Installation| match installation.told {
        Told::In(file) => path == Path::new(file),
        Told::InConfig | Told::ByItself => path == Path::new(installation.config),
    };
    INSTALLATIONS.iter().find(of).map(|installation| installation.restart)
}

impl Installation {
    /// What its files say now.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn config(&self, root: &Root) -> Result<Config> {
        config::read(Path::new(self.config), &|path| root.read(path), &|path| root.list(path))
    }

    /// The directories of hosts.toml files that it reads, or would when it had a `config_path`.
    pub(crate) fn directories(&self, config: &Config) -> Vec<PathBuf> {
        if config.config_path.is_empty() { vec![self.certs.into()] } else { config.config_path.clone() }
    }

    /// Whether hosts.toml files are read.
    pub(crate) fn is_told(&self, config: &Config, root: &Root) -> bool {
        // A distribution that has not started yet has not written its config.toml.
        let waits = matches!(self.told, Told::ByItself) && root.first_of(&[self.config]).is_none();
        waits || !config.config_path.is_empty()
    }

    /// The file and the lines that would tell it its `config_path`.
    pub(crate) fn advice(&self, root: &Root) -> String {
        let file = self.file_of_config_path();
        let base = root.read(Path::new(file)).ok().flatten();
        let file =
            if matches!(self.told, Told::ByItself) { "containerd's template of this distribution" } else { file };
        let snippet = config::snippet(base.as_deref(), Path::new(self.certs));
        format!("add to {file}\n{snippet}\nthen `{}`", self.restart)
    }

    fn file_of_config_path(&self) -> &'static str {
        match self.told {
            Told::In(file) => file,
            Told::InConfig | Told::ByItself => self.config,
        }
    }

    /// Has the mirror asked first for `registries`, or for all when none is named.
    ///
    /// # Errors
    /// When a file cannot be read, or a `config_path` is to be set and cannot.
    pub(super) fn want(
        &self,
        node: &Node,
        registries: &[String],
        mirror: &Mirror,
        set_config_path: bool,
    ) -> Result<Wanted> {
        let mut wanted = Wanted::default();
        let config = config::read(Path::new(self.config), &|path| node.before(path), &|path| node.list_before(path))?;
        if config.cri_disabled {
            let note = format!(
                "{}: left alone, as its CRI plugin is disabled in {}: no kubelet pulls through it",
                self.name, self.config
            );
            wanted.notes.push(note);
            return Ok(wanted);
        }
        // A file of ours may have found its way into what the distribution made of it.
        let told_by_us = match self.told {
            Told::In(file) => node.before(Path::new(file))? != node.root().read(Path::new(file))?,
            Told::InConfig | Told::ByItself => false,
        };
        if told_by_us || !self.is_told(&config, node.root()) {
            self.want_config_path(node, set_config_path, &mut wanted)?;
        }
        let directories = self.directories(&config);
        let files = if registries.is_empty() {
            all_files(node, &directories)?
        } else {
            registries.iter().map(|registry| file_of(node, &directories, registry)).collect::<Result<_>>()?
        };
        for (file, base) in files {
            let directory = file.parent().unwrap_or(Path::new("/"));
            match hosts::with_mirror(base.as_deref(), &node.list_before(directory)?, mirror) {
                Ok(text) => drop(wanted.files.insert(file.clone(), text)),
                Err(refused) => wanted.notes.push(format!("{}: left alone: {refused}", file.display())),
            }
            if base.is_some_and(|base| base.starts_with("# File generated by")) {
                wanted.todo.push(format!(
                    "{name} writes {file} anew when it starts: name {mirror} first among the endpoints in /etc/rancher/{name}/registries.yaml too",
                    name = self.name,
                    file = file.display()
                ));
            }
        }
        Ok(wanted)
    }

    fn want_config_path(&self, node: &Node, set: bool, wanted: &mut Wanted) -> Result<()> {
        let file = self.file_of_config_path();
        if set && !matches!(self.told, Told::ByItself) {
            let base = node.before(Path::new(file))?;
            let text = config::with_config_path(base.as_deref(), Path::new(self.certs));
            wanted.files.insert(file.into(), text.with_context(|| format!("cannot set config_path in {file}"))?);
            return Ok(());
        }
        let or = if matches!(self.told, Told::ByItself) { "" } else { ", or run this again with --set-config-path" };
        let todo = format!(
            "{} does not read hosts.toml files, as its config_path is unset: {}{or}",
            self.name,
            self.advice(node.root())
        );
        wanted.todo.push(todo);
        Ok(())
    }
}

/// The hosts.toml of every registry that has a directory, and of `_default`, with what is in them.
fn all_files(node: &Node, directories: &[PathBuf]) -> Result<Vec<(PathBuf, Option<String>)>> {
    let mut files = Vec::new();
    for directory in directories {
        for name in node.list_before(directory)? {
            let inside = directory.join(name);
            if node.root().is_directory(&inside) {
                files.push(inside.join("hosts.toml"));
            }
        }
    }
    // One in an earlier directory would hide all that the later ones have.
    let has_default = files.iter().any(|file| file.parent().is_some_and(|parent| parent.ends_with(DEFAULT)));
    if let Some(last) = directories.last().filter(|_| !has_default) {
        files.push(last.join(DEFAULT).join("hosts.toml"));
    }
    files.into_iter().map(|file| Ok((file.clone(), node.before(&file)?))).collect()
}

/// The hosts.toml of one registry, with what containerd goes by for it now: its own file, or that of `_default`.
fn file_of(node: &Node, directories: &[PathBuf], registry: &str) -> Result<(PathBuf, Option<String>)> {
    // containerd looks for "host_port_" before "host:port".
    let escaped = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = escaped.into_iter().chain([registry.to_owned(), DEFAULT.to_owned()]).collect::<Vec<_>>();
    for directory in directories {
        let there = node.list_before(directory)?;
        if let Some(name) = names.iter().find(|name| there.contains(name)) {
            let found = directory.join(name);
            let target = if name == DEFAULT { directory.join(registry) } else { found.clone() };
            return Ok((target.join("hosts.toml"), node.before(&found.join("hosts.toml"))?));
        }
    }
    let directory = directories.first().context("containerd has a directory of hosts.toml files")?;
    Ok((directory.join(registry).join("hosts.toml"), None))
}
