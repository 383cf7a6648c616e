//! What the queries need to know that is not in the views.

use serde_json::Value;
use trueup_operators::problem::Problem;
use trueup_sinks::ReadEvents;

/// The running server as the queries see it. The methods may read files: they are called on
/// threads that may block.
pub trait Runtime: ReadEvents {
    /// What `/v1/status` says: epoch, frontiers, lag, counts, memory, workers.
    fn status(&self) -> Value;

    /// Whether the server has caught up with the log.
    ///
    /// # Errors
    /// A 503 that says what it waits for.
    fn ready(&self) -> Result<(), Problem>;

    /// Begins anew with the figures that a replay offers, while what was shown last is shown.
    ///
    /// # Errors
    /// Why it cannot.
    fn take_up_replay(&self) -> Result<(), Problem>;

    /// Whether what the views hold may be shown: from the first time on that they were as far as
    /// the log was when the server began. Asked for every request, on threads that may not block.
    ///
    /// # Errors
    /// A 503 that says what it waits for.
    fn shows(&self) -> Result<(), Problem>;

    /// The metrics in the text format of Prometheus.
    fn metrics_text(&self) -> String;

    /// The life of one event: received, counted or not, why, and which rows it stands in. `None`
    /// when no such event is known.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn event(&self, id: &str) -> Result<Option<Value>, Problem>;

    /// What the clock says, µs since 1970; for `freshnessSeconds` and nothing else.
    fn now_us(&self) -> i64 {
        jiff::Timestamp::now().as_microsecond()
    }
}
