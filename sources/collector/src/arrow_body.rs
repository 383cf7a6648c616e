//! A body as an Arrow IPC stream. Columns have the names of the JSON fields; a null is a field that
//! was not sent. Every row goes through the same checks as a JSON event and has the same payload
//! hash, so a sender may change formats in the middle of a retry.
//!
//! | rule | column types |
//! |---|---|
//! | text | Utf8, LargeUtf8, Utf8View, dictionaries of them |
//! | time | Timestamp of any unit, or text |
//! | whole number | integers of any width |
//! | consent | text, integers, booleans |
//!
//! The stream is a sender's, so nothing in it is believed: the reader checks every offset and every
//! text, and takes no memory for lengths that a header merely claims. Arrow's reader panics on some
//! malformed schemas; such a panic is caught and is an error of the body.

use crate::{decode::Intake, fields::Field, scan::Value, sent::Sent};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, Float64Array, LargeStringArray, PrimitiveArray,
    RecordBatch, StringArray, StringViewArray,
    cast::AsArray,
    types::{
        ArrowPrimitiveType, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
        TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
        UInt16Type, UInt32Type, UInt64Type,
    },
};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_schema::{DataType, TimeUnit};
use bumpalo::Bump;
use std::panic::{AssertUnwindSafe, catch_unwind};
use trueup_operators::problem::Problem;

/// The most columns of a batch.
const COLUMNS_MAX: usize = 128;

/// Reads a stream to its end.
pub(crate) fn read(intake: &mut Intake<'_>, body: &[u8]) -> Result<(), Problem> {
    let mut rest = Buffer::from_slice_ref(body);
    let mut decoder = StreamDecoder::new();
    while let Some(batch) = next(&mut decoder, &mut rest)? {
        rows(intake, &batch)?;
    }
    decoder.finish().map_err(|error| bad_arrow(&error.to_string()))
}

fn next(decoder: &mut StreamDecoder, rest: &mut Buffer) -> Result<Option<RecordBatch>, Problem> {
    // The decoder is not used again after a panic.
    match catch_unwind(AssertUnwindSafe(|| decoder.decode(rest))) {
        Ok(result) => result.map_err(|error| bad_arrow(&error.to_string())),
        Err(_) => Err(bad_arrow("its schema or a message is malformed")),
    }
}

#[cold]
fn bad_arrow(what: &str) -> Problem {
    Problem::new(
        400,
        "bad_arrow",
        "the body is no Arrow IPC stream",
        format!("the stream cannot be read: {what}"),
        "send the streaming format (not the file format), without compressed buffers",
    )
}

fn rows<'b>(intake: &mut Intake<'b>, batch: &RecordBatch) -> Result<(), Problem> {
    if batch.num_columns() > COLUMNS_MAX {
        return Err(Problem::new(
            413,
            "too_many_columns",
            "the batch has too many columns",
            format!("the batch has {} columns, the limit is {COLUMNS_MAX}", batch.num_columns()),
            "send the event's fields and few of your own",
        ));
    }
    let schema = batch.schema();
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        let values = Values::of(array).ok_or_else(|| unsupported(field.name(), array))?;
        let name = field.name().as_bytes();
        columns.push((Field::of(name), name, values));
    }
    let arena = intake.arena;
    let mut sent = Sent::default();
    for row in 0..batch.num_rows() {
        sent.clear();
        for (field, name, values) in &columns {
            match (field, values.get(row, arena)) {
                (Some(field), value) => sent.put(*field, value),
                (None, Value::Null) => {}
                (None, value) => sent.put_extra(name, value, bytes_about(&value)),
            }
        }
        intake.take(&sent)?;
    }
    Ok(())
}

fn unsupported(name: &str, array: &ArrayRef) -> Problem {
    Problem::new(
        400,
        "unsupported_column",
        "a column has a type that cannot be read",
        format!(
            "column `{}` is {}",
            crate::fault::shown(name.as_bytes()),
            crate::fault::shown(array.data_type().to_string().as_bytes())
        ),
        "send text, integers, booleans or timestamps",
    )
}

const fn bytes_about(value: &Value<'_>) -> usize {
    match value {
        Value::Text(text) | Value::Number(text) | Value::Raw(text) => text.len() + 2,
        _ => 20,
    }
}

/// A column that is read row by row.
enum Values<'b> {
    Text(&'b StringArray),
    LargeText(&'b LargeStringArray),
    TextView(&'b StringViewArray),
    /// Texts, and which of them each row has.
    Dictionary(Box<Values<'b>>, Vec<Option<usize>>),
    Integers(Box<dyn Fn(usize) -> Option<i128> + 'b>),
    Times(Box<dyn Fn(usize) -> Option<i64> + 'b>),
    Float32(&'b Float32Array),
    Float64(&'b Float64Array),
    Booleans(&'b BooleanArray),
    Nulls,
}

fn optional<T>(array: &dyn Array, row: usize, value: impl FnOnce() -> T) -> Option<T> {
    array.is_valid(row).then(value)
}

fn integers<'b, T: ArrowPrimitiveType<Native: Into<i128>>>(array: &'b ArrayRef) -> Values<'b> {
    let array: &'b PrimitiveArray<T> = array.as_primitive();
    Values::Integers(Box::new(move |row| optional(array, row, || array.value(row).into())))
}

fn times<'b, T: ArrowPrimitiveType<Native = i64>>(
    array: &'b ArrayRef,
    to_us: impl Fn(i64) -> i64 + 'b,
) -> Values<'b> {
    let array: &'b PrimitiveArray<T> = array.as_primitive();
    Values::Times(Box::new(move |row| optional(array, row, || to_us(array.value(row)))))
}

impl<'b> Values<'b> {
    fn of(array: &'b ArrayRef) -> Option<Values<'b>> {
        Some(match array.data_type() {
            DataType::Utf8 => Values::Text(array.as_string()),
            DataType::LargeUtf8 => Values::LargeText(array.as_string()),
            DataType::Utf8View => Values::TextView(array.as_string_view()),
            DataType::Dictionary(_, _) => return Values::of_dictionary(array),
            DataType::Int8 => integers::<Int8Type>(array),
            DataType::Int16 => integers::<Int16Type>(array),
            DataType::Int32 => integers::<Int32Type>(array),
            DataType::Int64 => integers::<Int64Type>(array),
            DataType::UInt8 => integers::<UInt8Type>(array),
            DataType::UInt16 => integers::<UInt16Type>(array),
            DataType::UInt32 => integers::<UInt32Type>(array),
            DataType::UInt64 => integers::<UInt64Type>(array),
            DataType::Timestamp(TimeUnit::Second, _) => {
                times::<TimestampSecondType>(array, |t| t.saturating_mul(1_000_000))
            }
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                times::<TimestampMillisecondType>(array, |t| t.saturating_mul(1_000))
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                times::<TimestampMicrosecondType>(array, |t| t)
            }
            DataType::Timestamp(TimeUnit::Nanosecond, _) => {
                times::<TimestampNanosecondType>(array, |t| t.div_euclid(1_000))
            }
            DataType::Float32 => Values::Float32(array.as_primitive()),
            DataType::Float64 => Values::Float64(array.as_primitive()),
            DataType::Boolean => Values::Booleans(array.as_boolean()),
            DataType::Null => Values::Nulls,
            _ => return None,
        })
    }

    fn of_dictionary(array: &'b ArrayRef) -> Option<Values<'b>> {
        let dictionary = array.as_any_dictionary_opt()?;
        let texts = match Values::of(dictionary.values())? {
            texts @ (Values::Text(_) | Values::LargeText(_) | Values::TextView(_)) => texts,
            _ => return None,
        };
        if dictionary.values().is_empty() {
            return Some(Values::Nulls);
        }
        let keys = dictionary.normalized_keys();
        let keys = keys
            .into_iter()
            .enumerate()
            .map(|(row, key)| dictionary.keys().is_valid(row).then_some(key))
            .collect();
        Some(Values::Dictionary(Box::new(texts), keys))
    }

    #[inline(always)]
    fn get<'s>(&self, row: usize, arena: &'s Bump) -> Value<'s>
    where
        'b: 's,
    {
        match self {
            Values::Text(array) if array.is_valid(row) => Value::Text(array.value(row).as_bytes()),
            Values::Dictionary(texts, keys) => match keys[row] {
                Some(key) => texts.get(key, arena),
                None => Value::Null,
            },
            _ => self.get_slow(row, arena),
        }
    }

    #[inline(never)]
    fn get_slow<'s>(&self, row: usize, arena: &'s Bump) -> Value<'s>
    where
        'b: 's,
    {
        // JSON has no word for what is no number; as a text it is refused where one is wanted.
        let written = |number: String| match number.as_bytes() {
            [.., b'0'..=b'9'] => Value::Number(arena.alloc_str(&number).as_bytes()),
            other => Value::Text(arena.alloc_slice_copy(other)),
        };
        let value = match self {
            Values::Text(_) | Values::Dictionary(..) | Values::Nulls => None,
            Values::LargeText(array) => {
                optional(array, row, || Value::Text(array.value(row).as_bytes()))
            }
            Values::TextView(array) => {
                optional(array, row, || Value::Text(array.value(row).as_bytes()))
            }
            Values::Integers(get) => get(row).map(|integer| match i64::try_from(integer) {
                Ok(integer) => Value::Integer(integer),
                Err(_) => written(integer.to_string()),
            }),
            Values::Times(get) => get(row).map(Value::Micros),
            Values::Float32(array) => {
                optional(array, row, || written(format!("{:?}", array.value(row))))
            }
            Values::Float64(array) => {
                optional(array, row, || written(format!("{:?}", array.value(row))))
            }
            Values::Booleans(array) => optional(array, row, || {
                Value::Raw(if array.value(row) { b"true" } else { b"false" })
            }),
        };
        value.unwrap_or(Value::Null)
    }
}
