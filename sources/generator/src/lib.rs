//! Traffic that is the same every time: the benchmark stream ADS-1, the Yahoo Streaming Benchmark,
//! a lifelike demo, and chaos for tests.
//!
//! Everything here is a pure function of a seed and a number. No clock, no socket, no file: what a
//! caller wants sent or stored it gets as bytes, or written to the [`std::io::Write`] that it
//! gives. So a failing run is repeated by its seed, and a benchmark measures the same events on
//! every machine.
//!
//! | module | what | size |
//! |---|---|---|
//! | [`ads1`] | the stream that Trueup and its peers are measured on, with its reference answers | any |
//! | [`ysb`] | the Yahoo Streaming Benchmark's events | any |
//! | [`demo`] | people, bots and their verdicts, tick by tick | a tick |
//! | [`chaos`] | few ids, many contradictions: what breaks an aggregation | a tick |
//! | [`event`] | an event as a sender writes it: JSON and columns | |
//! | [`frames`] | events as the log holds them, without a collector | |
//! | [`files`] | what `trueup generate` writes | |

pub mod ads1;
pub mod chaos;
pub mod demo;
pub mod event;
pub mod files;
pub mod frames;
pub mod random;
pub mod ysb;
