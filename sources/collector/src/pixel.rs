//! `GET /click`, `/i` and `/conversion`: events that come one at a time from browsers.
//!
//! Each is appended durably before it is answered, together with others (`pixel_group`).
//!
//! Nothing that a query says decides where `/click` leads or what an event costs: landing page,
//! campaign and price come from the ad's metadata. A parameter that is not one of ours, or that
//! breaks the rule of its field, is kept under `query` in the event's `extra`; it never spoils the
//! event. Only what could say who somebody is, `user_id` and `ip` in any spelling, is kept as a
//! keyed hash or not at all: a second `user_id`, or one that breaks its rule, is dropped. What the
//! collector itself knows (the time when `ts` is missing, IP, user agent, referrer) is not part of
//! the payload hash, so a retry with the same `event_id` is a duplicate. Without `event_id` every
//! request is an event of its own.
//!
//! Anybody can send a pixel, so its `event_id` is one of a namespace of its own: `event_id=order-1`
//! becomes the event `px:order-1` (that is how it is looked up and judged), and cannot take the id
//! `order-1` away from the sender whose token says who it is.
//!
//! A collector that takes no batches (it is draining, the dataflow is behind, its state is full)
//! takes no clicks and pixels either: like those that the log cannot take they are answered 503
//! with a `Retry-After`, because a redirect or a GIF says that the event is durable. None of them
//! goes without a trace: [`Metric::PixelsRefused`] counts them by the code of their answer.
//!
//! Robots, prefetching browsers and IPs above their limit get the answer that anybody gets; their
//! events are kept with the reason why they are invalid. `HEAD` asks what `GET` would answer and is
//! no event.

use crate::{
    bots,
    client::{client_ip, network},
    collect::{mistake, ulid},
    collector::{Collector, Inner, header_text},
    consent::{write_string, write_value},
    decode::Single,
    fault::{FREE_PARAMETERS_MAX, shown},
    fields::{
        EVENT_ID_BYTES_MAX, FIELDS, FREE_TEXT_BYTES_MAX, Field, FieldSet, ID_BYTES_MAX, Rule,
        is_private,
    },
    metadata::Ad,
    names::Metric,
    scan::Value,
};
use axum::{
    body::Body,
    extract::{Query, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use std::{net::IpAddr, sync::Arc};
use trueup_operators::{
    event::{EventType, OCCURRED_US},
    hash::Domain,
    money::PriceBasis,
    problem::Problem,
    symbols::OTHER_TEXT,
    time::format_rfc3339,
};

/// The campaign of a pixel whose ad has no metadata and whose query names none. The event is kept
/// and counted; a row of this campaign says that metadata is missing.
pub(crate) const UNKNOWN_CAMPAIGN: &str = "(unknown)";

/// What the ids begin with that pixels bring along.
pub(crate) const ID_PREFIX: &str = "px:";

/// A transparent GIF of one pixel.
pub(crate) const GIF: [u8; 43] = *b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff\
    !\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";

/// Parameters and the fields that they fill.
const PARAMETERS: [(&str, Field); 19] = [
    ("creative", Field::CreativeId),
    ("user_id", Field::UserId),
    ("session", Field::SessionId),
    ("device", Field::DeviceType),
    ("publisher", Field::PublisherId),
    ("placement", Field::PlacementId),
    ("imp", Field::ImpressionId),
    ("auction", Field::AuctionId),
    ("click_id", Field::ClickId),
    ("country", Field::Country),
    ("region", Field::Region),
    ("value_micros", Field::ValueMicros),
    ("gdpr", Field::Gdpr),
    ("gdpr_consent", Field::TcString),
    ("gpp", Field::Gpp),
    ("gpp_sid", Field::GppSid),
    ("us_privacy", Field::UsPrivacy),
    ("coppa", Field::Coppa),
    ("lmt", Field::Lmt),
];

/// `GET /click`
pub(crate) async fn click(State(collector): State<Collector>, request: Request) -> Response {
    let inner = collector.0;
    // A body would be against the meaning of GET; it is not read.
    let (request, _) = request.into_parts();
    answer(serve_click(&inner, &request).await)
}

/// `GET /i`
pub(crate) async fn impression(State(collector): State<Collector>, request: Request) -> Response {
    let inner = collector.0;
    // A body would be against the meaning of GET; it is not read.
    let (request, _) = request.into_parts();
    answer(serve_pixel(&inner, &request, EventType::Impression).await)
}

/// `GET /conversion`
pub(crate) async fn conversion(State(collector): State<Collector>, request: Request) -> Response {
    let inner = collector.0;
    // A body would be against the meaning of GET; it is not read.
    let (request, _) = request.into_parts();
    answer(serve_pixel(&inner, &request, EventType::Conversion).await)
}

fn answer(result: Result<Response, Problem>) -> Response {
    let mut response = result.unwrap_or_else(IntoResponse::into_response);
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    response
}

async fn serve_click(inner: &Arc<Inner>, request: &Parts) -> Result<Response, Problem> {
    let query = parameters(inner, request)?;
    let ad_id = find(&query, "ad_id").unwrap_or_default();
    let ad = inner.metadata.ad(ad_id);
    let Some((ad, url)) = ad.and_then(|ad| ad.landing_url.clone().map(|url| (ad, url))) else {
        return Err(Problem::new(
            404,
            "unknown_ad",
            "there is no such ad",
            format!("there is no ad `{}` with a landing page", shown(ad_id.as_bytes())),
            "put the ad's landingUrl with PUT /v1/ads/{id}",
        ));
    };
    let location = HeaderValue::from_str(&url).map_err(|error| mistake(&error))?;
    take(inner, request, &query, EventType::Click, Some(&ad)).await?;
    let mut response = StatusCode::FOUND.into_response();
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

async fn serve_pixel(
    inner: &Arc<Inner>,
    request: &Parts,
    kind: EventType,
) -> Result<Response, Problem> {
    let query = parameters(inner, request)?;
    match find(&query, "ad_id") {
        Some(ad_id) if (1..=ID_BYTES_MAX).contains(&ad_id.len()) => {
            let ad = inner.metadata.ad(ad_id);
            take(inner, request, &query, kind, ad.as_ref()).await?;
        }
        _ => {
            return Err(Problem::new(
                400,
                "missing_parameter",
                "a parameter is missing",
                format!("`ad_id` is missing or longer than {ID_BYTES_MAX} bytes"),
                "send ad_id in the query",
            ));
        }
    }
    let mut response = Response::new(Body::from(&GIF[..]));
    let gif = HeaderValue::from_static("image/gif");
    response.headers_mut().insert(header::CONTENT_TYPE, gif);
    Ok(response)
}

type Parameters = Vec<(String, String)>;

fn parameters(inner: &Inner, request: &Parts) -> Result<Parameters, Problem> {
    let bytes_max = inner.settings.query_bytes_max;
    let bytes = request.uri.query().map_or(0, str::len);
    if bytes > bytes_max {
        return Err(Problem::new(
            414,
            "query_too_long",
            "the query is too long",
            format!("the query has {bytes} bytes, the limit is {bytes_max}"),
            "send fewer or shorter parameters",
        ));
    }
    let Query(query) = Query::<Parameters>::try_from_uri(&request.uri).map_err(|error| {
        let hint = "send name=value pairs, percent-encoded";
        Problem::new(400, "bad_query", "the query cannot be read", error.to_string(), hint)
    })?;
    if query.len() > FREE_PARAMETERS_MAX {
        return Err(Problem::new(
            400,
            "too_many_parameters",
            "the query has too many parameters",
            format!("the query has {} parameters, the limit is {FREE_PARAMETERS_MAX}", query.len()),
            "send fewer parameters",
        ));
    }
    Ok(query)
}

/// The first parameter of a name.
fn find<'q>(query: &'q Parameters, name: &str) -> Option<&'q str> {
    query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

/// The event of a request, as JSON, and which of its fields the collector filled in by itself.
struct Draft {
    json: Vec<u8>,
    present: FieldSet,
    stamped: FieldSet,
}

impl Draft {
    fn put(&mut self, field: Field, value: &Value<'_>) {
        self.json.push(if self.json.is_empty() { b'{' } else { b',' });
        write_string(field.name().as_bytes(), &mut self.json);
        self.json.push(b':');
        write_value(value, &mut self.json);
        self.present |= field.bit();
    }

    fn text(&mut self, field: Field, text: &str) {
        self.put(field, &Value::Text(text.as_bytes()));
    }

    /// Fills in what the sender did not say, unless no event may say it.
    fn stamp(&mut self, field: Field, text: &str) {
        if text != OTHER_TEXT {
            self.stamped |= field.bit();
            self.text(field, text);
        }
    }
}

/// Takes the event of a request, and counts it if it cannot be taken.
async fn take(
    inner: &Arc<Inner>,
    request: &Parts,
    query: &Parameters,
    kind: EventType,
    ad: Option<&Ad>,
) -> Result<(), Problem> {
    if request.method == Method::HEAD {
        return Ok(());
    }
    let result = match inner.pressure.check() {
        Ok(()) => record(inner, request, query, kind, ad).await,
        // A browser is not the one that sends too much: to it the server is busy.
        Err(problem) => Err(Problem { status: 503, ..problem }),
    };
    result.inspect_err(|problem| Metric::PixelsRefused.add_by("reason", problem.code, 1))
}

async fn record(
    inner: &Arc<Inner>,
    request: &Parts,
    query: &Parameters,
    kind: EventType,
    ad: Option<&Ad>,
) -> Result<(), Problem> {
    let now_us = inner.now_us();
    let headers = &request.headers;
    let ip = client_ip(request, inner.settings.trusted_proxies);
    let mut draft = Draft { json: Vec::with_capacity(512), present: 0, stamped: 0 };
    let mut used = vec![false; query.len()];
    fill(&mut draft, query, &mut used);
    draft_required(inner, &mut draft, query, &mut used, kind, ad, now_us)?;
    let user_agent = header_text(headers, "user-agent").unwrap_or_default();
    stamp_sender(&mut draft, headers, user_agent, ip);
    let invalid_reason = invalid_reason(inner, kind, headers, ip, now_us);
    finish(&mut draft, query, &used, invalid_reason);
    if let Some(reason) = invalid_reason {
        Metric::PixelsInvalid.add_by("reason", reason, 1);
    }
    inner
        .pixels
        .append(inner, Single { json: draft.json, invalid_reason, stamped: draft.stamped })
        .await
}

/// The fields that parameters fill by themselves.
fn fill(draft: &mut Draft, query: &Parameters, used: &mut [bool]) {
    for (at, (name, text)) in query.iter().enumerate() {
        let Some(&(_, field)) = PARAMETERS.iter().find(|p| p.0 == name) else { continue };
        if draft.present & field.bit() == 0
            && let Some(value) = passing(field, text)
        {
            draft.put(field, &value);
            used[at] = true;
        }
    }
    let geo = query.iter().position(|(name, _)| name == "geo");
    if let Some(at) = geo
        && draft.present & (Field::Country.bit() | Field::Region.bit()) == 0
    {
        let text = query[at].1.as_str();
        let (country, region) = match text.split_once('-') {
            Some((country, _)) => (country, Some(text)),
            None => (text, None),
        };
        if let Some(value) = passing(Field::Country, country) {
            draft.put(Field::Country, &value);
            used[at] = true;
            if let Some(value) = region.and_then(|region| passing(Field::Region, region)) {
                draft.put(Field::Region, &value);
            }
        }
    }
}

/// A parameter as the field's value, if it passes the field's rule.
fn passing(field: Field, text: &str) -> Option<Value<'_>> {
    let fits = |bytes_max| (1..=bytes_max).contains(&text.len());
    match FIELDS[field as usize].rule {
        Rule::Integer(min, max) => {
            let value: i64 = text.parse().ok()?;
            (min..=max).contains(&value).then_some(Value::Integer(value))
        }
        Rule::Text(_) if field == Field::Country => {
            matches!(text.as_bytes(), [b'A'..=b'Z', b'A'..=b'Z'])
                .then_some(Value::Text(text.as_bytes()))
        }
        Rule::Text(bytes_max) => {
            (fits(bytes_max) && text != OTHER_TEXT).then_some(Value::Text(text.as_bytes()))
        }
        Rule::Consent(bytes_max) => fits(bytes_max).then_some(Value::Text(text.as_bytes())),
        Rule::Time => None,
    }
}

/// The fields that every event must have, and what the ad's metadata says.
fn draft_required(
    inner: &Inner,
    draft: &mut Draft,
    query: &Parameters,
    used: &mut [bool],
    kind: EventType,
    ad: Option<&Ad>,
    now_us: i64,
) -> Result<(), Problem> {
    draft.text(Field::EventId, &event_id(query, used, now_us)?);
    let mut take = |name: &str| {
        let at = query.iter().position(|(n, _)| n == name)?;
        used[at] = true;
        Some(query[at].1.as_str())
    };
    draft.text(Field::EventType, kind.name());
    draft.text(Field::AdId, take("ad_id").unwrap_or_default());
    let said = find(query, "campaign_id").filter(|id| passing(Field::CampaignId, id).is_some());
    let known = ad.and_then(|ad| ad.campaign_id.as_deref()).filter(|id| *id != OTHER_TEXT);
    if said.is_some() && (known.is_none() || known == said) {
        take("campaign_id");
    }
    let campaign = known.or(said).unwrap_or_else(|| {
        Metric::PixelsUnknownCampaign.add(1);
        UNKNOWN_CAMPAIGN
    });
    draft.text(Field::CampaignId, campaign);
    match find(query, "ts").and_then(|ts| time_us(ts, now_us + inner.settings.future_skew_us_max)) {
        Some(us) => {
            take("ts");
            draft.text(Field::OccurredAt, &format_rfc3339(us));
        }
        None => draft.stamp(Field::OccurredAt, &format_rfc3339(now_us)),
    }
    let source = if kind == EventType::Click { "redirect" } else { "pixel" };
    draft.text(Field::Source, source);
    if let Some(creative) = ad.and_then(|ad| ad.creative_id.as_deref())
        && draft.present & Field::CreativeId.bit() == 0
    {
        draft.stamp(Field::CreativeId, creative);
    }
    if let Some(price) = ad.and_then(|ad| ad.price_micros) {
        draft.stamped |= Field::PriceMicros.bit() | Field::PriceBasis.bit();
        draft.put(Field::PriceMicros, &Value::Integer(price));
        draft.text(Field::PriceBasis, basis_name(ad.and_then(|ad| ad.price_basis)));
    }
    Ok(())
}

/// The id that the query brings along, in the namespace of such ids, or a new one.
fn event_id(query: &Parameters, used: &mut [bool], now_us: i64) -> Result<String, Problem> {
    let fits = 1..=EVENT_ID_BYTES_MAX - ID_PREFIX.len();
    let said = query.iter().position(|(name, id)| name == "event_id" && fits.contains(&id.len()));
    match said {
        Some(at) => {
            used[at] = true;
            Ok(format!("{ID_PREFIX}{}", query[at].1))
        }
        None => Ok(format!("px_{}", ulid(now_us)?)),
    }
}

const fn basis_name(basis: Option<PriceBasis>) -> &'static str {
    match basis {
        None | Some(PriceBasis::Cpc) => "cpc",
        Some(PriceBasis::Cpm) => "cpm",
        Some(PriceBasis::Cpa) => "cpa",
    }
}

/// `ts`: seconds or milliseconds since 1970, or RFC 3339; `None` if it can be no event's time.
fn time_us(text: &str, latest_us: i64) -> Option<i64> {
    let us = match text.parse::<i64>() {
        // Seconds reach 10¹¹ in the year 5138; milliseconds passed it in 1973.
        Ok(seconds) if seconds < 100_000_000_000 => seconds.checked_mul(1_000_000)?,
        Ok(milliseconds) => milliseconds.checked_mul(1000)?,
        Err(_) => trueup_operators::time::parse_rfc3339(text)?,
    };
    (OCCURRED_US.contains(&us) && us <= latest_us).then_some(us)
}

/// What the request itself says about who sent it.
fn stamp_sender(draft: &mut Draft, headers: &HeaderMap, user_agent: &str, ip: Option<IpAddr>) {
    let start = |text: &'_ str| {
        let mut end = text.len().min(FREE_TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text[..end].to_owned()
    };
    if !user_agent.is_empty() {
        draft.stamp(Field::UserAgent, &start(user_agent));
    }
    if let Some(referrer) = header_text(headers, "referer").filter(|text| !text.is_empty()) {
        draft.stamp(Field::Referrer, &start(referrer));
    }
    if let Some(ip) = ip {
        draft.stamp(Field::Ip, &ip.to_string());
    }
    if header_text(headers, "sec-gpc") == Some("1") {
        draft.stamped |= Field::Gpc.bit();
        draft.put(Field::Gpc, &Value::Integer(1));
    }
}

/// Why the collector takes a click as invalid.
pub(crate) const KNOWN_BOT: &str = "known_bot";
pub(crate) const PREFETCH: &str = "prefetch";
pub(crate) const IP_CLICK_RATE: &str = "ip_click_rate";

fn invalid_reason(
    inner: &Inner,
    kind: EventType,
    headers: &HeaderMap,
    ip: Option<IpAddr>,
    now_us: i64,
) -> Option<&'static str> {
    // A robot's clicks count towards its IP's limit as well.
    let hash = ip.map(|ip| inner.key.hash(Domain::Ip, network(ip).to_string().as_bytes()));
    let over = kind == EventType::Click && hash.is_some_and(|ip| !inner.clicks.admit(ip, now_us));
    let prefetch = ["sec-purpose", "purpose", "x-moz"]
        .into_iter()
        .filter_map(|name| header_text(headers, name))
        .any(|purpose| purpose.contains("prefetch") || purpose.contains("prerender"));
    if header_text(headers, "user-agent").is_some_and(bots::is_known) {
        Some(KNOWN_BOT)
    } else if prefetch {
        Some(PREFETCH)
    } else if over {
        Some(IP_CLICK_RATE)
    } else {
        None
    }
}

/// Parameters that no field took, and the version of the robots' list, if it had a say.
fn finish(draft: &mut Draft, query: &Parameters, used: &[bool], reason: Option<&'static str>) {
    let json = &mut draft.json;
    let mut names: Vec<&str> = Vec::new();
    for (at, (name, value)) in query.iter().enumerate() {
        if used[at] || is_private(name.as_bytes()) {
            continue;
        }
        json.extend_from_slice(if names.is_empty() { b",\"query\":{" } else { b"," });
        // Members of one name are not JSON that everybody reads alike.
        let copies = names.iter().filter(|n| **n == name).count();
        names.push(name);
        match copies {
            0 => write_string(name.as_bytes(), json),
            copies => write_string(format!("{name}#{}", copies + 1).as_bytes(), json),
        }
        json.push(b':');
        write_string(value.as_bytes(), json);
    }
    if !names.is_empty() {
        json.push(b'}');
    }
    if reason == Some(KNOWN_BOT) {
        json.extend_from_slice(b",\"botListVersion\":");
        write_string(bots::LIST_VERSION.as_bytes(), json);
    }
    json.push(b'}');
}
