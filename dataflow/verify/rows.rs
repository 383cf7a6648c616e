//! The rows of every view: what the events that count add up to, by bucket and dimensions, and how
//! often each row has changed.
//!
//! A bucket of a view holds at most `rows_max` rows, in 64 *shares* of a sixty-fourth each (rounded
//! up). A key belongs to the share that the stable hash of its texts says. In the epoch in which a
//! share gets more keys than it holds, the new ones with the least hashes stay and all others fold
//! into the row of their first dimension whose others read `(other)`; from then on every key
//! without a row folds.

use super::{
    RowFigures, VerifyError, Views,
    frames::{Kind, Texts},
    standing::{Change, Contribution},
};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    hash::{BuildHasherDefault, Hasher},
};
use trueup_operators::{
    event::DIMENSIONS,
    hash,
    rollup::RollupSpec,
    time::{EventTime, Granularity, Lateness, LogTime},
};

/// The most dimensions of a rollup. The hash of a key takes as many texts, so shorter keys end in
/// absent values.
const KEY_MAX: usize = 4;
const SHARES: usize = 64;
const OTHER: &str = "(other)";

type Key = [u32; KEY_MAX];
/// A row's figures exactly: impressions, clicks, conversions, the three of them invalid, nanos.
type Exact = [i64; 7];

/// A row.
#[derive(Debug)]
struct Row {
    key: Key,
    now: Exact,
    version: u32,
    /// The epoch under way has touched it.
    touched: bool,
}

/// The rows of one bucket.
#[derive(Debug, Default)]
struct Bucket {
    rows: Vec<Row>,
    places: HashMap<Key, u32, BuildHasherDefault<KeyHasher>>,
    /// Rows that the epoch under way touched, by place, and what they were before.
    touched: Vec<(u32, Exact)>,
    /// Rows from here on are new in the epoch under way.
    new_from: usize,
    /// Rows by share, without those of `(other)`.
    share_rows: BTreeMap<usize, u64>,
}

/// Hashes the words of a key. The standard library's hasher takes most of the time otherwise, and
/// nobody can choose the numbers of texts.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = hash::mix(self.0, u64::from_le_bytes(word));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// One view.
#[derive(Debug)]
struct View {
    name: String,
    granularity: Granularity,
    /// Which of [`DIMENSIONS`], in the order of the rollup.
    dimensions: Vec<usize>,
    share_rows_max: u64,
    buckets: BTreeMap<i64, Bucket>,
    /// Buckets that the epoch under way touched.
    touched: Vec<i64>,
}

/// All views.
#[derive(Debug)]
pub(super) struct Rows {
    texts: Texts,
    views: Vec<View>,
    /// Sums that were folded.
    pub(super) folded: u64,
}

impl Rows {
    pub(super) fn new(rollups: &[RollupSpec]) -> Result<Rows, VerifyError> {
        let mut views = Vec::new();
        for rollup in rollups {
            let dimensions = dimensions_of(rollup)?;
            for &granularity in &rollup.granularities {
                views.push(View {
                    name: format!("{}_{}", rollup.name, granularity.name()),
                    granularity,
                    dimensions: dimensions.clone(),
                    share_rows_max: u64::from(rollup.rows_max).div_ceil(SHARES as u64),
                    buckets: BTreeMap::new(),
                    touched: Vec::new(),
                });
            }
        }
        Ok(Rows { texts: Texts::default(), views, folded: 0 })
    }

    pub(super) fn texts(&mut self) -> &mut Texts {
        &mut self.texts
    }

    /// Adds up what an epoch changed.
    pub(super) fn epoch(&mut self, changes: &[Change]) {
        let Rows { texts, views, folded } = self;
        for view in views {
            for change in changes {
                view.add(change, texts);
            }
            *folded += view.settle(texts);
        }
    }

    /// The names of the dimensions of every view.
    pub(super) fn dimensions(&self) -> BTreeMap<String, Vec<String>> {
        let names = |v: &View| v.dimensions.iter().map(|&d| DIMENSIONS[d].0.to_owned()).collect();
        self.views.iter().map(|view| (view.name.clone(), names(view))).collect()
    }

    /// Every row of every view, rounded as it is read.
    pub(super) fn views(&self, lateness: &Lateness, frontier: LogTime) -> Views {
        let ranks = self.texts.ranks();
        let mut views = Views::new();
        for view in &self.views {
            let mut rows = Vec::new();
            for (&start_us, bucket) in &view.buckets {
                let end = EventTime(start_us + view.granularity.width_us());
                let state = lateness.state(end, frontier);
                // A map is built at once out of what is in order, and slowly out of what is not.
                let mut standing: Vec<&Row> = bucket.rows.iter().filter(|r| r.stands()).collect();
                standing.sort_unstable_by_key(|row| row.key.map(|number| ranks[number as usize]));
                rows.extend(standing.into_iter().map(|row| {
                    let key = &row.key[..view.dimensions.len()];
                    let texts = key.iter().map(|&n| self.texts.text(n).to_owned()).collect();
                    let (figures, version) = (rounded(&row.now), row.version);
                    ((start_us, texts), RowFigures { figures, version, state })
                }));
            }
            views.insert(view.name.clone(), rows.into_iter().collect());
        }
        views
    }
}

fn dimensions_of(rollup: &RollupSpec) -> Result<Vec<usize>, VerifyError> {
    if rollup.dimensions.len() > KEY_MAX {
        let (rollup, found) = (rollup.name.clone(), rollup.dimensions.len());
        return Err(VerifyError::TooManyDimensions { rollup, found, most: KEY_MAX });
    }
    let place = |name: &String| {
        DIMENSIONS.iter().position(|d| d.0 == name).ok_or_else(|| VerifyError::Dimension {
            rollup: rollup.name.clone(),
            dimension: name.clone(),
        })
    };
    rollup.dimensions.iter().map(place).collect()
}

impl Row {
    /// Whether it is in its view: some event stands in it, valid or not.
    fn stands(&self) -> bool {
        self.now[..6].iter().any(|&count| count != 0)
    }
}

impl View {
    fn add(&mut self, change: &Change, texts: &Texts) {
        let contribution = &change.contribution;
        let width_us = self.granularity.width_us();
        let start_us = contribution.minute_us.div_euclid(width_us) * width_us;
        let mut key = Key::default();
        for (number, &dimension) in key.iter_mut().zip(&self.dimensions) {
            *number = contribution.dimensions[dimension];
        }
        let bucket = self.buckets.entry(start_us).or_default();
        if bucket.touched.is_empty() {
            self.touched.push(start_us);
        }
        let is_new = bucket.add(key, &difference(change, contribution));
        if is_new {
            *bucket.share_rows.entry(share_of(&key, texts)).or_default() += 1;
        }
    }

    /// Ends an epoch: folds what has no room, and counts the rows' changes.
    fn settle(&mut self, texts: &mut Texts) -> u64 {
        let mut folded = 0;
        for start_us in std::mem::take(&mut self.touched) {
            let Some(bucket) = self.buckets.get_mut(&start_us) else { continue };
            let homeless = bucket.fold(self.share_rows_max, texts);
            folded += homeless.len() as u64;
            for row in homeless {
                let other = other_key(&row.key, self.dimensions.len(), texts);
                bucket.add(other, &row.now);
            }
            bucket.settle();
        }
        folded
    }
}

impl Bucket {
    /// Adds to a row. `true`: the row is a new one.
    fn add(&mut self, key: Key, difference: &Exact) -> bool {
        let next = self.rows.len() as u32;
        let place = *self.places.entry(key).or_insert(next);
        if place == next {
            self.rows.push(Row { key, now: Exact::default(), version: 0, touched: false });
        }
        let row = &mut self.rows[place as usize];
        if !row.touched {
            row.touched = true;
            self.touched.push((place, row.now));
        }
        add(&mut row.now, difference);
        place == next
    }

    /// Takes out the new rows that have no room.
    fn fold(&mut self, share_rows_max: u64, texts: &Texts) -> Vec<Row> {
        let mut homeless = Vec::new();
        if self.share_rows.values().all(|&rows| rows <= share_rows_max) {
            return homeless;
        }
        let mut new: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
        for row in self.rows.drain(self.new_from..) {
            self.places.remove(&row.key);
            new.entry(share_of(&row.key, texts)).or_default().push(row);
        }
        self.touched.retain(|&(place, _)| (place as usize) < self.new_from);
        for (share, mut new) in new {
            let had = self.share_rows[&share] - new.len() as u64;
            let room = (share_rows_max - had) as usize;
            if room > 0 && new.len() > room {
                new.sort_by(|a, b| order(&a.key, &b.key, texts));
            }
            homeless.extend(new.drain(room.min(new.len())..));
            self.share_rows.insert(share, had + new.len() as u64);
            for row in new {
                let place = self.rows.len() as u32;
                self.places.insert(row.key, place);
                self.touched.push((place, Exact::default()));
                self.rows.push(row);
            }
        }
        homeless
    }

    fn settle(&mut self) {
        for (place, before) in self.touched.drain(..) {
            let row = &mut self.rows[place as usize];
            row.touched = false;
            row.version += u32::from(row.now != before);
        }
        self.new_from = self.rows.len();
    }
}

/// What a change adds to the rows of its event: −was +is.
fn difference(change: &Change, contribution: &Contribution) -> Exact {
    let mut sum = Exact::default();
    let place = match contribution.kind {
        Kind::Impression => 0,
        Kind::Click => 1,
        Kind::Conversion => 2,
    };
    for (standing, sign) in [(change.was, -1), (change.is, 1)] {
        match standing {
            Some(true) => {
                sum[place] += sign;
                sum[6] += sign * contribution.cost_nanos;
            }
            Some(false) => sum[place + 3] += sign,
            None => {}
        }
    }
    sum
}

/// A figure outside `i64` stays at its limit; the engine counts an arithmetic error for it.
fn add(to: &mut Exact, difference: &Exact) {
    for (to, difference) in to.iter_mut().zip(difference) {
        *to = to.saturating_add(*difference);
    }
}

/// As a view shows it.
fn rounded(exact: &Exact) -> [i64; 6] {
    let [impressions, clicks, conversions, invalid_impressions, invalid_clicks, _, nanos] = *exact;
    [impressions, clicks, conversions, invalid_impressions, invalid_clicks, half_to_even(nanos)]
}

/// Nanos as micros.
fn half_to_even(nanos: i64) -> i64 {
    let down = nanos.div_euclid(1_000);
    match nanos.rem_euclid(1_000) {
        0..500 => down,
        500 => down + down.rem_euclid(2),
        _ => down + 1,
    }
}

/// The key of the row that a key folds into.
fn other_key(key: &Key, dimensions: usize, texts: &mut Texts) -> Key {
    let mut other = Key::default();
    other[..dimensions].fill(texts.number(OTHER));
    if dimensions > 1 {
        other[0] = key[0];
    }
    other
}

fn stable_hash(key: &Key, texts: &Texts) -> u64 {
    key.iter().map(|&number| texts.hash(number)).fold(0, hash::mix)
}

/// Which of two keys of a share goes before the other: by stable hash, then by texts.
fn order(a: &Key, b: &Key, texts: &Texts) -> Ordering {
    let in_words = |key: &Key| key.map(|number| texts.text(number));
    stable_hash(a, texts).cmp(&stable_hash(b, texts)).then_with(|| in_words(a).cmp(&in_words(b)))
}

fn share_of(key: &Key, texts: &Texts) -> usize {
    (stable_hash(key, texts) % SHARES as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_go_to_the_even_side() {
        for (nanos, micros) in
            [(0, 0), (499, 0), (500, 0), (501, 1), (1_500, 2), (2_500, 2), (-500, 0), (-1_500, -2)]
        {
            assert_eq!(half_to_even(nanos), micros, "{nanos}");
        }
    }
}
