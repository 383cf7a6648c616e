//! `/v1/campaigns`, `/v1/ads`, `/v1/publishers` and `/v1/dimensions`.
//!
//! `PUT` replaces the whole entry and answers its `ETag`; `If-Match` and `If-None-Match: *` decide
//! against the entry as it is durable, and answer 412 when someone else was faster (`change`). A
//! change is visible only once the log holds it.

use crate::{
    change::{Change, change},
    collector::{Collector, content_length},
    fault::shown,
    metadata::{Ad, Campaign, Entry, Kind, Publisher},
};
use axum::{
    Json,
    body::Body,
    extract::{FromRequestParts, Path, Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use trueup_operators::{
    access::Action, event::DIMENSIONS, money::PRICE_MICROS_MAX, problem::Problem,
    symbols::OTHER_TEXT, time::parse_rfc3339,
};

const ID_BYTES_MAX: usize = crate::fields::ID_BYTES_MAX;
const TEXT_BYTES_MAX: usize = 256;
const URL_BYTES_MAX: usize = 2048;
const BODY_BYTES_MAX: usize = 16 * 1024;
const LIST_DEFAULT: usize = 100;
const LIST_MAX: usize = 1000;

impl Kind {
    /// The part of the path, and the name of the list in an answer.
    pub(crate) const fn plural(self) -> &'static str {
        match self {
            Kind::Campaign => "campaigns",
            Kind::Ad => "ads",
            Kind::Publisher => "publishers",
        }
    }

    pub(crate) const fn id_name(self) -> &'static str {
        match self {
            Kind::Campaign => "campaignId",
            Kind::Ad => "adId",
            Kind::Publisher => "publisherId",
        }
    }
}

/// The id in a path.
pub(crate) struct Id(String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Id, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        id.map(|Path(id)| Id(id)).map_err(|rejection| {
            Problem::new(
                400,
                "bad_path",
                "the path cannot be read",
                format!("the path `{}` cannot be read: {rejection}", parts.uri.path()),
                "encode ids in a path as the UTF-8 of a URL",
            )
        })
    }
}

/// `GET /v1/…/{id}`
pub(crate) async fn get(
    kind: Kind,
    State(collector): State<Collector>,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    collector.0.sender(&headers, Action::Read)?;
    let entry = collector.0.metadata.get(kind, &id).ok_or_else(|| not_found(kind, &id))?;
    Ok(shown_entry(kind, &id, &entry, StatusCode::OK))
}

/// Which part of a list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    after: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/…`
pub(crate) async fn list(
    kind: Kind,
    State(collector): State<Collector>,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    collector.0.sender(&headers, Action::Read)?;
    let Query(page) = page.map_err(|error| {
        let hint = "send `after` (an id) and `limit` (a number), or neither";
        Problem::new(400, "bad_query", "the query cannot be used", error.body_text(), hint)
    })?;
    let limit = page.limit.unwrap_or(LIST_DEFAULT).clamp(1, LIST_MAX);
    let after = page.after.unwrap_or_default();
    let entries = collector.0.metadata.list(kind, &after, limit);
    let next = (entries.len() == limit).then(|| entries.last().map(|(id, _)| id.clone())).flatten();
    let rows: Vec<Value> = entries.iter().map(|(id, entry)| document(kind, id, entry)).collect();
    Ok(Json(json!({ kind.plural(): rows, "nextAfter": next })).into_response())
}

/// `PUT /v1/…/{id}`
pub(crate) async fn put(
    kind: Kind,
    State(collector): State<Collector>,
    Id(id): Id,
    request: Request,
) -> Result<Response, Problem> {
    let inner = collector.0;
    let (parts, body) = request.into_parts();
    let token = inner.sender(&parts.headers, Action::Operate)?.token;
    inner.has_place()?;
    let mut bounds = inner.bounds();
    bounds.bytes_max = bounds.bytes_max.min(BODY_BYTES_MAX);
    let declared = content_length(&parts.headers);
    let whole = inner.held.collect(token, body, declared, bounds).await?;
    let _place = inner.enter()?;
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return Err(bad_metadata(format!(
            "the id has {} bytes, the limit is {ID_BYTES_MAX}",
            id.len()
        )));
    }
    check_reserved(kind.id_name(), &id)?;
    let value = checked(kind, &whole)?;
    // A task of its own: a change that has begun is made even if the client goes away.
    let change = change(inner, Change { kind, id, value: Some(value) }, parts.headers);
    tokio::spawn(change).await.map_err(|error| crate::collect::mistake(&error))?
}

/// `DELETE /v1/…/{id}`
pub(crate) async fn delete(
    kind: Kind,
    State(collector): State<Collector>,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let inner = collector.0;
    inner.sender(&headers, Action::Operate)?;
    let _place = inner.enter()?;
    let change = change(inner, Change { kind, id, value: None }, headers);
    tokio::spawn(change).await.map_err(|error| crate::collect::mistake(&error))?
}

/// `GET /v1/dimensions`
pub(crate) async fn dimensions(
    State(collector): State<Collector>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    collector.0.sender(&headers, Action::Read)?;
    let names: Vec<Value> =
        DIMENSIONS.iter().map(|(name, column)| json!({"name": name, "column": column})).collect();
    Ok(Json(json!({ "dimensions": names })).into_response())
}

pub(crate) fn etag(version: u64) -> String {
    format!("\"{version}\"")
}

fn document(kind: Kind, id: &str, entry: &Entry) -> Value {
    let mut value = (*entry.value).clone();
    if let Some(object) = value.as_object_mut() {
        object.insert(kind.id_name().into(), id.into());
        object.insert("version".into(), entry.version.into());
    }
    value
}

pub(crate) fn shown_entry(kind: Kind, id: &str, entry: &Entry, status: StatusCode) -> Response {
    let mut response = Response::new(Body::from(document(kind, id, entry).to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let tag = HeaderValue::from_str(&etag(entry.version)).expect("digits in quotes");
    headers.insert(header::ETAG, tag);
    response
}

pub(crate) fn not_found(kind: Kind, id: &str) -> Problem {
    Problem::new(
        404,
        "unknown_entry",
        "there is no such entry",
        format!("there is no {} `{}`", kind.id_name(), shown(id.as_bytes())),
        format!("see `GET /v1/{}`", kind.plural()),
    )
}

fn bad_metadata(detail: impl Into<String>) -> Problem {
    Problem::new(
        400,
        "bad_metadata",
        "the entry breaks a rule",
        detail,
        "see the table of metadata fields in the documentation",
    )
}

/// Reads a body as an entry of its kind and checks it. The id and version that `GET` shows may be
/// sent back; the path and the log decide them.
fn checked(kind: Kind, body: &[u8]) -> Result<Value, Problem> {
    let mut value: Value =
        serde_json::from_slice(body).map_err(|error| bad_metadata(error.to_string()))?;
    let Some(object) = value.as_object_mut() else {
        return Err(bad_metadata("the body is no JSON object"));
    };
    object.remove("version");
    object.remove(kind.id_name());
    let bad = |error: serde_json::Error| bad_metadata(error.to_string());
    match kind {
        Kind::Campaign => check_campaign(&Campaign::deserialize(&value).map_err(bad)?)?,
        Kind::Ad => check_ad(&Ad::deserialize(&value).map_err(bad)?)?,
        Kind::Publisher => {
            let publisher = Publisher::deserialize(&value).map_err(bad)?;
            for (name, text) in [
                ("name", &publisher.name),
                ("domain", &publisher.domain),
                ("status", &publisher.status),
            ] {
                check_text(name, text.as_deref(), TEXT_BYTES_MAX)?;
            }
        }
    }
    Ok(value)
}

fn check_text(name: &str, text: Option<&str>, bytes_max: usize) -> Result<(), Problem> {
    match text {
        Some("") => Err(bad_metadata(format!("`{name}` is an empty string"))),
        Some(text) if text.len() > bytes_max => Err(bad_metadata(format!(
            "`{name}` has {} bytes, the limit is {bytes_max}",
            text.len()
        ))),
        Some(text) => check_reserved(name, text),
        None => Ok(()),
    }
}

/// What metadata says goes into events that do not say it themselves, and no event may say this.
fn check_reserved(name: &str, text: &str) -> Result<(), Problem> {
    if text != OTHER_TEXT {
        return Ok(());
    }
    Err(Problem::new(
        400,
        "reserved_text",
        "the text is reserved",
        format!("`{name}` is \"{OTHER_TEXT}\", the name of what does not fit into a report"),
        "send another text",
    ))
}

fn check_campaign(campaign: &Campaign) -> Result<(), Problem> {
    check_text("advertiserId", campaign.advertiser_id.as_deref(), ID_BYTES_MAX)?;
    check_text("name", campaign.name.as_deref(), TEXT_BYTES_MAX)?;
    check_text("budgetModel", campaign.budget_model.as_deref(), ID_BYTES_MAX)?;
    check_text("timezone", campaign.timezone.as_deref(), ID_BYTES_MAX)?;
    check_text("status", campaign.status.as_deref(), ID_BYTES_MAX)?;
    if campaign.daily_budget_micros.is_some_and(|budget| budget < 0) {
        return Err(bad_metadata("`dailyBudgetMicros` is negative"));
    }
    let time = |name: &str, text: &Option<String>| match text {
        Some(text) => parse_rfc3339(text).map(Some).ok_or_else(|| {
            bad_metadata(format!(
                "`{name}` is \"{}\", which is no RFC 3339 time",
                shown(text.as_bytes())
            ))
        }),
        None => Ok(None),
    };
    let start = time("startAt", &campaign.start_at)?;
    let end = time("endAt", &campaign.end_at)?;
    match (start, end) {
        (Some(start), Some(end)) if end <= start => {
            Err(bad_metadata("`endAt` is not after `startAt`"))
        }
        _ => Ok(()),
    }
}

fn check_ad(ad: &Ad) -> Result<(), Problem> {
    check_text("campaignId", ad.campaign_id.as_deref(), ID_BYTES_MAX)?;
    check_text("creativeId", ad.creative_id.as_deref(), ID_BYTES_MAX)?;
    if ad.price_micros.is_some_and(|price| !(0..=PRICE_MICROS_MAX).contains(&price)) {
        return Err(bad_metadata(format!("`priceMicros` is not from 0 to {PRICE_MICROS_MAX}")));
    }
    let Some(url) = &ad.landing_url else { return Ok(()) };
    check_text("landingUrl", Some(url), URL_BYTES_MAX)?;
    let target: axum::http::Uri = url.parse().map_err(|error| {
        bad_metadata(format!("`landingUrl` is \"{}\": {error}", shown(url.as_bytes())))
    })?;
    let web = matches!(target.scheme_str(), Some("http" | "https"));
    if !web || target.host().is_none_or(str::is_empty) || HeaderValue::from_str(url).is_err() {
        return Err(bad_metadata(format!(
            "`landingUrl` is \"{}\"; it must be an http or https address",
            shown(url.as_bytes())
        )));
    }
    Ok(())
}
