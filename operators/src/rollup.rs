//! What a rollup is: a named set of dimensions, summed by bucket at one or more granularities. Each
//! granularity of a rollup is a *table* ([`TableId`]) and a view of its own, `audience_minute`.
//!
//! A configuration lists rollups (`[[rollup]]`); without one the ad job has
//! [`RollupSpec::ad_defaults`]. The position in the list is the rollup's number everywhere inside,
//! so the list is part of what a checkpoint must agree with.
//!
//! Limits: [`ROLLUPS_MAX`] rollups, as many dimensions as the job's [`Key`] has words, and
//! `rows_max` rows in one bucket of a table, beyond which new keys fold into `(other)`.
//!
//! [`Key`]: crate::change::Key

use crate::{change::TableId, event::DIMENSIONS, problem::Problem, time::Granularity};
use serde::{Deserialize, Serialize};

/// The most rollups of a job. Each costs every event a contribution, so many are a mistake.
pub const ROLLUPS_MAX: usize = 16;
/// The most rows that a bucket of a table may be allowed to have.
pub const ROWS_MAX_MAX: u32 = 64_000_000;
/// The same, when a rollup does not say.
pub const ROWS_MAX_DEFAULT: u32 = 1_000_000;
/// The most bytes of a rollup's name.
pub const NAME_BYTES_MAX: usize = 40;

/// A rollup as the configuration writes it.
///
/// ```
/// use trueup_operators::{rollup::RollupSpec, time::Granularity};
///
/// let spec = RollupSpec::new("audience", &["campaignId", "country"]);
/// assert_eq!(spec.view_name(Granularity::Minute), "audience_minute");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollupSpec {
    /// Its name: the first part of its views' names.
    pub name: String,
    /// Names of dimensions as the outside knows them. The first is the one that reports ask for
    /// and that views have an index on: in the ad job `campaignId`.
    pub dimensions: Vec<String>,
    /// Which tables it has.
    #[serde(default = "all_granularities")]
    pub granularities: Vec<Granularity>,
    /// The most rows in one bucket of one table; new keys beyond it fold into `(other)`.
    #[serde(default = "rows_max_default")]
    pub rows_max: u32,
}

fn all_granularities() -> Vec<Granularity> {
    Granularity::ALL.to_vec()
}

fn rows_max_default() -> u32 {
    ROWS_MAX_DEFAULT
}

impl RollupSpec {
    /// A rollup by minute, hour and day with the default limit of rows.
    pub fn new(name: &str, dimensions: &[&str]) -> RollupSpec {
        RollupSpec {
            name: name.to_owned(),
            dimensions: dimensions.iter().map(|&d| d.to_owned()).collect(),
            granularities: all_granularities(),
            rows_max: ROWS_MAX_DEFAULT,
        }
    }

    /// What the ad job has when the configuration names no rollup.
    pub fn ad_defaults() -> Vec<RollupSpec> {
        vec![
            RollupSpec::new("audience", &["campaignId", "publisherId", "country", "deviceType"]),
            RollupSpec::new("creative", &["campaignId", "adId", "creativeId", "placementId"]),
            RollupSpec::new("region", &["campaignId", "advertiserId", "region", "deviceType"]),
        ]
    }

    /// The name of one of its views.
    pub fn view_name(&self, granularity: Granularity) -> String {
        format!("{}_{}", self.name, granularity.name())
    }

    /// Where a dimension stands in the rollup's keys.
    pub fn position(&self, dimension: &str) -> Option<usize> {
        self.dimensions.iter().position(|d| d == dimension)
    }

    fn check(&self, known: &[&str], dimensions_max: usize) -> Result<(), Problem> {
        check_name(&self.name)?;
        let name = &self.name;
        if self.dimensions.is_empty() || self.dimensions.len() > dimensions_max {
            return Err(wrong(
                "rollup_dimensions",
                format!("rollup `{name}` has {} dimensions", self.dimensions.len()),
                format!("give it 1 to {dimensions_max} dimensions"),
            ));
        }
        for (i, dimension) in self.dimensions.iter().enumerate() {
            if !known.contains(&dimension.as_str()) {
                return Err(wrong(
                    "unknown_dimension",
                    format!(
                        "rollup `{name}` names the dimension `{dimension}`, which is not known"
                    ),
                    format!("use some of: {}", known.join(", ")),
                ));
            }
            if self.dimensions[..i].contains(dimension) {
                return Err(wrong(
                    "rollup_dimensions",
                    format!("rollup `{name}` names the dimension `{dimension}` twice"),
                    "name each dimension once".to_owned(),
                ));
            }
        }
        self.check_tables()
    }

    fn check_tables(&self) -> Result<(), Problem> {
        let name = &self.name;
        let repeated =
            self.granularities.iter().enumerate().any(|(i, g)| self.granularities[..i].contains(g));
        if self.granularities.is_empty() || repeated {
            return Err(wrong(
                "rollup_granularities",
                format!("rollup `{name}` names no granularity, or one twice"),
                "name one or more of: minute, hour, day".to_owned(),
            ));
        }
        if self.rows_max == 0 || self.rows_max > ROWS_MAX_MAX {
            return Err(wrong(
                "rollup_rows_max",
                format!("rollup `{name}` has rows_max = {}", self.rows_max),
                format!("give it 1 to {ROWS_MAX_MAX} rows in a bucket"),
            ));
        }
        Ok(())
    }
}

/// All tables of a list of rollups, in the order of the list, finest granularity first.
pub fn tables(rollups: &[RollupSpec]) -> Vec<TableId> {
    let mut tables = Vec::new();
    for (i, rollup) in rollups.iter().enumerate() {
        for granularity in Granularity::ALL {
            if rollup.granularities.contains(&granularity) {
                tables.push(TableId { rollup: i as u16, granularity });
            }
        }
    }
    tables
}

/// Checks a job's rollups. `known` are the dimensions that its events have, `dimensions_max` the
/// words of its keys.
///
/// # Errors
/// Names the rollup and the value at fault, and what is possible.
pub fn check_rollups(
    rollups: &[RollupSpec],
    known: &[&str],
    dimensions_max: usize,
) -> Result<(), Problem> {
    if rollups.is_empty() || rollups.len() > ROLLUPS_MAX {
        return Err(wrong(
            "rollup_count",
            format!("{} rollups are configured", rollups.len()),
            format!("configure 1 to {ROLLUPS_MAX}"),
        ));
    }
    for (i, rollup) in rollups.iter().enumerate() {
        rollup.check(known, dimensions_max)?;
        if rollups[..i].iter().any(|r| r.name == rollup.name) {
            return Err(wrong(
                "rollup_name",
                format!("two rollups are named `{}`", rollup.name),
                "give each rollup a name of its own".to_owned(),
            ));
        }
    }
    Ok(())
}

/// Checks the rollups of the ad job: as [`check_rollups`], and each begins with `campaignId`.
///
/// # Errors
/// As [`check_rollups`].
pub fn check_ad_rollups(rollups: &[RollupSpec], dimensions_max: usize) -> Result<(), Problem> {
    let known: Vec<&str> = DIMENSIONS.iter().map(|d| d.0).collect();
    check_rollups(rollups, &known, dimensions_max)?;
    match rollups.iter().find(|r| r.dimensions[0] != "campaignId") {
        None => Ok(()),
        Some(rollup) => Err(wrong(
            "rollup_dimensions",
            format!("rollup `{}` begins with `{}`", rollup.name, rollup.dimensions[0]),
            "make `campaignId` the first dimension: reports and budgets ask by campaign".to_owned(),
        )),
    }
}

fn check_name(name: &str) -> Result<(), Problem> {
    let mut bytes = name.bytes();
    let good = name.len() <= NAME_BYTES_MAX
        && bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if good {
        return Ok(());
    }
    Err(wrong(
        "rollup_name",
        format!("`{name}` is no name for a rollup"),
        format!("begin with a letter a–z, go on with a–z, 0–9 and _, {NAME_BYTES_MAX} at most"),
    ))
}

fn wrong(code: &'static str, detail: String, hint: String) -> Problem {
    Problem::new(400, code, "the rollup cannot be kept", detail, hint)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn code(rollups: &[RollupSpec]) -> &'static str {
        check_ad_rollups(rollups, 4).unwrap_err().code
    }

    #[test]
    fn the_defaults_are_good_and_have_nine_tables() {
        let rollups = RollupSpec::ad_defaults();
        check_ad_rollups(&rollups, 4).unwrap();
        let names: Vec<String> = tables(&rollups)
            .iter()
            .map(|t| rollups[usize::from(t.rollup)].view_name(t.granularity))
            .collect();
        assert_eq!(names[..3], ["audience_minute", "audience_hour", "audience_day"]);
        assert_eq!(names.len(), 9);
        assert_eq!(rollups[0].position("country"), Some(2));
    }

    #[test]
    fn says_what_is_wrong() {
        let good = RollupSpec::new("a", &["campaignId", "country"]);
        assert_eq!(code(&[]), "rollup_count");
        assert_eq!(code(&vec![good.clone(); 17]), "rollup_count");
        assert_eq!(code(&[good.clone(), good.clone()]), "rollup_name");
        for name in ["", "9a", "A", "a-b", &"a".repeat(41)] {
            assert_eq!(code(&[RollupSpec::new(name, &["campaignId"])]), "rollup_name", "{name}");
        }
        assert_eq!(code(&[RollupSpec::new("a", &[])]), "rollup_dimensions");
        assert_eq!(code(&[RollupSpec::new("a", &["country"])]), "rollup_dimensions");
        let twice = RollupSpec::new("a", &["campaignId", "country", "country"]);
        assert_eq!(code(&[twice]), "rollup_dimensions");
        let unknown = check_ad_rollups(&[RollupSpec::new("a", &["campaignId", "cuontry"])], 4);
        assert!(unknown.unwrap_err().detail.contains("`cuontry`"));
        let none = RollupSpec { granularities: vec![], ..good.clone() };
        assert_eq!(code(&[none]), "rollup_granularities");
        assert_eq!(code(&[RollupSpec { rows_max: 0, ..good }]), "rollup_rows_max");
    }

    #[test]
    fn reads_what_a_configuration_writes() {
        let spec: RollupSpec =
            serde_json::from_str(r#"{"name":"a","dimensions":["campaignId"]}"#).unwrap();
        assert_eq!(spec, RollupSpec::new("a", &["campaignId"]));
        let unknown = r#"{"name":"a","dimensions":["campaignId"],"rows":1}"#;
        assert!(serde_json::from_str::<RollupSpec>(unknown).is_err());
    }
}
