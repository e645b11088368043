//! Registries that keep blobs elsewhere: redirects over real sockets, and what stays behind.

use crate::credentials::{passwords, tokens_for, upstream_as};
use crate::rig::{Rig, access, access_with, collect, rig};
use shoal_registry::UpstreamError;
use shoal_registry::embedded::{Fault, Options};

#[tokio::test]
async fn authorization_stays_behind_on_a_redirect_to_another_port_of_the_host() {
    let store = rig(Options::default()).await;
    stays_behind(&store, store.registry.url()).await;
}

#[tokio::test]
async fn authorization_stays_behind_on_a_redirect_to_another_host() {
    let store = rig(Options::default()).await;
    let url = format!("http://localhost:{}", store.registry.addr().port());
    stays_behind(&store, url).await;
}

async fn stays_behind(store: &Rig, url: String) {
    let front = rig(Options { redirect_blobs: Some(url), ..tokens_for(None, 300) }).await;
    let body = front.upstream().blob(&access(), &front.layer, 0).await.unwrap();
    assert_eq!(collect(body).await.unwrap(), front.content);
    assert!(front.registry.requests().last().unwrap().authorization.is_some());
    assert_eq!(store.registry.requests().len(), 1);
    assert_eq!(store.registry.requests()[0].authorization, None);
}

#[tokio::test]
async fn a_body_cut_behind_a_redirect_is_asked_for_at_the_registry_again() {
    let store = rig(Options::default()).await;
    let front = rig(Options { redirect_blobs: Some(store.registry.url()), ..Options::default() }).await;
    store.registry.inject("GET", 1, Fault::Cut { after: 1000 });
    let body = front.upstream().blob(&access(), &front.layer, 0).await.unwrap();
    assert_eq!(collect(body).await.unwrap(), front.content);
    let resumed = Some("bytes=1000-".to_owned());
    assert_eq!(front.layer_gets(), [None, resumed.clone()]);
    assert_eq!(store.layer_gets(), [None, resumed]);
}

#[tokio::test]
async fn a_redirect_is_permission_enough() {
    let front = rig(Options { redirect_blobs: Some("http://127.0.0.1:1".to_owned()), ..Options::default() }).await;
    front.upstream().authorize(&access(), &front.layer.into()).await.unwrap();
    assert_eq!(front.registry.requests().len(), 1);
}

#[tokio::test]
async fn a_challenge_of_another_host_is_not_answered() {
    let store = rig(passwords()).await;
    let front = rig(Options { redirect_blobs: Some(store.registry.url()), ..Options::default() }).await;
    let error = upstream_as(&front, "me", "s3cret").blob(&access(), &front.layer, 0).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Refused { status: 401, .. }), "{error:?}");
    assert!(store.registry.requests().iter().all(|request| request.authorization.is_none()));
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let front = rig(Options { redirect_blobs: Some(String::new()), ..Options::default() }).await;
    let error = front.upstream().blob(&access(), &front.layer, 0).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Protocol(_)), "{error:?}");
    assert!(front.registry.requests().len() < 10);
}

#[tokio::test]
async fn the_callers_own_authorization_stays_behind_too() {
    let store = rig(Options::default()).await;
    let front = rig(Options { redirect_blobs: Some(store.registry.url()), ..passwords() }).await;
    let access = access_with("Basic bWU6czNjcmV0");
    let body = front.upstream().blob(&access, &front.layer, 0).await.unwrap();
    assert_eq!(collect(body).await.unwrap(), front.content);
    assert_eq!(store.registry.requests()[0].authorization, None);
}

#[tokio::test]
async fn authorization_goes_along_within_one_server() {
    let rig = rig(Options { redirect_blobs: Some(String::new()), ..passwords() }).await;
    let upstream = upstream_as(&rig, "me", "s3cret");
    assert!(upstream.blob(&access(), &rig.layer, 0).await.is_err(), "it leads in a circle");
    let requests = rig.registry.requests();
    assert!(requests.len() > 2);
    assert!(requests[1..].iter().all(|request| request.authorization.is_some()), "{requests:?}");
}
