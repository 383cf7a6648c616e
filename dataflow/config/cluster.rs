//! `[cluster]`, and what `[workers]` says of other processes: who runs the job together.

use super::{Config, ConfigError, LogKind, Span};
use crate::{
    cluster::{ClusterError, ClusterSettings, Secret, binary_version},
    seat::LEADER,
};
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where a process keeps the number of the newest generation that it was in, in its data directory.
const NUMBER: &str = "generation";

/// `[cluster]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// What its processes call it.
    pub name: String,
    /// A file with a secret that they all know and nobody else, of 16 bytes or more.
    pub secret_file: Option<PathBuf>,
    /// Where this process listens for the others; without it at its own place in `workers.hosts`.
    pub listen: Option<SocketAddr>,
    /// How often a sign of life is sent.
    pub heartbeat: Span,
    /// Without any for this long a process is lost.
    pub timeout: Span,
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            name: "trueup".into(),
            secret_file: None,
            listen: None,
            heartbeat: Span(Duration::from_millis(500)),
            timeout: Span(Duration::from_secs(3)),
        }
    }
}

impl Config {
    /// Whether this process is one of a cluster.
    pub fn is_of_cluster(&self) -> bool {
        !self.workers.hosts.is_empty()
    }

    /// Whether this process says what is said once for all of them.
    pub fn leads(&self) -> bool {
        self.workers.process == LEADER
    }

    /// Checks that the processes can share what they must.
    pub(super) fn check_cluster(&self) -> Result<(), ConfigError> {
        let error = |text: String| Err(ConfigError(text));
        let (process, processes) = (self.workers.process, self.workers.hosts.len());
        if !self.is_of_cluster() {
            return match process {
                0 => Ok(()),
                _ => error(format!("`workers.process` is {process} and `workers.hosts` is empty")),
            };
        }
        if process >= processes {
            return error(format!(
                "`workers.process` is {process}; `workers.hosts` has {processes}, from 0 on"
            ));
        }
        if self.log.kind != LogKind::Kafka {
            return error(
                "`workers.hosts` is set, and `log.kind` is \"embedded\", which is one process's \
                 own; set \"kafka\""
                    .into(),
            );
        }
        let store = &self.checkpoint.store;
        if !store.contains("://") && !Path::new(store).is_absolute() {
            return error(format!(
                "`workers.hosts` is set, and `checkpoint.store` is \"{store}\", which is in this \
                 process's `data_dir`; give an absolute path or a URL that all processes reach"
            ));
        }
        if self.cluster.secret_file.is_none() {
            return error(
                "`workers.hosts` is set, and `cluster.secret_file` is not: who joins proves that \
                 it knows the secret"
                    .into(),
            );
        }
        let Cluster { heartbeat, timeout, .. } = self.cluster;
        if heartbeat.0.is_zero() || heartbeat.0 * 2 > timeout.0 {
            return error(format!(
                "`cluster.timeout` is {timeout}; give twice `cluster.heartbeat` ({heartbeat}) or \
                 more"
            ));
        }
        Ok(())
    }

    /// What a member of the cluster must know; `None`: this process is alone.
    ///
    /// # Errors
    /// When the secret, or the running binary, cannot be read.
    pub fn cluster(&self) -> Result<Option<ClusterSettings>, ClusterError> {
        let (true, Some(path)) = (self.is_of_cluster(), &self.cluster.secret_file) else {
            return Ok(None);
        };
        let settings = |text: String| ClusterError::Settings(text);
        let place = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|e| settings(format!("`cluster.secret_file`, {place}: {e}")))?;
        let secret = Secret::new(text.trim_end())
            .map_err(|e| settings(format!("`cluster.secret_file`, {place}: {e}")))?;
        let version = binary_version()
            .map_err(|e| settings(format!("the running binary cannot be read: {e}")))?;
        let (hosts, number) = (self.workers.hosts.clone(), self.data_dir.join(NUMBER));
        let process = self.workers.process;
        let name = self.cluster.name.clone();
        Ok(Some(ClusterSettings {
            listen: self.cluster.listen,
            threads: self.workers.threads,
            heartbeat: self.cluster.heartbeat.0,
            timeout: self.cluster.timeout.0,
            ..ClusterSettings::new(name, secret, version, process, hosts, number)
        }))
    }
}
