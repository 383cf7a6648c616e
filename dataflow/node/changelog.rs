//! The changelog of a node, and the offsets that show Kafka's lag tools how far it is.

use super::{Node, NodeError};
use crate::{changelog::Publisher, config::Config, host::Host};
use serde_json::Value;
use std::time::Duration;

/// How long a node that drains waits for its changelog to have everything.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts the publisher that the configuration asks for. In a cluster the process that leads has
/// it, through all generations: every process has all views.
#[cfg(feature = "kafka")]
pub(super) fn start(config: &Config, host: &Host) -> Result<Option<Publisher>, NodeError> {
    use crate::changelog::{PublisherSettings, kafka_topic};
    let Some(settings) = config.changelog().filter(|_| config.leads()) else { return Ok(None) };
    let publisher = PublisherSettings {
        interval: config.changelog.interval.0,
        installation: host.log().identity().installation_hex(),
    };
    let tables = std::sync::Arc::clone(host.tables());
    let started = Publisher::start(tables, publisher, kafka_topic(settings));
    started.map(Some).map_err(NodeError::Changelog)
}

/// Without Kafka there is none; a configuration that asks for one was refused.
#[cfg(not(feature = "kafka"))]
pub(super) fn start(_: &Config, _: &Host) -> Result<Option<Publisher>, NodeError> {
    Ok(None)
}

impl Node {
    /// How the changelog fares; `null`: there is none.
    pub(super) fn changelog(&self) -> Value {
        self.changelog.as_ref().map_or(Value::Null, Publisher::status_json)
    }

    /// Lets the changelog have what is visible.
    pub(super) fn stop_changelog(&self) {
        if let Some(changelog) = &self.changelog {
            changelog.stop(PATIENCE);
        }
    }

    /// Tells lag tools how far the views are. Decides nothing, so what fails is only said.
    pub(super) fn publish_offsets(&self) {
        if !self.config.leads() {
            return;
        }
        let row = self.host.engine().epochs().visible_row();
        // A run that is behind what is shown would set them back.
        if self.host.tables().visible().is_none_or(|at| at.epoch > row.epoch) {
            return;
        }
        let group = &self.config.kafka.offsets_group;
        if let Err(error) = self.host.log().publish_offsets(group, &row) {
            tracing::warn!(%error, "the offsets for lag tools are not published");
        }
    }
}

/// The gauges of the changelog.
pub(super) fn gauges(node: &Node) {
    if let Some(changelog) = &node.changelog {
        changelog.measure();
    }
}
