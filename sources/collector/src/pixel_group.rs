//! Clicks and pixels share frames. The first that comes waits a few milliseconds
//! ([`crate::Settings::pixel_linger_ms`]) and takes all that came meanwhile along, up to
//! [`GROUP_MAX`]; a full group does not wait. So a lone click costs the linger and one sync, and a
//! flood of clicks shares frames. Nobody is answered before the log holds the group, and nobody
//! waits for another group: several may be on their way to the log.

use crate::{
    append::append,
    collect::mistake,
    collector::Inner,
    decode::{Decoded, ERRORS_LISTED_MAX, Rules, Single},
    fault::EventError,
    names::Metric,
};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::sync::{Semaphore, oneshot};
use trueup_operators::problem::Problem;

/// The most events that share a frame: each of them can be told what was wrong with it.
const GROUP_MAX: usize = ERRORS_LISTED_MAX;

/// Pixels that wait for each other.
pub(crate) struct PixelGroup {
    waiting: Mutex<Vec<Waiting>>,
    in_flight: Semaphore,
}

struct Waiting {
    event: Single,
    done: oneshot::Sender<Result<(), Problem>>,
}

impl PixelGroup {
    pub(crate) fn new(in_flight_max: usize) -> PixelGroup {
        PixelGroup { waiting: Mutex::default(), in_flight: Semaphore::new(in_flight_max) }
    }

    /// Appends an event together with others and waits until it is durable.
    pub(crate) async fn append(&self, inner: &Arc<Inner>, event: Single) -> Result<(), Problem> {
        let _place = self.in_flight.try_acquire().map_err(|_| {
            Problem::new(
                503,
                "too_many_pixels_in_flight",
                "too many clicks and pixels wait for the log",
                format!("{} wait already", inner.settings.pixels_in_flight_max),
                "send it again after a moment, or raise `[limits] pixels_in_flight_max`",
            )
            .retry_after(1)
        })?;
        let (done, wait) = oneshot::channel();
        let (first, full) = {
            let mut waiting = self.waiting.lock();
            waiting.push(Waiting { event, done });
            let full = waiting.len() == GROUP_MAX;
            (waiting.len() == 1, full.then(|| std::mem::take(&mut *waiting)))
        };
        if let Some(group) = full {
            tokio::spawn(flush(inner.clone(), group));
        } else if first {
            let inner = inner.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(inner.settings.pixel_linger_ms)).await;
                let group = std::mem::take(&mut *inner.pixels.waiting.lock());
                flush(inner, group).await;
            });
        }
        wait.await.unwrap_or_else(|error| Err(mistake(&error)))
    }
}

async fn flush(inner: Arc<Inner>, group: Vec<Waiting>) {
    if group.is_empty() {
        // A full group went before its first one's wait was over.
        return;
    }
    let (events, waiters): (Vec<Single>, Vec<_>) =
        group.into_iter().map(|waiting| (waiting.event, waiting.done)).unzip();
    let result = append_group(&inner, &events).await;
    for (at, waiter) in waiters.into_iter().enumerate() {
        let result = match &result {
            Err(problem) => Err(problem.clone()),
            Ok(errors) => match errors.iter().find(|error| error.index == at) {
                None => Ok(()),
                Some(error) => Err(Problem::new(
                    400,
                    error.code,
                    "the event breaks a rule",
                    error.message.clone(),
                    error.hint.clone(),
                )),
            },
        };
        // A browser that has gone needs no answer; its event is kept.
        drop(waiter.send(result));
    }
}

async fn append_group(inner: &Arc<Inner>, events: &[Single]) -> Result<Vec<EventError>, Problem> {
    let decoded = decode_group(inner, events)?;
    if !decoded.frames.is_empty() {
        append(&inner.answering, decoded.frames).await?;
    }
    Metric::EventsAccepted.add(decoded.accepted);
    inner.count_rejected(&decoded.reasons);
    Ok(decoded.errors)
}

fn decode_group(inner: &Inner, events: &[Single]) -> Result<Decoded, Problem> {
    let mut desk = inner.desk();
    let rules = Rules {
        now_us: inner.now_us(),
        future_skew_us_max: inner.settings.future_skew_us_max,
        events_max: GROUP_MAX,
        publishers: &[],
        advertiser_of: &|campaign| inner.metadata.advertiser_of(campaign),
    };
    let decoded = desk.decoder.decode_each(events, &rules);
    inner.desks.give(desk);
    decoded
}
