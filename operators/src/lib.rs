//! What Trueup computes: event and log time, money, metrics as a group, the ledger, the two-stage
//! sums, and the traits of a log and of an event. This is the lowest crate, so it also holds the
//! vocabulary that all others share.
//!
//! Nothing here does I/O or looks at a clock or at randomness. Time comes from the log, and what
//! the log holds decides every result (promise P4 in ARCHITECTURE.md).

pub mod access;
pub mod accumulate;
pub mod change;
pub mod commit;
pub mod event;
pub mod feed;
pub mod hash;
pub mod ledger;
pub mod log;
pub mod metrics;
pub mod money;
pub mod prefetch;
pub mod problem;
pub mod remap;
pub mod rollup;
pub mod room;
pub mod section;
pub mod sum;
pub mod symbols;
pub mod texts;
pub mod time;
