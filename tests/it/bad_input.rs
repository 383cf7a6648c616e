//! What no well-behaved client sends. Each has one defined answer that names what is wrong, takes
//! nothing that it should not, and leaves the server as it was: afterwards the counts add up to
//! what the answers said, and a good event still counts.

use crate::{
    client::{Answer, Client},
    mutate::mutate,
    seed::{count, seed},
    server::{Home, Server},
    traffic::{arrow_body, click, now_us, verdict},
};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};
use trueup_generator::random::Random;
use trueup_operators::time::HOUR_US;

/// Small limits, so that what exceeds them is small too.
const CONFIG: &str = r#"
[limits]
body_bytes_max = "4MiB"
body_decoded_bytes_max = "8MiB"
body_read_ms_max = 2000
"#;
/// What a body may make the server take beyond what it took before, however it is packed.
const MEMORY_BYTES_MAX: u64 = 160 << 20;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// A body of megabytes of blanks behind each byte that is sent.
fn bomb(megabytes: usize) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(b"{\"events\":[").unwrap();
    let blanks = vec![b' '; 1 << 20];
    for _ in 0..megabytes {
        gzip.write_all(&blanks).unwrap();
    }
    gzip.finish().unwrap()
}

fn body_of(events: usize) -> Vec<u8> {
    let event = r#"{"eventId":"e","eventType":"click"},"#;
    let mut body = b"{\"events\":[".to_vec();
    body.extend(event.repeat(events).as_bytes());
    body.pop();
    body.extend(b"]}");
    body
}

fn resident_bytes(server: &Server<'_>, line: &str) -> u64 {
    let path = format!("/proc/{}/status", server.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find(|l| l.starts_with(line)).unwrap();
    let kib: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// A good event is taken and counted.
#[track_caller]
fn still_works(client: &Client, id: &str) {
    let before = client.settled();
    client.collect(&[click(id, now_us())]).expect(202);
    let after = client.settled();
    after.check();
    assert_eq!(after.counted, before.counted + 1, "{before:?} {after:?}");
}

#[test]
fn a_body_that_is_none_is_refused_as_a_whole() {
    let home = Home::new(CONFIG);
    let server = home.start();
    let client = server.client();
    let json = [("content-type", "application/json")];
    let gzipped = [("content-encoding", "gzip")];
    let collect =
        |headers: &[(&str, &str)], body: &[u8]| client.post("/v1/events/collect", headers, body);
    let good = json!({ "events": [click("in_a_bad_body", now_us())] }).to_string();
    let good = good.as_bytes();
    let packed = gzip(good);
    let mut not_text = good.to_vec();
    not_text[20] = 0xFF;
    let nested = format!("{{\"events\":[{}", "[".repeat(100_000));
    let cases: Vec<(&str, &[u16], Answer)> = vec![
        ("nothing", &[400], collect(&json, b"")),
        ("no JSON", &[400], collect(&json, b"events=1")),
        ("cut JSON", &[400], collect(&json, &good[..good.len() - 3])),
        ("JSON and more", &[400], collect(&json, &[good, b"}"].concat())),
        ("another shape", &[400], collect(&json, b"{\"event\":[]}")),
        ("no list", &[400], collect(&json, b"{\"events\":{}}")),
        ("no event", &[400], collect(&json, b"{\"events\":[]}")),
        ("no UTF-8", &[400], collect(&json, &not_text)),
        ("100,000 levels", &[400], collect(&json, nested.as_bytes())),
        ("50,001 events", &[413], collect(&json, &body_of(50_001))),
        ("a bomb", &[413], collect(&gzipped, &bomb(256))),
        ("cut gzip", &[400], collect(&gzipped, &packed[..packed.len() - 9])),
        ("no gzip", &[400], collect(&gzipped, good)),
        ("another packing", &[415], collect(&[("content-encoding", "br")], good)),
        ("another type", &[415], collect(&[("content-type", "text/csv")], b"a,b")),
        (
            "no Arrow",
            &[400],
            collect(&[("content-type", "application/vnd.apache.arrow.stream")], &[7; 64]),
        ),
        ("no verdict", &[400], client.judge(&[])),
        ("verdicts of no shape", &[400], client.post("/v1/verdicts", &json, b"[1")),
    ];
    for (what, statuses, answer) in &cases {
        assert!(statuses.contains(&answer.status), "{what}: {answer:?}");
        answer.problem();
    }
    // Nothing of any of them was taken.
    client.get("/v1/events/in_a_bad_body").expect(404);
    let counts = client.settled();
    assert_eq!((counts.accepted, counts.counted), (0, 0), "{counts:?}");
    still_works(&client, "after_bad_bodies");
}

#[test]
fn a_bomb_costs_no_more_memory_than_the_limit() {
    let home = Home::new(CONFIG);
    let server = home.start();
    let client = server.client();
    still_works(&client, "before_the_bomb");
    let before = resident_bytes(&server, "VmHWM");
    let bomb = bomb(1024);
    assert!(bomb.len() < 4 << 20, "the bomb itself is over a limit");
    for _ in 0..4 {
        let headers = [("content-encoding", "gzip")];
        client.post("/v1/events/collect", &headers, &bomb).expect(413).problem();
    }
    let grown = resident_bytes(&server, "VmHWM") - before;
    assert!(grown < MEMORY_BYTES_MAX, "the bomb cost {} MiB", grown >> 20);
    still_works(&client, "after_the_bomb");
}

#[test]
fn of_a_mixed_batch_the_good_events_are_taken_and_the_bad_ones_named() {
    let home = Home::new(CONFIG);
    let server = home.start();
    let client = server.client();
    let now_us = now_us();
    let with = |field: &str, value: Value| {
        let mut event = click(&format!("bad_{field}"), now_us);
        event[field] = value;
        event
    };
    let without = |field: &str| {
        let mut event = click(&format!("no_{field}"), now_us);
        event.as_object_mut().unwrap().remove(field);
        event
    };
    let bad = [
        with("eventType", json!("view")),
        with("eventType", json!(7)),
        with("occurredAt", json!("9999-12-31T23:59:59Z")),
        with("occurredAt", json!("1970-01-01T00:00:00Z")),
        with("occurredAt", json!("yesterday")),
        with("occurredAt", json!("2026-02-30T00:00:00Z")),
        with("eventId", json!("e".repeat(129))),
        with("eventId", json!("")),
        with("campaignId", json!("c".repeat(65))),
        with("country", json!("USA")),
        with("country", json!("u1")),
        with("deviceType", json!("d".repeat(17))),
        with("priceMicros", json!(-1)),
        with("priceMicros", json!(1.5)),
        with("priceMicros", json!("180000")),
        with("priceMicros", json!(i64::MAX)),
        with("priceMicros", json!(1e300)),
        with("priceBasis", json!("flat")),
        with("schemaVersion", json!(-1)),
        without("eventId"),
        without("eventType"),
        without("occurredAt"),
        without("campaignId"),
        without("adId"),
        json!("an event"),
        json!(null),
    ];
    let mut events = vec![click("good_1", now_us)];
    events.extend(bad.iter().cloned());
    events.push(click("good_2", now_us));
    let answer = client.collect(&events).expect(202).json;
    assert_eq!(answer["accepted"], json!(2), "{answer}");
    assert_eq!(answer["rejected"], json!(bad.len()), "{answer}");
    let errors = answer["errors"].as_array().unwrap();
    let indices: Vec<_> = errors.iter().map(|e| e["index"].as_u64().unwrap() as usize).collect();
    assert_eq!(indices, (1..=bad.len()).collect::<Vec<_>>(), "{answer}");
    for error in errors {
        for field in ["code", "message", "hint"] {
            assert!(!error[field].as_str().unwrap_or_default().is_empty(), "{error}");
        }
    }
    // More bad events than are named: all are counted.
    let many: Vec<Value> = (0..300).map(|_| without("adId")).collect();
    let answer = client.collect(&many).expect(202).json;
    assert_eq!(answer["rejected"], json!(300), "{answer}");
    assert_eq!(answer["errors"].as_array().unwrap().len(), 100);

    let answer = client.judge(&[
        json!({ "verdict": "invalid", "decidedAt": "2026-01-01T00:00:00Z" }),
        json!({ "eventId": "x", "verdict": "perhaps" }),
        verdict("good_1", "invalid", now_us + HOUR_US),
    ]);
    let answer = answer.expect(202).json;
    assert_eq!(answer["rejected"].as_u64().unwrap() + answer["accepted"].as_u64().unwrap(), 3);
    assert!(answer["rejected"].as_u64().unwrap() >= 2, "{answer}");

    let counts = client.settled();
    counts.check();
    assert_eq!((counts.accepted, counts.counted), (2, 2), "{counts:?}");
    assert_eq!(counts.rejected, 300 + bad.len() as i64, "{counts:?}");
    // An unknown version is not understood yet: kept, and told so.
    client.collect(&[with("schemaVersion", json!(99))]).expect(202);
    assert_eq!(client.settled().quarantined, 1);
    still_works(&client, "after_bad_events");
}

/// Arrow's reader panics on schemas that no writer writes. That is an error of the body.
#[test]
fn any_byte_of_an_arrow_schema_may_be_wrong() {
    let home = Home::new(CONFIG);
    let server = home.start();
    let client = server.client();
    let good = arrow_body();
    // The stream begins with a marker and the length of its first message, the schema.
    let schema_bytes = u32::from_le_bytes(good[4..8].try_into().unwrap()) as usize;
    let headers = [("content-type", "application/vnd.apache.arrow.stream")];
    let mut refused = 0;
    for at in 0..8 + schema_bytes {
        for with in [0, 0x7F, 0xFF] {
            let mut body = good.clone();
            body[at] = with;
            let answer = client.post("/v1/events/collect", &headers, &body);
            assert!([202, 400, 413].contains(&answer.status), "byte {at} is {with}: {answer:?}");
            refused += u32::from(answer.status != 202);
        }
    }
    assert!(refused > 100, "only {refused} were refused");
    still_works(&client, "after_bad_schemas");
}

#[test]
fn a_connection_that_breaks_its_word_harms_nobody() {
    let home = Home::new(CONFIG);
    let server = home.start();
    let client = server.client();
    let post =
        "POST /v1/events/collect HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let event = json!({ "events": [click("cut_short", now_us())] }).to_string();
    // A body that ends before its length, in chunks that never end, and with no length at all.
    let short = client.raw(format!("{post}content-length: 100000\r\n\r\n{event}").as_bytes());
    assert!(!short.contains(" 202 "), "{short}");
    let chunked =
        format!("{post}transfer-encoding: chunked\r\n\r\n{:x}\r\n{event}\r\n", event.len());
    let open = client.raw(chunked.as_bytes());
    assert!(!open.contains(" 202 "), "{open}");
    let no_chunk = client.raw(format!("{post}transfer-encoding: chunked\r\n\r\nzz\r\n").as_bytes());
    assert!(!no_chunk.contains(" 202 "), "{no_chunk}");
    for bytes in [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET\r\n\r\n", b"\0\0\0\0\r\n\r\n"] {
        let answer = client.raw(bytes);
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    // Too large by its own word: refused before it is sent.
    let declared = client.raw(format!("{post}content-length: {}\r\n\r\n", 5 << 20).as_bytes());
    assert!(declared.contains(" 413 ") && declared.contains("problem+json"), "{declared}");
    let head =
        format!("GET /v1/status HTTP/1.1\r\nhost: localhost\r\na: {}\r\n\r\n", "h".repeat(1 << 21));
    let answer = client.raw(head.as_bytes());
    assert!(!answer.contains(" 200 "), "a head of 2 MiB: {answer}");
    client.get("/v1/events/cut_short").expect(404);
    still_works(&client, "after_broken_connections");
}

#[test]
fn who_may_not_is_told_so() {
    let home = Home::new(
        r#"
[auth]
tokens = [
  { token = "collector-secret", role = "collector", publishers = ["pub_17"] },
  { token = "reader-secret", role = "reader" },
  { token = "fraud-secret", role = "fraud" },
  { token = "operator-secret", role = "operator" },
]
"#,
    );
    let server = home.start();
    let nobody = server.client();
    let [collector, reader, fraud, operator] = ["collector", "reader", "fraud", "operator"]
        .map(|r| nobody.with_token(&format!("{r}-secret")));
    let event = click("mine", now_us());
    let mut of_another = click("of_another", now_us());
    of_another["publisherId"] = json!("pub_18");
    let report = "/v1/reports/campaigns/camp_4821?from=2026-01-01T00:00:00Z\
                  &to=2026-01-01T01:00:00Z&granularity=minute&dimensions=country";

    let cases = [
        ("no token", nobody.collect(&[event.clone()]), 401),
        ("another token", nobody.with_token("guess").collect(&[event.clone()]), 401),
        ("nearly the token", nobody.with_token("collector-secre").collect(&[event.clone()]), 401),
        ("a reader sends", reader.collect(&[event.clone()]), 403),
        ("a collector judges", collector.judge(&[verdict("mine", "invalid", now_us())]), 403),
        ("a collector reads", collector.get(report), 403),
        ("nobody reads", nobody.get(report), 401),
        ("a reader asks for the status", reader.get("/v1/status"), 403),
        ("nobody subscribes", nobody.get("/v1/views/audience_minute/subscribe"), 401),
    ];
    for (what, answer, status) in cases {
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        answer.problem();
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(!text.contains("-secret"), "{what}: a secret is shown: {text}");
    }
    // Of a batch what is the token's is taken; one of which nothing is gets what the others get.
    let answer = collector.collect(&[event, of_another.clone()]).expect(202).json;
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&json!(1), &json!(1)), "{answer}");
    let error = &answer["errors"][0];
    assert_eq!((&error["index"], &error["code"]), (&json!(1), &json!("wrong_publisher")));
    assert_eq!(collector.collect(&[of_another]).expect(403).problem(), "wrong_publisher");
    reader.get(report).expect(200);
    fraud.judge(&[verdict("mine", "invalid", now_us())]).expect(202);
    operator.get("/v1/events/of_another").expect(404);
    let counts = operator.settled();
    counts.check();
    assert_eq!((counts.accepted, counts.rejected), (1, 2), "{counts:?}");
    assert!(!home.stderr().contains("-secret"), "a secret is logged:\n{}", home.stderr());
}

/// An answer that is known before the body is there does not cost the connection, nor does its end
/// cost the answer.
#[test]
fn who_still_sends_what_was_refused_gets_the_answer() {
    let tokens = "tokens = [{ token = \"operator-secret\", role = \"operator\" }]\n";
    let home = Home::new(&format!("[auth]\n{tokens}"));
    let server = home.start();
    let address = server.client().address();
    let head = |headers: &str| {
        format!("POST /v1/events/collect HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n")
    };
    let read_answer = |stream: &mut TcpStream| {
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let mut some = [0; 4096];
            let bytes = stream.read(&mut some).unwrap();
            assert!(bytes > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&some[..bytes]);
        }
        String::from_utf8(answer).unwrap().to_lowercase()
    };
    let connect = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    };

    // Two on one connection; of each the body comes after the head was refused.
    let mut stream = connect();
    for _ in 0..2 {
        stream.write_all(head("content-length: 10\r\n").as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        stream.write_all(b"0123456789").unwrap();
        let answer = read_answer(&mut stream);
        assert!(answer.starts_with("http/1.1 401 "), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
    // A body that never comes, one that is too long to be read for nothing, and one that waits to
    // be asked for: the answer says that the connection ends.
    let wanted = "content-length: 10\r\nexpect: 100-continue\r\n";
    for headers in ["content-length: 10\r\n", "content-length: 9999999\r\n", wanted] {
        let mut stream = connect();
        stream.write_all(head(headers).as_bytes()).unwrap();
        let answer = read_answer(&mut stream);
        assert!(answer.starts_with("http/1.1 401 "), "{headers}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{headers}: {answer}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{headers}: it is not closed");
    }
}

#[test]
fn a_question_that_makes_no_sense_is_answered_with_what_does() {
    let home = Home::new("");
    let server = home.start();
    let client = server.client();
    let report = |query: &str| client.get(&format!("/v1/reports/campaigns/c?{query}"));
    let range = "from=2026-11-01T00:00:00Z&to=2026-11-01T01:00:00Z";
    let cases = [
        ("no range", report("granularity=minute"), 400),
        (
            "the range ends before it begins",
            report("from=2026-11-02T00:00:00Z&to=2026-11-01T00:00:00Z&granularity=hour"),
            400,
        ),
        ("a time that is none", report("from=now&to=2026-11-01T00:00:00Z&granularity=hour"), 400),
        ("a granularity that is none", report(&format!("{range}&granularity=second")), 400),
        (
            "a dimension that is none",
            report(&format!("{range}&granularity=minute&dimensions=cuontry")),
            400,
        ),
        (
            "dimensions that no rollup has",
            report(&format!("{range}&granularity=minute&dimensions=adId,country")),
            400,
        ),
        ("a parameter that is none", report(&format!("{range}&granularity=minute&x=1")), 400),
        (
            "a page that nobody gave",
            report(&format!("{range}&granularity=minute&pageToken=AAAA")),
            400,
        ),
        (
            "a thousand years by the minute",
            report("from=1100-01-01T00:00:00Z&to=2100-01-01T00:00:00Z&granularity=minute"),
            400,
        ),
        ("a view that is none", client.get("/v1/views/audeince_minute"), 404),
        ("a route that is none", client.get("/v2/events"), 404),
        ("another method", client.get("/v1/events/collect"), 405),
    ];
    for (what, answer, status) in cases {
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        answer.problem();
    }
    let answer = client.get(&format!(
        "/v1/reports/campaigns/c?{range}&granularity=minute&dimensions=adId,country"
    ));
    let hint = answer.json["hint"].as_str().unwrap();
    assert!(hint.contains("publisherId") && hint.contains("creativeId"), "no sets in: {hint}");
    assert!(
        client.get("/v1/views/audeince_minute").json["hint"]
            .as_str()
            .unwrap()
            .contains("audience_minute")
    );
}

/// A view that does not keep up pushes back on those who send, before memory or disk is full.
#[test]
fn who_sends_faster_than_the_views_is_told_to_wait() {
    // An epoch has just closed when the server is ready, and none does in the next five seconds.
    let home = Home::new("[time]\ntick = \"5s\"\n[flow]\nlag_bytes_max = \"4KiB\"\n");
    let server = home.start();
    let client = server.client();
    let events: Vec<Value> = (0..100).map(|n| click(&format!("lag_{n}"), now_us())).collect();
    client.collect(&events).expect(202);
    let answer = client.collect(&events).expect(429);
    assert_eq!(answer.problem(), "dataflow_behind");
    assert!(answer.retry_after.is_some(), "{answer:?}");
    client.judge(&[verdict("lag_1", "invalid", now_us())]).expect(429);
    assert_eq!(client.counts().accepted, 100);
    assert_eq!(server.terminate().code(), Some(0), "what was taken is shown before the end");
}

/// Texts of dimensions are never forgotten while the server runs, so how many there are is bounded.
#[test]
fn texts_without_end_are_refused_before_memory_is_full() {
    let home = Home::new("[flow]\nsymbols_bytes_max = \"4KiB\"\n");
    let server = home.start();
    let client = server.client();
    let with_region = |n: usize| {
        let mut event = click(&format!("of_region_{n}"), now_us());
        event["region"] = json!(format!("region-{n:050}"));
        event
    };
    let events: Vec<Value> = (0..100).map(with_region).collect();
    client.collect(&events).expect(202);
    assert_eq!(client.settled().counted, 100);
    let answer = client.collect(&[with_region(100)]).expect(503);
    assert_eq!(answer.problem(), "state_full");
    assert!(String::from_utf8_lossy(&answer.body).contains("flow.symbols_bytes_max"));
    client.get("/v1/views/region_minute").expect(200);
}

#[test]
fn an_idempotency_key_gets_the_first_answer_again() {
    let home = Home::new("");
    let server = home.start();
    let client = server.client();
    let body = json!({ "events": [click("once", now_us())] }).to_string();
    let key = [("idempotency-key", "batch-1")];
    let send = || client.post("/v1/events/collect", &key, body.as_bytes()).expect(202).body;
    assert_eq!(send(), send());
    let counts = client.settled();
    assert_eq!((counts.accepted, counts.counted), (1, 1), "{counts:?}");
}

/// A good body of some format with bytes changed, and the headers that it is sent with.
fn changed_body(random: &mut Random, n: u64) -> (Vec<u8>, Vec<(&'static str, &'static str)>) {
    let events = [click(&format!("m{n}a"), now_us()), click(&format!("m{n}b"), now_us())];
    let (mut body, headers) = match random.below(4) {
        0 => (json!({ "events": events }).to_string().into_bytes(), vec![]),
        1 => {
            let body = json!({ "events": events }).to_string();
            (gzip(body.as_bytes()), vec![("content-encoding", "gzip")])
        }
        2 => {
            let lines = events.map(|event| event.to_string()).join("\n");
            (lines.into_bytes(), vec![("content-type", "application/x-ndjson")])
        }
        _ => (arrow_body(), vec![("content-type", "application/vnd.apache.arrow.stream")]),
    };
    mutate(&mut body, random);
    (body, headers)
}

#[test]
fn bodies_with_random_bytes_changed_get_a_defined_answer() {
    let seed = seed("bodies_with_random_bytes_changed_get_a_defined_answer");
    let bodies = count("TRUEUP_IT_BODIES", 2_000);
    let home = Home::new(CONFIG);
    let server = home.start();
    let client = server.client();
    let mut random = Random::new(seed, 0);
    let (mut accepted, mut rejected) = (0, 0);
    for n in 0..bodies {
        let (body, headers) = changed_body(&mut random, n);
        let sent = client.try_post("/v1/events/collect", &headers, &body);
        let shown = || format!("{headers:?} {}", body.escape_ascii());
        let answer = sent.unwrap_or_else(|error| panic!("{error} for {}", shown()));
        match answer.status {
            202 => {
                accepted += answer.json["accepted"].as_i64().unwrap();
                rejected += answer.json["rejected"].as_i64().unwrap();
            }
            400 | 413 => drop(answer.problem()),
            other => panic!("{other} for {}: {answer:?}", shown()),
        }
    }
    let counts = client.settled();
    counts.check();
    assert_eq!(counts.accepted, accepted, "{counts:?}");
    assert!(counts.rejected >= rejected && rejected > 0, "{counts:?}, rejected {rejected}");
    still_works(&client, "after_random_bytes");
}

/// Without tokens a page of any site that is open in a browser on this machine could ask.
#[test]
fn pages_of_other_sites_are_not_answered() {
    let home = Home::new("");
    let server = home.start();
    let client = server.client();
    let ask = |headers: &str| {
        let mut stream = TcpStream::connect(client.address()).unwrap();
        let head = format!("GET /v1/views HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let own = format!("host: {0}\r\norigin: http://{0}\r\n", client.address());
    for headers in ["host: localhost:1\r\n", &own] {
        assert!(ask(headers).starts_with("HTTP/1.1 200 "), "{headers}: {}", ask(headers));
    }
    let foreign = format!("host: {}\r\norigin: https://evil.example\r\n", client.address());
    for headers in ["host: evil.example\r\n", &foreign] {
        let answer = ask(headers);
        assert!(answer.starts_with("HTTP/1.1 403 "), "{headers}: {answer}");
        assert!(answer.contains("problem+json") && answer.contains("foreign_"), "{answer}");
    }
}

/// Connections that send nothing, or half a head, or never read: each has its end, and while there
/// are as many as there may be, who comes waits for his turn.
#[test]
fn connections_that_do_nothing_make_room_for_those_that_do() {
    let config = "connections_max = 3\nhead_ms_max = 700\nunread_ms_max = 700\n";
    let home = Home::new(&format!("[server]\n{config}"));
    let server = home.start();
    let client = server.client();
    let idle: Vec<TcpStream> =
        (0..3).map(|_| TcpStream::connect(client.address()).unwrap()).collect();
    (&idle[0]).write_all(b"GET /v1/status HTTP/1.1\r\nho").unwrap();
    // Its answers are more than the system buffers; nobody takes them.
    let greedy = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(400);
    (&idle[1]).write_all(greedy.as_bytes()).unwrap();
    let began = Instant::now();
    let answer = Client::new(client.address()).try_get("/healthz").unwrap();
    assert_eq!(answer.status, 200);
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    let mut rest = Vec::new();
    idle[0].set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (&idle[0]).read_to_end(&mut rest).unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.is_empty() || rest.contains(" 408 "), "half a head is answered: {rest}");
    // All three seats are free again, the greedy one's too.
    std::thread::sleep(Duration::from_secs(3));
    let again: Vec<_> = (0..3).map(|_| Client::new(client.address())).collect();
    for client in &again {
        assert_eq!(client.try_get("/healthz").unwrap().status, 200);
    }
}
