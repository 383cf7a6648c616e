//! Taking a checkpoint while the dataflow runs: an epoch is marked, every operator that has state
//! hands over its part of that epoch as a reference, and a thread of its own writes the parts and
//! publishes them when all are there. Workers neither wait nor write.
//!
//! # One at a time
//!
//! While a checkpoint is under way no other epoch is marked. So the queue of parts has room for all
//! of them, `hand_over` never blocks, and what images hold in memory is at most one image's. A part
//! that cannot be written is dropped; the thread still waits for the others, so that parts of two
//! epochs never mix.
//!
//! # Failing
//!
//! A store that fails costs a checkpoint, not the run: it is logged and counted, and the next one
//! is whole, because an increment is what has changed since the image before. When a newer
//! generation has begun, no epoch is marked any more.

use super::{
    keeper::{CheckpointError, Keeper, Packed, Published},
    manifest::{At, Manifest, Taken},
    pack::PackError,
    pieces::Live,
};
use crate::remap::Cursor;
use parking_lot::{Condvar, Mutex};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant, UNIX_EPOCH},
};
use trueup_operators::{feed::ImageKind, remap::RemapRow, time::Epoch};

/// How often who waits looks whether the run has a fault.
const LOOK: Duration = Duration::from_millis(20);

/// A part of the state at the end of an epoch, as an operator hands it over.
pub(crate) trait Piece: Send {
    /// Says which sections of earlier checkpoints still make up the state of this part.
    fn live(&self, live: &mut Live);

    /// Writes the sections that have changed, or all if the image is whole.
    fn write(self: Box<Self>, put: &mut Put<'_>) -> Result<(), PackError>;
}

/// Takes a section: its key, and its bytes.
pub(crate) type Put<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), PackError> + 'a;

/// What is known about the checkpoints of a run.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The newest that was published.
    pub last: Option<Manifest>,
    /// The epoch of the one that is under way.
    pub under_way: Option<Epoch>,
    /// How many were published.
    pub published: u64,
    /// How many failed.
    pub failed: u64,
    /// Why the last one failed, if it did.
    pub failure: Option<String>,
}

struct State {
    status: Status,
    /// When the next one is due.
    due: Instant,
    /// One is wanted now.
    forced: bool,
    /// The next one has to be whole.
    whole: bool,
    /// No more are taken.
    fenced: bool,
    /// How many were begun and how many came to an end.
    begun: u64,
    ended: u64,
    kept: Option<At>,
}

enum Message {
    Begin { kind: ImageKind, at: At, began: Instant },
    Piece(Box<dyn Piece>),
    Stop,
}

/// The checkpoints of a run.
pub struct Checkpoints {
    interval: Duration,
    generation: u64,
    state: Mutex<State>,
    ended: Condvar,
    /// The longest that the one under way held a worker up, µs.
    pause_us: AtomicU64,
    messages: SyncSender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Checkpoints {
    /// Starts the thread that writes. `pieces` are handed over for each epoch that is marked. With
    /// an interval of zero only those are taken that are asked for.
    ///
    /// # Errors
    /// When the thread does not start.
    pub(crate) fn start(
        keeper: Keeper,
        interval: Duration,
        pieces: usize,
    ) -> std::io::Result<Arc<Checkpoints>> {
        // The begin, all parts, and the stop.
        let (messages, received) = sync_channel(pieces + 2);
        let state = State {
            status: Status::default(),
            due: Instant::now() + interval,
            forced: false,
            whole: keeper.wants_whole(),
            fenced: false,
            begun: 0,
            ended: 0,
            kept: None,
        };
        let checkpoints = Arc::new(Checkpoints {
            interval,
            generation: keeper.generation(),
            state: Mutex::new(state),
            ended: Condvar::new(),
            pause_us: AtomicU64::new(0),
            messages,
            thread: Mutex::new(None),
        });
        let told = Arc::clone(&checkpoints);
        let mut writer = Writer { keeper, pieces, received };
        let thread = std::thread::Builder::new()
            .name("checkpoints".into())
            .spawn(move || while writer.next(&told) {})?;
        *checkpoints.thread.lock() = Some(thread);
        Ok(checkpoints)
    }

    /// Whether, and how, an image is taken of the epoch of `next`, which workers get after
    /// `before`.
    pub(crate) fn mark(&self, next: &Cursor, before: &RemapRow) -> Option<ImageKind> {
        let mut state = self.state.lock();
        let due = state.forced || (!self.interval.is_zero() && Instant::now() >= state.due);
        if !due || state.fenced || state.status.under_way.is_some() {
            return None;
        }
        let kind = if state.whole { ImageKind::Whole } else { ImageKind::Increment };
        let at = At {
            row: (*next.row).clone(),
            frontier_before: before.frontier(),
            remap_offset: next.next,
        };
        self.pause_us.store(0, Ordering::Relaxed);
        let begin = Message::Begin { kind, at, began: Instant::now() };
        // There is room while none is under way, unless the thread has ended by a panic.
        self.messages.try_send(begin).ok()?;
        state.due = Instant::now() + self.interval;
        state.forced = false;
        state.begun += 1;
        state.status.under_way = Some(next.row.epoch);
        Some(kind)
    }

    /// Hands over a part of the epoch that is marked. Never blocks.
    pub(crate) fn hand_over(&self, piece: Box<dyn Piece>) {
        // There is room for all parts, unless the thread has ended by a panic.
        if self.messages.try_send(Message::Piece(piece)).is_err() {
            tracing::error!("a part of a checkpoint was not taken: its thread has ended");
        }
    }

    /// Handing over held a worker up so long.
    pub(crate) fn paused(&self, pause: Duration) {
        self.pause_us.fetch_max(pause.as_micros() as u64, Ordering::Relaxed);
    }

    /// Wants one of the next epoch that is fed; the number to wait for.
    pub(crate) fn force(&self) -> u64 {
        let mut state = self.state.lock();
        state.forced = true;
        state.begun + 1
    }

    /// Waits until a checkpoint that was forced has come to its end, or the run has a `fault`.
    ///
    /// # Errors
    /// Why it failed, or that it took longer than `patience`.
    pub(crate) fn wait(
        &self,
        number: u64,
        patience: Duration,
        fault: impl Fn() -> Option<String>,
    ) -> Result<Epoch, String> {
        let until = Instant::now() + patience;
        let mut state = self.state.lock();
        while state.ended < number && !state.fenced {
            if let Some(fault) = fault() {
                return Err(fault);
            }
            if Instant::now() >= until {
                return Err(format!("the checkpoint was not published after {patience:?}"));
            }
            self.ended.wait_until(&mut state, until.min(Instant::now() + LOOK));
        }
        match (&state.status.failure, &state.status.last) {
            (None, Some(last)) => Ok(last.epoch),
            (Some(failure), _) => Err(failure.clone()),
            (None, None) => Err("no checkpoint was taken".into()),
        }
    }

    /// Who writes them.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What is known.
    pub fn status(&self) -> Status {
        self.state.lock().status.clone()
    }

    /// The oldest checkpoint that a start may begin from: what the log holds below it may go.
    /// `None`: too few are known to be good.
    pub fn oldest(&self) -> Option<At> {
        self.state.lock().kept.clone()
    }

    /// Ends the thread after what was handed over.
    pub(crate) fn stop(&self) {
        let Some(thread) = self.thread.lock().take() else { return };
        // It takes one message after another until it gets this one.
        if self.messages.send(Message::Stop).is_err() || thread.join().is_err() {
            tracing::error!("the thread of the checkpoints ended by a panic");
        }
    }

    fn end(&self, whole_next: bool, kept: Option<At>, result: Result<Published, String>) {
        let mut state = self.state.lock();
        state.whole = whole_next;
        state.ended += 1;
        state.kept = kept.or(state.kept.take());
        let status = &mut state.status;
        status.under_way = None;
        match result {
            Ok(published) => {
                status.published += 1;
                status.failure = None;
                status.last = Some(published.manifest);
            }
            Err(failure) => {
                status.failed += 1;
                status.failure = Some(failure);
            }
        }
        drop(state);
        self.ended.notify_all();
    }
}

/// The thread's own.
struct Writer {
    keeper: Keeper,
    pieces: usize,
    received: Receiver<Message>,
}

/// The run stops in the middle of a checkpoint.
struct Stopped;

impl Writer {
    /// Takes the next checkpoint. `false`: it is time to stop.
    fn next(&mut self, told: &Checkpoints) -> bool {
        let (kind, at, began) = match self.received.recv() {
            Ok(Message::Begin { kind, at, began }) => (kind, at, began),
            // Parts come between a begin and the end that it leads to.
            Ok(Message::Piece(_)) => return true,
            Ok(Message::Stop) | Err(_) => return false,
        };
        let Ok(packed) = self.pack(kind, at.row.epoch) else { return false };
        let taken = Taken {
            at_us: UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as i64),
            took_ms: began.elapsed().as_millis() as u64,
            pause_us: told.pause_us.load(Ordering::Relaxed),
            bytes_written: 0,
        };
        let result = packed.and_then(|packed| self.keeper.publish(packed, &at, taken));
        if result.is_err() {
            self.keeper.missed();
        }
        let kept = result.is_ok().then(|| self.kept()).flatten();
        if let Err(CheckpointError::Fenced { .. }) = &result {
            told.state.lock().fenced = true;
        }
        say(&result);
        let result = result.map_err(|error| error.to_string());
        told.end(self.keeper.wants_whole(), kept, result);
        true
    }

    /// Writes the parts of an epoch as they come, and makes the pack durable.
    fn pack(
        &self,
        kind: ImageKind,
        epoch: Epoch,
    ) -> Result<Result<Packed, CheckpointError>, Stopped> {
        let mut live = Live::default();
        let mut taking = self.keeper.begin(epoch, kind == ImageKind::Whole);
        for _ in 0..self.pieces {
            let Ok(Message::Piece(piece)) = self.received.recv() else { return Err(Stopped) };
            taking = taking.and_then(|mut taking| {
                piece.live(&mut live);
                piece.write(&mut |key, section| taking.pack.section(key, section))?;
                Ok(taking)
            });
        }
        Ok(taking.and_then(|taking| self.keeper.seal(taking, |key| live.has(key))))
    }

    /// The oldest checkpoint that is left.
    fn kept(&self) -> Option<At> {
        match self.keeper.oldest() {
            Ok(oldest) => oldest,
            Err(reason) => {
                tracing::warn!(reason, "what checkpoints are kept cannot be read; the log stays");
                None
            }
        }
    }
}

fn say(result: &Result<Published, CheckpointError>) {
    match result {
        Ok(Published { manifest, garbage }) => {
            metrics::counter!("trueup_checkpoints_total").increment(1);
            tracing::info!(
                epoch = manifest.epoch,
                bytes = manifest.bytes_written,
                sections = manifest.sections,
                chain = manifest.chain,
                took_ms = manifest.took_ms,
                pause_us = manifest.pause_us,
                "checkpoint"
            );
            if let Some(reason) = &garbage.failed {
                tracing::warn!(reason, "old checkpoints could not be deleted; tried again later");
            }
        }
        Err(error) => {
            metrics::counter!("trueup_checkpoints_failed_total").increment(1);
            tracing::error!(%error, "a checkpoint failed; the next one is whole");
        }
    }
}
