//! Both stages over several processes: sets of workers with their own symbols, joined by real
//! sockets, must say in every epoch what the same number of workers in one process say, and what a
//! single worker says, as texts, for random schedules and tables that overflow; and every process
//! must be handed all of it (`replicas`).
//!
//! The processes are sets of threads of this one; what makes them several is that nothing is shared
//! but sockets. `TRUEUP_SEED` repeats a run.
#![allow(clippy::unwrap_used)]

mod batch;
mod cluster;
mod replicas;

use batch::{Batch, ByKey, offset, schedule};
use cluster::Process;
use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex},
};
use timely::{
    WorkerConfig,
    communication::WorkerGuards,
    container::CapacityContainerBuilder,
    dataflow::{
        InputHandle,
        channels::pact::Pipeline,
        operators::{Concat, Input, Operator},
    },
};
use trueup_operators::{
    accumulate::{Said, Times, UnderWay, accumulate},
    change::{Counts, TableId},
    hash,
    ledger::Ledgered,
    metrics::Metrics,
    rollup::{ROWS_MAX_MAX, RollupSpec},
    sum::{crossing::Crossing, sum},
    symbols::Symbols,
    time::{Bucket, Epoch, Granularity, Lateness, MINUTE_US, SECOND_US},
};

const LATENESS: Lateness = Lateness {
    allowed_lateness_us: SECOND_US,
    correction_horizon_us: 10 * MINUTE_US,
    future_skew_us_max: 0,
};

type Texts = [String; 2];
/// Per epoch, table, bucket and key: the version before, −old, +new.
type Seen = BTreeMap<(Epoch, TableId, Bucket, Texts), (u32, Metrics, Metrics)>;
type Out = Arc<Mutex<(Seen, Counts)>>;

fn specs(rows_max: u32) -> Vec<RollupSpec> {
    let mut specs = vec![RollupSpec::new("a", &["x", "y"]), RollupSpec::new("b", &["x"])];
    specs[1].granularities = vec![Granularity::Hour];
    specs.iter_mut().for_each(|spec| spec.rows_max = rows_max);
    specs
}

/// The symbols of a process: each has met other texts before, in another order; the first none.
fn strangers(process: u64) -> Arc<Symbols> {
    let symbols = Arc::new(Symbols::default());
    (0..process * 100).for_each(|i| {
        symbols.intern(&format!("y{}", hash::mix(i, process) % 300));
    });
    symbols
}

/// The seed of this run, printed so that a failure can be repeated.
fn seed() -> u64 {
    let seed = std::env::var("TRUEUP_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20);
    println!("TRUEUP_SEED={seed}");
    seed
}

/// The workers of both stages of a process; `threads` of them share `symbols`.
fn start(
    (builders, others): Process,
    threads: usize,
    rows_max: u32,
    script: Arc<Vec<batch::Epoch>>,
    out: Out,
    symbols: Arc<Symbols>,
) -> WorkerGuards<()> {
    timely::execute::execute_from(builders, others, WorkerConfig::default(), move |worker| {
        let times = Times::default();
        let mut input =
            InputHandle::<Epoch, CapacityContainerBuilder<Vec<Arc<Ledgered<Batch>>>>>::new();
        worker.dataflow::<Epoch, _, _>(|scope| {
            let events = scope.input_from(&mut input);
            let chunks = sum(events, ByKey, Arc::clone(&symbols), threads);
            let stage = |chunks, rows_max| {
                let crossing = Crossing::new(Arc::clone(&symbols), scope.index(), threads);
                let (times, on_image) = (Rc::clone(&times), Rc::new(|_| {}));
                accumulate(chunks, specs(rows_max), LATENESS, crossing, times, None, on_image)
            };
            let main = stage(chunks, rows_max);
            let others = stage(main.folded, ROWS_MAX_MAX);
            let (symbols, out) = (Arc::clone(&symbols), Arc::clone(&out));
            main.said.concat(others.said).sink(Pipeline, "Note", move |(input, _)| {
                input.for_each(|capability, said| {
                    let epoch = *capability.least().unwrap();
                    said.drain(..).for_each(|said| note(epoch, said, &symbols, &out));
                });
            });
        });
        let (me, peers) = (worker.index(), worker.peers());
        for at in script.iter() {
            let under_way = UnderWay { times: at.times, image: None };
            times.borrow_mut().insert(at.times.epoch, under_way);
            input.advance_to(at.times.epoch);
            for (i, given) in at.given.iter().enumerate().filter(|(i, _)| i % peers == me) {
                input.send(batch::ledgered(offset(at.times.epoch, i), given, &symbols));
            }
            input.advance_to(at.times.epoch + 1);
            worker.step();
        }
    })
    .unwrap()
}

fn note(epoch: Epoch, said: Said<2, Metrics>, symbols: &Symbols, out: &Out) {
    let mut out = out.lock().unwrap();
    match said {
        Said::Changes(changes) => {
            for c in &changes.changes {
                let texts = c.key.map(|symbol| symbols.text(symbol).to_string());
                let at = (epoch, changes.table, changes.bucket, texts);
                let twice = out.0.insert(at, (c.old_version, c.old, c.new));
                assert_eq!(twice, None, "a row changed twice in an epoch");
            }
        }
        Said::Counts(counts) => out.1.add(&counts),
        Said::Incidents(_) => unreachable!("accumulators have none"),
    }
}

fn finished(guards: Vec<WorkerGuards<()>>) {
    for guards in guards {
        guards.join().into_iter().for_each(|worker| worker.unwrap());
    }
}

fn run(
    processes: usize,
    threads: usize,
    rows_max: u32,
    script: &Arc<Vec<batch::Epoch>>,
) -> (Seen, Counts) {
    let out = Out::default();
    let mut guards = Vec::new();
    for (number, process) in (0..).zip(cluster::processes(processes, threads)) {
        let (script, to) = (Arc::clone(script), Arc::clone(&out));
        guards.push(start(process, threads, rows_max, script, to, strangers(number)));
    }
    finished(guards);
    Arc::try_unwrap(out).unwrap().into_inner().unwrap()
}

#[test]
fn two_processes_say_what_one_says() {
    let seed = seed();
    for (round, rows_max) in [1, 64, 128, 640, ROWS_MAX_MAX].into_iter().enumerate() {
        let script = Arc::new(schedule(seed + round as u64, 30));
        let (expected, counts) = run(1, 1, rows_max, &script);
        assert_eq!(counts.arithmetic_errors, 0);
        assert_eq!(counts.folded > 0, rows_max <= 640, "{rows_max} rows fold");
        assert!(expected.len() > 500, "{} changes are no test", expected.len());
        let what = format!("{rows_max} rows");
        same(&run(1, 4, rows_max, &script), &expected, &format!("{what}, 1 × 4"));
        same(&run(2, 1, rows_max, &script), &expected, &format!("{what}, 2 × 1"));
        same(&run(2, 2, rows_max, &script), &expected, &format!("{what}, 2 × 2"));
    }
}

#[track_caller]
fn same((seen, counts): &(Seen, Counts), expected: &Seen, run: &str) {
    assert_eq!(counts.arithmetic_errors, 0, "{run}");
    for (at, change) in expected {
        assert_eq!(seen.get(at), Some(change), "{run}, {at:?}");
    }
    assert_eq!(seen.len(), expected.len(), "{run}");
}
