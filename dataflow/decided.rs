//! What the figures of a data directory were decided with: the spans of time that say what is too
//! late and how long an id is remembered, and the rows that a rollup may have before keys fold. A
//! start decides all of the log again, so with other settings it would silently show other figures,
//! of final and billed buckets too. So they are written down at the first start, in the file
//! `decided`, and a start with others is refused.
//!
//! A rollup that is new is filled from the log like any other, and one that is gone is no longer
//! shown; both are harmless. `allowed_lateness` only says when a bucket is called settling.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, io, path::Path};
use trueup_log::replace_file;
use trueup_operators::{rollup::RollupSpec, time::Lateness};

const FILE: &str = "decided";

/// The settings that figures depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decided {
    correction_horizon_us: i64,
    future_skew_us_max: i64,
    /// By name, also those that are no longer configured.
    rollups: BTreeMap<String, Rollup>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollup {
    dimensions: Vec<String>,
    rows_max: u32,
}

/// Why a job cannot start on a data directory.
#[derive(Debug, thiserror::Error)]
pub enum DecidedError {
    /// The settings are others than before.
    #[error(
        "{dir}: its figures were decided with {setting} = {before}, and the job says {now}; \
         set it back, or begin with a new data directory: with another value the figures of \
         final buckets would change"
    )]
    Other {
        /// The data directory.
        dir: String,
        /// Which setting.
        setting: String,
        /// What it was.
        before: String,
        /// What it is now.
        now: String,
    },
    /// The file cannot be read or written.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
}

impl Decided {
    /// Of a job with these settings.
    pub fn new(lateness: &Lateness, rollups: &[RollupSpec]) -> Decided {
        let rollup = |spec: &RollupSpec| {
            let rollup = Rollup { dimensions: spec.dimensions.clone(), rows_max: spec.rows_max };
            (spec.name.clone(), rollup)
        };
        Decided {
            correction_horizon_us: lateness.correction_horizon_us,
            future_skew_us_max: lateness.future_skew_us_max,
            rollups: rollups.iter().map(rollup).collect(),
        }
    }

    /// Whether the spans of time are the same. (A list of rollups is compared by who has one.)
    pub(crate) fn is_decided_as(&self, other: &Decided) -> bool {
        let of = |d: &Decided| (d.correction_horizon_us, d.future_skew_us_max);
        of(self) == of(other)
    }

    /// Compares with what is written in a data directory, if anything is.
    ///
    /// # Errors
    /// When a setting is another, or the file cannot be read.
    pub fn check(&self, dir: &Path) -> Result<(), DecidedError> {
        match Decided::load(dir)? {
            Some(before) => self.against(dir, &before),
            None => Ok(()),
        }
    }

    /// The same, and writes down what is new.
    ///
    /// # Errors
    /// As [`Decided::check`], or the file cannot be written.
    pub fn hold(mut self, dir: &Path) -> Result<(), DecidedError> {
        let before = Decided::load(dir)?;
        if let Some(before) = &before {
            self.against(dir, before)?;
            for (name, rollup) in &before.rollups {
                self.rollups.entry(name.clone()).or_insert_with(|| rollup.clone());
            }
        }
        if before.as_ref() == Some(&self) {
            return Ok(());
        }
        self.store(dir).map_err(|error| of_file(&dir.join(FILE), error))
    }

    fn against(&self, dir: &Path, before: &Decided) -> Result<(), DecidedError> {
        let mut pairs = vec![
            (
                "time.correction_horizon in µs".to_owned(),
                before.correction_horizon_us.to_string(),
                self.correction_horizon_us.to_string(),
            ),
            (
                "time.future_skew_max in µs".to_owned(),
                before.future_skew_us_max.to_string(),
                self.future_skew_us_max.to_string(),
            ),
        ];
        for (name, was) in &before.rollups {
            let Some(is) = self.rollups.get(name) else { continue };
            let of = |what: &str| format!("rollup `{name}`, {what}");
            let dimensions = |r: &Rollup| r.dimensions.join(",");
            pairs.push((of("dimensions"), dimensions(was), dimensions(is)));
            pairs.push((of("rows_max"), was.rows_max.to_string(), is.rows_max.to_string()));
        }
        match pairs.into_iter().find(|(_, before, now)| before != now) {
            None => Ok(()),
            Some((setting, before, now)) => {
                let dir = dir.display().to_string();
                Err(DecidedError::Other { dir, setting, before, now })
            }
        }
    }

    fn load(dir: &Path) -> Result<Option<Decided>, DecidedError> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(of_file(&path, error)),
        };
        toml::from_str(&text).map(Some).map_err(|error| of_file(&path, error))
    }

    fn store(&self, dir: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        replace_file(&dir.join(FILE), text.as_bytes())
    }
}

fn of_file(path: &Path, error: impl ToString) -> DecidedError {
    DecidedError::File { path: path.display().to_string(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    // One rollup as a slice of one reads better as `&[a.clone()]` in a test.
    #![allow(clippy::cloned_ref_to_slice_refs)]
    use super::*;
    use trueup_operators::time::{DAY_US, HOUR_US, MINUTE_US};

    fn lateness(correction_horizon_us: i64) -> Lateness {
        Lateness {
            allowed_lateness_us: MINUTE_US,
            correction_horizon_us,
            future_skew_us_max: MINUTE_US,
        }
    }

    #[test]
    fn what_decides_cannot_be_changed_and_rollups_may_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (a, b) = (RollupSpec::new("a", &["x"]), RollupSpec::new("b", &["x", "y"]));
        let of = |horizon_us, rollups: &[RollupSpec]| Decided::new(&lateness(horizon_us), rollups);
        of(DAY_US, &[a.clone()]).check(dir).unwrap();
        of(DAY_US, &[a.clone()]).hold(dir).unwrap();
        of(DAY_US, &[b.clone()]).hold(dir).unwrap();
        of(DAY_US, &[a.clone(), b.clone()]).hold(dir).unwrap();

        let error = of(HOUR_US, &[a.clone()]).hold(dir).unwrap_err().to_string();
        assert!(error.contains("correction_horizon") && error.contains("3600000000"), "{error}");
        let fewer = RollupSpec { rows_max: 7, ..a.clone() };
        let error = of(DAY_US, &[fewer]).check(dir).unwrap_err().to_string();
        assert!(error.contains("rollup `a`, rows_max = 1000000"), "{error}");
        // Known although it was not configured the last time but one.
        let other = RollupSpec::new("b", &["y", "x"]);
        let error = of(DAY_US, &[other]).hold(dir).unwrap_err().to_string();
        assert!(error.contains("x,y"), "{error}");

        fs::write(dir.join(FILE), "correction_horizon_us = 1").unwrap();
        let error = of(DAY_US, &[a]).check(dir).unwrap_err().to_string();
        assert!(error.contains("decided: "), "{error}");
    }
}
