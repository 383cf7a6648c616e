//! The memory of answers. A query ends when its answer is written; the answer itself is there until
//! its peer has read it, and a peer decides alone how long that takes. So the bytes of all answers
//! that are not read yet are bounded together, and an answer for which there is no room is refused
//! with `429`. A sixteenth of the room is for small answers alone: a few large ones that nobody
//! reads turn no small one away.
//!
//! The bytes are given back when the connection drops them, which is when the last of them was
//! handed to the system, or the connection has ended. What an answer holds is therefore tied to its
//! bytes and not to its body, which the connection is done with long before. Whoever serves the
//! connection finds an [`Unread`] with every large answer: it says when the peer has had its time.

use crate::{limits::Limits, problems::wrong};
use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout_at},
};
use trueup_operators::problem::Problem;

/// Bytes of answers are counted in pages.
const PAGE_BYTES: usize = 4_096;
/// An answer up to this is small.
const SMALL_BYTES_MAX: usize = 64 << 10;
/// Which part of the room is for small answers alone.
const SMALL_SHARE: usize = 16;

/// The room for answers that are not read yet.
#[derive(Debug)]
pub(crate) struct Answers {
    pages: Arc<Semaphore>,
    /// Those of them that large answers may take, too.
    large: Arc<Semaphore>,
    large_max: usize,
    bytes_max: usize,
    read_max: Duration,
}

/// The text of an answer with what it holds, until the last byte of it is gone.
struct Held {
    text: String,
    _pages: OwnedSemaphorePermit,
    _large: Option<OwnedSemaphorePermit>,
    _reading: Reading,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

/// An answer that its peer has not read yet: stands in the extensions of a response.
#[derive(Clone, Debug)]
pub struct Unread {
    read: watch::Receiver<()>,
    until: Instant,
}

/// Stands with the bytes of an answer; tells its [`Unread`] by being dropped that they are read.
#[derive(Debug)]
pub struct Reading(#[expect(dead_code, reason = "held, and dropped")] watch::Sender<()>);

impl Unread {
    /// An answer that is to be read within a time.
    pub fn within(time: Duration) -> (Reading, Unread) {
        let (send, read) = watch::channel(());
        (Reading(send), Unread { read, until: Instant::now() + time })
    }

    /// Waits until the answer is read or its time is over; says whether it is over. The connection
    /// should then be closed.
    pub async fn is_overdue(mut self) -> bool {
        // Nothing is ever sent: a change is the end of the sender.
        timeout_at(self.until, self.read.changed()).await.is_err()
    }
}

impl Answers {
    pub(crate) fn new(limits: &Limits) -> Answers {
        let bytes_max = limits.answer_bytes_in_flight_max;
        let pages = (bytes_max / PAGE_BYTES).clamp(1, u32::MAX as usize);
        let large_max = pages - pages / SMALL_SHARE;
        Answers {
            pages: Arc::new(Semaphore::new(pages)),
            large: Arc::new(Semaphore::new(large_max)),
            large_max,
            bytes_max,
            read_max: Duration::from_millis(limits.answer_ms_max),
        }
    }

    /// Refuses before a query is made whose answer would be refused.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        match self.pages.available_permits() {
            0 => Err(self.full("another answer".to_owned())),
            _ => Ok(()),
        }
    }

    /// Makes a JSON answer of a text, which no cache keeps.
    ///
    /// # Errors
    /// 429 while there is no room for it; 400 if there never is.
    pub(crate) fn admit(&self, mut text: String) -> Result<Response, Problem> {
        // What was reserved for it and not needed is memory all the same.
        text.shrink_to_fit();
        let bytes = text.len();
        let pages = bytes.div_ceil(PAGE_BYTES).max(1);
        let is_large = bytes > SMALL_BYTES_MAX;
        if is_large && pages > self.large_max {
            return Err(self.too_large(bytes));
        }
        let take = |from: &Arc<Semaphore>| {
            let pages = u32::try_from(pages).unwrap_or(u32::MAX);
            let taken = Arc::clone(from).try_acquire_many_owned(pages);
            taken.map_err(|_| self.full(format!("an answer of {bytes} bytes")))
        };
        let large = is_large.then(|| take(&self.large)).transpose()?;
        let (reading, unread) = Unread::within(self.read_max);
        let held = Held { text, _pages: take(&self.pages)?, _large: large, _reading: reading };
        let headers =
            [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
        let mut answer = (headers, Body::from(Bytes::from_owner(held))).into_response();
        if is_large {
            answer.extensions_mut().insert(unread);
        }
        Ok(answer)
    }

    fn full(&self, what: String) -> Problem {
        metrics::counter!("trueup_answers_turned_away_total").increment(1);
        Problem::new(
            429,
            "too_many_answer_bytes_in_flight",
            "too many bytes of answers are not read yet",
            format!(
                "there is no room for {what}: those that were asked for and are not read yet may \
                 take {} bytes together",
                self.bytes_max
            ),
            "read the answers that come, ask again after a moment, for fewer rows with `limit`, or \
             raise `[queries] answer_bytes_in_flight_max`",
        )
        .retry_after(1)
    }

    fn too_large(&self, bytes: usize) -> Problem {
        wrong(
            "answer_too_large",
            format!(
                "the answer has {bytes} bytes; one may have {}",
                self.large_max.saturating_mul(PAGE_BYTES)
            ),
            "ask for fewer rows with `limit`, or raise `[queries] answer_bytes_in_flight_max`",
        )
    }
}
