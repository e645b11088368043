//! A connection between parts: the handshake at both ends, and bytes over whatever came of it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::{Identity, Part, Parts};

/// How long the other end has for its half of a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection between parts.
#[derive(Debug)]
pub enum Stream<S> {
    /// Anybody may read it.
    Plain(S),
    /// Only the other end may.
    Tls(Box<TlsStream<S>>),
}

impl Identity {
    /// Begins a connection to a part, and tells which parts the other end may be: that one among them.
    ///
    /// # Errors
    /// When the other end is silent, is not that part, or refuses us.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        part: Part,
    ) -> io::Result<(Stream<S>, Parts)> {
        let Some(configs) = self.held() else { return Ok((Stream::Plain(stream), Parts::ANY)) };
        let handshake = TlsConnector::from(configs.client.clone()).connect(part.server_name(), stream);
        let stream = timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_elapsed| silent())??;
        encrypted(stream.into())
    }

    /// Begins a connection that somebody else made, and tells which parts that may be.
    ///
    /// # Errors
    /// When the other end is silent or shows no certificate of the authority.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<(Stream<S>, Parts)> {
        let Some(configs) = self.held() else { return Ok((Stream::Plain(stream), Parts::ANY)) };
        let handshake = TlsAcceptor::from(configs.server.clone()).accept(stream);
        let stream = timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_elapsed| silent())??;
        encrypted(stream.into())
    }
}

fn encrypted<S>(stream: TlsStream<S>) -> io::Result<(Stream<S>, Parts)> {
    let shown = stream.get_ref().1.peer_certificates().and_then(|shown| shown.first());
    let parts = shown.map(Parts::of).ok_or_else(|| io::Error::other("no certificate was shown"))?;
    Ok((Stream::Tls(Box::new(stream)), parts))
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake: the other end may have no certificates")
}

/// Calls a method of whichever stream there is.
macro_rules! either {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).$method($($argument),*),
            Self::Tls(stream) => Pin::new(stream.as_mut()).$method($($argument),*),
        }
    };
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self.poll_read(cx, buffer))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;
    use crate::{identity, issue};

    /// What becomes of a byte sent from one to the other, which is meant to be `to`.
    async fn try_out(from: &Identity, to: Part, other: &Identity) -> io::Result<(Parts, u8)> {
        let (near, far) = duplex(1024);
        let sent = async {
            let (mut stream, _) = from.connect(near, to).await?;
            stream.write_all(&[7]).await?;
            stream.flush().await?;
            stream.shutdown().await
        };
        let received = async {
            let (mut stream, parts) = other.accept(far).await?;
            Ok((parts, stream.read_u8().await?))
        };
        let (sent, received) = tokio::join!(sent, received);
        sent?;
        received
    }

    #[tokio::test]
    async fn both_ends_know_whom_they_have() {
        let scratch = tempfile::tempdir().unwrap();
        issue(scratch.path()).unwrap();
        let [agent, origin, tracker] = Part::ALL.map(|part| identity(scratch.path(), part));
        let (parts, byte) = try_out(&agent, Part::Origin, &origin).await.unwrap();
        assert_eq!((byte, Part::ALL.map(|part| parts.contain(part))), (7, [true, false, false]));
        let (parts, _) = try_out(&tracker, Part::Origin, &origin).await.unwrap();
        assert_eq!(Part::ALL.map(|part| parts.contain(part)), [false, false, true]);
        // An agent cannot pose as an origin.
        let refused = try_out(&tracker, Part::Origin, &agent).await.unwrap_err().to_string();
        assert!(refused.contains("certificate not valid for name \"origin.shoal\""), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_and_plaintext_are_refused_at_either_end() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        issue(ours.path()).unwrap();
        issue(theirs.path()).unwrap();
        let (agent, stranger) = (identity(ours.path(), Part::Agent), identity(theirs.path(), Part::Origin));
        let plain = Identity::plaintext();
        assert!(try_out(&agent, Part::Origin, &stranger).await.is_err());
        assert!(try_out(&stranger, Part::Agent, &agent).await.is_err());
        assert!(try_out(&plain, Part::Agent, &agent).await.is_err());
        assert!(try_out(&agent, Part::Origin, &plain).await.is_err());
        let (parts, byte) = try_out(&plain, Part::Origin, &plain).await.unwrap();
        assert_eq!((parts, byte), (Parts::ANY, 7));
    }

    #[tokio::test]
    async fn who_shows_no_certificate_is_refused() {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject as _;
        use rustls::{ClientConfig, RootCertStore};
        let scratch = tempfile::tempdir().unwrap();
        issue(scratch.path()).unwrap();
        let origin = identity(scratch.path(), Part::Origin);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(scratch.path().join("origin/ca.crt")).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let (near, far) = duplex(1024);
        let anonymous = TlsConnector::from(std::sync::Arc::new(client)).connect(Part::Origin.server_name(), near);
        let (_, accepted) = tokio::join!(anonymous, origin.accept(far));
        let refused = accepted.unwrap_err().to_string();
        assert!(refused.contains("peer sent no certificates"), "{refused}");
    }
}
