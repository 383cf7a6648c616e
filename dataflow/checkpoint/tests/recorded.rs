//! A log of contradictions, cut into epochs by the test: log time passes horizons, expires ids and
//! makes buckets final in a second of real time.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};
use trueup_generator::{
    chaos::{Chaos, ChaosSettings},
    frames::Layout,
    random::Random,
};
use trueup_log::{Fsync, Journal, Settings};
use trueup_operators::{
    log::{Append, Log, Topic, append_and_wait},
    remap::{REMAP_VERSION, RemapRow, Upto},
    rollup::RollupSpec,
    time::{Lateness, LogTime, MINUTE_US, SECOND_US, parse_rfc3339},
};

pub(crate) const LATENESS: Lateness = Lateness {
    allowed_lateness_us: MINUTE_US,
    correction_horizon_us: 4 * MINUTE_US,
    future_skew_us_max: MINUTE_US,
};

pub(crate) fn rollups() -> Vec<RollupSpec> {
    let mut rollups = RollupSpec::ad_defaults();
    // Small enough that buckets fill up and new keys fold into `(other)`.
    rollups[1].rows_max = 20;
    rollups
}

/// Records so many epochs in a new directory.
pub(crate) fn record(dir: &Path, seed: u64, epochs: u64) {
    let clock_us = Arc::new(AtomicI64::new(parse_rfc3339("2026-04-27T15:32:00Z").unwrap()));
    let read = Arc::clone(&clock_us);
    let settings = Settings {
        partitions: 5,
        fsync: Fsync::Never,
        segment_bytes_max: 1 << 20,
        ..Settings::default()
    };
    let clock = Arc::new(move || LogTime(read.load(Ordering::SeqCst)));
    let (journal, _) = Journal::open(dir, settings, clock).unwrap();
    let mut random = Random::new(seed, 1);
    let chaos = ChaosSettings {
        ids: 300,
        campaigns: 12,
        correction_horizon_us: LATENESS.correction_horizon_us,
        future_skew_us_max: LATENESS.future_skew_us_max,
        born_invalid: true,
    };
    let mut chaos = Chaos::new(seed, chaos);
    let layout = Layout { partitions: 5, key: journal.identity().hash_key };
    let mut last = RemapRow::origin(5, 1, 1);
    for _ in 0..epochs {
        for _ in 0..random.below(3) {
            let step_us = match random.below(10) {
                0 => random.between(0, 4 * MINUTE_US),
                _ => random.between(0, 15 * SECOND_US),
            };
            let now_us = clock_us.fetch_add(step_us, Ordering::SeqCst) + step_us;
            let events = chaos.events(random.below(50) as usize, now_us);
            let mut frames = layout.frames(&events, now_us);
            if random.chance(0.6) {
                let verdicts = chaos.verdicts(1 + random.below(20) as usize, now_us);
                frames.push(layout.verdict_frame(&verdicts));
            }
            if !frames.is_empty() {
                append_and_wait(&journal, frames).unwrap();
            }
        }
        last = next(&journal, &last);
        let row = Append {
            topic: Topic::Remap,
            partition: 0,
            schema_version: REMAP_VERSION,
            records: 1,
            payload: last.encode().into(),
        };
        append_and_wait(&journal, vec![row]).unwrap();
    }
}

/// The row after another one, up to the ends that are durable.
fn next(log: &Journal, last: &RemapRow) -> RemapRow {
    let upto = |topic, before: &[Upto]| -> Vec<Upto> {
        let ends = log.ends(topic);
        let row = ends.iter().zip(before).map(|(end, before)| Upto {
            offset: end.offset,
            log_time: end.complete_to.max(before.log_time),
        });
        row.collect()
    };
    RemapRow {
        epoch: last.epoch + 1,
        writer: last.writer,
        begins: false,
        events: upto(Topic::Events, &last.events),
        verdicts: upto(Topic::Verdicts, &last.verdicts),
        metadata: upto(Topic::Metadata, &last.metadata),
    }
}
