//! One event, read back from the log and written as its sender would know it: what
//! `/v1/quarantine`, `late_events` and `GET /v1/events/{id}` show.

mod frames;

use crate::{ads::AdBatch, ipc};
use arrow_array::{
    Array, ArrayRef, RecordBatch,
    cast::AsArray,
    types::{Int64Type, TimestampMicrosecondType, UInt8Type, UInt16Type},
};
use arrow_schema::DataType;
use frames::{Frames, ReadBack};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use trueup_collector::DERIVED;
use trueup_operators::{
    event::{EventBatch, EventType, Position, columns},
    hash::IdHash,
    log::{Frame, Log, Topic},
    symbols::Symbols,
    time::{LogTime, format_rfc3339},
};

/// Bytes of a message that is no event that are shown.
const SHOWN_BYTES_MAX: usize = 1_024;

/// Reads single events back from a log.
pub struct Lives {
    log: Arc<dyn Log>,
    frames: Frames,
}

/// An event as the log holds it.
pub struct Recorded {
    /// Its fields by their outside names.
    pub event: Map<String, Value>,
    /// When the log took it.
    pub log_time: LogTime,
    /// The hash of its id.
    pub id_hash: Option<IdHash>,
}

impl Lives {
    /// Over this log.
    pub fn new(log: Arc<dyn Log>) -> Lives {
        Lives { log, frames: Frames::default() }
    }

    /// What to show of the event at a position. In a log that others append to that may be a
    /// message that is no event, or stands in another topic: then what it is, and why it is none
    /// of ours.
    ///
    /// # Errors
    /// As [`Lives::at`].
    pub fn shown(&self, position: Position) -> Result<Map<String, Value>, String> {
        let row = position.row;
        let (topic, _) = position.place();
        let read = self.frames.read(&*self.log, position)?;
        let frame = &read.frame;
        let fault = match &frame.foreign {
            // Not even looked at: its payload is whatever somebody wrote.
            Some(foreign) => foreign.to_string(),
            None if topic == Topic::Verdicts => match crate::worker::verdicts_of(frame) {
                Ok(_) => "it was listed, and nothing is wrong with it".to_owned(),
                Err(fault) => fault,
            },
            None if topic != Topic::Events => {
                "it was listed, and the log says that it is one of ours".to_owned()
            }
            None => match self.event_of(&read, row) {
                Ok(event) => return Ok(event),
                Err(fault) if !self.log.is_shared() => return Err(fault),
                Err(fault) => fault,
            },
        };
        let shown = &frame.payload[..frame.payload.len().min(SHOWN_BYTES_MAX)];
        let mut message = Map::new();
        message.insert("message".into(), json!(String::from_utf8_lossy(shown)));
        message.insert("fault".into(), json!(fault));
        Ok(message)
    }

    /// The event of a row. Of a shared log a frame may look like events and be none, for its
    /// prices; it is then set aside as a whole, under its first row.
    fn event_of(&self, read: &ReadBack, row: u16) -> Result<Map<String, Value>, String> {
        if self.log.is_shared() && row == 0 {
            AdBatch::decode(&read.frame, &Symbols::default()).map_err(|error| error.to_string())?;
        }
        recorded(read, row.into()).map(|recorded| recorded.event)
    }

    /// The event at a position of the events topic.
    ///
    /// # Errors
    /// When the log no longer has it, or it cannot be read.
    pub fn at(&self, position: Position) -> Result<Recorded, String> {
        let Position { offset, row, .. } = position;
        let (topic, _) = position.place();
        if topic != Topic::Events {
            return Err(format!("what is in {} at offset {offset} is no event", topic.name()));
        }
        let read = self.frames.read(&*self.log, position)?;
        recorded(&read, row.into())
    }
}

fn recorded(read: &ReadBack, row: usize) -> Result<Recorded, String> {
    let batch = read.batch()?;
    if row >= batch.num_rows() {
        return Err(format!("the frame has {} rows, not row {row}", batch.num_rows()));
    }
    let id_hash = batch
        .column_by_name(columns::ID_HASH)
        .and_then(|c| c.as_fixed_size_binary_opt())
        .and_then(|c| c.value(row).try_into().ok());
    Ok(Recorded { event: fields(batch, row), log_time: read.frame.log_time, id_hash })
}

/// The earliest event time of a frame, µs.
///
/// # Errors
/// When the frame holds no batch of events.
pub fn earliest(frame: &Frame) -> Result<Option<i64>, String> {
    if let Some(foreign) = &frame.foreign {
        return Err(foreign.to_string());
    }
    let batch = ipc::decode(frame).map_err(|e| e.to_string())?;
    let times = batch
        .column_by_name(columns::OCCURRED_AT)
        .and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>())
        .ok_or("the frame has no column of event times")?;
    Ok(times.values().iter().copied().min())
}

/// The fields of a row under their outside names; hashes are not shown. Fields that are not in the
/// table have their sender's names, which stand for nothing else: what the collector derived, or
/// another column holds, no sender can say (see [`add`]). Of an event of another schema version
/// that has no columns here (its campaign is empty) all but these is as it was sent.
pub(crate) fn fields(batch: &RecordBatch, row: usize) -> Map<String, Value> {
    let (mut fields, mut others) = (Map::new(), Map::new());
    let is_as_sent = is_as_sent(batch, row);
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let name = field.name().as_str();
        match (name, value(column, row)) {
            (columns::EVENT_TYPE | columns::PRICE_BASIS | columns::PRICE_MICROS, _)
                if is_as_sent => {}
            ("campaign_id" | "ad_id", _) if is_as_sent => {}
            (_, None) | (columns::ID_HASH | columns::PAYLOAD_HASH, _) => {}
            (columns::EVENT_TYPE, Some(code)) => {
                let kind = code.as_u64().and_then(|c| EventType::from_code(c as u8));
                fields.insert("eventType".into(), json!(kind.map(EventType::name)));
            }
            (columns::PRICE_BASIS, Some(code)) => {
                let basis = ["cpc", "cpm", "cpa"].get(code.as_u64().unwrap_or(0) as usize);
                fields.insert("priceBasis".into(), json!(basis));
            }
            // What these hold is a JSON object of further fields.
            (columns::CONSENT | columns::EXTRA, Some(Value::String(text))) => {
                match serde_json::from_str(&text) {
                    Ok(Value::Object(more)) => others.extend(more),
                    _ => drop(fields.insert(camel(name), Value::String(text))),
                }
            }
            (_, Some(value)) => drop(fields.insert(camel(name), value)),
        }
    }
    for (name, value) in others {
        add(&mut fields, name, value);
    }
    fields
}

/// Whether a row has nothing in the columns of this version's fields.
fn is_as_sent(batch: &RecordBatch, row: usize) -> bool {
    let campaign = batch.column_by_name("campaign_id").and_then(|column| value(column, row));
    campaign.is_some_and(|campaign| campaign == "")
}

/// Adds a field of the sender's own. One that is called like what is there, or like what a
/// collector derives, is `sent.invalidReason`.
fn add(fields: &mut Map<String, Value>, mut name: String, value: Value) {
    while fields.contains_key(&name) || DERIVED.contains(&name.as_str()) {
        name.insert_str(0, "sent.");
    }
    fields.insert(name, value);
}

/// A value as JSON; `None` for null and for keyed hashes.
fn value(column: &ArrayRef, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Utf8 => json!(column.as_string::<i32>().value(row)),
        DataType::Dictionary(..) => {
            let column = column.as_dictionary_opt::<UInt16Type>()?;
            let code = column.keys().value(row);
            json!(column.values().as_string_opt::<i32>()?.value(code.into()))
        }
        DataType::Timestamp(..) => {
            json!(format_rfc3339(column.as_primitive_opt::<TimestampMicrosecondType>()?.value(row)))
        }
        DataType::Int64 => json!(column.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => json!(column.as_primitive::<UInt8Type>().value(row)),
        DataType::UInt16 => json!(column.as_primitive::<UInt16Type>().value(row)),
        _ => return None,
    })
}

/// `campaign_id` as `campaignId`.
fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.extend(c.to_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_outside_ones() {
        for (inside, outside) in trueup_operators::event::DIMENSIONS.map(|(o, i)| (i, o)) {
            assert_eq!(camel(inside), outside);
        }
        assert_eq!(camel("tc_string"), "tcString");
    }
}
