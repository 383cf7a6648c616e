//! Reading one partition with one consumer: where it stands, and going elsewhere.
//!
//! A cursor is cheap to go on from and dear to move: librdkafka fetches ahead in the background,
//! and a seek throws that away. So every partition has two (`reader.rs`).

use crate::{
    clients::Traced,
    queue::{Item, Message, Queue},
    settings::{left, ms, unavailable},
};
use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    topic_partition_list::Offset,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use trueup_operators::log::LogError;

/// The longest that is waited at once, so that the deadline is looked at.
const WAIT_MS_MAX: u64 = 100;

/// How long a seek is tried before the partition is taken anew.
const SEEK_MAX: Duration = Duration::from_secs(1);

/// A seek costs some milliseconds: so many messages are read over instead.
const SKIPPED_MESSAGES_MAX: u64 = 64;

/// What a step of reading found.
pub(crate) enum Step {
    /// A message below `to`.
    Message(Message),
    /// There is none from here to `to`: this is certain.
    Nothing,
    /// Nothing has arrived yet.
    Waiting,
    /// What was asked for is not held any more.
    Gone,
}

/// A place in a partition.
pub(crate) struct Cursor {
    /// A message that was taken and belongs behind the range that was asked for.
    behind: Option<Message>,
    queue: Option<Queue>,
    consumer: Arc<BaseConsumer<Traced>>,
    topic: String,
    partition: u16,
    assigned: bool,
    /// Everything before it was given or is not there; none before the first seek, and after one
    /// that failed.
    next: Option<u64>,
    /// The offset after the message given last: from there to `next` there is none.
    given: u64,
    /// When it was read from last.
    pub(crate) used: Instant,
    /// How many reads went on where the one before ended.
    pub(crate) run: u32,
}

impl Cursor {
    pub(crate) fn new(consumer: &Arc<BaseConsumer<Traced>>, topic: &str, partition: u16) -> Cursor {
        Cursor {
            behind: None,
            queue: None,
            consumer: Arc::clone(consumer),
            topic: topic.into(),
            partition,
            assigned: false,
            next: None,
            given: 0,
            used: Instant::now(),
            run: 0,
        }
    }

    /// Whether it has been anywhere.
    pub(crate) fn is_new(&self) -> bool {
        self.next.is_none()
    }

    /// Whether it can go on from there without a seek.
    pub(crate) fn stands_at(&self, from: u64) -> bool {
        let skips_gap =
            |next| from > next && self.behind.as_ref().is_some_and(|m| m.offset() >= from);
        self.next.is_some_and(|next| (self.given..=next).contains(&from) || skips_gap(next))
    }

    /// Whether it is sooner there by reading on than by a seek.
    fn is_near(&self, from: u64) -> bool {
        let next = self.next.filter(|_| self.queue.is_some());
        next.is_some_and(|next| from > next && from - next <= SKIPPED_MESSAGES_MAX)
    }

    /// Goes to an offset, if it is not there.
    pub(crate) fn go(&mut self, from: u64, deadline: Instant) -> Result<(), LogError> {
        self.used = Instant::now();
        if self.stands_at(from) {
            self.run += 1;
        } else if self.is_near(from) {
            // What stands between is taken and dropped (`step`).
            self.run = 0;
        } else {
            self.run = 0;
            self.seek(from, deadline)?;
        }
        self.given = from;
        self.next = self.next.max(Some(from));
        Ok(())
    }

    /// The next message below `to`.
    pub(crate) fn step(&mut self, to: u64, wait: Duration) -> Result<Step, LogError> {
        let (Some(queue), Some(next)) = (&mut self.queue, self.next) else {
            return Err(unavailable(format!("{} is not being read", self.topic)));
        };
        if next >= to {
            return Ok(Step::Nothing);
        }
        let message = match self.behind.take() {
            Some(message) => message,
            None => match queue.next(wait.min(ms(WAIT_MS_MAX)).as_millis() as i32) {
                Some(Item::Message(message)) => message,
                Some(Item::End(end)) => {
                    self.next = Some(next.max(end));
                    return Ok(if end >= to { Step::Nothing } else { Step::Waiting });
                }
                Some(Item::Trouble(error, said)) => return self.trouble(error, &said),
                None => return Ok(Step::Waiting),
            },
        };
        let offset = message.offset();
        if offset >= to {
            self.next = Some(to);
            self.behind = Some(message);
            return Ok(Step::Nothing);
        }
        if offset < next {
            // On the way to where a reader went, or given before, which would count twice.
            return Ok(Step::Waiting);
        }
        self.given = offset + 1;
        self.next = Some(offset + 1);
        Ok(Step::Message(message))
    }

    /// Takes back the message that was given last; `given` is the offset after the one before it.
    pub(crate) fn put_back(&mut self, message: Message, given: u64) {
        self.given = given;
        self.next = Some(message.offset());
        self.behind = Some(message);
    }

    fn trouble(&mut self, error: RDKafkaErrorCode, said: &str) -> Result<Step, LogError> {
        match error {
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
                self.detach()?;
                Ok(Step::Gone)
            }
            RDKafkaErrorCode::Fatal => {
                self.detach()?;
                Err(unavailable(format!("{} cannot be read: {said}", self.topic)))
            }
            _ => {
                tracing::debug!(%error, topic = self.topic, partition = self.partition, "{said}");
                Ok(Step::Waiting)
            }
        }
    }

    /// Gives the partition back: librdkafka fetches nothing more of one whose offset is gone, and
    /// cannot seek there.
    fn detach(&mut self) -> Result<(), LogError> {
        (self.next, self.behind, self.queue) = (None, None, None);
        let place = self.place(0)?;
        self.consumer.incremental_unassign(&place).map_err(|error| self.lost(&error))?;
        self.assigned = false;
        Ok(())
    }

    /// Seeks, and begins anew where that is refused for long: a broker that has no longer what is
    /// sought can say so in between, and librdkafka then lets nothing be sought any more.
    fn seek(&mut self, from: u64, deadline: Instant) -> Result<(), LogError> {
        loop {
            let Err(error) = self.assign_and_seek(from, deadline.min(Instant::now() + SEEK_MAX))
            else {
                return Ok(());
            };
            if self.assigned {
                self.detach()?;
            }
            if Instant::now() >= deadline {
                return Err(error);
            }
            tracing::debug!(%error, "the partition is taken anew");
        }
    }

    fn assign_and_seek(&mut self, from: u64, deadline: Instant) -> Result<(), LogError> {
        self.next = None;
        self.behind = None;
        if !self.assigned {
            let place = self.place(from)?;
            self.consumer.incremental_assign(&place).map_err(|error| self.lost(&error))?;
            self.assigned = true;
        }
        if self.queue.is_none() {
            // Once fetching has begun, nothing turns the queue back.
            self.try_seek(from, deadline)?;
            self.queue = Some(Queue::split(&self.consumer, &self.topic, self.partition)?);
        }
        // Messages that were fetched before this are outdated, wherever they are.
        self.try_seek(from, deadline)?;
        if let Some(queue) = &mut self.queue {
            queue.forget();
        }
        Ok(())
    }

    /// Seeks, as soon as fetching has begun.
    fn try_seek(&self, from: u64, deadline: Instant) -> Result<(), LogError> {
        loop {
            let left = left(deadline).max(ms(1));
            let sought = self.consumer.seek_partitions(self.place(from)?, left);
            let refused = match &sought {
                Ok(places) => places.elements().first().and_then(|place| place.error().err()),
                Err(error) => Some(error.clone()),
            };
            let Some(error) = refused else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(self.lost(&error));
            }
            std::thread::sleep(ms(2));
        }
    }

    fn place(&self, from: u64) -> Result<TopicPartitionList, LogError> {
        let mut place = TopicPartitionList::with_capacity(1);
        let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
        place
            .add_partition_offset(&self.topic, self.partition.into(), offset)
            .map_err(|error| self.lost(&error))?;
        Ok(place)
    }

    fn lost(&self, error: &KafkaError) -> LogError {
        unavailable(format!("{} {} cannot be read: {error}", self.topic, self.partition))
    }
}
