//! A server whose log is Kafka, against real brokers: what holds on the embedded log holds here,
//! and when the brokers are away as well. `.ci/run kafka` starts brokers and says where they are
//! (`TRUEUP_KAFKA_BROKERS`, `KAFKA_DIR`); without them these tests fail.
//!
//! Randomised tests print their seed; `TRUEUP_SEED` repeats a run. `TRUEUP_IT_EVENTS`,
//! `TRUEUP_IT_KILLS`, `TRUEUP_IT_AWAY_S` and `TRUEUP_IT_CHAOS_S` make them larger.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(dead_code, reason = "what the end-to-end tests share is not all needed here")]

#[path = "../it/client.rs"]
mod client;
#[path = "../it/dear.rs"]
mod dear;
#[path = "../it/mesh/proxy.rs"]
mod proxy;
#[path = "../it/seed.rs"]
mod seed;
#[path = "../it/server.rs"]
mod server;
#[path = "../it/sse.rs"]
mod sse;
#[path = "../it/storm.rs"]
mod storm;
#[path = "../it/traffic.rs"]
mod traffic;

mod away;
mod backlog;
mod brokers;
mod changelog;
mod chaos;
mod cluster;
mod doctor;
mod fleet;
mod foreign;
mod metadata;
mod restated;
mod strays;
mod waiting;
