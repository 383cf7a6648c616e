//! Reading a changelog's own topic back: how far it is, and the messages of its rows.
//!
//! Only what was committed is read. The end up to which that is done is asked for first, and the
//! cursor knows for certain when it is there, whatever markers and aborted messages stand before.

use super::{ASKED_MS_MAX, ChangelogSettings, TURN_MS, Upper, Visit};
use crate::{
    clients::{Traced, consumer, look_for_leaders},
    cursor::{Cursor, Step},
    queue::Message,
    settings::{invalid, ms, unavailable},
    topics::ask,
};
use rdkafka::{
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
};
use serde_json::{Map, Value};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use trueup_operators::log::LogError;

/// Messages that are looked at first, from the end, to find the last `upper`.
const LOOK_BACK: u64 = 1_024;
/// Bytes that are fetched ahead.
const AHEAD_BYTES: usize = 8 << 20;

/// A topic that is read once.
pub(super) struct Reading<'a> {
    settings: &'a ChangelogSettings,
    stop: &'a AtomicBool,
    consumer: Arc<BaseConsumer<Traced>>,
    /// Who asks where partitions end: behind everything that was sent. A commit is answered before
    /// the partitions have heard of it, and until then what is committed ends in front of it; who
    /// reads to the end of everything waits for that.
    asking: BaseConsumer<Traced>,
    pub(super) partitions: u16,
}

impl<'a> Reading<'a> {
    pub(super) fn open(
        settings: &'a ChangelogSettings,
        stop: &'a AtomicBool,
    ) -> Result<Reading<'a>, LogError> {
        let topic = &settings.topic;
        let failed = |error| unavailable(format!("{topic} cannot be read: {error}"));
        let group = format!("{}-upper", settings.name);
        let mut config = consumer(&settings.cluster(), &group, AHEAD_BYTES);
        let consumer = BaseConsumer::from_config_and_context(&config, Traced).map_err(failed)?;
        config.set("isolation.level", "read_uncommitted");
        let asking = BaseConsumer::from_config_and_context(&config, Traced).map_err(failed)?;
        let deadline = Instant::now() + ms(settings.timeout_ms.min(ASKED_MS_MAX));
        let partitions = loop {
            let metadata = ask(deadline, |timeout| consumer.fetch_metadata(Some(topic), timeout));
            let metadata = metadata.map_err(failed)?;
            let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
            match u16::try_from(count) {
                // A broker that has not heard of a new topic yet.
                Ok(0) if Instant::now() < deadline => std::thread::sleep(ms(TURN_MS)),
                Ok(count) if count > 0 => break count,
                _ => return Err(invalid(format!("{topic} has {count} partitions"))),
            }
        };
        Ok(Reading { settings, stop, consumer: Arc::new(consumer), asking, partitions })
    }

    /// The first offset of a partition, and the end of all that was sent to it.
    fn bounds(&self, partition: u16) -> Result<(u64, u64), LogError> {
        let topic = &self.settings.topic;
        let deadline = Instant::now() + ms(self.settings.timeout_ms.min(ASKED_MS_MAX));
        loop {
            // A new topic may have no leader for a moment.
            let asked = Duration::from_secs(1);
            match self.asking.fetch_watermarks(topic, partition.into(), asked) {
                Ok((first, end)) => return Ok((first.max(0) as u64, end.max(0) as u64)),
                Err(error) if Instant::now() >= deadline || self.is_stopped() => {
                    let what = format!("{topic} {partition} does not say how far it is: {error}");
                    return Err(unavailable(what));
                }
                Err(error) => {
                    tracing::debug!(%error, topic, partition, "the ends are asked for again");
                    std::thread::sleep(ms(TURN_MS));
                    look_for_leaders(&self.asking, topic, asked);
                }
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The ends of all partitions.
    pub(super) fn ends(&self) -> Result<Vec<u64>, LogError> {
        (0..self.partitions).map(|partition| Ok(self.bounds(partition)?.1)).collect()
    }

    /// The last `upper`.
    ///
    /// # Errors
    /// `Invalid` as well when there is none and the topic has that of another changelog.
    pub(super) fn last_upper(&mut self) -> Result<Option<Upper>, LogError> {
        let (first, end) = self.bounds(0)?;
        let (key, topic) = (self.settings.upper_key(), &self.settings.topic);
        let (mut upper, mut other) = (None, None);
        let mut cursor = Cursor::new(&self.consumer, topic, 0);
        let mut back = LOOK_BACK;
        loop {
            let from = first.max(end.saturating_sub(back));
            self.walk(&mut cursor, (from, end), |message| {
                match message.key() {
                    Some(found) if found == key.as_bytes() => {
                        upper = Some(self.parse(message)?);
                    }
                    Some(found) if found.starts_with(b"{\"upper\":") => {
                        other = Some(String::from_utf8_lossy(found).into_owned());
                    }
                    _ => {}
                }
                Ok(())
            })?;
            match (upper, other) {
                (Some(upper), _) => return Ok(Some(upper)),
                (None, Some(other)) if from == first => {
                    return Err(invalid(format!(
                        "the topic {topic:?} has the changelog {other}; give another topic, or \
                         this name"
                    )));
                }
                (None, None) if from == first => return Ok(None),
                _ => (upper, other) = (None, None),
            }
            back = back.saturating_mul(8);
        }
    }

    fn parse(&self, message: &Message) -> Result<Upper, LogError> {
        let said: Option<Map<String, Value>> =
            message.payload().and_then(|bytes| serde_json::from_slice(bytes).ok());
        let upper = said.and_then(|mut said| {
            let epoch = said.remove("upper")?.as_u64()?;
            Some(Upper { epoch, said })
        });
        upper.ok_or_else(|| LogError::Corrupt {
            file: self.settings.topic.clone(),
            at: message.offset(),
            reason: "this `upper` is no number".into(),
        })
    }

    /// All messages of rows below the ends, by partition.
    pub(super) fn rows(&mut self, ends: &[u64], each: &mut Visit<'_>) -> Result<(), LogError> {
        let topic = &self.settings.topic;
        for (partition, &end) in (0..).zip(ends) {
            let mut cursor = Cursor::new(&self.consumer, topic, partition);
            let first = self.bounds(partition)?.0;
            self.walk(&mut cursor, (first, end), |message| match message.key() {
                Some(key) if key.starts_with(b"{\"upper\":") => Ok(()),
                Some(key) => each(key, message.payload()),
                None => Err(LogError::Corrupt {
                    file: format!("{topic} {partition}"),
                    at: message.offset(),
                    reason: "this message has no key; no changelog wrote it".into(),
                }),
            })?;
        }
        Ok(())
    }

    /// Visits the messages of a range. Gives up when none comes for as long as a transaction may
    /// take.
    fn walk(
        &self,
        cursor: &mut Cursor,
        (from, end): (u64, u64),
        mut each: impl FnMut(&Message) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let topic = &self.settings.topic;
        let patience = ms(self.settings.timeout_ms);
        let mut deadline = Instant::now() + patience;
        if from >= end {
            return Ok(());
        }
        cursor.go(from, Instant::now() + ms(self.settings.timeout_ms.min(ASKED_MS_MAX)))?;
        loop {
            match cursor.step(end, ms(TURN_MS))? {
                Step::Message(message) => {
                    each(&message)?;
                    deadline = Instant::now() + patience;
                }
                Step::Nothing => return Ok(()),
                Step::Gone => {
                    return Err(unavailable(format!("{topic} was cut while it was read")));
                }
                Step::Waiting => {}
            }
            if self.is_stopped() {
                return Err(unavailable(format!("{topic} was not read to its end: told to stop")));
            }
            if Instant::now() >= deadline {
                return Err(unavailable(format!("the end of {topic} is not reached in time")));
            }
        }
    }
}
