//! Manifests, listings and permission from upstream over real sockets: bounded, verified, passed on as they are.

use crate::rig::{NAME, REGISTRY, access, any_port, config, latest, noise, rig};
use bytes::Bytes;
use shoal_meta::Digest;
use shoal_registry::embedded::{Content, EmbeddedRegistry, Fault, Options};
use shoal_registry::{
    Access, Config, MANIFEST_ACCEPT, MANIFEST_LENGTH_MAX, OciCode, Reference, RegistryConfig, Repository, Upstream,
    UpstreamError,
};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test]
async fn a_manifest_is_the_same_by_tag_and_by_digest() {
    let rig = rig(Options::default()).await;
    let by_tag = rig.upstream().manifest(&access(), &latest(), false, &[]).await.unwrap();
    let by_digest = rig.upstream().manifest(&access(), &rig.manifest.into(), false, &[]).await.unwrap();
    assert_eq!(by_tag, by_digest);
    assert_eq!(by_tag.digest, rig.manifest);
    assert_eq!(by_tag.media_type, OCI_MANIFEST);
    assert_eq!(Digest::sha256_of(&by_tag.content), rig.manifest);
}

#[tokio::test]
async fn head_tells_digest_type_and_length_without_content() {
    let rig = rig(Options::default()).await;
    let whole = rig.upstream().manifest(&access(), &latest(), false, &[]).await.unwrap();
    let told = rig.upstream().manifest(&access(), &latest(), true, &[]).await.unwrap();
    assert_eq!(told.content, Bytes::new());
    assert_eq!((told.digest, &told.media_type, told.length), (whole.digest, &whole.media_type, whole.length));
    assert_eq!(rig.registry.requests().last().unwrap().method, "HEAD");
}

#[tokio::test]
async fn what_head_leaves_out_the_content_tells() {
    for name in ["docker-content-digest", "content-type", "content-length"] {
        let rig = rig(Options::default()).await;
        rig.registry.inject("HEAD", 1, Fault::WithoutHeader { name });
        let told = rig.upstream().manifest(&access(), &latest(), true, &[]).await.unwrap();
        assert_eq!((told.digest, told.media_type.as_str(), told.content), (rig.manifest, OCI_MANIFEST, Bytes::new()));
        assert_eq!(rig.registry.requests().last().unwrap().method, "GET", "{name}");
    }
}

#[tokio::test]
async fn oci_and_docker_types_are_asked_for_unless_the_caller_says() {
    let rig = rig(Options::default()).await;
    let asked = || rig.registry.requests().pop().unwrap().accept.unwrap();
    rig.upstream().manifest(&access(), &latest(), false, &[]).await.unwrap();
    assert_eq!(asked(), MANIFEST_ACCEPT.join(", "));
    rig.upstream().manifest(&access(), &latest(), false, &["a/b".to_owned(), "*/*".to_owned()]).await.unwrap();
    assert_eq!(asked(), "a/b, */*");
}

#[tokio::test]
async fn a_manifest_of_wrong_bytes_is_refused_by_digest_and_by_tag() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET", 2, Fault::Corrupt);
    for reference in [Reference::Digest(rig.manifest), latest()] {
        let error = rig.upstream().manifest(&access(), &reference, false, &[]).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Protocol(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_manifest_whose_declared_digest_is_another_is_refused() {
    let rig = rig(Options::default()).await;
    let value = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    rig.registry.inject("HEAD", 1, Fault::WithHeader { name: "docker-content-digest", value });
    let error = rig.upstream().manifest(&access(), &rig.manifest.into(), true, &[]).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Protocol(_)), "{error:?}");
}

async fn serving(manifest: Bytes) -> (EmbeddedRegistry, Upstream) {
    let mut content = Content::new();
    content.add_manifest(NAME, Some("latest"), OCI_MANIFEST, manifest);
    let registry = EmbeddedRegistry::start(any_port(), content, Options::default()).await.unwrap();
    let upstream = Upstream::new(config(&registry)).unwrap();
    (registry, upstream)
}

#[tokio::test]
async fn a_manifest_over_four_mebibytes_is_refused_with_and_without_declared_length() {
    let (registry, upstream) = serving(noise(MANIFEST_LENGTH_MAX + 1)).await;
    let error = upstream.manifest(&access(), &latest(), false, &[]).await.unwrap_err();
    assert!(matches!(error, UpstreamError::TooLong { limit: MANIFEST_LENGTH_MAX }), "{error:?}");
    registry.inject("GET", 1, Fault::WithoutHeader { name: "content-length" });
    let error = upstream.manifest(&access(), &latest(), false, &[]).await.unwrap_err();
    assert!(matches!(error, UpstreamError::TooLong { limit: MANIFEST_LENGTH_MAX }), "{error:?}");
}

#[tokio::test]
async fn a_manifest_of_four_mebibytes_is_taken() {
    let (_registry, upstream) = serving(noise(MANIFEST_LENGTH_MAX)).await;
    let manifest = upstream.manifest(&access(), &latest(), false, &[]).await.unwrap();
    assert_eq!(manifest.length, MANIFEST_LENGTH_MAX as u64);
}

#[tokio::test]
async fn a_manifest_that_is_cut_is_asked_for_again() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET", 2, Fault::Cut { after: 10 });
    let manifest = rig.upstream().manifest(&access(), &latest(), false, &[]).await.unwrap();
    assert_eq!(manifest.digest, rig.manifest);
}

#[tokio::test]
async fn what_is_unknown_is_told_apart() {
    let rig = rig(Options::default()).await;
    let code = |error| {
        let UpstreamError::NotFound { code, .. } = error else { panic!("{error:?}") };
        code
    };
    let upstream = rig.upstream();
    let error = upstream.manifest(&access(), &"other".parse().unwrap(), false, &[]).await.unwrap_err();
    assert_eq!(code(error), OciCode::ManifestUnknown);
    let elsewhere = Access::new(Repository::new(REGISTRY, "org/other").unwrap());
    let error = upstream.manifest(&elsewhere, &latest(), false, &[]).await.unwrap_err();
    assert_eq!(code(error), OciCode::NameUnknown);
    let error = upstream.manifest(&elsewhere, &latest(), true, &[]).await.unwrap_err();
    assert_eq!(code(error), OciCode::ManifestUnknown, "HEAD has no body to tell");
}

#[tokio::test]
async fn a_listing_passes_with_its_link() {
    let mut content = Content::new();
    for tag in ["a", "b", "c"] {
        content.add_manifest(NAME, Some(tag), OCI_MANIFEST, tag.to_owned());
    }
    let registry = EmbeddedRegistry::start(any_port(), content, Options::default()).await.unwrap();
    let upstream = Upstream::new(config(&registry)).unwrap();
    let page = upstream.get(&access(), "tags/list?n=2", &[]).await.unwrap();
    assert_eq!(page.content, r#"{"name":"org/app","tags":["a","b"]}"#);
    assert_eq!(page.headers["link"], "</v2/org/app/tags/list?n=2&last=b>; rel=\"next\"");
    assert_eq!(page.headers["content-type"], "application/json");
    assert_eq!(page.headers.len(), 2);
    let referrers = format!("referrers/{}", Digest::sha256_of(b"a"));
    let error = upstream.get(&access(), &referrers, &[]).await.unwrap_err();
    assert!(matches!(error, UpstreamError::NotFound { .. }), "{error:?}");
}

#[tokio::test]
async fn permission_is_asked_by_head_for_blobs_manifests_and_tags() {
    let rig = rig(Options::default()).await;
    let upstream = rig.upstream();
    for what in [rig.layer.into(), rig.manifest.into(), latest()] {
        upstream.authorize(&access(), &what).await.unwrap();
    }
    let error = upstream.authorize(&access(), &Digest::sha256_of(b"other").into()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::NotFound { .. }), "{error:?}");
    assert!(rig.registry.requests().iter().all(|request| request.method == "HEAD"));
}

#[tokio::test]
async fn a_registry_of_another_name_may_be_anywhere() {
    let rig = rig(Options::default()).await;
    let there = RegistryConfig { url: Some(rig.registry.addr().to_string()), plain_http: true, ..Default::default() };
    let registries = [("docker.io".to_owned(), there)].into();
    let upstream = Upstream::new(Config { registries, ..Config::default() }).unwrap();
    let hub = Access::new(Repository::new("index.docker.io", NAME).unwrap());
    assert_eq!(upstream.manifest(&hub, &latest(), false, &[]).await.unwrap().digest, rig.manifest);
}

#[tokio::test]
async fn a_registry_on_this_machine_needs_no_configuration() {
    let rig = rig(Options::default()).await;
    let upstream = Upstream::new(Config::default()).unwrap();
    let local = Access::new(Repository::new(&rig.registry.addr().to_string(), NAME).unwrap());
    assert_eq!(upstream.manifest(&local, &latest(), false, &[]).await.unwrap().digest, rig.manifest);
}
