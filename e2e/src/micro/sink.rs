//! Clients that throw away what they get: one speaks HTTP, one the peer wire as a leecher that never has anything.
//!
//! Plain blocking sockets, so that they cost little beside the subject.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;
use shoal_meta::{Bitfield, Metainfo, PeerId, PeerInfo, Role, Topology};
use shoal_swarm::wire::{self, Alias, BLOCK_HEADER_LENGTH, HEADER_LENGTH, Header, Message, Opened, WireBlock};

const READ_BYTES: usize = 256 * 1024;
const ALIAS: Alias = Alias(1);

/// GETs a path, discards its body and gives the body's length.
pub(crate) fn http(address: SocketAddr, path: &str) -> Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: micro\r\nConnection: close\r\n\r\n")?;
    let mut reader = BufReader::with_capacity(READ_BYTES, stream);
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line)?;
    ensure!(line.contains(" 200 "), "{path}: {line}");
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    discard(&mut reader, length)?;
    Ok(length)
}

/// A leecher on the peer wire.
#[derive(Debug)]
pub(crate) struct Leecher<'a> {
    reader: BufReader<TcpStream>,
    metainfo: &'a Metainfo,
    /// Requested and not come yet.
    owed_bytes: u64,
    next_piece: u32,
}

impl<'a> Leecher<'a> {
    /// Connects and says that it wants everything.
    pub(crate) fn connect(address: SocketAddr, metainfo: &'a Metainfo) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut id = [0; 16];
        rand::rng().fill_bytes(&mut id);
        let peer = PeerInfo {
            id: PeerId(id),
            address: stream.local_addr()?,
            role: Role::Agent,
            topology: Topology::default(),
        };
        let geometry = metainfo.geometry();
        let mut out = Vec::new();
        wire::encode_control(&Message::Hello { version: wire::VERSION, peer: Box::new(peer) }, &mut out);
        let have = Bitfield::empty(&geometry);
        let open = Opened { alias: ALIAS, digest: metainfo.digest(), geometry, have }.into();
        wire::encode_control(&open, &mut out);
        wire::encode_control(&Message::Interested, &mut out);
        stream.write_all(&out)?;
        let reader = BufReader::with_capacity(READ_BYTES, stream);
        Ok(Self { reader, metainfo, owed_bytes: 0, next_piece: 0 })
    }

    /// Fetches whole pieces, over and over, until so many bytes have come. Gives the seconds from the first to the last.
    pub(crate) fn fetch(&mut self, bytes: u64) -> Result<f64> {
        let (mut left, mut began) = (bytes, None);
        while left > 0 {
            let came = self.next_frame(left.saturating_sub(self.owed_bytes))?;
            if came > 0 {
                began.get_or_insert_with(Instant::now);
            }
            left = left.saturating_sub(came);
        }
        Ok(began.context("no byte asked for")?.elapsed().as_secs_f64())
    }

    /// Reads a frame, answers it, and gives the bytes of a block that it carried. Asks for no more pieces than `wanted`
    /// bytes need.
    fn next_frame(&mut self, wanted: u64) -> Result<u64> {
        let mut header = [0; HEADER_LENGTH];
        self.reader.read_exact(&mut header)?;
        match wire::decode_header(header)? {
            Header::Block { length } => {
                self.reader.read_exact(&mut [0; BLOCK_HEADER_LENGTH])?;
                discard(&mut self.reader, length.into())?;
                self.owed_bytes = self.owed_bytes.saturating_sub(length.into());
                Ok(length.into())
            }
            Header::Control { length } => {
                let mut body = vec![0; length as usize];
                self.reader.read_exact(&mut body)?;
                match wire::decode_control(&body)? {
                    Some(Message::Unchoke { pieces }) => self.request(pieces, wanted)?,
                    // It was asked for too late; it is asked for again when the seeder says so.
                    Some(Message::Reject { blocks, .. }) => {
                        let rejected: u64 = blocks.iter().map(|block| u64::from(block.length)).sum();
                        self.owed_bytes = self.owed_bytes.saturating_sub(rejected);
                    }
                    Some(_) | None => {}
                }
                Ok(0)
            }
        }
    }

    fn request(&mut self, pieces: u32, mut wanted: u64) -> Result<()> {
        let geometry = self.metainfo.geometry();
        let mut out = Vec::new();
        for _ in 0..pieces {
            if wanted == 0 {
                break;
            }
            let piece = geometry.piece(self.next_piece % geometry.piece_count()).context("it is one of the pieces")?;
            self.next_piece += 1;
            let blocks = geometry.blocks(piece).map(WireBlock::from).collect();
            let length = geometry.length_of(piece).into();
            self.owed_bytes += length;
            wanted = wanted.saturating_sub(length);
            wire::encode_control(&Message::Request { alias: ALIAS, blocks }, &mut out);
        }
        Ok(self.reader.get_mut().write_all(&out)?)
    }
}

fn discard(reader: &mut BufReader<TcpStream>, mut length: u64) -> Result<()> {
    while length > 0 {
        let available = reader.fill_buf()?.len();
        ensure!(available > 0, "the connection ended early");
        let taken = usize::try_from(length).unwrap_or(available).min(available);
        reader.consume(taken);
        length -= taken as u64;
    }
    Ok(())
}
