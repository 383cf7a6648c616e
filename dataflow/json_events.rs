//! Ad events as one JSON message each, for a Kafka topic that others write to and read from too:
//! the collector's own decoder reads them, and what the collector appends is written as its sender
//! would know it (`life.rs`). Keyed hashes are not written, so of an event that went this way user
//! and IP are not known; all figures are the same.
//!
//! With it goes what only the collector knows: why it took a click as invalid (`invalidReason`),
//! and the hash of what the sender sent (`payloadHash`, sixteen hexadecimal digits), so that a copy
//! is told from a contradiction as on any other log, though fields were stamped and others hidden.

use crate::{ipc, life};
use arrow_array::{cast::AsArray, types::UInt64Type};
use parking_lot::Mutex;
use trueup_collector::{Message, MessageDecoder};
use trueup_kafka::{Body, Encoded, JsonEvents, JsonMessage, Row};
use trueup_operators::{
    event::{SCHEMA_VERSION, columns},
    hash::HashKey,
    log::{Append, LogError},
    time::LogTime,
};

/// Between frames of ad events and JSON messages.
pub(crate) struct AdEvents {
    key: HashKey,
    /// One for each worker that is reading; made when none is free.
    decoders: Mutex<Vec<MessageDecoder>>,
}

impl AdEvents {
    pub(crate) fn new(key: HashKey) -> AdEvents {
        AdEvents { key, decoders: Mutex::default() }
    }
}

impl JsonEvents for AdEvents {
    fn to_messages(&self, append: &Append) -> Result<Vec<JsonMessage>, LogError> {
        let invalid = |reason: String| LogError::Invalid { reason };
        let frame = append.clone().into_frame(0, LogTime::default());
        let batch = ipc::decode(&frame).map_err(|error| invalid(error.to_string()))?;
        let hashes = batch.column_by_name(columns::PAYLOAD_HASH);
        let hashes = hashes.and_then(|column| column.as_primitive_opt::<UInt64Type>());
        let message = |row| {
            let mut event = life::fields(&batch, row);
            if let Some(hashes) = hashes {
                event.insert("payloadHash".into(), format!("{:016x}", hashes.value(row)).into());
            }
            let id = event.get("eventId").and_then(serde_json::Value::as_str);
            let key = id.unwrap_or_default().as_bytes().to_vec();
            let payload = serde_json::to_vec(&event).map_err(|error| invalid(error.to_string()))?;
            Ok(JsonMessage { key, payload })
        };
        (0..batch.num_rows()).map(message).collect()
    }

    fn to_frame(&self, rows: &[Row<'_>]) -> Result<Encoded, LogError> {
        let foreign: Vec<Option<String>> = rows
            .iter()
            .map(|row| match &row.body {
                Body::Message(_) => None,
                Body::Foreign(foreign) => Some(foreign.to_string()),
            })
            .collect();
        let messages: Vec<Message<'_>> = rows
            .iter()
            .zip(&foreign)
            .map(|(row, foreign)| Message {
                log_time_us: row.log_time.0,
                payload: match row.body {
                    Body::Message(payload) => payload,
                    Body::Foreign(_) => &[],
                },
                foreign: foreign.as_deref(),
            })
            .collect();
        let free = self.decoders.lock().pop();
        let mut decoder = free.unwrap_or_else(|| MessageDecoder::new(self.key));
        let payload = decoder.frame(&messages);
        self.decoders.lock().push(decoder);
        let payload = payload.map_err(|problem| LogError::Unavailable {
            reason: format!("a run of messages cannot be made a frame: {}", problem.detail),
        })?;
        Ok(Encoded { schema_version: SCHEMA_VERSION, payload })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow_array::{Array, RecordBatch};
    use trueup_collector::{Decoder, Format, Rules};
    use trueup_operators::log::Topic;

    const KEY: HashKey = HashKey([7; 16]);
    const NOW_US: i64 = 1_790_000_000_000_000;

    /// A body of events, as a collector appends it.
    fn appended(events: &[&str]) -> Append {
        let rules = Rules {
            now_us: NOW_US,
            future_skew_us_max: 0,
            events_max: events.len(),
            publishers: &[],
            advertiser_of: &|_| Some("adv_of_metadata".into()),
        };
        let body = events.join("\n");
        let decoded = Decoder::new(KEY, 1).decode(body.as_bytes(), Format::Lines, &rules).unwrap();
        assert_eq!(decoded.errors, []);
        decoded.frames.into_iter().next().unwrap()
    }

    /// The batch as it is read back from the messages that an append became.
    fn through_messages(append: &Append) -> (Vec<serde_json::Value>, RecordBatch) {
        let events = AdEvents::new(KEY);
        let messages = events.to_messages(append).unwrap();
        let row = |message: &JsonMessage| message.payload.clone();
        let payloads: Vec<Vec<u8>> = messages.iter().map(row).collect();
        let body = |payload| Row { log_time: LogTime(NOW_US), body: Body::Message(payload) };
        let rows: Vec<Row<'_>> = payloads.iter().map(|payload| body(payload)).collect();
        let Encoded { schema_version, payload } = events.to_frame(&rows).unwrap();
        let (topic, records) = (Topic::Events, append.records);
        let read = Append { topic, partition: 0, schema_version, records, payload };
        let read = ipc::decode(&read.into_frame(0, LogTime(NOW_US))).unwrap();
        let parsed = payloads.iter().map(|payload| serde_json::from_slice(payload).unwrap());
        (parsed.collect(), read)
    }

    fn hashes(batch: &RecordBatch) -> Vec<u64> {
        let column = batch.column_by_name(columns::PAYLOAD_HASH).unwrap();
        column.as_primitive::<UInt64Type>().values().to_vec()
    }

    const PLAIN: &str = r#"{"eventId":"a","eventType":"click","occurredAt":"2026-09-21T12:00:00Z",
        "campaignId":"c","adId":"x"#;

    fn event(more: &str) -> String {
        format!("{}\"{more}}}", PLAIN.replace('\n', ""))
    }

    #[test]
    fn no_sender_says_what_a_collector_derives() {
        let forged = event(concat!(
            r#","priceMicros":5,"invalidReason":"known_bot","consentState":"granted","#,
            r#""payloadHash":"00000000000000ff","sent.invalidReason":1"#
        ));
        let append = appended(&[&forged]);
        let (messages, read) = through_messages(&append);
        assert!(read.column_by_name(columns::INVALID_REASON).is_none(), "{messages:?}");
        assert!(read.column_by_name(columns::CONSENT_STATE).is_none(), "{messages:?}");
        let taken = ipc::decode(&append.into_frame(0, LogTime(NOW_US))).unwrap();
        assert_eq!(hashes(&read), hashes(&taken));
        // Nor does it look so where the event is shown.
        for shown in [life::fields(&taken, 0), life::fields(&read, 0)] {
            assert_eq!(shown.get("invalidReason"), None, "{shown:?}");
            assert_eq!(shown.get("consentState"), None, "{shown:?}");
            assert_eq!(shown.get("payloadHash"), None, "{shown:?}");
            assert_eq!(shown["sent.consentState"], "granted");
            let said = [&shown["sent.invalidReason"], &shown["sent.sent.invalidReason"]];
            assert!(said.contains(&&"known_bot".into()) && said.contains(&&1.into()), "{shown:?}");
        }
    }

    #[test]
    fn an_event_of_another_version_goes_as_it_was_sent() {
        let sent = r#"{"eventId":"a","occurredAt":"2026-09-21T12:00:00Z","schemaVersion":2,
            "eventType":"view","adId":[1],"priceMicros":-1,"invalidReason":"prefetch"}"#
            .replace('\n', "");
        let high = r#"{"eventId":"b","occurredAt":"2026-09-21T12:00:00Z","schemaVersion":70000}"#;
        let append = appended(&[&sent, high, &event("")]);
        let (messages, read) = through_messages(&append);
        let taken = ipc::decode(&append.into_frame(0, LogTime(NOW_US))).unwrap();
        assert_eq!(hashes(&read), hashes(&taken));
        for batch in [&taken, &read] {
            let versions = batch.column_by_name(columns::SCHEMA_VERSION).unwrap();
            let versions = versions.as_primitive::<arrow_array::types::UInt16Type>();
            assert_eq!(versions.values().to_vec(), [2, 65_535, 1]);
            let shown = serde_json::Value::from(life::fields(batch, 0));
            let expected = serde_json::json!({
                "eventId": "a", "occurredAt": "2026-09-21T12:00:00Z",
                "receivedAt": "2026-09-21T14:13:20Z", "schemaVersion": 2, "eventType": "view",
                "adId": [1], "priceMicros": -1, "sent.invalidReason": "prefetch",
            });
            assert_eq!(shown, expected);
            assert_eq!(life::fields(batch, 1)["sent.schemaVersion"], 70_000);
            assert_eq!(life::fields(batch, 2)["eventType"], "click");
        }
        assert_eq!(messages[0]["eventType"], "view");
    }

    #[test]
    fn the_largest_event_that_a_collector_takes_fits_in_a_message() {
        // Each of these characters takes six bytes when it is written.
        let controls = |count| "\\u0001".repeat(count);
        let sent = |known, other| {
            format!(
                r#"{{"eventId":"a","occurredAt":"2026-09-21T12:00:00Z","schemaVersion":2,
                "adId":"{}","x":"{}"}}"#,
                controls(known),
                controls(other),
            )
            .replace('\n', "")
        };
        let takes = |known, other| {
            let rules = Rules {
                now_us: NOW_US,
                future_skew_us_max: 0,
                events_max: 1,
                publishers: &[],
                advertiser_of: &|_| None,
            };
            let body = sent(known, other);
            let decoded = Decoder::new(KEY, 1).decode(body.as_bytes(), Format::Lines, &rules);
            decoded.unwrap().errors.is_empty()
        };
        let most = |takes: &dyn Fn(usize) -> bool| {
            assert!(takes(1) && !takes(1 << 20));
            let (mut least, mut most) = (1, 1 << 20);
            while least + 1 < most {
                let middle = (least + most) / 2;
                *if takes(middle) { &mut least } else { &mut most } = middle;
            }
            least
        };
        let known = most(&|known| takes(known, 1));
        let other = most(&|other| takes(known, other));
        let append = appended(&[&sent(known, other)]);
        let messages = AdEvents::new(KEY).to_messages(&append).unwrap();
        let bytes = messages[0].payload.len();
        assert!(bytes > 100_000, "{bytes}: {known} and {other} characters");
        assert!(bytes <= trueup_kafka::JSON_EVENT_BYTES_MAX, "{bytes}");
    }

    #[test]
    fn the_hash_of_what_was_sent_goes_with_an_event() {
        // Users and IPs are not in a message, numbers are written in another way, the advertiser is
        // filled in, and where one row has a price all have.
        let events = [
            event(r#","userId":"u1","ip":"10.0.0.1""#),
            event(r#","userId":"u2""#),
            event(r#","n":1.50,"m":[1e3]"#),
            event(r#","priceMicros":1"#),
            event(r#","gdpr":1"#),
            event(""),
        ];
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let append = appended(&events);
        let (messages, read) = through_messages(&append);
        let taken = ipc::decode(&append.into_frame(0, LogTime(NOW_US))).unwrap();
        assert_eq!(hashes(&read), hashes(&taken), "{messages:?}");
        let distinct: std::collections::HashSet<u64> = hashes(&read).into_iter().collect();
        assert_eq!(distinct.len(), events.len());
        let states = read.column_by_name(columns::CONSENT_STATE).unwrap();
        assert_eq!(states.len() - states.null_count(), 1);
        assert!(messages.iter().all(|m| m["advertiserId"] == "adv_of_metadata"), "{messages:?}");
    }
}
