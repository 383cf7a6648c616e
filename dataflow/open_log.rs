//! The log of a job, opened: what every log can, and beside it what only its own kind can say of
//! itself. Everything above asks the trait; only status, metrics and tools look at the kind.
//!
//! Of Kafka the data directory holds the identity (with the key of the ids), and the spool, where
//! appends go while no broker takes them. The runtime reads and closes epochs in Kafka itself;
//! only who appends events, verdicts and metadata goes by the spool.

use serde_json::{Map, Value, json};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use trueup_log::{
    Counts, FramesHeld, Identity, Journal, Opened, Retention, system_clock, system_watch,
};
use trueup_operators::{
    log::{Log, LogError, Topic},
    problem::Problem,
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
        deleted: Deleted,
    },
    #[cfg(feature = "kafka")]
    Kafka {
        log: Arc<KafkaLog>,
        /// None for who only reads.
        spool: Option<Arc<Spool>>,
    },
}

/// Segments that retention deleted since the start.
#[derive(Debug, Default)]
struct Deleted {
    segments: AtomicU64,
    /// Those of them in which listed events were.
    listed: AtomicU64,
}

/// What a Kafka log is opened with.
#[cfg(feature = "kafka")]
pub struct KafkaSource {
    /// How the cluster is reached and used.
    pub settings: KafkaSettings,
    /// How the spool is kept.
    pub spool: SpoolSettings,
}

impl OpenLog {
    /// The embedded log of a data directory, made if it is not there. Its times are those of the
    /// system's clock as far as they can be believed; while they cannot, appends are refused.
    ///
    /// # Errors
    /// When the directory cannot be opened, another process has it, or the log is damaged.
    pub fn embedded(dir: &Path, settings: trueup_log::Settings) -> Result<OpenLog, LogError> {
        Journal::open_watched(dir, settings, system_clock(), system_watch())
            .map(OpenLog::of_journal)
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
            kind: Kind::Embedded { journal, opened, deleted: Deleted::default() },
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

    /// Why nothing can be appended, to it or to its spool, until this process opens it anew.
    pub fn broken(&self) -> Option<String> {
        self.log.broken().or_else(|| self.intake.broken())
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

    /// Deletes whole segments that the policy lets go and of which nothing is needed: `covered`
    /// gives the offset of a partition below which that is so. How many. Of Kafka's topics, none:
    /// its brokers have a retention of their own. `listed` says that events may be in them that
    /// are still listed.
    ///
    /// # Errors
    /// When a file cannot be deleted.
    pub(crate) fn retain(
        &self,
        policy: Retention,
        listed: bool,
        covered: impl Fn(Topic, u16) -> u64,
    ) -> Result<u64, LogError> {
        match &self.kind {
            Kind::Embedded { journal, deleted, .. } => {
                let segments = journal.retain(policy, covered)?.segments_deleted;
                deleted.segments.fetch_add(segments, Ordering::Relaxed);
                deleted.listed.fetch_add(if listed { segments } else { 0 }, Ordering::Relaxed);
                Ok(segments)
            }
            #[cfg(feature = "kafka")]
            Kind::Kafka { .. } => Ok(0),
        }
    }

    /// Whether it can hold many more frames; a sender is told so before it cannot.
    ///
    /// # Errors
    /// 503, `log_full`.
    pub(crate) fn has_room(&self) -> Result<(), Problem> {
        match &self.kind {
            Kind::Embedded { journal, .. } if journal.is_nearly_full() => {
                let FramesHeld { remap, others } = journal.frames_held();
                let frames_max = journal.frames_max();
                Err(Problem::new(
                    503,
                    "log_full",
                    "the log holds too many frames",
                    format!(
                        "it holds {others} frames of events and the like and {remap} of the remap \
                         topic; of either it takes up to seven eighths of {frames_max}"
                    ),
                    "send again when older segments are gone, and more events in a batch; an \
                     operator shortens `log.retention` or limits `log.retention_bytes_max`",
                )
                .retry_after(60))
            }
            Kind::Embedded { .. } => Ok(()),
            #[cfg(feature = "kafka")]
            Kind::Kafka { .. } => Ok(()),
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
            Kind::Embedded { journal, opened, deleted } => {
                embedded_status(journal, opened, deleted)
            }
            #[cfg(feature = "kafka")]
            Kind::Kafka { log, spool } => kafka_status(log, spool.as_deref()),
        }
    }
}

fn embedded_status(journal: &Journal, opened: &Opened, deleted: &Deleted) -> Value {
    let (log, held) = (journal.counts(), journal.frames_held());
    json!({
        "kind": "embedded",
        "bytesHeld": journal.bytes_held(),
        "framesHeld": held.others,
        "framesHeldOfRemap": held.remap,
        "framesHeldMax": journal.frames_max(),
        "framesAppended": log.frames,
        "bytesAppended": log.bytes,
        "syncs": log.syncs,
        "syncMeanMs": log.sync_us as f64 / 1e3 / log.syncs.max(1) as f64,
        "syncMaxMs": log.sync_us_max as f64 / 1e3,
        "groupsFailed": log.groups_failed,
        "segmentsAtStart": opened.segments,
        "segmentsDeleted": deleted.segments.load(Ordering::Relaxed),
        "segmentsDeletedListed": deleted.listed.load(Ordering::Relaxed),
        "tornBytesCut": opened.torn.as_ref().map(|torn| torn.bytes),
        "clockBehindMs": journal.clock_behind_us() / 1_000,
        "clockBehindAtStartMs": opened.clock_behind_us / 1_000,
        "clockDoubt": journal.clock_doubt(),
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
            "undeliverableFrames": spool.undeliverable_frames,
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
    let KafkaSource { settings, .. } = source;
    let partitions = settings.create.as_ref().map_or(1, |create| create.partitions);
    let identity = Identity::of_directory(dir, partitions)?;
    let json = crate::json_events::AdEvents::new(identity.hash_key);
    let json = Some(Arc::new(json) as Arc<dyn trueup_kafka::JsonEvents>);
    let log = KafkaLog::open(settings, trueup_kafka::system_clock(), json)?;
    Ok((Arc::new(log), identity))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::AtomicI64;
    use trueup_operators::{
        log::{Append, append_and_wait},
        time::LogTime,
    };

    #[test]
    fn senders_are_told_before_the_log_is_full_of_frames() {
        let dir = tempfile::tempdir().unwrap();
        let settings = trueup_log::Settings { frames_max: 8, ..trueup_log::Settings::default() };
        let log = OpenLog::of_journal(Journal::open(dir.path(), settings, system_clock()).unwrap());
        let (topic, payload) = (Topic::Events, vec![1].into());
        let frame = Append { topic, partition: 0, schema_version: 1, records: 1, payload };
        for _ in 0..7 {
            log.has_room().unwrap();
            append_and_wait(&**log.log(), vec![frame.clone()]).unwrap();
        }
        let told = log.has_room().unwrap_err();
        assert_eq!((told.status, told.code), (503, "log_full"));
        assert!(told.detail.contains("7 frames of events"), "{}", told.detail);
        assert_eq!(log.status()["framesHeld"], 7);
        append_and_wait(&**log.log(), vec![frame]).unwrap();
    }

    #[test]
    fn status_tells_how_far_the_clock_is_behind_now() {
        let dir = tempfile::tempdir().unwrap();
        let now_us = Arc::new(AtomicI64::new(90_000_000));
        let told = Arc::clone(&now_us);
        let clock = Arc::new(move || LogTime(told.load(Ordering::SeqCst)));
        let opened = Journal::open(dir.path(), trueup_log::Settings::default(), clock).unwrap();
        let log = OpenLog::of_journal(opened);
        // A promise that was told stands, so the log is at the clock's time.
        assert_eq!(log.log().ends(Topic::Events)[0].complete_to, LogTime(90_000_000));
        assert_eq!(log.status()["clockBehindMs"], 0);
        now_us.store(30_000_000, Ordering::SeqCst);
        assert_eq!(log.status()["clockBehindMs"], 60_000);
        assert_eq!(log.status()["clockBehindAtStartMs"], 0);
        now_us.store(90_000_000, Ordering::SeqCst);
        assert_eq!(log.status()["clockBehindMs"], 0);
    }
}
