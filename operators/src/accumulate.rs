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

mod image;
mod load;
mod table;

pub use image::AccumulatorImage;
pub use load::{Loaded, LoadedRow, Loading};
pub use table::share_rows_max;

use crate::{
    change::{Changes, Counts, Incident, Key, TableId},
    feed::{EpochTimes, ImageKind},
    metrics::Group,
    rollup::{ROWS_MAX_MAX, RollupSpec},
    sum::{
        Chunk, Exchanged, Stables, Sum,
        crossing::{Crossing, Form},
        hash_key,
    },
    symbols::{ABSENT, OTHER, Symbols},
    time::{Bucket, Epoch, Granularity, Lateness},
};
use differential_dataflow::{AsCollection, VecCollection};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};
use table::Table;
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

/// What an epoch under way on a worker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnderWay {
    /// Its log times.
    pub times: EpochTimes,
    /// Whether an image is taken of the state at its end.
    pub image: Option<ImageKind>,
}

/// The epochs under way on a worker: written when an epoch is fed, read by the operators of the
/// same worker, forgotten when the epoch is committed.
pub type Times = Rc<RefCell<BTreeMap<Epoch, UnderWay>>>;

/// How many instances of this operator a job has on each worker: one for the rows, and one for the
/// `(other)` rows.
pub const STAGES: usize = 2;

/// The rollups of the second instance: as many `(other)` rows as there are first dimensions.
pub fn unlimited(rollups: &[RollupSpec]) -> Vec<RollupSpec> {
    let mut rollups = rollups.to_vec();
    rollups.iter_mut().for_each(|rollup| rollup.rows_max = ROWS_MAX_MAX);
    rollups
}

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

/// Adds up chunks at the owners of their keys, from the rows on that were `loaded`, if any. At the
/// end of an epoch of which an image is taken, `on_image` gets what a view's rows do not say.
pub fn accumulate<'scope, const N: usize, M: Exchanged>(
    chunks: StreamVec<'scope, Epoch, Chunk<N, M>>,
    specs: Vec<RollupSpec>,
    lateness: Lateness,
    mut crossing: Crossing,
    times: Times,
    loaded: Option<Loaded<N, M>>,
    on_image: Rc<dyn Fn(AccumulatorImage)>,
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
    let symbols = Arc::clone(crossing.symbols());
    let mut state = Accumulators::new(specs, lateness, symbols, scope.peers() as u32);
    if let Some(loaded) = loaded {
        state.load(loaded);
    }
    let held = Rc::clone(&state.held);
    builder.build(move |_capabilities| {
        let mut stash: BTreeMap<Epoch, Stash<N, M>> = BTreeMap::new();
        let mut imaged = 0;
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
            loop {
                // Of an epoch that brings this worker nothing, an image is taken as well.
                let marked = marked_after(&times, imaged);
                let given = stash.first_key_value().map(|(&epoch, _)| epoch);
                let Some(epoch) = given.into_iter().chain(marked).min() else { break };
                if frontiers[0].less_equal(&epoch) {
                    break;
                }
                if let Some(Stash { say, fold, chunks }) = stash.remove(&epoch) {
                    let under_way = times.borrow().get(&epoch).copied().unwrap_or_default();
                    state.epoch(epoch, under_way.times, chunks);
                    said_output.session(&say).give_iterator(state.said.drain(..));
                    let folds = state.folds.drain(..).map(|chunk| crossing.depart(chunk));
                    fold_output.session(&fold).give_iterator(folds);
                }
                if marked == Some(epoch) {
                    on_image(state.image(epoch));
                    imaged = epoch;
                }
            }
        }
    });
    Accumulated { said, folded, held }
}

/// The next epoch after another of which an image is taken.
fn marked_after(times: &Times, epoch: Epoch) -> Option<Epoch> {
    let times = times.borrow();
    times.range(epoch + 1..).find(|(_, under_way)| under_way.image.is_some()).map(|(&e, _)| e)
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
        self.weigh();
    }

    fn weigh(&self) {
        let mut held = Held { tables: self.places.len(), ..Held::default() };
        for table in &self.tables {
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

#[cfg(test)]
mod tests;
