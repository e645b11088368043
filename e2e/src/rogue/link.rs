//! One connection of the rogue, by the real codec: TLS, Hello both ways, frames out and in.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use shoal_identity::{Identity, Part, Stream};
use shoal_meta::{BlockRef, PeerInfo, Role};
use shoal_swarm::wire::{self, Alias, BLOCK_HEADER_LENGTH, HEADER_LENGTH, Header, Message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;

/// What goes out.
pub(super) struct Sending {
    pub(super) remote: SocketAddr,
    out: WriteHalf<Stream<TcpStream>>,
}

/// What comes in.
pub(super) struct Receiving(ReadHalf<Stream<TcpStream>>);

/// Sets a connection up, as one who is honest would; `dialled` is what was dialled.
pub(super) async fn open(
    identity: &Identity,
    me: &PeerInfo,
    stream: TcpStream,
    dialled: Option<Role>,
) -> Result<(Sending, Receiving)> {
    let remote = stream.peer_addr()?;
    stream.set_nodelay(true)?;
    let (stream, _) = match dialled {
        Some(Role::Agent) => identity.connect(stream, Part::Agent).await?,
        Some(Role::Origin) => identity.connect(stream, Part::Origin).await?,
        None => identity.accept(stream).await?,
    };
    let (receiving, out) = split(stream);
    let (mut sending, mut receiving) = (Sending { remote, out }, Receiving(receiving));
    sending.say(&Message::Hello { version: wire::VERSION, peer: Box::new(me.clone()) }).await?;
    receiving.hear().await.context("no Hello")?;
    Ok((sending, receiving))
}

impl Sending {
    pub(super) async fn say(&mut self, message: &Message) -> io::Result<()> {
        let mut frame = Vec::new();
        wire::encode_control(message, &mut frame);
        self.write(&frame).await
    }

    /// Sends what stands before the bytes of a block.
    pub(super) async fn begin_block(&mut self, alias: Alias, block: BlockRef) -> io::Result<()> {
        self.write(&wire::encode_block_header(alias, block)).await
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes).await?;
        self.out.flush().await
    }
}

impl Receiving {
    /// The next frame: a message, or `None` for a block, which is thrown away.
    pub(super) async fn hear(&mut self) -> Result<Option<Message>> {
        let mut header = [0; HEADER_LENGTH];
        self.0.read_exact(&mut header).await?;
        let (length, is_message) = match wire::decode_header(header)? {
            Header::Control { length } => (length as usize, true),
            Header::Block { length } => (length as usize + BLOCK_HEADER_LENGTH, false),
        };
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        Ok(if is_message { wire::decode_control(&body)? } else { None })
    }
}
