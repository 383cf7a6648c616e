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
use std::collections::{BTreeMap, HashMap, HashSet};
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
type Exact = [i128; 7];

/// A row.
#[derive(Debug, Default)]
struct Row {
    now: Exact,
    version: u32,
    /// What it was before the epoch under way, if that touched it.
    before: Option<Exact>,
    /// The epoch under way is its first.
    is_new: bool,
}

/// The rows of one bucket.
#[derive(Debug, Default)]
struct Bucket {
    rows: HashMap<Key, Row>,
    touched: Vec<Key>,
    /// Rows by share, without those of `(other)`.
    share_rows: BTreeMap<usize, u64>,
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
    touched: HashSet<i64>,
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
                    touched: HashSet::new(),
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
        let mut views = Views::new();
        for view in &self.views {
            let rows = views.entry(view.name.clone()).or_default();
            for (&start_us, bucket) in &view.buckets {
                let end = EventTime(start_us + view.granularity.width_us());
                let state = lateness.state(end, frontier);
                for (key, row) in bucket.rows.iter().filter(|(_, row)| row.stands()) {
                    let key = &key[..view.dimensions.len()];
                    let texts = key.iter().map(|&n| self.texts.text(n).to_owned()).collect();
                    let figures = rounded(&row.now);
                    let row = RowFigures { figures, version: row.version, state };
                    rows.insert((start_us, texts), row);
                }
            }
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
        self.touched.insert(start_us);
        let bucket = self.buckets.entry(start_us).or_default();
        bucket.add(key, &difference(change, contribution), texts);
    }

    /// Ends an epoch: folds what has no room, and counts the rows' changes.
    fn settle(&mut self, texts: &mut Texts) -> u64 {
        let mut folded = 0;
        for start_us in std::mem::take(&mut self.touched) {
            let Some(bucket) = self.buckets.get_mut(&start_us) else { continue };
            let homeless = bucket.fold(self.share_rows_max, texts);
            folded += homeless.len() as u64;
            for (key, sum) in homeless {
                let other = other_key(&key, self.dimensions.len(), texts);
                bucket.add_to_row(other, &sum);
            }
            bucket.settle();
        }
        folded
    }
}

impl Bucket {
    fn add(&mut self, key: Key, difference: &Exact, texts: &Texts) {
        if !self.rows.contains_key(&key) {
            *self.share_rows.entry(share_of(&key, texts)).or_default() += 1;
        }
        self.add_to_row(key, difference);
    }

    fn add_to_row(&mut self, key: Key, difference: &Exact) {
        let row = self.rows.entry(key).or_insert_with(|| Row { is_new: true, ..Row::default() });
        if row.before.is_none() {
            row.before = Some(row.now);
            self.touched.push(key);
        }
        add(&mut row.now, difference);
    }

    /// Takes out the sums that have no room. In a share that is full already these are all new ones.
    fn fold(&mut self, share_rows_max: u64, texts: &Texts) -> HashMap<Key, Exact> {
        let mut homeless = HashMap::new();
        let overfull = |share: &usize| self.share_rows[share] > share_rows_max;
        let mut new: BTreeMap<usize, Vec<Key>> = BTreeMap::new();
        if self.share_rows.keys().any(overfull) {
            for key in self.touched.iter().filter(|&key| self.rows[key].is_new) {
                new.entry(share_of(key, texts)).or_default().push(*key);
            }
            new.retain(|share, _| overfull(share));
        }
        for (share, mut new) in new {
            let order =
                |key: &Key| (stable_hash(key, texts), key.map(|n| texts.text(n).to_owned()));
            new.sort_by_cached_key(order);
            let before = self.share_rows[&share] - new.len() as u64;
            for key in new.drain((share_rows_max - before) as usize..) {
                if let Some(row) = self.rows.remove(&key) {
                    homeless.insert(key, row.now);
                }
            }
            self.share_rows.insert(share, share_rows_max);
        }
        homeless
    }

    fn settle(&mut self) {
        for key in std::mem::take(&mut self.touched) {
            let Some(row) = self.rows.get_mut(&key) else { continue };
            row.is_new = false;
            if row.before.take().is_some_and(|before| before != row.now) {
                row.version += 1;
            }
        }
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
                sum[6] += sign * i128::from(contribution.cost_nanos);
            }
            Some(false) => sum[place + 3] += sign,
            None => {}
        }
    }
    sum
}

fn add(to: &mut Exact, difference: &Exact) {
    for (to, difference) in to.iter_mut().zip(difference) {
        *to += difference;
    }
}

/// As a view shows it. A figure outside `i64` stands at its limit; the engine counts an arithmetic
/// error for it long before.
fn rounded(exact: &Exact) -> [i64; 6] {
    let [impressions, clicks, conversions, invalid_impressions, invalid_clicks, _, nanos] = *exact;
    [impressions, clicks, conversions, invalid_impressions, invalid_clicks, half_to_even(nanos)]
        .map(|figure| figure.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
}

/// Nanos as micros.
fn half_to_even(nanos: i128) -> i128 {
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
    let text_hash = |&number: &u32| hash::stable(texts.text(number).as_bytes());
    key.iter().map(text_hash).fold(0, hash::mix)
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
