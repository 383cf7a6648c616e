//! A log in memory with the semantics of a real one, and the ways in which one can fail.

use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};
use trueup_operators::{
    log::{Append, Appended, Done, End, Frame, Log, LogError, Topic},
    time::LogTime,
};

/// What the log does with an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    /// Takes it and says nothing until [`MemoryLog::release`].
    Slow,
    /// Refuses it: the queue is full.
    Busy,
    /// Takes it and cannot write it.
    Failing,
    /// Takes it and goes away without a word.
    Vanishing,
    /// Refuses it as too large.
    Narrow,
    /// Keeps it beside, says so with a place that is none of the log's, and shows nothing new
    /// until [`MemoryLog::release`].
    Away,
    /// Takes it and cannot be read.
    Unreadable,
}

pub(super) struct MemoryLog {
    partitions: u16,
    is_shared: bool,
    state: Mutex<State>,
    clock: AtomicI64,
    /// How often the ends were asked for and told.
    asked: AtomicI64,
}

struct State {
    mood: Mood,
    frames: Vec<(Topic, Frame)>,
    held: Vec<(Vec<Append>, Done)>,
}

impl MemoryLog {
    pub(super) fn new(partitions: u16) -> Arc<MemoryLog> {
        Arc::new(MemoryLog::made(partitions, false))
    }

    /// One that other processes append to as well.
    pub(super) fn shared(partitions: u16) -> Arc<MemoryLog> {
        Arc::new(MemoryLog::made(partitions, true))
    }

    fn made(partitions: u16, is_shared: bool) -> MemoryLog {
        let state = State { mood: Mood::Well, frames: Vec::new(), held: Vec::new() };
        let (clock, asked) = (AtomicI64::new(1), AtomicI64::new(0));
        MemoryLog { partitions, is_shared, state: Mutex::new(state), clock, asked }
    }

    pub(super) fn set(&self, mood: Mood) {
        self.state.lock().mood = mood;
    }

    pub(super) fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    /// Makes everything durable that was held back.
    pub(super) fn release(&self) {
        let held = std::mem::take(&mut self.state.lock().held);
        for (frames, done) in held {
            let appended = self.write(frames);
            done(Ok(appended));
        }
    }

    /// All frames of a topic, in the order in which they became durable.
    pub(super) fn frames(&self, topic: Topic) -> Vec<Frame> {
        let state = self.state.lock();
        state.frames.iter().filter(|f| f.0 == topic).map(|f| f.1.clone()).collect()
    }

    fn write(&self, frames: Vec<Append>) -> Vec<Appended> {
        let mut state = self.state.lock();
        let log_time = LogTime(self.clock.fetch_add(1, Ordering::Relaxed));
        frames
            .into_iter()
            .map(|append| {
                assert!(append.partition < self.partitions(append.topic));
                assert!(append.records > 0);
                let same =
                    |f: &&(Topic, Frame)| f.0 == append.topic && f.1.partition == append.partition;
                let offset = state.frames.iter().filter(same).count() as u64;
                state.frames.push((append.topic, append.into_frame(offset, log_time)));
                Appended { offset, log_time }
            })
            .collect()
    }
}

impl Log for MemoryLog {
    fn is_shared(&self) -> bool {
        self.is_shared
    }

    fn partitions(&self, topic: Topic) -> u16 {
        if topic == Topic::Events { self.partitions } else { 1 }
    }

    fn append(&self, frames: Vec<Append>, done: Done) -> Result<(), LogError> {
        let mood = self.state.lock().mood;
        match mood {
            Mood::Well | Mood::Unreadable => done(Ok(self.write(frames))),
            Mood::Away => {
                let place = Appended { offset: 900_000, log_time: LogTime(1) };
                done(Ok(vec![place; frames.len()]));
                let nobody: Done = Box::new(|_| {});
                self.state.lock().held.push((frames, nobody));
            }
            Mood::Slow => self.state.lock().held.push((frames, done)),
            Mood::Busy => {
                return Err(LogError::Busy { waiting_bytes: 900, limit_bytes: 800 });
            }
            Mood::Failing => {
                done(Err(LogError::Unavailable { reason: "No space left on device".into() }));
            }
            Mood::Vanishing => drop(done),
            Mood::Narrow => {
                return Err(LogError::Invalid {
                    reason: "a frame of 99 bytes, the limit is 9".into(),
                });
            }
        }
        Ok(())
    }

    fn ends(&self, topic: Topic) -> Vec<End> {
        let told = i64::from(self.state.lock().mood != Mood::Away);
        let complete_to = LogTime(self.asked.fetch_add(told, Ordering::Relaxed) + told);
        (0..self.partitions(topic))
            .map(|partition| {
                let frames = self.frames(topic);
                let offset = frames.iter().filter(|f| f.partition == partition).count() as u64;
                End { offset, complete_to, bytes: 0, records: 0 }
            })
            .collect()
    }

    fn first(&self, _: Topic, _: u16) -> u64 {
        0
    }

    fn read(
        &self,
        topic: Topic,
        partition: u16,
        from: u64,
        to: u64,
        _: usize,
    ) -> Result<Vec<Frame>, LogError> {
        if self.state.lock().mood == Mood::Unreadable {
            return Err(LogError::Unavailable { reason: "nothing came".into() });
        }
        // One at a time: the least that a log may give.
        let frames = self.frames(topic).into_iter();
        Ok(frames
            .filter(|f| f.partition == partition && (from..to).contains(&f.offset))
            .take(1)
            .collect())
    }

    fn offset_at(&self, _: Topic, _: u16, _: LogTime) -> Result<u64, LogError> {
        Ok(0)
    }
}
