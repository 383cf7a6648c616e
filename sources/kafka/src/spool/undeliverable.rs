//! Frames that Kafka does not take for what they are, above all for their size: the topic's limit
//! was lowered after they were acknowledged. What stands behind them must not wait for ever, and
//! they must not be lost, so they are kept beside the journal until a later start finds that Kafka
//! takes them.
//!
//! # The directory `undeliverable`
//!
//! One file a frame, called `<log time in µs>-<offset>.frame` after its place in the journal, so
//! that a drain that ended between keeping a frame and noting so keeps it once. Little-endian:
//!
//! ```text
//! 0       u8×4  "tspu"
//! 4       u32   version = 1
//! 8       u16   the frame's schema version
//! 10      u16   reserved = 0
//! 12      u32   records
//! 16      u8×n  the payload and its trailer, as in the journal (`spool.rs`)
//! 16 + n  u32   CRC-32C of the bytes before
//! ```
//!
//! A file is whole and on the disk before the drained position moves past its frame. It is deleted
//! when its frame is in Kafka, and by nobody else. One that is damaged stays, is named in the log
//! of the process, and is counted.
//!
//! Bounded: [`FRAMES_MAX`] and [`BYTES_MAX`]. Beyond, a frame is not kept, and the drain stands.

use crate::settings::unavailable;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};
use trueup_log::replace_file;
use trueup_operators::{
    log::{Frame, LogError},
    time::LogTime,
};

/// The most frames that are kept: more are no accident of a few, and somebody must look.
pub(super) const FRAMES_MAX: usize = 1_000;
/// The most bytes that are kept.
pub(super) const BYTES_MAX: u64 = 1 << 30;

const MAGIC: [u8; 4] = *b"tspu";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const SUFFIX: &str = ".frame";

/// The frames that are kept.
#[derive(Debug)]
pub(super) struct Undeliverable {
    dir: PathBuf,
    /// By file name: its bytes.
    files: Mutex<BTreeMap<String, u64>>,
    bytes_max: u64,
    /// Frames that were kept since the process began.
    kept: AtomicU64,
}

impl Undeliverable {
    /// Looks what is kept.
    pub(super) fn open(spool: &Path) -> Result<Undeliverable, LogError> {
        let dir = spool.join("undeliverable");
        let files = list(&dir)
            .map_err(|error| unavailable(format!("{} cannot be read: {error}", dir.display())))?;
        let (files, kept) = (Mutex::new(files), AtomicU64::new(0));
        Ok(Undeliverable { dir, files, bytes_max: BYTES_MAX, kept })
    }

    /// How many frames are kept.
    pub(super) fn frames(&self) -> u64 {
        self.files.lock().len() as u64
    }

    /// How many were kept since the process began.
    pub(super) fn kept(&self) -> u64 {
        self.kept.load(SeqCst)
    }

    /// Those that are kept.
    pub(super) fn names(&self) -> Vec<String> {
        self.files.lock().keys().cloned().collect()
    }

    /// Where one is kept.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Keeps a frame of the journal, durably.
    ///
    /// # Errors
    /// `Unavailable` when the disk refuses, and at a limit.
    pub(super) fn keep(&self, frame: &Frame) -> Result<PathBuf, LogError> {
        let name = format!("{}-{}{SUFFIX}", frame.log_time.0, frame.offset);
        let path = self.path(&name);
        let bytes = encode(frame);
        let mut files = self.files.lock();
        let is_new = !files.contains_key(&name);
        let is_full = |files: &BTreeMap<String, u64>| {
            let held = files.values().sum::<u64>();
            files.len() >= FRAMES_MAX || held + bytes.len() as u64 > self.bytes_max
        };
        if is_new && is_full(&files) {
            // Somebody may have moved some away.
            files.retain(|name, _| self.path(name).exists());
        }
        if is_new && is_full(&files) {
            let held = files.values().sum::<u64>();
            return Err(unavailable(format!(
                "{} holds {} frames of {held} bytes that Kafka does not take, the limits are \
                 {FRAMES_MAX} and {}: raise what the topics take (max.message.bytes) and start \
                 again, or look into these and move them away",
                self.dir.display(),
                files.len(),
                self.bytes_max
            )));
        }
        let failed = |error| unavailable(format!("{} cannot be written: {error}", path.display()));
        fs::create_dir_all(&self.dir).map_err(failed)?;
        // The name of the directory itself must last as well.
        sync_dir(self.dir.parent().unwrap_or(&self.dir)).map_err(failed)?;
        replace_file(&path, &bytes).map_err(failed)?;
        files.insert(name, bytes.len() as u64);
        self.kept.fetch_add(u64::from(is_new), SeqCst);
        Ok(path)
    }

    /// Whether somebody has moved a frame away; then it is not counted any more.
    pub(super) fn is_gone(&self, name: &str) -> bool {
        let is_gone = !self.path(name).exists();
        if is_gone {
            self.files.lock().remove(name);
        }
        is_gone
    }

    /// A frame that is kept, as it stood in the journal.
    ///
    /// # Errors
    /// What is wrong with its file.
    pub(super) fn read(&self, name: &str) -> Result<Frame, LogError> {
        let path = self.path(name);
        let bytes = fs::read(&path)
            .map_err(|error| unavailable(format!("{} cannot be read: {error}", path.display())))?;
        decode(&bytes).map_err(|reason| LogError::Corrupt {
            file: path.display().to_string(),
            at: 0,
            reason: reason.into(),
        })
    }

    /// Forgets a frame that is in Kafka now.
    ///
    /// # Errors
    /// When its file cannot be deleted; it is sent once more then, which is harmless.
    pub(super) fn forget(&self, name: &str) -> Result<(), LogError> {
        let path = self.path(name);
        fs::remove_file(&path).map_err(|error| {
            unavailable(format!("{} cannot be deleted: {error}", path.display()))
        })?;
        self.files.lock().remove(name);
        Ok(())
    }
}

fn sync_dir(dir: &Path) -> std::io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

fn list(dir: &Path) -> std::io::Result<BTreeMap<String, u64>> {
    let mut files = BTreeMap::new();
    if !dir.try_exists()? {
        return Ok(files);
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A name that is none of ours is nothing that was kept.
        let name = entry.file_name().into_string().ok();
        if let Some(name) = name.filter(|name| name.ends_with(SUFFIX)) {
            files.insert(name, entry.metadata()?.len());
        }
    }
    Ok(files)
}

fn encode(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + frame.payload.len() + CRC_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(frame.schema_version.to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend(frame.records.to_le_bytes());
    bytes.extend_from_slice(&frame.payload);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<Frame, &'static str> {
    let body_bytes = bytes.len().checked_sub(CRC_BYTES).ok_or("it is cut short")?;
    let (body, crc) = bytes.split_at(body_bytes);
    if crc != crc32c::crc32c(body).to_le_bytes() {
        return Err("its checksum does not match");
    }
    let (header, payload) = body.split_at_checked(HEADER_BYTES).ok_or("it is cut short")?;
    if header[..4] != MAGIC || header[4..8] != VERSION.to_le_bytes() || header[10..12] != [0, 0] {
        return Err("it is another file, or of another version");
    }
    Ok(Frame {
        partition: 0,
        offset: 0,
        next: 1,
        log_time: LogTime(0),
        schema_version: u16::from_le_bytes([header[8], header[9]]),
        records: u32::from_le_bytes([header[12], header[13], header[14], header[15]]),
        payload: arrow_buffer::Buffer::from(payload),
        foreign: None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn frame(offset: u64, payload: &[u8]) -> Frame {
        Frame {
            partition: 0,
            offset,
            next: offset + 1,
            log_time: LogTime(9_000),
            schema_version: 3,
            records: 70_000,
            payload: arrow_buffer::Buffer::from(payload),
            foreign: None,
        }
    }

    #[test]
    fn what_is_kept_is_read_by_a_later_start_and_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Undeliverable::open(dir.path()).unwrap();
        assert_eq!((kept.frames(), kept.kept()), (0, 0));
        let path = kept.keep(&frame(7, b"large")).unwrap();
        assert_eq!(
            kept.keep(&frame(7, b"large")).unwrap(),
            path,
            "the drain ended before its note"
        );
        kept.keep(&frame(8, b"")).unwrap();
        assert_eq!((kept.frames(), kept.kept()), (2, 2));

        let again = Undeliverable::open(dir.path()).unwrap();
        assert_eq!((again.frames(), again.kept()), (2, 0));
        let names = again.names();
        assert_eq!(names, ["9000-7.frame", "9000-8.frame"]);
        let read = again.read(&names[0]).unwrap();
        assert_eq!((read.schema_version, read.records), (3, 70_000));
        assert_eq!(read.payload.as_slice(), b"large");
        again.forget(&names[0]).unwrap();
        assert_eq!(Undeliverable::open(dir.path()).unwrap().names(), ["9000-8.frame"]);
    }

    #[test]
    fn a_damaged_one_says_so_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Undeliverable::open(dir.path()).unwrap();
        let path = kept.keep(&frame(1, b"payload")).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 1;
            for bytes in [&broken[..], &whole[..at]] {
                fs::write(&path, bytes).unwrap();
                let read = kept.read("9000-1.frame");
                assert!(matches!(read, Err(LogError::Corrupt { .. })), "{at}: {read:?}");
            }
        }
        assert_eq!(Undeliverable::open(dir.path()).unwrap().frames(), 1);
    }

    #[test]
    fn at_a_limit_nothing_more_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let few = Undeliverable { bytes_max: 100, ..Undeliverable::open(dir.path()).unwrap() };
        few.keep(&frame(1, &[1; 60])).unwrap();
        let refused = few.keep(&frame(2, &[2; 1])).unwrap_err().to_string();
        assert!(refused.contains("1 frames of 80 bytes"), "{refused}");
        few.keep(&frame(1, &[1; 60])).unwrap();
        assert_eq!((few.frames(), few.kept()), (1, 1));
        for nth in 1..FRAMES_MAX {
            fs::write(few.dir.join(format!("{nth}{SUFFIX}")), "").unwrap();
        }
        let full = Undeliverable::open(dir.path()).unwrap();
        assert!(full.keep(&frame(2, &[2; 1])).is_err());
        assert!(!full.path("9000-2.frame").exists());
        // One that is moved away makes room.
        fs::remove_file(few.dir.join(format!("7{SUFFIX}"))).unwrap();
        full.keep(&frame(2, &[2; 1])).unwrap();
        assert_eq!(full.frames(), FRAMES_MAX as u64);
        assert!(!full.is_gone("9000-2.frame") && full.is_gone("none"));
    }
}
