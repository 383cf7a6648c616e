//! The second of the two stages: the owner of a key adds its sums to the rows of its minute, hour
//! and day, and says per epoch what changed: −old +new. With the first stage ([`crate::sum`]) this
//! is what `reduce` does in differential dataflow, for the case that the difference is a group
//! element: the state is one row a key, the input is not kept, and a correction is an addition.
//! The whole job takes a quarter of what it takes in plain differential dataflow (BENCHMARKS.md).
//! Whoever wants to join or reduce further takes the output as a differential [`collection`] and
//! arranges that.
//!
//! # Layout
//!
//! A table per (rollup, granularity, bucket): an index of `u32` (6 bits of the hash, 26 bits of
//! place) over dense rows of key, metrics, version and the last epoch that touched it. The old
//! value is noted on a row's first touch in an epoch. A row's place never changes, so a view can
//! store rows by it. When a bucket is final its table is dropped whole.
//!
//! # A full table
//!
//! A bucket of a rollup holds at most `rows_max` rows, divided over 64 *shares* by the stable hash
//! of the key's texts; a share belongs to one worker. In the epoch in which a share overflows, its
//! new keys of least (stable hash, texts) still get a row; all others, then and later, are
//! *folded*: their sums go to the row of their first dimension whose other dimensions read
//! `(other)`, at the worker that owns that key. A share that once was full stays full while its
//! bucket lives, and a key without a row in a full share has always been folded; so its retractions
//! are too, totals stay exact, and which keys fold depends on the log and the cut into epochs
//! alone, on no worker count and no order of arrival. A second instance of this operator keeps the
//! `(other)` rows; there is at most one per first dimension and bucket.

use crate::{
    change::{Change, Changes, Counts, Incident, Key, TableId, same_key},
    feed::EpochTimes,
    metrics::Group,
    prefetch,
    rollup::{ROWS_MAX_MAX, RollupSpec},
    sum::{
        Chunk, Exchanged, SHARES, Stables, Sum,
        crossing::{Crossing, Form},
        hash_key, share_of,
    },
    symbols::{ABSENT, OTHER, Symbols},
    time::{Bucket, Epoch, Granularity, Lateness},
};
use differential_dataflow::{AsCollection, VecCollection};
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    rc::Rc,
    sync::Arc,
};
use timely::{
    container::CapacityContainerBuilder,
    dataflow::{
        StreamVec,
        channels::pact::Exchange,
        operators::{
            Capability,
            generic::{OutputBuilder, builder_rc::OperatorBuilder},
            vec::Map,
        },
    },
};

/// The log times of the epochs under way on a worker: written when an epoch is fed, read by the
/// operators of the same worker, forgotten when the epoch is committed.
pub type Times = Rc<RefCell<BTreeMap<Epoch, EpochTimes>>>;

/// What the rows of a worker take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Rows of buckets that are not final.
    pub rows: usize,
    /// Bytes of them, with their indexes and the room to grow.
    pub bytes: usize,
    /// Tables.
    pub tables: usize,
}

/// What the stage says about an epoch.
#[derive(Clone, Debug)]
pub enum Said<const N: usize, M> {
    /// Rows changed.
    Changes(Changes<N, M>),
    /// Something to count.
    Counts(Counts),
    /// Events that do not count, from the ledger.
    Incidents(Vec<Incident>),
}

/// The streams of [`accumulate`].
pub struct Accumulated<'scope, const N: usize, M: Exchanged> {
    /// What changed, per epoch, at the worker that owns the rows.
    pub said: StreamVec<'scope, Epoch, Said<N, M>>,
    /// Sums that found their table full, for a second instance.
    pub folded: StreamVec<'scope, Epoch, Chunk<N, M>>,
    /// What the rows take; changes as the worker runs.
    pub held: Rc<RefCell<Held>>,
}

/// Adds up chunks at the owners of their keys. `threads` is the number of workers of each process;
/// if there is one process, of all.
pub fn accumulate<'scope, const N: usize, M: Exchanged>(
    chunks: StreamVec<'scope, Epoch, Chunk<N, M>>,
    specs: Vec<RollupSpec>,
    lateness: Lateness,
    symbols: Arc<Symbols>,
    times: Times,
    threads: usize,
) -> Accumulated<'scope, N, M> {
    let scope = chunks.scope();
    let mut builder = OperatorBuilder::new("Accumulate".to_owned(), scope);
    let pact = Exchange::new(|chunk: &Chunk<N, M>| u64::from(chunk.target));
    let mut input = builder.new_input(chunks, pact);
    let (said_output, said) = builder.new_output();
    let (fold_output, folded) = builder.new_output();
    let mut said_output =
        OutputBuilder::<_, CapacityContainerBuilder<Vec<Said<N, M>>>>::from(said_output);
    let mut fold_output =
        OutputBuilder::<_, CapacityContainerBuilder<Vec<Chunk<N, M>>>>::from(fold_output);
    let mut crossing = Crossing::new(Arc::clone(&symbols), scope.index(), threads);
    let mut state = Accumulators::new(specs, lateness, symbols, scope.peers() as u32);
    let held = Rc::clone(&state.held);
    builder.build(move |_capabilities| {
        let mut stash: BTreeMap<Epoch, Stash<N, M>> = BTreeMap::new();
        move |frontiers| {
            let mut said_output = said_output.activate();
            let mut fold_output = fold_output.activate();
            input.for_each(|capability, chunks| {
                let (Some(say), Some(fold)) =
                    (capability.retain_least(0), capability.retain_least(1))
                else {
                    return;
                };
                let stash = stash.entry(*say.time()).or_insert_with(|| Stash {
                    say,
                    fold,
                    chunks: Vec::new(),
                });
                stash.chunks.extend(chunks.drain(..).map(|chunk| crossing.arrive(chunk)));
            });
            while let Some(entry) = stash.first_entry() {
                let epoch = *entry.key();
                if frontiers[0].less_equal(&epoch) {
                    break;
                }
                let Stash { say, fold, chunks } = entry.remove();
                let now = times.borrow().get(&epoch).copied().unwrap_or_default();
                state.epoch(epoch, now, chunks);
                said_output.session(&say).give_iterator(state.said.drain(..));
                let folds = state.folds.drain(..).map(|chunk| crossing.depart(chunk));
                fold_output.session(&fold).give_iterator(folds);
            }
        }
    });
    Accumulated { said, folded, held }
}

/// A row as a view shows it, before its texts are looked up.
pub type RowData<const N: usize, M> = (TableId, Bucket, Key<N>, M);

/// What changed as a differential collection: −old +new at each epoch. To join or reduce it
/// further, arrange it; the hot path does not need it.
pub fn collection<'scope, const N: usize, M: Group + Ord>(
    said: StreamVec<'scope, Epoch, Said<N, M>>,
) -> VecCollection<'scope, Epoch, RowData<N, M>, isize> {
    said.flat_map(|said| match said {
        Said::Changes(changes) => {
            let Changes { table, bucket, changes } = changes;
            changes
                .into_iter()
                .flat_map(move |change| {
                    let row = |metrics: M| (table, bucket, change.key, metrics);
                    let old = (change.old.records() != 0).then(|| (row(change.old), -1));
                    let new = (change.new.records() != 0).then(|| (row(change.new), 1));
                    old.into_iter().chain(new)
                })
                .collect()
        }
        Said::Counts(_) | Said::Incidents(_) => Vec::new(),
    })
    .at_their_epochs()
    .as_collection()
}

/// Puts each record's own epoch beside it.
trait AtTheirEpochs<'scope, D> {
    fn at_their_epochs(self) -> StreamVec<'scope, Epoch, (D, Epoch, isize)>;
}

impl<'scope, D: Clone + 'static> AtTheirEpochs<'scope, D> for StreamVec<'scope, Epoch, (D, isize)> {
    fn at_their_epochs(self) -> StreamVec<'scope, Epoch, (D, Epoch, isize)> {
        use timely::dataflow::{channels::pact::Pipeline, operators::Operator};
        self.unary::<CapacityContainerBuilder<Vec<_>>, _, _, _>(Pipeline, "Epochs", |_, _| {
            move |input, output| {
                input.for_each(|capability, records| {
                    let Some(&epoch) = capability.least() else { return };
                    output
                        .session(&capability)
                        .give_iterator(records.drain(..).map(|(data, diff)| (data, epoch, diff)));
                });
            }
        })
    }
}

struct Stash<const N: usize, M> {
    say: Capability<Epoch>,
    fold: Capability<Epoch>,
    chunks: Vec<Chunk<N, M>>,
}

/// All tables of one worker.
struct Accumulators<const N: usize, M> {
    specs: Vec<RollupSpec>,
    lateness: Lateness,
    stables: Stables,
    symbols: Arc<Symbols>,
    peers: u32,
    /// By position in `tables`; the last bucket looked up first, as it is nearly always the next.
    places: BTreeMap<(TableId, Bucket), usize>,
    tables: Vec<Table<N, M>>,
    vacant: Vec<usize>,
    touched: Vec<usize>,
    counts: Counts,
    said: Vec<Said<N, M>>,
    folds: Vec<Chunk<N, M>>,
    held: Rc<RefCell<Held>>,
}

const STEP: usize = 32;
/// How far ahead of its use a changed row is asked for.
const AHEAD: usize = 8;

impl<const N: usize, M: Group> Accumulators<N, M> {
    fn new(specs: Vec<RollupSpec>, lateness: Lateness, symbols: Arc<Symbols>, peers: u32) -> Self {
        Accumulators {
            specs,
            lateness,
            stables: Stables::new(Arc::clone(&symbols)),
            symbols,
            peers,
            places: BTreeMap::new(),
            tables: Vec::new(),
            vacant: Vec::new(),
            touched: Vec::new(),
            counts: Counts::default(),
            said: Vec::new(),
            folds: Vec::new(),
            held: Rc::default(),
        }
    }

    /// All that an epoch brings, at once: which new keys get a row in a full table must not depend
    /// on the order in which chunks arrive.
    fn epoch(&mut self, epoch: Epoch, now: EpochTimes, chunks: Vec<Chunk<N, M>>) {
        self.stables.catch_up();
        for chunk in chunks {
            self.counts.arithmetic_errors += chunk.overflows;
            match chunk.granularity {
                Some(granularity) => self.add(granularity, &chunk, epoch),
                None => {
                    let rollup = usize::from(chunk.rollup);
                    for i in 0..self.specs[rollup].granularities.len() {
                        self.add(self.specs[rollup].granularities[i], &chunk, epoch);
                    }
                }
            }
        }
        self.check_finality(&now);
        self.settle();
        self.drop_final(&now);
        let counts = std::mem::take(&mut self.counts);
        if counts != Counts::default() {
            self.said.push(Said::Counts(counts));
        }
    }

    /// Adds a chunk to the tables of one granularity, a block at a time.
    fn add(&mut self, granularity: Granularity, chunk: &Chunk<N, M>, epoch: Epoch) {
        let id = TableId { rollup: chunk.rollup, granularity };
        let mut last = (Bucket(i32::MIN), 0);
        let mut hashes = [0u64; STEP];
        let mut places = [0usize; STEP];
        for block in chunk.sums.chunks(STEP) {
            for (i, sum) in block.iter().enumerate() {
                let bucket = match chunk.granularity {
                    None => granularity.of_minute(sum.bucket),
                    Some(_) => sum.bucket,
                };
                if bucket != last.0 {
                    last = (bucket, self.open(id, bucket));
                }
                places[i] = last.1;
                hashes[i] = hash_key(&sum.key, Bucket(0));
                self.tables[last.1].prefetch_index(hashes[i]);
            }
            for i in 0..block.len() {
                self.tables[places[i]].prefetch_row(hashes[i]);
            }
            for (i, sum) in block.iter().enumerate() {
                let table = &mut self.tables[places[i]];
                let within = table.add(hashes[i], sum, epoch as u32, &self.stables);
                self.counts.arithmetic_errors += u64::from(!within);
            }
        }
    }

    /// The position of a table, made if it is not there, and noted as touched in this epoch.
    fn open(&mut self, id: TableId, bucket: Bucket) -> usize {
        let rows_max = self.specs[usize::from(id.rollup)].rows_max;
        let place = *self.places.entry((id, bucket)).or_insert_with(|| {
            let table = Table::new(id, bucket, rows_max);
            match self.vacant.pop() {
                Some(place) => {
                    self.tables[place] = table;
                    place
                }
                None => {
                    self.tables.push(table);
                    self.tables.len() - 1
                }
            }
        });
        let table = &mut self.tables[place];
        if !table.touched {
            table.touched = true;
            table.rows_before = table.rows.len();
            self.touched.push(place);
        }
        place
    }

    /// Nothing may touch a final bucket: events and verdicts that come so late never get here. If
    /// something does, it is an error of ours, and it is counted.
    fn check_finality(&mut self, now: &EpochTimes) {
        for &place in &self.touched {
            let table = &self.tables[place];
            let end = table.id.granularity.end(table.bucket);
            if self.lateness.state(end, now.frontier_before).is_finalized() {
                self.counts.arithmetic_errors += 1;
            }
        }
    }

    /// Folds what has no room, then says what changed.
    fn settle(&mut self) {
        for place in std::mem::take(&mut self.touched) {
            let table = &mut self.tables[place];
            table.touched = false;
            if table.overfull != 0 || !table.homeless.is_empty() {
                let spec = &self.specs[usize::from(table.id.rollup)];
                let folded = table.fold(&self.stables, &self.symbols);
                self.counts.folded += folded.len() as u64;
                fold(table, spec, folded, &self.stables, self.peers, &mut self.folds);
            }
            let (changes, errors) = table.changes();
            self.counts.arithmetic_errors += errors;
            if !changes.is_empty() {
                let (table, bucket) = (table.id, table.bucket);
                self.said.push(Said::Changes(Changes { table, bucket, changes }));
            }
        }
    }

    fn drop_final(&mut self, now: &EpochTimes) {
        let (lateness, vacant, tables) = (&self.lateness, &mut self.vacant, &mut self.tables);
        self.places.retain(|(id, bucket), &mut place| {
            let end = id.granularity.end(*bucket);
            let live = !lateness.state(end, now.frontier).is_finalized();
            if !live {
                tables[place] = Table::new(*id, *bucket, 0);
                vacant.push(place);
            }
            live
        });
        let mut held = Held { tables: self.places.len(), ..Held::default() };
        for table in tables.iter() {
            held.rows += table.rows.len();
            held.bytes += table.bytes();
        }
        *self.held.borrow_mut() = held;
    }
}

/// Sums without a row become sums of their `(other)` rows, on their way to those rows' owners.
fn fold<const N: usize, M: Group>(
    table: &Table<N, M>,
    spec: &RollupSpec,
    folded: Vec<(Key<N>, M)>,
    stables: &Stables,
    peers: u32,
    folds: &mut Vec<Chunk<N, M>>,
) {
    let mut sums: BTreeMap<Key<N>, (M, u64)> = BTreeMap::new();
    for (key, metrics) in folded {
        let sum = sums.entry(folded_key(&key, spec.dimensions.len())).or_default();
        sum.1 += u64::from(!sum.0.add(&metrics));
    }
    for (key, (metrics, overflows)) in sums {
        folds.push(Chunk {
            target: stables.owner(&key, peers),
            rollup: table.id.rollup,
            granularity: Some(table.id.granularity),
            overflows,
            form: Form::Here,
            sums: vec![Sum { key, bucket: table.bucket, metrics }],
        });
    }
}

/// The key of the `(other)` row that a key without a row belongs to: its first dimension stays,
/// unless it is the only one.
fn folded_key<const N: usize>(key: &Key<N>, dimensions: usize) -> Key<N> {
    let mut other = [ABSENT; N];
    other[..dimensions].fill(OTHER);
    if dimensions > 1 {
        other[0] = key[0];
    }
    other
}

/// The rows of one bucket.
struct Table<const N: usize, M> {
    id: TableId,
    bucket: Bucket,
    /// 0: empty; else 6 bits of the hash above 26 bits of place + 1.
    index: Vec<u32>,
    rows: Vec<Row<N, M>>,
    /// Rows touched in this epoch and what they were before it.
    changed: Vec<(u32, M)>,
    touched: bool,
    /// How many rows there were before this epoch.
    rows_before: usize,
    /// Sums of this epoch whose key has no row and whose share was full before it.
    homeless: HashMap<Key<N>, M>,
    /// The most rows of a share.
    share_rows_max: u32,
    /// Rows by share. Within an epoch a share may have more than it may keep.
    share_rows: Box<[u32; SHARES]>,
    /// Shares that were full before this epoch, a bit each.
    full: u64,
    /// Shares that have more rows than they may keep, a bit each.
    overfull: u64,
}

/// A row. With four dimensions and [`crate::metrics::Metrics`] it is a cache line, and lies in one:
/// a vector's memory begins anywhere, and then every row would be two.
#[repr(align(64))]
struct Row<const N: usize, M> {
    key: Key<N>,
    metrics: M,
    /// How often it has changed.
    version: u32,
    /// The low bits of the last epoch that touched it.
    touched: u32,
}

const _: () = assert!(size_of::<Row<4, crate::metrics::Metrics>>() == 64);

// A bit of a `u64` each.
const _: () = assert!(SHARES == 64);
const PLACE_BITS: u32 = 26;
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;
const _: () = assert!(ROWS_MAX_MAX + (1 << 20) < PLACE_MASK);

/// The most rows of a share of a table with `rows_max` rows.
pub const fn share_rows_max(rows_max: u32) -> u32 {
    rows_max.div_ceil(SHARES as u32)
}

impl<const N: usize, M: Group> Table<N, M> {
    fn new(id: TableId, bucket: Bucket, rows_max: u32) -> Self {
        Table {
            id,
            bucket,
            index: if rows_max == 0 { Vec::new() } else { vec![0; 64] },
            rows: Vec::new(),
            changed: Vec::new(),
            touched: false,
            rows_before: 0,
            homeless: HashMap::new(),
            share_rows_max: share_rows_max(rows_max),
            share_rows: Box::new([0; SHARES]),
            full: 0,
            overfull: 0,
        }
    }

    fn bytes(&self) -> usize {
        self.index.capacity() * size_of::<u32>()
            + self.rows.capacity() * size_of::<Row<N, M>>()
            + self.changed.capacity() * size_of::<(u32, M)>()
    }

    fn slot(&self, hash: u64) -> usize {
        (hash >> (64 - self.index.len().trailing_zeros())) as usize
    }

    #[inline]
    fn prefetch_index(&self, hash: u64) {
        prefetch::read(&self.index, self.slot(hash));
    }

    #[inline]
    fn prefetch_row(&self, hash: u64) {
        let slot = self.index[self.slot(hash)];
        prefetch::read(&self.rows, (slot & PLACE_MASK).wrapping_sub(1) as usize);
    }

    /// Adds a sum to its row, a new one if its share is not full. `false`: a figure stands at its
    /// limit.
    #[inline]
    fn add(&mut self, hash: u64, sum: &Sum<N, M>, epoch: u32, stables: &Stables) -> bool {
        let mask = self.index.len() - 1;
        let mark = (hash as u32) << PLACE_BITS;
        let mut at = self.slot(hash);
        loop {
            let slot = self.index[at];
            if slot == 0 {
                break;
            }
            if slot & !PLACE_MASK == mark {
                let place = (slot & PLACE_MASK) - 1;
                let row = &mut self.rows[place as usize];
                if same_key(&row.key, &sum.key) {
                    if row.touched != epoch {
                        row.touched = epoch;
                        self.changed.push((place, row.metrics));
                    }
                    return row.metrics.add(&sum.metrics);
                }
            }
            at = (at + 1) & mask;
        }
        let share = share_of(stables.of_key(&sum.key));
        if self.full >> share & 1 == 1 {
            return self.homeless.entry(sum.key).or_default().add(&sum.metrics);
        }
        self.share_rows[share] += 1;
        if self.share_rows[share] > self.share_rows_max {
            self.overfull |= 1 << share;
        }
        self.insert(hash, sum.key, sum.metrics, epoch);
        true
    }

    fn insert(&mut self, hash: u64, key: Key<N>, metrics: M, epoch: u32) {
        if self.rows.len() * 3 >= self.index.len() * 2 {
            self.grow();
        }
        let mask = self.index.len() - 1;
        let mut at = self.slot(hash);
        while self.index[at] != 0 {
            at = (at + 1) & mask;
        }
        self.changed.push((self.rows.len() as u32, M::default()));
        self.rows.push(Row { key, metrics, version: 0, touched: epoch });
        self.index[at] = (hash as u32) << PLACE_BITS | self.rows.len() as u32;
    }

    #[cold]
    fn grow(&mut self) {
        self.index = vec![0; self.index.len() * 2];
        self.reindex();
    }

    /// Fills an empty index.
    fn reindex(&mut self) {
        let mask = self.index.len() - 1;
        for place in 0..self.rows.len() {
            let hash = hash_key(&self.rows[place].key, Bucket(0));
            let mut at = self.slot(hash);
            while self.index[at] != 0 {
                at = (at + 1) & mask;
            }
            self.index[at] = (hash as u32) << PLACE_BITS | (place as u32 + 1);
        }
    }

    /// Takes out what has no room: the sums of the homeless, and of each overfull share the new
    /// rows that come last by (stable hash, texts). A share overflows once in the life of its
    /// bucket, so that rebuilding the index does not matter.
    fn fold(&mut self, stables: &Stables, symbols: &Symbols) -> Vec<(Key<N>, M)> {
        let mut folded: Vec<(Key<N>, M)> = self.homeless.drain().collect();
        if self.overfull == 0 {
            return folded;
        }
        let losers = self.losers(stables, symbols);
        let mut kept = self.rows_before;
        for place in self.rows_before..self.rows.len() {
            if losers.contains(&place) {
                folded.push((self.rows[place].key, self.rows[place].metrics));
            } else {
                self.rows.swap(kept, place);
                kept += 1;
            }
        }
        self.rows.truncate(kept);
        self.changed.retain(|&(place, _)| (place as usize) < self.rows_before);
        self.changed.extend((self.rows_before..kept).map(|place| (place as u32, M::default())));
        for share in 0..SHARES {
            if self.overfull >> share & 1 == 1 {
                self.share_rows[share] = self.share_rows_max;
            }
        }
        self.full |= self.overfull;
        self.overfull = 0;
        self.index.fill(0);
        self.reindex();
        folded
    }

    /// The places of new rows that their overfull shares may not keep.
    fn losers(&self, stables: &Stables, symbols: &Symbols) -> HashSet<usize> {
        let mut candidates: Vec<(usize, u64, usize)> = (self.rows_before..self.rows.len())
            .map(|place| (stables.of_key(&self.rows[place].key), place))
            .map(|(stable, place)| (share_of(stable), stable, place))
            .filter(|&(share, ..)| self.overfull >> share & 1 == 1)
            .collect();
        candidates.sort_by(|a, b| {
            let texts = |place: usize| self.rows[place].key.map(|symbol| symbols.text(symbol));
            (a.0, a.1).cmp(&(b.0, b.1)).then_with(|| texts(a.2).cmp(&texts(b.2)))
        });
        let mut losers = HashSet::new();
        for share in candidates.chunk_by(|a, b| a.0 == b.0) {
            let excess = (self.share_rows[share[0].0] - self.share_rows_max) as usize;
            losers.extend(share[share.len() - excess..].iter().map(|&(_, _, place)| place));
        }
        losers
    }

    /// What changed in this epoch, and how many rows have money but no records.
    fn changes(&mut self) -> (Vec<Change<N, M>>, u64) {
        let mut errors = 0;
        let mut changes = Vec::with_capacity(self.changed.len());
        for (i, &(place, old)) in self.changed.iter().enumerate() {
            if let Some(&(ahead, _)) = self.changed.get(i + AHEAD) {
                prefetch::read(&self.rows, ahead as usize);
            }
            let row = &mut self.rows[place as usize];
            if row.metrics == old {
                continue;
            }
            let (key, new, old_version) = (row.key, row.metrics, row.version);
            row.version += 1;
            errors += u64::from(new.records() == 0 && new != M::default());
            changes.push(Change { row: place, old_version, key, old, new });
        }
        self.changed.clear();
        if self.changed.capacity() > 4 * changes.len().max(1024) {
            self.changed.shrink_to(changes.len());
        }
        (changes, errors)
    }
}

#[cfg(test)]
mod tests;
