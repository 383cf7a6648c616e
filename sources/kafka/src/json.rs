//! One JSON event a message, for other producers and consumers: how frames of events become
//! messages and messages become frames.
//!
//! A frame is a run of messages without a gap between them. It begins where it was asked for, or
//! at the first message behind that, and ends before the next multiple of
//! [`RUN_MESSAGES`](crate::RUN_MESSAGES), at the end of the range, at an offset without a message
//! (a transaction's marker), or before a message that was taken in a later second than its first
//! one was, for all its rows have one log time (`reader.rs`). So the same range is cut the same way
//! each time. Its row `r` is the message at `frame.offset + r`, always: a message that is no event
//! has a row as well, which the encoder fills with a placeholder. That is why a frame can be read
//! again from its offset on ([`Log::read_again`](trueup_operators::log::Log::read_again)) wherever
//! it ended.
//!
//! No size ends a frame, so a message is not looked into when it is larger than any event
//! ([`JSON_EVENT_BYTES_MAX`](crate::JSON_EVENT_BYTES_MAX)): its row says so, and holds nothing of
//! it.

use trueup_operators::{
    log::{Append, Foreign, LogError},
    time::LogTime,
};

/// A message of the events topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JsonMessage {
    /// The event's id.
    pub key: Vec<u8>,
    /// The event.
    pub payload: Vec<u8>,
}

/// What stands at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// A message, which may or may not be an event.
    Message(&'a [u8]),
    /// A message that cannot be an event, without looking into it.
    Foreign(Foreign),
}

/// One row of a frame to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// When the broker appended it.
    pub log_time: LogTime,
    /// What stands there.
    pub body: Body<'a>,
}

/// The payload of a frame.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The version of its schema.
    pub schema_version: u16,
    /// The records, one for each row; aligned to 64 bytes.
    pub payload: arrow_buffer::Buffer,
}

/// Between events as the program has them and as JSON. The log does not know what an event is; the
/// program that opens it does.
pub trait JsonEvents: Send + Sync + 'static {
    /// The messages of a frame that is appended, one for each record, in order.
    ///
    /// # Errors
    /// `Invalid` when the payload is not what the program writes.
    fn to_messages(&self, append: &Append) -> Result<Vec<JsonMessage>, LogError>;

    /// The frame of a run of messages, with as many records as there are rows, in order. A row that
    /// is no event becomes a record with schema version 0, which no program knows, so the ledger
    /// puts it in the quarantine.
    ///
    /// # Errors
    /// None for what messages hold, however broken. Of what the program itself cannot do.
    fn to_frame(&self, rows: &[Row<'_>]) -> Result<Encoded, LogError>;
}
