//! The ledger: each event id counts once, and every verdict is carried through to the figures.
//!
//! # The problem
//!
//! Senders retry, logs redeliver, attackers copy. For a day or more every event must be told from
//! every other one exactly, because each is money: no filter that is right most of the time may
//! decide. And what was counted can be taken back: a verdict names an event of yesterday and says
//! that it was a bot. So for each event of the horizon the ledger remembers that it was there, what
//! it said (as a hash), how it stands, and where in the log it is. At a million events a second
//! that is the largest state of the system and the most random of its memory accesses; the
//! layout is made for those two.
//!
//! # Layout
//!
//! ```text
//! Ledger ── 256 × Vnode ── Ring of 32-byte rows, oldest first      32 bytes an event
//!    │                └─── Index: hash → number of the row        8.1 bytes an event on average
//!    ├───── Groups: impression → rows of it and of its clicks     for events that have one
//!    └───── Memory of verdicts: 256 × by event, 1 × by impression
//! ```
//!
//! [`row`] is what is kept of an event; [`ring`] never moves a row; [`lanes`] and [`index`] find
//! one with a single cache line and one look at the row; [`vnode`] forgets a slice of a day at a
//! stroke and cleans up behind itself little by little; [`groups`], [`verdicts`] and [`marks`] say
//! what they are; `entering` and `judging` hold the rules; `operator` is the timely operator;
//! [`image`] writes the ledger's part of a checkpoint and `load` reads it.
//!
//! # Rules
//!
//! Everything is a function of the log, cut into epochs by the remap, whatever the number of
//! workers. In each epoch, in this order:
//!
//! 1. *Forget*: an id of an epoch with latest log time `T` is forgotten when
//!    `lateness.forgotten(T, frontier_before)`, a verdict when it is `lateness.outlived`.
//! 2. *Events*, in the order of (offset, row) within each partition; all copies of an id are in one
//!    partition. Not understood: quarantined, and not entered. Known id: a duplicate, or with
//!    another payload a conflict. New but after the horizon of its minute: too late, entered only
//!    so that its copies are duplicates. Else counted: invalid if it was born so, unless a verdict
//!    on it waits that says valid; or if a waiting verdict on it or one on its impression says
//!    invalid; else valid.
//! 3. *Verdicts*, when all events and verdicts of the epoch are there; the latest `decided_at`
//!    wins, of two equal ones the later arrival, and one that loses repeats the one that won. One
//!    on the event and one on its impression stand side by side. One whose log time is after the
//!    horizon of the event's minute changes nothing for that event. Each event whose standing is
//!    another than before yields one difference.
//!
//! # Limits
//!
//! [`LedgerLimits`] names them. An event that would be one row too many for its vnode is
//! quarantined (an incident, never silent) and not entered, so a copy that comes when there is
//! room again counts; vnodes do not depend on the number of workers, so neither does this. Before
//! it comes to that, [`Ledger::is_nearly_full`] lets the runtime refuse intake. The memory that the
//! verdicts of one epoch take is 16 bytes for each event that they change, and some batches that
//! are read back for them at a time.
//!
//! # Failure
//!
//! A [`LedgerFault`] is what cannot be answered from the log: a batch that cannot be read back,
//! or a feed that breaks its own rules. The operator reports it, emits nothing more and holds its
//! frontier; no figure is published on a guess.

mod entering;
mod groups;
mod image;
mod index;
mod judging;
mod lanes;
mod load;
mod marks;
mod operator;
mod ring;
mod row;
mod verdicts;
mod vnode;

#[cfg(test)]
mod tests;

pub use image::{ImageError, LedgerImage};
pub use judging::Judging;
pub use operator::{OnImage, ledger};

use crate::{
    change::{Counts, Incident},
    event::Position,
    feed::{EpochTimes, Located},
    hash::{self, IdHash, VNODES},
    log::Topic,
    time::{Bucket, Lateness, LogTime},
};
use groups::{Groups, Restored};
use ring::Pool;
use row::Row;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use verdicts::{Filter, Memory};
use vnode::Vnode;

/// How an event stands in the views.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Standing {
    /// It is in no row.
    Absent = 0,
    /// It counts, and costs what it costs.
    Valid = 1,
    /// It counts among the invalid ones, and costs nothing.
    Invalid = 2,
}

/// A row of a batch whose standing changed: −`was` +`is`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowDelta {
    /// The row of the batch.
    pub row: u16,
    /// How it stood.
    pub was: Standing,
    /// How it stands now.
    pub is: Standing,
}

/// What the ledger says about a batch: which of its events now stand how. Batches that were read
/// back for a verdict come in the same form as those that just arrived.
#[derive(Debug)]
pub struct Ledgered<B> {
    /// The batch; `None` for what is only counted.
    pub batch: Option<Arc<Located<B>>>,
    /// Its rows whose standing changed, ascending.
    pub rows: Vec<RowDelta>,
    /// Its rows that someone may ask for although they do not count.
    pub incidents: Vec<Incident>,
    /// How many of each.
    pub counts: Counts,
}

impl<B> Ledgered<B> {
    /// What is said of a record that no ledger enters. What stands in another topic than that of
    /// the events was never accepted as one, so it is listed and not counted.
    fn aside(incident: Incident) -> Ledgered<B> {
        let mut counts = Counts::default();
        if incident.position.place().0 == Topic::Events {
            counts.fates[incident.fate as usize] = 1;
        }
        Ledgered { batch: None, rows: Vec::new(), incidents: vec![incident], counts }
    }
}

/// How much a ledger holds at most. Part of the definition of the result, like the horizon: a run
/// with other limits may set aside other events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerLimits {
    /// Events that a vnode remembers, at most 2²⁴ − 1: 4.3 thousand million in a cluster. Beyond
    /// it events are quarantined.
    pub rows_per_vnode_max: usize,
    /// Event ids of a vnode whose verdicts are remembered. Beyond it the oldest is forgotten early.
    pub verdicts_per_vnode_max: usize,
    /// Impression ids whose verdicts are remembered, by each worker. Beyond it the oldest is
    /// forgotten early.
    pub impression_verdicts_max: usize,
}

impl Default for LedgerLimits {
    fn default() -> Self {
        LedgerLimits {
            rows_per_vnode_max: ROWS_PER_VNODE_MAX,
            verdicts_per_vnode_max: 1 << 20,
            impression_verdicts_max: 1 << 26,
        }
    }
}

/// A row's number within its vnode has 24 bits where groups refer to it.
const ROWS_PER_VNODE_MAX: usize = (1 << 24) - 1;

/// What a ledger needs to know.
#[derive(Clone, Copy, Debug)]
pub struct LedgerSettings {
    /// The horizon.
    pub lateness: Lateness,
    /// Which worker this is.
    pub worker: u32,
    /// How many workers there are.
    pub peers: u32,
    /// It is given batches with ids of other workers too: it takes the rows whose vnode modulo
    /// `peers` is `worker`. Else all that it is given is its own.
    pub shuffled: bool,
    /// How much it holds.
    pub limits: LedgerLimits,
}

impl LedgerSettings {
    /// With the limits that the layout allows.
    pub fn new(lateness: Lateness, worker: u32, peers: u32) -> LedgerSettings {
        LedgerSettings { lateness, worker, peers, shuffled: false, limits: LedgerLimits::default() }
    }
}

/// Why a ledger cannot go on. Nothing of it can happen through what events and verdicts say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerFault {
    /// The batch of an event that is to be retracted cannot be had.
    #[error(
        "epoch {epoch}: partition {partition} offset {offset} cannot be read back: {reason}; the \
         log must keep at least the correction horizon"
    )]
    ReadBack {
        /// The epoch whose verdicts need it.
        epoch: u64,
        /// The batch's partition.
        partition: u16,
        /// The batch's offset.
        offset: u64,
        /// What the log said.
        reason: String,
    },
    /// What was read back is not what was read before.
    #[error(
        "partition {partition} offset {offset} row {row} holds another event than it did: \
             the log under this ledger was changed"
    )]
    Changed {
        /// The batch's partition.
        partition: u16,
        /// The batch's offset.
        offset: u64,
        /// The row.
        row: u16,
    },
    /// The feed breaks its rules; the message names the value. An error in the runtime.
    #[error("{0}")]
    Feed(String),
    /// A worker holds as many events with impression ids as it can number.
    #[error(
        "{members} events whose impression id hashes to shard {shard} are remembered, the \
             most; find the sender that fills in a constant"
    )]
    GroupsFull {
        /// The shard.
        shard: usize,
        /// How many.
        members: u64,
    },
}

/// What the ledger knows about one event id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where the event is.
    pub position: Position,
    /// The minute of its event time.
    pub minute: Bucket,
    /// How it stands.
    pub standing: Standing,
    /// It came after its correction horizon, and stands in no row.
    pub too_late: bool,
    /// Its source took it as invalid.
    pub born_invalid: bool,
    /// It counts as invalid by itself: born so, or by the verdict on it.
    pub event_invalid: bool,
    /// The verdict on its impression says invalid.
    pub impression_invalid: bool,
}

/// How many forgotten rows an epoch sweeps even if it brings no event.
const SWEEP_ROWS_PER_EPOCH: u64 = 4_096;

/// The ledger of one worker.
#[derive(Debug)]
pub struct Ledger {
    settings: LedgerSettings,
    vnodes: Vec<Vnode>,
    pool: Pool<Row>,
    groups: Groups,
    /// Verdicts on events, by vnode of the event.
    event_verdicts: Vec<Memory>,
    event_filter: Filter,
    group_verdicts: Memory,
    group_filter: Filter,
    /// The epoch that is open.
    times: Option<EpochTimes>,
    /// What is to be swept next: vnodes, then shards of groups.
    sweep_next: usize,
    /// Whether anything may be left to sweep.
    sweeping: bool,
    /// Whether an increment can continue the image before.
    imaged: bool,
    /// How many changes of rows of the image before are noted, and may be.
    flips: usize,
    flips_max: usize,
    /// What the verdicts that are being carried out take.
    judging_bytes: usize,
    /// Members of groups, while vnodes are loaded.
    restored: Option<Restored>,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(settings: LedgerSettings) -> Ledger {
        let mut settings = settings;
        let limits = &mut settings.limits;
        limits.rows_per_vnode_max = limits.rows_per_vnode_max.min(ROWS_PER_VNODE_MAX);
        let memory = |_| Memory::new(limits.verdicts_per_vnode_max);
        Ledger {
            vnodes: (0..VNODES).map(Vnode::new).collect(),
            pool: Pool::default(),
            groups: Groups::new(),
            event_verdicts: (0..VNODES).map(memory).collect(),
            event_filter: Filter::default(),
            group_verdicts: Memory::new(limits.impression_verdicts_max),
            group_filter: Filter::default(),
            times: None,
            sweep_next: 0,
            sweeping: false,
            imaged: false,
            flips: 0,
            flips_max: image::FLIPS_MAX,
            judging_bytes: 0,
            restored: None,
            settings,
        }
    }

    /// Sizes the indexes at once for this many events, evenly spread over the vnodes `of` that this
    /// worker owns.
    pub fn reserve(&mut self, events: usize, of: impl ExactSizeIterator<Item = usize>) {
        let rows = events / of.len().max(1);
        for vnode in of {
            self.vnodes[vnode].reserve(rows, &mut self.pool);
        }
    }

    /// Opens an epoch: forgets what its time has come for.
    ///
    /// # Errors
    /// When the epoch does not follow the last one, or its log times went back; when loading was
    /// begun and not ended.
    pub fn open(&mut self, times: EpochTimes) -> Result<(), LedgerFault> {
        self.check_loaded()?;
        if let Some(last) = self.times {
            let follows = last.epoch < times.epoch
                && last.latest <= times.latest
                && last.frontier_before <= times.frontier_before;
            if !follows {
                return Err(LedgerFault::Feed(format!("{times:?} was opened after {last:?}")));
            }
            if self.slice(last.latest) != self.slice(times.latest) {
                self.close_slice(last.latest);
            }
        }
        let before = self.times.replace(times).map(|t| self.slice(t.frontier_before));
        if before != Some(self.slice(times.frontier_before)) {
            self.forget(times.frontier_before);
        }
        for memory in self.memories_mut() {
            memory.settle(times.frontier_before);
        }
        self.sweep(SWEEP_ROWS_PER_EPOCH);
        Ok(())
    }

    /// What is known of verdicts: by vnode those on events, and at last those on groups.
    fn memories(&self) -> impl Iterator<Item = &Memory> {
        self.event_verdicts.iter().chain([&self.group_verdicts])
    }

    fn memories_mut(&mut self) -> impl Iterator<Item = &mut Memory> {
        self.event_verdicts.iter_mut().chain([&mut self.group_verdicts])
    }

    fn slice(&self, time: LogTime) -> i64 {
        time.0.div_euclid(self.settings.lateness.slice_us())
    }

    fn close_slice(&mut self, latest: LogTime) {
        for vnode in &mut self.vnodes {
            vnode.close_slice(latest);
        }
        for memory in self.memories_mut() {
            memory.close_slice(latest);
        }
        self.groups.close_slice(latest);
    }

    fn forget(&mut self, frontier: LogTime) {
        let lateness = &self.settings.lateness.clone();
        for vnode in &mut self.vnodes {
            vnode.forget(lateness, frontier);
        }
        self.groups.forget(lateness, frontier);
        let mut forgot = false;
        for memory in &mut self.event_verdicts {
            forgot |= memory.forget(lateness, frontier);
        }
        if forgot {
            self.rebuild_event_filter();
        }
        if self.group_verdicts.forget(lateness, frontier) {
            self.rebuild_group_filter();
        }
        self.sweeping = true;
    }

    /// Gives back memory of what is forgotten, for about `budget` rows.
    fn sweep(&mut self, budget: u64) {
        let (mut left, mut idle) = (budget, 0);
        while self.sweeping && left > 0 {
            let at = self.sweep_next;
            let swept = if at < VNODES {
                self.vnodes[at].sweep(left, &mut self.pool)
            } else {
                self.groups.sweep(at - VNODES, left)
            };
            left -= swept.min(left);
            idle = if swept == 0 { idle + 1 } else { 0 };
            self.sweeping = idle < 2 * VNODES;
            self.sweep_next = (at + 1) % (2 * VNODES);
        }
    }

    fn rebuild_event_filter(&mut self) {
        let keys = self.event_verdicts.iter().map(Memory::len).sum();
        let hashes = self.event_verdicts.iter().flat_map(Memory::keys).map(row::spread);
        self.event_filter.rebuild(keys, hashes);
    }

    fn rebuild_group_filter(&mut self) {
        let hashes = self.group_verdicts.keys().map(row::spread);
        self.group_filter.rebuild(self.group_verdicts.len(), hashes);
    }

    /// What is known about an event id, if it came within the horizon.
    pub fn lookup(&self, id: &IdHash) -> Option<Entry> {
        let vnode = &self.vnodes[hash::vnode(id)];
        let row = vnode.rows.get(vnode.find(row::spread(id), id)?);
        Some(Entry {
            position: row.place.position(),
            minute: row.minute(),
            standing: row.standing(),
            too_late: row.has(row::TOO_LATE),
            born_invalid: row.has(row::BORN_INVALID),
            event_invalid: row.has(row::EVENT_INVALID),
            impression_invalid: row.has(row::GROUP_INVALID),
        })
    }

    /// How many events it remembers.
    pub fn len(&self) -> usize {
        self.vnodes.iter().map(Vnode::len).sum()
    }

    /// Whether it remembers no event.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many event ids and impression ids it remembers verdicts on.
    pub fn verdicts(&self) -> usize {
        self.memories().map(Memory::len).sum()
    }

    /// On how many ids verdicts were forgotten before their time, because a limit was reached.
    pub fn verdicts_forgotten_early(&self) -> u64 {
        self.memories().map(|m| m.forgotten_early).sum()
    }

    /// Whether some vnode, group or memory is at seven eighths of its limit: time to refuse intake.
    /// Looks at every vnode; once an epoch is enough.
    pub fn is_nearly_full(&self) -> bool {
        let near = |len: usize, max: usize| len >= max - max / 8;
        let limits = &self.settings.limits;
        self.vnodes.iter().any(|v| near(v.len(), limits.rows_per_vnode_max))
            || self.memories().any(|m| near(m.len(), m.max()))
            || self.groups.is_nearly_full()
    }

    /// All memory that it has taken, in use or not.
    pub fn bytes(&self) -> usize {
        self.pool.bytes()
            + self.vnodes.iter().map(|v| size_of::<Vnode>() + v.bytes()).sum::<usize>()
            + self.memories().map(|m| size_of::<Memory>() + m.bytes()).sum::<usize>()
            + self.groups.bytes()
            + self.event_filter.bytes()
            + self.group_filter.bytes()
            + self.judging_bytes
    }
}
