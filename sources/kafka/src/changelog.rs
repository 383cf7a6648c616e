//! What changes in views, in a compacted topic, exactly once.
//!
//! A step of epochs is **one transaction**: its messages, and at the end one that says which epoch
//! comes next, the *upper*. Either all of it is visible or nothing, and a run that begins anew
//! reads how far the topic is before it publishes: what was committed is never published again,
//! what was cut short was never there. The transactional id belongs to the changelog, so a new run
//! fences the old one: a process that was thought dead cannot commit any more.
//!
//! The upper is kept in the topic itself, and not in a consumer group's offsets, since those
//! expire. Consumers must read committed messages only (`isolation.level=read_committed`).
//!
//! What the messages of rows say is their writer's business; here they are texts. Of the upper:
//!
//! ```text
//! key    {"upper":"campaigns"}               in partition 0, the last message of each transaction
//! value  {"partitions":4,"upper":8,…}        every epoch below it is in the topic
//! ```
//!
//! `partitions` is how many there were when the changelog began. A key's partition follows from it,
//! so that partitions which are added later part no row's messages; they stay empty.
//!
//! Limits: what waits to be sent ([`QUEUE_KBYTES`]), how long a transaction may take
//! (`timeout_ms`), and how long a call goes on after it was told to stop ([`SLICE_MS`]; where the
//! cluster has to be asked in one piece, [`ASKED_MS_MAX`]).

mod reading;

use crate::{
    clients::{Traced, common, trace_error, trace_log},
    settings::{KafkaSettings, check_range, invalid, left, ms, unavailable},
    topics::{create_topics, describe},
};
use rdkafka::{
    ClientContext,
    admin::{AdminClient, NewTopic, TopicReplication},
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};
use reading::Reading;
use serde_json::{Map, Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use trueup_operators::{log::LogError, time::Epoch};

/// How long one wait is.
const TURN_MS: u64 = 20;
/// How long one wait for deliveries is.
const DELIVERY_MS: u64 = 2;
/// After so long a call looks whether it was told to stop.
const SLICE_MS: u64 = 500;
/// How long the cluster is asked at once what cannot be asked in slices.
const ASKED_MS_MAX: u64 = 15_000;
/// How long an abort may take for one who stops. (The next one to open it aborts as well.)
const LEAVING_MS: u64 = 2_000;
/// How long a request may take.
const SOCKET_MS_MAX: u64 = 10_000;
/// Memory for messages that wait to be sent, and how many may.
const QUEUE_KBYTES: u64 = 32 << 10;
const QUEUE_MESSAGES: u64 = 100_000;

/// Where a changelog goes.
#[derive(Clone, Debug)]
pub struct ChangelogSettings {
    /// `host:port,…` of some brokers.
    pub brokers: String,
    /// The topic. One that is missing is created, compacted; it belongs to one changelog.
    pub topic: String,
    /// What the changelog is called: the transactional id, and the key of its `upper`. Whoever
    /// opens a changelog of the same name ends the one before.
    pub name: String,
    /// Partitions of a new topic.
    pub partitions: u16,
    /// On how many brokers a new topic stands.
    pub replication_factor: u16,
    /// How long a transaction may take; brokers abort one that takes longer.
    pub timeout_ms: u64,
}

/// How far a topic is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Upper {
    /// The first epoch that is not in it.
    pub epoch: Epoch,
    /// What else the message says.
    pub said: Map<String, Value>,
}

/// A changelog that is being written. Dropping it within a transaction aborts that, at the latest
/// when it is opened again.
pub struct Changelog {
    settings: ChangelogSettings,
    stop: Arc<AtomicBool>,
    producer: BaseProducer<Told>,
    /// By which keys are divided.
    partitions: u16,
    upper: Option<Upper>,
    /// When the transaction under way must be committed.
    under_way: Option<Instant>,
    /// Whether the outcome of a transaction is not known: only opening it again tells.
    in_doubt: bool,
    /// The ends of the partitions before the transaction under way, once they were asked for.
    ends: Option<Vec<u64>>,
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
        let (topic, upper) = (&self.settings.topic, &self.upper);
        f.debug_struct("Changelog").field("topic", topic).field("upper", upper).finish()
    }
}

impl Changelog {
    /// Fences whoever published before, and finds out how far the topic is. Once `stop` is set,
    /// every call ends soon, with an error if it is not done.
    ///
    /// # Errors
    /// `Invalid` for settings that cannot be, a topic that forgets more than what was overwritten,
    /// and one of another changelog; `Unavailable` when the cluster does not answer in time.
    pub fn open(settings: ChangelogSettings, stop: Arc<AtomicBool>) -> Result<Changelog, LogError> {
        settings.check()?;
        let deadline = Instant::now() + ms(settings.timeout_ms);
        let failed = |error| unavailable(format!("{} cannot be opened: {error}", settings.topic));
        let cluster = settings.cluster();
        settings.make_topic(&cluster)?;
        let timeout_ms = settings.timeout_ms.to_string();
        let mut config = common(&cluster);
        config
            .set("transactional.id", &settings.name)
            .set("transaction.timeout.ms", &timeout_ms)
            .set("message.timeout.ms", &timeout_ms)
            // librdkafka refuses a transaction that a single request may outlive.
            .set("socket.timeout.ms", settings.timeout_ms.min(SOCKET_MS_MAX).to_string())
            .set("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string())
            .set("queue.buffering.max.messages", QUEUE_MESSAGES.to_string())
            .set("compression.type", "lz4")
            .set("linger.ms", "5");
        let producer = BaseProducer::from_config_and_context(&config, Told).map_err(failed)?;
        let in_slices = Slices { producer: &producer, stop: &stop, deadline };
        // From here on no transaction of an earlier run can be committed.
        in_slices.run(|slice| producer.init_transactions(slice)).map_err(failed)?;
        let mut reading = Reading::open(&settings, &stop)?;
        let upper = reading.last_upper()?;
        let partitions = match &upper {
            None => reading.partitions,
            Some(upper) => begun_with(&settings, upper, reading.partitions)?,
        };
        let (under_way, in_doubt, ends) = (None, false, None);
        let upper = upper.map(without_partitions);
        Ok(Changelog { settings, stop, producer, partitions, upper, under_way, in_doubt, ends })
    }

    /// How far the topic is; none when nothing was ever published.
    pub fn upper(&self) -> Option<&Upper> {
        self.upper.as_ref()
    }

    /// How far the topic is by now, also after another process has taken over.
    ///
    /// # Errors
    /// `Unavailable` when the cluster does not say it.
    pub fn last_upper(&self) -> Result<Option<Upper>, LogError> {
        let upper = Reading::open(&self.settings, &self.stop)?.last_upper()?;
        Ok(upper.map(without_partitions))
    }

    /// Whether another process has taken over the name, or the brokers gave up on a transaction of
    /// this one: nothing more can be published before it is opened again.
    pub fn is_fenced(&self) -> bool {
        self.producer.client().fatal_error().is_some()
    }

    /// Reads all rows' messages that stood in the topic before the transaction under way, if there
    /// is one: key and value, those of a key in their order. A value that was deleted is none.
    ///
    /// # Errors
    /// `Unavailable` when the topic cannot be read to its end.
    ///
    /// # Panics
    /// When a transaction is under way and it was not called before that.
    pub fn read(&mut self, each: &mut Visit<'_>) -> Result<(), LogError> {
        let mut reading = Reading::open(&self.settings, &self.stop)?;
        if self.ends.is_none() {
            assert!(self.under_way.is_none(), "the ends were not asked for before a transaction");
            self.ends = Some(reading.ends()?);
        }
        reading.rows(self.ends.as_deref().unwrap_or_default(), each)
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// `Unavailable` when another is in doubt, the cluster is away, or the name was taken over.
    pub fn begin(&mut self) -> Result<(), LogError> {
        if self.in_doubt || self.under_way.is_some() {
            return Err(unavailable(format!("{} must be opened again", self.settings.topic)));
        }
        self.producer.begin_transaction().map_err(|error| self.failed("begun", &error))?;
        self.under_way = Some(Instant::now() + ms(self.settings.timeout_ms));
        Ok(())
    }

    /// Writes a message in the transaction; waits while too many are on their way.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be sent: the transaction must be aborted.
    pub fn write(&mut self, key: &str, value: &str) -> Result<(), LogError> {
        let partition = crc32c::crc32c(key.as_bytes()) % u32::from(self.partitions);
        self.send(partition as i32, key, value).map_err(|error| self.failed("written", &error))
    }

    /// Ends the transaction: with it the topic is at `upper`.
    ///
    /// # Errors
    /// `Unavailable` when it was not committed; it may be published again. When whether it was is
    /// not known, or another process has taken over the name, every later call says so, and the
    /// changelog must be opened again.
    pub fn commit(&mut self, upper: Upper) -> Result<(), LogError> {
        let deadline = self.deadline()?;
        let mut said = upper.said.clone();
        said.insert("upper".into(), json!(upper.epoch));
        said.insert("partitions".into(), json!(self.partitions));
        // Until it is known: a panic in between leaves it in doubt as well.
        self.in_doubt = true;
        let (key, value) = (self.settings.upper_key(), Value::Object(said).to_string());
        let in_slices = Slices { producer: &self.producer, stop: &self.stop, deadline };
        let result = self
            .send(0, &key, &value)
            .inspect(|()| in_slices.deliver())
            .and_then(|()| in_slices.run(|slice| self.producer.commit_transaction(slice)));
        match result {
            Ok(()) => {
                (self.under_way, self.ends, self.in_doubt) = (None, None, false);
                self.upper = Some(upper);
                Ok(())
            }
            Err(error) => {
                self.abort();
                Err(self.failed("committed", &error))
            }
        }
    }

    /// Drops the transaction under way, if there is one. One that cannot be aborted is in doubt.
    pub fn abort(&mut self) {
        if self.under_way.take().is_none() {
            return;
        }
        let is_leaving = self.stop.load(Ordering::Relaxed);
        let patience_ms = if is_leaving { LEAVING_MS } else { self.settings.timeout_ms };
        // Whoever leaves still tries.
        let stop = AtomicBool::new(false);
        let deadline = Instant::now() + ms(patience_ms);
        let in_slices = Slices { producer: &self.producer, stop: &stop, deadline };
        let aborted = in_slices.run(|slice| self.producer.abort_transaction(slice));
        self.in_doubt = aborted.is_err();
        if let Err(error) = aborted {
            tracing::warn!(%error, topic = self.settings.topic, "a transaction is in doubt");
        }
    }

    fn deadline(&self) -> Result<Instant, LogError> {
        let none = || unavailable(format!("{}: no transaction is under way", self.settings.topic));
        self.under_way.ok_or_else(none)
    }

    fn send(&self, partition: i32, key: &str, value: &str) -> Result<(), KafkaError> {
        loop {
            let record = BaseRecord::to(&self.settings.topic);
            let record = record.partition(partition).key(key).payload(value);
            let Err((error, _)) = self.producer.send(record) else { return Ok(()) };
            let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            let is_late = self.under_way.is_none_or(|deadline| Instant::now() >= deadline);
            if !full || is_late || self.stop.load(Ordering::Relaxed) {
                return Err(error);
            }
            self.producer.poll(ms(TURN_MS));
        }
    }

    fn failed(&self, what: &str, error: &KafkaError) -> LogError {
        let ChangelogSettings { topic, timeout_ms, .. } = &self.settings;
        let not = if self.in_doubt { "may not have been" } else { "was not" };
        let reason = self.producer.client().fatal_error().map(|(_, reason)| format!(": {reason}"));
        let reason = reason.unwrap_or_default();
        unavailable(format!(
            "a transaction on {topic} {not} {what} (within {timeout_ms} ms): {error}{reason}"
        ))
    }
}

/// Is given each message: its key, and its value if that was not deleted.
pub type Visit<'v> = dyn FnMut(&[u8], Option<&[u8]>) -> Result<(), LogError> + 'v;

impl ChangelogSettings {
    fn check(&self) -> Result<(), LogError> {
        check_range("timeout_ms", self.timeout_ms, 1_000..=600_000)?;
        check_range("partitions", self.partitions.into(), 1..=1_024)?;
        if self.name.is_empty() {
            return Err(invalid("a changelog's name is empty; it must have one".into()));
        }
        Ok(())
    }

    fn cluster(&self) -> KafkaSettings {
        KafkaSettings { brokers: self.brokers.clone(), ..Default::default() }
    }

    fn upper_key(&self) -> String {
        json!({ "upper": self.name }).to_string()
    }

    /// Makes the topic if it is missing, and refuses one that would forget rows.
    fn make_topic(&self, cluster: &KafkaSettings) -> Result<(), LogError> {
        let deadline = Instant::now() + ms(self.timeout_ms.min(ASKED_MS_MAX));
        let failed = |error| unavailable(format!("{} cannot be opened: {error}", self.topic));
        let admin = AdminClient::from_config_and_context(&common(cluster), Traced);
        let admin = admin.map_err(failed)?;
        let copies = TopicReplication::Fixed(self.replication_factor.into());
        let new = NewTopic::new(&self.topic, self.partitions.into(), copies)
            .set("cleanup.policy", "compact");
        create_topics(&[new], &admin, deadline)?;
        let config = describe(&self.topic, &admin, deadline).map_err(failed)?;
        let cleanup = config.get("cleanup.policy").map_or("", String::as_str);
        if cleanup != "compact" {
            return Err(invalid(format!(
                "the topic {:?} has cleanup.policy={cleanup}; a changelog's must be compact: it \
                 has the last message of every row, however old",
                self.topic
            )));
        }
        Ok(())
    }
}

/// The partitions that a changelog began with, which the topic must still have.
fn begun_with(
    settings: &ChangelogSettings,
    upper: &Upper,
    partitions: u16,
) -> Result<u16, LogError> {
    let topic = &settings.topic;
    let begun = upper.said.get("partitions").and_then(Value::as_u64);
    let begun = begun.and_then(|begun| u16::try_from(begun).ok()).filter(|begun| *begun > 0);
    let Some(begun) = begun else {
        let key = settings.upper_key();
        return Err(invalid(format!(
            "{topic}: the last message of {key} does not say `partitions`; give another topic"
        )));
    };
    if begun > partitions {
        return Err(invalid(format!(
            "{topic} has {partitions} partitions, and its changelog began with {begun}: some are \
             gone; give another topic"
        )));
    }
    Ok(begun)
}

fn without_partitions(mut upper: Upper) -> Upper {
    upper.said.remove("partitions");
    upper
}

/// Waits in slices, so that whoever is told to stop does.
struct Slices<'a> {
    producer: &'a BaseProducer<Told>,
    stop: &'a AtomicBool,
    deadline: Instant,
}

impl Slices<'_> {
    /// Waits until everything is delivered. (Committing does as well, but looks only every 100 ms.)
    fn deliver(&self) {
        let goes_on = || Instant::now() < self.deadline && !self.stop.load(Ordering::Relaxed);
        while self.producer.in_flight_count() > 0 && goes_on() {
            self.producer.poll(ms(DELIVERY_MS));
        }
    }

    /// Asks again as long as the answer is that it may be asked again.
    fn run(
        &self,
        mut ask: impl FnMut(Duration) -> Result<(), KafkaError>,
    ) -> Result<(), KafkaError> {
        loop {
            let left = left(self.deadline);
            let result = ask(left.clamp(ms(1), ms(SLICE_MS)));
            let again = match &result {
                Err(KafkaError::Transaction(error)) => error.is_retriable(),
                Err(KafkaError::Flush(code)) => *code == RDKafkaErrorCode::OperationTimedOut,
                _ => false,
            };
            if !again || left.is_zero() || self.stop.load(Ordering::Relaxed) {
                return result;
            }
            // What was delivered is heard here; until then nothing is committed or aborted.
            self.producer.poll(ms(TURN_MS));
        }
    }
}
