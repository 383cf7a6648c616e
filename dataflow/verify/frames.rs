//! Frames as rows of plain values: columns found by name, texts by value. A dictionary's texts are
//! looked up once a frame, everything else once a row.
//!
//! What is no batch of events is the same here as for the engine: a column that is missing or of
//! another type, a code that nobody knows, and, in a row of the known version, a price that no
//! collector takes.

use crate::ipc;
use arrow_array::{
    Array, DictionaryArray, FixedSizeBinaryArray, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt8Array, UInt16Array, UInt64Array, types::UInt16Type,
};
use arrow_ipc::reader::StreamReader;
use std::{collections::HashMap, rc::Rc};
use trueup_operators::{
    event::{DIMENSIONS, Verdict, columns},
    hash,
    log::{FRAME_RECORDS_MAX, Frame},
    money::PRICE_MICROS_MAX,
};

/// The dimensions of an event, as numbers of [`Texts`]; 0 is absent.
pub(super) type Dimensions = [u32; DIMENSIONS.len()];

/// Texts by number and numbers by text; the number 0 is `""`, an absent value.
#[derive(Debug)]
pub(super) struct Texts {
    texts: Vec<Rc<str>>,
    /// The stable hash of each.
    hashes: Vec<u64>,
    numbers: HashMap<Rc<str>, u32>,
}

impl Default for Texts {
    fn default() -> Self {
        let mut texts = Texts { texts: Vec::new(), hashes: Vec::new(), numbers: HashMap::new() };
        texts.number("");
        texts
    }
}

impl Texts {
    pub(super) fn number(&mut self, text: &str) -> u32 {
        if let Some(&number) = self.numbers.get(text) {
            return number;
        }
        let number = self.texts.len() as u32;
        let text: Rc<str> = text.into();
        self.texts.push(Rc::clone(&text));
        self.hashes.push(hash::stable(text.as_bytes()));
        self.numbers.insert(text, number);
        number
    }

    pub(super) fn text(&self, number: u32) -> &str {
        &self.texts[number as usize]
    }

    /// The place of each text in their order, by number.
    pub(super) fn ranks(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> = (0..self.texts.len() as u32).collect();
        numbers.sort_by_key(|&number| self.text(number));
        let mut ranks = vec![0; numbers.len()];
        for (rank, number) in numbers.into_iter().enumerate() {
            ranks[number as usize] = rank as u32;
        }
        ranks
    }

    pub(super) fn hash(&self, number: u32) -> u64 {
        self.hashes[number as usize]
    }
}

/// The schema version that is understood.
pub(super) const KNOWN_VERSION: u16 = 1;

/// What happened, as the log writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Impression,
    Click,
    Conversion,
}

/// An event as it stands in a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    pub(super) number: u16,
    pub(super) id: &'a str,
    pub(super) payload: u64,
    pub(super) kind: Kind,
    pub(super) occurred_us: i64,
    pub(super) dimensions: Dimensions,
    /// What it costs while it is valid, in thousandths of a micro.
    pub(super) cost_nanos: i64,
    pub(super) schema_version: u16,
    pub(super) impression: Option<&'a str>,
    pub(super) born_invalid: bool,
}

/// Hands over the events of a frame, in order.
pub(super) fn events(
    frame: &Frame,
    texts: &mut Texts,
    mut take: impl FnMut(Row<'_>),
) -> Result<(), String> {
    let batch =
        ipc::guarded(|| StreamReader::try_new(frame.payload.as_slice(), None)?.next().transpose())
            .map_err(|error| format!("is no Arrow IPC stream: {error}"))?
            .ok_or("holds no record batch")?;
    if batch.num_rows() != frame.records as usize {
        let (found, said) = (batch.num_rows(), frame.records);
        return Err(format!("holds {found} events, its header says {said}"));
    }
    if batch.num_rows() > FRAME_RECORDS_MAX {
        return Err(format!("holds more than {FRAME_RECORDS_MAX} events"));
    }
    let columns = EventColumns::find(&batch, texts)?;
    for row in 0..batch.num_rows() {
        // The limit above is that of 16 bits.
        take(columns.row(row as u16, row)?);
    }
    Ok(())
}

/// The verdicts of a frame, in order.
pub(super) fn verdicts(frame: &Frame) -> Result<Vec<Verdict>, String> {
    if let Some(foreign) = &frame.foreign {
        return Err(foreign.to_string());
    }
    let verdicts: Vec<Verdict> = serde_json::from_slice(&frame.payload)
        .map_err(|error| format!("is no array of verdicts: {error}"))?;
    if verdicts.len() != frame.records as usize {
        let (found, said) = (verdicts.len(), frame.records);
        return Err(format!("holds {found} verdicts, its header says {said}"));
    }
    Ok(verdicts)
}

/// The columns that decide something.
struct EventColumns<'a> {
    ids: &'a StringArray,
    payloads: &'a UInt64Array,
    kinds: &'a UInt8Array,
    times: &'a TimestampMicrosecondArray,
    dimensions: Vec<Option<Dimension<'a>>>,
    prices: Option<&'a Int64Array>,
    bases: Option<&'a UInt8Array>,
    versions: Option<&'a UInt16Array>,
    impressions: Option<&'a StringArray>,
    reasons: Option<&'a dyn Array>,
}

struct Dimension<'a> {
    keys: &'a UInt16Array,
    /// By key.
    numbers: Vec<u32>,
}

impl<'a> EventColumns<'a> {
    fn find(batch: &'a RecordBatch, texts: &mut Texts) -> Result<Self, String> {
        let mut dimensions = Vec::with_capacity(DIMENSIONS.len());
        for (_, name) in DIMENSIONS {
            let array = optional::<DictionaryArray<UInt16Type>>(batch, name)?;
            let dimension = array.map(|array| Dimension::of(name, array, texts)).transpose()?;
            dimensions.push(dimension);
        }
        let is_hash = |array: &FixedSizeBinaryArray| array.value_length() == 16;
        let hashes: [Option<&FixedSizeBinaryArray>; 2] =
            [Some(required(batch, columns::ID_HASH)?), optional(batch, columns::IMPRESSION_HASH)?];
        if !hashes.into_iter().flatten().all(is_hash) {
            return Err("a column of hashes has others than of 16 bytes".into());
        }
        Ok(EventColumns {
            ids: required(batch, columns::EVENT_ID)?,
            payloads: required(batch, columns::PAYLOAD_HASH)?,
            kinds: required(batch, columns::EVENT_TYPE)?,
            times: required(batch, columns::OCCURRED_AT)?,
            dimensions,
            prices: optional(batch, columns::PRICE_MICROS)?,
            bases: optional(batch, columns::PRICE_BASIS)?,
            versions: optional(batch, columns::SCHEMA_VERSION)?,
            impressions: optional(batch, columns::IMPRESSION_ID)?,
            reasons: batch.column_by_name(columns::INVALID_REASON).map(|array| &**array),
        })
    }

    fn row(&self, number: u16, row: usize) -> Result<Row<'_>, String> {
        let kind = match self.kinds.value(row) {
            0 => Kind::Impression,
            1 => Kind::Click,
            2 => Kind::Conversion,
            code => return Err(format!("row {number} has the unknown event type {code}")),
        };
        let mut dimensions = Dimensions::default();
        for (value, dimension) in dimensions.iter_mut().zip(&self.dimensions) {
            *value = dimension.as_ref().map_or(0, |d| d.number(row));
        }
        let impressions = self.impressions.filter(|array| array.is_valid(row));
        let schema_version = self.versions.filter(|a| a.is_valid(row)).map_or(1, |a| a.value(row));
        Ok(Row {
            number,
            id: self.ids.value(row),
            payload: self.payloads.value(row),
            kind,
            occurred_us: self.times.value(row),
            dimensions,
            cost_nanos: self
                .cost_nanos(kind, schema_version, row)
                .map_err(|what| format!("row {number}: {what}"))?,
            schema_version,
            impression: impressions.map(|array| array.value(row)),
            born_invalid: self.reasons.is_some_and(|array| array.is_valid(row)),
        })
    }

    /// A click costs its price when that is per click, a conversion when it is per action, and an
    /// impression a thousandth when it is per thousand.
    fn cost_nanos(&self, kind: Kind, schema_version: u16, row: usize) -> Result<i64, String> {
        let price_micros = self.prices.filter(|a| a.is_valid(row)).map_or(0, |a| a.value(row));
        let basis = self.bases.filter(|a| a.is_valid(row)).map_or(0, |a| a.value(row));
        let factor = match (basis, kind) {
            (0, Kind::Click) | (2, Kind::Conversion) => 1_000,
            (1, Kind::Impression) => 1,
            (0..=2, _) => 0,
            (code, _) => return Err(format!("the price basis {code} is unknown")),
        };
        if schema_version != KNOWN_VERSION {
            return Ok(0);
        }
        if !(0..=PRICE_MICROS_MAX).contains(&price_micros) {
            return Err(format!("the price {price_micros} is not from 0 to {PRICE_MICROS_MAX}"));
        }
        Ok(price_micros * factor)
    }
}

impl<'a> Dimension<'a> {
    fn of(
        name: &str,
        array: &'a DictionaryArray<UInt16Type>,
        texts: &mut Texts,
    ) -> Result<Self, String> {
        let values = array
            .values()
            .as_any()
            .downcast_ref::<StringArray>()
            .ok_or_else(|| format!("column `{name}` is no dictionary of texts"))?;
        let numbers = values.iter().map(|text| texts.number(text.unwrap_or(""))).collect();
        Ok(Dimension { keys: array.keys(), numbers })
    }

    fn number(&self, row: usize) -> u32 {
        if self.keys.is_null(row) { 0 } else { self.numbers[usize::from(self.keys.value(row))] }
    }
}

fn optional<'a, A: 'static>(batch: &'a RecordBatch, name: &str) -> Result<Option<&'a A>, String> {
    let Some(array) = batch.column_by_name(name) else { return Ok(None) };
    let found = array.as_any().downcast_ref::<A>();
    found.map(Some).ok_or_else(|| format!("column `{name}` is of type {}", array.data_type()))
}

fn required<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A, String> {
    let array: &A = optional(batch, name)?.ok_or_else(|| format!("column `{name}` is missing"))?;
    if array.null_count() > 0 {
        return Err(format!("column `{name}` has rows without a value"));
    }
    Ok(array)
}
