//! A checkpoint that several processes wrote, as any number of processes begin with it: each has
//! the ledgers of its own workers and all views, with rows under the same numbers whatever symbols
//! it has; and what begins in several places goes on as if nothing had stopped.

use super::{
    of as of_no_job,
    recorded::{LATENESS, record, rollups},
    resumed::{Hashes, PATIENCE, session, settings},
    simulated::repeat,
};
use crate::{
    checkpoint::{
        keeper::{
            CheckpointError, Keeper, Packed, Sections, manifests, newest_generation, read_manifest,
        },
        manifest::{Manifest, ManifestName, Of, Part, Taken},
        pack::{Key, Place as Section},
        pieces::Whose,
        start::{self, Begin, Following, Leading, LoadError, Place},
        store::{Objects, Store},
    },
    decided::Decided,
    engine::{Beginning, EngineSettings, StartError},
    seat::Seat,
    topology::AdJob,
};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};
use trueup_log::Journal;
use trueup_operators::{
    hash,
    log::{Log, Topic},
    metrics::Metrics,
    section::SectionKey,
    symbols::Symbols,
    time::Epoch,
};
use trueup_sinks::{Filter, Tables, ViewKind, ViewSettings, Views};

/// The workers that the state comes from.
const WORKERS: usize = 4;
/// Where it ends, and where the log does.
const UPTO: Epoch = 60;
pub(super) const EPOCHS: Epoch = 90;

type AdViews = Arc<Views<4, Metrics>>;

/// A log, and checkpoints of it.
pub(super) struct Recorded {
    _dir: tempfile::TempDir,
    log: PathBuf,
    store: PathBuf,
    /// What each epoch publishes.
    hashes: Hashes,
}

impl Recorded {
    /// A run of [`WORKERS`] has taken checkpoints up to [`UPTO`].
    pub(super) fn new(test: &str) -> Recorded {
        let seed = repeat(test).1;
        let dir = tempfile::tempdir().unwrap();
        let (log, store) = (dir.path().join("log"), dir.path().join("store"));
        record(&log, seed, EPOCHS);
        let hashes = session(&log, None, 1, EPOCHS).hashes;
        session(&log, Some(&store), WORKERS, UPTO);
        let recorded = Recorded { _dir: dir, log, store, hashes };
        assert!(!manifests(&*recorded.objects()).unwrap().is_empty(), "no checkpoint was taken");
        recorded
    }

    pub(super) fn objects(&self) -> Arc<Objects> {
        Arc::new(Objects::in_dir(&self.store).unwrap())
    }

    fn open_log(&self) -> Arc<dyn Log> {
        Arc::new(Journal::open_read_only(&self.log).unwrap().0)
    }

    pub(super) fn next_generation(&self) -> u64 {
        newest_generation(&*self.objects()).unwrap() + 1
    }

    /// The newest checkpoint once more, as so many processes write it.
    pub(super) fn split(&self, processes: usize) -> ManifestName {
        let (store, generation) = (self.objects(), self.next_generation());
        let newest = manifests(&*store).unwrap()[0];
        let whole = read_manifest(&*store, newest).unwrap();
        let threads = WORKERS / processes;
        let partitions = self.open_log().partitions(Topic::Events);
        let writer = |key: &[u8]| match Whose::of(key).unwrap() {
            Whose::Rows => {
                let (key, _) = SectionKey::open(&key[1..]).unwrap();
                usize::from(key.shard.worker) / threads
            }
            Whose::Vnode => {
                let partition = hash::partition_of_vnode(usize::from(key[1]), partitions);
                usize::from(partition) % WORKERS / threads
            }
            Whose::Impressions => 0,
        };
        let of = of(settings(threads, UPTO));
        let keep = of.engine.checkpoint.keep();
        let shared = || Arc::clone(&store) as Arc<_>;
        let mut leader = Keeper::claim_as(shared(), keep, of.clone(), generation).unwrap();
        let seal = |keeper: &Keeper| {
            copy(&*store, &whole, keeper, |key| writer(key) == keeper.writer() as usize)
        };
        let member = |writer: u32| {
            let keeper = Keeper::join(shared(), keep, of.clone(), generation, writer);
            seal(&keeper).part(writer)
        };
        let members: Vec<Part> = (1..processes as u32).map(member).collect();
        let own = seal(&leader);
        let at = whole.at().unwrap();
        let published = leader.publish_all(own, &members, &at, Taken::default()).unwrap();
        let Manifest { parts, sections, workers, .. } = published.manifest;
        assert_eq!((parts.len(), sections, workers), (processes, whole.sections, WORKERS));
        ManifestName { generation, epoch: whole.epoch }
    }

    /// The newest checkpoint once more, as a replay offers it; which replay's it is.
    pub(super) fn offer(&self) -> String {
        let store = self.objects();
        let whole = read_manifest(&*store, manifests(&*store).unwrap()[0]).unwrap();
        let of = of(settings(WORKERS, UPTO));
        let keep = of.engine.checkpoint.keep();
        let keeper = Keeper::offering(Arc::clone(&store) as Arc<_>, keep, of).unwrap();
        let packed = copy(&*store, &whole, &keeper, |_| true);
        keeper.offer(&packed, &whole.at().unwrap(), Taken::default()).unwrap().1.id()
    }

    /// Flips a bit of the first section of a checkpoint's last part that is one of these.
    fn break_a_section(&self, name: ManifestName, is_one: impl Fn(&[u8], u16) -> bool) {
        let (store, partitions) = (self.objects(), self.open_log().partitions(Topic::Events));
        let manifest = read_manifest(&*store, name).unwrap();
        let index = manifest.parts.last().unwrap().index(&*store).unwrap();
        let mut sections = index.sections.iter();
        let found = |(key, place): &(&Key, &Section)| place.bytes > 0 && is_one(key, partitions);
        let (_, place) = sections.find(found).unwrap();
        let pack = self.store.join(&index.packs[usize::from(place.pack)].name);
        let mut bytes = std::fs::read(&pack).unwrap();
        bytes[place.at as usize] ^= 1;
        std::fs::write(&pack, bytes).unwrap();
    }

    /// What a process begins with, and what it shows; the first one leads.
    fn begin(
        &self,
        generation: u64,
        place: Place,
        symbols: &Arc<Symbols>,
        chosen: &mut Option<ManifestName>,
    ) -> (Begin<4, Metrics>, AdViews) {
        let log = self.open_log();
        let views = views(place, symbols);
        let of = of(settings(place.threads, EPOCHS));
        let begin = match place.process {
            0 => {
                let leading = Leading {
                    generation: Some(generation),
                    place,
                    broken: Vec::new(),
                    say: Box::new(|_| {}),
                };
                let led = start::lead(self.objects(), &*log, of, &views, leading).unwrap();
                *chosen = led.1;
                led.0
            }
            _ => {
                let say = Box::new(|_| {});
                let following = Following { generation, place, chosen: *chosen, say };
                start::follow(self.objects(), &*log, of, &views, following).unwrap()
            }
        };
        begin.checkpoints.as_ref().unwrap().stop();
        assert_eq!(begin.workers.len(), place.threads);
        (begin, views)
    }
}

/// Writes those sections of a checkpoint that are these.
fn copy(
    store: &dyn Store,
    of: &Manifest,
    keeper: &Keeper,
    is_one: impl Fn(&[u8]) -> bool,
) -> Packed {
    let mut taking = keeper.begin(of.epoch, true).unwrap();
    for index in &Sections::open(store, of).unwrap().indexes {
        for (key, place) in index.sections.iter().filter(|(key, _)| is_one(key)) {
            let section = index.section(store, key, place).unwrap();
            taking.pack.section(key, &section).unwrap();
        }
    }
    keeper.seal(taking, |_| false).unwrap()
}

pub(super) fn of(engine: EngineSettings) -> Of {
    Of {
        installation: "one".into(),
        decided: Decided::new(&LATENESS, &rollups()),
        rollups: rollups(),
        engine,
    }
}

fn views(place: Place, symbols: &Arc<Symbols>) -> AdViews {
    let workers = 2 * place.processes * place.threads;
    let mut kept = ViewSettings::new(workers, rollups(), LATENESS);
    (kept.history_us_max, kept.digests) = (i64::MAX, true);
    Views::new(kept, Arc::clone(symbols))
}

/// Symbols of which a process has so many that no other has.
fn other_symbols(process: usize) -> Arc<Symbols> {
    let symbols = Symbols::default();
    (0..process * 7).for_each(|number| {
        symbols.intern(&format!("only process {process} knows {number}"));
    });
    Arc::new(symbols)
}

type Row = (i64, Vec<String>, Vec<i64>, u64);

/// All rows of all views in the order of their places: by shard, bucket and number.
fn rows(tables: &dyn Tables) -> BTreeMap<String, Vec<Row>> {
    let mut all = BTreeMap::new();
    for view in tables.catalog().views() {
        if !matches!(view.kind, ViewKind::Table { .. }) {
            continue;
        }
        let (mut rows, mut from) = (Vec::new(), None);
        loop {
            let page = tables.page(view.id, &Filter::default(), None, from, 100).unwrap();
            rows.extend(page.rows.rows().map(|row| {
                let text = |&symbol: &_| tables.symbols().text(symbol).to_string();
                let texts = row.key.iter().map(text).collect();
                (row.start_us, texts, row.values.to_vec(), row.version)
            }));
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        all.insert(view.name.clone(), rows);
    }
    all
}

fn sorted(mut rows: BTreeMap<String, Vec<Row>>) -> BTreeMap<String, Vec<Row>> {
    rows.values_mut().for_each(|rows| rows.sort());
    rows
}

const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 2), (2, 1), (3, 1), (2, 2), (1, 4)];

fn places((processes, threads): (usize, usize)) -> impl Iterator<Item = Place> {
    (0..processes).map(move |process| Place { process, processes, threads })
}

#[test]
fn rows_have_the_same_numbers_in_every_process() {
    let recorded = Recorded::new("rows_have_the_same_numbers_in_every_process");
    let (mut whole, mut events) = (None, None);
    for parts in [1, 2, 4] {
        let name = recorded.split(parts);
        for shape in SHAPES {
            let (generation, mut chosen) = (recorded.next_generation(), None);
            let (mut first, mut remembered) = (None, 0);
            for place in places(shape) {
                let symbols = other_symbols(place.process + parts);
                let (begin, views) = recorded.begin(generation, place, &symbols, &mut chosen);
                assert_eq!(chosen, Some(name));
                assert_eq!(begin.from.row.epoch, name.epoch);
                let ledgers = begin.workers.iter().flatten().map(|worker| worker.ledger.len());
                remembered += ledgers.sum::<usize>();
                let rows = rows(&*views);
                let (texts, counts) = (rows.values().map(Vec::len).sum::<usize>(), views.counts());
                assert!(texts > 100, "{texts} rows");
                let counts = counts.unwrap().1;
                let first = first.get_or_insert_with(|| (rows.clone(), counts));
                assert_eq!((&rows, &counts), (&first.0, &first.1), "{parts} parts, {place:?}");
            }
            let sorted = sorted(first.unwrap().0);
            assert!(*whole.get_or_insert_with(|| sorted.clone()) == sorted, "{parts}, {shape:?}");
            assert_eq!(*events.get_or_insert(remembered), remembered, "{parts}, {shape:?}");
        }
    }
}

/// The workers of all processes, brought together, go on with the views of each of them.
#[test]
fn what_begins_in_several_places_goes_on_as_if_nothing_had_stopped() {
    let recorded = Recorded::new("what_begins_in_several_places_goes_on_as_if_nothing_had_stopped");
    for (run, shape) in SHAPES.into_iter().enumerate() {
        let from = recorded.split([2, 4][run % 2]).epoch;
        let (generation, mut chosen) = (recorded.next_generation(), None);
        let symbols = Arc::new(Symbols::default());
        let (mut begin, mut shown) = (None, Vec::new());
        for place in places(shape) {
            let (begun, views) = recorded.begin(generation, place, &symbols, &mut chosen);
            shown.push(views);
            match &mut begin {
                None => begin = Some(Begin { checkpoints: None, ..begun }),
                Some(begin) => begin.workers.extend(begun.workers),
            }
        }
        let (begin, views) = (begin.unwrap(), shown.swap_remove(run % shape.0));
        let hashes = go_on(&recorded, begin, &symbols, &views);
        assert_eq!(hashes.len() as u64, EPOCHS - from);
        for (epoch, hash) in hashes {
            assert_eq!(hash, recorded.hashes[&epoch], "{shape:?}: epoch {epoch}");
        }
    }
}

fn go_on(
    recorded: &Recorded,
    begin: Begin<4, Metrics>,
    symbols: &Arc<Symbols>,
    views: &AdViews,
) -> Hashes {
    let from = begin.from.row.epoch;
    let settings = settings(begin.workers.len(), EPOCHS);
    let announced = Arc::clone(views);
    let sink = |place: usize| Box::new(views.shard(place)) as Box<_>;
    let (log, symbols) = (recorded.open_log(), Arc::clone(symbols));
    let seat = Seat::alone(settings.workers);
    let beginning = Beginning { begin, log, symbols, seat, led: None };
    let engine = beginning
        .start(
            Arc::new(AdJob { rollups: rollups() }),
            settings,
            |worker| [0, 1].map(|stage| sink(worker * 2 + stage)),
            move |times| announced.announce(times),
        )
        .unwrap();
    engine.catch_up(PATIENCE).unwrap();
    engine.stop();
    (from + 1..=EPOCHS).map(|epoch| (epoch, views.epoch_hash(epoch))).collect()
}

fn leads(
    recorded: &Recorded,
    of: Of,
    generation: u64,
    broken: Vec<ManifestName>,
) -> Result<(Begin<4, Metrics>, Option<ManifestName>), StartError> {
    leads_from(recorded.objects(), recorded, of, generation, broken)
}

pub(super) fn leads_from(
    store: Arc<dyn Store>,
    recorded: &Recorded,
    of: Of,
    generation: u64,
    broken: Vec<ManifestName>,
) -> Result<(Begin<4, Metrics>, Option<ManifestName>), StartError> {
    let place = Place { process: 0, processes: 2, threads: 1 };
    let views = views(place, &Arc::default());
    let leading = Leading { generation: Some(generation), place, broken, say: Box::new(|_| {}) };
    start::lead(store, &*recorded.open_log(), of, &views, leading)
}

fn follows(
    recorded: &Recorded,
    of: Of,
    chosen: Option<ManifestName>,
) -> Result<Begin<4, Metrics>, StartError> {
    follows_from(recorded.objects(), recorded, of, chosen)
}

pub(super) fn follows_from(
    store: Arc<dyn Store>,
    recorded: &Recorded,
    of: Of,
    chosen: Option<ManifestName>,
) -> Result<Begin<4, Metrics>, StartError> {
    let place = Place { process: 1, processes: 2, threads: 1 };
    let views = views(place, &Arc::default());
    let following = Following { generation: 99, place, chosen, say: Box::new(|_| {}) };
    start::follow(store, &*recorded.open_log(), of, &views, following)
}

#[test]
fn all_begin_with_what_every_one_of_them_can_load() {
    let recorded = Recorded::new("all_begin_with_what_every_one_of_them_can_load");
    let older = manifests(&*recorded.objects()).unwrap()[0];
    let newer = recorded.split(2);
    let own = || of(settings(1, EPOCHS));
    let generation = recorded.next_generation();

    let (begin, chosen) = leads(&recorded, own(), generation, vec![newer]).unwrap();
    begin.checkpoints.unwrap().stop();
    assert_eq!((chosen, begin.from.row.epoch), (Some(older), older.epoch));
    assert_eq!(begin.broken, [newer]);
    let error = leads(&recorded, own(), generation, Vec::new()).err().unwrap();
    let fenced = matches!(error, StartError::Checkpoint(CheckpointError::Fenced { .. }));
    assert!(fenced, "{error}");

    // Something breaks that only the member reads: the leader does not notice. The member takes
    // nothing but what was chosen: neither an older one, nor a newer one.
    recorded.break_a_section(newer, |key, partitions| {
        let vnode = Whose::of(key) == Some(Whose::Vnode);
        vnode && hash::partition_of_vnode(usize::from(key[1]), partitions) % 2 == 1
    });
    let (begin, chosen) = leads(&recorded, own(), generation + 1, Vec::new()).unwrap();
    begin.checkpoints.unwrap().stop();
    assert_eq!(chosen, Some(newer));
    let error = follows(&recorded, own(), chosen).err().unwrap();
    let chosen = matches!(&error, StartError::Load(LoadError::Chosen { name, .. })
        if *name == newer.to_string());
    assert!(chosen && error.to_string().contains("checksum"), "{error}");
    let begin = follows(&recorded, own(), Some(older)).unwrap();
    begin.checkpoints.unwrap().stop();
    assert_eq!(begin.from.row.epoch, older.epoch);
    let begin = follows(&recorded, own(), None).unwrap();
    begin.checkpoints.unwrap().stop();
    assert_eq!((begin.from.row.epoch, begin.workers.len()), (0, 1));
    assert!(begin.workers[0].is_none() && begin.loaded.is_none());

    // What all read, the leader notices by itself.
    recorded.break_a_section(newer, |key, _| Whose::of(key) == Some(Whose::Rows));
    let (begin, chosen) = leads(&recorded, own(), generation + 2, Vec::new()).unwrap();
    begin.checkpoints.unwrap().stop();
    assert_eq!((chosen, begin.broken), (Some(older), vec![newer]));

    let foreign = Of { installation: of_no_job().installation, ..own() };
    let error = follows(&recorded, foreign.clone(), Some(older)).err().unwrap();
    assert!(matches!(error, StartError::Load(LoadError::Foreign { .. })), "{error}");
    let error = leads(&recorded, foreign, generation + 3, Vec::new()).err().unwrap();
    assert!(matches!(error, StartError::Load(LoadError::Foreign { .. })), "{error}");
    let gone = ManifestName { generation: 1, epoch: 1 << 40 };
    let error = follows(&recorded, own(), Some(gone)).err().unwrap();
    assert!(error.to_string().contains("is missing"), "{error}");
}
