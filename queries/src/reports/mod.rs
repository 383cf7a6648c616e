//! Reports: sums over a rollup's table, by bucket and some of its dimensions.
//!
//! A report is planned from its parameters (`plan`), answered at one epoch by [`Tables::sum`], and
//! written page by page. Pages repeat the sum at the epoch of the first page and skip what was
//! sent: a sum of fifty thousand rows takes some milliseconds, and the server keeps nothing between
//! requests.
//!
//! A row that adds several rows up has the sum of their versions: it grows with every published
//! change of any of them, where the greatest would not.
//!
//! [`Tables::sum`]: trueup_sinks::Tables::sum

mod plan;
#[cfg(test)]
mod tests;

use crate::{
    json::{ReportExtras, Rows, Shape, push_seconds, push_text},
    params::{Name, Params},
    problems::wrong,
    server::Queries,
    token::Token,
};
use axum::{
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use plan::{Plan, Unnamed};
use std::{ops::Range, sync::Arc};
use trueup_operators::{
    access::Action,
    feed::EpochTimes,
    problem::Problem,
    time::{EventTime, MINUTE_US, format_rfc3339},
};
use trueup_sinks::{ReadError, Summed, block::RowRef};

type State_ = State<Arc<Queries>>;
type Answer = Result<Response, Problem>;

/// `GET /v1/reports/campaigns/{campaignId}`
pub(crate) async fn campaign(
    State(queries): State_,
    Name(campaign): Name,
    headers: HeaderMap,
    uri: Uri,
) -> Answer {
    let asker = queries.check(&headers, Action::Read)?;
    let mut params = Params::of(&uri)?;
    let dimensions = list(params.text("dimensions")?);
    let from = params.time("from")?;
    let to = params.time("to")?;
    let plan =
        Plan::new(&queries, &mut params, dimensions, from..to, Some(campaign), Unnamed::Hours)?;
    answer(queries, asker, plan, params).await
}

/// `GET /api/v1/analytics`: the same report under the names of the dashboard world.
pub(crate) async fn analytics(State(queries): State_, headers: HeaderMap, uri: Uri) -> Answer {
    let asker = queries.check(&headers, Action::Read)?;
    let mut params = Params::of(&uri)?;
    let campaign = params.required("campaign_id")?;
    let names = list(params.text("group_by")?).into_iter();
    let dimensions = names.map(|name| long_name(&name).to_owned()).collect();
    let from = params.time("start")?;
    let to = params.time("end")?;
    let plan =
        Plan::new(&queries, &mut params, dimensions, from..to, Some(campaign), Unnamed::Hours)?;
    answer(queries, asker, plan, params).await
}

/// `GET /v1/reports/totals`: over all campaigns, by bucket or, without a granularity, in one.
pub(crate) async fn totals(State(queries): State_, headers: HeaderMap, uri: Uri) -> Answer {
    let asker = queries.check(&headers, Action::Analyse)?;
    let mut params = Params::of(&uri)?;
    let dimensions = list(params.text("dimensions")?);
    let from = params.time("from")?;
    let to = params.time("to")?;
    let plan = Plan::new(&queries, &mut params, dimensions, from..to, None, Unnamed::Whole)?;
    answer(queries, asker, plan, params).await
}

/// `GET /v1/reports/top`: the greatest sums of one figure over a window that ends now.
pub(crate) async fn top(State(queries): State_, headers: HeaderMap, uri: Uri) -> Answer {
    let asker = queries.check(&headers, Action::Analyse)?;
    let mut params = Params::of(&uri)?;
    let by = list(Some(params.text("by")?.unwrap_or_else(|| "campaignId".to_owned())));
    let metric = params.text("metric")?.unwrap_or_else(|| "clicks".to_owned());
    let columns = queries.tables.catalog().columns();
    let metric_at = columns.iter().position(|c| *c == metric).ok_or_else(|| {
        wrong(
            "unknown_metric",
            format!("`metric` is `{metric}`"),
            format!("use one of: {}", columns.join(", ")),
        )
    })?;
    let window_us = span(params.text("window")?.as_deref().unwrap_or("5m"))?;
    let limit = params.limit(10, queries.limits.page_rows_max)?;
    let asked = Arc::clone(&queries);
    let answer = queries.gate.answer(asker, move || {
        let tables = &asked.tables;
        // The turn has come: the window ends now, and the sum is free to choose its epoch.
        let at = tables.visible().ok_or_else(|| asked.of_read(ReadError::NotReady))?;
        let range_us = window(at, window_us);
        let plan = Plan::new(&asked, &mut params, by, range_us, None, Unnamed::Window(at))?;
        params.finish()?;
        let summed = plan.sum(&asked)?;
        let mut rows: Vec<RowRef<'_>> = summed.rows.rows().collect();
        // Stable, so equal ones stay in the order of their texts.
        rows.sort_by_key(|row| std::cmp::Reverse(row.values[metric_at]));
        rows.truncate(limit);
        let mut body = String::from("{\"metric\":");
        push_text(&mut body, &metric);
        body.push_str(&format!(
            ",\"from\":\"{}\",\"to\":\"{}\",",
            format_rfc3339(plan.range_us.start),
            format_rfc3339(plan.range_us.end)
        ));
        write_rows(&mut body, &plan, &asked, &summed, &rows);
        body.push('}');
        Ok(body)
    });
    answer.await
}

/// The window ends with the minute that the log is complete to.
fn window(at: EpochTimes, window_us: i64) -> Range<i64> {
    let end_us = at.frontier.0.max(0).div_euclid(MINUTE_US) * MINUTE_US + MINUTE_US;
    (end_us - window_us).max(0)..end_us
}

/// Answers with the page that the parameters ask for.
async fn answer(queries: Arc<Queries>, asker: usize, mut plan: Plan, mut params: Params) -> Answer {
    let limits = &queries.limits;
    let limit = params.limit(limits.page_rows_default, limits.page_rows_max)?;
    let question = params.question().to_owned();
    let token = params.text("pageToken")?.map(|t| Token::read(&t, &question)).transpose()?;
    let epoch = params.number("asOfEpoch")?;
    params.finish()?;
    plan.query.epoch = token.map(|t| t.epoch).or(epoch);
    let skip = token.map_or(0, |t| t.place[0] as usize);
    let asked = Arc::clone(&queries);
    let answer = queries.gate.answer(asker, move || {
        let summed = plan.sum(&asked)?;
        let rows: Vec<RowRef<'_>> =
            summed.rows.rows().filter(|row| plan.shows(row, summed.at)).collect();
        let end = rows.len().min(skip.saturating_add(limit));
        let page = &rows[skip.min(end)..end];
        let mut body = String::with_capacity(page.len() * 256 + 256);
        body.push('{');
        write_rows(&mut body, &plan, &asked, &summed, page);
        body.push_str(",\"nextPageToken\":");
        if end < rows.len() {
            let token = Token { epoch: summed.at.epoch, place: [end as u64, 0, 0] };
            push_text(&mut body, &token.write(&question));
        } else {
            body.push_str("null");
        }
        body.push('}');
        Ok(body)
    });
    answer.await
}

fn write_rows(
    body: &mut String,
    plan: &Plan,
    queries: &Queries,
    summed: &Summed,
    page: &[RowRef<'_>],
) {
    let tables = queries.tables.as_ref();
    let shape = Shape::new(plan.names.iter().map(String::as_str), plan.columns.iter().copied());
    let extras = ReportExtras { freshness_us: queries.runtime.now_us() - summed.at.frontier.0 };
    let mut rows = Rows::new(&shape, tables.symbols(), page.iter().copied());
    body.push_str("\"rows\":[");
    for (i, row) in page.iter().enumerate() {
        if i > 0 {
            body.push(',');
        }
        let row = RowRef { state: plan.state(row, summed.at), ..*row };
        rows.push_report_row(body, &row, extras);
    }
    body.push_str(&format!("],\"asOfEpoch\":{},\"freshnessSeconds\":", summed.at.epoch));
    push_seconds(body, extras.freshness_us);
    body.push_str(&format!(",\"completeTo\":\"{}\"", format_rfc3339(summed.at.frontier.0)));
    body.push_str(",\"rollup\":");
    push_text(body, &plan.rollup);
    if let Some(kept_us) = plan.kept_from_us(tables, summed.at) {
        body.push_str(&format!(",\"keptFrom\":\"{}\"", format_rfc3339(kept_us)));
    }
}

/// A list of names, separated by commas.
fn list(text: Option<String>) -> Vec<String> {
    let text = text.unwrap_or_default();
    text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect()
}

/// The dimension behind a name of the dashboard world.
fn long_name(name: &str) -> &str {
    match name {
        "campaign" | "campaign_id" => "campaignId",
        "ad" | "ad_id" => "adId",
        "advertiser" | "advertiser_id" => "advertiserId",
        "publisher" | "publisher_id" => "publisherId",
        "placement" | "placement_id" => "placementId",
        "geo" => "country",
        "device" | "device_type" => "deviceType",
        "creative" | "creative_id" => "creativeId",
        other => other,
    }
}

/// A span of time as text: `90s`, `5m`, `24h`, `7d`.
fn span(text: &str) -> Result<i64, Problem> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_us = match &text[digits.len()..] {
        "s" => Some(1_000_000),
        "m" => Some(MINUTE_US),
        "h" => Some(60 * MINUTE_US),
        "d" => Some(24 * 60 * MINUTE_US),
        _ => None,
    };
    let number = digits.parse::<i64>().ok().filter(|n| *n > 0);
    number.zip(unit_us).and_then(|(n, unit)| n.checked_mul(unit)).ok_or_else(|| {
        wrong("bad_window", format!("`window` is `{text}`"), "write it as 90s, 5m, 24h or 7d")
    })
}

/// The first instant of a time's minute, for messages.
fn shown(us: i64) -> String {
    format_rfc3339(EventTime(us).0)
}
