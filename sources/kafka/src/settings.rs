//! What an operator may set, and the limits that stand.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};
pub use trueup_log::{Clock, system_clock};
use trueup_operators::log::{LogError, PARTITIONS_MAX, Topic};

/// The most bytes of a topic's name: Kafka's own limit.
const NAME_BYTES_MAX: usize = 249;
/// The most that a message may have: what librdkafka and the embedded log's frames allow.
pub const MESSAGE_BYTES_LIMIT: usize = 64 << 20;
/// The offsets that a frame of single messages covers at most; none reaches over a multiple of it.
pub const RUN_MESSAGES: u64 = 1_024;

/// The most bytes of one event as JSON: no larger message is written or looked into, and a run of
/// them takes [`RUN_MESSAGES`] times this at most, whatever others put into the topic. A collector
/// takes 40 KiB of fields of one event at most, and written out none takes six times as much.
pub const JSON_EVENT_BYTES_MAX: usize = 256 << 10;

/// What a message of the events topic is. The other topics carry frames always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// A frame: a batch of events as an Arrow IPC stream.
    #[default]
    Batch,
    /// One event, as JSON.
    Json,
}

impl std::str::FromStr for Encoding {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Encoding, LogError> {
        match text {
            "batch" => Ok(Encoding::Batch),
            "json" => Ok(Encoding::Json),
            _ => Err(invalid(format!("encoding is {text:?}; it can be \"batch\" or \"json\""))),
        }
    }
}

/// What topics are created with when they are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// Partitions of the events topic; the others have one.
    pub partitions: u16,
    /// On how many brokers each partition stands.
    pub replication_factor: u16,
    /// How long brokers keep messages of events and verdicts; without it for ever. The remap topic,
    /// which defines all epochs, and metadata, which nothing says twice, are kept for ever always.
    pub retention_ms: Option<u64>,
}

/// How the cluster is reached and used.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// `host:port,…` of some brokers.
    pub brokers: String,
    /// The topic of events.
    pub events_topic: String,
    /// The topic of verdicts; one partition.
    pub verdicts_topic: String,
    /// The topic of metadata; one partition.
    pub metadata_topic: String,
    /// The topic of remap rows; one partition.
    pub remap_topic: String,
    /// What a message of the events topic is.
    pub encoding: Encoding,
    /// Creates the topics that are missing; without it a missing topic is refused.
    pub create: Option<Create>,
    /// The newest schema of events, verdicts, metadata and remap rows that the program knows: a
    /// message with a newer one is foreign.
    pub schema_versions: [u16; 4],
    /// The largest message that is written, and read as ours; at most [`MESSAGE_BYTES_LIMIT`]. The
    /// topic's own `max.message.bytes` binds as well, and [`JSON_EVENT_BYTES_MAX`] if it is one
    /// event.
    pub message_bytes_max: usize,
    /// Bytes that may wait to be delivered; beyond it appends are refused as busy.
    pub queue_bytes_max: u64,
    /// Messages that may wait to be delivered; beyond it appends are refused as busy.
    pub queue_messages_max: u32,
    /// How long messages wait for company in a request.
    pub linger_ms: u64,
    /// An append that is not delivered within this has failed.
    pub delivery_timeout_ms: u64,
    /// Bytes fetched ahead for each partition that is read from one end to the other.
    pub prefetch_bytes_max: usize,
    /// Bytes fetched ahead for each partition when single old frames are read.
    pub readback_bytes_max: usize,
    /// How long a read waits for the broker.
    pub read_timeout_ms: u64,
    /// A partition whose sequential reader rested for this may be read elsewhere by it.
    pub idle_after_ms: u64,
    /// For how long the ends of a topic are taken as known.
    pub ends_cache_ms: u64,
    /// How long asking for the ends of a topic may block, and how long it is not asked again after
    /// no answer came.
    pub ends_timeout_ms: u64,
    /// For how long the first offsets of a topic are taken as known.
    pub first_cache_ms: u64,
    /// How often the number of partitions is asked for.
    pub metadata_refresh_ms: u64,
    /// How long opening waits for the cluster.
    pub open_timeout_ms: u64,
}

impl Default for KafkaSettings {
    fn default() -> KafkaSettings {
        KafkaSettings {
            brokers: "127.0.0.1:9092".into(),
            events_topic: "ad-events".into(),
            verdicts_topic: "ad-verdicts".into(),
            metadata_topic: "ad-metadata".into(),
            remap_topic: "trueup-remap".into(),
            encoding: Encoding::Batch,
            create: None,
            schema_versions: [u16::MAX; 4],
            message_bytes_max: 16 << 20,
            queue_bytes_max: 128 << 20,
            queue_messages_max: 1_000_000,
            linger_ms: 5,
            delivery_timeout_ms: 10_000,
            prefetch_bytes_max: 32 << 20,
            readback_bytes_max: 1 << 20,
            read_timeout_ms: 30_000,
            idle_after_ms: 1_000,
            ends_cache_ms: 5,
            ends_timeout_ms: 1_000,
            first_cache_ms: 1_000,
            metadata_refresh_ms: 5_000,
            open_timeout_ms: 15_000,
        }
    }
}

impl KafkaSettings {
    /// The name of a topic in Kafka.
    pub fn topic(&self, topic: Topic) -> &str {
        match topic {
            Topic::Events => &self.events_topic,
            Topic::Verdicts => &self.verdicts_topic,
            Topic::Metadata => &self.metadata_topic,
            Topic::Remap => &self.remap_topic,
        }
    }

    /// What a message of a topic is.
    pub fn encoding(&self, topic: Topic) -> Encoding {
        if topic == Topic::Events { self.encoding } else { Encoding::Batch }
    }

    pub(crate) fn check(&self) -> Result<(), LogError> {
        for topic in Topic::ALL {
            check_name(topic, self.topic(topic))?;
            let same = |other: &Topic| *other != topic && self.topic(*other) == self.topic(topic);
            if let Some(other) = Topic::ALL.iter().find(|other| same(other)) {
                let (one, two, name) = (topic.name(), other.name(), self.topic(topic));
                return Err(invalid(format!("{one} and {two} have the same topic, {name:?}")));
            }
        }
        if self.brokers.trim().is_empty() {
            return Err(invalid("brokers is empty; it names some brokers, host:port,…".into()));
        }
        let minute_ms = 60_000;
        for (name, value, range) in [
            (
                "message_bytes_max",
                self.message_bytes_max as u64,
                1_024..=MESSAGE_BYTES_LIMIT as u64,
            ),
            ("queue_bytes_max", self.queue_bytes_max, 1..=1 << 40),
            ("queue_messages_max", self.queue_messages_max.into(), 1..=10_000_000),
            ("linger_ms", self.linger_ms, 0..=1_000),
            ("delivery_timeout_ms", self.delivery_timeout_ms, 1_000..=60 * minute_ms),
            ("prefetch_bytes_max", self.prefetch_bytes_max as u64, 64 << 10..=1 << 30),
            ("readback_bytes_max", self.readback_bytes_max as u64, 64 << 10..=1 << 30),
            ("read_timeout_ms", self.read_timeout_ms, 100..=60 * minute_ms),
            ("idle_after_ms", self.idle_after_ms, 0..=60 * minute_ms),
            ("ends_cache_ms", self.ends_cache_ms, 0..=minute_ms),
            ("ends_timeout_ms", self.ends_timeout_ms, 10..=minute_ms),
            ("first_cache_ms", self.first_cache_ms, 0..=60 * minute_ms),
            ("metadata_refresh_ms", self.metadata_refresh_ms, 100..=60 * minute_ms),
            ("open_timeout_ms", self.open_timeout_ms, 100..=10 * minute_ms),
        ] {
            check_range(name, value, range)?;
        }
        if let Some(create) = &self.create {
            let copies = u64::from(create.replication_factor);
            check_range("partitions", create.partitions.into(), 1..=PARTITIONS_MAX.into())?;
            check_range("replication_factor", copies, 1..=64)?;
        }
        Ok(())
    }
}

fn check_name(topic: Topic, name: &str) -> Result<(), LogError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.chars().all(legal) || name == "." {
        return Err(invalid(format!(
            "the topic of {} is {name:?}; a name has 1 to {NAME_BYTES_MAX} of a-z A-Z 0-9 . _ -",
            topic.name()
        )));
    }
    Ok(())
}

pub(crate) fn check_range(
    name: &str,
    value: u64,
    range: RangeInclusive<u64>,
) -> Result<(), LogError> {
    if !range.contains(&value) {
        let (least, most) = range.into_inner();
        return Err(invalid(format!("{name} is {value}; it can be {least} to {most}")));
    }
    Ok(())
}

pub(crate) fn invalid(reason: String) -> LogError {
    LogError::Invalid { reason }
}

pub(crate) fn unavailable(reason: String) -> LogError {
    LogError::Unavailable { reason }
}

/// How long there is until then.
pub(crate) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_by_name_and_value() {
        let refuse = |settings: KafkaSettings| match settings.check() {
            Err(LogError::Invalid { reason }) => reason,
            other => panic!("{other:?}"),
        };
        KafkaSettings::default().check().unwrap();
        let default = KafkaSettings::default;
        let spaced = KafkaSettings { events_topic: "ad events".into(), ..default() };
        assert!(refuse(spaced).contains("the topic of events is \"ad events\""));
        let same = KafkaSettings { remap_topic: "ad-verdicts".into(), ..default() };
        assert!(refuse(same).contains("verdicts and remap have the same topic"));
        let nobody = KafkaSettings { brokers: " ".into(), ..default() };
        assert!(refuse(nobody).contains("brokers is empty"));
        let large = KafkaSettings { message_bytes_max: 1 << 30, ..default() };
        assert!(refuse(large).contains("message_bytes_max is 1073741824; it can be 1024 to"));
        let create = Create { partitions: 257, replication_factor: 1, retention_ms: None };
        let wide = KafkaSettings { create: Some(create), ..default() };
        assert!(refuse(wide).contains("partitions is 257; it can be 1 to 256"));
        assert!("avro".parse::<Encoding>().is_err());
        assert_eq!("json".parse::<Encoding>().unwrap(), Encoding::Json);
    }
}
