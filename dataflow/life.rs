//! One event, read back from the log and written as its sender would know it: what
//! `/v1/quarantine`, `late_events` and `GET /v1/events/{id}` show.

use crate::ipc;
use arrow_array::{
    Array, ArrayRef, RecordBatch,
    cast::AsArray,
    types::{Int64Type, TimestampMicrosecondType, UInt8Type, UInt16Type},
};
use arrow_schema::DataType;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use trueup_operators::{
    event::{EventType, Position, columns},
    hash::IdHash,
    log::{Frame, Log, Topic, read_frame},
    time::{LogTime, format_rfc3339},
};

/// Bytes of a message that is no event that are shown.
const SHOWN_BYTES_MAX: usize = 1_024;

/// Reads single events back from a log.
pub struct Lives {
    log: Arc<dyn Log>,
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
        Lives { log }
    }

    /// What to show of the event at a position. In a log that others append to that may be a
    /// message that is no event: then what it is, and why it is none.
    ///
    /// # Errors
    /// As [`Lives::at`].
    pub fn shown(&self, position: Position) -> Result<Map<String, Value>, String> {
        let Position { partition, offset, row } = position;
        let frame = read_frame(&*self.log, Topic::Events, partition, offset);
        let frame = frame.map_err(|e| e.to_string())?;
        let fault = match (&frame.foreign, recorded(&frame, row.into())) {
            (None, Ok(recorded)) => return Ok(recorded.event),
            (None, Err(fault)) if !self.log.is_shared() => return Err(fault),
            (None, Err(fault)) => fault,
            (Some(foreign), _) => foreign.to_string(),
        };
        let shown = &frame.payload[..frame.payload.len().min(SHOWN_BYTES_MAX)];
        let mut message = Map::new();
        message.insert("message".into(), json!(String::from_utf8_lossy(shown)));
        message.insert("fault".into(), json!(fault));
        Ok(message)
    }

    /// The event at a position.
    ///
    /// # Errors
    /// When the log no longer has it, or it cannot be read.
    pub fn at(&self, position: Position) -> Result<Recorded, String> {
        let Position { partition, offset, row } = position;
        let frame = read_frame(&*self.log, Topic::Events, partition, offset);
        recorded(&frame.map_err(|e| e.to_string())?, row.into())
    }
}

fn recorded(frame: &Frame, row: usize) -> Result<Recorded, String> {
    let batch = ipc::decode(frame).map_err(|e| e.to_string())?;
    if row >= batch.num_rows() {
        return Err(format!("the frame has {} rows, not row {row}", batch.num_rows()));
    }
    let id_hash = batch
        .column_by_name(columns::ID_HASH)
        .and_then(|c| c.as_fixed_size_binary_opt())
        .and_then(|c| c.value(row).try_into().ok());
    Ok(Recorded { event: fields(&batch, row), log_time: frame.log_time, id_hash })
}

/// The earliest event time of a frame, µs.
///
/// # Errors
/// When the frame holds no batch of events.
pub fn earliest(frame: &Frame) -> Result<Option<i64>, String> {
    let batch = ipc::decode(frame).map_err(|e| e.to_string())?;
    let times = batch
        .column_by_name(columns::OCCURRED_AT)
        .and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>())
        .ok_or("the frame has no column of event times")?;
    Ok(times.values().iter().copied().min())
}

/// The fields of a row under their outside names; hashes are not shown.
pub(crate) fn fields(batch: &RecordBatch, row: usize) -> Map<String, Value> {
    let mut fields = Map::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let name = field.name().as_str();
        match (name, value(column, row)) {
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
                    Ok(Value::Object(more)) => fields.extend(more),
                    _ => drop(fields.insert(camel(name), Value::String(text))),
                }
            }
            (_, Some(value)) => drop(fields.insert(camel(name), value)),
        }
    }
    fields
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
