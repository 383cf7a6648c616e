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
//! # Feeding
//!
//! At most [`EpochSettings::epochs_in_flight_max`] epochs are under way; the rest wait in the log,
//! where they cost no memory. How far the workers are behind, in bytes and epochs, is what the
//! collector's answer 429 goes by ([`Epochs::lag`]).

use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::Thread,
    time::{Duration, Instant},
};
use trueup_operators::{
    feed::EpochTimes,
    log::{Append, End, Log, LogError, Topic},
    remap::{REMAP_VERSION, RemapRow, Upto},
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

impl Cut {
    /// The last epoch to begin with, of so many that there are.
    fn last(self, epochs: Epoch) -> Epoch {
        match self {
            Cut::Replay { upto: Some(upto) } => epochs.min(upto),
            Cut::Live | Cut::Replay { upto: None } => epochs,
        }
    }
}

/// An idle log still gets an epoch this often: its log time moves buckets on.
const IDLE: Duration = Duration::from_secs(1);
/// How often the ends are looked at between ticks, for `epoch_bytes_max`.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes of remap rows read from the log at a time: some hundred epochs.
const ROWS_READ_BYTES: usize = 64 << 10;

/// What a worker gets: an epoch, and the one before it.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) before: Arc<RemapRow>,
    pub(crate) row: Arc<RemapRow>,
}

/// How far the views are behind the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// The last epoch that is durable.
    pub closed: Epoch,
    /// The last epoch that every view shows.
    pub visible: Epoch,
    /// Bytes of events and verdicts appended since the server started that no view shows yet.
    pub bytes: u64,
    /// Whether what was in the log at the start is all visible.
    pub caught_up: bool,
}

/// The state that the closing thread, the workers and the server share.
pub struct Epochs {
    log: Arc<dyn Log>,
    settings: EpochSettings,
    /// By worker: the last epoch that its sinks have.
    committed: Vec<AtomicU64>,
    /// Whether `state` has a fault, for workers that look at every step.
    failed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The newest durable row, and whether the next one is being appended.
    closed: Arc<RemapRow>,
    appending: bool,
    /// Whether the last try to append a row failed: said once, not at every tick.
    failing: bool,
    /// The newest row that the workers have.
    fed: Arc<RemapRow>,
    /// Bytes in the log at the end of each epoch that is not visible yet.
    bytes: VecDeque<(Epoch, u64)>,
    bytes_at_start: u64,
    bytes_visible: u64,
    /// What was closed when the server started.
    recovered_to: Epoch,
    /// Close an epoch at the next look, whatever the tick says.
    hurry: bool,
    stopping: bool,
    fault: Option<String>,
}

/// A worker's end of the feed.
pub(crate) struct Feeder {
    pub(crate) plans: std::sync::mpsc::Sender<Plan>,
    pub(crate) thread: Thread,
}

impl Epochs {
    /// Reads the last row of the remap topic.
    ///
    /// # Errors
    /// When the remap topic cannot be read or holds something else.
    pub fn open(
        log: Arc<dyn Log>,
        settings: EpochSettings,
        workers: usize,
    ) -> Result<Arc<Epochs>, LogError> {
        let origin = Arc::new(RemapRow::origin(
            log.partitions(Topic::Events),
            log.partitions(Topic::Verdicts),
            log.partitions(Topic::Metadata),
        ));
        // The row of epoch e is at offset e − 1.
        let end = settings.cut.last(remap_end(&*log));
        let closed = match end {
            0 => Arc::clone(&origin),
            end => Arc::new(read_rows(&*log, end - 1, end)?.pop().ok_or_else(no_row)?),
        };
        let bytes_at_start = bytes_held(&*log);
        let state = State {
            recovered_to: closed.epoch,
            closed,
            appending: false,
            failing: false,
            fed: origin,
            bytes: VecDeque::new(),
            bytes_at_start,
            bytes_visible: bytes_at_start,
            hurry: false,
            stopping: false,
            fault: None,
        };
        let committed = (0..workers).map(|_| AtomicU64::new(0)).collect();
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let failed = AtomicBool::new(false);
        Ok(Arc::new(Epochs { log, settings, committed, failed, state, changed }))
    }

    /// A worker's sinks have everything up to `epoch`.
    pub(crate) fn commit(&self, worker: usize, epoch: Epoch) {
        self.committed[worker].store(epoch, Ordering::Release);
        self.changed.notify_all();
    }

    /// The run cannot go on: nothing more is fed or closed.
    pub(crate) fn fail(&self, reason: String) {
        tracing::error!(reason, "the run cannot go on");
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

    /// The last epoch that every worker's sinks have.
    pub fn visible(&self) -> Epoch {
        self.committed.iter().map(|c| c.load(Ordering::Acquire)).min().unwrap_or(0)
    }

    /// How far the views are behind.
    pub fn lag(&self) -> Lag {
        let visible = self.visible();
        let mut state = self.state.lock();
        state.see(visible);
        let shown = state.bytes_visible.max(state.bytes_at_start);
        Lag {
            closed: state.closed.epoch,
            visible,
            bytes: bytes_held(&*self.log).saturating_sub(shown),
            caught_up: visible >= state.recovered_to,
        }
    }

    /// Waits until everything that was durable when this was called is in the views.
    ///
    /// # Errors
    /// Why the run cannot go on, or that it took longer than `patience`.
    pub fn settle(&self, patience: Duration) -> Result<Epoch, String> {
        let until = Instant::now() + patience;
        let ends = all_ends(&*self.log);
        let mut state = self.state.lock();
        loop {
            if let Some(fault) = &state.fault {
                return Err(fault.clone());
            }
            let covered = covers(&state.closed, &ends);
            if covered && self.visible() >= state.closed.epoch {
                return Ok(state.closed.epoch);
            }
            state.hurry |= !covered;
            let wait = until.min(Instant::now() + LOOK);
            if Instant::now() >= until {
                let (visible, closed) = (self.visible(), state.closed.epoch);
                return Err(format!("after {patience:?} epoch {visible} of {closed} is visible"));
            }
            self.changed.wait_until(&mut state, wait);
        }
    }

    /// Ends the thread that [`Epochs::run`] runs in, after what is fed.
    pub(crate) fn stop(&self) {
        self.state.lock().stopping = true;
        self.changed.notify_all();
    }

    /// The closing and feeding loop; `announce` is called with each epoch before a worker gets it.
    pub(crate) fn run(self: &Arc<Self>, feeders: &[Feeder], announce: impl Fn(EpochTimes)) {
        let mut next_tick = Instant::now();
        let mut last_close = Instant::now();
        loop {
            if let Err(error) = self.feed(feeders, &announce) {
                self.fail(error.to_string());
            }
            {
                let mut state = self.state.lock();
                if state.stopping || state.fault.is_some() {
                    return;
                }
                let visible = self.visible();
                state.see(visible);
                let now = Instant::now();
                let hurry = std::mem::take(&mut state.hurry);
                if self.settings.cut == Cut::Live
                    && !state.appending
                    && (now >= next_tick || hurry || self.heavy(&state))
                {
                    let idle = now - last_close < IDLE && !hurry;
                    next_tick = now + self.settings.tick;
                    if self.close(&mut state, idle) {
                        last_close = now;
                    }
                }
                // A tick that is due may have to wait for the row under way: never spin for it.
                let look = now + LOOK;
                let wait = if next_tick > now { next_tick.min(look) } else { look };
                if state.fed.epoch == state.closed.epoch {
                    self.changed.wait_until(&mut state, wait);
                }
            }
        }
    }

    fn heavy(&self, state: &State) -> bool {
        let closed = state.bytes.back().map_or(state.bytes_visible, |b| b.1);
        bytes_held(&*self.log).saturating_sub(closed) >= self.settings.epoch_bytes_max
    }

    /// Appends the next row. With `only_if_new`, only if a partition has grown.
    fn close(self: &Arc<Self>, state: &mut State, only_if_new: bool) -> bool {
        // Bytes first: what arrives meanwhile counts to the next epoch, never to none.
        let bytes = bytes_held(&*self.log);
        let Some(row) = next_row(&state.closed, all_ends(&*self.log), only_if_new) else {
            return false;
        };
        let frame = Append {
            topic: Topic::Remap,
            partition: 0,
            schema_version: REMAP_VERSION,
            records: 1,
            payload: row.encode().into(),
        };
        let epochs = Arc::clone(self);
        let done = Box::new(move |result: Result<_, LogError>| {
            let mut state = epochs.state.lock();
            state.appending = false;
            match result {
                Ok(_) => {
                    state.failing = false;
                    state.bytes.push_back((row.epoch, bytes));
                    state.closed = Arc::new(row);
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

    /// Gives the workers the next epochs as there is room for them, as many as one read of the
    /// remap topic gives; then it is time to look at the ticks again.
    fn feed(&self, feeders: &[Feeder], announce: &impl Fn(EpochTimes)) -> Result<(), LogError> {
        let (mut before, closed) = {
            let state = self.state.lock();
            (Arc::clone(&state.fed), Arc::clone(&state.closed))
        };
        if before.epoch == closed.epoch {
            return Ok(());
        }
        let rows = if closed.epoch == before.epoch + 1 {
            vec![(*closed).clone()]
        } else {
            // The row of epoch e is at offset e − 1.
            read_rows(&*self.log, before.epoch, closed.epoch)?
        };
        for row in rows {
            if !self.wait_for_room(&before) {
                return Ok(());
            }
            let row = Arc::new(row);
            announce(row.times(&before));
            for feeder in feeders {
                let plan = Plan { before: Arc::clone(&before), row: Arc::clone(&row) };
                if feeder.plans.send(plan).is_err() {
                    // It has said why, if it could; the first reason stays.
                    self.fail("a worker has ended".into());
                    return Ok(());
                }
                feeder.thread.unpark();
            }
            self.state.lock().fed = Arc::clone(&row);
            before = row;
        }
        Ok(())
    }

    /// Waits until one more epoch may be under way, at most until it is time to look at the ticks.
    fn wait_for_room(&self, fed: &RemapRow) -> bool {
        let until = Instant::now() + LOOK;
        let mut state = self.state.lock();
        loop {
            if state.stopping || state.fault.is_some() {
                return false;
            }
            if fed.epoch - self.visible().min(fed.epoch) < self.settings.epochs_in_flight_max {
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
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(%error, "an epoch could not be closed; it is tried again at every tick");
        }
    }

    /// Forgets the sizes of epochs that are visible.
    fn see(&mut self, visible: Epoch) {
        while self.bytes.front().is_some_and(|&(epoch, _)| epoch <= visible) {
            if let Some((_, bytes)) = self.bytes.pop_front() {
                self.bytes_visible = bytes;
            }
        }
    }
}

/// The ends of events, verdicts and metadata.
type Ends = [Vec<End>; 3];

fn all_ends(log: &dyn Log) -> Ends {
    [Topic::Events, Topic::Verdicts, Topic::Metadata].map(|topic| log.ends(topic))
}

fn bytes_held(log: &dyn Log) -> u64 {
    [Topic::Events, Topic::Verdicts].into_iter().flat_map(|t| log.ends(t)).map(|e| e.bytes).sum()
}

fn remap_end(log: &dyn Log) -> u64 {
    log.ends(Topic::Remap).first().map_or(0, |end| end.offset)
}

fn covers(row: &RemapRow, ends: &Ends) -> bool {
    let topics = [&row.events, &row.verdicts, &row.metadata];
    topics
        .iter()
        .zip(ends)
        .all(|(uptos, ends)| uptos.iter().zip(ends).all(|(upto, end)| upto.offset >= end.offset))
}

/// The row after `last`, up to `ends`; `None` if nothing is new and only news were asked for.
fn next_row(last: &RemapRow, ends: Ends, only_if_new: bool) -> Option<RemapRow> {
    if only_if_new && covers(last, &ends) {
        return None;
    }
    let upto = |last: &[Upto], ends: &[End]| -> Vec<Upto> {
        ends.iter()
            .zip(last)
            .map(|(end, last)| Upto {
                offset: end.offset.max(last.offset),
                log_time: end.complete_to.max(last.log_time),
            })
            .collect()
    };
    Some(RemapRow {
        epoch: last.epoch + 1,
        events: upto(&last.events, &ends[0]),
        verdicts: upto(&last.verdicts, &ends[1]),
        metadata: upto(&last.metadata, &ends[2]),
    })
}

/// Remap rows `from..to` by offset, as many as one read gives.
///
/// # Errors
/// When they cannot be read or are no rows.
pub fn read_rows(log: &dyn Log, from: u64, to: u64) -> Result<Vec<RemapRow>, LogError> {
    let frames = log.read(Topic::Remap, 0, from, to, ROWS_READ_BYTES)?;
    frames
        .iter()
        .map(|frame| {
            let row = RemapRow::decode(&frame.payload).and_then(|row| {
                let expected = frame.offset + 1;
                let wrong =
                    || format!("the remap row at {} is of epoch {}", frame.offset, row.epoch);
                if row.epoch == expected { Ok(row.clone()) } else { Err(wrong()) }
            });
            row.map_err(|reason| LogError::Corrupt {
                file: "topic remap".into(),
                at: frame.offset,
                reason,
            })
        })
        .collect()
}

fn no_row() -> LogError {
    LogError::Unavailable { reason: "the remap topic has an end but no last row".into() }
}
