//! The rules of an event, the payload hash, and what is stored that was not sent.

use super::{
    collect::events_of,
    http::{KEY, NOW_US, World, batch, event, world},
    rows::hex,
};
use trueup_operators::hash::Domain;

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
        (r#","deviceType":"(other)""#.into(), "reserved_text", "deviceType"),
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
        (r#","schemaVersion":-1"#.into(), "number_out_of_range", "-1"),
        (r#","schemaVersion":"2""#.into(), "wrong_type", "\"2\""),
        (r#","schemaVersion":2.0"#.into(), "not_an_integer", "2.0"),
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
    assert_eq!(world.collector.rejected(), 29);
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
async fn an_event_of_another_version_is_taken_whatever_else_it_holds() {
    let world = world();
    let at = r#""occurredAt":"2026-04-27T15:32:10Z""#;
    let events = [
        format!(r#"{{"eventId":"bare","schemaVersion":2,{at}}}"#),
        format!(
            concat!(
                r#"{{"eventId":"odd","schemaVersion":3,{at},"eventType":"view","adId":[7],"#,
                r#""priceMicros":-1,"country":"us","campaignId":"(other)","placementId":"","#,
                r#""valueMicros":1.5,"receivedAt":"2026-04-27T15:32:11Z","ip":"192.0.2.7","#,
                r#""userId":["u1"],"region":"{long}","mine":{{"a":1}},"none":null}}"#
            ),
            at = at,
            long = "r".repeat(1_000),
        ),
        format!(r#"{{"eventId":"high","schemaVersion":70000,{at}}}"#),
        format!(r#"{{"eventId":"higher","schemaVersion":99999999999999999999,{at}}}"#),
        event("alike", r#","schemaVersion":65535"#),
    ];
    let answer = world.collect(batch(&events)).await.json();
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&5.into(), &0.into()), "{answer}");
    let rows = events_of(&world);
    let row = |id: &str| rows.iter().find(|row| row["event_id"] == id).unwrap();
    for id in ["bare", "odd", "high", "higher"] {
        assert_eq!(row(id)["id_hash"], hex(&KEY.hash(Domain::Event, id.as_bytes())));
        assert_eq!((row(id)["campaign_id"].as_str(), row(id)["ad_id"].as_str()), ("", ""));
    }
    let version = |id: &str| row(id)["schema_version"].as_str();
    assert_eq!([version("bare"), version("odd"), version("alike")], ["2", "3", "65535"]);
    assert_eq!([version("high"), version("higher")], ["65535", "65535"]);
    assert_eq!(row("bare").get("extra"), None);
    assert_eq!(row("high")["extra"], r#"{"schemaVersion":70000}"#);
    assert_eq!(row("higher")["extra"], r#"{"schemaVersion":99999999999999999999}"#);
    assert_eq!(row("alike")["campaign_id"], "camp_4821", "what fits has its columns");
    let odd = row("odd");
    let extra: serde_json::Value = serde_json::from_str(&odd["extra"]).unwrap();
    let expected = serde_json::json!({
        "eventType": "view", "adId": [7], "priceMicros": -1, "country": "us",
        "campaignId": "(other)", "placementId": "", "valueMicros": 1.5,
        "region": "r".repeat(1_000), "mine": { "a": 1 }, "none": null,
    });
    assert_eq!(extra, expected);
    assert_eq!(odd["ip_hash"], hex(&KEY.hash(Domain::Ip, b"192.0.2.7")));
    assert_eq!(odd["received_at"], (NOW_US_OF_ODD).to_string());
    // An id, a time and a form it must have all the same, and the token has its say.
    for (event, code) in [
        (format!(r#"{{"schemaVersion":2,{at}}}"#), "missing_field"),
        (r#"{"eventId":"e","schemaVersion":2}"#.to_owned(), "missing_field"),
        (format!(r#"{{"eventId":"","schemaVersion":2,{at}}}"#), "empty_field"),
        (format!(r#"{{"eventId":17,"schemaVersion":2,{at}}}"#), "wrong_type"),
        (
            format!(r#"{{"eventId":"{}","schemaVersion":2,{at}}}"#, "i".repeat(129)),
            "field_too_long",
        ),
        (r#"{"eventId":"e","schemaVersion":2,"occurredAt":"now"}"#.into(), "bad_time"),
        (
            r#"{"eventId":"e","schemaVersion":2,"occurredAt":"2099-01-01T00:00:00Z"}"#.into(),
            "in_the_future",
        ),
        (format!(r#"{{"eventId":"e","schemaVersion":2,{at},"x":1,"x":2}}"#), "duplicate_field"),
        (
            format!(r#"{{"eventId":"e","schemaVersion":2,{at},"adId":"{}"}}"#, "a".repeat(32_768)),
            "extra_too_large",
        ),
    ] {
        assert_eq!(error_of(&world, &event).await.0, code, "{event:.200}");
    }
    let body = batch(&[format!(r#"{{"eventId":"e","schemaVersion":2,{at}}}"#)]);
    let answer = world.collect_as("bound", &[], body).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "wrong_publisher"));
}

/// 2026-04-27T15:32:11Z
const NOW_US_OF_ODD: i64 = 1_777_303_931_000_000;

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
