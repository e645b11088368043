//! The gRPC service agents call: metainfo, manifests, authorisation and tickets. Thin: it checks what came in, asks the rooms
//! behind it, and turns their errors into statuses. Payload bytes never pass here.

use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use shoal_identity::{Identity, Part, only};
use shoal_meta::{Digest, Geometry, PeerInfo};
use shoal_proto::origin::v1::metainfo_update::Update;
use shoal_proto::origin::v1::origin_server::Origin;
use shoal_proto::origin::v1::{self as proto, MetainfoUpdate};
use shoal_registry::{Access, Account, Reference, Repository, Secret};
use tonic::{Request, Response, Status};

use crate::error::OriginError;
use crate::gate::Kind;
use crate::metainfo;
use crate::rooms::Rooms;
use crate::tickets::{Key, Tickets};

/// The longest `Authorization` header passed on, in bytes.
const AUTHORIZATION_LENGTH_MAX: usize = 16 * 1024;
/// The most metainfo streams open at a time; agents keep one for each blob that still grows.
const STREAMS_MAX: i64 = 64 * 1024;

/// Those who ask what images are made of.
const ASKERS: [Part; 2] = [Part::Agent, Part::Tracker];

/// The service.
pub(crate) struct Service {
    pub(crate) rooms: Rooms,
    pub(crate) tickets: Tickets,
    pub(crate) peer: PeerInfo,
    pub(crate) identity: Identity,
}

#[tonic::async_trait]
impl Origin for Service {
    type MetainfoStream = Pin<Box<dyn Stream<Item = Result<MetainfoUpdate, Status>> + Send>>;

    async fn resolve(
        &self,
        request: Request<proto::ResolveRequest>,
    ) -> Result<Response<proto::ResolveResponse>, Status> {
        only(&request, &ASKERS)?;
        let request = request.into_inner();
        let access = self.permitted(request.access).await?;
        let reference: Reference = request.reference.parse().map_err(invalid)?;
        let resolved = self.rooms.manifests.resolve(&access, &reference, request.head, &request.accept).await;
        let resolved = resolved.map_err(|error| error.to_status())?;
        Ok(Response::new(proto::ResolveResponse {
            digest: resolved.manifest.digest.to_string(),
            media_type: resolved.manifest.media_type,
            length_bytes: resolved.manifest.length,
            content: resolved.manifest.content.into(),
            stale: resolved.stale,
        }))
    }

    async fn metainfo(
        &self,
        request: Request<proto::MetainfoRequest>,
    ) -> Result<Response<Self::MetainfoStream>, Status> {
        only(&request, &ASKERS)?;
        let request = request.into_inner();
        let access = self.permitted(request.access).await?;
        let digest: Digest = request.digest.parse().map_err(invalid)?;
        if request.header_only {
            let length = self.rooms.ingests.length(&access, &digest).await.map_err(|error| error.to_status())?;
            let header = metainfo::header(length, Geometry::for_length(length).ok(), &self.peer);
            let update = MetainfoUpdate { update: Some(Update::Header(header)) };
            return Ok(Response::new(Box::pin(futures_util::stream::iter([Ok(update)]))));
        }
        let streams = &self.rooms.metrics.streams;
        if streams.get() >= STREAMS_MAX {
            return Err(Status::unavailable("as many metainfo streams as allowed are open"));
        }
        let ingests = &self.rooms.ingests;
        let holding = if request.held_only {
            ingests.held(&access, &digest).await
        } else {
            ingests.open(&access, &digest).await.map(Some)
        };
        let Some(holding) = holding.map_err(|error| error.to_status())? else {
            return Ok(Response::new(Box::pin(futures_util::stream::empty())));
        };
        let stream = metainfo::stream(holding, request.first_piece, &self.peer, &self.identity, streams)?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn authorize(
        &self,
        request: Request<proto::AuthorizeRequest>,
    ) -> Result<Response<proto::AuthorizeResponse>, Status> {
        only(&request, &ASKERS)?;
        let request = request.into_inner();
        let access = self.permitted(request.access).await?;
        let digest: Digest = request.digest.parse().map_err(invalid)?;
        let kind = if self.rooms.manifests.holds(&digest) {
            Kind::Manifest
        } else if self.rooms.ingests.holds(&digest) {
            Kind::Blob
        } else {
            Kind::Either
        };
        let valid = self.rooms.authorizer.check(&access, kind, &digest).await.map_err(|error| error.to_status())?;
        let valid_ms = u32::try_from(valid.as_millis()).unwrap_or(u32::MAX);
        Ok(Response::new(proto::AuthorizeResponse { valid_ms }))
    }

    async fn grant(&self, request: Request<proto::GrantRequest>) -> Result<Response<proto::GrantResponse>, Status> {
        // A tracker reads pull secrets; a node has none to give.
        only(&request, &[Part::Tracker])?;
        let proto::GrantRequest { registry, repository, docker_configs, ticket, valid_ms } = request.into_inner();
        let repository = Repository::new(&registry, &repository).map_err(invalid)?;
        let refused = |error| OriginError::from(error).to_status();
        self.rooms.gate.permits(&repository).map_err(refused)?;
        let key = Key::of(&ticket)
            .ok_or_else(|| invalid("the ticket is not 16 to 64 characters of letters, digits, '-' and '_'"))?;
        let account = Account::from_docker_configs(&docker_configs, &repository).map_err(refused)?;
        let valid = Duration::from_millis(valid_ms.into());
        let granted = self.tickets.grant(key, repository, account, valid).await;
        granted.map_err(|error| error.to_status())?;
        Ok(Response::new(proto::GrantResponse {}))
    }
}

impl Service {
    /// On whose behalf it is, if the configuration lets that repository be served. A ticket is redeemed here, and seen by no
    /// other room.
    async fn permitted(&self, access: Option<proto::Access>) -> Result<Access, Status> {
        let access = access_of(access)?;
        self.rooms.gate.permits(&access.repository).map_err(|error| OriginError::from(error).to_status())?;
        self.tickets.redeem(access).await.map_err(|error| error.to_status())
    }
}

fn access_of(access: Option<proto::Access>) -> Result<Access, Status> {
    let access = access.ok_or_else(|| Status::invalid_argument("the field access is missing"))?;
    if access.authorization.len() > AUTHORIZATION_LENGTH_MAX {
        return Err(Status::invalid_argument("the authorization is longer than 16 KiB"));
    }
    let repository = Repository::new(&access.registry, &access.repository).map_err(invalid)?;
    let authorization = (!access.authorization.is_empty()).then(|| Secret::new(access.authorization));
    Ok(Access { repository, authorization })
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}
