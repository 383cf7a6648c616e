//! Frames of events, decoded, by their position. A worker puts every batch here that it feeds to
//! the dataflow; the ledger asks for one again when a verdict changes an event's standing
//! ([`ReadBack`]), nearly always for a recent one. What is no longer here is read from the log and
//! decoded again, to the same result: the log does not change.
//!
//! Bounded by bytes of payload; what was fed or read first goes first. A batch that was read back
//! is kept like one that was fed: after a start from a checkpoint there are no others yet, and what
//! verdicts are about today they are about again in the next epoch.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use trueup_operators::{
    change::Incident,
    event::{EventBatch, Fate, Position},
    feed::{Feed, Located, ReadBack},
    log::{FRAME_RECORDS_MAX, Frame, Log, LogError, Topic, read_frame},
    symbols::Symbols,
};

/// What an event of a batch of another worker is taken to hold.
const SHARED_ROW_BYTES: usize = 64;
/// The rest before a log that did not answer is asked again.
pub(crate) const AGAIN: Duration = Duration::from_millis(100);

/// The recent batches of a worker, and the way to the others.
pub struct Batches<B> {
    log: Arc<dyn Log>,
    symbols: Arc<Symbols>,
    /// Whether a log that does not answer is to be asked again.
    goes_on: Box<dyn Fn() -> bool>,
    recent: HashMap<(u16, u64), Arc<Located<B>>>,
    order: VecDeque<((u16, u64), usize)>,
    bytes: usize,
    bytes_max: usize,
}

impl<B: EventBatch> Batches<B> {
    /// None yet; keeps up to `bytes_max` bytes of payload. `goes_on` says whether the run does: for
    /// so long a log of others that does not answer is asked again.
    pub fn new(
        log: Arc<dyn Log>,
        symbols: Arc<Symbols>,
        bytes_max: usize,
        goes_on: impl Fn() -> bool + 'static,
    ) -> Batches<B> {
        let (recent, order) = (HashMap::new(), VecDeque::new());
        let goes_on = Box::new(goes_on);
        Batches { log, symbols, goes_on, recent, order, bytes: 0, bytes_max }
    }

    fn read(&self, position: Position) -> Result<Frame, String> {
        loop {
            match read_frame(&*self.log, position) {
                Err(error @ LogError::Unavailable { .. })
                    if self.log.is_shared() && (self.goes_on)() =>
                {
                    tracing::warn!(%error, "the log does not answer; it is asked again");
                    std::thread::sleep(AGAIN);
                }
                frame => return frame.map_err(|e| e.to_string()),
            }
        }
    }

    /// A frame as the dataflow takes it: decoded, or, in a log that anyone can append to, as what
    /// it is if it is no batch of events.
    ///
    /// # Errors
    /// When a frame of a log of our own is no batch of events.
    pub fn feed(&mut self, frame: &Frame) -> Result<Feed<B>, String> {
        let error = match &frame.foreign {
            None => match self.decode(frame) {
                Ok(located) => return Ok(Feed::Batch(located)),
                Err(error) => error,
            },
            Some(foreign) => foreign.to_string(),
        };
        if !self.log.is_shared() {
            return Err(error);
        }
        Ok(Feed::Foreign(foreign(frame, Topic::Events, &error)))
    }

    /// Decodes a frame and remembers it.
    fn decode(&mut self, frame: &Frame) -> Result<Arc<Located<B>>, String> {
        let located = self.locate(frame)?;
        self.keep(&located, frame.payload.len());
        Ok(located)
    }

    /// Remembers a batch that another worker has decoded.
    pub fn remember(&mut self, located: &Arc<Located<B>>) {
        if !self.recent.contains_key(&(located.partition, located.offset)) {
            // About what it takes; the frame itself is the other worker's.
            self.keep(located, located.batch.len() * SHARED_ROW_BYTES);
        }
    }

    fn keep(&mut self, located: &Arc<Located<B>>, bytes: usize) {
        let place = (located.partition, located.offset);
        self.recent.insert(place, Arc::clone(located));
        self.order.push_back((place, bytes));
        self.bytes += bytes;
        while self.bytes > self.bytes_max {
            let Some((oldest, bytes)) = self.order.pop_front() else { break };
            self.recent.remove(&oldest);
            self.bytes -= bytes;
        }
    }

    fn locate(&self, frame: &Frame) -> Result<Arc<Located<B>>, String> {
        let batch = B::decode(frame, &self.symbols).map_err(|e| e.to_string())?;
        if batch.len() > FRAME_RECORDS_MAX {
            return Err(format!(
                "{} events in a frame; the most is {FRAME_RECORDS_MAX}",
                batch.len()
            ));
        }
        let Frame { partition, offset, log_time, .. } = *frame;
        Ok(Arc::new(Located { partition, offset, log_time, batch }))
    }
}

/// What is said of a message of a shared topic that is none of ours.
pub(crate) fn foreign(frame: &Frame, topic: Topic, reason: &str) -> Incident {
    let Frame { partition, offset, log_time, .. } = *frame;
    let of = topic.name();
    tracing::debug!(topic = of, partition, offset, reason, "a message that is none of ours");
    let position = Position::of_message(topic, partition, offset);
    Incident { fate: Fate::Quarantined, position, log_time }
}

/// A worker's batches as its ledger reads them.
pub struct SharedBatches<B>(pub std::rc::Rc<std::cell::RefCell<Batches<B>>>);

impl<B: EventBatch> ReadBack<B> for SharedBatches<B> {
    fn read_back(&mut self, position: Position) -> Result<Arc<Located<B>>, String> {
        let mut batches = self.0.borrow_mut();
        // One that was read back for an earlier row may end before this one.
        if let Some(located) = batches.recent.get(&(position.partition, position.offset))
            && located.batch.len() > position.row.into()
        {
            return Ok(Arc::clone(located));
        }
        let frame = batches.read(position)?;
        batches.decode(&frame)
    }
}
