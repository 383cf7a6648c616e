//! The collector's spool: where appends go while Kafka is away.
//!
//! ```text
//!            Kafka takes them                      the journal is drained, in order
//!  append ──▶ Kafka ─────────▶ done        append ──▶ journal ──fsync──▶ done
//!    │          │ failed or silent           ▲           │
//!    │          ▼                            │           ▼ (a thread of its own)
//!    └──▶ away: journal ─────────────────────┘         Kafka, acks=all ──▶ drained position
//! ```
//!
//! *Direct*: appends go to Kafka and are acknowledged by it. When a delivery fails, or one has had
//! no answer for `away_after_ms`, or Kafka's queue is full, the spool is *away*: what has no answer
//! and every later append goes into an embedded journal, which syncs and acknowledges it. The drain
//! sends what the journal holds to Kafka, in order. When little is left the spool is *returning*:
//! appends wait in memory until the last of the journal is in Kafka, then follow it, and the spool
//! is direct again.
//!
//! What it promises:
//!
//! * acknowledged means in Kafka, on all in-sync replicas, or on this machine's disk;
//! * what the journal acknowledged reaches Kafka, through crashes of this process as well; a frame
//!   that Kafka refuses for what it is, since a topic's `max.message.bytes` was lowered meanwhile,
//!   does not hold up those behind it: it goes durably into a file of its own
//!   (`undeliverable.rs`), is counted and told, and is sent again, behind the others, by each
//!   later start until Kafka takes it;
//! * what was appended later comes later in its partition, except that an append whose delivery
//!   failed *after* others had gone to the journal stands behind them, and so may one that was
//!   sent together with a frame that Kafka refused;
//! * a frame may be sent twice: when it had no answer, or a bad one, and the brokers have it all
//!   the same, and when this process ended between sending it and noting so. Dedupe by event id
//!   makes both harmless; for anything else than events, verdicts and metadata, use the Kafka log
//!   itself.
//!
//! What is bounded: the journal by `spool_bytes_max` (then `Busy`), what waits in memory by the
//! Kafka log's own queue, what Kafka refuses by 1 000 frames and 1 GiB (then the drain stands, and
//! says so).
//!
//! # In the journal
//!
//! All frames are in one partition, for one order. Each has the payload that was appended, and
//! eight bytes behind it (so that the payload stays aligned):
//!
//! ```text
//! 0  u8   version = 1
//! 1  u8   topic
//! 2  u16  partition, little-endian
//! 4  u32  reserved = 0
//! ```

mod drain;
mod drained;
mod look;
mod route;
mod undeliverable;

pub use look::{SpoolReport, look};

use crate::{
    log::KafkaLog,
    settings::{Clock, check_range, invalid, ms, unavailable},
};
use arrow_buffer::MutableBuffer;
use drained::Drained;
use parking_lot::{Condvar, Mutex};
use route::{Cell, Parcel, Route, Way};
use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{JoinHandle, ThreadId},
    time::Instant,
};
use trueup_log::{Fsync, Journal, PAYLOAD_BYTES_MAX, SEGMENT_BYTES_MIN, Settings};
use trueup_operators::{
    log::{Append, Appended, Done, Frame, Log, LogError, LogLayer, Topic},
    time::LogTime,
};
use undeliverable::Undeliverable;

/// Bytes behind each payload.
const TRAILER_BYTES: usize = 8;
/// The version of the trailer.
const TRAILER_VERSION: u8 = 1;
/// The drain sends this much at once, and notes how far it is.
const DRAIN_BYTES: usize = 4 << 20;
/// Frames that are left when the spool begins to return.
const RETURN_FRAMES_MAX: u64 = 64;
/// Returning takes no longer than this; otherwise what waits goes to the journal.
const RETURN_MS_MAX: u64 = 2_000;
/// How often the drain looks around when nothing tells it to.
const TURN_MS: u64 = 20;
/// How long a spool that is dropped waits for those who are being told an answer.
const TELL_MS_MAX: u64 = 1_000;
/// How long it rests after Kafka did not take something.
const REST_MS: u64 = 250;

/// How the spool is kept.
#[derive(Clone, Copy, Debug)]
pub struct SpoolSettings {
    /// Bytes that may wait in the journal; beyond it appends are refused as busy. The disk needs
    /// two segments more: those that are being written and drained.
    pub spool_bytes_max: u64,
    /// A segment of the journal; drained ones are deleted.
    pub segment_bytes_max: u64,
    /// An append that Kafka has not answered for this long means that it is away.
    pub away_after_ms: u64,
    /// When the journal forces bytes to the disk.
    pub fsync: Fsync,
}

impl Default for SpoolSettings {
    fn default() -> SpoolSettings {
        SpoolSettings {
            spool_bytes_max: 10 << 30,
            segment_bytes_max: 64 << 20,
            away_after_ms: 1_000,
            fsync: Fsync::Batch,
        }
    }
}

/// How the spool is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolStatus {
    /// Whether Kafka is taken to be away: appends go to the journal.
    pub away: bool,
    /// Since when, if it is.
    pub away_since: Option<LogTime>,
    /// Frames in the journal that are not yet in Kafka.
    pub waiting_frames: u64,
    /// Their bytes on disk.
    pub waiting_bytes: u64,
    /// The log time that the oldest of them got from the journal.
    pub waiting_since: Option<LogTime>,
    /// Frames that were sent out of the journal since this process began.
    pub drained_frames: u64,
    /// Frames that Kafka refused for what they are: each is kept in a file of its own, and sent
    /// again at the next start.
    pub undeliverable_frames: u64,
    /// Why the drain did not go on, when it last tried.
    pub trouble: Option<String>,
}

/// Kafka, and a journal for the time when it is away. Dropping it leaves what waits in the journal
/// for the next process.
pub struct Spool {
    shared: Arc<Shared>,
    drain: Option<JoinHandle<()>>,
}

struct Shared {
    kafka: Arc<KafkaLog>,
    journal: Journal,
    settings: SpoolSettings,
    clock: Clock,
    route: Mutex<Route>,
    /// Told when the journal or the route has something new.
    news: Condvar,
    drained: Drained,
    undeliverable: Undeliverable,
    /// The frame that is neither taken by Kafka nor kept beside the journal, if the drain stands.
    stands_at: AtomicU64,
    trouble: Mutex<Option<String>>,
    stopped: AtomicBool,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").field("kafka", &self.shared.kafka).finish_non_exhaustive()
    }
}

impl Spool {
    /// Opens the journal in `dir` and begins to send what it holds.
    ///
    /// # Errors
    /// `Invalid` for settings that cannot be and for a directory in use; `Corrupt` when the journal
    /// is not what was written; `Unavailable` when the system refuses.
    pub fn open(
        kafka: Arc<KafkaLog>,
        dir: &Path,
        settings: SpoolSettings,
        clock: Clock,
    ) -> Result<Spool, LogError> {
        check_range("spool_bytes_max", settings.spool_bytes_max, 64 << 10..=1 << 50)?;
        check_range("away_after_ms", settings.away_after_ms, 10..=600_000)?;
        let segment_bytes_max =
            settings.segment_bytes_max.min(settings.spool_bytes_max / 4).max(SEGMENT_BYTES_MIN);
        let journal_settings = Settings {
            partitions: 1,
            segment_bytes_max,
            tail_bytes_max: 8 << 20,
            queue_bytes_max: kafka.settings().queue_bytes_max,
            fsync: settings.fsync,
            ..Settings::default()
        };
        let (journal, opened) = Journal::open(dir, journal_settings, clock.clone())?;
        let first = journal.first(Topic::Events, 0);
        let end = journal.ends(Topic::Events)[0].offset;
        let drained = Drained::open(dir, first..=end)?;
        let undeliverable = Undeliverable::open(dir)?;
        if opened.frames > 0 && drained.offset() < end {
            tracing::info!(frames = end - drained.offset(), "the spool holds frames for Kafka");
        }
        let mut route = Route::new(drained.offset(), end, clock());
        go_over(&journal, first, drained.offset(), &mut route)?;
        let shared = Arc::new(Shared {
            kafka,
            journal,
            settings,
            clock,
            route: Mutex::new(route),
            news: Condvar::new(),
            drained,
            undeliverable,
            stands_at: AtomicU64::new(u64::MAX),
            trouble: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let ours = Arc::clone(&shared);
        let drain = std::thread::Builder::new()
            .name("spool-drain".into())
            .spawn(move || ours.run())
            .map_err(|error| unavailable(format!("the drain cannot start: {error}")))?;
        Ok(Spool { shared, drain: Some(drain) })
    }

    /// Appends to the journal, whether Kafka is there or not: for who must answer at once, as a
    /// pixel must. The place that `done` is told is the journal's.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn append_spooled(&self, frames: Vec<Append>, done: Done) -> Result<(), LogError> {
        self.shared.kafka.check(&frames)?;
        let shared = &self.shared;
        shared.with(|route| shared.keep(route, (frames, done), false)).map_err(|(error, _)| error)
    }

    /// A log whose appends all go to the journal first.
    pub fn spooled_first(self: &Arc<Spool>) -> Arc<dyn Log> {
        Arc::new(SpooledFirst(Arc::clone(self)))
    }

    /// How it is doing.
    pub fn status(&self) -> SpoolStatus {
        let Shared { route, journal, drained, undeliverable, .. } = &*self.shared;
        let end = journal.ends(Topic::Events)[0];
        let from = drained.offset();
        let oldest = journal.read(Topic::Events, 0, from, from + 1, 0).ok();
        let route = route.lock();
        SpoolStatus {
            away: route.way() != Way::Direct,
            away_since: (route.way() != Way::Direct).then(|| route.away_since()),
            waiting_frames: end.offset.saturating_sub(from),
            waiting_bytes: end.bytes.saturating_sub(route.gone_bytes()),
            waiting_since: oldest.and_then(|frames| Some(frames.first()?.log_time)),
            drained_frames: drained.frames().saturating_sub(undeliverable.kept()),
            undeliverable_frames: undeliverable.frames(),
            trouble: self.shared.trouble.lock().clone(),
        }
    }
}

/// Notes the sizes of what was drained and is still held.
fn go_over(journal: &Journal, mut from: u64, to: u64, route: &mut Route) -> Result<(), LogError> {
    while from < to {
        let frames = journal.read(Topic::Events, 0, from, to, DRAIN_BYTES)?;
        from += frames.len() as u64;
        route.went(frames.iter().map(|frame| (frame.next, bytes_on_disk(frame))));
    }
    // That was another run; whether Kafka is there now is not known.
    route.stay_away();
    Ok(())
}

/// A header of 64 bytes, and the payload in steps of 64.
fn bytes_on_disk(frame: &Frame) -> u64 {
    64 + (frame.payload.len() as u64).next_multiple_of(64)
}

impl LogLayer for Spool {
    fn below(&self) -> &dyn Log {
        &*self.shared.kafka
    }

    fn broken(&self) -> Option<String> {
        let broken = self.shared.journal.broken();
        broken.map(|reason| format!("the spool cannot be used: {reason}"))
    }

    /// To Kafka, or to the journal while it is away; `done` is told the place where it is.
    fn append(&self, frames: Vec<Append>, done: Done) -> Result<(), LogError> {
        self.shared.kafka.check(&frames)?;
        Shared::append(&self.shared, frames, done)
    }
}

/// The spool as who must answer at once sees it.
struct SpooledFirst(Arc<Spool>);

impl LogLayer for SpooledFirst {
    fn below(&self) -> &dyn Log {
        &*self.0
    }

    fn append(&self, frames: Vec<Append>, done: Done) -> Result<(), LogError> {
        self.0.append_spooled(frames, done)
    }
}

/// What was not taken, and why. Without `done`, whoever has that has been told.
type Refused = (LogError, Option<Done>);

/// What Kafka said while it was still being asked.
type Early = Arc<Mutex<Option<Result<Vec<Appended>, LogError>>>>;

impl Shared {
    /// Does something to the route, and afterwards tells who is to be told: a callback may append.
    fn with<T>(&self, change: impl FnOnce(&mut Route) -> T) -> T {
        let mut route = self.route.lock();
        let result = change(&mut route);
        let tell = std::mem::take(&mut route.tell);
        drop(route);
        tell.into_iter().for_each(|(done, result)| done(result));
        result
    }

    fn append(self: &Arc<Shared>, frames: Vec<Append>, done: Done) -> Result<(), LogError> {
        let limit_bytes = self.kafka.settings().queue_bytes_max;
        self.with(|route| match route.way() {
            Way::Direct => self.direct(route, (frames, done)).map_err(|(error, _)| error),
            Way::Away => self.keep(route, (frames, done), true).map_err(|(error, _)| error),
            // As much as Kafka's queue would take.
            Way::Returning => route.wait((frames, done), limit_bytes),
        })
    }

    /// To Kafka; to the journal when that fails.
    fn direct(self: &Arc<Shared>, route: &mut Route, parcel: Parcel) -> Result<(), Refused> {
        // Payloads are shared, not copied.
        let frames = parcel.0.clone();
        let cell = Arc::new(Mutex::new(Some(parcel)));
        let ticket = route.begin(Instant::now(), &cell);
        let early = Early::default();
        let answered = self.on_answer(ticket, &cell, &early);
        let put = self.kafka.append(frames, answered);
        // Whatever comes from here on comes from another thread, which waits for the route.
        let said = early.lock().take();
        let result = match (put, said) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(result)) => result,
            (Ok(()), None) => return Ok(()),
        };
        route.end(ticket);
        let Some(parcel) = cell.lock().take() else { return Ok(()) };
        self.decide(route, parcel, result)
    }

    /// What is done when Kafka answers: at once on this thread, or later on another.
    fn on_answer(self: &Arc<Shared>, ticket: u64, cell: &Cell, early: &Early) -> Done {
        let asking: ThreadId = std::thread::current().id();
        let (ours, cell, early) = (Arc::downgrade(self), Arc::clone(cell), Arc::downgrade(early));
        Box::new(move |result| {
            // While it asks, the thread holds the route and `early`.
            if let Some(early) = early.upgrade()
                && std::thread::current().id() == asking
            {
                *early.lock() = Some(result);
                return;
            }
            let Some(ours) = ours.upgrade() else {
                // The spool has ended, and has put into the journal what was under way.
                return drop(cell.lock().take());
            };
            ours.with(|route| {
                route.end(ticket);
                // None when it was overdue, and is in the journal.
                let Some(parcel) = cell.lock().take() else { return };
                if let Err((error, Some(done))) = ours.decide(route, parcel, result) {
                    route.tell.push((done, Err(error)));
                }
            });
        })
    }

    /// What becomes of a parcel that Kafka has answered.
    fn decide(
        &self,
        route: &mut Route,
        (frames, done): Parcel,
        result: Result<Vec<Appended>, LogError>,
    ) -> Result<(), Refused> {
        match result {
            Err(error @ (LogError::Busy { .. } | LogError::Unavailable { .. })) => {
                route.leave((self.clock)(), &error.to_string());
                self.keep(route, (frames, done), true)
            }
            Err(error) => Err((error, Some(done))),
            Ok(appended) => {
                route.tell.push((done, Ok(appended)));
                Ok(())
            }
        }
    }

    /// To the journal. Direct appends must stay behind those that are `ordered`.
    fn keep(
        &self,
        route: &mut Route,
        (frames, done): Parcel,
        ordered: bool,
    ) -> Result<(), Refused> {
        let most = self.settings.spool_bytes_max;
        let held = self.journal.ends(Topic::Events)[0].bytes;
        let waiting = held.saturating_sub(route.gone_bytes()) + self.journal.waiting_bytes();
        let bytes = frames.iter().map(|f| f.payload.len() as u64 + 128).sum::<u64>();
        if waiting + bytes > most {
            let busy = LogError::Busy { waiting_bytes: waiting, limit_bytes: most };
            return Err((busy, Some(done)));
        }
        let frames = match frames.iter().map(wrap).collect::<Result<Vec<_>, _>>() {
            Ok(frames) => frames,
            Err(error) => return Err((error, Some(done))),
        };
        let kept = route.keep(ordered);
        let slot = Arc::new(Mutex::new(Some(done)));
        let theirs = Arc::clone(&slot);
        let answered = Box::new(move |result: Result<Vec<Appended>, LogError>| {
            if let Some(last) = result.iter().flatten().next_back() {
                kept.durable(last.offset + 1);
            }
            drop(kept);
            let done = theirs.lock().take();
            if let Some(done) = done {
                done(result);
            }
        });
        self.journal.append(frames, answered).map_err(|error| (error, slot.lock().take()))
    }

    /// Parcels, to the journal; who cannot be helped is told.
    fn keep_all(&self, route: &mut Route, parcels: Vec<Parcel>) {
        for parcel in parcels {
            if let Err((error, Some(done))) = self.keep(route, parcel, true) {
                route.tell.push((done, Err(error)));
            }
        }
    }

    /// The drain: sends what the journal holds, and leads the spool back.
    fn run(self: &Arc<Shared>) {
        let mut refused_before = VecDeque::from(self.undeliverable.names());
        while !self.stopped.load(SeqCst) {
            self.notice_silence();
            let end = self.journal.ends(Topic::Events)[0].offset;
            let rest_ms = if self.drained.offset() < end {
                match self.drain(end) {
                    Ok(()) => 0,
                    Err(error) => {
                        tracing::warn!(%error, "the spool is not drained");
                        *self.trouble.lock() = Some(error.to_string());
                        self.with(|route| {
                            let parcels = route.stay_away();
                            self.keep_all(route, parcels);
                        });
                        REST_MS
                    }
                }
            } else {
                self.send_again(&mut refused_before)
            };
            self.come_back();
            if rest_ms > 0 && !self.stopped.load(SeqCst) {
                self.news.wait_for(&mut self.route.lock(), ms(rest_ms));
            }
        }
    }

    /// Kafka may say nothing at all for as long as a delivery may take.
    fn notice_silence(&self) {
        let after = ms(self.settings.away_after_ms);
        self.with(|route| {
            let parcels = route.overdue(Instant::now(), after);
            if !parcels.is_empty() {
                route.leave((self.clock)(), "it does not answer");
                self.keep_all(route, parcels);
            }
        });
    }

    /// From away to returning to direct, as far as the journal is drained.
    fn come_back(self: &Arc<Shared>) {
        self.with(|route| {
            let now = Instant::now();
            if route.is_stuck(now, ms(RETURN_MS_MAX)) {
                let parcels = route.stay_away();
                return self.keep_all(route, parcels);
            }
            // In the order in which they came, before any later one: the route is held.
            for parcel in route.come_back(now, self.drained.offset(), RETURN_FRAMES_MAX) {
                let put = match route.way() {
                    Way::Direct => self.direct(route, parcel),
                    Way::Away | Way::Returning => self.keep(route, parcel, true),
                };
                if let Err((error, Some(done))) = put {
                    route.tell.push((done, Err(error)));
                }
            }
        });
    }
}

/// What the journal holds of a frame.
fn wrap(append: &Append) -> Result<Append, LogError> {
    let bytes = append.payload.len() + TRAILER_BYTES;
    if bytes > PAYLOAD_BYTES_MAX {
        return Err(invalid(format!(
            "a payload of {} bytes is over the limit of the spool, {}",
            append.payload.len(),
            PAYLOAD_BYTES_MAX - TRAILER_BYTES
        )));
    }
    let [low, high] = append.partition.to_le_bytes();
    let mut payload = MutableBuffer::with_capacity(bytes);
    payload.extend_from_slice(&append.payload);
    payload.extend_from_slice(&[TRAILER_VERSION, append.topic as u8, low, high, 0, 0, 0, 0]);
    Ok(Append { topic: Topic::Events, partition: 0, payload: payload.into(), ..append.clone() })
}

/// The frame that was appended, out of the journal's.
fn unwrap_frame(frame: &Frame) -> Result<Append, LogError> {
    let wrong = |reason: &str| LogError::Corrupt {
        file: "the spool's journal".into(),
        at: frame.offset,
        reason: reason.into(),
    };
    let bytes = frame.payload.len();
    let payload_bytes = bytes.checked_sub(TRAILER_BYTES).ok_or_else(|| wrong("no trailer"))?;
    let trailer = &frame.payload[payload_bytes..];
    let (TRAILER_VERSION, [0, 0, 0, 0]) = (trailer[0], &trailer[4..]) else {
        return Err(wrong("a trailer of another version"));
    };
    let topic = Topic::ALL.into_iter().find(|topic| *topic as u8 == trailer[1]);
    Ok(Append {
        topic: topic.ok_or_else(|| wrong("a topic that is not known"))?,
        partition: u16::from_le_bytes([trailer[2], trailer[3]]),
        schema_version: frame.schema_version,
        records: frame.records,
        payload: frame.payload.slice_with_length(0, payload_bytes),
    })
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        self.shared.news.notify_all();
        let Some(drain) = self.drain.take() else { return };
        if drain.join().is_err() {
            tracing::error!("the spool's drain panicked");
        }
        // What has no answer yet gets the journal's.
        self.shared.with(|route| {
            for parcels in [route.overdue(Instant::now(), ms(0)), route.stay_away()] {
                self.shared.keep_all(route, parcels);
            }
        });
        // Who is being told an answer holds the journal until it returns. Whoever opens the same
        // directory next must not meet it; only one that drops the spool itself waits in vain.
        let until = Instant::now() + ms(TELL_MS_MAX);
        while Arc::strong_count(&self.shared) > 1 && Instant::now() < until {
            std::thread::sleep(ms(1));
        }
    }
}
