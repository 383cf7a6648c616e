//! The frames that were read back last. Events that are listed come in the order of the log, and a
//! frame may hold fifty thousand of them: whoever reads a page of them back would read and decode
//! one frame for every row. So the last few are kept, decoded: more than one, because several
//! readers go through the lists at the same time. They take [`BYTES_KEPT_MAX`] and one frame at
//! most.

use crate::ipc;
use arrow_array::RecordBatch;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};
use trueup_operators::{
    event::Position,
    log::{Frame, Log, Topic, read_frame},
};

/// How many frames are kept.
const FRAMES_KEPT_MAX: usize = 8;
/// How many bytes they may have; the one that was read last is kept whatever its size.
const BYTES_KEPT_MAX: usize = 64 << 20;

/// The frames, the one that was asked for last in front.
#[derive(Default)]
pub(super) struct Frames {
    last: Mutex<VecDeque<Arc<ReadBack>>>,
}

/// A frame that was read back.
pub(super) struct ReadBack {
    topic: Topic,
    pub(super) frame: Frame,
    batch: OnceLock<Result<RecordBatch, String>>,
}

impl ReadBack {
    fn is_at(&self, topic: Topic, partition: u16, offset: u64) -> bool {
        self.topic == topic && self.frame.partition == partition && self.frame.offset == offset
    }

    /// The frame as a batch of events, decoded when somebody asks for it first.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn batch(&self) -> Result<&RecordBatch, String> {
        let decoded =
            self.batch.get_or_init(|| ipc::decode(&self.frame).map_err(|error| error.to_string()));
        decoded.as_ref().map_err(Clone::clone)
    }
}

impl Frames {
    /// The frame of an event. One that a log puts together from messages may have been read when
    /// not all of them were there, or not as far as this event; then it is read again.
    ///
    /// # Errors
    /// When it cannot be read; the next one who asks reads it again.
    pub(super) fn read(&self, log: &dyn Log, position: Position) -> Result<Arc<ReadBack>, String> {
        let (topic, partition) = position.place();
        let offset = position.offset;
        if let Some(found) = self.kept(topic, partition, offset)
            && found.frame.records > u32::from(position.row)
        {
            return Ok(found);
        }
        let frame = read_frame(log, position).map_err(|e| e.to_string())?;
        let read = Arc::new(ReadBack { topic, frame, batch: OnceLock::new() });
        self.keep(Arc::clone(&read));
        Ok(read)
    }

    fn kept(&self, topic: Topic, partition: u16, offset: u64) -> Option<Arc<ReadBack>> {
        let mut last = self.last.lock();
        let at = last.iter().position(|kept| kept.is_at(topic, partition, offset))?;
        let found = last.remove(at)?;
        last.push_front(Arc::clone(&found));
        Some(found)
    }

    fn keep(&self, read: Arc<ReadBack>) {
        let mut last = self.last.lock();
        last.retain(|kept| !kept.is_at(read.topic, read.frame.partition, read.frame.offset));
        last.push_front(read);
        let (mut kept, mut bytes) = (0, 0);
        for read in last.iter().take(FRAMES_KEPT_MAX) {
            bytes += read.frame.payload.len();
            if kept > 0 && bytes > BYTES_KEPT_MAX {
                break;
            }
            kept += 1;
        }
        last.truncate(kept);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::life::Lives;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use trueup_generator::{event::Event, frames::Layout};
    use trueup_log::{Fsync, Journal, Settings, system_clock};
    use trueup_operators::{
        event::EventType,
        log::{Append, LogError, LogLayer, append_and_wait},
        time::LogTime,
    };

    const ROWS: u16 = 1_000;

    /// A log that counts how often it is read.
    struct Counting {
        journal: Journal,
        reads: AtomicUsize,
    }

    impl LogLayer for Counting {
        fn below(&self) -> &dyn Log {
            &self.journal
        }

        fn read_again(
            &self,
            topic: Topic,
            partition: u16,
            offset: u64,
            row: u16,
        ) -> Result<Vec<Frame>, LogError> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.journal.read_again(topic, partition, offset, row)
        }
    }

    /// A log of so many frames of a thousand events.
    fn log(frames: u64) -> (tempfile::TempDir, Arc<Counting>) {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { partitions: 1, fsync: Fsync::Never, ..Settings::default() };
        let (journal, _) = Journal::open(dir.path(), settings, system_clock()).unwrap();
        let key = journal.identity().hash_key;
        for frame in 0..frames {
            let event = |row| {
                Event::new(EventType::Click, format!("e{frame}-{row}"), 1_000_000, "camp", "ad")
            };
            let events: Vec<_> = (0..ROWS).map(event).collect();
            let frames = Layout { partitions: 1, key }.frames(&events, 1_000_000);
            assert_eq!(frames.len(), 1);
            append_and_wait(&journal, frames).unwrap();
        }
        (dir, Arc::new(Counting { journal, reads: AtomicUsize::new(0) }))
    }

    #[test]
    fn a_thousand_events_of_one_frame_are_one_read() {
        let (_dir, log) = log(2);
        let lives = Lives::new(Arc::clone(&log) as Arc<dyn Log>);
        let at = |offset, row| Position { partition: 0, offset, row };
        for row in 0..ROWS {
            let shown = lives.shown(at(1, row)).unwrap();
            assert_eq!(shown["eventId"], format!("e1-{row}"));
        }
        assert_eq!(log.reads.load(Ordering::Relaxed), 1);
        for row in (0..ROWS).rev() {
            assert!(lives.at(at(1, row)).unwrap().id_hash.is_some());
        }
        assert_eq!(log.reads.load(Ordering::Relaxed), 1);
        // Two that go through different frames do not take them from each other.
        for row in 0..ROWS {
            for offset in [0, 1] {
                assert_eq!(
                    lives.shown(at(offset, row)).unwrap()["eventId"],
                    format!("e{offset}-{row}")
                );
            }
        }
        assert_eq!(log.reads.load(Ordering::Relaxed), 2);
        assert!(lives.shown(at(1, ROWS)).unwrap_err().contains("not row 1000"));
    }

    #[test]
    fn few_are_kept_and_what_is_left_out_is_read_again() {
        let (_dir, log) = log(FRAMES_KEPT_MAX as u64 + 1);
        let frames = Frames::default();
        let read = |offset| {
            let position = Position { partition: 0, offset, row: 0 };
            frames.read(&*log, position).map(drop)
        };
        for offset in 0..=FRAMES_KEPT_MAX as u64 {
            read(offset).unwrap();
        }
        assert_eq!(frames.last.lock().len(), FRAMES_KEPT_MAX);
        read(1).unwrap();
        assert_eq!(log.reads.load(Ordering::Relaxed), FRAMES_KEPT_MAX + 1);
        read(0).unwrap();
        assert_eq!(log.reads.load(Ordering::Relaxed), FRAMES_KEPT_MAX + 2);
        // What cannot be read is asked for anew each time: it may be there later.
        assert!(read(99).is_err() && read(99).is_err());
        assert_eq!(frames.last.lock().len(), FRAMES_KEPT_MAX);
    }

    #[test]
    fn large_frames_leave_no_room_for_others() {
        let frames = Frames::default();
        let payload = arrow_buffer::Buffer::from_vec(vec![0u8; BYTES_KEPT_MAX / 2 + 1]);
        for offset in 0..3 {
            let append = Append {
                topic: Topic::Events,
                partition: 0,
                schema_version: 1,
                records: 1,
                payload: payload.clone(),
            };
            let frame = append.into_frame(offset, LogTime(0));
            let batch = OnceLock::new();
            frames.keep(Arc::new(ReadBack { topic: Topic::Events, frame, batch }));
            assert_eq!(frames.last.lock().len(), 1);
        }
        assert!(frames.kept(Topic::Events, 0, 2).is_some());
    }
}
