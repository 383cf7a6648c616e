//! A change of metadata, from a request to its place in the log.
//!
//! On a log of our own one change is made at a time: its condition (`If-Match`, `If-None-Match`) is
//! decided, it is appended, and applied when it is durable.
//!
//! On a log that other processes append to, the order of the log decides. The topic is read to its
//! end, as it is at this moment, and the condition is decided on that, so that who is late is told
//! without a trace in the log. Then the change is appended together with its condition, and read
//! back: what came before it is known to every reader, each of them decides the condition alike,
//! and the answer is what became of it there. Of two changes of one version that are sent in the
//! same instant, to whichever processes, the first in the log is made and the other is answered
//! 412.
//! (`If-Match` with a list stands for the version that it named when it was decided.)
//!
//! While the log is away the collector's spool takes appends, and their place in the log is not
//! known before it is back:
//!
//! * a change with a condition is refused with 503 `metadata_behind`, and nothing is taken;
//! * one without is answered 202 without an `ETag`: it is durable, and becomes visible, in this
//!   process as in all others, when the log is back. Until then all answer from what they know;
//! * when the log goes away between the decision and the append, the answer to a change with a
//!   condition is 503 `change_undecided`: it will be made or not, by the rule above. Sending it
//!   again is safe: if it was made, its version has moved on, and the answer is 412.
//!
//! What remains possible on a shared log: a frame that the log gets twice, because it had it and
//! did not say so, counts at its last place if it has no condition, so it may undo a change that
//! came between the two; and processes that each make a new entry in the same instant may go above
//! `metadata_entries_max` by as many. All processes end with the same entries in either case. The
//! topic must be kept whole: a change whose condition speaks of a deleted frame would not be made.

use crate::{
    append::append,
    collector::Inner,
    fault::shown,
    following::{LOOK_MS, read_on, read_to_end},
    metadata::{Entry, Kind, Metadata, OnlyIf, Outcome, Record},
    metadata_routes::{etag, not_found, shown_entry},
};
use arrow_buffer::Buffer;
use axum::{
    Json,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use trueup_operators::{
    event::SCHEMA_VERSION,
    log::{Append, Topic},
    problem::Problem,
};

/// The longest that a change is waited for, from when it was taken to when it can be read.
const SEEN_MS_MAX: u64 = 3_000;

/// What is wanted with `If-None-Match`.
const NONE: &str = "that there is none (`If-None-Match`)";

/// What is wanted of an entry.
pub(crate) struct Change {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    /// `None`: that it is gone.
    pub(crate) value: Option<Value>,
}

/// Makes a change and answers what became of it.
pub(crate) async fn change(
    inner: Arc<Inner>,
    change: Change,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let metadata = Arc::clone(&inner.metadata);
    let Change { kind, id, value } = change;
    let (is_known, _writer) = match metadata.is_shared {
        true => (read_to_end(&inner).await, None),
        false => (true, Some(metadata.writer.lock().await)),
    };
    if !is_known && is_conditional(&headers) {
        return Err(behind());
    }
    let before = metadata.get(kind, &id);
    let only_if = condition(&headers, kind, &id, before.as_ref())?;
    if value.is_none() && before.is_none() {
        return Err(not_found(kind, &id));
    }
    if before.is_none() && !metadata.has_room() {
        return Err(full(inner.settings.metadata_entries_max));
    }
    let watch = Watch::begin(&metadata)?;
    let record = Record {
        kind,
        id: id.clone(),
        value,
        only_if: only_if.filter(|_| metadata.is_shared),
        change: metadata.is_shared.then_some(watch.change),
    };
    let made = make(&inner, &record, &watch, is_known).await?;
    answer(&record, only_if, made)
}

/// Appends a change; what became of it, if that is known in time.
async fn make(
    inner: &Arc<Inner>,
    record: &Record,
    watch: &Watch<'_>,
    is_known: bool,
) -> Result<Option<Outcome>, Problem> {
    let payload = serde_json::to_vec(&[record]).map_err(|e| crate::collect::mistake(&e))?;
    let frame = Append {
        topic: Topic::Metadata,
        partition: 0,
        schema_version: SCHEMA_VERSION,
        records: 1,
        payload: Buffer::from_vec(payload),
    };
    let appended = append(&inner.log, vec![frame]).await?;
    let Some(at) = appended.first() else {
        return Err(crate::collect::mistake(&"the log appended a frame and gave no offset"));
    };
    if !inner.metadata.is_shared {
        return Ok(Some(inner.metadata.apply(record.clone(), at.offset + 1)));
    }
    let wait_ms = if is_known { SEEN_MS_MAX } else { 0 };
    let deadline = Instant::now() + Duration::from_millis(wait_ms);
    while Instant::now() < deadline {
        let is_read = read_on(inner, deadline).await;
        if is_read && let Some(outcome) = watch.outcome() {
            return Ok(Some(outcome));
        }
        tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
    }
    Ok(watch.outcome())
}

fn answer(
    record: &Record,
    only_if: Option<OnlyIf>,
    made: Option<Outcome>,
) -> Result<Response, Problem> {
    let Record { kind, id, .. } = record;
    let Some(Outcome { before, is_made, after }) = made else {
        return match only_if {
            Some(_) => Err(undecided()),
            None => Ok((StatusCode::ACCEPTED, Json(json!({ "pending": true }))).into_response()),
        };
    };
    if !is_made {
        let wanted = match only_if {
            Some(OnlyIf::Version(version)) => etag(version),
            Some(OnlyIf::Present) => "*".into(),
            Some(OnlyIf::Absent) | None => NONE.into(),
        };
        return Err(mismatch(*kind, id, before.as_ref(), &wanted));
    }
    match (before, after) {
        (None, None) => Err(not_found(*kind, id)),
        (Some(_), None) => Ok(StatusCode::NO_CONTENT.into_response()),
        (None, Some(entry)) => Ok(shown_entry(*kind, id, &entry, StatusCode::CREATED)),
        (Some(_), Some(entry)) => Ok(shown_entry(*kind, id, &entry, StatusCode::OK)),
    }
}

/// A change that is waited for.
struct Watch<'m> {
    metadata: &'m Metadata,
    change: u64,
}

impl Watch<'_> {
    fn begin(metadata: &Metadata) -> Result<Watch<'_>, Problem> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| crate::collect::mistake(&error))?;
        let change = u64::from_le_bytes(random);
        metadata.watched.lock().insert(change, None);
        Ok(Watch { metadata, change })
    }

    fn outcome(&self) -> Option<Outcome> {
        self.metadata.watched.lock().get(&self.change).cloned().flatten()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.metadata.watched.lock().remove(&self.change);
    }
}

fn is_conditional(headers: &HeaderMap) -> bool {
    headers.contains_key(header::IF_MATCH) || headers.contains_key(header::IF_NONE_MATCH)
}

/// Decides the condition of a request, and says which it is.
fn condition(
    headers: &HeaderMap,
    kind: Kind,
    id: &str,
    before: Option<&Entry>,
) -> Result<Option<OnlyIf>, Problem> {
    let mut only_if = None;
    if let Some(wanted) = headers.get(header::IF_MATCH) {
        let wanted = wanted.to_str().unwrap_or_default();
        let mut tags = wanted.split(',').map(str::trim);
        only_if = before.and_then(|entry| {
            let have = etag(entry.version);
            match tags.clone().any(|tag| tag == "*") {
                true => Some(OnlyIf::Present),
                false => tags.any(|tag| tag == have).then_some(OnlyIf::Version(entry.version)),
            }
        });
        if only_if.is_none() {
            return Err(mismatch(kind, id, before, wanted));
        }
    }
    if headers.contains_key(header::IF_NONE_MATCH) {
        if before.is_some() {
            return Err(mismatch(kind, id, before, NONE));
        }
        only_if = Some(OnlyIf::Absent);
    }
    Ok(only_if)
}

fn mismatch(kind: Kind, id: &str, before: Option<&Entry>, wanted: &str) -> Problem {
    let have = before.map(|entry| etag(entry.version));
    let have = have.as_deref().unwrap_or("none, it does not exist");
    let id = shown(id.as_bytes());
    Problem::new(
        412,
        "version_mismatch",
        "the entry is not as the request expects",
        format!("{} `{id}` has version {have}, the request wants {wanted}", kind.id_name()),
        "read it again, make the change on what is there now, and send its `ETag`",
    )
}

fn full(entries_max: usize) -> Problem {
    Problem::new(
        413,
        "metadata_full",
        "there are too many campaigns, ads and publishers",
        format!("the limit of {entries_max} entries is reached"),
        "delete what is not used, or raise `[limits] metadata_entries_max`",
    )
}

fn behind() -> Problem {
    Problem::new(
        503,
        "metadata_behind",
        "the condition cannot be decided now",
        "the log does not say how far it is, so others may have changed the entry",
        "nothing was taken; send it again later, or without `If-Match` and `If-None-Match`",
    )
    .retry_after(5)
}

fn undecided() -> Problem {
    Problem::new(
        503,
        "change_undecided",
        "the change was taken, and whether it is made is not known yet",
        "the log went away with it; when it is back the change is made if its condition holds then",
        "send it again later: if it was made, the answer is 412 and `GET` shows it",
    )
    .retry_after(5)
}
