//! Subscriptions. A follower is at an epoch *a* and is brought to the newest one *c* by the
//! consolidated difference between the two: for each row that changed in between, −what it was at
//! *a* +what it is at *c*; and for each bucket whose state changed, all its rows. A live tick has
//! one epoch in between, a slow reader many, and a resume is a follower that begins at the epoch
//! that the reader names. A snapshot is the way from nothing to an epoch.
//!
//! The way is cut into parts (worker, bucket) and walked in steps, so that a difference of a
//! million rows takes no more memory than one of [`WINDOW_ROWS`], and a filter that nothing matches
//! keeps no thread for longer than it takes to look at [`STEP_ROWS`]. Between steps the follower
//! holds nothing but its place; if the history moves past *a* before it arrives, it gets `Gone` and
//! its reader is cut off.

use super::{
    Views,
    history::Past,
    read::{self, Compiled, push_row},
    rows::Row,
    shard::{BucketReader, Reach},
};
use crate::{
    block::RowBlock,
    incidents,
    tables::{Filter, Follow, IncidentKey, ReadError, Start, Step},
};
use hashbrown::HashMap;
use std::{
    collections::{BTreeSet, VecDeque},
    ops::Range,
    sync::Arc,
};
use trueup_operators::{
    change::{Change, Incident, TableId},
    event::Fate,
    feed::EpochTimes,
    metrics::Group,
    time::{Bucket, BucketState, Epoch},
};

/// A bucket's differences are gathered for this many row numbers at a time.
const WINDOW_ROWS: u32 = 1 << 15;

/// A step looks at about this many rows, whether they match or not.
const STEP_ROWS: usize = 1 << 16;

/// A part of the way from one epoch to another.
#[derive(Clone, Copy, Debug)]
struct Part {
    shard: usize,
    bucket: Bucket,
    /// Every row, not only those that changed: the bucket's state did.
    whole: bool,
    /// Where in the bucket the next step begins.
    next: u32,
}

/// The way from one epoch to another.
struct Way {
    from: Option<EpochTimes>,
    to: EpochTimes,
    filter: Compiled,
    /// Buckets that leave the view end as final ones.
    leavers_stay: bool,
    parts: VecDeque<Part>,
}

impl Way {
    /// A bucket's state at both ends; none where it is not in the view.
    fn states<const N: usize, M: Group>(
        &self,
        views: &Views<N, M>,
        table: TableId,
        bucket: Bucket,
    ) -> (Option<BucketState>, Option<BucketState>) {
        let state = |at| views.state(table.granularity, bucket, at);
        let (was, is) = (self.from.and_then(state), state(self.to));
        let stays = self.leavers_stay && was.is_some();
        (was, is.or(stays.then_some(BucketState::Final)))
    }
}

/// What a row was, and what it is.
type Pair<const N: usize, M> = (Row<N, M>, Row<N, M>);

/// Follows one table.
pub(crate) struct TableFollower<const N: usize, M> {
    views: Arc<Views<N, M>>,
    table: TableId,
    filter: Filter,
    at: Option<EpochTimes>,
    way: Option<Way>,
    /// Changed rows of the first part that were gathered and not handed out yet.
    gathered: VecDeque<Pair<N, M>>,
}

impl<const N: usize, M: Group> TableFollower<N, M> {
    pub(crate) fn new(
        views: Arc<Views<N, M>>,
        table: TableId,
        filter: Filter,
        start: Start,
    ) -> Result<Self, ReadError> {
        let (at, way) = match start {
            Start::After(epoch) => (Some(views.epochs.at(epoch)?), None),
            Start::Snapshot(epoch) => {
                let to = views.epochs.at(epoch)?;
                (None, Some(plan(&views, table, &filter, None, to)?))
            }
            Start::Between(from, to) => {
                let (from, to) = both(&views, from, to)?;
                (Some(from), Some(plan(&views, table, &filter, Some(from), to)?))
            }
        };
        let gathered = VecDeque::new();
        Ok(TableFollower { views, table, filter, at, way, gathered })
    }

    /// Hands out gathered rows of a part, and drops the part when it is done.
    fn hand_out(&mut self, way: &mut Way, part: Part, rows_max: usize, rows: &mut RowBlock) {
        let views = &self.views;
        let dimensions = views.dimensions(self.table);
        let start_us = self.table.granularity.start(part.bucket).0;
        let (was, is) = way.states(views, self.table, part.bucket);
        let folded = read::is_folded(part.shard);
        while rows.len() < rows_max
            && let Some((old, new)) = self.gathered.pop_front()
        {
            if old == new && was == is {
                continue;
            }
            for (row, state, diff) in [(&old, was, -1), (&new, is, 1)] {
                if let Some(state) = state
                    && way.filter.takes(row)
                    && way.filter.state.is_none_or(|s| s == state)
                {
                    push_row(rows, dimensions, start_us, row, state, (diff, folded));
                }
            }
        }
    }

    /// Gathers the next rows of a part. Returns where it goes on; `None` at its end.
    fn gather(&mut self, way: &Way, part: Part) -> Result<Option<u32>, ReadError> {
        if part.whole { self.gather_all(way, part) } else { self.gather_changed(way, part) }
    }

    fn gather_all(&mut self, way: &Way, part: Part) -> Result<Option<u32>, ReadError> {
        let (shard, reach) = (&self.views.shards[part.shard], way.filter.reach());
        let reader = |epoch| BucketReader::new(shard, self.table, part.bucket, epoch, reach);
        let mut new_rows = Vec::new();
        let next = reader(way.to.epoch)?.read(part.next, &mut new_rows)?;
        let mut old_rows = Vec::new();
        if let Some(from) = way.from {
            let numbers: Vec<u32> = new_rows.iter().map(|r| r.0).collect();
            reader(from.epoch)?.fetch(&numbers, &mut old_rows)?;
        } else {
            old_rows = vec![(0, Row::absent()); new_rows.len()];
        }
        self.gathered.extend(old_rows.into_iter().zip(new_rows).map(|(o, n)| (o.1, n.1)));
        Ok(next)
    }

    fn gather_changed(&mut self, way: &Way, part: Part) -> Result<Option<u32>, ReadError> {
        let Some(from) = way.from else { return Ok(None) };
        let commits = self.views.shards[part.shard].between(from.epoch, way.to.epoch)?;
        let (table, bucket) = (self.table, part.bucket);
        let window = part.next..part.next.saturating_add(WINDOW_ROWS);
        let of_bucket: Vec<&Arc<Past<N, M>>> =
            commits.iter().filter(|p| p.of_bucket(table, bucket).next().is_some()).collect();
        let changes = of_bucket.iter().flat_map(|p| p.of_bucket(table, bucket));
        let reach = way.filter.reach();
        if of_bucket.len() == 1 {
            return Ok(self.gather_single(changes, &window, reach));
        }
        let mut goes_on = false;
        let mut pairs: HashMap<u32, Pair<N, M>> = HashMap::new();
        for change in changes.filter(|c| reach.takes(c)) {
            goes_on |= change.row >= window.end;
            if window.contains(&change.row) {
                pairs
                    .entry(change.row)
                    .and_modify(|pair| pair.1 = Row::after(change))
                    .or_insert_with(|| (Row::before(change), Row::after(change)));
            }
        }
        self.gathered.extend(pairs.into_values());
        Ok(goes_on.then_some(window.end))
    }

    /// One epoch changed the bucket: each row stands there once, with old and new.
    fn gather_single<'a>(
        &mut self,
        changes: impl Iterator<Item = &'a Change<N, M>>,
        window: &Range<u32>,
        reach: Reach,
    ) -> Option<u32> {
        let mut goes_on = false;
        for change in changes.filter(|c| reach.takes(c)) {
            goes_on |= change.row >= window.end;
            if window.contains(&change.row) {
                self.gathered.push_back((Row::before(change), Row::after(change)));
            }
        }
        goes_on.then_some(window.end)
    }

    fn walk(
        &mut self,
        way: &mut Way,
        rows_max: usize,
        rows: &mut RowBlock,
    ) -> Result<(), ReadError> {
        let mut looked_at = 0;
        while let Some(&part) = way.parts.front() {
            if self.gathered.is_empty() {
                let next = self.gather(way, part)?;
                // A part without rows takes its time as well.
                looked_at += self.gathered.len().max(1);
                match (next, way.parts.front_mut()) {
                    (Some(next), Some(front)) => front.next = next,
                    // The part ends with what was gathered; the marker says so.
                    (_, Some(front)) => front.next = u32::MAX,
                    (_, None) => {}
                }
            }
            self.hand_out(way, part, rows_max, rows);
            if !self.gathered.is_empty() {
                return Ok(());
            }
            if way.parts.front().is_some_and(|p| p.next == u32::MAX) {
                way.parts.pop_front();
            }
            if rows.len() >= rows_max || looked_at >= STEP_ROWS {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl<const N: usize, M: Group> Follow for TableFollower<N, M> {
    fn step(
        &mut self,
        rows_max: usize,
        rows: &mut RowBlock,
        _incidents: &mut Vec<(i8, Incident)>,
    ) -> Result<Step, ReadError> {
        rows.reset(self.views.dimensions(self.table), M::COLUMNS.len());
        let mut way = match self.way.take() {
            Some(way) => way,
            None => {
                let newest = self.views.epochs.at(None)?;
                if self.at.is_some_and(|at| at.epoch >= newest.epoch) {
                    return Ok(Step::Idle);
                }
                plan(&self.views, self.table, &self.filter, self.at, newest)?
            }
        };
        self.walk(&mut way, rows_max.max(1), rows)?;
        if way.parts.is_empty() {
            self.at = Some(way.to);
            return Ok(Step::Reached(way.to));
        }
        let to = way.to;
        self.way = Some(way);
        Ok(Step::More(to))
    }

    fn at(&self) -> Option<EpochTimes> {
        self.at
    }

    fn in_snapshot(&self) -> bool {
        self.at.is_none()
    }
}

/// The times of two epochs, of which the second is not the older one.
fn both<const N: usize, M: Group>(
    views: &Views<N, M>,
    from: Epoch,
    to: Epoch,
) -> Result<(EpochTimes, EpochTimes), ReadError> {
    Ok((views.epochs.at(Some(from))?, views.epochs.at(Some(to.max(from)))?))
}

/// Finds the buckets that differ between two epochs.
fn plan<const N: usize, M: Group>(
    views: &Views<N, M>,
    table: TableId,
    filter: &Filter,
    from: Option<EpochTimes>,
    to: EpochTimes,
) -> Result<Way, ReadError> {
    let compiled = Compiled::new(filter, &views.symbols);
    let is_empty = compiled.is_empty();
    let leavers_stay = filter.leavers_stay;
    let mut way = Way { from, to, filter: compiled, leavers_stay, parts: VecDeque::new() };
    if is_empty {
        return Ok(way);
    }
    for (number, shard) in views.shards.iter().enumerate() {
        let part = |bucket, whole| Part { shard: number, bucket, whole, next: 0 };
        let range = &way.filter.buckets;
        let Some(from) = from else {
            let is_kept = |&b: &Bucket| views.state(table.granularity, b, to).is_some();
            let buckets = shard.buckets(table, range).into_iter().filter(is_kept);
            way.parts.extend(buckets.map(|b| part(b, true)));
            continue;
        };
        let whole = transitions(views, shard, table, &way, from);
        let commits = shard.between(from.epoch, to.epoch)?;
        let changed: BTreeSet<Bucket> = commits
            .iter()
            .flat_map(|p| p.buckets(table))
            .filter(|b| range.contains(b) && !whole.contains(b))
            .collect();
        way.parts.extend(whole.iter().map(|&b| part(b, true)));
        way.parts.extend(changed.into_iter().map(|b| part(b, false)));
    }
    Ok(way)
}

/// The buckets of a shard whose state differs between the ends of a way.
fn transitions<const N: usize, M: Group>(
    views: &Views<N, M>,
    shard: &super::shard::Shard<N, M>,
    table: TableId,
    way: &Way,
    from: EpochTimes,
) -> BTreeSet<Bucket> {
    let lateness = &views.settings.lateness;
    let gone_us = views.settings.kept_us(table.granularity);
    let range = &way.filter.buckets;
    let mut found = BTreeSet::new();
    for after_end_us in [lateness.allowed_lateness_us, lateness.correction_horizon_us, gone_us] {
        let ending = read::ending_in(
            table.granularity,
            from.frontier.0.saturating_sub(after_end_us),
            way.to.frontier.0.saturating_sub(after_end_us),
        );
        let both = ending.start.max(range.start)..ending.end.min(range.end);
        let differs = |b: &Bucket| -> bool {
            let (was, is) = way.states(views, table, *b);
            was != is
        };
        found.extend(shard.buckets(table, &both).into_iter().filter(differs));
    }
    found
}

/// Follows a list of events: what came is added, what was pushed out is taken away.
pub(crate) struct EventFollower<const N: usize, M> {
    views: Arc<Views<N, M>>,
    lists: Vec<usize>,
    at: Option<EpochTimes>,
    way: Option<EventWay>,
}

struct EventWay {
    to: EpochTimes,
    /// Keys `from..to` of a worker's list, to be added or taken away.
    parts: VecDeque<EventPart>,
}

#[derive(Clone, Copy)]
struct EventPart {
    shard: usize,
    list: usize,
    from: IncidentKey,
    to: IncidentKey,
    diff: i8,
}

impl<const N: usize, M: Group> EventFollower<N, M> {
    pub(crate) fn new(
        views: Arc<Views<N, M>>,
        fates: Vec<Fate>,
        start: Start,
    ) -> Result<Self, ReadError> {
        let lists = fates.into_iter().filter_map(incidents::list_of).collect();
        let mut follower = EventFollower { views, lists, at: None, way: None };
        match start {
            Start::After(epoch) => follower.at = Some(follower.views.epochs.at(epoch)?),
            Start::Snapshot(epoch) => {
                let to = follower.views.epochs.at(epoch)?;
                follower.way = Some(follower.plan(to));
            }
            Start::Between(from, to) => {
                let (from, to) = both(&follower.views, from, to)?;
                follower.at = Some(from);
                follower.way = Some(follower.plan(to));
            }
        }
        Ok(follower)
    }

    fn plan(&self, to: EpochTimes) -> EventWay {
        let mut parts = VecDeque::new();
        for &list in &self.lists {
            let cut_to = read::cut(&self.views, list, to.epoch);
            let end = incidents::first_of(to.epoch + 1);
            // Keys in `begin..end` are new; keys in `cut_from..begin` were there.
            let (cut_from, begin) = match self.at {
                Some(at) => {
                    (read::cut(&self.views, list, at.epoch), incidents::first_of(at.epoch + 1))
                }
                None => (cut_to, cut_to),
            };
            for shard in 0..self.views.shards.len() {
                let part = |from, to, diff| EventPart { shard, list, from, to, diff };
                parts.push_back(part(cut_from, cut_to.min(begin), -1));
                parts.push_back(part(begin.max(cut_to), end, 1));
            }
        }
        EventWay { to, parts }
    }
}

impl<const N: usize, M: Group> Follow for EventFollower<N, M> {
    fn step(
        &mut self,
        rows_max: usize,
        _rows: &mut RowBlock,
        incidents: &mut Vec<(i8, Incident)>,
    ) -> Result<Step, ReadError> {
        incidents.clear();
        let mut way = match self.way.take() {
            Some(way) => way,
            None => {
                let newest = self.views.epochs.at(None)?;
                if self.at.is_some_and(|at| at.epoch >= newest.epoch) {
                    return Ok(Step::Idle);
                }
                self.plan(newest)
            }
        };
        let mut found = Vec::new();
        while let Some(part) = way.parts.front_mut()
            && incidents.len() < rows_max
        {
            found.clear();
            let room = rows_max - incidents.len();
            {
                let state = self.views.shards[part.shard].0.read();
                // What the oldest readable epoch shows is kept, so this covers what was pushed out.
                state.check(self.at.map_or(way.to.epoch, |at| at.epoch))?;
                state.lists[part.list].range(part.from, part.to, room, &mut found);
            }
            incidents.extend(found.iter().map(|&(_, incident)| (part.diff, incident)));
            match found.last() {
                Some(&(epoch, last)) if found.len() == room => {
                    part.from = after((epoch, last.position));
                }
                _ => {
                    way.parts.pop_front();
                }
            }
        }
        if way.parts.is_empty() {
            self.at = Some(way.to);
            return Ok(Step::Reached(way.to));
        }
        let to = way.to;
        self.way = Some(way);
        Ok(Step::More(to))
    }

    fn at(&self) -> Option<EpochTimes> {
        self.at
    }

    fn in_snapshot(&self) -> bool {
        self.at.is_none()
    }
}

/// The least key that is greater.
fn after((epoch, mut position): IncidentKey) -> IncidentKey {
    match position.row.checked_add(1) {
        Some(row) => position.row = row,
        None => (position.row, position.offset) = (0, position.offset + 1),
    }
    (epoch, position)
}
