//! The log of a job, opened: what every log can, and beside it what only its own kind can say of
//! itself. Everything above asks the trait; only status, metrics and tools look at the kind.
//!
//! Of Kafka the data directory holds the identity (with the key of the ids), and the spool, where
//! appends go while no broker takes them. The runtime reads and closes epochs in Kafka itself;
//! only who appends events, verdicts and metadata goes by the spool.

use serde_json::{Map, Value, json};
use std::{path::Path, sync::Arc};
use trueup_log::{Counts, Identity, Journal, Opened, Retention, system_clock};
use trueup_operators::{
    log::{Log, LogError, Topic},
    remap::RemapRow,
};

#[cfg(feature = "kafka")]
use trueup_kafka::{KafkaLog, KafkaSettings, Spool, SpoolSettings};

/// A log and whose it is.
pub struct OpenLog {
    log: Arc<dyn Log>,
    intake: Arc<dyn Log>,
    answering: Arc<dyn Log>,
    identity: Identity,
    kind: Kind,
}

enum Kind {
    Embedded {
        journal: Arc<Journal>,
        opened: Opened,
    },
    #[cfg(feature = "kafka")]
    Kafka {
        log: Arc<KafkaLog>,
        /// None for who only reads.
        spool: Option<Arc<Spool>>,
    },
}

/// What a Kafka log is opened with.
#[cfg(feature = "kafka")]
pub struct KafkaSource {
    /// How the cluster is reached and used.
    pub settings: KafkaSettings,
    /// How the spool is kept.
    pub spool: SpoolSettings,
    /// How far ahead of its log time an event may claim to have happened, when events are JSON.
    pub future_skew_us_max: i64,
}

impl OpenLog {
    /// The embedded log of a data directory, made if it is not there.
    ///
    /// # Errors
    /// When the directory cannot be opened, another process has it, or the log is damaged.
    pub fn embedded(dir: &Path, settings: trueup_log::Settings) -> Result<OpenLog, LogError> {
        Journal::open(dir, settings, system_clock()).map(OpenLog::of_journal)
    }

    /// The embedded log of a data directory, to be read only, beside a running server or not.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn embedded_read_only(dir: &Path) -> Result<OpenLog, LogError> {
        Journal::open_read_only(dir).map(OpenLog::of_journal)
    }

    fn of_journal((journal, opened): (Journal, Opened)) -> OpenLog {
        let journal = Arc::new(journal);
        let log = Arc::clone(&journal) as Arc<dyn Log>;
        OpenLog {
            intake: Arc::clone(&log),
            answering: Arc::clone(&log),
            log,
            identity: *journal.identity(),
            kind: Kind::Embedded { journal, opened },
        }
    }

    /// A Kafka cluster's topics, with identity and spool in a data directory.
    ///
    /// # Errors
    /// When the cluster does not answer, its topics cannot serve, another process has the spool, or
    /// the directory is damaged.
    #[cfg(feature = "kafka")]
    pub fn kafka(dir: &Path, source: KafkaSource) -> Result<OpenLog, LogError> {
        let folder = dir.join("spool");
        std::fs::create_dir_all(&folder).map_err(|error| LogError::Unavailable {
            reason: format!("{} cannot be made: {error}", folder.display()),
        })?;
        let spool_settings = source.spool;
        let (log, identity) = connect(dir, source)?;
        let spool =
            Spool::open(Arc::clone(&log), &folder, spool_settings, trueup_kafka::system_clock())?;
        let spool = Arc::new(spool);
        Ok(OpenLog {
            log: Arc::clone(&log) as Arc<dyn Log>,
            intake: Arc::clone(&spool) as Arc<dyn Log>,
            answering: spool.spooled_first(),
            identity,
            kind: Kind::Kafka { log, spool: Some(spool) },
        })
    }

    /// The same, to be read only, beside a running server or not.
    ///
    /// # Errors
    /// When the cluster does not answer, or its topics cannot serve.
    #[cfg(feature = "kafka")]
    pub fn kafka_read_only(dir: &Path, mut source: KafkaSource) -> Result<OpenLog, LogError> {
        source.settings.create = None;
        if !dir.join("identity").exists() {
            let reason = format!("{} is no data directory: it has no identity", dir.display());
            return Err(LogError::Invalid { reason });
        }
        let (log, identity) = connect(dir, source)?;
        let shared = Arc::clone(&log) as Arc<dyn Log>;
        Ok(OpenLog {
            log: Arc::clone(&shared),
            intake: Arc::clone(&shared),
            answering: shared,
            identity,
            kind: Kind::Kafka { log, spool: None },
        })
    }

    /// As a log like any other: what the runtime reads, and where it closes epochs.
    pub fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// Where events, verdicts and metadata are appended.
    pub fn intake(&self) -> &Arc<dyn Log> {
        &self.intake
    }

    /// The same for who has to answer whatever happens, like a pixel: durable on this machine
    /// first.
    pub fn answering(&self) -> &Arc<dyn Log> {
        &self.answering
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Bytes on this machine's disk.
    pub fn held_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Embedded { journal, .. } => journal.bytes_held(),
            #[cfg(feature = "kafka")]
            Kind::Kafka { spool, .. } => spool.as_ref().map_or(0, |s| s.status().waiting_bytes),
        }
    }

    /// Deletes whole segments that are older than this, µs of log time, and of which nothing is
    /// needed: `covered` gives the offset of a partition below which that is so. How many. Of
    /// Kafka's topics, none: its brokers have a retention of their own.
    ///
    /// # Errors
    /// When a file cannot be deleted.
    pub(crate) fn retain(
        &self,
        age_us_max: i64,
        covered: impl Fn(Topic, u16) -> u64,
    ) -> Result<u64, LogError> {
        match &self.kind {
            Kind::Embedded { journal, .. } => {
                let policy = Retention { age_us_max: Some(age_us_max), bytes_max: None };
                journal.retain(policy, covered).map(|retained| retained.segments_deleted)
            }
            #[cfg(feature = "kafka")]
            Kind::Kafka { .. } => Ok(0),
        }
    }

    /// Tells lag tools how far a run is: the offsets of a row, as those of a consumer group.
    /// Nothing reads them back. Never waits; while the brokers are away nothing is told. Of the
    /// embedded log there is nothing to tell.
    ///
    /// # Errors
    /// When the group's client cannot be made.
    #[cfg_attr(not(feature = "kafka"), expect(unused_variables, reason = "there is no group"))]
    pub(crate) fn publish_offsets(&self, group: &str, row: &RemapRow) -> Result<(), LogError> {
        match &self.kind {
            Kind::Embedded { .. } => Ok(()),
            #[cfg(feature = "kafka")]
            Kind::Kafka { log, spool } => {
                if group.is_empty() || spool.as_ref().is_some_and(|spool| spool.status().away) {
                    return Ok(());
                }
                let of = |topic: Topic| {
                    let partitions = 0..log.partitions(topic);
                    partitions.map(move |p| (topic, p, row.upto(topic, p).offset))
                };
                let offsets: Vec<_> =
                    [Topic::Events, Topic::Verdicts].into_iter().flat_map(of).collect();
                log.publish_offsets(group, &offsets)
            }
        }
    }

    /// What the embedded log has written; nothing of Kafka.
    pub fn counts(&self) -> Counts {
        match &self.kind {
            Kind::Embedded { journal, .. } => journal.counts(),
            #[cfg(feature = "kafka")]
            Kind::Kafka { .. } => Counts::default(),
        }
    }

    /// Its parts of the memory, by name.
    pub fn memory(&self) -> Map<String, Value> {
        let mut parts = Map::new();
        match &self.kind {
            Kind::Embedded { journal, .. } => {
                parts.insert("logTailBytes".into(), json!(journal.tail_bytes()));
                parts.insert("logWaitingBytes".into(), json!(journal.waiting_bytes()));
            }
            #[cfg(feature = "kafka")]
            Kind::Kafka { log, .. } => {
                parts.insert("logWaitingBytes".into(), json!(log.waiting_bytes()));
            }
        }
        parts
    }

    /// What `/v1/status` says of it.
    pub fn status(&self) -> Value {
        match &self.kind {
            Kind::Embedded { journal, opened } => embedded_status(journal, opened),
            #[cfg(feature = "kafka")]
            Kind::Kafka { log, spool } => kafka_status(log, spool.as_deref()),
        }
    }
}

fn embedded_status(journal: &Journal, opened: &Opened) -> Value {
    let log = journal.counts();
    json!({
        "kind": "embedded",
        "bytesHeld": journal.bytes_held(),
        "framesAppended": log.frames,
        "bytesAppended": log.bytes,
        "syncs": log.syncs,
        "syncMeanMs": log.sync_us as f64 / 1e3 / log.syncs.max(1) as f64,
        "syncMaxMs": log.sync_us_max as f64 / 1e3,
        "groupsFailed": log.groups_failed,
        "segmentsAtStart": opened.segments,
        "tornBytesCut": opened.torn.as_ref().map(|torn| torn.bytes),
        "clockBehindMs": opened.clock_behind_us / 1_000,
    })
}

#[cfg(feature = "kafka")]
fn kafka_status(log: &KafkaLog, spool: Option<&Spool>) -> Value {
    use trueup_operators::time::format_rfc3339;
    let time = |time: Option<trueup_operators::time::LogTime>| time.map(|t| format_rfc3339(t.0));
    let spool = spool.map(|spool| {
        let spool = spool.status();
        json!({
            "away": spool.away,
            "awaySince": time(spool.away_since),
            "waitingFrames": spool.waiting_frames,
            "waitingBytes": spool.waiting_bytes,
            "waitingSince": time(spool.waiting_since),
            "drainedFrames": spool.drained_frames,
            "trouble": spool.trouble,
        })
    });
    json!({
        "kind": "kafka",
        "brokers": log.settings().brokers,
        "waitingBytes": log.waiting_bytes(),
        "spool": spool,
    })
}

#[cfg(feature = "kafka")]
fn connect(dir: &Path, source: KafkaSource) -> Result<(Arc<KafkaLog>, Identity), LogError> {
    let KafkaSource { settings, future_skew_us_max, .. } = source;
    let partitions = settings.create.as_ref().map_or(1, |create| create.partitions);
    let identity = Identity::of_directory(dir, partitions)?;
    let json = crate::json_events::AdEvents::new(identity.hash_key, future_skew_us_max);
    let json = Some(Arc::new(json) as Arc<dyn trueup_kafka::JsonEvents>);
    let log = KafkaLog::open(settings, trueup_kafka::system_clock(), json)?;
    Ok((Arc::new(log), identity))
}
