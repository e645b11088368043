//! What is not asked of upstream at all.

use crate::rig::{REGISTRY, access, latest, rig};
use shoal_registry::embedded::Options;
use shoal_registry::{Config, OciCode, Upstream, UpstreamError};

#[tokio::test]
async fn offline_nobody_is_asked_and_each_answer_says_what_is_unknown() {
    let rig = rig(Options::default()).await;
    let upstream = Upstream::new(Config { offline: true, ..rig.config() }).unwrap();
    let errors = [
        (upstream.manifest(&access(), &latest(), false, &[]).await.unwrap_err(), OciCode::ManifestUnknown),
        (upstream.blob(&access(), &rig.layer, 0).await.unwrap_err(), OciCode::BlobUnknown),
        (upstream.blob_length(&access(), &rig.layer).await.unwrap_err(), OciCode::BlobUnknown),
        (upstream.get(&access(), "tags/list", &[]).await.unwrap_err(), OciCode::NameUnknown),
        (upstream.authorize(&access(), &rig.layer.into()).await.unwrap_err(), OciCode::BlobUnknown),
    ];
    for (error, code) in errors {
        let answer = error.to_oci_error();
        assert_eq!((answer.status.as_u16(), answer.code), (404, code));
        assert!(answer.message.contains("offline"), "{}", answer.message);
    }
    assert_eq!(rig.registry.requests(), []);
}

#[tokio::test]
async fn an_excluded_repository_is_refused_with_its_rule_and_never_asked_for() {
    let rig = rig(Options::default()).await;
    let deny = vec![format!("{REGISTRY}/org/*")];
    let upstream = Upstream::new(Config { deny, ..rig.config() }).unwrap();
    let error = upstream.blob(&access(), &rig.layer, 0).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Excluded { .. }), "{error:?}");
    let answer = error.to_oci_error();
    assert_eq!((answer.status.as_u16(), answer.code), (403, OciCode::Denied));
    assert!(answer.message.contains("registry.example/org/*"), "{}", answer.message);
    assert_eq!(rig.registry.requests(), []);
}
