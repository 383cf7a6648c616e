//! Collecting a body: bounded in bytes, in time, and in the bytes that all requests hold together,
//! of which no sender takes all ([`Room`]). A slow sender holds only what it has sent: a place
//! among the requests in flight and the decoder's slots are taken when a body is whole.
//!
//! A body that comes as one chunk is not copied. Others are put together in a buffer that was used
//! before, because touching new memory costs as much as a good part of decoding it.

use crate::pool::Pool;
use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use std::{ops::Deref, sync::Arc, time::Duration};
use trueup_operators::{
    problem::Problem,
    room::{Full, Place, Room},
};

/// Larger buffers are not kept.
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The bytes that all requests hold.
pub(crate) struct Held {
    room: Arc<Room>,
    buffers: Pool<Vec<u8>>,
}

/// A whole body. Gives back what it holds when it is dropped.
pub(crate) struct Whole {
    bytes: Chunks,
    held: Arc<Held>,
    place: Place,
}

enum Chunks {
    One(Bytes),
    Joined(Vec<u8>),
}

/// How much and how long.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) bytes_max: usize,
    pub(crate) time_max: Duration,
}

impl Held {
    pub(crate) fn new(room: Arc<Room>, buffers_max: usize) -> Held {
        Held { room, buffers: Pool::new(buffers_max) }
    }

    /// Reads a body that comes with a token to its end.
    ///
    /// # Errors
    /// 413, 408, 429 at a limit; 400 when the sender goes away.
    pub(crate) async fn collect(
        self: &Arc<Self>,
        token: usize,
        body: Body,
        declared: Option<usize>,
        bounds: Bounds,
    ) -> Result<Whole, Problem> {
        if declared.is_some_and(|bytes| bytes > bounds.bytes_max) {
            return Err(too_large(bounds.bytes_max));
        }
        let (held, place) = (self.clone(), self.room.place(token));
        let mut whole = Whole { bytes: Chunks::One(Bytes::new()), held, place };
        match tokio::time::timeout(bounds.time_max, whole.fill(body, declared, bounds)).await {
            Ok(filled) => filled.map(|()| whole),
            Err(_) => Err(Problem::new(
                408,
                "body_too_slow",
                "the body did not come in time",
                format!("the body was not there after {} ms", bounds.time_max.as_millis()),
                "send smaller batches, or raise `[limits] body_read_ms_max`",
            )),
        }
    }
}

impl Whole {
    async fn fill(
        &mut self,
        body: Body,
        declared: Option<usize>,
        bounds: Bounds,
    ) -> Result<(), Problem> {
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| {
                Problem::new(
                    400,
                    "body_cut_off",
                    "the body cannot be read",
                    format!("reading the body failed after {} bytes: {error}", self.len()),
                    "send it again",
                )
            })?;
            let bytes = self.len() + chunk.len();
            if bytes > bounds.bytes_max {
                return Err(too_large(bounds.bytes_max));
            }
            self.place.grow(bytes).map_err(|full| no_room(bytes, full))?;
            self.add(chunk, declared);
        }
        Ok(())
    }

    fn add(&mut self, chunk: Bytes, declared: Option<usize>) {
        match &mut self.bytes {
            Chunks::One(first) if first.is_empty() => self.bytes = Chunks::One(chunk),
            Chunks::One(first) => {
                let mut joined = self.held.buffers.take(Vec::new);
                joined.clear();
                // One that was used before may be far larger than what has come.
                if self.place.grow(joined.capacity()).is_err() {
                    self.held.buffers.give(std::mem::take(&mut joined));
                }
                make_room(&mut joined, first.len() + chunk.len(), declared);
                joined.extend_from_slice(first);
                joined.extend_from_slice(&chunk);
                self.bytes = Chunks::Joined(joined);
            }
            Chunks::Joined(joined) => {
                make_room(joined, chunk.len(), declared);
                joined.extend_from_slice(&chunk);
            }
        }
    }
}

/// Room for `more` bytes, and for as much again if so much is to come: what a sender declares costs
/// him nothing, so it never makes a buffer larger than twice what he has sent.
fn make_room(joined: &mut Vec<u8>, more: usize, declared: Option<usize>) {
    let bytes = joined.len() + more;
    if bytes > joined.capacity() {
        let to_come = declared.filter(|&declared| declared >= bytes).unwrap_or(usize::MAX);
        joined.reserve_exact((2 * bytes).min(to_come) - joined.len());
    }
}

impl Deref for Whole {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Chunks::One(bytes) => bytes,
            Chunks::Joined(bytes) => bytes,
        }
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if let Chunks::Joined(buffer) = &mut self.bytes
            && buffer.capacity() <= KEPT_BYTES_MAX
        {
            self.held.buffers.give(std::mem::take(buffer));
        }
    }
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(
        413,
        "body_too_large",
        "the body is too large",
        format!("the body has more than {bytes_max} bytes"),
        "send smaller batches, or raise `[limits] body_bytes_max`",
    )
}

fn no_room(bytes: usize, full: Full) -> Problem {
    Problem::new(
        429,
        "too_many_bytes_in_flight",
        "too many bytes are being worked on",
        format!("there is no room for a body of {bytes} bytes or more: {full}"),
        "send again after a moment, or raise `[limits] decode_bytes_in_flight_max`",
    )
    .retry_after(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn held(room_bytes: usize) -> Arc<Held> {
        Arc::new(Held::new(Room::new(room_bytes, room_bytes, 0, 0), 1))
    }

    /// The capacity of the buffer of a body that came in so many chunks of so many bytes.
    async fn capacity(chunks: usize, chunk_bytes: usize, declared: Option<usize>) -> usize {
        buffer(&held(64 << 20), chunks, chunk_bytes, declared).await.1
    }

    /// The body, and the capacity of its buffer.
    async fn buffer(
        held: &Arc<Held>,
        chunks: usize,
        chunk_bytes: usize,
        declared: Option<usize>,
    ) -> (Whole, usize) {
        let bounds = Bounds { bytes_max: 16 << 20, time_max: Duration::from_secs(60) };
        let chunk = Bytes::from(vec![b'x'; chunk_bytes]);
        let sent = (0..chunks).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
        let body = Body::from_stream(futures_util::stream::iter(sent));
        let whole = held.collect(0, body, declared, bounds).await.unwrap();
        assert_eq!(whole.len(), chunks * chunk_bytes);
        let capacity = match &whole.bytes {
            Chunks::Joined(joined) => joined.capacity(),
            Chunks::One(_) => panic!("it came as one chunk"),
        };
        (whole, capacity)
    }

    #[tokio::test]
    async fn a_buffer_that_was_used_before_counts_as_large_as_it_is() {
        let held = held(2 << 20);
        drop(buffer(&held, 100, 10_000, Some(1_000_000)).await);
        // It is used again, and the room knows how much it is.
        let (small, capacity) = buffer(&held, 2, 1, None).await;
        assert_eq!(capacity, 1_000_000);
        let mut rest = held.room.place(0);
        assert!(rest.grow((2 << 20) - 1_000_000 + 4096).is_err());
        rest.grow((2 << 20) - 1_000_000 - 4096).unwrap();
        drop(small);
        // Where there is no room for it, a body takes one of its own.
        let mut most = held.room.place(0);
        most.grow(1_000_000 - 4096).unwrap();
        let (_small, capacity) = buffer(&held, 2, 1, None).await;
        assert!(capacity <= 64, "{capacity}");
    }

    #[tokio::test]
    async fn a_body_holds_at_most_about_twice_what_has_come_whatever_it_declares() {
        for declared in [Some(16 << 20), Some(1), None] {
            let bytes = capacity(2, 1, declared).await;
            assert!(bytes <= 64, "two bytes of {declared:?} hold {bytes}");
            let bytes = capacity(100, 1_000, declared).await;
            assert!(bytes <= 200_000, "100,000 bytes of {declared:?} hold {bytes}");
        }
        assert_eq!(capacity(100, 10_000, Some(1_000_000)).await, 1_000_000, "what is declared");
    }
}
