//! Views that workers fill as a script says, and every epoch of them kept whole, as the messages of
//! a changelog would have it. Written without anything of the publisher.

use super::super::{Note, PublisherSettings};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use trueup_generator::random::Random;
use trueup_operators::{
    accumulate::STAGES,
    change::{Change, Changes, Commit, Counts, Sink, TableId},
    feed::EpochTimes,
    metrics::Metrics,
    money::Nanos,
    rollup::{RollupSpec, tables},
    symbols::{ABSENT, OTHER, Symbol, Symbols},
    time::{Bucket, Epoch, EventTime, Granularity, Lateness, LogTime, MINUTE_US, SECOND_US},
};
use trueup_sinks::{ShardSink, Tables, ViewSettings, Views};

pub(super) type Key = [Symbol; 4];
type Image = BTreeMap<(TableId, Bucket, Key, bool), (Metrics, u32)>;

/// What the topic shall hold: by key the row's figures.
pub(super) type Rows = BTreeMap<String, Value>;

const WORKERS: usize = 2;
const HORIZON_US: i64 = 4 * MINUTE_US;
const RETENTION_US: i64 = 3 * MINUTE_US;
const TEXTS: [&str; 4] = ["plain", "with \"quotes\" and \\", "ünïcode\u{1}", "(other)"];

/// A start of the process: which rollups it has, and what it calls settling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) rollups: usize,
    pub(super) allowed_lateness_us: i64,
    pub(super) history_bytes_max: usize,
}

pub(super) struct World {
    pub(super) random: Random,
    rollups: Vec<RollupSpec>,
    symbols: Arc<Symbols>,
    /// By epoch: its times, by shard its commit, and all rows after it.
    script: Vec<(EpochTimes, Vec<Commit<4, Metrics>>, Image)>,
    pub(super) start: Start,
    pub(super) views: Arc<Views<4, Metrics>>,
    sinks: Vec<ShardSink<4, Metrics>>,
    delivered: usize,
}

/// Rows of a bucket by their numbers.
#[derive(Default)]
struct Numbered(Vec<(Key, Metrics, u32)>);

impl Numbered {
    /// A key's row; that of a dead one, which is not his any more, or a new one.
    fn set(&mut self, key: Key, new: Metrics, random: &mut Random) -> Change<4, Metrics> {
        let is_alive = |row: &(Key, Metrics, u32)| row.1 != Metrics::default();
        let of_key = self.0.iter().position(|row| row.0 == key && is_alive(row));
        let dead = self.0.iter().position(|row| !is_alive(row));
        let row = of_key.or(dead.filter(|_| random.below(3) != 0)).unwrap_or_else(|| {
            self.0.push((key, Metrics::default(), 0));
            self.0.len() - 1
        });
        let (_, old, version) = self.0[row];
        let old_version = if of_key.is_some() { version } else { 0 };
        self.0[row] = (key, new, old_version + 1);
        Change { row: row as u32, old_version, key, old, new }
    }
}

impl World {
    pub(super) fn new(seed: u64, epochs: u64) -> World {
        let rollups = vec![
            RollupSpec {
                granularities: vec![Granularity::Minute, Granularity::Hour],
                ..RollupSpec::new("audience", &["campaignId", "country"])
            },
            RollupSpec {
                granularities: vec![Granularity::Minute],
                ..RollupSpec::new("totals", &["campaignId"])
            },
        ];
        let start = Start {
            rollups: rollups.len(),
            allowed_lateness_us: MINUTE_US,
            history_bytes_max: 1 << 20,
        };
        let symbols = Arc::new(Symbols::default());
        let script = write_script(seed, epochs, &rollups, &symbols);
        let views = Views::new(settings(&rollups, start), Arc::clone(&symbols));
        let random = Random::new(seed, 1);
        let (sinks, delivered) = (Vec::new(), 0);
        let mut world = World { random, rollups, symbols, script, start, views, sinks, delivered };
        world.restart(start, 0);
        world
    }

    /// New views, which are brought to where they were, or behind that: by `back` epochs.
    pub(super) fn restart(&mut self, start: Start, back: usize) {
        self.start = start;
        self.views = Views::new(settings(&self.rollups, start), Arc::clone(&self.symbols));
        self.sinks = (0..WORKERS * STAGES).map(|shard| self.views.shard(shard)).collect();
        let until = self.delivered.saturating_sub(back);
        self.delivered = 0;
        while self.delivered < until {
            self.deliver();
        }
    }

    /// One more epoch. `false` at the end.
    pub(super) fn deliver(&mut self) -> bool {
        let Some((times, commits, _)) = self.script.get(self.delivered) else { return false };
        self.views.announce(*times);
        let rollups = self.start.rollups;
        for (sink, commit) in self.sinks.iter_mut().zip(commits) {
            let mut commit = commit.clone();
            commit.changes.retain(|changes| usize::from(changes.table.rollup) < rollups);
            sink.commit(commit);
        }
        self.delivered += 1;
        true
    }

    pub(super) fn is_over(&self) -> bool {
        self.delivered == self.script.len()
    }

    pub(super) fn visible(&self) -> Option<Epoch> {
        self.views.visible().map(|times| times.epoch)
    }

    /// Whether a bucket is not in the views any more at an epoch.
    fn is_gone(&self, table: TableId, bucket: Bucket, epoch: Epoch) -> bool {
        let frontier = self.script[epoch as usize].0.frontier;
        frontier.0 - table.granularity.end(bucket).0 >= HORIZON_US + RETENTION_US
    }

    fn state(&self, table: TableId, bucket: Bucket, epoch: Epoch) -> &'static str {
        let frontier = self.script[epoch as usize].0.frontier;
        let age_us = frontier.0 - table.granularity.end(bucket).0;
        match age_us {
            _ if age_us >= HORIZON_US => "final",
            _ if age_us >= self.start.allowed_lateness_us => "settling",
            _ => "provisional",
        }
    }

    /// All rows at an epoch: those in the views, and those that have left them, as they were last.
    pub(super) fn rows(&self, epoch: Epoch) -> (Rows, Rows) {
        let (mut kept, mut left) = (Rows::new(), Rows::new());
        for (&(table, bucket, key, folded), &(metrics, version)) in &self.script[epoch as usize].2 {
            let spec = &self.rollups[usize::from(table.rollup)];
            if usize::from(table.rollup) >= self.start.rollups || metrics == Metrics::default() {
                continue;
            }
            let name = name_of(spec, &self.symbols, (table, bucket, key, folded));
            let figures = json!({
                "impressions": metrics.impressions,
                "clicks": metrics.clicks,
                "conversions": 0,
                "invalidImpressions": 0,
                "invalidClicks": 0,
                "spendMicros": metrics.spend.0 / 1_000,
                "version": version,
                "state": self.state(table, bucket, epoch),
            });
            let is_gone = self.is_gone(table, bucket, epoch);
            let into = if is_gone { &mut left } else { &mut kept };
            into.insert(name, figures);
        }
        (kept, left)
    }

    /// What the upper of a publisher says that is at an epoch.
    pub(super) fn check_note(&self, upper: Epoch, note: &Note) {
        let Some(last) = upper.checked_sub(1) else { return };
        let frontier = self.script[last as usize].0.frontier;
        let time = trueup_operators::time::format_rfc3339(frontier.0);
        assert_eq!((note.log_time.as_str(), note.installation.as_str()), (&*time, "ours"));
    }

    /// When the bucket of a key ends, µs.
    pub(super) fn end_us(&self, key: &str) -> i64 {
        let key: Value = serde_json::from_str(key).unwrap();
        let start = key["row"]["bucketStart"].as_str().unwrap();
        let start = trueup_operators::time::parse_rfc3339(start).unwrap();
        let is_minute = key["view"].as_str().unwrap().ends_with("_minute");
        let granularity = if is_minute { Granularity::Minute } else { Granularity::Hour };
        start + granularity.width_us()
    }

    /// The buckets that were not final when the topic was at one upper and are gone at another: by
    /// their ends.
    pub(super) fn missed(&self, before: Epoch, upper: Epoch) -> Option<(i64, i64)> {
        let frontier = |epoch: Epoch| self.script[epoch as usize].0.frontier.0;
        let from = frontier(before.checked_sub(1)?) - HORIZON_US;
        let to = frontier(upper - 1) - HORIZON_US - RETENTION_US;
        (from < to).then_some((from, to))
    }

    /// All buckets that are gone by now.
    pub(super) fn gone_by_now(&self) -> (i64, i64) {
        let frontier = self.views.visible().map_or(0, |times| times.frontier.0);
        (i64::MIN, frontier - HORIZON_US - RETENTION_US)
    }

    /// The views of which there are rows in the topic, and the others.
    pub(super) fn is_configured(&self, key: &str) -> bool {
        let key: Value = serde_json::from_str(key).unwrap();
        self.views.catalog().view(key["view"].as_str().unwrap()).is_some()
    }
}

pub(super) fn publisher_settings() -> PublisherSettings {
    PublisherSettings { interval: Duration::ZERO, installation: "ours".into() }
}

fn settings(rollups: &[RollupSpec], start: Start) -> ViewSettings {
    let lateness = Lateness {
        allowed_lateness_us: start.allowed_lateness_us,
        correction_horizon_us: HORIZON_US,
        future_skew_us_max: MINUTE_US,
    };
    let rollups = rollups[..start.rollups].to_vec();
    ViewSettings {
        history_bytes_max: start.history_bytes_max,
        retention_us: [RETENTION_US; 3],
        ..ViewSettings::new(WORKERS * STAGES, rollups, lateness)
    }
}

fn name_of(
    spec: &RollupSpec,
    symbols: &Symbols,
    (table, bucket, key, folded): (TableId, Bucket, Key, bool),
) -> String {
    let start = trueup_operators::time::format_rfc3339(table.granularity.start(bucket).0);
    let mut row = vec![format!("\"bucketStart\":\"{start}\"")];
    for (dimension, symbol) in spec.dimensions.iter().zip(key) {
        let text = match symbol {
            ABSENT => Value::Null,
            symbol => json!(&*symbols.text(symbol)),
        };
        row.push(format!("{}:{text}", json!(dimension)));
    }
    if folded {
        row.push("\"folded\":true".into());
    }
    let view = spec.view_name(table.granularity);
    format!("{{\"view\":{},\"row\":{{{}}}}}", json!(view), row.join(","))
}

/// Writes what the workers deliver, and what is there then.
fn write_script(
    seed: u64,
    epochs: u64,
    rollups: &[RollupSpec],
    symbols: &Symbols,
) -> Vec<(EpochTimes, Vec<Commit<4, Metrics>>, Image)> {
    let mut random = Random::new(seed, 2);
    let mut texts: Vec<Symbol> = TEXTS.iter().map(|text| symbols.intern(text)).collect();
    texts.push(ABSENT);
    assert!(texts.contains(&OTHER));
    let mut numbered: HashMap<(TableId, Bucket, usize), Numbered> = HashMap::new();
    let mut frontier_us = 90 * MINUTE_US;
    let (mut image, mut script) = (Image::new(), Vec::new());
    for epoch in 0..epochs {
        let frontier_before = LogTime(frontier_us);
        frontier_us += match random.below(12) {
            0 => 8 * MINUTE_US,
            1..4 => 0,
            _ => random.below(20) as i64 * SECOND_US,
        };
        let frontier = LogTime(frontier_us);
        let mut commits: Vec<Commit<4, Metrics>> =
            (0..WORKERS * STAGES).map(|_| empty(epoch)).collect();
        for table in tables(rollups) {
            if random.below(4) == 0 {
                continue;
            }
            let newest = table.granularity.bucket(EventTime(frontier_before.0));
            let bucket = Bucket(newest.0 - random.below(3) as i32);
            // What is final does not change.
            if frontier_before.0 >= table.granularity.end(bucket).0 + HORIZON_US {
                continue;
            }
            let mut keys = std::collections::BTreeSet::new();
            for _ in 0..random.below(5) {
                let mut key = [ABSENT; 4];
                let dimensions = rollups[usize::from(table.rollup)].dimensions.len();
                key[..dimensions].fill_with(|| *random.pick(&texts));
                keys.insert((key, random.below(4) == 0));
            }
            for (key, folded) in keys {
                let owner = key.iter().sum::<Symbol>() as usize % WORKERS;
                let shard = owner * STAGES + usize::from(folded);
                let new = metrics(&mut random);
                let id = (table, bucket, key, folded);
                if image.get(&id).map_or(Metrics::default(), |row| row.0) == new {
                    continue;
                }
                let rows = numbered.entry((table, bucket, shard)).or_default();
                let change = rows.set(key, new, &mut random);
                image.insert(id, (new, change.old_version + 1));
                let into = &mut commits[shard].changes;
                match into.iter_mut().find(|c| (c.table, c.bucket) == (table, bucket)) {
                    Some(changes) => changes.changes.push(change),
                    None => into.push(Changes { table, bucket, changes: vec![change] }),
                }
            }
        }
        let times = EpochTimes { epoch, frontier_before, frontier, latest: frontier };
        script.push((times, commits, image.clone()));
    }
    script
}

fn empty(epoch: Epoch) -> Commit<4, Metrics> {
    let counts = Counts::default();
    Commit { epoch, changes: Vec::new(), incidents: Vec::new(), counts, image: None }
}

fn metrics(random: &mut Random) -> Metrics {
    if random.below(3) == 0 {
        return Metrics::default();
    }
    Metrics {
        impressions: random.below(4) as i64 + 1,
        clicks: random.below(3) as i32,
        spend: Nanos(random.below(99) as i64 * 1_000),
        ..Metrics::default()
    }
}
