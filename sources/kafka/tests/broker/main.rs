//! Tests against real brokers, which `.ci/run kafka` starts: `TRUEUP_KAFKA_BROKERS` names them, and
//! `KAFKA_DIR` is where `.ci/kafka` keeps them, so that tests can kill and restart them. Without
//! brokers these tests fail; `cargo test` alone does not build them.
//!
//! Each test has topics of its own, so they run beside each other; those that break brokers run
//! alone.

#![allow(clippy::unwrap_used)]

mod changelog;
mod contract;
mod foreign;
mod json;
mod outage;
mod partitions;
mod spool;
mod world;
