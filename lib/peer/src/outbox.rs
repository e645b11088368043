//! What waits to be sent on one connection: control frames, and blocks being read. The driver fills it, the writer
//! empties it; neither waits for the other.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use shoal_meta::BlockRef;
use shoal_swarm::TorrentKey;
use shoal_swarm::wire::{self, Message};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::send::Payload;

/// Most bytes of control frames that may wait; a peer that lets more pile up does not read and loses its connection. A
/// connection's first flood, an OpenTorrent for each of 4096 torrents, fits.
const CONTROL_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The queue of one connection.
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    changed: Notify,
    closed: CancellationToken,
}

#[derive(Default)]
struct Queue {
    control: Vec<u8>,
    blocks: VecDeque<OutgoingBlock>,
}

/// A block to send. The swarm bounds how many there are ([`shoal_swarm::SEND_WINDOW_BLOCKS`]).
pub(crate) struct OutgoingBlock {
    pub(crate) torrent: TorrentKey,
    pub(crate) block: BlockRef,
    pub(crate) payload: Payload,
}

/// Says that the peer does not read its control frames.
#[derive(Debug)]
pub(crate) struct Full;

impl Outbox {
    /// Makes an empty one that `closed` closes.
    pub(crate) fn new(closed: CancellationToken) -> Self {
        Self { queue: Mutex::default(), changed: Notify::new(), closed }
    }

    /// Queues a control frame. Call [`Self::flush`] after the last.
    ///
    /// # Errors
    /// When too much waits already.
    pub(crate) fn push_control(&self, message: &Message) -> Result<(), Full> {
        let mut queue = self.lock();
        wire::encode_control(message, &mut queue.control);
        if queue.control.len() > CONTROL_BYTES_MAX { Err(Full) } else { Ok(()) }
    }

    /// Queues a block. Call [`Self::flush`] after the last.
    pub(crate) fn push_block(&self, block: OutgoingBlock) {
        self.lock().blocks.push_back(block);
    }

    /// Wakes the writer.
    pub(crate) fn flush(&self) {
        self.changed.notify_one();
    }

    /// Ends the connection; what waits is void.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Waits until the connection is to end.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Takes all that waits: control frames into the empty buffer given, blocks to the end of a list.
    pub(crate) fn take(&self, control: &mut Vec<u8>, blocks: &mut VecDeque<OutgoingBlock>) {
        let mut queue = self.lock();
        std::mem::swap(&mut queue.control, control);
        blocks.append(&mut queue.blocks);
    }

    /// Waits until something was queued since the last [`Self::take`].
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nothing panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_frames_that_pile_up_are_refused() {
        let outbox = Outbox::new(CancellationToken::new());
        let message = Message::Unchoke { pieces: 1 };
        let queued = (0..CONTROL_BYTES_MAX).take_while(|_| outbox.push_control(&message).is_ok()).count();
        assert!((1..CONTROL_BYTES_MAX / 5).contains(&queued), "{queued}");
    }

    #[tokio::test]
    async fn frames_queued_before_one_flush_leave_together() {
        let outbox = Outbox::new(CancellationToken::new());
        outbox.push_control(&Message::Interested).unwrap();
        outbox.push_control(&Message::Choke).unwrap();
        outbox.flush();
        outbox.changed().await;
        let (mut control, mut blocks) = (Vec::new(), VecDeque::new());
        outbox.take(&mut control, &mut blocks);
        let mut expected = Vec::new();
        wire::encode_control(&Message::Interested, &mut expected);
        wire::encode_control(&Message::Choke, &mut expected);
        assert_eq!((control, blocks.len()), (expected, 0));
    }
}
