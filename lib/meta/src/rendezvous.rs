//! Rendezvous (highest random weight) hashing: which of several servers owns a key (Thaler & Ravishankar, 1998).

use sha2::{Digest as _, Sha256};

/// A tracker or an origin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// What it is called in rendezvous order: the same for every node, and the same when it comes back elsewhere.
    pub name: String,
    /// Where it is now, as `http://host:port`.
    pub url: String,
}

impl Server {
    /// A server that stays where it is, and is called so.
    #[must_use]
    pub fn at(url: &str) -> Self {
        Self { name: url.to_owned(), url: url.to_owned() }
    }
}

/// Orders servers by how much they own a key: the first is the owner, the next its failover.
///
/// Every node computes the same order from the same names, and losing a server moves only the keys it owned.
#[must_use]
pub fn rendezvous_order<'a>(key: &[u8], servers: &[&'a str]) -> Vec<&'a str> {
    let mut weighted: Vec<_> = servers.iter().map(|server| (weight(key, server), *server)).collect();
    weighted.sort_by(|a, b| b.cmp(a));
    weighted.into_iter().map(|(_, server)| server).collect()
}

fn weight(key: &[u8], server: &str) -> [u8; 32] {
    Sha256::new().chain_update(server.as_bytes()).chain_update([0]).chain_update(key).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losing_a_server_moves_only_its_keys() {
        let all = ["a:1", "b:1", "c:1"];
        let mut owned = [0; 3];
        for key in 0u32..300 {
            let order = rendezvous_order(&key.to_le_bytes(), &all);
            owned[all.iter().position(|s| *s == order[0]).unwrap()] += 1;
            let rest = rendezvous_order(&key.to_le_bytes(), &["a:1", "c:1"]);
            let kept: Vec<_> = order.into_iter().filter(|s| *s != "b:1").collect();
            assert_eq!(rest, kept);
        }
        assert!(owned.iter().all(|&count| count > 60), "uneven: {owned:?}");
    }
}
