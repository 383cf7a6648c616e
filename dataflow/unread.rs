//! What a handler leaves unread of a request's body. An answer that is known early (a wrong token,
//! a full queue) is given while the sender still sends. If the connection were closed on it then,
//! the system would reset it, and the reset can overtake the answer: the sender would see a broken
//! connection instead of "401", or find its next request refused by nobody.
//!
//! So the rest is read and thrown away first, up to [`REST_BYTES_MAX`] and [`REST_MAX`]. What is
//! longer or slower is told `connection: close` and closed; the sender knows then that nothing more
//! can be asked on it. One that waits to be asked for its body (`expect: 100-continue`) has not
//! sent it, and is not asked.

use hyper::{
    HeaderMap, Response,
    body::{Body, Frame, Incoming, SizeHint},
    header::{CONNECTION, EXPECT, HeaderValue},
};
use parking_lot::Mutex;
use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

/// How much of a body is read that nobody wants.
const REST_BYTES_MAX: u64 = 1 << 20;
/// How long that may take.
const REST_MAX: Duration = Duration::from_secs(1);

/// A body while a handler has it. What the handler drops comes back to its [`Rest`].
#[derive(Debug)]
pub(crate) struct Lent {
    body: Option<Incoming>,
    rest: Arc<Mutex<Option<Incoming>>>,
}

/// Where the unread part of a body comes back to.
#[derive(Debug)]
pub(crate) struct Rest {
    body: Arc<Mutex<Option<Incoming>>>,
    is_asked_for: bool,
}

/// Lends the body of a request with these headers.
pub(crate) fn lend(headers: &HeaderMap, body: Incoming) -> (Lent, Rest) {
    let rest = Arc::new(Mutex::new(None));
    let lent = Lent { body: Some(body), rest: Arc::clone(&rest) };
    (lent, Rest { body: rest, is_asked_for: !headers.contains_key(EXPECT) })
}

impl Body for Lent {
    type Data = <Incoming as Body>::Data;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.rest.lock() = self.body.take();
    }
}

impl Rest {
    /// Reads what is left, or says in the answer that the connection ends with it.
    pub(crate) async fn end<B>(self, answer: &mut Response<B>) {
        // A handler that goes on with the body after its answer reads it itself.
        let Some(mut body) = self.body.lock().take() else { return };
        if body.is_end_stream() {
            return;
        }
        let is_short = body.size_hint().lower() <= REST_BYTES_MAX;
        let read = tokio::time::timeout(REST_MAX, read(&mut body));
        if !(self.is_asked_for && is_short && read.await.is_ok_and(|ended| ended)) {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Whether the body ended before it was too long.
async fn read(body: &mut Incoming) -> bool {
    let mut bytes = 0;
    loop {
        match poll_fn(|context| next(body, context)).await {
            Some(Ok(more)) => bytes += more,
            Some(Err(_)) => return false,
            None => return true,
        }
        if bytes > REST_BYTES_MAX {
            return false;
        }
    }
}

fn next(body: &mut Incoming, context: &mut Context<'_>) -> Poll<Option<Result<u64, hyper::Error>>> {
    let frame = ready!(Pin::new(body).poll_frame(context));
    Poll::Ready(
        frame.map(|frame| frame.map(|frame| frame.data_ref().map_or(0, |data| data.len() as u64))),
    )
}
