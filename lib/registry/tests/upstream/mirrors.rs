//! Mirrors over real sockets: asked before the registry, never instead of it, and with nothing that is meant for it.

use crate::credentials::{docker_config_for, passwords, tokens_for};
use crate::rig::{NAME, REGISTRY, Rig, access, access_with, collect, latest, rig, timing};
use shoal_registry::embedded::{Content, EmbeddedRegistry, Fault, Layer, Options};
use shoal_registry::{Config, RegistryConfig, Timing, Upstream, UpstreamError};

fn config(mirrors: &[String], registry: &Rig) -> Config {
    let there =
        RegistryConfig { url: Some(registry.registry.url()), mirrors: mirrors.to_vec(), ..RegistryConfig::default() };
    Config { registries: [(REGISTRY.to_owned(), there)].into(), timing: timing(), ..Config::default() }
}

fn upstream(mirrors: &[&Rig], registry: &Rig) -> Upstream {
    let urls: Vec<_> = mirrors.iter().map(|mirror| mirror.registry.url()).collect();
    Upstream::new(config(&urls, registry)).unwrap()
}

async fn plain() -> Rig {
    rig(Options::default()).await
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_registry_not_at_all_when_one_gives() {
    let (first, second, registry) = (plain().await, plain().await, plain().await);
    let upstream = upstream(&[&first, &second], &registry);
    upstream.manifest(&access(), &latest(), false, &[]).await.unwrap();
    let body = upstream.blob(&access(), &registry.layer, 0).await.unwrap();
    assert_eq!(collect(body).await.unwrap(), registry.content);
    assert_eq!(first.registry.requests().len(), 2);
    assert_eq!(second.registry.requests(), []);
    assert_eq!(registry.registry.requests(), []);
}

#[tokio::test]
async fn whatever_a_mirror_does_not_give_is_asked_of_the_next() {
    let registry = plain().await;
    for status in [400, 401, 403, 404, 429, 500, 503] {
        let (first, second) = (plain().await, plain().await);
        first.registry.inject("GET", u32::MAX, Fault::Status { status, retry_after: None });
        let upstream = upstream(&[&first, &second], &registry);
        upstream.manifest(&access(), &latest(), false, &[]).await.unwrap();
        assert_eq!((first.registry.requests().len(), second.registry.requests().len()), (1, 1), "{status}");
    }
    assert_eq!(registry.registry.requests(), []);
}

#[tokio::test]
async fn a_manifest_that_a_mirror_gives_wrong_or_cut_is_asked_of_the_next() {
    let registry = plain().await;
    let other = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let faults = [
        (false, Fault::Corrupt),
        (false, Fault::Cut { after: 10 }),
        (true, Fault::WithHeader { name: "docker-content-digest", value: other }),
    ];
    for (head, fault) in faults {
        let (first, second) = (plain().await, plain().await);
        first.registry.inject("", u32::MAX, fault.clone());
        let upstream = upstream(&[&first, &second], &registry);
        let manifest = upstream.manifest(&access(), &registry.manifest.into(), head, &[]).await.unwrap();
        assert_eq!(manifest.digest, registry.manifest, "{fault:?}");
        let asked = |rig: &Rig| rig.registry.requests().len();
        assert_eq!((asked(&first), asked(&second), asked(&registry)), (1, 1, 0), "{fault:?}");
    }
}

#[tokio::test]
async fn a_mirror_whose_bytes_were_wrong_is_not_asked_again() {
    let (mirror, registry) = (plain().await, plain().await);
    mirror.registry.inject("GET", 1, Fault::Corrupt);
    let upstream = upstream(&[&mirror], &registry);
    let body = upstream.blob(&access(), &registry.layer, 0).await.unwrap();
    let givers = body.givers();
    assert_ne!(collect(body).await.unwrap(), registry.content);
    assert!(givers.disown());
    let body = upstream.blob(&access(), &registry.layer, 0).await.unwrap();
    let givers = body.givers();
    assert_eq!(collect(body).await.unwrap(), registry.content);
    assert!(!givers.disown(), "the registry itself is asked again");
    assert_eq!((mirror.layer_gets().len(), registry.layer_gets().len()), (1, 1));
}

#[tokio::test]
async fn a_registry_that_told_another_to_leave_it_alone_is_left_alone() {
    let registry = plain().await;
    let upstream = upstream(&[], &registry);
    let limited = UpstreamError::RateLimited { retry_after: Some(std::time::Duration::from_secs(3600)) };
    upstream.heed(REGISTRY, &limited);
    let error = upstream.manifest(&access(), &latest(), false, &[]).await.unwrap_err();
    assert!(matches!(error, UpstreamError::RateLimited { retry_after: Some(_) }), "{error:?}");
    assert!(upstream.rests(REGISTRY).is_some() && registry.registry.requests().is_empty());
}

#[tokio::test]
async fn a_mirror_that_is_down_is_passed_over_and_then_left_alone() {
    let (mirror, registry) = (plain().await, plain().await);
    mirror.registry.inject("", u32::MAX, Fault::Status { status: 502, retry_after: None });
    let urls = ["http://127.0.0.1:1".to_owned(), mirror.registry.url()];
    let upstream = Upstream::new(config(&urls, &registry)).unwrap();
    for _ in 0..3 {
        upstream.manifest(&access(), &latest(), false, &[]).await.unwrap();
    }
    assert_eq!(mirror.registry.requests().len(), 1);
    assert_eq!(registry.registry.requests().len(), 3);
}

#[tokio::test]
async fn a_silent_mirror_leaves_time_for_the_registry() {
    let (mirror, registry) = (plain().await, plain().await);
    mirror.registry.inject("", u32::MAX, Fault::Silence);
    let mut config = config(&[mirror.registry.url()], &registry);
    config.timing = Timing { headers: std::time::Duration::from_secs(2), ..config.timing };
    let upstream = Upstream::new(config).unwrap();
    upstream.manifest(&access(), &latest(), false, &[]).await.unwrap();
    assert_eq!(mirror.registry.requests().len(), 1);
}

#[tokio::test]
async fn a_body_that_a_mirror_cuts_goes_on_from_the_registry_at_the_exact_offset() {
    let (mirror, registry) = (plain().await, plain().await);
    mirror.registry.inject("GET", u32::MAX, Fault::Cut { after: 100_000 });
    let body = upstream(&[&mirror], &registry).blob(&access(), &registry.layer, 0).await.unwrap();
    assert_eq!(collect(body).await.unwrap(), registry.content);
    assert_eq!(mirror.layer_gets(), [None]);
    assert_eq!(registry.layer_gets(), [Some("bytes=100000-".to_owned())]);
}

#[tokio::test]
async fn a_registry_that_limits_is_left_alone_while_its_mirrors_are_asked() {
    let (mirror, registry) = (plain().await, plain().await);
    mirror.registry.inject("manifests", u32::MAX, Fault::Status { status: 404, retry_after: None });
    registry.registry.inject("", 1, Fault::Status { status: 429, retry_after: Some(3600) });
    let upstream = upstream(&[&mirror], &registry);
    for _ in 0..2 {
        let error = upstream.manifest(&access(), &latest(), false, &[]).await.unwrap_err();
        assert!(matches!(error, UpstreamError::RateLimited { .. }), "{error:?}");
    }
    collect(upstream.blob(&access(), &registry.layer, 0).await.unwrap()).await.unwrap();
    assert_eq!(registry.registry.requests().len(), 1);
}

#[tokio::test]
async fn the_registrys_own_answer_is_told_when_no_mirror_gives() {
    let (mirror, registry) = (plain().await, rig(tokens_for(Some(("me", "s3cret")), 300)).await);
    mirror.registry.inject("", u32::MAX, Fault::Status { status: 404, retry_after: None });
    let error = upstream(&[&mirror], &registry).authorize(&access(), &latest()).await.unwrap_err();
    let UpstreamError::Unauthorized { challenge: Some(challenge), .. } = error else { panic!("{error:?}") };
    assert!(challenge.contains(&registry.registry.url()), "{challenge}");
}

#[tokio::test]
async fn a_request_with_its_own_credentials_is_for_the_registry_alone() {
    let (mirror, registry) = (plain().await, rig(passwords()).await);
    let upstream = upstream(&[&mirror], &registry);
    upstream.authorize(&access_with("Basic bWU6czNjcmV0"), &latest()).await.unwrap();
    let forged = upstream.authorize(&access_with("Basic Zm9yZ2Vk"), &latest()).await.unwrap_err();
    assert!(matches!(forged, UpstreamError::Unauthorized { .. }), "{forged:?}");
    assert_eq!(mirror.registry.requests(), []);
}

#[tokio::test]
async fn a_mirror_gets_the_credentials_of_its_own_host_and_not_those_of_the_registry() {
    for (host_is_known, answers) in [(true, true), (false, false)] {
        let (mirror, registry) = (rig(passwords()).await, plain().await);
        let key = if host_is_known { mirror.registry.addr().to_string() } else { REGISTRY.to_owned() };
        let (_directory, path) = docker_config_for(&key, "me", "s3cret");
        let config = Config { docker_config: Some(path), ..config(&[mirror.registry.url()], &registry) };
        Upstream::new(config).unwrap().manifest(&access(), &latest(), false, &[]).await.unwrap();
        let proved = mirror.registry.requests().iter().any(|request| request.authorization.is_some());
        assert_eq!((proved, registry.registry.requests().is_empty()), (answers, answers), "{key}");
    }
}

#[tokio::test]
async fn names_are_mapped_where_the_configuration_says_the_registry_is() {
    let mut served = Content::new();
    let image = served.add_image("proxy/hub/app", "latest", vec![Layer::tar(crate::rig::noise(1000))]);
    let there = EmbeddedRegistry::start(crate::rig::any_port(), served, tokens_for(None, 300)).await.unwrap();
    let remap = [("org".to_owned(), "hub".to_owned())].into();
    let (own, as_mirror) = (RegistryConfig { remap, ..RegistryConfig::default() }, plain().await);
    let url = format!("{}/v2/proxy", there.url());
    let by_url = RegistryConfig { url: Some(url.clone()), ..own.clone() };
    let by_mirror = RegistryConfig { mirrors: vec![url], url: Some(as_mirror.registry.url()), ..own };
    for config in [by_url, by_mirror] {
        let registries = [(REGISTRY.to_owned(), config)].into();
        let upstream = Upstream::new(Config { registries, timing: timing(), ..Config::default() }).unwrap();
        assert_eq!(access().repository.name, NAME);
        let manifest = upstream.manifest(&access(), &latest(), false, &[]).await.unwrap();
        assert_eq!(manifest.digest, image.manifest);
        collect(upstream.blob(&access(), &image.layers[0], 0).await.unwrap()).await.unwrap();
    }
    let tokens = there.requests().into_iter().filter(|request| request.path.starts_with("/token"));
    assert!(tokens.into_iter().all(|request| request.path.contains("repository:proxy/hub/app:pull")));
    assert_eq!(as_mirror.registry.requests(), []);
}
