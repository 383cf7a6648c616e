//! The model: workers that make random commits, and every epoch kept whole.
use super::*;
use crate::incidents;
use std::collections::BTreeMap;
use trueup_operators::{
    accumulate::STAGES,
    change::{Change, Changes, Incident},
    event::Position,
    feed::ImageKind,
    hash::mix,
    metrics::Metrics,
    money::Nanos,
    sum::{share_of, stable_key},
    symbols::Symbol,
    time::{LogTime, SECOND_US},
};

use crate::block::RowRef;

pub(super) type TestViews = Views<4, Metrics>;

/// A small generator with a seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0, 0x7275_6575)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }
}

/// The seeds of a test: `n` of them, or the one that the environment names.
pub(super) fn seeds(n: u64) -> Vec<u64> {
    match std::env::var("TRUEUP_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (1..=n).collect(),
    }
}

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) seed: u64,
    pub(super) epochs: u64,
    pub(super) workers: Option<usize>,
    pub(super) history_bytes_max: usize,
    pub(super) rollups: Vec<RollupSpec>,
    /// Whether some epochs ask for an image.
    pub(super) images: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            seed: 1,
            epochs: 40,
            workers: None,
            history_bytes_max: 400_000,
            images: false,
            rollups: vec![
                RollupSpec::new("a", &["campaignId", "country", "deviceType"]),
                RollupSpec {
                    granularities: vec![Granularity::Minute],
                    ..RollupSpec::new("b", &["campaignId", "adId"])
                },
            ],
        }
    }
}

/// A row as anybody sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Line {
    pub(super) start_us: i64,
    pub(super) key: Vec<Symbol>,
    pub(super) values: Vec<i64>,
    pub(super) version: u64,
    pub(super) state: BucketState,
}

pub(super) fn line(row: &RowRef<'_>) -> Line {
    Line {
        start_us: row.start_us,
        key: row.key.to_vec(),
        values: row.values.to_vec(),
        version: row.version,
        state: row.state,
    }
}

type Table = BTreeMap<(Bucket, Key4), (Metrics, u64)>;
type Key4 = [Symbol; 4];

/// What an accumulator has: rows of a bucket by number.
#[derive(Default)]
struct Numbered(Vec<(Key4, Metrics, u32)>);

pub(super) struct Model {
    pub(super) settings: Settings,
    pub(super) views: Arc<TestViews>,
    pub(super) random: Random,
    sinks: Vec<ShardSink<4, Metrics>>,
    view_settings: ViewSettings,
    /// Images that were taken, in order.
    pub(super) images: Arc<Mutex<Vec<ShardImage<4, Metrics>>>>,
    /// By epoch: its times, and by sink its commit.
    script: Vec<(EpochTimes, Vec<Commit<4, Metrics>>)>,
    /// By epoch: each table whole.
    tables: Vec<BTreeMap<TableId, Table>>,
    delivered: Vec<usize>,
    announced: usize,
    symbols: Vec<Symbol>,
}

impl Model {
    pub(super) fn new(settings: Settings) -> Model {
        let mut random = Random(settings.seed << 32);
        let workers = random.below(4) as usize + 1;
        let workers = settings.workers.unwrap_or(workers);
        let lateness = Lateness {
            allowed_lateness_us: MINUTE_US,
            correction_horizon_us: 4 * MINUTE_US,
            future_skew_us_max: MINUTE_US,
        };
        let view_settings = ViewSettings {
            history_bytes_max: settings.history_bytes_max,
            incidents_max: 17,
            retention_us: [3 * MINUTE_US; 3],
            digests: true,
            ..ViewSettings::new(workers * STAGES, settings.rollups.clone(), lateness)
        };
        let symbols = Arc::new(Symbols::default());
        // Symbols in an order that is not that of the texts.
        let texts = (0..12_u32).map(|i| symbols.intern(&format!("x{}", i * 7 % 12))).collect();
        let views = Views::new(view_settings.clone(), symbols);
        let mut model = Model {
            settings,
            views,
            random,
            sinks: Vec::new(),
            view_settings,
            images: Arc::default(),
            script: Vec::new(),
            tables: Vec::new(),
            delivered: vec![0; workers * STAGES],
            announced: 0,
            symbols: texts,
        };
        model.write_script(workers * STAGES);
        model.connect();
        model
    }

    fn connect(&mut self) {
        let sinks = (0..self.delivered.len()).map(|shard| {
            let images = Arc::clone(&self.images);
            self.views.shard(shard).on_image(move |image| images.lock().push(image))
        });
        self.sinks = sinks.collect();
    }

    /// Goes on after an epoch with views that are loaded.
    pub(super) fn reload(
        &mut self,
        epoch: Epoch,
        sections: impl Iterator<Item = Vec<u8>>,
    ) -> Result<(), String> {
        self.views = Views::new(self.view_settings.clone(), Arc::clone(&self.views.symbols));
        let mut loader = self.views.load(self.times(epoch));
        for section in sections {
            loader.take(&section).map_err(|e| e.to_string())?;
        }
        loader.finish().map_err(|e| e.to_string())?;
        self.delivered.fill(epoch as usize + 1);
        self.announced = epoch as usize + 1;
        self.connect();
        Ok(())
    }

    pub(super) fn shards(&self) -> usize {
        self.delivered.len()
    }

    fn write_script(&mut self, workers: usize) {
        // Commits do not depend on the number of workers, only on who owns a key.
        let mut random = Random(self.settings.seed << 32 | 1 << 31);
        let mut state: BTreeMap<(usize, TableId, Bucket), Numbered> = BTreeMap::new();
        let mut now: BTreeMap<TableId, Table> = BTreeMap::new();
        let mut frontier_us = 2 * MINUTE_US;
        let mut kind = ImageKind::Whole;
        let mut marks = Random(self.settings.seed << 32 | 3 << 30);
        for epoch in 0..self.settings.epochs {
            let frontier_before = LogTime(frontier_us);
            frontier_us += random.below(40) as i64 * SECOND_US;
            let frontier = LogTime(frontier_us);
            let times = EpochTimes { epoch, frontier_before, frontier, latest: frontier };
            let mut commits: Vec<_> = (0..workers).map(|_| empty(epoch)).collect();
            if random.below(6) != 0 {
                for table in rollup::tables(&self.settings.rollups) {
                    self.change_table(
                        table,
                        times,
                        &mut random,
                        &mut state,
                        &mut now,
                        &mut commits,
                    );
                }
                add_incidents(times, &mut random, &mut commits);
            }
            if self.settings.images && marks.below(3) == 0 {
                commits.iter_mut().for_each(|commit| commit.image = Some(kind));
                let is_whole = marks.below(6) == 0;
                kind = if is_whole { ImageKind::Whole } else { ImageKind::Increment };
            }
            self.script.push((times, commits));
            self.tables.push(now.clone());
        }
    }

    fn change_table(
        &self,
        table: TableId,
        times: EpochTimes,
        random: &mut Random,
        state: &mut BTreeMap<(usize, TableId, Bucket), Numbered>,
        now: &mut BTreeMap<TableId, Table>,
        commits: &mut [Commit<4, Metrics>],
    ) {
        let dimensions = self.dimensions(table);
        let newest = table.granularity.bucket(trueup_operators::time::EventTime(times.frontier.0));
        for back in 0..3 {
            let bucket = Bucket((newest.0 - back).max(0));
            let mut keys = std::collections::BTreeSet::new();
            for _ in 0..random.below(6) {
                let mut key = [0; 4];
                for part in &mut key[..dimensions] {
                    *part = self.symbols[random.below(5) as usize];
                }
                keys.insert(key);
            }
            for key in keys {
                let owner = self.owner(&key, commits.len());
                let new = metrics(random);
                let numbered = state.entry((owner, table, bucket)).or_default();
                let change = numbered.set(key, new);
                let into = &mut commits[owner].changes;
                match into.iter_mut().find(|c| (c.table, c.bucket) == (table, bucket)) {
                    Some(changes) => changes.changes.push(change),
                    None => into.push(Changes { table, bucket, changes: vec![change] }),
                }
                let version = u64::from(change.old_version) + 1;
                now.entry(table).or_default().insert((bucket, key), (new, version));
            }
        }
    }

    /// The shard of a row: its worker's for rows or, say, for half of them the other.
    fn owner(&self, key: &Key4, shards: usize) -> usize {
        let symbols = self.views.symbols();
        let stable = stable_key(key.iter().map(|&symbol| symbols.stable(symbol)));
        let stage = mix(stable, 1) as usize % STAGES;
        share_of(stable) % (shards / STAGES) * STAGES + stage
    }

    /// Whether a row is of a shard of `(other)` rows.
    pub(super) fn is_folded(&self, row: &RowRef<'_>) -> bool {
        let mut key = [0; 4];
        key[..row.key.len()].copy_from_slice(row.key);
        !self.owner(&key, self.shards()).is_multiple_of(STAGES)
    }

    /// Announces and delivers one more commit of a worker that is not too far ahead. `false` at the
    /// end.
    pub(super) fn deliver(&mut self) -> bool {
        self.deliver_one().is_some()
    }

    /// Which shard took which epoch.
    pub(super) fn deliver_one(&mut self) -> Option<(usize, Epoch)> {
        let slowest = *self.delivered.iter().min().unwrap();
        if slowest == self.script.len() {
            return None;
        }
        let able: Vec<usize> = (0..self.delivered.len())
            .filter(|&w| self.delivered[w] < (slowest + 4).min(self.script.len()))
            .collect();
        let worker = able[self.random.below(able.len() as u64) as usize];
        let epoch = self.delivered[worker];
        if epoch == self.announced {
            self.views.announce(self.script[epoch].0);
            self.announced += 1;
        }
        self.sinks[worker].commit(self.script[epoch].1[worker].clone());
        self.delivered[worker] += 1;
        Some((worker, epoch as Epoch))
    }

    pub(super) fn delivered_all(&self) -> bool {
        self.visible() == Some(self.settings.epochs - 1)
    }

    pub(super) fn visible(&self) -> Option<Epoch> {
        (*self.delivered.iter().min().unwrap() as u64).checked_sub(1)
    }

    pub(super) fn times(&self, epoch: Epoch) -> EpochTimes {
        self.script[epoch as usize].0
    }

    pub(super) fn dimensions(&self, table: TableId) -> usize {
        self.settings.rollups[usize::from(table.rollup)].dimensions.len()
    }

    /// The rows of a table at an epoch, sorted.
    pub(super) fn table(&self, table: TableId, epoch: Epoch) -> Vec<Line> {
        let at = self.times(epoch);
        let dimensions = self.dimensions(table);
        let rows = self.tables[epoch as usize].get(&table).into_iter().flatten();
        let mut lines: Vec<Line> = rows
            .filter(|(_, (metrics, _))| metrics.records() != 0)
            .filter_map(|(&(bucket, key), &(metrics, version))| {
                let state = self.state(table, bucket, at)?;
                let mut values = Vec::new();
                metrics.columns(&mut values);
                let start_us = table.granularity.start(bucket).0;
                Some(Line { start_us, key: key[..dimensions].to_vec(), values, version, state })
            })
            .collect();
        lines.sort();
        lines
    }

    /// The rows that were in a table's buckets when these left the view between two epochs: with
    /// their last figures, final.
    pub(super) fn leavers(&self, table: TableId, from: Epoch, to: Epoch) -> Vec<Line> {
        let dimensions = self.dimensions(table);
        let rows = self.tables[to as usize].get(&table).into_iter().flatten();
        let leavers = rows.filter(|((bucket, _), (metrics, _))| {
            let state = |epoch| self.state(table, *bucket, self.times(epoch));
            metrics.records() != 0 && state(from).is_some() && state(to).is_none()
        });
        let line = |(&(bucket, key), &(metrics, version)): (&(Bucket, Key4), &(Metrics, u64))| {
            let mut values = Vec::new();
            metrics.columns(&mut values);
            let start_us = table.granularity.start(bucket).0;
            let (key, state) = (key[..dimensions].to_vec(), BucketState::Final);
            Line { start_us, key, values, version, state }
        };
        leavers.map(line).collect()
    }

    /// Written out once more, in plain words: the spans of this module's settings.
    fn state(&self, table: TableId, bucket: Bucket, at: EpochTimes) -> Option<BucketState> {
        let age_us = at.frontier.0 - table.granularity.end(bucket).0;
        match age_us {
            i64::MIN..MINUTE_US => Some(BucketState::Provisional),
            MINUTE_US..240_000_000 => Some(BucketState::Settling),
            240_000_000..420_000_000 => Some(BucketState::Final),
            _ => None,
        }
    }

    /// A random filter, of which some are empty.
    pub(super) fn filter(&mut self, table: TableId) -> Filter {
        let mut filter = Filter::default();
        for at in 0..self.dimensions(table) {
            if self.random.below(3) == 0 {
                filter.dimensions.push((at, format!("x{}", self.random.below(13))));
            }
        }
        if self.random.below(5) == 0 {
            let first = self.random.below(10) as i32;
            filter.buckets = Some(Bucket(first)..Bucket(first + 3));
        }
        if self.random.below(4) == 0 {
            let states = [BucketState::Provisional, BucketState::Settling, BucketState::Final];
            filter.state = Some(states[self.random.below(3) as usize]);
        }
        filter
    }

    pub(super) fn filtered(&self, table: TableId, epoch: Epoch, filter: &Filter) -> Vec<Line> {
        let symbols = self.views.symbols();
        let takes = |row: &Line| {
            let bucket = table.granularity.bucket(trueup_operators::time::EventTime(row.start_us));
            filter.dimensions.iter().all(|(at, text)| *symbols.text(row.key[*at]) == **text)
                && filter.buckets.as_ref().is_none_or(|b| b.contains(&bucket))
                && filter.state.is_none_or(|s| s == row.state)
        };
        self.table(table, epoch).into_iter().filter(takes).collect()
    }

    /// A sum, from scratch.
    pub(super) fn sum(&self, query: &SumQuery, epoch: Epoch) -> Vec<Line> {
        let table = TableId { rollup: query.rollup, granularity: query.granularity };
        let symbols = self.views.symbols();
        let filter = Filter { buckets: Some(query.buckets.clone()), ..query.filter.clone() };
        let mut sums: BTreeMap<(i64, Vec<String>), Line> = BTreeMap::new();
        for row in self.filtered(table, epoch, &filter) {
            if query.finalized_only && row.state != BucketState::Final {
                continue;
            }
            let bucket = table.granularity.bucket(trueup_operators::time::EventTime(row.start_us));
            if let Slots::Mapped { slot_of, .. } = &query.slots {
                let slot = slot_of[(bucket.0 - query.buckets.start.0) as usize];
                let first = slot_of.iter().position(|&s| s == slot).unwrap_or_default() as i32;
                let at = self.script[epoch as usize].0;
                if self.state(table, Bucket(query.buckets.start.0 + first), at).is_none() {
                    continue;
                }
            }
            let start_us = match &query.slots {
                Slots::Each => row.start_us,
                Slots::One | Slots::Joined(_) => table.granularity.start(query.buckets.start).0,
                Slots::Mapped { slot_of, starts_us } => {
                    starts_us[slot_of[(bucket.0 - query.buckets.start.0) as usize] as usize]
                }
            };
            let key: Vec<Symbol> = query.by.iter().map(|&d| row.key[d]).collect();
            let texts = key.iter().map(|&s| symbols.text(s).to_string()).collect();
            match sums.entry((start_us, texts)) {
                std::collections::btree_map::Entry::Vacant(vacant) => {
                    vacant.insert(Line { start_us, key, ..row });
                }
                std::collections::btree_map::Entry::Occupied(mut found) => {
                    let sum = found.get_mut();
                    sum.version += row.version;
                    sum.state = sum.state.min(row.state);
                    for (a, b) in sum.values.iter_mut().zip(&row.values) {
                        *a += b;
                    }
                }
            }
        }
        sums.into_values().collect()
    }

    pub(super) fn counts(&self, epoch: Epoch) -> Counts {
        let mut counts = Counts::default();
        for commit in self.script[..=epoch as usize].iter().flat_map(|e| &e.1) {
            counts.add(&commit.counts);
        }
        counts
    }

    /// The newest 17 of each fate, newest first, and how many there ever were.
    pub(super) fn incidents(
        &self,
        fates: &[Fate],
        epoch: Epoch,
    ) -> (Vec<(IncidentKey, Incident)>, u64) {
        let (mut kept, mut total) = (Vec::new(), 0);
        for &fate in fates {
            let commits = self.script[..=epoch as usize].iter().flat_map(|e| &e.1);
            let mut all: Vec<(IncidentKey, Incident)> = commits
                .flat_map(|c| c.incidents.iter().map(|i| ((c.epoch, i.position), *i)))
                .filter(|(_, i)| i.fate == fate)
                .collect();
            all.sort_by_key(|(key, _)| std::cmp::Reverse(*key));
            total += all.len() as u64;
            all.truncate(17);
            kept.extend(all);
        }
        kept.sort_by_key(|(key, _)| std::cmp::Reverse(*key));
        (kept, total)
    }
}

impl Numbered {
    /// Sets a key's figures, in the row that it has, in that of a dead one, or in a new one.
    fn set(&mut self, key: Key4, new: Metrics) -> Change<4, Metrics> {
        let alive = self.0.iter().position(|row| row.0 == key);
        let row = alive.unwrap_or_else(|| {
            self.0.push((key, Metrics::default(), 0));
            self.0.len() - 1
        });
        let (_, old, old_version) = self.0[row];
        self.0[row] = (key, new, old_version + 1);
        Change { row: row as u32, old_version, key, old, new }
    }
}

fn empty(epoch: Epoch) -> Commit<4, Metrics> {
    Commit {
        epoch,
        changes: Vec::new(),
        incidents: Vec::new(),
        counts: Counts::default(),
        image: None,
    }
}

fn metrics(random: &mut Random) -> Metrics {
    if random.below(4) == 0 {
        return Metrics::default();
    }
    Metrics {
        impressions: random.below(9) as i64,
        clicks: random.below(3) as i32,
        // Whole micros, so that rounded parts add up to the rounded whole.
        spend: Nanos(random.below(99) as i64 * 1_000),
        ..Metrics::default()
    }
}

fn add_incidents(times: EpochTimes, random: &mut Random, commits: &mut [Commit<4, Metrics>]) {
    for row in 0..random.below(4) as u16 {
        let fate = incidents::LISTED[random.below(incidents::LISTED.len() as u64) as usize];
        let position = Position { partition: 1, offset: times.epoch, row };
        let owner = usize::from(row) % commits.len();
        let incident = Incident { fate, position, log_time: times.latest };
        commits[owner].incidents.push(incident);
        commits[owner].counts.fates[fate as usize] += 1;
    }
}
