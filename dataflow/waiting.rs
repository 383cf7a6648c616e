//! A server before its log answers. With Kafka as the log a start needs a broker that does: what
//! the topics are and how far they reach is known to nobody else. Brokers that are away are no
//! reason to end: a machine that comes up before them, or with them, would be restarted by its
//! supervisor until that gives up. So the start is tried again for as long as it takes.
//!
//! # Promises
//!
//! * Meanwhile `/healthz` answers 200 and everything else, `/readyz` too, 503 with the code
//!   `waiting_for_brokers`, the brokers' names and what was wrong when they were last tried; the
//!   same stands in the process's log every [`SAID_EVERY`]. No event is taken: there is nobody yet
//!   who knows the topics and the campaigns.
//! * The server begins by itself when a broker answers. Connections are handed over without one
//!   being refused: both listen on the same socket.
//! * SIGTERM ends it at once. Nothing was begun that would have to be finished.
//! * Whatever else is wrong with a start, a topic that cannot serve, a setting, the directory, ends
//!   it as always. So does a cluster that goes away again while the remap topic is being read: the
//!   next start waits.

use crate::{
    config::Config,
    connections,
    host::HostError,
    node::{Node, NodeError},
    server::ServeError,
};
use axum::{
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
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
use trueup_operators::{access::Access, log::LogError, problem::Problem};

/// A start that takes no longer answers nothing in between.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The rest between two tries. A try takes seconds by itself while nobody answers.
const REST: Duration = Duration::from_millis(500);
/// How often it is said that the brokers are away.
const SAID_EVERY: Duration = Duration::from_secs(5);

/// A node that is being opened, on a thread of its own.
struct Opening {
    opened: oneshot::Receiver<Result<Arc<Node>, NodeError>>,
    /// Why the last try came to nothing.
    away: watch::Receiver<Option<String>>,
    /// Nobody waits for it any more.
    given_up: Arc<AtomicBool>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

/// Opens a node, however long its log is away, and answers for it meanwhile. `None`: `told` came
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
    let mut opening = start(config.clone(), Arc::clone(access))?;
    tokio::select! {
        opened = &mut opening.opened => return taken(opened),
        () = &mut told => return Ok(None),
        () = tokio::time::sleep(AT_ONCE) => {}
    }
    let listener = TcpListener::from_std(listener.try_clone()?)?;
    let app = app(config.kafka.brokers.clone(), opening.away.clone());
    let app = trueup_queries::same_site(app, Arc::clone(access));
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        // An error means that the sender is gone: stop as well.
        let _stopped = stopped.await;
    };
    let server = tokio::spawn(connections::serve(listener, app, limits, stopped));
    let began = Instant::now();
    let opened = loop {
        tokio::select! {
            opened = &mut opening.opened => break taken(opened),
            () = &mut told => break Ok(None),
            () = tokio::time::sleep(SAID_EVERY) => {
                let reason = opening.away.borrow().clone().unwrap_or_default();
                let (brokers, seconds) = (&config.kafka.brokers, began.elapsed().as_secs());
                tracing::warn!(brokers, seconds, reason, "waiting for a broker that answers");
            }
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
    let (away, is_away) = watch::channel(None);
    let given_up = Arc::new(AtomicBool::new(false));
    let is_given_up = Arc::clone(&given_up);
    std::thread::Builder::new().name("start".into()).spawn(move || {
        let node = loop {
            match Node::open(config.clone(), Arc::clone(&access)) {
                Err(error) if is_away_only(&error) && !is_given_up.load(Ordering::Relaxed) => {
                    away.send_replace(Some(error.to_string()));
                    std::thread::sleep(REST);
                }
                node => break node,
            }
        };
        // Who gave up takes nothing, and the node ends as one that was dropped.
        let _gone = opened.send(node);
    })?;
    Ok(Opening { opened: is_opened, away: is_away, given_up })
}

/// Whether the same start may succeed later, with nothing changed here.
fn is_away_only(error: &NodeError) -> bool {
    matches!(error, NodeError::Host(HostError::Log(LogError::Away { .. })))
}

fn app(brokers: String, away: watch::Receiver<Option<String>>) -> axum::Router {
    axum::Router::new().fallback(move |uri: Uri| {
        let answer = match uri.path() {
            "/healthz" => (StatusCode::OK, "ok\n").into_response(),
            _ => waiting(&brokers, away.borrow().as_deref()),
        };
        std::future::ready(answer)
    })
}

fn waiting(brokers: &str, reason: Option<&str>) -> Response {
    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    let detail = format!("no broker of {brokers} has answered yet{reason}");
    let hint = "the server begins by itself when one answers; `kafka.brokers` names them";
    Problem::new(503, "waiting_for_brokers", "the server waits for Kafka", detail, hint)
        .retry_after(1)
        .into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
