//! Harbor's preheat API: what Harbor asks of Kraken and Dragonfly becomes a `Preheat` of the tracker's own namespace, which the
//! tracker that leads sees to. Every tracker answers, as nothing is kept here.
//!
//! The calls are those of Harbor's drivers (`src/pkg/p2p/preheat/provider`): Dragonfly 1 (`/_ping`, `/preheats`), Dragonfly 2
//! (`/healthy`, `/oapi/v1/jobs`) and Kraken (`/health`, `/registry/notifications`). The credentials that Harbor sends along are not
//! used, as they end soon: a pull secret of the configuration is.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shoal_kube::{Client, LocalObject, Preheat, PreheatSpec, PreheatStatus, Preheats, now};
use shoal_meta::Digest;
use shoal_registry::reference::parse_image;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::preheat::GIVEN_UP;

/// The longest request, in bytes.
const BODY_LENGTH_MAX: usize = 64 << 10;
/// How long a preheat of Harbor's may take, and how long it is kept: Harbor asks for an hour or so.
const DEADLINE_S: u32 = 3 * 3600;
const KEPT_S: u32 = 24 * 3600;
/// The most images of one notification.
const EVENTS_MAX: usize = 100;

/// Where Harbor reaches the tracker, and how it proves that it is Harbor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where Harbor's calls are served, such as `0.0.0.0:7404`.
    pub listen: std::net::SocketAddr,
    /// A file with the token that Harbor has to show: its instance's authentication is OAuth with this token, or Basic with it as the
    /// password.
    pub token_file: PathBuf,
    /// Pull secrets of the tracker's namespace with which private images are read. Default: none.
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
}

struct Harbor {
    preheats: Preheats,
    token: String,
    secrets: Vec<LocalObject>,
}

/// Serves Harbor until `shutdown`.
///
/// # Errors
/// When the token cannot be read or the address cannot be listened on.
pub(crate) async fn serve(config: &Config, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let token = std::fs::read_to_string(&config.token_file);
    let token =
        token.with_context(|| format!("cannot read {} (key `harbor.token_file`)", config.token_file.display()))?;
    let token = token.trim().to_owned();
    anyhow::ensure!(token.len() >= 16, "the token of Harbor has less than 16 characters (key `harbor.token_file`)");
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {} (key `harbor.listen`)", config.listen))?;
    let secrets = config.image_pull_secrets.iter().map(|name| LocalObject { name: name.clone() }).collect();
    let harbor = Arc::new(Harbor { preheats: Preheats::new(client), token, secrets });
    tracing::info!(addr = %config.listen, "serving Harbor");
    tokio::spawn(shoal_kit::serve_router(listener, router(harbor), shutdown));
    Ok(())
}

fn router(harbor: Arc<Harbor>) -> Router {
    Router::new()
        .route("/preheats", post(dragonfly1))
        .route("/preheats/{id}", get(dragonfly1_state))
        .route("/oapi/v1/jobs", post(dragonfly2))
        .route("/oapi/v1/jobs/{id}", get(dragonfly2_state))
        .route("/registry/notifications", post(kraken))
        .layer(from_fn_with_state(harbor.clone(), authenticate))
        // Asked for health only, of which anybody may know.
        .route("/_ping", get(async || "ok\n"))
        .route("/healthy", get(async || "ok\n"))
        .route("/health", get(async || "ok\n"))
        .layer(DefaultBodyLimit::max(BODY_LENGTH_MAX))
        .with_state(harbor)
}

async fn authenticate(State(harbor): State<Arc<Harbor>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if shown.is_some_and(|shown| is_token(shown, &harbor.token)) {
        return next.run(request).await;
    }
    refuse(StatusCode::UNAUTHORIZED, "the token of the preheat instance is not the one configured here").into_response()
}

/// Compares hashes, so that how long it takes tells nothing.
fn is_token(shown: &str, token: &str) -> bool {
    let hash = |text: &str| Digest::sha256_of(text.as_bytes());
    let bearer = shown.strip_prefix("Bearer ").map(str::trim);
    let basic = shown.strip_prefix("Basic ").and_then(|encoded| STANDARD.decode(encoded.trim()).ok());
    let basic = basic.and_then(|decoded| String::from_utf8(decoded).ok());
    let password = basic.as_deref().and_then(|basic| basic.split_once(':')).map(|(_, password)| password);
    bearer.into_iter().chain(password).any(|shown| hash(shown) == hash(token))
}

/// What Harbor says of an image: of Dragonfly as the request or its `args`.
#[derive(Debug, Deserialize)]
struct Image {
    #[serde(default)]
    url: String,
    #[serde(default)]
    digest: String,
}

#[derive(Debug, Deserialize)]
struct Job {
    args: Image,
}

#[derive(Debug, Deserialize)]
struct Notification {
    events: Vec<Event>,
}

#[derive(Debug, Deserialize)]
struct Event {
    target: Image,
}

async fn dragonfly1(State(harbor): State<Arc<Harbor>>, body: Bytes) -> Result<Json<Value>, Refusal> {
    let image: Image = read(&body)?;
    Ok(Json(json!({ "ID": harbor.preheat(&image).await?.to_string() })))
}

async fn dragonfly1_state(State(harbor): State<Arc<Harbor>>, Path(id): Path<u64>) -> Result<Json<Value>, Refusal> {
    let Standing { phase, begun, ended, message } = harbor.state(id).await?;
    let status = match phase {
        Phase::Waiting => "WAITING",
        Phase::Running => "RUNNING",
        Phase::Done => "SUCCESS",
        Phase::GivenUp => "FAILED",
    };
    let id = id.to_string();
    Ok(Json(json!({ "ID": id, "status": status, "startTime": begun, "finishTime": ended, "errorMsg": message })))
}

async fn dragonfly2(State(harbor): State<Arc<Harbor>>, body: Bytes) -> Result<Json<Value>, Refusal> {
    let job: Job = read(&body)?;
    let id = harbor.preheat(&job.args).await?;
    Ok(Json(json!({ "id": id, "state": "PENDING", "type": "preheat" })))
}

async fn dragonfly2_state(State(harbor): State<Arc<Harbor>>, Path(id): Path<u64>) -> Result<Json<Value>, Refusal> {
    let Standing { phase, begun, ended, message } = harbor.state(id).await?;
    let state = match phase {
        Phase::Waiting => "PENDING",
        Phase::Running => "STARTED",
        Phase::Done => "SUCCESS",
        Phase::GivenUp => "FAILURE",
    };
    let updated = if ended.is_empty() { &begun } else { &ended };
    Ok(Json(json!({ "id": id, "state": state, "created_at": begun, "updated_at": updated, "message": message })))
}

async fn kraken(State(harbor): State<Arc<Harbor>>, body: Bytes) -> Result<&'static str, Refusal> {
    let Notification { events } = read(&body)?;
    if events.len() > EVENTS_MAX {
        return Err(refuse(StatusCode::BAD_REQUEST, &format!("at most {EVENTS_MAX} events are taken")));
    }
    for event in events {
        harbor.preheat(&event.target).await?;
    }
    Ok("ok\n")
}

/// How far a preheat is, as Harbor wants to know it; times are empty while there is none.
struct Standing {
    phase: Phase,
    begun: String,
    ended: String,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running,
    Done,
    GivenUp,
}

impl Harbor {
    /// Lets every node hold an image; gives the number that Harbor asks by. The same image is the same object, and done again.
    async fn preheat(&self, image: &Image) -> Result<u64, Refusal> {
        let name = image.reference().map_err(|message| refuse(StatusCode::BAD_REQUEST, &message))?;
        let id = id_of(&name);
        let spec = PreheatSpec {
            images: vec![name],
            image_pull_secrets: self.secrets.clone(),
            // Another one each time, so that the spec is new and seen through.
            start_time: Some(now()),
            active_deadline_seconds: Some(DEADLINE_S),
            ttl_seconds_after_finished: Some(KEPT_S),
            ..PreheatSpec::default()
        };
        self.preheats.apply(&object(id), spec).await.map_err(|error| away(&error))?;
        Ok(id)
    }

    async fn state(&self, id: u64) -> Result<Standing, Refusal> {
        let found = self.preheats.get(&object(id)).await.map_err(|error| away(&error))?;
        let preheat =
            found.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "there is no such preheat, or it has been deleted"))?;
        Ok(Standing::of(&preheat))
    }
}

impl Standing {
    fn of(preheat: &Preheat) -> Self {
        let status = preheat.status.clone().unwrap_or_default();
        let status =
            if status.observed_generation == preheat.metadata.generation { status } else { PreheatStatus::default() };
        let condition = status.complete();
        let phase = match condition.map(|condition| condition.reason.as_str()) {
            Some(GIVEN_UP) => Phase::GivenUp,
            _ if status.completion_time.is_some() => Phase::Done,
            Some(_) => Phase::Running,
            None => Phase::Waiting,
        };
        let told = |time: &Option<_>| time.as_ref().map(text).unwrap_or_default();
        let (begun, ended) = (told(&status.start_time), told(&status.completion_time));
        let message = condition.map(|condition| condition.message.clone()).unwrap_or_default();
        Self { phase, begun, ended, message }
    }
}

/// As objects write it.
fn text(time: &impl Serialize) -> String {
    serde_json::to_value(time).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

impl Image {
    /// The image as Pods name it, out of the address of its manifest: `https://HOST/v2/NAME/manifests/REFERENCE`.
    fn reference(&self) -> Result<String, String> {
        let refused =
            || format!("url {:?} is not that of a manifest: https://registry/v2/name/manifests/tag", self.url);
        let (_, rest) = self.url.split_once("://").ok_or_else(refused)?;
        let (host, path) = rest.split_once("/v2/").ok_or_else(refused)?;
        let (name, reference) = path.split_once("/manifests/").ok_or_else(refused)?;
        let reference = if self.digest.is_empty() { reference } else { &self.digest };
        let mark = if reference.contains(':') { '@' } else { ':' };
        let image = format!("{host}/{name}{mark}{reference}");
        parse_image(&image).map_err(|error| format!("image {image:?}: {error}"))?;
        Ok(image)
    }
}

/// A number that JSON's readers keep whole, from the name of an image.
fn id_of(image: &str) -> u64 {
    let digest = Digest::sha256_of(image.as_bytes());
    digest.as_bytes().iter().take(6).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

fn object(id: u64) -> String {
    format!("harbor-{id}")
}

fn read<T: for<'a> Deserialize<'a>>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| refuse(StatusCode::BAD_REQUEST, &format!("the request: {error}")))
}

fn away(error: &shoal_kube::Error) -> Refusal {
    tracing::warn!(error = error as &dyn std::error::Error, "cannot preheat what Harbor asks for");
    refuse(StatusCode::BAD_GATEWAY, &format!("the Kubernetes API server: {error}"))
}

fn refuse(status: StatusCode, message: &str) -> Refusal {
    Refusal(status, message.to_owned())
}

/// Why a call is refused.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(url: &str, digest: &str) -> Image {
        Image { url: url.to_owned(), digest: digest.to_owned() }
    }

    #[test]
    fn an_image_is_named_by_the_address_of_its_manifest_and_rather_by_its_digest() {
        let digest = Digest::sha256_of(b"manifest").to_string();
        let url = "https://harbor.example:8443/v2/library/app/manifests/v1";
        assert_eq!(image(url, "").reference().unwrap(), "harbor.example:8443/library/app:v1");
        let by_digest = format!("harbor.example:8443/library/app@{digest}");
        assert_eq!(image(url, &digest).reference().unwrap(), by_digest);
        assert_eq!(image(&url.replace("v1", &digest), "").reference().unwrap(), by_digest);
        for url in ["", "https://harbor.example/v2/app", "harbor.example/v2/app/manifests/v1"] {
            assert!(image(url, "").reference().unwrap_err().contains("is not that of a manifest"), "{url}");
        }
        assert!(image("https://h.example/v2/APP/manifests/v1", "").reference().is_err());
    }

    #[test]
    fn the_token_is_shown_as_a_token_or_as_a_password() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert!(is_token("Bearer secret", "secret") && is_token(&basic("harbor:secret"), "secret"));
        for shown in ["secret", "Bearer ", "Bearer secrets", "Basic secret", &basic("secret"), &basic("secret:no")] {
            assert!(!is_token(shown, "secret"), "{shown}");
        }
    }

    #[test]
    fn what_was_said_of_an_earlier_request_is_not_said_of_this_one() {
        let mut preheat = Preheat::new("harbor-1", PreheatSpec::default());
        preheat.metadata.generation = Some(2);
        let complete = |generation| PreheatStatus {
            observed_generation: Some(generation),
            start_time: Some(now()),
            completion_time: Some(now()),
            ..PreheatStatus::default()
        };
        assert_eq!(Standing::of(&preheat).phase, Phase::Waiting);
        preheat.status = Some(complete(1));
        assert_eq!(Standing::of(&preheat).phase, Phase::Waiting);
        preheat.status = Some(complete(2));
        let standing = Standing::of(&preheat);
        assert_eq!(standing.phase, Phase::Done);
        assert!(standing.ended.ends_with('Z') && standing.begun.contains('T'), "{}", standing.ended);
    }

    #[test]
    fn an_image_has_one_number_that_every_reader_of_json_keeps_whole() {
        assert_eq!(id_of("a"), id_of("a"));
        assert_ne!(id_of("a"), id_of("b"));
        assert!(id_of("a") < 1 << 48);
    }
}
