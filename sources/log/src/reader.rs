//! Frames from the disk. Neighbours are read with one system call into one aligned buffer, and
//! each frame is a slice of it; both checksums are tested on the way, every time. Bytes that are
//! not what was written are `Corrupt`; bytes that the system does not give now are `Unavailable`.
//!
//! A run ends at [`RUN_BYTES_MAX`], because a single frame that is kept keeps its whole run alive.
//! At most [`HANDLES_MAX`] segments are open at once; the one that was used longest ago is closed.

use crate::{
    disk::{Access, Disk, DiskFile, read_full},
    format::{FrameHeader, HEADER_BYTES, UNIT_BYTES, part},
    positions::Position,
    recover::{cannot_read, corrupt},
    segments::Folder,
};
use arrow_buffer::{Buffer, MutableBuffer};
use parking_lot::Mutex;
use std::{collections::VecDeque, path::Path, sync::Arc};
use trueup_operators::log::{Frame, LogError, Topic};

const RUN_BYTES_MAX: u64 = 1 << 20;
const HANDLES_MAX: usize = 64;

/// A frame to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) offset: u64,
    pub(crate) position: Position,
    /// Names the segment's file.
    pub(crate) first_sequence: u64,
}

pub(crate) struct Reader {
    disk: Arc<dyn Disk>,
    folder: Folder,
    journal: u64,
    /// The most recently used last.
    handles: Mutex<VecDeque<(u64, Arc<dyn DiskFile>)>>,
}

impl Reader {
    pub(crate) fn new(disk: Arc<dyn Disk>, folder: Folder, journal: u64) -> Reader {
        Reader { disk, folder, journal, handles: Mutex::new(VecDeque::new()) }
    }

    /// Appends frames of one partition, in the order given, to `out`.
    pub(crate) fn read(
        &self,
        topic: Topic,
        partition: u16,
        mut wanted: &[Wanted],
        out: &mut Vec<Frame>,
    ) -> Result<(), LogError> {
        while let Some(first) = wanted.first() {
            let run = run_length(wanted);
            let path = self.folder.segment(first.first_sequence);
            let file = self.handle(first.first_sequence, &path)?;
            let bytes = self.read_run(&*file, &path, &wanted[..run])?;
            for frame in &wanted[..run] {
                let start = (frame.position.at() - first.position.at()) as usize;
                out.push(self.frame(&bytes, start, (topic, partition), frame, &path)?);
            }
            wanted = &wanted[run..];
        }
        Ok(())
    }

    fn read_run(
        &self,
        file: &dyn DiskFile,
        path: &Path,
        run: &[Wanted],
    ) -> Result<Buffer, LogError> {
        let (first, last) = (run[0].position, run[run.len() - 1].position);
        let end = last.at() + UNIT_BYTES + u64::from(last.payload_bytes);
        let mut bytes = MutableBuffer::from_len_zeroed((end - first.at()) as usize);
        let read = read_full(file, bytes.as_slice_mut(), first.at())
            .map_err(|error| cannot_read(path, first.at(), &error))?;
        if read < bytes.len() {
            let at = first.at() + read as u64;
            let missing = bytes.len() - read;
            return Err(corrupt(path, at, format!("the file ends {missing} bytes too early")));
        }
        Ok(bytes.into())
    }

    fn frame(
        &self,
        run: &Buffer,
        start: usize,
        of: (Topic, u16),
        wanted: &Wanted,
        path: &Path,
    ) -> Result<Frame, LogError> {
        let at = wanted.position.at();
        let header = FrameHeader::decode(&part(run, start), self.journal)
            .map_err(|flaw| corrupt(path, at, flaw.to_string()))?;
        let expected = header.of == Some(of)
            && header.offset == wanted.offset
            && header.payload_bytes == wanted.position.payload_bytes
            && header.log_time == wanted.position.log_time;
        if !expected {
            let (topic, partition, offset) = (of.0.name(), of.1, wanted.offset);
            let reason =
                format!("another frame stands where {topic} {partition}:{offset} should be");
            return Err(corrupt(path, at, reason));
        }
        let payload_bytes = header.payload_bytes as usize;
        let payload = run.slice_with_length(start + HEADER_BYTES, payload_bytes);
        if crc32c::crc32c(&payload) != header.payload_crc {
            let reason = "the checksum of the frame's payload does not match";
            return Err(corrupt(path, at, reason.into()));
        }
        Ok(Frame {
            partition: of.1,
            offset: header.offset,
            next: header.offset + 1,
            log_time: header.log_time,
            schema_version: header.schema_version,
            records: header.records,
            payload,
            foreign: None,
        })
    }

    fn handle(&self, first_sequence: u64, path: &Path) -> Result<Arc<dyn DiskFile>, LogError> {
        let mut handles = self.handles.lock();
        let found = handles.iter().position(|(sequence, _)| *sequence == first_sequence);
        let handle = match found.and_then(|at| handles.remove(at)) {
            Some(handle) => handle,
            None => {
                let file = self.disk.open(path, Access::Read);
                (first_sequence, file.map_err(|error| cannot_read(path, 0, &error))?)
            }
        };
        let file = Arc::clone(&handle.1);
        handles.push_back(handle);
        if handles.len() > HANDLES_MAX {
            handles.pop_front();
        }
        Ok(file)
    }

    /// Closes a segment that is deleted, so that its space is given back.
    pub(crate) fn forget(&self, first_sequence: u64) {
        self.handles.lock().retain(|(sequence, _)| *sequence != first_sequence);
    }
}

/// How many of the first frames stand side by side.
fn run_length(wanted: &[Wanted]) -> usize {
    let first = &wanted[0];
    let neighbours = wanted.windows(2).take_while(|pair| {
        let [before, after] = pair else { return false };
        before.first_sequence == after.first_sequence
            && before.position.end() == after.position.at()
            && after.position.end() - first.position.at() <= RUN_BYTES_MAX
    });
    1 + neighbours.count()
}
