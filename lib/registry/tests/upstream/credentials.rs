//! Who is asking: challenges, tokens and passwords over real sockets, and nothing of them in a log.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::rig::{NAME, REGISTRY, Rig, access, access_with, collect, latest, rig};
use shoal_registry::embedded::{Auth, Fault, Options};
use shoal_registry::{Access, Account, Config, RegistryConfig, Upstream, UpstreamError};
use tempfile::TempDir;

pub(crate) fn tokens_for(user: Option<(&str, &str)>, lifetime_s: u64) -> Options {
    let user = user.map(|(name, password)| (name.to_owned(), password.to_owned()));
    Options { auth: Some(Auth::Token { user, lifetime: Duration::from_secs(lifetime_s) }), ..Options::default() }
}

pub(crate) fn passwords() -> Options {
    Options { auth: Some(Auth::Basic { user: "me".to_owned(), password: "s3cret".to_owned() }), ..Options::default() }
}

/// A Docker config file for a registry, and the directory that holds it.
pub(crate) fn docker_config_for(registry: &str, user: &str, password: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let auths = format!(r#"{{"auths":{{"https://{registry}":{{"username":"{user}","password":"{password}"}}}}}}"#);
    std::fs::write(&path, auths).unwrap();
    (directory, path)
}

pub(crate) fn upstream_as(rig: &Rig, user: &str, password: &str) -> Upstream {
    let (_directory, path) = docker_config_for(REGISTRY, user, password);
    Upstream::new(Config { docker_config: Some(path), ..rig.config() }).unwrap()
}

fn challenge(error: &UpstreamError) -> &str {
    let UpstreamError::Unauthorized { challenge: Some(challenge), .. } = error else { panic!("{error:?}") };
    challenge
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_and_reused() {
    let rig = rig(tokens_for(None, 300)).await;
    let upstream = rig.upstream();
    let (access, latest) = (access(), latest());
    let many = (0..20).map(|_| upstream.authorize(&access, &latest));
    for outcome in futures_util::future::join_all(many).await {
        outcome.unwrap();
    }
    collect(upstream.blob(&access, &rig.layer, 0).await.unwrap()).await.unwrap();
    assert_eq!(rig.registry.counters().tokens, 1);
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_once() {
    // Shorter than the margin before its end: no token is ever used twice.
    let rig = rig(tokens_for(None, 5)).await;
    let upstream = rig.upstream();
    upstream.authorize(&access(), &latest()).await.unwrap();
    upstream.authorize(&access(), &latest()).await.unwrap();
    assert_eq!(rig.registry.counters().tokens, 2);
}

#[tokio::test]
async fn a_token_is_bought_with_the_configured_password() {
    let rig = rig(tokens_for(Some(("me", "s3cret")), 300)).await;
    upstream_as(&rig, "me", "s3cret").authorize(&access(), &latest()).await.unwrap();
    let expected =
        format!("Bearer realm=\"{}/token\",service=\"embedded\",scope=\"repository:{NAME}:pull\"", rig.registry.url());
    for upstream in [upstream_as(&rig, "me", "wrong"), rig.upstream()] {
        let error = upstream.authorize(&access(), &latest()).await.unwrap_err();
        assert_eq!(challenge(&error), expected);
    }
}

#[tokio::test]
async fn a_password_goes_where_it_is_asked_for() {
    let rig = rig(passwords()).await;
    let upstream = upstream_as(&rig, "me", "s3cret");
    assert_eq!(upstream.manifest(&access(), &latest(), false, &[]).await.unwrap().digest, rig.manifest);
    let first = &rig.registry.requests()[0];
    assert_eq!(first.authorization, None, "nothing is sent unasked");
    let error = upstream_as(&rig, "me", "wrong").manifest(&access(), &latest(), false, &[]).await.unwrap_err();
    assert_eq!(challenge(&error), "Basic realm=\"embedded\"");
}

#[tokio::test]
async fn a_rotated_secret_is_used_without_a_restart() {
    let rig = rig(passwords()).await;
    let (directory, path) = docker_config_for(REGISTRY, "me", "old");
    let upstream = Upstream::new(Config { docker_config: Some(path.clone()), ..rig.config() }).unwrap();
    assert!(upstream.authorize(&access(), &latest()).await.is_err());
    let (_other, next) = docker_config_for(REGISTRY, "me", "s3cret");
    std::fs::copy(next, directory.path().join("next")).unwrap();
    std::fs::rename(directory.path().join("next"), path).unwrap();
    upstream.authorize(&access(), &latest()).await.unwrap();
}

#[tokio::test]
async fn the_file_of_one_registry_may_be_a_secret_as_kubectl_prints_it() {
    let rig = rig(passwords()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret.json");
    // {"auths":{"*.example":{"username":"me","password":"s3cret"}}}
    let data = "eyJhdXRocyI6eyIqLmV4YW1wbGUiOnsidXNlcm5hbWUiOiJtZSIsInBhc3N3b3JkIjoiczNjcmV0In19fQ==";
    std::fs::write(&path, format!(r#"{{"kind":"Secret","data":{{".dockerconfigjson":"{data}"}}}}"#)).unwrap();
    let mut config = rig.config();
    config.registries.get_mut(REGISTRY).unwrap().credentials_file = Some(path);
    Upstream::new(config).unwrap().authorize(&access(), &latest()).await.unwrap();
}

#[tokio::test]
async fn a_refresh_token_is_exchanged_for_tokens() {
    let rig = rig(tokens_for(Some(("me", "s3cret")), 300)).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, format!(r#"{{"auths":{{"{REGISTRY}":{{"identitytoken":"s3cret"}}}}}}"#)).unwrap();
    let upstream = Upstream::new(Config { docker_config: Some(path), ..rig.config() }).unwrap();
    upstream.authorize(&access(), &latest()).await.unwrap();
    let requests = rig.registry.requests();
    assert!(requests.iter().any(|request| request.method == "POST" && request.path == "/token"), "{requests:?}");
}

/// Set in the process of a test that has a credential helper in its `PATH`: the address of the registry.
const WITH_HELPER: &str = "SHOAL_TEST_REGISTRY";

#[tokio::test]
async fn a_credential_helper_is_asked_for_the_password() {
    if let Ok(url) = std::env::var(WITH_HELPER) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, format!(r#"{{"credHelpers":{{"{REGISTRY}":"test"}}}}"#)).unwrap();
        let there = RegistryConfig { url: Some(url), ..RegistryConfig::default() };
        let registries = [(REGISTRY.to_owned(), there)].into();
        let config = Config { registries, docker_config: Some(path), ..Config::default() };
        Upstream::new(config).unwrap().authorize(&access(), &latest()).await.unwrap();
        return;
    }
    let rig = rig(passwords()).await;
    let directory = tempfile::tempdir().unwrap();
    let helper = directory.path().join("docker-credential-test");
    let script =
        format!("#!/bin/sh\n[ $(cat) = {REGISTRY} ] && echo '{{\"Username\":\"me\",\"Secret\":\"s3cret\"}}'\n");
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::join_paths([directory.path(), "/usr/bin".as_ref(), "/bin".as_ref()]).unwrap();
    let again = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "credentials::a_credential_helper_is_asked_for_the_password"])
        .env("PATH", path)
        .env(WITH_HELPER, rig.registry.url())
        .output()
        .await
        .unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stdout));
    assert!(rig.registry.requests().iter().any(|request| request.authorization.is_some()));
}

#[tokio::test]
async fn the_callers_authorization_goes_as_it_is_and_the_challenge_comes_back_word_for_word() {
    let rig = rig(tokens_for(None, 300)).await;
    let value = r#"bearer   Realm="https://auth.example/t?a=b",  service="x, \"y\"",scope="repository:org/app:pull""#;
    rig.registry.inject("HEAD", 1, Fault::WithHeader { name: "www-authenticate", value });
    // With a configured password too: the caller's own word goes before it, and is not improved upon.
    let upstream = upstream_as(&rig, "me", "s3cret");
    let error = upstream.authorize(&access_with("Bearer of-the-client"), &latest()).await.unwrap_err();
    assert_eq!(challenge(&error), value);
    assert_eq!(error.to_oci_error().www_authenticate.as_deref(), Some(value));
    let requests = rig.registry.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].authorization.as_deref(), Some("Bearer of-the-client"));
    assert_eq!(rig.registry.counters().tokens, 0);
}

#[tokio::test]
async fn one_callers_token_is_not_used_for_another() {
    let rig = rig(tokens_for(Some(("me", "s3cret")), 300)).await;
    let upstream = upstream_as(&rig, "me", "s3cret");
    upstream.authorize(&access(), &latest()).await.unwrap();
    let token = rig.registry.requests().pop().unwrap().authorization.unwrap();
    upstream.authorize(&access_with(&token), &latest()).await.unwrap();
    let error = upstream.authorize(&access_with("Bearer forged"), &latest()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Unauthorized { .. }), "{error:?}");
}

#[tokio::test]
async fn a_token_service_that_is_down_gives_upstreams_own_challenge() {
    let rig = rig(tokens_for(None, 300)).await;
    rig.registry.inject("GET /token", u32::MAX, Fault::Status { status: 500, retry_after: None });
    let error = rig.upstream().authorize(&access(), &latest()).await.unwrap_err();
    assert!(challenge(&error).starts_with("Bearer realm="));
}

/// What is logged, in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_password_or_token_reaches_the_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let store = rig(Options::default()).await;
    let options = tokens_for(Some(("me", "s3cret")), 300);
    let front =
        rig(Options { redirect_blobs: Some(format!("{}/?X-Signature=s1gned", store.registry.url())), ..options }).await;
    front.registry.inject("GET", 1, Fault::Status { status: 500, retry_after: None });
    let upstream = upstream_as(&front, "me", "s3cret");
    let _ = upstream.blob(&access(), &front.layer, 0).await;
    let _ = upstream.authorize(&access_with("Bearer of-the-client"), &latest()).await;
    let _ = upstream_as(&front, "me", "wr0ng").authorize(&access(), &latest()).await;
    let token = front.registry.requests().into_iter().filter_map(|request| request.authorization);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("retrying upstream"), "the log is written: {log}");
    for secret in token.chain(["s3cret", "s1gned", "wr0ng", "of-the-client", "bWU6czNjcmV0"].map(str::to_owned)) {
        let secret = secret.trim_start_matches("Bearer ").trim_start_matches("Basic ");
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[tokio::test]
async fn a_password_of_a_caller_buys_a_token_for_the_repository_or_is_checked_alone() {
    for options in [tokens_for(Some(("me", "s3cret")), 300), passwords()] {
        let rig = rig(options).await;
        let upstream = rig.upstream();
        let [good, bad] = ["s3cret", "wrong"].map(|password| {
            let encoded = STANDARD.encode(format!("{REGISTRY}/me:{password}"));
            Account::parse(&format!("Basic {encoded}")).unwrap()
        });
        let signed_in = upstream.sign_in(&good, Some(&access().repository)).await.unwrap();
        let access = Access { authorization: signed_in.authorization, ..access() };
        upstream.authorize(&access, &latest()).await.unwrap();
        assert!(signed_in.lifetime > Duration::from_secs(60));
        let refused = upstream.sign_in(&bad, Some(&access.repository)).await.unwrap_err();
        let UpstreamError::Unauthorized { challenge: None, message } = refused else { panic!("{refused:?}") };
        let said = ["user and password are wrong or missing", "authentication required"];
        assert!(said.iter().any(|said| message.ends_with(said)), "{message}");
    }
}

#[tokio::test]
async fn a_registry_that_limits_those_who_sign_in_is_left_alone_too() {
    let rig = rig(passwords()).await;
    rig.registry.inject("GET", 1, Fault::Status { status: 429, retry_after: Some(3600) });
    let upstream = rig.upstream();
    let account = Account::parse(&format!("Basic {}", STANDARD.encode(format!("{REGISTRY}/me:s3cret")))).unwrap();
    for _ in 0..2 {
        let error = upstream.sign_in(&account, None).await.unwrap_err();
        assert!(matches!(error, UpstreamError::RateLimited { retry_after: Some(_) }), "{error:?}");
        assert_eq!(rig.registry.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_pull_secret_with_a_refresh_token_buys_a_token_and_is_no_password() {
    let secret = format!(r#"{{"auths":{{"{REGISTRY}":{{"identitytoken":"s3cret"}}}}}}"#).into_bytes();
    let account = Account::from_docker_configs(&[secret], &access().repository).unwrap().unwrap();
    let rig = rig(tokens_for(Some(("me", "s3cret")), 300)).await;
    let signed_in = rig.upstream().sign_in(&account, Some(&access().repository)).await.unwrap();
    let access = Access { authorization: signed_in.authorization, ..access() };
    rig.upstream().authorize(&access, &latest()).await.unwrap();
    let rig = crate::rig::rig(passwords()).await;
    let refused = rig.upstream().sign_in(&account, Some(&access.repository)).await.unwrap_err();
    assert!(matches!(refused, UpstreamError::Unauthorized { .. }), "{refused:?}");
}

#[tokio::test]
async fn a_ticket_never_goes_upstream() {
    let rig = rig(Options::default()).await;
    let (upstream, ticket) = (rig.upstream(), access_with("Shoal-Ticket abcdefghijklmnop"));
    let refused = upstream.authorize(&ticket, &latest()).await.unwrap_err();
    assert!(matches!(refused, UpstreamError::Unauthorized { challenge: None, .. }), "{refused:?}");
    assert!(upstream.blob(&ticket, &rig.layer, 0).await.is_err());
    assert!(upstream.get(&ticket, "tags/list", &[]).await.is_err());
    assert!(rig.registry.requests().is_empty());
}
