//! The changelog: what changes in all views, published to a topic by epochs, exactly once.
//!
//! A publisher is a thread of its own that follows every table of the views and publishes each step
//! as one transaction (`trueup_kafka::Changelog`, or what stands for it in tests). It holds nothing
//! between two steps but the epoch that the topic is at: a step asks the views for the consolidated
//! difference between that epoch and the newest, be it one epoch away or a thousand. So a broker
//! that is slow or away stops nothing and takes no memory here; the next transaction is only
//! longer.
//!
//! # What is hard
//!
//! The topic and the views fail apart. Whatever was committed counts, whether this process heard so
//! or not, so a run begins with what the topic says of itself (its *upper*), never with what the
//! process remembers. The views reach back only so far: when the topic is further behind than they
//! can tell, or another history than theirs, its rows are read back and compared with the views
//! (`compare.rs`), and the difference is published as any other step.
//!
//! # Messages
//!
//! ```text
//! key    {"view":"audience_minute","row":{"bucketStart":"2026-04-27T15:32:00Z","campaignId":"c1",…}}
//! value  {"epoch":7,"view":"audience_minute","row":{…},"old":{"clicks":1,…} or null,"new":{…} or null}
//!
//! key    {"upper":"trueup"}
//! value  {"upper":8,"logTime":"…","installation":"…","views":"…","writer":"…","partitions":4}
//! ```
//!
//! * A row's key is the same in every epoch. `old` and `new` are its figures, version and state; a
//!   row that is gone has `new` null. What folded has `"folded":true` in its `row`.
//! * `epoch` is the last of those that a message leads over; within a key epochs only ascend. All
//!   messages of a transaction lead to the same epoch, over all views.
//! * The upper is the last message of its transaction: every epoch below it is in the topic.
//!   `logTime` is what the log was complete to at the last of them.
//!
//! # What it promises
//!
//! * Who reads committed messages from the beginning and keeps each key's `new` has the views at
//!   `upper` − 1; who applies −`old` +`new` has them as well. It holds at every commit, over a
//!   kill at any instant, restarts, and another process taking over.
//! * The views forget buckets that have been final for long; the topic does not. A row that merely
//!   leaves memory is not retracted: its last message is what it was, final. (If it was not said to
//!   be final before it left, it is said when it leaves.) At its first start a changelog has what
//!   the views have then.
//! * A row whose figures return to zero is retracted: `new` is null.
//! * One writes. Who takes over fences the other by the name of the changelog, and *claims* the
//!   topic by a transaction that only repeats the upper with its own `writer`. A publisher that
//!   finds itself fenced looks at the last claim: another's means that it is superseded and stops
//!   for good; its own means that the brokers gave up on a transaction, and it opens the topic
//!   again.
//!
//! # What is weaker
//!
//! * When nothing could be published for longer than the views keep final buckets (three days for
//!   minutes), rows that left meanwhile keep the last that was published of them. `status` says of
//!   which time (`missed`).
//! * Rows of a view that is no longer configured stay as they were. The topic forgets none: it
//!   grows with the rows that there ever were, and a comparison reads all of it, once or twice.
//! * A first start, and a comparison, read every view at one epoch within the views' history; where
//!   that is too short they begin anew, and the status says so.

mod compare;
#[cfg(feature = "kafka")]
mod kafka;
mod pairs;
mod run;
mod shape;
#[cfg(test)]
mod tests;

#[cfg(feature = "kafka")]
pub use kafka::topic as kafka_topic;
use parking_lot::Mutex;
use run::Run;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use trueup_operators::{log::LogError, time::Epoch};
use trueup_sinks::Tables;

/// How often a publisher that shall end is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// How a publisher works.
#[derive(Clone, Debug)]
pub struct PublisherSettings {
    /// The least time between two transactions.
    pub interval: Duration,
    /// Whose log the views are of: a topic of another installation's is refused.
    pub installation: String,
}

/// How far a topic is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upper {
    /// The first epoch that is not in it.
    pub epoch: Epoch,
    /// What its writer says besides; none if that cannot be understood.
    pub note: Option<Note>,
}

/// What an upper says of the epochs below it, and of who wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// What the log was complete to at the last epoch in the topic. Epochs of the same number and
    /// another log time are of another history.
    pub log_time: String,
    /// Whose log it is.
    pub installation: String,
    /// A hash of which views there were, and what decides the state of their rows.
    pub views: String,
    /// The run that wrote it.
    pub writer: String,
}

/// A topic that takes transactions of one writer.
pub trait ChangeTopic: Send {
    /// How far it is; none when nothing was ever published.
    fn upper(&self) -> Option<Upper>;

    /// Begins a transaction.
    ///
    /// # Errors
    /// When none can begin.
    fn begin(&mut self) -> Result<(), LogError>;

    /// Writes a message in it.
    ///
    /// # Errors
    /// When the transaction cannot go on.
    fn write(&mut self, key: &str, value: &str) -> Result<(), LogError>;

    /// Ends it: the topic is at `upper`.
    ///
    /// # Errors
    /// When it was not committed, or nobody knows. The topic must be opened again.
    fn commit(&mut self, upper: &Upper) -> Result<(), LogError>;

    /// Drops the transaction under way, if there is one.
    fn abort(&mut self);

    /// Reads all rows' messages that were there before the transaction under way: those of a key in
    /// their order. Called before a transaction as well when it is called within one.
    ///
    /// # Errors
    /// When it cannot be read to its end, or `each` fails.
    fn read(&mut self, each: &mut Visit<'_>) -> Result<(), LogError>;

    /// How far it is by now, also after another process has taken over.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn last_upper(&mut self) -> Result<Option<Upper>, LogError>;

    /// Whether nothing more can be published before it is opened again.
    fn is_fenced(&self) -> bool;
}

/// Is given a message: its key, and its value if that was not deleted.
pub type Visit<'v> = dyn FnMut(&[u8], Option<&[u8]>) -> Result<(), LogError> + 'v;

/// Opens a topic and fences whoever wrote to it before; ends soon once the flag is set.
pub type Open = Box<dyn FnMut(Arc<AtomicBool>) -> Result<Box<dyn ChangeTopic>, LogError> + Send>;

/// What a publisher does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doing {
    /// It opens the topic, or waits until it can.
    #[default]
    Opening,
    /// It waits for the views to be where the topic is.
    Waiting,
    /// It compares the topic with the views.
    Comparing,
    /// It publishes what changes.
    Following,
    /// Another process has taken over, or the topic is of another installation: it has ended.
    Superseded,
    /// It was told to end.
    Stopped,
}

impl Doing {
    /// As the status writes it.
    pub fn name(self) -> &'static str {
        match self {
            Doing::Opening => "opening",
            Doing::Waiting => "waiting",
            Doing::Comparing => "comparing",
            Doing::Following => "following",
            Doing::Superseded => "superseded",
            Doing::Stopped => "stopped",
        }
    }
}

/// How a publisher fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublisherStatus {
    /// What it does.
    pub doing: Doing,
    /// The first epoch that is not in the topic, once that is known.
    pub upper: Option<Epoch>,
    /// The epoch that the topic shows: that before the upper, or a later one that changed nothing.
    pub at: Option<Epoch>,
    /// Why it could not go on last; none once it has.
    pub trouble: Option<String>,
    /// Transactions with rows that this run committed.
    pub transactions: u64,
    /// The messages of rows in them.
    pub rows: u64,
    /// How often the topic was compared with the views.
    pub comparisons: u64,
    /// How often a transaction, or the way to it, failed.
    pub failures: u64,
    /// Of which buckets the topic may not have the last, because they left the views unpublished.
    pub missed: Option<String>,
}

/// What the thread and its owner share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Ends as soon as it can, whatever is under way.
    stop: Arc<AtomicBool>,
    /// Ends when everything that is visible is published.
    finish: AtomicBool,
    status: Mutex<PublisherStatus>,
}

/// A running publisher. Dropping it ends it at once.
pub struct Publisher {
    tables: Arc<dyn Tables>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Starts to publish the views to the topic that `open` opens. Never waits for it: a topic that
    /// cannot be opened is tried again, and the status says why.
    ///
    /// # Errors
    /// When no thread can be started, or the system gives no randomness.
    pub fn start(
        tables: Arc<dyn Tables>,
        settings: PublisherSettings,
        open: Open,
    ) -> io::Result<Publisher> {
        let shared = Arc::new(Shared::default());
        let run = Run::new(Arc::clone(&tables), settings, open, Arc::clone(&shared))?;
        let thread = std::thread::Builder::new().name("changelog".into()).spawn(|| run.run())?;
        Ok(Publisher { tables, shared, thread: Mutex::new(Some(thread)) })
    }

    /// How it fares.
    pub fn status(&self) -> PublisherStatus {
        self.shared.status.lock().clone()
    }

    /// How many epochs the topic is behind the views.
    pub fn lag_epochs(&self) -> u64 {
        let visible = self.tables.visible().map_or(0, |times| times.epoch);
        visible.saturating_sub(self.status().at.unwrap_or(0))
    }

    /// What `/v1/status` says of it.
    pub fn status_json(&self) -> Value {
        let status = self.status();
        json!({
            "doing": status.doing.name(),
            "upper": status.upper,
            "lagEpochs": self.lag_epochs(),
            "trouble": status.trouble,
            "transactions": status.transactions,
            "rows": status.rows,
            "comparisons": status.comparisons,
            "failures": status.failures,
            "missed": status.missed,
        })
    }

    /// Sets the gauges and counters of the process's metrics.
    pub fn measure(&self) {
        let status = self.status();
        metrics::gauge!("trueup_changelog_upper").set(status.upper.unwrap_or(0) as f64);
        metrics::gauge!("trueup_changelog_lag_epochs").set(self.lag_epochs() as f64);
        metrics::counter!("trueup_changelog_transactions_total").absolute(status.transactions);
        metrics::counter!("trueup_changelog_rows_total").absolute(status.rows);
        metrics::counter!("trueup_changelog_failures_total").absolute(status.failures);
    }

    /// Ends it, after what is visible was published if that takes no longer than `patience`. What
    /// is not in the topic by then comes with the next start. Telling it again changes nothing.
    pub fn stop(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut thread = self.thread.lock();
        self.shared.finish.store(true, Ordering::Release);
        let Some(running) = thread.take() else { return };
        while !running.is_finished() && Instant::now() < until && !self.is_in_trouble() {
            std::thread::sleep(LOOK);
        }
        self.shared.stop.store(true, Ordering::Release);
        // Asking a cluster that does not answer may take longer; then the thread ends by itself,
        // and what it began is aborted by whoever opens the topic next.
        let until = Instant::now() + patience.max(Duration::from_secs(1));
        while !running.is_finished() && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        if !running.is_finished() {
            tracing::warn!("the changelog's cluster does not answer; it is left behind");
        } else if running.join().is_err() {
            tracing::error!("the thread that publishes the changelog panicked");
        }
    }

    fn is_in_trouble(&self) -> bool {
        self.shared.status.lock().trouble.is_some()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}
