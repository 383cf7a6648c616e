//! From one segment to the next, and the space of a segment.
//!
//! The order of a roll is what makes every segment but the last one trustworthy: all of the old
//! one is synced, its index is written, and only then is the next one created (whole, under
//! another name first, see `segments.rs`). If that fails the old segment goes on.

use super::{Failure, OpenSegment, Writer, unavailable};
use crate::{
    format::SegmentHeader, index, journal::Shared, segments::Segment, settings::PREALLOCATE_BYTES,
};
use std::io;

impl Writer {
    /// Seals the segment and begins the next one.
    pub(super) fn roll(&mut self) -> Result<(), Failure> {
        if self.segment.synced.0 < self.segment.at {
            self.sync(self.segment.at, self.chain.sequence)?;
        }
        self.release();
        // A segment whose first sync failed holds nothing: the next one takes its name.
        let replaces = self.chain.sequence == self.segment.first_sequence;
        if !replaces {
            self.write_index();
        }
        let header = SegmentHeader {
            journal: self.chain.journal,
            first_sequence: self.chain.sequence,
            floor: self.chain.floor,
            reach: self.chain.reach.clone(),
        };
        let Shared { disk, folder, slots, .. } = &*self.shared;
        let (file, header_bytes) = match folder.create(&**disk, &header, *slots) {
            Ok(created) => created,
            Err(error) => return Err(self.withdraw_segment(&header, replaces, &error)),
        };
        let sealed_bytes = self.segment.at;
        self.segment = OpenSegment {
            file,
            first_sequence: header.first_sequence,
            number: self.segment.number + u32::from(!replaces),
            header_bytes,
            at: header_bytes,
            synced: (header_bytes, header.first_sequence),
            unmarked: false,
            reserved_to: header_bytes,
        };
        self.full = false;
        self.publish_segment(header, replaces, sealed_bytes);
        Ok(())
    }

    fn publish_segment(&self, header: SegmentHeader, replaces: bool, sealed_bytes: u64) {
        let mut held = self.shared.held.write();
        if replaces {
            held.segments.pop_back();
        } else if let Some(sealed) = held.segments.back_mut() {
            // With the marks, which are not published by themselves.
            sealed.bytes = sealed_bytes;
        }
        held.segments.push_back(Segment {
            number: self.segment.number,
            first_sequence: header.first_sequence,
            bytes: self.segment.header_bytes,
            last_log_time: header.floor,
            starts: header.reach,
        });
    }

    /// The next segment could not be created: the present one goes on, if that is certain.
    fn withdraw_segment(
        &self,
        header: &SegmentHeader,
        replaces: bool,
        error: &io::Error,
    ) -> Failure {
        let Shared { disk, folder, .. } = &*self.shared;
        let path = folder.segment(header.first_sequence);
        let path = path.display();
        // Whichever of two empty segments has the name now, another one will replace it.
        let withdrawn =
            if replaces { Ok(()) } else { folder.withdraw(&**disk, header.first_sequence) };
        match withdrawn {
            Ok(()) => Failure::Group(unavailable(format!("{path} cannot be created: {error}"))),
            Err(second) => Failure::Broken(unavailable(format!(
                "{path} cannot be created ({error}) nor removed ({second}); restart when the disk \
                 is well"
            ))),
        }
    }

    fn write_index(&self) {
        let Shared { disk, folder, held, slots, .. } = &*self.shared;
        let summary = index::Summary {
            journal: self.chain.journal,
            first_sequence: self.segment.first_sequence,
            end_sequence: self.chain.sequence,
            segment_bytes: self.segment.at,
            floor: self.chain.floor,
        };
        let entries = held.read().entries_of_last(*slots);
        let path = folder.index(self.segment.first_sequence);
        if let Err(error) = index::write(&**disk, &path, &summary, &entries) {
            let index = path.display();
            tracing::warn!(%index, %error, "index not written, the next start scans its segment");
        }
    }

    /// Sees to it that the file system has room for the frames up to `end`. Where it cannot say so
    /// in advance, writing will tell.
    pub(super) fn reserve(&mut self, end: u64) {
        if end <= self.segment.reserved_to {
            return;
        }
        let target = (end + PREALLOCATE_BYTES).min(self.shared.settings.segment_bytes_max).max(end);
        let from = self.segment.reserved_to;
        self.segment.reserved_to = match self.segment.file.preallocate(from, target - from) {
            Ok(()) => target,
            Err(error) => {
                tracing::debug!(%error, "space not reserved");
                u64::MAX
            }
        };
    }

    /// Gives back what was reserved and not used. Failing costs space until the next opening.
    pub(super) fn release(&self) {
        if self.segment.reserved_to > self.segment.at
            && let Err(error) = self.segment.file.set_bytes(self.segment.at)
        {
            tracing::debug!(%error, "reserved space not given back");
        }
    }
}
