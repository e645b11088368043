//! Tickets over real sockets: a private repository is opened by the pull secret that an origin was granted, and by nothing else.

use std::time::Duration;

use crate::rig::{Lab, REPOSITORY, hashes_of, noise, within};
use bytes::Bytes;
use prost::Message as _;
use shoal_meta::PieceHash;
use shoal_proto::origin::v1::metainfo_update::Update;
use shoal_proto::origin::v1::{
    Access, AuthorizeRequest, GrantRequest, MetainfoRequest, ResolveRequest, ResolveResponse, UpstreamError,
};
use shoal_registry::embedded::{Auth, Content, Image, Layer, Options};
use tonic::{Code, Status};

const OTHER: &str = "team/other";
const TICKET: &str = "0123456789abcdef";
const SHOWN: &str = "Shoal-Ticket 0123456789abcdef";

fn layer() -> Bytes {
    noise(3_000_000, 1)
}

/// Both ways in which a registry may ask for a password.
fn auths() -> [Auth; 2] {
    let (user, password) = ("me".to_owned(), "s3cret".to_owned());
    let token = Auth::Token { user: Some((user.clone(), password.clone())), lifetime: Duration::from_secs(300) };
    [Auth::Basic { user, password }, token]
}

async fn private(auth: Auth) -> (Lab, Image) {
    let mut content = Content::new();
    let image = content.add_image(REPOSITORY, "v1", vec![Layer::tar(layer())]);
    content.add_image(OTHER, "v1", vec![Layer::tar(layer())]);
    (Lab::start(content, Options { auth: Some(auth), ..Options::default() }).await, image)
}

impl Lab {
    fn pull_secret(&self, password: &str) -> Vec<u8> {
        let entry = serde_json::json!({ "username": "me", "password": password });
        serde_json::json!({ "auths": { self.registry.addr().to_string(): entry } }).to_string().into_bytes()
    }

    fn request(&self, password: &str) -> GrantRequest {
        GrantRequest {
            registry: self.registry.addr().to_string(),
            repository: REPOSITORY.to_owned(),
            docker_configs: vec![br#"{"auths":{}}"#.to_vec(), self.pull_secret(password)],
            ticket: TICKET.to_owned(),
            valid_ms: 60_000,
        }
    }

    async fn grant(&self, request: GrantRequest) -> Result<(), Status> {
        within(self.client().await.grant(request)).await.map(drop)
    }

    async fn resolve_as(&self, access: Access) -> Result<ResolveResponse, Status> {
        let request = ResolveRequest { access: Some(access), reference: "v1".to_owned(), ..ResolveRequest::default() };
        within(self.client().await.resolve(request)).await.map(tonic::Response::into_inner)
    }

    /// The hashes of a blob to its end.
    async fn hashes(&self, access: Access, digest: &str) -> Result<Vec<PieceHash>, Status> {
        let request = MetainfoRequest { access: Some(access), digest: digest.to_owned(), ..MetainfoRequest::default() };
        within(async {
            let mut stream = self.client().await.metainfo(request).await?.into_inner();
            let mut hashes = Vec::new();
            while let Some(update) = stream.message().await? {
                match update.update.unwrap() {
                    Update::Hashes(told) => {
                        hashes.extend(told.states.as_chunks::<32>().0.iter().map(|hash| PieceHash(*hash)));
                    }
                    Update::Header(_) | Update::Complete(_) => {}
                }
            }
            Ok(hashes)
        })
        .await
    }
}

fn said(status: &Status) -> UpstreamError {
    let bytes = status.metadata().get_bin(shoal_proto::UPSTREAM_ERROR_METADATA).unwrap().to_bytes().unwrap();
    UpstreamError::decode(bytes).unwrap()
}

fn is_unknown<T: std::fmt::Debug>(answer: Result<T, Status>) -> bool {
    let status = answer.unwrap_err();
    let said = said(&status);
    (status.code(), said.status) == (Code::Unauthenticated, 401) && said.message.contains("the ticket is not known")
}

#[tokio::test]
async fn a_ticket_opens_its_repository_at_the_origins_that_granted_it() {
    for auth in auths() {
        let (lab, image) = private(auth).await;
        let stranger = Lab::start(Content::new(), Options::default()).await;
        let digest = image.layers[0].to_string();
        let ticket = || lab.access(SHOWN);
        assert!(is_unknown(lab.resolve_as(ticket()).await));
        assert!(is_unknown(lab.hashes(ticket(), &digest).await));

        lab.grant(lab.request("s3cret")).await.unwrap();
        assert_eq!(lab.resolve_as(ticket()).await.unwrap().digest, image.manifest.to_string());
        let authorize = || AuthorizeRequest { access: Some(ticket()), digest: digest.clone() };
        lab.client().await.authorize(authorize()).await.unwrap();
        assert_eq!(lab.hashes(ticket(), &digest).await.unwrap(), hashes_of(&layer()));
        lab.client().await.authorize(authorize()).await.unwrap();

        assert!(is_unknown(lab.resolve_as(Access { repository: OTHER.to_owned(), ..ticket() }).await));
        assert!(is_unknown(lab.resolve_as(lab.access("Shoal-Ticket 0123456789abcdeX")).await));
        assert!(is_unknown(stranger.resolve_as(ticket()).await));
        let anybody = lab.resolve_as(lab.access("")).await.unwrap_err();
        assert_eq!((anybody.code(), said(&anybody).status), (Code::Unauthenticated, 401));
        assert_eq!(lab.get("manifests/v1", &[("authorization", SHOWN)]).await.status, 401);

        let shown = lab.registry.requests().into_iter().filter_map(|request| request.authorization);
        let shown: Vec<_> = shown.filter(|authorization| authorization.contains(TICKET)).collect();
        assert!(shown.is_empty(), "{shown:?}");
    }
}

#[tokio::test]
async fn credentials_that_are_refused_are_refused_in_upstreams_words_and_make_no_ticket() {
    for (auth, words) in auths().into_iter().zip(["authentication required", "user and password are wrong or missing"])
    {
        let (lab, _) = private(auth).await;
        let refused = lab.grant(lab.request("wrong")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(said(&refused).message.ends_with(words), "{refused:?}");
        assert!(is_unknown(lab.resolve_as(lab.access(SHOWN)).await));
    }
}

#[tokio::test]
async fn a_grant_is_checked_before_anybody_is_asked() {
    let [auth, _] = auths();
    let (lab, _) = private(auth).await;
    let denied = format!("{}/{OTHER}", lab.registry.addr());
    let lab = lab.restart_with(|config| config.deny = vec![denied]).await;
    let good = lab.request("s3cret");
    let bad = [
        GrantRequest { ticket: "short".to_owned(), ..good.clone() },
        GrantRequest { repository: "No Name".to_owned(), ..good.clone() },
        GrantRequest { docker_configs: vec![b"{}".to_vec(); 17], ..good.clone() },
        GrantRequest { docker_configs: vec![vec![b' '; 1024 * 1024 + 1]], ..good.clone() },
        GrantRequest { docker_configs: vec![b"{".to_vec()], ..good.clone() },
    ];
    for request in bad {
        assert_eq!(lab.grant(request.clone()).await.unwrap_err().code(), Code::InvalidArgument, "{request:?}");
    }
    let denied = GrantRequest { repository: OTHER.to_owned(), ..good.clone() };
    assert_eq!(lab.grant(denied).await.unwrap_err().code(), Code::PermissionDenied);
    assert!(lab.registry.requests().is_empty());

    let mut secret = lab.pull_secret("s3cret");
    secret.resize(1024 * 1024, b' ');
    lab.grant(GrantRequest { docker_configs: vec![secret], ..good }).await.unwrap();
    assert!(lab.resolve_as(lab.access(SHOWN)).await.is_ok());
}
