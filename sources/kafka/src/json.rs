//! One JSON event a message, for other producers and consumers: how frames of events become
//! messages and messages become frames.
//!
//! A frame is a run of messages. It begins where it was asked for and ends before the next multiple
//! of [`RUN_MESSAGES`](crate::RUN_MESSAGES) or at the end of the range: the same range is cut the
//! same way each time. Its row `r` is the message at `frame.offset + r`, always: an offset without
//! a message and a message that is no event have rows as well, which the encoder fills with a
//! placeholder. That is why a row that was read in one frame can be read back later as row 0 of
//! another one, whatever the runs were then ([`Log::place`](trueup_operators::log::Log::place)).

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
    /// No message: the offset is a transaction's marker, or its message was aborted. Nothing was
    /// said, so nothing must be counted, not even in the quarantine.
    Absent,
}

/// One row of a frame to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// When the broker appended it; of an absent one, the time of the row before it.
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
    /// puts it in the quarantine; an absent one becomes a record that counts nowhere.
    ///
    /// # Errors
    /// None for what messages hold, however broken. Of what the program itself cannot do.
    fn to_frame(&self, rows: &[Row<'_>]) -> Result<Encoded, LogError>;
}
