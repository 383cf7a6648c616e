//! The collector as its clients see it: requests through the real router, into a log in memory.

#![allow(clippy::unwrap_used)]

mod ads1;
mod arrow;
mod bounds;
mod collect;
mod counters;
mod fuzz;
mod http;
mod memory_log;
mod messages;
mod metadata;
mod oracle;
mod pixels;
mod random;
mod rows;
mod rules;
mod shared;
mod verdicts;
