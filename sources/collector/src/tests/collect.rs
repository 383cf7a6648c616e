//! `POST /v1/events/collect`: answers, rules, keys, and what the log's word means.

use super::{
    http::{Answer, KEY, NDJSON, World, batch, event, request, world, world_with},
    memory_log::Mood,
    rows::{Row, hex, rows},
};
use crate::{NoPressure, Settings};
use axum::body::Body;
use std::{
    io::Write,
    sync::{Arc, atomic::Ordering},
};
use trueup_operators::{hash::Domain, log::Topic};

pub(super) fn events_of(world: &World) -> Vec<Row> {
    rows(&world.log.frames(Topic::Events), 4)
}

#[tokio::test]
async fn takes_the_example_of_the_contract() {
    let world = world();
    let body = r#"{
  "events": [
    {
      "eventId": "evt_01JT3J6Y1W0D0Q8K3A2R6H8T9N",
      "eventType": "click",
      "occurredAt": "2026-04-27T15:32:10Z",
      "receivedAt": "2026-04-27T15:32:11Z",
      "campaignId": "camp_4821",
      "adId": "ad_99",
      "publisherId": "pub_17",
      "placementId": "plc_home_top",
      "country": "US",
      "deviceType": "ios",
      "auctionId": "auc_884201",
      "impressionId": "imp_442211",
      "priceMicros": 180000
    }
  ]
}"#;
    let answer = world.collect(body).await;
    assert_eq!(answer.status, 202);
    let json = answer.json();
    assert_eq!((&json["accepted"], &json["rejected"]), (&1.into(), &0.into()));
    assert_eq!(json["errors"].as_array().unwrap().len(), 0);
    let id = json["ingestBatchId"].as_str().unwrap();
    assert!(id.starts_with("ib_01") && id.len() == 29, "{id}");
    let row = &events_of(&world)[0];
    for (column, value) in [
        ("event_id", "evt_01JT3J6Y1W0D0Q8K3A2R6H8T9N"),
        ("event_type", "1"),
        ("occurred_at", "1777303930000000"),
        ("received_at", "1777303931000000"),
        ("campaign_id", "camp_4821"),
        ("ad_id", "ad_99"),
        ("publisher_id", "pub_17"),
        ("placement_id", "plc_home_top"),
        ("country", "US"),
        ("device_type", "ios"),
        ("auction_id", "auc_884201"),
        ("impression_id", "imp_442211"),
        ("price_micros", "180000"),
    ] {
        assert_eq!(row[column], value, "{column}");
    }
    assert_eq!(row["id_hash"], hex(&KEY.hash(Domain::Event, b"evt_01JT3J6Y1W0D0Q8K3A2R6H8T9N")));
    assert_eq!(row["impression_hash"], hex(&KEY.hash(Domain::Impression, b"imp_442211")));
    assert_eq!(row.len(), 16, "{row:?}");
}

#[tokio::test]
async fn good_events_are_taken_and_bad_ones_named() {
    let world = world();
    let mut events: Vec<String> = (0..300).map(|n| event(&format!("e{n}"), "")).collect();
    for bad in (0..300).step_by(2) {
        events[bad] = event(&format!("e{bad}"), r#","country":"Germany""#);
    }
    events[150] = "17".into();
    let json = world.collect(batch(&events)).await.json();
    assert_eq!((&json["accepted"], &json["rejected"]), (&150.into(), &150.into()));
    let errors = json["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 100, "the first hundred");
    for (number, error) in errors.iter().enumerate() {
        assert_eq!(error["index"], 2 * number);
        if number == 75 {
            assert_eq!((&error["code"], &error["eventId"]), (&"not_an_object".into(), &().into()));
        } else {
            assert_eq!(error["eventId"], format!("e{}", 2 * number));
        }
    }
    assert_eq!(events_of(&world).len(), 150);
    assert_eq!(world.collector.rejected(), 150);
}

#[tokio::test]
async fn whole_bodies_that_are_refused() {
    let world = world();
    let good = event("e", "");
    for (body, code) in [
        (String::new(), "bad_json"),
        ("{}".into(), "bad_json"),
        ("[]".into(), "bad_json"),
        ("null".into(), "bad_json"),
        (good.clone(), "bad_json"),
        (format!("[{good}]"), "bad_json"),
        (r#"{"events":{}}"#.into(), "bad_json"),
        (r#"{"events":[]}"#.into(), "empty_batch"),
        (format!(r#"{{"events":[{good}"#), "bad_json"),
        (format!(r#"{{"events":[{good}]"#), "bad_json"),
        (format!(r#"{{"events":[{good},]}}"#), "bad_json"),
        (format!(r#"{{"events":[{good}]}} x"#), "bad_json"),
        (format!(r#"{{"events":[{good}],"events":[{good}]}}"#), "bad_json"),
        (format!(r#"{{"events":[{}]}}"#, &good[..good.len() - 1]), "bad_json"),
        (format!(r#"{{"events":[{}]}}"#, good.replace("ad_99", "ad\n99")), "bad_json"),
        (format!(r#"{{"events":[{}]}}"#, good.replace("ad_99", "\\x")), "bad_json"),
        (format!(r#"{{"events":[{}]}}"#, event("e", r#","n":01"#)), "bad_json"),
        (format!(r#"{{"events":[{}]}}"#, event("e", r#","n":1."#)), "bad_json"),
        (format!(r#"{{"events":[{}]}}"#, event("e", r#","n":tru"#)), "bad_json"),
        (format!(r#"{{"events":[{}]}}"#, event("e", r#","n":{"a":1,}"#)), "bad_json"),
        (format!(r#"{{"events":[{}]}}"#, event("e", r#","n":[1 2]"#)), "bad_json"),
        (format!(r#"{{"events":[{}]}}"#, event("e", r#","n":[1}"#)), "bad_json"),
        (
            format!(r#"{{"events":[{}]}}"#, event("e", &format!(",\"n\":{}", "[".repeat(100_000)))),
            "bad_json",
        ),
    ] {
        let answer = world.collect(body.clone()).await;
        assert_eq!(answer.status, 400, "{body:.200}");
        assert_eq!(answer.code(), code, "{body:.200}");
    }
    let invalid = [b"{\"events\":[\"", &[0xff, 0xfe][..], b"\"]}"].concat();
    let answer = world.collect(invalid).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "invalid_utf8"));
    assert!(events_of(&world).is_empty());
    // Around the events an envelope may say what it likes, in any order and with any spaces.
    let body = format!("\r\n {{ \"a\" : [{{}} , []], \"events\" :\t[ {good} ] , \"z\":null }}\n");
    assert_eq!(world.collect(body).await.json()["accepted"], 1);
}

#[tokio::test]
async fn a_text_that_was_cut_and_a_field_too_deep_are_errors_of_their_event() {
    let world = world();
    let deep = |levels: usize| format!(",\"n\":{}{}", "[".repeat(levels), "]".repeat(levels));
    let mixed = format!(",\"n\":{}1{}", "{\"a\":[".repeat(500), "]}".repeat(500));
    let events = [
        event("a", ""),
        event("cut", r#","region":"caf\ud83d""#),
        event("low", r#","mine":"\ude00","n":{"\ud83d":[1,{"b":"\ud83d\u0041"}]}"#),
        event("deep", &deep(65)),
        event("deeper", &deep(100_000)),
        event("mixed", &mixed),
        format!("[{}]", event("inside", r#","region":"\ud83d""#)),
        event("b", &deep(64)),
        event("c", r#","region":"\ud83d\ude00""#),
    ];
    let body = format!(r#"{{"meta":"\udfff","events":[{}],"more":{}}}"#, events.join(" ,\n"), 1);
    let answer = world.collect(body).await.json();
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&3.into(), &6.into()), "{answer}");
    let errors = answer["errors"].as_array().unwrap();
    let of = |at: usize, name: &str| errors[at][name].as_str().unwrap_or("").to_owned();
    let named: Vec<_> = (0..6).map(|at| (of(at, "eventId"), of(at, "code"))).collect();
    let bad = |id: &str| (id.to_owned(), "bad_json".to_owned());
    let mut expected = ["cut", "low", "deep", "deeper", "mixed"].map(bad).to_vec();
    expected.push((String::new(), "not_an_object".into()));
    assert_eq!(named, expected);
    assert!(of(0, "message").contains("surrogate") && of(0, "hint").contains("between"));
    assert!(of(2, "message").contains("64 levels") && of(2, "hint").contains("flatter"));
    let mut ids: Vec<String> = events_of(&world).iter().map(|r| r["event_id"].clone()).collect();
    ids.sort();
    assert_eq!(ids, ["a", "b", "c"]);
    // Where such an event is no JSON either, nobody knows where it ends.
    for broken in [
        r#","region":"\ud83d","n":[1}"#,
        r#","region":"\ud83d","n":"#,
        r#","region":"\ud83d","n":"\ud8""#,
        &format!(",\"n\":{}{}", "[".repeat(200), "]".repeat(199)),
        &format!(",\"n\":{}1{}", "{\"a\":[".repeat(70), "]}".repeat(69) + "}]"),
    ] {
        let answer = world.collect(batch(&[event("a", ""), event("x", broken)])).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "bad_json"), "{broken}");
    }
}

#[tokio::test]
async fn a_line_that_is_not_utf_8_is_an_error_of_that_line() {
    let world = world();
    let cut = [event("cut", ",\"region\":\"caf").as_bytes(), b"\xc3\"}"].concat();
    let lines = [event("a", "").into_bytes(), cut.clone(), event("b", "").into_bytes()];
    let answer = world.collect_as("collects", &[NDJSON], lines.join(&b'\n')).await.json();
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&2.into(), &1.into()), "{answer}");
    let error = &answer["errors"][0];
    assert_eq!((&error["index"], &error["code"]), (&1.into(), &"invalid_utf8".into()));
    let second = lines[0].len() + 1;
    assert!(error["message"].as_str().unwrap().contains(&format!("byte {second} ")), "{error}");
    assert!(!error["hint"].as_str().unwrap().is_empty());
    // Not even a line is a text.
    for body in [cut.clone(), [&cut[..], b"\n\n", &cut].concat(), b"\x1f\x8b\x08\n\xff".to_vec()] {
        let answer = world.collect_as("collects", &[NDJSON], body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "invalid_utf8"));
    }
}

#[tokio::test]
async fn a_malformed_line_is_an_error_of_that_line() {
    let world = world();
    let lines = [
        event("a", ""),
        "{\"eventId\":\"broken\"".into(),
        String::new(),
        "   ".into(),
        event("b", "") + "\r",
        "17".into(),
        format!("{}{}", event("c", ""), event("d", "")),
        "{\"eventId\":\"e\"}".into(),
        event("f", &format!(",\"deep\":{}{}", "[".repeat(65), "]".repeat(65))),
        event("g", &format!(",\"deep\":{}{}", "[".repeat(64), "]".repeat(64))),
    ];
    let answer = world.collect_as("collects", &[NDJSON], lines.join("\n")).await;
    let json = answer.json();
    assert_eq!((&json["accepted"], &json["rejected"]), (&3.into(), &5.into()), "{json}");
    let errors: Vec<(u64, &str)> = json["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["index"].as_u64().unwrap(), e["code"].as_str().unwrap()))
        .collect();
    let expected = [
        (1, "bad_json"),
        (3, "not_an_object"),
        (4, "bad_json"),
        (5, "missing_field"),
        (6, "bad_json"),
    ];
    assert_eq!(errors, expected);
    let mut ids: Vec<String> = events_of(&world).iter().map(|r| r["event_id"].clone()).collect();
    ids.sort();
    assert_eq!(ids, ["a", "b", "g"]);
    let empty = world.collect_as("collects", &[NDJSON], "\n\n").await;
    assert_eq!(empty.code(), "empty_batch");
}

#[tokio::test]
async fn tokens_roles_and_publishers() {
    let world = world();
    let of = |publisher: &str| event("e", &format!(r#","publisherId":"{publisher}""#));
    let body = batch(&[event("e", "")]);
    let answer = world.collect_as("", &[], body.clone()).await;
    assert_eq!((answer.status.as_u16(), answer.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(world.collect_as("wrong", &[], body.clone()).await.status, 401);
    assert_eq!(world.collect_as("judges", &[], body.clone()).await.status, 403);
    assert_eq!(world.collect_as("operates", &[], body.clone()).await.status, 202);
    // A token that is bound to publishers.
    let answer = world.collect_as("bound", &[], batch(&[of("pub_1"), event("e", "")])).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "wrong_publisher"));
    assert!(answer.json()["detail"].as_str().unwrap().contains("pub_1"));
    assert_eq!(world.collector.rejected(), 2, "received = accepted + rejected");
    let answer =
        world.collect_as("bound", &[], batch(&[of("pub_17"), of("pub_1"), of("pub_18")])).await;
    let json = answer.json();
    assert_eq!((&json["accepted"], &json["rejected"]), (&2.into(), &1.into()));
    assert_eq!(
        (&json["errors"][0]["index"], &json["errors"][0]["code"]),
        (&1.into(), &"wrong_publisher".into())
    );
}

#[tokio::test]
async fn the_answer_waits_for_the_log() {
    let world = Arc::new(world());
    world.log.set(Mood::Slow);
    let sender = world.clone();
    let task = tokio::spawn(async move { sender.collect(batch(&[event("e", "")])).await });
    while world.log.held() == 0 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert!(!task.is_finished(), "answered before it was durable");
    world.log.release();
    assert_eq!(task.await.unwrap().status, 202);
}

#[tokio::test]
async fn what_the_log_cannot_take_is_not_acknowledged() {
    let world = world();
    for (mood, status, code, retry) in [
        (Mood::Busy, 503, "log_busy", true),
        (Mood::Failing, 503, "log_unavailable", true),
        (Mood::Vanishing, 503, "log_unavailable", true),
        (Mood::Narrow, 413, "batch_too_large", false),
    ] {
        world.log.set(mood);
        let key = [("idempotency-key", "k")];
        let answer = world.collect_as("collects", &key, batch(&[event("e", ""), "7".into()])).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{mood:?}");
        assert_eq!(answer.header("retry-after").is_some(), retry, "{mood:?}");
    }
    assert_eq!(world.collector.rejected(), 0, "nothing was received");
    // The key of a failed request is free.
    world.log.set(Mood::Well);
    let key = [("idempotency-key", "k")];
    let answer = world.collect_as("collects", &key, batch(&[event("e", "")])).await;
    assert_eq!(answer.status, 202);
}

#[tokio::test]
async fn an_idempotency_key_gets_its_first_answer() {
    let world = world();
    let key = [("idempotency-key", "4711")];
    let body = batch(&[event("e", ""), "7".into()]);
    let first = world.collect_as("collects", &key, body.clone()).await;
    let second = world.collect_as("collects", &key, body.clone()).await;
    assert_eq!((second.status, &second.body), (first.status, &first.body));
    assert_eq!(events_of(&world).len(), 1, "taken once");
    assert_eq!(world.collector.rejected(), 1, "counted once");
    let other = world.collect_as("collects", &key, batch(&[event("f", "")])).await;
    assert_eq!((other.status.as_u16(), other.code().as_str()), (422, "idempotency_key_reused"));
    let somebody = world.collect_as("operates", &key, batch(&[event("g", "")])).await;
    assert_eq!(somebody.status, 202, "keys are per token");
    let long = "k".repeat(256);
    let answer = world.collect_as("collects", &[("idempotency-key", &long)], body.clone()).await;
    assert_eq!(answer.code(), "bad_idempotency_key");
    world.clock.fetch_add(25 * 3_600_000_000, Ordering::Relaxed);
    let late = world.collect_as("collects", &key, body).await;
    assert_ne!(late.body, first.body, "the answer has expired");
}

#[tokio::test]
async fn a_retry_may_be_packed_anew() {
    let world = world();
    let body = batch(&[event("e", "")]);
    let gzip = |mtime| {
        let packer = flate2::GzBuilder::new().mtime(mtime);
        let mut packer = packer.write(Vec::new(), flate2::Compression::new(6));
        packer.write_all(body.as_bytes()).unwrap();
        packer.finish().unwrap()
    };
    let key = ("idempotency-key", "k");
    let packed = [key, ("content-encoding", "gzip")];
    let first = world.collect_as("collects", &packed, gzip(1)).await;
    assert_eq!(first.status, 202);
    assert_ne!(gzip(1), gzip(2));
    let second = world.collect_as("collects", &packed, gzip(2)).await;
    assert_eq!((second.status, &second.body), (first.status, &first.body));
    let plain = world.collect_as("collects", &[key], body.clone()).await;
    assert_eq!((plain.status, &plain.body), (first.status, &first.body));
    assert_eq!(events_of(&world).len(), 1, "taken once");
    let lines = world.collect_as("collects", &[key, NDJSON], event("e", "")).await;
    assert_eq!(lines.code(), "idempotency_key_reused");
}

#[tokio::test]
async fn two_requests_with_one_key_at_the_same_time() {
    let world = Arc::new(world());
    world.log.set(Mood::Slow);
    let body = batch(&[event("e", "")]);
    let (sender, first) = (world.clone(), body.clone());
    let task = tokio::spawn(async move {
        sender.collect_as("collects", &[("idempotency-key", "k")], first).await
    });
    while world.log.held() == 0 {
        tokio::task::yield_now().await;
    }
    let second = world.collect_as("collects", &[("idempotency-key", "k")], body.clone()).await;
    assert_eq!(
        (second.status.as_u16(), second.code().as_str()),
        (409, "idempotency_key_in_progress")
    );
    // The first sender goes away; its work goes on, and its answer waits for it.
    task.abort();
    assert!(task.await.is_err());
    world.log.release();
    world.log.set(Mood::Well);
    let mut third = world.collect_as("collects", &[("idempotency-key", "k")], body.clone()).await;
    while third.status == 409 {
        tokio::task::yield_now().await;
        third = world.collect_as("collects", &[("idempotency-key", "k")], body.clone()).await;
    }
    assert_eq!(third.status, 202);
    assert_eq!(events_of(&world).len(), 1, "taken once");
}

#[tokio::test]
async fn fifty_thousand_events_and_not_one_more() {
    let settings = Settings { events_per_batch_max: 50_000, ..Settings::default() };
    let world = world_with(settings, Arc::new(NoPressure));
    let mut events: Vec<String> = (0..50_000).map(|n| event(&format!("e{n}"), "")).collect();
    assert_eq!(world.collect(batch(&events)).await.json()["accepted"], 50_000);
    // The one that is too many counts even if it is bad.
    for last in [event("last", ""), "{}".into()] {
        events.push(last);
        let lines: Answer = world.collect_as("collects", &[NDJSON], events.join("\n")).await;
        let json = world.collect(batch(&events)).await;
        for answer in [lines, json] {
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "too_many_events"));
        }
        events.pop();
    }
    assert_eq!(events_of(&world).len(), 50_000);
}

#[tokio::test]
async fn other_methods_and_types() {
    let world = world();
    let get =
        world.send(request("GET", "/v1/events/collect", "collects", &[], Body::empty())).await;
    assert_eq!(get.status, 405);
    let xml = [("content-type", "text/xml")];
    let answer = world.collect_as("collects", &xml, "<events/>").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (415, "unsupported_media_type"));
    let charset = [("content-type", "application/json; charset=utf-8")];
    assert_eq!(world.collect_as("collects", &charset, batch(&[event("e", "")])).await.status, 202);
}
