//! The log of a job, opened: what every log can, and beside it what only its own kind can say of
//! itself. Everything above asks the trait; only status, metrics and tools look at the kind.

use serde_json::{Map, Value, json};
use std::{path::Path, sync::Arc};
use trueup_log::{Counts, Identity, Journal, Opened, system_clock};
use trueup_operators::log::{Log, LogError};

/// A log and whose it is.
pub struct OpenLog {
    log: Arc<dyn Log>,
    identity: Identity,
    kind: Kind,
}

enum Kind {
    Embedded { journal: Arc<Journal>, opened: Opened },
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
        OpenLog {
            log: Arc::clone(&journal) as Arc<dyn Log>,
            identity: *journal.identity(),
            kind: Kind::Embedded { journal, opened },
        }
    }

    /// As a log like any other.
    pub fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Bytes on this machine's disk.
    pub fn held_bytes(&self) -> u64 {
        let Kind::Embedded { journal, .. } = &self.kind;
        journal.bytes_held()
    }

    /// What it has written.
    pub fn counts(&self) -> Counts {
        let Kind::Embedded { journal, .. } = &self.kind;
        journal.counts()
    }

    /// Its parts of the memory, by name.
    pub fn memory(&self) -> Map<String, Value> {
        let Kind::Embedded { journal, .. } = &self.kind;
        let mut parts = Map::new();
        parts.insert("logTailBytes".into(), json!(journal.tail_bytes()));
        parts.insert("logWaitingBytes".into(), json!(journal.waiting_bytes()));
        parts
    }

    /// What `/v1/status` says of it.
    pub fn status(&self) -> Value {
        let Kind::Embedded { opened, .. } = &self.kind;
        let log = self.counts();
        json!({
            "kind": "embedded",
            "bytesHeld": self.held_bytes(),
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
}
