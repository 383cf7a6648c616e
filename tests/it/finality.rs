//! P8, finality: a bucket is provisional, then settling, then final, and what comes at each stage
//! ends where the contract says. Lateness and horizon are chosen so that the minute before the
//! test began goes through all of it within seconds.

use crate::{
    server::Home,
    sse::{EventStream, Known},
    traffic::{click, now_us, verdict, wait_for},
};
use serde_json::{Value, json};
use std::time::Duration;
use trueup_operators::time::{HOUR_US, MINUTE_US, SECOND_US, format_rfc3339};

/// From the start of the test to settling, and from there to final. A loaded machine takes a
/// while to start a server.
const STAGE_US: i64 = 4 * SECOND_US;
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_bucket_is_provisional_then_settling_then_final() {
    let began_us = now_us();
    let minute_end_us = began_us / MINUTE_US * MINUTE_US;
    let since_ms = (began_us - minute_end_us + STAGE_US) / 1_000;
    let home = Home::new(&format!(
        "[time]\nallowed_lateness = \"{since_ms}ms\"\ncorrection_horizon = \"{}ms\"\n\
         future_skew_max = \"1s\"\n",
        since_ms + STAGE_US / 1_000
    ));
    let server = home.start();
    let client = server.client();
    let mut stream = EventStream::subscribe(&client, "/v1/views/audience_minute/subscribe");
    let at_us = minute_end_us - 30 * SECOND_US;
    let path = |basis: &str| {
        format!(
            "/v1/reports/campaigns/camp_4821?from={}&to={}&granularity=minute&basis={basis}",
            format_rfc3339(minute_end_us - HOUR_US),
            format_rfc3339(minute_end_us)
        )
    };
    let row = || client.get(&path("realtime")).expect(200).json["rows"].get(0).cloned();
    let wait = |what: &str, is: &dyn Fn(&Value) -> bool| {
        wait_for(what, PATIENCE, || row().filter(|row| is(row)))
    };
    let says = |row: &Value, clicks: i64, version: i64, state: &str| {
        assert_eq!(row["clicks"], json!(clicks), "{row}");
        assert_eq!(row["version"], json!(version), "{row}");
        assert_eq!(row["state"], json!(state), "{row}");
        assert_eq!(row["isFinalized"], json!(state == "final"), "{row}");
    };

    client.collect(&[click("provisional", at_us)]).expect(202);
    says(&wait("a click", &|_| true), 1, 1, "provisional");

    wait("the bucket settles", &|row| row["state"] == "settling");
    client.collect(&[click("late", at_us)]).expect(202);
    says(&wait("the late click counts", &|row| row["clicks"] == 2), 2, 2, "settling");
    let billing = client.get(&path("billing")).expect(200).json;
    assert_eq!(billing["rows"], json!([]), "nothing is final yet");

    let settled = wait("the bucket is final", &|row| row["state"] == "final");
    says(&settled, 2, 2, "final");
    client.collect(&[click("too_late", at_us)]).expect(202);
    client.judge(&[verdict("late", "invalid", now_us())]).expect(202);
    let counts = client.settled();
    counts.check();
    assert_eq!((counts.counted, counts.too_late), (2, 1), "{counts:?}");
    let late = client.get("/v1/views/late_events").expect(200);
    assert!(String::from_utf8_lossy(&late.body).contains("\"too_late\""), "{late:?}");
    // A verdict travels through an epoch of its own; two later it would have shown.
    let visible = |client: &crate::client::Client| client.view("audience_minute", None).0;
    let epoch = visible(&client);
    wait_for("two more epochs", PATIENCE, || (visible(&client) >= epoch + 2).then_some(()));
    says(&row().unwrap(), 2, 2, "final");
    let billing = client.get(&path("billing")).expect(200).json;
    assert_eq!(billing["rows"][0]["spendMicros"], json!(360_000), "{billing}");

    // A change of state is a difference too: the subscriber has the row as it is.
    let mut known = Known::default();
    let mut states = Vec::new();
    while known.epoch.is_none_or(|known| known < epoch) {
        let event = stream.next().unwrap();
        for update in event.data["updates"].as_array().into_iter().flatten() {
            if update["diff"] == json!(1) {
                states.push(update["row"]["state"].as_str().unwrap().to_owned());
            }
        }
        known.take(&event);
    }
    assert_eq!(states, ["provisional", "settling", "settling", "final"]);
    known.assert_is(&client.view("audience_minute", known.epoch).1);
}
