//! The collector.

mod arrow_body;
mod batch;
mod check;
mod consent;
mod decode;
mod dictionary;
mod fault;
mod fields;
mod instant;
mod payload;
mod scan;
mod sent;

pub use decode::{Decoded, Decoder, Format, Rules};
pub use fault::EventError;
