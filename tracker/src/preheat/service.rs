//! The gRPC that agents call to learn what to fetch ahead: it checks messages and asks the plan.

use shoal_identity::{Part, only};
use shoal_proto::preheat::v1::preheat_server::Preheat;
use shoal_proto::preheat::v1::{ReportRequest, ReportResponse};
use tonic::{Request, Response, Status};

use super::Shared;

/// The longest name of a node: a DNS subdomain (RFC 1123).
const NODE_LENGTH_MAX: usize = 253;
/// The most tasks in one report.
const TASKS_MAX: usize = 1_000;
/// The longest report taken, in bytes.
pub(crate) const REQUEST_LENGTH_MAX: usize = 1 << 20;

/// The service.
#[derive(Debug)]
pub(crate) struct Service(pub(crate) Shared);

#[tonic::async_trait]
impl Preheat for Service {
    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        only(&request, &[Part::Agent])?;
        let ReportRequest { node, tasks } = request.into_inner();
        if node.is_empty() || node.len() > NODE_LENGTH_MAX {
            return Err(Status::invalid_argument("the field node is not the name of a node"));
        }
        if tasks.len() > TASKS_MAX {
            return Err(Status::invalid_argument(format!(
                "a report is of at most {TASKS_MAX} tasks, not {}",
                tasks.len()
            )));
        }
        let now = tokio::time::Instant::now().into_std();
        Ok(Response::new(self.0.lock().report(now, &node, &tasks)))
    }
}
