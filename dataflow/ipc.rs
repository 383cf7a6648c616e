//! A record batch as the payload of a frame, and back: an Arrow IPC stream with one batch. Reading
//! copies nothing, because a frame's memory is aligned as Arrow wants it.

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::{reader::StreamDecoder, writer::StreamWriter};
use arrow_schema::ArrowError;
use trueup_operators::{event::DecodeError, log::Frame};

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
    let batch = decoder
        .decode(&mut rest)
        .map_err(|e| error(e.to_string()))?
        .ok_or_else(|| error("the Arrow stream holds no batch".into()))?;
    if batch.num_rows() != frame.records as usize {
        let (rows, records) = (batch.num_rows(), frame.records);
        return Err(error(format!("the batch has {rows} rows, its frame says {records}")));
    }
    Ok(batch)
}
