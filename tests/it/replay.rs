//! P4, definite: what a view holds at an epoch follows from the log and from nothing else. A log of
//! hours of contradictions is made with a clock of its own, which also jumps back; one copy of it
//! is run by one worker, one by two, one by four, and every epoch must have published the same.
//! What the last one serves must be what `verify` finds, which shares no code with the engine.
//!
//! The log's remap rows are written here and not by an engine, so that log time can pass horizons,
//! expire ids and finalise buckets in a second of real time.

use crate::{seed::seed, server::copy_dir};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};
use trueup::{
    EngineSettings, EpochSettings, Host, Lateness, RollupSpec,
    topology::AdJob,
    verify::{self, Recomputed, RowFigures, VerifySettings, Views},
};
use trueup_generator::{
    chaos::{Chaos, ChaosSettings},
    frames::Layout,
    random::Random,
};
use trueup_log::{Fsync, Journal, Settings, system_clock};
use trueup_operators::{
    log::{Append, Log, Topic, append_and_wait},
    remap::{REMAP_VERSION, RemapRow, Upto, Writer},
    time::{HOUR_US, LogTime, MINUTE_US, SECOND_US},
};
use trueup_sinks::ViewSettings;

const EPOCHS: u64 = 250;
const LATENESS: Lateness = Lateness {
    allowed_lateness_us: 2 * MINUTE_US,
    correction_horizon_us: 10 * MINUTE_US,
    future_skew_us_max: 5 * MINUTE_US,
};

/// A log whose time is told by a test.
struct Recording {
    journal: Journal,
    now_us: Arc<AtomicI64>,
    last: RemapRow,
}

impl Recording {
    fn new(dir: &Path, start_us: i64) -> Recording {
        let now_us = Arc::new(AtomicI64::new(start_us));
        let clock = Arc::clone(&now_us);
        let clock = Arc::new(move || LogTime(clock.load(Ordering::Relaxed)));
        let (journal, _) = Journal::open(dir, settings(), clock).unwrap();
        let partitions = |topic| journal.partitions(topic);
        let last = RemapRow::origin(
            partitions(Topic::Events),
            partitions(Topic::Verdicts),
            partitions(Topic::Metadata),
        );
        Recording { journal, now_us, last }
    }

    fn layout(&self) -> Layout {
        let partitions = self.journal.partitions(Topic::Events);
        Layout { partitions, key: self.journal.identity().hash_key }
    }

    /// The clock goes on by so much, or back.
    fn pass(&self, us: i64) -> i64 {
        self.now_us.fetch_add(us, Ordering::Relaxed) + us
    }

    fn append(&self, frames: Vec<Append>) {
        append_and_wait(&self.journal, frames).unwrap();
    }

    /// Closes an epoch at the ends that are durable now.
    fn close_epoch(&mut self) {
        let ends = |topic, before: &[Upto]| -> Vec<Upto> {
            let ends = self.journal.ends(topic);
            let row = ends.iter().zip(before).map(|(end, before)| Upto {
                offset: end.offset,
                log_time: end.complete_to.max(before.log_time),
            });
            row.collect()
        };
        let row = RemapRow {
            epoch: self.last.epoch + 1,
            writer: Writer::default(),
            begins: false,
            events: ends(Topic::Events, &self.last.events),
            verdicts: ends(Topic::Verdicts, &self.last.verdicts),
            metadata: ends(Topic::Metadata, &self.last.metadata),
        };
        self.append(vec![Append {
            topic: Topic::Remap,
            partition: 0,
            schema_version: REMAP_VERSION,
            records: 1,
            payload: row.encode().into(),
        }]);
        self.last = row;
    }
}

fn settings() -> Settings {
    Settings { segment_bytes_max: 1 << 20, fsync: Fsync::Never, ..Settings::default() }
}

fn rollups() -> Vec<RollupSpec> {
    let mut rollups = RollupSpec::ad_defaults();
    // Small enough that buckets fill up and new keys fold into `(other)`.
    rollups[1].rows_max = 20;
    rollups
}

/// Hours of contradictions. Returns the number of epochs.
fn record(dir: &Path, seed: u64) -> u64 {
    let real_us = system_clock()().0;
    let mut log = Recording::new(dir, real_us - 48 * HOUR_US);
    let mut random = Random::new(seed, 1);
    let chaos = ChaosSettings {
        correction_horizon_us: LATENESS.correction_horizon_us,
        future_skew_us_max: LATENESS.future_skew_us_max,
        ..ChaosSettings::default()
    };
    let (mut chaos, layout) = (Chaos::new(seed, chaos), log.layout());
    for _ in 0..EPOCHS {
        for _ in 0..random.below(4) {
            let step_us = match random.below(20) {
                // A clock that jumps back, as after a correction by NTP.
                0 => -random.between(0, 2 * MINUTE_US),
                // Long enough for ids to be forgotten.
                1 => random.between(0, 20 * MINUTE_US),
                _ => random.between(0, 20 * SECOND_US),
            };
            let now_us = log.pass(step_us);
            let (events, verdicts) = (random.below(60) as usize, random.below(25) as usize);
            if random.chance(0.9) && events > 0 {
                log.append(layout.frames(&chaos.events(events, now_us), now_us));
            }
            if random.chance(0.7) && verdicts > 0 {
                log.append(vec![layout.verdict_frame(&chaos.verdicts(verdicts, now_us))]);
            }
        }
        log.close_epoch();
    }
    log.last.epoch
}

fn run(dir: &Path, workers: usize, partitioned_by_id: bool) -> Host {
    let engine = EngineSettings {
        workers,
        lateness: LATENESS,
        epochs: EpochSettings { epochs_in_flight_max: 7, ..EngineSettings::default().epochs },
        // So little that nearly every verdict has to read its event back from the log.
        read_back_bytes_max: 64 << 10,
        checkpoint: trueup::CheckpointSettings::OFF,
        partitioned_by_id,
    };
    let mut views = ViewSettings::new(workers, rollups(), LATENESS);
    views.digests = true;
    Host::open_with(dir, AdJob { rollups: rollups() }, settings(), engine, views).unwrap()
}

/// Every row of every view, and the epoch that all of them are of.
fn served(host: &Host) -> (u64, Views) {
    loop {
        let epoch = host.tables().visible().unwrap().epoch;
        let mut views = Views::new();
        for rollup in rollups() {
            for &granularity in &rollup.granularities {
                let name = rollup.view_name(granularity);
                let rows = host.rows(&name).unwrap().into_iter().map(|row| {
                    let figures: [i64; 6] = row.figures.as_slice().try_into().unwrap();
                    let version = u32::try_from(row.version).unwrap();
                    let figures = RowFigures { figures, version, state: row.state };
                    ((row.bucket.0, row.dimensions), figures)
                });
                views.insert(name, rows.collect());
            }
        }
        // An idle log closes an epoch a second; then once more.
        if host.tables().visible().unwrap().epoch == epoch {
            return (epoch, views);
        }
    }
}

fn recompute(dir: &Path, epoch: u64) -> Recomputed {
    let (journal, _) = Journal::open_read_only(dir).unwrap();
    let settings = VerifySettings { lateness: LATENESS, rollups: rollups() };
    verify::recompute(&journal, &settings, Some(epoch)).unwrap()
}

#[test]
fn one_two_and_four_workers_publish_the_same_in_every_epoch() {
    let seed = seed("one_two_and_four_workers_publish_the_same_in_every_epoch");
    let dir = tempfile::tempdir().unwrap();
    let recorded = dir.path().join("recorded");
    let last = record(&recorded, seed);

    let mut hashes: BTreeMap<String, Vec<Option<u64>>> = BTreeMap::new();
    // And the same when events are exchanged by their ids, as if the partitions said nothing.
    for (workers, partitioned) in [(1, true), (2, true), (4, true), (1, false), (3, false)] {
        let exchanged = if partitioned { "" } else { ", events exchanged by id" };
        let run_as = format!("{workers} workers{exchanged}");
        let copy = dir.path().join(format!("{workers}-{partitioned}"));
        copy_dir(&recorded, &copy);
        let host = run(&copy, workers, partitioned);
        host.settle().unwrap();
        let of = (1..=last).map(|epoch| host.tables().epoch_hash(epoch)).collect();
        hashes.insert(run_as.clone(), of);
        let (epoch, views) = served(&host);
        let (_, counts) = host.tables().counts().unwrap();
        host.close();

        let recomputed = recompute(&copy, epoch);
        let mut comparison = verify::compare(&recomputed, &views, &verify::Filter::default());
        verify::compare_counts(&recomputed, &counts, &mut comparison);
        assert!(comparison.is_equal(), "{run_as}: {comparison}");
        assert!(counts.fates.iter().all(|&events| events > 0), "a fate is missing: {counts:?}");
        assert!(counts.retractions > 0 && counts.folded > 0 && counts.late > 0, "{counts:?}");
        assert_eq!(counts.arithmetic_errors, 0);
    }
    let alone = &hashes["1 workers"];
    for (run_as, hashes_of) in &hashes {
        for (epoch, (one, many)) in (1..).zip(alone.iter().zip(hashes_of)) {
            assert!(one.is_some(), "epoch {epoch} has no hash");
            assert_eq!(one, many, "epoch {epoch} differs between one worker and {run_as}");
        }
    }
    let distinct: std::collections::HashSet<_> = alone.iter().collect();
    assert!(distinct.len() as u64 > last / 2, "the epochs hold too little to compare");
}
