//! One run of a publisher: opening the topic, claiming it, and bringing it on step by step.
//!
//! Whatever fails ends the *session*: the transaction is aborted, the topic closed, and after a
//! pause opened again. What the topic then says decides where the next session begins, so nothing
//! that this process believed can be wrong for longer than that.

use super::{
    ChangeTopic, Doing, Note, Open, PublisherSettings, PublisherStatus, Shared, Upper,
    pairs::{Pair, Pairs},
    shape::Shape,
};
use sha2::{Digest, Sha256};
use std::{
    fmt::Write,
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use trueup_operators::{
    feed::EpochTimes,
    log::LogError,
    time::{Epoch, format_rfc3339},
};
use trueup_sinks::{Filter, ReadError, RowBlock, Start, Step, Tables};

/// How long it rests when there is nothing to do.
const TURN: Duration = Duration::from_millis(20);
/// When nothing changes, the upper is published this often.
const UPPER_EVERY: Duration = Duration::from_secs(1);
/// How long it rests after a failure: at first, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Rows that a follower hands over at once.
pub(super) const BLOCK_ROWS: usize = 4_096;

/// Why a session ended.
pub(super) enum Fault {
    /// The topic.
    Topic(LogError),
    /// The views.
    Views(ReadError),
    /// It was told to stop.
    Stop,
    /// Another publishes: for good.
    Superseded(String),
}

impl From<LogError> for Fault {
    fn from(error: LogError) -> Fault {
        Fault::Topic(error)
    }
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Fault {
        Fault::Views(error)
    }
}

/// Rests for a while. In tests the world goes on meanwhile.
pub(super) type Rest = Box<dyn FnMut(Duration) + Send>;

/// A publisher's thread.
pub(super) struct Run {
    pub(super) tables: Arc<dyn Tables>,
    pub(super) settings: PublisherSettings,
    open: Open,
    pub(super) shared: Arc<Shared>,
    pub(super) shapes: Vec<Shape>,
    /// What uppers say of this run.
    writer: String,
    views: String,
    pub(super) rest: Rest,
    pause: Duration,
    /// When the last transaction was committed.
    published: Option<Instant>,
}

/// Where the topic is.
#[derive(Clone, Copy)]
enum Place {
    /// It shows the views of this epoch.
    At(EpochTimes),
    /// Only comparing tells what it shows. The epoch is older than this one.
    Unknown(Epoch),
}

/// A transaction that begins with its first message.
pub(super) struct Transaction<'t> {
    topic: &'t mut dyn ChangeTopic,
    epoch: Epoch,
    has_begun: bool,
    pub(super) rows: u64,
}

impl<'t> Transaction<'t> {
    pub(super) fn new(topic: &'t mut dyn ChangeTopic, epoch: Epoch) -> Transaction<'t> {
        Transaction { topic, epoch, has_begun: false, rows: 0 }
    }

    /// The epoch that it leads to.
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn begin(&mut self) -> Result<(), LogError> {
        if !self.has_begun {
            self.topic.begin()?;
            self.has_begun = true;
        }
        Ok(())
    }

    /// Writes what a row was and is.
    pub(super) fn write(&mut self, shape: &Shape, pair: &Pair<'_>) -> Result<(), LogError> {
        self.begin()?;
        let Pair { row, old, new } = *pair;
        self.rows += 1;
        self.topic.write(&shape.key(row), &shape.value(self.epoch, row, old, new))
    }

    /// Reads what stood in the topic before.
    pub(super) fn read(&mut self, each: &mut super::Visit<'_>) -> Result<(), LogError> {
        self.topic.read(each)
    }

    fn commit(mut self, upper: &Upper) -> Result<u64, LogError> {
        self.begin()?;
        self.topic.commit(upper)?;
        Ok(self.rows)
    }
}

impl Run {
    pub(super) fn new(
        tables: Arc<dyn Tables>,
        settings: PublisherSettings,
        open: Open,
        shared: Arc<Shared>,
    ) -> io::Result<Run> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        let shapes = Shape::all(tables.catalog());
        let views = hash_of(&*tables, &shapes);
        let rest: Rest = Box::new(std::thread::sleep);
        let (writer, pause, published) = (hex(&id), PAUSE_MIN, None);
        Ok(Run { tables, settings, open, shared, shapes, writer, views, rest, pause, published })
    }

    /// Publishes until it is told to stop, or is superseded.
    pub(super) fn run(mut self) {
        loop {
            self.set(|status| status.doing = Doing::Opening);
            match self.session() {
                Fault::Stop => return self.set(|status| status.doing = Doing::Stopped),
                Fault::Superseded(why) => {
                    tracing::error!(why, "the changelog is not published any more");
                    return self.set(|status| {
                        (status.doing, status.trouble) = (Doing::Superseded, Some(why));
                    });
                }
                Fault::Topic(error) => self.failed(&error.to_string()),
                Fault::Views(error) => self.failed(&error.to_string()),
            }
            if self.is_stopped() {
                return self.set(|status| status.doing = Doing::Stopped);
            }
        }
    }

    fn failed(&mut self, why: &str) {
        if !self.is_stopped() {
            tracing::warn!(why, "the changelog is not published; it is tried again");
        }
        self.set(|status| {
            status.failures += 1;
            status.trouble = Some(why.to_owned());
        });
        let mut rested = Duration::ZERO;
        while rested < self.pause && !self.is_stopped() {
            (self.rest)(TURN);
            rested += TURN;
        }
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    pub(super) fn set(&self, set: impl FnOnce(&mut PublisherStatus)) {
        set(&mut self.shared.status.lock());
    }

    /// Opens the topic and publishes until something fails.
    fn session(&mut self) -> Fault {
        let mut topic = match (self.open)(Arc::clone(&self.shared.stop)) {
            Ok(topic) => topic,
            Err(error) => return error.into(),
        };
        let found = topic.upper();
        let Err(fault) = self.publish(&mut *topic, found.as_ref());
        topic.abort();
        match fault {
            Fault::Topic(_) if topic.is_fenced() => self.fenced(&mut *topic, found, fault),
            fault => fault,
        }
    }

    /// Finds out whether the topic has another writer now. Until that is known it is not opened
    /// again, which would fence that one.
    fn fenced(&mut self, topic: &mut dyn ChangeTopic, found: Option<Upper>, fault: Fault) -> Fault {
        let before = found.and_then(|upper| upper.note).map(|note| note.writer);
        loop {
            if self.is_stopped() {
                return Fault::Stop;
            }
            match topic.last_upper() {
                Ok(last) => {
                    let writer = last.and_then(|upper| upper.note).map(|note| note.writer);
                    let is_known = writer == before || writer.as_ref() == Some(&self.writer);
                    return match writer {
                        Some(writer) if !is_known => Fault::Superseded(format!(
                            "another process has taken the changelog over (writer {writer})"
                        )),
                        _ => fault,
                    };
                }
                Err(error) => self.failed(&error.to_string()),
            }
        }
    }

    /// Publishes, step by step.
    fn publish(
        &mut self,
        topic: &mut dyn ChangeTopic,
        found: Option<&Upper>,
    ) -> Result<std::convert::Infallible, Fault> {
        self.claim(topic, found)?;
        let mut place = self.resume(found)?;
        loop {
            let doing = match place {
                Place::At(_) => Doing::Following,
                Place::Unknown(_) => Doing::Comparing,
            };
            self.set(|status| status.doing = doing);
            let next = match place {
                Place::At(at) => at.epoch + 1,
                Place::Unknown(upper) => upper,
            };
            let Some(to) = self.wait(next, true)? else {
                self.leave(topic, place)?;
                return Err(Fault::Stop);
            };
            let at = match place {
                Place::At(from) => self.follow(topic, from, to),
                Place::Unknown(upper) => self.compare(topic, upper, to),
            };
            place = match at {
                Ok(at) => Place::At(at),
                // The views have moved on too far while the topic stood still.
                Err(Fault::Views(ReadError::Gone { .. })) if matches!(place, Place::At(_)) => {
                    topic.abort();
                    Place::Unknown(topic.upper().map_or(0, |upper| upper.epoch))
                }
                Err(fault) => return Err(fault),
            };
        }
    }

    /// Says in the topic whose it is now.
    fn claim(&mut self, topic: &mut dyn ChangeTopic, found: Option<&Upper>) -> Result<(), Fault> {
        let mut upper = found.cloned().unwrap_or_default();
        let mut note = upper.note.take().unwrap_or_default();
        let installation = &self.settings.installation;
        if found.is_some() && !note.installation.is_empty() && note.installation != *installation {
            return Err(Fault::Superseded(format!(
                "the topic has the changelog of installation {}, and this is {installation}; \
                 give another topic, or another `changelog.name`",
                note.installation
            )));
        }
        note.installation.clone_from(installation);
        note.writer.clone_from(&self.writer);
        upper.note = Some(note);
        topic.begin()?;
        topic.commit(&upper)?;
        self.set(|status| status.upper = Some(upper.epoch));
        Ok(())
    }

    /// Where the topic is, as the views see it.
    fn resume(&mut self, found: Option<&Upper>) -> Result<Place, Fault> {
        let Some(upper) = found else { return Ok(Place::Unknown(0)) };
        let unknown = Place::Unknown(upper.epoch);
        let (Some(last), Some(note)) = (upper.epoch.checked_sub(1), &upper.note) else {
            return Ok(unknown);
        };
        self.set(|status| status.doing = Doing::Waiting);
        if self.wait(last, false)?.is_none() {
            return Err(Fault::Stop);
        }
        let Some(shape) = self.shapes.first() else { return Ok(unknown) };
        let start = Start::Between(last, last);
        let at = match Arc::clone(&self.tables).follow(shape.id, Filter::default(), start) {
            Ok(follow) => follow.at(),
            Err(ReadError::Gone { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let same = |at: &EpochTimes| {
            note.views == self.views && note.log_time == format_rfc3339(at.frontier.0)
        };
        match at.filter(same) {
            Some(at) => {
                self.set(|status| status.at = Some(last));
                Ok(Place::At(at))
            }
            None => Ok(unknown),
        }
    }

    /// Waits for an epoch, and then, if it is `paced`, for the time of the next transaction. The
    /// newest epoch; none when it shall end first.
    fn wait(&mut self, epoch: Epoch, paced: bool) -> Result<Option<Epoch>, Fault> {
        loop {
            if self.is_stopped() {
                return Err(Fault::Stop);
            }
            let is_finishing = self.shared.finish.load(Ordering::Acquire);
            let interval = if paced { self.settings.interval } else { Duration::ZERO };
            let is_due = self.published.is_none_or(|at| at.elapsed() >= interval);
            match self.tables.visible().map(|times| times.epoch) {
                Some(visible) if visible >= epoch && (is_due || is_finishing) => {
                    return Ok(Some(visible));
                }
                Some(visible) if visible >= epoch => {}
                _ if is_finishing => return Ok(None),
                _ => {}
            }
            (self.rest)(TURN);
        }
    }

    /// Brings the topic from one epoch to another. Where nothing changed it is left as it is, but
    /// for an upper now and then.
    fn follow(
        &mut self,
        topic: &mut dyn ChangeTopic,
        from: EpochTimes,
        to: Epoch,
    ) -> Result<EpochTimes, Fault> {
        let mut transaction = Transaction::new(topic, to);
        let mut at = None;
        let mut block = RowBlock::default();
        for shape in &self.shapes {
            let filter = Filter { leavers_stay: true, ..Filter::default() };
            let start = Start::Between(from.epoch, to);
            let mut follow = Arc::clone(&self.tables).follow(shape.id, filter, start)?;
            let mut pairs = Pairs::new(shape);
            loop {
                let step = follow.step(BLOCK_ROWS, &mut block, &mut Vec::new())?;
                let symbols = self.tables.symbols();
                pairs.take(symbols, &block, |pair| transaction.write(shape, &pair))?;
                if let Step::Reached(times) = step {
                    at = Some(times);
                    break;
                }
                if self.is_stopped() {
                    return Err(Fault::Stop);
                }
            }
            pairs.finish(&mut |pair: Pair<'_>| transaction.write(shape, &pair))?;
        }
        let Some(at) = at else { return Err(ReadError::NotReady.into()) };
        let is_due = self.published.is_none_or(|at| at.elapsed() >= UPPER_EVERY);
        if transaction.rows == 0 && !is_due {
            self.set(|status| status.at = Some(at.epoch));
            return Ok(at);
        }
        self.commit(transaction, at)?;
        Ok(at)
    }

    /// Commits what leads to an epoch.
    pub(super) fn commit(
        &mut self,
        transaction: Transaction<'_>,
        at: EpochTimes,
    ) -> Result<(), Fault> {
        let note = Note {
            log_time: format_rfc3339(at.frontier.0),
            installation: self.settings.installation.clone(),
            views: self.views.clone(),
            writer: self.writer.clone(),
        };
        let upper = Upper { epoch: at.epoch + 1, note: Some(note) };
        let rows = transaction.commit(&upper)?;
        self.published = Some(Instant::now());
        self.pause = PAUSE_MIN;
        self.set(|status| {
            status.transactions += u64::from(rows > 0);
            status.rows += rows;
            (status.upper, status.at) = (Some(upper.epoch), Some(at.epoch));
            status.trouble = None;
        });
        Ok(())
    }

    /// The last that it says: the epoch that the topic shows.
    fn leave(&mut self, topic: &mut dyn ChangeTopic, place: Place) -> Result<(), Fault> {
        let Place::At(at) = place else { return Ok(()) };
        if topic.upper().is_some_and(|upper| upper.epoch > at.epoch) {
            return Ok(());
        }
        self.commit(Transaction::new(topic, at.epoch), at)
    }
}

/// A hash of which tables there are and what decides the state of their rows.
fn hash_of(tables: &dyn Tables, shapes: &[Shape]) -> String {
    let mut hash = Sha256::new();
    for shape in shapes {
        hash.update(shape.text());
    }
    let lateness = tables.lateness();
    for us in [lateness.allowed_lateness_us, lateness.correction_horizon_us] {
        hash.update(us.to_le_bytes());
    }
    hex(&hash.finalize()[..16])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a text cannot fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}
