//! Ad events as one JSON message each, for a Kafka topic that others write to and read from too:
//! the collector's own decoder reads them, and what the collector appends is written as its sender
//! would know it (`life.rs`). Keyed hashes are not written, so of an event that went this way user
//! and IP are not known; all figures are the same.

use crate::{ipc, life};
use parking_lot::Mutex;
use trueup_collector::{Message, MessageDecoder};
use trueup_kafka::{Body, Encoded, JsonEvents, JsonMessage, Row};
use trueup_operators::{
    event::SCHEMA_VERSION,
    hash::HashKey,
    log::{Append, LogError},
    time::LogTime,
};

/// Between frames of ad events and JSON messages.
pub(crate) struct AdEvents {
    key: HashKey,
    future_skew_us_max: i64,
    /// One for each worker that is reading; made when none is free.
    decoders: Mutex<Vec<MessageDecoder>>,
}

impl AdEvents {
    pub(crate) fn new(key: HashKey, future_skew_us_max: i64) -> AdEvents {
        AdEvents { key, future_skew_us_max, decoders: Mutex::default() }
    }
}

impl JsonEvents for AdEvents {
    fn to_messages(&self, append: &Append) -> Result<Vec<JsonMessage>, LogError> {
        let invalid = |reason: String| LogError::Invalid { reason };
        let frame = append.clone().into_frame(0, LogTime::default());
        let batch = ipc::decode(&frame).map_err(|error| invalid(error.to_string()))?;
        let message = |row| {
            let event = life::fields(&batch, row);
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
        let mut decoder =
            free.unwrap_or_else(|| MessageDecoder::new(self.key, self.future_skew_us_max));
        let payload = decoder.frame(&messages);
        self.decoders.lock().push(decoder);
        let payload = payload.map_err(|problem| LogError::Unavailable {
            reason: format!("a run of messages cannot be made a frame: {}", problem.detail),
        })?;
        Ok(Encoded { schema_version: SCHEMA_VERSION, payload })
    }
}
