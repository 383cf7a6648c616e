//! What holds a seat, and what an answer's time is worth, on real sockets.
#![allow(clippy::unwrap_used)]
use super::*;
use axum::{
    extract::ws::{WebSocket, WebSocketUpgrade},
    response::Response,
    routing::get,
};
use bytes::Bytes;
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    time::{Instant, sleep, timeout},
};
use trueup_queries::{Reading, Unread};

const WAIT: Duration = Duration::from_secs(20);
/// More than the system buffers of an answer.
const LARGE_BYTES: usize = 32 << 20;

/// Bytes that tell when they are gone.
struct Large(Vec<u8>, #[expect(dead_code, reason = "held, and dropped")] Reading);

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A server that answers, is subscribed to, and has a large answer that must be read in a time.
async fn started(connections_max: usize, read_max: Duration) -> (SocketAddr, oneshot::Sender<()>) {
    let follow = async |mut socket: WebSocket| while let Some(Ok(_)) = socket.recv().await {};
    let large = move || async move {
        let (reading, unread) = Unread::within(read_max);
        let bytes = Bytes::from_owner(Large(vec![b'x'; LARGE_BYTES], reading));
        let mut answer = Response::new(Body::from(bytes));
        answer.extensions_mut().insert(unread);
        answer
    };
    let app = axum::Router::new()
        .route("/", get(async || "here"))
        .route("/follow", get(async move |up: WebSocketUpgrade| up.on_upgrade(follow)))
        .route("/large", get(large));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let limits = Limits {
        connections_max,
        head_max: Duration::from_secs(60),
        unread_max: Duration::from_secs(60),
    };
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(serve(listener, app, limits, async move { drop(stopped.await) }));
    (at, stop)
}

/// Sends a request and waits for the first line of the answer.
async fn ask(at: SocketAddr, path: &str, headers: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.unwrap());
    }
    (stream, String::from_utf8(line).unwrap())
}

async fn follow(at: SocketAddr) -> TcpStream {
    let headers = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let (stream, line) = ask(at, "/follow", headers).await;
    assert!(line.starts_with("HTTP/1.1 101 "), "{line}");
    stream
}

#[tokio::test]
async fn a_websocket_holds_its_seat_until_it_is_closed() {
    // What a machine grants is more than the least of all limits.
    let (at, _stop) = started(3, WAIT).await;
    let mut followers = Vec::new();
    for _ in 0..3 {
        followers.push(follow(at).await);
    }
    let mut fourth = Box::pin(ask(at, "/", ""));
    let early = timeout(Duration::from_millis(500), &mut fourth).await;
    assert!(early.is_err(), "it is answered beside three that have all seats: {early:?}");
    drop(followers.pop());
    let (_, line) = timeout(WAIT, fourth).await.expect("a seat that is free is given");
    assert!(line.starts_with("HTTP/1.1 200 "), "{line}");
    assert_eq!(followers.len(), 2);
}

#[tokio::test]
async fn a_large_answer_that_is_not_read_in_its_time_is_cut_off() {
    let (at, _stop) = started(3, Duration::from_millis(500)).await;
    let (mut slow, line) = ask(at, "/large", "").await;
    assert!(line.starts_with("HTTP/1.1 200 "), "{line}");
    let (began, mut read, mut piece) = (Instant::now(), 0, vec![0; 1 << 10]);
    // It reads all the while, a kilobyte at a time, and then what was on its way.
    while began.elapsed() < Duration::from_secs(3) {
        read += slow.read(&mut piece).await.unwrap_or(0);
        sleep(Duration::from_millis(10)).await;
    }
    let mut rest = Vec::new();
    // The end may be a reset.
    drop(timeout(WAIT, slow.read_to_end(&mut rest)).await.expect("the connection has ended"));
    read += rest.len();
    assert!(read < LARGE_BYTES, "{read} bytes were sent after their time");
}

#[tokio::test]
async fn an_answer_that_was_read_in_time_leaves_its_connection_alone() {
    let (at, _stop) = started(3, Duration::from_secs(2)).await;
    let (mut stream, _) = ask(at, "/large", "").await;
    let mut left = LARGE_BYTES;
    let mut piece = vec![0; 1 << 20];
    while left > 0 {
        let read = timeout(WAIT, stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(read > 0, "the answer was cut off");
        // The first piece has the rest of the head, too.
        left = left.saturating_sub(piece[..read].iter().filter(|&&b| b == b'x').count());
    }
    sleep(Duration::from_millis(2_500)).await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(WAIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
