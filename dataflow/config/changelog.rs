//! `[changelog]`: whether and where what changes in the views is published, and how Kafka's lag
//! tools are told how far a server is.

use super::{Config, ConfigError, Span};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[changelog]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChangelogConfig {
    /// The topic, made and compacted if it is missing. Empty: nothing is published.
    pub topic: String,
    /// What the changelog is called; whoever publishes one of this name ends the one before. Empty:
    /// as the topic.
    pub name: String,
    /// `host:port,…` of some brokers. Empty: those of `[kafka]`.
    pub brokers: String,
    /// Partitions of a topic that is made.
    pub partitions: u16,
    /// On how many brokers each of them stands.
    pub replication_factor: u16,
    /// The least time between two transactions.
    pub interval: Span,
    /// How long a transaction may take. The first one has all rows of the views.
    pub timeout: Span,
}

impl Default for ChangelogConfig {
    fn default() -> Self {
        ChangelogConfig {
            topic: String::new(),
            name: String::new(),
            brokers: String::new(),
            partitions: 4,
            replication_factor: 1,
            interval: Span(Duration::from_millis(100)),
            timeout: Span(Duration::from_secs(60)),
        }
    }
}

impl Config {
    /// Refuses a changelog that cannot be.
    pub(super) fn check_changelog(&self) -> Result<(), ConfigError> {
        let ChangelogConfig { topic, partitions, replication_factor, interval, timeout, .. } =
            &self.changelog;
        let error = |text: String| Err(ConfigError(text));
        if !topic.is_empty() && !cfg!(feature = "kafka") {
            return error(
                "`changelog.topic` names a topic, and this program was built without the feature \
                 `kafka`"
                    .into(),
            );
        }
        if !(1..=1_024).contains(partitions) {
            return error(format!("`changelog.partitions` is {partitions}; give 1 to 1024"));
        }
        if !(1..=64).contains(replication_factor) {
            return error(format!(
                "`changelog.replication_factor` is {replication_factor}; give 1 to 64"
            ));
        }
        if interval.0 > Duration::from_secs(3_600) {
            return error(format!("`changelog.interval` is {interval}; give 0s to 1h"));
        }
        if !(1..=600).contains(&timeout.0.as_secs()) {
            return error(format!("`changelog.timeout` is {timeout}; give 1s to 10m"));
        }
        let group = &self.kafka.offsets_group;
        if group.len() > GROUP_BYTES_MAX || group.chars().any(char::is_control) {
            return error(format!(
                "`kafka.offsets_group` is {group:?}; give at most {GROUP_BYTES_MAX} bytes without \
                 control characters, or nothing"
            ));
        }
        Ok(())
    }

    /// How the changelog's topic is written; none when there is no changelog.
    #[cfg(feature = "kafka")]
    pub fn changelog(&self) -> Option<trueup_kafka::ChangelogSettings> {
        let ChangelogConfig { topic, name, brokers, .. } = &self.changelog;
        let or = |text: &String, other: &String| {
            if text.is_empty() { other.clone() } else { text.clone() }
        };
        (!topic.is_empty()).then(|| trueup_kafka::ChangelogSettings {
            brokers: or(brokers, &self.kafka.brokers),
            topic: topic.clone(),
            name: or(name, topic),
            partitions: self.changelog.partitions,
            replication_factor: self.changelog.replication_factor,
            timeout_ms: self.changelog.timeout.ms(),
        })
    }
}

/// The most bytes of a group's name.
const GROUP_BYTES_MAX: usize = 249;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_changelog_that_cannot_be_is_refused() {
        let check = |text: &str| {
            let config = Config::parse(&format!("[changelog]\n{text}")).unwrap();
            config.check().unwrap_err().0
        };
        let error = check("partitions = 0");
        assert!(error.contains("`changelog.partitions` is 0; give 1 to 1024"), "{error}");
        let error = check("timeout = \"11m\"");
        assert!(error.contains("`changelog.timeout` is 11m"), "{error}");
        let error = check("interval = \"2h\"");
        assert!(error.contains("`changelog.interval` is 2h"), "{error}");
        let error = check("replication_factor = 65");
        assert!(error.contains("`changelog.replication_factor` is 65"), "{error}");
        let error = check("[kafka]\noffsets_group = \"a\\nb\"");
        assert!(error.contains("`kafka.offsets_group` is \"a\\nb\""), "{error}");
    }

    #[cfg(feature = "kafka")]
    #[test]
    fn it_is_off_by_itself_and_what_is_not_said_follows_from_the_rest() {
        assert!(Config::default().changelog().is_none());
        let text = "[changelog]\ntopic = \"changes\"\n[kafka]\nbrokers = \"k1:1,k2:1\"";
        let config = Config::parse(text).unwrap();
        config.check().unwrap();
        let settings = config.changelog().unwrap();
        let told = (&*settings.brokers, &*settings.topic, &*settings.name, settings.timeout_ms);
        assert_eq!(told, ("k1:1,k2:1", "changes", "changes", 60_000));
        let text = format!("{text}\n[changelog]\n");
        assert!(Config::parse(&text).is_err(), "a table stands once");
    }
}
