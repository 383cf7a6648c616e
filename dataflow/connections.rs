//! The connections of a server. How many there may be, how long the head of a request may take, and
//! how long a peer may leave unread what it asked for are bounded, whoever it is: each of them
//! holds a file descriptor, and the log needs some too.
//!
//! A connection too many waits in the system's queue until another ends. One that has sent no head
//! in time is closed, one that is idle between two requests too. One whose peer takes nothing any
//! more is given up by the system (`TCP_USER_TIMEOUT`), also while nobody writes to it; one whose
//! peer takes a large answer too slowly is closed when the answer's time is over.

mod seated;
#[cfg(test)]
mod tests;

use crate::unread;
use axum::{
    body::Body,
    extract::{ConnectInfo, Request},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::{
    net::sockopt,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use seated::Seated;
use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
};
use tower_service::Service;
use trueup_queries::Unread;

/// Descriptors that are left to the log, the listener and everything else.
const DESCRIPTORS_KEPT: usize = 256;
/// The wait before accepting again when the system had no descriptor or memory to give.
const AGAIN: Duration = Duration::from_millis(50);

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How many.
    pub(crate) connections_max: usize,
    /// How long the head of a request may take, and the time between two requests.
    pub(crate) head_max: Duration,
    /// How long what was sent may stay unread.
    pub(crate) unread_max: Duration,
}

/// Accepts and serves until told to stop, then waits for the requests that are under way.
pub(crate) async fn serve(
    listener: TcpListener,
    app: axum::Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let seats_max = limits.connections_max.min(descriptors()) as u32;
    let seats = Arc::new(Semaphore::new(seats_max as usize));
    let (closing, is_closing) = watch::channel(false);
    let accept = async {
        loop {
            // The semaphore is never closed.
            let Ok(seat) = Arc::clone(&seats).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let app = app.clone();
                    converse(stream, ConnectInfo(peer), app, limits, is_closing.clone(), seat);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = stop => {}
    }
    drop(listener);
    closing.send_replace(true);
    // All seats are free once the last socket is closed; the semaphore is never closed.
    drop(seats.acquire_many(seats_max).await);
}

fn converse<P: Clone + Send + Sync + 'static>(
    stream: TcpStream,
    peer: ConnectInfo<P>,
    app: axum::Router,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
    seat: OwnedSemaphorePermit,
) {
    let unread_ms = limits.unread_max.as_millis() as u32;
    let set = stream.set_nodelay(true).and_then(|()| {
        sockopt::set_tcp_user_timeout(&stream, unread_ms).map_err(std::io::Error::from)
    });
    if let Err(error) = set {
        // The peer has gone already.
        tracing::debug!(%error, "a connection ended before it began");
        return;
    }
    let overdue = Arc::new(Notify::new());
    let told_overdue = Arc::clone(&overdue);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let mut app = app.clone();
        let overdue = Arc::clone(&told_overdue);
        async move {
            let (head, body) = request.into_parts();
            let (lent, rest) = unread::lend(&head.headers, body);
            let mut answer = app.call(Request::from_parts(head, Body::new(lent))).await?;
            rest.end(&mut answer).await;
            if let Some(unread) = answer.extensions_mut().remove::<Unread>() {
                tokio::spawn(watch_over(unread, overdue));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_max)
        .serve_connection(TokioIo::new(Seated::new(stream, seat)), service)
        .with_upgrades();
    let conversation = async move {
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = told(&mut closing) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = conversation => {}
            () = overdue.notified() => tracing::debug!("an answer was not read in its time"),
        }
    });
}

/// Says when the time of an answer is over.
async fn watch_over(unread: Unread, overdue: Arc<Notify>) {
    if unread.is_overdue().await {
        overdue.notify_one();
    }
}

/// Waits for the word to close; a server that is gone says it too.
async fn told(closing: &mut watch::Receiver<bool>) {
    drop(closing.wait_for(|closing| *closing).await);
}

/// How many connections there are descriptors for, after asking for as many as the system grants.
fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    let granted = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(granted).unwrap_or(usize::MAX).saturating_sub(DESCRIPTORS_KEPT).max(16)
}
