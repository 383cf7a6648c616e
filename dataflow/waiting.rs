//! A server before its node is there. Opening one takes as long as it takes: a journal is read to
//! its end, a checkpoint is loaded from a place that may not answer, and with Kafka as the log a
//! broker has to answer, for what the topics are and how far they reach is known to nobody else.
//! Whoever supervises the process asks it meanwhile whether it lives, and may tell it to end.
//! Brokers that are away are no reason to end either: a machine that comes up before them, or with
//! them, would be restarted by its supervisor until that gives up. So such a start is tried again
//! for as long as it takes.
//!
//! # Promises
//!
//! * Meanwhile `/healthz` answers 200 and everything else, `/readyz` too, 503 with a code:
//!   `waiting_for_brokers`, with the brokers' names and what was wrong when they were last tried;
//!   or `opening`, with what is being read and since when. Who may not operate gets the code
//!   without these: names and paths are nothing for strangers. The same stands in the process's
//!   log every [`SAID_EVERY`]. No event is taken: there is nobody yet who knows the log and the
//!   campaigns.
//! * The server begins by itself when it is open. Connections are handed over without one being
//!   refused: both listen on the same socket.
//! * SIGTERM ends it at once. Nothing was begun that would have to be finished: what a start
//!   changes (a torn write that is cut off, a generation that is claimed) may end at any instant,
//!   as it may by a kill.
//! * Whatever else is wrong with a start, a log that is damaged, a topic that cannot serve, a
//!   setting, the directory, ends it as always. So does a cluster that goes away again while the
//!   remap topic is being read: the next start waits.

use crate::{
    config::{Config, LogKind},
    connections,
    host::HostError,
    node::{Node, NodeError},
    server::ServeError,
};
use axum::{
    http::{HeaderMap, StatusCode, Uri, header},
    response::IntoResponse,
};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};
use trueup_operators::{
    access::{Access, Action},
    log::LogError,
    problem::Problem,
};

/// A start that takes no longer answers nothing in between.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The rest between two tries. A try takes seconds by itself while nobody answers.
const REST: Duration = Duration::from_millis(500);
/// How often it is said what is waited for.
const SAID_EVERY: Duration = Duration::from_secs(5);

/// How far a start is.
#[derive(Clone, Debug)]
enum Stage {
    /// The log is being opened; of one on other machines, why the last try came to nothing.
    Log(Option<String>),
    /// The log is open, and its state is being loaded.
    State,
}

/// A node that is being opened, on a thread of its own.
struct Opening {
    opened: oneshot::Receiver<Result<Arc<Node>, NodeError>>,
    stage: watch::Receiver<Stage>,
    /// Nobody waits for it any more.
    given_up: Arc<AtomicBool>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

/// Opens a node, however long that takes, and answers for it meanwhile. `None`: `told` came
/// first.
///
/// # Errors
/// As [`Node::open`], of anything that waiting does not mend.
pub(crate) async fn open(
    config: &Config,
    access: &Arc<Access>,
    listener: &std::net::TcpListener,
    limits: connections::Limits,
    mut told: Pin<&mut (dyn Future<Output = ()> + Send)>,
) -> Result<Option<Arc<Node>>, ServeError> {
    let began = Instant::now();
    let mut opening = start(config.clone(), Arc::clone(access))?;
    tokio::select! {
        opened = &mut opening.opened => return taken(opened),
        () = &mut told => return Ok(None),
        () = tokio::time::sleep(AT_ONCE) => {}
    }
    let listener = TcpListener::from_std(listener.try_clone()?)?;
    let waiting = Waiting::new(config, began, opening.stage.clone());
    let app = app(waiting.clone(), Arc::clone(access));
    let app = trueup_queries::same_site(app, Arc::clone(access));
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        // An error means that the sender is gone: stop as well.
        let _stopped = stopped.await;
    };
    let server = tokio::spawn(connections::serve(listener, app, limits, stopped));
    let opened = loop {
        tokio::select! {
            opened = &mut opening.opened => break taken(opened),
            () = &mut told => break Ok(None),
            () = tokio::time::sleep(SAID_EVERY) => waiting.say(),
        }
    };
    // Who asks has its answer in no time, and goes over to the server that follows.
    let _told = stop.send(());
    drop(server);
    opened
}

fn taken(
    opened: Result<Result<Arc<Node>, NodeError>, oneshot::error::RecvError>,
) -> Result<Option<Arc<Node>>, ServeError> {
    match opened {
        Ok(opened) => Ok(Some(opened?)),
        Err(_) => Err(ServeError::Fault("the start ended by a panic".into())),
    }
}

/// Begins to open a node. Not on a thread of the runtime: it takes its time, and a panic in it is
/// the process's end.
fn start(config: Config, access: Arc<Access>) -> std::io::Result<Opening> {
    let (opened, is_opened) = oneshot::channel();
    let (stage, is_at) = watch::channel(Stage::Log(None));
    let given_up = Arc::new(AtomicBool::new(false));
    let is_given_up = Arc::clone(&given_up);
    std::thread::Builder::new().name("start".into()).spawn(move || {
        let node = loop {
            let log_is_open = || drop(stage.send_replace(Stage::State));
            match Node::open(config.clone(), Arc::clone(&access), log_is_open) {
                Err(error) if is_away_only(&error) && !is_given_up.load(Ordering::Relaxed) => {
                    stage.send_replace(Stage::Log(Some(error.to_string())));
                    std::thread::sleep(REST);
                }
                node => break node,
            }
        };
        // Who gave up takes nothing, and the node ends as one that was dropped.
        let _gone = opened.send(node);
    })?;
    Ok(Opening { opened: is_opened, stage: is_at, given_up })
}

/// Whether the same start may succeed later, with nothing changed here.
fn is_away_only(error: &NodeError) -> bool {
    matches!(error, NodeError::Host(HostError::Log(LogError::Away { .. })))
}

/// What is said to whoever asks.
#[derive(Clone)]
struct Waiting {
    /// Where the log is.
    place: String,
    /// Of one on other machines, these.
    brokers: Option<String>,
    began: Instant,
    stage: watch::Receiver<Stage>,
}

impl Waiting {
    fn new(config: &Config, began: Instant, stage: watch::Receiver<Stage>) -> Waiting {
        let brokers = match config.log.kind {
            LogKind::Embedded => None,
            LogKind::Kafka => Some(config.kafka.brokers.clone()),
        };
        let place = config.data_dir.display().to_string();
        Waiting { place, brokers, began, stage }
    }

    fn say(&self) {
        let seconds = self.began.elapsed().as_secs();
        match (self.stage.borrow().clone(), &self.brokers) {
            (Stage::Log(reason), Some(brokers)) => {
                let reason = reason.unwrap_or_default();
                tracing::warn!(brokers, seconds, reason, "waiting for a broker that answers");
            }
            (Stage::Log(_), None) => {
                tracing::info!(place = self.place, seconds, "the log is being read");
            }
            (Stage::State, _) => tracing::info!(seconds, "the newest checkpoint is being loaded"),
        }
    }

    fn problem(&self) -> Problem {
        let seconds = self.began.elapsed().as_secs();
        match (self.stage.borrow().clone(), &self.brokers) {
            (Stage::Log(reason), Some(brokers)) => {
                let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
                let detail = format!("no broker of {brokers} has answered yet{reason}");
                let hint = "the server begins by itself when one answers; `kafka.brokers` names \
                            them";
                Problem::new(503, "waiting_for_brokers", "the server waits for Kafka", detail, hint)
            }
            (Stage::Log(_), None) => {
                opening(format!("the log in {} is being read, for {seconds} s so far", self.place))
            }
            (Stage::State, _) => opening(format!(
                "the log is open, and the newest checkpoint is being loaded; the start has taken \
                 {seconds} s so far"
            )),
        }
        .retry_after(1)
    }
}

fn opening(detail: String) -> Problem {
    let hint = "the server begins by itself; its own log says how far it is";
    Problem::new(503, "opening", "the server is being started", detail, hint)
}

fn app(waiting: Waiting, access: Arc<Access>) -> axum::Router {
    axum::Router::new().fallback(move |uri: Uri, headers: HeaderMap| {
        let answer = match uri.path() {
            "/healthz" => (StatusCode::OK, "ok\n").into_response(),
            _ if may_operate(&access, &headers) => waiting.problem().into_response(),
            _ => without_detail(waiting.problem()).into_response(),
        };
        std::future::ready(answer)
    })
}

fn may_operate(access: &Access, headers: &HeaderMap) -> bool {
    let sent = headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
    access.check(sent, Action::Operate).is_ok()
}

/// What everybody may know.
fn without_detail(problem: Problem) -> Problem {
    let detail = "it takes nothing yet; with a token that may operate it says what it waits for";
    Problem { detail: detail.to_owned(), ..problem }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::{body::Body, http::Request};
    use tower_service::Service;
    use trueup_operators::access::{Role, Token};

    /// Status and text of what is answered to who sends this token, while a start is at a stage.
    async fn answer(
        (brokers, stage): (Option<&str>, Stage),
        tokens: &[(&str, Role)],
        path: &str,
        sent: Option<&str>,
    ) -> (StatusCode, String) {
        let waiting = Waiting {
            place: "/srv/secret/data".to_owned(),
            brokers: brokers.map(str::to_owned),
            began: Instant::now(),
            stage: watch::channel(stage).1,
        };
        let tokens = tokens.iter().map(|&(token, role)| {
            let publishers = Vec::new();
            Token { token: token.to_owned(), role, publishers }
        });
        let mut app = app(waiting, Arc::new(Access::new(tokens.collect())));
        let mut request = Request::get(path);
        if let Some(token) = sent {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let answer = app.call(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = answer.status();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn only_who_may_operate_is_told_what_is_waited_for() {
        let reason = || Some("10.1.2.3: connection refused".to_owned());
        let kafka = || (Some("kafka.secret:9092"), Stage::Log(reason()));
        let journal = || (None, Stage::Log(None));
        let tokens = [("operates", Role::Operator), ("reads", Role::Reader)];
        let secrets = ["kafka.secret", "10.1.2.3", "/srv/secret"];
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        for sent in [None, Some("reads"), Some("guessed")] {
            for (stage, code) in [(kafka(), "waiting_for_brokers"), (journal(), "opening")] {
                let (status, text) = answer(stage, &tokens, "/v1/status", sent).await;
                assert_eq!(status, unavailable);
                assert!(text.contains(&format!("\"code\":\"{code}\"")), "{text}");
                assert!(secrets.iter().all(|secret| !text.contains(secret)), "{sent:?}: {text}");
            }
        }
        // Without tokens everyone is an operator.
        for (tokens, sent) in [(&tokens[..], Some("operates")), (&[][..], None)] {
            let (status, text) = answer(kafka(), tokens, "/readyz", sent).await;
            assert_eq!(status, unavailable);
            assert!(secrets[..2].iter().all(|secret| text.contains(secret)), "{text}");
            let (_, text) = answer(journal(), tokens, "/readyz", sent).await;
            assert!(text.contains("/srv/secret/data"), "{text}");
        }
        let alive = answer(kafka(), &tokens, "/healthz", None).await;
        assert_eq!(alive, (StatusCode::OK, "ok\n".to_owned()));
    }

    #[test]
    fn only_what_waiting_mends_is_waited_for() {
        let reason = || "who knows".to_owned();
        let node = |error| NodeError::Host(HostError::Log(error));
        assert!(is_away_only(&node(LogError::Away { reason: reason() })));
        assert!(!is_away_only(&node(LogError::Unavailable { reason: reason() })));
        assert!(!is_away_only(&node(LogError::Invalid { reason: reason() })));
        assert!(!is_away_only(&NodeError::Metrics(reason())));
    }
}
