//! Kafka as the log.

use crate::{
    clients::{Traced, common},
    ends::{Ends, Seen},
    json::JsonEvents,
    outbox::Outbox,
    reader::{Answer, Cut, Range, Reader, run_end},
    settings::{Clock, Encoding, KafkaSettings, invalid, left, ms, unavailable},
    stranded::{give_brokers, has_brokers},
    topics::Topics,
};
use parking_lot::{Condvar, Mutex};
use rdkafka::{
    TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::KafkaResult,
    topic_partition_list::Offset,
};
use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use trueup_operators::{
    log::{Append, Done, End, Frame, Log, LogError, Topic},
    time::LogTime,
};

/// How often the consumers' side events are heard.
const TURN_MS: u64 = 50;

/// How long the first attempt to open a log lasts; each other one lasts at least twice as long as
/// the one before. A client that meets brokers which were just put out of their cluster, and not
/// yet let in again, can be left without any to ask, for good: new clients ask anew.
const FIRST_ATTEMPT: Duration = Duration::from_secs(4);

/// Kafka as the log. Dropping it lets what is under way be delivered.
pub struct KafkaLog {
    shared: Arc<Shared>,
    attendant: Option<JoinHandle<()>>,
}

struct Shared {
    /// Who is asked: it reads nothing, so that no answer stands behind a fetch that waits for
    /// something to come. A broker answers the requests of a connection one after the other.
    client: BaseConsumer<Traced>,
    outbox: Outbox,
    settings: KafkaSettings,
    clock: Clock,
    topics: Arc<Topics>,
    ends: Arc<Ends>,
    reader: Reader,
    /// The consumer that publishes offsets, and its group.
    publisher: Mutex<Option<(String, Arc<BaseConsumer<Traced>>)>>,
    stopped: Mutex<bool>,
    stop: Condvar,
}

impl std::fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let settings = &self.shared.settings;
        f.debug_struct("KafkaLog").field("brokers", &settings.brokers).finish_non_exhaustive()
    }
}

impl KafkaLog {
    /// Reaches the cluster, looks at the topics, and creates those that are missing if
    /// [`KafkaSettings::create`] says so. `json` is needed when events are one a message.
    ///
    /// # Errors
    /// `Invalid` for settings that cannot be and for topics that cannot serve; `Away` when the
    /// cluster does not answer within `open_timeout_ms`.
    pub fn open(
        settings: KafkaSettings,
        clock: Clock,
        json: Option<Arc<dyn JsonEvents>>,
    ) -> Result<KafkaLog, LogError> {
        settings.check()?;
        if settings.encoding == Encoding::Json && json.is_none() {
            let reason = "encoding is \"json\", and nothing encodes events as JSON";
            return Err(invalid(reason.into()));
        }
        let deadline = Instant::now() + ms(settings.open_timeout_ms);
        let mut attempt = FIRST_ATTEMPT;
        loop {
            // What would be too short for the next one goes to this one, which is then the last.
            let is_last = left(deadline) < 3 * attempt;
            let until = if is_last { deadline } else { Instant::now() + attempt };
            match Self::reach(&settings, &clock, json.clone(), until) {
                Err(LogError::Away { reason }) if !is_last => {
                    tracing::debug!(reason, "the brokers are asked again, by new clients");
                    attempt *= 2;
                }
                answer => return answer,
            }
        }
    }

    /// One attempt to open it, with clients of its own.
    fn reach(
        settings: &KafkaSettings,
        clock: &Clock,
        json: Option<Arc<dyn JsonEvents>>,
        deadline: Instant,
    ) -> Result<KafkaLog, LogError> {
        let (settings, clock) = (settings.clone(), Arc::clone(clock));
        let reader = Reader::open(&settings, json.clone())?;
        let client = asking(&settings)?;
        let topics = Arc::new(Topics::open(&settings, &client, deadline).map_err(away)?);
        let ends = Arc::new(Ends::new());
        ends.learn(&settings, &topics, (&client, &clock), deadline).map_err(away)?;
        reader.find_leaders(&settings);
        let outbox = Outbox::open(&settings, Arc::clone(&topics), Arc::clone(&ends), json)?;
        let (stopped, stop) = (Mutex::new(false), Condvar::new());
        let shared = Arc::new(Shared {
            client,
            outbox,
            settings,
            clock,
            topics,
            ends,
            reader,
            publisher: Mutex::new(None),
            stopped,
            stop,
        });
        let ours = Arc::clone(&shared);
        let attendant = std::thread::Builder::new()
            .name("kafka-attendant".into())
            .spawn(move || ours.attend())
            .map_err(|error| unavailable(format!("a thread cannot start: {error}")))?;
        Ok(KafkaLog { shared, attendant: Some(attendant) })
    }

    /// How the cluster is used.
    pub fn settings(&self) -> &KafkaSettings {
        &self.shared.settings
    }

    /// Bytes of appends that have no answer yet.
    pub fn waiting_bytes(&self) -> u64 {
        self.shared.outbox.waiting_bytes()
    }

    /// Whether frames could be appended at all: partitions and sizes.
    ///
    /// # Errors
    /// `Invalid`, which names the limit and the value.
    pub fn check(&self, frames: &[Append]) -> Result<(), LogError> {
        self.shared.outbox.check(frames)
    }

    /// The largest message that a topic took when it was opened.
    pub(crate) fn message_bytes_max(&self, topic: Topic) -> usize {
        self.shared.topics.message_bytes_max(topic)
    }

    /// Whether a broker answers right now.
    pub fn answers(&self) -> bool {
        let Shared { settings, client, .. } = &*self.shared;
        let (name, timeout) = (settings.topic(Topic::Events), ms(settings.ends_timeout_ms));
        client.fetch_metadata(Some(name), timeout).is_ok()
    }

    /// Publishes how far a group is, for tools that show lag. Nothing ever reads these offsets
    /// back: where a run goes on is what its remap rows say. Does not wait; what the cluster does
    /// not take is traced.
    ///
    /// # Errors
    /// `Unavailable` when the group's client cannot be made.
    pub fn publish_offsets(
        &self,
        group: &str,
        offsets: &[(Topic, u16, u64)],
    ) -> Result<(), LogError> {
        let failed = |error| unavailable(format!("offsets of {group} are not published: {error}"));
        let settings = &self.shared.settings;
        let mut places = TopicPartitionList::with_capacity(offsets.len());
        for &(topic, partition, offset) in offsets {
            let offset = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
            places
                .add_partition_offset(settings.topic(topic), partition.into(), offset)
                .map_err(failed)?;
        }
        let mut publisher = self.shared.publisher.lock();
        if publisher.as_ref().is_none_or(|(known, _)| known != group) {
            let made = reading_nothing(settings, group).map_err(failed)?;
            *publisher = Some((group.to_owned(), Arc::new(made)));
        }
        if let Some((_, consumer)) = &*publisher {
            consumer.commit(&places, CommitMode::Async).map_err(failed)?;
            // Hears how earlier ones went.
            drop(consumer.poll(Duration::ZERO));
        }
        Ok(())
    }

    fn check_range(&self, range: Range) -> Result<(), LogError> {
        let Range { topic, partition, from, to, .. } = range;
        self.shared.topics.check(topic, partition)?;
        let mut end = self.shared.ends.known_end(topic, partition);
        if to > end {
            let ends = self.ends(topic);
            end = ends.get(usize::from(partition)).map_or(0, |end| end.offset);
        }
        if from >= to || from >= end {
            return Err(self.out_of_range(range, from));
        }
        if to > end {
            return Err(self.out_of_range(range, to));
        }
        Ok(())
    }

    fn read_range(&self, range: Range, cut: Cut) -> Result<Vec<Frame>, LogError> {
        self.check_range(range)?;
        match self.shared.reader.read(&self.shared.settings, range, cut)? {
            Answer::Frames(frames) => {
                self.note_read(range, &frames);
                Ok(frames)
            }
            Answer::Gone => {
                self.shared.ends.forget_first(range.topic);
                Err(self.out_of_range(range, range.from))
            }
        }
    }

    fn out_of_range(&self, range: Range, offset: u64) -> LogError {
        let Range { topic, partition, .. } = range;
        LogError::OutOfRange {
            topic,
            partition,
            offset,
            first: self.first(topic, partition),
            end: self.shared.ends.known_end(topic, partition),
        }
    }

    fn note_read(&self, range: Range, frames: &[Frame]) {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return };
        let seen = Seen {
            offsets: last.next - first.offset,
            records: frames.iter().map(|frame| u64::from(frame.records)).sum(),
            bytes: frames.iter().map(|frame| frame.payload.len() as u64).sum(),
        };
        self.shared.ends.note_seen(range.topic, range.partition, seen);
    }
}

impl Log for KafkaLog {
    fn is_shared(&self) -> bool {
        true
    }

    fn partitions(&self, topic: Topic) -> u16 {
        self.shared.topics.partitions(topic)
    }

    fn append(&self, frames: Vec<Append>, done: Done) -> Result<(), LogError> {
        self.shared.outbox.append(frames, done)
    }

    /// The ends are those that were known at `complete_to`; they stand while no broker answers.
    /// `bytes` and `records` are estimates: what this process has seen of the partition, scaled to
    /// all of it.
    fn ends(&self, topic: Topic) -> Vec<End> {
        let Shared { settings, clock, topics, ends, client, .. } = &*self.shared;
        ends.ends(topic, settings, topics, (client, clock))
    }

    fn first(&self, topic: Topic, partition: u16) -> u64 {
        let Shared { settings, topics, ends, client, .. } = &*self.shared;
        ends.first(topic, partition, settings, topics, client)
    }

    fn read(
        &self,
        topic: Topic,
        partition: u16,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Frame>, LogError> {
        self.read_range(Range { topic, partition, from, to, bytes_max }, Cut::Times)
    }

    fn offset_at(&self, topic: Topic, partition: u16, time: LogTime) -> Result<u64, LogError> {
        self.shared.topics.check(topic, partition)?;
        let settings = &self.shared.settings;
        let name = settings.topic(topic);
        let failed = |error| unavailable(format!("{name} does not say what was when: {error}"));
        // The first whole millisecond that is not before it; negative ones have other meanings.
        let time_ms = (time.0.max(0).saturating_add(999)) / 1_000;
        let mut wanted = TopicPartitionList::with_capacity(1);
        wanted
            .add_partition_offset(name, partition.into(), Offset::Offset(time_ms))
            .map_err(failed)?;
        let timeout = ms(settings.read_timeout_ms);
        let found = self.shared.client.offsets_for_times(wanted, timeout).map_err(failed)?;
        let places = found.elements();
        let place = places.first();
        place.map_or(Ok(()), |place| place.error()).map_err(failed)?;
        match place.map(|place| place.offset()) {
            Some(Offset::Offset(offset)) => Ok(offset.max(0) as u64),
            _ => {
                let end = self.ends(topic).get(usize::from(partition)).map(|end| end.offset);
                Ok(end.unwrap_or(0))
            }
        }
    }

    fn offset_bytes(&self, topic: Topic, partition: u16) -> Option<u64> {
        self.shared.ends.offset_bytes(topic, partition)
    }

    fn read_again(
        &self,
        topic: Topic,
        partition: u16,
        offset: u64,
        row: u16,
    ) -> Result<Vec<Frame>, LogError> {
        let to = match self.shared.settings.encoding(topic) {
            Encoding::Batch => offset + 1,
            Encoding::Json => {
                let end = self.ends(topic).get(usize::from(partition)).map_or(0, |end| end.offset);
                run_end(offset).min(end.max(offset + 1))
            }
        };
        let range = Range { topic, partition, from: offset, to, bytes_max: 0 };
        self.read_range(range, Cut::TimesBehind(offset + u64::from(row)))
    }
}

impl Shared {
    /// Hears what consumers tell besides messages, and looks for new partitions.
    fn attend(&self) {
        let mut refreshed = Instant::now();
        loop {
            {
                let mut stopped = self.stopped.lock();
                if !*stopped {
                    self.stop.wait_for(&mut stopped, ms(TURN_MS));
                }
                if *stopped {
                    return;
                }
            }
            for consumer in self.consumers() {
                // Messages come by the partitions' own queues. Those that were fetched before a
                // partition had one come here, and again by its queue.
                while consumer.poll(Duration::ZERO).is_some() {}
            }
            if refreshed.elapsed() >= ms(self.settings.metadata_refresh_ms) {
                self.refresh();
                refreshed = Instant::now();
            }
        }
    }

    fn refresh(&self) {
        let timeout = ms(self.settings.ends_timeout_ms);
        let publisher = self.publisher.lock().as_ref().map(|(_, made)| Arc::clone(made));
        let consumers = self.consumers().into_iter().chain(publisher.as_deref());
        let known = consumers.map(|client| client.fetch_metadata(None, timeout));
        // Lazily: while the cluster is away, one does not answer and the others are not asked.
        let producer = std::iter::once_with(|| self.outbox.metadata(timeout));
        match known.chain(producer).collect::<KafkaResult<Vec<_>>>() {
            Ok(known) => self.topics.refresh(&self.settings, &known),
            Err(error) => {
                tracing::debug!(%error, "partitions are not refreshed");
                self.rescue(publisher.as_deref(), timeout);
            }
        }
    }

    /// Gives all clients their brokers once more, if those answer a new one.
    fn rescue(&self, publisher: Option<&BaseConsumer<Traced>>, timeout: Duration) {
        if *self.stopped.lock() {
            return;
        }
        if !matches!(asking(&self.settings).map(|new| has_brokers(&new, timeout)), Ok(true)) {
            return;
        }
        let brokers = &self.settings.brokers;
        for consumer in self.consumers().into_iter().chain(publisher) {
            give_brokers(consumer.client(), brokers);
        }
        self.outbox.give_brokers(brokers);
    }

    fn consumers(&self) -> [&BaseConsumer<Traced>; 3] {
        [&self.client, &self.reader.back, &self.reader.live]
    }
}

/// What keeps a cluster that was never heard from being opened.
fn away(error: LogError) -> LogError {
    match error {
        LogError::Unavailable { reason } => LogError::Away { reason },
        error => error,
    }
}

/// A client that is asked.
fn asking(settings: &KafkaSettings) -> Result<BaseConsumer<Traced>, LogError> {
    reading_nothing(settings, "trueup-ask")
        .map_err(|error| unavailable(format!("Kafka's client cannot be made: {error}")))
}

/// A client of a group that reads nothing.
fn reading_nothing(settings: &KafkaSettings, group: &str) -> KafkaResult<BaseConsumer<Traced>> {
    let mut config = common(settings);
    config.set("group.id", group).set("enable.auto.commit", "false");
    BaseConsumer::from_config_and_context(&config, Traced)
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        *self.shared.stopped.lock() = true;
        self.shared.stop.notify_all();
        let Some(attendant) = self.attendant.take() else { return };
        if attendant.join().is_err() {
            tracing::error!("the thread that attends to consumers panicked");
        }
    }
}
