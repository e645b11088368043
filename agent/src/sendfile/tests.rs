//! The outlet by itself, and under hyper with bodies that are slices of a file throughout.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;

use futures_util::stream;
use http::Response;
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const LENGTH: u32 = 100_000;

/// A file of so many bytes that differ, as a region.
fn region(length: u32) -> Region {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content(length)).unwrap();
    Region { file: Arc::new(file), offset: 0, length }
}

fn content(length: u32) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// An outlet and what is connected to it.
async fn outlet() -> (Outlet, Slots, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let slots = Slots::default();
    (Outlet::new(listener.accept().await.unwrap().0, slots.clone()), slots, client)
}

/// Writes runs as hyper does, and gives what the client got.
async fn written(mut outlet: Outlet, mut client: TcpStream, mut runs: Vec<Run>) -> Vec<u8> {
    let write = async move {
        while !runs.is_empty() {
            let mut slices = [IoSlice::new(&[]); 8];
            let filled =
                runs.iter().zip(&mut slices).map(|(run, slice)| run.chunks_vectored(std::slice::from_mut(slice)));
            let filled = filled.sum();
            let mut sent = outlet.write_vectored(&slices[..filled]).await.unwrap();
            for run in &mut runs {
                let of_this = sent.min(run.remaining());
                run.advance(of_this);
                sent -= of_this;
            }
            runs.retain(Buf::has_remaining);
        }
    };
    let read = async {
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        got
    };
    tokio::join!(write, read).1
}

#[tokio::test]
async fn runs_in_memory_and_in_files_leave_in_their_order() {
    let (outlet, slots, client) = outlet().await;
    let file = region(LENGTH);
    let tail = Region { offset: 50_000, length: 50_000, ..file.clone() };
    let mut runs = vec![Run::Bytes("before".into())];
    runs.extend([file, tail].map(|region| Run::File(slots.place(region).unwrap())));
    runs.push(Run::Bytes("after".into()));
    let content = content(LENGTH);
    let expected = [b"before", &content[..], &content[50_000..], b"after"].concat();
    assert!(written(outlet, client, runs).await == expected);
}

#[tokio::test]
async fn a_slice_can_be_sent_piecemeal() {
    let (mut outlet, slots, mut client) = outlet().await;
    let mut slice = slots.place(region(LENGTH)).unwrap();
    let mut got = Vec::new();
    for count in [1, 4096, 7, 60_000].into_iter().cycle() {
        let Range { start, end } = slice.unsent;
        let sent = outlet.write(&PLACEHOLDER[start..end.min(start + count)]).await.unwrap();
        let mut some = vec![0; sent];
        client.read_exact(&mut some).await.unwrap();
        got.extend(some);
        slice.advance(sent);
        if !slice.has_remaining() {
            break;
        }
    }
    assert!(got == content(LENGTH));
}

#[tokio::test]
async fn a_placeholder_that_no_slice_is_in_is_an_error() {
    let (mut outlet, slots, _client) = outlet().await;
    assert!(outlet.write(&PLACEHOLDER[..10]).await.is_err());
    let slice = slots.place(region(LENGTH)).unwrap();
    assert!(outlet.write(&PLACEHOLDER[..10]).await.is_ok());
    let past = LENGTH as usize - 1..LENGTH as usize + 1;
    assert!(outlet.write(&PLACEHOLDER[past]).await.is_err());
    drop(slice);
    assert!(outlet.write(&PLACEHOLDER[..10]).await.is_err());
}

#[tokio::test]
async fn a_slice_of_another_connection_is_an_error() {
    let (mut outlet, _slots, _client) = outlet().await;
    let slice = Slots::default().place(region(LENGTH)).unwrap();
    assert!(outlet.write(&PLACEHOLDER[slice.unsent.clone()]).await.is_err());
}

#[tokio::test]
async fn a_file_that_is_too_short_is_an_error() {
    let (mut outlet, slots, _client) = outlet().await;
    let outside = Region { offset: u64::from(LENGTH), ..region(LENGTH) };
    let slice = slots.place(outside).unwrap();
    let error = outlet.write(&PLACEHOLDER[slice.unsent.clone()]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

/// `/proc/self/auxv` can be read, but the kernel refuses to send it.
#[tokio::test]
async fn what_the_kernel_does_not_send_is_read() {
    let (mut outlet, slots, mut client) = outlet().await;
    let content = std::fs::read("/proc/self/auxv").unwrap();
    let file = Arc::new(File::open("/proc/self/auxv").unwrap());
    let slice = slots.place(Region { file, offset: 0, length: LENGTH }).unwrap();
    let sent = outlet.write(&PLACEHOLDER[slice.unsent.clone()]).await.unwrap();
    let mut got = vec![0; sent];
    client.read_exact(&mut got).await.unwrap();
    assert!(got == content[..sent]);
}

#[test]
fn a_slice_finds_no_room_while_every_slot_is_taken() {
    let (slots, region) = (Slots::default(), region(LENGTH));
    let mut taken: Vec<_> = (0..SLOTS).map(|_| slots.place(region.clone()).unwrap()).collect();
    assert!(slots.place(region.clone()).is_none());
    taken.pop();
    assert!(slots.place(region).is_some());
}

#[test]
fn what_is_too_short_or_too_long_is_no_slice() {
    let (slots, region) = (Slots::default(), region(LENGTH));
    for (length, fits) in
        [(SLICE_LENGTH_MIN - 1, false), (SLICE_LENGTH_MIN, true), (SLOT_LENGTH, true), (SLOT_LENGTH + 1, false)]
    {
        let length = u32::try_from(length).unwrap();
        assert_eq!(slots.place(Region { length, ..region.clone() }).is_some(), fits, "{length}");
    }
}

#[test]
#[should_panic(expected = "never copied")]
fn a_slice_cannot_be_copied() {
    let mut slice = Slots::default().place(region(LENGTH)).unwrap();
    slice.copy_to_bytes(10);
}

/// A server whose every answer is a file of [`LENGTH`] bytes, in slices of the shortest length there is.
async fn serve(outlet: Outlet, slots: Slots, vectored: bool) -> hyper::Result<()> {
    let file = region(LENGTH);
    let service = service_fn(|_request| {
        let (slots, file) = (slots.clone(), file.clone());
        let slices = (0..LENGTH).step_by(SLICE_LENGTH_MIN).map(move |start| {
            let length = (LENGTH - start).min(u32::try_from(SLICE_LENGTH_MIN).unwrap());
            let at = start as usize..(start + length) as usize;
            let slice = slots.place(Region { offset: u64::from(start), length, ..file.clone() }).map(Run::File);
            let run = slice.unwrap_or_else(|| Run::Bytes(content(LENGTH)[at].to_vec().into()));
            Ok::<_, Infallible>(Frame::data(run))
        });
        let answer = Response::builder().header("content-length", LENGTH).body(StreamBody::new(stream::iter(slices)));
        std::future::ready(answer)
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.max_buf_size(64 * 1024).writev(vectored).serve_connection(TokioIo::new(outlet), service).await
}

#[tokio::test]
async fn hyper_sends_slices_of_pipelined_answers_from_the_file() {
    let (outlet, slots, mut client) = outlet().await;
    let server = tokio::spawn(serve(outlet, slots, true));
    let requests = [&b"GET / HTTP/1.1\r\n\r\n".repeat(20)[..], b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"].concat();
    client.write_all(&requests).await.unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    let (mut rest, content) = (&got[..], content(LENGTH));
    for _ in 0..21 {
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        assert!(rest.starts_with(b"HTTP/1.1 200 OK") && rest[end..].starts_with(&content));
        rest = &rest[end + content.len()..];
    }
    assert!(rest.is_empty());
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn hyper_that_would_copy_slices_sends_none_of_their_bytes() {
    let (outlet, slots, mut client) = outlet().await;
    let server = tokio::spawn(serve(outlet, slots, false));
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut got = Vec::new();
    let _ = client.read_to_end(&mut got).await;
    assert!(got.is_empty(), "{got:?}");
    assert!(server.await.unwrap_err().is_panic());
}
