//! Following the metadata topic of a log that other processes append to: what one of them is told,
//! all of them know some hundred milliseconds later.
//!
//! A thread looks every [`TURN_MS`] how far the topic is and applies what is new, in the order of
//! the log, as the start does. Whoever makes a change reads on as well, so as not to wait for the
//! thread; one reads at a time, and nothing is applied twice. When the log cannot be read the
//! thread says so once, goes on trying, and says once that it can again; meanwhile everything is
//! answered from what is known. It ends with the collector.
//!
//! Hard is to know that one has read *everything*: a log on other machines tells an end that it
//! learned a moment ago, and goes on telling the last one while it is away. So [`read_to_end`]
//! takes an end only when the log has asked anew: its time, [`End::complete_to`], has moved on.
//!
//! [`End::complete_to`]: trueup_operators::log::End::complete_to

use crate::{
    collector::{Inner, StartError},
    metadata::Metadata,
};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::Ordering::SeqCst,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use trueup_operators::log::{End, Log, Topic};

/// How often the thread looks.
const TURN_MS: u64 = 100;
/// How often somebody who waits for something looks.
pub(crate) const LOOK_MS: u64 = 5;
/// The longest that a log is given to tell how far it is.
const END_MS_MAX: u64 = 2_000;
/// How much of the topic is read at once.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// The thread that follows. Dropping it ends the thread and waits for that.
pub(crate) struct Follower {
    /// Dropped to tell the thread that it is over.
    stop: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Starts it; the metadata was read from the same log.
    pub(crate) fn start(
        metadata: Arc<Metadata>,
        log: Arc<dyn Log>,
    ) -> Result<Follower, std::io::Error> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("metadata".into())
            .spawn(move || follow(&metadata, &*log, &stopped))?;
        Ok(Follower { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return };
        if thread.join().is_err() {
            tracing::error!("the thread that follows the metadata topic panicked");
        }
    }
}

fn follow(metadata: &Metadata, log: &dyn Log, stopped: &Receiver<Infallible>) {
    let mut is_failing = false;
    while stopped.recv_timeout(Duration::from_millis(TURN_MS)) == Err(RecvTimeoutError::Timeout) {
        match metadata.read_on(log) {
            Ok(()) if is_failing => tracing::info!("the metadata topic can be read again"),
            Err(error) if !is_failing => {
                tracing::warn!(%error, "metadata of other processes does not come; it is tried on");
            }
            // Said already.
            Ok(()) | Err(_) => continue,
        }
        is_failing = !is_failing;
    }
}

/// How far the topic is.
fn end_of(log: &dyn Log) -> Option<End> {
    log.ends(Topic::Metadata).first().copied()
}

impl Metadata {
    /// Applies what is new in the topic. May wait for frames to arrive from another machine: not
    /// for a thread that answers requests.
    pub(crate) fn read_on(&self, log: &dyn Log) -> Result<(), StartError> {
        let _reading = self.reading.lock();
        self.read_new(log)
    }

    /// The same, unless somebody does so right now.
    fn try_read_on(&self, log: &dyn Log) -> Result<(), StartError> {
        self.reading.try_lock().map_or(Ok(()), |_reading| self.read_new(log))
    }

    fn read_new(&self, log: &dyn Log) -> Result<(), StartError> {
        let end = end_of(log).map_or(0, |end| end.offset);
        let mut offset = self.read_to.load(SeqCst);
        if offset >= end {
            return Ok(());
        }
        let first = log.first(Topic::Metadata, 0);
        if first > offset {
            tracing::error!(first, offset, "metadata was deleted before it was read");
            offset = first;
        }
        while offset < end {
            let frames = log.read(Topic::Metadata, 0, offset, end, READ_BYTES)?;
            for frame in &frames {
                self.apply_frame(frame)?;
                self.read_to.store(frame.next, SeqCst);
            }
            // None: the rest of the range is a gap.
            offset = frames.last().map_or(end, |last| last.next);
        }
        self.read_to.store(offset, SeqCst);
        Ok(())
    }
}

/// Reads on, on a thread that may wait; whether that was possible before the deadline, after which
/// the thread goes on alone. What keeps it from reading is said by the thread that follows.
pub(crate) async fn read_on(inner: &Arc<Inner>, deadline: Instant) -> bool {
    let ours = Arc::clone(inner);
    let read = tokio::task::spawn_blocking(move || ours.metadata.try_read_on(&*ours.log));
    let read = tokio::time::timeout_at(deadline.into(), read).await;
    read.is_ok_and(|read| read.is_ok_and(|read| read.is_ok()))
}

/// Reads everything that the topic had when this was called; whether that was possible within
/// [`END_MS_MAX`].
pub(crate) async fn read_to_end(inner: &Arc<Inner>) -> bool {
    let deadline = Instant::now() + Duration::from_millis(END_MS_MAX);
    let Some(told) = end(inner).await else { return false };
    let mut wanted = None;
    while Instant::now() < deadline {
        if wanted.is_none() {
            let now = end(inner).await.filter(|now| now.complete_to > told.complete_to);
            wanted = now.map(|now| now.offset);
        }
        let is_read = wanted.is_some() && read_on(inner, deadline).await;
        if is_read && wanted.is_some_and(|end| inner.metadata.read_to.load(SeqCst) >= end) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
    }
    false
}

async fn end(inner: &Arc<Inner>) -> Option<End> {
    let ours = Arc::clone(inner);
    // A panic of the log has been told where it happened; here nothing is known of the end.
    tokio::task::spawn_blocking(move || end_of(&*ours.log)).await.ok().flatten()
}
