//! A front before the upstream that misbehaves when told to: it hands requests on to the real registry, and does wrong to
//! those of chosen repositories. Started by the tests of faults on a node of its own; knows nothing of Shoal.
//!
//! One thread a connection, one request a connection: what a client does next is seen as a new request.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::node::Node;
use crate::registry::{HOST, PORT, TLS_PORT};
use crate::tls::Identity;

/// The longest head of a request or an answer.
const HEAD_BYTES_MAX: u64 = 64 * 1024;
/// Bytes of a body moved at a time.
const COPY_BYTES: usize = 64 * 1024;

/// What is done wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is taken and never answered: a black hole.
    Silence,
    /// The body falls silent after so many bytes, and the connection stays.
    Stall(u64),
    /// After so many bytes of the body one comes each second.
    Trickle(u64),
    /// The connection is closed after so many bytes of the body.
    Cut(u64),
    /// So many bytes more are declared than there are.
    DeclareMore(u64),
    /// So many bytes fewer are declared, and sent, than there are.
    DeclareLess(u64),
    /// Bytes of the right number, and wrong ones among them.
    Corrupt,
    /// It is answered with this status, and so many seconds in `Retry-After`.
    Status(u16, Option<u32>),
    /// It needs a token, and a token is good for this long, whatever its service says.
    Tokens(Duration),
}

/// Which requests a fault is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Manifests and blobs.
    All,
    /// Manifests alone.
    Manifests,
    /// Blobs alone.
    Blobs,
}

/// A fault for the requests of a repository.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// What is done wrong.
    pub fault: Fault,
    /// With which requests.
    pub part: Part,
    /// With how many GET requests of each path, from the first; `None` for all of them.
    pub times: Option<u32>,
}

/// The front. Dropping it closes its connections.
#[derive(Debug)]
pub struct Faulty {
    node: Arc<Node>,
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
}

#[derive(Debug)]
struct Shared {
    backend: SocketAddr,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rules: HashMap<String, Rule>,
    /// How often each path was asked for by GET.
    asked: HashMap<String, u32>,
    /// Tokens given, and when.
    tokens: Vec<Instant>,
    connections: Vec<TcpStream>,
}

impl Faulty {
    /// Listens on the ports of a registry on `node`, with TLS too if there is an identity, and hands on to the registry on
    /// `upstream`.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(node: &Arc<Node>, upstream: &Node, identity: Option<&Identity>) -> Result<Self> {
        let shared = Arc::new(Shared { backend: SocketAddr::from((upstream.ip(), PORT)), state: Mutex::default() });
        let mut listeners = vec![listen(node, PORT, &shared, None)?];
        if let Some(identity) = identity {
            listeners.push(listen(node, TLS_PORT, &shared, Some(tls_config(identity)?))?);
        }
        Ok(Self { node: Arc::clone(node), shared, listeners })
    }

    /// The node it runs on.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Does wrong to a repository from now on, in place of what was done before.
    pub fn set(&self, repository: &str, rule: Rule) {
        self.shared.state().rules.insert(repository.to_owned(), rule);
    }

    /// Refuses every connection, and breaks those there are; or takes them again.
    ///
    /// # Errors
    /// When the kernel has no iptables.
    pub fn set_down(&self, down: bool) -> Result<()> {
        let change = if down { "-I" } else { "-D" };
        let ports = format!("{PORT},{TLS_PORT}");
        let rule = ["INPUT", "-p", "tcp", "-m", "multiport", "--dports", &ports];
        let reject = ["-j", "REJECT", "--reject-with", "tcp-reset"];
        self.node.run("iptables", &[&["-w", change][..], &rule, &reject].concat()).map(drop)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        for listener in &self.listeners {
            let _gone_already = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        for connection in &self.shared.state().connections {
            let _gone_already = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to do wrong with a request.
    fn fault_for(&self, request: &Request) -> Option<Fault> {
        let mut state = self.state();
        let (repository, part) = request.repository()?;
        let rule = *state.rules.get(repository)?;
        if !matches!((rule.part, part), (Part::All, _) | (Part::Manifests, "manifests") | (Part::Blobs, "blobs")) {
            return None;
        }
        if let Fault::Tokens(lifetime) = rule.fault {
            let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")?.parse().ok());
            let given = token.and_then(|number: usize| state.tokens.get(number));
            return given.is_none_or(|given| given.elapsed() > lifetime).then_some(rule.fault);
        }
        let Some(times) = rule.times else { return Some(rule.fault) };
        if request.method != "GET" {
            return None;
        }
        let asked = state.asked.entry(request.path.clone()).or_default();
        *asked += 1;
        (*asked <= times).then_some(rule.fault)
    }

    fn token(&self) -> usize {
        let mut state = self.state();
        state.tokens.push(Instant::now());
        state.tokens.len() - 1
    }
}

/// Serves each connection of a port on a thread of its own, in the node's network.
fn listen(node: &Node, port: u16, shared: &Arc<Shared>, tls: Option<Arc<ServerConfig>>) -> Result<TcpListener> {
    let shared = Arc::clone(shared);
    node.listen(port, move |listener| {
        let accepting = listener.try_clone()?;
        std::thread::spawn(move || {
            for stream in accepting.incoming() {
                let Ok(stream) = stream else { return };
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                // A client that leaves, or a fault, ends a connection: neither is an error of the front.
                std::thread::spawn(move || _ = connection(&shared, stream, tls));
            }
        });
        Ok(listener)
    })
}

fn tls_config(identity: &Identity) -> Result<Arc<ServerConfig>> {
    let certificates = CertificateDer::pem_file_iter(&identity.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&identity.key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_no_client_auth().with_single_cert(certificates, key)?))
}

fn connection(shared: &Shared, stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    {
        let mut state = shared.state();
        state.connections.retain(|open| open.peer_addr().is_ok());
        state.connections.push(stream.try_clone()?);
    }
    let closing = stream.try_clone()?;
    let served = match tls {
        None => serve(shared, BufReader::new(stream)),
        Some(config) => {
            let session = ServerConnection::new(config).map_err(io::Error::other)?;
            serve(shared, BufReader::new(StreamOwned::new(session, stream)))
        }
    };
    // Its copy in the list would hold it open.
    let _gone_already = closing.shutdown(Shutdown::Both);
    served
}

/// The head of a request or an answer.
struct Head {
    first: String,
    headers: Vec<(String, String)>,
}

struct Request {
    method: String,
    /// With its query.
    path: String,
    head: Head,
}

impl Head {
    fn read(reader: &mut impl BufRead) -> io::Result<Self> {
        let mut lines = reader.take(HEAD_BYTES_MAX).lines();
        let mut next = || lines.next().unwrap_or(Err(io::ErrorKind::UnexpectedEof.into()));
        let first = next()?;
        let mut headers = Vec::new();
        loop {
            let line = next()?;
            let Some((name, value)) = line.split_once(':') else { return Ok(Self { first, headers }) };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    fn write(&self, writer: &mut impl Write) -> io::Result<()> {
        let headers = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>();
        write!(writer, "{}\r\n{headers}\r\n", self.first)?;
        writer.flush()
    }
}

impl Request {
    fn read(reader: &mut impl BufRead) -> io::Result<Self> {
        let head = Head::read(reader)?;
        let mut words = head.first.split(' ').map(str::to_owned);
        let (method, path) = words.next().zip(words.next()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { method, path, head })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.get(name)
    }

    /// The repository, and "manifests", "blobs" or whatever else of it is asked for.
    fn repository(&self) -> Option<(&str, &str)> {
        let (rest, _what) = self.path.strip_prefix("/v2/")?.rsplit_once('/')?;
        rest.rsplit_once('/')
    }
}

fn serve<S: Read + Write>(shared: &Shared, mut client: BufReader<S>) -> io::Result<()> {
    let request = Request::read(&mut client)?;
    if request.path.starts_with("/token") {
        let body = format!("{{\"token\":\"{}\",\"expires_in\":300}}", shared.token());
        return answer(client.get_mut(), "200 OK", &[("content-type", "application/json")], &body);
    }
    match shared.fault_for(&request) {
        Some(Fault::Silence) => hold(&mut client),
        Some(Fault::Status(status, retry_after)) => {
            let wait = retry_after.map(|seconds| seconds.to_string());
            let headers = wait.iter().map(|wait| ("retry-after", wait.as_str())).collect::<Vec<_>>();
            answer(client.get_mut(), &format!("{status} As Asked"), &headers, "{\"errors\":[]}")
        }
        Some(Fault::Tokens(_)) => {
            let name = request.repository().map_or("", |(repository, _)| repository);
            let challenge =
                format!("Bearer realm=\"http://{HOST}/token\",service=\"{HOST}\",scope=\"repository:{name}:pull\"");
            answer(client.get_mut(), "401 Unauthorized", &[("www-authenticate", &challenge)], "{\"errors\":[]}")
        }
        fault => hand_on(shared.backend, request, &mut client, fault),
    }
}

fn answer(client: &mut impl Write, status: &str, headers: &[(&str, &str)], body: &str) -> io::Result<()> {
    let mut head = Head { first: format!("HTTP/1.1 {status}"), headers: Vec::new() };
    headers.iter().for_each(|(name, value)| head.set(name, value));
    head.set("content-length", &body.len().to_string());
    head.set("connection", "close");
    head.write(client)?;
    client.write_all(body.as_bytes())?;
    client.flush()
}

/// Keeps the connection, and says nothing, until the client leaves.
fn hold(client: &mut impl Read) -> io::Result<()> {
    io::copy(client, &mut io::sink()).map(drop)
}

/// Asks the registry and gives its answer to the client, with the body as the fault has it.
fn hand_on<S: Read + Write>(
    backend: SocketAddr,
    mut request: Request,
    client: &mut BufReader<S>,
    fault: Option<Fault>,
) -> io::Result<()> {
    let mut registry = BufReader::new(TcpStream::connect(backend)?);
    request.head.set("connection", "close");
    request.head.write(registry.get_mut())?;
    let mut head = Head::read(&mut registry)?;
    head.set("connection", "close");
    let length: u64 = head.get("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    let has_body = request.method == "GET" && matches!(head.first.split(' ').nth(1), Some("200" | "206"));
    let Some(fault) = fault.filter(|_| has_body) else {
        head.write(client.get_mut())?;
        return send(&mut registry, client.get_mut(), length);
    };
    if let Fault::DeclareMore(more) = fault {
        head.set("content-length", &(length + more).to_string());
    }
    if let Fault::DeclareLess(less) = fault {
        head.set("content-length", &length.saturating_sub(less).to_string());
    }
    head.write(client.get_mut())?;
    match fault {
        Fault::Stall(after) => {
            send(&mut registry, client.get_mut(), after.min(length))?;
            if after < length { hold(client) } else { Ok(()) }
        }
        Fault::Trickle(after) => {
            send(&mut registry, client.get_mut(), after.min(length))?;
            for _ in after..length {
                std::thread::sleep(Duration::from_secs(1));
                send(&mut registry, client.get_mut(), 1)?;
            }
            Ok(())
        }
        Fault::Cut(after) => send(&mut registry, client.get_mut(), after.min(length)),
        Fault::Corrupt => {
            let mut first = [0];
            registry.read_exact(&mut first)?;
            client.get_mut().write_all(&[!first[0]])?;
            send(&mut registry, client.get_mut(), length - 1)
        }
        Fault::DeclareMore(_) => send(&mut registry, client.get_mut(), length),
        Fault::DeclareLess(less) => send(&mut registry, client.get_mut(), length.saturating_sub(less)),
        Fault::Silence | Fault::Status(..) | Fault::Tokens(_) => Ok(()),
    }
}

/// Sends so many bytes of a body.
fn send(from: &mut impl Read, to: &mut impl Write, length: u64) -> io::Result<()> {
    let mut from = from.take(length);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return to.flush();
        }
        to.write_all(&buffer[..count])?;
        to.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> Request {
        Request::read(&mut format!("{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer 0\r\n\r\nrest").as_bytes())
            .unwrap()
    }

    fn shared(rule: Rule) -> Shared {
        let shared = Shared { backend: SocketAddr::from(([127, 0, 0, 1], 1)), state: Mutex::default() };
        shared.state().rules.insert("org/app".to_owned(), rule);
        shared
    }

    #[test]
    fn a_fault_is_for_its_repository_its_part_and_its_times() {
        let rule = Rule { fault: Fault::Corrupt, part: Part::Blobs, times: Some(1) };
        let shared = shared(rule);
        let fault = |line| shared.fault_for(&request(line));
        assert_eq!(fault("GET /v2/org/app/manifests/1"), None);
        assert_eq!(fault("GET /v2/org/other/blobs/sha256:ab"), None);
        assert_eq!(fault("HEAD /v2/org/app/blobs/sha256:ab"), None);
        assert_eq!(fault("GET /v2/org/app/blobs/sha256:ab"), Some(Fault::Corrupt));
        assert_eq!(fault("GET /v2/org/app/blobs/sha256:ab"), None);
        assert_eq!(fault("GET /v2/org/app/blobs/sha256:cd"), Some(Fault::Corrupt));
    }

    #[test]
    fn a_token_is_good_until_its_time_is_over() {
        for (lifetime, good) in [(Duration::from_secs(60), true), (Duration::ZERO, false)] {
            let shared = shared(Rule { fault: Fault::Tokens(lifetime), part: Part::All, times: None });
            let fault = || shared.fault_for(&request("GET /v2/org/app/manifests/1")).is_none();
            assert!(!fault(), "no token was given");
            shared.token();
            assert_eq!(fault(), good);
        }
    }
}
