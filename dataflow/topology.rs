//! The ad job, whole: the picture of ARCHITECTURE.md in code. It uses nothing that is not public,
//! so any other job can be written the same way (`dataflow/examples/orders.rs` is one).
//!
//! ```text
//! collector ─▶ log ─▶ remap ─▶ ledger ─▶ contributions ─▶ local sum ─▶ exchange ─▶ accumulators ─▶ views
//!                    `source`  `dedupe`           `sum`                `accumulate`             `views`
//! ```

use crate::{
    ads::{AD_DIMENSIONS_MAX, AdBatch, AdContribution},
    flow::{Job, Output, Source},
};
use trueup_operators::{metrics::Metrics, rollup::RollupSpec};

/// Impressions, clicks and conversions, deduplicated, judged, and summed by the configured rollups.
pub struct AdJob {
    /// What is kept; see [`RollupSpec::ad_defaults`].
    pub rollups: Vec<RollupSpec>,
}

impl Job<AD_DIMENSIONS_MAX> for AdJob {
    type Batch = AdBatch;
    type Metrics = Metrics;

    fn rollups(&self) -> Vec<RollupSpec> {
        self.rollups.clone()
    }

    fn topology<'s>(&self, source: Source<'s, AdBatch>) -> Output<'s, AD_DIMENSIONS_MAX, Metrics> {
        source
            .dedupe() // each event id once; verdicts take events out and put them back
            .sum(AdContribution::new(&self.rollups)) // by rollup, key and minute, on each worker
            .accumulate() // at the owner of the key: minute, hour, day; −old +new
            .views() // rows, late events, quarantine; one epoch at a time
    }
}
