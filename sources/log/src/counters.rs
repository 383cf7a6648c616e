//! What the journal did since it was opened, in numbers that only go up; the server turns them
//! into metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// What a journal did since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Groups that were made durable.
    pub groups: u64,
    /// Groups that were lost to an error of the disk; their senders were told.
    pub groups_failed: u64,
    /// Frames appended.
    pub frames: u64,
    /// Bytes appended, headers and padding included.
    pub bytes: u64,
    /// Syncs that succeeded.
    pub syncs: u64,
    /// Time spent in them, µs.
    pub sync_us: u64,
    /// The longest of them, µs.
    pub sync_us_max: u64,
    /// Frames that were read from the disk, because they were not in memory any more.
    pub frames_read: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    groups: AtomicU64,
    groups_failed: AtomicU64,
    frames: AtomicU64,
    bytes: AtomicU64,
    syncs: AtomicU64,
    sync_us: AtomicU64,
    sync_us_max: AtomicU64,
    frames_read: AtomicU64,
}

impl Counters {
    pub(crate) fn note_group(&self, frames: usize, bytes: u64) {
        self.groups.fetch_add(1, Relaxed);
        self.frames.fetch_add(frames as u64, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn note_failure(&self) {
        self.groups_failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn note_sync(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.syncs.fetch_add(1, Relaxed);
        self.sync_us.fetch_add(took_us, Relaxed);
        self.sync_us_max.fetch_max(took_us, Relaxed);
    }

    pub(crate) fn note_read(&self, frames: usize) {
        self.frames_read.fetch_add(frames as u64, Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            groups: self.groups.load(Relaxed),
            groups_failed: self.groups_failed.load(Relaxed),
            frames: self.frames.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            syncs: self.syncs.load(Relaxed),
            sync_us: self.sync_us.load(Relaxed),
            sync_us_max: self.sync_us_max.load(Relaxed),
            frames_read: self.frames_read.load(Relaxed),
        }
    }
}
