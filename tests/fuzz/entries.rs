//! What is fuzzed, and what must hold for any input. The fuzz targets call these with what the
//! fuzzer makes up, the end-to-end tests with a seeded corpus and random changes to it.
//!
//! * [`decode_a_body`]: whoever can reach the collector chooses the bytes. No panic; what is
//!   counted as accepted is in the frames, and the frames can be read.
//! * [`SoundJournal::read_damaged`]: whatever a disk does to a segment. No panic; a frame that is
//!   read is one that was written, at its own offset, whole; and if anything before the end is
//!   missing, somebody was told.

use arrow_ipc::reader::StreamReader;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use trueup_collector::{Decoder, Format, Rules};
use trueup_log::{Fsync, Journal, Repair, Settings, check};
use trueup_operators::{
    hash::HashKey,
    log::{Append, Frame, Log, LogError, Topic, append_and_wait},
    time::LogTime,
};

/// A time that is a plausible now, so that event times of a corpus are neither past nor future.
const NOW_US: i64 = 1_795_348_800_000_000;
const EVENTS_MAX: usize = 1_000;
const ERRORS_MAX: usize = 100;

/// Decodes a body: the first byte chooses format and partitions, the rest is the body.
pub fn decode_a_body(bytes: &[u8]) {
    let Some((&choice, body)) = bytes.split_first() else { return };
    let format = [Format::Json, Format::Lines, Format::Arrow][usize::from(choice) % 3];
    let partitions = u16::from(choice / 3) % 4 + 1;
    let publishers = ["pub_17".to_owned()];
    let rules = Rules {
        now_us: NOW_US,
        future_skew_us_max: 300_000_000,
        events_max: EVENTS_MAX,
        publishers: if choice >= 128 { &publishers } else { &[] },
        advertiser_of: &|campaign| (campaign.len() % 2 == 0).then(|| Arc::from("adv_1")),
    };
    let mut decoder = Decoder::new(HashKey([7; 16]), partitions);
    // Twice: what a decoder keeps from body to body must not change what the next one gets.
    let first = decoder.decode(body, format, &rules);
    let second = decoder.decode(body, format, &rules);
    match (&first, &second) {
        (Ok(first), Ok(second)) => {
            assert_eq!(first.accepted, second.accepted);
            assert_eq!(first.errors, second.errors);
            for (one, two) in first.frames.iter().zip(&second.frames) {
                assert_eq!(one.payload, two.payload);
            }
        }
        (Err(first), Err(second)) => assert_eq!(first, second),
        _ => panic!("the same body was taken once and refused once"),
    }
    let Ok(decoded) = first else { return };
    assert!(decoded.accepted + decoded.rejected <= EVENTS_MAX);
    assert_eq!(decoded.errors.len(), decoded.rejected.min(ERRORS_MAX));
    let rejected: usize = decoded.reasons.iter().map(|(_, events)| events).sum();
    assert_eq!(rejected, decoded.rejected);
    let records: usize = decoded.frames.iter().map(|frame| frame.records as usize).sum();
    assert_eq!(records, decoded.accepted);
    for frame in &decoded.frames {
        assert!(frame.partition < partitions);
        assert_eq!(rows(frame), frame.records as usize);
    }
}

fn rows(frame: &Append) -> usize {
    let reader = StreamReader::try_new(frame.payload.as_slice(), None).expect("an Arrow stream");
    reader.map(|batch| batch.expect("a whole batch").num_rows()).sum()
}

/// A journal as it was written, and a place where a damaged copy of it is read.
pub struct SoundJournal {
    dir: tempfile::TempDir,
    segment: PathBuf,
    sound: Vec<u8>,
    written: Vec<(Topic, Vec<Frame>)>,
    /// One copy at a time.
    busy: Mutex<()>,
}

const TOPICS: [Topic; 3] = [Topic::Events, Topic::Verdicts, Topic::Remap];

impl SoundJournal {
    /// Some frames of several topics and sizes.
    pub fn new() -> SoundJournal {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let clock = Arc::new(|| LogTime(NOW_US));
        let settings = Settings { partitions: 2, fsync: Fsync::Never, ..Settings::default() };
        let (journal, _) = Journal::open(dir.path(), settings, clock).expect("a new journal");
        for n in 0_u8..24 {
            let topic = TOPICS[usize::from(n) % TOPICS.len()];
            let partition = if topic == Topic::Events { u16::from(n) / 3 % 2 } else { 0 };
            let payload = vec![n; usize::from(n) * 13 % 190];
            let frame =
                Append { topic, partition, schema_version: 1, records: 1, payload: payload.into() };
            append_and_wait(&journal, vec![frame]).expect("a frame");
        }
        drop(journal);
        let segment = segment_of(dir.path());
        let sound = fs::read(&segment).expect("a segment");
        let (journal, _) = Journal::open_read_only(dir.path()).expect("a sound journal");
        let written = TOPICS
            .iter()
            .flat_map(|&topic| (0..journal.partitions(topic)).map(move |p| (topic, p)))
            .map(|(topic, p)| (topic, frames(&journal, topic, p).expect("sound frames")))
            .collect();
        SoundJournal { dir, segment, sound, written, busy: Mutex::default() }
    }

    /// The bytes of the segment as they were written: where damage begins.
    pub fn segment_bytes(&self) -> &[u8] {
        &self.sound
    }

    /// Reads a journal whose segment was changed. The input is a list of changes of four bytes:
    /// what to do, where (two bytes), and with what.
    pub fn read_damaged(&self, changes: &[u8]) {
        let mut bytes = self.sound.clone();
        for change in changes.chunks_exact(4).take(64) {
            damage(&mut bytes, change);
        }
        self.read(&bytes);
    }

    /// Reads a journal with this segment.
    pub fn read(&self, segment: &[u8]) {
        let alone = self.busy.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        fs::write(&self.segment, segment).expect("a damaged segment");
        let report = check(self.dir.path(), Repair::Nothing);
        let opened = Journal::open_read_only(self.dir.path());
        drop(alone);
        let well = report.as_ref().is_ok_and(|r| r.damage.is_empty());
        let (journal, _) = match opened {
            Ok(opened) => opened,
            Err(LogError::Corrupt { file, reason, .. }) => {
                assert!(!file.is_empty() && !reason.is_empty());
                assert!(!well, "the check finds nothing in what cannot be opened: {report:?}");
                return;
            }
            Err(LogError::Invalid { .. } | LogError::Unavailable { .. }) => return,
            Err(error) => panic!("opening says {error}"),
        };
        let mut partitions = self.written.iter();
        for topic in TOPICS {
            for partition in 0..journal.partitions(topic) {
                let (_, written) = partitions.next().expect("as many partitions as were written");
                match frames(&journal, topic, partition) {
                    Ok(read) => self.are_a_prefix(&read, written, segment),
                    Err(error) => assert!(matches!(error, LogError::Corrupt { .. }), "{error}"),
                }
            }
        }
    }

    fn are_a_prefix(&self, read: &[Frame], written: &[Frame], segment: &[u8]) {
        assert!(read.len() <= written.len(), "frames that nobody wrote");
        for (read, written) in read.iter().zip(written) {
            assert_eq!(
                (read.offset, read.log_time, read.payload.as_slice()),
                (written.offset, written.log_time, written.payload.as_slice())
            );
        }
        let untouched = segment.starts_with(&self.sound);
        assert!(!untouched || read.len() == written.len(), "what was written is not all there");
    }
}

impl Default for SoundJournal {
    fn default() -> Self {
        SoundJournal::new()
    }
}

fn damage(bytes: &mut Vec<u8>, change: &[u8]) {
    let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % bytes.len().max(1);
    let with = change[3];
    match change[0] % 6 {
        _ if bytes.is_empty() => bytes.push(with),
        0 => bytes[at] = with,
        1 => bytes[at] ^= 1 << (with % 8),
        2 => bytes.truncate(at),
        3 => bytes.extend(std::iter::repeat_n(with, at)),
        4 => bytes[at..].iter_mut().take(with.into()).for_each(|byte| *byte = 0),
        _ => {
            let piece = bytes[at..].iter().copied().take(with.into()).collect::<Vec<u8>>();
            bytes.extend(piece);
        }
    }
}

fn segment_of(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir.join("journal")).expect("a journal");
    let mut paths = entries.map(|entry| entry.expect("an entry").path());
    paths.find(|path| path.extension().is_some_and(|e| e == "seg")).expect("a segment")
}

fn frames(journal: &Journal, topic: Topic, partition: u16) -> Result<Vec<Frame>, LogError> {
    let end = journal.ends(topic)[usize::from(partition)].offset;
    let mut frames: Vec<Frame> = Vec::new();
    while (frames.len() as u64) < end {
        frames.extend(journal.read(topic, partition, frames.len() as u64, end, 1 << 20)?);
    }
    Ok(frames)
}
