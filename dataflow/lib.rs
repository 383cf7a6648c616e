//! Trueup: a dataflow framework for numbers that true themselves up, on timely and differential
//! dataflow, with ad-event aggregation as the application that it is shaped by.
//!
//! A job is a type that implements [`Job`]: it names its event type, its rollups, and chains
//! [`Source::dedupe`], [`Deduped::sum`], [`Sums::accumulate`] and [`Rollups::views`]. The runtime
//! ([`Engine`]) gives it what it then has without a line of its own: a durable log, epochs that a
//! replay repeats exactly, any number of workers, views that are read at one epoch, subscriptions
//! that resume. `dataflow/topology.rs` is the ad job, `dataflow/examples/orders.rs` one that has
//! nothing to do with ads.
//!
//! ARCHITECTURE.md follows one event through all of it.

pub mod ads;
mod alone;
pub mod batches;
pub mod bench;
pub mod changelog;
pub mod checkpoint;
pub mod cli;
pub mod cluster;
pub mod commands;
pub mod config;
mod connections;
pub mod decided;
pub mod engine;
pub mod epochs;
pub mod flow;
pub mod host;
mod installation;
pub mod ipc;
#[cfg(feature = "kafka")]
mod json_events;
pub mod life;
pub mod member;
mod neighbour;
pub mod node;
pub mod open_log;
pub mod remap;
mod retention;
pub mod rows;
mod run;
mod seat;
mod served;
pub mod server;
mod shuffle;
pub mod topology;
mod unread;
pub mod verify;
mod waiting;
mod words;
mod worker;

pub use checkpoint::CheckpointSettings;
pub use engine::{Engine, EngineSettings, StartError};
pub use epochs::{EpochSettings, Lag};
pub use flow::{Deduped, Job, Output, Rollups, Source, Sums};
pub use host::{Host, HostError, ViewRow};
pub use rows::{Event, PerEvent, Rows};
#[doc(hidden)]
pub use serde;
pub use trueup_operators::{
    change::Key,
    event::EventBatch,
    ledger::{RowDelta, Standing},
    metrics::Group,
    rollup::RollupSpec,
    sum::Contribution,
    time::{EventTime, Granularity, Lateness},
};
pub use worker::WorkerMemory;
