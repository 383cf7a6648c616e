//! Every limit, and its answer.

use super::{
    arrow::{ARROW, required, stream},
    counters::Counters,
    http::{batch, event, request, world, world_with},
    memory_log::Mood,
};
use crate::{NoPressure, Pressure, Settings, collect::DESK_KEPT_BYTES_MAX};
use arrow_array::{
    ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray, StringViewArray,
    types::Int32Type,
};
use axum::body::{Body, Bytes};
use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use trueup_operators::{log::Topic, problem::Problem};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

fn settings(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings);
    settings
}

#[tokio::test]
async fn packed_bodies() {
    let world = world();
    let body = batch(&(0..2000).map(|n| event(&format!("e{n}"), "")).collect::<Vec<_>>());
    let packed = gzip(body.as_bytes());
    let gz = [("content-encoding", "gzip")];
    assert_eq!(world.collect_as("collects", &gz, packed.clone()).await.json()["accepted"], 2000);
    let zst = zstd::encode_all(body.as_bytes(), 3).unwrap();
    let answer = world.collect_as("collects", &[("content-encoding", "zstd")], zst).await;
    assert_eq!(answer.json()["accepted"], 2000);
    let answer =
        world.collect_as("collects", &[("content-encoding", "identity")], body.clone()).await;
    assert_eq!(answer.json()["accepted"], 2000);
    for (encoding, body, status, code) in [
        ("gzip", packed[..packed.len() - 1].to_vec(), 400, "bad_encoding"),
        ("gzip", packed[..packed.len() / 2].to_vec(), 400, "bad_encoding"),
        ("gzip", body.clone().into_bytes(), 400, "bad_encoding"),
        ("zstd", packed.clone(), 400, "bad_encoding"),
        ("gzip", Vec::new(), 400, "bad_encoding"),
        ("br", packed.clone(), 415, "unsupported_encoding"),
        ("identity", packed.clone(), 400, "invalid_utf8"),
    ] {
        let headers = [("content-encoding", encoding)];
        let answer = world.collect_as("collects", &headers, body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{encoding}");
    }
    assert_eq!(world.log.frames(Topic::Events).len(), 12, "three bodies in four partitions");
}

#[tokio::test]
async fn bombs_and_large_bodies() {
    let limits = settings(|s| {
        s.body_bytes_max = 10_000;
        s.body_decoded_bytes_max = 100_000;
    });
    let world = world_with(limits, Arc::new(NoPressure));
    let spaces = vec![b' '; 5 << 20];
    for (encoding, bomb) in
        [("gzip", gzip(&spaces)), ("zstd", zstd::encode_all(&spaces[..], 3).unwrap())]
    {
        assert!(bomb.len() <= 10_000);
        let answer = world.collect_as("collects", &[("content-encoding", encoding)], bomb).await;
        assert_eq!(answer.status, 413, "{encoding}");
        assert_eq!(answer.code(), "decoded_body_too_large");
    }
    // Too large by its declared length: not a byte of it is read.
    let unread = Body::from_stream(futures_util::stream::poll_fn(
        |_| -> std::task::Poll<Option<Result<Bytes, std::io::Error>>> { panic!("read") },
    ));
    let answer = world.collect_as("collects", &[("content-length", "10001")], unread).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "body_too_large"));
    // Too large without saying so.
    let chunks = (0..100).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 1000])));
    let stream = Body::from_stream(futures_util::stream::iter(chunks));
    let answer = world.collect_as("collects", &[], stream).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "body_too_large"));
}

/// Some rows of Arrow with a column that names one text in each of them.
fn repeated(column: &'static str, array: ArrayRef) -> Vec<u8> {
    let mut columns = required(array.len());
    columns.push((column, array));
    stream(&RecordBatch::try_from_iter(columns).unwrap())
}

fn dictionary_of(text: &str, rows: usize) -> ArrayRef {
    let keys = Int32Array::from(vec![0; rows]);
    let texts = Arc::new(StringArray::from(vec![text]));
    Arc::new(DictionaryArray::<Int32Type>::try_new(keys, texts).unwrap())
}

/// Views of a thousand bytes into one text, no two of them the same.
fn views_of_one_text(rows: usize) -> ArrayRef {
    let text: String = (0..rows + 1000).map(|n| n.to_string()).collect();
    let whole = StringViewArray::from(vec![text.as_str()]);
    let view = |at: usize| {
        let prefix = u128::from(u32::from_le_bytes(*text.as_bytes()[at..].first_chunk().unwrap()));
        1000 | prefix << 32 | (at as u128) << 96
    };
    let views: Vec<u128> = (0..rows).map(view).collect();
    let buffers = whole.data_buffers().to_vec();
    Arc::new(StringViewArray::try_new(views.into(), buffers, None).unwrap())
}

#[tokio::test]
async fn a_text_that_is_sent_once_counts_in_every_row() {
    let limits = settings(|s| s.body_decoded_bytes_max = 1_000_000);
    let world = world_with(limits, Arc::new(NoPressure));
    let plain = "x".repeat(8000);
    let escaped = "\u{1}".repeat(2000);
    for (body, why) in [
        (repeated("note", dictionary_of(&plain, 200)), "an extra field"),
        (repeated("note", dictionary_of(&escaped, 200)), "escapes"),
        (repeated("sessionId", dictionary_of(&plain[..200], 6000)), "a plain text"),
        (repeated("userAgent", views_of_one_text(1200)), "texts of a dictionary"),
        (repeated("gpp", views_of_one_text(1200)), "consent"),
    ] {
        assert!(body.len() < 600_000, "{why}: {}", body.len());
        let answer = world.collect_as("collects", &[ARROW], body).await;
        assert_eq!(answer.status, 413, "{why}");
        assert_eq!(answer.code(), "decoded_body_too_large", "{why}");
    }
    assert!(world.log.frames(Topic::Events).is_empty());
    let rows = repeated("note", dictionary_of(&plain, 100));
    assert_eq!(world.collect_as("collects", &[ARROW], rows).await.json()["accepted"], 100);
    let feeds = format!(r#","note":"{}""#, "\\n".repeat(4000));
    let events: Vec<_> = (0..100).map(|n| event(&format!("e{n}"), &feeds)).collect();
    let answer = world.collect(batch(&events)).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "decoded_body_too_large"));
}

#[tokio::test]
async fn a_desk_that_has_grown_is_not_kept() {
    let world = world();
    let body = repeated("note", dictionary_of(&"x".repeat(8000), 4000));
    assert!(body.len() < 500_000);
    assert_eq!(world.collect_as("collects", &[ARROW], body).await.json()["accepted"], 4000);
    let desk = world.collector.0.desk();
    assert!(desk.decoder.kept_bytes() <= DESK_KEPT_BYTES_MAX, "{}", desk.decoder.kept_bytes());
}

#[tokio::test]
async fn bodies_in_chunks_slow_bodies_and_broken_ones() {
    let limits = settings(|s| s.body_read_ms_max = 50);
    let world = world_with(limits, Arc::new(NoPressure));
    let body = batch(&(0..500).map(|n| event(&format!("e{n}"), "")).collect::<Vec<_>>());
    for chunk in [1, 7, 1000, 40_000] {
        let chunks: Vec<_> = body
            .as_bytes()
            .chunks(chunk)
            .map(|c| Ok::<_, std::io::Error>(Bytes::copy_from_slice(c)))
            .collect();
        let stream = Body::from_stream(futures_util::stream::iter(chunks));
        let answer = world.collect_as("collects", &[], stream).await;
        assert_eq!(answer.json()["accepted"], 500, "in chunks of {chunk}");
    }
    let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    let answer = world.collect_as("collects", &[], never).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (408, "body_too_slow"));
    let broken = Body::from_stream(futures_util::stream::iter([
        Ok(Bytes::from_static(b"{\"events\":[")),
        Err(std::io::Error::other("connection reset")),
    ]));
    let answer = world.collect_as("collects", &[], broken).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "body_cut_off"));
}

#[tokio::test]
async fn slow_senders_hold_no_decode_slot() {
    let limits = settings(|s| s.decode_threads_max = 1);
    let world = Arc::new(world_with(limits, Arc::new(NoPressure)));
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let world = world.clone();
        waiting.push(tokio::spawn(async move {
            let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
            world.collect_as("collects", &[], Body::from_stream(never)).await
        }));
    }
    tokio::task::yield_now().await;
    let answer = world.collect(batch(&[event("e", "")])).await;
    assert_eq!(answer.status, 202);
    waiting.iter().for_each(|task| task.abort());
}

#[tokio::test]
async fn requests_and_bytes_in_flight() {
    let limits = settings(|s| {
        s.requests_in_flight_max = 2;
        s.body_bytes_max = 8000;
        s.decode_bytes_in_flight_max = 8000;
    });
    let world = Arc::new(world_with(limits, Arc::new(NoPressure)));
    world.log.set(Mood::Slow);
    let mut tasks = Vec::new();
    for n in 0..2 {
        let sender = world.clone();
        tasks.push(tokio::spawn(async move {
            sender.collect(batch(&[event(&format!("e{n}"), "")])).await
        }));
        while world.log.held() <= n {
            tokio::task::yield_now().await;
        }
    }
    let answer = world.collect(batch(&[event("e", "")])).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (429, "too_many_requests_in_flight")
    );
    assert_eq!(answer.header("retry-after"), Some("1"));
    world.log.release();
    for task in tasks {
        assert_eq!(task.await.unwrap().status, 202);
    }
    // A half-sent body holds its bytes.
    let half = futures_util::StreamExt::chain(
        futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 5000]))]),
        futures_util::stream::pending(),
    );
    let sender = world.clone();
    let slow =
        tokio::spawn(
            async move { sender.collect_as("collects", &[], Body::from_stream(half)).await },
        );
    tokio::task::yield_now().await;
    world.log.set(Mood::Well);
    let answer = world.collect(vec![b' '; 5000]).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (429, "too_many_bytes_in_flight"));
    slow.abort();
    assert!(slow.await.is_err());
    assert_eq!(world.collect(batch(&[event("e", "")])).await.status, 202, "it gave them back");
}

/// A body that stops before its end.
fn unfinished(bytes: usize) -> Body {
    let sent =
        futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![b' '; bytes]))]);
    Body::from_stream(futures_util::StreamExt::chain(sent, futures_util::stream::pending()))
}

#[tokio::test]
async fn a_token_that_holds_all_it_can_locks_nobody_out() {
    let limits = settings(|s| {
        s.requests_in_flight_max = 4;
        s.body_bytes_max = 64 << 10;
        s.decode_bytes_in_flight_max = 1 << 20;
    });
    let world = Arc::new(world_with(limits, Arc::new(NoPressure)));
    let mut tasks = Vec::new();
    for _ in 0..100 {
        let sender = world.clone();
        tasks.push(tokio::spawn(async move {
            sender.collect_as("collects", &[], unfinished(60 << 10)).await
        }));
    }
    let mut refused = 0;
    while refused < 80 {
        tokio::task::yield_now().await;
        let (ended, waiting): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|t| t.is_finished());
        tasks = waiting;
        for task in ended {
            let answer = task.await.unwrap();
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (429, "too_many_bytes_in_flight")
            );
            refused += 1;
        }
    }
    assert!((5..=16).contains(&tasks.len()), "{} of its bodies are held", tasks.len());
    let small = batch(&(0..200).map(|n| event(&format!("e{n}"), "")).collect::<Vec<_>>());
    assert_eq!(world.collect_as("collects", &[], vec![b' '; 60 << 10]).await.status, 429);
    for _ in 0..10 {
        assert_eq!(world.collect_as("operates", &[], small.clone()).await.status, 202);
        let verdict = r#"{"verdicts":[{"eventId":"e","verdict":"invalid",
            "decidedAt":"2026-04-27T15:00:00Z"}]}"#;
        let judged = world.send(request("POST", "/v1/verdicts", "judges", &[], verdict)).await;
        assert_eq!(judged.status, 202);
        let put = world.put("/v1/campaigns/c", &[], r#"{"name":"x"}"#).await;
        assert!(put.status.is_success(), "{}", put.json());
    }
    tasks.iter().for_each(|task| task.abort());
}

struct Behind(AtomicBool);

impl Pressure for Behind {
    fn check(&self) -> Result<(), Problem> {
        if self.0.load(Ordering::Relaxed) {
            let title = "the dataflow is too far behind";
            return Err(Problem::new(429, "dataflow_behind", title, "9 s", "wait").retry_after(3));
        }
        Ok(())
    }
}

#[tokio::test]
async fn the_dataflow_pushes_back() {
    let behind = Arc::new(Behind(AtomicBool::new(true)));
    let world = world_with(Settings::default(), behind.clone());
    let answer = world.collect(batch(&[event("e", "")])).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (429, "dataflow_behind"));
    assert_eq!(answer.header("retry-after"), Some("3"));
    behind.0.store(false, Ordering::Relaxed);
    assert_eq!(world.collect(batch(&[event("e", "")])).await.status, 202);
}

#[tokio::test]
async fn verdicts_and_pixels_are_pushed_back_as_well() {
    let counters = Counters::default();
    let _recorder = metrics::set_default_local_recorder(&counters);
    let behind = Arc::new(Behind(AtomicBool::new(true)));
    let world = world_with(Settings::default(), behind.clone());
    let ad = r#"{"landingUrl":"https://shop.example/"}"#;
    assert_eq!(world.put("/v1/ads/a", &[], ad).await.status, 201);
    let verdict = r#"{"verdicts":[{"eventId":"e","verdict":"invalid",
        "decidedAt":"2026-04-27T15:00:00Z"}]}"#;
    let judge = || request("POST", "/v1/verdicts", "judges", &[], verdict);
    let answer = world.send(judge()).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (429, "dataflow_behind"));
    assert_eq!(answer.header("retry-after"), Some("3"));
    let pixels = ["/click?ad_id=a", "/i?ad_id=a", "/conversion?ad_id=a"];
    for uri in pixels {
        let answer = world.send(request("GET", uri, "", &[], Body::empty())).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "dataflow_behind"));
        assert_eq!(answer.header("retry-after"), Some("3"), "{uri}");
    }
    assert_eq!(counters.get("trueup_collector_pixels_refused_total dataflow_behind"), 3);
    assert!(world.log.frames(Topic::Events).is_empty());
    assert!(world.log.frames(Topic::Verdicts).is_empty());
    behind.0.store(false, Ordering::Relaxed);
    assert_eq!(world.send(judge()).await.status, 202);
    for (uri, status) in pixels.into_iter().zip([302, 200, 200]) {
        let answer = world.send(request("GET", uri, "", &[], Body::empty())).await;
        assert_eq!(answer.status, status, "{uri}");
    }
    world.log.set(Mood::Failing);
    assert_eq!(world.send(request("GET", pixels[1], "", &[], Body::empty())).await.status, 503);
    assert_eq!(counters.get("trueup_collector_pixels_refused_total log_unavailable"), 1);
}

#[tokio::test]
async fn a_tokens_rate() {
    let limits = settings(|s| s.events_per_second_max = 100);
    let world = world_with(limits, Arc::new(NoPressure));
    let body = batch(&(0..250).map(|n| event(&format!("e{n}"), "")).collect::<Vec<_>>());
    assert_eq!(world.collect(body.clone()).await.status, 202, "a burst may go into debt");
    let answer = world.collect(body.clone()).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (429, "token_rate"));
    assert_eq!(answer.header("retry-after"), Some("2"));
    assert_eq!(world.collect_as("operates", &[], body.clone()).await.status, 202);
    world.clock.fetch_add(2_000_000, Ordering::Relaxed);
    assert_eq!(world.collect(body).await.status, 202);
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_refused() {
    let limits = settings(|s| s.events_per_batch_max = 0);
    let error = crate::Collector::new(
        super::memory_log::MemoryLog::new(1),
        super::http::KEY,
        Arc::default(),
        limits,
        Arc::new(NoPressure),
        Arc::new(|| 0),
    )
    .map(|_| ())
    .unwrap_err();
    assert!(error.to_string().contains("events_per_batch_max"), "{error}");
    let answer = world().send(request("POST", "/nowhere", "collects", &[], Body::empty())).await;
    assert_eq!(answer.status, 404);
}
