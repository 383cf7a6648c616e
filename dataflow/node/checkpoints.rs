//! What a node says of its checkpoints, and the space of the log that they let it give back.

use super::Node;
use crate::retention::Shortening;
use serde_json::{Value, json};
use trueup_queries::Runtime;

impl Node {
    /// Deletes what the log need not hold any more.
    pub(super) fn shorten(&self, shortening: &mut Shortening) {
        let engine = self.host.engine();
        let Some(oldest) = engine.checkpoints().and_then(|checkpoints| checkpoints.oldest()) else {
            return;
        };
        // Before the views show anything, they do not know either what they list.
        let (log, tables) = (self.host.log(), self.host.tables());
        if tables.visible().is_none() {
            return;
        }
        let first_listed = tables.first_listed();
        if let Err(error) = shortening.shorten(log, &oldest, first_listed, self.collector()) {
            tracing::warn!(%error, "the log could not be shortened; it is tried again");
        }
    }

    /// What this start began with.
    pub(super) fn recovery(&self) -> Value {
        let loaded = self.host.loaded();
        let loaded = loaded.as_ref();
        let seconds = self.recovery.lock().map(|r| r.as_secs_f64());
        json!({
            "seconds": seconds,
            "loadSeconds": loaded.map(|l| l.took.as_secs_f64()),
            "fromEpoch": loaded.map_or(0, |l| l.epoch),
            "bytesLoaded": loaded.map_or(0, |l| l.bytes),
            "checkpointsPassedOver": self.host.passed_over(),
        })
    }

    /// What is known of the checkpoints of this run; `null`: none are taken.
    pub(super) fn checkpoint(&self) -> Value {
        let engine = self.host.engine();
        let Some(checkpoints) = engine.checkpoints() else { return Value::Null };
        let status = checkpoints.status();
        let last = status.last.as_ref();
        json!({
            "lastEpoch": last.map(|m| m.epoch),
            "generation": checkpoints.generation(),
            "ageSeconds": last.map(|m| (self.now_us() - m.taken_at_us).max(0) as f64 / 1e6),
            "tookMs": last.map(|m| m.took_ms),
            "pauseMs": last.map(|m| m.pause_us as f64 / 1e3),
            "bytesWritten": last.map(|m| m.bytes_written),
            "bytesLive": last.map(|m| m.bytes_live),
            "sections": last.map(|m| m.sections),
            "chain": last.map(|m| m.chain),
            "underWay": status.under_way,
            "published": status.published,
            "failures": status.failed,
            "failure": status.failure,
        })
    }
}

/// The gauges of the last checkpoint.
pub(super) fn gauges(node: &Node) {
    let Value::Object(checkpoint) = node.checkpoint() else { return };
    for (name, key) in [
        ("trueup_checkpoint_epoch", "lastEpoch"),
        ("trueup_checkpoint_age_seconds", "ageSeconds"),
        ("trueup_checkpoint_took_ms", "tookMs"),
        ("trueup_checkpoint_pause_ms", "pauseMs"),
        ("trueup_checkpoint_live_bytes", "bytesLive"),
    ] {
        if let Some(value) = checkpoint.get(key).and_then(Value::as_f64) {
            metrics::gauge!(name).set(value);
        }
    }
}
