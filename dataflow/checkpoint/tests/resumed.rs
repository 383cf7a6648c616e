//! A job that is stopped at random epochs and goes on from its checkpoints, each time with another
//! number of workers, publishes in every epoch what one publishes that never stops; and what it
//! shows at the end is what the independent recomputation finds.

use super::{
    flaky::Flaky,
    recorded::{LATENESS, record, rollups},
    simulated::repeat,
};
use crate::{
    CheckpointSettings,
    checkpoint::{keeper::manifests, manifest::ManifestName, store::Objects},
    decided::Decided,
    engine::EngineSettings,
    epochs::{Cut, EpochSettings},
    flow::Job,
    run::{Home, Run},
    topology::AdJob,
    verify::{self, VerifySettings},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};
use trueup_generator::random::Random;
use trueup_log::Journal;
use trueup_operators::{
    log::{Log, Topic},
    symbols::Symbols,
    time::Epoch,
};
use trueup_sinks::{Tables, ViewSettings};

const EPOCHS: Epoch = 150;
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) type Hashes = BTreeMap<Epoch, Option<u64>>;

/// A job that goes through the epochs of a log, up to one of them.
pub(super) struct Session {
    pub(super) from: Epoch,
    passed_over: usize,
    pub(super) hashes: Hashes,
    pub(super) tables: Arc<dyn Tables>,
}

pub(crate) fn settings(workers: usize, upto: Epoch) -> EngineSettings {
    EngineSettings {
        workers,
        lateness: LATENESS,
        epochs: EpochSettings {
            epochs_in_flight_max: 5,
            cut: Cut::Replay { upto: Some(upto) },
            ..EngineSettings::default().epochs
        },
        // So little that nearly every verdict has to read its event back from the log.
        read_back_bytes_max: 64 << 10,
        checkpoint: CheckpointSettings {
            interval: Duration::from_millis(2),
            kept: 2,
            whole_every: 4,
        },
        partitioned_by_id: true,
    }
}

/// What runs a job on a recorded log, with views that keep everything.
pub(crate) fn home<J: Job<4>>(
    job: J,
    log: Arc<dyn Log>,
    store: Option<&Path>,
    engine: EngineSettings,
) -> Home<J, 4> {
    let mut views = ViewSettings::new(0, rollups(), LATENESS);
    (views.history_us_max, views.digests) = (i64::MAX, true);
    let decided = Decided::new(&LATENESS, &rollups());
    Home {
        partitions: log.partitions(Topic::Events),
        log,
        installation: "one".into(),
        symbols: Arc::new(Symbols::default()),
        job: Arc::new(job),
        engine,
        views,
        store: store.map(|store| (Arc::new(Objects::in_dir(store).unwrap()) as Arc<_>, decided)),
    }
}

pub(super) fn session(log: &Path, store: Option<&Path>, workers: usize, upto: Epoch) -> Session {
    let (journal, _) = Journal::open_read_only(log).unwrap();
    session_on(Arc::new(journal), store, workers, upto)
}

pub(super) fn session_on(
    log: Arc<dyn Log>,
    store: Option<&Path>,
    workers: usize,
    upto: Epoch,
) -> Session {
    let job = AdJob { rollups: rollups() };
    let home = home(job, log, store, settings(workers, upto));
    let Run { engine, tables, loaded, passed_over, .. } = home.alone().unwrap();
    engine.catch_up(PATIENCE).unwrap();
    let status = engine.checkpoints().map(|checkpoints| checkpoints.status());
    assert!(status.is_none_or(|status| status.failed == 0));
    engine.stop();
    let from = loaded.map_or(0, |loaded| loaded.epoch);
    let hashes = (from + 1..=upto).map(|epoch| (epoch, tables.epoch_hash(epoch))).collect();
    Session { from, passed_over, hashes, tables }
}

#[test]
fn what_is_published_does_not_depend_on_where_a_run_was_stopped() {
    let (mut random, seed) = repeat("what_is_published_does_not_depend_on_where_a_run_was_stopped");
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    record(&log, seed, EPOCHS);
    let whole = session(&log, None, 1, EPOCHS);
    assert!(whole.hashes.values().all(Option::is_some));

    let (mut resumed, mut fell_back) = (0, 0);
    for run in 0..6 {
        let store = dir.path().join(format!("store{run}"));
        let (mut upto, mut path) = (0, format!("TRUEUP_SEED={seed}, run {run}"));
        let mut broken = BTreeSet::new();
        while upto < EPOCHS {
            upto = (upto + 10 + random.below(50)).min(EPOCHS);
            let damaged = random.chance(0.3) && damage(&store, &mut random, &mut broken);
            // A run that took one alone leaves what was broken before right behind it.
            let passed_over =
                newest_first(&store).iter().take_while(|name| broken.contains(*name)).count();
            let workers = [1, 2, 4][random.below(3) as usize];
            let session = session(&log, Some(&store), workers, upto);
            path = format!("{path}; {workers} workers, {}..={upto}", session.from);
            assert_eq!(session.passed_over, passed_over, "{path}");
            resumed += u64::from(session.from > 0);
            fell_back += u64::from(damaged && session.from > 0);
            for (epoch, hash) in &session.hashes {
                assert_eq!(*hash, whole.hashes[epoch], "{path}: epoch {epoch}");
            }
            if upto == EPOCHS {
                let (journal, _) = Journal::open_read_only(&log).unwrap();
                compare(&journal, EPOCHS, &*session.tables, &path);
            }
        }
    }
    assert!(resumed > 6 && fell_back > 0, "{resumed} resumed, {fell_back} fell back");
}

/// Breaks the newest checkpoint; whether there was one that was not broken before.
fn damage(store: &Path, random: &mut Random, broken: &mut BTreeSet<ManifestName>) -> bool {
    let newest = newest_first(store).first().copied();
    let Some(newest) = newest.filter(|&newest| broken.insert(newest)) else { return false };
    let path = store.join(newest.to_string());
    let mut bytes = std::fs::read(&path).unwrap();
    let at = random.below(bytes.len() as u64) as usize;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    true
}

fn newest_first(store: &Path) -> Vec<ManifestName> {
    let objects = Objects::open_existing(store, "").unwrap();
    objects.map_or_else(Vec::new, |objects| manifests(&objects).unwrap())
}

/// That what is shown after so many epochs is what the independent recomputation finds.
pub(super) fn compare(log: &dyn Log, epochs: Epoch, tables: &dyn Tables, path: &str) {
    let settings = VerifySettings { lateness: LATENESS, rollups: rollups() };
    let recomputed = verify::recompute(log, &settings, Some(epochs)).unwrap();
    let served = verify::served(tables, None).unwrap();
    let filter = verify::Filter { kept_from_us: served.kept_from_us, ..Default::default() };
    let mut comparison = verify::compare(&recomputed, &served.views, &filter);
    verify::compare_counts(&recomputed, &tables.counts().unwrap().1, &mut comparison);
    let events = verify::served_events(tables, None).unwrap();
    verify::compare_events(&recomputed, &events, &mut comparison);
    assert!(comparison.is_equal(), "{path}\n{comparison}");
}

#[test]
fn who_is_alone_asks_a_store_again_and_then_says_what_it_did_not_give() {
    let seed = repeat("who_is_alone_asks_a_store_again_and_then_says_what_it_did_not_give").1;
    let dir = tempfile::tempdir().unwrap();
    let (log, store) = (dir.path().join("log"), dir.path().join("store"));
    record(&log, seed, 40);
    session(&log, Some(&store), 1, 30);
    let newest = newest_first(&store)[0];
    let flaky = |failing| {
        let (journal, _) = Journal::open_read_only(&log).unwrap();
        let (job, log) = (AdJob { rollups: rollups() }, Arc::new(journal));
        let mut home = home(job, log, Some(&store), settings(1, 40));
        let (store, decided) = home.store.take().unwrap();
        home.store = Some((Flaky::new(store, 0, failing) as Arc<_>, decided));
        home
    };
    let error = flaky(u64::MAX).alone_patiently(Duration::ZERO).err().unwrap().to_string();
    assert!(error.contains("packs/") && error.contains("503"), "{error}");
    let run = flaky(2).alone_patiently(PATIENCE).unwrap();
    run.engine.stop();
    assert_eq!((run.passed_over, run.loaded.unwrap().epoch), (0, newest.epoch));
}
