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
        self.workers.process.unwrap_or(LEADER) == LEADER
    }

    /// Which of the hosts this process is. Needed to run, not to look at what there is.
    ///
    /// # Errors
    /// When there are several and it is not said: two that took the same place would take turns.
    pub fn own_place(&self) -> Result<usize, ConfigError> {
        let processes = self.workers.hosts.len();
        match self.workers.process {
            Some(process) => Ok(process),
            None if processes <= 1 => Ok(LEADER),
            None => Err(ConfigError(format!(
                "`workers.hosts` has {processes}, and which of them this process is was not said; \
                 give `--process` or `workers.process`, from 0 to {}",
                processes - 1
            ))),
        }
    }

    /// Checks that the processes can share what they must.
    pub(super) fn check_cluster(&self) -> Result<(), ConfigError> {
        let error = |text: String| Err(ConfigError(text));
        let (process, processes) = (self.workers.process, self.workers.hosts.len());
        if !self.is_of_cluster() {
            return match process {
                None | Some(0) => Ok(()),
                Some(process) => {
                    error(format!("`workers.process` is {process} and `workers.hosts` is empty"))
                }
            };
        }
        check_hosts(&self.workers.hosts).map_err(ConfigError)?;
        if let Some(process) = process.filter(|&process| process >= processes) {
            return error(format!(
                "`workers.process` is {process}; `workers.hosts` has {processes}, from 0 to {}",
                processes - 1
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

    /// What the processes of the cluster prove to each other; `None`: this process is alone.
    ///
    /// # Errors
    /// When it cannot be read, or is too short.
    pub fn secret(&self) -> Result<Option<Secret>, ClusterError> {
        let (true, Some(path)) = (self.is_of_cluster(), &self.cluster.secret_file) else {
            return Ok(None);
        };
        let wrong = |why: String| {
            ClusterError::Settings(format!("`cluster.secret_file`, {}: {why}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        Secret::new(text.trim_end()).map(Some).map_err(wrong)
    }

    /// What a member of the cluster must know; `None`: this process is alone.
    ///
    /// # Errors
    /// When the secret, or the running binary, cannot be read, or it is not said which member this
    /// is.
    pub fn cluster(&self) -> Result<Option<ClusterSettings>, ClusterError> {
        let Some(secret) = self.secret()? else { return Ok(None) };
        let settings = |text: String| ClusterError::Settings(text);
        let process = self.own_place().map_err(|error| settings(error.0))?;
        let version = binary_version()
            .map_err(|e| settings(format!("the running binary cannot be read: {e}")))?;
        let (hosts, number) = (self.workers.hosts.clone(), self.data_dir.join(NUMBER));
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

/// Whether each is `host:port` and none is there twice.
fn check_hosts(hosts: &[String]) -> Result<(), String> {
    for (at, host) in hosts.iter().enumerate() {
        if !is_host_and_port(host) {
            return Err(format!(
                "`{host}` in `workers.hosts` is no host and port; write for example `a:7700`, or \
                 `[::1]:7700`"
            ));
        }
        if let Some(first) = hosts[..at].iter().position(|other| other.eq_ignore_ascii_case(host)) {
            return Err(format!(
                "`{host}` is process {first} and process {at} in `workers.hosts`; each listens at \
                 a place of its own"
            ));
        }
    }
    Ok(())
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_digits = port.bytes().all(|b| b.is_ascii_digit());
    let has_port = is_digits && port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(is_name),
    };
    has_port && is_host
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(workers: &str) -> Config {
        Config::parse(&format!(
            "[workers]\n{workers}\n[log]\nkind = \"kafka\"\n[kafka]\nbrokers = \"b:1\"\n\
             [checkpoint]\nstore = \"/shared\"\n[cluster]\nsecret_file = \"/secret\"\n"
        ))
        .unwrap()
    }

    #[test]
    fn hosts_are_places_that_are_there_once() {
        for hosts in [r#"["a:1"]"#, r#"["a:1", "b:1"]"#, r#"["10.0.0.1:7700", "[::1]:7700"]"#] {
            of(&format!("hosts = {hosts}")).check().unwrap();
        }
        for wrong in
            ["a", "", ":7700", "a:", "a:0", "a:65536", "a:b", "http://a:1", "a b:1", "::1:7"]
        {
            let error = of(&format!("hosts = [\"x:1\", \"{wrong}\"]")).check().unwrap_err().0;
            assert!(error.contains(&format!("`{wrong}`")), "{wrong}: {error}");
        }
        let error = of(r#"hosts = ["a:1", "b:1", "A:1"]"#).check().unwrap_err().0;
        assert!(error.contains("`A:1` is process 0 and process 2"), "{error}");
    }

    #[test]
    fn a_process_says_which_one_it_is() {
        let three = r#"hosts = ["a:1", "b:1", "c:1"]"#;
        let error = of(&format!("{three}\nprocess = 3")).check().unwrap_err().0;
        assert!(error.contains("is 3") && error.contains("from 0 to 2"), "{error}");
        assert_eq!(of(&format!("{three}\nprocess = 2")).own_place().unwrap(), 2);
        // Whoever only looks need not be one of them.
        of(three).check().unwrap();
        let error = of(three).own_place().unwrap_err().0;
        assert!(error.contains("`--process`") && error.contains("from 0 to 2"), "{error}");
        assert_eq!(of(r#"hosts = ["a:1"]"#).own_place().unwrap(), 0);
    }
}
