//! Who is given what is held, in each mode of `private_images`, while upstream answers and while it does not.

use std::time::Duration;

use crate::rig::{Lab, REPOSITORY, noise};
use shoal_kit::HumanDuration;
use shoal_meta::Digest;
use shoal_registry::PrivateImages::{self, DigestKnown, Off, Strict};
use shoal_registry::embedded::{Auth, Content, Fault, Image, Layer, Options};

const ME: (&str, &str) = ("authorization", "Basic bWU6czNjcmV0");
const STRANGER: (&str, &str) = ("authorization", "Basic Ym9iOnB3");

/// An origin that holds an image but for its second layer, pulled by one who may. Tags are asked for each time.
async fn holding(private_images: PrivateImages) -> (Lab, Image) {
    let mut content = Content::new();
    let layers = vec![Layer::tar(noise(300_000, 1)), Layer::tar(noise(1000, 2))];
    let image = content.add_image(REPOSITORY, "v1", layers);
    let auth = Some(Auth::Basic { user: "me".to_owned(), password: "s3cret".to_owned() });
    let lab = Lab::start_with(content, Options { auth, ..Options::default() }, |config| {
        config.tag_ttl = HumanDuration(Duration::ZERO);
        config.private_images = private_images;
    });
    let lab = lab.await;
    assert_eq!(lab.get("manifests/v1", &[ME]).await.status, 200);
    let layer = lab.get(&format!("blobs/{}", image.layers[0]), &[ME]).await;
    assert_eq!(Digest::sha256_of(&layer.body.unwrap()), image.layers[0]);
    (lab, image)
}

/// The statuses for the tag, the manifest by its digest, the layer that is held, and the one that is not.
async fn statuses(lab: &Lab, image: &Image, whose: (&str, &str)) -> [u16; 4] {
    let [held, other] = [0, 1].map(|index| format!("blobs/{}", image.layers[index]));
    let paths = ["manifests/v1".to_owned(), format!("manifests/{}", image.manifest), held, other];
    let mut out = [0; 4];
    for (status, path) in out.iter_mut().zip(paths) {
        *status = lab.get(&path, &[whose]).await.status.as_u16();
    }
    out
}

#[tokio::test]
async fn each_mode_gives_a_stranger_what_it_says_and_never_what_is_not_held() {
    for (mode, expected) in
        [(Strict, [401, 401, 401, 401]), (DigestKnown, [401, 200, 200, 401]), (Off, [200, 200, 200, 401])]
    {
        let (lab, image) = holding(mode).await;
        assert_eq!(statuses(&lab, &image, STRANGER).await, expected, "{mode:?}");
        let metainfo = lab.open(&image.layers[0], STRANGER.1).await;
        assert_eq!(metainfo.is_ok(), mode != Strict, "{mode:?}");
        assert!(lab.open(&image.layers[1], STRANGER.1).await.is_err(), "{mode:?}");
    }
}

#[tokio::test]
async fn while_upstream_is_down_strict_keeps_to_those_it_let_in_lately() {
    for (mode, expected) in
        [(Strict, [503, 503, 503, 503]), (DigestKnown, [503, 200, 200, 503]), (Off, [200, 200, 200, 503])]
    {
        let (lab, image) = holding(mode).await;
        lab.registry.inject("/v2/", 10_000, Fault::Status { status: 502, retry_after: None });
        assert_eq!(statuses(&lab, &image, STRANGER).await, expected, "{mode:?}");
        assert_eq!(statuses(&lab, &image, ME).await, [200, 200, 200, 503], "{mode:?}");
    }
}

#[tokio::test]
async fn a_tag_that_is_gone_upstream_is_told_to_nobody() {
    let (lab, image) = holding(Off).await;
    lab.registry.inject("/manifests/v1", 1000, Fault::Status { status: 404, retry_after: None });
    assert_eq!(statuses(&lab, &image, STRANGER).await, [404, 200, 200, 401]);
}

#[tokio::test]
async fn what_needs_no_leave_costs_upstream_nothing() {
    let (lab, image) = holding(DigestKnown).await;
    let asked = lab.registry.requests().len();
    for path in [format!("manifests/{}", image.manifest), format!("blobs/{}", image.layers[0])] {
        assert_eq!(lab.get(&path, &[STRANGER]).await.status, 200);
    }
    assert_eq!(lab.registry.requests().len(), asked);
}
