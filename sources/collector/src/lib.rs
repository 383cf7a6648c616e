//! The collector: HTTP in, Arrow frames to the log out.
//!
//! This is the only part of the system that parses JSON of senders, stamps events with a clock and
//! knows who sends. What it writes is columnar, checked and stamped; nothing after it does any of
//! that again.
//!
//! | module | |
//! |---|---|
//! | `scan` `wide` `sent` `check` `batch` `decode` | a body becomes one Arrow batch per partition, in one pass |
//! | `fields` `fault` `payload` `instant` `consent` `dictionary` | the rules, errors and hashes of an event |
//! | `body` `inflate` `rate` `idempotency` `pool` `settings` | what keeps it bounded |
//! | `pixel` `pixel_group` `client` `bots` | clicks and pixels |
//! | `messages` | events that others wrote to a shared topic |
//! | `metadata` `following` `renewal` `change` `metadata_routes` | campaigns, ads and publishers |
//! | `collect` `verdicts` `router` | the other routes |
//!
//! Two promises start here. *Nothing is both acknowledged and lost*: an answer of 202, 302 or a
//! GIF is given only after the log has said that the events are durable. *Nothing is silent*:
//! received = accepted + rejected, and every rejected event is named and counted by its reason.

mod append;
mod arrow_body;
mod batch;
mod body;
mod bots;
mod change;
mod check;
mod client;
mod collect;
mod collector;
mod consent;
mod decode;
mod dictionary;
mod fault;
mod fields;
mod following;
mod idempotency;
mod inflate;
mod instant;
mod messages;
mod metadata;
mod metadata_routes;
mod names;
mod payload;
mod pixel;
mod pixel_group;
mod pool;
mod rate;
mod renewal;
mod router;
mod scan;
mod sent;
mod settings;
mod verdicts;
mod wide;

#[cfg(test)]
mod tests;

pub use collector::{Clock, Collector, Logs, NoPressure, Pressure, StartError};
pub use decode::{AdvertiserOf, Decoded, Decoder, Format, Rules};
pub use fault::EventError;
pub use messages::{DERIVED, Message, MessageDecoder};
pub use metadata::{Ad, Campaign, Entry, Kind, Metadata, OnlyIf, Publisher, Record};
pub use names::Metric;
pub use settings::{InvalidSetting, Settings};
