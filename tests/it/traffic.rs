//! Senders as the contract wants them: whatever is not acknowledged is sent again, until it is.

use crate::client::{Answer, Client};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use serde_json::{Value, json};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use trueup_operators::time::format_rfc3339;

/// How long a sender goes on without an answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the wall clock says, µs.
pub(crate) fn now_us() -> i64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as i64
}

/// A click that costs 180,000 micros: the example of the contract, with an id and a time.
pub(crate) fn click(id: &str, occurred_at_us: i64) -> Value {
    json!({
        "eventId": id,
        "eventType": "click",
        "occurredAt": format_rfc3339(occurred_at_us),
        "campaignId": "camp_4821",
        "adId": "ad_99",
        "publisherId": "pub_17",
        "placementId": "plc_home_top",
        "country": "US",
        "deviceType": "ios",
        "auctionId": "auc_884201",
        "impressionId": "imp_442211",
        "priceMicros": 180_000
    })
}

/// A body as an Arrow stream: the columns that an event must have, and two that it may.
pub(crate) fn arrow_body() -> Vec<u8> {
    let text = |texts: [&str; 2]| Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
    let columns = [
        ("eventId", text(["e1", "e2"])),
        ("eventType", text(["click", "impression"])),
        ("occurredAt", text(["2026-11-22T01:02:03Z", "2026-11-22T01:02:04Z"])),
        ("campaignId", text(["c1", "c2"])),
        ("adId", text(["a1", "a2"])),
        ("country", text(["DE", "US"])),
        ("priceMicros", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// A verdict on an event, decided at a time.
pub(crate) fn verdict(id: &str, verdict: &str, decided_at_us: i64) -> Value {
    json!({
        "eventId": id,
        "verdict": verdict,
        "reasonCode": "datacenter_ip",
        "decidedAt": format_rfc3339(decided_at_us),
        "modelVersion": "ivt-7",
        "source": "test"
    })
}

/// Sends a body until it is acknowledged. The server may be killed and started meanwhile; only an
/// answer that says "never" ends it.
pub(crate) fn send_until_taken(client: &Client, path: &str, body: &[u8]) -> Answer {
    let began = Instant::now();
    loop {
        let outcome = client.try_post(path, &[], body);
        match &outcome {
            Ok(answer) if answer.status == 202 => return answer.clone(),
            Ok(answer) if ![429, 503].contains(&answer.status) => {
                panic!("POST {path}: {}", String::from_utf8_lossy(&answer.body))
            }
            Ok(answer) => assert!(answer.retry_after.is_some(), "{answer:?} says not when"),
            // Refused, reset, or cut off in the middle: nobody knows whether it was taken.
            Err(_) => {}
        }
        assert!(began.elapsed() < PATIENCE, "not acknowledged: {outcome:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `done` gives something.
#[track_caller]
pub(crate) fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut done: impl FnMut() -> Option<T>,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(began.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
