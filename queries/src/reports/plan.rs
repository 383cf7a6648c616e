//! From parameters to a sum: which rollup, which of its tables, which buckets, and how buckets
//! become rows.
//!
//! The rollup is the one with the fewest dimensions among those that have all that are asked for;
//! of equals the first in the configuration, so that the pages of an answer agree. The range is
//! aligned outward to the granularity.
//!
//! A full bucket folds new keys into a row that keeps their first dimension and no other, and not
//! even that one where there is only one. So where campaigns are asked for, a rollup that folds
//! within each campaign is taken first. If there is none, a report of one campaign is refused where
//! the campaign may be among the folded: it is never answered with less than there was.
//!
//! A range that is one row is read by the coarsest buckets that fit into it, and at its ends by
//! finer ones: less is read, and minutes are needed only where they are still kept. What has left
//! the views is never missing from a row: a local day that lost an hour is no row of the answer,
//! and one row over a range that lost a part is refused.
//!
//! Days of a time zone are made from hours, or from minutes where the zone's midnight is not on a
//! full hour. A day of 23 or 25 hours is what it is.

use super::shown;
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
    symbols::OTHER_TEXT,
    time::{Bucket, BucketState, DAY_US, EventTime, Granularity, HOUR_US, Lateness, MINUTE_US},
};
use trueup_sinks::{Filter, ReadError, Slots, Span, SumQuery, Summed, Tables, block::RowRef};

/// The dimension that reports of one campaign choose by.
const CAMPAIGN: &str = "campaignId";

/// What a range becomes when no granularity is named.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unnamed {
    /// A row an hour.
    Hours,
    /// One row.
    Whole,
    /// One row, which begins earlier where the buckets of its beginning have left the views at this
    /// epoch, and those of the hour or the day that they are in have not.
    Window(EpochTimes),
}

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
    /// The one campaign that is asked for, if the rollup may fold it with others.
    foldable: Option<String>,
}

impl Plan {
    /// Plans a report.
    pub(super) fn new(
        queries: &Queries,
        params: &mut Params,
        names: Vec<String>,
        range_us: Range<i64>,
        campaign: Option<String>,
        unnamed: Unnamed,
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
        let needed = needed(&names, campaign.is_some())?;
        let rollups = queries.tables.catalog().rollups();
        let hours = matches!(unnamed, Unnamed::Hours).then_some(Granularity::Hour);
        let (rollup, cut) = match (&zone, granularity.or(hours)) {
            (Some(zone), _) => {
                let cut = Cut::local_days(zone, granularity, &range_us, queries)?;
                (choose(rollups, &needed, &[cut.granularity])?, cut)
            }
            (None, Some(by)) => (choose(rollups, &needed, &[by])?, Cut::by(by, &range_us)),
            (None, None) => {
                let mut range_us = outward(MINUTE_US, &range_us);
                let rollup = choose(rollups, &needed, &fitting(&range_us))?;
                if let Unnamed::Window(at) = unnamed {
                    range_us.start = kept_start(queries, rollup.1, range_us.start, at);
                }
                (rollup, Cut::whole(&rollup.1.granularities, &range_us))
            }
        };
        cut.check(queries.limits.range_buckets_max)?;
        Ok(Plan::over(queries, rollup, cut, names, campaign, is_billing))
    }

    fn over(
        queries: &Queries,
        (number, rollup): (u16, &RollupSpec),
        cut: Cut,
        names: Vec<String>,
        campaign: Option<String>,
        is_billing: bool,
    ) -> Plan {
        let position = |name: &str| rollup.position(name).unwrap_or_default();
        let mut filter = Filter::default();
        let folds = |campaign: &String| !keeps_campaigns(rollup) && campaign != OTHER_TEXT;
        let foldable = campaign.clone().filter(folds);
        if let Some(campaign) = campaign {
            filter.dimensions.push((position(CAMPAIGN), campaign));
        }
        let query = SumQuery {
            rollup: number,
            granularity: cut.granularity,
            buckets: cut.buckets,
            filter,
            by: names.iter().map(|name| position(name)).collect(),
            slots: cut.slots,
            finalized_only: is_billing,
            rows_max: queries.limits.rows_max,
            scan_rows_max: queries.limits.scan_rows_max,
            epoch: None,
        };
        Plan {
            query,
            columns: queries.tables.catalog().columns(),
            rollup: rollup.name.clone(),
            names,
            range_us: cut.range_us,
            lateness: queries.tables.lateness(),
            bounds_us: cut.bounds_us,
            is_billing,
            foldable,
        }
    }

    /// Asks for the sum.
    pub(super) fn sum(&self, queries: &Queries) -> Result<Summed, Problem> {
        let summed = self.sum_of(queries, &self.query)?;
        if let Some(campaign) = &self.foldable {
            self.check_folded(queries, campaign, &summed)?;
        }
        Ok(summed)
    }

    /// Whether all that there is of a campaign is in what was summed. In a bucket of a rollup that
    /// has no other dimension it is where the campaign has its row there: a key that has one is
    /// never folded.
    fn check_folded(
        &self,
        queries: &Queries,
        campaign: &str,
        summed: &Summed,
    ) -> Result<(), Problem> {
        let rollup = &queries.tables.catalog().rollups()[usize::from(self.query.rollup)];
        let position = rollup.position(CAMPAIGN).unwrap_or_default();
        let query = SumQuery {
            filter: Filter {
                dimensions: vec![(position, OTHER_TEXT.to_owned())],
                ..Filter::default()
            },
            by: Vec::new(),
            epoch: Some(summed.at.epoch),
            ..self.query.clone()
        };
        let others = self.sum_of(queries, &query)?;
        let is_alone = rollup.dimensions.len() == 1 && self.query.slots == Slots::Each;
        let has_row = |start_us| is_alone && summed.rows.rows().any(|row| row.start_us == start_us);
        let Some(other) = others.rows.rows().find(|other| !has_row(other.start_us)) else {
            return Ok(());
        };
        let (name, start) = (&self.rollup, shown(other.start_us));
        Err(wrong(
            "campaign_folded",
            format!(
                "the rollup `{name}` had no room for all campaigns at {start}, so what there is of \
                 `{campaign}` may be in its row `{OTHER_TEXT}`"
            ),
            format!(
                "add a rollup whose first dimension is {CAMPAIGN} and that has another: it folds \
                 within each campaign, and is filled from the log; or ask for a range without \
                 {start}"
            ),
        ))
    }

    fn sum_of(&self, queries: &Queries, query: &SumQuery) -> Result<Summed, Problem> {
        let tables = queries.tables.as_ref();
        tables.sum(query).map_err(|error| {
            let is_not_kept = matches!(error, ReadError::NotKept { .. });
            let problem = queries.of_read(error);
            match self.first_kept_us(tables).filter(|_| is_not_kept) {
                None => problem,
                Some(first_us) => Problem {
                    hint: format!(
                        "the first instant from which this can be answered up to {} is {}",
                        shown(self.range_us.end),
                        shown(first_us)
                    ),
                    ..problem
                },
            }
        })
    }

    /// The first instant of the range from which one row over it can be given now.
    fn first_kept_us(&self, tables: &dyn Tables) -> Option<i64> {
        let at = tables.visible()?;
        let rollup = &tables.catalog().rollups()[usize::from(self.query.rollup)];
        let end_us = self.range_us.end;
        let is_kept = |(g, buckets): &Span| g.start(buckets.start).0 >= tables.kept_from_us(*g, at);
        let first = |g: &Granularity| {
            let next_us = outward(g.width_us(), &(0..self.range_us.start)).end;
            let start_us = next_us.max(tables.kept_from_us(*g, at));
            let spans = tiles(&rollup.granularities, start_us..end_us);
            (!spans.is_empty() && spans.iter().all(is_kept)).then_some(start_us)
        };
        rollup.granularities.iter().filter_map(first).min()
    }

    /// Where the rows that can still be given begin, if that is later than the range does.
    pub(super) fn kept_from_us(&self, tables: &dyn Tables, at: EpochTimes) -> Option<i64> {
        let kept_us = tables.kept_from_us(self.query.granularity, at);
        let whole_us = self.bounds_us.iter().find(|&&start| start >= kept_us);
        (self.range_us.start < kept_us).then(|| whole_us.copied().unwrap_or(kept_us))
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
    range_us: Range<i64>,
    bounds_us: Vec<i64>,
}

impl Cut {
    /// A row a bucket.
    fn by(granularity: Granularity, range_us: &Range<i64>) -> Cut {
        let range_us = outward(granularity.width_us(), range_us);
        let buckets = buckets(granularity, &range_us);
        Cut { granularity, buckets, slots: Slots::Each, range_us, bounds_us: Vec::new() }
    }

    /// One row over a range that can be made up of buckets of these granularities.
    fn whole(kept: &[Granularity], range_us: &Range<i64>) -> Cut {
        let mut spans = tiles(kept, range_us.clone()).into_iter();
        let minutes = (Granularity::Minute, buckets(Granularity::Minute, range_us));
        let (granularity, buckets) = spans.next().unwrap_or(minutes);
        let slots = Slots::Joined(spans.collect());
        let bounds_us = vec![range_us.start, range_us.end];
        Cut { granularity, buckets, slots, range_us: range_us.clone(), bounds_us }
    }

    fn check(&self, buckets_max: u32) -> Result<(), Problem> {
        let count = |buckets: &Range<Bucket>| i64::from(buckets.end.0) - i64::from(buckets.start.0);
        let more = match &self.slots {
            Slots::Joined(more) => more.iter().map(|(_, buckets)| count(buckets)).sum(),
            _ => 0,
        };
        check_count(self.granularity, count(&self.buckets) + more, buckets_max)
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
        let range_us = outward(granularity.width_us(), &(first..last));
        // Before anything is made for each of them.
        let count = (range_us.end - range_us.start) / granularity.width_us();
        check_count(granularity, count, queries.limits.range_buckets_max)?;
        let buckets = buckets(granularity, &range_us);
        let slot_of = (buckets.start.0..buckets.end.0)
            .map(|b| {
                let start = granularity.start(Bucket(b)).0;
                (starts_us.partition_point(|&s| s <= start) as u32).saturating_sub(1)
            })
            .collect();
        let slots = Slots::Mapped { slot_of, starts_us: starts_us.clone() };
        Ok(Cut { granularity, buckets, slots, range_us, bounds_us: starts_us })
    }
}

fn check_count(granularity: Granularity, buckets: i64, buckets_max: u32) -> Result<(), Problem> {
    if buckets <= i64::from(buckets_max) {
        return Ok(());
    }
    Err(wrong(
        "range_too_long",
        format!("the range spans {buckets} buckets by {}", granularity.name()),
        format!("ask for at most {buckets_max}, or for a coarser granularity"),
    ))
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

/// A range with its ends moved outward to full multiples of a width.
fn outward(width_us: i64, range_us: &Range<i64>) -> Range<i64> {
    let end_us = range_us.end + width_us - 1;
    range_us.start.div_euclid(width_us) * width_us..end_us.div_euclid(width_us) * width_us
}

/// The buckets that lie within a range.
fn buckets(granularity: Granularity, range_us: &Range<i64>) -> Range<Bucket> {
    let last = EventTime(range_us.start + granularity.width_us() - 1);
    granularity.bucket(last)..granularity.bucket(EventTime(range_us.end))
}

/// The granularities whose buckets can make up a range, coarsest first.
fn fitting(range_us: &Range<i64>) -> Vec<Granularity> {
    let fits = |g: &Granularity| outward(g.width_us(), range_us) == *range_us;
    Granularity::ALL.into_iter().rev().filter(fits).collect()
}

/// Cuts a range that fits the finest of these granularities into the coarsest buckets that lie
/// within it, and its ends into finer ones.
fn tiles(kept: &[Granularity], range_us: Range<i64>) -> Vec<Span> {
    let Some(&coarsest) = kept.iter().max().filter(|_| !range_us.is_empty()) else {
        return Vec::new();
    };
    let finer: Vec<Granularity> = kept.iter().copied().filter(|g| *g < coarsest).collect();
    let inner = buckets(coarsest, &range_us);
    if inner.start >= inner.end {
        return tiles(&finer, range_us);
    }
    let inner_us = coarsest.start(inner.start).0..coarsest.start(inner.end).0;
    let mut spans = tiles(&finer, range_us.start..inner_us.start);
    spans.push((coarsest, inner));
    spans.extend(tiles(&finer, inner_us.end..range_us.end));
    spans
}

/// Where a window begins: at the start of the finest bucket around its beginning that is kept.
/// If none is, the sum will say so.
fn kept_start(queries: &Queries, rollup: &RollupSpec, start_us: i64, at: EpochTimes) -> i64 {
    let start_of = |g: &Granularity| {
        let bucket_us = g.start(g.bucket(EventTime(start_us))).0;
        (bucket_us >= queries.tables.kept_from_us(*g, at)).then_some(bucket_us)
    };
    rollup.granularities.iter().filter_map(start_of).max().unwrap_or(start_us)
}

/// The dimensions that a rollup has to have.
fn needed(names: &[String], of_campaign: bool) -> Result<Vec<String>, Problem> {
    if let Some((_, name)) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)) {
        return Err(wrong(
            "repeated_dimension",
            format!("the dimension `{name}` is named twice"),
            "name each dimension once",
        ));
    }
    let campaign = of_campaign.then(|| CAMPAIGN.to_owned());
    Ok(names.iter().cloned().chain(campaign).collect())
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

/// Whether a full bucket of a rollup still tells campaigns apart.
fn keeps_campaigns(rollup: &RollupSpec) -> bool {
    rollup.dimensions.len() > 1 && rollup.position(CAMPAIGN) == Some(0)
}

/// The smallest rollup that has all dimensions, by any of these granularities, and tells campaigns
/// apart if they are asked for and one does.
fn choose<'a>(
    rollups: &'a [RollupSpec],
    needed: &[String],
    granularities: &[Granularity],
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
    let is_kept = |r: &RollupSpec| granularities.iter().any(|g| r.granularities.contains(g));
    let kept = fitting.iter().filter(|r| is_kept(r.1));
    let of_campaigns = needed.iter().any(|name| name == CAMPAIGN);
    let loses = |r: &RollupSpec| of_campaigns && !keeps_campaigns(r);
    match kept.min_by_key(|r| (loses(r.1), r.1.dimensions.len())) {
        Some((number, rollup)) => Ok((*number as u16, rollup)),
        None if fitting.is_empty() => Err(wrong(
            "unsupported_dimensions",
            format!("no rollup has all of: {}", needed.join(", ")),
            format!("ask for a subset of one of: {}", sets(rollups)),
        )),
        None => Err(wrong(
            "unsupported_granularity",
            format!("no rollup keeps {} by {}", needed.join(", "), by(granularities)),
            format!("the sets and their granularities are: {}", sets(rollups)),
        )),
    }
}

fn by(granularities: &[Granularity]) -> String {
    granularities.iter().map(|g| g.name()).collect::<Vec<_>>().join(" or ")
}

fn sets(rollups: &[RollupSpec]) -> String {
    let set = |r: &RollupSpec| {
        let by: Vec<_> = r.granularities.iter().map(|g| g.name()).collect();
        format!("{} ({} by {})", r.name, r.dimensions.join(", "), by.join(", "))
    };
    rollups.iter().map(set).collect::<Vec<_>>().join("; ")
}
