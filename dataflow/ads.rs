//! The ad event as the dataflow sees it: the columns of a frame that the ledger and the sums need,
//! dimension texts turned into symbols once per frame and distinct value, and what an event
//! contributes. The column layout is drawn in [`trueup_operators::event`].
//!
//! Anyone may have written the frame of a shared topic, so nothing in it is believed: a frame with
//! a price that no collector would take is not read at all, and sums rely on that. (Times are
//! judged event by event, by the ledger.)

use crate::ipc;
use arrow_array::{
    Array, ArrayRef, FixedSizeBinaryArray, PrimitiveArray, RecordBatch,
    cast::AsArray,
    types::{
        ArrowPrimitiveType, Int64Type, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt64Type,
    },
};
use trueup_operators::{
    change::Key,
    event::{self, DIMENSIONS, DecodeError, EventBatch, EventType, SCHEMA_VERSION, columns},
    hash::IdHash,
    ledger::RowDelta,
    log::Frame,
    metrics::Metrics,
    money::{Nanos, PRICE_MICROS_MAX, PriceBasis},
    rollup::RollupSpec,
    sum::Contribution,
    symbols::{ABSENT, Symbol, Symbols},
};

/// The most dimensions of a rollup of the ad job.
pub const AD_DIMENSIONS_MAX: usize = 4;

/// A decoded frame of ad events.
pub struct AdBatch {
    ids: FixedSizeBinaryArray,
    payloads: PrimitiveArray<UInt64Type>,
    types: PrimitiveArray<UInt8Type>,
    times_us: PrimitiveArray<TimestampMicrosecondType>,
    prices: Option<PrimitiveArray<Int64Type>>,
    bases: Option<PrimitiveArray<UInt8Type>>,
    versions: Option<PrimitiveArray<UInt16Type>>,
    impressions: Option<FixedSizeBinaryArray>,
    invalid: Option<ArrayRef>,
    /// By position in [`DIMENSIONS`].
    dimensions: [Option<Dimension>; DIMENSIONS.len()],
}

/// A dimension's values by row, as numbers into the distinct values of the frame.
struct Dimension {
    codes: PrimitiveArray<UInt16Type>,
    /// By code.
    symbols: Vec<Symbol>,
}

impl Dimension {
    fn read(column: &ArrayRef, symbols: &Symbols) -> Result<Dimension, String> {
        let column =
            column.as_dictionary_opt::<UInt16Type>().ok_or("is no dictionary of UInt16")?;
        let values =
            column.values().as_string_opt::<i32>().ok_or("is no dictionary of Utf8 values")?;
        let mut of_codes = Vec::with_capacity(values.len());
        // A null among the values reads as absent, whose text is empty.
        symbols.intern_all(values.iter().map(Option::unwrap_or_default), &mut of_codes);
        Ok(Dimension { codes: column.keys().clone(), symbols: of_codes })
    }

    #[inline]
    fn symbol(&self, row: usize) -> Symbol {
        if self.codes.is_null(row) {
            return ABSENT;
        }
        self.symbols[usize::from(self.codes.value(row))]
    }
}

/// Finds the columns of a frame, and says what is wrong with them.
struct Columns<'a> {
    frame: &'a Frame,
    batch: RecordBatch,
}

impl Columns<'_> {
    fn error(&self, name: &str, what: &str) -> DecodeError {
        DecodeError {
            partition: self.frame.partition,
            offset: self.frame.offset,
            reason: format!("column `{name}` {what}"),
        }
    }

    fn required<A: Clone>(
        &self,
        name: &str,
        cast: impl Fn(&ArrayRef) -> Option<&A>,
    ) -> Result<A, DecodeError> {
        self.optional(name, cast)?.ok_or_else(|| self.error(name, "is missing"))
    }

    fn optional<A: Clone>(
        &self,
        name: &str,
        cast: impl Fn(&ArrayRef) -> Option<&A>,
    ) -> Result<Option<A>, DecodeError> {
        let Some(column) = self.batch.column_by_name(name) else { return Ok(None) };
        let cast = cast(column).ok_or_else(|| self.error(name, "has another type"))?;
        Ok(Some(cast.clone()))
    }

    /// A column without a value for some row would be read as one with a zero.
    fn whole(&self, names: &[&str]) -> Result<(), DecodeError> {
        let holed = |name: &&&str| {
            self.batch.column_by_name(name).is_some_and(|column| column.null_count() > 0)
        };
        match names.iter().find(holed) {
            Some(name) => Err(self.error(name, "has rows without a value")),
            None => Ok(()),
        }
    }
}

fn primitive<T: ArrowPrimitiveType>(column: &ArrayRef) -> Option<&PrimitiveArray<T>> {
    column.as_primitive_opt::<T>()
}

fn hashes(column: &ArrayRef) -> Option<&FixedSizeBinaryArray> {
    column.as_fixed_size_binary_opt().filter(|hashes| hashes.value_length() == 16)
}

impl EventBatch for AdBatch {
    fn decode(frame: &Frame, symbols: &Symbols) -> Result<Self, DecodeError> {
        let read = Columns { frame, batch: ipc::decode(frame)? };
        let mut dimensions = [const { None }; DIMENSIONS.len()];
        for (dimension, (_, name)) in dimensions.iter_mut().zip(DIMENSIONS) {
            if let Some(column) = read.batch.column_by_name(name) {
                let values = Dimension::read(column, symbols);
                *dimension = Some(values.map_err(|what| read.error(name, &what))?);
            }
        }
        read.whole(&[columns::ID_HASH, columns::EVENT_ID, columns::PAYLOAD_HASH])?;
        read.whole(&[columns::EVENT_TYPE, columns::OCCURRED_AT])?;
        let types = read.required(columns::EVENT_TYPE, primitive::<UInt8Type>)?;
        if let Some(&code) = types.values().iter().find(|&&c| EventType::from_code(c).is_none()) {
            return Err(read.error(columns::EVENT_TYPE, &format!("holds the unknown type {code}")));
        }
        let bases = read.optional(columns::PRICE_BASIS, primitive::<UInt8Type>)?;
        if let Some(code) = bases.iter().flatten().flatten().find(|&code| code > 2) {
            return Err(
                read.error(columns::PRICE_BASIS, &format!("holds the unknown basis {code}"))
            );
        }
        read.required(columns::EVENT_ID, |column| column.as_string_opt::<i32>())?;
        read.optional(columns::IMPRESSION_ID, |column| column.as_string_opt::<i32>())?;
        let batch = AdBatch {
            ids: read.required(columns::ID_HASH, hashes)?,
            payloads: read.required(columns::PAYLOAD_HASH, primitive)?,
            types,
            times_us: read.required(columns::OCCURRED_AT, primitive)?,
            prices: read.optional(columns::PRICE_MICROS, primitive)?,
            bases,
            versions: read.optional(columns::SCHEMA_VERSION, primitive)?,
            impressions: read.optional(columns::IMPRESSION_HASH, hashes)?,
            invalid: read.batch.column_by_name(columns::INVALID_REASON).cloned(),
            dimensions,
        };
        batch.within_limits(&read)?;
        Ok(batch)
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    fn ids(&self) -> &[IdHash] {
        self.ids.value_data().as_chunks().0
    }

    fn payloads(&self) -> &[u64] {
        self.payloads.values()
    }

    fn times_us(&self) -> &[i64] {
        self.times_us.values()
    }

    fn understood(&self, row: usize) -> bool {
        let version = self.versions.as_ref().filter(|v| v.is_valid(row)).map(|v| v.value(row));
        version.unwrap_or(SCHEMA_VERSION) == SCHEMA_VERSION
    }

    fn has_groups(&self) -> bool {
        self.impressions.is_some() || self.invalid.is_some()
    }

    /// An impression and its clicks share an impression id; a conversion is judged by itself.
    fn group(&self, row: usize) -> Option<IdHash> {
        let hashes = self.impressions.as_ref().filter(|hashes| hashes.is_valid(row))?;
        (self.event_type(row) != EventType::Conversion)
            .then(|| hashes.value(row).try_into().ok())
            .flatten()
    }

    fn born_invalid(&self, row: usize) -> bool {
        self.invalid.as_ref().is_some_and(|reasons| reasons.is_valid(row))
    }
}

impl AdBatch {
    /// Refuses a price that no collector takes. Rows that are not understood may hold anything.
    fn within_limits(&self, read: &Columns<'_>) -> Result<(), DecodeError> {
        let Some(prices) = &self.prices else { return Ok(()) };
        let beyond = |row: &usize| {
            !(0..=PRICE_MICROS_MAX).contains(&prices.value(*row))
                && prices.is_valid(*row)
                && self.understood(*row)
        };
        match (0..prices.len()).find(beyond) {
            None => Ok(()),
            Some(row) => {
                let price = prices.value(row);
                let what =
                    format!("holds {price} in row {row}; the limits are 0 and {PRICE_MICROS_MAX}");
                Err(read.error(columns::PRICE_MICROS, &what))
            }
        }
    }

    /// What happened. (Unknown codes were refused when the frame was read.)
    #[inline]
    fn event_type(&self, row: usize) -> EventType {
        EventType::from_code(self.types.value(row)).unwrap_or(EventType::Impression)
    }

    /// What the event costs if it is valid.
    #[inline]
    fn cost(&self, row: usize) -> Nanos {
        let price = self.prices.as_ref().filter(|p| p.is_valid(row)).map_or(0, |p| p.value(row));
        let basis = self.bases.as_ref().filter(|b| b.is_valid(row)).map_or(0, |b| b.value(row));
        let basis = match basis {
            1 => PriceBasis::Cpm,
            2 => PriceBasis::Cpa,
            _ => PriceBasis::Cpc,
        };
        event::cost(self.event_type(row), basis, price)
    }
}

/// What an ad event adds to the rows of the configured rollups.
pub struct AdContribution {
    /// By rollup, then by place in the key: which of [`DIMENSIONS`].
    rollups: Vec<Vec<usize>>,
}

impl AdContribution {
    /// For rollups whose dimensions are all in [`DIMENSIONS`] (checked with the configuration).
    pub fn new(rollups: &[RollupSpec]) -> AdContribution {
        let place = |name: &String| DIMENSIONS.iter().position(|d| d.0 == name);
        let rollups =
            rollups.iter().map(|r| r.dimensions.iter().filter_map(place).collect()).collect();
        AdContribution { rollups }
    }
}

impl<const N: usize> Contribution<AdBatch, N> for AdContribution {
    type Metrics = Metrics;

    fn rollups(&self) -> usize {
        self.rollups.len()
    }

    #[inline]
    fn metrics(&self, batch: &AdBatch, row: usize, valid: bool) -> Metrics {
        Metrics::of(batch.event_type(row), batch.cost(row), valid)
    }

    fn keys(&self, rollup: usize, batch: &AdBatch, rows: &[RowDelta], keys: &mut Vec<Key<N>>) {
        let start = keys.len();
        keys.resize(start + rows.len(), [ABSENT; N]);
        for (place, &dimension) in self.rollups[rollup].iter().enumerate() {
            let Some(values) = &batch.dimensions[dimension] else { continue };
            if values.codes.null_count() == 0 {
                let codes = values.codes.values();
                for (key, delta) in keys[start..].iter_mut().zip(rows) {
                    key[place] = values.symbols[usize::from(codes[usize::from(delta.row)])];
                }
            } else {
                for (key, delta) in keys[start..].iter_mut().zip(rows) {
                    key[place] = values.symbol(usize::from(delta.row));
                }
            }
        }
    }
}
