//! Credential helpers: programs `docker-credential-<name>` that are asked for a registry's user and password, as
//! docker-credential-helpers documents it: `get`, the server on stdin, JSON on stdout.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::Instant;

use super::Credential;
use super::document::basic;
use crate::reference::DOCKER_HUB;
use crate::secret::Secret;

/// How long a helper may take; one that asks a cloud's API takes a second or two.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer is used again. Short, as those of clouds end soon after; tokens bought with it last by themselves.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// How long a helper that has nothing, or failed, is not asked again.
const NOTHING_FOR: Duration = Duration::from_secs(5);
/// The longest answer we read, in bytes.
const ANSWER_LENGTH_MAX: u64 = 64 * 1024;
/// The most answers kept.
const ANSWERS_MAX: usize = 256;
/// The user of an answer that holds a refresh token and no password.
const TOKEN_USER: &str = "<token>";

/// The helpers' last answers, by helper and server.
#[derive(Debug, Default)]
pub(super) struct Helpers {
    answers: Mutex<BTreeMap<(String, String), Arc<Slot>>>,
    /// Where the programs are, if not in `PATH`.
    directory: Option<OsString>,
}

/// Held while the helper runs: everybody else waits for that answer.
type Slot = tokio::sync::Mutex<Option<(Option<Credential>, Instant)>>;

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Why a helper gave nothing. Never with what it printed: that may be a secret.
#[derive(Debug, thiserror::Error)]
enum HelperError {
    #[error("it cannot be run")]
    Run(#[source] std::io::Error),
    #[error("it has nothing, or failed: {0}")]
    Status(std::process::ExitStatus),
    #[error("its answer is not one")]
    Answer,
    #[error("it took longer than {TIMEOUT:?}")]
    Slow,
}

impl Helpers {
    /// What a helper has for a registry. Whoever stops waiting does not stop the helper.
    pub(super) async fn get(&self, helper: &str, registry: &str) -> Option<Credential> {
        // Docker Hub's credentials are kept under the name of its first API.
        let server = if registry == DOCKER_HUB { "https://index.docker.io/v1/" } else { registry };
        let slot = self.slot(helper, server);
        let (helper, server, directory) = (helper.to_owned(), server.to_owned(), self.directory.clone());
        let asked = tokio::spawn(async move {
            let mut answer = slot.lock().await;
            if let Some((credential, until)) = &*answer
                && *until > Instant::now()
            {
                return credential.clone();
            }
            let ran = tokio::time::timeout(TIMEOUT, run(&helper, &server, directory)).await;
            let credential = match ran.unwrap_or(Err(HelperError::Slow)) {
                Ok(credential) => Some(credential),
                // Most registries need none.
                Err(error @ HelperError::Status(_)) => {
                    tracing::debug!(helper, server, %error, "credential helper gives nothing");
                    None
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(helper, server, %error, cause, "credential helper is of no use");
                    None
                }
            };
            let kept_for = if credential.is_some() { KEPT_FOR } else { NOTHING_FOR };
            *answer = Some((credential.clone(), Instant::now() + kept_for));
            credential
        });
        asked.await.ok().flatten()
    }

    fn slot(&self, helper: &str, server: &str) -> Arc<Slot> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (helper.to_owned(), server.to_owned());
        while answers.len() >= ANSWERS_MAX && !answers.contains_key(&key) {
            answers.pop_first();
        }
        Arc::clone(answers.entry(key).or_default())
    }
}

async fn run(helper: &str, server: &str, directory: Option<OsString>) -> Result<Credential, HelperError> {
    let mut command = Command::new(format!("docker-credential-{helper}"));
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    if let Some(directory) = directory {
        command.env("PATH", directory);
    }
    let mut child = command.spawn().map_err(HelperError::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it may answer all the same.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut printed = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(ANSWER_LENGTH_MAX).read_to_end(&mut printed).await.map_err(HelperError::Run)?;
    }
    let status = child.wait().await.map_err(HelperError::Run)?;
    if !status.success() {
        return Err(HelperError::Status(status));
    }
    let answer: Answer = serde_json::from_slice(&printed).map_err(|_| HelperError::Answer)?;
    if answer.secret.is_empty() {
        return Err(HelperError::Answer);
    }
    Ok(match answer.username.as_str() {
        TOKEN_USER => Credential::Identity(Secret::new(answer.secret)),
        username => basic(username, &answer.secret),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A helper that is a script, and the directory it lies in.
    fn helper(script: &str) -> (tempfile::TempDir, Helpers) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker-credential-test");
        // Written under another name first: a file that is open for writing cannot be run.
        let script = format!("#!/bin/sh\nPATH=/usr/bin:/bin\ncd {}\n{script}\n", directory.path().display());
        std::fs::write(path.with_extension("new"), script).unwrap();
        std::fs::set_permissions(path.with_extension("new"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(path.with_extension("new"), &path).unwrap();
        let helpers = Helpers { directory: Some(directory.path().into()), ..Helpers::default() };
        (directory, helpers)
    }

    #[tokio::test]
    async fn a_helper_is_told_the_server_and_asked_once() {
        let script = r#"echo "$1 $(cat)" >>asked; echo '{"ServerURL":"x","Username":"me","Secret":"s3cret"}'"#;
        let (directory, helpers) = helper(script);
        for _ in 0..3 {
            assert_eq!(helpers.get("test", "r.example:5000").await, Some(basic("me", "s3cret")));
        }
        helpers.get("test", "docker.io").await;
        let asked = std::fs::read_to_string(directory.path().join("asked")).unwrap();
        assert_eq!(asked, "get r.example:5000\nget https://index.docker.io/v1/\n");
    }

    #[tokio::test]
    async fn the_user_token_means_a_refresh_token() {
        let (_directory, helpers) = helper(r#"echo '{"Username":"<token>","Secret":"refresh"}'"#);
        let expected = Some(Credential::Identity(Secret::new("refresh")));
        assert_eq!(helpers.get("test", "r.example").await, expected);
    }

    #[tokio::test]
    async fn a_helper_that_has_nothing_fails_or_is_not_there_gives_nothing() {
        for script in ["echo 'credentials not found in native keychain'; exit 1", "echo '{'", "echo '{}'", "exit 0"] {
            let (_directory, helpers) = helper(script);
            assert_eq!(helpers.get("test", "r.example").await, None, "{script}");
            assert_eq!(helpers.get("other", "r.example").await, None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_helper_that_hangs_is_ended() {
        let (_directory, helpers) = helper("exec sleep 1000");
        assert_eq!(helpers.get("test", "r.example").await, None);
    }

    #[test]
    fn the_number_of_answers_is_bounded() {
        let helpers = Helpers::default();
        for number in 0..ANSWERS_MAX + 10 {
            helpers.slot("test", &number.to_string());
        }
        assert_eq!(helpers.answers.lock().unwrap().len(), ANSWERS_MAX);
    }
}
