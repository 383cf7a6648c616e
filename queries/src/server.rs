//! The routes, and who may use them.

use crate::{
    Limits, Runtime, dashboard, gate::Gate, ops, problems::of_read, reports, subscribe, views,
};
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, Uri, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};
use trueup_operators::{
    access::{Access, Action},
    problem::Problem,
};
use trueup_sinks::{ReadError, Tables};

/// Everything that queries need.
pub struct Queries {
    pub(crate) tables: Arc<dyn Tables>,
    pub(crate) access: Arc<Access>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) limits: Limits,
    pub(crate) gate: Gate,
    pub(crate) subscribers: Arc<Semaphore>,
    /// How many subscriptions may be brought further at the same time. They take turns, so that a
    /// thousand of them do not take all threads that may block; the collector needs some too.
    pub(crate) turns: Arc<Semaphore>,
    pub(crate) closing: watch::Sender<bool>,
}

impl std::fmt::Debug for Queries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queries {{ limits: {:?} }}", self.limits)
    }
}

impl Queries {
    /// Queries on these tables.
    pub fn new(
        tables: Arc<dyn Tables>,
        access: Arc<Access>,
        runtime: Arc<dyn Runtime>,
        limits: Limits,
    ) -> Arc<Queries> {
        Arc::new(Queries {
            gate: Gate::new(&limits, &access),
            subscribers: Arc::new(Semaphore::new(limits.subscribers_max)),
            turns: Arc::new(Semaphore::new(turns())),
            closing: watch::Sender::new(false),
            tables,
            access,
            runtime,
            limits,
        })
    }

    /// Ends all subscriptions, each with a reason, so that the server can stop.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Why the views did not answer. After a restart they come back epoch by epoch, so an epoch
    /// that is not there yet may be one that a reader had before: he is told to wait, not to begin
    /// anew. The runtime may read files, so this is for threads that may block.
    pub(crate) fn of_read(&self, error: ReadError) -> Problem {
        let ReadError::Ahead { epoch, .. } = error else { return of_read(error) };
        let ahead = of_read(error);
        let has_come = self.tables.visible().is_some_and(|at| at.epoch >= epoch);
        match self.runtime.ready() {
            Err(wait) => Problem { retry_after_s: wait.retry_after_s.or(Some(1)), ..wait },
            // It came after the views had said that it had not.
            Ok(()) if has_come => of_read(ReadError::NotReady),
            Ok(()) => ahead,
        }
    }

    /// Checks the `Authorization` header; the number of its token.
    pub(crate) fn check(&self, headers: &HeaderMap, action: Action) -> Result<usize, Problem> {
        let sent = headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
        self.access.check(sent, action).map(|who| who.index)
    }

    /// The same, or else `?token=`: browsers cannot send headers with an `EventSource` or a
    /// WebSocket.
    pub(crate) fn check_or_token(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        action: Action,
    ) -> Result<(), Problem> {
        if headers.contains_key(header::AUTHORIZATION) {
            return self.check(headers, action).map(drop);
        }
        type Pairs = Vec<(String, String)>;
        let pairs = axum::extract::Query::<Pairs>::try_from_uri(uri).map(|q| q.0);
        let token = pairs.unwrap_or_default().into_iter().find(|(name, _)| name == "token");
        let sent = token.map(|(_, token)| format!("Bearer {token}"));
        self.access.check(sent.as_deref(), action).map(|_| ())
    }
}

/// More than there are cores would only be in each other's way.
fn turns() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

/// The routes of reports, views, subscriptions, status and the live page. It has no fallback, so
/// that it can be merged with the collector's; [`crate::unknown_route`] and
/// [`crate::unknown_method`] are there for the whole.
pub fn router(state: Arc<Queries>) -> Router {
    let of_views = Router::new()
        .route("/v1/reports/campaigns/{campaign_id}", get(reports::campaign))
        .route("/api/v1/analytics", get(reports::analytics))
        .route("/v1/reports/totals", get(reports::totals))
        .route("/v1/reports/top", get(reports::top))
        .route("/v1/views", get(views::list))
        .route("/v1/views/{name}", get(views::rows))
        .route("/v1/views/{name}/subscribe", get(subscribe::subscribe))
        .route("/v1/quarantine", get(views::quarantine))
        .route("/v1/events/{event_id}", get(ops::event))
        .route_layer(from_fn_with_state(Arc::clone(&state), while_shown));
    Router::new()
        .route("/v1/status", get(ops::status))
        .route("/v1/replays", post(ops::take_up_replay))
        .route("/healthz", get(ops::healthz))
        .route("/readyz", get(ops::readyz))
        .route("/metrics", get(ops::metrics))
        .route("/openapi.json", get(ops::openapi))
        .route("/", get(dashboard::page))
        .route("/dashboard/{file}", get(dashboard::asset))
        .merge(of_views)
        .with_state(state)
}

/// Lets nobody see the views while a start goes through what was shown before: each answer would be
/// right for its epoch, and older than one that somebody has.
async fn while_shown(
    State(queries): State<Arc<Queries>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    queries.runtime.shows()?;
    Ok(next.run(request).await)
}

/// A JSON answer that no cache keeps.
pub(crate) fn json(body: String) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, body).into_response()
}
