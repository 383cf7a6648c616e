//! Reading: ranges of frames, out of two consumers.
//!
//! Each partition has two cursors. The *live* one is read from one end to the other and fetches far
//! ahead in the background; the *back* one fetches little and serves what stands elsewhere: an old
//! frame whose event is retracted, a tool that looks around. So a read-back never throws away what
//! the live one has ready. A reader that goes on for a while at the back, while the live cursor
//! rests, is the live one of a new run, and takes it over.
//!
//! Readers of different partitions do not wait for each other.
//!
//! A frame is a function of what stands at its offsets alone, its log time too: it never depends on
//! what this reader gave before. So log times are the brokers' own, and may go back when another
//! broker leads; whoever cuts the log into epochs makes them ascend, from what the epoch before was
//! complete to, which every replay knows as well.
//!
//! # The log time of a run
//!
//! A run of JSON messages has one log time for all its rows, and by it each is found in time or too
//! late. So a run covers no more than a second of the brokers' time: it ends before a message that
//! was taken in a later second than its first one was, and its log time is the last instant of that
//! second. Buckets begin with full seconds, so against a horizon of full seconds a row is judged as
//! it would be by its own time, and none seems to come from further ahead than it does. Where many
//! messages come, a run stays as long as it may be: in each [`RUN_MESSAGES`] offsets there are no
//! more runs than there were seconds.
//!
//! A message that goes back in time ends no run. Made to ascend, its row gets the latest second of
//! all rows of its epoch up to it, and so it does wherever runs begin: the first of a run is one of
//! those rows, and no other row of the run is of a later second. So what a row is judged by follows
//! from the messages and the epochs, and not from how a range was read.
//!
//! Where a run ends follows from where it begins, or else from where the range ends: so one that is
//! read again has all rows that it had, and the cursor then stands where the next one begins.
//! Events that are read back in the order of the log take no seek each, and no message twice.

use crate::{
    clients::{Traced, consumer, look_for_leaders},
    cursor::{Cursor, Step},
    headers,
    json::{Body, JsonEvents, Row},
    queue::Message,
    settings::{
        Encoding, JSON_EVENT_BYTES_MAX, KafkaSettings, RUN_MESSAGES, left, ms, unavailable,
    },
};
use arrow_buffer::{Buffer, MutableBuffer};
use parking_lot::{Mutex, MutexGuard};
use rdkafka::{config::FromClientConfigAndContext, consumer::BaseConsumer};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use trueup_operators::{
    log::{FOREIGN_BYTES_MAX, Foreign, Frame, LogError, Topic},
    time::{LogTime, SECOND_US},
};

/// Reads at the back that must follow each other before they take over a live cursor that rests.
const RUN_TO_TAKE_OVER: u32 = 16;

/// The two cursors of a partition.
struct Cursors {
    live: Mutex<Cursor>,
    back: Mutex<Cursor>,
}

/// Both consumers, and the cursors of all partitions that were read.
pub(crate) struct Reader {
    cursors: Mutex<HashMap<(Topic, u16), Arc<Cursors>>>,
    pub(crate) live: Arc<BaseConsumer<Traced>>,
    pub(crate) back: Arc<BaseConsumer<Traced>>,
    json: Option<Arc<dyn JsonEvents>>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) topic: Topic,
    pub(crate) partition: u16,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) bytes_max: usize,
}

/// Where runs end, besides every multiple of [`RUN_MESSAGES`] and at gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Where a later second begins.
    Times,
    /// There as well, but not up to this offset: a frame has the row that was found in it, if it
    /// was found before runs were cut by times.
    TimesBehind(u64),
}

impl Cut {
    /// Whether a later second that begins at an offset ends a run.
    fn may_end_before(self, offset: u64) -> bool {
        match self {
            Cut::Times => true,
            Cut::TimesBehind(needed) => offset > needed,
        }
    }
}

/// What came of it.
pub(crate) enum Answer {
    Frames(Vec<Frame>),
    /// What was asked for is not held any more.
    Gone,
}

/// Messages of a run, copied one behind the other. Where it ends must not depend on sizes, which is
/// why those are bounded by the message: of one that cannot be an event nothing is copied.
#[derive(Default)]
struct Run {
    bytes: Vec<u8>,
    /// By row: until where its message goes, or what it is instead.
    rows: Vec<(LogTime, Result<usize, Foreign>)>,
    /// Where its first message stands.
    offset: u64,
    /// Up to where it is known what there is.
    next: u64,
    /// The end of the second in which its first message was taken.
    log_time: LogTime,
}

/// The offset before which a run that begins at `offset` ends at the latest.
pub(crate) fn run_end(offset: u64) -> u64 {
    (offset / RUN_MESSAGES + 1) * RUN_MESSAGES
}

/// The last instant of a second. Whoever wrote a message may have given it any time, in a topic
/// that has not always had the brokers' times.
fn second_end(at: LogTime) -> LogTime {
    LogTime(at.0.saturating_add(SECOND_US - 1 - at.0.rem_euclid(SECOND_US)))
}

impl Reader {
    pub(crate) fn open(
        settings: &KafkaSettings,
        json: Option<Arc<dyn JsonEvents>>,
    ) -> Result<Reader, LogError> {
        let open = |group: &str, ahead_bytes: usize| {
            let config = consumer(settings, group, ahead_bytes);
            BaseConsumer::from_config_and_context(&config, Traced)
                .map(Arc::new)
                .map_err(|error| unavailable(format!("Kafka's consumer cannot be made: {error}")))
        };
        Ok(Reader {
            cursors: Mutex::default(),
            live: open("trueup-live", settings.prefetch_bytes_max)?,
            back: open("trueup-back", settings.readback_bytes_max)?,
            json,
        })
    }

    /// Who reads before its client knows the leaders waits half a second for them.
    pub(crate) fn find_leaders(&self, settings: &KafkaSettings) {
        let clients = [&self.live, &self.back].into_iter();
        for (client, topic) in clients.flat_map(|client| Topic::ALL.map(|topic| (client, topic))) {
            let (name, timeout) = (settings.topic(topic), ms(settings.ends_timeout_ms));
            if !look_for_leaders(client, name, timeout) {
                return;
            }
        }
    }

    /// Reads a range that is known to be there.
    pub(crate) fn read(
        &self,
        settings: &KafkaSettings,
        range: Range,
        cut: Cut,
    ) -> Result<Answer, LogError> {
        let cursors = self.cursors(settings, range.topic, range.partition);
        let deadline = Instant::now() + ms(settings.read_timeout_ms);
        let idle = ms(settings.idle_after_ms);
        let mut cursor = cursors.choose(range, cut, idle);
        cursor.go(range.from, deadline)?;
        match settings.encoding(range.topic) {
            Encoding::Batch => self.batches(&mut cursor, settings, range, deadline),
            Encoding::Json => self.runs(&mut cursor, settings, (range, cut), deadline),
        }
    }

    fn cursors(&self, settings: &KafkaSettings, topic: Topic, partition: u16) -> Arc<Cursors> {
        let mut cursors = self.cursors.lock();
        let new = || {
            let name = settings.topic(topic);
            Arc::new(Cursors {
                live: Mutex::new(Cursor::new(&self.live, name, partition)),
                back: Mutex::new(Cursor::new(&self.back, name, partition)),
            })
        };
        Arc::clone(cursors.entry((topic, partition)).or_insert_with(new))
    }

    fn batches(
        &self,
        cursor: &mut Cursor,
        settings: &KafkaSettings,
        range: Range,
        deadline: Instant,
    ) -> Result<Answer, LogError> {
        let mut frames: Vec<Frame> = Vec::new();
        let mut bytes = 0_usize;
        loop {
            let wait = if frames.is_empty() { left(deadline) } else { Duration::ZERO };
            match cursor.step(range.to, wait)? {
                Step::Message(message) => {
                    bytes = bytes.saturating_add(message.payload().map_or(0, <[u8]>::len));
                    if bytes > range.bytes_max
                        && let Some(last) = frames.last()
                    {
                        cursor.put_back(message, last.next);
                        break;
                    }
                    frames.push(frame(&message, settings, range));
                }
                Step::Nothing => break,
                Step::Gone => return Ok(Answer::Gone),
                Step::Waiting if !frames.is_empty() => break,
                Step::Waiting => in_time(deadline, settings, range)?,
            }
        }
        Ok(Answer::Frames(frames))
    }

    fn runs(
        &self,
        cursor: &mut Cursor,
        settings: &KafkaSettings,
        (range, cut): (Range, Cut),
        deadline: Instant,
    ) -> Result<Answer, LogError> {
        let json = self.json.as_ref().ok_or_else(|| unavailable("there is no decoder".into()))?;
        let mut frames: Vec<Frame> = Vec::new();
        let (mut bytes, mut largest, mut from) = (0_usize, 0_usize, range.from);
        while from < range.to && (frames.is_empty() || bytes + largest <= range.bytes_max) {
            let part = Range { from, to: range.to.min(run_end(from)), ..range };
            let Some(run) = run(cursor, settings, (part, cut), deadline)? else {
                return Ok(Answer::Gone);
            };
            from = run.next;
            if run.rows.is_empty() {
                continue;
            }
            let encoded = json.to_frame(&run.rows())?;
            bytes = bytes.saturating_add(encoded.payload.len());
            largest = largest.max(encoded.payload.len());
            frames.push(Frame {
                partition: range.partition,
                offset: run.offset,
                next: run.next,
                log_time: run.log_time,
                schema_version: encoded.schema_version,
                records: run.rows.len() as u32,
                payload: encoded.payload,
                foreign: None,
            });
        }
        Ok(Answer::Frames(frames))
    }
}

impl Cursors {
    /// The cursor that is to read a range. One that was never used reads ahead from wherever it is
    /// first sent, so it is not sent to a single message. Nor is the one that reads ahead sent back
    /// for what is only read again, however long the run.
    fn choose(&self, range: Range, cut: Cut, idle: Duration) -> MutexGuard<'_, Cursor> {
        let Range { from, to, .. } = range;
        let Some(live) = self.live.try_lock() else { return self.back.lock() };
        if live.stands_at(from) || live.is_new() && to - from > 1 {
            return live;
        }
        let back = self.back.lock();
        let takes_over = cut == Cut::Times
            && back.stands_at(from)
            && back.run >= RUN_TO_TAKE_OVER
            && live.used.elapsed() >= idle;
        if takes_over { live } else { back }
    }
}

impl Run {
    fn push(&mut self, message: &Message, limit_bytes: usize) {
        let log_time = message.log_time();
        if self.rows.is_empty() {
            self.offset = message.offset();
            self.log_time = second_end(log_time);
        }
        self.next = message.offset() + 1;
        let row = match message.payload() {
            None => Err(Foreign::NoPayload),
            Some(payload) if payload.len() > limit_bytes => Err(too_large(payload, limit_bytes)),
            Some(payload) => {
                self.bytes.extend_from_slice(payload);
                Ok(self.bytes.len())
            }
        };
        self.rows.push((log_time, row));
    }

    /// Whether a message belongs to the next run.
    fn ends_before(&self, message: &Message, cut: Cut) -> bool {
        let is_later = message.log_time() > self.log_time && cut.may_end_before(message.offset());
        !self.rows.is_empty() && (message.offset() != self.next || is_later)
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let mut start = 0;
        let row = |(log_time, row): &(LogTime, Result<usize, Foreign>)| {
            let body = match row {
                Ok(end) => Body::Message(&self.bytes[std::mem::replace(&mut start, *end)..*end]),
                Err(foreign) => Body::Foreign(foreign.clone()),
            };
            Row { log_time: *log_time, body }
        };
        self.rows.iter().map(row).collect()
    }
}

/// The first messages of a range, which is at most [`RUN_MESSAGES`] long, up to a gap or to where
/// they are cut.
fn run(
    cursor: &mut Cursor,
    settings: &KafkaSettings,
    (range, cut): (Range, Cut),
    deadline: Instant,
) -> Result<Option<Run>, LogError> {
    let mut run = Run { next: range.from, ..Run::default() };
    while run.next < range.to {
        match cursor.step(range.to, left(deadline))? {
            Step::Message(message) if run.ends_before(&message, cut) => {
                cursor.put_back(message, run.next);
                break;
            }
            Step::Message(message) => {
                run.push(&message, settings.message_bytes_max.min(JSON_EVENT_BYTES_MAX));
            }
            // Of a run that has begun the next one says so again.
            Step::Nothing if !run.rows.is_empty() => break,
            Step::Nothing => run.next = range.to,
            Step::Gone => return Ok(None),
            Step::Waiting => in_time(deadline, settings, range)?,
        }
    }
    Ok(Some(run))
}

fn in_time(deadline: Instant, settings: &KafkaSettings, range: Range) -> Result<(), LogError> {
    if Instant::now() < deadline {
        return Ok(());
    }
    let Range { topic, partition, from, to, .. } = range;
    Err(unavailable(format!(
        "nothing of {} {partition}, offsets {from}..{to}, arrived within {} ms",
        settings.topic(topic),
        settings.read_timeout_ms
    )))
}

fn too_large(payload: &[u8], limit_bytes: usize) -> Foreign {
    Foreign::TooLarge { bytes: payload.len() as u64, limit_bytes: limit_bytes as u64 }
}

/// The frame that a message is, or a foreign one.
fn frame(message: &Message, settings: &KafkaSettings, range: Range) -> Frame {
    let payload = message.payload();
    let known = settings.schema_versions[range.topic as usize];
    let said = match payload {
        None => Err(Foreign::NoPayload),
        Some(payload) if payload.len() > settings.message_bytes_max => {
            Err(too_large(payload, settings.message_bytes_max))
        }
        Some(_) => headers::read(|name| message.header(name), known),
    };
    let payload = payload.unwrap_or_default();
    let offset = message.offset();
    let (partition, next) = (range.partition, offset + 1);
    match said {
        Ok(said) => Frame {
            partition,
            offset,
            next,
            log_time: message.log_time(),
            schema_version: said.schema_version,
            records: said.records,
            payload: aligned(payload),
            foreign: None,
        },
        Err(foreign) => Frame {
            partition,
            offset,
            next,
            log_time: message.log_time(),
            schema_version: 0,
            records: 1,
            payload: aligned(&payload[..payload.len().min(FOREIGN_BYTES_MAX)]),
            foreign: Some(foreign),
        },
    }
}

/// The one copy that is made: out of librdkafka's memory into memory that Arrow reads in place.
fn aligned(payload: &[u8]) -> Buffer {
    let mut copy = MutableBuffer::with_capacity(payload.len());
    copy.extend_from_slice(payload);
    copy.into()
}

#[cfg(test)]
mod tests;
