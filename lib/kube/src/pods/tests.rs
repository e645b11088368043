//! Pods as the API server tells of them, and an API server that is one function.

use std::sync::Mutex;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use kube::client::Body;
use serde_json::{Value, json};
use tower::service_fn;

use super::*;

fn pod(object: Value) -> Bound {
    serde_json::from_value(object).unwrap()
}

fn named(spec: Value) -> Vec<(String, bool)> {
    let pod = pod(json!({ "metadata": {}, "spec": spec }));
    images(&pod.spec).into_iter().map(|image| (image.name, image.looked_up)).collect()
}

#[test]
fn images_are_in_the_order_of_pulls_each_once_and_those_never_pulled_left_out() {
    let spec = json!({
        "nodeName": "n1",
        "containers": [
            { "name": "app", "image": "app:2", "imagePullPolicy": "Always", "ports": [{ "containerPort": 80 }] },
            { "name": "side", "image": "side:1", "imagePullPolicy": "IfNotPresent" },
            { "name": "again", "image": "init:1" },
            { "name": "loaded", "image": "loaded:1", "imagePullPolicy": "Never" },
        ],
        "initContainers": [{ "name": "init", "image": "init:1" }, { "name": "odd" }],
        "volumes": [
            { "name": "model", "image": { "reference": "model:7", "pullPolicy": "Always" } },
            { "name": "tmp", "emptyDir": {} },
        ],
    });
    let expected = [("model:7", true), ("init:1", false), ("app:2", true), ("side:1", false)];
    assert_eq!(named(spec), expected.map(|(name, looked_up)| (name.to_owned(), looked_up)));
    let many: Vec<_> = (0..=IMAGES_MAX).map(|n| json!({ "image": format!("app:{n}") })).collect();
    assert_eq!(named(json!({ "containers": many })).len(), IMAGES_MAX);
    assert!(named(json!({})).is_empty());
}

#[test]
fn only_pods_that_are_pending_and_stay_are_told_of() {
    let is = |object| is_waiting(&pod(object));
    assert!(is(json!({ "metadata": {}, "spec": {}, "status": { "phase": "Pending", "hostIP": "10.0.0.7" } })));
    assert!(!is(json!({ "metadata": {}, "spec": {}, "status": { "phase": "Running" } })));
    assert!(!is(json!({ "metadata": {}, "spec": {} })));
    let leaving = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
    assert!(!is(json!({ "metadata": leaving, "spec": {}, "status": { "phase": "Pending" } })));
}

#[test]
fn each_pod_is_told_of_once_and_the_memory_of_them_is_bounded() {
    let with_uid = |n: usize| pod(json!({ "metadata": { "uid": format!("{n}") }, "spec": {} }));
    let mut seen = Seen::default();
    for n in 0..=SEEN_MAX {
        assert!(seen.is_new(&with_uid(n)) && !seen.is_new(&with_uid(n)));
    }
    assert_eq!(seen.0.len(), SEEN_MAX);
    assert!(seen.is_new(&with_uid(0)));
    assert!(!seen.is_new(&pod(json!({ "metadata": {}, "spec": {} }))));
}

#[test]
fn the_smallest_image_counts_only_in_a_list_that_may_be_cut() {
    let node = |count: usize| -> Node {
        let image = |n| json!({ "names": [format!("app:{n}"), format!("other:{n}")], "sizeBytes": 1000 + n });
        let images: Vec<_> = (0..count).map(image).collect();
        serde_json::from_value(json!({ "metadata": {}, "status": { "images": images } })).unwrap()
    };
    let short = listed(&node(LISTED_MAX - 1));
    assert_eq!((short.names.len(), short.smallest), (2 * (LISTED_MAX - 1), None));
    assert_eq!(listed(&node(LISTED_MAX)).smallest, Some(1000));
    assert_eq!(listed(&Node::default()), ListedImages::default());
}

#[test]
fn a_refusal_is_told_from_an_api_server_that_is_away() {
    let status = |code: u16| -> Box<kube::core::Status> {
        Box::new(serde_json::from_value(json!({ "status": "Failure", "code": code })).unwrap())
    };
    assert!(is_refusal(&watcher::Error::InitialListFailed(kube::Error::Api(status(403)))));
    assert!(is_refusal(&watcher::Error::WatchError(status(401))));
    assert!(!is_refusal(&watcher::Error::WatchError(status(410))));
    assert!(!is_refusal(&watcher::Error::NoResourceVersion));
}

/// What was asked of the API server: paths with queries, in order.
type Asked = Arc<Mutex<Vec<String>>>;

/// An API server that answers a request by its path and query, and how often there was one of its kind; it may be silent.
fn api(answer: impl Fn(&str, usize) -> Option<(u16, String)> + Send + Sync + 'static) -> (Client, Asked) {
    let asked = Asked::default();
    let (seen, answer) = (asked.clone(), Arc::new(answer));
    let kind = |path: &str| (path.contains("/pods"), path.contains("watch=true"));
    let service = service_fn(move |request: Request<Body>| {
        let path = request.uri().path_and_query().unwrap().to_string();
        let before = {
            let mut seen = seen.lock().unwrap();
            seen.push(path.clone());
            seen.iter().filter(|other| kind(other) == kind(&path)).count() - 1
        };
        let answer = answer.clone();
        async move {
            let Some((status, body)) = answer(&path, before) else { return std::future::pending().await };
            let status = StatusCode::from_u16(status).unwrap();
            Ok::<_, kube::Error>(Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap())
        }
    });
    (Client::new(service, "default"), asked)
}

fn pending(uid: &str, image: &str) -> Value {
    json!({
        "metadata": { "uid": uid, "name": uid, "namespace": "default", "resourceVersion": "5" },
        "spec": { "containers": [{ "name": "c", "image": image, "imagePullPolicy": "IfNotPresent" }] },
        "status": { "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": "True" }] },
    })
}

fn list(pods: &[Value]) -> (u16, String) {
    let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "7" }, "items": pods });
    (200, list.to_string())
}

fn failure(code: u16) -> (u16, String) {
    let message = "pods is forbidden";
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code });
    (code, status.to_string())
}

/// Follows the Pods of a node `n1` until the test ends.
fn follow_n1(client: Client) -> mpsc::Receiver<BoundPod> {
    let (told, pods) = mpsc::channel(8);
    tokio::spawn(async move { follow(client, "n1", told).await });
    pods
}

#[tokio::test(start_paused = true)]
async fn each_pod_of_the_node_is_told_of_with_the_images_that_the_node_lists() {
    let (client, asked) = api(|path, before| {
        let event = |kind: &str, pod: Value| json!({ "type": kind, "object": pod }).to_string() + "\n";
        let typed = |uid: &str, image: &str| {
            let mut pod = pending(uid, image);
            pod["kind"] = "Pod".into();
            pod["apiVersion"] = "v1".into();
            pod
        };
        let node = json!({ "metadata": {}, "status": { "images": [{ "names": ["nginx:1"], "sizeBytes": 9 }] } });
        match (path.starts_with("/api/v1/nodes/n1"), path.contains("watch=true"), before) {
            (true, ..) => Some((200, node.to_string())),
            (_, false, _) => Some(list(&[pending("a", "app:1")])),
            (_, true, 0) => Some((200, event("MODIFIED", typed("a", "app:1")) + &event("ADDED", typed("b", "app:2")))),
            (_, true, _) => None,
        }
    });
    let mut pods = follow_n1(client);
    for name in ["app:1", "app:2"] {
        let pod = pods.recv().await.unwrap();
        assert_eq!(pod.images, [PodImage { name: name.into(), looked_up: false }]);
        assert_eq!((&pod.listed.names[..], pod.has_secrets), (&["nginx:1".to_owned()][..], false));
    }
    let asked = asked.lock().unwrap();
    assert!(asked[0].contains("spec.nodeName%3Dn1%2Cstatus.phase%3DPending"), "{asked:?}");
    assert!(asked[0].contains("resourceVersion=0"), "{asked:?}");
    let nodes = asked.iter().filter(|path| path.contains("/nodes/")).count();
    assert_eq!(nodes, 1, "Pods that come together cost one look at the node: {asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_tried_again_minutes_later_and_an_outage_soon() {
    for (code, at_least, at_most) in [(403, REFUSED_PAUSE, 2 * REFUSED_PAUSE), (503, Duration::ZERO, PATIENCE)] {
        let (client, asked) = api(move |path, before| match (path.contains("/pods"), path.contains("watch=true")) {
            (false, _) => Some(failure(403)),
            (true, true) => None,
            (true, false) if before == 0 => Some(failure(code)),
            (true, false) => Some(list(&[pending("a", "app:1")])),
        });
        let (mut pods, start) = (follow_n1(client), Instant::now());
        // A node that may not be read costs no Pod.
        let pod = pods.recv().await.unwrap();
        assert_eq!((pod.images.len(), &*pod.listed), (1, &ListedImages::default()));
        assert!((at_least..=at_most).contains(&start.elapsed()), "{code}: {:?}", start.elapsed());
        let lists = asked.lock().unwrap().iter().filter(|path| path.contains("/pods")).count();
        assert!((2..=3).contains(&lists), "{code}: {lists}");
    }
}
