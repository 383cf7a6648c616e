//! Processes of a cluster as an operator runs them: each the built binary with a directory, a
//! configuration and ports of its own, on one Kafka and one place for checkpoints; between each two
//! of them a network that can be cut.

use crate::{
    brokers::configured,
    proxy::Proxy,
    server::{Home, Server, free_port},
};
use rustix::process::{Signal, kill_process};
use std::{fs, net::SocketAddr};
use tempfile::TempDir;

/// What is needed to start any number of processes, up to a most.
pub(crate) struct Fleet {
    shared: TempDir,
    homes: Vec<Home>,
    config: String,
    /// Where what changes in the views is published.
    pub(crate) changelog: String,
    listens: Vec<SocketAddr>,
    /// By who is connected to and, above it, who connects.
    proxies: Vec<Vec<Proxy>>,
}

impl Fleet {
    /// With topics that nobody else has, and this configuration beside.
    pub(crate) fn new(processes_max: usize, more: &str) -> Fleet {
        let shared = TempDir::new().unwrap();
        fs::write(shared.path().join("secret"), "only these processes know it").unwrap();
        let listens: Vec<SocketAddr> = (0..processes_max).map(|_| free_port()).collect();
        let proxies = listens.iter().enumerate().map(|(to, listen)| {
            (to + 1..processes_max).map(|_| Proxy::start(listen.to_string())).collect()
        });
        let (config, name) = configured(more, "batch");
        let changelog = format!("{name}-changes");
        Fleet {
            homes: (0..processes_max).map(|_| Home::new("")).collect(),
            config: format!("{config}[changelog]\ntopic = \"{changelog}\"\n"),
            changelog,
            proxies: proxies.collect(),
            listens,
            shared,
        }
    }

    /// From now on there are so many processes, with so many workers each.
    pub(crate) fn configure(&self, processes: usize, threads: usize) {
        for process in 0..processes {
            self.homes[process].configure(&self.config_of(process, processes, threads));
        }
    }

    fn config_of(&self, process: usize, processes: usize, threads: usize) -> String {
        let host = |to: usize| match to < process {
            true => self.proxies[to][process - to - 1].address(),
            false => self.listens[to].to_string(),
        };
        let hosts: Vec<String> = (0..processes).map(|to| format!("\"{}\"", host(to))).collect();
        format!(
            r#"{}
[workers]
threads = {threads}
process = {process}
hosts = [{}]
[cluster]
secret_file = "{}"
listen = "{}"
heartbeat = "200ms"
timeout = "2s"
[checkpoint]
interval = "500ms"
whole_every = 3
store = "{}"
"#,
            self.config,
            hosts.join(", "),
            self.shared.path().join("secret").display(),
            self.listens[process],
            self.shared.path().join("checkpoints").display(),
        )
    }

    pub(crate) fn home(&self, process: usize) -> &Home {
        &self.homes[process]
    }

    /// The next start begins at the beginning of the log.
    pub(crate) fn forget_checkpoints(&self) {
        for folder in ["manifests", "packs"] {
            fs::remove_dir_all(self.shared.path().join("checkpoints").join(folder)).unwrap();
        }
    }

    /// Starts a process and does not wait for it: it waits for the others.
    pub(crate) fn spawn(&self, process: usize) -> Server<'_> {
        Server::spawn(&self.homes[process], self.homes[process].serve())
    }

    /// Nothing goes between a process and the others any more, or all does again.
    pub(crate) fn cut_off(&self, process: usize, is_cut: bool) {
        for (to, proxies) in self.proxies.iter().enumerate() {
            for (nth, proxy) in proxies.iter().enumerate() {
                if to == process || to + nth + 1 == process {
                    proxy.swallow(is_cut);
                }
            }
        }
    }
}

/// Sends a signal.
pub(crate) fn signal(server: &Server<'_>, signal: Signal) {
    kill_process(server.pid(), signal).unwrap();
}
