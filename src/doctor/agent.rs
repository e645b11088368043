//! The agent: whether it answers where runtimes ask, and what it says of its store, its trackers and its origins.

use std::path::Path;
use std::time::SystemTime;

use hyper::StatusCode;
use serde_json::Value;

use super::Check;
use crate::http::get;
use crate::node::mirror::Mirror;
use crate::node::root::Root;

/// Less free space than this makes the agent keep fewer blobs: its default `free_floor`.
const FREE_FLOOR_BYTES: u64 = 1 << 30;

/// All checks of the agent.
pub(super) async fn check(root: &Root, mirror: &Mirror, admin: &Mirror) -> Vec<Check> {
    let mut checks = vec![front(mirror).await, health(admin).await];
    if let Ok(answer) = get(admin, "/status").await
        && let Ok(status) = serde_json::from_slice::<Value>(&answer.body)
    {
        checks.extend(store(root, &status));
        checks.extend([trackers(&status), origins(&status)]);
    }
    checks.push(clock());
    checks
}

async fn front(mirror: &Mirror) -> Check {
    let name = "agent's registry front";
    let port = mirror.authority().rsplit(':').next().unwrap_or_default();
    match get(mirror, "/v2/").await {
        Err(error) => Check::fail(
            name,
            format!("{mirror} does not answer: {error:#}; runtimes go to the registries themselves"),
            "start the agent (kubectl -n shoal get pods -o wide, or shoal agent), or give --mirror its `listen` address",
        ),
        Ok(answer) if answer.is_of_shoal() => Check::ok(name, format!("{mirror} answers")),
        Ok(_) => Check::fail(
            name,
            format!("another program answers at {mirror}"),
            format!(
                "ss -ltnp 'sport = :{port}' names it; give the agent another `listen`, then run shoal node configure --mirror with it"
            ),
        ),
    }
}

async fn health(admin: &Mirror) -> Check {
    let name = "agent's health";
    match get(admin, "/healthz").await {
        Ok(answer) if answer.status == StatusCode::OK => Check::ok(name, format!("{admin}/healthz answers")),
        Ok(answer) => Check::fail(
            name,
            format!("{admin}/healthz answers {}: another program has the port", answer.status),
            "give --admin the agent's `admin_listen` address",
        ),
        Err(error) => Check::fail(
            name,
            format!("{admin}/healthz does not answer: {error:#}"),
            "start the agent, or give --admin its `admin_listen` address",
        ),
    }
}

fn store(root: &Root, status: &Value) -> Option<Check> {
    let (name, path) = ("agent's store", status.get("store")?.as_str()?);
    if let Some(trouble) = status["store_trouble"].as_str() {
        let why = format!("{path} takes no blobs, which pass by it: {trouble}");
        return Some(Check::warn(name, why, format!("look at the disk of {path}; the agent goes on by itself")));
    }
    let space = root.resolve(Path::new(path)).ok().and_then(|path| rustix::fs::statvfs(root.real(&path)).ok());
    let Some(space) = space else {
        let why = format!("{path} is not on this node, as the agent runs in a container of its own");
        return Some(Check::warn(name, why, "mount the store at the same path in the container as on the node"));
    };
    let free = space.f_bavail * space.f_frsize;
    let used = status["store_bytes"].as_u64().unwrap_or_default();
    let (free_text, used) = (indicatif::HumanBytes(free), indicatif::HumanBytes(used));
    let why = format!("{path} holds {used}; {free_text} of its disk are free");
    Some(if free < FREE_FLOOR_BYTES {
        Check::warn(name, format!("{why}: the agent keeps fewer blobs"), format!("free space on the disk of {path}"))
    } else {
        Check::ok(name, why)
    })
}

fn trackers(status: &Value) -> Check {
    let name = "trackers";
    let count = |key: &str| status[key].as_u64().unwrap_or_default();
    match (count("trackers_up"), count("trackers")) {
        (_, 0) => Check::warn(
            name,
            "none is configured: peers are known from origins and each other only",
            "give the agent --tracker",
        ),
        (0, all) => Check::fail(
            name,
            format!("none of {all} answers: peers are known from each other only"),
            "look at the tracker (kubectl -n shoal get pods) and at `trackers` in the agent's configuration",
        ),
        (up, all) if up < all => Check::warn(name, format!("{up} of {all} answer"), "look at those that do not"),
        (_, all) => Check::ok(name, format!("all {all} answer")),
    }
}

fn origins(status: &Value) -> Check {
    let name = "origins";
    let count = status["origins"].as_u64().unwrap_or_default();
    match (count, status["origin_up"].as_bool().unwrap_or_default()) {
        (0, _) => Check::warn(name, "none is configured: every blob comes from upstream", "give the agent --origin"),
        (_, false) => Check::fail(
            name,
            format!("none of {count} answered when it was last asked: blobs come from peers and upstream"),
            "look at the origin (kubectl -n shoal get pods) and at `origins` in the agent's configuration",
        ),
        (_, true) => Check::ok(name, "answered when last asked, or not asked yet"),
    }
}

/// Certificates and tokens are valid for a time: a clock far behind makes upstreams look broken.
fn clock() -> Check {
    let built = std::env::current_exe().and_then(|program| program.metadata()?.modified());
    match built {
        Ok(built) if SystemTime::now() < built => Check::fail(
            "clock",
            "it is behind the day this program was installed: certificates and tokens will look invalid",
            "timedatectl set-ntp true (or start the node's NTP client)",
        ),
        _ => Check::ok("clock", "it is not behind"),
    }
}
