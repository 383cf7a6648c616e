//! Taking a checkpoint while the dataflow runs: an epoch is marked, every operator that has state
//! hands over its part of that epoch as a reference, and a thread of its own writes the parts and
//! publishes them when all are there ([`writing`]). Workers neither wait nor write.
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
//!
//! # Several processes
//!
//! Each process has a [`Role`]. Workers hand over in all of them; what happens between is
//!
//! ```text
//! leader                                   member
//!   mark ─ with the epoch ────────────────▶ marked
//!   its thread seals its pack               its thread seals its pack
//!   sealed ◀── SealedPart ───────────────── say
//!   its thread has all: publishes, or not
//!   say ────── Ended ─────────────────────▶ ended: over for this process
//!   over: the next epoch may be marked
//! ```
//!
//! So one at a time holds for the cluster: the leader is through when every member has answered,
//! also one that has failed, and a member learns that before it learns of the next epoch. A member
//! may get the next epoch while its thread is still at what the leader said of the last; nothing of
//! the last is in the queue then.
//!
//! What comes from another process is taken only where it is due: from a member that exists, once,
//! for the epoch under way. All else is dropped and logged. A leader that marks an epoch while one
//! is under way here contradicts itself; this process then writes no more parts, because parts of
//! two epochs could mix, and answers with that as its failure.
//!
//! # The end of a generation
//!
//! A leader waits for members, and a member for its leader, without a limit of time: who keeps the
//! processes together knows when one of them is lost, and then calls [`Checkpoints::stop`]. In a
//! cluster that lets go of the checkpoint under way; alone it is finished if all was handed over.

mod writing;

pub(crate) use super::parts::{Ended, SealedPart};

use super::{
    keeper::Keeper,
    manifest::{At, Manifest},
    pack::PackError,
    parts,
    pieces::Live,
};
use crate::remap::Cursor;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use trueup_operators::{feed::ImageKind, remap::RemapRow, time::Epoch};
use writing::Writer;

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

/// What a process does for the checkpoints of its job. Neither `say` may block, and what is said
/// must arrive in the order in which it was said, with what else the process says.
pub(crate) enum Role {
    /// There are no others.
    Alone,
    /// Marks epochs and publishes.
    Leader {
        /// How many other processes there are; their numbers are 1 to this.
        members: u32,
        /// Tells all of them how a checkpoint ended.
        say: Box<dyn Fn(Ended) + Send + Sync>,
    },
    /// Writes its part.
    Member {
        /// Tells the leader of it.
        say: Box<dyn Fn(SealedPart) + Send + Sync>,
    },
    /// Writes the state at the end of one epoch, and offers it when it is told to: a replay's.
    Offer {
        /// Of which.
        upto: Epoch,
    },
}

/// What is known about the checkpoints of a run; of a cluster's as a whole, in each process.
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
    /// What members have said of the one under way, by writer: a leader's.
    sealed: BTreeMap<u32, SealedPart>,
    /// Whether the leader was told of this process's part of the one under way, and what it
    /// answered, until the thread takes it: a member's.
    has_said: bool,
    answer: Option<Ended>,
    /// Why this member writes no more parts.
    refuses: Option<String>,
    /// The replay that was offered.
    offered: Option<String>,
    /// The generation is over: nobody waits any more.
    stopping: bool,
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
    writer: u32,
    role: Role,
    /// The run began with what a replay has found and nobody has seen.
    of_a_replay: bool,
    state: Mutex<State>,
    /// Something has changed that somebody may wait for.
    news: Condvar,
    /// The longest that the one under way held a worker up, µs.
    pause_us: AtomicU64,
    messages: SyncSender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Checkpoints {
    /// Starts the thread that writes. `pieces` are handed over in this process for each epoch that
    /// is marked. With an interval of zero only those are taken that are asked for.
    ///
    /// # Errors
    /// When the thread does not start.
    pub(crate) fn start(
        keeper: Keeper,
        interval: Duration,
        pieces: usize,
        role: Role,
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
            sealed: BTreeMap::new(),
            has_said: false,
            answer: None,
            refuses: None,
            offered: None,
            stopping: false,
        };
        let checkpoints = Arc::new(Checkpoints {
            interval,
            generation: keeper.generation(),
            writer: keeper.writer(),
            role,
            of_a_replay: keeper.begins_a_replay(),
            state: Mutex::new(state),
            news: Condvar::new(),
            pause_us: AtomicU64::new(0),
            messages,
            thread: Mutex::new(None),
        });
        let told = Arc::clone(&checkpoints);
        let mut writer = Writer::new(keeper, pieces, received);
        let thread = std::thread::Builder::new()
            .name("checkpoints".into())
            .spawn(move || while writer.next(&told) {})?;
        *checkpoints.thread.lock() = Some(thread);
        Ok(checkpoints)
    }

    /// Whether, and how, an image is taken of the epoch of `next`, which workers get after
    /// `before`. A member is told that by its leader.
    pub(crate) fn mark(&self, next: &Cursor, before: &RemapRow) -> Option<ImageKind> {
        if let Role::Member { .. } = self.role {
            return None;
        }
        let mut state = self.state.lock();
        if let Role::Offer { upto } = self.role {
            // Its `forced` says that it is to be offered.
            let is_due = next.row.epoch == upto && !state.stopping;
            let begun = is_due && self.begin(&mut state, next, before, ImageKind::Whole);
            return begun.then_some(ImageKind::Whole);
        }
        let due = state.forced || (!self.interval.is_zero() && Instant::now() >= state.due);
        if !due || state.fenced || state.stopping || state.status.under_way.is_some() {
            return None;
        }
        let kind = if state.whole { ImageKind::Whole } else { ImageKind::Increment };
        // There is room while none is under way, unless the thread has ended by a panic.
        self.begin(&mut state, next, before, kind).then_some(kind)
    }

    /// The leader has marked the epoch of `next`, which the workers of this process get after
    /// `before`, when this has returned.
    pub(crate) fn marked(&self, next: &Cursor, before: &RemapRow, kind: ImageKind) {
        let Role::Member { say } = &self.role else {
            tracing::error!("an epoch was marked by another process, and this one does that");
            return;
        };
        let epoch = next.row.epoch;
        let mut state = self.state.lock();
        if let Some(under_way) = state.status.under_way {
            let reason = format!("epoch {epoch} was marked before {under_way} had ended");
            state.refuses.get_or_insert(reason);
        }
        if state.refuses.is_none() && !self.begin(&mut state, next, before, kind) {
            state.refuses = Some("the thread that writes checkpoints has ended".to_owned());
        }
        let Some(reason) = state.refuses.clone() else { return };
        drop(state);
        tracing::error!(epoch, reason, "this process has no part of the checkpoint");
        say(self.failed_part(epoch, &reason));
    }

    /// Begins the checkpoint of an epoch. `false`: the queue is full, or its thread has ended.
    fn begin(&self, state: &mut State, next: &Cursor, before: &RemapRow, kind: ImageKind) -> bool {
        let at = At {
            row: (*next.row).clone(),
            frontier_before: before.frontier(),
            remap_offset: next.behind,
        };
        self.pause_us.store(0, Ordering::Relaxed);
        let begin = Message::Begin { kind, at, began: Instant::now() };
        if self.messages.try_send(begin).is_err() {
            return false;
        }
        state.due = Instant::now() + self.interval;
        // A replay is told to offer at any time.
        state.forced &= self.offers();
        state.begun += 1;
        state.sealed.clear();
        state.has_said = false;
        state.status.under_way = Some(next.row.epoch);
        true
    }

    /// Hands over a part of the epoch that is marked. Never blocks.
    pub(crate) fn hand_over(&self, piece: Box<dyn Piece>) {
        if self.state.lock().refuses.is_some() {
            return;
        }
        // There is room for all parts, unless the thread has ended.
        if self.messages.try_send(Message::Piece(piece)).is_err() {
            tracing::error!("a part of a checkpoint was not taken: its thread has ended");
        }
    }

    /// Handing over held a worker up so long.
    pub(crate) fn paused(&self, pause: Duration) {
        self.pause_us.fetch_max(pause.as_micros() as u64, Ordering::Relaxed);
    }

    /// A member has said this of its part. Never blocks.
    pub(crate) fn sealed(&self, part: SealedPart) {
        let Role::Leader { members, .. } = self.role else {
            tracing::warn!(writer = part.writer, "a part of a checkpoint that nobody here awaits");
            return;
        };
        let mut state = self.state.lock();
        let is_due = part.generation == self.generation
            && Some(part.epoch) == state.status.under_way
            && (1..=members).contains(&part.writer)
            && !state.sealed.contains_key(&part.writer);
        if !is_due {
            let SealedPart { generation, epoch, writer, .. } = part;
            tracing::warn!(generation, epoch, writer, "a part of a checkpoint that is not due");
            return;
        }
        state.sealed.insert(part.writer, part);
        drop(state);
        self.news.notify_all();
    }

    /// The leader has said this of the checkpoint under way. Never blocks.
    pub(crate) fn ended(&self, ended: Ended) {
        let mut state = self.state.lock();
        let is_due = ended.generation == self.generation
            && Some(ended.epoch) == state.status.under_way
            && state.has_said
            && state.answer.is_none();
        if !is_due || !matches!(self.role, Role::Member { .. }) {
            let Ended { generation, epoch, .. } = ended;
            tracing::warn!(generation, epoch, "the end of a checkpoint that is not due");
            return;
        }
        state.fenced |= ended.fenced;
        let result = ended.checked().cloned();
        state.answer = Some(ended);
        // From here on the next epoch may be marked, whatever the thread is at.
        state.end(result);
        drop(state);
        self.news.notify_all();
    }

    /// Whether the run began with what a replay has found and nobody has seen.
    pub(crate) fn are_of_a_replay(&self) -> bool {
        self.of_a_replay
    }

    /// Whether this run is a replay's, which takes none but writes what it offers.
    pub(crate) fn offers(&self) -> bool {
        matches!(self.role, Role::Offer { .. })
    }

    /// Wants one of the next epoch that is fed; the number to wait for.
    pub(crate) fn force(&self) -> u64 {
        let mut state = self.state.lock();
        state.forced = true;
        state.begun + 1
    }

    /// Offers what a replay has found, when it is durable; the name of the replay.
    ///
    /// # Errors
    /// Why it was not offered, or that it took longer than `patience`.
    pub(crate) fn offer(
        &self,
        patience: Duration,
        fault: impl Fn() -> Option<String>,
    ) -> Result<String, String> {
        self.state.lock().forced = true;
        self.news.notify_all();
        self.wait(1, patience, |_| fault())?;
        self.state.lock().offered.clone().ok_or_else(|| "this run offers nothing".to_owned())
    }

    /// Waits until what was written is to be offered. `false`: it is not.
    fn is_to_offer(&self) -> bool {
        let mut state = self.state.lock();
        while !state.stopping && !state.forced {
            self.news.wait(&mut state);
        }
        !state.stopping
    }

    /// Waits until a checkpoint that was forced has come to its end, or the run has a `fault`;
    /// that is told whether the epoch of the checkpoint is marked already.
    ///
    /// # Errors
    /// Why it failed, or that it took longer than `patience`.
    pub(crate) fn wait(
        &self,
        number: u64,
        patience: Duration,
        fault: impl Fn(bool) -> Option<String>,
    ) -> Result<Epoch, String> {
        let until = Instant::now() + patience;
        let mut state = self.state.lock();
        while state.ended < number && !state.fenced {
            if let Some(fault) = fault(state.begun >= number) {
                return Err(fault);
            }
            if state.stopping && !matches!(self.role, Role::Alone) {
                return Err("the run was stopped before the checkpoint was published".into());
            }
            if Instant::now() >= until {
                return Err(format!("the checkpoint was not published after {patience:?}"));
            }
            self.news.wait_until(&mut state, until.min(Instant::now() + LOOK));
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
    /// `None`: too few are known to be good, or another process knows them.
    pub fn oldest(&self) -> Option<At> {
        self.state.lock().kept.clone()
    }

    /// Ends the thread: alone after what was handed over, in a cluster as soon as what it does with
    /// the store at this moment returns. After this nothing is written, published or deleted, and
    /// nothing is said.
    pub(crate) fn stop(&self) {
        // Held until the thread has ended, so that whoever else stops it waits too.
        let mut running = self.thread.lock();
        let Some(thread) = running.take() else { return };
        self.state.lock().stopping = true;
        self.news.notify_all();
        // It takes one message after another until it gets this one, or has ended already.
        drop(self.messages.send(Message::Stop));
        if thread.join().is_err() {
            tracing::error!("the thread of the checkpoints ended by a panic");
        }
    }

    /// Whether the thread is to let go of what is under way.
    fn lets_go(&self) -> bool {
        !matches!(self.role, Role::Alone) && self.state.lock().stopping
    }

    /// What all members have said of the checkpoint under way. `None`: the generation is over.
    fn all_sealed(&self, members: u32) -> Option<Vec<SealedPart>> {
        let mut state = self.state.lock();
        while !state.stopping && state.sealed.len() < members as usize {
            self.news.wait(&mut state);
        }
        let sealed = std::mem::take(&mut state.sealed);
        (!state.stopping).then(|| sealed.into_values().collect())
    }

    /// The leader is about to be told of this process's part. `false`: the generation is over.
    fn says(&self) -> bool {
        let mut state = self.state.lock();
        state.has_said = !state.stopping;
        state.has_said
    }

    /// What the leader has said of the checkpoint of which it was told. `None`: the generation is
    /// over.
    fn answer(&self) -> Option<Ended> {
        let mut state = self.state.lock();
        while !state.stopping && state.answer.is_none() {
            self.news.wait(&mut state);
        }
        state.answer.take().filter(|_| !state.stopping)
    }

    /// Why this process has no part of the checkpoint under way, although it could be written.
    fn refuses(&self) -> Option<String> {
        self.state.lock().refuses.clone()
    }

    fn failed_part(&self, epoch: Epoch, reason: &str) -> SealedPart {
        let sealed = Err(parts::reason(reason));
        SealedPart { generation: self.generation, epoch, writer: self.writer, sealed }
    }
}

impl State {
    /// The checkpoint under way has come to its end.
    fn end(&mut self, result: Result<Manifest, String>) {
        self.ended += 1;
        let status = &mut self.status;
        status.under_way = None;
        match result {
            Ok(manifest) => {
                status.published += 1;
                status.failure = None;
                status.last = Some(manifest);
            }
            Err(failure) => {
                status.failed += 1;
                status.failure = Some(failure);
            }
        }
    }
}
