//! What `trueup generate` writes: a workload as a file, or as bodies to send.
//!
//! | | `ndjson` | `batch` |
//! |---|---|---|
//! | `ads1` | an event a line, as senders write it | an Arrow IPC stream, [`BATCH_EVENTS`] a batch |
//! | `ysb` | an event a line, as the original writes it | no |
//! | `demo` | an event a line, malformed ones included | no: columns cannot hold what is malformed |
//!
//! Files hold events only. Verdicts go with [`bodies`], which is what a load client sends.

use crate::{
    ads1::{Ads1, shift_to_end_at_ms},
    demo::{Demo, Tick},
    ysb::Ysb,
};
use arrow_ipc::writer::StreamWriter;
use std::{
    io::{self, Write},
    str::FromStr,
};

/// Events of a batch of a file, and of a body.
pub const BATCH_EVENTS: u64 = 5_000;
/// How long a tick of demo traffic is in a file.
const DEMO_TICK_MS: u64 = 100;
/// Text is handed to the writer in pieces of about this size.
const WRITE_BYTES: usize = 1 << 20;

/// What is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// [`crate::ads1`]; there is one such stream, whatever the seed.
    Ads1,
    /// [`crate::ysb`].
    Ysb,
    /// [`crate::demo`].
    Demo,
}

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object a line.
    Ndjson,
    /// An Arrow IPC stream.
    Batch,
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Workload, String> {
        match text {
            "ads1" => Ok(Workload::Ads1),
            "ysb" => Ok(Workload::Ysb),
            "demo" => Ok(Workload::Demo),
            _ => Err(format!("there is no workload {text:?}; there are ads1, ysb and demo")),
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "ndjson" => Ok(Format::Ndjson),
            "batch" => Ok(Format::Batch),
            _ => Err(format!("there is no format {text:?}; there are ndjson and batch")),
        }
    }
}

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Which stream.
    pub workload: Workload,
    /// How many events.
    pub events: u64,
    /// The seed of `ysb` and `demo`.
    pub seed: u64,
    /// When the stream ends, µs since 1970. ADS-1 ends within a minute of it, because it is moved
    /// by whole minutes; `None` leaves ADS-1 where its definition has it, and begins the others at
    /// the same time.
    pub end_us: Option<i64>,
    /// Events a second of demo traffic.
    pub rate_per_s: f64,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Events.
    pub events: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Writes a workload to `out`.
///
/// # Errors
/// Those of `out`, and `InvalidInput` when there is no such form of the workload.
pub fn write(request: &Request, format: Format, out: &mut impl Write) -> io::Result<Written> {
    request.check()?;
    let mut out = Counting { out, bytes: 0 };
    match (request.workload, format) {
        (Workload::Ads1, Format::Ndjson) => {
            let (ads, shift_ms) = (Ads1::new(), request.ads1_shift_ms());
            lines(&mut out, request.events, |i, line| {
                ads.json(&ads.event(i), shift_ms, line);
                line.push(b'\n');
            })?;
        }
        (Workload::Ads1, Format::Batch) => ads1_batches(request, &mut out)?,
        (Workload::Ysb, Format::Ndjson) => {
            let (ysb, start_ms) = (Ysb::new(request.seed), request.ysb_start_ms());
            lines(&mut out, request.events, |i, line| ysb.line(i, start_ms, line))?;
        }
        (Workload::Demo, Format::Ndjson) => demo_lines(request, &mut out)?,
        (Workload::Ysb | Workload::Demo, Format::Batch) => {
            let hint =
                "only ads1 can be written as batches; write ndjson, or choose the workload ads1";
            return Err(invalid(hint.to_owned()));
        }
    }
    out.flush()?;
    Ok(Written { events: request.events, bytes: out.bytes })
}

/// A workload as bodies to send. They hold at least as many events as were asked for, and at most
/// a tick's worth more.
///
/// # Errors
/// `InvalidInput` for `ysb`, whose events no collector takes, and for a demo that is too slow.
pub fn bodies(request: &Request) -> io::Result<Box<dyn Iterator<Item = Tick> + Send>> {
    request.check()?;
    let Request { events, seed, .. } = *request;
    match request.workload {
        Workload::Ads1 => {
            let (ads, shift_ms) = (Ads1::new(), request.ads1_shift_ms());
            Ok(Box::new((0..events.div_ceil(BATCH_EVENTS)).map(move |n| {
                let range = n * BATCH_EVENTS..((n + 1) * BATCH_EVENTS).min(events);
                Tick {
                    verdicts: ads.verdict_body(range.clone(), shift_ms),
                    events: (range.end - range.start) as usize,
                    bodies: vec![ads.body(range, shift_ms)],
                }
            })))
        }
        Workload::Ysb => {
            Err(invalid("a collector takes no events of ysb; choose ads1 or demo".to_owned()))
        }
        Workload::Demo => {
            let mut demo = Demo::new(seed, request.rate_per_s);
            let mut times = request.demo_times();
            let mut left = events;
            Ok(Box::new(std::iter::from_fn(move || {
                let (now_us, tick_ms) = times.next().filter(|_| left > 0)?;
                let tick = demo.tick(now_us, tick_ms);
                left = left.saturating_sub(tick.events as u64);
                Some(tick)
            })))
        }
    }
}

impl Request {
    /// Demo traffic that hardly comes would take an age to come to its number of events.
    fn check(&self) -> io::Result<()> {
        let rate = self.rate_per_s;
        if self.workload == Workload::Demo && !(rate.is_finite() && rate >= 1.0) {
            return Err(invalid(format!("{rate} events a second is too slow; ask for 1 at least")));
        }
        Ok(())
    }

    fn ads1_shift_ms(&self) -> i64 {
        self.end_us.map_or(0, |end_us| shift_to_end_at_ms(self.events, end_us.div_euclid(1_000)))
    }

    fn ysb_start_ms(&self) -> i64 {
        let length_ms = self.events as i64 * crate::ysb::STEP_MS;
        self.end_us.map_or(crate::ads1::BASE_MS, |end_us| end_us.div_euclid(1_000) - length_ms)
    }

    /// The times of ticks and how long they are. How many events a tick has varies with the time
    /// of day, so the stream ends only about when it should.
    fn demo_times(&self) -> impl Iterator<Item = (i64, u64)> + Send + use<> {
        let length_s = self.events as f64 / self.rate_per_s;
        let tick_us = DEMO_TICK_MS as i64 * 1_000;
        let start_us = match self.end_us {
            Some(end_us) => end_us.saturating_sub((length_s * 1e6) as i64),
            None => crate::ads1::BASE_MS * 1_000,
        };
        (1i64..).map(move |n| (start_us.saturating_add(n * tick_us), DEMO_TICK_MS))
    }
}

fn lines(
    out: &mut impl Write,
    events: u64,
    mut line: impl FnMut(u64, &mut Vec<u8>),
) -> io::Result<()> {
    let mut text = Vec::with_capacity(WRITE_BYTES + 4_096);
    for i in 0..events {
        line(i, &mut text);
        if text.len() >= WRITE_BYTES {
            out.write_all(&text)?;
            text.clear();
        }
    }
    out.write_all(&text)
}

fn ads1_batches(request: &Request, out: &mut impl Write) -> io::Result<()> {
    let (ads, shift_ms) = (Ads1::new(), request.ads1_shift_ms());
    let batch =
        |from: u64| ads.record_batch(from..(from + BATCH_EVENTS).min(request.events), shift_ms);
    let failed = |error: arrow_schema::ArrowError| match error {
        arrow_schema::ArrowError::IoError(_, error) => error,
        other => io::Error::other(other),
    };
    let mut writer = StreamWriter::try_new(out, &batch(0).schema()).map_err(failed)?;
    for from in (0..request.events).step_by(BATCH_EVENTS as usize) {
        writer.write(&batch(from)).map_err(failed)?;
    }
    writer.finish().map_err(failed)
}

fn demo_lines(request: &Request, out: &mut impl Write) -> io::Result<()> {
    let mut demo = Demo::new(request.seed, request.rate_per_s);
    let mut left = request.events;
    for (now_us, tick_ms) in request.demo_times() {
        if left == 0 {
            return Ok(());
        }
        for event in demo.sent(now_us, tick_ms).events.iter().take(left as usize) {
            out.write_all(event.as_bytes())?;
            out.write_all(b"\n")?;
            left -= 1;
        }
    }
    Ok(())
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

/// Counts what goes through.
struct Counting<'a, W> {
    out: &'a mut W,
    bytes: u64,
}

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow_ipc::reader::StreamReader;

    const END_US: i64 = 1_792_929_600_000_000;

    fn request(workload: Workload, events: u64) -> Request {
        Request { workload, events, seed: 4, end_us: Some(END_US), rate_per_s: 2_000.0 }
    }

    fn written(request: &Request, format: Format) -> (Written, Vec<u8>) {
        let mut out = Vec::new();
        let written = write(request, format, &mut out).unwrap();
        assert_eq!(written.bytes, out.len() as u64);
        (written, out)
    }

    #[test]
    fn every_workload_has_as_many_lines_as_asked_for() {
        for workload in [Workload::Ads1, Workload::Ysb, Workload::Demo] {
            for events in [0, 1, 7_003] {
                let (_, text) = written(&request(workload, events), Format::Ndjson);
                let lines: Vec<&[u8]> = text.split_inclusive(|&b| b == b'\n').collect();
                assert_eq!(lines.len() as u64, events, "{workload:?}");
                let json = |line: &&[u8]| serde_json::from_slice::<serde_json::Value>(line).is_ok();
                assert!(lines.iter().all(json), "{workload:?}");
            }
        }
    }

    #[test]
    fn lines_are_the_same_every_time_and_end_when_they_should() {
        let (_, text) = written(&request(Workload::Demo, 3_000), Format::Ndjson);
        assert_eq!(text, written(&request(Workload::Demo, 3_000), Format::Ndjson).1);
        let (_, text) = written(&request(Workload::Ysb, 100), Format::Ndjson);
        let last = String::from_utf8(text).unwrap();
        assert!(last.lines().last().unwrap().contains(&format!("{}", END_US / 1_000 - 10)));
        let shift_ms = request(Workload::Ads1, 3_000_000).ads1_shift_ms();
        let end_ms = crate::ads1::stream_time_ms(3_000_000) + shift_ms;
        assert!((END_US / 1_000 - 60_000..=END_US / 1_000).contains(&end_ms));
        let unmoved = Request { end_us: None, ..request(Workload::Ads1, 10) };
        assert_eq!(unmoved.ads1_shift_ms(), 0);
    }

    #[test]
    fn batches_hold_the_columns_of_the_fields() {
        for events in [0, 1, 12_345] {
            let (_, bytes) = written(&request(Workload::Ads1, events), Format::Batch);
            let reader = StreamReader::try_new(&bytes[..], None).unwrap();
            let names: Vec<String> =
                reader.schema().fields().iter().map(|f| f.name().clone()).collect();
            assert_eq!(names[..3], ["eventId", "eventType", "occurredAt"]);
            assert_eq!(names[9], "priceMicros");
            let rows: usize = reader.map(|batch| batch.unwrap().num_rows()).sum();
            assert_eq!(rows as u64, events);
        }
        let mut out = Vec::new();
        let error = write(&request(Workload::Demo, 1), Format::Batch, &mut out).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn bodies_hold_at_least_what_was_asked_for() {
        for workload in [Workload::Ads1, Workload::Demo] {
            let ticks: Vec<Tick> = bodies(&request(workload, 12_345)).unwrap().collect();
            let events: usize = ticks.iter().map(|tick| tick.events).sum();
            assert!((12_345..12_345 + 5_000).contains(&events), "{workload:?}: {events}");
        }
        assert!(bodies(&request(Workload::Ysb, 1)).is_err());
    }

    #[test]
    fn a_demo_that_never_comes_to_its_events_is_refused() {
        for rate_per_s in [0.0, 0.9, -1.0, f64::NAN, f64::INFINITY] {
            let slow = Request { rate_per_s, ..request(Workload::Demo, 1) };
            let error = write(&slow, Format::Ndjson, &mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{rate_per_s}");
            assert!(bodies(&slow).is_err(), "{rate_per_s}");
        }
        let slowest = Request { rate_per_s: 1.0, ..request(Workload::Demo, 5) };
        assert!(bodies(&slowest).unwrap().map(|tick| tick.events).sum::<usize>() >= 5);
    }

    #[test]
    fn names_are_read_and_wrong_ones_answered() {
        assert_eq!("ysb".parse(), Ok(Workload::Ysb));
        assert_eq!("batch".parse(), Ok(Format::Batch));
        assert!("csv".parse::<Format>().unwrap_err().contains("ndjson and batch"));
        assert!("ads2".parse::<Workload>().unwrap_err().contains("ads2"));
    }
}
