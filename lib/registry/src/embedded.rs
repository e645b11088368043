//! A small registry over real sockets, for demonstrations and tests: it serves what it was given, at the rate of an uplink,
//! counts what left it, and misbehaves when told to.
//!
//! Not a registry to run: content lies in memory, nothing can be pushed, there is no TLS.

mod body;
mod content;
mod gate;
mod serve;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shoal_meta::Digest;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub use content::{Content, Image, Layer};

use self::body::Limiter;
use self::gate::Gate;

/// Requests remembered for [`EmbeddedRegistry::requests`]; the oldest are forgotten first.
pub const REQUESTS_REMEMBERED_MAX: usize = 10_000;

/// How the registry behaves.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Bytes per second that leave in bodies, over all connections together. Default: no limit.
    pub rate: Option<u64>,
    /// How long each answer waits before its headers, as a far registry's would. Default: not at all.
    pub latency: Duration,
    /// What a client must prove. Default: nothing.
    pub auth: Option<Auth>,
    /// Where blobs are: requests for them are answered with a redirect to this URL and the same path. Default: here.
    pub redirect_blobs: Option<String>,
    /// Answers 200 with the whole blob to any range. Default: false.
    pub ignore_range: bool,
}

/// Who may read, and how a client proves it.
#[derive(Debug, Clone)]
pub enum Auth {
    /// A user and a password with each request.
    Basic {
        /// The user's name.
        user: String,
        /// The user's password.
        password: String,
    },
    /// A token, which this registry's own token service at `/token` gives out.
    Token {
        /// The user and password for a token; the password is good as a refresh token too. `None` gives a token to anybody.
        user: Option<(String, String)>,
        /// How long a token is good.
        lifetime: Duration,
    },
}

/// What to do wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Closes the connection after this many bytes of the body.
    Cut {
        /// Bytes sent before.
        after: u64,
    },
    /// Falls silent after this many bytes of the body, the connection open.
    Stall {
        /// Bytes sent before.
        after: u64,
    },
    /// Ends the body after this many bytes as if it were whole, with no length declared.
    EndEarly {
        /// Bytes sent before.
        after: u64,
    },
    /// Declares a body longer than it is, and closes the connection at its end.
    DeclareMore {
        /// Bytes declared that there are not.
        extra: u64,
    },
    /// Answers with this status and an error body.
    Status {
        /// The status.
        status: u16,
        /// The value of `Retry-After`, in seconds.
        retry_after: Option<u64>,
    },
    /// Sends wrong bytes, of the right number.
    Corrupt,
    /// Takes the request and never answers.
    Silence,
    /// Leaves a header out of the answer.
    WithoutHeader {
        /// The header's name, in lower case.
        name: &'static str,
    },
    /// Adds a header to the answer, or replaces it.
    WithHeader {
        /// The header's name, in lower case.
        name: &'static str,
        /// Its value.
        value: &'static str,
    },
}

/// A request as it came in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recorded {
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Accept` header.
    pub accept: Option<String>,
    /// The `Accept-Encoding` header.
    pub accept_encoding: Option<String>,
}

/// What left the registry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Per blob.
    pub blobs: BTreeMap<Digest, BlobCount>,
    /// GET requests for manifests.
    pub manifest_gets: u64,
    /// HEAD requests for manifests.
    pub manifest_heads: u64,
    /// Tokens given out.
    pub tokens: u64,
}

/// What left the registry of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlobCount {
    /// GET requests answered with bytes.
    pub gets: u64,
    /// HEAD requests.
    pub heads: u64,
    /// Bytes of bodies handed to the connection.
    pub bytes: u64,
}

impl Counters {
    /// Bytes of all blobs together.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        self.blobs.values().map(|blob| blob.bytes).sum()
    }
}

/// A running registry. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct EmbeddedRegistry {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl EmbeddedRegistry {
    /// Listens at an address; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address cannot be listened at.
    pub async fn start(addr: SocketAddr, content: Content, options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let limiter = options.rate.map(Limiter::new);
        let gate = options.auth.clone().map(Gate::new);
        let shared = Arc::new(Shared { content, options, limiter, gate, state: Mutex::default() });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { addr, shared, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its URL, `http://address:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What it serves.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.shared.content
    }

    /// What left it until now.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.state().counters.clone()
    }

    /// The requests it got, oldest first, at most the last [`REQUESTS_REMEMBERED_MAX`].
    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.state().requests.iter().cloned().collect()
    }

    /// Does something wrong with the next `times` requests that match: whose `METHOD /path` contains the text. Several
    /// faults for one request are used up in the order they were injected.
    pub fn inject(&self, matching: &str, times: u32, fault: Fault) {
        self.shared.state().faults.push(Rule { matching: matching.to_owned(), times, fault });
    }
}

impl Drop for EmbeddedRegistry {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Debug)]
struct Shared {
    content: Content,
    options: Options,
    limiter: Option<Limiter>,
    gate: Option<Gate>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counters: Counters,
    requests: VecDeque<Recorded>,
    faults: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    matching: String,
    times: u32,
    fault: Fault,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn record(&mut self, request: Recorded) {
        if self.requests.len() >= REQUESTS_REMEMBERED_MAX {
            self.requests.pop_front();
        }
        self.requests.push_back(request);
    }

    /// The fault for a request, used up by one.
    fn fault_for(&mut self, request: &str) -> Option<Fault> {
        let at = self.faults.iter().position(|rule| request.contains(&rule.matching))?;
        let fault = self.faults[at].fault.clone();
        self.faults[at].times = self.faults[at].times.saturating_sub(1);
        if self.faults[at].times == 0 {
            self.faults.remove(at);
        }
        Some(fault)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this future, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no delay could not be set");
    }
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, std::convert::Infallible>(serve::answer(&shared, request).await) }
    });
    // An error is a client that left, or a fault that was asked for.
    if let Err(error) =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await
    {
        tracing::trace!(%error, "connection ended");
    }
}
