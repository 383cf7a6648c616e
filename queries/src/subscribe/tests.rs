//! Subscriptions over real sockets: the framing byte by byte, and adding up.
#![allow(clippy::unwrap_used)]
use super::{Message, sse, websocket};
use crate::{
    Limits,
    tests::{Answer, Fixture, Stream, incident, metrics, time},
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use trueup_operators::{
    change::Incident, event::Fate, feed::EpochTimes, hash::mix, rollup::RollupSpec, time::MINUTE_US,
};
use trueup_sinks::{Filter, Follow, ReadError, RowBlock, Start, Step, Tables};

const PATH: &str = "/v1/views/audience_minute/subscribe";

/// A reader of Server-Sent Events.
struct Reader {
    stream: Stream,
    buffer: String,
}

#[derive(Debug, PartialEq)]
struct Event {
    name: String,
    id: Option<u64>,
    data: Value,
}

impl Reader {
    async fn open(f: &Fixture, path: &str, headers: &[(&str, &str)]) -> Reader {
        let mut reader = Reader {
            stream: Stream::open(f.at, "GET", path, headers).await,
            buffer: String::new(),
        };
        assert_eq!(reader.stream.status, 200, "{path}");
        assert_eq!(reader.stream.headers["content-type"], "text/event-stream");
        assert_eq!(reader.stream.headers["cache-control"], "no-store");
        assert_eq!(reader.frame().await.as_deref(), Some("retry: 1000"));
        reader
    }

    async fn frame(&mut self) -> Option<String> {
        loop {
            if let Some((frame, rest)) = self.buffer.split_once("\n\n") {
                let frame = frame.to_owned();
                self.buffer = rest.to_owned();
                return Some(frame);
            }
            let chunk = tokio::time::timeout(Duration::from_secs(10), self.stream.chunk());
            let chunk = chunk.await.expect("a message within ten seconds")?;
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn event(&mut self) -> Option<Event> {
        let mut frame = self.frame().await?;
        while frame.starts_with(':') {
            frame = self.frame().await?;
        }
        let mut event = Event { name: String::new(), id: None, data: Value::Null };
        for line in frame.lines() {
            match line.split_once(": ").unwrap() {
                ("event", name) => event.name = name.to_owned(),
                ("id", id) => event.id = Some(id.parse().unwrap()),
                ("data", data) => event.data = serde_json::from_str(data).unwrap(),
                other => panic!("{other:?}"),
            }
        }
        Some(event)
    }

    /// The next event that is no progress.
    async fn news(&mut self) -> Event {
        loop {
            let event = self.event().await.expect("the stream goes on");
            if event.name != "progress" {
                return event;
            }
        }
    }
}

fn row(impressions: i64, version: u64, state: &str) -> Value {
    json!({
        "bucketStart": "2026-04-27T11:59:00Z", "campaignId": "c1", "publisherId": "p1",
        "country": "SE", "deviceType": "ios", "impressions": impressions, "clicks": 0,
        "conversions": 0, "invalidImpressions": 0, "invalidClicks": 0, "spendMicros": 0,
        "version": version, "state": state,
    })
}

const AT: &str = "2026-04-27T11:59:00Z";
const KEY: [&str; 4] = ["c1", "p1", "SE", "ios"];

#[test]
fn messages_are_framed_as_the_protocols_want() {
    let mut message = Message { event: "diff", id: Some(7), data: "{\"a\":1}".into() };
    assert_eq!(sse::frame(&message), "event: diff\nid: 7\ndata: {\"a\":1}\n\n");
    assert_eq!(websocket::frame(&message), r#"{"event":"diff","id":7,"data":{"a":1}}"#);
    message.id = None;
    assert_eq!(sse::frame(&message), "event: diff\ndata: {\"a\":1}\n\n");
    assert_eq!(websocket::frame(&message), r#"{"event":"diff","data":{"a":1}}"#);
}

#[tokio::test]
async fn a_snapshot_then_diffs_then_progress() {
    let mut f = Fixture::new().await;
    f.add(&[(AT, KEY, metrics(3, 0, 0))]);
    let mut reader = Reader::open(&f, PATH, &[]).await;
    let snapshot = reader.event().await.unwrap();
    let data = json!({ "epoch": 0, "rows": [row(3, 1, "provisional")], "last": true });
    assert_eq!(snapshot, Event { name: "snapshot".into(), id: Some(0), data });
    let progress = reader.event().await.unwrap();
    let data = json!({ "epoch": 0, "logTime": "2026-04-27T12:00:00Z" });
    assert_eq!(progress, Event { name: "progress".into(), id: Some(0), data });
    f.add(&[(AT, KEY, metrics(2, 0, 0))]);
    let diff = reader.news().await;
    let update = |impressions, version, state, diff| {
        let row = row(impressions, version, state);
        json!({ "row": row, "diff": diff })
    };
    let updates = json!([update(3, 1, "provisional", -1), update(5, 2, "provisional", 1)]);
    let data = json!({ "epoch": 1, "updates": updates, "last": true });
    assert_eq!(diff, Event { name: "diff".into(), id: Some(1), data });
    assert_eq!(reader.event().await.unwrap().name, "progress");
    // Time alone changes the state, which is a column.
    f.set_frontier(time(AT) + 10 * MINUTE_US);
    f.add(&[]);
    let diff = reader.news().await;
    let updates = json!([update(5, 2, "provisional", -1), update(5, 2, "settling", 1)]);
    assert_eq!(diff.data["updates"], updates);
}

#[tokio::test]
async fn progress_comes_once_a_second_when_nothing_happens() {
    let mut f = Fixture::new().await;
    f.add(&[]);
    let mut reader = Reader::open(&f, PATH, &[]).await;
    assert_eq!(reader.event().await.unwrap().data, json!({ "epoch": 0, "rows": [], "last": true }));
    assert_eq!(reader.event().await.unwrap().name, "progress");
    for _ in 0..2 {
        let began = std::time::Instant::now();
        let event = reader.event().await.unwrap();
        assert_eq!((event.name.as_str(), event.id), ("progress", Some(0)));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn subscriptions_take_turns_and_show_life_while_they_wait() {
    let mut f = Fixture::new().await;
    f.add(&[(AT, KEY, metrics(1, 0, 0))]);
    let mut reader = Reader::open(&f, PATH, &[]).await;
    assert_eq!(reader.event().await.unwrap().name, "snapshot");
    assert_eq!(reader.event().await.unwrap().name, "progress");
    let turns = f.queries.turns.available_permits() as u32;
    let taken = f.queries.turns.clone().acquire_many_owned(turns).await.unwrap();
    f.add(&[(AT, KEY, metrics(1, 0, 0))]);
    for _ in 0..2 {
        // What comes after epoch 0 was not sent, so this is true.
        let event = reader.event().await.unwrap();
        assert_eq!((event.name.as_str(), event.id), ("progress", Some(0)));
    }
    drop(taken);
    assert_eq!(reader.news().await.id, Some(1));
}

#[tokio::test]
async fn progress_is_never_named_between_the_parts_of_a_diff() {
    let mut f = Fixture::new().await;
    f.add(&[]);
    let tables: std::sync::Arc<dyn trueup_sinks::Tables> = f.views.clone();
    let view = tables.catalog().views()[0].clone();
    let start = trueup_sinks::Start::Snapshot(None);
    let follow = tables.follow(view.id, trueup_sinks::Filter::default(), start).unwrap();
    let mut stream = super::Stream::new(&f.queries, &view.kind, follow);
    let (send, mut receive) = tokio::sync::mpsc::channel(9);
    let mut life = async |stream: &mut super::Stream| {
        stream.said_at -= super::PROGRESS;
        assert!(stream.show_life(&send).await.is_ok());
        let message = receive.recv().await.unwrap();
        (message.event, message.id)
    };
    assert_eq!(life(&mut stream).await, (super::ALIVE, None), "it has no epoch yet");
    let mut rows = trueup_sinks::RowBlock::default();
    stream.work.lock().follow.step(9, &mut rows, &mut Vec::new()).unwrap();
    assert_eq!(life(&mut stream).await, ("progress", Some(0)));
    stream.is_within = true;
    assert_eq!(life(&mut stream).await, (super::ALIVE, None));
    assert!(stream.is_within, "a sign of life ends nothing");
    assert_eq!(
        sse::frame(&Message { event: super::ALIVE, id: None, data: String::new() }),
        ": alive\n\n"
    );
}

/// Takes one step more than another to reach an epoch; that one brings nothing.
struct Slower(Box<dyn Follow>, Option<EpochTimes>);

impl Follow for Slower {
    fn step(
        &mut self,
        rows_max: usize,
        rows: &mut RowBlock,
        incidents: &mut Vec<(i8, Incident)>,
    ) -> Result<Step, ReadError> {
        if let Some(at) = self.1.take() {
            rows.reset(0, 0);
            incidents.clear();
            return Ok(Step::Reached(at));
        }
        let step = self.0.step(rows_max, rows, incidents)?;
        let Step::Reached(at) = step else { return Ok(step) };
        self.1 = Some(at);
        Ok(Step::More(at))
    }

    fn at(&self) -> Option<EpochTimes> {
        self.0.at()
    }

    fn in_snapshot(&self) -> bool {
        self.0.in_snapshot() && self.1.is_none()
    }
}

#[tokio::test]
async fn parts_end_with_a_last_one_though_nothing_is_left_to_say() {
    let mut f = Fixture::new().await;
    f.add(&[]);
    let tables: std::sync::Arc<dyn Tables> = f.views.clone();
    let view = tables.catalog().views()[0].clone();
    let follow = tables.follow(view.id, Filter::default(), Start::After(Some(0))).unwrap();
    let stream = super::Stream::new(&f.queries, &view.kind, Box::new(Slower(follow, None)));
    let mut work = stream.work.lock();
    // An epoch of which nothing is to be said is not said to end.
    f.add(&[]);
    for _ in 0..2 {
        assert!(work.step().unwrap().1.is_none());
    }
    f.add(&[(AT, KEY, metrics(3, 0, 0))]);
    let first = work.step().unwrap().1.unwrap();
    assert_eq!((first.event, first.id), ("diff", None));
    assert!(first.data.ends_with(",\"last\":false}"), "{}", first.data);
    let last = work.step().unwrap().1.expect("a last part");
    assert_eq!((last.event, last.id), ("diff", Some(2)));
    assert_eq!(last.data, r#"{"epoch":2,"updates":[],"last":true}"#);
    assert!(work.step().unwrap().1.is_none());
}

#[tokio::test]
async fn whoever_comes_back_gets_what_he_missed_as_one_diff() {
    let mut f = Fixture::new().await;
    for i in 0..5 {
        f.add(&[(AT, KEY, metrics(i + 1, 0, 0))]);
    }
    for (path, headers) in [
        (PATH.to_owned(), vec![("Last-Event-ID", "1")]),
        (format!("{PATH}?lastEventId=1"), vec![]),
        (format!("{PATH}?asOfEpoch=1&snapshot=false"), vec![]),
    ] {
        let mut reader = Reader::open(&f, &path, &headers).await;
        let diff = reader.news().await;
        assert_eq!((diff.name.as_str(), diff.id), ("diff", Some(4)));
        let updates = diff.data["updates"].as_array().unwrap();
        assert_eq!(updates[0], json!({ "row": row(3, 2, "provisional"), "diff": -1 }));
        assert_eq!(updates[1], json!({ "row": row(15, 5, "provisional"), "diff": 1 }));
    }
    // A snapshot of an older epoch, then the way to the newest.
    let mut reader = Reader::open(&f, &format!("{PATH}?asOfEpoch=1"), &[]).await;
    let snapshot = reader.news().await;
    assert_eq!((snapshot.id, &snapshot.data["rows"][0]["impressions"]), (Some(1), &json!(3)));
    assert_eq!(reader.news().await.id, Some(4));
    // From now on.
    let mut reader = Reader::open(&f, &format!("{PATH}?snapshot=false"), &[]).await;
    assert_eq!(reader.event().await.unwrap().name, "progress");
    f.add(&[(AT, KEY, metrics(1, 0, 0))]);
    assert_eq!(reader.news().await.data["updates"][0]["row"]["impressions"], 15);
}

#[tokio::test]
async fn filters_choose_rows_and_refuse_what_they_do_not_know() {
    let mut f = Fixture::new().await;
    let other = ["c2", "p1", "SE", "ios"];
    f.add(&[(AT, KEY, metrics(1, 0, 0)), (AT, other, metrics(1, 0, 0))]);
    let path = format!("{PATH}?filter=campaignId:c1&filter=country:SE");
    let mut reader = Reader::open(&f, &path, &[]).await;
    assert_eq!(reader.news().await.data["rows"].as_array().unwrap().len(), 1);
    f.add(&[(AT, other, metrics(1, 0, 0))]);
    f.add(&[(AT, KEY, metrics(1, 0, 0))]);
    let diff = reader.news().await;
    assert_eq!(diff.data["updates"][0]["row"]["campaignId"], "c1");
    // A campaign that nobody has heard of appears when its first event does.
    let path = format!("{PATH}?filter=campaignId:later");
    let mut reader = Reader::open(&f, &path, &[]).await;
    assert_eq!(reader.news().await.data["rows"], json!([]));
    f.add(&[(AT, ["later", "p1", "SE", "ios"], metrics(1, 0, 0))]);
    assert_eq!(reader.news().await.data["updates"][0]["row"]["campaignId"], "later");
    for (query, code) in [
        ("filter=campaignId", "bad_filter"),
        ("filter=campaing:c1", "unknown_column"),
        ("filter=state:x", "unknown_state"),
        ("filters=campaignId:c1", "unknown_parameter"),
        ("snapshot=maybe", "bad_flag"),
        ("asOfEpoch=x", "bad_number"),
    ] {
        assert_eq!(f.problem(&format!("{PATH}?{query}")).await, (400, code.into()), "{query}");
    }
    let problem = |answer: Answer| answer.problem();
    let bad = f.ask("GET", PATH, &[("Last-Event-ID", "yesterday")]).await;
    assert_eq!(problem(bad), (400, "bad_last_event_id".into()));
    let ahead = f.ask("GET", PATH, &[("Last-Event-ID", "999")]).await;
    assert_eq!(problem(ahead), (409, "epoch_ahead".into()));
    let unknown = f.get("/v1/views/nothing/subscribe").await;
    assert_eq!(problem(unknown), (404, "unknown_view".into()));
}

#[tokio::test]
async fn an_epoch_that_is_gone_is_410() {
    let mut f = Fixture::with(Limits::default(), vec![], 20_000).await;
    for _ in 0..100 {
        f.add(&[(AT, KEY, metrics(1, 0, 0))]);
    }
    let gone = f.ask("GET", PATH, &[("Last-Event-ID", "3")]).await;
    assert_eq!(gone.problem(), (410, "epoch_gone".into()));
}

#[tokio::test]
async fn large_messages_come_in_parts_and_only_the_last_has_the_epoch() {
    let limits = Limits { message_rows_max: 10, ..Limits::default() };
    let mut f = Fixture::with(limits, vec![], 1 << 20).await;
    let names: Vec<&'static str> =
        (0..35).map(|i| &*Box::leak(format!("p{i}").into_boxed_str())).collect();
    let rows: Vec<_> =
        names.iter().map(|p| (AT, ["c1", p, "SE", "ios"], metrics(1, 0, 0))).collect();
    f.add(&rows);
    let mut reader = Reader::open(&f, PATH, &[]).await;
    for event in ["snapshot", "diff"] {
        let (mut count, mut parts) = (0, 0);
        loop {
            let part = reader.news().await;
            assert_eq!(part.name, event);
            let list = if event == "diff" { "updates" } else { "rows" };
            count += part.data[list].as_array().unwrap().len();
            parts += 1;
            let is_last = part.data["last"] == true;
            assert_eq!(part.id.is_some(), is_last);
            if is_last {
                break;
            }
        }
        let expected = if event == "diff" { 70 } else { 35 };
        assert_eq!(count, expected);
        assert!(parts > expected / 12, "{parts} parts");
        f.add(&rows);
    }
}

#[tokio::test]
async fn lists_of_events_can_be_followed() {
    let mut f = Fixture::new().await;
    f.epoch(&[], &[incident(Fate::Conflict, 1)]);
    let path = "/v1/views/quarantine/subscribe";
    let mut reader = Reader::open(&f, path, &[]).await;
    let snapshot = reader.news().await.data;
    assert_eq!(snapshot["rows"][0]["offset"], 1);
    assert_eq!(snapshot["events"], json!([{ "event": { "eventId": "e1" } }]));
    f.epoch(&[], &[incident(Fate::TooLate, 2), incident(Fate::Quarantined, 3)]);
    let diff = reader.news().await;
    let updates = diff.data["updates"].as_array().unwrap();
    assert_eq!((updates.len(), &updates[0]["diff"]), (1, &json!(1)));
    assert_eq!(updates[0]["row"]["reason"], "unknown_schema_version");
    assert_eq!(updates[0]["event"], json!({ "eventId": "e3" }));
    let path = format!("{path}?filter=reason:id_conflict");
    let mut reader = Reader::open(&f, &path, &[]).await;
    assert_eq!(reader.news().await.data["rows"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn seats_are_limited_and_given_back() {
    let limits = Limits { subscribers_max: 1, ..Limits::default() };
    let mut f = Fixture::with(limits, vec![], 1 << 20).await;
    f.add(&[]);
    let mut reader = Reader::open(&f, PATH, &[]).await;
    reader.event().await.unwrap();
    let full = f.get(PATH).await;
    assert_eq!(full.problem(), (429, "too_many_subscribers".into()));
    assert_eq!(full.headers["retry-after"], "5");
    drop(reader);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while f.queries.subscribers.available_permits() == 0 {
        assert!(std::time::Instant::now() < deadline, "the seat was never given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Reader::open(&f, PATH, &[]).await.event().await.unwrap();
}

#[tokio::test]
async fn a_server_that_stops_says_so() {
    let mut f = Fixture::new().await;
    f.add(&[]);
    let mut reader = Reader::open(&f, PATH, &[]).await;
    assert_eq!(reader.event().await.unwrap().name, "snapshot");
    assert_eq!(reader.event().await.unwrap().name, "progress");
    f.queries.close();
    let last = loop {
        let event = reader.event().await.unwrap();
        if event.name != "progress" {
            break event;
        }
    };
    assert_eq!((last.name.as_str(), last.data["code"].as_str()), ("error", Some("closing")));
    assert_eq!(reader.event().await, None);
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_cut_off_and_stops_nobody() {
    let limits = Limits { unread_ms_max: 100, message_rows_max: 10_000, ..Limits::default() };
    let mut f = Fixture::with(limits, vec![], 64 << 20).await;
    let names: Vec<&'static str> =
        (0..4_000).map(|i| &*Box::leak(format!("p{i}").into_boxed_str())).collect();
    let rows: Vec<_> =
        names.iter().map(|p| (AT, ["c1", p, "SE", "ios"], metrics(1, 0, 0))).collect();
    f.add(&rows);
    let mut reader = Reader::open(&f, PATH, &[]).await;
    // The socket's buffers fill, then the channel, then the stream gives up.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while f.queries.subscribers.available_permits() < 1_000 {
        assert!(std::time::Instant::now() < deadline, "its seat was never given back");
        f.add(&rows);
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let newest = f.add(&rows);
    let mut last = reader.event().await.unwrap();
    while let Some(event) = reader.event().await {
        last = event;
    }
    if last.name == "error" {
        assert_eq!(last.data["code"], "reader_stalled");
    } else {
        // It may not even have taken the reason.
        let epoch = last.data["epoch"].as_u64().expect("a message names its epoch");
        assert!(epoch < newest, "it has not seen everything");
    }
}

#[tokio::test]
async fn a_reader_slower_than_the_history_is_told_so() {
    let mut f = Fixture::with(Limits::default(), vec![], 20_000).await;
    f.add(&[(AT, KEY, metrics(1, 0, 0))]);
    let tables: std::sync::Arc<dyn trueup_sinks::Tables> = f.views.clone();
    let view = tables.catalog().views()[0].clone();
    let start = trueup_sinks::Start::Snapshot(None);
    let follow = tables.follow(view.id, trueup_sinks::Filter::default(), start).unwrap();
    for _ in 0..100 {
        f.add(&[(AT, KEY, metrics(1, 0, 0))]);
    }
    let stream = super::Stream::new(&f.queries, &view.kind, follow);
    let (send, mut receive) = tokio::sync::mpsc::channel(9);
    let seat = f.queries.subscribers.clone().try_acquire_owned().unwrap();
    stream.run(send, seat).await;
    let last = receive.recv().await.unwrap();
    let data: Value = serde_json::from_str(&last.data).unwrap();
    assert_eq!((last.event, data["code"].as_str()), ("error", Some("reader_too_slow")));
    assert!(receive.recv().await.is_none());
}

#[tokio::test]
async fn a_websocket_brings_the_same_messages() {
    let mut f = Fixture::new().await;
    f.add(&[(AT, KEY, metrics(3, 0, 0))]);
    let socket = tokio::net::TcpStream::connect(f.at).await.unwrap();
    let url = format!("ws://{}{PATH}?filter=campaignId:c1", f.at);
    let (mut socket, _) = tokio_tungstenite::client_async(url, socket).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let text = socket.next().await.unwrap().unwrap().into_text().unwrap();
        seen.push(serde_json::from_str::<Value>(&text).unwrap());
    }
    let data = json!({ "epoch": 0, "rows": [row(3, 1, "provisional")], "last": true });
    assert_eq!(seen[0], json!({ "event": "snapshot", "id": 0, "data": data }));
    assert_eq!(seen[1]["event"], "progress");
    f.queries.close();
    let mut last = Value::Null;
    while let Some(Ok(message)) = socket.next().await {
        if let Ok(text) = message.into_text()
            && let Ok(value) = serde_json::from_str(&text)
        {
            last = value;
        }
    }
    assert_eq!((&last["event"], &last["data"]["code"]), (&json!("error"), &json!("closing")));
}

/// One reader is cut off a hundred times at random places, among them the middle of a diff that
/// comes in parts, and comes back with the last id that it saw.
#[tokio::test]
async fn cut_off_a_hundred_times_the_sum_is_the_view() {
    let seed: u64 = std::env::var("TRUEUP_SEED").map_or(1, |s| s.parse().unwrap());
    println!("TRUEUP_SEED={seed}");
    let mut counter = seed << 32;
    let mut random = move |n: u64| {
        counter += 1;
        mix(counter, 77) % n
    };
    let limits = Limits { message_rows_max: 3, ..Limits::default() };
    let mut f = Fixture::with(limits, vec![], 64 << 20).await;
    let (mut sum, mut last_id, mut checked) = (BTreeMap::<String, i64>::new(), None::<u64>, 0);
    let publishers = ["p1", "p2", "p3", "p4", "p5"];
    f.add(&[]);
    for _ in 0..100 {
        let id = last_id.map(|id| id.to_string());
        let headers: Vec<_> = id.iter().map(|id| ("Last-Event-ID", id.as_str())).collect();
        let path = format!("{PATH}?filter=country:SE");
        let mut reader = Reader::open(&f, &path, &headers).await;
        let mut pending = Vec::new();
        if last_id.is_none() {
            sum.clear();
        }
        for _ in 0..random(8) + 2 {
            let publisher = publishers[random(5) as usize];
            let minute = ["2026-04-27T11:58:00Z", AT][random(2) as usize];
            let country = ["SE", "SE", "DE"][random(3) as usize];
            let rows: Vec<_> = (0..random(4))
                .map(|i| {
                    let publisher = publishers[(random(5) + i) as usize % 5];
                    (minute, ["c1", publisher, country, "ios"], metrics(1, 0, 0))
                })
                .chain([(minute, ["c1", publisher, country, "ios"], metrics(0, 1, 7))])
                .collect();
            if random(9) == 0 {
                f.set_frontier(f.frontier_us + MINUTE_US);
            }
            f.add(&rows);
            let event = reader.event().await.unwrap();
            let list = if event.name == "snapshot" { "rows" } else { "updates" };
            for item in event.data[list].as_array().into_iter().flatten() {
                let (row, diff) = match event.name.as_str() {
                    "snapshot" => (item, 1),
                    _ => (&item["row"], item["diff"].as_i64().unwrap()),
                };
                pending.push((row.to_string(), diff));
            }
            // A part without an id is not whole yet.
            let Some(id) = event.id else { continue };
            for (row, diff) in pending.drain(..) {
                *sum.entry(row).or_default() += diff;
            }
            sum.retain(|_, n| *n != 0);
            last_id = Some(id);
            let path = format!("/v1/views/audience_minute?country=SE&asOfEpoch={id}");
            let rows = f.rows(&path).await;
            let expected: BTreeMap<String, i64> =
                rows.iter().map(|row| (row.to_string(), 1)).collect();
            assert_eq!(sum, expected, "at epoch {id}");
            checked += 1;
        }
    }
    assert!(checked > 100, "only {checked} epochs were checked");
    assert!(f.frontier_us > time("2026-04-27T12:05:00Z"), "states changed on the way");
}

/// What is pushed out of a full list is taken back, though the log no longer has the event.
#[tokio::test]
async fn lists_add_up_whatever_the_log_has_deleted() {
    let settings = |views| trueup_sinks::ViewSettings { incidents_max: 3, ..views };
    let rollups = RollupSpec::ad_defaults();
    let mut f = Fixture::over(rollups, Limits::default(), vec![], settings).await;
    let at = |offset| incident(Fate::Conflict, offset);
    f.epoch(&[], &[at(1), at(2), at(3)]);
    let mut reader = Reader::open(&f, "/v1/views/quarantine/subscribe", &[]).await;
    let snapshot = reader.news().await.data;
    let mut sum = BTreeMap::<String, i64>::new();
    for row in snapshot["rows"].as_array().unwrap() {
        *sum.entry(row.to_string()).or_default() += 1;
    }
    assert_eq!(sum.len(), 3);
    for (offset, is_deleted) in [(4, false), (5, true), (6, false)] {
        f.runtime.deleted.store(is_deleted, std::sync::atomic::Ordering::Relaxed);
        f.epoch(&[], &[at(offset)]);
        for update in reader.news().await.data["updates"].as_array().unwrap() {
            let diff = update["diff"].as_i64().unwrap();
            *sum.entry(update["row"].to_string()).or_default() += diff;
            let event = if is_deleted { Value::Null } else { json!(format!("e{offset}")) };
            assert_eq!(update["event"]["eventId"], if diff > 0 { event } else { Value::Null });
        }
        sum.retain(|_, count| *count != 0);
        let mut rows = f.rows("/v1/views/quarantine").await;
        for row in &mut rows {
            let row = row.as_object_mut().unwrap();
            row.retain(|column, _| !["event", "eventError"].contains(&column.as_str()));
        }
        let view: BTreeMap<_, _> = rows.iter().map(|row| (row.to_string(), 1)).collect();
        assert_eq!(sum, view);
    }
}
