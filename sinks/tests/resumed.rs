//! Accumulators and views together, from a checkpoint: a run stops at random epochs and goes on
//! from its images with other workers and other symbols, and shows at every epoch what a run shows
//! that never stops: rows, versions, states, epoch hashes, counts, lists of events. Buckets are
//! small, so that keys fold. `TRUEUP_SEED` replays a run.
#![allow(clippy::unwrap_used)]

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::{Arc, Mutex},
};
use timely::{
    CommunicationConfig, WorkerConfig,
    container::CapacityContainerBuilder,
    dataflow::{
        InputHandle,
        operators::{Concat, Input},
    },
};
use trueup_operators::{
    accumulate::{self, AccumulatorImage, Loaded, STAGES, Said, Times, UnderWay},
    change::{Counts, Incident},
    commit,
    event::Position,
    feed::{EpochTimes, ImageKind},
    hash,
    metrics::{Group, Metrics},
    money::Nanos,
    rollup::RollupSpec,
    section::{SectionKey, ShardId},
    sum::{
        Chunk, Sum,
        crossing::{Crossing, Form},
        share_of, stable_key,
    },
    symbols::Symbols,
    time::{Bucket, Epoch, Granularity, Lateness, LogTime, MINUTE_US, SECOND_US},
};
use trueup_sinks::{
    Filter, ShardImage, Tables, ViewKind, ViewSettings, Views, catalog::LISTED_FATES,
};

type TestViews = Views<2, Metrics>;
type Handle<D> = InputHandle<Epoch, CapacityContainerBuilder<Vec<D>>>;
type Sections = BTreeMap<SectionKey, Vec<u8>>;

const LATENESS: Lateness = Lateness {
    allowed_lateness_us: SECOND_US,
    correction_horizon_us: 2 * MINUTE_US,
    future_skew_us_max: 0,
};
const EPOCHS: u64 = 60;
const PARTITIONS: u16 = 5;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        hash::mix(self.0, 0x5EED) % n
    }
}

#[derive(Clone)]
struct Given {
    rollup: u16,
    texts: [String; 2],
    minute: Bucket,
    metrics: Metrics,
}

/// An epoch of the script.
#[derive(Clone)]
struct Step {
    times: EpochTimes,
    sums: Vec<Given>,
    incidents: Vec<Incident>,
}

fn script(random: &mut Random) -> Vec<Step> {
    let (mut counted, mut script) = (Vec::<Given>::new(), Vec::new());
    let mut before = LogTime(0);
    for epoch in 1..=EPOCHS {
        let frontier = LogTime(epoch as i64 * MINUTE_US / 2);
        let minute = Bucket((frontier.0 / MINUTE_US) as i32);
        let mut sums = Vec::new();
        // Of some epochs nothing comes.
        let given = if random.below(8) == 0 { 0 } else { random.below(100) };
        for i in 0..given {
            let rollup = random.below(2) as u16;
            let second = if rollup == 0 { format!("y{}", random.below(90)) } else { String::new() };
            let texts = [format!("x{}", random.below(3)), second];
            let minute = Bucket(minute.0 - random.below(2) as i32);
            let spend = Nanos(random.below(1_000) as i64 * 1_000);
            let metrics = Metrics { impressions: 1, spend, ..Metrics::default() };
            let given = Given { rollup, texts, minute, metrics };
            if i % 16 == 0 {
                // A row that comes to nothing at once.
                let metrics = metrics.negated();
                sums.push(Given { metrics, ..given.clone() });
            } else {
                counted.push(given.clone());
            }
            sums.push(given);
        }
        for _ in 0..random.below(40).min(counted.len() as u64) {
            let gone = counted.swap_remove(random.below(counted.len() as u64) as usize);
            let end_us = Granularity::Minute.end(gone.minute).0;
            if end_us + LATENESS.correction_horizon_us > frontier.0 {
                sums.push(Given { metrics: gone.metrics.negated(), ..gone });
            }
        }
        let incidents = (0..random.below(5) as u16).map(|row| Incident {
            fate: LISTED_FATES[random.below(LISTED_FATES.len() as u64) as usize],
            position: Position { partition: row % PARTITIONS, offset: epoch, row },
            log_time: frontier,
        });
        let incidents = incidents.collect();
        let times = EpochTimes { epoch, frontier_before: before, frontier, latest: frontier };
        before = frontier;
        script.push(Step { times, sums, incidents });
    }
    script
}

fn rollups(rows_max: u32) -> Vec<RollupSpec> {
    let mut rollups = vec![RollupSpec::new("a", &["x", "y"]), RollupSpec::new("b", &["x"])];
    rollups[1].granularities = vec![Granularity::Hour];
    rollups.iter_mut().for_each(|rollup| rollup.rows_max = rows_max);
    rollups
}

fn new_views(peers: usize, rows_max: u32) -> (Arc<TestViews>, Arc<Symbols>) {
    let symbols = Arc::new(Symbols::default());
    let settings = ViewSettings {
        digests: true,
        incidents_max: 11,
        retention_us: [4 * MINUTE_US; 3],
        history_us_max: i64::MAX,
        ..ViewSettings::new(peers * STAGES, rollups(rows_max), LATENESS)
    };
    (Views::new(settings, Arc::clone(&symbols)), symbols)
}

/// What the stages of each worker begin with.
type Begin = Vec<Option<[Loaded<2, Metrics>; STAGES]>>;

/// The images of a part of a run, in order.
#[derive(Default)]
struct Images {
    shards: Vec<ShardImage<2, Metrics>>,
    accumulators: Sections,
}

/// Runs steps of the script, with an image of each epoch that `marks` names.
fn run(
    (views, symbols): (Arc<TestViews>, Arc<Symbols>),
    rows_max: u32,
    begin: Begin,
    steps: &[Step],
    marks: &BTreeMap<Epoch, ImageKind>,
) -> Images {
    let out = Arc::new(Mutex::new(Images::default()));
    let config = timely::Config {
        communication: CommunicationConfig::Process(begin.len()),
        worker: WorkerConfig::default(),
    };
    let (begin, steps) = (Mutex::new(begin), Arc::new(steps.to_vec()));
    let (collected, marks) = (Arc::clone(&out), marks.clone());
    timely::execute(config, move |worker| {
        let times = Times::default();
        let (mut chunks, mut fates) = (Handle::<Chunk<2, Metrics>>::new(), Handle::new());
        let loaded = begin.lock().unwrap()[worker.index()].take();
        let [mine, my_others] = loaded.map_or([None, None], |stages| stages.map(Some));
        worker.dataflow::<Epoch, _, _>(|scope| {
            let me = scope.index();
            let stage = |stage: usize, chunks, rollups, loaded| {
                let shard = ShardId { worker: me as u16, stage: stage as u8 };
                let (out, of) = (Arc::clone(&collected), Arc::clone(&symbols));
                let on_image = Rc::new(move |image: AccumulatorImage| {
                    let (key, section) = image.section(shard, &of);
                    out.lock().unwrap().accumulators.insert(key, section);
                });
                let crossing = Crossing::new(Arc::clone(&symbols), me, scope.peers());
                let times = Rc::clone(&times);
                accumulate::accumulate(chunks, rollups, LATENESS, crossing, times, loaded, on_image)
            };
            let specs = rollups(rows_max);
            let rows = stage(0, scope.input_from(&mut chunks), specs.clone(), mine);
            let others = stage(1, rows.folded, accumulate::unlimited(&specs), my_others);
            let rows = rows.said.concat(scope.input_from(&mut fates));
            let from = steps[0].times.epoch - 1;
            for (stage, said) in [rows, others.said].into_iter().enumerate() {
                let out = Arc::clone(&collected);
                let sink = views.shard(me * STAGES + stage);
                let sink = sink.on_image(move |image| out.lock().unwrap().shards.push(image));
                let committed = Rc::new(Cell::new(from));
                let crossing = Crossing::new(Arc::clone(&symbols), me, scope.peers());
                commit::commit(said, vec![sink], crossing, Rc::clone(&times), committed);
            }
        });
        let (me, peers) = (worker.index(), worker.peers());
        for step in steps.iter() {
            let epoch = step.times.epoch;
            views.announce(step.times);
            let image = marks.get(&epoch).copied();
            times.borrow_mut().insert(epoch, UnderWay { times: step.times, image });
            chunks.advance_to(epoch);
            fates.advance_to(epoch);
            for (i, given) in step.sums.iter().enumerate() {
                if i % peers == me {
                    chunks.send(chunk(given, peers, &symbols));
                }
            }
            let is_mine = |i: &&Incident| usize::from(i.position.partition) % peers == me;
            let incidents: Vec<Incident> = step.incidents.iter().filter(is_mine).copied().collect();
            let mut counts = Counts::default();
            incidents.iter().for_each(|incident| counts.fates[incident.fate as usize] += 1);
            fates.send(Said::Counts(counts));
            fates.send(Said::Incidents(incidents));
            chunks.advance_to(epoch + 1);
            fates.advance_to(epoch + 1);
            worker.step();
        }
    })
    .unwrap();
    Arc::try_unwrap(out).ok().unwrap().into_inner().unwrap()
}

fn chunk(given: &Given, peers: usize, symbols: &Symbols) -> Chunk<2, Metrics> {
    let texts = given.texts.each_ref().map(String::as_str);
    let stable = stable_key(texts.iter().map(|text| hash::stable(text.as_bytes())));
    let key = texts.map(|text| symbols.intern(text));
    Chunk {
        target: (share_of(stable) % peers) as u32,
        rollup: given.rollup,
        granularity: None,
        overflows: 0,
        form: Form::Here,
        sums: vec![Sum { key, bucket: given.minute, metrics: given.metrics }],
    }
}

/// Everything that a reader can be shown at an epoch, by view.
fn shown(views: &TestViews, epoch: Epoch) -> Vec<(String, Vec<String>)> {
    let mut shown = Vec::new();
    for view in views.catalog().views() {
        let mut lines = Vec::new();
        match view.kind {
            ViewKind::Table(_) => {
                let mut from = None;
                loop {
                    let filter = Filter::default();
                    let page = views.page(view.id, &filter, Some(epoch), from, 50).unwrap();
                    for row in page.rows.rows() {
                        let key = row.key.iter().map(|&symbol| views.symbols().text(symbol));
                        let key: Vec<_> = key.collect();
                        let (figures, version, state) = (row.values, row.version, row.state);
                        let start = row.start_us;
                        lines.push(format!("{start} {key:?} {figures:?} v{version} {state:?}"));
                    }
                    from = page.next;
                    if from.is_none() {
                        break;
                    }
                }
                lines.sort();
            }
            ViewKind::Events(fates) => {
                let page = views.incidents(fates, Some(epoch), None, 100).unwrap();
                lines.push(format!("{} in all", page.total));
                lines.extend(page.incidents.iter().map(|found| format!("{found:?}")));
            }
        }
        shown.push((view.name.clone(), lines));
    }
    shown
}

/// Puts images over a checkpoint, in order.
fn lay_over(store: &mut Sections, images: Images) {
    for image in images.shards {
        let shard = image.shard();
        let keys: BTreeSet<SectionKey> = image.keys().collect();
        image
            .write(|key, bytes| {
                store.insert(key, bytes.to_vec());
                Ok::<(), ()>(())
            })
            .unwrap();
        store.retain(|key, _| key.shard != shard || keys.contains(key));
    }
    store.extend(images.accumulators);
}

/// Marks for the epochs of a part of a run: the first image is whole, of the last epoch is one.
fn marks(random: &mut Random, steps: &[Step]) -> BTreeMap<Epoch, ImageKind> {
    let last = steps[steps.len() - 1].times.epoch;
    let mut kind = ImageKind::Whole;
    let mut marks = BTreeMap::new();
    for epoch in steps.iter().map(|step| step.times.epoch) {
        if epoch == last || random.below(4) == 0 {
            marks.insert(epoch, kind);
            kind = ImageKind::Increment;
        }
    }
    marks
}

fn goes_on(random: &mut Random, rows_max: u32, script: &[Step]) {
    let (reference, of) = new_views(1, rows_max);
    let begin = (0..1).map(|_| None).collect();
    run((Arc::clone(&reference), of), rows_max, begin, script, &BTreeMap::new());
    let expected: Vec<_> = (1..=EPOCHS).map(|epoch| shown(&reference, epoch)).collect();
    assert_eq!(reference.counts().unwrap().1.folded > 0, rows_max < 1_000);

    for _ in 0..3 {
        let mut cuts: BTreeSet<usize> = (0..3).map(|_| random.below(EPOCHS) as usize + 1).collect();
        cuts.insert(EPOCHS as usize);
        let (mut from, mut store) = (0, Sections::new());
        let mut path = format!("{rows_max} rows");
        for to in cuts {
            let peers = [1, 2, 4][random.below(3) as usize];
            path = format!("{path}, epochs {from}..{to} on {peers}");
            println!("{path}");
            let (views, symbols) = new_views(peers, rows_max);
            let steps = &script[from..to];
            let begin: Begin = if from == 0 {
                (0..peers).map(|_| None).collect()
            } else {
                // Other numbers for the same texts.
                for i in 0..random.below(50) {
                    symbols.intern(&format!("y{}", i * 7));
                }
                let mut loader = views.load(script[from - 1].times);
                std::mem::take(&mut store)
                    .values()
                    .for_each(|section| loader.take(section).unwrap());
                loader.finish().unwrap().into_iter().map(Some).collect()
            };
            let marks = marks(random, steps);
            let images = run((Arc::clone(&views), symbols), rows_max, begin, steps, &marks);
            assert_eq!(images.shards.len(), marks.len() * peers * STAGES, "{path}");
            lay_over(&mut store, images);
            for epoch in from.max(1)..=to {
                let found = shown(&views, epoch as Epoch);
                for (found, expected) in found.iter().zip(&expected[epoch - 1]) {
                    assert_eq!(found, expected, "{path}: at epoch {epoch}");
                }
            }
            for epoch in from as Epoch + 1..=to as Epoch {
                let hash = views.epoch_hash(epoch);
                assert!(hash.is_some(), "{path}: epoch {epoch}");
                assert_eq!(hash, reference.epoch_hash(epoch), "{path}: epoch {epoch}");
            }
            from = to;
            if to == EPOCHS as usize {
                assert_eq!(views.counts().unwrap().1, reference.counts().unwrap().1, "{path}");
                assert_eq!(views.row_counts().unwrap().1, reference.row_counts().unwrap().1);
            }
        }
    }
}

#[test]
fn a_run_that_is_resumed_shows_what_one_shows_that_never_stops() {
    let seed = std::env::var("TRUEUP_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20);
    println!("TRUEUP_SEED={seed}");
    let mut random = Random(seed);
    for rows_max in [1, 64, 192, 1_000_000] {
        let script = script(&mut random);
        goes_on(&mut random, rows_max, &script);
    }
}
