//! The one thread that writes. It takes what waits as a group, writes it behind the last frame,
//! syncs once, and only then publishes the ends and acknowledges. While it syncs the next group
//! gathers, so under load one sync serves many requests, topics and partitions.
//!
//! # What happens when the disk fails
//!
//! * **A write fails** (disk full, I/O error): the group is lost, each of its requests is told so,
//!   and the file is cut back to the last published end and synced. The next group is tried as if
//!   nothing had been.
//! * **A sync fails**: after that, the kernel may hold pages as clean that never reached the disk,
//!   and a second sync may succeed without writing them. So nothing above the last good sync is
//!   trusted: the group is lost, the segment is cut back to that sync and nothing is ever appended
//!   to it again; the next group begins a new segment.
//! * **Cutting back fails**, or a sync fails that acknowledged frames depended on (`fsync =
//!   "never"`): the journal stays unavailable until it is opened anew, and opening writes and syncs
//!   once more all that is not proven to be durable. It says so ([`Log::broken`]), because no disk
//!   that recovers helps it: who hosts it ends, and is started again.
//!
//! [`Log::broken`]: trueup_operators::log::Log::broken
//!
//! In no case is a frame acknowledged and then cut, and no group is half acknowledged. A group
//! that failed may still be found by the next opening when cutting it off was impossible: its
//! sender was told nothing but "unavailable", sends again, and the ledger drops the copy.
//!
//! `writer/layout.rs` gives each frame of a group its place, `writer/roll.rs` goes from segment to
//! segment.

mod layout;
mod roll;

use self::layout::Layout;
use crate::{
    disk::{DiskFile, write_all},
    format::{FrameHeader, UNIT_BYTES, units},
    intake::{Group, Request, Work},
    journal::Shared,
    positions::Position,
    recover::LastSegment,
    scan::Chain,
    settings::{Fsync, GROUP_BYTES_MAX},
};
use std::{
    io::{self, IoSlice},
    sync::Arc,
    time::{Duration, Instant},
};
use trueup_operators::{
    log::{Append, Appended, Frame, LogError},
    time::LogTime,
};

/// After so long without work a mark proves that all before it was durable.
const MARK_AFTER_IDLE: Duration = Duration::from_millis(200);
/// How long to sleep when there is nothing to mark either.
const SLEEP: Duration = Duration::from_secs(3_600);

/// What one turn of the writer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Wrote,
    Idled,
    Ended,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    segment: OpenSegment,
    /// What the next frame continues.
    chain: Chain,
    /// No more frames go into this segment.
    full: bool,
}

/// The segment that is written to.
struct OpenSegment {
    file: Arc<dyn DiskFile>,
    first_sequence: u64,
    number: u32,
    header_bytes: u64,
    /// Where the next frame goes.
    at: u64,
    /// The position up to which it is durable, and the next sequence there.
    synced: (u64, u64),
    /// Frames stand behind the last mark.
    unmarked: bool,
    /// Space is reserved to here; all of it, where it cannot be reserved.
    reserved_to: u64,
}

/// A failed attempt to make a group durable.
enum Failure {
    /// The group is lost, nothing else is.
    Group(LogError),
    /// Nothing can be written until the journal is opened anew.
    Broken(LogError),
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, chain: Chain, last: LastSegment) -> Writer {
        let (number, first_sequence) = {
            let held = shared.held.read();
            let segment = held.segments.back().expect("a journal always has a last segment");
            (segment.number, segment.first_sequence)
        };
        let segment = OpenSegment {
            file: last.file,
            first_sequence,
            number,
            header_bytes: last.header_bytes,
            at: last.end,
            synced: (last.end, chain.sequence),
            unmarked: last.end > last.header_bytes,
            reserved_to: last.end,
        };
        Writer { shared, segment, chain, full: false }
    }

    /// Works until the journal is closed or broken.
    pub(crate) fn run(mut self) {
        loop {
            let wait = if self.can_mark() { MARK_AFTER_IDLE } else { SLEEP };
            if self.turn(wait) == Turn::Ended {
                return;
            }
        }
    }

    /// Waits for work and does it.
    pub(crate) fn turn(&mut self, wait: Duration) -> Turn {
        let segment_left = self.shared.settings.segment_bytes_max.saturating_sub(self.segment.at);
        let room = if self.full { GROUP_BYTES_MAX } else { segment_left.min(GROUP_BYTES_MAX) };
        match self.shared.intake.take(room, wait) {
            Work::Group(group) => self.write_group(group),
            Work::Idle => match self.mark() {
                Ok(()) => Turn::Idled,
                Err(error) => self.break_down(&error),
            },
            Work::Close => {
                self.finish();
                Turn::Ended
            }
        }
    }

    fn write_group(&mut self, group: Group) -> Turn {
        let failure = match self.commit(&group) {
            Ok(layout) => {
                self.publish(group, layout);
                return Turn::Wrote;
            }
            Err(failure) => failure,
        };
        self.shared.counters.note_failure();
        self.shared.intake.give_up(group.bytes);
        let (Failure::Group(error) | Failure::Broken(error)) = &failure;
        tracing::error!(%error, requests = group.requests.len(), "group not written");
        refuse(group.requests, error);
        match failure {
            Failure::Group(_) => Turn::Wrote,
            Failure::Broken(error) => self.break_down(&error),
        }
    }

    /// Makes a group durable.
    fn commit(&mut self, group: &Group) -> Result<Layout, Failure> {
        let over = self.segment.at + group.bytes > self.shared.settings.segment_bytes_max;
        let empty = self.segment.at == self.segment.header_bytes;
        if self.full || (over && !empty) {
            self.roll()?;
        }
        let OpenSegment { at, synced, .. } = self.segment;
        let layout = Layout::of(group, &self.chain, at, synced.0).map_err(Failure::Group)?;
        if layout.placed.is_empty() {
            return Ok(layout);
        }
        self.reserve(layout.end);
        if let Err(error) = layout.write(group, &*self.segment.file) {
            return Err(self.cut_back_write(&error));
        }
        if self.shared.settings.fsync == Fsync::Batch {
            self.sync(layout.end, layout.chain.sequence)?;
        }
        Ok(layout)
    }

    /// Syncs the segment, of which everything below `end` was written.
    fn sync(&mut self, end: u64, sequence: u64) -> Result<(), Failure> {
        let started = Instant::now();
        match self.segment.file.sync_data() {
            Ok(()) => {
                self.shared.counters.note_sync(started.elapsed());
                self.segment.synced = (end, sequence);
                Ok(())
            }
            Err(error) => Err(self.cut_back_sync(&error)),
        }
    }

    /// After a failed write: back to what is published.
    fn cut_back_write(&mut self, error: &io::Error) -> Failure {
        let path = self.path();
        let lost = unavailable(format!("writing to {path} failed: {error}"));
        let cut = self.segment.file.set_bytes(self.segment.at);
        match cut.and_then(|()| self.segment.file.sync_all()) {
            Ok(()) => {
                self.segment.synced = (self.segment.at, self.chain.sequence);
                self.segment.reserved_to = self.segment.at;
                Failure::Group(lost)
            }
            Err(second) => Failure::Broken(unavailable(format!(
                "writing to {path} failed ({error}) and so did cutting it back ({second}); \
                 restart when the disk is well"
            ))),
        }
    }

    /// After a failed sync: back to the last good one, and away from this segment.
    fn cut_back_sync(&mut self, error: &io::Error) -> Failure {
        let path = self.path();
        let (synced, sequence) = self.segment.synced;
        // Frames that were acknowledged without a sync must not be cut off.
        if self.shared.settings.fsync == Fsync::Never && self.segment.at > synced {
            return Failure::Broken(unavailable(format!(
                "syncing {path} failed ({error}) and with fsync = \"never\" acknowledged frames \
                 depend on it; restart when the disk is well"
            )));
        }
        let cut = self.segment.file.set_bytes(synced);
        match cut.and_then(|()| self.segment.file.sync_all()) {
            Ok(()) => {
                // Above the last sync stood this group and at most a mark.
                self.segment.at = synced;
                self.chain.sequence = sequence;
                self.full = true;
                Failure::Group(unavailable(format!("syncing {path} failed: {error}")))
            }
            Err(second) => Failure::Broken(unavailable(format!(
                "syncing {path} failed ({error}) and so did cutting it back ({second}); restart \
                 when the disk is well"
            ))),
        }
    }

    /// Tells readers and then the senders of a group that it is durable.
    fn publish(&mut self, group: Group, layout: Layout) {
        let Group { log_time, requests, bytes } = group;
        let mut answers: Vec<Vec<Appended>> =
            requests.iter().map(|request| vec![NOWHERE; request.frames.len()]).collect();
        {
            let mut tail = self.shared.tail.lock();
            for placed in &layout.placed {
                let (request, frame) = (placed.request, placed.frame);
                answers[request][frame] = Appended { offset: placed.offset, log_time };
                let append = &requests[request].frames[frame].append;
                tail.push(placed.slot, frame_of(append, placed.offset, log_time));
            }
        }
        {
            let mut held = self.shared.held.write();
            let before = held.frames_by_room(self.shared.slots);
            for placed in &layout.placed {
                let append = &requests[placed.request].frames[placed.frame].append;
                held.partitions[placed.slot].push(Position {
                    log_time,
                    segment: self.segment.number,
                    at_units: units(placed.at),
                    payload_bytes: append.payload.len() as u32,
                    records: append.records,
                });
            }
            if let Some(segment) = held.segments.back_mut() {
                (segment.bytes, segment.last_log_time) = (layout.end, log_time);
            }
            self.shared.warn_of(before, held.frames_by_room(self.shared.slots));
        }
        self.shared.intake.publish(&layout.chain.reach, bytes);
        self.shared.counters.note_group(layout.placed.len(), layout.end - self.segment.at);
        self.segment.at = layout.end;
        self.segment.unmarked = true;
        self.chain = layout.chain;
        for (request, answer) in requests.into_iter().zip(answers) {
            (request.done)(Ok(answer));
        }
    }

    fn can_mark(&self) -> bool {
        self.segment.unmarked && !self.full && self.segment.synced.0 == self.segment.at
    }

    /// Proves to a later opening that everything before is durable. It need not be durable itself.
    fn mark(&mut self) -> Result<(), LogError> {
        if !self.can_mark() {
            return Ok(());
        }
        let mark = FrameHeader {
            of: None,
            sequence: self.chain.sequence,
            offset: 0,
            log_time: self.chain.floor,
            payload_bytes: 0,
            records: 0,
            schema_version: 0,
            durable_to: self.segment.synced.0,
            journal: self.chain.journal,
            payload_crc: crc32c::crc32c(&[]),
        };
        self.segment.unmarked = false;
        let header = mark.encode();
        let slices = &mut [IoSlice::new(&header)];
        if let Err(error) = write_all(&*self.segment.file, slices, self.segment.at) {
            return match self.cut_back_write(&error) {
                Failure::Group(_) => Ok(()),
                Failure::Broken(error) => Err(error),
            };
        }
        self.segment.at += UNIT_BYTES;
        self.chain.sequence += 1;
        Ok(())
    }

    /// The queue is empty and nothing more will come.
    fn finish(&mut self) {
        if self.segment.synced.0 < self.segment.at
            && let Err(Failure::Group(error) | Failure::Broken(error)) =
                self.sync(self.segment.at, self.chain.sequence)
        {
            tracing::error!(%error, "last sync failed while closing");
            return;
        }
        let marked = self.segment.unmarked && self.mark().is_ok();
        if marked && let Err(error) = self.segment.file.sync_data() {
            // The mark alone is at stake: the frames were synced before.
            tracing::warn!(%error, "closing mark not synced");
        }
        self.release();
    }

    fn break_down(&mut self, error: &LogError) -> Turn {
        tracing::error!(%error, "the log is unavailable until it is opened anew");
        let LogError::Unavailable { reason } = error else { return Turn::Ended };
        refuse(self.shared.intake.break_down(reason), error);
        Turn::Ended
    }

    fn path(&self) -> String {
        self.shared.folder.segment(self.segment.first_sequence).display().to_string()
    }
}

impl Drop for Writer {
    /// However the thread ends, nobody waits for it in vain.
    fn drop(&mut self) {
        let error = crate::intake::closed();
        if let LogError::Unavailable { reason } = &error {
            refuse(self.shared.intake.shut(reason), &error);
        }
    }
}

/// The place of a frame before it has one.
const NOWHERE: Appended = Appended { offset: u64::MAX, log_time: LogTime(0) };

fn frame_of(append: &Append, offset: u64, log_time: LogTime) -> Frame {
    append.clone().into_frame(offset, log_time)
}

fn refuse(requests: Vec<Request>, error: &LogError) {
    for request in requests {
        (request.done)(Err(error.clone()));
    }
}

fn unavailable(reason: String) -> LogError {
    LogError::Unavailable { reason }
}
