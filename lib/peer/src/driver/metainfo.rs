//! Metainfo that peers pass on, with the origin's seal: read for those who ask, checked when it comes.

use shoal_identity::Part;
use shoal_meta::{Metainfo, PieceHash};
use shoal_store::Source;
use shoal_swarm::{ConnId, TorrentKey};
use tracing::{debug, warn};

use super::Driver;
use crate::mailbox::Input;

impl Driver {
    /// Reads what we know of a blob that is whole here.
    pub(super) fn read_metainfo(&self, torrent: TorrentKey, conn: ConnId) {
        let source = self.torrents.get(&torrent).map(crate::entry::Entry::source);
        let (store, handle, identity) = (self.store.clone(), self.net.handle.clone(), self.net.identity.clone());
        self.net.tasks.spawn(async move {
            let mut metainfo = None;
            if let Some(Source::Blob(blob)) = source {
                let known = store.seal(&blob.digest()).await.map(|seal| (blob.metainfo(), seal));
                // One that a power cut tore, or whose authority is gone, would get us banned.
                metainfo = known
                    .filter(|(metainfo, seal)| identity.check_seal(&metainfo.statement(), seal, Part::Origin).is_ok());
            }
            // The driver's end is the node's end.
            let _ = handle.send(Input::MetainfoRead { conn, torrent, metainfo }).await;
        });
    }

    /// Takes in what a peer gave, if an origin has sealed it.
    pub(super) fn check_metainfo(&self, torrent: TorrentKey, hashes: Vec<PieceHash>, seal: Vec<u8>) {
        let Some(entry) = self.torrents.get(&torrent) else { return };
        let (digest, geometry) = (entry.shared.digest, entry.shared.geometry);
        let handle = self.net.handle.clone();
        let (torrent_handle, store, identity) =
            (handle.torrent(entry.shared.clone()), self.store.clone(), self.net.identity.clone());
        self.net.tasks.spawn(async move {
            let mut metainfo = Metainfo::new(digest, geometry);
            let fits = metainfo.extend_published(0, &hashes).is_ok();
            let good = fits && match identity.check_seal(&metainfo.statement(), &seal, Part::Origin) {
                Ok(()) => true,
                Err(error) => {
                    warn!(%digest, error = &error as &dyn std::error::Error, "a peer's metainfo has no seal of an origin");
                    false
                }
            };
            if good {
                debug!(%digest, "metainfo from a peer");
                if let Err(error) = torrent_handle.extend_hashes(0, hashes).await {
                    warn!(%digest, %error, "sealed metainfo does not fit");
                }
                store.set_seal(&digest, seal).await;
            }
            // The driver's end is the node's end.
            let _ = handle.send(Input::MetainfoChecked { torrent, good }).await;
        });
    }
}
