//! What one request, and all of them together, may take.

use serde::{Deserialize, Serialize};

/// The limits of reports, views and subscriptions: `[queries]` in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Buckets that a report may span.
    pub range_buckets_max: u32,
    /// Rows that an answer may have over all its pages.
    pub rows_max: usize,
    /// Rows of a page that does not say how many.
    pub page_rows_default: usize,
    /// Rows of a page.
    pub page_rows_max: usize,
    /// Rows that an answer may look at.
    pub scan_rows_max: u64,
    /// Queries that run at the same time; the others wait.
    pub running_max: usize,
    /// Queries that run or wait; more are turned away.
    pub queries_max: usize,
    /// How long a query waits for its turn.
    pub wait_ms_max: u64,
    /// Subscribers at the same time.
    pub subscribers_max: usize,
    /// Rows of one message to a subscriber.
    pub message_rows_max: usize,
    /// How long a subscriber may leave a message unread before it is cut off.
    pub unread_ms_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            range_buckets_max: 100_000,
            rows_max: 250_000,
            page_rows_default: 10_000,
            page_rows_max: 100_000,
            scan_rows_max: 100_000_000,
            running_max: 2,
            queries_max: 256,
            wait_ms_max: 5_000,
            subscribers_max: 1_000,
            message_rows_max: 2_000,
            unread_ms_max: 30_000,
        }
    }
}
