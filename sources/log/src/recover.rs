//! Opening: from the files of a data directory to a journal that can be appended to.
//!
//! Sealed segments come from their indexes (or are scanned when those cannot be used). The last
//! segment is always scanned. What a crash tore is cut off and reported; anything else that is not
//! as it was written is an error that names file and byte, and the journal does not open.
//!
//! What stands above the last proof of durability (the last group, as a rule) may have been read
//! from the page cache of a process whose sync failed, and be on no disk at all. So those bytes
//! are written once more and synced before anyone is told that they are durable.

use crate::{
    disk::{Access, Disk, DiskFile, read_full, write_all},
    format::{Flaw, FrameHeader, SegmentHeader},
    identity::Identity,
    index,
    positions::{Partition, Position},
    scan::{Chain, Scanned, read_segment_header, scan, scan_last},
    segments::{Folder, Held, Segment},
    slot::Slots,
};
use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice},
    path::Path,
    sync::Arc,
};
use trueup_operators::log::LogError;

/// A write that a crash left incomplete. None of its frames was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The file.
    pub file: String,
    /// Where the last good frame ends.
    pub at: u64,
    /// How many bytes stood behind it.
    pub bytes: u64,
    /// What is wrong with the first of them.
    pub reason: String,
}

/// What opening a journal found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The data directory was new.
    pub created: bool,
    /// How many segment files.
    pub segments: u64,
    /// How many frames.
    pub frames: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// What was cut (or, when opened read-only, passed over) at the end.
    pub torn: Option<Torn>,
    /// How many segments had to be scanned because their index could not be used.
    pub indexes_rebuilt: u64,
    /// How far the clock stands behind the last log time, µs. Until it has caught up all log times
    /// are equal.
    pub clock_behind_us: i64,
}

/// The last segment, ready to be appended to.
pub(crate) struct LastSegment {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) header_bytes: u64,
    pub(crate) end: u64,
}

pub(crate) struct Recovered {
    pub(crate) held: Held,
    /// What the next frame continues.
    pub(crate) chain: Chain,
    pub(crate) last: LastSegment,
    pub(crate) opened: Opened,
}

/// Whether files may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Write,
    ReadOnly,
}

/// Attempts of a reader whose files a running server deletes or writes at the same moment.
const ATTEMPTS_MAX: usize = 5;

/// Opens the journal of a data directory. Its folder must exist.
pub(crate) fn recover(
    disk: &dyn Disk,
    folder: &Folder,
    identity: &Identity,
    mode: Mode,
) -> Result<Recovered, LogError> {
    let mut attempt = 1;
    loop {
        let (sequences, orphans) =
            folder.list(disk).map_err(|error| cannot_read(&folder.0, 0, &error))?;
        let recovery = Recovery::new(disk, folder, identity, mode);
        if mode == Mode::Write {
            recovery.remove(&orphans)?;
        }
        match recovery.run(&sequences) {
            Err(Failure::Vanished(_)) if mode == Mode::ReadOnly && attempt < ATTEMPTS_MAX => {
                attempt += 1;
            }
            Err(Failure::Vanished(error) | Failure::Log(error)) => return Err(error),
            Ok(recovered) => return Ok(recovered),
        }
    }
}

enum Failure {
    /// A segment that was listed is not there any more.
    Vanished(LogError),
    Log(LogError),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Failure {
        Failure::Log(error)
    }
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    folder: &'a Folder,
    identity: &'a Identity,
    slots: Slots,
    mode: Mode,
    held: Held,
    chain: Option<Chain>,
    opened: Opened,
}

/// An open segment whose header was read and fits.
struct Entered {
    file: Arc<dyn DiskFile>,
    segment: Segment,
    header_bytes: u64,
}

impl<'a> Recovery<'a> {
    fn new(
        disk: &'a dyn Disk,
        folder: &'a Folder,
        identity: &'a Identity,
        mode: Mode,
    ) -> Recovery<'a> {
        let slots = Slots::new(identity.partitions);
        let held = Held { partitions: Vec::new(), segments: VecDeque::new() };
        let opened = Opened::default();
        Recovery { disk, folder, identity, slots, mode, held, chain: None, opened }
    }

    fn remove(&self, orphans: &[std::path::PathBuf]) -> Result<(), LogError> {
        for path in orphans {
            self.disk.remove(path).map_err(|error| LogError::Unavailable {
                reason: format!("{} cannot be removed: {error}", path.display()),
            })?;
        }
        Ok(())
    }

    fn run(mut self, sequences: &[u64]) -> Result<Recovered, Failure> {
        let Some((&last, sealed)) = sequences.split_last() else {
            let reason = "holds no segment, but `identity` says that there was one".into();
            return Err(corrupt(&self.folder.0, 0, reason).into());
        };
        for &first_sequence in sealed {
            let entered = self.enter(first_sequence, Access::Read)?;
            self.load_sealed(entered)?;
        }
        let access = if self.mode == Mode::Write { Access::Write } else { Access::Read };
        let entered = self.enter(last, access)?;
        let last = self.load_last(entered)?;
        Ok(self.finish(last))
    }

    fn begin(&mut self, header: &SegmentHeader) -> Result<(), String> {
        if header.journal != self.identity.journal {
            return Err("the segment belongs to another installation".into());
        }
        match &self.chain {
            Some(chain) => chain.continues_in(header),
            None => {
                self.chain = Some(Chain::at_start(header, self.slots));
                let starts = header.reach.iter();
                self.held.partitions =
                    starts.map(|reach| Partition::starting_at(reach.offset)).collect();
                Ok(())
            }
        }
    }

    fn enter(&mut self, first_sequence: u64, access: Access) -> Result<Entered, Failure> {
        let path = self.folder.segment(first_sequence);
        let file = self.disk.open(&path, access).map_err(|error| {
            let found = cannot_read(&path, 0, &error);
            let vanished = error.kind() == ErrorKind::NotFound;
            if vanished { Failure::Vanished(found) } else { Failure::Log(found) }
        })?;
        let header = read_segment_header(&*file, self.slots)
            .map_err(|error| cannot_read(&path, 0, &error))?
            .and_then(|(header, bytes)| {
                self.begin(&header)?;
                if header.first_sequence == first_sequence {
                    Ok((header, bytes))
                } else {
                    Err(format!("the segment's first sequence is {}", header.first_sequence))
                }
            });
        let (header, header_bytes) = header.map_err(|reason| corrupt(&path, 0, reason))?;
        let number = self.held.segments.back().map_or(0, |last| last.number + 1);
        let segment = segment_of(&header, number, header_bytes);
        Ok(Entered { file, segment, header_bytes })
    }

    fn load_sealed(&mut self, entered: Entered) -> Result<(), LogError> {
        let path = self.folder.segment(entered.segment.first_sequence);
        let bytes = entered.file.bytes().map_err(|error| cannot_read(&path, 0, &error))?;
        if self.load_index(&entered, bytes)? {
            return Ok(());
        }
        let (scanned, _) = self.scan(&entered, &path, false)?;
        if let Some(flaw) = scanned.flaw {
            return Err(corrupt(&path, scanned.end, format!("{flaw}, and a segment follows")));
        }
        self.add_segment(entered.segment, scanned.end);
        self.opened.indexes_rebuilt += 1;
        if self.mode == Mode::Write {
            self.write_index(&path);
        }
        Ok(())
    }

    /// Whether the index could be used; then the segment's frames are known.
    fn load_index(&mut self, entered: &Entered, bytes: u64) -> Result<bool, LogError> {
        let path = self.folder.index(entered.segment.first_sequence);
        let file = match self.disk.open(&path, Access::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(cannot_read(&path, 0, &error)),
        };
        let mut chain = self.chain().clone();
        let number = entered.segment.number;
        let loaded = index::load(&*file, number, bytes, self.slots, &mut chain)
            .map_err(|error| cannot_read(&path, 0, &error))?;
        let Some((summary, entries)) = loaded else {
            tracing::warn!(index = %path.display(), "index cannot be used, scanning its segment");
            return Ok(false);
        };
        for entry in &entries {
            let slot = self.slots.slot(entry.of.0, entry.of.1).expect("the index was checked");
            self.held.partitions[slot].push(entry.position);
        }
        let last_log_time = summary.floor;
        self.held.segments.push_back(Segment { bytes, last_log_time, ..entered.segment.clone() });
        self.chain = Some(chain);
        Ok(true)
    }

    /// Scans a segment into the positions of frames, as far as it is good. Where the proof stands
    /// that what follows is damage, is the second value.
    fn scan(
        &mut self,
        entered: &Entered,
        path: &Path,
        is_last: bool,
    ) -> Result<(Scanned, Option<u64>), LogError> {
        let chain = self.chain.as_mut().expect("every segment that is scanned was entered");
        let (partitions, number) = (&mut self.held.partitions, entered.segment.number);
        let visit = |slot: usize, header: &FrameHeader, at: u64| {
            partitions[slot].push(Position::of(header, number, at));
        };
        let (file, from) = (&*entered.file, entered.header_bytes);
        let scanned = if is_last {
            scan_last(file, from, chain, self.mode == Mode::ReadOnly, visit)
        } else {
            scan(file, from, chain, visit).map(|scanned| (scanned, None))
        };
        scanned.map_err(|error| cannot_read(path, from, &error))
    }

    fn add_segment(&mut self, segment: Segment, bytes: u64) {
        let last_log_time = self.chain().floor;
        self.held.segments.push_back(Segment { bytes, last_log_time, ..segment });
    }

    fn load_last(&mut self, entered: Entered) -> Result<LastSegment, LogError> {
        let path = self.folder.segment(entered.segment.first_sequence);
        let (scanned, proof) = self.scan(&entered, &path, true)?;
        match (&scanned.flaw, proof) {
            (Some(flaw), Some(proof)) => {
                let reason =
                    format!("{flaw}, but the frame at byte {proof} proves that it was durable");
                return Err(corrupt(&path, scanned.end, reason));
            }
            (Some(flaw), None) => self.note_torn(&entered, &path, scanned.end, flaw)?,
            (None, _) => {}
        }
        if self.mode == Mode::Write {
            make_durable(&*entered.file, &scanned).map_err(|error| LogError::Unavailable {
                reason: format!("{} cannot be made durable: {error}", path.display()),
            })?;
        }
        let Entered { file, header_bytes, segment } = entered;
        self.add_segment(segment, scanned.end);
        Ok(LastSegment { file, header_bytes, end: scanned.end })
    }

    fn note_torn(
        &mut self,
        entered: &Entered,
        path: &Path,
        at: u64,
        flaw: &Flaw,
    ) -> Result<(), LogError> {
        let file_bytes = entered.file.bytes().map_err(|error| cannot_read(path, at, &error))?;
        let bytes = file_bytes.saturating_sub(at);
        let file = path.display().to_string();
        if self.mode == Mode::Write {
            tracing::warn!(%file, at, bytes, reason = %flaw, "cutting off an incomplete write");
        }
        self.opened.torn = Some(Torn { file, at, bytes, reason: flaw.to_string() });
        Ok(())
    }

    fn write_index(&self, segment_path: &Path) {
        let Some(segment) = self.held.segments.back() else { return };
        let chain = self.chain();
        let summary = index::Summary {
            journal: chain.journal,
            first_sequence: segment.first_sequence,
            end_sequence: chain.sequence,
            segment_bytes: segment.bytes,
            floor: segment.last_log_time,
        };
        let entries = self.held.entries_of_last(self.slots);
        let path = self.folder.index(segment.first_sequence);
        if let Err(error) = index::write(self.disk, &path, &summary, &entries) {
            let segment = segment_path.display();
            tracing::warn!(%segment, %error, "index not written, the next start scans again");
        }
    }

    fn chain(&self) -> &Chain {
        self.chain.as_ref().expect("every segment that is loaded was entered")
    }

    fn finish(mut self, last: LastSegment) -> Recovered {
        self.opened.segments = self.held.segments.len() as u64;
        self.opened.frames = self.held.frames();
        self.opened.bytes = self.held.bytes();
        let chain = self.chain().clone();
        Recovered { held: self.held, chain, last, opened: self.opened }
    }
}

fn segment_of(header: &SegmentHeader, number: u32, header_bytes: u64) -> Segment {
    Segment {
        number,
        first_sequence: header.first_sequence,
        bytes: header_bytes,
        last_log_time: header.floor,
        starts: header.reach.clone(),
    }
}

/// Cuts a segment at its good end and makes sure that what is good is on the disk.
fn make_durable(file: &dyn DiskFile, scanned: &Scanned) -> io::Result<()> {
    // Even when nothing is torn: a process that was killed may have reserved space behind it.
    file.set_bytes(scanned.end)?;
    write_again(file, scanned.proven, scanned.end)?;
    file.sync_all()
}

/// Writes bytes again that may be in the page cache alone.
fn write_again(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let mut at = from;
    while at < to {
        let mut bytes = vec![0; (to - at).min(CHUNK_BYTES) as usize];
        if read_full(file, &mut bytes, at)? < bytes.len() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        write_all(file, &mut [IoSlice::new(&bytes)], at)?;
        at += bytes.len() as u64;
    }
    Ok(())
}

/// Bytes that are not what was written.
pub(crate) fn corrupt(path: &Path, at: u64, reason: String) -> LogError {
    LogError::Corrupt { file: path.display().to_string(), at, reason }
}

/// Bytes that the system does not give. A file that is gone is damage; that the system has no file
/// handle left, no memory or no disk says nothing about the bytes.
pub(crate) fn cannot_read(path: &Path, at: u64, error: &io::Error) -> LogError {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            corrupt(path, at, format!("cannot be read: {error}"))
        }
        _ => LogError::Unavailable {
            reason: format!("{}, byte {at}: cannot be read: {error}", path.display()),
        },
    }
}
