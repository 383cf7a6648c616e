//! What a worker says of an epoch on its way to every process: each process holds all views, so
//! what one accumulator or ledger says is told to the worker with the same thread number in each
//! process. To its own it goes as it is; to others it goes with texts in the place of symbols.
//!
//! # Why it is hard
//!
//! All that changes in an epoch goes to all processes, so what is packed is packed once, however
//! many there are, and what stays is neither copied nor looked through. What changes has no bound
//! but the rows of the tables, and a message has one, so changes are cut wherever a *parcel* is
//! full, between two rows; texts are looked up once a parcel and not once a row.
//!
//! # On the wire, little-endian
//!
//! timely writes records with bincode: integers of their own width, a length as `u64`.
//!
//! ```text
//! u32 to, u32 from        workers
//! u64 bytes of
//!   0   u32 P   parts
//!   4   u32 L   bytes of the parts
//!   8   u32 T   texts
//!   12  u32 B   bytes of the texts
//!   16  L       parts, one behind the other
//!       T, B    the texts, see `texts`
//! ```
//!
//! A part is one of these:
//!
//! ```text
//! u8 0    changes of one bucket of a table
//!         u16 rollup, u8 0 minute, 1 hour, 2 day, u8 0, i32 bucket      see `section`
//!         u32 R
//!         R × { u32 row, u32 old version, N × u32 place of a text,
//!               old and new figures as `Group::write` }
//! u8 1    counts
//!         5 × u64 events by the code of their fate, u64 late, u64 verdicts, u64 retractions,
//!         u64 verdicts too late, u64 arithmetic errors, u64 folded
//! u8 2    incidents
//!         u32 I
//!         I × { u8 code of the fate, u16 partition, u64 offset, u16 row, i64 log time, µs }
//!         in the two highest bits of the partition: the topic, see `event::Position`
//! ```
//!
//! With [`crate::metrics::Metrics`] and four dimensions a change is 96 bytes.
//!
//! # Promises
//!
//! * A parcel has at most [`PARCEL_BYTES_MAX`], or a single row whose texts are longer than that.
//!   timely gathers at most 8 KiB of [`Told`]s in one message, and with them their parcels.
//! * What a worker says arrives in the order in which it was said, with the row numbers that it
//!   gave. A bucket that was cut arrives as several [`Said::Changes`], one directly behind the
//!   other. Changes without a row say nothing and do not cross.
//! * What was read from a peer is bounded by the bytes that it sent, and names only texts that it
//!   brought, granularities, buckets, fates and row numbers that there can be: anything else is
//!   refused while it is read. timely answers that with a panic of the worker, which ends the run:
//!   a process whose peer speaks nonsense must not publish.

use crate::{
    accumulate::Said,
    change::{Change, Changes, Counts, Incident, TableId},
    event::{Fate, Position},
    metrics::Group,
    rollup::ROWS_MAX_MAX,
    section::{BrokenSection, Dictionary, Reader, write_bucket},
    sum::crossing::Crossing,
    symbols::{Symbol, Symbols},
    texts::Texts,
    time::{Bucket, Epoch, LogTime},
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
    ser::Error,
};
use std::{fmt, marker::PhantomData, sync::Arc};
use timely::{
    container::CapacityContainerBuilder,
    dataflow::{StreamVec, channels::pact::Pipeline, operators::Operator},
};

/// The most bytes of a parcel that has more than one row.
pub const PARCEL_BYTES_MAX: usize = 1 << 18;

/// Part of what a worker says of an epoch, for a worker of one process.
#[derive(Clone, Debug)]
pub struct Told<const N: usize, M> {
    /// The worker that it is for.
    pub to: u32,
    /// The worker that says it.
    pub from: u32,
    parcel: Parcel<N, M>,
}

#[derive(Clone, Debug)]
enum Parcel<const N: usize, M> {
    /// For this process: keys are its symbols.
    Here(Vec<Said<N, M>>),
    /// For another process, packed; shared by the messages to all of them.
    Leaving(Arc<Vec<u8>>),
    /// From another process: keys are places among these texts.
    Arrived(Unpacked<N, M>),
}

#[derive(Clone, Debug)]
struct Unpacked<const N: usize, M> {
    texts: Texts,
    said: Vec<Said<N, M>>,
}

/// Tells what this worker says to the worker with its thread number in each process, itself among
/// them. The messages must be exchanged by [`Told::to`].
pub fn tell<'scope, const N: usize, M: Group>(
    said: StreamVec<'scope, Epoch, Said<N, M>>,
    crossing: &Crossing,
) -> StreamVec<'scope, Epoch, Told<N, M>> {
    let (me, peers) = (said.scope().index() as u32, said.scope().peers() as u32);
    let threads = crossing.threads() as u32;
    let mut packing = Packing::new(Arc::clone(crossing.symbols()), PARCEL_BYTES_MAX);
    said.unary::<CapacityContainerBuilder<Vec<_>>, _, _, _>(Pipeline, "Tell", move |_, _| {
        move |input, output| {
            input.for_each(|capability, said| {
                let mut session = output.session(&capability);
                let parcels = packing.pack(said);
                for to in (me % threads..peers).step_by(threads as usize).filter(|&to| to != me) {
                    session.give_iterator(parcels.iter().map(|parcel| {
                        let parcel = Parcel::Leaving(Arc::clone(parcel));
                        Told { to, from: me, parcel }
                    }));
                }
                let parcel = Parcel::Here(std::mem::take(said));
                session.give(Told { to: me, from: me, parcel });
            });
        }
    })
}

impl<const N: usize, M: Group> Told<N, M> {
    /// What was said, as this process understands it: as it is if it comes from this process, else
    /// with symbols of this process, new ones for texts that were not known here. `named` is empty
    /// and will be, and keeps its room from message to message.
    ///
    /// # Panics
    /// When it was packed for another process and never sent: whoever packed it was wrong about the
    /// number of workers of a process.
    pub(super) fn arrive(self, symbols: &Symbols, named: &mut Vec<Symbol>) -> Vec<Said<N, M>> {
        let Unpacked { texts, mut said } = match self.parcel {
            Parcel::Here(said) => return said,
            Parcel::Arrived(unpacked) => unpacked,
            Parcel::Leaving(_) => {
                panic!(
                    "workers {} and {} are of one process, and should not be",
                    self.from, self.to
                )
            }
        };
        texts.intern(symbols, named);
        for said in &mut said {
            let Said::Changes(changes) = said else { continue };
            for change in &mut changes.changes {
                change.key = change.key.map(|place| named[place as usize]);
            }
        }
        named.clear();
        said
    }
}

/// Bytes before the parts.
const HEAD_BYTES: usize = 16;
/// Bytes of a part of changes before its rows, and of a part of incidents before them.
const CHANGES_HEAD_BYTES: usize = 13;
const INCIDENTS_HEAD_BYTES: usize = 5;
const COUNTS_BYTES: usize = 1 + Counts::NUMBERS * size_of::<u64>();
const INCIDENT_BYTES: usize = 21;

const CHANGES_CODE: u8 = 0;
const COUNTS_CODE: u8 = 1;
const INCIDENTS_CODE: u8 = 2;

const fn change_bytes<const N: usize, M: Group>() -> usize {
    (2 + N) * size_of::<u32>() + 2 * M::BYTES
}

/// Puts what is said into parcels, and keeps its room from one to the next.
struct Packing {
    symbols: Arc<Symbols>,
    bytes_max: usize,
    /// The parcel under way: its head, yet without numbers, and its parts.
    bytes: Vec<u8>,
    parts: u32,
    dictionary: Dictionary,
    texts: Texts,
    closed: Vec<Arc<Vec<u8>>>,
}

impl Packing {
    fn new(symbols: Arc<Symbols>, bytes_max: usize) -> Packing {
        Packing {
            symbols,
            bytes_max,
            bytes: vec![0; HEAD_BYTES],
            parts: 0,
            dictionary: Dictionary::default(),
            texts: Texts::default(),
            closed: Vec::new(),
        }
    }

    /// All of it, in order.
    fn pack<const N: usize, M: Group>(&mut self, said: &[Said<N, M>]) -> Vec<Arc<Vec<u8>>> {
        for said in said {
            match said {
                Said::Changes(changes) => self.changes(changes),
                Said::Counts(counts) => self.counts(counts),
                Said::Incidents(incidents) => self.incidents(incidents),
            }
        }
        self.close();
        std::mem::take(&mut self.closed)
    }

    /// The bytes of the parcel as it is.
    fn len(&self) -> usize {
        self.bytes.len() + self.texts.written_bytes()
    }

    /// Closes the parcel if it has parts and so many bytes more would be too many.
    fn make_room(&mut self, bytes: usize) {
        if self.len() + bytes > self.bytes_max {
            self.close();
        }
    }

    fn changes<const N: usize, M: Group>(&mut self, changes: &Changes<N, M>) {
        let symbols = Arc::clone(&self.symbols);
        let mut rest = &changes.changes[..];
        while !rest.is_empty() {
            // The lock is held for one parcel.
            let within =
                symbols.with_texts(|text| self.rows(changes.table, changes.bucket, rest, text));
            rest = &rest[within..];
            if !rest.is_empty() {
                self.close();
            }
        }
    }

    /// A part of as many rows as there is room for, and how many these are: none only if the parcel
    /// has other parts.
    fn rows<const N: usize, M: Group>(
        &mut self,
        table: TableId,
        bucket: Bucket,
        rows: &[Change<N, M>],
        text: &dyn Fn(Symbol) -> Arc<str>,
    ) -> usize {
        let begin = self.bytes.len();
        self.bytes.push(CHANGES_CODE);
        write_bucket(table, bucket, &mut self.bytes);
        self.bytes.extend([0; 4]);
        let mut count = 0;
        for change in rows {
            let new = change.key.iter().filter(|&&symbol| !self.dictionary.has(symbol));
            let texts: usize = new.map(|&symbol| size_of::<u32>() + text(symbol).len()).sum();
            let bytes = self.len() + change_bytes::<N, M>() + texts;
            if bytes > self.bytes_max && (self.parts > 0 || count > 0) {
                break;
            }
            self.row(change, text);
            count += 1;
        }
        if count == 0 {
            self.bytes.truncate(begin);
            return 0;
        }
        let at = begin + CHANGES_HEAD_BYTES;
        self.bytes[at - 4..at].copy_from_slice(&(count as u32).to_le_bytes());
        self.parts += 1;
        count
    }

    fn row<const N: usize, M: Group>(
        &mut self,
        change: &Change<N, M>,
        text: &dyn Fn(Symbol) -> Arc<str>,
    ) {
        self.bytes.extend(change.row.to_le_bytes());
        self.bytes.extend(change.old_version.to_le_bytes());
        for &symbol in &change.key {
            let place = self.dictionary.number(symbol);
            if place as usize == self.texts.len() {
                self.texts.push(&text(symbol));
            }
            self.bytes.extend(place.to_le_bytes());
        }
        change.old.write(&mut self.bytes);
        change.new.write(&mut self.bytes);
    }

    fn counts(&mut self, counts: &Counts) {
        self.make_room(COUNTS_BYTES);
        self.bytes.push(COUNTS_CODE);
        for number in counts.numbers() {
            self.bytes.extend(number.to_le_bytes());
        }
        self.parts += 1;
    }

    fn incidents(&mut self, incidents: &[Incident]) {
        let mut rest = incidents;
        while !rest.is_empty() {
            self.make_room(INCIDENTS_HEAD_BYTES + INCIDENT_BYTES);
            let room = self.bytes_max.saturating_sub(self.len() + INCIDENTS_HEAD_BYTES);
            let (within, later) = rest.split_at((room / INCIDENT_BYTES).clamp(1, rest.len()));
            rest = later;
            self.bytes.push(INCIDENTS_CODE);
            self.bytes.extend((within.len() as u32).to_le_bytes());
            for Incident { fate, position, log_time } in within {
                self.bytes.push(*fate as u8);
                self.bytes.extend(position.partition.to_le_bytes());
                self.bytes.extend(position.offset.to_le_bytes());
                self.bytes.extend(position.row.to_le_bytes());
                self.bytes.extend(log_time.0.to_le_bytes());
            }
            self.parts += 1;
        }
    }

    /// Ends the parcel, if it has parts, and begins the next.
    fn close(&mut self) {
        if self.parts == 0 {
            return;
        }
        let parts = self.bytes.len() - HEAD_BYTES;
        let (texts, joined) = (self.texts.len(), self.texts.joined.len());
        for (i, number) in [self.parts as usize, parts, texts, joined].into_iter().enumerate() {
            self.bytes[i * 4..][..4].copy_from_slice(&(number as u32).to_le_bytes());
        }
        self.texts.write(&mut self.bytes);
        self.texts.clear();
        self.dictionary.clear();
        self.parts = 0;
        self.closed.push(Arc::new(std::mem::replace(&mut self.bytes, vec![0; HEAD_BYTES])));
    }
}

/// What a peer has packed, if that is what it should be.
fn unpack<const N: usize, M: Group>(bytes: &[u8]) -> Result<Unpacked<N, M>, BrokenSection> {
    let mut reader = Reader::new("what a peer said", bytes);
    let parts = reader.u32()?;
    let [of_parts, texts, joined] =
        [reader.u32()?, reader.u32()?, reader.u32()?].map(|n| n as usize);
    let mut of_parts = Reader::new("a part of what a peer said", reader.take(of_parts)?);
    let ends = reader.take(texts.saturating_mul(size_of::<u32>()))?;
    let joined = reader.take(joined)?;
    reader.end()?;
    let texts = Texts::read(ends, joined).map_err(|reason| reader.broken(reason))?;
    let mut said = Vec::new();
    for _ in 0..parts {
        said.push(part(&mut of_parts, texts.len())?);
    }
    of_parts.end()?;
    Ok(Unpacked { texts, said })
}

fn part<const N: usize, M: Group>(
    reader: &mut Reader<'_>,
    texts: usize,
) -> Result<Said<N, M>, BrokenSection> {
    match reader.u8()? {
        CHANGES_CODE => {
            let (table, bucket) = reader.bucket()?;
            let count = reader.count(change_bytes::<N, M>())?;
            let changes = (0..count).map(|_| change(reader, texts)).collect::<Result<_, _>>()?;
            Ok(Said::Changes(Changes { table, bucket, changes }))
        }
        COUNTS_CODE => {
            let mut numbers = [0; Counts::NUMBERS];
            for number in &mut numbers {
                *number = reader.u64()?;
            }
            Ok(Said::Counts(Counts::of_numbers(numbers)))
        }
        INCIDENTS_CODE => {
            let count = reader.count(INCIDENT_BYTES)?;
            let incidents = (0..count).map(|_| incident(reader)).collect::<Result<_, _>>()?;
            Ok(Said::Incidents(incidents))
        }
        code => Err(reader.broken(format!("has the code {code}, which none has"))),
    }
}

fn change<const N: usize, M: Group>(
    reader: &mut Reader<'_>,
    texts: usize,
) -> Result<Change<N, M>, BrokenSection> {
    let (row, old_version) = (reader.u32()?, reader.u32()?);
    if row >= ROWS_MAX_MAX {
        return Err(reader.broken(format!("names row {row}, a bucket has {ROWS_MAX_MAX} at most")));
    }
    let mut key = [0; N];
    for place in &mut key {
        *place = reader.u32()?;
        if *place as usize >= texts {
            return Err(reader.broken(format!("names text {place} of {texts}")));
        }
    }
    let mut figures = || {
        let bytes = reader.take(M::BYTES)?;
        M::read(bytes).ok_or_else(|| reader.broken("has figures that are none"))
    };
    Ok(Change { row, old_version, key, old: figures()?, new: figures()? })
}

fn incident(reader: &mut Reader<'_>) -> Result<Incident, BrokenSection> {
    let code = reader.u8()?;
    let fate = Fate::ALL.get(usize::from(code)).copied();
    let fate = fate.ok_or_else(|| reader.broken(format!("names fate {code}, which none is")))?;
    let (partition, offset, row) = (reader.u16()?, reader.u64()?, reader.u16()?);
    let position = Position { partition, offset, row };
    Ok(Incident { fate, position, log_time: LogTime(reader.i64()?) })
}

/// A [`Told`] as it is written.
#[derive(Serialize)]
struct Written<'p> {
    to: u32,
    from: u32,
    parcel: Packed<'p>,
}

struct Packed<'p>(&'p [u8]);

impl Serialize for Packed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<const N: usize, M> Serialize for Told<N, M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let &Told { to, from, .. } = self;
        match &self.parcel {
            Parcel::Leaving(bytes) => {
                Written { to, from, parcel: Packed(bytes) }.serialize(serializer)
            }
            Parcel::Here(_) => Err(S::Error::custom("what is for this process leaves it")),
            Parcel::Arrived(_) => Err(S::Error::custom("what was told is told again")),
        }
    }
}

/// A [`Told`] as it is read.
#[derive(Deserialize)]
#[serde(bound = "M: Group")]
struct Read<const N: usize, M> {
    to: u32,
    from: u32,
    parcel: Unpacked<N, M>,
}

impl<'de, const N: usize, M: Group> Deserialize<'de> for Unpacked<N, M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(OfBytes(PhantomData))
    }
}

struct OfBytes<const N: usize, M>(PhantomData<M>);

impl<const N: usize, M: Group> Visitor<'_> for OfBytes<N, M> {
    type Value = Unpacked<N, M>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what a worker said, packed")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        unpack(bytes).map_err(E::custom)
    }
}

impl<'de, const N: usize, M: Group> Deserialize<'de> for Told<N, M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Read { to, from, parcel } = Read::deserialize(deserializer)?;
        Ok(Told { to, from, parcel: Parcel::Arrived(parcel) })
    }
}

#[cfg(test)]
mod tests;
