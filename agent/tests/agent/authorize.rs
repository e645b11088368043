//! Private images: nothing that lies on the node is given to one who may not have it.

use std::time::Duration;

use http::Method;
use shoal_registry::embedded::{Auth, Options};

use crate::rig::{Rig, blob, eventually, get, manifest, send};

fn private() -> Options {
    let user = Some(("ann".to_owned(), "secret".to_owned()));
    Options { auth: Some(Auth::Token { user, lifetime: Duration::from_secs(60) }), ..Options::default() }
}

/// What a runtime does with a challenge: takes the user's password to the token service, and comes back with a token.
async fn token(rig: &Rig, challenge: &str) -> String {
    let realm = challenge.split("realm=\"").nth(1).unwrap().split('"').next().unwrap();
    let query = challenge.split("service=\"").nth(1).unwrap().split('"').next().unwrap();
    let scope = challenge.split("scope=\"").nth(1).unwrap().split('"').next().unwrap();
    let url = format!("{realm}?service={query}&scope={scope}");
    let answer = crate::rig::fetch_as(&url, "Basic YW5uOnNlY3JldA==").await;
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert!(realm.starts_with(&rig.registry.url()));
    format!("Bearer {}", answer["token"].as_str().or(answer["access_token"].as_str()).unwrap())
}

#[tokio::test]
async fn without_credentials_upstreams_own_challenge_is_relayed() {
    let rig = Rig::start(private()).await;
    let agent = rig.agent(|_| {}).await;
    let direct = crate::rig::challenge(&format!("{}/v2/app/manifests/v1", rig.registry.url())).await;
    assert!(direct.starts_with("Bearer realm="), "{direct}");
    let answer = get(&agent, &manifest("v1")).await;
    assert_eq!((answer.status.as_u16(), answer.header("www-authenticate")), (401, &*direct));
}

#[tokio::test]
async fn a_blob_on_the_node_is_given_only_to_who_may_have_it() {
    let rig = Rig::start(private()).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    let refused = get(&agent, &blob(&layer)).await;
    assert_eq!(refused.status, 401);
    let token = token(&rig, refused.header("www-authenticate")).await;
    let credentials = [("authorization", token.as_str())];
    let given = send(&agent, Method::GET, &blob(&layer), &credentials).await;
    assert_eq!(given.digest(), layer);
    eventually("the blob is whole", || agent.status().blobs == 1).await;

    for stranger in [None, Some("Bearer forged")] {
        let headers: Vec<_> = stranger.map(|value| ("authorization", value)).into_iter().collect();
        for method in [Method::GET, Method::HEAD] {
            let answer = send(&agent, method, &blob(&layer), &headers).await;
            assert_eq!(answer.status, 401, "{stranger:?}");
            assert!(answer.header("www-authenticate").starts_with("Bearer "));
        }
    }
    let again = send(&agent, Method::GET, &blob(&layer), &credentials).await;
    assert_eq!(again.digest(), layer);
    assert_eq!(rig.sent(&layer).0, 1);
}
