//! A worker: a thread that owns some partitions, feeds their frames to its part of the dataflow
//! epoch by epoch, and steps it. The only code that both reads the log and touches the dataflow.
//!
//! Partition *p* belongs to worker *p* mod *workers*. The one partition of verdicts is read by
//! worker 0, which sends each verdict to the owner of its event, and a verdict on an impression to
//! all. A worker parks when there is nothing to do; a new plan or a question unparks it.

use crate::{
    batches::{AGAIN, Batches, foreign},
    checkpoint::{start::WorkerBegin, taking::Piece},
    engine::{Ask, EngineSettings, Shared},
    epochs::Plan,
    flow::{Context, Job, Source},
    shuffle::Shuffle,
};
use serde::{Deserialize, Serialize};
use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    time::{Duration, Instant},
};
use timely::{
    container::CapacityContainerBuilder,
    dataflow::{InputHandle, operators::Input},
    worker::Worker,
};
use trueup_operators::{
    accumulate::{Held, Times, UnderWay},
    change::{Incident, Sink},
    commit::Committed,
    event::{EventBatch, Target, Verdict},
    feed::{Feed, Judgement},
    hash,
    ledger::Ledger,
    log::{Frame, Log, LogError, Topic},
    time::Epoch,
};

/// The partition of the verdicts topic.
const VERDICTS: u16 = 0;
/// That of the metadata topic.
const METADATA: u16 = 0;
/// Bytes of frames taken from the log at a time.
const READ_BYTES: usize = 8 << 20;
/// The longest sleep: a bound on what a lost wake-up could cost, and never in the way of one.
const PARK: Duration = Duration::from_millis(100);

type Handle<D> = InputHandle<Epoch, CapacityContainerBuilder<Vec<D>>>;

/// How a worker hears from the others.
pub(crate) struct Ends<B> {
    /// The epochs to feed.
    pub(crate) plans: Receiver<Plan>,
    /// Questions about single events.
    pub(crate) asks: Receiver<Ask>,
    /// Its place in the exchange by id, if there is one.
    pub(crate) shuffle: Option<Shuffle<B>>,
}

/// One worker's dataflow and its ends.
struct Running<B: 'static> {
    events: Handle<Feed<B>>,
    verdicts: Handle<Judgement>,
    times: Times,
    committed: [Committed; 2],
    batches: Rc<RefCell<Batches<B>>>,
    ledgers: Vec<Rc<RefCell<Ledger>>>,
    held: Vec<Rc<RefCell<Held>>>,
    /// Whether a part of a checkpoint was handed over since the last look.
    handed_over: Rc<Cell<bool>>,
    /// Epochs that were read and wait for what other workers read of them.
    read: VecDeque<(Plan, Vec<Feed<B>>)>,
    shuffle: Option<Shuffle<B>>,
}

/// The sinks of a worker, one for what the worker with its thread number in each process says: of
/// rows and fates, and of `(other)` rows.
pub(crate) type SinksByProcess<const N: usize, M> = [Vec<Box<dyn Sink<N, M> + Send>>; 2];

/// What a worker begins with.
pub(crate) struct Begin<const N: usize, M> {
    /// The last epoch that it has.
    pub(crate) after: Epoch,
    /// Its state at the end of that, if there is any.
    pub(crate) state: Option<WorkerBegin<N, M>>,
}

/// Builds the dataflow and runs until the plans end, or the run has a fault.
pub(crate) fn run<J: Job<N>, const N: usize>(
    worker: &mut Worker,
    job: &J,
    shared: &Arc<Shared>,
    ends: Ends<J::Batch>,
    sinks: SinksByProcess<N, J::Metrics>,
    begin: Begin<N, J::Metrics>,
) {
    let Ends { plans, asks, shuffle } = ends;
    // Among all, and among those of this process.
    let index = worker.index();
    let own = index - shared.seat.own().start;
    let _last_words = LastWords { index, shared };
    let mut reported = begin.after;
    let mut running = build(worker, job, shared, sinks, begin);
    if let Some(shuffle) = &shuffle {
        shuffle.enter(own);
    }
    running.shuffle = shuffle;
    while !shared.epochs.has_failed() {
        match plans.try_recv() {
            Ok(plan) => {
                if let Err(reason) = running.feed(index, shared, &plan) {
                    shared.epochs.fail(format!("worker {index}: {reason}"));
                    break;
                }
            }
            Err(TryRecvError::Empty) => {
                running.step(shared, || worker.step_or_park(Some(PARK)));
            }
            Err(TryRecvError::Disconnected) => break,
        }
        if let Err(reason) = running.feed_what_is_whole(index, shared) {
            shared.epochs.fail(format!("worker {index}: {reason}"));
            break;
        }
        running.step(shared, || worker.step());
        while let Ok(ask) = asks.try_recv() {
            running.answer(ask);
        }
        let committed = running.committed.iter().map(|c| c.get()).min().unwrap_or(0);
        if committed > reported {
            reported = committed;
            running.times.borrow_mut().retain(|&epoch, _| epoch > committed);
            running.report(own, shared);
            shared.epochs.commit(own, committed);
        }
    }
    // Inputs that end complete the epoch that is under way. After a fault it is not whole, so the
    // dataflow goes first; nor would it ever end, while a ledger that stopped holds its epoch.
    let abandon_if_failed = |worker: &mut Worker| {
        if shared.epochs.has_failed() {
            for dataflow in worker.installed_dataflows() {
                worker.drop_dataflow(dataflow);
            }
        }
    };
    abandon_if_failed(worker);
    drop(running);
    while worker.has_dataflows() {
        worker.step_or_park(Some(PARK));
        abandon_if_failed(worker);
    }
}

/// Says that a worker panicked, so that nobody waits for it.
struct LastWords<'a> {
    index: usize,
    shared: &'a Shared,
}

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.epochs.fail(format!("worker {} ended by a panic", self.index));
        }
    }
}

fn build<J: Job<N>, const N: usize>(
    worker: &mut Worker,
    job: &J,
    shared: &Arc<Shared>,
    sinks: SinksByProcess<N, J::Metrics>,
    begin: Begin<N, J::Metrics>,
) -> Running<J::Batch> {
    let EngineSettings { lateness, read_back_bytes_max, workers, partitioned_by_id, .. } =
        shared.settings;
    let times = Times::default();
    let goes_on = {
        let shared = Arc::clone(shared);
        move || !shared.epochs.is_over()
    };
    let batches = Rc::new(RefCell::new(Batches::new(
        Arc::clone(&shared.log),
        Arc::clone(&shared.symbols),
        read_back_bytes_max / workers,
        goes_on,
    )));
    let fault = {
        let (shared, index) = (Arc::clone(shared), worker.index());
        Rc::new(move |reason: String| shared.epochs.fail(format!("worker {index}: {reason}")))
    };
    let mut events: Handle<Feed<J::Batch>> = InputHandle::new();
    let mut verdicts: Handle<Judgement> = InputHandle::new();
    let handed_over = Rc::new(Cell::new(false));
    let hand_over = {
        let (handed_over, checkpoints) = (Rc::clone(&handed_over), shared.checkpoints.clone());
        Rc::new(move |piece: Box<dyn Piece>| {
            handed_over.set(true);
            // Only who takes checkpoints marks epochs.
            if let Some(checkpoints) = &checkpoints {
                checkpoints.hand_over(piece);
            }
        })
    };
    let Begin { after, state } = begin;
    let (ledger, rows) = state.map(|state| (state.ledger, state.rows)).unzip();
    let context = Rc::new(Context {
        partitions: shared.id_partitions,
        ledger: RefCell::new(ledger),
        rows: RefCell::new(rows.map(|rows| Box::new(rows) as Box<dyn Any>)),
        hand_over,
        symbols: Arc::clone(&shared.symbols),
        threads: workers,
        lateness,
        shuffled: !partitioned_by_id,
        rollups: job.rollups(),
        times: Rc::clone(&times),
        batches: Rc::clone(&batches),
        fault,
        ledgers: RefCell::default(),
        held: RefCell::default(),
    });
    let committed = worker.dataflow::<Epoch, _, _>(|scope| {
        let source = Source {
            events: scope.input_from(&mut events),
            verdicts: scope.input_from(&mut verdicts),
            context: Rc::clone(&context),
        };
        let boxed = |sinks: Vec<_>| sinks.into_iter().map(Boxed).collect();
        job.topology(source).connect(sinks.map(boxed), after)
    });
    let (ledgers, held) = (context.ledgers.take(), context.held.take());
    let (read, shuffle) = (VecDeque::new(), None);
    Running {
        events,
        verdicts,
        times,
        committed,
        batches,
        ledgers,
        held,
        handed_over,
        read,
        shuffle,
    }
}

/// A sink behind a pointer.
struct Boxed<const N: usize, M>(Box<dyn Sink<N, M> + Send>);

impl<const N: usize, M: trueup_operators::metrics::Group> Sink<N, M> for Boxed<N, M> {
    fn commit(&mut self, commit: trueup_operators::change::Commit<N, M>) {
        self.0.commit(commit);
    }
}

impl<B: EventBatch> Running<B> {
    /// Reads this worker's part of an epoch, and gives it to the dataflow, or to all workers.
    fn feed(&mut self, index: usize, shared: &Shared, plan: &Plan) -> Result<(), String> {
        let Plan { before, row, .. } = plan;
        let grew = before.epoch > 0 && row.events.len() > before.events.len();
        if grew && shared.settings.partitioned_by_id {
            return Err(format!(
                "the events topic has {} partitions and had {}: start again, and ids are exchanged \
                 between the workers from then on",
                row.events.len(),
                before.events.len()
            ));
        }
        let mut feeds = Vec::new();
        let seat = &shared.seat;
        // Where ids are exchanged, each process reads all partitions: its own ledgers take what is
        // theirs, and what has no id is told of by one.
        let (first, every) = match &self.shuffle {
            None => (index, seat.peers()),
            Some(_) => (index - seat.own().start, seat.threads()),
        };
        for partition in (first..row.events.len()).step_by(every) {
            let is_owned = partition % seat.peers() == index;
            read_each(shared, Topic::Events, partition as u16, plan, |frame| {
                let feed = self.batches.borrow_mut().feed(&frame)?;
                if is_owned || matches!(feed, Feed::Batch(_)) {
                    feeds.push(feed);
                }
                Ok(())
            })?;
        }
        if self.shuffle.is_none() {
            return self.enter(index, shared, plan, feeds);
        }
        let is_batch = |feed: &Feed<B>| matches!(feed, Feed::Batch(_));
        let (batches, told): (Vec<_>, Vec<_>) = feeds.into_iter().partition(is_batch);
        let located = batches.into_iter().filter_map(|feed| match feed {
            Feed::Batch(located) => Some(located),
            Feed::Open(_) | Feed::Foreign(_) => None,
        });
        let located: Vec<_> = located.collect();
        self.read.push_back((plan.clone(), told));
        if let Some(shuffle) = &self.shuffle {
            shuffle.give(row.epoch, &located);
        }
        Ok(())
    }

    /// Gives the dataflow the epochs of which all workers have read their parts.
    fn feed_what_is_whole(&mut self, index: usize, shared: &Shared) -> Result<(), String> {
        while let (Some((plan, _)), Some(shuffle)) = (self.read.front(), &mut self.shuffle) {
            let Some(located) = shuffle.take(plan.row.epoch) else { break };
            let Some((plan, mut feeds)) = self.read.pop_front() else { break };
            for located in located {
                self.batches.borrow_mut().remember(&located);
                feeds.push(Feed::Batch(located));
            }
            self.enter(index, shared, &plan, feeds)?;
        }
        Ok(())
    }

    /// Gives an epoch to the dataflow.
    fn enter(
        &mut self,
        index: usize,
        shared: &Shared,
        plan: &Plan,
        feeds: Vec<Feed<B>>,
    ) -> Result<(), String> {
        let Plan { before, row, image } = plan;
        let times = row.times(before);
        self.times.borrow_mut().insert(row.epoch, UnderWay { times, image: *image });
        self.events.advance_to(row.epoch);
        self.verdicts.advance_to(row.epoch);
        self.events.send(Feed::Open(times));
        feeds.into_iter().for_each(|feed| self.events.send(feed));
        if index == 0 {
            let (partitions, peers) = (shared.id_partitions, shared.seat.peers());
            read_each(shared, Topic::Verdicts, VERDICTS, plan, |frame| {
                let said = judge(&frame, partitions, peers as u32, |j| self.verdicts.send(j));
                if let Some(incident) = foreign_or(&*shared.log, &frame, said)? {
                    self.events.send(Feed::Foreign(incident));
                }
                Ok(())
            })?;
            each_foreign_of_metadata(shared, plan, |incident| {
                self.events.send(Feed::Foreign(incident));
            })?;
        }
        self.events.advance_to(row.epoch + 1);
        self.verdicts.advance_to(row.epoch + 1);
        Ok(())
    }

    /// Steps, and says how long that took if parts of a checkpoint were taken: an upper bound of
    /// what taking them costs.
    fn step(&self, shared: &Shared, step: impl FnOnce() -> bool) {
        let before = Instant::now();
        step();
        if let (true, Some(checkpoints)) = (self.handed_over.take(), &shared.checkpoints) {
            checkpoints.paused(before.elapsed());
        }
    }

    fn answer(&self, ask: Ask) {
        let entry = self.ledgers.iter().find_map(|ledger| ledger.borrow().lookup(&ask.id));
        // Who asked may have gone away.
        let _gone = ask.answer.send(entry);
    }

    fn report(&self, own: usize, shared: &Shared) {
        let mut memory = shared.memory.lock();
        let of = &mut memory[own];
        of.ledger_bytes = self.ledgers.iter().map(|l| l.borrow().bytes()).sum();
        of.ledger_events = self.ledgers.iter().map(|l| l.borrow().len()).sum();
        of.ledger_nearly_full = self.ledgers.iter().any(|l| l.borrow().is_nearly_full());
        of.rows = self.held.iter().map(|h| h.borrow().rows).sum();
        of.rows_bytes = self.held.iter().map(|h| h.borrow().bytes).sum();
    }
}

/// Tells of what others wrote to the metadata topic in an epoch. Metadata decides no figure, so of
/// a log of our own it is not read here, and what a broker no longer holds is not told of.
fn each_foreign_of_metadata(
    shared: &Shared,
    plan: &Plan,
    mut take: impl FnMut(Incident),
) -> Result<(), String> {
    let (topic, partition, log) = (Topic::Metadata, METADATA, &shared.log);
    let from = plan.before.upto(topic, partition).offset;
    if !log.is_shared() || from >= plan.row.upto(topic, partition).offset {
        return Ok(());
    }
    read_each_from(shared, (topic, partition), plan, log.first(topic, partition), |frame| {
        if let Some(reason) = &frame.foreign {
            take(foreign(&frame, topic, &reason.to_string()));
        }
        Ok(())
    })
}

/// Reads what an epoch holds of a partition, frame by frame. A frame is never older than the epoch
/// before it is complete to, nor than the frame before it, and never younger than what its own
/// epoch is complete to: the clock of a log that is not ours (of whichever broker leads the
/// partition) need not know about that. This way times ascend, keep what the remap rows promise of
/// them, and follow from the log and these rows alone, for a replay and a start as for the live
/// run. A log that does not answer is asked again for as long as the run lasts: who keeps it may be
/// away.
fn read_each(
    shared: &Shared,
    topic: Topic,
    partition: u16,
    plan: &Plan,
    take: impl FnMut(Frame) -> Result<(), String>,
) -> Result<(), String> {
    read_each_from(shared, (topic, partition), plan, 0, take)
}

/// The same, of what there is from an offset on.
fn read_each_from(
    shared: &Shared,
    (topic, partition): (Topic, u16),
    plan: &Plan,
    first: u64,
    mut take: impl FnMut(Frame) -> Result<(), String>,
) -> Result<(), String> {
    let (before, row) = (plan.before.upto(topic, partition), plan.row.upto(topic, partition));
    if plan.row.begins {
        return Ok(());
    }
    let (mut from, to) = (before.offset.max(first), row.offset);
    let (mut log_time, mut is_told) = (before.log_time, false);
    while from < to {
        let frames = match shared.log.read(topic, partition, from, to, READ_BYTES) {
            // Of a log of our own it is the disk that fails, which an operator has to see.
            Err(error @ LogError::Unavailable { .. })
                if shared.log.is_shared() && !shared.epochs.is_over() =>
            {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(%error, "the log does not answer; it is asked again");
                }
                std::thread::sleep(AGAIN);
                continue;
            }
            frames => frames.map_err(|e| e.to_string())?,
        };
        from = frames.last().map_or(to, |frame| frame.next);
        for mut frame in frames {
            log_time = log_time.max(frame.log_time.min(row.log_time));
            frame.log_time = log_time;
            take(frame)?;
        }
    }
    Ok(())
}

/// Anyone can write to a shared topic, so what is no list of verdicts there is only told of. In a
/// log of our own it is damage.
fn foreign_or(
    log: &dyn Log,
    frame: &Frame,
    said: Result<(), String>,
) -> Result<Option<Incident>, String> {
    let Err(reason) = said else { return Ok(None) };
    if !log.is_shared() {
        return Err(reason);
    }
    metrics::counter!("trueup_foreign_verdict_messages_total").increment(1);
    Ok(Some(foreign(frame, Topic::Verdicts, &reason)))
}

/// The verdicts of a frame, addressed to the workers that they concern.
fn judge(
    frame: &Frame,
    partitions: u16,
    peers: u32,
    mut send: impl FnMut(Judgement),
) -> Result<(), String> {
    let verdicts = verdicts_of(frame)
        .map_err(|reason| format!("the verdicts at offset {}: {reason}", frame.offset))?;
    for (i, verdict) in verdicts.iter().enumerate() {
        let owner = u32::from(hash::partition(&verdict.hash, partitions)) % peers;
        let workers = match verdict.target {
            Target::Event => owner..owner + 1,
            Target::Impression => 0..peers,
        };
        for worker in workers {
            send(Judgement {
                worker,
                target: verdict.target,
                hash: verdict.hash,
                invalid: verdict.invalid,
                decided_at_us: verdict.decided_at_us,
                log_time: frame.log_time,
                arrival: (frame.offset, i as u32),
            });
        }
    }
    Ok(())
}

/// The verdicts of a frame.
///
/// # Errors
/// Why it is none of ours.
pub(crate) fn verdicts_of(frame: &Frame) -> Result<Vec<Verdict>, String> {
    if let Some(foreign) = &frame.foreign {
        return Err(foreign.to_string());
    }
    let verdicts: Vec<Verdict> =
        serde_json::from_slice(&frame.payload).map_err(|e| e.to_string())?;
    match verdicts.len() == frame.records as usize {
        true => Ok(verdicts),
        false => {
            let (found, said) = (verdicts.len(), frame.records);
            Err(format!("it holds {found} verdicts, its header says {said}"))
        }
    }
}

/// Memory of a worker, by part.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct WorkerMemory {
    /// The ledger's, with indexes and room to grow.
    pub ledger_bytes: usize,
    /// Events that it remembers.
    pub ledger_events: usize,
    /// A vnode or a memory of verdicts is at seven eighths of what it may hold.
    pub ledger_nearly_full: bool,
    /// Rows of buckets that are not final.
    pub rows: usize,
    /// Bytes of those.
    pub rows_bytes: usize,
}

impl WorkerMemory {
    /// All of it.
    pub fn bytes(&self) -> usize {
        self.ledger_bytes + self.rows_bytes
    }
}
