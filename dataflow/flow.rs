//! The dataflow as a job's author writes it: from the log through the ledger and the two-stage
//! sums to views. Each step is a type, so that only what makes sense can be chained:
//!
//! ```text
//! Source ──dedupe──▶ Deduped ──sum──▶ Sums ──accumulate──▶ Rollups ──views──▶ Output
//! ```
//!
//! What flows is reachable at each step: [`Deduped::stream`] for operators of your own,
//! [`Rollups::collection`] for differential's `join`, `reduce` and the rest.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};
use timely::dataflow::{
    StreamVec,
    operators::{Concat, vec::Map},
};
use trueup_operators::{
    accumulate::{self, Accumulated, Held, Loaded, RowData, STAGES, Said, Times},
    change::{Counts, Sink},
    commit::{self, Committed},
    event::EventBatch,
    feed::{Feed, Judgement},
    ledger::{self, Ledger, LedgerSettings, Ledgered},
    rollup::RollupSpec,
    section::ShardId,
    sum::{self, Chunk, Contribution, Exchanged, crossing::Crossing},
    symbols::Symbols,
    time::{Epoch, Lateness},
};

use crate::{
    batches::{Batches, SharedBatches},
    checkpoint::{
        pieces::{AccumulatorPiece, LedgerPiece},
        start::owned_vnodes,
        taking::Piece,
    },
};

/// A job: what its events are, which rollups it keeps, and how the one becomes the other.
///
/// `N` is the most dimensions of a rollup. `dataflow/examples/orders.rs` is a whole job;
/// `dataflow/topology.rs` is the ad job.
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
/// struct Sensors;
///
/// impl Job<1> for Sensors {
///     type Batch = Rows<Reading>;
///     type Metrics = Warmth;
///
///     fn rollups(&self) -> Vec<RollupSpec> {
///         vec![RollupSpec::new("warmth", &["sensor"])]
///     }
///     fn topology<'s>(&self, readings: Source<'s, Rows<Reading>>) -> Output<'s, 1, Warmth> {
///         let warmth = |r: &Reading, _valid| Warmth { readings: 1, celsius: r.celsius };
///         readings.dedupe().sum(PerEvent::new(&self.rollups(), warmth)).accumulate().views()
///     }
/// }
/// # let names = |spec: &RollupSpec| spec.view_name(Granularity::Hour);
/// # assert_eq!(Sensors.rollups().iter().map(names).collect::<Vec<_>>(), ["warmth_hour"]);
/// ```
pub trait Job<const N: usize>: Send + Sync + 'static {
    /// The event type, as batches of columns.
    type Batch: EventBatch;
    /// What a rollup's rows add up.
    type Metrics: Exchanged;

    /// The rollups; the position in the list is the rollup's number.
    fn rollups(&self) -> Vec<RollupSpec>;

    /// Builds the dataflow. Called once on every worker; must build the same on each.
    fn topology<'s>(&self, source: Source<'s, Self::Batch>) -> Output<'s, N, Self::Metrics>;
}

/// What every step of a worker's dataflow shares.
pub(crate) struct Context<B> {
    pub(crate) symbols: Arc<Symbols>,
    /// Workers of each process.
    pub(crate) threads: usize,
    pub(crate) lateness: Lateness,
    /// Whether batches come with ids of other workers too.
    pub(crate) shuffled: bool,
    pub(crate) rollups: Vec<RollupSpec>,
    pub(crate) times: Times,
    pub(crate) batches: Rc<RefCell<Batches<B>>>,
    pub(crate) fault: Rc<dyn Fn(String)>,
    pub(crate) ledgers: RefCell<Vec<Rc<RefCell<Ledger>>>>,
    pub(crate) held: RefCell<Vec<Rc<RefCell<Held>>>>,
    /// Ids belong to the worker that their partition of so many belongs to.
    pub(crate) partitions: u16,
    /// What the ledger begins with.
    pub(crate) ledger: RefCell<Option<Ledger>>,
    /// What accumulators begin with: `[Loaded<N, M>; STAGES]`, of which `B` says neither `N` nor
    /// `M`.
    pub(crate) rows: RefCell<Option<Box<dyn Any>>>,
    /// Where parts of a checkpoint go.
    pub(crate) hand_over: Rc<dyn Fn(Box<dyn Piece>)>,
}

impl<B> Context<B> {
    /// What the accumulators of a job with `N` words and these metrics begin with.
    fn loaded_rows<const N: usize, M: Exchanged>(&self) -> [Option<Loaded<N, M>>; STAGES] {
        let Some(rows) = self.rows.take() else { return [None, None] };
        // A job's topology makes rows of the job's own type: its output says so.
        let rows = rows.downcast::<[Loaded<N, M>; STAGES]>().expect("the rows are the job's");
        rows.map(Some)
    }
}

/// The job's events and verdicts, as the log's epochs bring them: what [`Job::topology`] begins
/// with.
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
/// fn counted<'s>(readings: Source<'s, Rows<Reading>>) -> Deduped<'s, Rows<Reading>> {
///     readings.dedupe()
/// }
/// ```
pub struct Source<'s, B> {
    pub(crate) events: StreamVec<'s, Epoch, Feed<B>>,
    pub(crate) verdicts: StreamVec<'s, Epoch, Judgement>,
    pub(crate) context: Rc<Context<B>>,
}

impl<'s, B: EventBatch> Source<'s, B> {
    /// Lets each event id through once, and follows verdicts: exact, within the correction
    /// horizon. See [`trueup_operators::ledger`].
    pub fn dedupe(self) -> Deduped<'s, B> {
        let Source { events, verdicts, context } = self;
        let scope = events.scope();
        let (worker, peers) = (scope.index() as u32, scope.peers() as u32);
        let settings = LedgerSettings {
            shuffled: context.shuffled,
            ..LedgerSettings::new(context.lateness, worker, peers)
        };
        let read_back = SharedBatches(Rc::clone(&context.batches));
        let fault = Rc::clone(&context.fault);
        let ledger = context.ledger.take().unwrap_or_else(|| Ledger::new(settings));
        let hand_over = Rc::clone(&context.hand_over);
        let vnodes: Vec<usize> = owned_vnodes(worker, peers, context.partitions).collect();
        let on_image = Rc::new(move |epoch, image| {
            let vnodes = vnodes.clone();
            let speaks_for_all = worker == 0;
            hand_over(Box::new(LedgerPiece { image, epoch, vnodes, speaks_for_all }));
        });
        let times = Rc::clone(&context.times);
        let (stream, ledger) =
            ledger::ledger(events, verdicts, ledger, read_back, times, on_image, fault);
        context.ledgers.borrow_mut().push(ledger);
        Deduped { stream, context }
    }
}

/// Events that count, and how they stand; changes of standing as verdicts come.
///
/// An operator of one's own sees every batch on its way:
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
/// use timely::dataflow::operators::Inspect;
///
/// fn watched<'s>(counted: Deduped<'s, Rows<Reading>>) -> Sums<'s, Rows<Reading>, 1, Warmth> {
///     counted.stream().inspect(|ledgered| println!("{} rows changed", ledgered.rows.len()));
///     let warmth = |r: &Reading, _valid| Warmth { readings: 1, celsius: r.celsius };
///     counted.sum(PerEvent::new(&[RollupSpec::new("warmth", &["sensor"])], warmth))
/// }
/// ```
pub struct Deduped<'s, B> {
    stream: StreamVec<'s, Epoch, Arc<Ledgered<B>>>,
    context: Rc<Context<B>>,
}

impl<'s, B: EventBatch> Deduped<'s, B> {
    /// What the ledger says, batch by batch, for operators of your own.
    pub fn stream(&self) -> StreamVec<'s, Epoch, Arc<Ledgered<B>>> {
        self.stream.clone()
    }

    /// Sums what each event contributes, by the job's rollups, key and minute, on each worker.
    pub fn sum<C, const N: usize>(self, contribution: C) -> Sums<'s, B, N, C::Metrics>
    where
        C: Contribution<B, N>,
    {
        let symbols = Arc::clone(&self.context.symbols);
        let threads = self.context.threads;
        let chunks = sum::sum(self.stream.clone(), contribution, symbols, threads);
        Sums { chunks, deduped: self }
    }
}

/// Sums on their way to the owners of their keys.
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
/// type Readings = Rows<Reading>;
///
/// fn rows<'s>(sums: Sums<'s, Readings, 1, Warmth>) -> Rollups<'s, Readings, 1, Warmth> {
///     sums.accumulate()
/// }
/// ```
pub struct Sums<'s, B, const N: usize, M: Exchanged> {
    chunks: StreamVec<'s, Epoch, Chunk<N, M>>,
    deduped: Deduped<'s, B>,
}

impl<'s, B: EventBatch, const N: usize, M: Exchanged> Sums<'s, B, N, M> {
    /// Adds them up at their owners: a row per rollup, granularity, bucket and key, and per epoch
    /// what changed. Sums that find their bucket full are added up as `(other)`.
    pub fn accumulate(self) -> Rollups<'s, B, N, M> {
        let Sums { chunks, deduped } = self;
        let context = &deduped.context;
        let worker = chunks.scope().index();
        let threads = context.threads;
        let stage = |stage, chunks, rollups, loaded| {
            let (symbols, times) = (Arc::clone(&context.symbols), Rc::clone(&context.times));
            let (hand_over, of) = (Rc::clone(&context.hand_over), Arc::clone(&context.symbols));
            let shard = ShardId { worker: worker as u16, stage };
            let on_image = Rc::new(move |image| {
                let symbols = Arc::clone(&of);
                hand_over(Box::new(AccumulatorPiece { image, shard, symbols }));
            });
            let (lateness, crossing) = (context.lateness, Crossing::new(symbols, worker, threads));
            accumulate::accumulate(chunks, rollups, lateness, crossing, times, loaded, on_image)
        };
        let [rows, others] = context.loaded_rows();
        let Accumulated { said, folded, held } = stage(0, chunks, context.rollups.clone(), rows);
        let other = stage(1, folded, accumulate::unlimited(&context.rollups), others);
        context.held.borrow_mut().extend([held, other.held]);
        Rollups { said, others: other.said, deduped }
    }
}

/// The rows of all rollups, as changes by epoch.
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
/// // How many rows there are in each bucket, kept by differential dataflow.
/// fn counted<'s>(rollups: Rollups<'s, Rows<Reading>, 1, Warmth>) -> Output<'s, 1, Warmth> {
///     let buckets = rollups.collection().map(|(table, bucket, _key, _figures)| (table, bucket));
///     buckets.consolidate().inspect(|(bucket, at, diff)| println!("{bucket:?} {at} {diff}"));
///     rollups.views()
/// }
/// ```
pub struct Rollups<'s, B, const N: usize, M: Exchanged> {
    said: StreamVec<'s, Epoch, Said<N, M>>,
    others: StreamVec<'s, Epoch, Said<N, M>>,
    deduped: Deduped<'s, B>,
}

impl<'s, B: EventBatch, const N: usize, M: Exchanged> Rollups<'s, B, N, M> {
    /// The rows as a differential collection, −old +new at each epoch.
    pub fn collection(
        &self,
    ) -> differential_dataflow::VecCollection<'s, Epoch, RowData<N, M>, isize>
    where
        M: Ord,
    {
        accumulate::collection(self.said.clone().concat(self.others.clone()))
    }

    /// Makes them the job's views, beside `late_events` and `quarantine`.
    pub fn views(self) -> Output<'s, N, M> {
        let Rollups { said, others, deduped } = self;
        let fates = deduped.stream.flat_map(|ledgered: Arc<Ledgered<B>>| {
            let counts =
                (ledgered.counts != Counts::default()).then(|| Said::Counts(ledgered.counts));
            let incidents = (!ledgered.incidents.is_empty())
                .then(|| Said::Incidents(ledgered.incidents.clone()));
            counts.into_iter().chain(incidents)
        });
        let context = &deduped.context;
        let (symbols, threads) = (Arc::clone(&context.symbols), context.threads);
        let times = Rc::clone(&context.times);
        Output { said: said.concat(fates), others, symbols, threads, times }
    }
}

/// A finished dataflow, to be connected to its sinks: what [`Job::topology`] returns.
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
/// fn finished<'s>(rollups: Rollups<'s, Rows<Reading>, 1, Warmth>) -> Output<'s, 1, Warmth> {
///     rollups.views()
/// }
/// ```
pub struct Output<'s, const N: usize, M> {
    said: StreamVec<'s, Epoch, Said<N, M>>,
    others: StreamVec<'s, Epoch, Said<N, M>>,
    symbols: Arc<Symbols>,
    threads: usize,
    times: Times,
}

impl<const N: usize, M: Exchanged> Output<'_, N, M> {
    /// Connects the two sinks of a worker, one for rows and fates, one for `(other)` rows: each
    /// numbers its rows from 0. Epochs are handed over from the one after `from` on.
    pub(crate) fn connect(
        self,
        rows: impl Sink<N, M>,
        others: impl Sink<N, M>,
        from: Epoch,
    ) -> [Committed; 2] {
        let committed = [Rc::new(Cell::new(from)), Rc::new(Cell::new(from))];
        let Output { said, others: other, symbols, threads, times } = self;
        let worker = said.scope().index();
        let crossing = || Crossing::new(Arc::clone(&symbols), worker, threads);
        let [first, second] = committed.each_ref().map(Rc::clone);
        commit::commit(said, vec![rows], crossing(), Rc::clone(&times), first);
        commit::commit(other, vec![others], crossing(), times, second);
        committed
    }
}
