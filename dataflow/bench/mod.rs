//! `trueup bench`: the measurements of BENCHMARKS.md by name. A figure is printed only for a run
//! whose answer equals the reference.

mod client;
mod engine;
mod freshness;
mod http;
#[cfg(feature = "kafka")]
mod kafka;
mod memory_log;
mod meter;
mod reports;
mod schedule;
mod soak;

pub use engine::Query;

use client::Media;

use crate::{config::Span, engine::EngineSettings};
use std::path::PathBuf;

/// What is run unless it is said.
const QUERIES: [Query; 3] = [Query::Q1, Query::Q1Three, Query::Q1Plus];

/// What is measured, and on how much.
#[derive(Clone, Debug, clap::Args)]
pub struct Bench {
    /// Events of the stream, on the engine alone and from Kafka.
    #[arg(long, env = "TRUEUP_EVENTS", default_value_t = 10_000_000)]
    pub events: u64,
    /// Events of the stream, over HTTP.
    #[arg(long, env = "TRUEUP_HTTP_EVENTS", default_value_t = 4_000_000)]
    pub http_events: u64,
    /// Worker threads.
    #[arg(long, env = "TRUEUP_WORKERS", default_value_t = 2)]
    pub workers: usize,
    /// Partitions of the log.
    #[arg(long, env = "TRUEUP_PARTITIONS", default_value_t = 4)]
    pub partitions: u16,
    /// Events of an epoch, on the engine alone and from Kafka.
    #[arg(long, env = "TRUEUP_EPOCH_EVENTS", default_value_t = 100_000)]
    pub epoch_events: u64,
    /// Epochs under way, on the engine alone.
    #[arg(long, env = "TRUEUP_IN_FLIGHT", default_value_t = 2)]
    pub in_flight: u64,
    /// Connections that send, over HTTP.
    #[arg(long, env = "TRUEUP_CLIENTS", default_value_t = 4)]
    pub clients: usize,
    /// Connections that ask, in `reports`, each once a second.
    #[arg(long, env = "TRUEUP_READERS", default_value_t = 100, value_parser = readers)]
    pub readers: usize,
    /// Events a second of `freshness` and `reports`.
    #[arg(long, env = "TRUEUP_RATE", default_value_t = 400_000)]
    pub rate: u64,
    /// How long `freshness`, `reports` and `soak` run.
    #[arg(long, env = "TRUEUP_SECONDS", default_value_t = 30)]
    pub seconds: u64,
    /// Runs that count, after one that does not.
    #[arg(long, env = "TRUEUP_RUNS", default_value_t = 3)]
    pub runs: usize,
    /// What is run.
    #[arg(long, env = "TRUEUP_QUERY", value_enum, default_values_t = QUERIES)]
    pub query: Vec<Query>,
    /// Where servers keep their logs; the system's directory for temporary files if not given.
    #[arg(long, env = "TRUEUP_SCRATCH")]
    pub scratch: Option<PathBuf>,
    /// Brokers that `kafka` reads from.
    #[arg(
        long,
        env = "TRUEUP_BROKERS",
        value_name = "HOST:PORT,…",
        required_if_eq("name", "kafka")
    )]
    pub brokers: Option<String>,
    /// What a message of the topic is.
    #[arg(long, env = "TRUEUP_ENCODING", value_enum, default_value_t = Encoding::Json)]
    pub encoding: Encoding,
    /// The topic that `kafka` reads, filled if it is not there; named after its content if not
    /// given.
    #[arg(long, env = "TRUEUP_TOPIC")]
    pub topic: Option<String>,
    /// How often the state is written down, from Kafka (never if not given) and in `soak` (30s).
    #[arg(long, env = "TRUEUP_CHECKPOINT_INTERVAL", value_name = "DURATION")]
    pub checkpoint_interval: Option<Span>,
}

/// What a message of the topic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Encoding {
    /// One event, as JSON.
    Json,
    /// A batch of events as an Arrow IPC stream.
    Batch,
}

#[cfg(feature = "kafka")]
impl Encoding {
    /// Its name in tables.
    fn name(self) -> &'static str {
        match self {
            Encoding::Json => "json",
            Encoding::Batch => "batch",
        }
    }
}

impl Bench {
    fn engine(&self) -> EngineSettings {
        let mut settings = EngineSettings { workers: self.workers, ..EngineSettings::default() };
        settings.epochs.epochs_in_flight_max = self.in_flight;
        settings.epochs.cut = crate::epochs::Cut::Replay { upto: None };
        settings
    }

    /// Runs the queries on the engine alone; their figures as JSON.
    ///
    /// # Errors
    /// When an answer is wrong or a run does not end.
    pub fn run_engine(&self) -> Result<Vec<serde_json::Value>, String> {
        self.query.iter().map(|&query| engine::run(self, query)).collect()
    }

    /// Runs the queries over HTTP: plain, gzipped, and as Arrow.
    ///
    /// # Errors
    /// When an answer is wrong or a run does not end.
    pub fn run_http(&self) -> Result<Vec<serde_json::Value>, String> {
        let media = [Media::Json, Media::GzippedJson, Media::Arrow];
        let runs = self.query.iter().flat_map(|&query| media.map(|media| (query, media)));
        runs.map(|(query, media)| http::run(self, query, media)).collect()
    }

    /// Runs the queries at a fixed rate.
    ///
    /// # Errors
    /// When a run does not end.
    pub fn run_freshness(&self) -> Result<Vec<serde_json::Value>, String> {
        self.query.iter().map(|&query| freshness::run(self, query)).collect()
    }

    /// Asks for reports while events come.
    ///
    /// # Errors
    /// When a run does not end, or a report is refused.
    pub fn run_reports(&self) -> Result<Vec<serde_json::Value>, String> {
        self.query.iter().map(|&query| reports::run(self, query)).collect()
    }

    /// Runs the queries on a topic of Kafka.
    ///
    /// # Errors
    /// When the topic cannot serve, an answer is wrong, a run does not end, or this program has no
    /// Kafka.
    pub fn run_kafka(&self) -> Result<Vec<serde_json::Value>, String> {
        #[cfg(feature = "kafka")]
        return self.query.iter().map(|&query| kafka::run(self, query)).collect();
        #[cfg(not(feature = "kafka"))]
        Err("this program was built without the feature `kafka`".into())
    }

    /// Loads a server as much as it takes, and watches its memory.
    ///
    /// # Errors
    /// When the server ends, or an event has no fate.
    pub fn run_soak(&self) -> Result<Vec<serde_json::Value>, String> {
        soak::run(self).map(|figures| vec![figures])
    }
}

fn readers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(readers @ 1..=1_000) => Ok(readers),
        _ => Err("1 to 1000 readers can ask".into()),
    }
}
