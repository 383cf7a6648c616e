//! The first of the two stages: each worker sums what the ledger lets through, by rollup, key and
//! minute, before anything is exchanged. A campaign that is a hundred times hotter meets its own
//! rows here and costs no more afterwards; what crosses to another worker is one [`Chunk`] per
//! rollup, target and epoch.
//!
//! # Why it is hard
//!
//! This stage touches every event once per rollup, and its table is larger than the caches when
//! keys are many. So it works on blocks of a batch, column by column: first the metrics and
//! minutes of a block, then per rollup the keys, their hashes, a prefetch of the index, and the
//! additions. The table is an index of `u32` (10 bits of the hash, 22 bits of place) over a dense
//! vector of sums: draining hands the vector away, and clearing is filling the small index.
//!
//! # Invariants
//!
//! * The sums of an epoch leave when the epoch is complete, or earlier in parts when a table has
//!   [`SUMS_MAX`] rows; the second stage adds parts up.
//! * Which worker owns a key follows from the texts of its dimensions ([`Stables`]), never from
//!   symbols, so that processes with other symbols agree.
//! * Symbols never leave their process: what does, carries texts ([`crossing`]).

use crate::{
    change::{Key, same_key},
    event::EventBatch,
    hash,
    ledger::{Ledgered, RowDelta, Standing},
    metrics::Group,
    prefetch,
    symbols::{Symbol, Symbols},
    time::{Bucket, Epoch, Granularity, MINUTE_US},
};
use crossing::{Crossing, Form};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, sync::Arc};
use timely::{
    container::CapacityContainerBuilder,
    dataflow::{
        StreamVec,
        channels::pact::Pipeline,
        operators::{Capability, Operator},
    },
};

pub mod crossing;

/// A group element that can cross to another worker.
pub trait Exchanged: Group + Serialize + DeserializeOwned {}
impl<M: Group + Serialize + DeserializeOwned> Exchanged for M {}

/// What the events of a batch type add to the rows of a job's rollups.
///
/// `N` is the most dimensions that a rollup has; shorter keys end in
/// [`crate::symbols::ABSENT`].
pub trait Contribution<B, const N: usize>: 'static {
    /// The group that is summed.
    type Metrics: Exchanged;

    /// How many rollups there are.
    fn rollups(&self) -> usize;

    /// What one event adds to a row, as a valid or as an invalid one.
    fn metrics(&self, batch: &B, row: usize, valid: bool) -> Self::Metrics;

    /// Appends the keys of `rows` in a rollup to `keys`, one each, in order.
    fn keys(&self, rollup: usize, batch: &B, rows: &[RowDelta], keys: &mut Vec<Key<N>>);
}

/// The sum of a key in a bucket; with four dimensions and [`crate::metrics::Metrics`] a cache line.
#[repr(align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound = "M: Serialize + DeserializeOwned")]
pub struct Sum<const N: usize, M> {
    /// The dimensions.
    #[serde(with = "key_on_the_wire")]
    pub key: Key<N>,
    /// The minute; in a chunk of one granularity, the bucket of that.
    pub bucket: Bucket,
    /// What its events add up to.
    pub metrics: M,
}

/// Sums on their way to the worker that owns their keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk<const N: usize, M> {
    /// The worker.
    pub target: u32,
    /// The rollup.
    pub rollup: u16,
    /// `None`: sums by minute, for every granularity of the rollup. Else sums by the buckets of
    /// one granularity, folded out of its full table.
    pub granularity: Option<Granularity>,
    /// How many additions left the range of a figure, which now stands at its limit.
    pub overflows: u64,
    /// Whether it is on its way between two processes, and where ([`Crossing`]).
    pub form: Form,
    /// Its sums; a key and bucket may come in several chunks of an epoch.
    pub sums: Vec<Sum<N, M>>,
}

/// A table with this many rows is sent on before its epoch is complete: bounds the memory of an
/// epoch that holds more keys than anyone expected.
pub const SUMS_MAX: usize = 1 << 20;

/// Events are worked on in blocks of this many: their columns stay in the first-level cache.
const BLOCK: usize = 512;

/// Sums the events of each epoch by rollup, key and minute. `threads` is the number of workers of
/// each process; if there is one process, of all.
pub fn sum<'scope, B, C, const N: usize>(
    events: StreamVec<'scope, Epoch, Arc<Ledgered<B>>>,
    contribution: C,
    symbols: Arc<Symbols>,
    threads: usize,
) -> StreamVec<'scope, Epoch, Chunk<N, C::Metrics>>
where
    B: EventBatch,
    C: Contribution<B, N>,
{
    let (worker, peers) = (events.scope().index(), events.scope().peers() as u32);
    events.unary_frontier::<CapacityContainerBuilder<Vec<_>>, _, _, _>(
        Pipeline,
        "Sum",
        move |_capability, _info| {
            let mut crossing = Crossing::new(Arc::clone(&symbols), worker, threads);
            let mut stage = Stage::new(contribution, symbols, peers);
            let mut open: BTreeMap<Epoch, Open<N, C::Metrics>> = BTreeMap::new();
            move |(input, frontier), output| {
                input.for_each(|capability, batches| {
                    let Some(capability) = capability.retain_least(0) else { return };
                    let epoch = open
                        .entry(*capability.time())
                        .or_insert_with(|| Open { capability, tables: stage.take_tables() });
                    for ledgered in batches.drain(..) {
                        let Some(located) = &ledgered.batch else { continue };
                        let mut session = output.session(&epoch.capability);
                        stage.add(&located.batch, &ledgered.rows, &mut epoch.tables, |chunk| {
                            session.give(crossing.depart(chunk));
                        });
                    }
                });
                while let Some(entry) = open.first_entry() {
                    if frontier.less_equal(entry.key()) {
                        break;
                    }
                    let mut epoch = entry.remove();
                    let mut session = output.session(&epoch.capability);
                    for (rollup, table) in epoch.tables.iter_mut().enumerate() {
                        stage.drain(rollup, table, |chunk| session.give(crossing.depart(chunk)));
                    }
                    stage.give_back(epoch.tables);
                }
            }
        },
    )
}

struct Open<const N: usize, M> {
    capability: Capability<Epoch>,
    tables: Vec<Local<N, M>>,
}

/// The stage of one worker, and its buffers, kept from batch to batch.
struct Stage<C, const N: usize, M> {
    contribution: C,
    stables: Stables,
    peers: u32,
    metrics: Vec<M>,
    minutes: Vec<Bucket>,
    keys: Vec<Key<N>>,
    spare: Vec<Vec<Local<N, M>>>,
}

impl<C, const N: usize, M: Exchanged> Stage<C, N, M> {
    fn new(contribution: C, symbols: Arc<Symbols>, peers: u32) -> Self {
        Stage {
            contribution,
            stables: Stables::new(symbols),
            peers,
            metrics: Vec::with_capacity(BLOCK),
            minutes: Vec::with_capacity(BLOCK),
            keys: Vec::with_capacity(BLOCK),
            spare: Vec::new(),
        }
    }

    fn take_tables<B>(&mut self) -> Vec<Local<N, M>>
    where
        C: Contribution<B, N, Metrics = M>,
    {
        self.spare
            .pop()
            .unwrap_or_else(|| (0..self.contribution.rollups()).map(|_| Local::new()).collect())
    }

    fn give_back(&mut self, tables: Vec<Local<N, M>>) {
        self.spare.push(tables);
    }

    fn add<B>(
        &mut self,
        batch: &B,
        rows: &[RowDelta],
        tables: &mut [Local<N, M>],
        mut send: impl FnMut(Chunk<N, M>),
    ) where
        B: EventBatch,
        C: Contribution<B, N, Metrics = M>,
    {
        for block in rows.chunks(BLOCK) {
            self.measure(batch, block);
            for (rollup, table) in tables.iter_mut().enumerate() {
                self.keys.clear();
                self.contribution.keys(rollup, batch, block, &mut self.keys);
                debug_assert_eq!(self.keys.len(), block.len());
                table.add(&self.keys, &self.minutes, &self.metrics);
                if table.sums.len() >= SUMS_MAX {
                    self.drain(rollup, table, &mut send);
                }
            }
        }
    }

    /// The minutes and metrics of a block, −was +is.
    fn measure<B>(&mut self, batch: &B, block: &[RowDelta])
    where
        B: EventBatch,
        C: Contribution<B, N, Metrics = M>,
    {
        let times_us = batch.times_us();
        self.minutes.clear();
        self.metrics.clear();
        // Neighbours share their minute more often than not: one comparison instead of a division.
        let (mut minute, mut start_us) = (Bucket(0), i64::MAX);
        for delta in block {
            let row = usize::from(delta.row);
            let since_us = times_us[row].wrapping_sub(start_us);
            if !(0..MINUTE_US).contains(&since_us) {
                minute = Bucket(times_us[row].div_euclid(MINUTE_US) as i32);
                start_us = i64::from(minute.0) * MINUTE_US;
            }
            self.minutes.push(minute);
            let of = |standing: Standing| match standing {
                Standing::Absent => None,
                Standing::Valid => Some(self.contribution.metrics(batch, row, true)),
                Standing::Invalid => Some(self.contribution.metrics(batch, row, false)),
            };
            let mut metrics = of(delta.is).unwrap_or_default();
            if let Some(was) = of(delta.was) {
                // A single event's figures are far from any limit.
                let _within = metrics.add(&was.negated());
            }
            self.metrics.push(metrics);
        }
    }

    /// Sends a table's sums to the owners of their keys and leaves it empty.
    fn drain(&mut self, rollup: usize, table: &mut Local<N, M>, mut send: impl FnMut(Chunk<N, M>)) {
        let sums = table.take();
        if sums.is_empty() {
            return;
        }
        let mut overflows = std::mem::take(&mut table.overflows);
        let mut chunk = |target, sums| Chunk {
            target,
            rollup: rollup as u16,
            granularity: None,
            overflows: std::mem::take(&mut overflows),
            form: Form::Here,
            sums,
        };
        if self.peers == 1 {
            return send(chunk(0, sums));
        }
        self.stables.catch_up();
        let each = sums.len() / self.peers as usize + 64;
        let mut parts: Vec<Vec<Sum<N, M>>> =
            (0..self.peers).map(|_| Vec::with_capacity(each)).collect();
        for sum in sums {
            parts[self.stables.owner(&sum.key, self.peers) as usize].push(sum);
        }
        for (target, sums) in parts.into_iter().enumerate().filter(|(_, sums)| !sums.is_empty()) {
            send(chunk(target as u32, sums));
        }
    }
}

/// The sums of one rollup in one epoch.
struct Local<const N: usize, M> {
    /// 0: empty; else 10 bits of the hash above 22 bits of place + 1.
    index: Vec<u32>,
    sums: Vec<Sum<N, M>>,
    /// See [`Chunk::overflows`].
    overflows: u64,
}

const PLACE_BITS: u32 = 22;
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;
const INDEX_MIN: usize = 1 << 10;
const _: () = assert!(SUMS_MAX + BLOCK < PLACE_MASK as usize);

impl<const N: usize, M: Group> Local<N, M> {
    fn new() -> Self {
        Local { index: vec![0; INDEX_MIN], sums: Vec::new(), overflows: 0 }
    }

    fn add(&mut self, keys: &[Key<N>], minutes: &[Bucket], metrics: &[M]) {
        // Room for the whole block first, so that no place moves while it is being added.
        while (self.sums.len() + keys.len()) * 2 > self.index.len() {
            self.grow();
        }
        let shift = 64 - self.index.len().trailing_zeros();
        const STEP: usize = 32;
        let mut hashes = [0u64; STEP];
        for ((keys, minutes), metrics) in
            keys.chunks(STEP).zip(minutes.chunks(STEP)).zip(metrics.chunks(STEP))
        {
            for (i, key) in keys.iter().enumerate() {
                hashes[i] = hash_key(key, minutes[i]);
                prefetch::read(&self.index, (hashes[i] >> shift) as usize);
            }
            for &hash in &hashes[..keys.len()] {
                let slot = self.index[(hash >> shift) as usize];
                prefetch::read(&self.sums, (slot & PLACE_MASK).wrapping_sub(1) as usize);
            }
            for (i, key) in keys.iter().enumerate() {
                self.add_one(hashes[i], shift, key, minutes[i], &metrics[i]);
            }
        }
    }

    #[inline]
    fn add_one(&mut self, hash: u64, shift: u32, key: &Key<N>, minute: Bucket, metrics: &M) {
        let mask = self.index.len() - 1;
        let mark = (hash as u32) << PLACE_BITS;
        let mut at = (hash >> shift) as usize;
        loop {
            let slot = self.index[at];
            if slot == 0 {
                self.sums.push(Sum { key: *key, bucket: minute, metrics: *metrics });
                self.index[at] = mark | self.sums.len() as u32;
                return;
            }
            if slot & !PLACE_MASK == mark {
                let sum = &mut self.sums[(slot & PLACE_MASK) as usize - 1];
                if same_key(&sum.key, key) && sum.bucket == minute {
                    self.overflows += u64::from(!sum.metrics.add(metrics));
                    return;
                }
            }
            at = (at + 1) & mask;
        }
    }

    #[cold]
    fn grow(&mut self) {
        let len = self.index.len() * 2;
        self.index.clear();
        self.index.resize(len, 0);
        let (shift, mask) = (64 - len.trailing_zeros(), len - 1);
        for (place, sum) in self.sums.iter().enumerate() {
            let hash = hash_key(&sum.key, sum.bucket);
            let mut at = (hash >> shift) as usize;
            while self.index[at] != 0 {
                at = (at + 1) & mask;
            }
            self.index[at] = (hash as u32) << PLACE_BITS | (place as u32 + 1);
        }
    }

    /// The sums; leaves an empty table, its index sized for as many again.
    fn take(&mut self) -> Vec<Sum<N, M>> {
        let wanted = (self.sums.len() * 2).next_power_of_two().max(INDEX_MIN);
        if self.index.len() > wanted * 4 {
            self.index = vec![0; wanted];
        } else {
            self.index.fill(0);
        }
        let capacity = self.sums.len();
        std::mem::replace(&mut self.sums, Vec::with_capacity(capacity))
    }
}

/// A hash for tables in memory; differs from run to run with the symbols.
#[inline(always)]
pub(crate) fn hash_key<const N: usize>(key: &Key<N>, minute: Bucket) -> u64 {
    let mut hash = minute.0 as u64;
    for pair in key.chunks(2) {
        let word = u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32;
        let wide =
            u128::from(hash ^ word ^ 0x9E37_79B9_7F4A_7C15) * u128::from(0xD6E8_FEB8_6659_FD93_u64);
        hash = (wide as u64) ^ (wide >> 64) as u64;
    }
    hash
}

/// A worker's copy of the stable hashes of all symbols, so that asking takes no lock.
pub(crate) struct Stables {
    symbols: Arc<Symbols>,
    copy: Vec<u64>,
}

impl Stables {
    pub(crate) fn new(symbols: Arc<Symbols>) -> Stables {
        Stables { symbols, copy: Vec::new() }
    }

    /// Learns the symbols that have come since.
    pub(crate) fn catch_up(&mut self) {
        self.symbols.stable_since(self.copy.len(), &mut self.copy);
    }

    /// A hash of the texts of a key; the same in every run and process.
    #[inline]
    pub(crate) fn of_key<const N: usize>(&self, key: &Key<N>) -> u64 {
        stable_key(key.iter().map(|&symbol: &Symbol| self.copy[symbol as usize]))
    }

    /// The worker that owns a key.
    #[inline]
    pub(crate) fn owner<const N: usize>(&self, key: &Key<N>, peers: u32) -> u32 {
        share_of(self.of_key(key)) as u32 % peers
    }
}

/// Keys are divided into this many shares; a worker owns whole ones. More workers than this have
/// no keys to own.
pub const SHARES: usize = 64;

/// The share that a key belongs to, by its [`stable_key`].
#[inline]
pub const fn share_of(stable_key: u64) -> usize {
    (stable_key % SHARES as u64) as usize
}

/// The stable hash of a key, from the stable hashes ([`hash::stable`]) of its texts in order.
pub fn stable_key(texts: impl IntoIterator<Item = u64>) -> u64 {
    texts.into_iter().fold(0, hash::mix)
}

/// `[Symbol; N]` as a tuple of `N`, which has no length before it: serde knows arrays only of fixed
/// lengths.
mod key_on_the_wire {
    use super::Key;
    use serde::{
        Deserializer, Serializer,
        de::{Error, SeqAccess, Visitor},
        ser::SerializeTuple,
    };
    use std::fmt;

    pub(super) fn serialize<const N: usize, S: Serializer>(
        key: &Key<N>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(N)?;
        key.iter().try_for_each(|symbol| tuple.serialize_element(symbol))?;
        tuple.end()
    }

    pub(super) fn deserialize<'de, const N: usize, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Key<N>, D::Error> {
        deserializer.deserialize_tuple(N, OfKey)
    }

    struct OfKey<const N: usize>;

    impl<'de, const N: usize> Visitor<'de> for OfKey<N> {
        type Value = Key<N>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a key of {N} symbols")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut symbols: A) -> Result<Key<N>, A::Error> {
            let mut key = [0; N];
            for (i, symbol) in key.iter_mut().enumerate() {
                *symbol =
                    symbols.next_element()?.ok_or_else(|| A::Error::invalid_length(i, &self))?;
            }
            Ok(key)
        }
    }
}
