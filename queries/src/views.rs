//! `GET /v1/views`: which views there are; `GET /v1/views/{name}`: the rows of one, at one epoch;
//! `GET /v1/quarantine`: events that were set aside, read back from the log.
//!
//! A view's columns are its parameters: `?country=SE&state=final`. A table's rows come by bucket,
//! newest events come first.

use crate::{
    json::{Shape, push_text, view_rows},
    params::{self, Name, Params, nearest},
    problems::wrong,
    server::Queries,
    token::Token,
};
use axum::{
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use serde_json::{Value, json as value};
use std::sync::Arc;
use trueup_operators::{
    access::Action,
    change::{Incident, TableId},
    event::{Fate, Position},
    problem::Problem,
    time::{Bucket, BucketState, EventTime, format_rfc3339},
};
use trueup_sinks::{
    Catalog, Filter, Place, ReadEvents, View, ViewKind,
    catalog::{LISTED_FATES, QUARANTINE_FATES},
};

type State_ = State<Arc<Queries>>;
type Answer = Result<Response, Problem>;

/// Events of a page that does not say how many, and at most: each is read back from the log.
const EVENTS_DEFAULT: usize = 100;
const EVENTS_MAX: usize = 1_000;

/// The columns of a list of events.
const EVENT_COLUMNS: [&str; 7] =
    ["reason", "topic", "partition", "offset", "row", "logTime", "event"];

/// `GET /v1/views`
pub(crate) async fn list(State(queries): State_, headers: HeaderMap, uri: Uri) -> Answer {
    let asker = queries.check(&headers, Action::Read)?;
    Params::of(&uri)?.finish()?;
    let asked = Arc::clone(&queries);
    let answer = queries.gate.answer(asker, move || {
        let tables = &asked.tables;
        let (at, counts) = tables.row_counts().map_err(|e| asked.of_read(e))?;
        let catalog = tables.catalog();
        let views: Vec<Value> = catalog
            .views()
            .iter()
            .map(|view| describe(catalog, view, counts[usize::from(view.id.0)]))
            .collect();
        Ok(value!({ "views": views, "asOfEpoch": at.epoch }).to_string())
    });
    answer.await
}

fn describe(catalog: &Catalog, view: &View, rows: u64) -> Value {
    let column = |name: &str, kind: &str| value!({ "name": name, "type": kind });
    match view.kind {
        ViewKind::Table(table) => {
            let dimensions = catalog.dimensions(table);
            let mut columns = vec![column("bucketStart", "time")];
            columns.extend(dimensions.iter().map(|d| column(d, "text")));
            columns.extend(catalog.columns().iter().map(|c| column(c, "integer")));
            columns.extend([column("version", "integer"), column("state", "text")]);
            let mut key = vec!["bucketStart".to_owned()];
            key.extend(dimensions.iter().cloned());
            let rollup = &catalog.rollups()[usize::from(table.rollup)].name;
            value!({
                "name": view.name, "kind": "rollup", "rollup": rollup,
                "granularity": table.granularity.name(),
                "columns": columns, "key": key, "rows": rows,
            })
        }
        ViewKind::Events(fates) => {
            let kinds = ["text", "text", "integer", "integer", "integer", "time", "object"];
            let columns: Vec<_> =
                EVENT_COLUMNS.iter().zip(kinds).map(|(name, kind)| column(name, kind)).collect();
            let reasons: Vec<_> = fates.iter().map(|f| f.code()).collect();
            value!({
                "name": view.name, "kind": "events", "reasons": reasons, "columns": columns,
                "key": ["topic", "partition", "offset", "row"], "rows": rows,
            })
        }
    }
}

/// Finds a view.
pub(crate) fn find<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a View, Problem> {
    catalog.view(name).ok_or_else(|| {
        let known: Vec<&str> = catalog.views().iter().map(|v| v.name.as_str()).collect();
        let near =
            nearest(name, &known).map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
        Problem::new(
            404,
            "unknown_view",
            "there is no such view",
            format!("there is no view `{name}`"),
            format!("{near}There are: {}", known.join(", ")),
        )
    })
}

/// `GET /v1/views/{name}`
pub(crate) async fn rows(
    State(queries): State_,
    Name(name): Name,
    headers: HeaderMap,
    uri: Uri,
) -> Answer {
    let asker = queries.check(&headers, Action::Read)?;
    let view = find(queries.tables.catalog(), &name)?.clone();
    let mut params = Params::of(&uri)?;
    match view.kind {
        ViewKind::Table(table) => {
            let page = Ask::new(&queries, &mut params, None)?;
            let pairs = params.rest();
            let filter = filter(queries.tables.catalog(), &view, &pairs)?;
            table_page(queries, asker, view, table, filter, page).await
        }
        ViewKind::Events(fates) => {
            // The events themselves are for operators, as in `/v1/quarantine`.
            queries.check(&headers, Action::Operate)?;
            let page = Ask::new(&queries, &mut params, Some((EVENTS_DEFAULT, EVENTS_MAX)))?;
            let pairs = params.rest();
            let filter = filter(queries.tables.catalog(), &view, &pairs)?;
            let fates = filter.fate.map_or(fates.to_vec(), |fate| vec![fate]);
            event_page(queries, asker, fates, page, true).await
        }
    }
}

/// `GET /v1/quarantine`: with `events=false` only where they are, as many at a time as of rows.
pub(crate) async fn quarantine(State(queries): State_, headers: HeaderMap, uri: Uri) -> Answer {
    let asker = queries.check(&headers, Action::Operate)?;
    let mut params = Params::of(&uri)?;
    let fates = match params.text("reason")? {
        None => QUARANTINE_FATES.to_vec(),
        Some(reason) => vec![fate(&reason, LISTED_FATES)?],
    };
    let read_back = params.flag("events", true)?;
    let events = read_back.then_some((EVENTS_DEFAULT, EVENTS_MAX));
    let page = Ask::new(&queries, &mut params, events)?;
    params.finish()?;
    event_page(queries, asker, fates, page, read_back).await
}

fn fate(reason: &str, known: &[Fate]) -> Result<Fate, Problem> {
    known.iter().find(|f| f.code() == reason).copied().ok_or_else(|| {
        let codes: Vec<_> = known.iter().map(|f| f.code()).collect();
        wrong(
            "unknown_reason",
            format!("`reason` is `{reason}`"),
            format!("use one of: {}", codes.join(", ")),
        )
    })
}

/// Which page of a view.
struct Ask {
    limit: usize,
    epoch: Option<u64>,
    token: Option<Token>,
    question: String,
}

impl Ask {
    fn new(
        queries: &Queries,
        params: &mut Params,
        rows: Option<(usize, usize)>,
    ) -> Result<Ask, Problem> {
        let limits = &queries.limits;
        let (default, max) = rows.unwrap_or((limits.page_rows_default, limits.page_rows_max));
        let question = params.question().to_owned();
        let limit = params.limit(default, max)?;
        let token = params.text("pageToken")?.map(|t| Token::read(&t, &question)).transpose()?;
        let epoch = token.map(|t| t.epoch).or(params.number("asOfEpoch")?);
        Ok(Ask { limit, epoch, token, question })
    }

    fn next(&self, epoch: u64, place: Option<[u64; 3]>) -> String {
        let Some(place) = place else { return "null".to_owned() };
        let mut out = String::new();
        push_text(&mut out, &Token { epoch, place }.write(&self.question));
        out
    }
}

async fn table_page(
    queries: Arc<Queries>,
    asker: usize,
    view: View,
    table: TableId,
    filter: Filter,
    ask: Ask,
) -> Answer {
    let asked = Arc::clone(&queries);
    let answer = queries.gate.answer(asker, move || {
        let tables = &asked.tables;
        let from = ask.token.map(|t| Place {
            bucket: Bucket(t.place[0] as u32 as i32),
            shard: t.place[1] as u32,
            row: t.place[2] as u32,
            run: (t.place[1] >> 32) as u32,
        });
        let page = tables.page(view.id, &filter, ask.epoch, from, ask.limit);
        let page = page.map_err(|e| asked.of_read(e))?;
        let mut body = String::with_capacity(page.rows.len() * 192 + 128);
        body.push_str("{\"rows\":");
        let shape = shape(tables.catalog(), table);
        view_rows(&shape, tables.symbols(), &page.rows, &mut body);
        let place = |p: Place| {
            let shard = u64::from(p.run) << 32 | u64::from(p.shard);
            [u64::from(p.bucket.0 as u32), shard, u64::from(p.row)]
        };
        let next = ask.next(page.at.epoch, page.next.map(place));
        let epoch = page.at.epoch;
        body.push_str(&format!(",\"asOfEpoch\":{epoch},\"nextPageToken\":{next}}}"));
        Ok(body)
    });
    answer.await
}

/// What the rows of a table look like.
pub(crate) fn shape(catalog: &Catalog, table: TableId) -> Shape {
    let dimensions = catalog.dimensions(table).iter().map(String::as_str);
    Shape::new(dimensions, catalog.columns().iter().copied())
}

async fn event_page(
    queries: Arc<Queries>,
    asker: usize,
    fates: Vec<Fate>,
    ask: Ask,
    read_back: bool,
) -> Answer {
    let asked = Arc::clone(&queries);
    let answer = queries.gate.answer(asker, move || {
        let before = ask.token.map(|t| key_of(t.place));
        let page = asked.tables.incidents(&fates, ask.epoch, before, ask.limit);
        let page = page.map_err(|e| asked.of_read(e))?;
        let row = |incident| match read_back {
            true => event_row(asked.runtime.as_ref(), incident),
            false => place_row(incident),
        };
        let rows: Vec<Value> = page.incidents.iter().map(|(_, incident)| row(incident)).collect();
        let is_full = page.incidents.len() == ask.limit;
        let last = page.incidents.last().filter(|_| is_full).map(|(key, _)| place_of(*key));
        let (epoch, total) = (page.at.epoch, page.total);
        let next = ask.next(epoch, last);
        let rows = Value::from(rows);
        Ok(format!(
            "{{\"rows\":{rows},\"total\":{total},\"asOfEpoch\":{epoch},\"nextPageToken\":{next}}}"
        ))
    });
    answer.await
}

/// An event that did not count, as a row with what the log has of it now.
fn event_row<R: ReadEvents + ?Sized>(events: &R, incident: &Incident) -> Value {
    let mut out = place_row(incident);
    add_event(events, incident, &mut out);
    out
}

/// An event that did not count, as far as nothing ever changes: all but what is read of the log.
pub(crate) fn place_row(incident: &Incident) -> Value {
    let Position { offset, row, .. } = incident.position;
    let (topic, partition) = incident.position.place();
    value!({
        "reason": incident.fate.code(),
        "topic": topic.name(),
        "partition": partition,
        "offset": offset,
        "row": row,
        "logTime": format_rfc3339(incident.log_time.0),
    })
}

/// Adds what the log has of an event, or why it has nothing any more.
pub(crate) fn add_event<R: ReadEvents + ?Sized>(events: &R, incident: &Incident, out: &mut Value) {
    match events.event_json(incident.position) {
        Ok(event) => out["event"] = event,
        Err(error) => {
            out["event"] = Value::Null;
            out["eventError"] = error.into();
        }
    }
}

fn place_of((epoch, position): (u64, Position)) -> [u64; 3] {
    let row = u64::from(position.partition) << 16 | u64::from(position.row);
    [epoch, position.offset, row]
}

fn key_of([epoch, offset, row]: [u64; 3]) -> (u64, Position) {
    (epoch, Position { partition: (row >> 16) as u16, offset, row: row as u16 })
}

/// A filter from pairs of column and value.
pub(crate) fn filter(
    catalog: &Catalog,
    view: &View,
    pairs: &[(String, String)],
) -> Result<Filter, Problem> {
    let mut filter = Filter::default();
    for (i, (column, text)) in pairs.iter().enumerate() {
        if pairs[..i].iter().any(|p| p.0 == *column) {
            return Err(wrong(
                "repeated_parameter",
                format!("`{column}` stands more than once"),
                "a row has one value of each column: ask once for each value",
            ));
        }
        match view.kind {
            ViewKind::Table(table) => table_filter(catalog, table, column, text, &mut filter)?,
            ViewKind::Events(fates) if column == "reason" => {
                filter.fate = Some(fate(text, fates)?);
            }
            ViewKind::Events(_) => return Err(unknown_column(column, &["reason"])),
        }
    }
    Ok(filter)
}

fn table_filter(
    catalog: &Catalog,
    table: TableId,
    column: &str,
    text: &str,
    filter: &mut Filter,
) -> Result<(), Problem> {
    let dimensions = catalog.dimensions(table);
    if let Some(at) = dimensions.iter().position(|d| d == column) {
        filter.dimensions.push((at, text.to_owned()));
        return Ok(());
    }
    let bucket = |us: i64| table.granularity.bucket(EventTime(us));
    let now = filter.buckets.clone().unwrap_or(Bucket(i32::MIN)..Bucket(i32::MAX));
    match column {
        "bucketStart" => {
            let first = bucket(params::time(column, text)?);
            let only = first..Bucket(first.0 + 1);
            filter.buckets = Some(only.start.max(now.start)..only.end.min(now.end));
        }
        "from" => {
            filter.buckets = Some(bucket(params::time(column, text)?).max(now.start)..now.end)
        }
        "to" => {
            let last = bucket(params::time(column, text)? + table.granularity.width_us() - 1);
            filter.buckets = Some(now.start..last.min(now.end));
        }
        "state" => {
            let states = [
                BucketState::Provisional,
                BucketState::Settling,
                BucketState::Final,
                BucketState::Restated,
            ];
            filter.state = states.into_iter().find(|s| s.name() == text);
            if filter.state.is_none() {
                return Err(wrong(
                    "unknown_state",
                    format!("`state` is `{text}`"),
                    "use one of: provisional, settling, final, restated",
                ));
            }
        }
        _ => {
            let mut known: Vec<&str> = dimensions.iter().map(String::as_str).collect();
            known.extend(["bucketStart", "from", "to", "state"]);
            return Err(unknown_column(column, &known));
        }
    }
    Ok(())
}

fn unknown_column(column: &str, known: &[&str]) -> Problem {
    let near = nearest(column, known).map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
    wrong(
        "unknown_column",
        format!("rows cannot be chosen by `{column}`"),
        format!("{near}They can by: {}", known.join(", ")),
    )
}
