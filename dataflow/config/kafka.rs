//! How the events topic is written, which decides whether the partition of an event follows from
//! its id. Copies of an event must meet to count once: by their partition, or by an exchange.

use super::{Config, ConfigError, LogKind};
use serde::{Deserialize, Serialize};

/// What a message of the events topic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KafkaEncoding {
    /// A batch of events as an Arrow IPC stream.
    Batch,
    /// One event, as JSON.
    Json,
}

/// When events are exchanged by id between the workers before they are deduplicated. Where copies
/// of an event may stand in several partitions they must be, or they count more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KafkaExchange {
    /// With the encoding `json`, which anyone writes in any partition; with `batch` when the topic
    /// has more partitions than when the data directory was made. Other producers of batches must
    /// then choose the partition as a collector does.
    Auto,
    /// Always: other producers of batches partition as they like.
    Always,
}

impl Config {
    /// Checks what events that are one a message do not go with: many of them have one log time,
    /// the end of the second in which a broker took them, and a horizon within a second could find
    /// one too late that came in time.
    pub(super) fn check_encoding(&self) -> Result<(), ConfigError> {
        let horizon = self.time.correction_horizon;
        let is_by_second =
            self.log.kind == LogKind::Kafka && self.kafka.encoding == KafkaEncoding::Json;
        if is_by_second && horizon.0.subsec_nanos() > 0 {
            return Err(ConfigError(format!(
                "`time.correction_horizon` is {horizon} and `kafka.encoding` is \"json\", with \
                 which events are late by the second; give whole seconds"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Config;

    #[test]
    fn horizons_are_whole_seconds_where_events_are_late_by_the_second() {
        let check = |kind: &str, encoding: &str, horizon: &str| {
            let text = format!(
                "[log]\nkind = \"{kind}\"\n[kafka]\nencoding = \"{encoding}\"\n\
                 [time]\nallowed_lateness = \"1ms\"\ncorrection_horizon = \"{horizon}\""
            );
            Config::parse(&text).unwrap().check().map_err(|error| error.0)
        };
        for horizon in ["1500ms", "999ms", "86400001ms"] {
            let error = check("kafka", "json", horizon).unwrap_err();
            let said = format!("`time.correction_horizon` is {horizon} and `kafka.encoding` is");
            assert!(error.starts_with(&said) && error.ends_with("give whole seconds"), "{error}");
            check("kafka", "batch", horizon).unwrap();
            check("embedded", "json", horizon).unwrap();
        }
        for horizon in ["1s", "2000ms", "10m", "24h"] {
            check("kafka", "json", horizon).unwrap();
        }
    }

    #[test]
    fn ids_are_exchanged_where_partitions_do_not_follow_from_them() {
        let partitioned_by_id = |log: &str, kafka: &str| {
            let text = format!("[log]\nkind = \"{log}\"\n[kafka]\n{kafka}");
            Config::parse(&text).unwrap().engine().partitioned_by_id
        };
        assert!(partitioned_by_id("kafka", ""));
        assert!(partitioned_by_id("kafka", "exchange = \"auto\""));
        assert!(!partitioned_by_id("kafka", "exchange = \"always\""));
        assert!(!partitioned_by_id("kafka", "encoding = \"json\""));
        assert!(partitioned_by_id("embedded", "exchange = \"always\""));
        let error = Config::parse("[kafka]\nexchange = \"never\"").unwrap_err().0;
        assert!(error.contains("auto") && error.contains("always"), "{error}");
    }
}
