//! What a run cost: wall time, CPU seconds and the peak of resident memory, read from `/proc`, of
//! this process or of another.

use std::time::{Duration, Instant};

/// The kernel's clock tick, 10 ms on every Linux that matters (`getconf CLK_TCK`).
const TICKS_PER_SECOND: f64 = 100.0;

/// A running measurement.
pub(super) struct Meter {
    pid: u32,
    start: Instant,
    cpu_s: f64,
}

/// What it came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) wall: Duration,
    pub(super) cpu_s: f64,
    pub(super) peak_rss_mib: f64,
}

impl Meter {
    /// Starts measuring a process; resets its memory peak where the kernel lets us.
    pub(super) fn start(pid: u32) -> Meter {
        // "5" resets the peak to what is resident now. Refused: the peak is of the whole life.
        let _refused = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
        Meter { pid, start: Instant::now(), cpu_s: cpu_s(pid) }
    }

    /// What it cost so far.
    pub(super) fn read(&self) -> Cost {
        Cost {
            wall: self.start.elapsed(),
            cpu_s: cpu_s(self.pid) - self.cpu_s,
            peak_rss_mib: status_mib(self.pid, "VmHWM:"),
        }
    }
}

/// User and system time of a process.
fn cpu_s(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

/// The memory of a process that is resident now.
pub(super) fn rss_mib(pid: u32) -> f64 {
    status_mib(pid, "VmRSS:")
}

fn status_mib(pid: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// The middle value, or the mean of the two middle ones.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
