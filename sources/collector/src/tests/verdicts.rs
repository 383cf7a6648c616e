//! `POST /v1/verdicts`.

use super::http::{Answer, KEY, World, request, world};
use serde_json::{Value, json};
use trueup_operators::{
    event::{Target, Verdict},
    hash::Domain,
    log::Topic,
};

const DECIDED: &str = "2026-04-27T15:00:00Z";

async fn judge(world: &World, body: impl Into<axum::body::Body>) -> Answer {
    world.send(request("POST", "/v1/verdicts", "judges", &[], body)).await
}

fn verdicts_of(world: &World) -> Vec<Verdict> {
    let frames = world.log.frames(Topic::Verdicts);
    let read = |frame: &trueup_operators::log::Frame| -> Vec<Verdict> {
        let verdicts: Vec<Verdict> = serde_json::from_slice(&frame.payload).unwrap();
        assert_eq!(verdicts.len(), frame.records as usize);
        verdicts
    };
    frames.iter().flat_map(read).collect()
}

#[tokio::test]
async fn verdicts_become_one_frame() {
    let world = world();
    let body = json!({"verdicts": [
        {"eventId": "e1", "verdict": "invalid", "reasonCode": "click_farm",
         "decidedAt": "2026-04-27T15:00:00.5Z", "modelVersion": "m7", "source": "fraud"},
        {"impressionId": "i1", "verdict": "valid", "decidedAt": "2026-04-27T17:00:00+02:00"},
    ]});
    let answer = judge(&world, body.to_string()).await;
    assert_eq!(answer.status, 202);
    assert_eq!((&answer.json()["accepted"], &answer.json()["rejected"]), (&2.into(), &0.into()));
    assert!(answer.json()["ingestBatchId"].as_str().unwrap().starts_with("ib_"));
    let verdicts = verdicts_of(&world);
    assert_eq!(
        verdicts[0],
        Verdict {
            target: Target::Event,
            id: "e1".into(),
            hash: KEY.hash(Domain::Event, b"e1"),
            invalid: true,
            decided_at_us: 1_777_302_000_500_000,
            reason_code: "click_farm".into(),
            model_version: "m7".into(),
            source: "fraud".into(),
        }
    );
    assert_eq!((verdicts[1].target, verdicts[1].invalid), (Target::Impression, false));
    assert_eq!(verdicts[1].hash, KEY.hash(Domain::Impression, b"i1"));
    assert_eq!(verdicts[1].decided_at_us, 1_777_302_000_000_000);
    assert_eq!(world.log.frames(Topic::Verdicts).len(), 1);
}

#[tokio::test]
async fn every_rule_of_a_verdict() {
    let world = world();
    let good = r#""decidedAt":"2026-04-27T15:00:00Z","verdict":"invalid""#;
    let cases = [
        (format!("{{{good}}}"), "missing_field"),
        (format!(r#"{{"eventId":"e","impressionId":"i",{good}}}"#), "two_targets"),
        (format!(r#"{{"eventId":"",{good}}}"#), "empty_field"),
        (format!(r#"{{"eventId":7,{good}}}"#), "wrong_type"),
        (format!(r#"{{"eventId":"{}",{good}}}"#, "e".repeat(129)), "field_too_long"),
        (format!(r#"{{"eventId":"e","eventId":"f",{good}}}"#), "duplicate_field"),
        (format!(r#"{{"eventId":"e","because":"x",{good}}}"#), "unknown_field"),
        (r#"{"eventId":"e","verdict":"invalid"}"#.into(), "missing_field"),
        (
            r#"{"eventId":"e","verdict":"bad","decidedAt":"2026-04-27T15:00:00Z"}"#.into(),
            "unknown_verdict",
        ),
        (r#"{"eventId":"e","verdict":"valid","decidedAt":"now"}"#.into(), "bad_time"),
        (
            r#"{"eventId":"e","verdict":"valid","decidedAt":"1990-01-01T00:00:00Z"}"#.into(),
            "time_out_of_range",
        ),
        (
            r#"{"eventId":"e","verdict":"valid","decidedAt":"2027-01-01T00:00:00Z"}"#.into(),
            "in_the_future",
        ),
        ("17".into(), "not_an_object"),
        ("{}".into(), "missing_field"),
    ];
    let list: Vec<&str> = cases.iter().map(|case| case.0.as_str()).collect();
    let body = format!(r#"{{"verdicts":[{},{{"eventId":"ok",{good}}}]}}"#, list.join(","));
    let answer = judge(&world, body).await.json();
    assert_eq!(
        (&answer["accepted"], &answer["rejected"]),
        (&1.into(), &cases.len().into()),
        "{answer}"
    );
    for (index, (case, code)) in cases.iter().enumerate() {
        let error = &answer["errors"][index];
        assert_eq!((&error["index"], &error["code"]), (&index.into(), &(*code).into()), "{case}");
    }
    assert_eq!(answer["errors"][1]["eventId"], "e");
    assert_eq!(verdicts_of(&world).len(), 1);
    assert_eq!(world.collector.rejected(), 0, "verdicts are no events");
}

#[tokio::test]
async fn bodies_that_are_refused() {
    let world = world();
    for (body, status, code) in [
        ("{}".to_owned(), 400, "empty_batch"),
        (r#"{"verdicts":[]}"#.into(), 400, "empty_batch"),
        (r#"{"verdicts":{}}"#.into(), 400, "bad_json"),
        (r#"{"verdicts":[{"eventId":"a"}],"verdicts":[{"eventId":"b"}]}"#.into(), 400, "bad_json"),
        (r#"{"verdicts":[{"eventId":"e"]}"#.into(), 400, "bad_json"),
        ("[".repeat(1_000_000), 400, "bad_json"),
        (format!(r#"{{"verdicts":[{}0]}}"#, "0,".repeat(10_000)), 413, "too_many_verdicts"),
        (" ".repeat(9 << 20), 413, "body_too_large"),
    ] {
        let answer = judge(&world, body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code));
    }
    let wrong = world.send(request("POST", "/v1/verdicts", "collects", &[], "{}")).await;
    assert_eq!(wrong.status, 403);
    let list: Vec<Value> = (0..10_000)
        .map(|n| json!({"eventId": format!("e{n}"), "verdict": "invalid", "decidedAt": DECIDED}))
        .collect();
    assert_eq!(
        judge(&world, json!({"verdicts": list}).to_string()).await.json()["accepted"],
        10_000
    );
}
