//! Metadata and a log whose older parts go. What is known of an entry is in the last frame that
//! names it, however old that is; so before the part of the log with that frame can go, the entry
//! is appended again as it is. Its version, the `ETag`, grows by that, as if it had been changed to
//! the same: who sends an older one in `If-Match` reads it again.

use crate::{collector::Collector, metadata::Record};
use arrow_buffer::Buffer;
use trueup_operators::{
    event::SCHEMA_VERSION,
    log::{Append, LogError, Topic, append_and_wait},
};

/// The most records in a frame that is written here.
const RECORDS_MAX: usize = 500;

impl Collector {
    /// The offset of the metadata topic from which on frames are needed.
    pub fn metadata_needed_from(&self) -> u64 {
        let end = self.0.log.ends(Topic::Metadata).first().map_or(0, |end| end.offset);
        // A version is the offset behind the entry's frame. The end was asked for first: what is
        // appended meanwhile is behind it.
        self.0.metadata.oldest_version().map_or(end, |version| (version - 1).min(end))
    }

    /// Appends again what is known only from frames below an offset; how many entries. Blocks until
    /// that is durable: not for a thread that answers requests.
    ///
    /// # Errors
    /// When the log cannot take it. What it took counts; the rest is tried again.
    pub fn renew_metadata(&self, below: u64) -> Result<usize, LogError> {
        let metadata = self.0.metadata.clone();
        let _writer = metadata.writer.blocking_lock();
        let old = metadata.of_versions_up_to(below);
        for records in old.chunks(RECORDS_MAX) {
            let version = self.append_again(records)?;
            records.iter().for_each(|record| drop(metadata.apply(record.clone(), version)));
        }
        Ok(old.len())
    }

    /// Appends a frame; the version of what it holds.
    fn append_again(&self, records: &[Record]) -> Result<u64, LogError> {
        let payload = serde_json::to_vec(records)
            .map_err(|error| LogError::Invalid { reason: format!("metadata as JSON: {error}") })?;
        let frame = Append {
            topic: Topic::Metadata,
            partition: 0,
            schema_version: SCHEMA_VERSION,
            records: records.len() as u32,
            payload: Buffer::from_vec(payload),
        };
        let appended = append_and_wait(&*self.0.log, vec![frame])?;
        let appended = appended.first().ok_or_else(|| LogError::Unavailable {
            reason: "the log appended a frame and gave no offset".into(),
        })?;
        Ok(appended.offset + 1)
    }
}
