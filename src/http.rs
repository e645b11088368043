//! One GET, over TCP or a daemon's socket.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::{HOST, HeaderMap, SERVER};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::node::mirror::Mirror;

/// Longer than anything that works takes.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer read, in bytes.
const ANSWER_LENGTH_MAX: usize = 4 << 20;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// Whether an agent gave it, and not another program that has its port.
    pub(crate) fn is_of_shoal(&self) -> bool {
        self.headers.get(SERVER).is_some_and(|server| server.as_bytes().starts_with(b"shoal/"))
    }
}

/// Asks a server over TCP.
///
/// # Errors
/// When it does not answer in time.
pub(crate) async fn get(server: &Mirror, path: &str) -> Result<Answer> {
    ensure!(server.is_plain(), "only http:// can be asked");
    let asked = async {
        let stream = TcpStream::connect(server.authority()).await?;
        ask(stream, server.authority(), path).await
    };
    tokio::time::timeout(TIMEOUT, asked).await.context("no answer within 5 s")?
}

/// Asks a daemon at its socket.
///
/// # Errors
/// As [`get`].
pub(crate) async fn get_at(socket: &Path, path: &str) -> Result<Answer> {
    let asked = async { ask(UnixStream::connect(socket).await?, "localhost", path).await };
    tokio::time::timeout(TIMEOUT, asked).await.context("no answer within 5 s")?
}

async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, host: &str, path: &str) -> Result<Answer> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header(HOST, host).body(Empty::<Bytes>::new())?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, ANSWER_LENGTH_MAX).collect().await.map_err(|error| anyhow::anyhow!(error))?;
    connection.abort();
    Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
}
