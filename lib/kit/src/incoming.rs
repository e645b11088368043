//! Accepting connections, for every server. It knows nothing of what the connections carry.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

/// The pause after a failed accept, as when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts the next connection, without delayed sends. After an error it waits a little and goes on.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream)) {
            Ok(stream) => return stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
