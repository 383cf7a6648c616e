//! From parameters to a sum: which rollup, which of its tables, which buckets, and how buckets
//! become rows.
//!
//! The rollup is the one with the fewest dimensions among those that have all that are asked for;
//! of equals the first in the configuration, so that the pages of an answer agree. The range is
//! aligned outward to the granularity.
//!
//! Days of a time zone are made from hours, or from minutes where the zone's midnight is not on a
//! full hour. A day of 23 or 25 hours is what it is.

use super::{shown, slots_of};
use crate::{
    params::{Params, nearest},
    problems::wrong,
    server::Queries,
};
use std::ops::Range;
use trueup_operators::{
    feed::EpochTimes,
    problem::Problem,
    rollup::RollupSpec,
    time::{Bucket, BucketState, DAY_US, EventTime, Granularity, HOUR_US, Lateness},
};
use trueup_sinks::{Filter, Slots, SumQuery, block::RowRef};

/// A report that can be asked.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) query: SumQuery,
    /// The names of the answer's dimensions.
    pub(super) names: Vec<String>,
    /// The names of its figures.
    pub(super) columns: &'static [&'static str],
    /// The rollup's name.
    pub(super) rollup: String,
    /// The range as it was aligned.
    pub(super) range_us: Range<i64>,
    lateness: Lateness,
    /// For slots of several buckets: the first instant of each, and the end of the last.
    bounds_us: Vec<i64>,
    is_billing: bool,
}

impl Plan {
    /// Plans a report. `by_bucket`: a granularity that is not named is `hour`; otherwise none, and
    /// the whole range is one row a set of dimensions.
    pub(super) fn new(
        queries: &Queries,
        params: &mut Params,
        names: Vec<String>,
        range_us: Range<i64>,
        campaign: Option<String>,
        by_bucket: bool,
    ) -> Result<Plan, Problem> {
        let granularity = params.granularity()?;
        let zone = params.text("timezone")?.filter(|z| z != "UTC");
        let is_billing = basis(params)?;
        if range_us.start >= range_us.end {
            return Err(wrong(
                "empty_range",
                format!("from {} to {}", shown(range_us.start), shown(range_us.end)),
                "`from` is inclusive and `to` exclusive: make `to` the later one",
            ));
        }
        let asked = granularity.or(by_bucket.then_some(Granularity::Hour));
        let cut = match &zone {
            Some(zone) => Cut::local_days(zone, granularity, &range_us, queries)?,
            None => Cut::plain(asked, &range_us),
        };
        let buckets = i64::from(cut.buckets.end.0) - i64::from(cut.buckets.start.0);
        let buckets_max = queries.limits.range_buckets_max;
        if buckets > i64::from(buckets_max) {
            return Err(wrong(
                "range_too_long",
                format!("the range spans {buckets} buckets by {}", cut.granularity.name()),
                format!("ask for at most {buckets_max}, or for a coarser granularity"),
            ));
        }
        Plan::over(queries, cut, names, campaign, is_billing)
    }

    fn over(
        queries: &Queries,
        cut: Cut,
        names: Vec<String>,
        campaign: Option<String>,
        is_billing: bool,
    ) -> Result<Plan, Problem> {
        if let Some((_, name)) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)) {
            return Err(wrong(
                "repeated_dimension",
                format!("the dimension `{name}` is named twice"),
                "name each dimension once",
            ));
        }
        let catalog = queries.tables.catalog();
        let mut needed = names.clone();
        if campaign.is_some() {
            needed.push("campaignId".to_owned());
        }
        let (number, rollup) = choose(catalog.rollups(), &needed, cut.granularity)?;
        let position = |name: &String| rollup.position(name).unwrap_or_default();
        let mut filter = Filter::default();
        if let Some(campaign) = campaign {
            filter.dimensions.push((position(&"campaignId".to_owned()), campaign));
        }
        let range_us =
            cut.granularity.start(cut.buckets.start).0..cut.granularity.start(cut.buckets.end).0;
        let query = SumQuery {
            rollup: number,
            granularity: cut.granularity,
            buckets: cut.buckets,
            filter,
            by: names.iter().map(position).collect(),
            slots: cut.slots,
            finalized_only: is_billing,
            rows_max: queries.limits.rows_max,
            scan_rows_max: queries.limits.scan_rows_max,
            epoch: None,
        };
        Ok(Plan {
            query,
            columns: catalog.columns(),
            rollup: rollup.name.clone(),
            names,
            range_us,
            lateness: queries.tables.lateness(),
            bounds_us: cut.bounds_us,
            is_billing,
        })
    }

    /// The state of a row. A slot of several buckets is not final before its end is, even if all
    /// its rows so far are.
    pub(super) fn state(&self, row: &RowRef<'_>, at: EpochTimes) -> BucketState {
        let after = self.bounds_us.partition_point(|&start| start <= row.start_us);
        match self.bounds_us.get(after) {
            Some(&end) => row.state.min(self.lateness.state(EventTime(end), at.frontier)),
            None => row.state,
        }
    }

    /// Whether a row belongs into the answer: finance sees no day of which some hours are final.
    pub(super) fn shows(&self, row: &RowRef<'_>, at: EpochTimes) -> bool {
        !self.is_billing || self.state(row, at).is_finalized()
    }
}

/// The buckets of a report.
struct Cut {
    granularity: Granularity,
    buckets: Range<Bucket>,
    slots: Slots,
    bounds_us: Vec<i64>,
}

impl Cut {
    fn plain(asked: Option<Granularity>, range_us: &Range<i64>) -> Cut {
        // Without a granularity: the coarsest that the range is aligned to.
        let is_aligned = |g: &Granularity| {
            range_us.start % g.width_us() == 0 && range_us.end % g.width_us() == 0
        };
        let coarsest = Granularity::ALL.into_iter().rev().find(is_aligned);
        let granularity = asked.or(coarsest).unwrap_or(Granularity::Minute);
        let buckets = aligned(granularity, range_us);
        let ends = [granularity.start(buckets.start).0, granularity.start(buckets.end).0];
        let bounds_us = if asked.is_some() { Vec::new() } else { ends.to_vec() };
        Cut { granularity, buckets, slots: slots_of(asked.is_some()), bounds_us }
    }

    fn local_days(
        zone: &str,
        granularity: Option<Granularity>,
        range_us: &Range<i64>,
        queries: &Queries,
    ) -> Result<Cut, Problem> {
        if granularity != Some(Granularity::Day) {
            return Err(wrong(
                "timezone_needs_days",
                format!("`timezone` is `{zone}` but `granularity` is not `day`"),
                "add granularity=day; minutes and hours are the same in every zone",
            ));
        }
        let days_max = i64::from(queries.limits.range_buckets_max) / 24;
        let days = (range_us.end - range_us.start) / DAY_US;
        if days > days_max {
            return Err(wrong(
                "range_too_long",
                format!("the range spans {days} local days"),
                format!("ask for at most {days_max}"),
            ));
        }
        let starts_us = local_midnights(zone, range_us)?;
        let is_hourly = starts_us.iter().all(|us| us % HOUR_US == 0);
        let granularity = if is_hourly { Granularity::Hour } else { Granularity::Minute };
        let (first, last) = (starts_us[0], starts_us[starts_us.len() - 1]);
        let buckets = aligned(granularity, &(first..last));
        let slot_of = (buckets.start.0..buckets.end.0)
            .map(|b| {
                let start = granularity.start(Bucket(b)).0;
                (starts_us.partition_point(|&s| s <= start) as u32).saturating_sub(1)
            })
            .collect();
        let slots = Slots::Mapped { slot_of, starts_us: starts_us.clone() };
        Ok(Cut { granularity, buckets, slots, bounds_us: starts_us })
    }
}

/// The midnights of a zone from the last before the range to the first after it: at least two.
fn local_midnights(zone: &str, range_us: &Range<i64>) -> Result<Vec<i64>, Problem> {
    let bad = || {
        wrong(
            "unknown_timezone",
            format!("`timezone` is `{zone}`"),
            "use a name of the IANA database: Europe/Stockholm, America/New_York, UTC",
        )
    };
    let tz = jiff::tz::TimeZone::get(zone).map_err(|_| bad())?;
    let first = jiff::Timestamp::from_microsecond(range_us.start).map_err(|_| bad())?;
    let mut date = first.to_zoned(tz.clone()).date();
    let mut starts_us = Vec::new();
    loop {
        let midnight = date.to_zoned(tz.clone()).and_then(|z| z.start_of_day());
        let start_us = midnight.map_err(|_| bad())?.timestamp().as_microsecond();
        starts_us.push(start_us);
        if start_us >= range_us.end && starts_us.len() > 1 {
            return Ok(starts_us);
        }
        date = date.tomorrow().map_err(|_| bad())?;
    }
}

fn aligned(granularity: Granularity, range_us: &Range<i64>) -> Range<Bucket> {
    let width = granularity.width_us();
    let start = granularity.bucket(EventTime(range_us.start));
    start..granularity.bucket(EventTime(range_us.end + width - 1))
}

fn basis(params: &mut Params) -> Result<bool, Problem> {
    match params.text("basis")?.as_deref() {
        None | Some("realtime") => Ok(false),
        Some("billing") => Ok(true),
        Some(other) => Err(wrong(
            "unknown_basis",
            format!("`basis` is `{other}`"),
            "make it realtime, or billing for rows that are final",
        )),
    }
}

/// The smallest rollup that has all dimensions, by this granularity.
fn choose<'a>(
    rollups: &'a [RollupSpec],
    needed: &[String],
    granularity: Granularity,
) -> Result<(u16, &'a RollupSpec), Problem> {
    let mut known: Vec<&str> =
        rollups.iter().flat_map(|r| &r.dimensions).map(String::as_str).collect();
    known.sort_unstable();
    known.dedup();
    if let Some(name) = needed.iter().find(|n| !known.contains(&n.as_str())) {
        let near =
            nearest(name, &known).map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
        return Err(wrong(
            "unknown_dimension",
            format!("no rollup has a dimension `{name}`"),
            format!("{near}The sets are: {}", sets(rollups)),
        ));
    }
    let with_all = |r: &&(usize, &RollupSpec)| needed.iter().all(|n| r.1.position(n).is_some());
    let all: Vec<_> = rollups.iter().enumerate().collect();
    let fitting: Vec<_> = all.iter().filter(with_all).collect();
    let kept = fitting.iter().filter(|r| r.1.granularities.contains(&granularity));
    match kept.min_by_key(|r| r.1.dimensions.len()) {
        Some((number, rollup)) => Ok((*number as u16, rollup)),
        None if fitting.is_empty() => Err(wrong(
            "unsupported_dimensions",
            format!("no rollup has all of: {}", needed.join(", ")),
            format!("ask for a subset of one of: {}", sets(rollups)),
        )),
        None => Err(wrong(
            "unsupported_granularity",
            format!("no rollup keeps {} by {}", needed.join(", "), granularity.name()),
            format!("the sets and their granularities are: {}", sets(rollups)),
        )),
    }
}

fn sets(rollups: &[RollupSpec]) -> String {
    let set = |r: &RollupSpec| {
        let by: Vec<_> = r.granularities.iter().map(|g| g.name()).collect();
        format!("{} ({} by {})", r.name, r.dimensions.join(", "), by.join(", "))
    };
    rollups.iter().map(set).collect::<Vec<_>>().join("; ")
}
