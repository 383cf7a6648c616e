//! How far the partitions are, without asking the brokers all the time.
//!
//! The ends of all partitions of a topic are asked for at once: one ListOffsets request to each
//! broker that leads some. They are taken as known for some milliseconds or until something of ours
//! was delivered. While no answer comes the last ones stand, with the time at which they were asked
//! for: then nothing moves on, which is the truth. They never go back.
//!
//! A broker stamps messages in whole milliseconds, so the time of asking is cut to milliseconds as
//! well: what comes later is stamped with at least that, as far as the clocks of this machine and
//! the brokers agree. Where they do not, the remap rows decide: a frame's log time counts as no
//! less than what its partition was complete to before its epoch, and as no more than what it was
//! complete to at the end of it.

use crate::{
    clients::{Traced, look_for_leaders},
    settings::{Clock, KafkaSettings, left, ms, unavailable},
    topics::Topics,
};
use parking_lot::{Mutex, RwLock};
use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    topic_partition_list::Offset,
};
use std::{
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::{Duration, Instant},
};
use trueup_operators::{
    log::{End, LogError, Topic},
    time::LogTime,
};

/// The least that an answer is waited for while a log is opened: nobody else waits then.
const OPEN_ASK: Duration = Duration::from_secs(3);

/// What is known of all topics.
pub(crate) struct Ends([TopicEnds; 4]);

#[derive(Default)]
struct TopicEnds {
    known: RwLock<Known>,
    /// Held by whoever asks.
    asking: Mutex<()>,
    /// How often something of ours was delivered.
    deliveries: AtomicU64,
}

#[derive(Default)]
struct Known {
    partitions: Vec<Partition>,
    ends_at: Option<Instant>,
    /// The deliveries that had happened before the ends were asked for.
    covers: u64,
    first_at: Option<Instant>,
    failed_at: Option<Instant>,
}

/// Sizes of what was seen of a partition, from which its bytes and records are estimated.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) offsets: u64,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

#[derive(Clone, Copy, Default)]
struct Partition {
    first: u64,
    end: u64,
    complete_to: LogTime,
    seen: Seen,
    /// Whether its leader has ever said where it begins, and where it ends.
    begins: bool,
    ends: bool,
}

fn is_fresh(at: Option<Instant>, within: Duration) -> bool {
    at.is_some_and(|at| at.elapsed() < within)
}

impl Ends {
    pub(crate) fn new() -> Ends {
        Ends(Default::default())
    }

    /// Something of ours was delivered: what is known is old.
    pub(crate) fn note_delivered(&self, topic: Topic) {
        self.0[topic as usize].deliveries.fetch_add(1, SeqCst);
    }

    /// Something was read or delivered, and had these sizes.
    pub(crate) fn note_seen(&self, topic: Topic, partition: u16, seen: Seen) {
        let mut known = self.0[topic as usize].known.write();
        known.grow(partition + 1);
        let all = &mut known.partitions[usize::from(partition)].seen;
        all.offsets += seen.offsets;
        all.records += seen.records;
        all.bytes += seen.bytes;
    }

    /// The end of a partition as it is known, without asking.
    pub(crate) fn known_end(&self, topic: Topic, partition: u16) -> u64 {
        let known = self.0[topic as usize].known.read();
        known.partitions.get(usize::from(partition)).map_or(0, |p| p.end)
    }

    /// The ends of all partitions of a topic.
    pub(crate) fn ends(
        &self,
        topic: Topic,
        settings: &KafkaSettings,
        topics: &Topics,
        (client, clock): (&BaseConsumer<Traced>, &Clock),
    ) -> Vec<End> {
        let of = &self.0[topic as usize];
        let count = topics.partitions(topic);
        let cache = ms(settings.ends_cache_ms);
        let deliveries = of.deliveries.load(SeqCst);
        let fresh = |known: &Known| {
            let whole = known.partitions.len() >= count.into();
            whole && known.covers >= deliveries && is_fresh(known.ends_at, cache)
        };
        if !fresh(&of.known.read()) {
            let _asking = of.asking.lock();
            // Another one may have asked meanwhile.
            if !fresh(&of.known.read()) {
                of.ask_ends(
                    settings.topic(topic),
                    count,
                    ms(settings.ends_timeout_ms),
                    (client, clock),
                );
            }
        }
        of.known.read().partitions.iter().take(count.into()).map(|p| p.end()).collect()
    }

    /// The first offset of a partition.
    pub(crate) fn first(
        &self,
        topic: Topic,
        partition: u16,
        settings: &KafkaSettings,
        topics: &Topics,
        client: &BaseConsumer<Traced>,
    ) -> u64 {
        let of = &self.0[topic as usize];
        if !is_fresh(of.known.read().first_at, ms(settings.first_cache_ms)) {
            let _asking = of.asking.lock();
            if !is_fresh(of.known.read().first_at, ms(settings.first_cache_ms)) {
                let timeout = ms(settings.ends_timeout_ms);
                of.ask_first(settings.topic(topic), topics.partitions(topic), timeout, client);
            }
        }
        let known = of.known.read();
        known.partitions.get(usize::from(partition)).map_or(0, |p| p.first)
    }

    /// What an offset of a partition takes, by what was seen of it, or else of all of its topic.
    pub(crate) fn offset_bytes(&self, topic: Topic, partition: u16) -> Option<u64> {
        let known = self.0[topic as usize].known.read();
        let own = known.partitions.get(usize::from(partition)).map(|p| p.seen);
        let all = || {
            known.partitions.iter().fold(Seen::default(), |all, p| Seen {
                offsets: all.offsets + p.seen.offsets,
                bytes: all.bytes + p.seen.bytes,
                ..all
            })
        };
        let seen = own.filter(|seen| seen.offsets > 0).unwrap_or_else(all);
        (seen.offsets > 0).then(|| seen.bytes.div_ceil(seen.offsets).max(1))
    }

    /// Waits until every partition has said where it begins and ends: before that, a log that is
    /// full would look empty.
    pub(crate) fn learn(
        &self,
        settings: &KafkaSettings,
        topics: &Topics,
        (client, clock): (&BaseConsumer<Traced>, &Clock),
        deadline: Instant,
    ) -> Result<(), LogError> {
        // A client that has just begun looks for the leaders first.
        let timeout = ms(settings.ends_timeout_ms).max(OPEN_ASK);
        for topic in Topic::ALL {
            let of = &self.0[topic as usize];
            let (name, count) = (settings.topic(topic), topics.partitions(topic));
            loop {
                let timeout = left(deadline).clamp(ms(1), timeout);
                // Nobody waits behind a question, so that one may follow at once on another.
                of.known.write().failed_at = None;
                of.ask_ends(name, count, timeout, (client, clock));
                of.ask_first(name, count, timeout, client);
                if of.known.read().partitions.iter().all(|p| p.begins && p.ends) {
                    break;
                }
                if Instant::now() >= deadline {
                    return Err(unavailable(format!("{name} does not say how far it is")));
                }
                std::thread::sleep(ms(50));
                look_for_leaders(client, name, timeout);
            }
        }
        Ok(())
    }

    /// Asks for the first offsets now, whatever is known.
    pub(crate) fn forget_first(&self, topic: Topic) {
        self.0[topic as usize].known.write().first_at = None;
    }
}

impl TopicEnds {
    fn ask_ends(
        &self,
        name: &str,
        count: u16,
        timeout: Duration,
        (client, clock): (&BaseConsumer<Traced>, &Clock),
    ) {
        self.known.write().grow(count);
        if is_fresh(self.known.read().failed_at, timeout) {
            return;
        }
        let covers = self.deliveries.load(SeqCst);
        let time_ms = clock().0.div_euclid(1_000);
        match ask(client, name, count, Offset::End, timeout) {
            Ok(offsets) => {
                let mut known = self.known.write();
                (known.ends_at, known.failed_at) = (Some(Instant::now()), None);
                known.covers = covers;
                for (partition, offset) in known.partitions.iter_mut().zip(offsets) {
                    let Some(offset) = offset else { continue };
                    partition.end = partition.end.max(offset);
                    partition.ends = true;
                    partition.complete_to = partition.complete_to.max(LogTime(time_ms * 1_000));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the ends stand still");
                self.known.write().failed_at = Some(Instant::now());
            }
        }
    }

    fn ask_first(&self, name: &str, count: u16, timeout: Duration, client: &BaseConsumer<Traced>) {
        self.known.write().grow(count);
        if is_fresh(self.known.read().failed_at, timeout) {
            return;
        }
        match ask(client, name, count, Offset::Beginning, timeout) {
            Ok(offsets) => {
                let mut known = self.known.write();
                known.first_at = Some(Instant::now());
                for (partition, offset) in known.partitions.iter_mut().zip(offsets) {
                    partition.first = partition.first.max(offset.unwrap_or(0));
                    partition.begins |= offset.is_some();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the first offsets stand still");
                self.known.write().failed_at = Some(Instant::now());
            }
        }
    }
}

impl Known {
    /// Makes room for new partitions, which are complete to what the topic was: they were empty.
    fn grow(&mut self, count: u16) {
        let complete_to = self.partitions.iter().map(|p| p.complete_to).min().unwrap_or_default();
        let new = Partition { complete_to, ..Partition::default() };
        let count = usize::from(count).max(self.partitions.len());
        self.partitions.resize(count, new);
    }
}

impl Partition {
    fn end(&self) -> End {
        // Of what was seen, to all that there is.
        let scale = |part: u64, offsets: u64| {
            let seen = u128::from(self.seen.offsets.max(1));
            let scaled = u128::from(part) * u128::from(offsets) / seen;
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        End {
            offset: self.end,
            complete_to: self.complete_to,
            bytes: scale(self.seen.bytes, self.end.saturating_sub(self.first)),
            records: scale(self.seen.records, self.end),
        }
    }
}

/// One offset for each partition of a topic; none where its leader had no answer.
fn ask(
    client: &BaseConsumer<Traced>,
    name: &str,
    count: u16,
    which: Offset,
    timeout: Duration,
) -> Result<Vec<Option<u64>>, LogError> {
    let failed = |error| unavailable(format!("{name} does not say how far it is: {error}"));
    let mut wanted = TopicPartitionList::with_capacity(count.into());
    for partition in 0..count {
        wanted.add_partition_offset(name, partition.into(), which).map_err(failed)?;
    }
    let found = client.offsets_for_times(wanted, timeout).map_err(failed)?;
    let mut offsets = vec![None; count.into()];
    for place in found.elements() {
        let (partition, offset) = (place.partition(), place.offset());
        if let (Ok(()), Offset::Offset(offset)) = (place.error(), offset)
            && let Some(known) = offsets.get_mut(partition as usize)
        {
            *known = u64::try_from(offset).ok();
        }
    }
    Ok(offsets)
}
