//! The lies, each as what is said over one connection from its Hello to its end.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use shoal_identity::Identity;
use shoal_meta::{Bitfield, Digest, Geometry, Metainfo, PIECE_COUNT_MAX, PeerId, PeerInfo, PieceHash, PieceIndex};
use shoal_swarm::wire::{
    self, Alias, FindPeers, LIST_LENGTH_MAX, Message, MetainfoPart, Opened, PEERS_LENGTH_MAX, PeerExchange, WireBlock,
};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::link::{Receiving, Sending};
use super::{Shared, Torrent};

/// What the rogue calls the blob on every connection.
const BLOB: Alias = Alias(1);
/// What it calls things that are not there.
const NOTHING: Alias = Alias(999);
/// Pieces granted at a time: more than anybody asks one peer for at first.
const GRANT: u32 = 16;
/// The pause between bytes that come one at a time, and between words of one who says little.
const PAUSE: Duration = Duration::from_millis(100);
/// Frames heard that nobody has looked at, at most: one who stops to listen stops to read.
const HEARD_MAX: usize = 1;
/// How often a flood says its short words before its long ones.
const SHORT_WORDS: usize = 100;
/// Bytes of a flood that are made at a time.
const FLOOD_BYTES: usize = 256 * 1024;

/// One way to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Sends other bytes than the blob's.
    BadPieces,
    /// Says that it has every piece, grants them, and refuses what is asked for.
    HasNothing,
    /// Its bitfield is longer than the blob's.
    BitfieldLength,
    /// Its bitfield has bits behind the last piece.
    SpareBits,
    /// Has a piece behind the last.
    HaveOutOfRange,
    /// Has a piece of a torrent that it has not opened.
    HaveUnknown,
    /// Has the same pieces again and again, as fast as it can.
    HaveRepeated,
    /// Has everything and grants nothing.
    NeverUnchokes,
    /// Grants, and chokes whoever asks.
    ChokesOnRequest,
    /// Grants, and answers a byte at a time.
    Drips,
    /// Begins a frame and sends no more of it.
    HeaderNeverEnds,
    /// Asks for pieces and does not read them.
    NeverReads,
    /// Names peers that are not there.
    PoisonsExchange,
    /// Says all that it may say, as fast as it can.
    FloodsPeers,
    /// Says to the tracker all that it may say, as fast as it can.
    FloodsTracker,
    /// Sends a frame longer than any may be.
    OversizedFrame,
    /// Tells hashes that are not the blob's, without a seal.
    UnsealedMetainfo,
    /// Tells hashes that are not the blob's, with a seal of its own.
    ForgedMetainfo,
}

/// Lies over a connection until it ends; tells whether a lie was told.
pub(super) async fn tell(rogue: &Shared, sending: Sending, mut receiving: Receiving, with: IpAddr) -> bool {
    let (say, heard) = mpsc::channel(HEARD_MAX);
    let mut talk = Talk { rogue, with, torrent: rogue.torrent, out: sending, heard, lied: false };
    let listening = async {
        // Ends when the peer hangs up; while nobody takes what was heard, nothing more is read.
        while let Ok(message) = receiving.hear().await {
            if say.send(message).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let lying = async {
        // What cannot be written is written to one who has hung up.
        if rogue.lie.tell(&mut talk).await.is_ok() {
            while talk.heard.recv().await.is_some() {}
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = listening => {}
        () = lying => {}
    }
    talk.lied
}

/// One connection as a lie sees it.
struct Talk<'a> {
    rogue: &'a Shared,
    with: IpAddr,
    torrent: Torrent,
    out: Sending,
    heard: mpsc::Receiver<Option<Message>>,
    lied: bool,
}

impl Talk<'_> {
    fn lied(&mut self, lies: u64) {
        self.rogue.lied(self.with, !std::mem::replace(&mut self.lied, true), lies);
    }

    /// Says that the rogue takes part in the torrent and has these pieces.
    async fn open(&mut self, have: Bitfield) -> Result<()> {
        let Torrent { digest, geometry } = self.torrent;
        Ok(self.out.say(&Opened { alias: BLOB, digest, geometry, have }.into()).await?)
    }

    async fn open_as_seeder(&mut self) -> Result<()> {
        self.open(Bitfield::full(&self.torrent.geometry)).await
    }

    /// The next thing that the peer says; never, once it says nothing more.
    async fn hear(&mut self) -> Message {
        loop {
            match self.heard.recv().await {
                Some(Some(message)) => return message,
                Some(None) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Waits until the peer takes part in the torrent: the pull has begun. Gives what it has.
    async fn wait_opened(&mut self) -> Bitfield {
        loop {
            if let Message::OpenTorrent(open) = self.hear().await
                && open.digest == self.torrent.digest
            {
                return open.have;
            }
        }
    }

    /// Has every piece and grants some to whoever wants them, until something is asked for.
    async fn wait_asked(&mut self) -> Result<Vec<WireBlock>> {
        loop {
            let message = self.hear().await;
            if message == Message::Interested {
                self.out.say(&Message::Unchoke { pieces: GRANT }).await?;
            } else if let Message::Request { blocks, .. } = message {
                return Ok(blocks);
            }
        }
    }

    /// Says the same for ever, and reads what is answered.
    async fn flood(&mut self, make: impl Fn(&Torrent) -> Vec<Message>) -> Result<()> {
        loop {
            let (mut frames, mut count) = (Vec::new(), 0);
            while frames.len() < FLOOD_BYTES {
                let messages = make(&self.torrent);
                count += messages.len() as u64;
                messages.iter().for_each(|message| wire::encode_control(message, &mut frames));
            }
            let Self { out, heard, .. } = self;
            let reading = async { while heard.recv().await.is_some() {} };
            tokio::select! {
                written = out.write(&frames) => written?,
                () = reading => return Ok(()),
            }
            self.lied(count);
        }
    }
}

impl Lie {
    /// Whether it is told to everybody, asked for or not.
    #[must_use]
    pub fn is_told_to_all(self) -> bool {
        let told =
            [Self::BitfieldLength, Self::SpareBits, Self::HaveOutOfRange, Self::HaveUnknown, Self::OversizedFrame];
        told.contains(&self)
    }

    async fn tell(self, talk: &mut Talk<'_>) -> Result<()> {
        let (geometry, theirs) = (talk.torrent.geometry, talk.wait_opened().await);
        match self {
            Self::BadPieces => bad_pieces(talk).await,
            Self::HasNothing => has_nothing(talk).await,
            Self::BitfieldLength => open_wrongly(talk, 64).await,
            Self::SpareBits => open_wrongly(talk, 8).await,
            Self::HaveOutOfRange => has(talk, BLOB, geometry.piece_count()).await,
            Self::HaveUnknown => has(talk, NOTHING, 0).await,
            Self::HaveRepeated => {
                talk.open(Bitfield::empty(&geometry)).await?;
                let some =
                    move |_: &Torrent| vec![Message::Have { alias: BLOB, pieces: vec![0; LIST_LENGTH_MAX].into() }];
                talk.flood(some).await
            }
            Self::NeverUnchokes => never_unchokes(talk).await,
            Self::ChokesOnRequest => chokes(talk).await,
            Self::Drips => drips(talk).await,
            Self::HeaderNeverEnds => {
                talk.open_as_seeder().await?;
                talk.lied(1);
                Ok(talk.out.write(&[0, 0, 1]).await?)
            }
            Self::NeverReads => never_reads(talk, &theirs).await,
            Self::PoisonsExchange => poisons(talk).await,
            Self::FloodsPeers => {
                talk.open_as_seeder().await?;
                talk.flood(everything).await
            }
            Self::FloodsTracker => talk.open(Bitfield::empty(&geometry)).await,
            Self::OversizedFrame => {
                talk.open_as_seeder().await?;
                talk.lied(1);
                Ok(talk.out.write(&[0x7f, 0xff, 0xff, 0xff, 0]).await?)
            }
            Self::UnsealedMetainfo => tells_metainfo(talk, |_, _| Vec::new()).await,
            Self::ForgedMetainfo => {
                // An agent's certificate is of the same authority.
                tells_metainfo(talk, |identity, metainfo| identity.seal(&metainfo.statement()).unwrap_or_default())
                    .await
            }
        }
    }
}

async fn bad_pieces(talk: &mut Talk<'_>) -> Result<()> {
    talk.open_as_seeder().await?;
    loop {
        for block in talk.wait_asked().await? {
            let Some(block) = block.check(&talk.torrent.geometry) else { continue };
            talk.lied(1);
            talk.out.begin_block(BLOB, block).await?;
            talk.out.write(&vec![0xee; block.length as usize]).await?;
        }
    }
}

async fn has_nothing(talk: &mut Talk<'_>) -> Result<()> {
    talk.open_as_seeder().await?;
    loop {
        let blocks = talk.wait_asked().await?;
        talk.lied(1);
        talk.out.say(&Message::Reject { alias: BLOB, blocks }).await?;
    }
}

/// Opens the torrent with the bitfield of a blob that has so many pieces more, at least.
async fn open_wrongly(talk: &mut Talk<'_>, more: u32) -> Result<()> {
    let geometry = talk.torrent.geometry;
    let pieces = u64::from((geometry.piece_count() + more) / 8 * 8);
    let longer = Geometry::new(pieces * u64::from(geometry.piece_length()), geometry.piece_length())?;
    // One that is full is not written as bits.
    let mut have = Bitfield::full(&longer);
    geometry.piece(0).into_iter().for_each(|piece| _ = have.remove(piece));
    talk.lied(1);
    talk.open(have).await
}

async fn has(talk: &mut Talk<'_>, alias: Alias, piece: u32) -> Result<()> {
    talk.open(Bitfield::empty(&talk.torrent.geometry)).await?;
    talk.lied(1);
    Ok(talk.out.say(&Message::Have { alias, pieces: vec![piece].into() }).await?)
}

async fn never_unchokes(talk: &mut Talk<'_>) -> Result<()> {
    talk.open_as_seeder().await?;
    loop {
        if talk.hear().await == Message::Interested {
            talk.lied(1);
        }
    }
}

async fn chokes(talk: &mut Talk<'_>) -> Result<()> {
    talk.open_as_seeder().await?;
    loop {
        talk.wait_asked().await?;
        talk.lied(1);
        talk.out.say(&Message::Choke).await?;
    }
}

async fn drips(talk: &mut Talk<'_>) -> Result<()> {
    talk.open_as_seeder().await?;
    let asked = talk.wait_asked().await?;
    let block = asked.first().and_then(|block| block.check(&talk.torrent.geometry));
    let Some(block) = block else { return Ok(()) };
    talk.lied(1);
    talk.out.begin_block(BLOB, block).await?;
    let Talk { out, heard, .. } = talk;
    let dripping = async {
        for _ in 0..block.length {
            out.write(&[0xee]).await?;
            sleep(PAUSE).await;
        }
        Ok(())
    };
    let reading = async { while heard.recv().await.is_some() {} };
    tokio::join!(dripping, reading).0
}

/// Asks for a piece whenever it may be granted one, and stops to read with the first it is granted.
async fn never_reads(talk: &mut Talk<'_>, theirs: &Bitfield) -> Result<()> {
    let geometry = talk.torrent.geometry;
    talk.open(Bitfield::empty(&geometry)).await?;
    let mut piece = theirs.iter().next().map(PieceIndex::get);
    loop {
        if piece.is_some() {
            talk.out.say(&Message::Interested).await?;
        }
        let message = talk.hear().await;
        if let Message::Unchoke { .. } = message {
            break;
        }
        let has = if let Message::Have { pieces, .. } = &message { pieces.first().copied() } else { None };
        let has_all = matches!(message, Message::HaveAll { .. }).then_some(0);
        piece = piece.or(has).or(has_all);
    }
    let asked = piece.and_then(|piece| geometry.piece(piece)).into_iter().flat_map(|piece| geometry.blocks(piece));
    let blocks: Vec<_> = asked.map(WireBlock::from).collect();
    loop {
        talk.lied(1);
        talk.out.say(&Message::Request { alias: BLOB, blocks: blocks.clone() }).await?;
        talk.out.say(&Message::Interested).await?;
        sleep(PAUSE).await;
    }
}

async fn poisons(talk: &mut Talk<'_>) -> Result<()> {
    talk.open_as_seeder().await?;
    let (digest, bait, me) = (talk.torrent.digest, talk.rogue.bait.clone(), talk.rogue.me.clone());
    let mut bait = bait.into_iter().cycle();
    loop {
        let names = bait.by_ref().take(PEERS_LENGTH_MAX);
        let peers = names.map(|address| PeerInfo { id: PeerId(rand::random()), address, ..me.clone() }).collect();
        talk.out.say(&PeerExchange { digest, peers, query: None }.into()).await?;
        talk.lied(PEERS_LENGTH_MAX as u64);
        let Talk { heard, .. } = &mut *talk;
        while heard.try_recv().is_ok() {}
        sleep(PAUSE / 10).await;
    }
}

/// All that may be said by one who has opened the torrent: short words many times, and the longest ones.
fn everything(torrent: &Torrent) -> Vec<Message> {
    let mut all: Vec<_> = (0..SHORT_WORDS).flat_map(|_| short_words(torrent)).collect();
    let blocks: Vec<_> = torrent.geometry.pieces().flat_map(|piece| torrent.geometry.blocks(piece)).collect();
    let blocks: Vec<_> = blocks.into_iter().cycle().take(LIST_LENGTH_MAX).map(WireBlock::from).collect();
    // Nothing is granted to one who is not interested: what it asks for is refused unread, and not out of range.
    all.extend([Message::Request { alias: BLOB, blocks: blocks.clone() }, Message::Cancel { alias: BLOB, blocks }]);
    all
}

fn short_words(torrent: &Torrent) -> Vec<Message> {
    let other = Digest::Sha256(rand::random());
    let find = |digest| FindPeers { digest, hops: 2, query: rand::random() }.into();
    let mut words = vec![Message::Interested, Message::Unchoke { pieces: u32::MAX }, Message::HaveAll { alias: BLOB }];
    words.extend([find(torrent.digest), find(other)]);
    words.push(PeerExchange { digest: other, peers: Vec::new(), query: Some(rand::random()) }.into());
    // As many pieces as there may be: a few bytes that make the other end hold 128 KiB.
    if let Ok(geometry) = Geometry::new(u64::from(PIECE_COUNT_MAX) << 18, 1 << 18) {
        let have = Bitfield::empty(&geometry);
        words.push(Opened { alias: NOTHING, digest: other, geometry, have }.into());
        words.push(Message::CloseTorrent { alias: NOTHING });
    }
    words.extend([Message::Choke, Message::NotInterested { no_room: false }]);
    words
}

/// Answers whoever asks for hashes by others that end in the blob's digest, and a seal.
async fn tells_metainfo(talk: &mut Talk<'_>, seal: impl Fn(&Identity, &Metainfo) -> Vec<u8>) -> Result<()> {
    let Torrent { digest, geometry } = talk.torrent;
    let mut hashes: Vec<_> = geometry.pieces().map(|_| PieceHash(rand::random())).collect();
    if let (Digest::Sha256(digest), Some(last)) = (digest, hashes.last_mut()) {
        *last = PieceHash(digest);
    }
    let mut metainfo = Metainfo::new(digest, geometry);
    metainfo.extend_published(0, &hashes)?;
    let seal = seal(&talk.rogue.identity, &metainfo);
    talk.open_as_seeder().await?;
    loop {
        if let Message::FindMetainfo { .. } = talk.hear().await {
            talk.lied(1);
            let part = MetainfoPart { alias: BLOB, first: 0, hashes: hashes.clone(), seal: seal.clone() };
            talk.out.say(&part.into()).await?;
        }
    }
}
