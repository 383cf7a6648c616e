//! Events come in. While one is entered, the memory that the sixteenth after it will touch is asked
//! for: its line of the index, and the place that it will be appended to. Without that an event
//! waits for memory twice.
//!
//! The common event, new and with nothing said about it, takes the short way through
//! [`Ledger::enter`]: one line of the index, one append. What can make it invalid is asked
//! only if the batch has groups or the filter of verdicts does not say "never heard of it".

use super::{
    Ledger, LedgerFault, Ledgered, RowDelta, Standing,
    groups::RowRef,
    row::{self, Place, Row, minute_of, spread},
    vnode::Entered,
};
use crate::{
    change::{Counts, Incident},
    event::{EventBatch, Fate},
    feed::Located,
    hash::{self, IdHash},
    log::{FRAME_RECORDS_MAX, OFFSET_MAX, PARTITIONS_MAX},
    time::{Bucket, EventTime, Granularity, LogTime},
};
use std::sync::Arc;

/// How many events ahead memory is asked for. A core waits for some two dozen lines at a time, and
/// each event needs two. Measured: 8 to 32 are within 5 % of each other; asking for blocks of 64
/// and then entering the block took 40 % longer.
const AHEAD: usize = 16;

/// Forgotten rows that are swept for each event entered. Above one, so that sweeping ends.
const SWEEP_ROWS_PER_EVENT: u64 = 2;

impl Ledger {
    /// Enters a batch of the open epoch.
    ///
    /// # Errors
    /// When no epoch is open, or the batch is not within the limits of the log.
    pub fn enter<B: EventBatch>(
        &mut self,
        located: &Arc<Located<B>>,
    ) -> Result<Ledgered<B>, LedgerFault> {
        if self.times.is_none() {
            return Err(LedgerFault::Feed("a batch came before any epoch was opened".into()));
        }
        check(located)?;
        let rows = located.batch.len();
        let mut out = Ledgered {
            batch: Some(Arc::clone(located)),
            rows: Vec::with_capacity(rows),
            incidents: Vec::new(),
            counts: Counts::default(),
        };
        self.enter_rows(located, &mut out)?;
        self.sweep(SWEEP_ROWS_PER_EVENT * rows as u64);
        Ok(out)
    }

    fn enter_rows<B: EventBatch>(
        &mut self,
        located: &Located<B>,
        out: &mut Ledgered<B>,
    ) -> Result<(), LedgerFault> {
        let batch = &located.batch;
        let (ids, payloads, times) = (batch.ids(), batch.payloads(), batch.times_us());
        let extras = batch.has_groups();
        let mut hashes = [0; AHEAD];
        for (row, hash) in hashes.iter_mut().enumerate().take(ids.len()) {
            *hash = self.prefetch(batch, row, extras);
        }
        let place = Place::of_batch(located.partition, located.offset);
        let rows_max = self.settings.limits.rows_per_vnode_max;
        for row in 0..ids.len() {
            let hash = hashes[row % AHEAD];
            if row + AHEAD < ids.len() {
                hashes[row % AHEAD] = self.prefetch(batch, row + AHEAD, extras);
            }
            if self.settings.shuffled && !self.owns(&ids[row]) {
                continue;
            }
            let early = self.settings.lateness.too_early(EventTime(times[row]), located.log_time);
            if early || !batch.understood(row) {
                set_aside(out, located, row, Fate::Quarantined);
                continue;
            }
            let id = &ids[row];
            let minute = minute_of(times[row]);
            let too_late = self.settings.lateness.too_late(minute, located.log_time);
            let flags = if too_late { row::TOO_LATE } else { 0 };
            let new = Row::new(*id, payloads[row], minute, flags, place.with_row(row));
            let vnode = &mut self.vnodes[hash::vnode(id)];
            match vnode.enter(hash, &new, rows_max, &mut self.pool) {
                Entered::New(_) if too_late => set_aside(out, located, row, Fate::TooLate),
                Entered::New(number) => {
                    let ended = Granularity::Minute.end(minute).0 <= located.log_time.0;
                    out.counts.fates[Fate::Counted as usize] += 1;
                    out.counts.late += u64::from(ended);
                    let mut is = Standing::Valid;
                    if extras || self.event_filter.may_hold(hash) {
                        is = self.stand(located, row, number, out)?;
                    }
                    out.rows.push(RowDelta { row: row as u16, was: Standing::Absent, is });
                }
                Entered::Known(number) if vnode.rows.get(number).payload == new.payload => {
                    set_aside(out, located, row, Fate::Duplicate);
                }
                Entered::Known(_) => set_aside(out, located, row, Fate::Conflict),
                Entered::Full => set_aside(out, located, row, Fate::Quarantined),
            }
        }
        Ok(())
    }

    /// Whether an id of a shuffled batch is for this worker.
    fn owns(&self, id: &IdHash) -> bool {
        hash::vnode(id) as u32 % self.settings.peers == self.settings.worker
    }

    /// Asks for the memory that entering a row will touch; returns the hash of its id.
    #[inline(always)]
    fn prefetch<B: EventBatch>(&self, batch: &B, row: usize, extras: bool) -> u64 {
        let id = &batch.ids()[row];
        let hash = spread(id);
        self.vnodes[hash::vnode(id)].prefetch(hash);
        if extras && let Some(group) = batch.group(row) {
            self.groups.prefetch(&group);
        }
        hash
    }

    /// How a new event stands, given what was said about it and its impression; noted in its row.
    #[inline(never)]
    fn stand<B: EventBatch>(
        &mut self,
        located: &Located<B>,
        row: usize,
        number: u64,
        out: &mut Ledgered<B>,
    ) -> Result<Standing, LedgerFault> {
        let Located { batch, log_time, .. } = located;
        let id = &batch.ids()[row];
        let vnode = hash::vnode(id);
        let minute = self.vnodes[vnode].rows.get(number).minute();
        let extras = batch.has_groups();
        let born = extras && batch.born_invalid(row);
        let (event_invalid, refused) = self.waiting_on_event(id, minute, *log_time, born);
        out.counts.verdicts_too_late += u64::from(refused);
        let mut group_invalid = false;
        let group = if extras { batch.group(row) } else { None };
        if let Some(group) = &group {
            let refused;
            (group_invalid, refused) = self.waiting_on_group(group, minute, *log_time);
            out.counts.verdicts_too_late += u64::from(refused);
            if !self.groups.add(group, RowRef::new(vnode, number)) {
                let shard = hash::vnode(group);
                return Err(LedgerFault::GroupsFull { shard, members: self.groups.members(shard) });
            }
        }
        let entry = self.vnodes[vnode].rows.get_mut(number);
        entry.set(row::BORN_INVALID, born);
        entry.set(row::EVENT_INVALID, event_invalid);
        entry.set(row::GROUP_INVALID, group_invalid);
        entry.set(row::HAS_GROUP, group.is_some());
        Ok(entry.standing())
    }

    /// Whether an event that comes at a log time is invalid by itself, and whether a verdict that
    /// says otherwise came too late for it.
    fn waiting_on_event(
        &self,
        id: &IdHash,
        minute: Bucket,
        at: LogTime,
        born: bool,
    ) -> (bool, bool) {
        if !self.event_filter.may_hold(spread(id)) {
            return (born, false);
        }
        let memory = &self.event_verdicts[hash::vnode(id)];
        let ruling = memory.ruling(id, minute, &self.settings.lateness, at);
        ruling.map_or((born, false), |ruling| ruling.apply(born))
    }

    fn waiting_on_group(&self, group: &IdHash, minute: Bucket, at: LogTime) -> (bool, bool) {
        if !self.group_filter.may_hold(spread(group)) {
            return (false, false);
        }
        let ruling = self.group_verdicts.ruling(group, minute, &self.settings.lateness, at);
        ruling.map_or((false, false), |ruling| ruling.apply(false))
    }
}

/// Counts a row that does not count, and notes it for whoever asks.
#[cold]
fn set_aside<B: EventBatch>(out: &mut Ledgered<B>, located: &Located<B>, row: usize, fate: Fate) {
    out.counts.fates[fate as usize] += 1;
    let (position, log_time) = (located.position(row), located.log_time);
    out.incidents.push(Incident { fate, position, log_time });
}

/// What the layout of a row relies on; the log promises it.
fn check<B: EventBatch>(located: &Located<B>) -> Result<(), LedgerFault> {
    let Located { partition, offset, batch, .. } = located;
    let rows = batch.len();
    let slices = [batch.ids().len(), batch.payloads().len(), batch.times_us().len()];
    let within = *partition < PARTITIONS_MAX
        && *offset <= OFFSET_MAX
        && rows <= FRAME_RECORDS_MAX
        && slices.iter().all(|&len| len == rows);
    if within {
        return Ok(());
    }
    Err(LedgerFault::Feed(format!(
        "partition {partition} offset {offset} has {rows} rows and columns of {slices:?}; the \
         limits are {PARTITIONS_MAX} partitions, offset {OFFSET_MAX}, {FRAME_RECORDS_MAX} rows"
    )))
}
