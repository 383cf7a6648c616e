//! The README's first minutes: the example event is sent, seen in a report and at a subscriber,
//! sent again, contradicted, judged invalid and reinstated. Every figure is written out by hand.

use crate::{
    server::Home,
    sse::{EventStream, Known},
    traffic::{click, now_us, verdict, wait_for},
};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use std::{io::Write, time::Duration};
use trueup_operators::time::{HOUR_US, MINUTE_US, SECOND_US, format_rfc3339};

const ID: &str = "evt_01JT3J6Y1W0D0Q8K3A2R6H8T9N";
const SUBSCRIBE: &str = "/v1/views/audience_minute/subscribe?filter=campaignId:camp_4821";

fn report_path(now_us: i64) -> String {
    format!(
        "/v1/reports/campaigns/camp_4821?from={}&to={}&granularity=minute\
         &dimensions=publisherId,country",
        format_rfc3339((now_us - HOUR_US) / MINUTE_US * MINUTE_US),
        format_rfc3339((now_us + HOUR_US) / MINUTE_US * MINUTE_US),
    )
}

/// The figures of a row, and its version.
fn figures(row: &Value) -> [i64; 7] {
    let names = ["impressions", "clicks", "conversions", "invalidImpressions", "invalidClicks"];
    let figure = |name: &str| row[name].as_i64().unwrap_or_else(|| panic!("no `{name}` in {row}"));
    let [i, c, v, ii, ic] = names.map(figure);
    [i, c, v, ii, ic, figure("spendMicros"), figure("version")]
}

#[test]
fn an_event_is_counted_once_taken_out_and_put_back() {
    let home = Home::new("");
    let server = home.start();
    let client = server.client();
    let mut stream = EventStream::subscribe(&client, SUBSCRIBE);
    let now_us = now_us();
    let event = click(ID, now_us);

    let answer = client.collect(&[event.clone()]).expect(202).json;
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&json!(1), &json!(0)), "{answer}");
    assert!(answer["ingestBatchId"].as_str().unwrap().starts_with("ib_"), "{answer}");

    // Counted, within a second.
    let path = report_path(now_us);
    let row = wait_for("the row is in the report", Duration::from_secs(1), || {
        client.get(&path).expect(200).json["rows"].get(0).cloned()
    });
    assert_eq!(figures(&row), [0, 1, 0, 0, 0, 180_000, 1], "{row}");
    assert_eq!(row["bucketStart"], json!(format_rfc3339(now_us / MINUTE_US * MINUTE_US)));
    assert_eq!((&row["publisherId"], &row["country"]), (&json!("pub_17"), &json!("US")));
    assert_eq!((&row["state"], &row["isFinalized"]), (&json!("provisional"), &json!(false)));
    assert_eq!(row["ctr"], Value::Null, "one click on no impression has no rate");
    assert!((0.0..60.0).contains(&row["freshnessSeconds"].as_f64().unwrap()), "{row}");

    // Sent again, packed: a duplicate. With another price: a conflict. Neither changes a figure.
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(json!({ "events": [event] }).to_string().as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    client.post("/v1/events/collect", &[("content-encoding", "gzip")], &gzip).expect(202);
    let mut other = event.clone();
    other["priceMicros"] = json!(190_000);
    client.collect(&[other]).expect(202);
    let counts = client.settled();
    assert_eq!((counts.counted, counts.duplicate, counts.conflict), (1, 1, 1), "{counts:?}");
    counts.check();
    let report = client.get(&path).expect(200).json;
    assert_eq!(figures(&report["rows"][0]), [0, 1, 0, 0, 0, 180_000, 1], "{report}");
    let quarantine = client.get("/v1/quarantine?reason=id_conflict").expect(200);
    assert!(String::from_utf8_lossy(&quarantine.body).contains(ID), "{:?}", quarantine.json);
    assert!(client.get(&format!("/v1/events/{ID}")).expect(200).json.is_object());
    client.get("/v1/events/evt_that_nobody_sent").expect(404).problem();

    // Out, and back: exactly what it was.
    client.judge(&[verdict(ID, "invalid", now_us + SECOND_US)]).expect(202);
    let is = |expected: [i64; 7]| {
        wait_for(&format!("the figures are {expected:?}"), Duration::from_secs(5), || {
            let rows = client.get(&path).expect(200).json;
            (figures(&rows["rows"][0]) == expected).then_some(())
        });
    };
    is([0, 0, 0, 0, 1, 0, 2]);
    client.judge(&[verdict(ID, "valid", now_us + 2 * SECOND_US)]).expect(202);
    is([0, 1, 0, 0, 0, 180_000, 3]);

    // The subscriber saw each change as −old +new.
    let (mut known, mut seen) = (Known::default(), Vec::new());
    while seen.len() < 5 {
        let event = stream.next().unwrap();
        for update in event.data["updates"].as_array().into_iter().flatten() {
            let diff = update["diff"].as_i64().unwrap();
            seen.push((diff, figures(&update["row"])));
        }
        known.take(&event);
    }
    let [one, two, three] =
        [[0, 1, 0, 0, 0, 180_000, 1], [0, 0, 0, 0, 1, 0, 2], [0, 1, 0, 0, 0, 180_000, 3]];
    seen[1..3].sort();
    seen[3..5].sort();
    assert_eq!(seen, [(1, one), (-1, one), (1, two), (-1, two), (1, three)]);
    known.assert_is(&client.view("audience_minute", known.epoch).1);
    server.terminate();
}
