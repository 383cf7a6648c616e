//! Appending: frames become messages, and the brokers' answers become the answer to an append.
//!
//! The producer is idempotent and waits for all in-sync replicas, so what is acknowledged is on as
//! many disks as the cluster is set to, once, in the order of the appends of each partition. A
//! failed delivery says less: the message may stand in the log all the same, when only the answer
//! was lost. Whoever sends it again may write it twice, which dedupe by event id makes harmless.

use crate::{
    clients::{producer, trace_error, trace_log},
    ends::{Ends, Seen},
    headers,
    json::{JsonEvents, JsonMessage},
    settings::{Encoding, JSON_EVENT_BYTES_MAX, KafkaSettings, invalid, ms, unavailable},
    stranded::give_brokers,
    topics::Topics,
};
use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Message,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{DeliveryResult, OwnedHeaders},
    metadata::Metadata,
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};
use trueup_operators::{
    log::{Append, Appended, Done, FRAME_RECORDS_MAX, LogError, OFFSET_MAX},
    time::LogTime,
};

/// Room for a message's headers and the batch around it, below the brokers' limit.
const AROUND_BYTES: usize = 512;
/// How long a turn of the delivering thread is.
const TURN_MS: u64 = 50;

/// Takes frames, and answers when they are delivered.
pub(crate) struct Outbox {
    shared: Arc<Shared>,
    sender: Mutex<Sender>,
    json: Option<Arc<dyn JsonEvents>>,
}

struct Shared {
    settings: KafkaSettings,
    topics: Arc<Topics>,
    ends: Arc<Ends>,
    waiting_bytes: AtomicU64,
    waiting_messages: AtomicU64,
    /// librdkafka has given up this producer; only a new one can go on.
    broken: AtomicBool,
}

/// A producer, and the thread that hears its answers.
struct Sender {
    producer: Arc<BaseProducer<Deliveries>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// An append under way.
struct Request {
    shared: Arc<Shared>,
    /// Messages that have no answer yet, and one while more are being sent.
    left: AtomicUsize,
    answers: Mutex<Answers>,
    bytes: u64,
    messages: u64,
}

struct Answers {
    appended: Vec<Appended>,
    seen: Vec<(Append, Seen)>,
    failed: Option<LogError>,
    done: Option<Done>,
}

/// Which frame of which append a message belongs to.
struct Ticket {
    request: Arc<Request>,
    frame: usize,
}

/// Hears deliveries.
struct Deliveries {
    shared: Arc<Shared>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        trace_log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.shared.broken.store(true, SeqCst);
        }
        trace_error(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let result = match result {
            Ok(message) => place(message.offset(), message.timestamp().to_millis()),
            Err((error, _)) => {
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
                    self.shared.broken.store(true, SeqCst);
                }
                Err(undelivered(error))
            }
        };
        ticket.request.note(ticket.frame, result);
        ticket.request.count_down(1);
    }
}

/// Where a delivered message stands.
fn place(offset: i64, timestamp_ms: Option<i64>) -> Result<Appended, LogError> {
    let known = u64::try_from(offset).ok().filter(|&offset| offset <= OFFSET_MAX);
    let Some(offset) = known else {
        return Err(unavailable(format!(
            "Kafka has the message, but its place is not known ({offset}): it was sent twice, and \
             the answer to the first was lost"
        )));
    };
    let log_time = LogTime(timestamp_ms.unwrap_or(0).saturating_mul(1_000));
    Ok(Appended { offset, log_time })
}

fn undelivered(error: &KafkaError) -> LogError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => {
            invalid("the message is larger than the topic's max.message.bytes".into())
        }
        _ => unavailable(format!("Kafka did not take it: {error}")),
    }
}

impl Request {
    fn note(&self, frame: usize, result: Result<Appended, LogError>) {
        let mut answers = self.answers.lock();
        match result {
            Ok(at) => {
                // A frame of many messages stands where its first one does.
                let known = &mut answers.appended[frame];
                known.offset = known.offset.min(at.offset);
                known.log_time = known.log_time.max(at.log_time);
            }
            Err(error) => {
                answers.failed.get_or_insert(error);
            }
        }
    }

    /// Answers the append when the last of its messages has an answer.
    fn count_down(&self, messages: usize) {
        if self.left.fetch_sub(messages, SeqCst) > messages {
            return;
        }
        let shared = &self.shared;
        shared.waiting_bytes.fetch_sub(self.bytes, SeqCst);
        shared.waiting_messages.fetch_sub(self.messages, SeqCst);
        let mut answers = self.answers.lock();
        for (append, seen) in &answers.seen {
            shared.ends.note_delivered(append.topic);
            shared.ends.note_seen(append.topic, append.partition, *seen);
        }
        let result = match answers.failed.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut answers.appended)),
        };
        let done = answers.done.take();
        drop(answers);
        if let Some(done) = done {
            done(result);
        }
    }
}

/// What one frame becomes.
enum Messages {
    Frame(OwnedHeaders),
    Events(Vec<JsonMessage>),
}

impl Messages {
    fn count(&self) -> usize {
        match self {
            Messages::Frame(_) => 1,
            Messages::Events(events) => events.len(),
        }
    }

    fn bytes(&self, append: &Append) -> usize {
        match self {
            Messages::Frame(_) => append.payload.len(),
            Messages::Events(events) => {
                events.iter().map(|event| event.key.len() + event.payload.len()).sum()
            }
        }
    }
}

impl Outbox {
    pub(crate) fn open(
        settings: &KafkaSettings,
        topics: Arc<Topics>,
        ends: Arc<Ends>,
        json: Option<Arc<dyn JsonEvents>>,
    ) -> Result<Outbox, LogError> {
        let shared = Arc::new(Shared {
            settings: settings.clone(),
            topics,
            ends,
            waiting_bytes: AtomicU64::new(0),
            waiting_messages: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        });
        let sender = Mutex::new(Sender::start(&shared)?);
        Ok(Outbox { shared, sender, json })
    }

    /// Bytes that have no answer yet.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.shared.waiting_bytes.load(SeqCst)
    }

    /// What the producer knows of the cluster, which it asks for.
    pub(crate) fn metadata(&self, timeout: Duration) -> KafkaResult<Metadata> {
        let producer = Arc::clone(&self.sender.lock().producer);
        producer.client().fetch_metadata(None, timeout)
    }

    /// Gives the producer addresses of brokers, besides those that it has.
    pub(crate) fn give_brokers(&self, brokers: &str) {
        let producer = Arc::clone(&self.sender.lock().producer);
        give_brokers(producer.client(), brokers);
    }

    /// Refuses what breaks a limit, now or ever.
    pub(crate) fn check(&self, frames: &[Append]) -> Result<(), LogError> {
        frames.iter().try_for_each(|append| {
            self.shared.topics.check(append.topic, append.partition)?;
            if append.records as usize > FRAME_RECORDS_MAX {
                let records = append.records;
                return Err(invalid(format!(
                    "{records} records are over the limit of a frame, {FRAME_RECORDS_MAX}"
                )));
            }
            if append.schema_version == 0 {
                return Err(invalid("schema version 0 is kept for what is none of ours".into()));
            }
            match self.shared.settings.encoding(append.topic) {
                Encoding::Batch => self.check_size(append, append.payload.len()),
                Encoding::Json => Ok(()),
            }
        })
    }

    fn check_size(&self, append: &Append, bytes: usize) -> Result<(), LogError> {
        let most = self.shared.topics.message_bytes_max(append.topic);
        let limit = most.saturating_sub(AROUND_BYTES);
        if bytes <= limit {
            return Ok(());
        }
        let name = self.shared.settings.topic(append.topic);
        Err(invalid(format!(
            "a message of {bytes} bytes is over the limit of {name}, {limit} (message_bytes_max or \
             the topic's max.message.bytes, less {AROUND_BYTES} for what is around it)"
        )))
    }

    /// Takes frames, all or none; `done` is called when all of them are delivered or lost.
    pub(crate) fn append(&self, frames: Vec<Append>, done: Done) -> Result<(), LogError> {
        self.check(&frames)?;
        let messages = frames.iter().map(|f| self.messages(f)).collect::<Result<Vec<_>, _>>()?;
        let sizes = frames.iter().zip(&messages);
        let bytes = sizes.clone().map(|(frame, m)| m.bytes(frame) + AROUND_BYTES).sum::<usize>();
        let count = messages.iter().map(Messages::count).sum::<usize>();
        let seen = sizes.map(|(frame, messages)| {
            let seen = Seen {
                offsets: messages.count() as u64,
                records: frame.records.into(),
                bytes: messages.bytes(frame) as u64,
            };
            // The payload is not needed, and must not be held.
            (Append { payload: Vec::<u8>::new().into(), ..frame.clone() }, seen)
        });
        let answers = Answers {
            appended: vec![Appended { offset: u64::MAX, log_time: LogTime(0) }; frames.len()],
            seen: seen.collect(),
            failed: None,
            done: Some(done),
        };
        let sender = self.sender()?;
        self.reserve(bytes as u64, count as u64)?;
        let request = Arc::new(Request {
            shared: Arc::clone(&self.shared),
            left: AtomicUsize::new(count + 1),
            answers: Mutex::new(answers),
            bytes: bytes as u64,
            messages: count as u64,
        });
        for (frame, (append, messages)) in frames.iter().zip(messages).enumerate() {
            self.send(&sender, &request, frame, append, messages);
        }
        drop(sender);
        request.count_down(1);
        Ok(())
    }

    fn messages(&self, append: &Append) -> Result<Messages, LogError> {
        if self.shared.settings.encoding(append.topic) == Encoding::Batch {
            return Ok(Messages::Frame(headers::of(append)));
        }
        let json = self.json.as_ref().ok_or_else(|| unavailable("there is no encoder".into()))?;
        let events = json.to_messages(append)?;
        for event in &events {
            self.check_size(append, event.key.len() + event.payload.len())?;
            // It would be set aside when it is read.
            if event.payload.len() > JSON_EVENT_BYTES_MAX {
                return Err(invalid(format!(
                    "an event of {} bytes as JSON is over the limit of {JSON_EVENT_BYTES_MAX}",
                    event.payload.len()
                )));
            }
        }
        Ok(Messages::Events(events))
    }

    /// Counts bytes and messages against the limits.
    fn reserve(&self, bytes: u64, messages: u64) -> Result<(), LogError> {
        let Shared { settings, waiting_bytes, waiting_messages, .. } = &*self.shared;
        let most = settings.queue_bytes_max;
        if bytes > most || messages > settings.queue_messages_max.into() {
            let most_messages = settings.queue_messages_max;
            return Err(invalid(format!(
                "an append of {bytes} bytes in {messages} messages does not fit in the queue \
                 (queue_bytes_max {most}, queue_messages_max {most_messages})"
            )));
        }
        let waiting = waiting_bytes.fetch_add(bytes, SeqCst);
        let before = waiting_messages.fetch_add(messages, SeqCst);
        if waiting + bytes <= most && before + messages <= settings.queue_messages_max.into() {
            return Ok(());
        }
        waiting_bytes.fetch_sub(bytes, SeqCst);
        waiting_messages.fetch_sub(messages, SeqCst);
        Err(LogError::Busy { waiting_bytes: waiting, limit_bytes: most })
    }

    /// The producer; a new one after librdkafka gave up the last.
    fn sender(&self) -> Result<parking_lot::MutexGuard<'_, Sender>, LogError> {
        let mut sender = self.sender.lock();
        if self.shared.broken.swap(false, SeqCst) {
            tracing::warn!("the producer is broken; a new one takes over");
            match Sender::start(&self.shared) {
                Ok(new) => std::mem::replace(&mut *sender, new).leave(),
                Err(error) => {
                    self.shared.broken.store(true, SeqCst);
                    return Err(error);
                }
            }
        }
        Ok(sender)
    }

    fn send(
        &self,
        sender: &Sender,
        request: &Arc<Request>,
        frame: usize,
        append: &Append,
        messages: Messages,
    ) {
        let topic = self.shared.settings.topic(append.topic);
        let record = || {
            let ticket = Box::new(Ticket { request: Arc::clone(request), frame });
            BaseRecord::<[u8], [u8], _>::with_opaque_to(topic, ticket)
                .partition(append.partition.into())
        };
        let put = |record| {
            if let Err((error, _)) = sender.producer.send(record) {
                request.note(frame, Err(undelivered(&error)));
                // Not the last: one is left while messages are being sent.
                request.count_down(1);
            }
        };
        match messages {
            Messages::Frame(headers) => put(record().payload(&append.payload).headers(headers)),
            Messages::Events(events) => {
                for event in &events {
                    put(record().key(&event.key).payload(&event.payload));
                }
            }
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.sender.get_mut().close(&self.shared.settings);
    }
}

impl Sender {
    fn start(shared: &Arc<Shared>) -> Result<Sender, LogError> {
        let most = crate::settings::MESSAGE_BYTES_LIMIT.min(
            trueup_operators::log::Topic::ALL
                .into_iter()
                .map(|topic| shared.topics.message_bytes_max(topic))
                .max()
                .unwrap_or(0),
        );
        let context = Deliveries { shared: Arc::clone(shared) };
        let made =
            BaseProducer::from_config_and_context(&producer(&shared.settings, most), context);
        let failed = |error: &dyn std::fmt::Display| {
            unavailable(format!("Kafka's producer cannot be made: {error}"))
        };
        let producer = Arc::new(made.map_err(|error| failed(&error))?);
        let stop = Arc::new(AtomicBool::new(false));
        let (ours, told) = (Arc::clone(&producer), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("kafka-deliveries".into())
            .spawn(move || {
                while !told.load(SeqCst) {
                    ours.poll(ms(TURN_MS));
                }
            })
            .map_err(|error| failed(&error))?;
        Ok(Sender { producer, stop, thread: Some(thread) })
    }

    /// Lets what is under way be delivered, and ends.
    fn close(&mut self, settings: &KafkaSettings) {
        if let Err(error) = self.producer.flush(ms(settings.delivery_timeout_ms)) {
            tracing::warn!(%error, "not all messages were delivered before the end");
        }
        self.stop.store(true, SeqCst);
        let Some(thread) = self.thread.take() else { return };
        // The last owner may be a callback, which runs on this very thread.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the thread that hears deliveries panicked");
        }
    }

    /// Ends without waiting: what is under way is answered as lost when the producer is dropped.
    fn leave(mut self) {
        self.stop.store(true, SeqCst);
        drop(self.thread.take());
    }
}
