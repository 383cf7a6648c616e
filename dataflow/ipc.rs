//! A record batch as the payload of a frame, and back: an Arrow IPC stream with one batch. Reading
//! copies nothing, because a frame's memory is aligned as Arrow wants it.
//!
//! Anyone may have written a message of a shared topic, and Arrow's reader panics on some schemas
//! that are malformed. The message is read again at every start, so such a panic must stay with
//! the message: it is caught here and is an error of the frame like any other. The program ends
//! with the first panic of a worker (`main.rs`); of these it asks [`is_reading`] first.

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::{reader::StreamDecoder, writer::StreamWriter};
use arrow_schema::ArrowError;
use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};
use trueup_operators::{event::DecodeError, log::Frame};

thread_local! {
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside Arrow's reader, whose panics are caught: a malformed stream, and
/// no mistake of the program.
pub fn is_reading() -> bool {
    READING.get()
}

/// Lets Arrow read; a panic is an error like any other. What was read with is not used again.
pub(crate) fn guarded<T>(read: impl FnOnce() -> Result<T, ArrowError>) -> Result<T, String> {
    let outer = READING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(read));
    READING.set(outer);
    match result {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the schema or a message of the Arrow stream is malformed".into()),
    }
}

/// Writes a batch as a stream of its own.
///
/// # Errors
/// When Arrow cannot write it.
pub fn encode(batch: &RecordBatch) -> Result<Buffer, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(batch)?;
    Ok(Buffer::from_vec(writer.into_inner()?))
}

/// Reads the one batch of a frame.
///
/// # Errors
/// When the payload is not such a stream.
pub fn decode(frame: &Frame) -> Result<RecordBatch, DecodeError> {
    let error =
        |reason: String| DecodeError { partition: frame.partition, offset: frame.offset, reason };
    let mut decoder = StreamDecoder::new();
    let mut rest = frame.payload.clone();
    let batch = guarded(|| decoder.decode(&mut rest))
        .map_err(error)?
        .ok_or_else(|| error("the Arrow stream holds no batch".into()))?;
    if batch.num_rows() != frame.records as usize {
        let (rows, records) = (batch.num_rows(), frame.records);
        return Err(error(format!("the batch has {rows} rows, its frame says {records}")));
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow_array::{ArrayRef, Int64Array};
    use std::{
        panic,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };
    use trueup_operators::{
        log::{Append, Topic},
        time::LogTime,
    };

    /// Frames whose schema says that an integer has 13 bits, at each place where it could say so.
    fn malformed() -> Vec<Frame> {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let good = encode(&batch).unwrap();
        let places = good.windows(4).enumerate().filter(|(_, four)| *four == [64, 0, 0, 0]);
        let frame = |(at, _): (usize, &[u8])| {
            let mut payload = good.to_vec();
            payload[at] = 13;
            let payload = Buffer::from_vec(payload);
            let topic = Topic::Events;
            let append = Append { topic, partition: 0, schema_version: 1, records: 3, payload };
            append.into_frame(0, LogTime(0))
        };
        places.map(frame).collect()
    }

    #[test]
    fn a_schema_that_makes_arrow_panic_is_an_error_of_its_frame() {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        let here = std::thread::current().id();
        let before: Arc<dyn Fn(&panic::PanicHookInfo<'_>) + Send + Sync> =
            Arc::from(panic::take_hook());
        let others = Arc::clone(&before);
        panic::set_hook(Box::new(move |panic| match std::thread::current().id() == here {
            true if is_reading() => drop(SEEN.fetch_add(1, Ordering::SeqCst)),
            _ => others(panic),
        }));
        let frames = malformed();
        let results: Vec<_> = frames.iter().map(decode).collect();
        panic::set_hook(Box::new(move |panic| before(panic)));

        assert!(SEEN.load(Ordering::SeqCst) > 0, "none of {} frames makes it panic", frames.len());
        assert!(!is_reading());
        let malformed = |r: &&Result<RecordBatch, DecodeError>| {
            r.as_ref().is_err_and(|error| error.reason.contains("malformed"))
        };
        let refused = results.iter().filter(malformed).count();
        assert_eq!(refused, SEEN.load(Ordering::SeqCst), "{results:?}");
    }
}
