//! What an origin gives when its configuration says what may be served, or that upstream is not asked.

use std::time::Duration;

use crate::rig::{Lab, REPOSITORY, noise};
use http::Method;
use shoal_kit::HumanDuration;
use shoal_meta::Digest;
use shoal_registry::embedded::{Auth, Content, Image, Layer, Options};
use tonic::Code;

/// An image of two layers, of which one is pulled with credentials, and an origin that is offline since.
async fn offline_after_a_pull() -> (Lab, Image, bytes::Bytes) {
    let (mut content, layer) = (Content::new(), noise(600_000, 1));
    let layers = vec![Layer::tar(layer.clone()), Layer::tar(noise(1000, 2))];
    let image = content.add_image(REPOSITORY, "v1", layers);
    let auth = Some(Auth::Basic { user: "me".to_owned(), password: "s3cret".to_owned() });
    let lab = Lab::start(content, Options { auth, ..Options::default() }).await;
    let me = [("authorization", "Basic bWU6czNjcmV0"), ("accept", "application/vnd.oci.image.manifest.v1+json")];
    assert_eq!(lab.get("manifests/v1", &me).await.status, 200);
    assert_eq!(lab.get(&format!("blobs/{}", image.layers[0]), &me).await.body.unwrap(), layer);
    let lab = lab.restart_with(|config| (config.offline, config.tag_ttl) = (true, HumanDuration(Duration::ZERO))).await;
    (lab, image, layer)
}

#[tokio::test]
async fn offline_what_is_held_is_given_to_anybody_and_upstream_is_not_asked() {
    let (lab, image, layer) = offline_after_a_pull().await;
    let asked = lab.registry.requests().len();
    // Another client's media types than those the tag was noted with.
    let manifest = lab.get("manifests/v1", &[("accept", "*/*")]).await;
    assert_eq!((manifest.status.as_u16(), manifest.header("warning")), (200, "299 - \"Response is Stale\""));
    assert_eq!(Digest::sha256_of(&manifest.body.unwrap()), image.manifest);
    let path = format!("blobs/{}", image.layers[0]);
    assert_eq!(lab.get(&path, &[]).await.body.unwrap(), layer);
    assert_eq!(lab.http(Method::HEAD, &path, &[]).await.header("content-length"), "600000");
    assert!(lab.metainfo(&image.layers[0]).await.unwrap().complete);
    assert_eq!(lab.registry.requests().len(), asked);
}

#[tokio::test]
async fn offline_what_is_not_held_is_404_and_upstream_is_not_asked() {
    let (lab, image, _) = offline_after_a_pull().await;
    let asked = lab.registry.requests().len();
    let paths = [
        (format!("blobs/{}", image.layers[1]), "BLOB_UNKNOWN"),
        ("manifests/v2".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("manifests/{}", Digest::sha256_of(b"other")), "MANIFEST_UNKNOWN"),
        ("tags/list".to_owned(), "NAME_UNKNOWN"),
    ];
    for (path, code) in paths {
        let answer = lab.get(&path, &[]).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (404, code.to_owned()), "{path}");
    }
    assert_eq!(lab.metainfo(&image.layers[1]).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(lab.registry.requests().len(), asked);
}

#[tokio::test]
async fn an_excluded_repository_is_refused_over_http_and_grpc_and_upstream_is_not_asked() {
    let mut content = Content::new();
    let image = content.add_image(REPOSITORY, "v1", vec![Layer::tar(noise(1000, 3))]);
    let lab = Lab::start_with(content, Options::default(), |config| config.allow = vec!["r.example".to_owned()]).await;
    for path in [format!("blobs/{}", image.layers[0]), "manifests/v1".to_owned(), "tags/list".to_owned()] {
        let answer = tokio::time::timeout(Duration::from_secs(5), lab.get(&path, &[])).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.code()), (403, "DENIED".to_owned()), "{path}");
    }
    for status in [lab.resolve("v1", false).await.unwrap_err(), lab.metainfo(&image.layers[0]).await.unwrap_err()] {
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        assert!(status.message().contains("allow"), "{status:?}");
    }
    assert_eq!(lab.registry.requests(), []);
}
