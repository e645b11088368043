//! Who has no certificate of the cluster's authority reads nothing from any port of any part but health, metrics and status.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion, version};
use shoal_e2e::cluster::{Cluster, Plan, pull_blob};
use shoal_e2e::harness::{Bench, Test, note};
use shoal_e2e::image::Recipe;
use shoal_e2e::node::{Link, Node, Rate};
use shoal_e2e::program::Program;
use shoal_e2e::registry::HOST;
use shoal_meta::{PeerId, PeerInfo, Role, Topology};
use shoal_swarm::wire::{self, Message};

pub(crate) const TESTS: &[Test] = &[Test {
    name: "without_a_certificate_nothing_is_readable_on_any_port_but_health_metrics_and_status",
    needs: &["ss", "sha256sum"],
    run: strangers,
}];

/// What nobody may read who has no certificate.
const REPOSITORY: &str = "secret/app";
/// Where anybody may read health, metrics and status.
const ADMIN_PORTS: [u16; 3] = [5052, 7502, 7402];
/// How long a port may take to answer or to hang up.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A TLS alert as it goes over the wire (RFC 8446, 5.1 and 6): what a port says to one with whom it does not talk.
const ALERT: (u8, usize) = (21, 7);

/// How somebody comes to a port.
enum Guise {
    Plain,
    Tls(Arc<ClientConfig>),
}

/// A port that is open to other nodes, and the name that the certificate behind it has.
struct Port {
    address: SocketAddr,
    part: &'static str,
}

fn strangers(bench: &Bench) -> Result<()> {
    let image = bench.image(&Recipe::Random { layers_mib: vec![2], seed: 52 })?;
    let plan = Plan { certificates: true, ..Plan::equal(2, Rate::mbit(400)) };
    let mut cluster = Cluster::start(bench, plan, &image, REPOSITORY)?;
    let layer = &image.layers[1].digest;
    for agent in &cluster.agents {
        pull_blob(&agent.node, REPOSITORY, layer, TIMEOUT)?;
    }
    let stranger = cluster.add_node("stranger", Link::default())?;
    let ours = cluster.program().certificates("agent").context("certificates")?;
    let theirs = Program::find()?.with_certificates(&stranger.dir().join("certificates"))?;
    let theirs = theirs.certificates("agent").context("certificates")?;
    let guises = [
        ("plaintext", Guise::Plain),
        ("TLS 1.2 without a certificate", tls(&ours, None, &version::TLS12)?),
        ("TLS without a certificate", tls(&ours, None, &version::TLS13)?),
        ("TLS with a certificate of another authority", tls(&ours, Some(&theirs), &version::TLS13)?),
    ];
    let member = tls(&ours, Some(&ours), &version::TLS13)?;

    let (mut closed, mut open) = (0, 0);
    let parts = [
        (&cluster.agents[0].node, "agent.shoal", [5051, 5052].as_slice()),
        (&cluster.origin_node, "origin.shoal", &[7500, 7501, 7502, 7503]),
        (&cluster.tracker_node, "tracker.shoal", &[7400, 7402]),
    ];
    for (node, part, expected) in parts {
        let ports = listening(node)?;
        let outside = ports.iter().filter(|(_, loopback)| !loopback).map(|(port, _)| *port).collect::<Vec<_>>();
        ensure!(outside == expected, "{part} listens on {outside:?}");
        for (port, loopback) in ports {
            let port = Port { address: (node.ip(), port).into(), part };
            stranger.in_network(|| {
                if loopback {
                    let refused = TcpStream::connect_timeout(&port.address, TIMEOUT).is_err();
                    ensure!(refused, "{} is open to other nodes", port.address);
                } else if ADMIN_PORTS.contains(&port.address.port()) {
                    open += 1;
                    check_admin(&port)?;
                } else {
                    closed += 1;
                    check_closed(&port, &guises, &member)?;
                }
                Ok(())
            })?;
        }
    }
    note(format!(
        "{closed} ports say nothing to {} kinds of strangers; {open} tell health, metrics and status",
        guises.len()
    ));
    Ok(())
}

/// The TCP ports that something on a node listens on, and whether the node alone can reach them.
fn listening(node: &Node) -> Result<Vec<(u16, bool)>> {
    let listed = node.run("ss", &["-Hltn"])?;
    let addresses = listed.lines().filter_map(|line| line.split_whitespace().nth(3)?.rsplit_once(':'));
    let ports = addresses.map(|(address, port)| Ok((port.parse()?, address == "127.0.0.1")));
    let mut ports = ports.collect::<Result<Vec<_>>>()?;
    ports.sort_unstable();
    Ok(ports)
}

/// Nothing is read by a stranger, whatever it says; one of the cluster gets an answer to one of the same words.
fn check_closed(port: &Port, guises: &[(&str, Guise)], member: &Guise) -> Result<()> {
    let mut answers = 0;
    for words in utterances() {
        for (guise, stranger) in guises {
            let said = say(port, stranger, &words)?;
            let nothing = match stranger {
                Guise::Plain => said.is_empty() || (said[0] == ALERT.0 && said.len() <= ALERT.1),
                Guise::Tls(_) => said.is_empty(),
            };
            ensure!(nothing, "{} said to {guise}: {:?}", port.address, String::from_utf8_lossy(&said));
        }
        answers += usize::from(!say(port, member, &words)?.is_empty());
    }
    ensure!(answers > 0, "{} answers nobody", port.address);
    Ok(())
}

/// Health, metrics and status are told, without the names of repositories, and nothing else.
fn check_admin(port: &Port) -> Result<()> {
    for (path, status) in [
        ("/healthz", "200"),
        ("/readyz", "200"),
        ("/metrics", "200"),
        ("/status", "200"),
        ("/v2/", "404"),
        (&format!("/v2/{REPOSITORY}/manifests/1"), "404"),
    ] {
        let answer = say(port, &Guise::Plain, &get(path))?;
        let answer = String::from_utf8_lossy(&answer);
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{}{path}: {answer}", port.address);
        ensure!(!answer.contains(REPOSITORY), "{}{path} names the repository: {answer}", port.address);
    }
    Ok(())
}

/// What is said over one connection after some words: all of it when it ends, or the first bytes of one that stays.
fn say(port: &Port, guise: &Guise, words: &[u8]) -> Result<Vec<u8>> {
    let stream = TcpStream::connect_timeout(&port.address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    match guise {
        Guise::Plain => hear(stream, words),
        Guise::Tls(config) => {
            let name = ServerName::try_from(port.part)?;
            hear(StreamOwned::new(ClientConnection::new(Arc::clone(config), name)?, stream), words)
        }
    }
}

fn hear(mut stream: impl Read + Write, words: &[u8]) -> Result<Vec<u8>> {
    // A port that hangs up meanwhile may have said something before.
    let _ = stream.write_all(words).and_then(|()| stream.flush());
    let (mut heard, mut bytes) = (Vec::new(), [0; 16 * 1024]);
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(heard),
            Ok(count) => heard.extend(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                bail!("it neither answers nor hangs up")
            }
            Err(_) => return Ok(heard),
        }
        // One that talks does not hang up.
        if heard.len() > ALERT.1 && !heard.starts_with(b"HTTP/1.1") {
            return Ok(heard);
        }
    }
}

/// The first words of those that ports expect: HTTP, gRPC (RFC 9113, 3.4), and the peer wire.
fn utterances() -> [Vec<u8>; 3] {
    let mut settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    settings.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    let (id, address) = (PeerId([5; 16]), SocketAddr::from(([10, 77, 0, 99], 5051)));
    let peer = Box::new(PeerInfo { id, address, role: Role::Agent, topology: Topology::default() });
    let mut hello = Vec::new();
    wire::encode_control(&Message::Hello { version: wire::VERSION, peer }, &mut hello);
    [get(&format!("/v2/{REPOSITORY}/manifests/1?ns={HOST}")), settings, hello]
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes()
}

/// TLS as one who trusts the cluster's authority, with the certificate in a directory or none.
fn tls(ours: &Path, own: Option<&Path>, version: &'static SupportedProtocolVersion) -> Result<Guise> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ours.join("ca.crt"))?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version])?;
    let config = config.with_root_certificates(roots);
    let config = match own {
        Some(own) => {
            let chain = vec![CertificateDer::from_pem_file(own.join("tls.crt"))?];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(own.join("tls.key"))?)?
        }
        None => config.with_no_client_auth(),
    };
    Ok(Guise::Tls(Arc::new(config)))
}
