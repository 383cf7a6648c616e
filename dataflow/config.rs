//! The configuration: `trueup.toml`, over it the environment, over that the flags. Every key is
//! optional; a key that is not known is an error that names the nearest known one.
//!
//! Durations are text (`500ms`, `5m`, `24h`, `7d`), sizes are text or bytes (`256MiB`, `4096`).

mod changelog;
mod cluster;
mod kafka;
#[cfg(test)]
mod tests;
mod units;

pub use changelog::ChangelogConfig;
pub use cluster::Cluster;
pub use kafka::{KafkaEncoding, KafkaExchange};
pub use units::{Size, Span};

use crate::{
    checkpoint::{CheckpointSettings, keeper::KEPT_MIN},
    open_log::OpenLog,
};
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use trueup_operators::{
    access::{self, Token},
    log::LogError,
    rollup::RollupSpec,
    time::Lateness,
};

/// All of it, with every default.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the log and the identity of the installation are.
    pub data_dir: PathBuf,
    /// Where to listen.
    pub server: Server,
    /// Who may do what.
    pub auth: Auth,
    /// How the log is kept.
    pub log: LogConfig,
    /// Where the log is, if it is Kafka.
    pub kafka: Kafka,
    /// Where what changes in the views is published.
    pub changelog: ChangelogConfig,
    /// When the state is written down, and where.
    pub checkpoint: Checkpoint,
    /// Epochs, lateness and finality.
    pub time: Time,
    /// Worker threads, and the processes that have them.
    pub workers: Workers,
    /// How those know each other.
    pub cluster: Cluster,
    /// What the collector takes.
    pub limits: trueup_collector::Settings,
    /// How far behind the dataflow may be, and what memory it may use.
    pub flow: Flow,
    /// What reports and subscriptions may ask for.
    pub queries: trueup_queries::Limits,
    /// The named rollups.
    #[serde(rename = "rollup")]
    pub rollups: Vec<RollupSpec>,
}

/// `[server]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The address and port of HTTP.
    pub listen: SocketAddr,
    /// How many connections there may be; more wait. (Fewer, if the limit of open files says so.)
    pub connections_max: usize,
    /// How long the head of a request may take, and the time between two requests.
    pub head_ms_max: u64,
    /// How long a peer may leave unread what was sent to it.
    pub unread_ms_max: u64,
    /// Where PostgreSQL's protocol will be spoken. It may be given, and nothing listens there yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pg_listen: Option<SocketAddr>,
}

/// `[auth]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// None: only loopback may connect.
    pub tokens: Vec<Token>,
}

/// `[log]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Which log.
    pub kind: LogKind,
    /// Partitions of the events topic; fixed when the data directory is made.
    pub partitions: u16,
    /// When an append is on disk before it is acknowledged.
    pub fsync: Fsync,
    /// The size at which a segment file is sealed.
    pub segment_bytes_max: Size,
    /// Memory for frames that were appended last.
    pub tail_bytes_max: Size,
    /// Bytes that may wait to be written before the collector answers 503.
    pub queue_bytes_max: Size,
    /// How long segments are kept that a checkpoint covers.
    pub retention: Span,
    /// How long they are kept if an event lies in them that did not count and is still listed.
    pub retention_listed: Span,
    /// When all segments are larger than this, the oldest go that a checkpoint covers, whatever
    /// their age and whatever is listed. Zero: size deletes none.
    pub retention_bytes_max: Size,
}

/// Which log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// Segment files in the data directory.
    Embedded,
    /// Topics of a Kafka cluster, `[kafka]`.
    Kafka,
}

/// `[kafka]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// `host:port,…` of some brokers.
    pub brokers: String,
    /// The topic of events.
    pub events_topic: String,
    /// The topic of verdicts; one partition.
    pub verdicts_topic: String,
    /// The topic of campaigns, ads and publishers; one partition.
    pub metadata_topic: String,
    /// The topic that defines the epochs; one partition, never to be cut.
    pub remap_topic: String,
    /// What a message of the events topic is.
    pub encoding: KafkaEncoding,
    /// When events are exchanged by id between the workers before they are deduplicated.
    pub exchange: KafkaExchange,
    /// Whether topics that are missing are made, the events topic with `log.partitions`.
    pub create_topics: bool,
    /// On how many brokers each partition of a topic that is made stands.
    pub replication_factor: u16,
    /// The largest message.
    pub message_bytes_max: Size,
    /// An append that no broker has confirmed within this goes to the spool.
    pub delivery_timeout: Span,
    /// How long a read waits for a broker before the run has a fault.
    pub read_timeout: Span,
    /// How much the collector takes while no broker does.
    pub spool_bytes_max: Size,
    /// The consumer group whose offsets show lag tools how far the views are. Nothing reads them
    /// back. Empty: none are published.
    pub offsets_group: String,
}

/// When an append is on disk before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// Always; one fsync serves all requests that wait.
    Batch,
    /// Never forced. What was acknowledged survives a killed process, not a lost machine.
    Never,
}

/// `[checkpoint]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// How often. `0s`: never, and a start reads the log from its beginning.
    pub interval: Span,
    /// Where: a directory, in `data_dir` if it is relative, or a URL (`file://…`, `s3://…`).
    pub store: String,
    /// How many are kept.
    pub kept: usize,
    /// Every which is whole; the others are what has changed.
    pub whole_every: u32,
}

/// `[time]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Time {
    /// How often an epoch closes.
    pub tick: Span,
    /// How long after its end a bucket is provisional.
    pub allowed_lateness: Span,
    /// How long after its end a bucket may still change.
    pub correction_horizon: Span,
    /// How far ahead of its arrival an event may claim to have happened.
    pub future_skew_max: Span,
}

/// `[workers]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workers {
    /// How many threads each process has.
    pub threads: usize,
    /// Where each process of a cluster listens, `host:port`, in the order of their numbers. Empty:
    /// this process is alone.
    pub hosts: Vec<String>,
    /// Which of them this process is; each says it itself, unless there is one host alone.
    pub process: Option<usize>,
}

/// `[flow]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flow {
    /// An epoch closes before its tick when this much waits.
    pub epoch_bytes_max: Size,
    /// How many epochs may be under way.
    pub epochs_in_flight_max: u64,
    /// The collector answers 429 when the views are this many bytes of log behind.
    pub lag_bytes_max: Size,
    /// And when they are this many epochs behind.
    pub lag_epochs_max: u64,
    /// Memory for decoded batches that verdicts may ask for.
    pub read_back_bytes_max: Size,
    /// The collector answers 503 when the texts of dimensions take this much: they are never
    /// forgotten while the server runs.
    pub symbols_bytes_max: Size,
    /// The collector answers 503 when the ledger, the rows and the views take this much together.
    pub state_bytes_max: Size,
    /// Memory for the changes of recent epochs, which subscribers resume from.
    pub history_bytes_max: Size,
    /// How long those are kept.
    pub history: Span,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data_dir: "./trueup-data".into(),
            server: Server::default(),
            auth: Auth::default(),
            log: LogConfig::default(),
            kafka: Kafka::default(),
            changelog: ChangelogConfig::default(),
            checkpoint: Checkpoint::default(),
            time: Time::default(),
            workers: Workers::default(),
            cluster: Cluster::default(),
            limits: trueup_collector::Settings::default(),
            flow: Flow::default(),
            queries: trueup_queries::Limits::default(),
            rollups: RollupSpec::ad_defaults(),
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Server {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            connections_max: 10_000,
            head_ms_max: 60_000,
            unread_ms_max: 60_000,
            pg_listen: None,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            kind: LogKind::Embedded,
            partitions: 4,
            fsync: Fsync::Batch,
            segment_bytes_max: Size(256 << 20),
            tail_bytes_max: Size(256 << 20),
            queue_bytes_max: Size(128 << 20),
            retention: Span(Duration::from_secs(7 * 86_400)),
            retention_listed: Span(Duration::from_secs(30 * 86_400)),
            retention_bytes_max: Size(0),
        }
    }
}

impl Default for Kafka {
    fn default() -> Self {
        Kafka {
            brokers: "127.0.0.1:9092".into(),
            events_topic: "ad-events".into(),
            verdicts_topic: "ad-verdicts".into(),
            metadata_topic: "ad-metadata".into(),
            remap_topic: "ad-remap".into(),
            encoding: KafkaEncoding::Batch,
            exchange: KafkaExchange::Auto,
            create_topics: true,
            replication_factor: 1,
            message_bytes_max: Size(16 << 20),
            delivery_timeout: Span(Duration::from_secs(10)),
            read_timeout: Span(Duration::from_secs(300)),
            spool_bytes_max: Size(4 << 30),
            offsets_group: "trueup".into(),
        }
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        let CheckpointSettings { interval, kept, whole_every } = CheckpointSettings::default();
        let store = crate::host::CHECKPOINTS.to_owned();
        Checkpoint { interval: Span(interval), store, kept, whole_every }
    }
}

impl Default for Time {
    fn default() -> Self {
        Time {
            tick: Span(Duration::from_millis(100)),
            allowed_lateness: Span(Duration::from_secs(5 * 60)),
            correction_horizon: Span(Duration::from_secs(86_400)),
            future_skew_max: Span(Duration::from_secs(5 * 60)),
        }
    }
}

impl Default for Workers {
    fn default() -> Self {
        Workers { threads: 2, hosts: Vec::new(), process: None }
    }
}

impl Default for Flow {
    fn default() -> Self {
        Flow {
            epoch_bytes_max: Size(16 << 20),
            epochs_in_flight_max: 4,
            lag_bytes_max: Size(512 << 20),
            lag_epochs_max: 600,
            read_back_bytes_max: Size(256 << 20),
            symbols_bytes_max: Size(2 << 30),
            state_bytes_max: Size(16 << 30),
            history_bytes_max: Size(256 << 20),
            history: Span(Duration::from_secs(600)),
        }
    }
}

/// A configuration that cannot be used. Says where, what, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Config {
    /// That of a place: a configuration file (`*.toml`), or a data directory, with all defaults.
    ///
    /// # Errors
    /// When the file cannot be read, or something in it cannot be used.
    pub fn at(place: &Path) -> Result<Config, ConfigError> {
        if place.extension().is_none_or(|extension| extension != "toml") {
            return Ok(Config { data_dir: place.into(), ..Config::default() });
        }
        let config = Config::read(place)?;
        config.check()?;
        Ok(config)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read; names the key or value at fault.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let file = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigError(format!("cannot read {file}: {e}")))?;
        Config::parse(&text).map_err(|ConfigError(e)| ConfigError(format!("{file}: {e}")))
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// Names the key or value at fault.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        toml::from_str::<Config>(text).map_err(|e| ConfigError(explain(&e.to_string())))
    }

    /// Checks what no single key can be checked for.
    ///
    /// # Errors
    /// Names the keys that do not go together.
    pub fn check(&self) -> Result<(), ConfigError> {
        let error = |text: String| Err(ConfigError(text));
        let Time { tick, allowed_lateness, correction_horizon, .. } = &self.time;
        if tick.0 < Duration::from_millis(1) || tick.0 > Duration::from_secs(60) {
            return error(format!("`time.tick` is {tick}; give 1ms to 60s"));
        }
        if allowed_lateness.0 > correction_horizon.0 {
            return error(format!(
                "`time.allowed_lateness` ({allowed_lateness}) is longer than \
                 `time.correction_horizon` ({correction_horizon}); a bucket settles before it is \
                 final"
            ));
        }
        if !(1..=64).contains(&self.workers.threads) {
            return error(format!("`workers.threads` is {}; give 1 to 64", self.workers.threads));
        }
        if !(1..=256).contains(&self.log.partitions) {
            return error(format!("`log.partitions` is {}; give 1 to 256", self.log.partitions));
        }
        if self.flow.epochs_in_flight_max == 0 {
            return error("`flow.epochs_in_flight_max` is 0; give 1 or more".into());
        }
        let Checkpoint { interval, kept, whole_every, .. } = &self.checkpoint;
        if !interval.0.is_zero() && interval.0 < Duration::from_millis(100) {
            return error(format!(
                "`checkpoint.interval` is {interval}; give 100ms or more, or 0s"
            ));
        }
        if !(KEPT_MIN..=1_000).contains(kept) {
            return error(format!("`checkpoint.kept` is {kept}; give {KEPT_MIN} to 1000"));
        }
        if !(1..=1_000).contains(whole_every) {
            return error(format!("`checkpoint.whole_every` is {whole_every}; give 1 to 1000"));
        }
        let Server { connections_max, head_ms_max, unread_ms_max, .. } = self.server;
        for (key, value, max) in [
            ("connections_max", connections_max as u64, 1_000_000),
            ("head_ms_max", head_ms_max, 3_600_000),
            ("unread_ms_max", unread_ms_max, 3_600_000),
        ] {
            if !(1..=max).contains(&value) {
                return error(format!("`server.{key}` is {value}; give 1 to {max}"));
            }
        }
        if self.auth.tokens.is_empty() && !self.server.listen.ip().is_loopback() {
            return error(format!(
                "`server.listen` is {} and no token is configured; configure `[auth] tokens`, or \
                 listen on 127.0.0.1",
                self.server.listen
            ));
        }
        access::check_tokens(&self.auth.tokens, self.server.listen.ip().is_loopback())
            .map_err(ConfigError)?;
        let Kafka { delivery_timeout, read_timeout, .. } = &self.kafka;
        for (key, value) in [("delivery_timeout", delivery_timeout), ("read_timeout", read_timeout)]
        {
            if !(1..=3_600).contains(&value.0.as_secs()) {
                return error(format!("`kafka.{key}` is {value}; give 1s to 1h"));
            }
        }
        self.check_encoding()?;
        self.check_cluster()?;
        self.check_changelog()?;
        self.queries.check().map_err(|e| ConfigError(e.to_string()))?;
        self.collector().check().map_err(|e| ConfigError(format!("`[limits]`: {e}")))?;
        trueup_operators::rollup::check_ad_rollups(&self.rollups, crate::ads::AD_DIMENSIONS_MAX)
            .map_err(|problem| ConfigError(problem.to_string()))
    }

    /// What decides lateness and finality.
    pub fn lateness(&self) -> Lateness {
        Lateness {
            allowed_lateness_us: self.time.allowed_lateness.us(),
            correction_horizon_us: self.time.correction_horizon.us(),
            future_skew_us_max: self.time.future_skew_max.us(),
        }
    }

    /// How the runtime runs it.
    pub fn engine(&self) -> crate::engine::EngineSettings {
        crate::engine::EngineSettings {
            workers: self.workers.threads,
            lateness: self.lateness(),
            epochs: crate::epochs::EpochSettings {
                tick: self.time.tick.0,
                epoch_bytes_max: self.flow.epoch_bytes_max.0,
                epochs_in_flight_max: self.flow.epochs_in_flight_max,
                cut: crate::epochs::Cut::Live,
            },
            read_back_bytes_max: self.flow.read_back_bytes_max.0 as usize,
            checkpoint: CheckpointSettings {
                interval: self.checkpoint.interval.0,
                kept: self.checkpoint.kept,
                whole_every: self.checkpoint.whole_every,
            },
            partitioned_by_id: match (self.log.kind, self.kafka.encoding, self.kafka.exchange) {
                (LogKind::Embedded, ..) => true,
                (LogKind::Kafka, KafkaEncoding::Batch, KafkaExchange::Auto) => true,
                (LogKind::Kafka, KafkaEncoding::Json, _) => false,
                (LogKind::Kafka, _, KafkaExchange::Always) => false,
            },
        }
    }

    /// What the collector takes, with the skew that lateness is reckoned with.
    pub fn collector(&self) -> trueup_collector::Settings {
        let future_skew_us_max = self.time.future_skew_max.us();
        trueup_collector::Settings { future_skew_us_max, ..self.limits.clone() }
    }

    /// What the views keep.
    pub fn views(&self) -> trueup_sinks::ViewSettings {
        let workers = self.workers.threads;
        trueup_sinks::ViewSettings {
            history_bytes_max: self.flow.history_bytes_max.0 as usize,
            history_us_max: self.flow.history.us(),
            ..trueup_sinks::ViewSettings::new(workers, self.rollups.clone(), self.lateness())
        }
    }

    /// Opens the log to run on it.
    ///
    /// # Errors
    /// When it cannot be opened; `Invalid` when this program has no such log.
    pub fn open_log(&self) -> Result<OpenLog, LogError> {
        match self.log.kind {
            LogKind::Embedded => OpenLog::embedded(&self.data_dir, self.journal()),
            #[cfg(feature = "kafka")]
            LogKind::Kafka => OpenLog::kafka(&self.data_dir, self.kafka()),
            #[cfg(not(feature = "kafka"))]
            LogKind::Kafka => Err(no_kafka()),
        }
    }

    /// Opens the log to read it.
    ///
    /// # Errors
    /// As [`Config::open_log`].
    pub fn open_log_read_only(&self) -> Result<OpenLog, LogError> {
        match self.log.kind {
            LogKind::Embedded => OpenLog::embedded_read_only(&self.data_dir),
            #[cfg(feature = "kafka")]
            LogKind::Kafka => OpenLog::kafka_read_only(&self.data_dir, self.kafka()),
            #[cfg(not(feature = "kafka"))]
            LogKind::Kafka => Err(no_kafka()),
        }
    }

    /// How Kafka is used.
    #[cfg(feature = "kafka")]
    fn kafka(&self) -> crate::open_log::KafkaSource {
        use trueup_kafka::{Create, Encoding, KafkaSettings, SpoolSettings};
        use trueup_operators::{event::SCHEMA_VERSION, remap::REMAP_VERSION};
        let kafka = &self.kafka;
        let create = kafka.create_topics.then_some(Create {
            partitions: self.log.partitions,
            replication_factor: kafka.replication_factor,
            retention_ms: None,
        });
        let settings = KafkaSettings {
            brokers: kafka.brokers.clone(),
            events_topic: kafka.events_topic.clone(),
            verdicts_topic: kafka.verdicts_topic.clone(),
            metadata_topic: kafka.metadata_topic.clone(),
            remap_topic: kafka.remap_topic.clone(),
            encoding: match kafka.encoding {
                KafkaEncoding::Batch => Encoding::Batch,
                KafkaEncoding::Json => Encoding::Json,
            },
            create,
            schema_versions: [SCHEMA_VERSION, 1, 1, REMAP_VERSION],
            message_bytes_max: kafka.message_bytes_max.0 as usize,
            queue_bytes_max: self.log.queue_bytes_max.0,
            delivery_timeout_ms: kafka.delivery_timeout.ms(),
            read_timeout_ms: kafka.read_timeout.ms(),
            ..KafkaSettings::default()
        };
        let spool = SpoolSettings {
            spool_bytes_max: kafka.spool_bytes_max.0,
            fsync: self.journal().fsync,
            ..SpoolSettings::default()
        };
        crate::open_log::KafkaSource { settings, spool }
    }

    /// What the embedded log may forget.
    pub(crate) fn keep(&self) -> crate::retention::Keep {
        crate::retention::Keep {
            age_us_max: self.log.retention.us(),
            listed_us_max: self.log.retention_listed.us(),
            bytes_max: Some(self.log.retention_bytes_max.0).filter(|&bytes| bytes > 0),
        }
    }

    /// How the embedded log is kept.
    pub fn journal(&self) -> trueup_log::Settings {
        trueup_log::Settings {
            partitions: self.log.partitions,
            segment_bytes_max: self.log.segment_bytes_max.0,
            tail_bytes_max: self.log.tail_bytes_max.0 as usize,
            queue_bytes_max: self.log.queue_bytes_max.0,
            fsync: match self.log.fsync {
                Fsync::Batch => trueup_log::Fsync::Batch,
                Fsync::Never => trueup_log::Fsync::Never,
            },
            frames_max: trueup_log::FRAMES_HELD_MAX,
            // With log times half a horizon ahead, what comes within the other half still counts.
            clock_behind_us_max: (self.time.correction_horizon.us() / 2)
                .max(trueup_log::CLOCK_STEP_US_MAX),
        }
    }
}

#[cfg(not(feature = "kafka"))]
pub(crate) fn no_kafka() -> LogError {
    let reason = "`log.kind` is \"kafka\", and this program was built without the feature `kafka`";
    LogError::Invalid { reason: reason.into() }
}

/// Adds the nearest known key to serde's message about an unknown one.
fn explain(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (Some(unknown), true) = (quoted.first(), message.contains("unknown field")) else {
        return message.to_owned();
    };
    let nearest = quoted[1..].iter().min_by_key(|known| edits(unknown, known));
    match nearest {
        Some(known) => format!("{}\ndid you mean `{known}`?", message.trim_end()),
        None => message.to_owned(),
    }
}

/// The Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
