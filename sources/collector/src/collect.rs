//! `POST /v1/events/collect`. The limits come in the order that costs least: token, headers,
//! whether a place among the requests in flight is free, how far the dataflow is behind, the
//! token's rate, then the body. The place is taken when the body is whole: a sender that pauses
//! keeps nobody else from being served.
//!
//! From the moment when a body is whole it is worked on to the end even if the sender goes away:
//! its key then has its answer when the sender comes back. 202 is said only after the log has said
//! that every frame is durable; any other answer may leave events in the log that are not
//! acknowledged, and sending them again makes duplicates, which count once.

use crate::{
    append::append,
    body::Whole,
    collector::{Collector, Desk, Inner, Sender, content_length, header_text},
    decode::{Decoded, Format, Rules},
    fault::EventError,
    idempotency::{Claim, Guard, KEY_BYTES_MAX},
    inflate::Encoding,
    names::Metric,
};
use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;
use std::{sync::Arc, time::Instant};
use tokio::sync::OwnedSemaphorePermit;
use trueup_operators::{
    access::Action,
    hash::{mix, stable},
    problem::Problem,
};

/// Decoders that have grown larger are not kept.
pub(crate) const DESK_KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The answer to a batch of events or verdicts.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer<'a> {
    pub(crate) accepted: usize,
    pub(crate) rejected: usize,
    pub(crate) ingest_batch_id: String,
    pub(crate) errors: &'a [EventError],
}

impl Answer<'_> {
    pub(crate) fn write(&self) -> Bytes {
        serde_json::to_vec(self).expect("text and numbers can always be written").into()
    }
}

/// How a body is written and packed.
#[derive(Clone, Copy)]
struct Form {
    format: Format,
    encoding: Encoding,
}

/// The route.
pub(crate) async fn collect(State(collector): State<Collector>, request: Request) -> Response {
    match accept(collector.0, request).await {
        Ok(answer) => accepted(answer),
        Err(problem) => problem.into_response(),
    }
}

/// 202 with an answer.
pub(crate) fn accepted(answer: Bytes) -> Response {
    let mut response = Response::new(Body::from(answer));
    *response.status_mut() = StatusCode::ACCEPTED;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

async fn accept(inner: Arc<Inner>, request: Request) -> Result<Bytes, Problem> {
    let (parts, body) = request.into_parts();
    let sender = inner.sender(&parts.headers, Action::Collect)?;
    let form = form(&parts.headers)?;
    let key = idempotency_key(&parts.headers)?;
    inner.has_place()?;
    inner.pressure.check()?;
    inner.rates.admit(sender.token, inner.now_us())?;
    let declared = content_length(&parts.headers);
    let whole = inner.held.collect(sender.token, body, declared, inner.bounds()).await?;
    let place = inner.enter()?;
    Metric::BodyBytes.add(whole.len());
    let work = Work { inner, sender, form, key, whole, _place: place };
    // A task of its own: the sender may go away, the work goes on.
    match tokio::spawn(work.run()).await {
        Ok(result) => result,
        Err(error) => Err(mistake(&error)),
    }
}

/// What to say when a task of the collector has failed.
pub(crate) fn mistake(error: &dyn std::fmt::Display) -> Problem {
    tracing::error!(%error, "a task of the collector failed");
    Problem::new(
        500,
        "internal_error",
        "the collector made a mistake",
        format!("a task of the collector failed: {error}"),
        "nothing was acknowledged; send it again, and report this",
    )
}

fn form(headers: &HeaderMap) -> Result<Form, Problem> {
    let text = header_text(headers, "content-type").unwrap_or_default();
    let kind = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let format = match kind.as_str() {
        "" | "application/json" => Format::Json,
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Format::Lines,
        "application/vnd.apache.arrow.stream" => Format::Arrow,
        _ => {
            return Err(Problem::new(
                415,
                "unsupported_media_type",
                "the body's type is not supported",
                format!("`Content-Type` is `{}`", crate::fault::shown(text.as_bytes())),
                "send application/json, application/x-ndjson or \
                 application/vnd.apache.arrow.stream",
            ));
        }
    };
    let encoding = Encoding::of(header_text(headers, "content-encoding"))?;
    Ok(Form { format, encoding })
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(header) = headers.get("idempotency-key") else { return Ok(None) };
    match header.to_str() {
        Ok(key) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(Problem::new(
            400,
            "bad_idempotency_key",
            "the idempotency key cannot be used",
            format!("`Idempotency-Key` has {} bytes", header.len()),
            format!("send 1 to {KEY_BYTES_MAX} visible ASCII characters, such as a UUID"),
        )),
    }
}

/// A whole body to be worked on.
struct Work {
    inner: Arc<Inner>,
    sender: Sender,
    form: Form,
    key: Option<String>,
    whole: Whole,
    _place: OwnedSemaphorePermit,
}

/// What became of a body when it was read.
enum Read {
    /// Its key has an answer.
    Answered(Bytes),
    /// Its events, and the key that waits for the answer.
    Decoded(Decoded, Option<Guard>),
}

impl Work {
    async fn run(self) -> Result<Bytes, Problem> {
        let Work { inner, sender, form, key, whole, _place } = self;
        let token = sender.token;
        let (decoded, guard) = match read(&inner, sender, form, key, whole).await? {
            Read::Decoded(decoded, guard) => (decoded, guard),
            Read::Answered(answer) => {
                Metric::AnswersRepeated.add(1);
                return Ok(answer);
            }
        };
        let answer = take(&inner, token, decoded).await?;
        if let Some(guard) = guard {
            guard.answered(answer.clone(), inner.now_us());
        }
        Ok(answer)
    }
}

async fn take(inner: &Inner, token: usize, decoded: Decoded) -> Result<Bytes, Problem> {
    inner.rates.charge(token, inner.now_us(), decoded.accepted + decoded.rejected);
    if decoded.accepted == 0 && matches!(decoded.reasons[..], [("wrong_publisher", _)]) {
        inner.count_rejected(&decoded.reasons);
        return Err(Problem::new(
            403,
            "wrong_publisher",
            "the token may not send for these publishers",
            format!(
                "none of the {} events is of a publisher that the token is bound to; of the \
                 first, {}",
                decoded.rejected,
                decoded.errors.first().map_or("", |error| &error.message)
            ),
            "send `publisherId` with one of the token's publishers, or use another token",
        ));
    }
    let start = Instant::now();
    if !decoded.frames.is_empty() {
        append(&inner.log, decoded.frames).await?;
    }
    Metric::AppendSeconds.observe(start.elapsed());
    Metric::EventsAccepted.add(decoded.accepted);
    inner.count_rejected(&decoded.reasons);
    let answer = Answer {
        accepted: decoded.accepted,
        rejected: decoded.rejected,
        ingest_batch_id: batch_id(inner.now_us())?,
        errors: &decoded.errors,
    };
    Ok(answer.write())
}

/// Reads on a thread that may be busy; a slot is taken only now that the body is whole.
async fn read(
    inner: &Arc<Inner>,
    sender: Sender,
    form: Form,
    key: Option<String>,
    whole: Whole,
) -> Result<Read, Problem> {
    let slot = inner.decode_slots.clone().acquire_owned().await.map_err(|e| mistake(&e))?;
    let inner = inner.clone();
    let task = tokio::task::spawn_blocking(move || {
        let _slot = slot;
        let start = Instant::now();
        let mut desk = inner.desk();
        let read = read_on(&mut desk, &inner, &sender, form, key.as_deref(), &whole);
        // A desk that has seen a giant has the memory of a giant.
        if desk.decoder.kept_bytes() <= DESK_KEPT_BYTES_MAX {
            inner.desks.give(desk);
        }
        Metric::DecodeSeconds.observe(start.elapsed());
        read
    });
    task.await.map_err(|error| mistake(&error))?
}

fn read_on(
    desk: &mut Desk,
    inner: &Inner,
    sender: &Sender,
    form: Form,
    key: Option<&str>,
    whole: &[u8],
) -> Result<Read, Problem> {
    let bytes_max = inner.settings.body_decoded_bytes_max;
    let plain = match form.encoding {
        Encoding::Identity if whole.len() <= bytes_max => whole,
        encoding => desk.inflater.inflate(encoding, whole, bytes_max)?,
    };
    let mut guard = None;
    if let Some(key) = key {
        // Packing twice need not give the same bytes (gzip has a time in it).
        let body_hash = mix(stable(plain), form.format as u64);
        match inner.idempotency.claim(sender.token, key, body_hash, inner.now_us())? {
            Claim::Answered(answer) => return Ok(Read::Answered(answer)),
            Claim::New(new) => guard = Some(new),
        }
    }
    let rules = Rules {
        now_us: inner.now_us(),
        future_skew_us_max: inner.settings.future_skew_us_max,
        events_max: inner.settings.events_per_batch_max,
        publishers: &sender.publishers,
        advertiser_of: &|campaign| inner.metadata.advertiser_of(campaign),
    };
    let decoded = desk.decoder.decode(plain, form.format, &rules)?;
    Ok(Read::Decoded(decoded, guard))
}

/// A fresh `ib_…`.
pub(crate) fn batch_id(now_us: i64) -> Result<String, Problem> {
    Ok(format!("ib_{}", ulid(now_us)?))
}

/// A fresh ULID.
pub(crate) fn ulid(now_us: i64) -> Result<ulid::Ulid, Problem> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| mistake(&error))?;
    Ok(ulid::Ulid::from_parts(now_us.max(0) as u64 / 1000, u128::from_le_bytes(random)))
}
