//! A log that is another one but for something: it says what is different, and the other does the
//! rest. A layer that repeated each method would lose one that [`Log`] learns later and answers by
//! itself, like whether the log is broken, and nobody would be told.

use super::{Append, Done, End, Frame, Log, LogError, Topic};
use crate::time::LogTime;

/// What a log over another does itself. Each method is the one of [`Log`]; without it, what is
/// below answers.
pub trait LogLayer: Send + Sync + 'static {
    /// The log that does the rest.
    fn below(&self) -> &dyn Log;

    /// As [`Log::is_shared`].
    fn is_shared(&self) -> bool {
        self.below().is_shared()
    }

    /// As [`Log::broken`].
    fn broken(&self) -> Option<String> {
        self.below().broken()
    }

    /// As [`Log::append`].
    ///
    /// # Errors
    /// As there.
    fn append(&self, frames: Vec<Append>, done: Done) -> Result<(), LogError> {
        self.below().append(frames, done)
    }

    /// As [`Log::first`].
    fn first(&self, topic: Topic, partition: u16) -> u64 {
        self.below().first(topic, partition)
    }

    /// As [`Log::read`].
    ///
    /// # Errors
    /// As there.
    fn read(
        &self,
        topic: Topic,
        partition: u16,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Frame>, LogError> {
        self.below().read(topic, partition, from, to, bytes_max)
    }

    /// As [`Log::read_again`].
    ///
    /// # Errors
    /// As there.
    fn read_again(
        &self,
        topic: Topic,
        partition: u16,
        offset: u64,
        row: u16,
    ) -> Result<Vec<Frame>, LogError> {
        self.below().read_again(topic, partition, offset, row)
    }

    /// As [`Log::offset_bytes`].
    fn offset_bytes(&self, topic: Topic, partition: u16) -> Option<u64> {
        self.below().offset_bytes(topic, partition)
    }
}

impl<L: LogLayer> Log for L {
    fn is_shared(&self) -> bool {
        LogLayer::is_shared(self)
    }

    fn broken(&self) -> Option<String> {
        LogLayer::broken(self)
    }

    fn partitions(&self, topic: Topic) -> u16 {
        self.below().partitions(topic)
    }

    fn append(&self, frames: Vec<Append>, done: Done) -> Result<(), LogError> {
        LogLayer::append(self, frames, done)
    }

    fn ends(&self, topic: Topic) -> Vec<End> {
        self.below().ends(topic)
    }

    fn first(&self, topic: Topic, partition: u16) -> u64 {
        LogLayer::first(self, topic, partition)
    }

    fn read(
        &self,
        topic: Topic,
        partition: u16,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Frame>, LogError> {
        LogLayer::read(self, topic, partition, from, to, bytes_max)
    }

    fn offset_at(&self, topic: Topic, partition: u16, time: LogTime) -> Result<u64, LogError> {
        self.below().offset_at(topic, partition, time)
    }

    fn bytes_taken(&self, topic: Topic) -> u64 {
        self.below().bytes_taken(topic)
    }

    fn offset_bytes(&self, topic: Topic, partition: u16) -> Option<u64> {
        LogLayer::offset_bytes(self, topic, partition)
    }

    fn read_again(
        &self,
        topic: Topic,
        partition: u16,
        offset: u64,
        row: u16,
    ) -> Result<Vec<Frame>, LogError> {
        LogLayer::read_again(self, topic, partition, offset, row)
    }
}
