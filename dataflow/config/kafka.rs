//! How the events topic is written, which decides whether the partition of an event follows from
//! its id. Copies of an event must meet to count once: by their partition, or by an exchange.

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Config;

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
