//! The segment files of a journal: their names, their creation, and what is known of them in
//! memory together with the positions of their frames.
//!
//! A segment is created whole: header first, under another name, synced, renamed, the directory
//! synced. So a file that ends in `.seg` always has a header, and it exists only after the segment
//! before it was synced to its end.

use crate::{
    disk::{Access, Disk, DiskFile, create_whole},
    format::{Reach, SegmentHeader},
    index,
    positions::Partition,
    slot::Slots,
};
use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use trueup_operators::{log::Topic, time::LogTime};

/// A segment, as far as it is good.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// Its number in this process.
    pub(crate) number: u32,
    pub(crate) first_sequence: u64,
    /// Header and frames.
    pub(crate) bytes: u64,
    /// The log time of its last frame, or the floor that it began with.
    pub(crate) last_log_time: LogTime,
    /// How far each slot had come at its start.
    pub(crate) starts: Vec<Reach>,
}

/// How many frames a journal holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FramesHeld {
    /// Of the remap topic.
    pub remap: u64,
    /// Of all other topics.
    pub others: u64,
}

/// All frames that a journal holds, and the files that they are in.
#[derive(Debug)]
pub(crate) struct Held {
    /// By slot.
    pub(crate) partitions: Vec<Partition>,
    /// Oldest first, without gaps in the numbers; the last one is written to.
    pub(crate) segments: VecDeque<Segment>,
}

impl Held {
    pub(crate) fn segment(&self, number: u32) -> Option<&Segment> {
        let first = self.segments.front()?.number;
        self.segments.get(number.checked_sub(first)? as usize)
    }

    pub(crate) fn frames(&self) -> u64 {
        self.partitions.iter().map(Partition::frames).sum()
    }

    /// The same, the remap topic's apart from all others.
    pub(crate) fn frames_by_room(&self, slots: Slots) -> FramesHeld {
        let remap = slots.slot(Topic::Remap, 0).and_then(|slot| self.partitions.get(slot));
        let remap = remap.map_or(0, Partition::frames);
        FramesHeld { remap, others: self.frames() - remap }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// What the index of the last segment has to say.
    pub(crate) fn entries_of_last(&self, slots: Slots) -> Vec<index::Entry> {
        let Some(number) = self.segments.back().map(|segment| segment.number) else {
            return Vec::new();
        };
        let mut entries = Vec::new();
        for (partition, of) in self.partitions.iter().zip(slots.all()) {
            let start = entries.len();
            let frames = partition.back_in(number);
            entries.extend(frames.map(|(offset, position)| index::Entry { of, offset, position }));
            entries[start..].reverse();
        }
        entries
    }
}

/// Where segment files are.
#[derive(Clone, Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn of(data_dir: &Path) -> Folder {
        Folder(data_dir.join("journal"))
    }

    pub(crate) fn segment(&self, first_sequence: u64) -> PathBuf {
        self.0.join(format!("{first_sequence:020}.seg"))
    }

    pub(crate) fn index(&self, first_sequence: u64) -> PathBuf {
        self.0.join(format!("{first_sequence:020}.idx"))
    }

    /// The first sequences of all segments, ascending, and the files that no crash-free run leaves
    /// behind: half-created ones, and indexes without a segment.
    pub(crate) fn list(&self, disk: &dyn Disk) -> io::Result<(Vec<u64>, Vec<PathBuf>)> {
        let names = disk.list(&self.0)?;
        let number = |name: &str, suffix: &str| {
            let digits = name.strip_suffix(suffix).filter(|digits| digits.len() == 20)?;
            digits.parse::<u64>().ok()
        };
        let mut segments: Vec<u64> = names.iter().filter_map(|n| number(n, ".seg")).collect();
        segments.sort_unstable();
        let orphan = |name: &String| {
            let half = name.ends_with(".seg.new") || name.ends_with(".idx.new");
            let index = number(name, ".idx");
            half || index.is_some_and(|first| segments.binary_search(&first).is_err())
        };
        let orphans = names.iter().filter(|name| orphan(name)).map(|name| self.0.join(name));
        let orphans = orphans.collect();
        Ok((segments, orphans))
    }

    /// Creates a segment, durably; the file and the size of its header. After an error the segment
    /// may exist or not; [`Folder::withdraw`] makes sure that it does not.
    pub(crate) fn create(
        &self,
        disk: &dyn Disk,
        header: &SegmentHeader,
        slots: Slots,
    ) -> io::Result<(Arc<dyn DiskFile>, u64)> {
        let bytes = header.encode(slots);
        let path = self.segment(header.first_sequence);
        create_whole(disk, &path, &bytes)?;
        Ok((disk.open(&path, Access::Write)?, bytes.len() as u64))
    }

    /// Takes back a segment whose creation failed.
    pub(crate) fn withdraw(&self, disk: &dyn Disk, first_sequence: u64) -> io::Result<()> {
        let path = self.segment(first_sequence);
        for path in [path.with_added_extension("new"), path] {
            match disk.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        disk.sync_dir(&self.0)
    }
}
