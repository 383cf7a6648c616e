//! `trueup generate`: a workload into a file, or to a collector that acknowledges every body.

use super::{Failure, remote::Remote};
use crate::cli::{Format, Generate, Workload};
use std::{
    fs::File,
    io::{BufWriter, IsTerminal, Write},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};
use trueup_generator::{demo::Tick, files};

/// How often a body is sent again before the collector counts as gone.
const TRIES: u32 = 600;
/// The wait before it is sent again, unless the collector says how long.
const AGAIN: Duration = Duration::from_millis(500);

/// `trueup generate`
///
/// # Errors
/// When the output cannot be written, or the collector refuses.
pub fn generate(command: &Generate) -> Result<(), Failure> {
    let sent = command.to.is_some();
    let request = files::Request {
        workload: match command.workload {
            Workload::Ads1 => files::Workload::Ads1,
            Workload::Ysb => files::Workload::Ysb,
            Workload::Demo => files::Workload::Demo,
        },
        events: command.events,
        seed: command.seed,
        end_us: sent.then(|| jiff::Timestamp::now().as_microsecond()),
        rate_per_s: 2_000.0,
    };
    if command.format == Format::Batch && (sent || request.workload != files::Workload::Ads1) {
        return Err(Failure::Use(
            "`--format batch` is for a file of the workload ads1; leave it out, and what is \
             sent or written is JSON"
                .into(),
        ));
    }
    match &command.to {
        Some(url) => send_all(&request, &Remote::new(url, command.token.as_deref())),
        None => write(&request, command),
    }
}

fn write(request: &files::Request, command: &Generate) -> Result<(), Failure> {
    let format = match command.format {
        Format::Ndjson => files::Format::Ndjson,
        Format::Batch => files::Format::Batch,
    };
    let out = command.out.as_deref().unwrap_or(Path::new("-"));
    let written = if out == Path::new("-") {
        files::write(request, format, &mut std::io::stdout().lock())
    } else {
        File::create(out).and_then(|file| {
            let mut file = BufWriter::new(file);
            let written = files::write(request, format, &mut file)?;
            file.flush()?;
            Ok(written)
        })
    };
    let written = written.map_err(|e| Failure::Use(format!("{}: {e}", out.display())))?;
    eprintln!("{} events, {} bytes", written.events, written.bytes);
    Ok(())
}

fn send_all(request: &files::Request, remote: &Remote) -> Result<(), Failure> {
    let ticks = files::bodies(request).map_err(|e| Failure::Use(e.to_string()))?;
    let mut progress = Progress::new(request.events);
    let stop = AtomicBool::new(false);
    for tick in ticks {
        let (accepted, rejected) = send(remote, &tick, &stop)?;
        progress.add(accepted, rejected);
    }
    progress.end();
    Ok(())
}

/// Sends what a tick holds until it is acknowledged; how many events were accepted and rejected.
/// Once told to stop, it sends nothing again.
pub(super) fn send(remote: &Remote, tick: &Tick, stop: &AtomicBool) -> Result<(u64, u64), Failure> {
    let (mut accepted, mut rejected) = (0, 0);
    for body in &tick.bodies {
        let answer = until_acknowledged(remote, "/v1/events/collect", body, stop)?;
        accepted += answer["accepted"].as_u64().unwrap_or(0);
        rejected += answer["rejected"].as_u64().unwrap_or(0);
    }
    if let Some(verdicts) = &tick.verdicts {
        until_acknowledged(remote, "/v1/verdicts", verdicts, stop)?;
    }
    Ok((accepted, rejected))
}

fn until_acknowledged(
    remote: &Remote,
    path: &str,
    body: &[u8],
    stop: &AtomicBool,
) -> Result<serde_json::Value, Failure> {
    let mut last = String::new();
    for attempt in 0..TRIES {
        let wait = match remote.send("POST", path, "application/json", body) {
            Ok(answer) if answer.status == 202 => {
                return serde_json::from_str(&answer.body)
                    .map_err(|e| Failure::Internal(e.to_string()));
            }
            // What is sent again is a duplicate at worst.
            Ok(answer) if matches!(answer.status, 408 | 429 | 500..=599) => {
                last = answer.body;
                answer.retry_after_s.map_or(AGAIN, Duration::from_secs)
            }
            Ok(answer) => {
                return Err(Failure::Use(format!("{path}: {} {}", answer.status, answer.body)));
            }
            Err(error) => {
                last = error;
                AGAIN
            }
        };
        if stop.load(Ordering::Acquire) {
            break;
        }
        if attempt == 0 {
            eprintln!("{path}: {last}; it is sent again until it is taken");
        }
        std::thread::sleep(wait);
    }
    Err(Failure::Internal(format!("{path} was not acknowledged: {last}")))
}

/// A line on stderr that counts, on a terminal only.
struct Progress {
    of: u64,
    accepted: u64,
    rejected: u64,
    start: Instant,
    shown: Instant,
}

impl Progress {
    fn new(of: u64) -> Progress {
        let now = Instant::now();
        Progress { of, accepted: 0, rejected: 0, start: now, shown: now }
    }

    fn add(&mut self, accepted: u64, rejected: u64) {
        self.accepted += accepted;
        self.rejected += rejected;
        if self.shown.elapsed() > Duration::from_millis(200) && std::io::stderr().is_terminal() {
            self.shown = Instant::now();
            eprint!("\r{} of {} events", self.accepted + self.rejected, self.of);
        }
    }

    fn end(&self) {
        let seconds = self.start.elapsed().as_secs_f64();
        let (accepted, rejected) = (self.accepted, self.rejected);
        let rate = (accepted + rejected) as f64 / seconds;
        eprintln!(
            "{accepted} accepted, {rejected} rejected in {seconds:.1} s ({rate:.0} a second)"
        );
    }
}
