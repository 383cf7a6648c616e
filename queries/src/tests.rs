//! A server over small views on a real socket, and a client that reads every byte of its answers.
#![allow(clippy::unwrap_used)]

mod routes;
mod unread;

use crate::{Limits, Queries, Runtime, router, unknown_method, unknown_route};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use trueup_operators::{
    access::{Access, Role, Token},
    change::{Change, Changes, Commit, Counts, Incident, Sink, TableId},
    event::{Fate, Position},
    feed::EpochTimes,
    metrics::{Group, Metrics},
    money::Nanos,
    problem::Problem,
    rollup::RollupSpec,
    symbols::Symbols,
    time::{Bucket, EventTime, Granularity, HOUR_US, Lateness, LogTime, MINUTE_US, parse_rfc3339},
};
use trueup_sinks::{ReadEvents, ViewSettings, Views, views::ShardSink};

/// The server's clock stands 1.5 s after the frontier of every test.
const LAG_US: i64 = 1_500_000;

#[derive(Default)]
pub(crate) struct FakeRuntime {
    pub(crate) unready: AtomicBool,
    pub(crate) hides: AtomicBool,
    /// Whether the log has deleted all events.
    pub(crate) deleted: AtomicBool,
    pub(crate) now_us: std::sync::atomic::AtomicI64,
}

impl ReadEvents for FakeRuntime {
    fn event_json(&self, position: Position) -> Result<Value, String> {
        match position.offset {
            _ if self.deleted.load(Ordering::Relaxed) => Err("it was deleted".into()),
            13 => Err("offset 13 is no longer in the log".into()),
            offset => Ok(json!({ "eventId": format!("e{offset}") })),
        }
    }
}

impl Runtime for FakeRuntime {
    fn status(&self) -> Value {
        json!({ "epoch": 1 })
    }

    fn ready(&self) -> Result<(), Problem> {
        if self.unready.load(Ordering::Relaxed) {
            return Err(Problem::new(503, "catching_up", "not yet", "12 frames behind", "wait"));
        }
        Ok(())
    }

    fn take_up_replay(&self) -> Result<(), Problem> {
        Err(Problem::new(409, "replay_not_possible", "no replay", "not in tests", "do not ask"))
    }

    fn shows(&self) -> Result<(), Problem> {
        if self.hides.load(Ordering::Relaxed) {
            let problem = Problem::new(503, "catching_up", "not yet", "epoch 3 of 9", "wait");
            return Err(problem.retry_after(1));
        }
        Ok(())
    }

    fn metrics_text(&self) -> String {
        "trueup_up 1\n".into()
    }

    fn event(&self, id: &str) -> Result<Option<Value>, Problem> {
        Ok((id == "e1").then(|| json!({ "eventId": "e1", "fate": "counted" })))
    }

    fn now_us(&self) -> i64 {
        self.now_us.load(Ordering::Relaxed)
    }
}

/// A row of the `audience` rollup that a test writes: campaign, publisher, country, device.
pub(crate) type Key = [&'static str; 4];

/// Key, figures and version of a row; its number is its place.
type Numbered = ([u32; 4], Metrics, u32);

pub(crate) struct Fixture {
    pub(crate) views: Arc<Views<4, Metrics>>,
    pub(crate) queries: Arc<Queries>,
    pub(crate) runtime: Arc<FakeRuntime>,
    pub(crate) at: SocketAddr,
    symbols: Arc<Symbols>,
    sinks: Vec<ShardSink<4, Metrics>>,
    /// As the accumulators have it: by worker and bucket, rows by number.
    rows: HashMap<(usize, TableId, Bucket), Vec<Numbered>>,
    pub(crate) epoch: u64,
    pub(crate) frontier_us: i64,
}

pub(crate) fn time(text: &str) -> i64 {
    parse_rfc3339(text).unwrap()
}

pub(crate) fn metrics(impressions: i64, clicks: i32, spend_micros: i64) -> Metrics {
    Metrics { impressions, clicks, spend: Nanos(spend_micros * 1_000), ..Metrics::default() }
}

impl Fixture {
    pub(crate) async fn new() -> Fixture {
        Fixture::with(Limits::default(), vec![], 256 << 20).await
    }

    pub(crate) async fn with(
        limits: Limits,
        tokens: Vec<Token>,
        history_bytes_max: usize,
    ) -> Fixture {
        let settings = |views| ViewSettings { history_bytes_max, ..views };
        Fixture::over(RollupSpec::ad_defaults(), limits, tokens, settings).await
    }

    /// The same, over rollups of its own and views with other settings.
    pub(crate) async fn over(
        rollups: Vec<RollupSpec>,
        limits: Limits,
        tokens: Vec<Token>,
        settings: impl FnOnce(ViewSettings) -> ViewSettings,
    ) -> Fixture {
        let lateness = Lateness {
            allowed_lateness_us: 5 * MINUTE_US,
            correction_horizon_us: 24 * HOUR_US,
            future_skew_us_max: 5 * MINUTE_US,
        };
        let settings = settings(ViewSettings::new(2, rollups, lateness));
        let symbols = Arc::new(Symbols::default());
        let views = Views::new(settings, Arc::clone(&symbols));
        let sinks = vec![views.shard(0), views.shard(1)];
        let runtime = Arc::new(FakeRuntime::default());
        let access = Arc::new(Access::new(tokens));
        let queries = Queries::new(views.clone(), access, runtime.clone(), limits);
        let at = serve(Arc::clone(&queries)).await;
        let frontier_us = time("2026-04-27T12:00:00Z");
        let (rows, epoch) = (HashMap::new(), 0);
        let mut fixture =
            Fixture { views, queries, runtime, at, symbols, sinks, rows, epoch, frontier_us };
        fixture.set_frontier(frontier_us);
        fixture
    }

    /// Moves the log's frontier; takes effect with the next epoch.
    pub(crate) fn set_frontier(&mut self, us: i64) {
        self.frontier_us = us;
        self.runtime.now_us.store(us + LAG_US, Ordering::Relaxed);
    }

    /// An epoch that adds figures to rows of `audience`, at this event time, by minute, hour, day.
    pub(crate) fn add(&mut self, rows: &[(&str, Key, Metrics)]) -> u64 {
        self.epoch(rows, &[])
    }

    /// An epoch with events that did not count.
    pub(crate) fn epoch(&mut self, rows: &[(&str, Key, Metrics)], incidents: &[Incident]) -> u64 {
        let rows: Vec<_> = rows.iter().map(|&(at, key, metrics)| (0, at, key, metrics)).collect();
        self.epoch_of(&rows, incidents)
    }

    /// An epoch that adds figures to rows of rollups, by their number.
    pub(crate) fn epoch_of(
        &mut self,
        rows: &[(u16, &str, Key, Metrics)],
        incidents: &[Incident],
    ) -> u64 {
        let mut commits = [self.empty(), self.empty()];
        for (rollup, at, key, metrics) in rows {
            for granularity in Granularity::ALL {
                let table = TableId { rollup: *rollup, granularity };
                self.add_to(table, time(at), *key, metrics, &mut commits);
            }
        }
        for incident in incidents {
            commits[0].counts.fates[incident.fate as usize] += 1;
        }
        commits[0].incidents = incidents.to_vec();
        let frontier = LogTime(self.frontier_us);
        let frontier_before = frontier;
        let epoch = self.epoch;
        self.views.announce(EpochTimes { epoch, frontier_before, frontier, latest: frontier });
        for (sink, commit) in self.sinks.iter_mut().zip(commits) {
            sink.commit(commit);
        }
        self.epoch += 1;
        epoch
    }

    fn empty(&self) -> Commit<4, Metrics> {
        let (changes, incidents) = (Vec::new(), Vec::new());
        Commit { epoch: self.epoch, changes, incidents, counts: Counts::default(), image: None }
    }

    fn add_to(
        &mut self,
        table: TableId,
        us: i64,
        key: Key,
        more: &Metrics,
        commits: &mut [Commit<4, Metrics>; 2],
    ) {
        let key = key.map(|text| self.symbols.intern(text));
        let worker = key[2] as usize % 2;
        let bucket = table.granularity.bucket(EventTime(us));
        let rows = self.rows.entry((worker, table, bucket)).or_default();
        let at = rows.iter().position(|r| r.0 == key).unwrap_or_else(|| {
            rows.push((key, Metrics::default(), 0));
            rows.len() - 1
        });
        let (_, old, old_version) = rows[at];
        let changes = &mut commits[worker].changes;
        let of = match changes.iter().position(|c| (c.table, c.bucket) == (table, bucket)) {
            Some(of) => of,
            None => {
                changes.push(Changes { table, bucket, changes: vec![] });
                changes.len() - 1
            }
        };
        let changed = &mut changes[of].changes;
        if let Some(same) = changed.iter_mut().find(|c| c.row == at as u32) {
            assert!(same.new.add(more));
            rows[at].1 = same.new;
            return;
        }
        let mut new = old;
        assert!(new.add(more));
        rows[at] = (key, new, old_version + 1);
        changed.push(Change { row: at as u32, old_version, key, old, new });
    }

    /// Asks, without a token.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[]).await
    }

    pub(crate) async fn get_as(&self, token: &str, path: &str) -> Answer {
        let bearer = format!("Bearer {token}");
        self.ask("GET", path, &[("Authorization", bearer.as_str())]).await
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        Answer::of(Stream::open(self.at, method, path, headers).await).await
    }

    /// Asks, and expects rows.
    pub(crate) async fn rows(&self, path: &str) -> Vec<Value> {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.json()["rows"].as_array().unwrap().clone()
    }

    /// Asks, and expects a problem: its status and code.
    pub(crate) async fn problem(&self, path: &str) -> (u16, String) {
        self.get(path).await.problem()
    }
}

/// An answer, whole.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) async fn of(mut stream: Stream) -> Answer {
        let mut body = Vec::new();
        while let Some(chunk) = stream.chunk().await {
            body.extend(chunk);
        }
        let body = String::from_utf8(body).unwrap();
        Answer { status: stream.status, headers: stream.headers, body }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// Status and code of a problem that is as the contract wants it.
    pub(crate) fn problem(&self) -> (u16, String) {
        assert_eq!(
            self.headers.get("content-type").map(String::as_str),
            Some("application/problem+json"),
            "{}: {}",
            self.status,
            self.body
        );
        let body = self.json();
        assert_eq!(body["status"], self.status);
        for field in ["type", "title", "detail", "hint", "requestId"] {
            assert!(body[field].as_str().is_some_and(|t| !t.is_empty()), "{field}: {body}");
        }
        (self.status, body["code"].as_str().unwrap().to_owned())
    }
}

async fn serve(queries: Arc<Queries>) -> SocketAddr {
    let app = router(queries).fallback(unknown_route).method_not_allowed_fallback(unknown_method);
    serve_app(app).await
}

pub(crate) async fn serve_app(app: axum::Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    at
}

/// A connection that answers one request.
pub(crate) struct Stream {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    socket: BufReader<TcpStream>,
    left: Option<usize>,
}

impl Stream {
    pub(crate) async fn open(
        at: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Stream {
        let mut socket = TcpStream::connect(at).await.unwrap();
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut socket = BufReader::new(socket);
        let first = line(&mut socket).await;
        let status = first.split(' ').nth(1).unwrap().parse().unwrap();
        let mut found = HashMap::new();
        loop {
            let header = line(&mut socket).await;
            let Some((name, value)) = header.split_once(": ") else { break };
            found.insert(name.to_lowercase(), value.to_owned());
        }
        let left = found.get("content-length").map(|n| n.parse().unwrap());
        Stream { status, headers: found, socket, left }
    }

    /// The next piece of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        if let Some(left) = self.left.replace(0).filter(|_| self.left.is_some()) {
            let mut body = vec![0; left];
            self.socket.read_exact(&mut body).await.unwrap();
            return (left > 0).then_some(body);
        }
        self.left = None;
        let size = line(&mut self.socket).await;
        let size = usize::from_str_radix(&size, 16).ok().filter(|s| *s > 0)?;
        let mut body = vec![0; size + 2];
        self.socket.read_exact(&mut body).await.ok()?;
        assert_eq!(&body[size..], b"\r\n");
        body.truncate(size);
        Some(body)
    }
}

/// A line without its end; empty when the connection has ended.
async fn line(socket: &mut BufReader<TcpStream>) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        match socket.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(_) => return String::new(),
        }
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).unwrap()
}

pub(crate) fn token(token: &str, role: Role) -> Token {
    Token { token: token.into(), role, publishers: vec![] }
}

pub(crate) fn incident(fate: Fate, offset: u64) -> Incident {
    let position = Position { partition: 1, offset, row: 2 };
    Incident { fate, position, log_time: LogTime(time("2026-04-27T12:00:00Z")) }
}
