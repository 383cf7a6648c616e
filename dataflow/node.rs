//! One server process: the host of the ad job, the collector in front of it, and what the queries
//! ask of both. It answers what is not in the views: status, readiness, metrics, the life of one
//! event, and whether more events may come.

mod changelog;
mod checkpoints;
mod cluster;
mod freshness;
mod search;

use crate::{
    ads::AD_DIMENSIONS_MAX,
    changelog::Publisher,
    config::Config,
    epochs::Lag,
    host::{Host, PATIENCE},
    life::Lives,
    retention::Shortening,
    topology::AdJob,
};
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use trueup_collector::{Collector, Logs, Pressure};
use trueup_operators::{
    access::Access,
    change::Counts,
    event::{Fate, Position},
    hash::Domain,
    ledger::Standing,
    log::{Log, LogError, Topic},
    problem::Problem,
    symbols::OTHER_TEXT,
    time::{Bucket, EventTime, Granularity, LogTime, format_rfc3339, parse_rfc3339},
};
use trueup_queries::Runtime;
use trueup_sinks::{Filter, ReadEvents};

use cluster::Elsewhere;
use freshness::Freshness;
use search::Found;

/// How often it is looked at.
const FRESHNESS_EVERY: Duration = Duration::from_millis(50);
/// Every which look counts what the views take.
const WEIGHED_EVERY: u64 = 20;
/// Every which look tells Kafka's lag tools how far the views are.
const OFFSETS_EVERY: u64 = 20;
/// Every which look deletes what the log need not hold any more.
const SHORTENED_EVERY: u64 = 200;

/// A running server without its sockets.
pub struct Node {
    pub(crate) host: Host,
    pub(crate) collector: std::sync::OnceLock<Collector>,
    config: Config,
    lives: Lives,
    metrics: PrometheusHandle,
    freshness: Mutex<Freshness>,
    started: Instant,
    recovery: Mutex<Option<Duration>>,
    draining: AtomicBool,
    /// What the views take, as last looked at: counting it visits every bucket.
    views_bytes: AtomicU64,
    /// What the workers of the fullest other process take.
    elsewhere: Elsewhere,
    /// None when no changelog is published.
    changelog: Option<Publisher>,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The log or the engine.
    #[error(transparent)]
    Host(#[from] crate::host::HostError),
    /// The collector.
    #[error(transparent)]
    Collector(#[from] trueup_collector::StartError),
    /// The changelog's thread.
    #[error("the changelog cannot be published: {0}")]
    Changelog(std::io::Error),
    /// The process has another recorder of metrics.
    #[error("metrics cannot be recorded: {0}")]
    Metrics(String),
}

impl NodeError {
    /// Whether other settings would help.
    pub fn is_wrong_use(&self) -> bool {
        use crate::{
            checkpoint::{LoadError, store::StoreError},
            cluster::ClusterError,
            engine::StartError,
            host::HostError,
        };
        match self {
            NodeError::Host(HostError::Store(StoreError::Unreachable { .. })) => false,
            NodeError::Host(HostError::Log(error) | HostError::Start(StartError::Log(error))) => {
                matches!(error, LogError::Invalid { .. })
            }
            NodeError::Host(
                HostError::Start(
                    StartError::Settings(_)
                    | StartError::Load(LoadError::Foreign { .. } | LoadError::Nothing { .. }),
                )
                | HostError::Store(_)
                | HostError::Own(_)
                | HostError::Cluster(ClusterError::Settings(_))
                | HostError::Decided(_)
                | HostError::Rollups(_),
            )
            | NodeError::Collector(_) => true,
            NodeError::Host(_) | NodeError::Changelog(_) | NodeError::Metrics(_) => false,
        }
    }
}

impl Node {
    /// Opens the data directory and starts everything but the sockets. `log_is_open` is called
    /// before checkpoints are looked at.
    ///
    /// # Errors
    /// When the directory, the log or a setting cannot be used.
    pub fn open(
        config: Config,
        access: Arc<Access>,
        log_is_open: impl FnOnce(),
    ) -> Result<Arc<Node>, NodeError> {
        let (metrics, started) = (recorder()?, Instant::now());
        let job = AdJob { rollups: config.rollups.clone() };
        let host = Host::configured_telling::<AdJob, AD_DIMENSIONS_MAX>(&config, job, log_is_open)?;
        let log = Arc::clone(host.log().log());
        let key = host.key();
        let settings = config.collector();
        let changelog = changelog::start(&config, &host)?;
        let node = Arc::new(Node {
            lives: Lives::new(Arc::clone(&log)),
            host,
            collector: std::sync::OnceLock::new(),
            config,
            metrics,
            freshness: Mutex::new(Freshness::new()),
            started,
            recovery: Mutex::new(None),
            draining: AtomicBool::new(false),
            views_bytes: AtomicU64::new(0),
            elsewhere: Elsewhere::default(),
            changelog,
        });
        let pressure = Arc::new(Behind(Arc::downgrade(&node)));
        let clock = Arc::new(|| jiff::Timestamp::now().as_microsecond());
        let logs = Logs {
            intake: Arc::clone(node.host.log().intake()),
            answering: Arc::clone(node.host.log().answering()),
        };
        let collector = Collector::new(logs, key, access, settings, pressure, clock)?;
        if node.collector.set(collector).is_err() {
            unreachable!("the node was made above");
        }
        Ok(node)
    }

    /// The collector, there since [`Node::open`] returned.
    pub fn collector(&self) -> &Collector {
        self.collector.get().expect("set before `open` returned the node")
    }

    /// Watches freshness and faults until the node drains; returns the fault, if there is one.
    pub fn watch(&self) -> Option<String> {
        let mut shortening = Shortening::new(self.config.lateness(), self.config.keep());
        for look in 0_u64.. {
            if self.draining.load(Ordering::Acquire) {
                break;
            }
            if look.is_multiple_of(WEIGHED_EVERY) {
                let memory = self.host.tables().memory();
                let bytes = memory.rows_bytes + memory.index_bytes + memory.history_bytes;
                self.views_bytes.store((bytes + memory.incidents_bytes) as u64, Ordering::Relaxed);
                self.elsewhere.look(&self.host);
            }
            if look.is_multiple_of(OFFSETS_EVERY) {
                self.publish_offsets();
            }
            if look.is_multiple_of(SHORTENED_EVERY) {
                self.shorten(&mut shortening);
            }
            if let Some(fault) = self.host.fault() {
                return Some(fault);
            }
            self.metrics.run_upkeep();
            self.look();
            std::thread::sleep(FRESHNESS_EVERY);
        }
        None
    }

    fn look(&self) {
        let lag = self.host.engine().lag();
        let mut recovery = self.recovery.lock();
        if has_caught_up(&lag) && recovery.is_none() {
            *recovery = Some(self.started.elapsed());
            tracing::info!(
                epoch = lag.visible,
                seconds = self.started.elapsed().as_secs_f64(),
                "caught up"
            );
        }
        drop(recovery);
        if let Some(at) = self.host.tables().visible() {
            self.freshness.lock().record(self.now_us() - at.frontier.0);
        }
    }

    /// Takes nothing more, and makes everything that was taken visible.
    ///
    /// # Errors
    /// Why not everything could be shown; it is in the log nevertheless.
    pub fn drain(&self) -> Result<(), String> {
        self.draining.store(true, Ordering::Release);
        let drained = self.show_all();
        let between = self.host.is_between();
        self.host.leave();
        match drained {
            // Another process has left before, or a replay is being taken up: the next run shows
            // the rest.
            Err(_) if between && self.host.fault().is_none() => {
                self.stop_changelog();
                Ok(())
            }
            drained => drained,
        }
    }

    fn show_all(&self) -> Result<(), String> {
        if !self.host.engine().lag().caught_up {
            // What is in the log is shown by the next start, from the beginning as this one.
            return Ok(());
        }
        // Of this generation: the others may have left, and nobody waits for the next one.
        let engine = self.host.engine();
        // What others left in the log for days is not waited for: the next start goes on there.
        match engine.has_more() {
            true => engine.catch_up(PATIENCE)?,
            false => engine.settle(PATIENCE)?,
        };
        if let Err(error) = self.host.checkpoint() {
            tracing::warn!(%error, "the last checkpoint was not taken; the next start reads on");
        }
        // Last, so that it has the checkpoint's epoch: the next start goes on there.
        self.stop_changelog();
        Ok(())
    }

    /// Whether the state that grows with what is sent may grow.
    fn has_room(&self) -> Result<(), Problem> {
        self.host.log().has_room()?;
        let (symbols_bytes, symbols_bytes_max) =
            (self.host.symbols().bytes() as u64, self.config.flow.symbols_bytes_max.0);
        let workers = self.host.engine().memory();
        let of_workers: usize = workers.iter().map(crate::WorkerMemory::bytes).sum();
        let of_workers = self.elsewhere.bytes().max(of_workers as u64);
        let state_bytes = of_workers + self.views_bytes.load(Ordering::Relaxed);
        let state_bytes_max = self.config.flow.state_bytes_max.0;
        let full = if symbols_bytes >= symbols_bytes_max {
            format!(
                "the texts of dimensions take {symbols_bytes} bytes; `flow.symbols_bytes_max` is \
                 {symbols_bytes_max}"
            )
        } else if self.elsewhere.is_nearly_full() || workers.iter().any(|w| w.ledger_nearly_full) {
            "the ledger holds seven eighths of the events or verdicts that it can".to_owned()
        } else if state_bytes >= state_bytes_max {
            format!(
                "ledger, rows and views take {state_bytes} bytes; `flow.state_bytes_max` is \
                 {state_bytes_max}"
            )
        } else {
            return Ok(());
        };
        Err(Problem::new(
            503,
            "state_full",
            "the server can remember no more",
            full,
            "send again later: what is past the horizon is forgotten; else an operator raises the \
             limit and restarts",
        )
        .retry_after(60))
    }

    fn log(&self) -> &dyn Log {
        &**self.host.log().log()
    }

    fn counts(&self) -> Value {
        // The views first: what arrives meanwhile is pending, never missing.
        let (at, counts) = self.host.tables().counts().ok().unzip();
        let counts: Counts = counts.unwrap_or_default();
        let ends = self.log().ends(Topic::Events);
        let appended: u64 = ends.iter().map(|end| end.records).sum();
        let decided: u64 = counts.fates.iter().sum();
        // A log that others append to only estimates how many records it has; what the views have
        // decided is certain, and if they have seen all of it there is nothing else.
        let shown = self.host.engine().epochs().visible_row();
        let is_older = at.is_none_or(|at| at.epoch < shown.epoch);
        let behind = is_older
            || ends.iter().enumerate().any(|(partition, end)| {
                shown.upto(Topic::Events, partition as u16).offset < end.offset
            });
        let accepted = match self.log().is_shared() && !behind {
            true => decided,
            false => appended.max(decided),
        };
        let rejected = self.collector().rejected();
        let of = |fate: Fate| counts.fates[fate as usize];
        json!({
            "received": accepted + rejected,
            "accepted": accepted,
            "rejected": rejected,
            "counted": of(Fate::Counted),
            "duplicate": of(Fate::Duplicate),
            "conflict": of(Fate::Conflict),
            "quarantined": of(Fate::Quarantined),
            "tooLate": of(Fate::TooLate),
            "pending": accepted.saturating_sub(decided),
            "late": counts.late,
            "verdicts": counts.verdicts,
            "retractions": counts.retractions,
            "verdictsTooLate": counts.verdicts_too_late,
            "arithmeticErrors": counts.arithmetic_errors,
            "folded": counts.folded,
            "asOfEpoch": at.map_or(0, |at| at.epoch),
        })
    }

    fn partitions(&self) -> Value {
        let shown = &self.host.engine().epochs().visible_row();
        let of = |topic: Topic| {
            let ends = self.log().ends(topic);
            let first = |partition| self.log().first(topic, partition);
            ends.into_iter()
                .enumerate()
                .map(move |(partition, end)| {
                    let visible = shown.upto(topic, partition as u16).offset;
                    json!({
                        "topic": topic.name(),
                        "partition": partition,
                        "firstOffset": first(partition as u16),
                        "endOffset": end.offset,
                        "visibleOffset": visible,
                        "lagFrames": end.offset - visible.min(end.offset),
                        "records": end.records,
                        "bytes": end.bytes,
                        "completeTo": format_rfc3339(end.complete_to.0),
                    })
                })
                .collect::<Vec<_>>()
        };
        Value::Array([Topic::Events, Topic::Verdicts].into_iter().flat_map(of).collect())
    }

    fn memory(&self) -> Value {
        let workers = self.host.engine().memory();
        let sum = |of: fn(&crate::WorkerMemory) -> usize| workers.iter().map(of).sum::<usize>();
        let views = self.host.tables().memory();
        let (ledger_bytes, ledger_events) = (sum(|m| m.ledger_bytes), sum(|m| m.ledger_events));
        let mut memory = json!({
            "ledgerBytes": ledger_bytes,
            "ledgerEvents": ledger_events,
            "ledgerBytesPerEvent": ledger_bytes as f64 / ledger_events.max(1) as f64,
            "accumulatorRows": sum(|m| m.rows),
            "accumulatorBytes": sum(|m| m.rows_bytes),
            "viewRows": views.rows,
            "viewBytes": views.rows_bytes,
            "viewIndexBytes": views.index_bytes,
            "historyBytes": views.history_bytes,
            "incidentsBytes": views.incidents_bytes,
            "symbols": self.host.symbols().len(),
            "symbolsBytes": self.host.symbols().bytes(),
        });
        for (part, bytes) in self.host.log().memory() {
            memory[part] = bytes;
        }
        memory
    }

    /// The view rows that an event stands in: those of its dimensions, or of `(other)` where its
    /// bucket had no room for them.
    fn rows_of(&self, event: &serde_json::Map<String, Value>) -> Vec<Value> {
        let text = |name: &str| event.get(name).and_then(Value::as_str);
        let Some(at) = text("occurredAt").and_then(parse_rfc3339).map(EventTime) else {
            return Vec::new();
        };
        let mut rows = Vec::new();
        for rollup in &self.config.rollups {
            for &granularity in &rollup.granularities {
                let start = Granularity::start(granularity, granularity.bucket(at));
                let mut row = serde_json::Map::new();
                row.insert("view".into(), json!(rollup.view_name(granularity)));
                row.insert("bucketStart".into(), json!(format_rfc3339(start.0)));
                let texts = rollup.dimensions.iter().map(|d| text(d).unwrap_or_default());
                let own: Vec<String> = texts.map(str::to_owned).collect();
                // The first of several dimensions stays.
                let mut folded = vec![OTHER_TEXT.to_owned(); own.len()];
                if let ([first, _, ..], [of, ..]) = (&own[..], &mut folded[..]) {
                    of.clone_from(first);
                }
                let bucket = granularity.bucket(at);
                let view = rollup.view_name(granularity);
                let key = match self.has_row(&view, bucket, &own) {
                    false if self.has_row(&view, bucket, &folded) => folded,
                    _ => own,
                };
                for (dimension, text) in rollup.dimensions.iter().zip(key) {
                    let text = Some(text).filter(|text| !text.is_empty());
                    row.insert(dimension.clone(), json!(text));
                }
                rows.push(Value::Object(row));
            }
        }
        rows
    }

    /// Whether a view shows a row with these dimensions now.
    fn has_row(&self, view: &str, bucket: Bucket, texts: &[String]) -> bool {
        let tables = self.host.tables();
        let Some(view) = tables.catalog().view(view) else { return false };
        let filter = Filter {
            dimensions: texts.iter().cloned().enumerate().collect(),
            buckets: Some(bucket..Bucket(bucket.0 + 1)),
            ..Filter::default()
        };
        let mut from = None;
        // A page may be empty and still have a next one.
        while let Ok(page) = tables.page(view.id, &filter, None, from, 1) {
            if page.rows.rows().next().is_some() {
                return true;
            }
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        false
    }
}

/// The process's recorder of metrics, installed once: a process may host one node after another.
fn recorder() -> Result<PrometheusHandle, NodeError> {
    static RECORDER: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut recorder = RECORDER.lock();
    if recorder.is_none() {
        let builder = metrics_exporter_prometheus::PrometheusBuilder::new();
        *recorder =
            Some(builder.install_recorder().map_err(|e| NodeError::Metrics(e.to_string()))?);
    }
    recorder.clone().ok_or_else(|| NodeError::Metrics("no recorder".into()))
}

/// The collector's view of the node: how far behind the dataflow is.
struct Behind(std::sync::Weak<Node>);

impl Pressure for Behind {
    fn check(&self) -> Result<(), Problem> {
        let Some(node) = self.0.upgrade() else { return Ok(()) };
        if node.draining.load(Ordering::Acquire) {
            return Err(Problem::new(
                503,
                "draining",
                "the server is stopping",
                "the server takes no more events because it was asked to stop",
                "send to another server, or again after the restart",
            )
            .retry_after(5));
        }
        let lag = node.host.engine().lag();
        let flow = &node.config.flow;
        let epochs = lag.closed - lag.visible.min(lag.closed);
        let over_epochs = lag.caught_up && epochs > flow.lag_epochs_max;
        if lag.bytes <= flow.lag_bytes_max.0 && !over_epochs {
            return node.has_room();
        }
        Err(Problem::new(
            429,
            "dataflow_behind",
            "the views are too far behind",
            format!(
                "the views are {} bytes and {epochs} epochs behind the log; \
                 the limits are {} and {}",
                lag.bytes, flow.lag_bytes_max.0, flow.lag_epochs_max
            ),
            "send the same batch again later; nothing of it was taken",
        )
        .retry_after(1))
    }
}

impl ReadEvents for Node {
    fn event_json(&self, position: Position) -> Result<Value, String> {
        self.lives.shown(position).map(Value::Object)
    }
}

impl Runtime for Node {
    fn status(&self) -> Value {
        let lag = self.host.engine().lag();
        let at = self.host.tables().visible();
        let time = |time: Option<LogTime>| time.map(|t| format_rfc3339(t.0));
        let age_s = at.map(|at| (self.now_us() - at.frontier.0).max(0) as f64 / 1e6);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "installation": self.host.log().identity().installation_hex(),
            "epoch": at.map_or(lag.visible, |at| at.epoch),
            "closedEpoch": lag.closed,
            "caughtUp": lag.caught_up,
            "fault": self.host.fault(),
            "logTime": time(at.map(|at| at.frontier)),
            "freshnessSeconds": age_s,
            "freshness": self.freshness.lock().told(),
            "lag": { "epochs": lag.closed - lag.visible.min(lag.closed), "bytes": lag.bytes },
            "partitions": self.partitions(),
            "counts": self.counts(),
            "memory": self.memory(),
            "workers": self.config.workers.threads,
            "cluster": self.host.membership(),
            "uptimeSeconds": self.started.elapsed().as_secs_f64(),
            "recovery": self.recovery(),
            "checkpoint": self.checkpoint(),
            "changelog": self.changelog(),
            "replay": { "shown": self.host.replayed(), "refused": self.host.refused() },
            "recoverySeconds": self.recovery.lock().map(|r| r.as_secs_f64()),
            "log": self.host.log().status(),
        })
    }

    fn ready(&self) -> Result<(), Problem> {
        if let Some(fault) = self.host.fault() {
            return Err(wait("fault", fault));
        }
        if self.draining.load(Ordering::Acquire) {
            return Err(wait("draining", "the server is stopping".into()));
        }
        self.shows()
    }

    fn shows(&self) -> Result<(), Problem> {
        // What was shown before a generation ended is shown until the next one is as far.
        if self.recovery.lock().is_some() {
            return Ok(());
        }
        let lag = self.host.engine().lag();
        match has_caught_up(&lag) {
            true => Ok(()),
            false => {
                let detail = format!("epoch {} of {} is visible", lag.visible, lag.closed);
                Err(wait("catching_up", detail))
            }
        }
    }

    fn take_up_replay(&self) -> Result<(), Problem> {
        self.host.take_up().map_err(|error| {
            Problem::new(
                409,
                "replay_not_possible",
                "no replay can be taken up",
                error.to_string(),
                "see `checkpoint` and `cluster` in `/v1/status`",
            )
        })
    }

    fn metrics_text(&self) -> String {
        gauges(self);
        self.metrics.render()
    }

    fn event(&self, id: &str) -> Result<Option<Value>, Problem> {
        let hash = self.host.key().hash(Domain::Event, id.as_bytes());
        let as_of = self.host.engine().lag().visible;
        let Some(found) = self.find(hash)? else { return Ok(None) };
        let Found { position, entry, fate, log_time } = found;
        let recorded = self.lives.at(position).map_err(|e| not_now(&e))?;
        let standing = entry.map_or(Standing::Absent, |entry| entry.standing);
        let why = entry.map(|entry| {
            json!({
                "bornInvalid": entry.born_invalid,
                "eventInvalid": entry.event_invalid,
                "impressionInvalid": entry.impression_invalid,
            })
        });
        let rows = match standing {
            Standing::Absent => Vec::new(),
            Standing::Valid | Standing::Invalid => self.rows_of(&recorded.event),
        };
        Ok(Some(json!({
            "eventId": id,
            "received": {
                "logTime": format_rfc3339(log_time.unwrap_or(recorded.log_time).0),
                "partition": position.partition,
                "offset": position.offset,
                "row": position.row,
            },
            "fate": fate.code(),
            "counted": fate == Fate::Counted,
            "standing": match standing {
                Standing::Absent => "absent",
                Standing::Valid => "valid",
                Standing::Invalid => "invalid",
            },
            "why": why,
            "rows": rows,
            "event": recorded.event,
            "asOfEpoch": as_of,
        })))
    }
}

/// The gauges that are read when someone asks; counters are kept where things happen.
fn gauges(node: &Node) {
    let lag = node.host.engine().lag();
    let set = |name: &'static str, value: f64| metrics::gauge!(name).set(value);
    set("trueup_epoch", lag.visible as f64);
    set("trueup_lag_epochs", (lag.closed - lag.visible.min(lag.closed)) as f64);
    set("trueup_lag_bytes", lag.bytes as f64);
    set("trueup_log_held_bytes", node.host.log().held_bytes() as f64);
    if let Some(at) = node.host.tables().visible() {
        set("trueup_freshness_seconds", (node.now_us() - at.frontier.0).max(0) as f64 / 1e6);
    }
    checkpoints::gauges(node);
    changelog::gauges(node);
    if let Value::Object(memory) = node.memory() {
        for (part, value) in memory {
            metrics::gauge!("trueup_memory", "part" => part).set(value.as_f64().unwrap_or(0.0));
        }
    }
    let counts: Counts = node.host.tables().counts().map(|(_, c)| c).unwrap_or_default();
    for fate in Fate::ALL {
        let events = counts.fates[fate as usize];
        metrics::counter!("trueup_events_total", "fate" => fate.code()).absolute(events);
    }
    metrics::counter!("trueup_late_events_total").absolute(counts.late);
    metrics::counter!("trueup_verdicts_total").absolute(counts.verdicts);
    metrics::counter!("trueup_retractions_total").absolute(counts.retractions);
    metrics::counter!("trueup_arithmetic_errors_total").absolute(counts.arithmetic_errors);
    metrics::counter!("trueup_folded_sums_total").absolute(counts.folded);
    metrics::counter!("trueup_log_syncs_total").absolute(node.host.log().counts().syncs);
}

/// Whether what the log held at the start is visible; of an empty log, its first epoch.
fn has_caught_up(lag: &Lag) -> bool {
    lag.caught_up && lag.visible > 0
}

/// What is asked for is there later.
fn wait(code: &'static str, detail: String) -> Problem {
    let hint = "ask again; `/v1/status` says how far it is";
    Problem::new(503, code, "the server is not ready", detail, hint).retry_after(1)
}

fn not_now(reason: &str) -> Problem {
    Problem::new(
        503,
        "event_unreadable",
        "the event cannot be read now",
        reason.to_owned(),
        "ask again; `trueup doctor` checks the log",
    )
    .retry_after(1)
}
