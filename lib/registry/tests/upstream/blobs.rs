//! Blobs from upstream over real sockets: whole, in order, taken up again where they broke, and never silently short.

use std::time::Duration;

use crate::rig::{access, collect, rig};
use futures_util::StreamExt as _;
use shoal_meta::Digest;
use shoal_registry::embedded::{Fault, Options};
use shoal_registry::{OciCode, Timing, Upstream, UpstreamError};

#[tokio::test]
async fn a_blob_comes_whole_with_its_length() {
    let rig = rig(Options::default()).await;
    let body = rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap();
    assert_eq!((body.length, body.offset), (1_000_000, 0));
    assert_eq!(collect(body).await.unwrap(), rig.content);
    assert_eq!(rig.upstream().blob_length(&access(), &rig.layer).await.unwrap(), 1_000_000);
}

#[tokio::test]
async fn a_blob_is_asked_for_without_encoding() {
    let rig = rig(Options::default()).await;
    collect(rig.upstream().blob(&access(), &rig.layer, 7).await.unwrap()).await.unwrap();
    let request = rig.registry.requests().pop().unwrap();
    assert_eq!(request.accept_encoding.as_deref(), Some("identity"));
    assert_eq!(request.range.as_deref(), Some("bytes=7-"));
}

#[tokio::test]
async fn a_body_resumes_at_the_exact_offset_after_a_cut() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET /v2/org/app/blobs", 1, Fault::Cut { after: 100_000 });
    rig.registry.inject("GET /v2/org/app/blobs", 1, Fault::Cut { after: 50_000 });
    let body = rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap();
    assert_eq!(collect(body).await.unwrap(), rig.content);
    let ranges = [None, Some("bytes=100000-".to_owned()), Some("bytes=150000-".to_owned())];
    assert_eq!(rig.layer_gets(), ranges);
}

#[tokio::test]
async fn a_body_opened_at_an_offset_resumes_there_too() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET /v2/org/app/blobs", 1, Fault::Cut { after: 10_000 });
    let body = rig.upstream().blob(&access(), &rig.layer, 900_000).await.unwrap();
    assert_eq!((body.length, body.offset), (1_000_000, 900_000));
    assert_eq!(collect(body).await.unwrap(), rig.content[900_000..]);
    assert_eq!(rig.layer_gets(), [Some("bytes=900000-".to_owned()), Some("bytes=910000-".to_owned())]);
}

#[tokio::test]
async fn a_body_that_stalls_is_taken_up_again() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET /v2/org/app/blobs", 1, Fault::Stall { after: 1000 });
    let mut config = rig.config();
    config.timing.progress = Duration::from_millis(300);
    let body = Upstream::new(config).unwrap().blob(&access(), &rig.layer, 0).await.unwrap();
    assert_eq!(collect(body).await.unwrap(), rig.content);
    assert_eq!(rig.layer_gets(), [None, Some("bytes=1000-".to_owned())]);
}

#[tokio::test]
async fn more_cuts_than_attempts_are_survived_while_the_body_moves_on() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET /v2/org/app/blobs", 10, Fault::Cut { after: 20_000 });
    let body = rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap();
    assert_eq!(collect(body).await.unwrap(), rig.content);
    assert_eq!(rig.layer_gets().len(), 11);
}

#[tokio::test]
async fn a_body_that_does_not_move_on_ends_with_an_error() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET /v2/org/app/blobs", 1, Fault::Cut { after: 10_000 });
    rig.registry.inject("GET /v2/org/app/blobs", u32::MAX, Fault::Cut { after: 0 });
    let mut body = rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap();
    let mut got = 0;
    let error = loop {
        match body.next().await.expect("the end is an error") {
            Ok(bytes) => got += bytes.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(got, 10_000);
    assert!(matches!(error, UpstreamError::Transport(_)), "{error:?}");
    assert_eq!(rig.layer_gets().len(), 3);
}

#[tokio::test]
async fn a_server_that_ignores_ranges_costs_only_bytes() {
    let rig = rig(Options { ignore_range: true, ..Options::default() }).await;
    rig.registry.inject("GET /v2/org/app/blobs", 1, Fault::Cut { after: 123_456 });
    let body = rig.upstream().blob(&access(), &rig.layer, 5).await.unwrap();
    assert_eq!((body.length, body.offset), (1_000_000, 5));
    assert_eq!(collect(body).await.unwrap(), rig.content[5..]);
}

#[tokio::test]
async fn a_length_that_is_a_lie_is_an_error_and_never_a_short_clean_body() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET /v2/org/app/blobs", u32::MAX, Fault::DeclareMore { extra: 10 });
    let body = rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap();
    assert_eq!(body.length, 1_000_010);
    assert!(collect(body).await.is_err());
}

#[tokio::test]
async fn a_body_that_ends_early_without_declared_length_is_taken_up_again() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET /v2/org/app/blobs", 1, Fault::EndEarly { after: 1000 });
    let body = rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap();
    assert_eq!(body.length, 1_000_000);
    assert_eq!(collect(body).await.unwrap(), rig.content);
    assert_eq!(rig.layer_gets(), [None, Some("bytes=1000-".to_owned())]);
}

#[tokio::test]
async fn a_body_that_always_ends_early_is_an_error() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET /v2/org/app/blobs", u32::MAX, Fault::EndEarly { after: 0 });
    let body = rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap();
    assert!(matches!(collect(body).await, Err(UpstreamError::Transport(_))));
}

#[tokio::test]
async fn a_length_is_asked_by_range_where_head_does_not_tell_it() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("HEAD /v2/org/app/blobs", 1, Fault::WithoutHeader { name: "content-length" });
    assert_eq!(rig.upstream().blob_length(&access(), &rig.layer).await.unwrap(), 1_000_000);
    rig.registry.inject("HEAD /v2/org/app/blobs", 1, Fault::Status { status: 405, retry_after: None });
    assert_eq!(rig.upstream().blob_length(&access(), &rig.layer).await.unwrap(), 1_000_000);
}

#[tokio::test]
async fn a_range_that_begins_elsewhere_is_an_error() {
    let rig = rig(Options::default()).await;
    let wrong = Fault::WithHeader { name: "content-range", value: "bytes 6-999999/1000000" };
    rig.registry.inject("GET /v2/org/app/blobs", 1, wrong);
    let error = rig.upstream().blob(&access(), &rig.layer, 5).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Protocol(_)), "{error:?}");
}

#[tokio::test]
async fn a_blob_that_changes_its_length_between_two_answers_is_an_error() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET /v2/org/app/blobs", 1, Fault::Cut { after: 5 });
    let other = Fault::WithHeader { name: "content-range", value: "bytes 5-999999/2000000" };
    rig.registry.inject("GET /v2/org/app/blobs", 1, other);
    let body = rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap();
    assert!(matches!(collect(body).await, Err(UpstreamError::Protocol(_))));
}

#[tokio::test]
async fn an_encoded_blob_is_refused() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET", 1, Fault::WithHeader { name: "content-encoding", value: "gzip" });
    let error = rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Protocol(_)), "{error:?}");
}

#[tokio::test]
async fn at_its_end_a_blob_has_no_bytes_and_beyond_it_is_an_error() {
    let rig = rig(Options::default()).await;
    let body = rig.upstream().blob(&access(), &rig.layer, 1_000_000).await.unwrap();
    assert_eq!(body.length, 1_000_000);
    assert_eq!(collect(body).await.unwrap(), b"");
    assert!(rig.upstream().blob(&access(), &rig.layer, 1_000_001).await.is_err());
}

#[tokio::test]
async fn an_unknown_blob_is_not_found_and_not_asked_for_again() {
    let rig = rig(Options::default()).await;
    let digest = Digest::sha256_of(b"something else");
    let error = rig.upstream().blob(&access(), &digest, 0).await.unwrap_err();
    assert!(matches!(error, UpstreamError::NotFound { code: OciCode::BlobUnknown, .. }), "{error:?}");
    assert_eq!(rig.registry.requests().len(), 1);
}

#[tokio::test]
async fn a_server_error_is_retried_and_then_given_up() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET", 2, Fault::Status { status: 503, retry_after: None });
    assert!(rig.upstream().blob(&access(), &rig.layer, 0).await.is_ok());
    rig.registry.inject("GET", u32::MAX, Fault::Status { status: 502, retry_after: None });
    let before = rig.registry.requests().len();
    let error = rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Server { status: 502, .. }), "{error:?}");
    assert_eq!(rig.registry.requests().len() - before, 3);
}

#[tokio::test]
async fn retry_after_is_waited_for_if_it_is_short() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET", 1, Fault::Status { status: 429, retry_after: Some(1) });
    let start = std::time::Instant::now();
    rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_long_retry_after_is_told_at_once() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET", 1, Fault::Status { status: 429, retry_after: Some(3600) });
    let error = rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));
    assert_eq!(rig.registry.requests().len(), 1);
}

#[tokio::test]
async fn a_silent_registry_is_a_timeout() {
    let rig = rig(Options::default()).await;
    rig.registry.inject("GET", u32::MAX, Fault::Silence);
    let mut config = rig.config();
    config.timing = Timing { headers: Duration::from_millis(100), attempts: 2, ..config.timing };
    let error = Upstream::new(config).unwrap().blob(&access(), &rig.layer, 0).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Timeout { awaited: "headers", .. }), "{error:?}");
    assert_eq!(rig.registry.requests().len(), 2);
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_a_transport_error() {
    let rig = rig(Options::default()).await;
    let upstream = rig.upstream();
    let layer = rig.layer;
    drop(rig);
    // The listener goes with its task, soon after the handle.
    let gone = async {
        loop {
            if let Err(error) = upstream.blob(&access(), &layer, 0).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    assert!(matches!(error, UpstreamError::Transport(_)), "{error:?}");
}

#[tokio::test]
async fn each_blob_is_counted_as_it_leaves() {
    let rig = rig(Options::default()).await;
    collect(rig.upstream().blob(&access(), &rig.layer, 0).await.unwrap()).await.unwrap();
    collect(rig.upstream().blob(&access(), &rig.layer, 999_000).await.unwrap()).await.unwrap();
    rig.upstream().blob_length(&access(), &rig.layer).await.unwrap();
    let count = rig.registry.counters().blobs[&rig.layer];
    assert_eq!((count.gets, count.heads, count.bytes), (2, 1, 1_001_000));
}
