//! The topics: made where they are missing, refused where they cannot serve, and counted while the
//! log runs, since an operator may add partitions to the events topic at any time.
//!
//! Log time is the broker's append time, so the topics of events and verdicts must be stamped by
//! the broker (`message.timestamp.type=LogAppendTime`): with the producer's time, a sender with a
//! wrong clock would decide what is late. What is compacted forgets, so no topic may be.

use crate::{
    clients::{Traced, block_on, common},
    settings::{Create, KafkaSettings, invalid, left, ms, unavailable},
};
use parking_lot::RwLock;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    metadata::Metadata,
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use trueup_operators::log::{LogError, PARTITIONS_MAX, Topic};

/// What is known of the four topics.
#[derive(Debug)]
pub(crate) struct Topics {
    /// Partitions, by topic.
    partitions: RwLock<[u16; 4]>,
    /// The largest message that each takes, by topic.
    message_bytes_max: [usize; 4],
}

impl Topics {
    /// Looks at all topics, and makes those that are missing if that is wanted.
    pub(crate) fn open(
        settings: &KafkaSettings,
        client: &BaseConsumer<Traced>,
        deadline: Instant,
    ) -> Result<Topics, LogError> {
        let admin = AdminClient::from_config_and_context(&common(settings), Traced)
            .map_err(|error| unavailable(format!("Kafka's client cannot be made: {error}")))?;
        let missing: Vec<Topic> = count(settings, client, deadline)?
            .into_iter()
            .zip(Topic::ALL)
            .filter_map(|(count, topic)| count.is_none().then_some(topic))
            .collect();
        if let Some(topic) = missing.first() {
            let Some(create) = &settings.create else {
                let name = settings.topic(*topic);
                return Err(invalid(format!(
                    "the cluster {} has no topic {name:?} for {}; create it, with \
                     message.timestamp.type=LogAppendTime, or set kafka.create",
                    settings.brokers,
                    topic.name()
                )));
            };
            make(settings, create, &missing, &admin, deadline)?;
        }
        let partitions = await_all(settings, client, deadline)?;
        let message_bytes_max = check_configs(settings, &admin, deadline)?;
        Ok(Topics { partitions: RwLock::new(partitions), message_bytes_max })
    }

    /// How many partitions a topic has.
    pub(crate) fn partitions(&self, topic: Topic) -> u16 {
        self.partitions.read()[topic as usize]
    }

    /// The largest message that a topic takes.
    pub(crate) fn message_bytes_max(&self, topic: Topic) -> usize {
        self.message_bytes_max[topic as usize]
    }

    /// Whether a topic has this partition.
    pub(crate) fn check(&self, topic: Topic, partition: u16) -> Result<(), LogError> {
        let count = self.partitions(topic);
        if partition < count {
            return Ok(());
        }
        let name = topic.name();
        Err(invalid(format!("topic {name} has {count} partitions, there is no {partition}")))
    }

    /// Looks again how many partitions the events topic has, given what each client knows: one
    /// counts when all of them can use it. They never become fewer.
    pub(crate) fn refresh(&self, settings: &KafkaSettings, clients: &[Metadata]) {
        let count = |metadata| counts(settings, metadata)[Topic::Events as usize];
        let found = clients.iter().map(count).min().flatten();
        let known = self.partitions(Topic::Events);
        match found {
            Some(count) if count > PARTITIONS_MAX => {
                let name = &settings.events_topic;
                tracing::error!(
                    "{name} has {count} partitions; those from {PARTITIONS_MAX} on are NOT read"
                );
                self.partitions.write()[Topic::Events as usize] = PARTITIONS_MAX;
            }
            Some(count) if count > known => {
                tracing::info!(before = known, after = count, "the events topic has grown");
                self.partitions.write()[Topic::Events as usize] = count;
            }
            Some(_) => {}
            None => tracing::error!("the topic {} is gone", settings.events_topic),
        }
    }
}

/// How long one question waits while a log is opened. A broker that was just let into the cluster
/// can leave one without an answer for good, and answer the next at once.
const ASK_MAX: Duration = Duration::from_secs(5);

/// With less time than this no question is begun: its answer would be that the time is up.
const ASK_MIN: Duration = Duration::from_millis(500);

/// Asks until there is an answer or the time is up.
pub(crate) fn ask<T>(
    deadline: Instant,
    question: impl Fn(Duration) -> Result<T, KafkaError>,
) -> Result<T, KafkaError> {
    loop {
        match question(left(deadline).clamp(ms(1), ASK_MAX)) {
            Err(error) if left(deadline) > ASK_MIN => {
                tracing::debug!(%error, "a broker is asked again");
                std::thread::sleep(ms(50));
            }
            answer => return answer,
        }
    }
}

/// How many partitions each topic has; none for one that is not there.
fn count(
    settings: &KafkaSettings,
    client: &BaseConsumer<Traced>,
    deadline: Instant,
) -> Result<[Option<u16>; 4], LogError> {
    let brokers = &settings.brokers;
    let metadata = ask(deadline, |timeout| client.fetch_metadata(None, timeout))
        .map_err(|error| unavailable(format!("Kafka at {brokers} does not answer: {error}")))?;
    Ok(counts(settings, &metadata))
}

fn counts(settings: &KafkaSettings, metadata: &Metadata) -> [Option<u16>; 4] {
    let counts: BTreeMap<&str, usize> =
        metadata.topics().iter().map(|topic| (topic.name(), topic.partitions().len())).collect();
    Topic::ALL.map(|topic| {
        let count = *counts.get(settings.topic(topic))?;
        Some(u16::try_from(count).unwrap_or(u16::MAX)).filter(|&count| count > 0)
    })
}

/// Waits until every broker that may be asked knows all topics.
fn await_all(
    settings: &KafkaSettings,
    client: &BaseConsumer<Traced>,
    deadline: Instant,
) -> Result<[u16; 4], LogError> {
    loop {
        let counts = count(settings, client, deadline)?;
        let Some(topic) = Topic::ALL.into_iter().find(|t| counts[*t as usize].is_none()) else {
            let counts = counts.map(Option::unwrap_or_default);
            check_counts(settings, &counts)?;
            return Ok(counts);
        };
        if Instant::now() >= deadline {
            let name = settings.topic(topic);
            return Err(unavailable(format!("the topic {name:?} was created and is not there")));
        }
        std::thread::sleep(ms(50));
    }
}

fn check_counts(settings: &KafkaSettings, counts: &[u16; 4]) -> Result<(), LogError> {
    for topic in Topic::ALL {
        let (name, count) = (settings.topic(topic), counts[topic as usize]);
        if topic != Topic::Events && count != 1 {
            return Err(invalid(format!(
                "the topic {name:?} has {count} partitions; {} need one, for their order",
                topic.name()
            )));
        }
        if count > PARTITIONS_MAX {
            return Err(invalid(format!(
                "the topic {name:?} has {count} partitions; it can have {PARTITIONS_MAX}"
            )));
        }
    }
    Ok(())
}

fn make(
    settings: &KafkaSettings,
    create: &Create,
    missing: &[Topic],
    admin: &AdminClient<Traced>,
    deadline: Instant,
) -> Result<(), LogError> {
    let message_bytes_max = settings.message_bytes_max.to_string();
    let kept = create.retention_ms.map_or_else(|| "-1".to_owned(), |ms| ms.to_string());
    // An epoch and an entry are known from these alone, however old they are.
    let is_kept = |topic: Topic| matches!(topic, Topic::Remap | Topic::Metadata);
    let new = missing.iter().map(|&topic| {
        let partitions = if topic == Topic::Events { create.partitions } else { 1 };
        let copies = TopicReplication::Fixed(create.replication_factor.into());
        NewTopic::new(settings.topic(topic), partitions.into(), copies)
            .set("message.timestamp.type", "LogAppendTime")
            .set("cleanup.policy", "delete")
            .set("max.message.bytes", &message_bytes_max)
            .set("retention.ms", if is_kept(topic) { "-1" } else { &kept })
    });
    let new: Vec<NewTopic<'_>> = new.collect();
    create_topics(&new, admin, deadline)
}

/// Makes topics, unless they are there.
pub(crate) fn create_topics(
    new: &[NewTopic<'_>],
    admin: &AdminClient<Traced>,
    deadline: Instant,
) -> Result<(), LogError> {
    use RDKafkaErrorCode::{RequestTimedOut, TopicAlreadyExists};
    let question = |timeout| {
        let options =
            AdminOptions::new().request_timeout(Some(timeout)).operation_timeout(Some(timeout));
        block_on(admin.create_topics(new, &options))
    };
    let answers = ask(deadline, question)
        .map_err(|error| unavailable(format!("topics cannot be created: {error}")))?;
    for answer in answers {
        match answer {
            Ok(name) => tracing::info!(name, "topic created"),
            // Another process was faster, or an answer was lost.
            Err((_, TopicAlreadyExists)) => {}
            Err((name, RequestTimedOut)) => {
                return Err(unavailable(format!("the topic {name:?} is not created in time")));
            }
            Err((name, error)) => {
                return Err(invalid(format!("the topic {name:?} cannot be created: {error}")));
            }
        }
    }
    Ok(())
}

/// Refuses topics that cannot serve; the largest message that each takes.
fn check_configs(
    settings: &KafkaSettings,
    admin: &AdminClient<Traced>,
    deadline: Instant,
) -> Result<[usize; 4], LogError> {
    let mut most = [settings.message_bytes_max; 4];
    for topic in Topic::ALL {
        let name = settings.topic(topic);
        let config = describe(name, admin, deadline)
            .map_err(|error| unavailable(format!("{name:?} cannot be looked at: {error}")))?;
        let get = |key: &str| config.get(key).map_or("", String::as_str);
        let stamped = get("message.timestamp.type");
        if stamped != "LogAppendTime" {
            return Err(invalid(format!(
                "the topic {name:?} has message.timestamp.type={stamped}; it must be \
                 LogAppendTime, since log time decides what is late and a sender's clock must not"
            )));
        }
        let cleanup = get("cleanup.policy");
        if cleanup != "delete" {
            return Err(invalid(format!(
                "the topic {name:?} has cleanup.policy={cleanup}; it must be delete: what is \
                 compacted cannot be derived again"
            )));
        }
        let lost = match topic {
            Topic::Remap => {
                "the rows that define the epochs: what is older than the oldest checkpoint can \
                 then neither be begun with nor verified"
            }
            Topic::Metadata => "campaigns and ads: the next start does not know them",
            Topic::Events | Topic::Verdicts => "",
        };
        if !lost.is_empty()
            && let Some(limit) = kept_less_than_always(get)
        {
            tracing::warn!(
                topic = name,
                limit,
                lost,
                "messages will be deleted that are needed for good; set retention.ms=-1 and \
                 retention.bytes=-1 for this topic"
            );
        }
        if let Ok(bytes) = get("max.message.bytes").parse::<usize>() {
            most[topic as usize] = most[topic as usize].min(bytes);
        }
    }
    Ok(most)
}

/// What makes a broker delete messages of a topic with these settings, if anything does.
fn kept_less_than_always<'a>(get: impl Fn(&str) -> &'a str) -> Option<String> {
    let limits = ["retention.ms", "retention.bytes"].into_iter();
    // A broker that does not say has no such limit.
    let limited = limits.map(|key| (key, get(key))).find(|(_, value)| !["", "-1"].contains(value));
    limited.map(|(key, value)| format!("{key}={value}"))
}

/// A topic's settings, by name.
pub(crate) fn describe(
    name: &str,
    admin: &AdminClient<Traced>,
    deadline: Instant,
) -> Result<BTreeMap<String, String>, KafkaError> {
    let unknown = |why: &str| Err(KafkaError::AdminOpCreation(why.into()));
    ask(deadline, |timeout| {
        let options = AdminOptions::new().request_timeout(Some(timeout));
        let topic = [&ResourceSpecifier::Topic(name)];
        match block_on(admin.describe_configs(topic, &options))?.pop() {
            Some(Ok(resource)) => {
                let entries = resource.entries.into_iter();
                let config: BTreeMap<String, String> =
                    entries.filter_map(|e| Some((e.name, e.value?))).collect();
                if config.contains_key("message.timestamp.type") {
                    return Ok(config);
                }
                // It has not heard of a new topic yet.
                unknown("the broker does not know its settings")
            }
            Some(Err(error)) => Err(KafkaError::AdminOp(error)),
            None => unknown("the answer is empty"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_time_or_of_bytes_deletes_messages() {
        let limit = |ms: &'static str, bytes: &'static str| {
            kept_less_than_always(|key| if key == "retention.ms" { ms } else { bytes })
        };
        assert_eq!(limit("-1", "-1"), None);
        assert_eq!(limit("-1", ""), None);
        assert_eq!(limit("604800000", "-1").as_deref(), Some("retention.ms=604800000"));
        assert_eq!(limit("-1", "1073741824").as_deref(), Some("retention.bytes=1073741824"));
    }
}
