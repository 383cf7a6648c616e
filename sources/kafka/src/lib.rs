//! Kafka as the log: topics of partitions of frames behind the same trait as the embedded log, and
//! held to the same tests.
//!
//! ```text
//!  append ──▶ outbox ──▶ idempotent producer ──acks=all──▶ brokers ──▶ done
//!    │        (queue)                                       │  │
//!    ▼                                                      │  └──▶ ends (ListOffsets, cached)
//!  spool, while the brokers are away                        ▼
//!  read ◀── live cursor (fetches ahead) or back cursor ◀── queue of the partition
//! ```
//!
//! What it promises:
//!
//! * an acknowledged frame is on all in-sync replicas, and stands once in its partition, in the
//!   order of the appends;
//! * offsets are Kafka's: they ascend and may have gaps; a range without frames is said to have
//!   none only when the broker was past it (`queue.rs`);
//! * log time is the broker's append time, which no sender sets (`topics.rs`), and nothing else:
//!   not where a reader began, nor what it gave before (`reader.rs`);
//! * a message that is none of ours is a frame that says why, with its place; it stops nothing and
//!   is not lost (`headers.rs`);
//! * consumer groups decide nothing: partitions are assigned by hand, and offsets come from remap;
//! * while the brokers are away, `ends` stands still, reads time out, and appends fail, or go to
//!   the spool.
//!
//! Queue, prefetched bytes, messages and waits have limits with names (`settings.rs`).

mod changelog;
mod clients;
mod cursor;
mod ends;
mod headers;
mod json;
mod log;
mod outbox;
mod queue;
mod reader;
mod settings;
mod spool;
mod stranded;
mod topics;

pub use changelog::{Changelog, ChangelogSettings, Upper, Visit};
pub use headers::{RECORDS_HEADER, SCHEMA_HEADER};
pub use json::{Body, Encoded, JsonEvents, JsonMessage, Row};
pub use log::KafkaLog;
pub use settings::{
    Clock, Create, Encoding, JSON_EVENT_BYTES_MAX, KafkaSettings, MESSAGE_BYTES_LIMIT,
    RUN_MESSAGES, system_clock,
};
pub use spool::{Spool, SpoolReport, SpoolSettings, SpoolStatus, look as look_at_spool};
