//! A view's diffs by epoch, in a compacted topic, exactly once.
//!
//! Each epoch is **one transaction**: its diffs, and at the end a message that says which epoch
//! comes next. Either all of it is visible or nothing, and a run that begins anew reads how far the
//! topic is before it publishes: what was committed is skipped, what was cut short was never there.
//! The transactional id belongs to the changelog, so a new run fences the old one: a process that
//! was thought dead cannot commit any more.
//!
//! Kept in Kafka, and not in a consumer group's offsets, since those expire. Consumers must read
//! committed messages only (`isolation.level=read_committed`); those that do not can still drop
//! what was repeated: every message carries its epoch, and within a key epochs only ascend.
//!
//! # Messages
//!
//! ```text
//! key    {"view":"campaigns_by_minute","row":{"campaignId":"c1","bucket":"2026-04-27T15:32:00Z"}}
//! value  {"epoch":7,"view":"campaigns_by_minute","row":{…},"old":{…} or null,"new":{…} or null}
//!
//! key    {"upper":"campaigns"}        in partition 0, the last of each transaction
//! value  {"upper":8}                  every epoch below it is in the topic
//! ```
//!
//! A row's key is the same in every epoch, its partition follows from the key, and compaction keeps
//! the last message of a key: who reads from the beginning and takes `new` has the view; who was
//! there before and applies −`old` +`new` has it as well. A row that is gone has `new` null. It is
//! no tombstone, which could not say what the row was.

use crate::{
    clients::{Traced, common, consumer, trace_error, trace_log},
    cursor::{Cursor, Step},
    settings::{KafkaSettings, check_range, invalid, ms, unavailable},
    topics::create_topics,
};
use rdkafka::{
    ClientContext,
    admin::{AdminClient, NewTopic, TopicReplication},
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};
use serde_json::{Map, Value, json};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use trueup_operators::{log::LogError, time::Epoch};

/// Messages that are looked at first, from the end, to find the last `upper`.
const LOOK_BACK: u64 = 1_024;
/// Bytes that are fetched ahead meanwhile.
const LOOK_BYTES: usize = 8 << 20;
/// How long one wait is.
const TURN_MS: u64 = 20;

/// Where a changelog goes.
#[derive(Clone, Debug)]
pub struct ChangelogSettings {
    /// `host:port,…` of some brokers.
    pub brokers: String,
    /// The topic. One that is missing is created, compacted.
    pub topic: String,
    /// What the changelog is called: the transactional id, and the key of its `upper`. Whoever
    /// opens a changelog of the same name ends the one before.
    pub name: String,
    /// Partitions of a new topic. (More of them later would part a row's messages.)
    pub partitions: u16,
    /// On how many brokers a new topic stands.
    pub replication_factor: u16,
    /// How long an epoch may take to publish; brokers abort one that takes longer.
    pub timeout_ms: u64,
}

/// One row that is another than before the epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Diff {
    /// The view's name.
    pub view: String,
    /// What names the row: its dimensions and its bucket.
    pub row: Map<String, Value>,
    /// What it was; none if it is new.
    pub old: Option<Value>,
    /// What it is; none if it is gone.
    pub new: Option<Value>,
}

/// What became of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// It is in the topic.
    Now,
    /// It was there already.
    Before,
}

/// A changelog that is being written. Dropping it while an epoch is being published aborts that.
pub struct Changelog {
    settings: ChangelogSettings,
    producer: BaseProducer<Told>,
    partitions: u16,
    upper: Epoch,
    /// Whether the outcome of a transaction is not known: only opening it again tells.
    in_doubt: bool,
}

/// What the producer tells is traced; what was not delivered fails the commit.
struct Told;

impl ClientContext for Told {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        trace_log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        trace_error(&error, reason);
    }
}

impl ProducerContext for Told {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

impl std::fmt::Debug for Changelog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (topic, upper) = (&self.settings.topic, self.upper);
        f.debug_struct("Changelog").field("topic", topic).field("upper", &upper).finish()
    }
}

impl Changelog {
    /// Fences whoever published before, and finds out how far the topic is.
    ///
    /// # Errors
    /// `Invalid` for settings that cannot be; `Unavailable` when the cluster does not answer in
    /// time.
    pub fn open(settings: ChangelogSettings) -> Result<Changelog, LogError> {
        check_range("timeout_ms", settings.timeout_ms, 1_000..=600_000)?;
        check_range("partitions", settings.partitions.into(), 1..=1_024)?;
        if settings.name.is_empty() {
            return Err(invalid("a changelog's name is empty; it must have one".into()));
        }
        let timeout = ms(settings.timeout_ms);
        let deadline = Instant::now() + timeout;
        let cluster = KafkaSettings { brokers: settings.brokers.clone(), ..Default::default() };
        let failed = |error| unavailable(format!("{} cannot be opened: {error}", settings.topic));
        let admin = AdminClient::from_config_and_context(&common(&cluster), Traced);
        let copies = TopicReplication::Fixed(settings.replication_factor.into());
        let new = NewTopic::new(&settings.topic, settings.partitions.into(), copies)
            .set("cleanup.policy", "compact");
        create_topics(&[new], &admin.map_err(failed)?, deadline)?;

        let mut config = common(&cluster);
        config
            .set("transactional.id", &settings.name)
            .set("transaction.timeout.ms", settings.timeout_ms.to_string())
            .set("message.timeout.ms", settings.timeout_ms.to_string())
            .set("compression.type", "lz4")
            .set("linger.ms", "5");
        let producer = BaseProducer::from_config_and_context(&config, Told).map_err(failed)?;
        // From here on no transaction of an earlier run can be committed.
        producer.init_transactions(timeout).map_err(failed)?;
        let (partitions, upper) = find_upper(&settings, &cluster, deadline)?;
        Ok(Changelog { settings, producer, partitions, upper, in_doubt: false })
    }

    /// The first epoch that is not in the topic.
    pub fn upper(&self) -> Epoch {
        self.upper
    }

    /// Publishes an epoch as one step. One that is in the topic already is left alone, so whoever
    /// begins anew may simply offer all epochs again.
    ///
    /// # Errors
    /// `Unavailable` when the epoch was not committed; it may be offered again. When whether it was
    /// is not known, or another process has taken over the name, every later call says so, and the
    /// changelog must be opened again.
    pub fn publish(&mut self, epoch: Epoch, diffs: &[Diff]) -> Result<Published, LogError> {
        if epoch < self.upper {
            return Ok(Published::Before);
        }
        if self.in_doubt {
            return Err(unavailable(format!("{} must be opened again", self.settings.topic)));
        }
        // Until it is known: a panic in between leaves it in doubt as well.
        self.in_doubt = true;
        let result = self.transact(epoch, diffs);
        match result {
            Ok(()) => {
                self.upper = epoch + 1;
                self.in_doubt = false;
                Ok(Published::Now)
            }
            Err(error) => {
                let timeout = ms(self.settings.timeout_ms);
                let aborted = self.producer.abort_transaction(timeout);
                self.in_doubt = aborted.is_err();
                Err(self.failed(epoch, &error))
            }
        }
    }

    fn transact(&self, epoch: Epoch, diffs: &[Diff]) -> Result<(), KafkaError> {
        let timeout = ms(self.settings.timeout_ms);
        let deadline = Instant::now() + timeout;
        self.producer.begin_transaction()?;
        for diff in diffs {
            let Diff { view, row, old, new } = diff;
            let key = json!({ "view": view, "row": row }).to_string();
            let value = json!({ "epoch": epoch, "view": view, "row": row, "old": old, "new": new });
            let partition = crc32c::crc32c(key.as_bytes()) % u32::from(self.partitions);
            self.send(partition as i32, &key, &value.to_string(), deadline)?;
        }
        let upper = json!({ "upper": epoch + 1 }).to_string();
        self.send(0, &upper_key(&self.settings), &upper, deadline)?;
        // Committing waits for deliveries, but does not hear them.
        self.producer.flush(deadline.saturating_duration_since(Instant::now()))?;
        self.commit(deadline)
    }

    /// Commits; an answer that is lost is asked for again.
    fn commit(&self, deadline: Instant) -> Result<(), KafkaError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(ms(1));
            match self.producer.commit_transaction(left) {
                Err(KafkaError::Transaction(error))
                    if error.is_retriable() && Instant::now() < deadline => {}
                result => return result,
            }
        }
    }

    fn send(
        &self,
        partition: i32,
        key: &str,
        value: &str,
        deadline: Instant,
    ) -> Result<(), KafkaError> {
        loop {
            let record = BaseRecord::to(&self.settings.topic);
            let record = record.partition(partition).key(key).payload(value);
            let Err((error, _)) = self.producer.send(record) else { return Ok(()) };
            let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if !full || Instant::now() >= deadline {
                return Err(error);
            }
            self.producer.poll(ms(TURN_MS));
        }
    }

    fn failed(&self, epoch: Epoch, error: &KafkaError) -> LogError {
        let topic = &self.settings.topic;
        let what = if self.in_doubt { "may or may not be" } else { "is not" };
        unavailable(format!("epoch {epoch} {what} in {topic}: {error}"))
    }
}

fn upper_key(settings: &ChangelogSettings) -> String {
    json!({ "upper": settings.name }).to_string()
}

/// How many partitions the topic has, and the first epoch that is not in it.
fn find_upper(
    settings: &ChangelogSettings,
    cluster: &KafkaSettings,
    deadline: Instant,
) -> Result<(u16, Epoch), LogError> {
    let topic = &settings.topic;
    let failed = |error| unavailable(format!("{topic} does not say how far it is: {error}"));
    let config = consumer(cluster, &format!("{}-upper", settings.name), LOOK_BYTES);
    let consumer = BaseConsumer::from_config_and_context(&config, Traced).map_err(failed)?;
    let consumer = Arc::new(consumer);
    let left = || deadline.saturating_duration_since(Instant::now()).max(ms(1));
    let partitions = loop {
        let metadata = consumer.fetch_metadata(Some(topic), left()).map_err(failed)?;
        let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        match u16::try_from(count) {
            Ok(0) if Instant::now() < deadline => std::thread::sleep(ms(TURN_MS)),
            Ok(count) if count > 0 => break count,
            _ => return Err(invalid(format!("{topic} has {count} partitions"))),
        }
    };
    let (first, end) = loop {
        // A new topic may have no leader for a moment.
        match consumer.fetch_watermarks(topic, 0, left().min(Duration::from_secs(1))) {
            Ok(watermarks) => break watermarks,
            Err(error) if Instant::now() >= deadline => return Err(failed(error)),
            Err(_) => std::thread::sleep(ms(TURN_MS)),
        }
    };
    let (first, end) = (first.max(0) as u64, end.max(0) as u64);
    let mut cursor = Cursor::new(&consumer, topic, 0);
    let mut back = LOOK_BACK;
    loop {
        let from = first.max(end.saturating_sub(back));
        // Nobody adds to it meanwhile: the earlier processes are fenced.
        let upper = last_upper(&mut cursor, settings, (from, end), deadline)?;
        if let Some(upper) = upper {
            return Ok((partitions, upper));
        }
        if from == first {
            return Ok((partitions, 0));
        }
        back = back.saturating_mul(8);
    }
}

/// The last `upper` of this changelog in a range of partition 0. (The cursor knows for certain when
/// it is at the end of it.)
fn last_upper(
    cursor: &mut Cursor,
    settings: &ChangelogSettings,
    (from, end): (u64, u64),
    deadline: Instant,
) -> Result<Option<Epoch>, LogError> {
    let topic = &settings.topic;
    let key = upper_key(settings);
    let mut upper = None;
    if from == end {
        return Ok(None);
    }
    cursor.go(from, deadline)?;
    loop {
        match cursor.step(end, ms(TURN_MS))? {
            Step::Message(message, _) if message.key() == Some(key.as_bytes()) => {
                let value: Option<Value> =
                    message.payload().and_then(|bytes| serde_json::from_slice(bytes).ok());
                let found = value.as_ref().and_then(|value| value["upper"].as_u64());
                upper = Some(found.ok_or_else(|| LogError::Corrupt {
                    file: topic.clone(),
                    at: message.offset(),
                    reason: "this `upper` is no number".into(),
                })?);
            }
            Step::Nothing => return Ok(upper),
            Step::Gone => return Err(unavailable(format!("{topic} was cut while it was read"))),
            Step::Message(..) | Step::Waiting => {}
        }
        if Instant::now() >= deadline {
            return Err(unavailable(format!("the end of {topic} is not reached in time")));
        }
    }
}
