//! Events of any Rust type as batches of columns. A job whose events are not worth a column layout
//! of their own implements [`Event`] on a plain struct; [`Rows`] is its batch: an Arrow IPC stream
//! with the columns that the ledger needs and the event itself as JSON.
//!
//! ```text
//! id_hash       FixedSizeBinary(16)   keyed hash of Event::id
//! payload_hash  UInt64                xxh3 of the JSON
//! time_us       Int64                 Event::time
//! event         Utf8                  the event as JSON
//! ```

use crate::ipc;
use arrow_array::{
    Array, FixedSizeBinaryArray, Int64Array, RecordBatch, StringArray, UInt64Array,
    cast::AsArray,
    types::{Int64Type, UInt64Type},
};
use arrow_buffer::Buffer;
use arrow_schema::{ArrowError, DataType, Field, Schema};
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;
use trueup_operators::{
    change::Key,
    event::{DecodeError, EventBatch},
    hash::{self, Domain, HashKey, IdHash},
    ledger::RowDelta,
    log::Frame,
    rollup::RollupSpec,
    sum::{Contribution, Exchanged},
    symbols::{ABSENT, Symbol, Symbols},
    time::EventTime,
};

/// An event of a job: what the ledger and the windows must know of it.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use trueup::{Event, EventTime};
///
/// #[derive(Serialize, Deserialize)]
/// struct Reading { sensor: String, number: u64, at_us: i64, celsius: i32 }
///
/// impl Event for Reading {
///     const DIMENSIONS: &'static [&'static str] = &["sensor"];
///     fn id(&self) -> String { format!("{}/{}", self.sensor, self.number) }
///     fn time(&self) -> EventTime { EventTime(self.at_us) }
///     fn texts(&self) -> Vec<&str> { vec![&self.sensor] }
/// }
/// ```
pub trait Event: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The names of the dimensions that rollups of these events may have.
    const DIMENSIONS: &'static [&'static str];

    /// What is the same in every copy of the event and in no other event.
    fn id(&self) -> String;

    /// When it happened.
    fn time(&self) -> EventTime;

    /// The texts of [`Event::DIMENSIONS`], in their order.
    fn texts(&self) -> Vec<&str>;

    /// Whether the event is one that this build understands; if not it is quarantined.
    fn understood(&self) -> bool {
        true
    }
}

/// A decoded batch of events of type `E`: the [`crate::Job::Batch`] of a job with plain events.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use trueup::*;
/// # #[derive(Clone, Serialize, Deserialize)]
/// # struct Reading { sensor: String, number: u64, at_us: i64, celsius: i64 }
/// # impl Event for Reading {
/// #     const DIMENSIONS: &'static [&'static str] = &["sensor"];
/// #     fn id(&self) -> String { format!("{}/{}", self.sensor, self.number) }
/// #     fn time(&self) -> EventTime { EventTime(self.at_us) }
/// #     fn texts(&self) -> Vec<&str> { vec![&self.sensor] }
/// # }
/// # trueup::group! { struct Warmth { readings, celsius } counting readings }
/// use trueup_operators::hash::HashKey;
///
/// let reading = Reading { sensor: "attic".into(), number: 1, at_us: 0, celsius: 21 };
/// let payload = Rows::encode(&[&reading], &HashKey([7; 16])).unwrap();
/// assert!(payload.len() > 16);
/// ```
pub struct Rows<E> {
    ids: FixedSizeBinaryArray,
    payloads: UInt64Array,
    times_us: Int64Array,
    events: Vec<E>,
    /// The symbols of [`Event::texts`], one event after the other.
    symbols: Vec<Symbol>,
}

impl<E: Event> Rows<E> {
    /// The payload of a frame that holds these events.
    ///
    /// # Errors
    /// When an event cannot be written as JSON.
    pub fn encode(events: &[&E], key: &HashKey) -> Result<Buffer, ArrowError> {
        let json = |e: &&E| serde_json::to_string(e);
        let texts: Vec<String> = events
            .iter()
            .map(json)
            .collect::<Result<_, _>>()
            .map_err(|e| ArrowError::JsonError(e.to_string()))?;
        let ids = events.iter().map(|e| Self::id_hash(e, key));
        let payloads = texts.iter().map(|t| hash::stable(t.as_bytes()));
        let schema = Schema::new(vec![
            Field::new("id_hash", DataType::FixedSizeBinary(16), false),
            Field::new("payload_hash", DataType::UInt64, false),
            Field::new("time_us", DataType::Int64, false),
            Field::new("event", DataType::Utf8, false),
        ]);
        let batch = RecordBatch::try_new(
            Arc::new(schema),
            vec![
                Arc::new(FixedSizeBinaryArray::try_from_iter(ids)?),
                Arc::new(UInt64Array::from_iter_values(payloads)),
                Arc::new(Int64Array::from_iter_values(events.iter().map(|e| e.time().0))),
                Arc::new(StringArray::from_iter_values(&texts)),
            ],
        )?;
        ipc::encode(&batch)
    }

    /// The hash that decides the partition of an event and what its copies are.
    pub fn id_hash(event: &E, key: &HashKey) -> IdHash {
        key.hash(Domain::Event, event.id().as_bytes())
    }

    /// The event of a row.
    pub fn event(&self, row: usize) -> &E {
        &self.events[row]
    }

    /// The symbols of a row's [`Event::texts`].
    pub fn symbols(&self, row: usize) -> &[Symbol] {
        &self.symbols[row * E::DIMENSIONS.len()..(row + 1) * E::DIMENSIONS.len()]
    }
}

impl<E: Event> EventBatch for Rows<E> {
    fn decode(frame: &Frame, symbols: &Symbols) -> Result<Self, DecodeError> {
        let error = |reason: String| DecodeError {
            partition: frame.partition,
            offset: frame.offset,
            reason,
        };
        let batch = ipc::decode(frame)?;
        let column = |name: &str| {
            batch.column_by_name(name).ok_or_else(|| error(format!("no column `{name}`")))
        };
        let of_type = |name: &str| error(format!("column `{name}` has another type"));
        let ids = column("id_hash")?.as_fixed_size_binary_opt();
        let payloads = column("payload_hash")?.as_primitive_opt::<UInt64Type>();
        let times_us = column("time_us")?.as_primitive_opt::<Int64Type>();
        let texts = column("event")?.as_string_opt::<i32>().ok_or_else(|| of_type("event"))?;
        let mut events: Vec<E> = Vec::with_capacity(texts.len());
        for text in texts {
            let text = text.ok_or_else(|| error("an event is null".into()))?;
            events.push(serde_json::from_str(text).map_err(|e| error(e.to_string()))?);
        }
        let width = E::DIMENSIONS.len();
        let mut interned = Vec::with_capacity(width * events.len());
        for event in &events {
            let texts = event.texts();
            if texts.len() != width {
                return Err(error(format!("an event has {} texts, not {width}", texts.len())));
            }
            interned.extend(texts.into_iter().map(|text| symbols.intern(text)));
        }
        Ok(Rows {
            ids: ids.filter(|i| i.value_length() == 16).ok_or_else(|| of_type("id_hash"))?.clone(),
            payloads: payloads.ok_or_else(|| of_type("payload_hash"))?.clone(),
            times_us: times_us.ok_or_else(|| of_type("time_us"))?.clone(),
            events,
            symbols: interned,
        })
    }

    fn len(&self) -> usize {
        self.events.len()
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
        self.events[row].understood()
    }
}

/// What plain events contribute: a closure says what one adds, and the rollups' dimensions are
/// taken from [`Event::texts`] by name.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use trueup::*;
/// # #[derive(Clone, Serialize, Deserialize)]
/// # struct Reading { sensor: String, number: u64, at_us: i64, celsius: i64 }
/// # impl Event for Reading {
/// #     const DIMENSIONS: &'static [&'static str] = &["sensor"];
/// #     fn id(&self) -> String { format!("{}/{}", self.sensor, self.number) }
/// #     fn time(&self) -> EventTime { EventTime(self.at_us) }
/// #     fn texts(&self) -> Vec<&str> { vec![&self.sensor] }
/// # }
/// # trueup::group! { struct Warmth { readings, celsius } counting readings }
/// let rollups = [RollupSpec::new("warmth", &["sensor"])];
/// // An invalid reading is one that a verdict took out: it counts nothing.
/// let warmth = |r: &Reading, valid: bool| match valid {
///     true => Warmth { readings: 1, celsius: r.celsius },
///     false => Warmth::default(),
/// };
/// let contribution = PerEvent::<Reading, _>::new(&rollups, warmth);
/// # let rollups = Contribution::<Rows<Reading>, 1>::rollups(&contribution);
/// # assert_eq!(rollups, 1);
/// ```
pub struct PerEvent<E, F> {
    /// By rollup, then by place in the key: which of [`Event::DIMENSIONS`].
    rollups: Vec<Vec<Option<usize>>>,
    metrics: F,
    events: std::marker::PhantomData<fn(&E)>,
}

impl<E: Event, F> PerEvent<E, F> {
    /// `metrics` says what an event adds to its rows, as a valid or as an invalid one. A dimension
    /// that the events do not have stays absent.
    pub fn new(rollups: &[RollupSpec], metrics: F) -> Self {
        let place = |name: &String| E::DIMENSIONS.iter().position(|d| d == name);
        let rollups = rollups.iter().map(|r| r.dimensions.iter().map(place).collect()).collect();
        PerEvent { rollups, metrics, events: std::marker::PhantomData }
    }
}

impl<E, M, F, const N: usize> Contribution<Rows<E>, N> for PerEvent<E, F>
where
    E: Event,
    M: Exchanged,
    F: Fn(&E, bool) -> M + 'static,
{
    type Metrics = M;

    fn rollups(&self) -> usize {
        self.rollups.len()
    }

    fn metrics(&self, batch: &Rows<E>, row: usize, valid: bool) -> M {
        (self.metrics)(batch.event(row), valid)
    }

    fn keys(&self, rollup: usize, batch: &Rows<E>, rows: &[RowDelta], keys: &mut Vec<Key<N>>) {
        keys.extend(rows.iter().map(|delta| {
            let symbols = batch.symbols(delta.row.into());
            let mut key = [ABSENT; N];
            for (word, &dimension) in key.iter_mut().zip(&self.rollups[rollup]) {
                *word = dimension.map_or(ABSENT, |dimension| symbols[dimension]);
            }
            key
        }));
    }
}

/// Makes a struct of `i64` figures a group: what it adds up, and which figures count its records.
///
/// ```
/// trueup::group! {
///     /// What a sensor adds up to.
///     pub struct Warmth { readings, celsius } counting readings
/// }
/// let mut warmth = Warmth { readings: 1, celsius: 20 };
/// assert!(trueup::Group::add(&mut warmth, &Warmth { readings: 1, celsius: -3 }));
/// assert_eq!(warmth, Warmth { readings: 2, celsius: 17 });
///
/// let mut kept = Vec::new();
/// trueup::Group::write(&warmth, &mut kept);
/// assert_eq!(<Warmth as trueup::Group>::read(&kept), Some(warmth));
/// ```
#[macro_export]
macro_rules! group {
    ($(#[$doc:meta])* $vis:vis struct $name:ident { $($figure:ident),+ $(,)? }
     counting $($counted:ident)|+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        #[derive($crate::serde::Serialize, $crate::serde::Deserialize)]
        #[serde(crate = "trueup::serde")]
        #[allow(missing_docs)]
        $vis struct $name { $(pub $figure: i64),+ }

        impl $crate::Group for $name {
            const COLUMNS: &'static [&'static str] = &[$(stringify!($figure)),+];

            fn add(&mut self, other: &Self) -> bool {
                let mut within = true;
                $(
                    within &= self.$figure.checked_add(other.$figure).is_some();
                    self.$figure = self.$figure.saturating_add(other.$figure);
                )+
                within
            }

            fn negated(&self) -> Self {
                $name { $($figure: self.$figure.saturating_neg()),+ }
            }

            fn records(&self) -> i64 {
                0 $(+ self.$counted)+
            }

            fn columns(&self, out: &mut Vec<i64>) {
                out.extend([$(self.$figure),+]);
            }

            const BYTES: usize = Self::COLUMNS.len() * 8;

            fn write(&self, out: &mut ::std::vec::Vec<u8>) {
                $(out.extend(self.$figure.to_le_bytes());)+
            }

            fn read(bytes: &[u8]) -> ::std::option::Option<Self> {
                let (words, rest) = bytes.as_chunks::<8>();
                let &[$($figure),+] = words else { return None };
                rest.is_empty().then_some($name { $($figure: i64::from_le_bytes($figure)),+ })
            }
        }
    };
}
