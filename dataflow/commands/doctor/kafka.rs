//! What `doctor` looks at where the log is Kafka: the identity and the spool in the data directory,
//! the checkpoints, and then the topics, as a start does and without making any.

use super::{Held, Kafka, Seen, Wrong, epochs, epochs::Epochs};
use crate::{
    commands::{Failure, checkpoints},
    config::Config,
    open_log::OpenLog,
};
use trueup_kafka::{SpoolReport, look_at_spool};
use trueup_log::{Identity, Repair};
use trueup_operators::log::{Log, LogError, Topic};

/// Looks at an installation. A repair cuts a torn write off the spool; in Kafka there is nothing
/// that it could repair.
///
/// # Errors
/// When there is no data directory, or it cannot be read.
pub(super) fn look(config: &Config, repair: Repair) -> Result<Seen, Failure> {
    let wrong_use = |error: LogError| Failure::Use(error.to_string());
    let identity = Identity::existing(&config.data_dir).map_err(wrong_use)?.ok_or_else(|| {
        let dir = config.data_dir.display();
        Failure::Use(format!("{dir} is no data directory of Trueup: it has no identity"))
    })?;
    let installation = identity.installation_hex();
    let spool = look_at_spool(&config.data_dir.join("spool"), repair).map_err(wrong_use)?;
    let waiting = spool.as_ref().map(|spool| (spool.waiting_frames, spool.waiting_bytes));
    let SpoolReport { journal: log, undeliverable_frames: undeliverable, .. } =
        spool.unwrap_or_default();
    // Before the topics: those then have all that a checkpoint names.
    let checkpoints = checkpoints::look(config, &installation)?;
    let (topics, remap) = match config.open_log_read_only() {
        Ok(opened) => {
            (Ok(held(config, &opened)), epochs::check(&**opened.log(), &checkpoints.places))
        }
        Err(error) => (Err(Wrong::from(error)), unknown()),
    };
    let brokers = config.kafka.brokers.clone();
    let kafka = Some(Kafka { brokers, waiting, undeliverable, topics });
    Ok(Seen { installation, log, kafka, remap, checkpoints })
}

fn unknown() -> Result<Epochs, Wrong> {
    Err(Wrong::Unread("the topics could not be looked at".to_owned()))
}

fn held(config: &Config, opened: &OpenLog) -> Vec<Held> {
    let log: &dyn Log = &**opened.log();
    let name = |topic| match topic {
        Topic::Events => &config.kafka.events_topic,
        Topic::Verdicts => &config.kafka.verdicts_topic,
        Topic::Metadata => &config.kafka.metadata_topic,
        Topic::Remap => &config.kafka.remap_topic,
    };
    let partitions = Topic::ALL.into_iter().flat_map(|topic| {
        let ends = log.ends(topic);
        (0..).zip(ends).map(move |(partition, end)| (topic, partition, end.offset))
    });
    let held = partitions.map(|(topic, partition, end)| {
        let first = log.first(topic, partition);
        Held { topic, name: name(topic).clone(), partition, first, end }
    });
    held.collect()
}
