//! Conversions between messages and checked words. Everything from outside is checked here, before anyone uses it.

use std::net::SocketAddr;

use shoal_meta::{PeerId, PeerInfo, Role, Topology};

use crate::origin::v1::Access;
use crate::tracker::v1 as tracker;

/// The longest zone or rack label accepted, in bytes; Kubernetes allows 63.
const LABEL_LENGTH_MAX: usize = 63;

/// Says what is wrong with a message from outside. The sender's fault; never retryable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A required message field is missing.
    #[error("the field {0} is missing")]
    Missing(&'static str),
    /// A peer id is not 16 bytes.
    #[error("a peer id has 16 bytes, not {0}")]
    PeerId(usize),
    /// An address is not IP:port.
    #[error("a peer address is IP:port, not {0:?}")]
    Address(String),
    /// A role is not one we know.
    #[error("peer role {0} is not known")]
    Role(i32),
    /// A zone or rack label is too long.
    #[error("a topology label has at most 63 bytes, not {0}")]
    Label(usize),
}

/// Writes a peer as a message.
#[must_use]
pub fn peer_to_proto(peer: &PeerInfo) -> tracker::Peer {
    tracker::Peer {
        id: peer.id.0.to_vec(),
        address: peer.address.to_string(),
        role: match peer.role {
            Role::Agent => tracker::Role::Agent,
            Role::Origin => tracker::Role::Origin,
        }
        .into(),
        zone: peer.topology.zone.clone(),
        rack: peer.topology.rack.clone(),
    }
}

/// Checks a peer from a message.
///
/// # Errors
/// When a field is missing, malformed or too long.
pub fn peer_from_proto(peer: Option<&tracker::Peer>) -> Result<PeerInfo, ConvertError> {
    let peer = peer.ok_or(ConvertError::Missing("peer"))?;
    let id = peer.id.as_slice().try_into().map_err(|_| ConvertError::PeerId(peer.id.len()))?;
    let address: SocketAddr =
        peer.address.parse().map_err(|_| ConvertError::Address(peer.address.chars().take(64).collect()))?;
    let role = match tracker::Role::try_from(peer.role) {
        Ok(tracker::Role::Agent) => Role::Agent,
        Ok(tracker::Role::Origin) => Role::Origin,
        Ok(tracker::Role::Unspecified) | Err(_) => return Err(ConvertError::Role(peer.role)),
    };
    for label in [&peer.zone, &peer.rack] {
        if label.len() > LABEL_LENGTH_MAX {
            return Err(ConvertError::Label(label.len()));
        }
    }
    let topology = Topology { zone: peer.zone.clone(), rack: peer.rack.clone() };
    Ok(PeerInfo { id: PeerId(id), address, role, topology })
}

/// Builds the access part of an origin request.
#[must_use]
pub fn access(registry: &str, repository: &str, authorization: Option<&str>) -> Access {
    Access {
        registry: registry.to_owned(),
        repository: repository.to_owned(),
        authorization: authorization.unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> PeerInfo {
        PeerInfo {
            id: PeerId([7; 16]),
            address: "[::1]:5052".parse().unwrap(),
            role: Role::Origin,
            topology: Topology { zone: "a".into(), rack: String::new() },
        }
    }

    #[test]
    fn a_peer_survives_the_round_trip() {
        assert_eq!(peer_from_proto(Some(&peer_to_proto(&peer()))), Ok(peer()));
    }

    #[test]
    fn malformed_peers_are_named() {
        let broken = |mend: fn(&mut tracker::Peer)| {
            let mut message = peer_to_proto(&peer());
            mend(&mut message);
            peer_from_proto(Some(&message)).unwrap_err()
        };
        assert_eq!(peer_from_proto(None), Err(ConvertError::Missing("peer")));
        assert_eq!(broken(|p| p.id.truncate(3)), ConvertError::PeerId(3));
        assert_eq!(broken(|p| p.address = "host:1".into()), ConvertError::Address("host:1".into()));
        assert_eq!(broken(|p| p.role = 9), ConvertError::Role(9));
        assert_eq!(broken(|p| p.zone = "z".repeat(64)), ConvertError::Label(64));
    }
}
