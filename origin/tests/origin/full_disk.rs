//! An origin whose disk takes no blob: it passes them through, and says so to agents.

use crate::rig::{Cut, Lab, REPOSITORY, noise};
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use shoal_kit::ByteSize;
use shoal_meta::Digest;
use shoal_registry::embedded::{Auth, Content, Fault, Options};
use tonic::Code;

const MIB: usize = 1024 * 1024;

/// A blob upstream, and an origin with room for half of it.
async fn lab(seed: u64, options: Options) -> (Lab, Digest, Bytes) {
    let (mut content, blob) = (Content::new(), noise(2 * MIB, seed));
    let digest = content.add_blob(blob.clone());
    let lab = Lab::start_with(content, options, |config| config.store_max = Some(ByteSize::mib(1))).await;
    (lab, digest, blob)
}

#[tokio::test]
async fn a_blob_without_room_is_passed_through() {
    let (lab, digest, blob) = lab(1, Options::default()).await;
    let path = format!("blobs/{digest}");
    let length = blob.len().to_string();
    for _ in 0..2 {
        let whole = lab.get(&path, &[]).await;
        assert_eq!((whole.status.as_u16(), whole.header("content-length")), (200, &*length));
        assert!(whole.body.unwrap() == blob);
    }
    let head = lab.http(Method::HEAD, &path, &[]).await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (200, &*length));
    let middle = lab.get(&path, &[("range", "bytes=700000-1300000")]).await;
    assert_eq!(middle.status, 206);
    assert!(middle.body.unwrap() == blob.slice(700_000..1_300_001));
    let several = lab.get(&path, &[("range", "bytes=1000000-1000003,5-7")]).await.body.unwrap();
    assert!(several.windows(4).any(|window| window == &blob[1_000_000..1_000_004]));
    assert_eq!(lab.origin.counters().blobs_ingested, 0);
}

#[tokio::test]
async fn agents_are_told_to_go_upstream_and_upstream_is_not_asked_again_for_it() {
    let (lab, digest, _) = lab(2, Options::default()).await;
    assert_eq!(lab.metainfo(&digest).await.unwrap_err().code(), Code::ResourceExhausted);
    let asked = lab.registry.requests().len();
    let told = lab.metainfo(&digest).await.unwrap_err();
    assert_eq!(told.code(), Code::ResourceExhausted);
    assert!(told.message().contains("ask upstream"), "{}", told.message());
    assert!(told.metadata().get_bin(shoal_proto::UPSTREAM_ERROR_METADATA).is_none(), "upstream said nothing");
    assert!(lab.held(&digest, "").await.unwrap().header.is_none());
    // Once for the leave of whoever brings no credentials.
    assert!(lab.registry.requests().len() <= asked + 1);
}

#[tokio::test]
async fn wrong_bytes_passed_through_are_never_sent_whole() {
    let (lab, digest, _) = lab(3, Options::default()).await;
    let path = format!("blobs/{digest}");
    lab.registry.inject("GET /v2/team/app/blobs", 2, Fault::Corrupt);
    assert!(lab.get(&path, &[]).await.body == Err(Cut));
}

#[tokio::test]
async fn what_is_passed_through_needs_credentials_too() {
    let auth = Auth::Basic { user: "ann".to_owned(), password: "secret".to_owned() };
    let (lab, digest, blob) = lab(4, Options { auth: Some(auth), ..Options::default() }).await;
    let path = format!("blobs/{digest}");
    let good = lab.get(&path, &[("authorization", "Basic YW5uOnNlY3JldA==")]).await;
    assert!(good.body.unwrap() == blob);
    assert_eq!(lab.get(&path, &[]).await.status, 401);
    assert_eq!(lab.get(&path, &[("authorization", "Basic YW5uOndyb25n")]).await.status, 401);
}

#[tokio::test]
async fn a_body_goes_on_past_a_disk_that_fails_in_its_midst() {
    let (mut content, blob) = (Content::new(), noise(3 * MIB, 5));
    let digest = content.add_blob(blob.clone());
    let lab = Lab::start(content, Options { rate: Some(4 * MIB as u64), ..Options::default() }).await;
    let url = format!("http://{}/v2/{REPOSITORY}/blobs/{digest}?ns={}", lab.origin.http_addr, lab.registry.addr());
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let mut response = client.get(url.parse().unwrap()).await.unwrap();
    let first = response.frame().await.unwrap().unwrap().into_data().unwrap();
    lab.lose_partials();
    let rest = crate::rig::within(response.into_body().collect()).await.unwrap().to_bytes();
    assert!([first, rest].concat() == blob);
    assert_eq!(lab.origin.counters().blobs_ingested, 0);
    assert_eq!(lab.metainfo(&digest).await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_body_goes_on_past_a_blob_that_has_rotted_and_the_next_fetches_it_anew() {
    let (mut content, blob) = (Content::new(), noise(3 * MIB, 6));
    let digest = content.add_blob(blob.clone());
    let lab = Lab::start(content, Options::default()).await;
    let path = format!("blobs/{digest}");
    assert!(lab.get(&path, &[]).await.body.unwrap() == blob);
    let lab = lab.restart().await;
    lab.rot(&digest, 2 * MIB as u64);
    assert!(lab.get(&path, &[]).await.body.unwrap() == blob);
    assert_eq!(lab.origin.counters().blobs_ingested, 0);
    assert!(lab.get(&path, &[]).await.body.unwrap() == blob);
    assert_eq!(lab.origin.counters().blobs_ingested, 1);
}
