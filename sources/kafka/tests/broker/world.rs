//! The brokers, topics for one test, and other people's clients.

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
        TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Header, Headers, OwnedHeaders, OwnedMessage},
    producer::{BaseProducer, BaseRecord, Producer},
};
use std::{
    path::PathBuf,
    process::{Command, id},
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};
use trueup_kafka::{Create, KafkaLog, KafkaSettings, system_clock};
use trueup_operators::log::{Log, Topic};

pub(crate) const WAIT: Duration = Duration::from_secs(30);

static BROKERS: RwLock<()> = RwLock::new(());

/// Held by a test that only uses the brokers.
pub(crate) fn beside() -> RwLockReadGuard<'static, ()> {
    BROKERS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test that breaks brokers.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    BROKERS.write().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn brokers() -> String {
    std::env::var("TRUEUP_KAFKA_BROKERS")
        .expect("TRUEUP_KAFKA_BROKERS names brokers; `.ci/run kafka` starts some")
}

pub(crate) fn broker_count() -> u16 {
    brokers().split(',').count() as u16
}

/// Tells `.ci/kafka` to do something to a broker.
pub(crate) fn control(what: &str, broker: u16) {
    assert!(std::env::var("KAFKA_DIR").is_ok(), "KAFKA_DIR is where .ci/kafka keeps its brokers");
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.ci/kafka");
    let status = Command::new(script).args([what, &broker.to_string()]).status().unwrap();
    assert!(status.success(), "{what} {broker}: {status}");
}

/// All brokers stopped until this is dropped, so that a test that fails leaves them to the next.
pub(crate) struct Mute;

impl Mute {
    pub(crate) fn all() -> Self {
        (1..=broker_count()).for_each(|broker| control("freeze", broker));
        Self
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        (1..=broker_count()).for_each(|broker| control("thaw", broker));
    }
}

/// Waits until all brokers are in the cluster: before that no topic with a copy on each is made.
pub(crate) fn await_brokers() {
    let client: BaseConsumer = config().set("group.id", "watch").create().unwrap();
    until("all brokers are in the cluster", || {
        let known = client.fetch_metadata(None, Duration::from_secs(5));
        known.is_ok_and(|known| known.brokers().len() == usize::from(broker_count()))
    });
}

/// A name that no other test and no other run has.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = UNIX_EPOCH.elapsed().unwrap().as_millis();
    format!("{what}-{}-{now}-{}", id(), NEXT.fetch_add(1, SeqCst))
}

/// Settings with topics of their own.
pub(crate) fn settings() -> KafkaSettings {
    let name = unique("t");
    KafkaSettings {
        brokers: brokers(),
        events_topic: format!("{name}-events"),
        verdicts_topic: format!("{name}-verdicts"),
        metadata_topic: format!("{name}-metadata"),
        remap_topic: format!("{name}-remap"),
        create: Some(Create {
            partitions: 3,
            replication_factor: broker_count().min(3),
            retention_ms: None,
        }),
        open_timeout_ms: 60_000,
        ..KafkaSettings::default()
    }
}

pub(crate) fn open(settings: &KafkaSettings) -> KafkaLog {
    KafkaLog::open(settings.clone(), system_clock(), None).unwrap()
}

/// Waits for something to become true.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {WAIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
pub(crate) fn await_end(log: &dyn Log, topic: Topic, partition: u16, end: u64) {
    until("the end is reached", || log.ends(topic)[usize::from(partition)].offset >= end);
}

fn config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers());
    config
}

/// Somebody else's message.
pub(crate) struct Stray<'a> {
    pub(crate) partition: i32,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) payload: Option<&'a [u8]>,
}

/// Writes messages as any other program would.
pub(crate) fn produce(topic: &str, strays: &[Stray<'_>]) {
    let producer: BaseProducer = config().set("message.max.bytes", "30000000").create().unwrap();
    for stray in strays {
        let add = |all: OwnedHeaders, (key, value): &(&str, &str)| {
            all.insert(Header { key, value: Some(*value) })
        };
        let headers = stray.headers.iter().fold(OwnedHeaders::new(), add);
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic);
        record = record.partition(stray.partition).headers(headers);
        if let Some(payload) = stray.payload {
            record = record.payload(payload);
        }
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(WAIT).unwrap();
}

/// Writes messages in a transaction, and commits or aborts it.
pub(crate) fn transact(topic: &str, partition: i32, payloads: &[&[u8]], commit: bool) {
    let id = unique("transaction");
    let producer: BaseProducer = config().set("transactional.id", &id).create().unwrap();
    producer.init_transactions(WAIT).unwrap();
    producer.begin_transaction().unwrap();
    for payload in payloads {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "trueup-schema", value: Some("1") })
            .insert(Header { key: "trueup-records", value: Some("1") });
        let record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(topic).partition(partition).payload(*payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(WAIT).unwrap();
    if commit {
        producer.commit_transaction(WAIT).unwrap();
    } else {
        producer.abort_transaction(WAIT).unwrap();
    }
}

/// Reads a partition to its end as any other program would.
pub(crate) fn consume(topic: &str, partition: i32) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer = config()
        .set("group.id", unique("plain"))
        .set("enable.partition.eof", "true")
        .set("fetch.message.max.bytes", "30000000")
        .create()
        .unwrap();
    let mut places = TopicPartitionList::new();
    places.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    consumer.assign(&places).unwrap();
    let mut messages = Vec::new();
    let deadline = Instant::now() + WAIT;
    loop {
        assert!(Instant::now() < deadline, "the end of {topic} {partition} is not reached");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => messages.push(message.detach()),
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => return messages,
            Some(Err(error)) => println!("plain consumer: {error}"),
            None => {}
        }
    }
}

/// The value of a header.
pub(crate) fn header(message: &OwnedMessage, name: &str) -> String {
    let headers = message.headers().unwrap();
    let value = headers.iter().find(|header| header.key == name).unwrap().value.unwrap();
    String::from_utf8(value.to_vec()).unwrap()
}

fn admin() -> AdminClient<DefaultClientContext> {
    config().create().unwrap()
}

/// Waits for an answer of the admin client.
fn wait<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn create_topic(name: &str, partitions: i32, config: &[(&str, &str)]) {
    let copies = TopicReplication::Fixed(broker_count().min(3).into());
    let mut topic = NewTopic::new(name, partitions, copies);
    for (key, value) in config {
        topic = topic.set(key, value);
    }
    let options = AdminOptions::new().operation_timeout(Some(WAIT));
    wait(admin().create_topics([&topic], &options)).unwrap().pop().unwrap().unwrap();
}

/// Sets the largest message of a topic; what else we create topics with stays.
pub(crate) fn limit(topic: &str, message_bytes_max: usize) {
    let bytes = message_bytes_max.to_string();
    let config = AlterConfig::new(ResourceSpecifier::Topic(topic))
        .set("message.timestamp.type", "LogAppendTime")
        .set("cleanup.policy", "delete")
        .set("retention.ms", "-1")
        .set("max.message.bytes", &bytes);
    let options = AdminOptions::new().request_timeout(Some(WAIT));
    wait(admin().alter_configs([&config], &options)).unwrap().pop().unwrap().unwrap();
}

pub(crate) fn grow(topic: &str, partitions: usize) {
    let options = AdminOptions::new().operation_timeout(Some(WAIT));
    let new = NewPartitions::new(topic, partitions);
    wait(admin().create_partitions([&new], &options)).unwrap().pop().unwrap().unwrap();
}

/// Deletes the messages of a partition below an offset, as retention does.
pub(crate) fn delete_below(topic: &str, partition: i32, offset: i64) {
    let mut places = TopicPartitionList::new();
    places.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
    let options = AdminOptions::new().operation_timeout(Some(WAIT));
    wait(admin().delete_records(&places, &options)).unwrap();
}

/// The offset that a group has committed.
pub(crate) fn committed(group: &str, topic: &str, partition: i32) -> Offset {
    let consumer: BaseConsumer = config().set("group.id", group).create().unwrap();
    let mut places = TopicPartitionList::new();
    places.add_partition(topic, partition);
    let places = consumer.committed_offsets(places, WAIT).unwrap();
    places.elements()[0].offset()
}
