//! Answers that nobody reads: what they hold is bounded, and comes back as they are read.
use super::*;
use crate::Unread;
use axum::response::Response;
use std::time::Duration;
use tokio::{net::TcpSocket, time::timeout};

const PATH: &str = "/v1/views/audience_minute";
/// What the sockets of this test buffer, so that what is not read stays with the server.
const BUFFER_BYTES: u32 = 4 << 10;
const WAIT: Duration = Duration::from_secs(10);

/// Serves with small buffers, which a socket has from its listener.
async fn serve_narrow(f: &Fixture) -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(BUFFER_BYTES).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(64).unwrap();
    let at = listener.local_addr().unwrap();
    let app = router(Arc::clone(&f.queries));
    tokio::spawn(async move { axum::serve(listener, app).await });
    at
}

/// Asks and reads nothing of the answer but its first bytes.
async fn ask(at: SocketAddr, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(BUFFER_BYTES).unwrap();
    let mut stream = socket.connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut begin = [0; 16];
    stream.read_exact(&mut begin).await.unwrap();
    assert!(begin.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&begin));
    stream
}

/// The views of a server whose whole page of `PATH` has about 450,000 bytes.
async fn filled(limits: Limits) -> Fixture {
    let mut f = Fixture::with(limits, vec![], 64 << 20).await;
    fill(&mut f);
    let bytes = f.get(PATH).await.body.len();
    assert!((350_000..500_000).contains(&bytes), "{bytes} bytes");
    f
}

fn fill(f: &mut Fixture) {
    let names: Vec<&'static str> =
        (0..1_700).map(|i| &*Box::leak(format!("p{i}").into_boxed_str())).collect();
    let key = |p: &&'static str| ["c1", *p, "SE", "ios"];
    let row = |p| ("2026-04-27T11:59:00Z", key(p), metrics(1, 0, 0));
    f.add(&names.iter().map(row).collect::<Vec<_>>());
}

/// Answers of so many bytes to one token, until it gets no more.
async fn hold_all(f: &Fixture, token: usize, bytes: usize) -> Vec<Response> {
    let mut held = Vec::new();
    loop {
        match f.queries.gate.answer(token, move || Ok("x".repeat(bytes))).await {
            Ok(answer) => held.push(answer),
            Err(refused) => {
                assert_eq!(refused.code, "too_many_answer_bytes_in_flight");
                return held;
            }
        }
    }
}

#[tokio::test]
async fn answers_that_nobody_reads_take_no_more_than_they_may() {
    let limits = Limits { answer_bytes_in_flight_max: 1 << 20, ..Limits::default() };
    let f = filled(limits).await;
    let at = serve_narrow(&f).await;
    let mut first = ask(at, PATH).await;
    let _second = ask(at, PATH).await;
    let third = f.get(PATH).await;
    assert_eq!(third.problem(), (429, "too_many_answer_bytes_in_flight".into()));
    assert_eq!(third.headers["retry-after"], "1");
    let body = third.json();
    assert!(body["detail"].as_str().unwrap().contains("1048576 bytes"), "{body}");
    assert!(body["hint"].as_str().unwrap().contains("`[queries] answer_bytes_in_flight_max`"));
    // Small ones go on.
    assert_eq!(f.get(&format!("{PATH}?limit=10")).await.status, 200);
    assert_eq!(f.get("/v1/views").await.status, 200);
    let mut rest = Vec::new();
    timeout(WAIT, first.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.ends_with(b"}"), "the answer is whole");
    assert_eq!(f.get(PATH).await.status, 200);
}

#[tokio::test]
async fn a_token_that_reads_nothing_leaves_room_for_the_others() {
    let limits = Limits { answer_bytes_in_flight_max: 2 << 20, ..Limits::default() };
    let tokens = ["first", "second"].map(|name| token(name, Role::Reader));
    let sends = token("third", Role::Collector);
    let mut f = Fixture::with(limits, [&tokens[..], &[sends]].concat(), 64 << 20).await;
    fill(&mut f);
    for bytes in [60 << 10, 66 << 10, 300 << 10] {
        let held = hold_all(&f, 0, bytes).await;
        let all = held.len() * bytes;
        assert!(((700 << 10)..=(1 << 20)).contains(&all), "{all} bytes, {bytes} at a time");
        let refused = f.get_as("first", PATH).await;
        assert_eq!(refused.problem(), (429, "too_many_answer_bytes_in_flight".into()));
        let detail = refused.json()["detail"].to_string();
        assert!(detail.contains("a token leaves as much as it holds to others"), "{detail}");
        assert_eq!(f.get_as("second", PATH).await.status, 200, "beside {all} bytes");
    }
    // One answer is never too much where there is room for it.
    drop(f.queries.gate.answer(0, || Ok("x".repeat(1_900 << 10))).await.unwrap());
}

#[tokio::test]
async fn who_alone_may_read_takes_all() {
    let limits = Limits { answer_bytes_in_flight_max: 1 << 20, ..Limits::default() };
    let tokens = vec![token("sends", Role::Collector), token("reads", Role::Reader)];
    let f = Fixture::with(limits, tokens, 1 << 20).await;
    assert_eq!(hold_all(&f, 1, 64 << 10).await.len(), 16);
}

#[tokio::test]
async fn every_answer_has_its_time() {
    let limits = Limits { answer_ms_max: 50, ..Limits::default() };
    let f = Fixture::with(limits, vec![], 1 << 20).await;
    for bytes in [10, 60 << 10, 300 << 10] {
        let ask = || f.queries.gate.answer(0, move || Ok("x".repeat(bytes)));
        let unread = |answer: &Response| answer.extensions().get::<Unread>().cloned();
        let answer = ask().await.unwrap();
        let kept = unread(&answer).unwrap_or_else(|| panic!("{bytes} bytes have no time"));
        assert!(kept.is_overdue().await, "{bytes} bytes");
        let answer = ask().await.unwrap();
        let read = unread(&answer).unwrap();
        drop(answer);
        assert!(!read.is_overdue().await, "{bytes} bytes");
    }
}

#[tokio::test]
async fn an_answer_whose_peer_goes_away_holds_nothing() {
    let limits = Limits { answer_bytes_in_flight_max: 1 << 20, ..Limits::default() };
    let f = filled(limits).await;
    let at = serve_narrow(&f).await;
    drop((ask(at, PATH).await, ask(at, PATH).await));
    let freed = async {
        while f.get(PATH).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(WAIT, freed).await.expect("what they held comes back");
}

#[tokio::test]
async fn small_answers_keep_a_part_that_large_ones_cannot_take() {
    let limits = Limits { answer_bytes_in_flight_max: 1 << 20, ..Limits::default() };
    let mut f = Fixture::with(limits, vec![], 1 << 20).await;
    f.add(&[]);
    let mut held = Vec::new();
    let refused = loop {
        match f.queries.gate.answer(0, || Ok("x".repeat(66 << 10))).await {
            Ok(answer) => held.push(answer),
            Err(problem) => break problem,
        }
        assert!(held.len() < 16, "large answers end before the room does");
    };
    assert_eq!(refused.code, "too_many_answer_bytes_in_flight");
    for _ in 0..8 {
        assert_eq!(f.get("/v1/views").await.status, 200);
        held.push(f.queries.gate.answer(0, || Ok("x".repeat(7 << 10))).await.unwrap());
    }
    drop(held);
    f.queries.gate.answer(0, || Ok("x".repeat(900 << 10))).await.unwrap();
}

#[tokio::test]
async fn an_answer_larger_than_all_that_there_is_room_for_says_so() {
    let limits = Limits { answer_bytes_in_flight_max: 256 << 10, ..Limits::default() };
    let f = Fixture::with(limits, vec![], 1 << 20).await;
    let refused = f.queries.gate.answer(0, || Ok("x".repeat(250 << 10))).await.unwrap_err();
    assert_eq!((refused.status, refused.code), (400, "answer_too_large"));
    assert!(refused.detail.contains("256000 bytes"), "{refused:?}");
    f.queries.gate.answer(0, || Ok("x".repeat(200 << 10))).await.unwrap();
}
