//! Giving space back. Only whole segments are deleted, oldest first, never the last one, and only
//! those in which every frame lies below what the caller says is *covered*: kept elsewhere (in the
//! lake), so that verify, backfill and read-back do not need the log for it. Age and size say what
//! may go; cover says what can.
//!
//! A segment is forgotten first and deleted then, and its deletion is durable before the next one
//! begins, so that neither a crash nor a file that cannot be deleted leaves a hole between
//! segments.

use crate::{
    journal::{Journal, Shared},
    segments::Segment,
};
use std::{io::ErrorKind, path::Path};
use trueup_operators::log::{LogError, Topic};

/// What may be deleted. With neither, nothing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Segments whose last frame is older than this, µs of log time.
    pub age_us_max: Option<i64>,
    /// The oldest segments, while all of them together are larger than this.
    pub bytes_max: Option<u64>,
}

/// What retention did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// Segments that were deleted.
    pub segments_deleted: u64,
    /// Their bytes.
    pub bytes_deleted: u64,
    /// Bytes of all segments that are left.
    pub bytes_held: u64,
}

impl Journal {
    /// Deletes old segments. `covered` gives, for each partition, the offset below which frames
    /// are not needed any more; where it gives 0, nothing is deleted.
    ///
    /// # Errors
    /// `Unavailable` when a file cannot be deleted, or for a journal that is open for reading only.
    pub fn retain(
        &self,
        policy: Retention,
        covered: impl Fn(Topic, u16) -> u64,
    ) -> Result<Retained, LogError> {
        if !self.shared.is_writable() {
            let reason = "it was opened read-only".into();
            return Err(LogError::Unavailable { reason });
        }
        let mut forgotten = self.shared.forgotten.lock();
        let mut retained = Retained::default();
        loop {
            if forgotten.is_none() {
                *forgotten = self.forget_oldest(policy, &covered);
            }
            let Some(segment) = &*forgotten else { break };
            self.delete(segment)?;
            let (first_sequence, bytes) = (segment.first_sequence, segment.bytes);
            tracing::info!(first_sequence, bytes, "segment deleted");
            retained.segments_deleted += 1;
            retained.bytes_deleted += bytes;
            *forgotten = None;
        }
        retained.bytes_held = self.bytes_held();
        Ok(retained)
    }

    /// Takes the oldest segment and its frames out of memory, if it may go.
    fn forget_oldest(
        &self,
        policy: Retention,
        covered: &impl Fn(Topic, u16) -> u64,
    ) -> Option<Segment> {
        let now = self.shared.intake.now();
        let (oldest, ends, bytes) = {
            let held = self.shared.held.read();
            let (oldest, next) = (held.segments.front()?, held.segments.get(1)?);
            (oldest.clone(), next.starts.clone(), held.bytes())
        };
        let age_us = now.0.saturating_sub(oldest.last_log_time.0);
        let old = policy.age_us_max.is_some_and(|age_us_max| age_us > age_us_max);
        let large = policy.bytes_max.is_some_and(|bytes_max| bytes > bytes_max);
        let mut frames = self.shared.slots.all().zip(oldest.starts.iter().zip(&ends));
        let needed = frames.any(|((topic, partition), (start, end))| {
            start.offset < end.offset && covered(topic, partition) < end.offset
        });
        if needed || !(old || large) {
            return None;
        }
        // Nobody else removes segments: the lock on `forgotten` is held.
        let mut held = self.shared.held.write();
        for (partition, end) in held.partitions.iter_mut().zip(&ends) {
            partition.forget_below(end.offset);
        }
        held.segments.pop_front()
    }

    fn delete(&self, segment: &Segment) -> Result<(), LogError> {
        let Shared { folder, disk, reader, .. } = &*self.shared;
        let first = segment.first_sequence;
        reader.forget(first);
        let refused = |path: &Path, error: std::io::Error| LogError::Unavailable {
            reason: format!("{} cannot be deleted: {error}", path.display()),
        };
        for path in [folder.segment(first), folder.index(first)] {
            match disk.remove(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(refused(&path, error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        disk.sync_dir(&folder.0).map_err(|error| refused(&folder.0, error))
    }
}
