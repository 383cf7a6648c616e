//! The journal as its users hold it: opened on a data directory, appended to, read, closed.
//!
//! Locks, in the order in which they may be nested (none is held across I/O or a callback):
//! `held` (positions), then `tail`, then the mutex inside `intake`. A frame becomes visible in
//! that direction as well: it is in the tail before its position is known, and its position is
//! known before `ends` tells of it.

use crate::{
    clock::{Clock, Guard, Watch},
    counters::{Counters, Counts},
    disk::{Disk, Lock, RealDisk},
    format::{PAYLOAD_BYTES_MAX, Reach, SegmentHeader, frame_bytes},
    identity::Identity,
    intake::{Intake, Pending, REQUEST_BYTES, Request, topic_slots},
    positions::Partition,
    reader::{Reader, Wanted},
    recover::{Mode, Opened, Recovered, recover},
    segments::{Folder, FramesHeld, Held, Segment},
    settings::{Settings, invalid},
    slot::Slots,
    tail::Tail,
    writer::Writer,
};
use arrow_buffer::{Buffer, MutableBuffer};
use parking_lot::{Mutex, RwLock};
use std::{io, path::Path, sync::Arc, thread::JoinHandle};
use trueup_operators::{
    log::{Append, Done, End, FRAME_RECORDS_MAX, Frame, Log, LogError, Topic},
    time::{LogTime, format_rfc3339},
};

/// Payloads are aligned to this in memory.
const ALIGNMENT_BYTES: usize = 64;

/// The embedded log. Dropping it writes what waits, syncs and stops the writer.
pub struct Journal {
    pub(crate) shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// What the writer, the readers and those who append have in common.
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) folder: Folder,
    pub(crate) identity: Identity,
    pub(crate) slots: Slots,
    pub(crate) settings: Settings,
    pub(crate) intake: Intake,
    pub(crate) held: RwLock<Held>,
    pub(crate) tail: Mutex<Tail>,
    pub(crate) reader: Reader,
    pub(crate) counters: Counters,
    /// A segment that retention has taken out of memory and not yet deleted.
    pub(crate) forgotten: Mutex<Option<Segment>>,
    /// Given back when the writer and the journal are both gone. A reader has none.
    lock: Option<Lock>,
}

impl Shared {
    pub(crate) fn is_writable(&self) -> bool {
        self.lock.is_some()
    }

    /// Says once that frames have become many.
    pub(crate) fn warn_of(&self, before: FramesHeld, held: FramesHeld) {
        let frames_max = self.settings.frames_max;
        if nearly(held, frames_max) && !nearly(before, frames_max) {
            let FramesHeld { remap, others } = held;
            tracing::warn!(
                remap,
                others,
                frames_max,
                "the log holds seven eighths of the frames that it can; shorten `log.retention`, \
                 or limit `log.retention_bytes_max`"
            );
        }
    }

    /// Whether there is room for the frames of a request. Those that wait are not counted: the
    /// queue has a limit of its own.
    fn check_room(&self, frames: &[Pending]) -> Result<(), LogError> {
        let held = self.held.read().frames_by_room(self.slots);
        let remap = frames.iter().filter(|p| p.append.topic == Topic::Remap).count() as u64;
        let others = frames.len() as u64 - remap;
        let frames_max = self.settings.frames_max;
        for (of, new, held) in
            [("the remap topic", remap, held.remap), ("events and the like", others, held.others)]
        {
            if new > 0 && held + new > frames_max {
                return Err(LogError::Unavailable {
                    reason: format!(
                        "it holds {held} frames of {of}, its limit is {frames_max}; shorten \
                         `log.retention`, or limit `log.retention_bytes_max`"
                    ),
                });
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("folder", &self.shared.folder.0).finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens the journal of a data directory; creates both if there is nothing. Whatever the clock
    /// says is believed.
    ///
    /// # Errors
    /// `Invalid` for settings that cannot be, for another number of partitions than the directory
    /// was created with, and when another process has the directory; `Corrupt` when bytes are not
    /// what was written; `Unavailable` when the system refuses.
    pub fn open(
        dir: &Path,
        settings: Settings,
        clock: Clock,
    ) -> Result<(Journal, Opened), LogError> {
        Journal::open_with(dir, settings, Guard::believing(clock))
    }

    /// The same, with a clock that is believed only as far as a watch and the log itself bear it
    /// out: while they do not, appends are refused as unavailable, with both times, and no log
    /// time comes of it.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_watched(
        dir: &Path,
        settings: Settings,
        clock: Clock,
        watch: Watch,
    ) -> Result<(Journal, Opened), LogError> {
        let guard = Guard::watching(clock, watch, settings.clock_behind_us_max);
        Journal::open_with(dir, settings, guard)
    }

    fn open_with(
        dir: &Path,
        settings: Settings,
        guard: Guard,
    ) -> Result<(Journal, Opened), LogError> {
        let (mut journal, opened, writer) =
            Journal::open_on(Arc::new(RealDisk), dir, settings, guard)?;
        let thread = std::thread::Builder::new().name("log-writer".into());
        let thread = thread.spawn(move || writer.run()).map_err(|error| LogError::Unavailable {
            reason: format!("the writer cannot start: {error}"),
        })?;
        journal.writer = Some(thread);
        Ok((journal, opened))
    }

    /// Opens a journal to read what it holds at this moment, next to a running server or without
    /// one. Takes no lock and changes nothing; an incomplete write is passed over as the end.
    /// Frames may be read that the server has written but not yet synced.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_read_only(dir: &Path) -> Result<(Journal, Opened), LogError> {
        Journal::read_only_on(Arc::new(RealDisk), dir)
    }

    pub(crate) fn read_only_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
    ) -> Result<(Journal, Opened), LogError> {
        let identity = Identity::load(&*disk, dir)?
            .ok_or_else(|| invalid(format!("{} is no data directory of Trueup", dir.display())))?;
        let settings = Settings { partitions: identity.partitions, ..Settings::default() };
        let folder = Folder::of(dir);
        let recovered = recover(&*disk, &folder, &identity, Mode::ReadOnly)?;
        // What the server appends from now on has at least the log time of the last frame.
        let floor = recovered.chain.floor;
        let guard = Guard::believing(Arc::new(move || floor));
        let parts = Parts { disk, folder, identity, settings, guard, lock: None };
        let shared = parts.share(&recovered.chain.reach, floor, recovered.held);
        drop(shared.intake.shut("it was opened read-only"));
        Ok((Journal { shared, writer: None }, recovered.opened))
    }

    /// Opens a journal and gives the writer to the caller, who must run it.
    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        settings: Settings,
        guard: Guard,
    ) -> Result<(Journal, Opened, Writer), LogError> {
        settings.check()?;
        let folder = Folder::of(dir);
        let lock = lock(&*disk, dir, &folder)?;
        let stored = Identity::load(&*disk, dir)?;
        let created = stored.is_none();
        let identity = match stored {
            Some(identity) => identity,
            None => create(&*disk, dir, &folder, settings.partitions)?,
        };
        if identity.partitions != settings.partitions {
            return Err(invalid(format!(
                "{} was created with {} partitions and cannot be opened with {}: the partition of \
                 an event follows from its id; set log.partitions to {}",
                dir.display(),
                identity.partitions,
                settings.partitions,
                identity.partitions
            )));
        }
        let recovered = recover(&*disk, &folder, &identity, Mode::Write)?;
        let Recovered { held, chain, last, opened } = recovered;
        let clock_behind_us = compare(chain.floor, guard.wall(), &settings);
        let parts = Parts { disk, folder, identity, settings, guard, lock: Some(lock) };
        let shared = parts.share(&chain.reach, chain.floor, held);
        let writer = Writer::new(Arc::clone(&shared), chain, last);
        let opened = Opened { created, clock_behind_us, ..opened };
        Ok((Journal { shared, writer: None }, opened, writer))
    }

    /// Who the data directory is.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// What was done since the journal was opened.
    pub fn counts(&self) -> Counts {
        self.shared.counters.counts()
    }

    /// The bytes of all segments.
    pub fn bytes_held(&self) -> u64 {
        self.shared.held.read().bytes()
    }

    /// The frames that are held.
    pub fn frames_held(&self) -> FramesHeld {
        self.shared.held.read().frames_by_room(self.shared.slots)
    }

    /// How many may be held of the remap topic, and of all others together.
    pub fn frames_max(&self) -> u64 {
        self.shared.settings.frames_max
    }

    /// Whether those are seven eighths of what can be, of either kind: before appends must be
    /// refused, whoever can should take no more.
    pub fn is_nearly_full(&self) -> bool {
        nearly(self.frames_held(), self.shared.settings.frames_max)
    }

    /// The bytes that wait to be durable.
    pub fn waiting_bytes(&self) -> u64 {
        self.shared.intake.waiting_bytes()
    }

    /// How far the clock stands behind the last log time, µs. While it does, all log times are
    /// equal; more than a moment of it means that the clock jumped.
    pub fn clock_behind_us(&self) -> i64 {
        self.shared.intake.clock_behind_us()
    }

    /// Why nothing is appended though the disk is well: the clock is not believed. Both times, and
    /// what to do.
    pub fn clock_doubt(&self) -> Option<String> {
        self.shared.intake.doubt().map(|doubt| doubt.to_string())
    }

    /// The memory that the frames appended last take.
    pub fn tail_bytes(&self) -> usize {
        self.shared.tail.lock().bytes()
    }

    /// Takes nothing more, writes what waits, answers it, syncs, and stops the writer. Reading
    /// goes on.
    pub fn close(&mut self) {
        self.shared.intake.close();
        let Some(writer) = self.writer.take() else { return };
        // The last owner may be a callback, which runs on the writer's own thread.
        if writer.thread().id() != std::thread::current().id() && writer.join().is_err() {
            tracing::error!("the log's writer panicked");
        }
    }

    fn slot(&self, topic: Topic, partition: u16) -> Result<usize, LogError> {
        self.shared.slots.slot(topic, partition).ok_or_else(|| {
            let (name, count) = (topic.name(), self.shared.slots.partitions(topic));
            invalid(format!("topic {name} has {count} partitions, there is no {partition}"))
        })
    }

    fn pending(&self, mut append: Append) -> Result<Pending, LogError> {
        let slot = self.slot(append.topic, append.partition)?;
        let bytes = append.payload.len();
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(invalid(format!(
                "a payload of {bytes} bytes is over the limit of a frame, {PAYLOAD_BYTES_MAX}"
            )));
        }
        if append.records as usize > FRAME_RECORDS_MAX {
            let records = append.records;
            return Err(invalid(format!(
                "{records} records are over the limit of a frame, {FRAME_RECORDS_MAX}"
            )));
        }
        append.payload = compact(append.payload);
        let payload_crc = crc32c::crc32c(&append.payload);
        Ok(Pending { slot, append, payload_crc })
    }

    /// Which frames a read is to give: as many as fit.
    fn wanted(
        &self,
        topic: Topic,
        partition: u16,
        (from, to): (u64, u64),
        bytes_max: usize,
    ) -> Result<Vec<Wanted>, LogError> {
        let slot = self.slot(topic, partition)?;
        let held = self.shared.held.read();
        let frames = &held.partitions[slot];
        let (first, end) = (frames.first, frames.end());
        let out_of_range =
            if from < first || from >= end || from >= to { Some(from) } else { None };
        if let Some(offset) = out_of_range.or((to > end).then_some(to)) {
            return Err(LogError::OutOfRange { topic, partition, offset, first, end });
        }
        let positions = frames.range(from, to, bytes_max).into_iter();
        let wanted = positions.zip(from..).map(|(position, offset)| {
            let segment = held.segment(position.segment);
            let first_sequence = segment.map_or(u64::MAX, |segment| segment.first_sequence);
            Wanted { offset, position, first_sequence }
        });
        Ok(wanted.collect())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

impl Log for Journal {
    fn partitions(&self, topic: Topic) -> u16 {
        self.shared.slots.partitions(topic)
    }

    fn broken(&self) -> Option<String> {
        self.shared.intake.broken()
    }

    fn append(&self, frames: Vec<Append>, done: Done) -> Result<(), LogError> {
        let mut bytes = REQUEST_BYTES;
        let mut pending = Vec::with_capacity(frames.len());
        for append in frames {
            let checked = self.pending(append)?;
            bytes += frame_bytes(checked.append.payload.len() as u32);
            pending.push(checked);
        }
        self.shared.check_room(&pending)?;
        self.shared.intake.put(Request { frames: pending, done, bytes })
    }

    fn ends(&self, topic: Topic) -> Vec<End> {
        let slots = topic_slots(self.shared.slots, topic);
        let ends = self.shared.intake.ends(slots.clone());
        let held = self.shared.held.read();
        let partitions = held.partitions[slots].iter();
        ends.into_iter()
            .zip(partitions)
            .map(|((reach, complete_to), partition)| End {
                offset: reach.offset,
                complete_to,
                bytes: partition.bytes,
                records: reach.records,
            })
            .collect()
    }

    fn first(&self, topic: Topic, partition: u16) -> u64 {
        let slot = self.slot(topic, partition);
        slot.map_or(0, |slot| self.shared.held.read().partitions[slot].first)
    }

    fn read(
        &self,
        topic: Topic,
        partition: u16,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Frame>, LogError> {
        let slot = self.slot(topic, partition)?;
        let wanted = self.wanted(topic, partition, (from, to), bytes_max)?;
        let to = from + wanted.len() as u64;
        let mut out = Vec::with_capacity(wanted.len());
        while out.len() < wanted.len() {
            let next = from + out.len() as u64;
            let cached = {
                let tail = self.shared.tail.lock();
                tail.read(slot, next, to, &mut out);
                tail.first(slot).filter(|&cached| cached > next).unwrap_or(to).min(to)
            };
            let missing = &wanted[out.len()..((cached - from) as usize).max(out.len())];
            let read = self.shared.reader.read(topic, partition, missing, &mut out);
            if let Err(error) = read {
                // Retention may have deleted the file since the positions were looked up.
                self.wanted(topic, partition, (from, to), 0)?;
                return Err(error);
            }
            self.shared.counters.note_read(missing.len());
        }
        Ok(out)
    }

    fn bytes_taken(&self, topic: Topic) -> u64 {
        let held = self.shared.held.read();
        let partitions = &held.partitions[topic_slots(self.shared.slots, topic)];
        partitions.iter().map(Partition::bytes_taken).sum()
    }

    fn offset_at(&self, topic: Topic, partition: u16, time: LogTime) -> Result<u64, LogError> {
        let slot = self.slot(topic, partition)?;
        Ok(self.shared.held.read().partitions[slot].offset_at(time))
    }
}

/// What [`Shared`] is made of, besides what was recovered.
struct Parts {
    disk: Arc<dyn Disk>,
    folder: Folder,
    identity: Identity,
    settings: Settings,
    guard: Guard,
    lock: Option<Lock>,
}

impl Parts {
    fn share(self, ends: &[Reach], floor: LogTime, held: Held) -> Arc<Shared> {
        let Parts { disk, folder, identity, settings, guard, lock } = self;
        let slots = Slots::new(identity.partitions);
        Arc::new(Shared {
            intake: Intake::new(ends, floor, settings.queue_bytes_max, guard),
            held: RwLock::new(held),
            tail: Mutex::new(Tail::new(slots.count(), settings.tail_bytes_max)),
            reader: Reader::new(Arc::clone(&disk), folder.clone(), identity.journal),
            counters: Counters::default(),
            forgotten: Mutex::new(None),
            disk,
            folder,
            identity,
            slots,
            settings,
            lock,
        })
    }
}

fn nearly(held: FramesHeld, frames_max: u64) -> bool {
    held.remap.max(held.others) >= frames_max - frames_max / 8
}

/// Says how a clock stands to the last log time, where it is worth saying; how far behind, µs.
fn compare(floor: LogTime, wall: LogTime, settings: &Settings) -> i64 {
    let clock_behind_us = floor.0.saturating_sub(wall.0);
    let (now, last) = (format_rfc3339(wall.0), format_rfc3339(floor.0));
    if clock_behind_us > 0 {
        tracing::warn!(clock_behind_us, now, last, "the clock stands behind the last log time");
    } else if floor.0 > 0 && wall.0.saturating_sub(floor.0) > settings.clock_behind_us_max {
        tracing::warn!(
            now,
            last,
            "the clock stands far ahead of the last log time: if the server was not away so long, \
             stop it now and set the clock right, for what is appended makes buckets final"
        );
    }
    clock_behind_us.max(0)
}

/// Takes a data directory for this process, and makes it if it is not there.
pub(crate) fn lock(disk: &dyn Disk, dir: &Path, folder: &Folder) -> Result<Lock, LogError> {
    let refused = |error: io::Error| LogError::Unavailable {
        reason: format!("the data directory {} cannot be used: {error}", dir.display()),
    };
    disk.create_dir(&folder.0).map_err(refused)?;
    sync_names(disk, folder).map_err(refused)?;
    disk.lock(&dir.join("LOCK")).map_err(refused)?.ok_or_else(|| {
        invalid(format!(
            "the data directory {} is in use by another process; stop that one or choose another \
             data_dir",
            dir.display()
        ))
    })
}

/// Makes the names of all directories above the segments durable: each of them may be new, or left
/// behind by a process that was killed before it synced them.
fn sync_names(disk: &dyn Disk, folder: &Folder) -> io::Result<()> {
    /// The folder, the data directory, and what that stands in.
    const OURS: usize = 3;
    for (above, dir) in folder.0.ancestors().enumerate() {
        let synced = disk.sync_dir(dir);
        // A directory of the system that cannot be read or written has no new name of ours.
        let foreign = |error: &io::Error| {
            use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem};
            matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | InvalidInput)
        };
        if above < OURS || !synced.as_ref().is_err_and(foreign) {
            synced?;
        }
    }
    Ok(())
}

/// Makes a new journal. The identity comes last: with it the data directory exists, and from then
/// on a missing segment is damage.
fn create(
    disk: &dyn Disk,
    dir: &Path,
    folder: &Folder,
    partitions: u16,
) -> Result<Identity, LogError> {
    let refused = |error: io::Error| LogError::Unavailable {
        reason: format!("a journal in {} cannot be created: {error}", dir.display()),
    };
    let slots = Slots::new(partitions);
    let (segments, _) = folder.list(disk).map_err(refused)?;
    let header = |journal| SegmentHeader {
        journal,
        first_sequence: 0,
        floor: LogTime(0),
        reach: vec![Reach::default(); slots.count()],
    };
    if !holds_nothing(disk, folder, &segments).map_err(refused)? {
        return Err(invalid(format!(
            "{} holds segments of a journal, but the file `identity` is missing; restore it from a \
             backup",
            dir.display()
        )));
    }
    let identity = Identity::random(partitions)?;
    folder.create(disk, &header(identity.journal), slots).map_err(refused)?;
    identity.store(disk, dir)?;
    Ok(identity)
}

/// Whether there is no segment but, perhaps, the one of a creation that was cut short.
fn holds_nothing(disk: &dyn Disk, folder: &Folder, segments: &[u64]) -> std::io::Result<bool> {
    match segments {
        [] => Ok(true),
        [0] => {
            let file = disk.open(&folder.segment(0), crate::disk::Access::Read)?;
            let largest = SegmentHeader {
                journal: 0,
                first_sequence: 0,
                floor: LogTime(0),
                reach: Vec::new(),
            };
            let slots = Slots::new(trueup_operators::log::PARTITIONS_MAX);
            Ok(file.bytes()? <= largest.encode(slots).len() as u64)
        }
        _ => Ok(false),
    }
}

/// A payload whose memory is aligned and not much larger than itself, so that it can be read in
/// place and the tail's limit means memory.
fn compact(payload: Buffer) -> Buffer {
    let aligned = (payload.as_ptr() as usize).is_multiple_of(ALIGNMENT_BYTES);
    let tight = payload.capacity() <= 2 * payload.len() + ALIGNMENT_BYTES;
    if aligned && tight {
        return payload;
    }
    let mut copy = MutableBuffer::with_capacity(payload.len());
    copy.extend_from_slice(&payload);
    copy.into()
}
