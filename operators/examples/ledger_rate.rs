//! How fast the ledger takes events, and how much memory it takes for one: the ledger alone, one
//! thread, batches in memory. Random unique ids with a share of copies, as they come from the log.
//!
//! ```text
//! cargo run --release -p trueup-operators --example ledger_rate -- [events] [copies ‰] [grouped]
//! ```
//!
//! `growing` starts from an empty ledger, `sized` reserves for all events first. `worst` is the
//! slowest batch; the mean of a batch stands beside it. A batch is generated just before it is
//! entered and outside of the time that is measured, so its columns are in the cache, as they are
//! behind a decoder. What `bytes()` says is compared with what the process really took.

use std::{sync::Arc, time::Instant};
use trueup_operators::{
    event::{DecodeError, EventBatch},
    feed::{EpochTimes, Located},
    hash::{IdHash, VNODES, mix},
    ledger::{Ledger, LedgerSettings},
    log::Frame,
    symbols::Symbols,
    time::{HOUR_US, Lateness, LogTime, MINUTE_US},
};

const BATCH: u64 = 4_096;
const START_US: i64 = 1_800_000_000_000_000;

struct Batch {
    ids: Vec<IdHash>,
    payloads: Vec<u64>,
    times_us: Vec<i64>,
    groups: Vec<IdHash>,
}

impl EventBatch for Batch {
    fn decode(frame: &Frame, _: &Symbols) -> Result<Self, DecodeError> {
        let (partition, offset) = (frame.partition, frame.offset);
        Err(DecodeError { partition, offset, reason: "made in memory only".into() })
    }
    fn len(&self) -> usize {
        self.ids.len()
    }
    fn ids(&self) -> &[IdHash] {
        &self.ids
    }
    fn payloads(&self) -> &[u64] {
        &self.payloads
    }
    fn times_us(&self) -> &[i64] {
        &self.times_us
    }
    fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }
    fn group(&self, row: usize) -> Option<IdHash> {
        self.groups.get(row).copied()
    }
}

fn id(n: u64) -> IdHash {
    (u128::from(mix(n, 1)) << 64 | u128::from(mix(n, 2))).to_le_bytes()
}

/// Events `from..from + BATCH` of the stream; `copies` of a thousand are copies of earlier ones.
fn batch(from: u64, copies: u64, grouped: bool) -> Batch {
    let mut made = Batch { ids: vec![], payloads: vec![], times_us: vec![], groups: vec![] };
    for n in from..from + BATCH {
        let dice = mix(n, 3);
        let original = if dice % 1_000 < copies { (dice >> 20) % (n + 1) } else { n };
        made.ids.push(id(original));
        made.payloads.push(mix(original, 4));
        made.times_us.push(START_US + (original / 1_000) as i64);
        if grouped {
            made.groups.push(id(original / 3 + (1 << 60)));
        }
    }
    made
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|s| s.split(' ').nth(1)?.parse::<usize>().ok());
    pages.unwrap_or(0) * 4_096
}

fn run(name: &str, events: u64, copies: u64, grouped: bool, sized: bool) {
    let lateness = Lateness {
        allowed_lateness_us: 5 * MINUTE_US,
        correction_horizon_us: 24 * HOUR_US,
        future_skew_us_max: 5 * MINUTE_US,
    };
    let before = resident_bytes();
    let mut ledger = Ledger::new(LedgerSettings::new(lateness, 0, 1));
    if sized {
        ledger.reserve(events as usize, 0..VNODES);
    }
    let (mut batches_ns, mut counts) = (Vec::new(), [0; 5]);
    for (epoch, from) in (0..events).step_by(BATCH as usize).enumerate() {
        let log_time = LogTime(START_US + (from / 1_000) as i64);
        let located = Arc::new(Located {
            partition: 0,
            offset: epoch as u64,
            log_time,
            batch: batch(from, copies, grouped),
        });
        let begin = Instant::now();
        let opened = ledger.open(EpochTimes {
            epoch: epoch as u64,
            frontier_before: log_time,
            frontier: log_time,
            latest: log_time,
        });
        let entered = opened.and_then(|()| ledger.enter(&located));
        let ns = begin.elapsed().as_nanos();
        match entered {
            Ok(out) => counts.iter_mut().zip(out.counts.fates).for_each(|(a, b)| *a += b),
            Err(fault) => return eprintln!("{fault}"),
        }
        batches_ns.push(ns);
    }
    let total_ns: u128 = batches_ns.iter().sum();
    let per_event = |ns: u128| ns as f64 / BATCH as f64;
    batches_ns.sort_unstable();
    let batches = batches_ns.len();
    println!(
        "{name:<8} {:5.1} ns/event, median batch {:5.1}; batch {:4.0} µs, worst {:5.0} µs; \
         {:5.1} B/event counted, {:5.1} resident; {counts:?}",
        per_event(total_ns) / batches as f64,
        per_event(batches_ns[batches / 2]),
        batches_ns[batches / 2] as f64 / 1e3,
        batches_ns[batches - 1] as f64 / 1e3,
        ledger.bytes() as f64 / ledger.len() as f64,
        resident_bytes().saturating_sub(before) as f64 / ledger.len() as f64,
    );
}

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |or: u64| args.next().and_then(|a| a.parse().ok()).unwrap_or(or);
    let (events, copies, grouped) = (number(10_000_000), number(10), number(0) != 0);
    run("growing", events, copies, grouped, false);
    run("sized", events, copies, grouped, true);
}
