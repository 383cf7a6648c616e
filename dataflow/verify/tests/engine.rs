//! The engine against the recomputation, on chaos: a real log and real workers, log times from a
//! clock that the test moves by seconds and minutes, so that everything happens often: copies,
//! conflicts, late and too late events, verdicts of all kinds, forgetting, finality, full tables.
//!
//! A failing case is repeated with `TRUEUP_SEED`, which the test prints.

use super::*;
use crate::{
    engine::{Engine, EngineSettings},
    epochs::EpochSettings,
    topology::AdJob,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use trueup_generator::{
    chaos::{Chaos, ChaosSettings},
    frames::Layout,
    random::Random,
};
use trueup_log::{Fsync, Journal, Settings};
use trueup_operators::{log::append_and_wait, metrics::Metrics, symbols::Symbols};
use trueup_sinks::{Tables, ViewSettings};

const PATIENCE: Duration = Duration::from_secs(60);

/// An engine on a log in a directory, and the clock of the log.
struct Running {
    engine: Engine,
    tables: Arc<dyn Tables>,
    journal: Arc<Journal>,
    clock_us: Arc<AtomicI64>,
    settings: VerifySettings,
    _dir: tempfile::TempDir,
}

impl Running {
    fn start(workers: usize, settings: VerifySettings) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let clock_us = Arc::new(AtomicI64::new(minute_0()));
        let read = Arc::clone(&clock_us);
        let log = Settings { partitions: 5, fsync: Fsync::Never, ..Settings::default() };
        let clock = Arc::new(move || LogTime(read.load(Ordering::SeqCst)));
        let journal = Arc::new(Journal::open(dir.path(), log, clock).unwrap().0);
        let symbols = Arc::new(Symbols::default());
        let mut kept = ViewSettings::new(2 * workers, settings.rollups.clone(), settings.lateness);
        kept.history_us_max = i64::MAX;
        let views: Arc<trueup_sinks::Views<4, Metrics>> =
            trueup_sinks::Views::new(kept, Arc::clone(&symbols));
        let announced = Arc::clone(&views);
        let engine = EngineSettings {
            workers,
            lateness: settings.lateness,
            epochs: EpochSettings {
                tick: Duration::from_millis(2),
                epoch_bytes_max: 16 << 20,
                epochs_in_flight_max: 4,
                cut: crate::epochs::Cut::Live,
            },
            read_back_bytes_max: 1 << 20,
            checkpoint: crate::CheckpointSettings::OFF,
            partitioned_by_id: true,
        };
        let engine = Engine::start(
            AdJob { rollups: settings.rollups.clone() },
            Arc::clone(&journal) as Arc<dyn Log>,
            symbols,
            engine,
            |worker| [0, 1].map(|stage| Box::new(views.shard(worker * 2 + stage)) as Box<_>),
            move |times| announced.announce(times),
        )
        .unwrap();
        Running { engine, tables: views, journal, clock_us, settings, _dir: dir }
    }

    fn compare(&self, context: &str) {
        self.engine.settle(PATIENCE).unwrap();
        let served = served(&*self.tables, None).unwrap();
        let recomputed = recompute(&*self.journal, &self.settings, Some(served.epoch)).unwrap();
        let kept_from_us = served.kept_from_us;
        let filter = Filter { kept_from_us, ..Filter::default() };
        let mut comparison = compare(&recomputed, &served.views, &filter);
        let (at, counts) = self.tables.counts().unwrap();
        if at.epoch == served.epoch {
            compare_counts(&recomputed, &counts, &mut comparison);
        }
        let events = served_events(&*self.tables, Some(served.epoch)).unwrap();
        for of in &events {
            assert_eq!(of.total, of.events.len() as u64, "all are kept: {}", of.fate.code());
        }
        compare_events(&recomputed, &events, &mut comparison);
        assert!(comparison.is_equal(), "{context}\n{comparison}");
    }
}

/// Moves some events to where no collector lets one be, and where a log that others write to may
/// hold them.
fn astray(events: &mut [Event], now_us: i64, skew_us_max: i64, random: &mut Random) {
    let around_us = MINUTE_US << 32;
    let times = [now_us + skew_us_max + 1, now_us + around_us, i64::MAX];
    let past = [-1, now_us - around_us, i64::MIN];
    for event in events {
        if random.chance(0.03) {
            event.occurred_at_us = [times, past].concat()[random.below(6) as usize];
        }
    }
}

fn chaos_against(workers: usize, seed: u64, rounds: u64) -> Counts {
    let mut settings = settings();
    settings.lateness.correction_horizon_us = 4 * MINUTE_US;
    settings.lateness.future_skew_us_max = MINUTE_US;
    settings.rollups.push(RollupSpec {
        rows_max: 64,
        ..RollupSpec::new("few", &["campaignId", "adId", "country", "placementId"])
    });
    let running = Running::start(workers, settings.clone());
    let (mut random, mut stray) = (Random::new(seed, 1), Random::new(seed, 2));
    let mut chaos = Chaos::new(
        seed,
        ChaosSettings {
            ids: 400,
            campaigns: 12,
            correction_horizon_us: settings.lateness.correction_horizon_us,
            future_skew_us_max: settings.lateness.future_skew_us_max,
            born_invalid: true,
        },
    );
    let layout = Layout { partitions: 5, key: running.journal.identity().hash_key };
    for round in 0..rounds {
        let now_us = running.clock_us.load(Ordering::SeqCst);
        let mut events = chaos.events(random.below(60) as usize, now_us);
        astray(&mut events, now_us, settings.lateness.future_skew_us_max, &mut stray);
        let mut frames = layout.frames(&events, now_us);
        if random.chance(0.6) {
            let verdicts = chaos.verdicts(1 + random.below(20) as usize, now_us);
            frames.push(layout.verdict_frame(&verdicts));
        }
        append_and_wait(&*running.journal, frames).unwrap();
        if random.chance(0.2) {
            running.compare(&format!("TRUEUP_SEED={seed}, {workers} workers, round {round}"));
        }
        let step_us = match random.below(8) {
            0..4 => random.between(0, SECOND_US),
            4..7 => random.between(0, 20 * SECOND_US),
            _ => random.between(0, 2 * MINUTE_US),
        };
        running.clock_us.fetch_add(step_us, Ordering::SeqCst);
    }
    running.compare(&format!("TRUEUP_SEED={seed}, {workers} workers, at the end"));
    running.tables.counts().unwrap().1
}

#[test]
fn the_engine_agrees_on_chaos_with_any_number_of_workers() {
    let given = std::env::var("TRUEUP_SEED").ok().and_then(|text| text.parse().ok());
    let seeds = given.map_or(vec![1, 2, 3], |seed: u64| vec![seed]);
    for (workers, seed) in [1, 2, 4].into_iter().flat_map(|w| seeds.iter().map(move |s| (w, *s))) {
        println!("TRUEUP_SEED={seed}, {workers} workers");
        let counts = chaos_against(workers, seed, 80);
        // Whatever is compared has happened.
        assert!(counts.fates.iter().all(|&fate| fate > 0), "{counts:?}");
        let others = [counts.late, counts.retractions, counts.verdicts_too_late, counts.folded];
        assert!(others.iter().all(|&count| count > 0), "{counts:?}");
        assert_eq!(counts.arithmetic_errors, 0);
    }
}
