//! Every process has all views: whatever the number of processes and threads, the sinks of each
//! process together must get, epoch by epoch, what the sinks of a single worker get, as texts; and
//! what one worker says must be the same in every process, row numbers and order included.
//!
//! What is expected does not come from the code alone: incidents and counts of events are read off
//! the schedule, rows of tables that do not overflow are added up here, and who owns a row follows
//! from its texts.

use crate::{
    LATENESS, Texts,
    batch::{self, Batch, ByKey, Given, offset, schedule},
    cluster, finished, seed, specs, strangers,
};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use timely::{
    WorkerConfig,
    container::CapacityContainerBuilder,
    dataflow::{
        InputHandle,
        operators::{Concat, Input, vec::Map},
    },
    worker::Worker,
};
use trueup_operators::{
    accumulate::{STAGES, Said, Times, UnderWay, accumulate},
    change::{Change, Commit, Counts, Incident, Sink, TableId},
    commit::{Committed, commit, told::PARCEL_BYTES_MAX},
    feed::ImageKind,
    hash,
    ledger::Ledgered,
    metrics::{Group, Metrics},
    money::Nanos,
    rollup::ROWS_MAX_MAX,
    sum::{crossing::Crossing, share_of, stable_key, sum},
    symbols::Symbols,
    time::{Bucket, Epoch, EventTime},
};

/// A changed row: its number, the version before, its texts, −old, +new.
type Row = (u32, u32, Texts, Metrics, Metrics);

/// What a sink was handed, as texts.
#[derive(Clone, Debug, PartialEq)]
struct Handed {
    epoch: Epoch,
    changes: Vec<(TableId, Bucket, Vec<Row>)>,
    incidents: Vec<Incident>,
    counts: Counts,
}

/// A sink: its process, the worker whose word it gets, and of which stage.
type Place = (usize, usize, usize);

/// What a run handed over, in order, with the images that it asked for.
#[derive(Default)]
struct Run {
    handed: BTreeMap<Place, Vec<(Handed, Option<ImageKind>)>>,
    /// What went wrong in a worker: a panic there would leave the others waiting for it.
    faults: Vec<String>,
}

/// Epochs of which an image is taken.
fn image_of(epoch: Epoch) -> Option<ImageKind> {
    (epoch % 4 == 1).then_some(ImageKind::Whole)
}

/// Notes what it is handed, and whether it was time.
struct Notes {
    place: Place,
    symbols: Arc<Symbols>,
    committed: Committed,
    /// By worker: the epoch that its input has advanced to.
    advanced: Arc<Vec<AtomicU64>>,
    run: Arc<Mutex<Run>>,
}

impl Sink<2, Metrics> for Notes {
    fn commit(&mut self, commit: Commit<2, Metrics>) {
        let Commit { epoch, changes, incidents, counts, image } = commit;
        let mut run = self.run.lock().unwrap();
        let before = self.committed.get();
        if epoch != before + 1 {
            run.faults.push(format!("{:?}: {epoch} while {before} is committed", self.place));
        }
        let behind = |advanced: &AtomicU64| advanced.load(Ordering::SeqCst) <= epoch;
        if self.advanced.iter().any(behind) {
            run.faults.push(format!("{:?}: {epoch} while it is open", self.place));
        }
        let text = |symbol| self.symbols.text(symbol).to_string();
        let changes = changes.iter().map(|of| {
            let row =
                |c: &Change<2, Metrics>| (c.row, c.old_version, c.key.map(text), c.old, c.new);
            (of.table, of.bucket, of.changes.iter().map(row).collect())
        });
        let handed = Handed { epoch, changes: changes.collect(), incidents, counts };
        run.handed.entry(self.place).or_default().push((handed, image));
    }
}

/// What the workers of a run share, though they are of different processes: the test alone looks.
struct Shared {
    threads: usize,
    rows_max: u32,
    script: Vec<batch::Epoch>,
    /// The worker that waits in the middle until all others are through.
    laggard: usize,
    advanced: Arc<Vec<AtomicU64>>,
    run: Arc<Mutex<Run>>,
}

fn run(processes: usize, threads: usize, rows_max: u32, script: &[batch::Epoch]) -> Run {
    let peers = processes * threads;
    let shared = Arc::new(Shared {
        threads,
        rows_max,
        script: script.to_vec(),
        laggard: script[0].given.len() % peers,
        advanced: Arc::new((0..peers).map(|_| AtomicU64::new(0)).collect()),
        run: Arc::default(),
    });
    let mut guards = Vec::new();
    for (process, (builders, others)) in
        cluster::processes(processes, threads).into_iter().enumerate()
    {
        let symbols = strangers(process as u64);
        let shared = Arc::clone(&shared);
        let work = move |worker: &mut Worker| work(worker, &shared, &symbols);
        let config = WorkerConfig::default();
        guards.push(timely::execute::execute_from(builders, others, config, work).unwrap());
    }
    finished(guards);
    let run = std::mem::take(&mut *shared.run.lock().unwrap());
    let what = format!("{processes} × {threads}");
    assert_eq!(run.faults, [""; 0], "{what}");
    assert_eq!(run.handed.len(), processes * peers * STAGES, "{what}: sinks");
    run
}

type EventsIn = InputHandle<Epoch, CapacityContainerBuilder<Vec<Arc<Ledgered<Batch>>>>>;

/// One worker, from the first epoch to the last.
fn work(worker: &mut Worker, shared: &Shared, symbols: &Arc<Symbols>) {
    let (me, peers) = (worker.index(), worker.peers());
    let times = Times::default();
    let mut input = EventsIn::new();
    let committed = build(worker, &mut input, shared, symbols, &times);
    let last = shared.script[shared.script.len() - 1].times.epoch;
    for at in &shared.script {
        let epoch = at.times.epoch;
        if me == shared.laggard && epoch == last / 2 {
            let through = |other: &AtomicU64| other.load(Ordering::SeqCst) > last;
            while !(0..peers).all(|i| i == me || through(&shared.advanced[i])) {
                worker.step();
            }
            (0..100).for_each(|_| {
                worker.step();
            });
        }
        times.borrow_mut().insert(epoch, UnderWay { times: at.times, image: image_of(epoch) });
        input.advance_to(epoch);
        for (i, given) in at.given.iter().enumerate().filter(|(i, _)| i % peers == me) {
            input.send(batch::ledgered(offset(epoch, i), given, symbols));
        }
        shared.advanced[me].store(epoch + 1, Ordering::SeqCst);
        input.advance_to(epoch + 1);
        worker.step();
    }
    input.close();
    while worker.has_dataflows() {
        worker.step_or_park(None);
    }
    if committed.iter().any(|committed| committed.get() != last) {
        shared.run.lock().unwrap().faults.push(format!("worker {me} ends at {committed:?}"));
    }
}

/// Both stages, as a job has them.
fn build(
    worker: &mut Worker,
    input: &mut EventsIn,
    shared: &Shared,
    symbols: &Arc<Symbols>,
    times: &Times,
) -> [Committed; STAGES] {
    let (me, threads) = (worker.index(), shared.threads);
    let crossing = || Crossing::new(Arc::clone(symbols), me, threads);
    worker.dataflow::<Epoch, _, _>(|scope| {
        let events = scope.input_from(input);
        let chunks = sum(events.clone(), ByKey, Arc::clone(symbols), threads);
        let stage = |chunks, rows_max| {
            let (times, on_image) = (Rc::clone(times), Rc::new(|_| {}));
            accumulate(chunks, specs(rows_max), LATENESS, crossing(), times, None, on_image)
        };
        let rows = stage(chunks, shared.rows_max);
        let others = stage(rows.folded, ROWS_MAX_MAX);
        let fates = events.flat_map(|of| {
            [Said::Counts(of.counts), Said::Incidents(of.incidents.clone())].into_iter()
        });
        let [mut all, mut other] = [Some(rows.said.concat(fates)), Some(others.said)];
        [0, 1].map(|stage| {
            let committed: Committed = Rc::new(Cell::new(0));
            let sink = |process| Notes {
                place: (me / threads, process * threads + me % threads, stage),
                symbols: Arc::clone(symbols),
                committed: Rc::clone(&committed),
                advanced: Arc::clone(&shared.advanced),
                run: Arc::clone(&shared.run),
            };
            let sinks = (0..shared.advanced.len() / threads).map(sink).collect();
            let said = if stage == 0 { all.take() } else { other.take() }.unwrap();
            commit(said, sinks, crossing(), Rc::clone(times), Rc::clone(&committed));
            committed
        })
    })
}

/// By stage, table, bucket and texts: the version before, −old, +new.
type Rows = BTreeMap<(usize, TableId, Bucket, Texts), (u32, Metrics, Metrics)>;

/// An epoch as a whole process was handed it.
#[derive(Debug, Default, PartialEq)]
struct Whole {
    rows: Rows,
    incidents: Vec<Incident>,
    counts: Counts,
}

/// What the sinks of a process were handed together, by epoch.
fn whole(run: &Run, process: usize) -> BTreeMap<Epoch, Whole> {
    let mut epochs: BTreeMap<Epoch, Whole> = BTreeMap::new();
    for (&(_, _, stage), handed) in run.handed.iter().filter(|(place, _)| place.0 == process) {
        for (handed, _) in handed {
            let whole = epochs.entry(handed.epoch).or_default();
            for (table, bucket, rows) in &handed.changes {
                for (_, version, texts, old, new) in rows {
                    let at = (stage, *table, *bucket, texts.clone());
                    let twice = whole.rows.insert(at, (*version, *old, *new));
                    assert_eq!(twice, None, "a row changed twice in an epoch");
                }
            }
            whole.incidents.extend(&handed.incidents);
            whole.counts.add(&handed.counts);
        }
    }
    epochs.values_mut().for_each(|whole| whole.incidents.sort_by_key(|of| of.position));
    epochs
}

/// What is said of the incidents and the events of a schedule, by the schedule alone.
fn fates(at: &batch::Epoch) -> (Vec<Incident>, [u64; 5]) {
    let (mut incidents, mut fates) = (Vec::new(), [0; 5]);
    for (i, given) in at.given.iter().enumerate() {
        incidents.extend(batch::incidents(offset(at.times.epoch, i), given));
    }
    incidents.sort_by_key(|incident| incident.position);
    incidents.iter().for_each(|incident| fates[incident.fate as usize] += 1);
    (incidents, fates)
}

/// The rows of tables that do not overflow, added up event by event.
fn added_up(script: &[batch::Epoch]) -> BTreeMap<Epoch, Rows> {
    let mut held: BTreeMap<(usize, TableId, Bucket, Texts), (u32, Metrics)> = BTreeMap::new();
    let mut epochs = BTreeMap::new();
    for at in script {
        let mut before: BTreeMap<_, (u32, Metrics)> = BTreeMap::new();
        for given in at.given.iter().flatten() {
            let spend = Nanos(given.nanos);
            let metrics = Metrics { impressions: 1, spend, ..Metrics::default() };
            let metrics = if given.counts { metrics } else { metrics.negated() };
            for (rollup, spec) in specs(ROWS_MAX_MAX).iter().enumerate() {
                for &granularity in &spec.granularities {
                    let table = TableId { rollup: rollup as u16, granularity };
                    let mut texts = given.texts.clone();
                    texts[spec.dimensions.len()..].iter_mut().for_each(String::clear);
                    let at = (0, table, granularity.bucket(EventTime(given.at_us)), texts);
                    let row = held.entry(at.clone()).or_default();
                    before.entry(at).or_insert(*row);
                    assert!(row.1.add(&metrics));
                }
            }
        }
        let mut rows = Rows::new();
        for (at, (version, old)) in before {
            let row = held.get_mut(&at).unwrap();
            if row.1 != old {
                row.0 += 1;
                rows.insert(at, (version, old, row.1));
            }
        }
        epochs.insert(at.times.epoch, rows);
    }
    epochs
}

/// A process has all of it, and each worker's part of it is that worker's.
fn check(run: &Run, peers: usize, threads: usize, expected: &BTreeMap<Epoch, Whole>, what: &str) {
    let processes = peers / threads;
    for process in 0..processes {
        let whole = whole(run, process);
        assert!(whole.keys().eq(expected.keys()), "{what}, process {process}: epochs");
        for (epoch, expected) in expected {
            let found = &whole[epoch];
            let what = format!("{what}, process {process}, epoch {epoch}");
            assert_eq!(found.counts, expected.counts, "{what}");
            assert_eq!(found.incidents, expected.incidents, "{what}");
            for (at, row) in &expected.rows {
                assert_eq!(found.rows.get(at), Some(row), "{what}, {at:?}");
            }
            assert_eq!(found.rows.len(), expected.rows.len(), "{what}");
        }
    }
    for (&(process, worker, stage), handed) in &run.handed {
        let what = format!("{what}, worker {worker} in process {process}, stage {stage}");
        let own = &run.handed[&(worker / threads, worker, stage)];
        assert_eq!(handed.len(), own.len(), "{what}");
        for ((handed, image), (of, _)) in handed.iter().zip(own) {
            assert!(handed == of, "{what}: not what its own process has of {}", of.epoch);
            let is_own = process == worker / threads;
            let wanted = if is_own { image_of(of.epoch) } else { None };
            assert_eq!(*image, wanted, "{what}, epoch {}", of.epoch);
            check_owner(handed, worker, peers, &what);
        }
        check_numbers(handed.iter().map(|(handed, _)| handed), &what);
    }
}

/// Rows are of the worker that owns their texts, and each bucket comes once.
fn check_owner(handed: &Handed, worker: usize, peers: usize, what: &str) {
    let mut buckets = BTreeSet::new();
    for (table, bucket, rows) in &handed.changes {
        assert!(buckets.insert((table, bucket)), "{what}: {table:?} {bucket:?} comes twice");
        for (_, _, texts, _, _) in rows {
            let stable = stable_key(texts.iter().map(|text| hash::stable(text.as_bytes())));
            assert_eq!(share_of(stable) % peers, worker, "{what}: {texts:?}");
        }
    }
    assert!(handed.incidents.is_sorted_by_key(|incident| incident.position), "{what}");
}

/// A number is one row's for as long as it lives.
fn check_numbers<'h>(handed: impl Iterator<Item = &'h Handed>, what: &str) {
    let mut keys: BTreeMap<(TableId, Bucket, u32), &Texts> = BTreeMap::new();
    for (table, bucket, rows) in handed.flat_map(|handed| &handed.changes) {
        for (number, _, texts, _, _) in rows {
            let of = keys.entry((*table, *bucket, *number)).or_insert(texts);
            assert_eq!(*of, texts, "{what}: row {number} of {table:?} {bucket:?}");
        }
    }
}

const SHAPES: [(usize, usize); 5] = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 1)];

fn compare(rows_max: u32, script: &[batch::Epoch]) -> Vec<Run> {
    let one = run(1, 1, rows_max, script);
    let expected = whole(&one, 0);
    assert!(expected.values().map(|whole| whole.rows.len()).sum::<usize>() > 500);
    assert!(expected.values().map(|whole| whole.incidents.len()).sum::<usize>() > 50);
    let folded: u64 = expected.values().map(|whole| whole.counts.folded).sum();
    assert_eq!(folded > 0, rows_max <= 640, "{rows_max} rows fold");
    for at in script {
        let (incidents, fates) = fates(at);
        let whole = &expected[&at.times.epoch];
        assert_eq!((&whole.incidents, whole.counts.fates), (&incidents, fates));
        assert_eq!(whole.counts.arithmetic_errors, 0);
    }
    if rows_max == ROWS_MAX_MAX {
        for (epoch, rows) in added_up(script) {
            assert!(expected[&epoch].rows == rows, "epoch {epoch} does not add up");
        }
    }
    SHAPES
        .map(|(processes, threads)| {
            let what = format!("{rows_max} rows, {processes} × {threads}");
            let run = run(processes, threads, rows_max, script);
            check(&run, processes * threads, threads, &expected, &what);
            run
        })
        .into()
}

#[test]
fn every_process_is_handed_what_one_worker_is() {
    let seed = seed();
    for (round, rows_max) in [1, 128, 640, ROWS_MAX_MAX].into_iter().enumerate() {
        compare(rows_max, &schedule(seed + round as u64, 30));
    }
}

#[test]
fn a_bucket_that_is_cut_on_its_way_is_handed_over_as_one() {
    let mut script = schedule(seed(), 6);
    let long = |number: i64| {
        let texts = [format!("x{}", number % 3), format!("y{number}{}", "ß".repeat(4_000))];
        Given { texts, at_us: script[1].times.frontier.0 - 1, nanos: number * 5, counts: true }
    };
    let long = (0..200).map(long).collect();
    script[1].given.push(long);
    let runs = compare(ROWS_MAX_MAX, &script);
    let texts_bytes = |rows: &[Row]| -> usize {
        rows.iter().map(|row| &row.2[1]).collect::<BTreeSet<_>>().iter().map(|t| t.len()).sum()
    };
    for run in &runs[1..4] {
        let buckets = run.handed.values().flatten().flat_map(|(handed, _)| &handed.changes);
        let most = buckets.map(|(_, _, rows)| texts_bytes(rows)).max().unwrap();
        assert!(most > PARCEL_BYTES_MAX, "{most} bytes of texts need not be cut");
    }
}
