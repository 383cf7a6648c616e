//! `GET /v1/views/{name}/subscribe`: a view as a stream, over Server-Sent Events or a WebSocket.
//!
//! ```text
//! event: snapshot   {"epoch":7,"rows":[…],"last":true}
//! event: diff       {"epoch":9,"updates":[{"row":{…},"diff":-1},{"row":{…},"diff":1}],"last":true}
//! event: progress   {"epoch":9,"logTime":"…"}
//! ```
//!
//! Rows of a list of events are where an event is, why and when, and no more: the log may have
//! deleted an event by the time that its row is taken back. What it says stands beside its row
//! when the row comes, in `events` of a snapshot and in `event` of an update.
//!
//! Adding up the snapshot and the diffs gives the view at each `progress`. A snapshot or a diff
//! that is too large for one message comes in several; `last` says where it ends. Only then does a
//! message carry the epoch as its `id`, so whoever comes back with `Last-Event-ID` gets everything
//! after an epoch that he has whole. (Parts of a diff that had not ended are sent again then; they
//! count only once their `last` part has come.)
//!
//! Between the parts of a long way a `progress` names the epoch that the reader has already, as
//! long as no part was sent; after that, and before a snapshot, a comment or a ping shows life
//! instead.
//!
//! A stream moves at its reader's pace: nothing is computed before the message before was taken, so
//! a slow reader gets ever longer steps, consolidated. One that is slower than the history, or that
//! leaves a message unread for `unread_ms_max`, is cut off, with a reason where it can be told one.

mod sse;
#[cfg(test)]
mod tests;
mod websocket;

use crate::{
    json::{Rows, Shape, view_rows},
    params::{Name, Params},
    problems::{of_read, wrong},
    runtime::Runtime,
    server::Queries,
    views,
};
use axum::{
    extract::{State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::{HeaderMap, Uri},
    response::Response,
};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, timeout},
};
use trueup_operators::{
    access::Action,
    change::Incident,
    feed::EpochTimes,
    problem::Problem,
    time::{Epoch, format_rfc3339},
};
use trueup_sinks::{Filter, Follow, ReadError, RowBlock, Start, Step, Tables, ViewKind};

/// Progress comes at least this often: the contract says once a second.
const PROGRESS: Duration = Duration::from_millis(700);
/// A reader is not brought further more often than this, so that many fast epochs come as one.
const STEP_MS_MIN: u64 = 20;
/// Messages between the stream and the connection.
const MESSAGES_MAX: usize = 2;

/// The name of what is sent for no more than to show that the stream lives.
const ALIVE: &str = "";

/// One message to a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// `snapshot`, `diff`, `progress` or `error`; [`ALIVE`] is no event.
    pub(crate) event: &'static str,
    /// The epoch that the reader has whole once it has this message.
    pub(crate) id: Option<Epoch>,
    /// A JSON object.
    pub(crate) data: String,
}

/// `GET /v1/views/{name}/subscribe`
pub(crate) async fn subscribe(
    State(queries): State<Arc<Queries>>,
    Name(name): Name,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    queries.check_or_token(&headers, &uri, Action::Read)?;
    let view = views::find(queries.tables.catalog(), &name)?.clone();
    if matches!(view.kind, ViewKind::Events(_)) {
        queries.check_or_token(&headers, &uri, Action::Operate)?;
    }
    let mut params = Params::of(&uri)?;
    let start = start(&mut params, &headers)?;
    let pairs = pairs(params.all("filter"))?;
    params.finish()?;
    let filter = views::filter(queries.tables.catalog(), &view, &pairs)?;
    let seat = Arc::clone(&queries.subscribers).try_acquire_owned().map_err(|_| {
        let max = queries.limits.subscribers_max;
        Problem::new(
            429,
            "too_many_subscribers",
            "too many subscribers",
            format!("all {max} seats are taken"),
            "try again later, or raise `subscribers_max` of `[queries]`",
        )
        .retry_after(5)
    })?;
    let follow = follow(&queries, &view, filter, start).await?;
    let stream = Stream::new(&queries, &view.kind, follow);
    let (send, receive) = mpsc::channel(MESSAGES_MAX);
    tokio::spawn(stream.run(send, seat));
    Ok(match upgrade {
        Ok(upgrade) => websocket::respond(upgrade, receive),
        Err(_) => sse::respond(receive),
    })
}

/// Plans the way to the first epoch, which looks at many buckets: on a thread that may block.
async fn follow(
    queries: &Arc<Queries>,
    view: &trueup_sinks::View,
    filter: Filter,
    start: Start,
) -> Result<Box<dyn Follow>, Problem> {
    let (asked, id) = (Arc::clone(queries), view.id);
    let turn = Arc::clone(&queries.turns).acquire_owned().await;
    let follow = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let follow = Arc::clone(&asked.tables).follow(id, filter, start);
        follow.map_err(|e| asked.of_read(e))
    });
    follow.await.unwrap_or_else(|panic| {
        tracing::error!(%panic, "a subscription panicked");
        Err(Problem::new(
            500,
            "internal",
            "the subscription failed",
            "it ended unexpectedly",
            "this is a bug: report it with the request",
        ))
    })
}

/// Where a subscription begins: at what the reader has, or with a snapshot.
fn start(params: &mut Params, headers: &HeaderMap) -> Result<Start, Problem> {
    let snapshot = params.flag("snapshot", true)?;
    let epoch = params.number("asOfEpoch")?;
    let query = params.number("lastEventId")?;
    let header = match headers.get("last-event-id") {
        None => None,
        Some(value) => {
            Some(value.to_str().ok().and_then(|v| v.trim().parse().ok()).ok_or_else(|| {
                wrong(
                    "bad_last_event_id",
                    format!("`Last-Event-ID` is {value:?}"),
                    "send the `id` of a message of this server: an epoch",
                )
            })?)
        }
    };
    Ok(match header.or(query) {
        Some(last) => Start::After(Some(last)),
        None if snapshot => Start::Snapshot(epoch),
        None => Start::After(epoch),
    })
}

fn pairs(filters: Vec<String>) -> Result<Vec<(String, String)>, Problem> {
    let split = |text: String| match text.split_once(':') {
        Some((column, value)) => Ok((column.to_owned(), value.to_owned())),
        None => Err(wrong(
            "bad_filter",
            format!("`filter` is `{text}`"),
            "write it as filter=column:value; repeat it for several columns",
        )),
    };
    filters.into_iter().map(split).collect()
}

/// Why a stream ends.
enum End {
    /// The reader went away.
    Left,
    /// It is told why.
    Cut(Problem),
}

/// A stream on its way. Each step runs on a thread that may block.
struct Stream {
    work: Arc<Mutex<Work>>,
    changes: watch::Receiver<Option<Epoch>>,
    closing: watch::Receiver<bool>,
    turns: Arc<Semaphore>,
    unread: Duration,
    /// The epoch that the reader was told it has.
    told: Option<Epoch>,
    told_at: Instant,
    /// When anything was sent.
    said_at: Instant,
    /// Whether parts were sent whose last one was not.
    is_within: bool,
}

/// What a step needs.
struct Work {
    follow: Box<dyn Follow>,
    tables: Arc<dyn Tables>,
    runtime: Arc<dyn Runtime>,
    shape: Option<Shape>,
    rows: RowBlock,
    incidents: Vec<(i8, Incident)>,
    rows_max: usize,
    /// Whether parts were made whose last one was not.
    is_within: bool,
}

impl Stream {
    fn new(queries: &Queries, kind: &ViewKind, follow: Box<dyn Follow>) -> Stream {
        let shape = match kind {
            ViewKind::Table(table) => Some(views::shape(queries.tables.catalog(), *table)),
            ViewKind::Events(_) => None,
        };
        let work = Work {
            follow,
            tables: Arc::clone(&queries.tables),
            runtime: Arc::clone(&queries.runtime),
            shape,
            rows: RowBlock::default(),
            incidents: Vec::new(),
            rows_max: queries.limits.message_rows_max.max(1),
            is_within: false,
        };
        Stream {
            work: Arc::new(Mutex::new(work)),
            changes: queries.tables.watch(),
            closing: queries.closing.subscribe(),
            turns: Arc::clone(&queries.turns),
            unread: Duration::from_millis(queries.limits.unread_ms_max),
            told: None,
            told_at: Instant::now(),
            said_at: Instant::now(),
            is_within: false,
        }
    }

    async fn run(mut self, send: mpsc::Sender<Message>, seat: OwnedSemaphorePermit) {
        metrics::gauge!("trueup_subscribers").increment(1.0);
        let mut closing = self.closing.clone();
        let end = tokio::select! {
            end = self.flow(&send) => end,
            _ = closing.wait_for(|closing| *closing) => End::Cut(Problem::new(
                503,
                "closing",
                "the server is stopping",
                "the server was told to stop",
                "come back with Last-Event-ID",
            )),
        };
        if let End::Cut(problem) = end {
            metrics::counter!("trueup_subscribers_cut_off_total").increment(1);
            tracing::info!(code = problem.code, "a subscriber was cut off");
            let data = serde_json::json!({
                "status": problem.status, "code": problem.code, "title": problem.title,
                "detail": problem.detail, "hint": problem.hint,
            });
            let last = Message { event: "error", id: None, data: data.to_string() };
            // The reader may not take even this; then the connection just ends.
            drop(timeout(self.unread.min(Duration::from_secs(5)), send.send(last)).await);
        }
        metrics::gauge!("trueup_subscribers").decrement(1.0);
        drop(seat);
    }

    async fn flow(&mut self, send: &mpsc::Sender<Message>) -> End {
        loop {
            let began = Instant::now();
            self.changes.mark_unchanged();
            let turn = match self.turn(send).await {
                Ok(turn) => turn,
                Err(end) => return end,
            };
            let (step, message) = match self.step(turn).await {
                Ok(done) => done,
                Err(end) => return end,
            };
            let is_idle = message.is_none();
            if let Some(message) = message
                && let Err(end) = self.send(send, message).await
            {
                return end;
            }
            if let Step::More(_) = step {
                match self.show_life(send).await {
                    Ok(()) => continue,
                    Err(end) => return end,
                }
            }
            let is_due = self.told_at.elapsed() >= PROGRESS;
            let progress = self.work.lock().follow.at().filter(|_| !is_idle || is_due);
            if let Some(at) = progress
                && let Err(end) = self.send(send, progress_of(at)).await
            {
                return end;
            }
            if send.is_closed() {
                return End::Left;
            }
            self.wait(began, send).await;
        }
    }

    /// Waits for a newer epoch, or until progress is due, or until the reader leaves.
    async fn wait(&mut self, began: Instant, send: &mpsc::Sender<Message>) {
        let due = self.told_at + PROGRESS;
        tokio::select! {
            // An error means that the views are gone; the next step will say so.
            _ = self.changes.changed() => {}
            () = tokio::time::sleep_until(due) => return,
            () = send.closed() => return,
        }
        tokio::time::sleep_until(began + Duration::from_millis(STEP_MS_MIN)).await;
    }

    /// Waits until it may take a step.
    async fn turn(&mut self, send: &mpsc::Sender<Message>) -> Result<OwnedSemaphorePermit, End> {
        let turn = Arc::clone(&self.turns).acquire_owned();
        tokio::pin!(turn);
        loop {
            match timeout(PROGRESS, &mut turn).await {
                Ok(turn) => return turn.map_err(|_| End::Left),
                Err(_) => self.show_life(send).await?,
            }
        }
    }

    /// Shows life on a way that takes long. The epoch that the reader has is progress only while
    /// he was sent nothing of what comes after it.
    async fn show_life(&mut self, send: &mpsc::Sender<Message>) -> Result<(), End> {
        if send.is_closed() {
            return Err(End::Left);
        }
        if self.said_at.elapsed() < PROGRESS {
            return Ok(());
        }
        let at = self.work.lock().follow.at().filter(|_| !self.is_within);
        let alive = Message { event: ALIVE, id: None, data: String::new() };
        self.send(send, at.map_or(alive, progress_of)).await
    }

    async fn send(&mut self, send: &mpsc::Sender<Message>, message: Message) -> Result<(), End> {
        let (id, is_alive) = (message.id, message.event == ALIVE);
        match timeout(self.unread, send.send(message)).await {
            Ok(Ok(())) => {
                self.said_at = Instant::now();
                if id.is_some() {
                    (self.told, self.told_at) = (id, self.said_at);
                }
                self.is_within = id.is_none() && (self.is_within || !is_alive);
                Ok(())
            }
            Ok(Err(_)) => Err(End::Left),
            Err(_) => Err(End::Cut(Problem::new(
                408,
                "reader_stalled",
                "the reader does not read",
                format!("a message was not read for {} ms", self.unread.as_millis()),
                "come back with Last-Event-ID",
            ))),
        }
    }

    /// One step on a blocking thread. `None`: there was nothing to say.
    async fn step(&mut self, turn: OwnedSemaphorePermit) -> Result<(Step, Option<Message>), End> {
        let work = Arc::clone(&self.work);
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work.lock().step()
        });
        let result = done.await.map_err(|panic| {
            tracing::error!(%panic, "a subscription panicked");
            End::Cut(Problem::new(
                500,
                "internal",
                "the subscription failed",
                "it ended unexpectedly",
                "this is a bug: report it",
            ))
        })?;
        result.map_err(|error| End::Cut(self.cut_off(error)))
    }

    fn cut_off(&self, error: ReadError) -> Problem {
        match error {
            ReadError::Gone { first, .. } => Problem::new(
                410,
                "reader_too_slow",
                "the reader is slower than the history is long",
                format!(
                    "it has epoch {}; the history now begins with epoch {first}",
                    self.told.map_or_else(|| "none".to_owned(), |e| e.to_string())
                ),
                "begin anew with a snapshot; filter for fewer rows or read faster",
            ),
            other => of_read(other),
        }
    }
}

fn progress_of(at: EpochTimes) -> Message {
    let time = format_rfc3339(at.frontier.0);
    let data = format!("{{\"epoch\":{},\"logTime\":\"{time}\"}}", at.epoch);
    Message { event: "progress", id: Some(at.epoch), data }
}

impl Work {
    fn step(&mut self) -> Result<(Step, Option<Message>), ReadError> {
        let is_snapshot = self.follow.in_snapshot();
        let step = self.follow.step(self.rows_max, &mut self.rows, &mut self.incidents)?;
        let (at, is_last) = match step {
            Step::Idle => return Ok((step, None)),
            Step::More(at) => (at, false),
            Step::Reached(at) => (at, true),
        };
        let is_empty = self.rows.is_empty() && self.incidents.is_empty();
        // A snapshot always ends with a message, be it an empty one: the reader waits for it. So he
        // does once he was sent a part of a diff, though no row of the rest may be his.
        if is_empty && !(is_last && (is_snapshot || self.is_within)) {
            return Ok((step, None));
        }
        self.is_within = !is_last;
        let (event, list) = if is_snapshot { ("snapshot", "rows") } else { ("diff", "updates") };
        let mut data = format!("{{\"epoch\":{},\"{list}\":", at.epoch);
        if is_snapshot {
            self.write_rows(&mut data);
        } else {
            self.write_updates(&mut data);
        }
        data.push_str(if is_last { ",\"last\":true}" } else { ",\"last\":false}" });
        Ok((step, Some(Message { event, id: is_last.then_some(at.epoch), data })))
    }

    fn write_rows(&mut self, out: &mut String) {
        match &self.shape {
            Some(shape) => view_rows(shape, self.tables.symbols(), &self.rows, out),
            None => {
                let row = |(_, i): &(i8, Incident)| views::place_row(i);
                let rows: Vec<_> = self.incidents.iter().map(row).collect();
                let events: Vec<_> = self.incidents.iter().map(|(_, i)| self.event(i)).collect();
                out.push_str(&serde_json::Value::from(rows).to_string());
                out.push_str(",\"events\":");
                out.push_str(&serde_json::Value::from(events).to_string());
            }
        }
    }

    /// What the log has of an event: `{"event":…}`, and why if that is nothing.
    fn event(&self, incident: &Incident) -> serde_json::Value {
        let mut out = serde_json::json!({});
        views::add_event(self.runtime.as_ref(), incident, &mut out);
        out
    }

    fn write_updates(&mut self, out: &mut String) {
        out.push('[');
        if let Some(shape) = &self.shape {
            let mut rows = Rows::new(shape, self.tables.symbols(), self.rows.rows());
            for (i, row) in self.rows.rows().enumerate() {
                out.push_str(if i > 0 { ",{\"row\":" } else { "{\"row\":" });
                rows.push_view_row(out, &row);
                out.push_str(&format!(",\"diff\":{}}}", row.diff));
            }
        } else {
            for (i, (diff, incident)) in self.incidents.iter().enumerate() {
                let mut update = serde_json::json!({
                    "row": views::place_row(incident), "diff": diff,
                });
                if *diff > 0 {
                    views::add_event(self.runtime.as_ref(), incident, &mut update);
                }
                out.push_str(if i > 0 { "," } else { "" });
                out.push_str(&update.to_string());
            }
        }
        out.push(']');
    }
}
