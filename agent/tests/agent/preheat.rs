//! What a tracker lets a node fetch ahead, and what the node tells of it. The tracker is one that gives what the test says.

use std::sync::{Arc, Mutex};

use shoal_agent::{ReceivedBytes, Running};
use shoal_meta::Digest;
use shoal_proto::preheat::v1 as proto;
use shoal_proto::preheat::v1::preheat_server::{Preheat, PreheatServer};
use shoal_registry::embedded::Options;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::rig::{LOCAL, REGISTRY, Rig, blob, eventually, get};

const ID: &str = "uid";

/// A tracker that leads.
#[derive(Clone, Default)]
struct Leader {
    task: Arc<Mutex<Option<proto::Task>>>,
    told: Arc<Mutex<Vec<proto::Progress>>>,
}

#[tonic::async_trait]
impl Preheat for Leader {
    async fn report(&self, request: Request<proto::ReportRequest>) -> Result<Response<proto::ReportResponse>, Status> {
        let told = request.into_inner().tasks;
        let task = self.task.lock().unwrap().clone();
        let gone = told.iter().map(|told| told.id.clone()).filter(|id| task.as_ref().is_none_or(|task| task.id != *id));
        let gone = gone.collect();
        let tasks = task.filter(|task| told.iter().all(|told| told.revision != task.revision)).into_iter().collect();
        *self.told.lock().unwrap() = told;
        Ok(Response::new(proto::ReportResponse { interval_ms: 500, tasks, gone }))
    }
}

impl Leader {
    fn gives(&self, revision: u64, digests: &[Digest]) {
        let blobs = digests.iter().map(|digest| proto::Blob { digest: digest.to_string(), length_bytes: 0 }).collect();
        let image =
            proto::Image { registry: REGISTRY.into(), repository: "app".into(), blobs, ..proto::Image::default() };
        *self.task.lock().unwrap() = Some(proto::Task { id: ID.into(), revision, images: vec![image] });
    }

    fn last(&self) -> Option<proto::Progress> {
        self.told.lock().unwrap().first().cloned()
    }

    fn says(&self, state: proto::State) -> bool {
        self.last().is_some_and(|told| told.state() == state)
    }
}

/// An agent with a real origin, and a tracker that leads.
async fn agent(rig: &Rig) -> (Running, Leader) {
    let leader = Leader::default();
    let incoming = TcpIncoming::bind(LOCAL).unwrap();
    let url = format!("http://{}", incoming.local_addr().unwrap());
    let server = Server::builder().add_service(PreheatServer::new(leader.clone()));
    let shutdown = rig.shutdown.child_token();
    tokio::spawn(async move { server.serve_with_incoming_shutdown(incoming, shutdown.cancelled()).await });
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let agent = rig.agent(|config| {
        config.node_name = Some("n1".to_owned());
        config.prefetch_pods = false;
        config.trackers = vec![url];
        config.origins = vec![format!("http://{}", origin.grpc_addr)];
    });
    (agent.await, leader)
}

#[tokio::test]
async fn what_a_tracker_names_is_fetched_and_a_pull_then_takes_nothing_from_elsewhere() {
    let rig = Rig::start(Options::default()).await;
    let (agent, leader) = agent(&rig).await;
    leader.gives(1, &rig.image.layers);
    eventually("it is complete", || leader.says(proto::State::Complete)).await;
    assert_eq!(leader.last().unwrap().held_bytes, (4 << 20) + 12345);
    let before = agent.status().received;
    for layer in &rig.image.layers {
        assert_eq!(get(&agent, &blob(layer)).await.digest(), *layer);
        assert_eq!(rig.sent(layer).0, 1);
    }
    let after = agent.status().received;
    assert_eq!(after, ReceivedBytes { local: (4 << 20) + 12345, ..before });
    assert_eq!(after.upstream, 0);
}

#[tokio::test]
async fn what_cannot_be_fetched_is_told_and_another_task_of_the_same_id_takes_its_place() {
    let rig = Rig::start(Options::default()).await;
    let (_agent, leader) = agent(&rig).await;
    let unknown = Digest::sha256_of(b"unknown");
    leader.gives(1, &[unknown, rig.image.layers[1]]);
    eventually("it has failed", || leader.says(proto::State::Failed)).await;
    let told = leader.last().unwrap();
    assert!(told.message.contains(&unknown.to_string()), "{told:?}");
    assert_eq!(told.held_bytes, 1 << 20, "what could be fetched was");
    leader.gives(2, &rig.image.layers);
    eventually("it is complete", || leader.says(proto::State::Complete)).await;
    assert_eq!((leader.last().unwrap().revision, rig.sent(&rig.image.layers[1]).0), (2, 1));
}

#[tokio::test]
async fn a_task_that_no_tracker_knows_any_more_is_forgotten() {
    let rig = Rig::start(Options::default()).await;
    let (_agent, leader) = agent(&rig).await;
    leader.gives(1, &rig.image.layers);
    eventually("it is complete", || leader.says(proto::State::Complete)).await;
    *leader.task.lock().unwrap() = None;
    eventually("it is told of no more", || leader.last().is_none()).await;
}
