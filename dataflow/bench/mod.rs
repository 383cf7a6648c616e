//! `trueup bench`: the measurements of BENCHMARKS.md by name. A figure is printed only for a run
//! whose answer equals the reference.

mod engine;
mod memory_log;
mod meter;

pub use engine::Query;

use crate::engine::EngineSettings;

/// What is measured, and on how much.
#[derive(Clone, Debug, clap::Args)]
pub struct Bench {
    /// Events of the stream.
    #[arg(long, default_value_t = 10_000_000)]
    pub events: u64,
    /// Worker threads.
    #[arg(long, default_value_t = 2)]
    pub workers: usize,
    /// Partitions of the log.
    #[arg(long, default_value_t = 4)]
    pub partitions: u16,
    /// Events of an epoch.
    #[arg(long, default_value_t = 100_000)]
    pub epoch_events: u64,
    /// Epochs under way.
    #[arg(long, default_value_t = 2)]
    pub in_flight: u64,
    /// Runs that count, after one that does not.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// What is run.
    #[arg(long, value_enum, default_values_t = [Query::Q1, Query::Q1Three, Query::Q1Plus])]
    pub query: Vec<Query>,
}

impl Bench {
    fn engine(&self) -> EngineSettings {
        let mut settings = EngineSettings { workers: self.workers, ..EngineSettings::default() };
        settings.epochs.epochs_in_flight_max = self.in_flight;
        settings
    }

    /// Runs the queries on the engine alone; their figures as JSON.
    ///
    /// # Errors
    /// When an answer is wrong or a run does not end.
    pub fn run_engine(&self) -> Result<Vec<serde_json::Value>, String> {
        self.query.iter().map(|&query| engine::run(self, query)).collect()
    }
}
