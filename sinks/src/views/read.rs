//! Reads at one epoch: sums for reports, pages of a table, lists of events.
//!
//! A sum walks the buckets of its range worker by worker. If the answer keeps every dimension of
//! the rollup and every bucket, each row of the table is a row of the answer; otherwise rows meet
//! in a hash table over (slot, kept dimensions). Sorting compares ranks of texts, not texts: the
//! distinct symbols of the answer are ranked once.

use super::{
    Views,
    rows::Row,
    shard::{BucketReader, Reach},
};
use crate::{
    block::RowBlock,
    catalog::Catalog,
    incidents,
    tables::{
        Filter, IncidentKey, IncidentPage, Page, Place, ReadError, Slots, Span, SumQuery, Summed,
        Tables,
    },
};
use hashbrown::{HashMap, HashTable};
use std::ops::Range;
use trueup_operators::{
    accumulate::STAGES,
    change::TableId,
    event::Fate,
    feed::EpochTimes,
    hash::mix,
    metrics::Group,
    symbols::{Symbol, Symbols},
    time::{Bucket, BucketState, Epoch, EventTime, Granularity},
};

/// A page looks at this many rows at most.
const PAGE_SCAN_ROWS: usize = 1 << 18;

/// A filter whose texts are symbols.
#[derive(Clone, Debug)]
pub(crate) struct Compiled {
    /// `None`: a text that nothing has.
    dimensions: Option<Vec<(usize, Symbol)>>,
    pub(crate) buckets: Range<Bucket>,
    pub(crate) state: Option<BucketState>,
}

impl Compiled {
    pub(crate) fn new(filter: &Filter, symbols: &Symbols) -> Compiled {
        let dimensions =
            filter.dimensions.iter().map(|(at, text)| Some((*at, symbols.find(text)?))).collect();
        let all = Bucket(i32::MIN)..Bucket(i32::MAX);
        let buckets = filter.buckets.clone().unwrap_or(all);
        Compiled { dimensions, buckets, state: filter.state }
    }

    /// Whether no row can match, because no event had one of the texts.
    pub(crate) fn is_empty(&self) -> bool {
        self.dimensions.is_none()
    }

    /// Which rows of a bucket have to be read.
    pub(crate) fn reach(&self) -> Reach {
        let first = self.dimensions.iter().flatten().find(|(at, _)| *at == 0);
        first.map_or(Reach::All, |&(_, symbol)| Reach::First(symbol))
    }

    /// Whether a row is in the view and has the dimensions.
    #[inline]
    pub(crate) fn takes<const N: usize, M: Group>(&self, row: &Row<N, M>) -> bool {
        let Some(dimensions) = &self.dimensions else { return false };
        row.is_present() && dimensions.iter().all(|&(at, symbol)| row.key[at] == symbol)
    }
}

/// The answer's rows while they are added up.
struct Sums<const N: usize, M> {
    rows: Vec<Sum<N, M>>,
    index: HashTable<u32>,
    /// The row that was added to last: rows of one key often come one after another.
    last: usize,
    /// By row: figures that left the range of the group's counters, not yet rounded.
    spilled: HashMap<u32, Vec<i128>>,
}

struct Sum<const N: usize, M> {
    slot: u32,
    state: BucketState,
    /// The kept dimensions, in the order of the answer.
    key: [Symbol; N],
    version: u64,
    metrics: M,
}

fn hash_of<const N: usize>(slot: u32, key: &[Symbol; N]) -> u64 {
    key.iter().fold(u64::from(slot), |h, &s| mix(h, u64::from(s)))
}

impl<const N: usize, M: Group> Sums<N, M> {
    fn push(&mut self, slot: u32, key: [Symbol; N], row: &Row<N, M>, state: BucketState) {
        let (version, metrics) = (u64::from(row.version), row.metrics);
        self.rows.push(Sum { slot, state, key, version, metrics });
    }

    fn add(&mut self, slot: u32, key: [Symbol; N], row: &Row<N, M>, state: BucketState) {
        let is_it = |sum: &Sum<N, M>| sum.slot == slot && sum.key == key;
        if !self.rows.get(self.last).is_some_and(is_it) {
            let rows = &self.rows;
            let hash = hash_of(slot, &key);
            let Some(&found) = self.index.find(hash, |&i| is_it(&rows[i as usize])) else {
                self.last = rows.len();
                self.index.insert_unique(hash, rows.len() as u32, |&i| {
                    hash_of(rows[i as usize].slot, &rows[i as usize].key)
                });
                self.push(slot, key, row, state);
                return;
            };
            self.last = found as usize;
        }
        let sum = &mut self.rows[self.last];
        sum.version += u64::from(row.version);
        sum.state = least_final(sum.state, state);
        let before = sum.metrics;
        if !sum.metrics.add(&row.metrics) {
            spill(self.spilled.entry(self.last as u32).or_default(), &before);
            sum.metrics = row.metrics;
        }
    }
}

/// Adds what the group's counters cannot hold. Exact: `i128` is beyond any number of rows.
fn spill<M: Group>(into: &mut Vec<i128>, metrics: &M) {
    let mut figures = Vec::with_capacity(M::COLUMNS.len());
    metrics.exact(&mut figures);
    into.resize(figures.len(), 0);
    for (a, b) in into.iter_mut().zip(figures) {
        *a += b;
    }
}

/// The figures of a sum of which a part was spilled: rounded once, after everything was added. One
/// that no answer can hold stands at the limit of `i64`.
fn figures_of<M: Group>(spilled: &[i128], metrics: &M, out: &mut Vec<i64>) {
    let mut all = spilled.to_vec();
    spill(&mut all, metrics);
    let figure = |(column, exact): (usize, i128)| {
        M::rounded(column, exact).clamp(i64::MIN.into(), i64::MAX.into()) as i64
    };
    out.extend(all.into_iter().enumerate().map(figure));
}

/// The state of a row that adds up two buckets.
fn least_final(a: BucketState, b: BucketState) -> BucketState {
    // Restated is the greatest, so one that is not final wins, and of two final ones the restated.
    if a.is_finalized() && b.is_finalized() { a.max(b) } else { a.min(b) }
}

pub(crate) fn sum<const N: usize, M: Group>(
    views: &Views<N, M>,
    query: &SumQuery,
    at: EpochTimes,
) -> Result<Summed, ReadError> {
    let filter = Compiled::new(&query.filter, &views.symbols);
    if matches!(query.slots, Slots::One | Slots::Joined(_)) {
        check_kept(views, query, at)?;
    }
    let mut sums =
        Sums { rows: Vec::new(), index: HashTable::new(), last: 0, spilled: HashMap::new() };
    if !filter.is_empty() {
        let mut left = query.scan_rows_max;
        for span in query.spans() {
            collect(views, query, &span, &filter, at, &mut left, &mut sums)?;
        }
    }
    Ok(Summed { at, rows: sorted(views, query, &sums) })
}

/// Refuses a row over a range of which a part has left the view.
fn check_kept<const N: usize, M: Group>(
    views: &Views<N, M>,
    query: &SumQuery,
    at: EpochTimes,
) -> Result<(), ReadError> {
    for (granularity, buckets) in query.spans() {
        let start_us = granularity.start(buckets.start).0;
        let kept_from_us = views.kept_from_us(granularity, at);
        if !buckets.is_empty() && start_us < kept_from_us {
            return Err(ReadError::NotKept { granularity, start_us, kept_from_us });
        }
    }
    Ok(())
}

fn collect<const N: usize, M: Group>(
    views: &Views<N, M>,
    query: &SumQuery,
    (granularity, buckets): &Span,
    filter: &Compiled,
    at: EpochTimes,
    left: &mut u64,
    sums: &mut Sums<N, M>,
) -> Result<(), ReadError> {
    let table = TableId { rollup: query.rollup, granularity: *granularity };
    let first_kept = granularity.bucket(EventTime(views.kept_from_us(*granularity, at)));
    // Every row of the table is one of the answer: nothing has to be looked up. (With a single
    // dimension the `(other)` row of a key has the same key, so those two have to meet.)
    let dimensions = views.dimensions(table);
    let is_one_to_one =
        query.slots == Slots::Each && dimensions > 1 && keeps_all(&query.by, filter, dimensions);
    let mut chunk = Vec::new();
    for shard in &views.shards {
        for bucket in shard.buckets(table, buckets) {
            let Some(state) = views.state(table.granularity, bucket, at) else { continue };
            if query.finalized_only && !state.is_finalized() {
                continue;
            }
            let slot = slot_of(&query.slots, bucket.0 - buckets.start.0);
            if first_of(query, slot) < first_kept {
                continue;
            }
            let mut reader = BucketReader::new(shard, table, bucket, at.epoch, filter.reach())?;
            let mut place = Some(0);
            while let Some(from) = place {
                chunk.clear();
                place = reader.read(from, &mut chunk)?;
                *left = left
                    .checked_sub(chunk.len() as u64)
                    .ok_or(ReadError::TooMuchToRead { scan_rows_max: query.scan_rows_max })?;
                for (_, row) in chunk.iter().filter(|(_, row)| filter.takes(row)) {
                    let key = kept(&query.by, row);
                    if is_one_to_one {
                        sums.push(slot, key, row, state);
                    } else {
                        sums.add(slot, key, row, state);
                    }
                }
                if sums.rows.len() > query.rows_max {
                    return Err(ReadError::TooManyRows { rows_max: query.rows_max });
                }
            }
        }
    }
    Ok(())
}

/// Whether each dimension either stays or has one value only.
fn keeps_all(by: &[usize], filter: &Compiled, dimensions: usize) -> bool {
    let fixed = |d: usize| filter.dimensions.iter().flatten().any(|&(at, _)| at == d);
    (0..dimensions).all(|d| by.contains(&d) || fixed(d))
}

#[inline]
fn kept<const N: usize, M>(by: &[usize], row: &Row<N, M>) -> [Symbol; N] {
    let mut key = [0; N];
    for (to, &from) in key.iter_mut().zip(by) {
        *to = row.key[from];
    }
    key
}

fn slot_of(slots: &Slots, offset: i32) -> u32 {
    match slots {
        Slots::Each => offset as u32,
        Slots::One | Slots::Joined(_) => 0,
        Slots::Mapped { slot_of, .. } => slot_of.get(offset as usize).copied().unwrap_or(0),
    }
}

/// The first bucket of a slot that has several, which has to be kept for the slot to be whole.
fn first_of(query: &SumQuery, slot: u32) -> Bucket {
    match &query.slots {
        Slots::Mapped { slot_of, .. } => {
            Bucket(query.buckets.start.0 + slot_of.partition_point(|&s| s < slot) as i32)
        }
        // The others were checked, or are of one bucket each.
        _ => Bucket(i32::MAX),
    }
}

fn start_of(query: &SumQuery, slot: u32) -> i64 {
    let first = query.buckets.start;
    match &query.slots {
        Slots::Each => query.granularity.start(Bucket(first.0 + slot as i32)).0,
        Slots::One | Slots::Joined(_) => query.granularity.start(first).0,
        Slots::Mapped { starts_us, .. } => starts_us.get(slot as usize).copied().unwrap_or(0),
    }
}

fn sorted<const N: usize, M: Group>(
    views: &Views<N, M>,
    query: &SumQuery,
    sums: &Sums<N, M>,
) -> RowBlock {
    let width = query.by.len();
    let mut block = RowBlock::new(width, M::COLUMNS.len());
    for i in order(&views.symbols, width, &sums.rows) {
        let row = &sums.rows[i as usize];
        let figures = |out: &mut Vec<i64>| match sums.spilled.get(&i) {
            Some(spilled) => figures_of(spilled, &row.metrics, out),
            None => row.metrics.columns(out),
        };
        let start_us = start_of(query, row.slot);
        block.push(start_us, &row.key[..width], figures, row.version, row.state, (1, false));
    }
    block
}

/// The places of rows in the order of the answer: by slot, then by the texts of the dimensions.
fn order<const N: usize, M>(symbols: &Symbols, width: usize, rows: &[Sum<N, M>]) -> Vec<u32> {
    let (ranks, distinct) = ranks(symbols, rows.iter().flat_map(|r| &r.key[..width]));
    let rank = |symbol: &Symbol| ranks[*symbol as usize];
    let bits = u32::BITS - distinct.leading_zeros();
    if width as u32 * bits <= 64 {
        // Everything that is compared fits into one number.
        let packed = |(i, row): (usize, &Sum<N, M>)| {
            let key = row.key[..width].iter().fold(0, |k, s| k << bits | u128::from(rank(s)));
            u128::from(row.slot) << 96 | key << 32 | i as u128
        };
        let mut order: Vec<u128> = rows.iter().enumerate().map(packed).collect();
        order.sort_unstable();
        return order.into_iter().map(|packed| packed as u32).collect();
    }
    let key = |row: &Sum<N, M>| (row.slot, row.key.map(|s| ranks.get(s as usize).copied()));
    let mut order: Vec<u32> = (0..rows.len() as u32).collect();
    order.sort_by_cached_key(|&i| key(&rows[i as usize]));
    order
}

/// By symbol, where it stands among all of these by its text; and how many there are.
fn ranks<'a>(symbols: &Symbols, of: impl Iterator<Item = &'a Symbol>) -> (Vec<u32>, u32) {
    let mut ranks: Vec<u32> = vec![0; symbols.len()];
    let mut distinct = Vec::new();
    for &symbol in of {
        if std::mem::replace(&mut ranks[symbol as usize], 1) == 0 {
            distinct.push(symbol);
        }
    }
    let mut texts: Vec<_> =
        symbols.with_texts(|text| distinct.iter().map(|&s| (text(s), s)).collect());
    texts.sort_unstable();
    for (rank, (_, symbol)) in (0..).zip(&texts) {
        ranks[*symbol as usize] = rank;
    }
    (ranks, texts.len() as u32)
}

/// Whether a shard has the `(other)` rows of its worker.
pub(crate) fn is_folded(shard: usize) -> bool {
    !shard.is_multiple_of(STAGES)
}

/// Appends a row of a table to a block.
pub(crate) fn push_row<const N: usize, M: Group>(
    block: &mut RowBlock,
    dimensions: usize,
    start_us: i64,
    row: &Row<N, M>,
    state: BucketState,
    diff: (i8, bool),
) {
    let figures = |out: &mut Vec<i64>| row.metrics.columns(out);
    let key = &row.key[..dimensions];
    block.push(start_us, key, figures, u64::from(row.version), state, diff);
}

pub(crate) fn page<const N: usize, M: Group>(
    views: &Views<N, M>,
    table: TableId,
    filter: &Filter,
    at: EpochTimes,
    from: Option<Place>,
    rows_max: usize,
) -> Result<Page, ReadError> {
    let filter = Compiled::new(filter, &views.symbols);
    let dimensions = views.dimensions(table);
    let mut rows = RowBlock::new(dimensions, M::COLUMNS.len());
    let end = Ok(Page { at, rows: rows.clone(), next: None });
    if filter.is_empty() {
        return end;
    }
    let mut chunk = Vec::new();
    let mut scanned = 0;
    for place in parts(views, table, &filter.buckets, from) {
        let Some(state) = views.state(table.granularity, place.bucket, at) else { continue };
        if filter.state.is_some_and(|s| s != state) {
            continue;
        }
        let start_us = table.granularity.start(place.bucket).0;
        let shard = &views.shards[place.shard as usize];
        let folded = is_folded(place.shard as usize);
        let mut reader = BucketReader::new(shard, table, place.bucket, at.epoch, filter.reach())?;
        let mut next = Some(place.row);
        while let Some(row) = next {
            if scanned >= PAGE_SCAN_ROWS {
                return Ok(Page { at, rows, next: Some(Place { row, ..place }) });
            }
            chunk.clear();
            next = reader.read(row, &mut chunk)?;
            scanned += chunk.len();
            for ((_, found), number) in chunk.iter().zip(row..) {
                if !filter.takes(found) {
                    continue;
                }
                if rows.len() == rows_max {
                    return Ok(Page { at, rows, next: Some(Place { row: number, ..place }) });
                }
                push_row(&mut rows, dimensions, start_us, found, state, (1, folded));
            }
        }
    }
    Ok(Page { at, rows, next: None })
}

/// The (bucket, worker)s of a table in the order of pages, from a place on.
fn parts<const N: usize, M: Group>(
    views: &Views<N, M>,
    table: TableId,
    range: &Range<Bucket>,
    from: Option<Place>,
) -> Vec<Place> {
    let range = match from {
        Some(place) => place.bucket.max(range.start)..range.end,
        None => range.clone(),
    };
    let mut parts = Vec::new();
    for (shard, of) in views.shards.iter().enumerate() {
        let place = |bucket| Place { bucket, shard: shard as u32, row: 0, run: views.run };
        parts.extend(of.buckets(table, &range).into_iter().map(place));
    }
    parts.sort_unstable_by_key(|p| (p.bucket, p.shard));
    if let Some(from) = from {
        parts.retain(|p| (p.bucket, p.shard) >= (from.bucket, from.shard));
        if let Some(first) = parts.first_mut()
            && (first.bucket, first.shard) == (from.bucket, from.shard)
        {
            first.row = from.row;
        }
    }
    parts
}

/// Where the view of a fate begins at an epoch.
pub(crate) fn cut<const N: usize, M: Group>(
    views: &Views<N, M>,
    list: usize,
    epoch: Epoch,
) -> IncidentKey {
    incidents::cut(epoch, views.settings.incidents_max, |f| {
        views.shards.iter().map(|shard| f(&shard.0.read().lists[list])).sum()
    })
}

pub(crate) fn incidents<const N: usize, M: Group>(
    views: &Views<N, M>,
    fates: &[Fate],
    at: EpochTimes,
    before: Option<IncidentKey>,
    rows_max: usize,
) -> Result<IncidentPage, ReadError> {
    let end = incidents::first_of(at.epoch + 1);
    let before = before.map_or(end, |b| b.min(end));
    let (mut found, mut total) = (Vec::new(), 0);
    for list in fates.iter().filter_map(|&f| incidents::list_of(f)) {
        let cut = cut(views, list, at.epoch);
        for shard in &views.shards {
            let state = shard.0.read();
            state.check(at.epoch)?;
            total += state.lists[list].total(at.epoch);
            state.lists[list].newest(cut, before, rows_max, &mut found);
        }
    }
    let mut incidents: Vec<_> =
        found.into_iter().map(|(epoch, i)| ((epoch, i.position), i)).collect();
    incidents.sort_unstable_by_key(|(key, _)| std::cmp::Reverse(*key));
    incidents.truncate(rows_max);
    Ok(IncidentPage { at, incidents, total })
}

pub(crate) fn row_counts<const N: usize, M: Group>(
    views: &Views<N, M>,
) -> Result<(EpochTimes, Vec<u64>), ReadError> {
    use crate::catalog::ViewKind;
    let at = views.epochs.at(None)?;
    let mut counts = Vec::new();
    for view in views.catalog.views() {
        counts.push(match view.kind {
            ViewKind::Table(table) => table_rows(views, table, at)?,
            ViewKind::Events(fates) => listed(views, fates, at)?,
        });
    }
    Ok((at, counts))
}

fn table_rows<const N: usize, M: Group>(
    views: &Views<N, M>,
    table: TableId,
    at: EpochTimes,
) -> Result<u64, ReadError> {
    let is_kept = |b| views.state(table.granularity, b, at).is_some();
    let mut present = 0_i64;
    for shard in &views.shards {
        let state = shard.0.read();
        state.check(at.epoch)?;
        let buckets = state.tables[Catalog::slot(table)].iter();
        present += buckets.filter(|(b, _)| is_kept(**b)).map(|(_, r)| r.present).sum::<i64>();
        for past in state.history.between(at.epoch, Epoch::MAX) {
            let newer = past.changes.iter().zip(&past.more_rows);
            let of_table = newer.filter(|(c, _)| c.table == table && is_kept(c.bucket));
            present -= of_table.map(|(_, &more)| i64::from(more)).sum::<i64>();
        }
    }
    Ok(present.max(0) as u64)
}

fn listed<const N: usize, M: Group>(
    views: &Views<N, M>,
    fates: &[Fate],
    at: EpochTimes,
) -> Result<u64, ReadError> {
    let mut rows = 0;
    for list in fates.iter().filter_map(|&f| incidents::list_of(f)) {
        let mut of_list = 0;
        for shard in &views.shards {
            let state = shard.0.read();
            state.check(at.epoch)?;
            of_list += state.lists[list].total(at.epoch);
        }
        rows += of_list.min(views.settings.incidents_max as u64);
    }
    Ok(rows)
}

/// The buckets of a table whose ends lie in `(after, upto]`, as a range.
pub(crate) fn ending_in(table: Granularity, after_us: i64, upto_us: i64) -> Range<Bucket> {
    let width = table.width_us();
    // `end(b) = (b + 1) · width`, so `end(b) <= t` is `b < floor(t / width)`.
    let bound = |us: i64| Bucket(us.div_euclid(width).clamp(-1 << 31, (1 << 31) - 1) as i32);
    bound(after_us)..bound(upto_us)
}
