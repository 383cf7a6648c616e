//! The verdicts of an epoch are applied, once all its events are entered.
//!
//! All verdicts on one key are taken together, so that an event changes at most once an epoch,
//! however often it was judged. What they change is first collected, 16 bytes an event, then
//! sorted by place in the log, so that each batch is read back once and yields one [`Ledgered`]; a
//! verdict on an event that changes nothing in the views (it is invalid already by its
//! impression) reads nothing.
//!
//! One verdict on an impression that a broken sender gives to all its events can change events in
//! every batch of the horizon, which no memory holds together. So what was collected is carried out
//! in steps of some [`STEP_ROWS`] rows that are read back, between which those who sum it up take
//! it and let it go. Nothing else may come to the ledger until the last step: not an event, nor the
//! next epoch.

use super::{
    Ledger, LedgerFault, Ledgered, RowDelta, Standing,
    groups::RowRef,
    row::{self, Place, spread},
    verdicts::{Judged, Memory, Ruling},
};
use crate::{
    change::Counts,
    event::{EventBatch, Position, Target},
    feed::{Judgement, Located, ReadBack},
    hash::{self, IdHash},
    time::{Lateness, LogTime},
};

/// An event whose flag is to be another.
#[derive(Clone, Copy, Debug)]
struct Touch {
    place: Place,
    row: RowRef,
    /// Which key of the epoch, and in the top bit what the flag is to be.
    key_and_flag: u32,
}

/// What an epoch's verdicts change, and how far that is carried out.
#[derive(Debug, Default)]
pub struct Judging {
    keys: Vec<Key>,
    /// By place in the log.
    touched: Vec<Touch>,
    /// The first of them that is not carried out.
    next: usize,
    counts: Counts,
}

/// The rows of the batches that are read back in a step, about: some MiB.
pub(super) const STEP_ROWS: usize = if cfg!(test) { 64 } else { 1 << 16 };

const FLAG: u32 = 1 << 31;

/// The most verdicts of an epoch on one worker: keys are numbered in 31 bits.
const JUDGEMENTS_MAX: usize = FLAG as usize - 1;

type Key = (Target, IdHash);

impl Touch {
    fn key(&self) -> u32 {
        self.key_and_flag & !FLAG
    }

    fn flag(&self) -> bool {
        self.key_and_flag & FLAG != 0
    }
}

const fn flag_of(target: Target) -> u32 {
    match target {
        Target::Event => row::EVENT_INVALID,
        Target::Impression => row::GROUP_INVALID,
    }
}

impl Ledger {
    /// Takes all verdicts of the open epoch, and says what they change. That is to be carried out
    /// to its end ([`Ledger::carry_out`]) before anything else comes to the ledger.
    ///
    /// # Errors
    /// When no epoch is open, or they are more than can be numbered.
    pub fn judge(&mut self, mut judgements: Vec<Judgement>) -> Result<Judging, LedgerFault> {
        if judgements.is_empty() {
            return Ok(Judging::default());
        }
        if judgements.len() > JUDGEMENTS_MAX {
            let sent = judgements.len();
            return Err(LedgerFault::Feed(format!("an epoch of {sent} verdicts; close it sooner")));
        }
        let Some(times) = self.times else {
            return Err(LedgerFault::Feed("verdicts came before any epoch was opened".into()));
        };
        let mut counts = Counts { verdicts: self.to_count(&judgements), ..Counts::default() };
        judgements.sort_unstable_by_key(|j| (j.target as u8, j.hash, j.decided_at_us, j.arrival));
        let (mut keys, mut touched) = (Vec::new(), Vec::new());
        let mut judged = Vec::new();
        for run in judgements.chunk_by(|a, b| (a.target, a.hash) == (b.target, b.hash)) {
            let key = (run[0].target, run[0].hash);
            judged.clear();
            judged.extend(run.iter().map(Judged::from));
            if let Some(winner) = self.memory(&key).winner(&key.1) {
                judged.iter_mut().for_each(|j: &mut Judged| *j = j.against(winner));
                judged.sort_unstable_by_key(Judged::order);
            }
            if !self.repeats(&key, &judged, times.latest) {
                self.touch(&key, &judged, keys.len() as u32, &mut touched, &mut counts);
                keys.push(key);
            }
            self.remember(&key, &judged, times.frontier_before);
        }
        // It grew by doubling, and is held until it is carried out.
        touched.shrink_to_fit();
        touched.sort_unstable_by_key(|t: &Touch| (t.place, t.key()));
        self.judging_bytes = size_of_val(touched.as_slice()) + size_of_val(keys.as_slice());
        Ok(Judging { keys, touched, next: 0, counts })
    }

    /// Carries out a step of what verdicts change. What that is goes to `emit`, batch by batch;
    /// `true` when nothing is left to do.
    ///
    /// # Errors
    /// When a batch cannot be read back. The ledger must not be used any more then.
    pub fn carry_out<B: EventBatch>(
        &mut self,
        judging: &mut Judging,
        read_back: &mut impl ReadBack<B>,
        emit: &mut impl FnMut(Ledgered<B>),
    ) -> Result<bool, LedgerFault> {
        let Judging { keys, touched, next, counts } = judging;
        let mut rows = 0;
        for of_batch in touched[*next..].chunk_by(|a, b| a.place.batch() == b.place.batch()) {
            if rows >= STEP_ROWS {
                return Ok(false);
            }
            rows += self.retract(of_batch, keys, read_back, emit)?;
            *next += of_batch.len();
        }
        self.judging_bytes = 0;
        let counts = std::mem::take(counts);
        if counts != Counts::default() {
            emit(Ledgered { batch: None, rows: Vec::new(), incidents: Vec::new(), counts });
        }
        Ok(true)
    }

    /// A verdict on an impression comes to every worker, and is counted on the first.
    fn to_count(&self, judgements: &[Judgement]) -> u64 {
        let counts = |j: &&Judgement| j.target == Target::Event || self.settings.worker == 0;
        judgements.iter().filter(counts).count() as u64
    }

    fn memory(&self, key: &Key) -> &Memory {
        match key.0 {
            Target::Event => &self.event_verdicts[hash::vnode(&key.1)],
            Target::Impression => &self.group_verdicts,
        }
    }

    /// Whether all of a key's verdicts say what the one says that covers all events that have come,
    /// none of which has a log time after `latest`. Then none can change.
    fn repeats(&self, key: &Key, judged: &[Judged], latest: LogTime) -> bool {
        let winner = self.memory(key).covering(&key.1, &self.settings.lateness, latest);
        winner.is_some_and(|w| judged.iter().all(|j| j.invalid == w.invalid))
    }

    fn remember(&mut self, key: &Key, judged: &[Judged], frontier: LogTime) {
        let (target, hash) = key;
        let lateness = &self.settings.lateness;
        match target {
            Target::Event => {
                let fresh = self.memory(key).winner(hash).is_none();
                let memory = &mut self.event_verdicts[hash::vnode(hash)];
                memory.remember(hash, judged, lateness, frontier);
                if fresh && !self.event_filter.add(spread(hash)) {
                    self.rebuild_event_filter();
                }
            }
            Target::Impression => {
                let fresh = self.group_verdicts.winner(hash).is_none();
                self.group_verdicts.remember(hash, judged, lateness, frontier);
                if fresh && !self.group_filter.add(spread(hash)) {
                    self.rebuild_group_filter();
                }
            }
        }
    }

    /// Collects the events that a key's verdicts change.
    fn touch(
        &self,
        key: &Key,
        judged: &[Judged],
        key_number: u32,
        touched: &mut Vec<Touch>,
        counts: &mut Counts,
    ) {
        let flag = flag_of(key.0);
        let lateness: &Lateness = &self.settings.lateness;
        let mut visit = |row: RowRef| {
            let vnode = &self.vnodes[row.vnode()];
            let entry = vnode.rows.get(row.number(vnode.live_from()));
            if entry.has(row::TOO_LATE) {
                return;
            }
            let stood = entry.has(flag);
            let (stands, refused) =
                Ruling::of(judged.iter(), entry.minute(), lateness).apply(stood);
            counts.verdicts_too_late += u64::from(refused);
            if stands != stood {
                let key_and_flag = key_number | if stands { FLAG } else { 0 };
                touched.push(Touch { place: entry.place, row, key_and_flag });
            }
        };
        match key.0 {
            Target::Event => {
                let number = hash::vnode(&key.1);
                let found = self.vnodes[number].find(spread(&key.1), &key.1);
                found.into_iter().for_each(|at| visit(RowRef::new(number, at)));
            }
            Target::Impression => self.groups.rows(&key.1).for_each(visit),
        }
    }

    /// Changes the flags of a batch's events, and emits those whose standing is another for it.
    /// How many rows were read back for that.
    fn retract<B: EventBatch>(
        &mut self,
        of_batch: &[Touch],
        keys: &[Key],
        read_back: &mut impl ReadBack<B>,
        emit: &mut impl FnMut(Ledgered<B>),
    ) -> Result<usize, LedgerFault> {
        let by_row = || of_batch.chunk_by(|a, b| a.place == b.place);
        if !by_row().any(|touches| self.needs_event(touches, keys)) {
            for touch in of_batch {
                self.flip(touch, keys);
            }
            return Ok(0);
        }
        // They ascend.
        let last = of_batch[of_batch.len() - 1].place.position();
        let located = read_back.read_back(last).map_err(|reason| {
            let Position { partition, offset, .. } = last;
            let epoch = self.times.map_or(0, |t| t.epoch);
            LedgerFault::ReadBack { epoch, partition, offset, reason }
        })?;
        let (mut rows, read) = (Vec::new(), located.batch.len());
        for touches in by_row() {
            let row = touches[0].place.position().row;
            self.check_unchanged(&touches[0], &located)?;
            let was = self.standing(&touches[0]);
            for touch in touches {
                let (target, hash) = &keys[touch.key() as usize];
                // 72 bits of the group's hash led here; all 128 decide.
                let meant = match target {
                    Target::Event => true,
                    Target::Impression => located.batch.group(row.into()).as_ref() == Some(hash),
                };
                if meant {
                    self.flip(touch, keys);
                }
            }
            let is = self.standing(&touches[0]);
            if was != is {
                rows.push(RowDelta { row, was, is });
            }
        }
        if !rows.is_empty() {
            let counts = Counts { retractions: rows.len() as u64, ..Counts::default() };
            emit(Ledgered { batch: Some(located), rows, incidents: Vec::new(), counts });
        }
        Ok(read)
    }

    /// Whether the event itself must be looked at to change its flags: to see that it is of the
    /// group, or because the views need it.
    fn needs_event(&self, touches: &[Touch], keys: &[Key]) -> bool {
        let impression = |t: &Touch| keys[t.key() as usize].0 == Target::Impression;
        let mut entry = *self.entry(&touches[0]);
        let was = entry.standing();
        for touch in touches {
            entry.set(flag_of(keys[touch.key() as usize].0), touch.flag());
        }
        touches.iter().any(impression) || entry.standing() != was
    }

    fn entry(&self, touch: &Touch) -> &row::Row {
        let vnode = &self.vnodes[touch.row.vnode()];
        vnode.rows.get(touch.row.number(vnode.live_from()))
    }

    fn standing(&self, touch: &Touch) -> Standing {
        self.entry(touch).standing()
    }

    fn flip(&mut self, touch: &Touch, keys: &[Key]) {
        let vnode = &mut self.vnodes[touch.row.vnode()];
        let number = touch.row.number(vnode.live_from());
        let flag = flag_of(keys[touch.key() as usize].0);
        if vnode.flip(number, flag, touch.flag()) {
            self.note_flip();
        }
    }

    /// That the log still holds at the row's place the event that was read there.
    fn check_unchanged<B: EventBatch>(
        &self,
        touch: &Touch,
        located: &Located<B>,
    ) -> Result<(), LedgerFault> {
        let at = touch.place.position();
        let (partition, offset, row) = (at.partition, at.offset, at.row);
        let same = (located.partition, located.offset) == (partition, offset)
            && located.batch.ids().get(usize::from(row)) == Some(&self.entry(touch).id);
        if same { Ok(()) } else { Err(LedgerFault::Changed { partition, offset, row }) }
    }
}
