//! `POST /v1/events/collect`: answers, rules, keys, and what the log's word means.

use super::{
    http::{Answer, KEY, NDJSON, NOW_US, World, batch, event, request, world, world_with},
    memory_log::Mood,
    rows::{Row, hex, rows},
};
use crate::{NoPressure, Settings};
use axum::body::Body;
use std::sync::{Arc, atomic::Ordering};
use trueup_operators::{hash::Domain, log::Topic};

fn events_of(world: &World) -> Vec<Row> {
    rows(&world.log.frames(Topic::Events), 4)
}

/// Sends one event and returns the code and message of its error.
async fn error_of(world: &World, event: &str) -> (String, String) {
    let answer = world.collect(format!(r#"{{"events":[{event}]}}"#)).await;
    let json = answer.json();
    assert_eq!((&json["accepted"], &json["rejected"]), (&0.into(), &1.into()), "{json}");
    let error = &json["errors"][0];
    assert!(!error["hint"].as_str().unwrap().is_empty());
    let text = |name: &str| error[name].as_str().unwrap().to_owned();
    (text("code"), text("message"))
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
async fn every_rule_names_the_value_at_fault() {
    let world = world();
    let long = "x".repeat(129);
    let extra: String = (0..65).map(|n| format!(r#","x{n}":1"#)).collect();
    let big = format!(r#","mine":"{}""#, "y".repeat(9000));
    for (more, code, named) in [
        (r#","country":"us""#.to_owned(), "bad_country", "\"us\""),
        (r#","country":"USA""#.into(), "bad_country", "USA"),
        (r#","country":"""#.into(), "empty_field", "country"),
        (r#","region":"""#.into(), "empty_field", "region"),
        (r#","deviceType":"aaaaaaaaaaaaaaaaa""#.into(), "field_too_long", "17 bytes"),
        (format!(r#","publisherId":"{long}""#), "field_too_long", "publisherId"),
        (r#","publisherId":17"#.into(), "wrong_type", "17"),
        (r#","publisherId":["a"]"#.into(), "wrong_type", "[\"a\"]"),
        (r#","publisherId":true"#.into(), "wrong_type", "true"),
        (r#","priceMicros":-1"#.into(), "number_out_of_range", "-1"),
        (r#","priceMicros":1000000001"#.into(), "number_out_of_range", "1000000001"),
        (r#","priceMicros":0.5"#.into(), "not_an_integer", "0.5"),
        (r#","priceMicros":1e3"#.into(), "not_an_integer", "1e3"),
        (r#","priceMicros":"180000""#.into(), "wrong_type", "\"180000\""),
        (
            r#","priceMicros":99999999999999999999999999"#.into(),
            "number_out_of_range",
            "99999999999999999999999999",
        ),
        (r#","priceBasis":"cpx""#.into(), "unknown_price_basis", "cpx"),
        (r#","valueMicros":1000000000000001"#.into(), "number_out_of_range", "1000000000000001"),
        (r#","schemaVersion":70000"#.into(), "number_out_of_range", "70000"),
        (r#","receivedAt":"yesterday""#.into(), "bad_time", "yesterday"),
        (r#","adId":"ad_100""#.into(), "duplicate_field", "adId"),
        (r#","mine":1,"mine":1"#.into(), "duplicate_field", "mine"),
        (r#","\u0061dId":"ad_100""#.into(), "duplicate_field", "adId"),
        (extra, "too_many_fields", "64"),
        (big, "extra_too_large", "8192"),
        (format!(r#","userAgent":"{}""#, "u".repeat(1025)), "field_too_long", "1025"),
        (format!(r#","tcString":"{}""#, "C".repeat(4097)), "field_too_long", "4097"),
    ] {
        let (got, message) = error_of(&world, &event("e", &more)).await;
        assert_eq!(got, code, "{more}: {message}");
        assert!(message.contains(named), "{more}: {message}");
    }
    assert!(events_of(&world).is_empty());
    assert_eq!(world.collector.rejected(), 26);
}

#[tokio::test]
async fn required_fields_and_times() {
    let world = world();
    let all = [
        ("eventId", r#""e1""#),
        ("eventType", r#""click""#),
        ("occurredAt", r#""2026-04-27T15:32:10Z""#),
        ("campaignId", r#""c""#),
        ("adId", r#""a""#),
    ];
    let with = |name: &str, value: Option<&str>| {
        let fields = all.iter().filter_map(|(n, v)| {
            let v = if *n == name { value? } else { v };
            Some(format!(r#""{n}":{v}"#))
        });
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    };
    for (name, _) in all {
        assert_eq!(error_of(&world, &with(name, None)).await.0, "missing_field", "{name}");
        assert_eq!(error_of(&world, &with(name, Some("null"))).await.0, "missing_field");
        assert_eq!(error_of(&world, &with(name, Some(r#""""#))).await.0, "empty_field", "{name}");
        assert_eq!(error_of(&world, &with(name, Some("7"))).await.0, "wrong_type", "{name}");
    }
    for (time, code) in [
        ("1999-12-31T23:59:59Z", "time_out_of_range"),
        ("2100-01-01T00:00:00Z", "time_out_of_range"),
        ("2026-04-27T15:37:11.000001Z", "in_the_future"),
        ("2026-04-27 at noon", "bad_time"),
        ("2026-02-30T00:00:00Z", "bad_time"),
        ("1777303930", "bad_time"),
    ] {
        let event = with("occurredAt", Some(&format!("\"{time}\"")));
        let (got, message) = error_of(&world, &event).await;
        assert_eq!(got, code, "{time}");
        assert!(message.contains(time.trim_end_matches('Z')), "{message}");
    }
    assert_eq!(
        error_of(&world, &with("eventType", Some(r#""view""#))).await.0,
        "unknown_event_type"
    );
    // To the last µs of the skew, and with an offset.
    for time in ["2026-04-27T15:37:11Z", "2026-04-27T17:32:10+02:00"] {
        let event = with("occurredAt", Some(&format!("\"{time}\"")));
        let answer = world.collect(format!(r#"{{"events":[{event}]}}"#)).await.json();
        assert_eq!(answer["accepted"], 1, "{time}");
    }
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
        (format!(r#"{{"events":[{}]}}"#, good.replace("ad_99", "\\ud800")), "bad_json"),
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

/// The payload hashes of events, each sent in a body of its own.
async fn payloads(events: &[String]) -> Vec<String> {
    let mut hashes = Vec::new();
    for event in events {
        let world = world();
        let answer = world.collect(format!(r#"{{"events":[{event}]}}"#)).await;
        assert_eq!(answer.json()["accepted"], 1, "{event}: {}", answer.json());
        hashes.push(events_of(&world)[0]["payload_hash"].clone());
    }
    hashes
}

#[tokio::test]
async fn the_payload_hash_is_of_fields_and_values() {
    let same = payloads(&[
        event("e", r#","country":"US","mine":{"a":[1,2],"b":"x"}"#),
        event("e", r#","mine":{"b":"x","a":[1,2]},"country":"US""#),
        event("e", r#" , "country" : "US" , "mine" : { "a" : [ 1 , 2 ] , "b" : "\u0078" } "#),
        event(
            "e",
            r#","country":"US","mine":{"a":[1,2],"b":"x"},"receivedAt":"2026-04-27T15:32:11Z""#,
        ),
        event("e", r#","country":"US","mine":{"a":[1,2],"b":"x"},"region":null"#),
        event("e", r#","country":"\u0055S","mine":{"a":[1,2],"b":"x"}"#),
        event("e", r#","country":"US","mine":{"a":[1,2],"b":"x"}"#)
            .replace("15:32:10Z", "15:32:10.000Z"),
    ])
    .await;
    assert!(same.iter().all(|hash| *hash == same[0]), "{same:?}");
    let different = payloads(&[
        event("e", ""),
        event("e", r#","n":1"#),
        event("e", r#","n":"1""#),
        event("e", r#","n":1.0"#),
        event("e", r#","n":2"#),
        event("e", r#","m":1"#),
        event("e", r#","n":true"#),
        event("e", r#","n":[1]"#),
        event("e", r#","n":[[1]]"#),
        event("e", r#","n":[1,2]"#),
        event("e", r#","n":[2,1]"#),
        event("e", r#","n":{"a":1}"#),
        event("e", r#","n":{"a":2}"#),
        event("e", r#","n":{"b":1}"#),
        event("e", r#","n":{}"#),
        event("e", r#","n":[]"#),
        event("e", r#","n":"""#),
        event("e", r#","country":"US""#),
        event("e", r#","region":"US""#),
        event("e", r#","priceMicros":0"#),
        event("e", r#","schemaVersion":1"#),
        event("e", r#","gdpr":1"#),
        event("e", r#","gdpr":"1""#),
        event("f", ""),
    ])
    .await;
    let distinct: std::collections::HashSet<_> = different.iter().collect();
    assert_eq!(distinct.len(), different.len());
}

#[tokio::test]
async fn optional_columns_and_derived_ones() {
    let world = world();
    let events = [
        event("plain", ""),
        event("user", r#","userId":"u1","ip":"192.0.2.7""#),
        event("price", r#","priceMicros":5,"priceBasis":"cpm","valueMicros":-3"#),
        event("version", r#","schemaVersion":2"#),
        event("consent", r#","gdpr":0,"gppSid":[7,8],"gpc":true"#),
        event("mine", r#","z":1.50,"a":"q\"\u0007","y":{"k": [ ]},"n":null"#),
        event("unicode", r#","region":"\ud83d\ude00 caf\u00e9 \/""#),
    ];
    assert_eq!(world.collect(batch(&events)).await.json()["accepted"], 7);
    let rows = events_of(&world);
    let row = |id: &str| rows.iter().find(|row| row["event_id"] == id).unwrap();
    assert_eq!(row("user")["user_hash"], hex(&KEY.hash(Domain::User, b"u1")));
    assert_eq!(row("user")["ip_hash"], hex(&KEY.hash(Domain::Ip, b"192.0.2.7")));
    assert_eq!(row("price")["price_micros"], "5");
    assert_eq!(row("price")["price_basis"], "1");
    assert_eq!(row("price")["value_micros"], "-3");
    assert_eq!(row("version")["schema_version"], "2");
    assert_eq!(row("consent")["consent"], r#"{"gdpr":0,"gppSid":[7,8],"gpc":true}"#);
    assert_eq!(row("consent")["consent_state"], "limited");
    assert_eq!(row("mine")["extra"], r#"{"z":1.50,"a":"q\"\u0007","y":{"k": [ ]},"n":null}"#);
    assert_eq!(row("unicode")["region"], "😀 café /");
    assert_eq!(row("plain")["received_at"], NOW_US.to_string());
    assert!(!row("plain").contains_key("user_hash"));
    let all = format!("{rows:?}");
    assert!(!all.contains("192.0.2.7") && !all.contains("\"u1\""), "stored only as hashes");
}

#[tokio::test]
async fn the_advertiser_comes_from_the_campaign() {
    let world = world();
    let answer = world.put("/v1/campaigns/camp_4821", &[], r#"{"advertiserId":"adv_1"}"#).await;
    assert_eq!(answer.status, 201);
    let before = payloads(&[event("a", "")]).await;
    let events = [
        event("a", ""),
        event("b", r#","advertiserId":"adv_2""#),
        event("c", "").replace("camp_4821", "camp_1"),
        event("d", ""),
    ];
    world.collect(batch(&events)).await;
    let rows = events_of(&world);
    let of = |id: &str| {
        let row = rows.iter().find(|row| row["event_id"] == id).unwrap();
        row.get("advertiser_id").cloned()
    };
    assert_eq!(of("a").as_deref(), Some("adv_1"));
    assert_eq!(of("b").as_deref(), Some("adv_2"));
    assert_eq!(of("c"), None);
    assert_eq!(of("d").as_deref(), Some("adv_1"));
    let row = rows.iter().find(|row| row["event_id"] == "a").unwrap();
    assert_eq!(row["payload_hash"], before[0], "what was not sent is not in the payload hash");
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
