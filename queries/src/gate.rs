//! How many queries run. A query that reads fourteen million rows takes a core for a while, so few
//! run at the same time, some wait, and the rest is turned away at once with `429`: a queue that
//! nobody will wait for helps nobody. A query keeps its turn until there is room for its answer.

use crate::{answers::Answers, limits::Limits};
use axum::response::Response;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::Semaphore;
use trueup_operators::{access::Access, problem::Problem};

/// The door before every query.
#[derive(Debug)]
pub(crate) struct Gate {
    running: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    answers: Arc<Answers>,
    queries_max: usize,
    wait_ms_max: u64,
}

/// Counts out when a query ends, however it ends.
struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Gate {
    pub(crate) fn new(limits: &Limits, access: &Access) -> Gate {
        Gate {
            running: Arc::new(Semaphore::new(limits.running_max.max(1))),
            inside: Arc::default(),
            answers: Arc::new(Answers::new(limits, access)),
            queries_max: limits.queries_max,
            wait_ms_max: limits.wait_ms_max,
        }
    }

    /// Answers who asks with a token with the JSON that a query writes, if there is room for it:
    /// [`Gate::run`] runs it.
    pub(crate) async fn answer(
        &self,
        token: usize,
        query: impl FnOnce() -> Result<String, Problem> + Send + 'static,
    ) -> Result<Response, Problem> {
        self.answers.check(token)?;
        let answers = Arc::clone(&self.answers);
        self.run(move || answers.admit(token, query()?)).await
    }

    /// Runs a query on a thread that may block, when its turn comes. A query whose asker has gone
    /// still counts until it ends, so going away and coming back gains nothing.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        query: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let waiting = self.inside.fetch_add(1, Ordering::AcqRel);
        let inside = Inside(Arc::clone(&self.inside));
        if waiting >= self.queries_max {
            return Err(self.busy(format!("{waiting} queries are running or waiting")));
        }
        let wait = Duration::from_millis(self.wait_ms_max);
        let turn = tokio::time::timeout(wait, Arc::clone(&self.running).acquire_owned());
        let turn = match turn.await {
            Ok(Ok(turn)) => turn,
            _ => return Err(self.busy(format!("no turn within {} ms", self.wait_ms_max))),
        };
        let started = std::time::Instant::now();
        let done = tokio::task::spawn_blocking(move || {
            let result = query();
            drop((turn, inside));
            result
        });
        let result = done.await.unwrap_or_else(|panic| {
            tracing::error!(%panic, "a query panicked");
            Err(Problem::new(
                500,
                "internal",
                "the query failed",
                "the query ended unexpectedly",
                "this is a bug: report it with the request",
            ))
        });
        metrics::histogram!("trueup_query_seconds").record(started.elapsed().as_secs_f64());
        result
    }

    /// How many queries run or wait.
    #[cfg(test)]
    pub(crate) fn inside(&self) -> usize {
        self.inside.load(Ordering::Acquire)
    }

    fn busy(&self, detail: String) -> Problem {
        metrics::counter!("trueup_queries_turned_away_total").increment(1);
        Problem::new(
            429,
            "too_many_queries",
            "too many queries at the same time",
            detail,
            format!("try again; at most {} queries may run or wait", self.queries_max),
        )
        .retry_after(1)
    }
}
