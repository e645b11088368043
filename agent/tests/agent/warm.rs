//! Committed blobs, which the kernel sends from their files, as bytes on a client's socket.

use shoal_agent::Running;
use shoal_meta::Digest;
use shoal_registry::embedded::Options;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use crate::rig::{DEADLINE, Rig, blob, eventually, fetch, get};

/// More than the kernel buffers between two sockets, and no multiple of a slice.
const LENGTH: usize = (16 << 20) + 12_345;

/// A connection to the front.
struct Wire(BufReader<TcpStream>);

impl Wire {
    async fn connect(agent: &Running) -> Self {
        Self(BufReader::new(TcpStream::connect(agent.front_addr()).await.unwrap()))
    }

    /// Of a client whose kernel takes little at a time.
    async fn narrow(agent: &Running) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8 * 1024).unwrap();
        Self(BufReader::with_capacity(3_000, socket.connect(agent.front_addr()).await.unwrap()))
    }

    async fn ask(&mut self, request: &str) {
        self.0.write_all(request.as_bytes()).await.unwrap();
    }

    /// The head of an answer, and how long its body is.
    async fn head(&mut self) -> (String, usize) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).await.unwrap(), 0, "{head:?}");
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let length = length.parse().unwrap();
        (head, length)
    }

    async fn answer(&mut self) -> (String, Vec<u8>) {
        let (head, length) = self.head().await;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        (head, body)
    }
}

fn request(method: &str, digest: &Digest, headers: &str) -> String {
    format!("{method} {} HTTP/1.1\r\nhost: x\r\n{headers}\r\n", blob(digest))
}

/// An agent that holds a blob of [`LENGTH`] bytes.
async fn warm() -> (Rig, Running, Digest, Vec<u8>) {
    let rig = Rig::with_layers(Options::default(), &[LENGTH]).await;
    let agent = rig.agent(|_| {}).await;
    let layer = rig.image.layers[0];
    assert!(get(&agent, &blob(&layer)).await.whole);
    eventually("the blob is whole", || agent.status().blobs == 1).await;
    let content = rig.content(&layer).to_vec();
    (rig, agent, layer, content)
}

/// A test's client is given up when it takes too long.
async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("an end in time")
}

/// Requests of all kinds, each with what its answer begins with and its body, if that is bytes of the blob.
fn requests(layer: &Digest, content: &[u8]) -> Vec<(String, &'static str, Vec<u8>)> {
    let length = content.len();
    let whole = (request("GET", layer, ""), "HTTP/1.1 200", content.to_vec());
    let range = |start: usize, end: usize| {
        let header = format!("range: bytes={start}-{}\r\n", end - 1);
        (request("GET", layer, &header), "HTTP/1.1 206", content[start..end].to_vec())
    };
    vec![
        whole.clone(),
        range(1, length),
        range(262_143, 262_145),
        range(1_000_003, 1_000_003 + 700_001),
        range(length - 40_000, length),
        (request("GET", layer, &format!("range: bytes={length}-\r\n")), "HTTP/1.1 416", Vec::new()),
        whole,
    ]
}

#[tokio::test]
async fn requests_one_after_another_on_one_connection_get_exact_bytes() {
    let (_rig, agent, layer, content) = warm().await;
    let mut wire = Wire::connect(&agent).await;
    for (request, status, expected) in requests(&layer, &content) {
        wire.ask(&request).await;
        let (head, body) = in_time(wire.answer()).await;
        assert!(head.starts_with(status), "{request} {head}");
        assert!(expected.is_empty() || body == expected, "{request} {head}");
    }
    wire.ask(&request("HEAD", &layer, "")).await;
    assert_eq!(in_time(wire.head()).await.1, content.len());
    wire.ask(&request("GET", &layer, "range: bytes=0-9\r\n")).await;
    assert!(in_time(wire.answer()).await.1 == content[..10]);
}

#[tokio::test]
async fn pipelined_requests_get_exact_bytes_in_order() {
    let (_rig, agent, layer, content) = warm().await;
    let mut wire = Wire::connect(&agent).await;
    let requests = requests(&layer, &content);
    let all: String = requests.iter().map(|(request, ..)| request.as_str()).collect();
    wire.ask(&all).await;
    for (request, status, expected) in requests {
        let (head, body) = in_time(wire.answer()).await;
        assert!(head.starts_with(status), "{request} {head}");
        assert!(expected.is_empty() || body == expected, "{request} {head}");
    }
}

#[tokio::test]
async fn long_ranges_of_a_multipart_answer_are_exact() {
    let (_rig, agent, layer, content) = warm().await;
    let mut wire = Wire::connect(&agent).await;
    let ranges = [7..900_007, 2_000_000..2_000_001, 3_000_001..3_032_769, 5_000_000..LENGTH];
    let list: Vec<_> = ranges.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
    wire.ask(&request("GET", &layer, &format!("range: bytes={}\r\n", list.join(",")))).await;
    let (head, body) = in_time(wire.answer()).await;
    let boundary = head.lines().find_map(|line| line.split_once("boundary=")).unwrap().1;
    let mut rest = &body[..];
    for (range, name) in ranges.into_iter().zip(list) {
        let text = format!(
            "\r\n--{boundary}\r\ncontent-type: application/octet-stream\r\ncontent-range: bytes {name}/{LENGTH}\r\n\r\n"
        );
        rest = rest.strip_prefix(text.as_bytes()).expect("the headers of a range");
        rest = rest.strip_prefix(&content[range]).expect("the bytes of a range");
    }
    assert_eq!(rest, format!("\r\n--{boundary}--\r\n").as_bytes());
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_exact_bytes() {
    let (_rig, agent, layer, content) = warm().await;
    let mut wire = Wire::narrow(&agent).await;
    wire.ask(&request("GET", &layer, "")).await;
    // Others take turns on the agent's threads meanwhile.
    let mut other = Wire::connect(&agent).await;
    other.ask(&request("GET", &layer, "")).await;
    let (slow, fast) = in_time(async { tokio::join!(wire.answer(), other.answer()) }).await;
    assert!(slow.1 == content && fast.1 == content);
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_body_leaves_nothing_behind() {
    let (_rig, agent, layer, content) = warm().await;
    for _ in 0..8 {
        let mut wire = Wire::narrow(&agent).await;
        wire.ask(&request("GET", &layer, "")).await;
        in_time(wire.head()).await;
        let mut some = vec![0; 300_000];
        in_time(wire.0.read_exact(&mut some)).await.unwrap();
        assert!(some == content[..300_000]);
    }
    let metrics = format!("http://{}/metrics", agent.admin_addr());
    in_time(async { while !fetch(&metrics).await.contains("\nshoal_agent_connections 0\n") {} }).await;
    assert!(get(&agent, &blob(&layer)).await.body == content);
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_exact_bytes_to_the_end() {
    let (_rig, agent, layer, content) = warm().await;
    let mut wire = Wire::connect(&agent).await;
    wire.ask(&format!("GET {} HTTP/1.0\r\n\r\n", blob(&layer))).await;
    let mut all = Vec::new();
    in_time(wire.0.read_to_end(&mut all)).await.unwrap();
    assert!(all.starts_with(b"HTTP/1.0 200") && all.ends_with(&content));
}

#[tokio::test]
async fn an_error_tells_its_length() {
    let (_rig, agent, ..) = warm().await;
    let mut wire = Wire::connect(&agent).await;
    wire.ask(&request("GET", &Digest::sha256_of(b"unknown"), "")).await;
    let (head, body) = in_time(wire.answer()).await;
    assert!(head.starts_with("HTTP/1.1 404") && body.ends_with(b"}]}"), "{head}");
}
