//! A stream as Server-Sent Events. The data of a message is one line of JSON, so a message is
//! always `event`, perhaps `id`, one `data`, and an empty line; a message that was cut in the
//! middle by a broken connection is one that never came. A sign of life is a comment.

use super::{ALIVE, Message};
use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream::unfold;
use std::convert::Infallible;
use tokio::sync::mpsc;

/// What a browser waits before it comes back.
const RETRY_MS: u32 = 1_000;

/// Writes a message as the protocol has it.
pub(super) fn frame(message: &Message) -> String {
    let Message { event, id, data } = message;
    debug_assert!(!data.contains(['\n', '\r']));
    if *event == ALIVE {
        return ": alive\n\n".to_owned();
    }
    match id {
        Some(id) => format!("event: {event}\nid: {id}\ndata: {data}\n\n"),
        None => format!("event: {event}\ndata: {data}\n\n"),
    }
}

/// The answer: ends when the stream does.
pub(super) fn respond(receive: mpsc::Receiver<Message>) -> Response {
    let first = Some(Bytes::from(format!("retry: {RETRY_MS}\n\n")));
    let stream = unfold((first, receive), |(first, mut receive)| async move {
        let bytes = match first {
            Some(bytes) => bytes,
            None => Bytes::from(frame(&receive.recv().await?)),
        };
        Some((Ok::<_, Infallible>(bytes), (None, receive)))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // Proxies must not collect messages.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(stream)).into_response()
}
