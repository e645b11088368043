//! The custom resource `Preheat`: images that nodes shall hold before anybody pulls them, and how far they are.
//!
//! The definition that the chart installs is made from these types; a test holds it. The controller is the tracker's.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Client, CustomResource, CustomResourceExt as _, ResourceExt as _};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::{Change, changes};

/// The key of a Secret of type `kubernetes.io/dockerconfigjson`.
const DOCKER_CONFIG_KEY: &str = ".dockerconfigjson";
/// The condition that every node holds every layer.
pub const COMPLETE: &str = "Complete";
/// Who writes the status, as the API server notes it.
const FIELD_MANAGER: &str = "shoal-preheat";

/// Images that nodes shall hold before anybody pulls them. Layers come as in a pull: from neighbours, and from the registry once.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "shoal.dev",
    version = "v1alpha1",
    kind = "Preheat",
    namespaced,
    status = "PreheatStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Nodes","type":"string","jsonPath":".status.ready"}"#,
    printcolumn = r#"{"name":"Progress","type":"string","jsonPath":".status.progress"}"#,
    printcolumn = r#"{"name":"Complete","type":"string","jsonPath":".status.conditions[?(@.type==\"Complete\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Complete\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct PreheatSpec {
    /// The images, as a Pod names them: `nginx:1.29`, `registry.example/team/app@sha256:…`. What a tag names is looked up when
    /// the preheat begins.
    #[schemars(length(min = 1, max = 100), inner(length(min = 1, max = 1024)))]
    pub images: Vec<String>,
    /// Labels of the nodes that shall hold them. Default: every node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// How many nodes fetch at a time. Default: all; together they are fastest, and the registry is asked once in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub parallelism: Option<u32>,
    /// When to begin. Default: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub start_time: Option<Time>,
    /// How long after it began to do it again, for tags that move and nodes that come, such as `24h`; at least `1m`. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// Secrets of type `kubernetes.io/dockerconfigjson` of the same namespace with which private images are read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObject>,
    /// How long it may take; then it is given up. Default: as long as it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub active_deadline_seconds: Option<u32>,
    /// How long after it is complete or given up it is deleted; without `interval` only. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u32>,
}

/// Something of the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct LocalObject {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How far a preheat is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PreheatStatus {
    /// The generation of the spec that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When it began, last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub start_time: Option<Time>,
    /// When every node held every layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub completion_time: Option<Time>,
    /// The nodes that are done, of those that are to be: `3/5`.
    #[serde(default)]
    pub ready: String,
    /// Of the bytes that all nodes shall hold, what they hold: `72%`.
    #[serde(default)]
    pub progress: String,
    /// Where the nodes stand.
    #[serde(default)]
    pub nodes: NodeCounts,
    /// What the images were found to be.
    #[serde(default)]
    pub images: Vec<ImageStatus>,
    /// Each node, those with trouble first, then those under way; the first 500 of them.
    #[serde(default)]
    pub node_statuses: Vec<NodeStatus>,
    /// `Complete`: every node that has an agent holds every layer; the reason says what is missing.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// How many nodes stand where.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCounts {
    /// Those that the selector selects.
    pub selected: u32,
    /// Those that hold every layer.
    pub complete: u32,
    /// Those that fetch.
    pub fetching: u32,
    /// Those whose turn has not come.
    pub waiting: u32,
    /// Those that could not; they are tried again.
    pub failed: u32,
    /// Those whose agent has not been heard.
    pub absent: u32,
}

/// What an image was found to be.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// As the spec names it.
    pub image: String,
    /// The digest of its manifest or index.
    pub digest: String,
    /// The bytes of its layers, of the largest platform among the nodes selected.
    pub bytes: u64,
}

/// Where one node stands.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// `Complete`, `Fetching`, `Waiting`, `Failed` or `Absent`.
    pub state: String,
    /// Of the bytes it shall hold, what it holds.
    pub held_bytes: u64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Whether something holds, in the form of all of Kubernetes' conditions.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// When its status last changed.
    #[schemars(schema_with = "time")]
    pub last_transition_time: Time,
}

/// Says why a pull secret is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is none of that name.
    #[error("there is no secret {name} in namespace {namespace}")]
    Missing {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The controller may not read secrets of that namespace: the operator says where it may.
    #[error(
        "secrets of namespace {namespace} may not be read: add it to the chart's preheat.secretNamespaces, or put the preheat and \
         its secret {name} into a namespace that is there"
    )]
    Forbidden {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// It holds something else.
    #[error("secret {name} in namespace {namespace} is not of type kubernetes.io/dockerconfigjson")]
    Type {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The API server did not answer. Retryable.
    #[error("cannot read secret {name} in namespace {namespace}")]
    Away {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What went wrong.
        #[source]
        source: Box<kube::Error>,
    },
}

/// The preheats of the cluster.
#[derive(Clone)]
pub struct Preheats(Client);

impl Preheats {
    /// Through this client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    /// Follows the preheats of all namespaces.
    #[must_use]
    pub fn follow(&self) -> BoxStream<'static, Change<Preheat>> {
        let api: Api<Preheat> = Api::all(self.0.clone());
        changes(watcher(api, watcher::Config::default()), "preheats", |preheat| preheat)
    }

    /// Writes how far a preheat is. One that is gone by now is none the worse for it.
    ///
    /// # Errors
    /// When the API server does not take it. Retryable.
    pub async fn set_status(&self, preheat: &Preheat, status: &PreheatStatus) -> Result<(), kube::Error> {
        // Null takes away what a merge would leave: a run that began anew has not ended.
        let mut status = serde_json::to_value(status).map_err(kube::Error::SerdeError)?;
        if let Some(fields) = status.as_object_mut() {
            for name in ["startTime", "completionTime"] {
                fields.entry(name).or_insert(serde_json::Value::Null);
            }
        }
        let patch = Patch::Merge(serde_json::json!({ "status": status }));
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        unless_gone(self.of(preheat).patch_status(&preheat.name_any(), &params, &patch).await.map(drop))
    }

    /// Lets a preheat of the pod's own namespace be seen to, anew if one of the name is there.
    ///
    /// # Errors
    /// When the API server does not take it. Retryable.
    pub async fn apply(&self, name: &str, spec: PreheatSpec) -> Result<Preheat, kube::Error> {
        let params =
            PatchParams { force: true, field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        self.own().patch(name, &params, &Patch::Apply(Preheat::new(name, spec))).await
    }

    /// The preheat of this name in the pod's own namespace.
    ///
    /// # Errors
    /// When the API server does not say. Retryable.
    pub async fn get(&self, name: &str) -> Result<Option<Preheat>, kube::Error> {
        self.own().get_opt(name).await
    }

    fn own(&self) -> Api<Preheat> {
        Api::default_namespaced(self.0.clone())
    }

    /// Deletes a preheat, unless another has taken its name.
    ///
    /// # Errors
    /// When the API server does not do it. Retryable.
    pub async fn delete(&self, preheat: &Preheat) -> Result<(), kube::Error> {
        let preconditions = Some(Preconditions { uid: preheat.uid(), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::background() };
        unless_gone(self.of(preheat).delete(&preheat.name_any(), &params).await.map(drop))
    }

    /// Reads the pull secrets of a preheat: each is a `config.json` of Docker.
    ///
    /// # Errors
    /// As [`SecretError`] says.
    pub async fn pull_secrets(&self, preheat: &Preheat) -> Result<Vec<Vec<u8>>, SecretError> {
        let namespace = preheat.namespace().unwrap_or_default();
        let api: Api<Secret> = Api::namespaced(self.0.clone(), &namespace);
        let mut configs = Vec::new();
        for LocalObject { name } in &preheat.spec.image_pull_secrets {
            let (name, namespace) = (name.clone(), namespace.clone());
            match api.get(&name).await {
                Ok(secret) => match secret.data.and_then(|mut data| data.remove(DOCKER_CONFIG_KEY)) {
                    Some(config) => configs.push(config.0),
                    None => return Err(SecretError::Type { namespace, name }),
                },
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    return Err(SecretError::Missing { namespace, name });
                }
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    return Err(SecretError::Forbidden { namespace, name });
                }
                Err(source) => return Err(SecretError::Away { namespace, name, source: Box::new(source) }),
            }
        }
        Ok(configs)
    }

    fn of(&self, preheat: &Preheat) -> Api<Preheat> {
        Api::namespaced(self.0.clone(), &preheat.namespace().unwrap_or_default())
    }
}

/// The definition of the resource, as the API server takes it.
///
/// # Panics
/// Never: it is made of types alone.
#[must_use]
pub fn definition() -> serde_json::Value {
    serde_json::to_value(Preheat::crd()).expect("a definition is JSON")
}

impl PreheatStatus {
    /// The one condition there is, if anything was found out yet.
    #[must_use]
    pub fn complete(&self) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == COMPLETE)
    }
}

/// Now, as objects say it.
#[must_use]
pub fn now() -> Time {
    Time(Timestamp::now())
}

/// How long until so long after then; zero if it has passed.
#[must_use]
pub fn until(time: &Time, later: Duration) -> Duration {
    let then = time.0.checked_add(later).unwrap_or(Timestamp::MAX);
    Duration::try_from(then.duration_since(Timestamp::now())).unwrap_or_default()
}

/// RFC 3339, as the API server checks it.
fn time(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "string", "format": "date-time", "nullable": true })
}

fn unless_gone(done: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match done {
        // 409: another has its name by now.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        other => other,
    }
}
