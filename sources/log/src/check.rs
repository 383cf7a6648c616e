//! What `trueup doctor` asks of a journal: every byte of every segment, its indexes, what is torn
//! and what is damaged. It goes on behind damage, to name all of it. It changes nothing, unless it
//! is asked to cut a torn write off, which opening would do as well; damage it never touches.
//!
//! Reading every byte takes minutes, and a server may run meanwhile whose retention deletes the
//! oldest segments. So a segment that was listed and is not there is looked for again: if the
//! journal begins behind it by now, it was deleted, and with it all before it; the report is then
//! of what the journal holds since. A segment that is gone from its middle is damage.

use crate::{
    disk::{Access, Disk, DiskFile, RealDisk},
    identity::Identity,
    index::{self, Entry},
    journal::lock,
    positions::Position,
    recover::{Torn, cannot_read},
    scan::{Chain, read_segment_header, scan, scan_last},
    segments::Folder,
    settings::invalid,
    slot::Slots,
};
use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    path::Path,
    sync::Arc,
};
use trueup_operators::{
    log::{LogError, Topic},
    time::LogTime,
};

/// Whether a check may change anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// No; a server may be running.
    #[default]
    Nothing,
    /// Cut off a torn write, if nothing is damaged. No server may be running.
    CutTornWrite,
}

/// Bytes that are not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: String,
    /// Where in it.
    pub at: u64,
    /// What is wrong there.
    pub reason: String,
}

/// The state of a segment's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexState {
    /// The last segment needs none.
    NotNeeded,
    /// It says what the segment holds.
    Good,
    /// There is none; opening scans the segment and writes it.
    Missing,
    /// It cannot be used; opening scans the segment and writes it anew.
    Unusable,
}

/// One segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// The file.
    pub file: String,
    /// Bytes that are good.
    pub bytes: u64,
    /// Frames that are good.
    pub frames: u64,
    /// Its index.
    pub index: IndexState,
}

/// One partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionReport {
    /// The topic.
    pub topic: Topic,
    /// Which partition of it.
    pub partition: u16,
    /// The first offset that is held.
    pub first: u64,
    /// The offset after the last.
    pub end: u64,
    /// Frames that are good; less than `end - first` when some are damaged.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// The log time of the last frame.
    pub last_log_time: Option<LogTime>,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The installation's name.
    pub installation: String,
    /// Oldest first.
    pub segments: Vec<SegmentReport>,
    /// By topic and partition.
    pub partitions: Vec<PartitionReport>,
    /// An incomplete write at the end.
    pub torn: Option<Torn>,
    /// The incomplete write was cut off.
    pub repaired: bool,
    /// Everything that is not as it was written; empty when the journal is well.
    pub damage: Vec<Damage>,
}

impl Report {
    /// Bytes that are good.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Frames that are good.
    pub fn frames(&self) -> u64 {
        self.segments.iter().map(|segment| segment.frames).sum()
    }
}

/// Reads all of a journal and reports on it.
///
/// # Errors
/// When the directory holds no journal, or cannot be read at all; when a repair is asked for while
/// a server runs. Damage is no error but part of the report.
pub fn check(dir: &Path, repair: Repair) -> Result<Report, LogError> {
    check_on(&RealDisk, dir, repair)
}

pub(crate) fn check_on(disk: &dyn Disk, dir: &Path, repair: Repair) -> Result<Report, LogError> {
    let identity = Identity::load(disk, dir)?
        .ok_or_else(|| invalid(format!("{} is no data directory of Trueup", dir.display())))?;
    let folder = Folder::of(dir);
    let lock = match repair {
        Repair::Nothing => None,
        Repair::CutTornWrite => Some(lock(disk, dir, &folder)?),
    };
    let mut check = Check::new(disk, &folder, &identity);
    let last = check.segments(list(disk, &folder)?)?;
    let mut report = check.report;
    if lock.is_some()
        && report.damage.is_empty()
        && let (Some(torn), Some(last)) = (&report.torn, last)
    {
        cut(disk, &folder.segment(last), torn.at)?;
        report.repaired = true;
    }
    Ok(report)
}

/// The first sequences of all segments, oldest first.
fn list(disk: &dyn Disk, folder: &Folder) -> Result<VecDeque<u64>, LogError> {
    let listed = folder.list(disk).map_err(|error| cannot_read(&folder.0, 0, &error));
    listed.map(|(sequences, _)| sequences.into())
}

fn cut(disk: &dyn Disk, path: &Path, at: u64) -> Result<(), LogError> {
    let file = disk.open(path, Access::Write);
    let cut = file.and_then(|file| {
        file.set_bytes(at)?;
        file.sync_all()
    });
    cut.map_err(|error| LogError::Unavailable {
        reason: format!("{} cannot be cut at byte {at}: {error}", path.display()),
    })
}

struct Check<'a> {
    disk: &'a dyn Disk,
    folder: &'a Folder,
    journal: u64,
    slots: Slots,
    /// What the next segment must continue; unknown at first and behind damage.
    chain: Option<Chain>,
    report: Report,
}

impl<'a> Check<'a> {
    fn new(disk: &'a dyn Disk, folder: &'a Folder, identity: &Identity) -> Check<'a> {
        let slots = Slots::new(identity.partitions);
        let partitions = slots.all().map(|(topic, partition)| PartitionReport {
            topic,
            partition,
            first: 0,
            end: 0,
            frames: 0,
            records: 0,
            last_log_time: None,
        });
        let installation = identity.installation_hex();
        let partitions = partitions.collect();
        let report = Report { installation, partitions, ..Report::default() };
        Check { disk, folder, journal: identity.journal, slots, chain: None, report }
    }

    fn damage(&mut self, path: &Path, at: u64, reason: impl ToString) {
        let (file, reason) = (path.display().to_string(), reason.to_string());
        self.report.damage.push(Damage { file, at, reason });
    }

    /// Reads these segments, or those that the journal has instead once one of them is deleted; the
    /// last one.
    fn segments(&mut self, mut sequences: VecDeque<u64>) -> Result<Option<u64>, LogError> {
        if sequences.is_empty() {
            let reason = "holds no segment, but `identity` says that there was one";
            self.damage(&self.folder.0, 0, reason);
        }
        let mut last = None;
        while let Some(first_sequence) = sequences.pop_front() {
            last = Some(first_sequence);
            let Err(error) = self.segment(first_sequence, sequences.is_empty()) else { continue };
            let now = list(self.disk, self.folder)?;
            // Each time the journal begins later, so this comes to an end.
            if now.front().is_some_and(|&first| first > first_sequence) {
                self.forget();
                sequences = now;
            } else {
                self.damage(&self.folder.segment(first_sequence), 0, error);
            }
        }
        Ok(last)
    }

    /// What was read up to here is deleted.
    fn forget(&mut self) {
        self.chain = None;
        self.report.segments.clear();
        for partition in &mut self.report.partitions {
            (partition.frames, partition.records) = (0, 0);
        }
    }

    /// Reads a segment.
    ///
    /// # Errors
    /// When there is no such file.
    fn segment(&mut self, first_sequence: u64, is_last: bool) -> io::Result<()> {
        let path = self.folder.segment(first_sequence);
        let is_first = self.report.segments.is_empty() && self.report.damage.is_empty();
        let started = self.disk.open(&path, Access::Read).and_then(|file| {
            let header = read_segment_header(&*file, self.slots)?;
            Ok((file, header.map_err(|reason| io::Error::new(ErrorKind::InvalidData, reason))?))
        });
        let (file, (header, header_bytes)) = match started {
            Ok(started) => started,
            Err(error) => {
                self.chain = None;
                if error.kind() == ErrorKind::NotFound {
                    return Err(error);
                }
                self.damage(&path, 0, error);
                return Ok(());
            }
        };
        if header.journal != self.journal {
            self.damage(&path, 0, "the segment belongs to another installation");
        } else if let Some(chain) = self.chain.take()
            && let Err(reason) = chain.continues_in(&header)
        {
            self.damage(&path, 0, reason);
        }
        for (partition, start) in self.report.partitions.iter_mut().zip(&header.reach) {
            partition.first = if is_first { start.offset } else { partition.first };
            partition.end = start.offset;
        }
        let chain = Chain::at_start(&header, self.slots);
        if let Err(error) = self.frames(&path, &file, header_bytes, chain, is_last) {
            self.damage(&path, 0, format!("cannot be read: {error}"));
        }
        Ok(())
    }

    fn frames(
        &mut self,
        path: &Path,
        file: &Arc<dyn DiskFile>,
        header_bytes: u64,
        start: Chain,
        is_last: bool,
    ) -> io::Result<()> {
        let mut chain = start.clone();
        let mut entries = Vec::new();
        let partitions = &mut self.report.partitions;
        let visit = |slot: usize, header: &crate::format::FrameHeader, at: u64| {
            let partition = &mut partitions[slot];
            partition.end = header.offset + 1;
            partition.frames += 1;
            partition.records += u64::from(header.records);
            partition.last_log_time = Some(header.log_time);
            let of = (partition.topic, partition.partition);
            let position = Position::of(header, 0, at);
            entries.push(Entry { of, offset: header.offset, position });
        };
        let (scanned, proof) = if is_last {
            scan_last(&**file, header_bytes, &mut chain, true, visit)?
        } else {
            (scan(&**file, header_bytes, &mut chain, visit)?, None)
        };
        let (at, file_bytes) = (scanned.end, file.bytes()?);
        let whole = scanned.flaw.is_none();
        if let Some(flaw) = scanned.flaw {
            if is_last && proof.is_none() {
                let (file, reason) = (path.display().to_string(), flaw.to_string());
                let bytes = file_bytes.saturating_sub(at);
                self.report.torn = Some(Torn { file, at, bytes, reason });
            } else {
                self.damage(path, at, flaw);
            }
        }
        let frames = entries.len() as u64;
        let index = if is_last || !whole {
            IndexState::NotNeeded
        } else {
            self.index(start, file_bytes, entries)?
        };
        let file = path.display().to_string();
        self.report.segments.push(SegmentReport { file, bytes: at, frames, index });
        self.chain = whole.then_some(chain);
        Ok(())
    }

    fn index(
        &mut self,
        mut start: Chain,
        segment_bytes: u64,
        mut entries: Vec<Entry>,
    ) -> io::Result<IndexState> {
        let path = self.folder.index(start.sequence);
        let file = match self.disk.open(&path, Access::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(IndexState::Missing),
            Err(error) => return Err(error),
        };
        let loaded = index::load(&*file, 0, segment_bytes, self.slots, &mut start)?;
        let Some((_, indexed)) = loaded else { return Ok(IndexState::Unusable) };
        entries.sort_by_key(|entry| (self.slots.slot(entry.of.0, entry.of.1), entry.offset));
        if indexed == entries {
            return Ok(IndexState::Good);
        }
        self.damage(&path, 0, "the index does not say what its segment holds; delete it");
        Ok(IndexState::Unusable)
    }
}
