//! The topics of a run on Kafka: the stream, which is filled once and kept, and those beside it,
//! which are made for a run and deleted after it.
//!
//! A JSON message is one event as its sender writes it, without a key or a header, so that other
//! programs read the very same topic; copies of an event go to one partition, by the low bits of
//! the id. A batch is a frame as a collector would append it. The stream ends at about the time of
//! filling.
//!
//! Filling keeps the order of the stream within each partition. A topic that holds another number
//! of messages than the stream is refused, never topped up: what it holds is not known.

use super::super::{Bench, Encoding};
use arrow_buffer::Buffer;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode,
};
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};
use trueup_generator::{
    ads1::{Ads1, shift_to_end_at_ms},
    frames::Layout,
};
use trueup_kafka::{
    Create, Encoded, Encoding as KafkaEncoding, JsonEvents, JsonMessage, KafkaLog, KafkaSettings,
    Row, system_clock,
};
use trueup_operators::{
    event::SCHEMA_VERSION,
    hash::HashKey,
    log::{Append, Log, LogError, Topic, append_and_wait},
    remap::{REMAP_VERSION, RemapRow, Upto, Writer},
};

/// What the ids in batches are hashed with.
pub(super) const KEY: HashKey = HashKey([7; 16]);
/// Events that are appended at a time: 1,600 a message, if a message is a batch.
const CHUNK_EVENTS: u64 = 6_400;
/// Chunks that wait for the brokers.
const CHUNKS_IN_FLIGHT_MAX: usize = 32;
/// How long deleting topics, or a message that should come at once, may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Threads of the plain consumer: those of the peers' program that reads the topic.
const READERS: usize = 2;

/// The stream in its topic.
pub(super) struct Stream {
    pub(super) brokers: String,
    pub(super) topic: String,
    /// The offset behind the last message, by partition.
    ends: Vec<u64>,
}

/// The topics beside the stream.
pub(super) struct Beside {
    brokers: String,
    pub(super) verdicts: String,
    pub(super) metadata: String,
    pub(super) remap: String,
}

impl Stream {
    /// The topic with the stream; fills it unless it is full.
    pub(super) fn fill_once(bench: &Bench, ads1: &Ads1) -> Result<Stream, String> {
        let brokers = bench.brokers.clone().ok_or("`--brokers` names no broker")?;
        let topic = bench
            .topic
            .clone()
            .unwrap_or_else(|| format!("trueup-ads1-{}-{}", bench.encoding.name(), bench.events));
        let beside = Beside::new(&brokers, &topic, "fill");
        let ends = beside.during(|| {
            let log = open(bench, &brokers, &topic, &beside)?;
            let wanted = messages(bench, ads1);
            match held(&log, bench.partitions)? {
                0 => fill(bench, ads1, &log, &topic)?,
                held if held == wanted => eprintln!("{topic} is filled already"),
                held => {
                    return Err(format!(
                        "the topic {topic} holds {held} messages, {} events are {wanted}; name \
                         another `--topic`, or delete this one",
                        bench.events
                    ));
                }
            }
            Ok(log.ends(Topic::Events).iter().map(|end| end.offset).collect())
        })?;
        Ok(Stream { brokers, topic, ends })
    }

    /// Closes epochs as a server would have that was there while the topic was filled, and says
    /// what verdicts come in each. How many epochs.
    pub(super) fn cut(
        &self,
        bench: &Bench,
        log: &dyn Log,
        verdicts: impl Fn(std::ops::Range<u64>) -> Option<Append>,
    ) -> Result<u64, LogError> {
        let epochs = bench.events.div_ceil(bench.epoch_events).max(1);
        let place = |all: u64, epoch: u64| all * epoch / epochs;
        let (mut frames, mut upto) = (Vec::new(), Vec::new());
        for epoch in 0..epochs {
            frames.extend(verdicts(place(bench.events, epoch)..place(bench.events, epoch + 1)));
            upto.push(frames.len() as u64);
        }
        append_and_wait(log, frames)?;
        // Nothing of the stream is younger; what comes later counts as no older.
        let log_time = system_clock()();
        let row = |(verdicts, epoch): (u64, u64)| RemapRow {
            epoch,
            writer: Writer::default(),
            begins: false,
            events: self
                .ends
                .iter()
                .map(|&end| Upto { offset: place(end, epoch), log_time })
                .collect(),
            verdicts: vec![Upto { offset: verdicts, log_time }],
            metadata: vec![Upto { offset: 0, log_time }],
        };
        let rows = upto.into_iter().zip(1..).map(row).map(|row| Append {
            topic: Topic::Remap,
            partition: 0,
            schema_version: REMAP_VERSION,
            records: 1,
            payload: row.encode().into(),
        });
        append_and_wait(log, rows.collect())?;
        Ok(epochs)
    }

    /// Reads the topic with librdkafka alone and looks at nothing: the limit.
    pub(super) fn read_plain(&self) -> Result<(), String> {
        let parts: Vec<(i32, u64)> = (0..).zip(self.ends.iter().copied()).collect();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS)
                .map(|reader| {
                    let own = parts.iter().copied().skip(reader).step_by(READERS).collect();
                    scope.spawn(move || self.read_partitions(own))
                })
                .collect();
            readers
                .into_iter()
                .try_for_each(|reader| reader.join().map_err(|_| "a reader panicked".to_owned())?)
        })
    }

    fn read_partitions(&self, parts: Vec<(i32, u64)>) -> Result<(), String> {
        let consumer = plain_consumer(&self.brokers).map_err(text)?;
        // One that is assigned before it knows the leaders looks for them half a second later.
        consumer.fetch_metadata(Some(&self.topic), PATIENCE).map_err(text)?;
        let mut places = TopicPartitionList::new();
        let mut left = 0;
        for (partition, end) in parts {
            let place = places.add_partition_offset(&self.topic, partition, Offset::Beginning);
            place.map_err(text)?;
            left += end;
        }
        consumer.assign(&places).map_err(text)?;
        let (mut bytes, mut last) = (0, Instant::now());
        while left > 0 {
            match consumer.poll(Duration::from_secs(1)) {
                Some(message) => {
                    bytes += message.map_err(text)?.payload_len();
                    (left, last) = (left - 1, Instant::now());
                }
                None if last.elapsed() < PATIENCE => {}
                None => return Err(format!("{left} messages of {} do not come", self.topic)),
            }
        }
        std::hint::black_box(bytes);
        Ok(())
    }
}

impl Beside {
    /// Names of their own for this process and `run`.
    pub(super) fn new(brokers: &str, topic: &str, run: &str) -> Beside {
        let name = |what| format!("{topic}-{}-{run}-{what}", std::process::id());
        Beside {
            brokers: brokers.to_owned(),
            verdicts: name("verdicts"),
            metadata: name("metadata"),
            remap: name("remap"),
        }
    }

    /// Deletes them when `work` is over, however it ended.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        let result = work();
        let deleted = self.delete();
        let result = result?;
        deleted.map(|()| result)
    }

    fn delete(&self) -> Result<(), String> {
        let admin: AdminClient<DefaultClientContext> =
            client(&self.brokers).create().map_err(text)?;
        let options = AdminOptions::new().request_timeout(Some(PATIENCE));
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(text)?;
        let names = [&*self.verdicts, &*self.metadata, &*self.remap];
        for answer in runtime.block_on(admin.delete_topics(&names, &options)).map_err(text)? {
            match answer {
                // It was not made yet when the work failed.
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((name, error)) => return Err(format!("{name} cannot be deleted: {error}")),
            }
        }
        Ok(())
    }
}

/// A frame of lines is as many messages.
struct Lines;

impl JsonEvents for Lines {
    fn to_messages(&self, append: &Append) -> Result<Vec<JsonMessage>, LogError> {
        let lines = append.payload.split_inclusive(|&byte| byte == b'\n');
        let message = |line: &[u8]| JsonMessage {
            key: Vec::new(),
            payload: line.strip_suffix(b"\n").unwrap_or(line).to_vec(),
        };
        Ok(lines.map(message).collect())
    }

    fn to_frame(&self, _: &[Row<'_>]) -> Result<Encoded, LogError> {
        Err(LogError::Invalid { reason: "who fills a topic does not read it".into() })
    }
}

fn open(bench: &Bench, brokers: &str, topic: &str, beside: &Beside) -> Result<KafkaLog, String> {
    let settings = KafkaSettings {
        brokers: brokers.to_owned(),
        events_topic: topic.to_owned(),
        verdicts_topic: beside.verdicts.clone(),
        metadata_topic: beside.metadata.clone(),
        remap_topic: beside.remap.clone(),
        encoding: match bench.encoding {
            Encoding::Json => KafkaEncoding::Json,
            Encoding::Batch => KafkaEncoding::Batch,
        },
        create: Some(Create {
            partitions: bench.partitions,
            replication_factor: 1,
            retention_ms: None,
        }),
        ..KafkaSettings::default()
    };
    KafkaLog::open(settings, system_clock(), Some(Arc::new(Lines))).map_err(text)
}

/// How many messages the topic holds, if it has the right partitions and all from the first on.
fn held(log: &KafkaLog, partitions: u16) -> Result<u64, String> {
    let name = &log.settings().events_topic;
    let has = log.partitions(Topic::Events);
    if has != partitions {
        return Err(format!("the topic {name} has {has} partitions, `--partitions` {partitions}"));
    }
    if let Some(cut) = (0..has).find(|&partition| log.first(Topic::Events, partition) > 0) {
        return Err(format!("partition {cut} of the topic {name} was cut; name another `--topic`"));
    }
    Ok(log.ends(Topic::Events).iter().map(|end| end.offset).sum())
}

/// How many messages the stream is.
fn messages(bench: &Bench, ads1: &Ads1) -> u64 {
    let Bench { events, partitions, encoding, .. } = *bench;
    match encoding {
        Encoding::Json => events,
        // No partition gets nothing of a whole chunk.
        Encoding::Batch => {
            let rest = events - events % CHUNK_EVENTS..events;
            let layout = Layout { partitions, key: KEY };
            let of_rest = ads1.frames(rest, &layout, 0).len() as u64;
            events / CHUNK_EVENTS * u64::from(partitions) + of_rest
        }
    }
}

fn fill(bench: &Bench, ads1: &Ads1, log: &KafkaLog, topic: &str) -> Result<(), String> {
    let began = Instant::now();
    let shift_ms = shift_to_end_at_ms(bench.events, system_clock()().0 / 1_000);
    let layout = Layout { partitions: bench.partitions, key: KEY };
    let (answer, answers) = channel();
    let mut waiting = 0;
    let mut start = 0;
    while start < bench.events {
        let chunk = start..(start + CHUNK_EVENTS).min(bench.events);
        start = chunk.end;
        let frames = match bench.encoding {
            Encoding::Json => lines(ads1, chunk, bench.partitions, shift_ms),
            Encoding::Batch => ads1.frames(chunk, &layout, shift_ms),
        };
        let answer = answer.clone();
        // Who waits for the answers has gone when one of them was an error.
        let done = Box::new(move |result| drop(answer.send(result)));
        log.append(frames, done).map_err(text)?;
        waiting += 1;
        if waiting == CHUNKS_IN_FLIGHT_MAX {
            delivered(&answers)?;
            waiting -= 1;
        }
    }
    (0..waiting).try_for_each(|_| delivered(&answers))?;
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("{topic} is filled with {} events in {seconds:.1} s", bench.events);
    Ok(())
}

fn delivered<T>(answers: &Receiver<Result<T, LogError>>) -> Result<(), String> {
    answers.recv().map_err(text)?.map(|_| ()).map_err(text)
}

/// Events as lines, a frame a partition.
fn lines(ads1: &Ads1, events: std::ops::Range<u64>, partitions: u16, shift_ms: i64) -> Vec<Append> {
    let mut parts = vec![(0, Vec::new()); partitions.into()];
    for event in events.map(|i| ads1.event(i)) {
        let (records, text) = &mut parts[(event.id_low % u64::from(partitions)) as usize];
        ads1.json(&event, shift_ms, text);
        text.push(b'\n');
        *records += 1;
    }
    let frame = |(partition, (records, text)): (u16, (u32, Vec<u8>))| Append {
        topic: Topic::Events,
        partition,
        schema_version: SCHEMA_VERSION,
        records,
        payload: Buffer::from_vec(text),
    };
    (0..).zip(parts).filter(|(_, (records, _))| *records > 0).map(frame).collect()
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

/// As the peers' program that reads the topic has it.
fn plain_consumer(brokers: &str) -> Result<BaseConsumer, KafkaError> {
    client(brokers)
        .set("group.id", "trueup-bench")
        .set("enable.auto.commit", "false")
        .set("fetch.message.max.bytes", "4000000")
        .set("queued.max.messages.kbytes", "262144")
        .set("queued.min.messages", "1000000")
        .set("fetch.wait.max.ms", "10")
        .set("check.crcs", "false")
        .create()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_message_is_an_event_and_copies_meet() {
        let ads1 = Ads1::new();
        let mut sent: Vec<Vec<u8>> = Vec::new();
        for append in lines(&ads1, 0..5_000, 4, 60_000) {
            let messages = Lines.to_messages(&append).unwrap();
            assert_eq!(messages.len(), append.records as usize);
            for message in messages {
                let event: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
                let id = u128::from_str_radix(event["eventId"].as_str().unwrap(), 16).unwrap();
                assert_eq!((id % 4) as u16, append.partition);
                sent.push(message.payload);
            }
        }
        let mut wanted: Vec<Vec<u8>> = (0..5_000)
            .map(|i| {
                let mut text = Vec::new();
                ads1.json(&ads1.event(i), 60_000, &mut text);
                text
            })
            .collect();
        sent.sort();
        wanted.sort();
        assert_eq!(sent, wanted);
    }
}
