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
//! Values are fetched column by column in blocks of [`BLOCK_ROWS`], so that nothing is decided row
//! by row; a text of a dictionary is hashed once, not once a row.
//!
//! The stream is a sender's, so nothing in it is believed: the reader checks every offset and every
//! text, and takes no memory for lengths that a header merely claims. Arrow's reader panics on some
//! malformed schemas; such a panic is caught and is an error of the body.

use crate::{decode::Intake, fields::Field, scan::Value, sent::Sent};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, Float64Array, LargeStringArray, RecordBatch,
    StringArray, StringViewArray,
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
use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};
use trueup_operators::{hash::stable, problem::Problem};

/// Rows that are fetched at once.
const BLOCK_ROWS: usize = 1024;
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

fn rows(intake: &mut Intake<'_>, batch: &RecordBatch) -> Result<(), Problem> {
    if batch.num_columns() > COLUMNS_MAX {
        return Err(Problem::new(
            413,
            "too_many_columns",
            "the batch has too many columns",
            format!("the batch has {} columns, the limit is {COLUMNS_MAX}", batch.num_columns()),
            "send the event's fields and few of your own",
        ));
    }
    if batch.num_rows() > intake.room() {
        return Err(intake.too_many_events());
    }
    let schema = batch.schema();
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        let name = field.name().as_bytes();
        let known = Field::of(name);
        let values = Values::of(array, known.is_some());
        let values = values.ok_or_else(|| unsupported(field.name(), array))?;
        columns.push(Column { field: known, name, values, block: Vec::new() });
    }
    let arena = intake.arena;
    let mut sent = Sent::default();
    let mut start = 0;
    while start < batch.num_rows() {
        let end = batch.num_rows().min(start + BLOCK_ROWS);
        for column in &mut columns {
            column.block.clear();
            column.values.fetch(start..end, arena, &mut column.block);
        }
        for row in 0..end - start {
            sent.clear();
            for column in &columns {
                column.put(row, &mut sent);
            }
            intake.take(&mut sent)?;
        }
        start = end;
    }
    Ok(())
}

/// A column and its values in the block that is being read.
struct Column<'b> {
    field: Option<Field>,
    name: &'b [u8],
    values: Values<'b>,
    block: Vec<Cell<'b>>,
}

/// A value, and its hash if it is of a dictionary.
#[derive(Clone, Copy)]
struct Cell<'b> {
    value: Value<'b>,
    hash: Option<u64>,
}

impl<'b> Column<'b> {
    #[inline(always)]
    fn put(&self, row: usize, sent: &mut Sent<'b>) {
        let Cell { value, hash } = self.block[row];
        match (self.field, hash) {
            (Some(field), Some(hash)) => sent.put_hashed(field, value, hash),
            (Some(field), None) => sent.put(field, value),
            (None, _) if matches!(value, Value::Null) => {}
            (None, _) => sent.put_extra(self.name, value, value.bytes_about()),
        }
    }
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

/// A column of a type that is understood.
enum Values<'b> {
    Texts(Texts<'b>),
    Dictionary {
        array: &'b ArrayRef,
        texts: Texts<'b>,
        /// The cells of `texts`; empty where hashing them all could not pay.
        cells: Vec<Cell<'b>>,
    },
    Integers(&'b dyn Array, fn(&dyn Array, usize) -> i128),
    /// With what a time is in µs.
    Times(&'b dyn Array, fn(&dyn Array, usize) -> i64),
    Float32(&'b Float32Array),
    Float64(&'b Float64Array),
    Booleans(&'b BooleanArray),
    Nulls,
}

/// An array of texts.
#[derive(Clone, Copy)]
enum Texts<'b> {
    Plain(&'b StringArray),
    Large(&'b LargeStringArray),
    View(&'b StringViewArray),
}

impl<'b> Texts<'b> {
    fn of(array: &'b ArrayRef) -> Option<Texts<'b>> {
        match array.data_type() {
            DataType::Utf8 => Some(Texts::Plain(array.as_string())),
            DataType::LargeUtf8 => Some(Texts::Large(array.as_string())),
            DataType::Utf8View => Some(Texts::View(array.as_string_view())),
            _ => None,
        }
    }

    #[inline(always)]
    fn get(self, at: usize) -> Value<'b> {
        let text = match self {
            Texts::Plain(array) => array.is_valid(at).then(|| array.value(at)),
            Texts::Large(array) => array.is_valid(at).then(|| array.value(at)),
            Texts::View(array) => array.is_valid(at).then(|| array.value(at)),
        };
        text.map_or(Value::Null, |text| Value::Text(text.as_bytes()))
    }
}

fn integer<T: ArrowPrimitiveType<Native: Into<i128>>>(array: &dyn Array, row: usize) -> i128 {
    array.as_primitive::<T>().value(row).into()
}

/// A time of `T`, a unit of `US` µs.
fn time<T: ArrowPrimitiveType<Native = i64>, const US: i64>(array: &dyn Array, row: usize) -> i64 {
    array.as_primitive::<T>().value(row).saturating_mul(US)
}

fn nanoseconds(array: &dyn Array, row: usize) -> i64 {
    array.as_primitive::<TimestampNanosecondType>().value(row).div_euclid(1_000)
}

impl<'b> Values<'b> {
    /// `None`: a type that cannot be read. `known`: the column is a field of the table.
    fn of(array: &'b ArrayRef, known: bool) -> Option<Values<'b>> {
        let any: &'b dyn Array = &**array;
        Some(match array.data_type() {
            DataType::Dictionary(_, _) => return Values::of_dictionary(array, known),
            DataType::Int8 => Values::Integers(any, integer::<Int8Type>),
            DataType::Int16 => Values::Integers(any, integer::<Int16Type>),
            DataType::Int32 => Values::Integers(any, integer::<Int32Type>),
            DataType::Int64 => Values::Integers(any, integer::<Int64Type>),
            DataType::UInt8 => Values::Integers(any, integer::<UInt8Type>),
            DataType::UInt16 => Values::Integers(any, integer::<UInt16Type>),
            DataType::UInt32 => Values::Integers(any, integer::<UInt32Type>),
            DataType::UInt64 => Values::Integers(any, integer::<UInt64Type>),
            DataType::Timestamp(unit, _) => {
                let to_us = match unit {
                    TimeUnit::Second => time::<TimestampSecondType, 1_000_000>,
                    TimeUnit::Millisecond => time::<TimestampMillisecondType, 1_000>,
                    TimeUnit::Microsecond => time::<TimestampMicrosecondType, 1>,
                    TimeUnit::Nanosecond => nanoseconds,
                };
                Values::Times(any, to_us)
            }
            DataType::Float32 => Values::Float32(array.as_primitive()),
            DataType::Float64 => Values::Float64(array.as_primitive()),
            DataType::Boolean => Values::Booleans(array.as_boolean()),
            DataType::Null => Values::Nulls,
            _ => Values::Texts(Texts::of(array)?),
        })
    }

    fn of_dictionary(array: &'b ArrayRef, known: bool) -> Option<Values<'b>> {
        let dictionary = array.as_any_dictionary_opt()?;
        let texts = Texts::of(dictionary.values())?;
        let len = dictionary.values().len();
        if len == 0 {
            return Some(Values::Nulls);
        }
        let mut cells = Vec::new();
        if known && len <= array.len() {
            cells.extend((0..len).map(|at| {
                let value = texts.get(at);
                let hash = if let Value::Text(text) = value { Some(stable(text)) } else { None };
                Cell { value, hash }
            }));
        }
        Some(Values::Dictionary { array, texts, cells })
    }

    /// The cells of a block of rows.
    fn fetch<'s>(&self, rows: Range<usize>, arena: &'s Bump, out: &mut Vec<Cell<'s>>)
    where
        'b: 's,
    {
        let mut put = |value: Option<Value<'s>>| {
            out.push(Cell { value: value.unwrap_or(Value::Null), hash: None });
        };
        match self {
            Values::Texts(texts) => rows.for_each(|row| put(Some(texts.get(row)))),
            Values::Dictionary { array, texts, cells } => {
                let block = array.slice(rows.start, rows.len());
                let dictionary = block.as_any_dictionary();
                let keys = dictionary.normalized_keys();
                out.extend(keys.into_iter().enumerate().map(|(row, key)| {
                    if dictionary.keys().is_null(row) {
                        return Cell { value: Value::Null, hash: None };
                    }
                    let hashed = cells.get(key).copied();
                    hashed.unwrap_or_else(|| Cell { value: texts.get(key), hash: None })
                }));
            }
            Values::Integers(array, get) => rows.for_each(|row| {
                put(array.is_valid(row).then(|| {
                    let integer = get(*array, row);
                    i64::try_from(integer)
                        .map_or_else(|_| number(&integer.to_string(), arena), Value::Integer)
                }));
            }),
            Values::Times(array, to_us) => rows.for_each(|row| {
                put(array.is_valid(row).then(|| Value::Micros(to_us(*array, row))));
            }),
            Values::Float32(array) => rows.for_each(|row| {
                put(array.is_valid(row).then(|| number(&format!("{:?}", array.value(row)), arena)));
            }),
            Values::Float64(array) => rows.for_each(|row| {
                put(array.is_valid(row).then(|| number(&format!("{:?}", array.value(row)), arena)));
            }),
            Values::Booleans(array) => rows.for_each(|row| {
                let word: &[u8] = if array.value(row) { b"true" } else { b"false" };
                put(array.is_valid(row).then_some(Value::Raw(word)));
            }),
            Values::Nulls => rows.for_each(|_| put(None)),
        }
    }
}

/// A number that is no whole number of 64 bits. JSON has no word for infinity or what is no number;
/// as a text it is refused where a number is wanted.
fn number<'s>(written: &str, arena: &'s Bump) -> Value<'s> {
    let written = arena.alloc_str(written).as_bytes();
    match written {
        [.., b'0'..=b'9'] => Value::Number(written),
        _ => Value::Text(written),
    }
}
