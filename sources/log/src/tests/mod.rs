//! Tests of the whole journal, on a real directory or on the simulated disk. Random ones print
//! their seed; `TRUEUP_SEED=<seed>` runs that one alone.

#![allow(clippy::unwrap_used)]

mod clock;
mod crash;
mod damage;
mod everyday;
mod faults;
mod races;
mod retained;
mod simulated;

use crate::{
    Clock, Journal, Opened, Settings, clock::Guard, disk::Disk, writer::Turn, writer::Writer,
};
use arrow_buffer::Buffer;
use parking_lot::Mutex;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};
use trueup_operators::{
    log::{Append, Appended, Frame, Log, LogError, Topic},
    time::LogTime,
};

/// The splitmix64 generator.
#[derive(Clone, Debug)]
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn split(&mut self) -> Rng {
        Rng(self.next())
    }
}

/// Runs a test for many seeds, or for the one in `TRUEUP_SEED`.
fn for_seeds(count: u64, test: impl Fn(u64)) {
    if let Ok(seed) = std::env::var("TRUEUP_SEED") {
        return test(seed.parse().expect("TRUEUP_SEED is a number"));
    }
    let start = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    for nth in 0..count {
        let seed = Rng::new(start.wrapping_add(nth)).next();
        let told = Told(seed);
        test(seed);
        drop(told);
    }
}

/// Says which seed failed.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with TRUEUP_SEED={}", self.0);
        }
    }
}

/// A clock that tests move.
#[derive(Clone, Default)]
struct TestClock(Arc<AtomicI64>);

impl TestClock {
    fn at(us: i64) -> TestClock {
        TestClock(Arc::new(AtomicI64::new(us)))
    }

    fn set(&self, us: i64) {
        self.0.store(us, SeqCst);
    }

    fn clock(&self) -> Clock {
        let time = Arc::clone(&self.0);
        Arc::new(move || LogTime(time.load(SeqCst)))
    }
}

fn small() -> Settings {
    Settings { partitions: 3, segment_bytes_max: 16 << 10, ..Settings::default() }
}

fn append(topic: Topic, partition: u16, payload: &[u8]) -> Append {
    let payload = Buffer::from(payload);
    Append { topic, partition, schema_version: 1, records: 1 + partition as u32, payload }
}

fn event(partition: u16, payload: &[u8]) -> Append {
    append(Topic::Events, partition, payload)
}

/// A payload that says what it is, of some length.
fn payload(seed: u64, bytes: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut out: Vec<u8> = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        out.extend(rng.next().to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// All frames of a partition.
fn all(log: &dyn Log, topic: Topic, partition: u16) -> Vec<Frame> {
    let end = log.ends(topic)[usize::from(partition)].offset;
    let mut from = log.first(topic, partition);
    let mut out: Vec<Frame> = Vec::new();
    while from < end {
        let frames = log.read(topic, partition, from, end, 3_000).unwrap();
        assert!(!frames.is_empty());
        from += frames.len() as u64;
        out.extend(frames);
    }
    out
}

type Answer = Arc<Mutex<Option<Result<Vec<Appended>, LogError>>>>;

/// A journal on a simulated disk whose writer is run by the test, turn by turn.
struct Stepped {
    journal: Journal,
    writer: Writer,
    opened: Opened,
}

const DIR: &str = "/data";

fn dir() -> &'static Path {
    Path::new(DIR)
}

impl Stepped {
    fn open(disk: &impl DiskClone, settings: Settings, clock: Clock) -> Result<Stepped, LogError> {
        Stepped::guarded(disk, settings, Guard::believing(clock))
    }

    fn guarded(
        disk: &impl DiskClone,
        settings: Settings,
        guard: Guard,
    ) -> Result<Stepped, LogError> {
        let (journal, opened, writer) = Journal::open_on(disk.shared(), dir(), settings, guard)?;
        Ok(Stepped { journal, writer, opened })
    }

    fn put(&self, frames: Vec<Append>) -> Answer {
        let answer = Answer::default();
        let told = Arc::clone(&answer);
        let done = Box::new(move |result| *told.lock() = Some(result));
        if let Err(error) = self.journal.append(frames, done) {
            *answer.lock() = Some(Err(error));
        }
        answer
    }

    fn turn(&mut self) -> Turn {
        self.writer.turn(Duration::ZERO)
    }

    /// Appends and waits.
    fn write(&mut self, frames: Vec<Append>) -> Result<Vec<Appended>, LogError> {
        let answer = self.put(frames);
        if answer.lock().is_none() {
            self.turn();
        }
        answer.lock().take().unwrap()
    }

    /// Closes as the server does.
    fn close(mut self) {
        self.journal.close();
        while self.turn() != Turn::Ended {}
    }
}

trait DiskClone {
    fn shared(&self) -> Arc<dyn Disk>;
}

impl DiskClone for simulated::SimulatedDisk {
    fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }
}

fn segment_path(first_sequence: u64) -> PathBuf {
    dir().join(format!("journal/{first_sequence:020}.seg"))
}
