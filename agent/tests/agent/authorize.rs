//! Private images: nothing that lies on the node is given to one who may not have it.

use std::time::Duration;

use http::Method;
use shoal_agent::Running;
use shoal_registry::PrivateImages;
use shoal_registry::embedded::{Auth, Options};

use crate::rig::{Answer, REGISTRY, Rig, blob, eventually, get, manifest, send};

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

#[tokio::test]
async fn who_knows_a_digest_gets_what_the_node_holds_where_that_is_enough_and_nothing_else() {
    let rig = Rig::start(private()).await;
    let agent = rig.agent(|config| config.private_images = PrivateImages::DigestKnown).await;
    let (layer, other) = (rig.image.layers[0], rig.image.layers[1]);
    let token = token(&rig, get(&agent, &blob(&layer)).await.header("www-authenticate")).await;
    let given = send(&agent, Method::GET, &blob(&layer), &[("authorization", &token)]).await;
    assert_eq!(given.digest(), layer);
    eventually("the blob is whole", || agent.status().blobs == 1).await;
    let asked = rig.registry.requests().len();
    assert_eq!(get(&agent, &blob(&layer)).await.digest(), layer);
    assert_eq!(send(&agent, Method::HEAD, &blob(&layer), &[("authorization", "Bearer forged")]).await.status, 200);
    assert_eq!(rig.registry.requests().len(), asked, "upstream is not asked");
    assert_eq!(get(&agent, &blob(&other)).await.status, 401);
    assert_eq!(get(&agent, &manifest("v1")).await.status, 401);
}

#[tokio::test]
async fn a_stranger_who_is_let_in_unchecked_does_not_spoil_the_download_of_another() {
    let rig = Rig::with_layers(Options { rate: Some(1 << 20), ..private() }, &[2 << 20]).await;
    let agent = rig.agent(|config| config.private_images = PrivateImages::DigestKnown).await;
    let layer = rig.image.layers[0];
    let token = token(&rig, get(&agent, &blob(&layer)).await.header("www-authenticate")).await;
    let credentials = [("authorization", &*token)];
    let path = blob(&layer);
    let mine = send(&agent, Method::GET, &path, &credentials);
    let theirs = async {
        eventually("it is on its way", || !agent.status().torrents.is_empty()).await;
        send(&agent, Method::GET, &path, &[("authorization", "Bearer forged")]).await
    };
    let (mine, theirs) = tokio::join!(mine, theirs);
    assert_eq!((mine.digest(), theirs.digest()), (layer, layer));
}

/// What dockerd and podman do: they ask `/v2/` how to sign in, and take a user and a password there.
async fn signed_in(agent: &Running, scope: &str, authorization: Option<&str>) -> Answer {
    let ping = get(agent, "/v2/").await;
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"shoal\"", agent.front_addr());
    assert_eq!((ping.status.as_u16(), ping.header("www-authenticate")), (401, &*realm));
    let headers: Vec<_> = authorization.map(|value| ("authorization", value)).into_iter().collect();
    send(agent, Method::GET, &format!("/token?service=shoal&scope={scope}"), &headers).await
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

#[tokio::test]
async fn a_client_that_takes_the_agent_for_the_registry_signs_in_there_with_a_password_for_upstream() {
    let passwords = Auth::Basic { user: "ann".to_owned(), password: "secret".to_owned() };
    for options in [private(), Options { auth: Some(passwords), ..Options::default() }] {
        let rig = Rig::start(options).await;
        let agent = rig.agent(|_| {}).await;
        let (scope, path) = (format!("repository:{REGISTRY}/app:pull"), format!("/v2/{REGISTRY}/app/manifests/v1"));
        let refused = get(&agent, &path).await;
        let challenge = format!("realm=\"http://{}/token\",service=\"shoal\",scope=\"{scope}\"", agent.front_addr());
        assert!(refused.header("www-authenticate").ends_with(&challenge), "{refused:?}");
        for (user, password, status, reads) in [
            (format!("{REGISTRY}/ann"), "secret", 200, 200),
            (format!("{REGISTRY}/ann"), "wrong", 401, 401),
            // A password for Docker Hub, and nobody at this registry.
            ("ann".to_owned(), "secret", 200, 401),
        ] {
            let answer = signed_in(&agent, &scope, Some(&basic(&user, password))).await;
            assert_eq!(answer.status, status, "{user} {password}");
            let answer: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            let token = format!("Bearer {}", answer["token"].as_str().unwrap_or_default());
            let read = send(&agent, Method::GET, &path, &[("authorization", &token)]).await;
            assert_eq!(read.status, reads, "{user} {password}");
        }
    }
}

#[tokio::test]
async fn one_without_a_password_is_given_a_token_and_is_nobody() {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    let answer = signed_in(&agent, &format!("repository:{REGISTRY}/app:pull"), None).await;
    let answer: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let token = format!("Bearer {}", answer["token"].as_str().unwrap());
    let headers = [("authorization", &*token)];
    assert_eq!(send(&agent, Method::GET, "/v2/", &headers).await.status, 200);
    assert_eq!(send(&agent, Method::GET, &manifest("v1"), &headers).await.status, 200);
    assert!(rig.registry.requests().iter().all(|request| request.authorization.is_none()));
}
