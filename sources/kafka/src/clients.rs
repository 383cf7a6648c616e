//! The librdkafka clients that the log is made of, and what they tell besides messages.
//!
//! librdkafka says many things that it then mends by itself (a broker that went away, a leader that
//! moved). They are traced, so that an operator sees them, and decide nothing: what a call could
//! not do is what its own answer says.

use crate::settings::KafkaSettings;
use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

/// How often it is said that all brokers are down.
const DOWN_SAID_EVERY: Duration = Duration::from_secs(5);

/// What clients tell is traced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traced;

impl ClientContext for Traced {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        trace_log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        trace_error(&error, reason);
    }
}

impl ConsumerContext for Traced {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::warn!(%error, "the offsets for lag tools were not published");
        }
    }
}

pub(crate) fn trace_log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning => tracing::warn!(facility, "librdkafka: {message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::info!(facility, "librdkafka: {message}");
        }
        RDKafkaLogLevel::Debug => tracing::debug!(facility, "librdkafka: {message}"),
    }
}

pub(crate) fn trace_error(error: &KafkaError, reason: &str) {
    let is_said = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::AllBrokersDown) => was_said(),
        // Its log says the same of each attempt.
        Some(RDKafkaErrorCode::BrokerTransportFailure) => true,
        _ => false,
    };
    if is_said {
        return tracing::debug!(%error, "librdkafka: {reason}");
    }
    tracing::warn!(%error, "librdkafka: {reason}");
}

/// Whether it was said lately that all brokers are down. Each client says so after each attempt,
/// and what a client that was not listened to has to say comes all at once.
fn was_said() -> bool {
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    let mut said = SAID.lock();
    let lately = said.is_some_and(|said| said.elapsed() < DOWN_SAID_EVERY);
    if !lately {
        *said = Some(Instant::now());
    }
    lately
}

/// Lets a client find out who leads a topic's partitions; whether it has got an answer. That there
/// is no leader it believes for minutes, and asks nobody about it, unless it is told to look again.
pub(crate) fn look_for_leaders(
    client: &BaseConsumer<Traced>,
    topic: &str,
    timeout: Duration,
) -> bool {
    let found = client.fetch_metadata(Some(topic), timeout);
    let found = found.inspect_err(|error| {
        tracing::debug!(%error, topic, "the leaders are not known");
    });
    found.is_ok()
}

/// What all clients of a cluster have in common.
pub(crate) fn common(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.brokers)
        .set("client.id", "trueup")
        // The default waits up to ten seconds between attempts, and freshness with it.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        // A broker that holds a connection and answers nothing is noticed by this.
        .set("socket.timeout.ms", "10000")
        .set("allow.auto.create.topics", "false")
        .set_log_level(RDKafkaLogLevel::Warning);
    config
}

/// A consumer that is told what to read, one partition at a time.
pub(crate) fn consumer(settings: &KafkaSettings, group: &str, ahead_bytes: usize) -> ClientConfig {
    // An answer holds at least one message whole, however large.
    let fetch_bytes = ahead_bytes.min(8 << 20).to_string();
    let receive_bytes = (settings.message_bytes_max.max(8 << 20) + (1 << 20)).to_string();
    let mut config = common(settings);
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("check.crcs", "true")
        .set("fetch.wait.max.ms", "20")
        .set("fetch.min.bytes", "1")
        .set("fetch.error.backoff.ms", "20")
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.message.max.bytes", &fetch_bytes)
        .set("fetch.max.bytes", &fetch_bytes)
        .set("receive.message.max.bytes", &receive_bytes)
        .set("queued.max.messages.kbytes", (ahead_bytes >> 10).to_string())
        .set("queued.min.messages", "1000000");
    config
}

/// A producer that repeats nothing, reorders nothing, and calls delivered what all in-sync replicas
/// have.
pub(crate) fn producer(settings: &KafkaSettings, message_bytes_max: usize) -> ClientConfig {
    let mut config = common(settings);
    // The log's own limits bind first; these are librdkafka's, and must not.
    let queue_kbytes = (settings.queue_bytes_max / 512 + 65_536).min(2_147_483_647);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("compression.type", "lz4")
        .set("linger.ms", settings.linger_ms.to_string())
        .set("message.timeout.ms", settings.delivery_timeout_ms.to_string())
        .set("message.max.bytes", message_bytes_max.to_string())
        .set("batch.size", message_bytes_max.min(1 << 20).to_string())
        .set("retry.backoff.ms", "50")
        .set("queue.buffering.max.kbytes", queue_kbytes.to_string())
        .set("queue.buffering.max.messages", (settings.queue_messages_max * 2).to_string());
    config
}

/// Waits for a future of the admin client, which is completed by a thread of its own.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Unpark>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
