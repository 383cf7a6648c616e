//! The accumulators against a model: everything recomputed per epoch from all sums so far, in
//! maps over texts, with the folding rule written out again. For 1, 2 and 4 workers the changes of
//! each epoch must be the same, and those of the model; also when the run stops at some epochs and
//! another number of workers goes on from an image (`resumed`). `TRUEUP_SEED` replays a run.

#![allow(clippy::unwrap_used)]

mod resumed;

use super::*;
use crate::{
    hash,
    metrics::Metrics,
    money::Nanos,
    section::ShardId,
    sum::stable_key,
    time::{LogTime, MINUTE_US, SECOND_US},
};
use std::sync::Mutex;
use timely::{
    CommunicationConfig, WorkerConfig,
    dataflow::{
        InputHandle,
        channels::pact::Pipeline,
        operators::{Input, Operator},
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

/// Epochs half a minute apart, sums of the last minutes, some taken back later, some before they
/// were given; and rows that come to nothing at once.
fn script(random: &mut Random, epochs: u64) -> Vec<(EpochTimes, Vec<Given>)> {
    let mut counted: Vec<Given> = Vec::new();
    let mut owed: Vec<Given> = Vec::new();
    let mut script = Vec::new();
    let mut before = LogTime(0);
    for epoch in 1..=epochs {
        let frontier = LogTime(epoch as i64 * MINUTE_US / 2);
        let minute = Bucket((frontier.0 / MINUTE_US) as i32);
        let mut sums: Vec<Given> = std::mem::take(&mut owed);
        for i in 0..random.below(6) {
            // Of a first dimension of their own: a row of money and no records is an error.
            let texts = [format!("o{}", random.below(2)), format!("e{epoch}-{i}")];
            let one = Metrics { impressions: 1, ..Metrics::default() };
            let given = (0, texts, minute, one);
            sums.push((0, given.1.clone(), minute, one.negated()));
            // At once, which leaves a row that nobody sees, or in the next epoch.
            if random.below(2) == 0 { sums.push(given) } else { owed.push(given) }
        }
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

/// Where rows are: by shard, table, bucket and number.
type Numbered = BTreeMap<(ShardId, TableId, Bucket, u32), (Texts, u32, Metrics)>;

/// What a run begins with, if not with nothing.
struct Start {
    symbols: Arc<Symbols>,
    loaded: Vec<Option<[Loaded<2, Metrics>; STAGES]>>,
    rows: Numbered,
}

/// What a run said, and what it left.
#[derive(Default)]
struct Ran {
    seen: Seen,
    counts: Counts,
    rows: Numbered,
    /// Of the last epoch, as they are written.
    images: Vec<(ShardId, Vec<u8>)>,
}

impl Ran {
    fn note(&mut self, shard: ShardId, epoch: Epoch, said: Said<2, Metrics>, symbols: &Symbols) {
        match said {
            Said::Changes(Changes { table, bucket, changes }) => {
                for c in &changes {
                    let texts = c.key.map(|s| symbols.text(s).to_string());
                    let at = (epoch, table, bucket, texts.clone());
                    let twice = self.seen.insert(at, (c.old_version, c.old, c.new));
                    assert_eq!(twice, None, "a row changed twice in an epoch");
                    let row = (texts.clone(), c.old_version + 1, c.new);
                    let before = self.rows.insert((shard, table, bucket, c.row), row);
                    let was = (texts, c.old_version, c.old);
                    let is_new = c.old_version == 0;
                    assert_eq!(before, (!is_new).then_some(was), "the row of number {}", c.row);
                }
            }
            Said::Counts(counts) => self.counts.add(&counts),
            Said::Incidents(_) => unreachable!("accumulators have none"),
        }
    }
}

fn run(peers: usize, rows_max: u32, script: &[(EpochTimes, Vec<Given>)]) -> (Seen, Counts) {
    let ran = run_from(None, peers, rows_max, script);
    (ran.seen, ran.counts)
}

/// Runs a script and takes an image of its last epoch.
fn run_from(
    start: Option<Start>,
    peers: usize,
    rows_max: u32,
    script: &[(EpochTimes, Vec<Given>)],
) -> Ran {
    let Start { symbols, loaded, rows } = start.unwrap_or_else(|| Start {
        symbols: Arc::default(),
        loaded: (0..peers).map(|_| None).collect(),
        rows: Numbered::new(),
    });
    let (out, loaded) = (Arc::new(Mutex::new(Ran { rows, ..Ran::default() })), Mutex::new(loaded));
    let script = Arc::new(script.to_vec());
    let collected = Arc::clone(&out);
    let config = timely::Config {
        communication: CommunicationConfig::Process(peers),
        worker: WorkerConfig::default(),
    };
    timely::execute(config, move |worker| {
        let times = Times::default();
        let mut input =
            InputHandle::<Epoch, CapacityContainerBuilder<Vec<Chunk<2, Metrics>>>>::new();
        let [mine, my_others] = match loaded.lock().unwrap()[worker.index()].take() {
            Some(stages) => stages.map(Some),
            None => [None, None],
        };
        worker.dataflow::<Epoch, _, _>(|scope| {
            let me = scope.index() as u16;
            let stage = |stage, chunks, rows_max, loaded| {
                let shard = ShardId { worker: me, stage };
                let (out, symbols) = (Arc::clone(&collected), Arc::clone(&symbols));
                let on_image = {
                    let (out, symbols) = (Arc::clone(&out), Arc::clone(&symbols));
                    Rc::new(move |image: AccumulatorImage| {
                        let section = image.section(shard, &symbols).1;
                        out.lock().unwrap().images.push((shard, section));
                    })
                };
                let of = (Arc::clone(&symbols), Rc::clone(&times));
                let specs = specs(rows_max);
                let crossing = Crossing::new(of.0, me.into(), scope.peers());
                let to = accumulate(chunks, specs, LATENESS, crossing, of.1, loaded, on_image);
                to.said.sink(Pipeline, "Note", move |(input, _)| {
                    input.for_each(|capability, said| {
                        let epoch = *capability.least().unwrap();
                        let mut out = out.lock().unwrap();
                        said.drain(..).for_each(|said| out.note(shard, epoch, said, &symbols));
                    });
                });
                to.folded
            };
            let folded = stage(0, scope.input_from(&mut input), rows_max, mine);
            stage(1, folded, ROWS_MAX_MAX, my_others);
        });
        let (me, peers) = (worker.index(), worker.peers() as u32);
        let mut stables = Stables::new(Arc::clone(&symbols));
        let last = script.last().map(|(at, _)| at.epoch);
        for (at, sums) in script.iter() {
            let image = (last == Some(at.epoch)).then_some(ImageKind::Whole);
            times.borrow_mut().insert(at.epoch, UnderWay { times: *at, image });
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
    Arc::try_unwrap(out).ok().unwrap().into_inner().unwrap()
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
