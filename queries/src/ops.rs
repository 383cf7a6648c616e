//! What operators and machines ask: whether the server lives and is ready, its status and metrics,
//! the life of one event, and the description of all routes.

use crate::{
    params::{Name, Params},
    server::{Queries, json},
};
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use std::sync::Arc;
use trueup_operators::{access::Action, problem::Problem};

type State_ = State<Arc<Queries>>;
type Answer = Result<Response, Problem>;

/// The longest event id that the collector takes.
const EVENT_ID_BYTES_MAX: usize = 128;

/// `GET /healthz`: the process lives. Asks nobody, so it says so even when everything waits.
pub(crate) async fn healthz() -> Response {
    ([(header::CACHE_CONTROL, "no-store")], "ok\n").into_response()
}

/// `GET /readyz`: caught up and serving.
pub(crate) async fn readyz(State(queries): State_) -> Answer {
    if *queries.closing.borrow() {
        return Err(Problem::new(
            503,
            "closing",
            "the server is stopping",
            "the server was told to stop",
            "send requests to another one",
        ));
    }
    blocking(&queries, |q| q.runtime.ready()).await?;
    Ok(([(header::CACHE_CONTROL, "no-store")], "ready\n").into_response())
}

/// `GET /metrics`, for Prometheus.
pub(crate) async fn metrics(State(queries): State_, headers: HeaderMap) -> Answer {
    queries.check(&headers, Action::Operate)?;
    let text = blocking(&queries, |q| Ok(q.runtime.metrics_text())).await?;
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], text).into_response())
}

/// `GET /v1/status`
pub(crate) async fn status(State(queries): State_, headers: HeaderMap, uri: Uri) -> Answer {
    queries.check(&headers, Action::Operate)?;
    Params::of(&uri)?.finish()?;
    let status = blocking(&queries, |q| Ok(q.runtime.status())).await?;
    Ok(json(status.to_string()))
}

/// `POST /v1/replays`: takes up what a replay has found and offers. `/v1/status` says when it is
/// shown.
pub(crate) async fn take_up_replay(State(queries): State_, headers: HeaderMap, uri: Uri) -> Answer {
    queries.check(&headers, Action::Operate)?;
    Params::of(&uri)?.finish()?;
    blocking(&queries, |q| q.runtime.take_up_replay()).await?;
    Ok((StatusCode::ACCEPTED, json(r#"{"status":"begun"}"#.to_owned())).into_response())
}

/// Which events can be asked for.
pub(crate) const EVENTS_KNOWN: &str = "an event is known from when the views hold it, a moment \
    after its acknowledgement (`freshnessSeconds` of `/v1/status`), until the ledger forgets it, \
    some time after the correction horizon; one in quarantine, while it is among the newest there \
    and the log holds it: ask again after a moment for one that was sent just now";

/// `GET /v1/events/{eventId}`
pub(crate) async fn event(
    State(queries): State_,
    Name(id): Name,
    headers: HeaderMap,
    uri: Uri,
) -> Answer {
    let asker = queries.check(&headers, Action::Operate)?;
    Params::of(&uri)?.finish()?;
    let unknown = |detail: String| {
        Problem::new(404, "unknown_event", "no such event is known", detail, EVENTS_KNOWN)
    };
    if id.len() > EVENT_ID_BYTES_MAX {
        return Err(unknown(format!("an event id has at most {EVENT_ID_BYTES_MAX} bytes")));
    }
    let runtime = Arc::clone(&queries.runtime);
    let answer = queries.gate.answer(asker, move || {
        let life = runtime.event(&id)?;
        life.map(|life| life.to_string())
            .ok_or_else(|| unknown(format!("no event `{id}` is known")))
    });
    answer.await
}

/// `GET /openapi.json`: every route of the server, the collector's too.
pub(crate) async fn openapi() -> Response {
    let text = include_str!("../openapi.json");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Asks the runtime on a thread that may block. Not through the gate: an operator must get in
/// when analysts have filled it.
async fn blocking<T: Send + 'static>(
    queries: &Arc<Queries>,
    ask: impl FnOnce(&Queries) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let queries = Arc::clone(queries);
    let asked = tokio::task::spawn_blocking(move || ask(&queries)).await;
    asked.unwrap_or_else(|panic| {
        tracing::error!(%panic, "the runtime panicked");
        Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
            "internal",
            "the question failed",
            "the server could not say",
            "this is a bug: report it",
        ))
    })
}
