//! Blobs through the origin's metainfo stream: fetched once, published as they come, resumed, withdrawn.

use crate::rig::{Lab, Told, hashes_of, noise, within};
use prost::Message as _;
use shoal_proto::UPSTREAM_ERROR_METADATA;
use shoal_proto::origin::v1::{AuthorizeRequest, UpstreamError};
use shoal_registry::embedded::{Auth, Content, Fault, Options};
use tonic::Code;

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn eight_callers_cost_one_upstream_request() {
    let (mut content, blob) = (Content::new(), noise(3 * MIB, 1));
    let digest = content.add_blob(blob.clone());
    let lab = Lab::start(content, Options::default()).await;
    let told = futures_util::future::join_all((0..8).map(|_| lab.metainfo(&digest))).await;
    for told in told {
        let told = told.unwrap();
        assert_eq!(told.hashes, hashes_of(&blob));
        assert!(told.complete);
        assert_eq!(told.header.unwrap().length_bytes, blob.len() as u64);
    }
    let upstream = lab.registry.counters().blobs[&digest];
    assert_eq!((upstream.gets, upstream.bytes), (1, blob.len() as u64));
    assert_eq!(lab.origin.counters().upstream_bytes, blob.len() as u64);
}

#[tokio::test]
async fn the_first_hash_comes_when_the_first_piece_is_in() {
    let (mut content, blob) = (Content::new(), noise(4 * MIB, 2));
    let digest = content.add_blob(blob.clone());
    let options = Options { rate: Some(2 * MIB as u64), ..Options::default() };
    let lab = Lab::start(content, options).await;
    let mut stream = lab.open(&digest, "").await.unwrap();
    let mut told = Told::default();
    while told.hashes.is_empty() {
        told.take(within(stream.message()).await.unwrap().unwrap());
    }
    assert!(told.hashes.len() <= 2, "{} hashes at once", told.hashes.len());
    let left = lab.registry.counters().blobs[&digest].bytes;
    assert!(left < blob.len() as u64 / 2, "{left} bytes had left upstream");
    while let Some(update) = within(stream.message()).await.unwrap() {
        told.take(update);
    }
    assert_eq!(told.hashes, hashes_of(&blob));
    assert!(told.complete);
}

#[tokio::test]
async fn a_stream_begins_at_the_piece_asked_for() {
    let (mut content, blob) = (Content::new(), noise(MIB, 3));
    let digest = content.add_blob(blob.clone());
    let lab = Lab::start(content, Options::default()).await;
    lab.metainfo(&digest).await.unwrap();
    let request = |first_piece| shoal_proto::origin::v1::MetainfoRequest {
        access: Some(lab.access("")),
        digest: digest.to_string(),
        first_piece,
        held_only: false,
        header_only: false,
    };
    let mut client = lab.client().await;
    let mut stream = client.metainfo(request(3)).await.unwrap().into_inner();
    let mut told = Told { hashes: hashes_of(&blob)[..3].to_vec(), ..Told::default() };
    while let Some(update) = stream.message().await.unwrap() {
        told.take(update);
    }
    assert_eq!(told.hashes, hashes_of(&blob));
    assert_eq!(client.metainfo(request(9)).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_body_cut_upstream_goes_on_at_its_offset() {
    let (mut content, blob) = (Content::new(), noise(2 * MIB, 4));
    let digest = content.add_blob(blob.clone());
    let lab = Lab::start(content, Options::default()).await;
    lab.registry.inject("GET /v2/team/app/blobs", 1, Fault::Cut { after: 700_000 });
    assert_eq!(lab.metainfo(&digest).await.unwrap().hashes, hashes_of(&blob));
    let ranges: Vec<_> = lab.registry.requests().into_iter().filter_map(|request| request.range).collect();
    assert_eq!(ranges.len(), 1);
    assert_ne!(ranges[0], "bytes=0-");
}

#[tokio::test]
async fn after_a_failure_the_next_request_goes_on_with_what_arrived() {
    let (mut content, blob) = (Content::new(), noise(2 * MIB, 5));
    let digest = content.add_blob(blob.clone());
    let lab = Lab::start(content, Options::default()).await;
    fail_after(&lab, 700_000);
    assert_eq!(lab.metainfo(&digest).await.unwrap_err().code(), Code::Unavailable);
    let told = lab.metainfo(&digest).await.unwrap();
    assert_eq!(told.hashes, hashes_of(&blob));
    let last = lab.registry.requests().pop().unwrap();
    assert_eq!((last.method.as_str(), last.range.as_deref()), ("GET", Some("bytes=655360-")));
}

#[tokio::test]
async fn a_restarted_origin_goes_on_with_what_is_on_disk() {
    let (mut content, blob) = (Content::new(), noise(2 * MIB, 6));
    let digest = content.add_blob(blob.clone());
    let lab = Lab::start(content, Options::default()).await;
    fail_after(&lab, 700_000);
    lab.metainfo(&digest).await.unwrap_err();
    let lab = lab.restart().await;
    assert_eq!(lab.metainfo(&digest).await.unwrap().hashes, hashes_of(&blob));
    assert_eq!(lab.registry.requests().pop().unwrap().range.as_deref(), Some("bytes=655360-"));
    // A third one has it all.
    let lab = lab.restart().await;
    let before = lab.registry.counters().blobs[&digest].gets;
    assert!(lab.metainfo(&digest).await.unwrap().complete);
    assert_eq!(lab.registry.counters().blobs[&digest].gets, before);
}

/// Lets the first fetch of a blob break, and its resumption too, so that the ingest fails.
fn fail_after(lab: &Lab, after: u64) {
    lab.registry.inject("GET /v2/team/app/blobs", 1, Fault::Cut { after });
    lab.registry.inject("GET /v2/team/app/blobs", 2, Fault::Status { status: 500, retry_after: None });
}

#[tokio::test]
async fn wrong_bytes_are_withdrawn_and_reported() {
    let (mut content, blob) = (Content::new(), noise(MIB, 7));
    let digest = content.add_blob(blob);
    let lab = Lab::start(content, Options::default()).await;
    lab.registry.inject("GET /v2/team/app/blobs", 1, Fault::Corrupt);
    assert_eq!(lab.metainfo(&digest).await.unwrap_err().code(), Code::DataLoss);
    // Upstream is not asked again for a while.
    assert_eq!(lab.metainfo(&digest).await.unwrap_err().code(), Code::DataLoss);
    assert_eq!(lab.registry.counters().blobs[&digest].gets, 1);
}

#[tokio::test]
async fn a_private_blob_needs_credentials_though_it_is_held() {
    let (mut content, blob) = (Content::new(), noise(MIB, 8));
    let digest = content.add_blob(blob);
    let auth = Auth::Basic { user: "ann".to_owned(), password: "secret".to_owned() };
    let lab = Lab::start(content, Options { auth: Some(auth), ..Options::default() }).await;
    let (good, bad) = ("Basic YW5uOnNlY3JldA==", "Basic YW5uOndyb25n");
    let refused = lab.open(&digest, "").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let said = refused.metadata().get_bin(UPSTREAM_ERROR_METADATA).unwrap().to_bytes().unwrap();
    let said = UpstreamError::decode(said).unwrap();
    assert_eq!(said.status, 401);
    assert!(said.www_authenticate.starts_with("Basic"), "{}", said.www_authenticate);

    let mut stream = lab.open(&digest, good).await.unwrap();
    while within(stream.message()).await.unwrap().is_some() {}
    for stranger in ["", bad] {
        assert_eq!(lab.open(&digest, stranger).await.unwrap_err().code(), Code::Unauthenticated);
        let request = AuthorizeRequest { access: Some(lab.access(stranger)), digest: digest.to_string() };
        assert_eq!(lab.client().await.authorize(request).await.unwrap_err().code(), Code::Unauthenticated);
    }
    let request = AuthorizeRequest { access: Some(lab.access(good)), digest: digest.to_string() };
    let asked = lab.registry.requests().len();
    assert!(lab.client().await.authorize(request).await.unwrap().into_inner().valid_ms > 0);
    assert_eq!(lab.registry.requests().len(), asked, "the accepted caller is remembered");
}

#[tokio::test]
async fn held_only_tells_nothing_of_an_unknown_blob_and_fetches_nothing() {
    let (mut content, blob) = (Content::new(), noise(MIB, 10));
    let digest = content.add_blob(blob);
    let lab = Lab::start(content, Options::default()).await;
    let told = lab.held(&digest, "").await.unwrap();
    assert!(told.header.is_none() && told.hashes.is_empty() && !told.complete);
    assert_eq!(lab.registry.requests().len(), 0);
}

#[tokio::test]
async fn held_only_follows_a_blob_that_is_being_fetched_and_tells_all_of_one_that_is_held() {
    let (mut content, blob) = (Content::new(), noise(2 * MIB, 11));
    let digest = content.add_blob(blob.clone());
    let lab = Lab::start(content, Options { rate: Some(4 * MIB as u64), ..Options::default() }).await;
    let first = lab.open(&digest, "").await.unwrap();
    let growing = lab.held(&digest, "").await.unwrap();
    drop(first);
    let whole = lab.held(&digest, "").await.unwrap();
    for told in [growing, whole] {
        assert_eq!(told.hashes, hashes_of(&blob));
        assert!(told.complete);
    }
    assert_eq!(lab.registry.counters().blobs[&digest].gets, 1);
}

#[tokio::test]
async fn held_only_needs_credentials_too() {
    let (mut content, blob) = (Content::new(), noise(MIB, 12));
    let digest = content.add_blob(blob);
    let auth = Auth::Basic { user: "ann".to_owned(), password: "secret".to_owned() };
    let lab = Lab::start(content, Options { auth: Some(auth), ..Options::default() }).await;
    let good = "Basic YW5uOnNlY3JldA==";
    let mut stream = lab.open(&digest, good).await.unwrap();
    while within(stream.message()).await.unwrap().is_some() {}
    for stranger in ["", "Basic YW5uOndyb25n"] {
        assert_eq!(lab.held(&digest, stranger).await.unwrap_err().code(), Code::Unauthenticated);
    }
    assert!(lab.held(&digest, good).await.unwrap().complete);
}

#[tokio::test]
async fn a_refused_first_caller_does_not_spoil_it_for_the_others() {
    let (mut content, blob) = (Content::new(), noise(MIB, 9));
    let digest = content.add_blob(blob);
    let auth = Auth::Basic { user: "ann".to_owned(), password: "secret".to_owned() };
    let options = Options { auth: Some(auth), latency: std::time::Duration::from_millis(50), ..Options::default() };
    let lab = Lab::start(content, options).await;
    let good = "Basic YW5uOnNlY3JldA==";
    let (refused, let_in, too) = tokio::join!(lab.open(&digest, ""), lab.open(&digest, good), lab.open(&digest, good));
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    assert!(let_in.is_ok() && too.is_ok());
}

#[tokio::test]
async fn the_empty_blob_is_complete_at_once() {
    let mut content = Content::new();
    let digest = content.add_blob("");
    let lab = Lab::start(content, Options::default()).await;
    let told = lab.metainfo(&digest).await.unwrap();
    assert!(told.complete && told.hashes.is_empty());
    assert_eq!(told.header.unwrap().length_bytes, 0);
}
