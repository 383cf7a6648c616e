//! The command line: what each command takes, and how flags, environment and file become one
//! configuration. Flags win over the environment, that over the file, that over the defaults.

use crate::{
    bench::Bench,
    config::{Config, ConfigError, Span},
};
use clap::{Args, Parser, Subcommand, ValueEnum, builder::BoolishValueParser};
use std::{net::SocketAddr, path::PathBuf};
use trueup_operators::time::parse_rfc3339;

/// Ad-event aggregation that trues itself up: exact, corrected, replayable numbers.
#[derive(Debug, Parser)]
#[command(name = "trueup", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Everything in one process on the loopback, with lifelike traffic.
    Demo(Demo),
    /// The server: collector, log, dataflow, views, reports, subscriptions, live page.
    Serve(Common),
    /// One process of a cluster: the server, with its part of the workers.
    Worker(Worker),
    /// Writes the benchmark stream or demo traffic, or sends it to a collector.
    Generate(Generate),
    /// Goes through the log again, shows how the views would differ from those that are served, and
    /// publishes that unless `--dry-run` is given.
    Replay(Replay),
    /// Recomputes the views from raw events by another program path, and compares every row.
    Verify(Verify),
    /// The measurements of BENCHMARKS.md.
    Bench(BenchCommand),
    /// Checks a data directory; changes nothing unless told to.
    Doctor(Doctor),
    /// Prints the configuration that would be used, with every default.
    Config(Common),
}

/// What every command that has a configuration takes.
#[derive(Clone, Debug, Default, Args)]
pub struct Common {
    /// The configuration file. Without it `trueup.toml` is read if it is there.
    #[arg(long, env = "TRUEUP_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the log and the installation's identity are. [key: data_dir]
    #[arg(long, env = "TRUEUP_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The address to listen on. [key: server.listen]
    #[arg(long, env = "TRUEUP_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Worker threads. [key: workers.threads]
    #[arg(long, env = "TRUEUP_WORKERS", value_name = "N")]
    pub workers: Option<usize>,
    /// How often the state is written down; 0s: never. [key: checkpoint.interval]
    #[arg(long, env = "TRUEUP_CHECKPOINT_INTERVAL", value_name = "DURATION")]
    pub checkpoint_interval: Option<Span>,
    /// Where: a directory or a URL. [key: checkpoint.store]
    #[arg(long, env = "TRUEUP_CHECKPOINT_STORE", value_name = "PLACE")]
    pub checkpoint_store: Option<String>,
}

/// `trueup worker`
#[derive(Clone, Debug, Args)]
pub struct Worker {
    /// The configuration.
    #[command(flatten)]
    pub common: Common,
    /// Which process this is. [key: workers.process]
    #[arg(long, env = "TRUEUP_PROCESS", value_name = "N")]
    pub process: Option<usize>,
    /// Where each process listens for the others, in the order of their numbers.
    /// [key: workers.hosts]
    #[arg(long, env = "TRUEUP_HOSTS", value_name = "HOST:PORT", value_delimiter = ',')]
    pub hosts: Vec<String>,
}

/// `trueup demo`
#[derive(Clone, Debug, Args)]
pub struct Demo {
    /// The configuration.
    #[command(flatten)]
    pub common: Common,
    /// Events a second, averaged over a day.
    #[arg(long, env = "TRUEUP_RATE", default_value_t = 2_000.0)]
    pub rate: f64,
    /// The same seed makes the same traffic.
    #[arg(long, env = "TRUEUP_SEED", default_value_t = 1)]
    pub seed: u64,
    /// Stop after this long.
    #[arg(long = "for", env = "TRUEUP_FOR", value_name = "DURATION")]
    pub duration: Option<Span>,
}

/// `trueup generate`
#[derive(Clone, Debug, Args)]
pub struct Generate {
    /// Which stream.
    #[arg(long, env = "TRUEUP_WORKLOAD", value_enum, default_value = "ads1")]
    pub workload: Workload,
    /// How many events.
    #[arg(long, env = "TRUEUP_EVENTS", default_value_t = 1_000_000)]
    pub events: u64,
    /// The seed of demo traffic. (ADS-1 has one of its own.)
    #[arg(long, env = "TRUEUP_SEED", default_value_t = 1)]
    pub seed: u64,
    /// One JSON event a line, or one Arrow IPC stream, of ADS-1 only.
    #[arg(long, env = "TRUEUP_FORMAT", value_enum, default_value = "ndjson")]
    pub format: Format,
    /// A file (`-`: standard output), written anew.
    #[arg(long, env = "TRUEUP_OUT", value_name = "PATH", conflicts_with = "to")]
    pub out: Option<PathBuf>,
    /// Send to the collector at this address, with times moved to now.
    #[arg(long, env = "TRUEUP_TO", value_name = "URL")]
    pub to: Option<String>,
    /// A token to send with.
    #[arg(long, env = "TRUEUP_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// The benchmark stream.
    Ads1,
    /// The Yahoo Streaming Benchmark's events.
    Ysb,
    /// Lifelike traffic.
    Demo,
}

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One JSON event a line.
    Ndjson,
    /// An Arrow IPC stream with the collector's columns.
    Batch,
}

/// `trueup replay`
#[derive(Clone, Debug, Args)]
pub struct Replay {
    /// The configuration.
    #[command(flatten)]
    pub common: Common,
    /// Only rows that events from this place on stand in: partition and offset, may be repeated.
    #[arg(long, env = "TRUEUP_FROM_OFFSET", value_name = "P:O", value_delimiter = ',')]
    pub from_offset: Vec<String>,
    /// Which rows.
    #[command(flatten)]
    pub range: Range,
    /// Show the differences and publish nothing.
    #[arg(long, env = "TRUEUP_DRY_RUN", value_parser = BoolishValueParser::new())]
    pub dry_run: bool,
    /// The running server whose views are compared, and which takes up what is found.
    #[arg(long, env = "TRUEUP_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// A token for it.
    #[arg(long, env = "TRUEUP_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// `trueup verify`
#[derive(Clone, Debug, Args)]
pub struct Verify {
    /// The configuration.
    #[command(flatten)]
    pub common: Common,
    /// Which rows.
    #[command(flatten)]
    pub range: Range,
    /// Compare what this running server serves. Without it the log goes through the engine again.
    #[arg(long, env = "TRUEUP_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// A token for it; where everything is compared, an operator's.
    #[arg(long, env = "TRUEUP_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The report as JSON.
    #[arg(long, env = "TRUEUP_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
}

/// Which rows.
#[derive(Clone, Debug, Default, Args)]
pub struct Range {
    /// Only buckets that start at this time or later.
    #[arg(long, env = "TRUEUP_FROM", value_name = "TIME", value_parser = time)]
    pub from: Option<i64>,
    /// Only buckets that start before this time.
    #[arg(long, env = "TRUEUP_TO_TIME", value_name = "TIME", value_parser = time)]
    pub to: Option<i64>,
    /// Only this view, may be repeated.
    #[arg(long, env = "TRUEUP_VIEW", value_name = "NAME", value_delimiter = ',')]
    pub view: Vec<String>,
}

/// `trueup bench`
#[derive(Clone, Debug, Args)]
pub struct BenchCommand {
    /// Which measurement.
    #[arg(value_enum, default_value = "ads1")]
    pub name: BenchName,
    /// On how much.
    #[command(flatten)]
    pub bench: Bench,
    /// The figures as JSON, one line each; without it they go to stderr as they come.
    #[arg(long, env = "TRUEUP_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
}

/// The measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchName {
    /// ADS-1 through the engine, and end to end over HTTP.
    Ads1,
    /// ADS-1 through the engine alone: frames in memory.
    Ads1Engine,
    /// ADS-1 from HTTP clients through the fsynced log to the views.
    Ads1Http,
    /// From append to visible, open loop, at a fixed rate.
    Freshness,
    /// How long a report takes while events come and others ask.
    Reports,
    /// ADS-1 from a topic of Kafka to the views, beside librdkafka alone.
    Kafka,
    /// The memory of a server process under full load.
    Soak,
}

/// `trueup doctor`
#[derive(Clone, Debug, Args)]
pub struct Doctor {
    /// The configuration.
    #[command(flatten)]
    pub common: Common,
    /// Cut off a torn write at the end of the log, or of the spool where the log is Kafka. No
    /// server may be running. Nothing in Kafka is changed.
    #[arg(long, env = "TRUEUP_REPAIR", value_parser = BoolishValueParser::new())]
    pub repair: bool,
    /// The report as JSON.
    #[arg(long, env = "TRUEUP_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
}

fn time(text: &str) -> Result<i64, String> {
    parse_rfc3339(text)
        .ok_or_else(|| format!("`{text}` is no time; write for example 2026-11-22T15:00:00Z"))
}

impl Common {
    /// The configuration: file, then environment and flags over it.
    ///
    /// # Errors
    /// When the file cannot be read, or something in it cannot be used.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let config = self.unchecked()?;
        config.check()?;
        Ok(config)
    }

    fn unchecked(&self) -> Result<Config, ConfigError> {
        let default = PathBuf::from("trueup.toml");
        let file = self.config.clone().or_else(|| default.exists().then_some(default));
        let mut config = file.as_deref().map_or_else(|| Ok(Config::default()), Config::read)?;
        if let Some(data) = &self.data {
            config.data_dir.clone_from(data);
        }
        if let Some(listen) = self.listen {
            config.server.listen = listen;
        }
        if let Some(workers) = self.workers {
            config.workers.threads = workers;
        }
        if let Some(interval) = self.checkpoint_interval {
            config.checkpoint.interval = interval;
        }
        if let Some(store) = &self.checkpoint_store {
            config.checkpoint.store.clone_from(store);
        }
        Ok(config)
    }
}

impl Worker {
    /// The configuration of this process.
    ///
    /// # Errors
    /// As [`Common::load`], and when no hosts are given, or not which of them this process is.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let mut config = self.common.unchecked()?;
        config.workers.process = self.process.or(config.workers.process);
        if !self.hosts.is_empty() {
            config.workers.hosts.clone_from(&self.hosts);
        }
        if !config.is_of_cluster() {
            return Err(ConfigError(
                "a worker has no `--hosts` and `workers.hosts` is empty; `trueup serve` runs alone"
                    .into(),
            ));
        }
        config.check()?;
        config.own_place()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_has_its_variable() {
        let mut flags = 0;
        for command in Cli::command().get_subcommands() {
            let of = command.get_name();
            for flag in command.get_arguments() {
                let Some(long) = flag.get_long().filter(|&long| long != "help") else { continue };
                let variable = flag.get_env().and_then(|name| name.to_str());
                let expected = match (of, long) {
                    // An address of `generate`, a time elsewhere.
                    ("replay" | "verify", "to") => "TRUEUP_TO_TIME".to_owned(),
                    _ => format!("TRUEUP_{}", long.to_uppercase().replace('-', "_")),
                };
                assert_eq!(variable, Some(expected.as_str()), "{of} --{long}");
                flags += 1;
            }
        }
        assert!(flags > 50, "{flags}");
    }
}
