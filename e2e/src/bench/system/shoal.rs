//! Shoal: a tracker, an origin, and an agent on every node.

use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Ground, Payload, Running};
use crate::bench::pull::Front;
use crate::node::{Link, Node};
use crate::program::{ADMIN, FRONT, ORIGIN_FRONT, Program};

pub(super) fn start(ground: &mut Ground) -> Result<Running> {
    let program = Program::find()?.with_log("info");
    let tracker = ground.lab.add_node("tracker", Link::default())?;
    let origin = ground.lab.add_node("origin", ground.link)?;
    let mut processes = vec![program.tracker(&tracker)?, program.origin(&origin, &tracker)?];
    for node in &ground.nodes {
        processes.push(program.agent(node, &tracker, &origin)?);
    }
    let warm = Front::Http { node: Arc::clone(&origin), url: format!("http://{ORIGIN_FRONT}"), ns: true };
    let fronts = ground.fronts(&format!("http://{FRONT}"), true);
    Ok(Running { fronts, origin: Some(origin), warm: Some(warm), payload: Some(payload), processes })
}

fn payload(node: &Node) -> Result<Payload> {
    let status: Value = serde_json::from_str(&node.run("curl", &["-sSf", &format!("http://{ADMIN}/status")])?)?;
    let received = |source: &str| status["received"][source].as_u64();
    let sources = ["same_zone", "other_zone", "origin", "upstream"].map(received).into_iter();
    let kept = sources.sum::<Option<u64>>().context("status without received bytes")?;
    Ok(Payload { kept, wasted: status["wasted_bytes"].as_u64().context("status without wasted bytes")? })
}
