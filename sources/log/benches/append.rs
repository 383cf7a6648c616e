//! What appending costs on this disk: eight threads append frames of 64 KiB and wait for each to
//! be durable, as a collector does with eight requests in flight.
//!
//! ```text
//! cargo bench -p trueup-log
//! TRUEUP_BENCH_DIR=/mnt/nvme TRUEUP_BENCH_SECONDS=20 cargo bench -p trueup-log
//! ```
//!
//! Group commit should make eight threads much faster than one, because one sync serves all that
//! wait. `fsync = "never"` shows what is left when the disk is taken out of the sum. The raw line
//! is the same file system without the journal: one thread, one frame, one fdatasync.

#![allow(clippy::unwrap_used)]

use hdrhistogram::Histogram;
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use trueup_log::{Fsync, Journal, Settings, system_clock};
use trueup_operators::log::{Append, Log, Topic, append_and_wait};

const FRAME_BYTES: usize = 64 << 10;
const PARTITIONS: u16 = 4;

fn main() {
    let dir = std::env::var_os("TRUEUP_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = std::env::var("TRUEUP_BENCH_SECONDS").ok().and_then(|text| text.parse().ok());
    let seconds = Duration::from_secs(seconds.unwrap_or(5));
    println!("frames of {FRAME_BYTES} bytes on {}, {seconds:?} each", dir.display());
    raw(&dir, seconds);
    for (fsync, threads) in
        [(Fsync::Batch, 1), (Fsync::Batch, 8), (Fsync::Batch, 32), (Fsync::Never, 8)]
    {
        journal(&dir, seconds, fsync, threads);
    }
}

/// Append and fdatasync, nothing else.
fn raw(dir: &Path, seconds: Duration) {
    let mut file = tempfile::tempfile_in(dir).unwrap();
    let frame = vec![7; FRAME_BYTES];
    let mut latency = Histogram::<u64>::new(3).unwrap();
    let started = Instant::now();
    while started.elapsed() < seconds {
        let begun = Instant::now();
        file.write_all(&frame).unwrap();
        file.sync_data().unwrap();
        latency.record(begun.elapsed().as_micros() as u64).unwrap();
    }
    report("raw, 1 thread", &latency, started.elapsed());
}

fn journal(dir: &Path, seconds: Duration, fsync: Fsync, threads: usize) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let settings = Settings { partitions: PARTITIONS, fsync, ..Settings::default() };
    let (journal, _) = Journal::open(dir.path(), settings, system_clock()).unwrap();
    let journal = Arc::new(journal);
    let started = Instant::now();
    let work = |thread: usize| {
        let journal = Arc::clone(&journal);
        std::thread::spawn(move || {
            let mut latency = Histogram::<u64>::new(3).unwrap();
            while started.elapsed() < seconds {
                let begun = Instant::now();
                append_and_wait(&*journal, vec![frame(thread)]).unwrap();
                latency.record(begun.elapsed().as_micros() as u64).unwrap();
            }
            latency
        })
    };
    let running: Vec<_> = (0..threads).map(work).collect();
    let mut latency = Histogram::<u64>::new(3).unwrap();
    running.into_iter().for_each(|thread| latency.add(thread.join().unwrap()).unwrap());
    report(&format!("{fsync:?}, {threads} threads"), &latency, started.elapsed());
    let counts = journal.counts();
    let frames = counts.frames as f64 / counts.groups as f64;
    let sync_us = counts.sync_us.checked_div(counts.syncs).unwrap_or_default();
    println!(
        "    {} fsyncs, mean {sync_us} µs, max {} µs; {frames:.1} frames a group",
        counts.syncs, counts.sync_us_max
    );
    replay(&journal);
    drop(journal);
    reopen(dir.path(), settings);
}

/// Reads all of it, from memory and from the page cache, with checksums.
fn replay(journal: &Journal) {
    let started = Instant::now();
    let mut bytes = 0_u64;
    for (partition, end) in journal.ends(Topic::Events).iter().enumerate() {
        let mut next = 0;
        while next < end.offset {
            let frames =
                journal.read(Topic::Events, partition as u16, next, end.offset, 8 << 20).unwrap();
            bytes += frames.iter().map(|frame| frame.payload.len() as u64).sum::<u64>();
            next += frames.len() as u64;
        }
    }
    println!("    read back {:.0} MB/s", megabytes(bytes) / started.elapsed().as_secs_f64());
}

fn reopen(dir: &Path, settings: Settings) {
    let started = Instant::now();
    let (_journal, opened) = Journal::open(dir, settings, system_clock()).unwrap();
    println!(
        "    reopened in {:?}: {} frames, {:.0} MB, {} segments",
        started.elapsed(),
        opened.frames,
        megabytes(opened.bytes),
        opened.segments
    );
}

fn frame(thread: usize) -> Append {
    let mut payload = arrow_buffer::MutableBuffer::from_len_zeroed(FRAME_BYTES);
    payload.as_slice_mut().fill(thread as u8);
    Append {
        topic: Topic::Events,
        partition: thread as u16 % PARTITIONS,
        schema_version: 1,
        records: 1_600,
        payload: payload.into(),
    }
}

fn report(what: &str, latency: &Histogram<u64>, took: Duration) {
    let bytes = latency.len() * FRAME_BYTES as u64;
    let rate = megabytes(bytes) / took.as_secs_f64();
    // An event takes 40 to 100 bytes in a frame.
    let events = |bytes_each: f64| rate / bytes_each;
    println!(
        "{what}: {rate:.0} MB/s = {:.1} to {:.1} M events/s; acknowledged p50 {} µs, p99 {} µs, \
         max {} µs",
        events(100.0),
        events(40.0),
        latency.value_at_quantile(0.5),
        latency.value_at_quantile(0.99),
        latency.max()
    );
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
