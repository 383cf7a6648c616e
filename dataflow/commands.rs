//! What each command does, and how it fails.

mod check;
mod checkpoints;
mod demo;
mod doctor;
mod generate;
mod remote;
mod replay;

pub use check::verify;
pub use demo::demo;
pub use doctor::doctor;
pub use generate::generate;
pub use replay::replay;

use crate::{
    cli::{BenchCommand, BenchName, Common},
    config::{Config, ConfigError},
    server::{self, ServeError},
};

/// Why a command did not succeed; decides the exit code.
#[derive(Debug)]
pub enum Failure {
    /// A check found something: 1. The text may be empty when the report was printed.
    Check(String),
    /// Wrong use: 2.
    Use(String),
    /// Something that should work did not: 70.
    Internal(String),
}

impl Failure {
    /// What to tell.
    pub fn text(&self) -> &str {
        match self {
            Failure::Check(text) | Failure::Use(text) | Failure::Internal(text) => text,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::Use(error.0)
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Listen { .. } => Failure::Use(error.to_string()),
            ServeError::Node(error) if error.is_wrong_use() => Failure::Use(error.to_string()),
            error => Failure::Internal(error.to_string()),
        }
    }
}

/// `trueup serve` and `trueup worker`
///
/// # Errors
/// When the server cannot start, or a fault ends it.
pub fn serve(config: Result<Config, ConfigError>) -> Result<(), Failure> {
    let config = config?;
    let dir = config.data_dir.display().to_string();
    server::serve(config, std::future::pending(), |running| {
        tracing::info!(address = %running.address, data = dir, "listening");
        Box::new(|| {})
    })?;
    tracing::info!("stopped");
    Ok(())
}

/// `trueup config`
///
/// # Errors
/// When the configuration cannot be used.
pub fn config(common: &Common) -> Result<(), Failure> {
    let config = common.load()?;
    let text = toml::to_string_pretty(&config).map_err(|e| Failure::Internal(e.to_string()))?;
    print!("{text}");
    Ok(())
}

/// `trueup bench`
///
/// # Errors
/// When an answer is wrong, or a run does not end.
pub fn bench(command: &BenchCommand) -> Result<(), Failure> {
    let bench = &command.bench;
    let mut figures = Vec::new();
    let mut take = |result: Result<Vec<serde_json::Value>, String>| {
        result.map(|mut some| figures.append(&mut some)).map_err(Failure::Check)
    };
    if matches!(command.name, BenchName::Ads1 | BenchName::Ads1Engine) {
        take(bench.run_engine())?;
    }
    if matches!(command.name, BenchName::Ads1 | BenchName::Ads1Http) {
        take(bench.run_http())?;
    }
    if command.name == BenchName::Freshness {
        take(bench.run_freshness())?;
    }
    if command.name == BenchName::Reports {
        take(bench.run_reports())?;
    }
    if command.name == BenchName::Kafka {
        take(bench.run_kafka())?;
    }
    if command.name == BenchName::Soak {
        take(bench.run_soak())?;
    }
    for figure in &figures {
        match command.json {
            true => println!("{figure}"),
            false => println!("{figure:#}"),
        }
    }
    Ok(())
}
