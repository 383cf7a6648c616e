//! What every log is: topics of partitions of *frames*, each appended once, durable before it is
//! acknowledged, read by offset and by time. The embedded log (`sources/log`) and Kafka
//! (`sources/kafka`) are two implementations, held to the same tests (`contract`).
//!
//! Offsets ascend within a partition. The embedded log's have no gaps; Kafka's may (a transaction's
//! marker takes an offset and is no frame), so whoever reads goes on from [`Frame::next`], and an
//! answer without frames says that there are none in the range.
//!
//! A frame is the unit of everything: of an append, of a CRC, of an offset, of a log time. It
//! holds a batch of records (an Arrow IPC stream of up to [`FRAME_RECORDS_MAX`] events, or a JSON
//! array of verdicts or of metadata).

#[cfg(feature = "contract-tests")]
pub mod contract;
mod layer;

pub use layer::LogLayer;

use crate::{event::Position, time::LogTime};
use arrow_buffer::Buffer;

/// The most records in a frame: a row number is 16 bits in the ledger.
pub const FRAME_RECORDS_MAX: usize = 65_536;
/// The most frames in a partition: an offset is 40 bits in the ledger.
pub const OFFSET_MAX: u64 = (1 << 40) - 1;
/// The most partitions of a topic: a partition is 8 bits in the ledger.
pub const PARTITIONS_MAX: u16 = 256;

/// Everything that the system knows came from one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Topic {
    /// Events, partitioned by the hash of their id.
    Events = 0,
    /// Verdicts on events; one partition.
    Verdicts = 1,
    /// Campaigns, ads and publishers; one partition.
    Metadata = 2,
    /// Which offsets each epoch holds; one partition. The definition of every epoch.
    Remap = 3,
}

impl Topic {
    /// All of them.
    pub const ALL: [Topic; 4] = [Topic::Events, Topic::Verdicts, Topic::Metadata, Topic::Remap];

    /// As tools and files name it.
    pub const fn name(self) -> &'static str {
        match self {
            Topic::Events => "events",
            Topic::Verdicts => "verdicts",
            Topic::Metadata => "metadata",
            Topic::Remap => "remap",
        }
    }
}

/// A batch of records as the log holds it.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The partition of its topic.
    pub partition: u16,
    /// Its number in the partition; ascends.
    pub offset: u64,
    /// The offset after it, from which reading goes on: `offset + 1`, or more where a frame was
    /// put together from many small messages ([`Log::read_again`]).
    pub next: u64,
    /// When the log took it. The embedded log's times never decrease within a partition. Those of a
    /// shared log are by the clock of whichever machine took it then, and may: who reads an epoch
    /// keeps each between what the epoch before it and its own are complete to.
    pub log_time: LogTime,
    /// The version of the payload's schema.
    pub schema_version: u16,
    /// How many records the payload holds.
    pub records: u32,
    /// The records; its memory is aligned to 64 bytes, so Arrow reads it in place.
    pub payload: Buffer,
    /// Why it is none of ours, if it is none. It then counts as one record, which belongs in the
    /// quarantine; its payload is what was found, cut to [`FOREIGN_BYTES_MAX`], and its schema
    /// version is 0. The embedded log has none: it appends what it was given.
    pub foreign: Option<Foreign>,
}

/// The most bytes that are kept of a foreign message.
pub const FOREIGN_BYTES_MAX: usize = 64 << 10;

/// Why a message in a shared topic is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// It has no header that says which schema its payload has.
    #[error("it has no header `{name}`")]
    NoHeader {
        /// The header's name.
        name: &'static str,
    },
    /// A header does not say what it should.
    #[error("its header `{name}` is `{value}`, which is no number from {min} to {max}")]
    BadHeader {
        /// The header's name.
        name: &'static str,
        /// What it says, cut to some characters.
        value: String,
        /// The least that it may say.
        min: u32,
        /// The most that it may say.
        max: u32,
    },
    /// Its payload has a schema that this program does not know.
    #[error("its schema has version {version}, the newest known is {known}")]
    UnknownSchema {
        /// The schema's version.
        version: u16,
        /// The newest one known.
        known: u16,
    },
    /// It has no payload.
    #[error("it has no payload")]
    NoPayload,
    /// It is larger than a frame may be.
    #[error("it has {bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Its payload cannot be decoded. (The log does not decode; whoever does says so.)
    #[error("it cannot be decoded: {reason}")]
    Undecodable {
        /// What is wrong.
        reason: String,
    },
}

/// A batch of records to append.
#[derive(Clone, Debug)]
pub struct Append {
    /// Where to.
    pub topic: Topic,
    /// Which partition of it.
    pub partition: u16,
    /// The version of the payload's schema.
    pub schema_version: u16,
    /// How many records the payload holds.
    pub records: u32,
    /// The records.
    pub payload: Buffer,
}

impl Append {
    /// The frame that it is once the log has taken it.
    pub fn into_frame(self, offset: u64, log_time: LogTime) -> Frame {
        Frame {
            partition: self.partition,
            offset,
            next: offset + 1,
            log_time,
            schema_version: self.schema_version,
            records: self.records,
            payload: self.payload,
            foreign: None,
        }
    }
}

/// How far a partition is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The offset after the last durable frame.
    pub offset: u64,
    /// Every frame at or after `offset` has, or will get, a log time of at least this, as far as
    /// the clocks of a shared log's machines agree. For a partition with nothing under way that is
    /// the time of asking.
    pub complete_to: LogTime,
    /// Bytes of all durable frames that are still held, headers included; of Kafka an estimate.
    pub bytes: u64,
    /// Records in all durable frames since the partition began, deleted ones included; of Kafka
    /// an estimate, where it was not read from its beginning.
    pub records: u64,
}

/// Where an appended frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The offset that it got.
    pub offset: u64,
    /// The log time that it got.
    pub log_time: LogTime,
}

/// Called once, from the log's own thread, when all frames of an append are durable or lost.
pub type Done = Box<dyn FnOnce(Result<Vec<Appended>, LogError>) + Send>;

/// Why a log cannot do what it was asked to. The variant says what the caller must do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// Try again later: the queue is full.
    #[error("the log has {waiting_bytes} bytes waiting to be written, its limit is {limit_bytes}")]
    Busy {
        /// Bytes waiting.
        waiting_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Nothing was taken and nothing will be until an operator acts (disk full, I/O error, closed).
    #[error("the log cannot write: {reason}")]
    Unavailable {
        /// What happened.
        reason: String,
    },
    /// A log on other machines, of which none answers, could not be opened: it may answer later.
    #[error("{reason}")]
    Away {
        /// Who was asked, and what came of it.
        reason: String,
    },
    /// The bytes on disk are not what was written. Never skipped over.
    #[error("{file}, byte {at}: {reason}")]
    Corrupt {
        /// The file.
        file: String,
        /// Where in it.
        at: u64,
        /// What is wrong.
        reason: String,
    },
    /// The frame is not there: below what is kept, or at or above the durable end.
    #[error("{topic:?} partition {partition} holds offsets {first}..{end}, not {offset}")]
    OutOfRange {
        /// The topic.
        topic: Topic,
        /// The partition.
        partition: u16,
        /// What was asked for.
        offset: u64,
        /// The first offset held.
        first: u64,
        /// The offset after the last.
        end: u64,
    },
    /// The append breaks a limit of the log; the message names it.
    #[error("{reason}")]
    Invalid {
        /// Which limit, and the value.
        reason: String,
    },
}

impl LogError {
    /// Whether the same question may be answered later, with nothing changed.
    pub fn may_pass(&self) -> bool {
        matches!(self, LogError::Unavailable { .. } | LogError::Busy { .. })
    }
}

/// Topics of partitions of frames.
pub trait Log: Send + Sync + 'static {
    /// Whether other processes may append too. Who appends then learns what counts by reading.
    fn is_shared(&self) -> bool {
        false
    }

    /// Why nothing will ever be appended again unless the log is opened anew, if that is so. What
    /// may pass by itself, like a full disk, is no such reason.
    fn broken(&self) -> Option<String> {
        None
    }

    /// How many partitions a topic has.
    fn partitions(&self, topic: Topic) -> u16;

    /// Takes frames, all or none into the queue. `done` is called when all of them are durable.
    ///
    /// # Errors
    /// When nothing was taken; then `done` is dropped uncalled.
    fn append(&self, frames: Vec<Append>, done: Done) -> Result<(), LogError>;

    /// How far each partition of a topic is durable.
    fn ends(&self, topic: Topic) -> Vec<End>;

    /// The first offset that a partition still holds.
    fn first(&self, topic: Topic, partition: u16) -> u64;

    /// Frames `from..to` of a partition, in order, as many as fit in `bytes_max` but at least one;
    /// none only when the range holds none, which is then certain. May wait for frames to arrive
    /// from another machine.
    ///
    /// # Errors
    /// `OutOfRange` unless first ≤ from < to ≤ end; `Corrupt` when a frame is damaged;
    /// `Unavailable` when they did not arrive in time.
    fn read(
        &self,
        topic: Topic,
        partition: u16,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Frame>, LogError>;

    /// The first offset whose frame has a log time of at least `time`; the end if there is none.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn offset_at(&self, topic: Topic, partition: u16, time: LogTime) -> Result<u64, LogError>;

    /// Bytes of all frames of a topic that were durable when the log was opened or became so since,
    /// headers included. What was deleted since then stays in it, so it never becomes less.
    fn bytes_taken(&self, topic: Topic) -> u64 {
        self.ends(topic).iter().map(|end| end.bytes).sum()
    }

    /// About how many bytes an offset of a partition takes, of a log that others append to: nobody
    /// else knows what came. `None` where nothing of the partition's topic was seen yet.
    fn offset_bytes(&self, _topic: Topic, _partition: u16) -> Option<u64> {
        None
    }

    /// Reads the frame that begins at an offset once more, for its rows up to `row`: each is where
    /// it was. Where frames are put together from many messages it may have more rows than it had,
    /// and its log time is that of the first.
    ///
    /// # Errors
    /// As [`Log::read`].
    fn read_again(
        &self,
        topic: Topic,
        partition: u16,
        offset: u64,
        _row: u16,
    ) -> Result<Vec<Frame>, LogError> {
        self.read(topic, partition, offset, offset + 1, 0)
    }
}

/// The frame of a position, read again; its rows are where they were.
///
/// # Errors
/// As [`Log::read`]; `Unavailable` when no frame begins there.
pub fn read_frame(log: &dyn Log, position: Position) -> Result<Frame, LogError> {
    let (topic, partition) = position.place();
    let Position { offset, row, .. } = position;
    let frames = log.read_again(topic, partition, offset, row)?;
    frames.into_iter().next().filter(|frame| frame.offset == offset).ok_or_else(|| {
        let topic = topic.name();
        let reason = format!("{topic} partition {partition} has no frame at offset {offset}");
        LogError::Unavailable { reason }
    })
}

/// Appends and waits. Not for async code.
///
/// # Errors
/// As [`Log::append`], and what happened to the frames after they were taken.
pub fn append_and_wait(log: &dyn Log, frames: Vec<Append>) -> Result<Vec<Appended>, LogError> {
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    log.append(
        frames,
        Box::new(move |result| {
            // The receiver waits below; it cannot have gone.
            drop(send.send(result));
        }),
    )?;
    receive.recv().unwrap_or_else(|_| {
        Err(LogError::Unavailable { reason: "the log closed before it answered".into() })
    })
}
