//! Reads frames back with Arrow's own reader, as rows of texts.

use arrow_array::{
    Array, ArrayAccessor, RecordBatch, StringArray,
    cast::AsArray,
    types::{Int64Type, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt64Type},
};
use arrow_ipc::reader::StreamReader;
use arrow_schema::{DataType, TimeUnit};
use std::collections::BTreeMap;
use trueup_operators::{event::columns, hash, log::Frame};

/// A row: what is not null, by column. Hashes in hexadecimal.
pub(super) type Row = BTreeMap<String, String>;

pub(super) fn batch_of(frame: &Frame) -> RecordBatch {
    let mut reader = StreamReader::try_new(frame.payload.as_slice(), None).unwrap();
    let batch = reader.next().unwrap().unwrap();
    assert!(reader.next().is_none(), "one record batch a frame");
    assert_eq!(batch.num_rows(), frame.records as usize);
    batch
}

/// The rows of frames, each checked to be in the partition of its id.
pub(super) fn rows(frames: &[Frame], partitions: u16) -> Vec<Row> {
    let mut rows = Vec::new();
    for frame in frames {
        let batch = batch_of(frame);
        check_types(&batch);
        for row in 0..batch.num_rows() {
            let cells = row_of(&batch, row);
            let id = unhex(&cells[columns::ID_HASH]);
            assert_eq!(hash::partition(&id, partitions), frame.partition);
            rows.push(cells);
        }
    }
    rows
}

fn row_of(batch: &RecordBatch, row: usize) -> Row {
    let schema = batch.schema();
    let fields = schema.fields().iter().zip(batch.columns());
    fields
        .filter(|(_, array)| array.is_valid(row))
        .map(|(field, array)| (field.name().clone(), cell(array, row)))
        .collect()
}

fn cell(array: &dyn Array, row: usize) -> String {
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).to_owned(),
        DataType::Dictionary(_, _) => array
            .as_dictionary::<UInt16Type>()
            .downcast_dict::<StringArray>()
            .unwrap()
            .value(row)
            .to_owned(),
        DataType::FixedSizeBinary(16) => hex(array.as_fixed_size_binary().value(row)),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).to_string(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(row).to_string(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(row).to_string(),
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if &**zone == "UTC" => {
            array.as_primitive::<TimestampMicrosecondType>().value(row).to_string()
        }
        other => panic!("no such column in the table: {other}"),
    }
}

/// The types of the module table of `operators::event`.
fn check_types(batch: &RecordBatch) {
    for field in batch.schema().fields() {
        let wanted = match field.name().as_str() {
            columns::ID_HASH | columns::IMPRESSION_HASH | columns::USER_HASH | columns::IP_HASH => {
                DataType::FixedSizeBinary(16)
            }
            columns::PAYLOAD_HASH => DataType::UInt64,
            columns::EVENT_TYPE | columns::PRICE_BASIS => DataType::UInt8,
            columns::SCHEMA_VERSION => DataType::UInt16,
            columns::OCCURRED_AT | columns::RECEIVED_AT => {
                DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
            }
            columns::PRICE_MICROS | columns::VALUE_MICROS => DataType::Int64,
            columns::EVENT_ID
            | columns::IMPRESSION_ID
            | columns::AUCTION_ID
            | columns::CLICK_ID
            | columns::SESSION_ID
            | columns::DEVICE_FINGERPRINT
            | columns::EXTRA => DataType::Utf8,
            _ => DataType::Dictionary(Box::new(DataType::UInt16), Box::new(DataType::Utf8)),
        };
        assert_eq!(*field.data_type(), wanted, "{}", field.name());
        let nothing = batch.column_by_name(field.name()).unwrap();
        assert!(nothing.null_count() < nothing.len(), "{} holds nothing", field.name());
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> hash::IdHash {
    std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
}
