//! The embedded log: every topic and partition interleaved in **one physical journal**, so that one
//! sync makes any number of requests durable at once.
//!
//! ```text
//!  append ──▶ intake ──▶ writer ──▶ segment file ──fdatasync──▶ ends, positions, tail ──▶ done
//!             (queue,    (one       00…0412.seg                          │
//!              floor)    thread)                                         ▼
//!  read ◀── tail (memory) or reader (pread + CRC) ◀──────────────── positions
//! ```
//!
//! What it promises:
//!
//! * an acknowledged frame is on disk, and no failure of writing or syncing makes it otherwise;
//! * offsets have no gaps, log times never decrease, and no frame gets a log time below a
//!   `complete_to` that was told before (`intake.rs` says how);
//! * a wall clock that jumps ahead makes no log time, and appends are refused while it does
//!   (`clock.rs` says what is believed);
//! * what a crash left incomplete is cut off and reported; what was damaged is reported by file and
//!   byte, and never cut, skipped or guessed (`scan.rs` says how it tells the two apart);
//! * queue, tail cache, open files, positions, payloads and groups have limits with names.
//!
//! A data directory:
//!
//! ```text
//! LOCK                             held by the process that writes
//! identity                         secret key, number of partitions (`identity.rs`)
//! journal/00000000000000000412.seg frames (`format.rs`); the name is the first one's sequence
//! journal/00000000000000000412.idx where they are, once the segment is full (`index.rs`)
//! ```
//!
//! It is for one machine: replication is what Kafka is for, behind the same trait.

mod check;
mod clock;
mod counters;
mod disk;
mod format;
mod identity;
mod index;
mod intake;
mod journal;
mod positions;
mod reader;
mod recover;
mod retention;
mod scan;
mod segments;
mod settings;
mod slot;
mod tail;
mod writer;

#[cfg(test)]
mod tests;

pub use check::{Damage, IndexState, PartitionReport, Repair, Report, SegmentReport, check};
pub use clock::{CLOCK_STEP_US_MAX, Clock, Watch, system_clock, system_watch};
pub use counters::Counts;
pub use disk::replace_file;
pub use format::PAYLOAD_BYTES_MAX;
pub use identity::Identity;
pub use journal::Journal;
pub use positions::FRAMES_HELD_MAX;
pub use recover::{Opened, Torn};
pub use retention::{Retained, Retention};
pub use segments::FramesHeld;
pub use settings::{Fsync, SEGMENT_BYTES_LIMIT, SEGMENT_BYTES_MIN, Settings};
