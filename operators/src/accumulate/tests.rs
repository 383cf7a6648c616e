//! The accumulators against a model: everything recomputed per epoch from all sums so far, in
//! maps over texts, with the folding rule written out again. For 1, 2 and 4 workers the changes of
//! each epoch must be the same, and those of the model. `TRUEUP_SEED` replays a run.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    hash,
    metrics::Metrics,
    money::Nanos,
    sum::stable_key,
    time::{LogTime, MINUTE_US, SECOND_US},
};
use std::sync::Mutex;
use timely::{
    CommunicationConfig, WorkerConfig,
    dataflow::{
        InputHandle,
        channels::pact::Pipeline,
        operators::{Concat, Input, Operator},
    },
};

type Texts = [String; 2];
type Seen = BTreeMap<(Epoch, TableId, Bucket, Texts), (u32, Metrics, Metrics)>;

const LATENESS: Lateness = Lateness {
    allowed_lateness_us: SECOND_US,
    correction_horizon_us: 2 * MINUTE_US,
    future_skew_us_max: 0,
};

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        hash::mix(self.0, 0x5EED) % n
    }
}

fn seed() -> u64 {
    let seed = std::env::var("TRUEUP_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20);
    println!("TRUEUP_SEED={seed}");
    seed
}

fn specs(rows_max: u32) -> Vec<RollupSpec> {
    let mut specs = vec![RollupSpec::new("a", &["x", "y"]), RollupSpec::new("b", &["x"])];
    specs[1].granularities = vec![Granularity::Hour];
    specs.iter_mut().for_each(|s| s.rows_max = rows_max);
    specs
}

/// One sum of an epoch: its rollup, its texts, its minute, what it adds.
type Given = (u16, Texts, Bucket, Metrics);

/// Epochs a minute apart, sums of the last minutes, some taken back later.
fn script(random: &mut Random, epochs: u64) -> Vec<(EpochTimes, Vec<Given>)> {
    let mut counted: Vec<Given> = Vec::new();
    let mut script = Vec::new();
    let mut before = LogTime(0);
    for epoch in 1..=epochs {
        let frontier = LogTime(epoch as i64 * MINUTE_US / 2);
        let minute = Bucket((frontier.0 / MINUTE_US) as i32);
        let mut sums = Vec::new();
        for _ in 0..random.below(120) {
            let rollup = random.below(2) as u16;
            let second =
                if rollup == 0 { format!("y{}", random.below(200)) } else { String::new() };
            let texts = [format!("x{}", random.below(3)), second];
            let at = Bucket(minute.0 - random.below(2) as i32);
            let spend = Nanos(random.below(1_000) as i64);
            let given =
                (rollup, texts, at, Metrics { impressions: 1, spend, ..Metrics::default() });
            counted.push(given.clone());
            sums.push(given);
        }
        for _ in 0..random.below(30).min(counted.len() as u64) {
            let gone = counted.swap_remove(random.below(counted.len() as u64) as usize);
            let live =
                Granularity::Minute.end(gone.2).0 + LATENESS.correction_horizon_us > frontier.0;
            if live {
                sums.push((gone.0, gone.1, gone.2, gone.3.negated()));
            }
        }
        let times = EpochTimes { epoch, frontier_before: before, frontier, latest: frontier };
        before = frontier;
        script.push((times, sums));
    }
    script
}

fn run(peers: usize, rows_max: u32, script: &[(EpochTimes, Vec<Given>)]) -> (Seen, Counts) {
    let out = Arc::new(Mutex::new((Seen::new(), Counts::default())));
    let (script, symbols) = (Arc::new(script.to_vec()), Arc::new(Symbols::default()));
    let collected = Arc::clone(&out);
    let config = timely::Config {
        communication: CommunicationConfig::Process(peers),
        worker: WorkerConfig::default(),
    };
    timely::execute(config, move |worker| {
        let times = Times::default();
        let mut input =
            InputHandle::<Epoch, CapacityContainerBuilder<Vec<Chunk<2, Metrics>>>>::new();
        worker.dataflow::<Epoch, _, _>(|scope| {
            let stage = |chunks, rows_max| {
                let (symbols, times) = (Arc::clone(&symbols), Rc::clone(&times));
                accumulate(chunks, specs(rows_max), LATENESS, symbols, times, peers)
            };
            let main = stage(scope.input_from(&mut input), rows_max);
            let others = stage(main.folded, ROWS_MAX_MAX);
            let (symbols, collected) = (Arc::clone(&symbols), Arc::clone(&collected));
            let said = main.said.concat(others.said);
            let note = move |epoch: Epoch, said: Said<2, Metrics>| {
                let mut out = collected.lock().unwrap();
                match said {
                    Said::Changes(changes) => {
                        for c in &changes.changes {
                            let texts = c.key.map(|s| symbols.text(s).to_string());
                            let at = (epoch, changes.table, changes.bucket, texts);
                            let twice = out.0.insert(at, (c.old_version, c.old, c.new));
                            assert_eq!(twice, None, "a row changed twice in an epoch");
                        }
                    }
                    Said::Counts(counts) => out.1.add(&counts),
                    Said::Incidents(_) => unreachable!("accumulators have none"),
                }
            };
            said.sink(Pipeline, "Note", move |(input, _)| {
                input.for_each(|capability, said| {
                    said.drain(..).for_each(|said| note(*capability.least().unwrap(), said));
                });
            });
        });
        let (me, peers) = (worker.index(), worker.peers() as u32);
        let mut stables = Stables::new(Arc::clone(&symbols));
        for (at, sums) in script.iter() {
            times.borrow_mut().insert(at.epoch, *at);
            input.advance_to(at.epoch);
            for (i, (rollup, texts, bucket, metrics)) in sums.iter().enumerate() {
                if i % peers as usize != me {
                    continue;
                }
                let key = [0, 1].map(|i: usize| symbols.intern(&texts[i]));
                stables.catch_up();
                input.send(Chunk {
                    target: stables.owner(&key, peers),
                    rollup: *rollup,
                    granularity: None,
                    overflows: 0,
                    form: Form::Here,
                    sums: vec![Sum { key, bucket: *bucket, metrics: *metrics }],
                });
            }
            input.advance_to(at.epoch + 1);
            worker.step();
        }
    })
    .unwrap();
    Arc::try_unwrap(out).unwrap().into_inner().unwrap()
}

/// The rule again, plainly.
fn model(rows_max: u32, script: &[(EpochTimes, Vec<Given>)]) -> Seen {
    let share_rows = rows_max.div_ceil(64) as usize;
    let stable = |texts: &Texts| stable_key(texts.iter().map(|t| hash::stable(t.as_bytes())));
    let mut rows: BTreeMap<(TableId, Bucket, Texts), (u32, Metrics)> = BTreeMap::new();
    let mut housed: BTreeMap<(TableId, Bucket, usize), Vec<Texts>> = BTreeMap::new();
    let mut seen = Seen::new();
    for (times, sums) in script {
        let mut added: BTreeMap<(TableId, Bucket, Texts), Metrics> = BTreeMap::new();
        for (rollup, texts, minute, metrics) in sums {
            for &granularity in &specs(1)[usize::from(*rollup)].granularities {
                let id = TableId { rollup: *rollup, granularity };
                let at = (id, granularity.of_minute(*minute), texts.clone());
                assert!(added.entry(at).or_default().add(metrics));
            }
        }
        // New keys find a home in the order of their hash.
        let mut order: Vec<_> = added.keys().cloned().collect();
        order.sort_by_key(|(id, bucket, texts)| (*id, *bucket, stable(texts), texts.clone()));
        let mut net: BTreeMap<(TableId, Bucket, Texts), Metrics> = BTreeMap::new();
        for at in order {
            let share = (stable(&at.2) % 64) as usize;
            let homes = housed.entry((at.0, at.1, share)).or_default();
            if !homes.contains(&at.2) && homes.len() < share_rows {
                homes.push(at.2.clone());
            }
            let metrics = added[&at];
            let texts = match (homes.contains(&at.2), at.0.rollup) {
                (true, _) => at.2,
                (false, 0) => [at.2[0].clone(), "(other)".into()],
                (false, _) => ["(other)".into(), String::new()],
            };
            assert!(net.entry((at.0, at.1, texts)).or_default().add(&metrics));
        }
        for ((id, bucket, texts), metrics) in net {
            let row = rows.entry((id, bucket, texts.clone())).or_default();
            let old = *row;
            assert!(row.1.add(&metrics));
            if row.1 != old.1 {
                row.0 += 1;
                seen.insert((times.epoch, id, bucket, texts), (old.0, old.1, row.1));
            }
        }
    }
    seen
}

#[test]
fn agrees_with_the_model_for_any_number_of_workers() {
    let mut random = Random(seed());
    for rows_max in [1, 64, 128, 640, ROWS_MAX_MAX] {
        let script = script(&mut random, 40);
        let expected = model(rows_max, &script);
        for peers in [1, 2, 4] {
            let (seen, counts) = run(peers, rows_max, &script);
            for (at, change) in &expected {
                assert_eq!(seen.get(at), Some(change), "{rows_max} rows, {peers} workers, {at:?}");
            }
            assert_eq!(seen.len(), expected.len(), "{rows_max} rows, {peers} workers");
            assert_eq!(counts.arithmetic_errors, 0);
            assert_eq!(counts.folded > 0, rows_max <= 640, "{rows_max} rows fold");
        }
    }
}

#[test]
fn what_it_says_is_a_collection_that_adds_up() {
    let script = script(&mut Random(7), 20);
    let mut sums: BTreeMap<(TableId, Bucket, Texts), (Metrics, isize)> = BTreeMap::new();
    for ((_, id, bucket, texts), (_, old, new)) in run(2, 64, &script).0 {
        let at = (id, bucket, texts);
        let held = sums.entry(at).or_default();
        assert_eq!(held.0, old, "−old is what +new was");
        *held = (new, held.1);
    }
    let total = |of: &dyn Fn(&Metrics) -> i64| -> i64 {
        let minutes = sums.iter().filter(|(at, _)| at.0.granularity == Granularity::Minute);
        minutes.map(|(_, held)| of(&held.0)).sum()
    };
    let given = script.iter().flat_map(|(_, sums)| sums).filter(|g| g.0 == 0);
    let (mut impressions, mut spend) = (0, 0);
    given.for_each(|g| {
        impressions += g.3.impressions;
        spend += g.3.spend.0;
    });
    assert_eq!((total(&|m| m.impressions), total(&|m| m.spend.0)), (impressions, spend));
}
