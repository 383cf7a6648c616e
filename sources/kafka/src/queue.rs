//! The messages of one partition, as they come from librdkafka's fetching threads: a safe face on
//! its queue of a partition.
//!
//! rdkafka's own `PartitionQueue` drops the one thing that makes a gap certain: the offset of an
//! end. Offsets may be missing (a transaction's marker takes one), so that the reader of `from..to`
//! may wait for a message that never comes. librdkafka says where the end of the partition was when
//! it got there, behind all messages before it; an end at or after `to` proves that there is
//! nothing more, and an older one proves nothing. So this takes messages from the queue itself,
//! and, by the way, many at once.

use crate::{clients::Traced, settings::unavailable};
use rdkafka::{
    bindings as c,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode,
};
use std::{
    collections::VecDeque,
    ffi::{CStr, CString, c_void},
    ptr::{NonNull, null, null_mut},
    sync::Arc,
};
use trueup_operators::{log::LogError, time::LogTime};

/// How many are taken at once.
const TAKEN_MAX: usize = 128;

/// A message that was fetched. Gives its memory back when it is dropped.
pub(crate) struct Message(NonNull<c::rd_kafka_message_t>);

// SAFETY: librdkafka's messages belong to no thread; their counters are atomic.
unsafe impl Send for Message {}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: it came from the queue and is given back once.
        unsafe { c::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

impl Message {
    fn raw(&self) -> &c::rd_kafka_message_t {
        // SAFETY: it is ours until it is dropped, and nobody writes to it.
        unsafe { self.0.as_ref() }
    }

    /// Its number in the partition.
    pub(crate) fn offset(&self) -> u64 {
        self.raw().offset.max(0) as u64
    }

    /// None if it has none.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        let raw = self.raw();
        if raw.key.is_null() {
            return None;
        }
        // SAFETY: as for the payload.
        Some(unsafe { std::slice::from_raw_parts(raw.key.cast(), raw.key_len) })
    }

    /// None for a tombstone.
    pub(crate) fn payload(&self) -> Option<&[u8]> {
        let raw = self.raw();
        if raw.payload.is_null() {
            return None;
        }
        // SAFETY: librdkafka's memory of this length, which lives as long as the message.
        Some(unsafe { std::slice::from_raw_parts(raw.payload.cast(), raw.len) })
    }

    /// When the broker that led the partition appended it, by that broker's clock, in whole
    /// milliseconds; 0 if it has none. Of this message alone: with another leader the clock is
    /// another one, so that times may go back from one message to the next.
    pub(crate) fn log_time(&self) -> LogTime {
        // SAFETY: the message is valid; a null pointer says that the kind is not wanted.
        let ms = unsafe { c::rd_kafka_message_timestamp(self.0.as_ptr(), null_mut()) }.max(0);
        LogTime(ms.saturating_mul(1_000))
    }

    /// The value of the last header of this name.
    pub(crate) fn header(&self, name: &CStr) -> Option<&[u8]> {
        let (mut headers, mut value, mut bytes) = (null_mut(), null::<c_void>(), 0);
        // SAFETY: all pointers are valid for the calls; headers and values live as long as the
        // message does.
        unsafe {
            if code(c::rd_kafka_message_headers(self.0.as_ptr(), &mut headers)).is_err() {
                return None;
            }
            let found = c::rd_kafka_header_get_last(headers, name.as_ptr(), &mut value, &mut bytes);
            code(found).ok()?;
            if value.is_null() {
                return Some(&[]);
            }
            Some(std::slice::from_raw_parts(value.cast(), bytes))
        }
    }
}

/// What a queue has next.
pub(crate) enum Item {
    /// A message; they ascend.
    Message(Message),
    /// The partition ended at this offset when everything before it had been fetched.
    End(u64),
    /// Fetching has a problem, which librdkafka tries to mend.
    Trouble(RDKafkaErrorCode, String),
}

/// The queue of one partition. What was fetched and not yet taken is bounded by the consumer's
/// settings.
pub(crate) struct Queue {
    taken: VecDeque<Item>,
    raw: NonNull<c::rd_kafka_queue_t>,
    // The last field: everything above refers to it.
    _consumer: Arc<BaseConsumer<Traced>>,
}

// SAFETY: librdkafka's queues may be used from any thread; all that is done here takes `&mut self`.
unsafe impl Send for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        self.taken.clear();
        // SAFETY: it was got from librdkafka and is given back once, before its consumer.
        unsafe { c::rd_kafka_queue_destroy(self.raw.as_ptr()) }
    }
}

impl Queue {
    /// Turns the messages of an assigned partition to a queue of their own. Those that were fetched
    /// before are elsewhere: seek afterwards.
    pub(crate) fn split(
        consumer: &Arc<BaseConsumer<Traced>>,
        topic: &str,
        partition: u16,
    ) -> Result<Queue, LogError> {
        let none = || unavailable(format!("{topic} {partition} cannot be read"));
        let name = CString::new(topic).map_err(|_| none())?;
        let client = consumer.client().native_ptr();
        // SAFETY: the consumer outlives the queue, which holds it; a null target ends forwarding.
        let raw = unsafe {
            let raw = c::rd_kafka_queue_get_partition(client, name.as_ptr(), partition.into());
            let raw = NonNull::new(raw).ok_or_else(none)?;
            c::rd_kafka_queue_forward(raw.as_ptr(), null_mut());
            raw
        };
        Ok(Queue { taken: VecDeque::new(), raw, _consumer: Arc::clone(consumer) })
    }

    /// What is next; waits for it.
    pub(crate) fn next(&mut self, wait_ms: i32) -> Option<Item> {
        if self.taken.is_empty() {
            self.take(wait_ms);
        }
        self.taken.pop_front()
    }

    /// Forgets what was taken before a seek.
    pub(crate) fn forget(&mut self) {
        self.taken.clear();
    }

    fn take(&mut self, wait_ms: i32) {
        let mut taken = [null_mut(); TAKEN_MAX];
        // SAFETY: the queue is valid, and the array has the room that is named.
        let mut count = unsafe {
            c::rd_kafka_consume_batch_queue(self.raw.as_ptr(), 0, taken.as_mut_ptr(), TAKEN_MAX)
        };
        if count < 1 && wait_ms > 0 {
            // Many at once would wait until all of them are there.
            // SAFETY: as above; null when nothing came.
            taken[0] = unsafe { c::rd_kafka_consume_queue(self.raw.as_ptr(), wait_ms) };
            count = 1;
        }
        let count = usize::try_from(count).unwrap_or(0);
        let messages = taken[..count].iter().copied().filter_map(NonNull::new).map(Message);
        self.taken.extend(messages.map(item));
    }
}

fn item(message: Message) -> Item {
    match code(message.raw().err) {
        Ok(()) => Item::Message(message),
        Err(RDKafkaErrorCode::PartitionEOF) => Item::End(message.offset()),
        Err(error) => {
            let said = message.payload().map(String::from_utf8_lossy).unwrap_or_default();
            Item::Trouble(error, said.into_owned())
        }
    }
}

fn code(error: c::rd_kafka_resp_err_t) -> Result<(), RDKafkaErrorCode> {
    match error.into() {
        RDKafkaErrorCode::NoError => Ok(()),
        error => Err(error),
    }
}
