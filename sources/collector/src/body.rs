//! Collecting a body: bounded in bytes, in time, and in the bytes that all requests hold together.
//! A slow sender holds only what it has sent; the decoder's slots are taken when a body is whole.
//!
//! A body that comes as one chunk is not copied. Others are put together in a buffer that was used
//! before, because touching new memory costs as much as a good part of decoding it.

use crate::pool::Pool;
use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use std::{ops::Deref, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trueup_operators::problem::Problem;

/// Bytes in flight are counted in pages.
const PAGE_BYTES: usize = 4096;
/// Larger buffers are not kept.
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The bytes that all requests hold.
pub(crate) struct Held {
    pages: Arc<Semaphore>,
    buffers: Pool<Vec<u8>>,
}

/// A whole body. Gives back what it holds when it is dropped.
pub(crate) struct Whole {
    bytes: Chunks,
    held: Arc<Held>,
    pages: Option<OwnedSemaphorePermit>,
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
    pub(crate) fn new(bytes_max: usize, buffers_max: usize) -> Held {
        let pages = (bytes_max / PAGE_BYTES + 1).min(Semaphore::MAX_PERMITS);
        Held { pages: Arc::new(Semaphore::new(pages)), buffers: Pool::new(buffers_max) }
    }

    fn reserve(
        &self,
        bytes: usize,
        pages: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<(), Problem> {
        let wanted = bytes.div_ceil(PAGE_BYTES);
        let have = pages.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if wanted <= have {
            return Ok(());
        }
        let more = u32::try_from(wanted - have).unwrap_or(u32::MAX);
        let more = self.pages.clone().try_acquire_many_owned(more).map_err(|_| {
            Problem::new(
                429,
                "too_many_bytes_in_flight",
                "too many bytes are being worked on",
                format!("there is no room for another {bytes} bytes of a body"),
                "send again after a moment, or raise `[limits] decode_bytes_in_flight_max`",
            )
            .retry_after(1)
        })?;
        match pages {
            Some(pages) => pages.merge(more),
            None => *pages = Some(more),
        }
        Ok(())
    }

    /// Reads a body to its end.
    ///
    /// # Errors
    /// 413, 408, 429 at a limit; 400 when the sender goes away.
    pub(crate) async fn collect(
        self: &Arc<Self>,
        body: Body,
        declared: Option<usize>,
        bounds: Bounds,
    ) -> Result<Whole, Problem> {
        if declared.is_some_and(|bytes| bytes > bounds.bytes_max) {
            return Err(too_large(bounds.bytes_max));
        }
        let mut whole = Whole { bytes: Chunks::One(Bytes::new()), held: self.clone(), pages: None };
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
            self.held.clone().reserve(bytes, &mut self.pages)?;
            self.add(chunk, declared.unwrap_or(0));
        }
        Ok(())
    }

    fn add(&mut self, chunk: Bytes, declared: usize) {
        match &mut self.bytes {
            Chunks::One(first) if first.is_empty() => self.bytes = Chunks::One(chunk),
            Chunks::One(first) => {
                let mut joined = self.held.buffers.take(Vec::new);
                joined.clear();
                joined.reserve(declared.max(first.len() + chunk.len()));
                joined.extend_from_slice(first);
                joined.extend_from_slice(&chunk);
                self.bytes = Chunks::Joined(joined);
            }
            Chunks::Joined(joined) => joined.extend_from_slice(&chunk),
        }
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
