//! Epochs: cutting the log into them, and feeding them to the workers. One thread does both, and
//! one path serves the first start, a restart and the live run: every remap row that the workers
//! get was read from the remap topic, whether it was written a week or a millisecond ago.
//!
//! # Closing
//!
//! Every tick, or sooner when [`EpochSettings::epoch_bytes_max`] bytes wait, the durable ends of
//! all partitions become the next remap row, if there is anything new; an idle log gets one a
//! second, so that buckets settle without traffic. The row is appended to the remap topic, and
//! only when it is durable there do the workers see it: what an epoch holds is never decided
//! twice. Log times in a row never decrease, whatever the clock did.
//!
//! Of a log that others append to, an epoch takes no more than [`EpochSettings::epoch_bytes_max`],
//! and those that follow it close as there is room for them ([`cut`]).
//!
//! Where other processes append to the log too, a row that is durable need not count: then the
//! thread reads on to it, and the run ends if another writer has begun a later generation
//! ([`RemapRow::follows`]). Closing an epoch at once at the start is what fences the one before.
//!
//! # Feeding
//!
//! Of the processes of a cluster one closes epochs and tells the others which to feed
//! ([`Epochs::follow`]): so all are fed the same rows, and take images of the same epochs.
//!
//! At most [`EpochSettings::epochs_in_flight_max`] epochs are under way; the rest wait in the log,
//! where they cost no memory. How far the workers are behind, in bytes and epochs, is what the
//! collector's answer 429 goes by ([`Epochs::lag`]).

mod cut;
mod lag;
mod led;
mod settle;

pub(crate) use cut::missing;
pub use lag::Lag;
pub(crate) use led::{Fed, Led};

use crate::{
    checkpoint::Checkpoints,
    remap::{self, Cursor},
    seat::Seat,
};
use cut::{Ends, all_ends};
use lag::bytes_taken;
use parking_lot::{Condvar, Mutex};
use settle::Refused;
use std::{
    collections::{VecDeque, hash_map::RandomState},
    hash::{BuildHasher, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::Thread,
    time::{Duration, Instant},
};
use trueup_operators::{
    feed::{EpochTimes, ImageKind},
    log::{Append, Appended, Log, LogError, Topic},
    remap::{REMAP_VERSION, RemapRow, Writer},
    time::Epoch,
};

/// How the log is cut and how much may be under way.
///
/// ```
/// use trueup::{EngineSettings, EpochSettings};
///
/// let settings = EngineSettings::default();
/// let tick = std::time::Duration::from_millis(20);
/// let epochs = EpochSettings { tick, ..settings.epochs };
/// let settings = EngineSettings { epochs, ..settings };
/// # assert_eq!(settings.epochs.tick, tick);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct EpochSettings {
    /// An epoch closes this often when anything came.
    pub tick: Duration,
    /// And sooner when this many bytes wait.
    pub epoch_bytes_max: u64,
    /// How many epochs the workers may have under way.
    pub epochs_in_flight_max: u64,
    /// Where the log is cut.
    pub cut: Cut,
}

/// Where the log is cut into epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Behind what arrives, at every tick.
    Live,
    /// Where it was cut before: no epoch is closed.
    Replay {
        /// The last epoch to go through; all that there are if `None`.
        upto: Option<Epoch>,
    },
}

/// An idle log still gets an epoch this often: its log time moves buckets on.
const IDLE: Duration = Duration::from_secs(1);
/// How long a row that was acknowledged may be shown to nobody before the epoch is closed again:
/// the first row of an epoch counts, and a second one is void.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);
/// How often the ends are looked at between ticks, for `epoch_bytes_max`.
const LOOK: Duration = Duration::from_millis(10);
/// What a worker gets: an epoch, and the one before it.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) before: Arc<RemapRow>,
    pub(crate) row: Arc<RemapRow>,
    /// Whether an image is taken of the state at its end.
    pub(crate) image: Option<ImageKind>,
}

/// The state that the closing thread, the workers and the server share.
pub struct Epochs {
    log: Arc<dyn Log>,
    settings: EpochSettings,
    /// Which of all workers these epochs are for.
    seat: Seat,
    /// In whose name epochs are closed.
    writer: Writer,
    /// Who says of which epochs images are taken.
    checkpoints: Option<Arc<Checkpoints>>,
    /// By worker of this process: the last epoch that its sinks have.
    committed: Vec<AtomicU64>,
    /// The ends of a log that others share, as last asked for: asking may have to wait for a
    /// broker, and requests must not. And those at the start.
    shared_ends: Mutex<Arc<Ends>>,
    ends_at_start: Arc<Ends>,
    /// Whether `state` has a fault, for workers that look at every step.
    failed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The newest durable row that counts, and whether the next one is being appended.
    closed: Cursor,
    appending: bool,
    /// The row that was appended, the offset behind it, to be read on to, and since when.
    appended: Option<(u64, Instant)>,
    /// Whether the last try to append a row, or to read one, failed: said once, not at every tick.
    failing: bool,
    /// Since when the log takes no row, and why.
    refused: Option<Refused>,
    /// The newest row that the workers have.
    fed: Arc<RemapRow>,
    /// The rows that the workers have, from the newest that is visible on.
    under_way: VecDeque<Arc<RemapRow>>,
    /// What the log had taken at the end of each epoch that is not visible yet, bytes.
    bytes: VecDeque<(Epoch, u64)>,
    /// The same of the epoch that is, or of the start.
    bytes_visible: u64,
    /// What was closed when the server started.
    recovered_to: Epoch,
    /// The first epoch that was closed in this run.
    since: Option<Epoch>,
    /// Close an epoch at the next look, whatever the tick says.
    hurry: bool,
    /// The last epoch could not take all that there was.
    more: bool,
    stopping: bool,
    fault: Option<String>,
}

/// A worker's end of the feed.
pub(crate) struct Feeder {
    pub(crate) plans: std::sync::mpsc::Sender<Plan>,
    pub(crate) thread: Thread,
}

impl Epochs {
    /// Finds what was closed after the row `from`, from which the workers go on.
    ///
    /// # Errors
    /// When the remap topic cannot be read or holds something else.
    pub(crate) fn open(
        log: Arc<dyn Log>,
        settings: EpochSettings,
        seat: Seat,
        from: &Cursor,
        checkpoints: Option<Arc<Checkpoints>>,
    ) -> Result<Arc<Epochs>, LogError> {
        let closed = match settings.cut {
            Cut::Replay { upto: Some(upto) } => from.last_before(&*log, upto)?,
            Cut::Live | Cut::Replay { upto: None } => from.tip(&*log)?,
        };
        let met = seat.generation().map_or(0, |generation| generation.number());
        let writer = Writer {
            // Who is led may see rows of its own generation already.
            generation: match seat.leads() {
                true => met.max(closed.row.writer.generation + 1),
                false => met,
            },
            nonce: RandomState::new().build_hasher().finish(),
        };
        let bytes_visible = bytes_taken(&*log);
        let state = State {
            recovered_to: closed.row.epoch,
            since: None,
            closed,
            appending: false,
            appended: None,
            failing: false,
            refused: None,
            fed: Arc::clone(&from.row),
            under_way: VecDeque::from([Arc::clone(&from.row)]),
            bytes: VecDeque::new(),
            bytes_visible,
            hurry: log.is_shared(),
            more: false,
            stopping: false,
            fault: None,
        };
        let committed = seat.own().map(|_| AtomicU64::new(from.row.epoch)).collect();
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let ends_at_start = Arc::new(all_ends(&*log));
        let shared_ends = Mutex::new(Arc::clone(&ends_at_start));
        let failed = AtomicBool::new(false);
        Ok(Arc::new(Epochs {
            log,
            settings,
            seat,
            writer,
            checkpoints,
            committed,
            shared_ends,
            ends_at_start,
            failed,
            state,
            changed,
        }))
    }

    /// These are not run: nothing is ever caught up with.
    pub(crate) fn rest(&self, reason: String) {
        self.state.lock().recovered_to = Epoch::MAX;
        self.abandon(reason);
    }

    /// The sinks of a worker of this process, by its number among those, have everything up to
    /// `epoch`.
    pub(crate) fn commit(&self, own: usize, epoch: Epoch) {
        self.committed[own].store(epoch, Ordering::SeqCst);
        self.seat.commit(self.visible());
        self.changed.notify_all();
    }

    /// Whether nobody waits for what is being read any more.
    pub(crate) fn is_over(&self) -> bool {
        self.has_failed() || self.state.lock().stopping
    }

    /// The run cannot go on: nothing more is fed or closed.
    pub(crate) fn fail(&self, reason: String) {
        tracing::error!(reason, "the run cannot go on");
        self.state.lock().fault.get_or_insert(reason);
        self.failed.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// The run ends for a reason that is no fault of this process: nothing more is fed or closed,
    /// and what is under way is let go.
    pub(crate) fn abandon(&self, reason: String) {
        self.state.lock().fault.get_or_insert(reason);
        self.failed.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether the run cannot go on.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Why the run cannot go on, if it cannot.
    pub fn fault(&self) -> Option<String> {
        self.state.lock().fault.clone()
    }

    /// The last epoch that the sinks of every worker of this process have. They are told what all
    /// workers say, so it is complete on all.
    pub fn visible(&self) -> Epoch {
        self.committed.iter().map(|c| c.load(Ordering::SeqCst)).min().unwrap_or(0)
    }

    /// The first epoch that was closed in this run, once the workers have it: no run before has
    /// shown it.
    pub(crate) fn since(&self) -> Option<Epoch> {
        self.state.lock().since
    }

    /// The row of the epoch that every view shows: which offsets they stand for.
    pub fn visible_row(&self) -> Arc<RemapRow> {
        let visible = self.visible();
        let mut state = self.state.lock();
        state.see(visible);
        Arc::clone(state.under_way.front().unwrap_or(&state.fed))
    }

    /// Closes an epoch at the next look, also if nothing is new.
    pub(crate) fn hurry(&self) {
        self.state.lock().hurry = true;
        self.changed.notify_all();
    }

    /// Ends the thread that [`Epochs::run`] runs in, after what is fed.
    pub(crate) fn stop(&self) {
        self.state.lock().stopping = true;
        self.changed.notify_all();
    }

    /// The closing and feeding loop, which goes on after the row it was opened from; `announce` is
    /// called with each epoch before a worker gets it.
    pub(crate) fn run(
        self: &Arc<Self>,
        mut read: Cursor,
        feeders: &[Feeder],
        announce: impl Fn(EpochTimes),
    ) {
        self.seat.commit(read.row.epoch);
        let mut next_tick = Instant::now();
        let mut last_close = Instant::now();
        let mut next_ask = Instant::now();
        // What was read of the remap topic and not fed yet.
        let mut unfed = VecDeque::new();
        loop {
            // A broker answers in milliseconds: not each time that there is room for an epoch.
            if self.log.is_shared() && Instant::now() >= next_ask {
                next_ask = Instant::now() + LOOK;
                *self.shared_ends.lock() = Arc::new(all_ends(&*self.log));
            }
            let fed = self.confirm();
            let fed = fed.and_then(|()| self.feed(&mut read, &mut unfed, feeders, &announce));
            // No row will ever be taken, and nobody's waiting helps.
            if let Some(reason) = self.log.broken() {
                self.fail(reason);
            }
            match fed {
                // Who does not answer may do so later: nothing was taken that is not whole.
                Err(error @ LogError::Unavailable { .. }) => self.state.lock().not_read(&error),
                Err(error) => self.fail(error.to_string()),
                Ok(()) => {}
            }
            let now = Instant::now();
            let due = {
                let mut state = self.state.lock();
                if state.stopping || state.fault.is_some() {
                    // The next run of this process must see the row. A log that others share has
                    // an order for that, and may not answer for long.
                    while state.appending && !self.log.is_shared() {
                        self.changed.wait(&mut state);
                    }
                    return;
                }
                let visible = self.visible();
                state.see(visible);
                let follows = state.more && self.have_room(&state);
                let hurry = std::mem::take(&mut state.hurry) || follows;
                let is_under_way = state.appending || state.appended.is_some();
                let waits = state.more && !follows;
                let may_close = self.settings.cut == Cut::Live && !is_under_way && !waits;
                let is_due = may_close && (now >= next_tick || hurry || self.heavy(&state));
                is_due.then(|| now - last_close < IDLE && !hurry)
            };
            if let Some(only_if_new) = due {
                next_tick = now + self.settings.tick;
                if self.close(only_if_new) {
                    last_close = now;
                }
            }
            // A tick that is due may have to wait for the row under way: never spin for it.
            let look = now + LOOK;
            let wait = if next_tick > now { next_tick.min(look) } else { look };
            let mut state = self.state.lock();
            if state.fed.epoch == state.closed.row.epoch && state.appended.is_none() {
                self.changed.wait_until(&mut state, wait);
            }
        }
    }

    /// Whether the workers will soon have room for one more epoch. While there is more than one
    /// takes, the next is closed no sooner: what they have read by then says how large it may be,
    /// and a start must come to the end of what is closed before it shows anything.
    fn have_room(&self, state: &State) -> bool {
        let ahead = state.closed.row.epoch.saturating_sub(self.visible());
        ahead <= self.settings.epochs_in_flight_max
    }

    /// Whether there was more than the last epoch took.
    pub(crate) fn has_more(&self) -> bool {
        self.state.lock().more
    }

    /// Appends the next row. With `only_if_new`, only if a partition has grown. Called by the
    /// closing thread alone.
    fn close(self: &Arc<Self>, only_if_new: bool) -> bool {
        // Bytes first: what arrives meanwhile counts to the next epoch, never to none. And both
        // before the lock: a broker that is away answers after seconds, and whoever takes events
        // asks how far the views are.
        let (bytes, ends) = (bytes_taken(&*self.log), all_ends(&*self.log));
        // Nobody but this thread closes.
        let last = Arc::clone(&self.state.lock().closed.row);
        let (row, more) = match self.row(&last, &ends, only_if_new) {
            Ok(Some(row)) => row,
            Ok(None) => return false,
            Err(error) => {
                self.state.lock().not_closed(&error);
                return true;
            }
        };
        let mut state = self.state.lock();
        state.more = more;
        let frame = Append {
            topic: Topic::Remap,
            partition: 0,
            schema_version: REMAP_VERSION,
            records: 1,
            payload: row.encode().into(),
        };
        let epochs = Arc::clone(self);
        let done = Box::new(move |result: Result<Vec<Appended>, LogError>| {
            let mut state = epochs.state.lock();
            state.appending = false;
            let appended = result.and_then(|appended| {
                appended.first().copied().ok_or_else(|| LogError::Unavailable {
                    reason: "the log said that it took a row, but not where".into(),
                })
            });
            match appended {
                Ok(Appended { offset, .. }) => {
                    (state.failing, state.refused) = (false, None);
                    state.bytes.push_back((row.epoch, bytes));
                    if epochs.log.is_shared() {
                        state.appended = Some((offset + 1, Instant::now()));
                    } else {
                        state.closed = Cursor::of(row, offset + 1);
                    }
                }
                // Nothing of the epoch was visible; the next look tries again.
                Err(error) => state.not_closed(&error),
            }
            drop(state);
            epochs.changed.notify_all();
        });
        match self.log.append(vec![frame], done) {
            Ok(()) => state.appending = true,
            Err(error) => state.not_closed(&error),
        }
        true
    }

    /// The row that comes after another one, and whether there is more than it takes.
    fn row(
        &self,
        last: &RemapRow,
        ends: &Ends,
        only_if_new: bool,
    ) -> Result<Option<(RemapRow, bool)>, LogError> {
        if let Some(row) = cut::beginning(&*self.log, last, self.writer) {
            return Ok(Some((row, true)));
        }
        let part = match self.log.is_shared() {
            true => cut::part(&*self.log, last, ends, self.settings.epoch_bytes_max)?,
            false => None,
        };
        let (ends, more) = (part.as_ref().unwrap_or(ends), part.is_some());
        let row = cut::next_row(last, self.writer, ends, only_if_new);
        Ok(row.map(|row| (row, more)))
    }

    /// Reads on to the row that was appended, where others append too.
    fn confirm(&self) -> Result<(), LogError> {
        let (mut tip, upto, since) = {
            let state = self.state.lock();
            let Some((upto, since)) = state.appended else { return Ok(()) };
            (state.closed.clone(), upto, since)
        };
        // Who acknowledged the row need not show it to readers at once.
        if remap::end(&*self.log) < upto {
            if since.elapsed() > SHOWN_WITHIN {
                tracing::warn!(
                    upto,
                    "a row is not shown that was acknowledged; it is closed again"
                );
                self.state.lock().appended = None;
            }
            return Ok(());
        }
        while tip.next < upto {
            tip.advance(&*self.log, upto)?;
        }
        let found = tip.row.writer;
        if found != self.writer && found.generation >= self.writer.generation {
            self.fail(format!(
                "another server closes epochs of this log, in generation {} (this one in {}): \
                 let only one lead",
                found.generation, self.writer.generation
            ));
        }
        let mut state = self.state.lock();
        (state.closed, state.appended) = (tip, None);
        Ok(())
    }

    /// Gives the workers the next epochs as there is room for them, as many as one read of the
    /// remap topic gives; then it is time to look at the ticks again.
    fn feed(
        &self,
        read: &mut Cursor,
        unfed: &mut VecDeque<Cursor>,
        feeders: &[Feeder],
        announce: &impl Fn(EpochTimes),
    ) -> Result<(), LogError> {
        let (mut before, closed) = {
            let state = self.state.lock();
            (Arc::clone(&state.fed), state.closed.clone())
        };
        while unfed.is_empty() && read.row.epoch < closed.row.epoch {
            if closed.row.epoch == read.row.epoch + 1 {
                *read = closed.clone();
                unfed.push_back(closed.clone());
            } else {
                unfed.extend(read.advance(&*self.log, closed.next)?);
            }
        }
        while let Some(next) = unfed.front() {
            if !self.wait_for_room(&before) {
                return Ok(());
            }
            let row = Arc::clone(&next.row);
            announce(row.times(&before));
            let image = self.marking().and_then(|c| c.mark(next, &before));
            let plan = Plan { before: Arc::clone(&before), row: Arc::clone(&row), image };
            if !self.lead(&plan, next.next) || !self.give(feeders, &plan) {
                return Ok(());
            }
            unfed.pop_front();
            before = row;
        }
        Ok(())
    }

    /// Who marks epochs. What a replay has found is shown from the first epoch on that the run has
    /// closed; a checkpoint of one before it would have figures that this epoch never showed.
    fn marking(&self) -> Option<&Arc<Checkpoints>> {
        let due = |checkpoints: &&Arc<Checkpoints>| {
            !checkpoints.are_of_a_replay() || self.since().is_some()
        };
        self.checkpoints.as_ref().filter(due)
    }

    /// Gives an epoch to the workers of this process. `false`: the run is over.
    fn give(&self, feeders: &[Feeder], plan: &Plan) -> bool {
        for feeder in feeders {
            if feeder.plans.send(plan.clone()).is_err() {
                // It has said why, if it could; the first reason stays.
                self.fail("a worker has ended".into());
                return false;
            }
            feeder.thread.unpark();
        }
        let mut state = self.state.lock();
        if plan.row.writer.generation >= self.writer.generation {
            state.since.get_or_insert(plan.row.epoch);
        }
        state.fed = Arc::clone(&plan.row);
        state.under_way.push_back(Arc::clone(&plan.row));
        true
    }

    /// Waits until one more epoch may be under way, at most until it is time to look at the ticks.
    fn wait_for_room(&self, fed: &RemapRow) -> bool {
        let until = Instant::now() + LOOK;
        let mut state = self.state.lock();
        loop {
            if state.stopping || state.fault.is_some() {
                return false;
            }
            let delivered = self.visible().min(self.seat.delivered_everywhere());
            if fed.epoch - delivered.min(fed.epoch) < self.settings.epochs_in_flight_max {
                return true;
            }
            if self.changed.wait_until(&mut state, until).timed_out() {
                return false;
            }
        }
    }
}

impl State {
    fn not_closed(&mut self, error: &LogError) {
        Refused::note(&mut self.refused, error);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(%error, "an epoch could not be closed; it is tried again at every tick");
        }
    }

    fn not_read(&mut self, error: &LogError) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(%error, "epochs cannot be read; it is tried again");
        }
    }

    /// Forgets the rows before the visible epoch's, and the sizes of epochs that are visible.
    fn see(&mut self, visible: Epoch) {
        while self.under_way.get(1).is_some_and(|next| next.epoch <= visible) {
            self.under_way.pop_front();
        }
        while self.bytes.front().is_some_and(|&(epoch, _)| epoch <= visible) {
            if let Some((_, bytes)) = self.bytes.pop_front() {
                self.bytes_visible = bytes;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
