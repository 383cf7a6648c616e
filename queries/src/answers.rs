//! The memory of answers. A query ends when its answer is written; the answer itself is there until
//! its peer has read it, and a peer decides alone how long that takes. So the bytes of all answers
//! that are not read yet are bounded together, and an answer for which there is no room is refused
//! with `429`. Of that room a token may hold as much as it leaves free ([`Room`]), so none has all
//! others turned away by asking for much and reading little. A sixteenth of the room is for small
//! answers alone: a few large ones that nobody reads turn no small one away.
//!
//! The bytes are given back when the connection drops them, which is when the last of them was
//! handed to the system, or the connection has ended. What an answer holds is therefore tied to its
//! bytes and not to its body, which the connection is done with long before. Whoever serves the
//! connection finds an [`Unread`] with every answer: it says when the peer has had its time. A
//! small one needs that as much: thousands of them, each read a byte at a time, are the whole room.

use crate::{limits::Limits, problems::wrong};
use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use trueup_operators::{
    access::Access,
    problem::Problem,
    room::{Full, Place, Room},
};

/// An answer up to this is small.
const SMALL_BYTES_MAX: usize = 64 << 10;
/// Which part of the room is for small answers alone. As much of it any token may hold, however
/// little is left.
const SMALL_SHARE: usize = 16;

/// The room for answers that are not read yet.
#[derive(Debug)]
pub(crate) struct Answers {
    all: Arc<Room>,
    /// Of it what large answers may take, too.
    large: Arc<Room>,
    large_bytes_max: usize,
    bytes_max: usize,
    read_max: Duration,
}

/// The text of an answer with what it holds, until the last byte of it is gone.
struct Held {
    text: String,
    _place: Place,
    _large: Option<Place>,
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
    pub(crate) fn new(limits: &Limits, access: &Access) -> Answers {
        let bytes_max = limits.answer_bytes_in_flight_max;
        let small_bytes = bytes_max / SMALL_SHARE;
        let large_bytes_max = bytes_max - small_bytes;
        let room = |bytes| Room::new(bytes, small_bytes, access.len(), access.readers());
        Answers {
            all: room(bytes_max),
            large: room(large_bytes_max),
            large_bytes_max,
            bytes_max,
            read_max: Duration::from_millis(limits.answer_ms_max),
        }
    }

    /// Refuses before a query is made whose answer would be refused.
    pub(crate) fn check(&self, token: usize) -> Result<(), Problem> {
        let grown = self.all.place(token).grow(1);
        grown.map_err(|full| self.full("another answer".to_owned(), full))
    }

    /// Makes a JSON answer of a text, which no cache keeps, to who asked with a token.
    ///
    /// # Errors
    /// 429 while there is no room for it; 400 if there never is.
    pub(crate) fn admit(&self, token: usize, mut text: String) -> Result<Response, Problem> {
        // What was reserved for it and not needed is memory all the same.
        text.shrink_to_fit();
        let bytes = text.len();
        let is_large = bytes > SMALL_BYTES_MAX;
        if is_large && bytes > self.large_bytes_max {
            return Err(self.too_large(bytes));
        }
        let take = |room: &Arc<Room>| {
            let mut place = room.place(token);
            let grown = place.grow(bytes.max(1));
            grown.map_err(|full| self.full(format!("an answer of {bytes} bytes"), full))?;
            Ok(place)
        };
        let large = is_large.then(|| take(&self.large)).transpose()?;
        let (reading, unread) = Unread::within(self.read_max);
        let held = Held { text, _place: take(&self.all)?, _large: large, _reading: reading };
        let headers =
            [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
        let mut answer = (headers, Body::from(Bytes::from_owner(held))).into_response();
        answer.extensions_mut().insert(unread);
        Ok(answer)
    }

    fn full(&self, what: String, full: Full) -> Problem {
        metrics::counter!("trueup_answers_turned_away_total").increment(1);
        Problem::new(
            429,
            "too_many_answer_bytes_in_flight",
            "too many bytes of answers are not read yet",
            format!(
                "there is no room for {what}: {full}; those that were asked for and are not read \
                 yet may take {} bytes together",
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
            format!("the answer has {bytes} bytes; one may have {}", self.large_bytes_max),
            "ask for fewer rows with `limit`, or raise `[queries] answer_bytes_in_flight_max`",
        )
    }
}
