//! What the OCI distribution-spec asks of a registry that is pulled from, requirement by requirement; each test names its
//! section. Where 1.1 and the text after it differ, the stricter one counts.

use http::Method;
use serde_json::Value;
use shoal_agent::Running;
use shoal_meta::Digest;
use shoal_registry::embedded::{Fault, Options};

use crate::rig::{Answer, REGISTRY, Rig, blob, eventually, get, get_range, manifest, send};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// The table of section "Error Codes", and the one that section "Legacy Docker support error codes" allows beside it.
const CODES: [&str; 15] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
    "TAG_INVALID",
];

async fn plain() -> (Rig, Running) {
    let rig = Rig::start(Options::default()).await;
    let agent = rig.agent(|_| {}).await;
    (rig, agent)
}

async fn head(agent: &Running, path: &str) -> Answer {
    send(agent, Method::HEAD, path, &[]).await
}

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

/// Asserts an error of this status and code, in the form of section "Error Codes".
fn assert_error(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (status, "application/json"), "{answer:?}");
    let body = json(answer);
    let error = &body["errors"][0];
    assert_eq!((error["code"].as_str(), error["message"].is_string()), (Some(code), true), "{body}");
    assert!(CODES.contains(&code), "{code} is not of the specification");
}

/// Section "Determining Support": the base path answers 200, or 401 to one who has not said who it is.
#[tokio::test]
async fn the_base_path_answers_200_once_a_token_was_taken() {
    let (_rig, agent) = plain().await;
    for path in ["/v2/", "/v2"] {
        for (headers, status) in [(&[][..], 401), (&[("authorization", "Bearer shoal-anonymous")], 200)] {
            let answer = send(&agent, Method::GET, path, headers).await;
            let version = answer.header("docker-distribution-api-version");
            assert_eq!((answer.status.as_u16(), version), (status, "registry/2.0"));
        }
    }
}

/// Section "Pulling manifests": GET gives 200, the manifest itself, its digest and its type.
#[tokio::test]
async fn a_manifest_comes_by_tag_and_by_digest_with_its_digest() {
    let (rig, agent) = plain().await;
    let digest = rig.image.manifest;
    for reference in ["v1".to_owned(), digest.to_string()] {
        let answer = get(&agent, &manifest(&reference)).await;
        assert_eq!((answer.status.as_u16(), answer.digest()), (200, digest));
        assert_eq!(answer.header("docker-content-digest"), digest.to_string());
        assert_eq!(answer.header("content-type"), MANIFEST_TYPE);
        assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    }
}

/// Section "Pulling manifests": the type is the one the manifest was pushed with, without parameters.
#[tokio::test]
async fn a_manifest_has_the_type_it_was_pushed_with_and_no_parameters() {
    let types = [
        INDEX_TYPE,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.example.unheard-of.v7+json",
    ];
    let rig = Rig::with_content(Options::default(), &[1], |content, _| {
        for (number, media_type) in types.iter().enumerate() {
            let document = format!("{{\"schemaVersion\":2,\"mediaType\":\"{media_type}\"}}");
            content.add_manifest("app", Some(&format!("t{number}")), media_type, document);
        }
    })
    .await;
    let agent = rig.agent(|_| {}).await;
    for (number, media_type) in types.iter().enumerate() {
        for method in [Method::GET, Method::HEAD] {
            let answer = send(&agent, method, &manifest(&format!("t{number}")), &[("accept", "*/*")]).await;
            assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, *media_type));
        }
    }
    let value = "application/vnd.oci.image.manifest.v1+json; charset=utf-8";
    rig.registry.inject("/manifests/v1", 1, Fault::WithHeader { name: "content-type", value });
    assert_eq!(get(&agent, &manifest("v1")).await.header("content-type"), MANIFEST_TYPE);
}

/// Section "Pulling manifests": the client's `Accept` says which types it takes.
#[tokio::test]
async fn upstream_is_asked_for_the_types_the_client_accepts() {
    let (rig, agent) = plain().await;
    let accept = [("accept", "application/vnd.example.v1+json, */*;q=0.1")];
    for method in [Method::HEAD, Method::GET] {
        send(&agent, method, &manifest("v1"), &accept).await;
        assert_eq!(rig.registry.requests().pop().unwrap().accept.as_deref(), Some(accept[0].1));
    }
}

/// Section "Pulling manifests": a reference is a digest or a tag of at most 128 characters, a name of lower-case words, and
/// nothing else is.
#[tokio::test]
async fn a_reference_is_a_tag_or_a_digest_and_a_name_is_lower_case_words() {
    let (rig, agent) = plain().await;
    let longest = format!("_{}", "A".repeat(127));
    assert_error(&get(&agent, &manifest(&longest)).await, 404, "MANIFEST_UNKNOWN");
    for (reference, code) in [
        (format!("{longest}A").as_str(), "TAG_INVALID"),
        (".v1", "TAG_INVALID"),
        ("v~1", "TAG_INVALID"),
        ("sha256:12", "DIGEST_INVALID"),
    ] {
        assert_error(&get(&agent, &manifest(reference)).await, 400, code);
    }
    for name in ["App", "a..b", "-a", "a//b"] {
        assert_error(&get(&agent, &format!("/v2/{name}/manifests/v1?ns={REGISTRY}")).await, 400, "NAME_INVALID");
    }
    assert_eq!(rig.registry.requests().len(), 1);
}

/// Section "Pulling manifests": what is not there is 404.
#[tokio::test]
async fn an_unknown_manifest_is_404() {
    let (_rig, agent) = plain().await;
    let unknown = Digest::sha256_of(b"unknown").to_string();
    for reference in ["none", &unknown] {
        assert_error(&get(&agent, &manifest(reference)).await, 404, "MANIFEST_UNKNOWN");
    }
    let elsewhere = format!("/v2/none/manifests/v1?ns={REGISTRY}");
    assert_error(&get(&agent, &elsewhere).await, 404, "NAME_UNKNOWN");
}

/// Section "Pulling blobs": GET gives 200, the blob itself, and its digest; and again when it is held.
#[tokio::test]
async fn a_blob_comes_with_its_digest() {
    let (rig, agent) = plain().await;
    for layer in rig.image.layers.iter().chain([&rig.image.config]) {
        for held in [false, true] {
            let answer = get(&agent, &blob(layer)).await;
            assert_eq!((answer.status.as_u16(), answer.whole, answer.digest()), (200, true, *layer), "held: {held}");
            assert_eq!(answer.header("docker-content-digest"), layer.to_string());
        }
    }
}

/// Section "Pulling blobs": what is not there is 404.
#[tokio::test]
async fn an_unknown_blob_is_404() {
    let (_rig, agent) = plain().await;
    assert_error(&get(&agent, &blob(&Digest::sha256_of(b"unknown"))).await, 404, "BLOB_UNKNOWN");
    assert_error(&get(&agent, &format!("/v2/app/blobs/sha256:12?ns={REGISTRY}")).await, 400, "DIGEST_INVALID");
}

/// Section "Pulling blobs": `Range` works as RFC 9110, sections 14.1.2, 14.4 and 15.3.7, say, for a blob that is held and for one
/// that is not.
#[tokio::test]
async fn a_range_of_a_blob_is_206_and_exact() {
    let (rig, agent) = plain().await;
    let cold = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    let (content, path) = (rig.content(&layer), blob(&layer));
    get(&agent, &path).await;
    let length = content.len();
    for (range, start, end) in [
        ("bytes=0-".to_owned(), 0, length),
        ("bytes=262143-262145".to_owned(), 262_143, 262_146),
        ("bytes=1000000-".to_owned(), 1_000_000, length),
        ("bytes=-10".to_owned(), length - 10, length),
        (format!("bytes=5-{}", length * 2), 5, length),
    ] {
        for agent in [&agent, &cold] {
            let answer = get_range(agent, &path, &range).await;
            assert_eq!((answer.status.as_u16(), answer.whole), (206, true), "{range}");
            assert_eq!(answer.header("content-range"), format!("bytes {start}-{}/{length}", end - 1));
            assert_eq!(answer.header("content-length"), (end - start).to_string());
            assert!(answer.body == content[start..end], "{range}");
        }
    }
}

/// Section "Pulling blobs": a range outside the blob is 416 with the blob's length (RFC 9110, section 15.5.17).
#[tokio::test]
async fn a_range_outside_the_blob_is_416() {
    let (rig, agent) = plain().await;
    let layer = rig.image.layers[0];
    let length = rig.content(&layer).len();
    let answer = get_range(&agent, &blob(&layer), &format!("bytes={length}-")).await;
    assert_error(&answer, 416, "SIZE_INVALID");
    assert_eq!(answer.header("content-range"), format!("bytes */{length}"));
}

/// Section "Pulling blobs": several ranges come as `multipart/byteranges` (RFC 9110, section 14.6).
#[tokio::test]
async fn several_ranges_come_as_multipart() {
    let (rig, agent) = plain().await;
    let layer = rig.image.layers[0];
    let (content, path) = (rig.content(&layer), blob(&layer));
    get(&agent, &path).await;
    let answer = get_range(&agent, &path, "bytes=10-19,300000-300009").await;
    assert_eq!((answer.status.as_u16(), answer.whole), (206, true));
    assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    let boundary = answer.header("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap();
    let mut expected = Vec::new();
    for (start, end) in [(10, 20), (300_000, 300_010)] {
        let range = format!("content-range: bytes {start}-{}/{}", end - 1, content.len());
        let text = format!("\r\n--{boundary}\r\ncontent-type: application/octet-stream\r\n{range}\r\n\r\n");
        expected.extend_from_slice(text.as_bytes());
        expected.extend_from_slice(&content[start..end]);
    }
    expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert!(answer.body == expected);
}

/// Section "Pulling blobs": a `Range` that is malformed, of another unit, or of another blob is ignored (RFC 9110, sections 14.2
/// and 13.1.5).
#[tokio::test]
async fn a_range_that_does_not_count_gives_the_whole_blob() {
    let (rig, agent) = plain().await;
    let layer = rig.image.layers[1];
    for range in
        [&[("range", "bytes=9-1")][..], &[("range", "pieces=0-1")], &[("range", "bytes=0-1"), ("if-range", "\"x\"")]]
    {
        let answer = send(&agent, Method::GET, &blob(&layer), range).await;
        assert_eq!((answer.status.as_u16(), answer.digest()), (200, layer), "{range:?}");
    }
}

/// Section "Checking if content exists in the registry": HEAD gives 200, digest and length, whether or not the content is held;
/// `Range` does not count there (RFC 9110, section 14.2).
#[tokio::test]
async fn head_of_what_exists_tells_digest_and_length() {
    let (rig, agent) = plain().await;
    let (image, layer) = (rig.image.manifest, rig.image.layers[0]);
    let manifest_length = get(&agent, &manifest("v1")).await.body.len();
    for held in [false, true] {
        for (path, digest, length) in [
            (manifest("v1"), image, manifest_length),
            (manifest(&image.to_string()), image, manifest_length),
            (blob(&layer), layer, rig.content(&layer).len()),
        ] {
            let answer = send(&agent, Method::HEAD, &path, &[("range", "bytes=0-0")]).await;
            assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0), "{path}");
            assert_eq!(answer.header("docker-content-digest"), digest.to_string());
            assert_eq!(answer.header("content-length"), length.to_string());
        }
        assert_eq!(rig.sent(&layer).0, u64::from(held));
        get(&agent, &blob(&layer)).await;
        eventually("the blob is whole", || agent.status().blobs == 1).await;
    }
}

/// Section "Checking if content exists in the registry": HEAD of what is not there is 404.
#[tokio::test]
async fn head_of_what_does_not_exist_is_404() {
    let (_rig, agent) = plain().await;
    let unknown = Digest::sha256_of(b"unknown");
    for path in [manifest("none"), manifest(&unknown.to_string()), blob(&unknown)] {
        let answer = head(&agent, &path).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (404, 0), "{path}");
    }
}

async fn tagged() -> (Rig, Running) {
    let rig = Rig::with_content(Options::default(), &[1], |content, _| {
        for tag in ["b", "a", "c"] {
            content.add_manifest("app", Some(tag), MANIFEST_TYPE, "{}");
        }
    })
    .await;
    let agent = rig.agent(|_| {}).await;
    (rig, agent)
}

/// The tags of a page, and the path of the next one.
fn page(answer: &Answer) -> (Vec<String>, Option<String>) {
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/json"));
    let body = json(answer);
    assert_eq!(body["name"], "app");
    let tags = body["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()).collect();
    (tags, next(answer))
}

/// The target of a `Link` to the next page.
fn next(answer: &Answer) -> Option<String> {
    let (target, relation) = answer.header("link").strip_prefix('<')?.split_once('>')?;
    assert_eq!(relation, "; rel=\"next\"");
    Some(target.to_owned())
}

/// Section "Listing Tags": 200 and the tags in order.
#[tokio::test]
async fn the_tags_of_a_repository_come_in_order() {
    let (_rig, agent) = tagged().await;
    let answer = get(&agent, &format!("/v2/app/tags/list?ns={REGISTRY}")).await;
    assert_eq!(page(&answer), (["a", "b", "c", "v1"].map(str::to_owned).to_vec(), None));
    assert_error(&get(&agent, &format!("/v2/none/tags/list?ns={REGISTRY}")).await, 404, "NAME_UNKNOWN");
}

/// Section "Listing Tags": `n` is the most tags of a page, `last` the tag before them; `n=0` is an empty list without `Link`.
#[tokio::test]
async fn tags_are_limited_by_n_and_begin_after_last() {
    let (_rig, agent) = tagged().await;
    let list = async |query: &str| page(&get(&agent, &format!("/v2/app/tags/list?{query}&ns={REGISTRY}")).await);
    assert_eq!(list("n=2").await.0, ["a", "b"]);
    assert_eq!(list("n=2&last=a").await.0, ["b", "c"]);
    assert_eq!(list("last=b").await, (["c", "v1"].map(str::to_owned).to_vec(), None));
    assert_eq!(list("n=0").await, (Vec::new(), None));
}

/// Section "Listing Tags": `Link` leads to the next page, at the registry that was asked, however it was named.
#[tokio::test]
async fn the_link_of_a_page_leads_to_the_next() {
    let (_rig, agent) = tagged().await;
    for first in [format!("/v2/app/tags/list?n=3&ns={REGISTRY}"), format!("/v2/{REGISTRY}/app/tags/list?n=3")] {
        let (tags, next) = page(&get(&agent, &first).await);
        assert_eq!(tags, ["a", "b", "c"]);
        assert_eq!(page(&get(&agent, &next.unwrap()).await), (vec!["v1".to_owned()], None), "after {first}");
    }
}

fn referrers(subject: &Digest, query: &str) -> String {
    format!("/v2/app/referrers/{subject}?ns={REGISTRY}{query}")
}

/// An image with a bill of materials and a signature.
async fn referred() -> (Rig, Running, [Digest; 2]) {
    let mut added = Vec::new();
    let rig = Rig::with_content(Options::default(), &[1], |content, image| {
        for kind in ["application/vnd.example.sbom", "application/vnd.example.signature"] {
            added.push(content.add_referrer("app", &image.manifest, kind));
        }
    })
    .await;
    let agent = rig.agent(|_| {}).await;
    (rig, agent, added.try_into().unwrap())
}

fn listed(answer: &Answer) -> Vec<String> {
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, INDEX_TYPE), "{answer:?}");
    let body = json(answer);
    body["manifests"].as_array().unwrap().iter().map(|one| one["digest"].as_str().unwrap().to_owned()).collect()
}

/// Section "Listing Referrers": 200 and an index, an empty one for what nothing refers to; each can be pulled.
#[tokio::test]
async fn referrers_come_as_an_index() {
    let (rig, agent, added) = referred().await;
    let answer = get(&agent, &referrers(&rig.image.manifest, "")).await;
    assert_eq!(listed(&answer), added.map(|digest| digest.to_string()));
    for digest in added {
        assert_eq!(get(&agent, &manifest(&digest.to_string())).await.digest(), digest);
    }
    let none = get(&agent, &referrers(&Digest::sha256_of(b"unknown"), "")).await;
    assert!(listed(&none).is_empty());
}

/// Section "Listing Referrers": a filter that was applied is named.
#[tokio::test]
async fn referrers_are_filtered_and_the_answer_says_so() {
    let (rig, agent, [bill, _]) = referred().await;
    let filter = "&artifactType=application/vnd.example.sbom";
    let answer = get(&agent, &referrers(&rig.image.manifest, filter)).await;
    assert_eq!(listed(&answer), [bill.to_string()]);
    assert_eq!(answer.header("oci-filters-applied"), "artifactType");
    assert_eq!(get(&agent, &referrers(&rig.image.manifest, "")).await.header("oci-filters-applied"), "");
}

/// Section "Listing Referrers": a malformed digest is 400.
#[tokio::test]
async fn referrers_of_a_malformed_digest_are_400() {
    let (_rig, agent, _) = referred().await;
    assert_error(&get(&agent, &format!("/v2/app/referrers/sha256:12?ns={REGISTRY}")).await, 400, "DIGEST_INVALID");
}

/// Section "Listing Referrers": `Link` leads to the rest, at the registry that was asked.
#[tokio::test]
async fn the_link_of_referrers_leads_to_the_rest() {
    let (rig, agent, _) = referred().await;
    let value = "<https://elsewhere.test/v2/app/referrers/x?page=2>; rel=\"next\"";
    rig.registry.inject("/referrers/", 1, Fault::WithHeader { name: "link", value });
    let answer = get(&agent, &referrers(&rig.image.manifest, "")).await;
    let expected = format!("/v2/app/referrers/{}?page=2&ns={REGISTRY}", rig.image.manifest);
    assert_eq!(next(&answer), Some(expected));
}

/// Section "Unavailable Referrers API": 404 passes, so that clients take the tag of the referrers tag schema, which is pulled as
/// any other.
#[tokio::test]
async fn a_registry_without_referrers_is_404_and_their_tag_is_pulled() {
    let rig = Rig::with_content(Options::default(), &[1], |content, image| {
        let tag = image.manifest.to_string().replace(':', "-");
        content.add_manifest("app", Some(&tag), INDEX_TYPE, r#"{"schemaVersion":2,"manifests":[]}"#);
    })
    .await;
    let agent = rig.agent(|_| {}).await;
    assert_error(&get(&agent, &referrers(&rig.image.manifest, "")).await, 404, "UNSUPPORTED");
    let tag = rig.image.manifest.to_string().replace(':', "-");
    assert!(listed(&get(&agent, &manifest(&tag)).await).is_empty());
}

/// Section "Registry Proxying": `ns` names the registry, and the answer says that it counted.
#[tokio::test]
async fn an_answer_names_the_registry_that_ns_named() {
    let (rig, agent) = plain().await;
    for (path, status) in [(manifest("v1"), 200), (blob(&rig.image.layers[1]), 200), (manifest("none"), 404)] {
        let answer = get(&agent, &path).await;
        assert_eq!((answer.status.as_u16(), answer.header("oci-namespace")), (status, REGISTRY), "{path}");
    }
    let without = get(&agent, &format!("/v2/{REGISTRY}/app/manifests/v1")).await;
    assert_eq!((without.status.as_u16(), without.header("oci-namespace")), (200, ""));
}

/// Sections "Content Management" and "Endpoints": what is not a pull is disabled, which is 405 for a deletion.
#[tokio::test]
async fn pushes_and_deletions_are_405_with_the_methods_there_are() {
    let (rig, agent) = plain().await;
    let uploads = format!("/v2/app/blobs/uploads/?ns={REGISTRY}");
    for (method, path) in [
        (Method::DELETE, manifest("v1")),
        (Method::DELETE, blob(&rig.image.layers[0])),
        (Method::PUT, manifest("v1")),
        (Method::POST, uploads.clone()),
        (Method::PATCH, uploads),
    ] {
        let answer = send(&agent, method, &path, &[]).await;
        assert_error(&answer, 405, "UNSUPPORTED");
        assert_eq!(answer.header("allow"), "GET, HEAD");
    }
    assert!(rig.registry.requests().is_empty());
}

/// Section "Error Codes": an error upstream gives reaches the client in the form and with a code of the specification, whatever
/// form it had.
#[tokio::test]
async fn upstreams_errors_are_told_with_a_code_of_the_specification() {
    let (rig, agent) = plain().await;
    for (status, code) in [(401, "UNAUTHORIZED"), (403, "DENIED"), (404, "MANIFEST_UNKNOWN")] {
        rig.registry.inject("/manifests/", 1, Fault::Status { status, retry_after: None });
        assert_error(&get(&agent, &manifest("v1")).await, status, code);
    }
}

/// Section "Warnings": only warnings of a certain form may be sent; upstream's, of whatever form, are not passed on.
#[tokio::test]
async fn warnings_of_upstream_end_here() {
    let (rig, agent) = plain().await;
    rig.registry.inject("/v2/", 2, Fault::WithHeader { name: "warning", value: "199 elsewhere \"x\"" });
    for path in [manifest("v1"), format!("/v2/app/tags/list?ns={REGISTRY}")] {
        assert_eq!(get(&agent, &path).await.header("warning"), "", "{path}");
    }
}
