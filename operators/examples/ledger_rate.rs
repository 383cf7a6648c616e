//! How fast the ledger takes events, and how much memory it takes for one: the ledger alone, one
//! thread, batches in memory. Random unique ids, 1 % of them copies.
//!
//! ```text
//! cargo run --release -p trueup-operators --example ledger_rate -- [events] [growing sized …]
//! ```
//!
//! * `growing` starts empty; `sized` reserves for all events first;
//! * `grouped`: every event has an impression, three events each; growing;
//! * `judged`: growing, with a remembered verdict on one event in a hundred;
//! * `steady`: the horizon is a third of the stream, so most of it enters while as much is
//!   forgotten;
//! * `verdicts`: how long a verdict on one event in a hundred takes, batches read back from memory;
//! * `images`: how long the worker stops for an image, whole and increment, how long writing one
//!   takes on a thread, and loading it; every event has an impression.
//!
//! `worst` is the slowest batch; the median stands beside it. A batch is generated just before it
//! is entered and outside of the time that is measured, so its columns are in the cache, as they
//! are behind a decoder. What `bytes()` says stands beside what the process really took, which is
//! less for a run that follows another one in the same process.

use std::{collections::HashMap, sync::Arc, time::Instant};
use trueup_operators::{
    change::Counts,
    event::{DecodeError, EventBatch, Position, Target},
    feed::{EpochTimes, ImageKind, Judgement, Located, ReadBack},
    hash::{IdHash, VNODES, mix},
    ledger::{Ledger, LedgerFault, LedgerSettings},
    log::Frame,
    symbols::Symbols,
    time::{HOUR_US, Lateness, LogTime},
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

/// Events `from..from + BATCH` of the stream; one in a hundred is a copy of an earlier one.
fn batch(from: u64, grouped: bool) -> Batch {
    let mut made = Batch { ids: vec![], payloads: vec![], times_us: vec![], groups: vec![] };
    for n in from..from + BATCH {
        let dice = mix(n, 3);
        let original = if dice.is_multiple_of(100) { (dice >> 20) % (n + 1) } else { n };
        made.ids.push(id(original));
        made.payloads.push(mix(original, 4));
        made.times_us.push(START_US + n as i64 * EVENT_US);
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

/// What a run is to do.
#[derive(Clone, Copy)]
struct Plan {
    name: &'static str,
    events: u64,
    grouped: bool,
    sized: bool,
    judged: bool,
    /// Of the log, in µs; an event comes each [`EVENT_US`].
    horizon_us: i64,
}

const EVENT_US: i64 = 1_000;

fn lateness(horizon_us: i64) -> Lateness {
    let future_skew_us_max = 0;
    Lateness { allowed_lateness_us: 0, correction_horizon_us: horizon_us, future_skew_us_max }
}

fn times(epoch: u64, now: LogTime) -> EpochTimes {
    EpochTimes { epoch, frontier_before: now, frontier: now, latest: now }
}

/// Verdicts on one event of a hundred.
fn verdicts(events: u64, invalid: bool, log_time: LogTime) -> Vec<Judgement> {
    let of = |n: u64| Judgement {
        worker: 0,
        target: Target::Event,
        hash: id(n),
        invalid,
        decided_at_us: i64::from(invalid),
        log_time,
        arrival: (u64::from(invalid), n as u32),
    };
    (0..events).step_by(100).map(of).collect()
}

fn run(plan: Plan) -> Result<(), LedgerFault> {
    let before = resident_bytes();
    let mut ledger = Ledger::new(LedgerSettings::new(lateness(plan.horizon_us), 0, 1));
    if plan.sized {
        ledger.reserve(plan.events as usize, 0..VNODES);
    }
    if plan.judged {
        ledger.open(times(0, LogTime(START_US)))?;
        let said = verdicts(plan.events, true, LogTime(START_US));
        let mut judging = ledger.judge(said)?;
        while !ledger.carry_out::<Batch>(&mut judging, &mut Kept::default(), &mut |_| ())? {}
    }
    let (mut batches_ns, mut counts) = (Vec::new(), Counts::default());
    for (epoch, from) in (1..).zip((0..plan.events).step_by(BATCH as usize)) {
        let log_time = LogTime(START_US + from as i64 * EVENT_US);
        let batch = batch(from, plan.grouped);
        let located = Arc::new(Located { partition: 0, offset: epoch, log_time, batch });
        let begin = Instant::now();
        ledger.open(times(epoch, log_time))?;
        let out = ledger.enter(&located)?;
        batches_ns.push(begin.elapsed().as_nanos());
        counts.add(&out.counts);
    }
    let total_ns: u128 = batches_ns.iter().sum();
    let per_event = |ns: u128| ns as f64 / BATCH as f64;
    batches_ns.sort_unstable();
    let batches = batches_ns.len();
    let held = ledger.len() as f64;
    println!(
        "{:<8} {:5.1} ns/event, median batch {:5.1}; batch {:4.0} µs, worst {:5.0} µs; {:5.1} \
         B/event counted, {:5.1} resident; {held} held, {:?}",
        plan.name,
        per_event(total_ns) / batches as f64,
        per_event(batches_ns[batches / 2]),
        batches_ns[batches / 2] as f64 / 1e3,
        batches_ns[batches - 1] as f64 / 1e3,
        ledger.bytes() as f64 / held,
        resident_bytes().saturating_sub(before) as f64 / held,
        counts.fates,
    );
    Ok(())
}

/// Batches by offset.
#[derive(Default)]
struct Kept(HashMap<u64, Arc<Located<Batch>>>);

impl ReadBack<Batch> for Kept {
    fn read_back(&mut self, position: Position) -> Result<Arc<Located<Batch>>, String> {
        self.0.get(&position.offset).cloned().ok_or_else(|| "not kept".into())
    }
}

fn run_verdicts(events: u64) -> Result<(), LedgerFault> {
    let mut ledger = Ledger::new(LedgerSettings::new(lateness(24 * HOUR_US), 0, 1));
    let mut kept = Kept::default();
    for (epoch, from) in (1..).zip((0..events).step_by(BATCH as usize)) {
        let (log_time, batch) = (LogTime(START_US), batch(from, false));
        let located = Arc::new(Located { partition: 0, offset: epoch, log_time, batch });
        ledger.open(times(epoch, log_time))?;
        ledger.enter(&located)?;
        kept.0.insert(epoch, located);
    }
    for (name, invalid) in [("first", true), ("older", false), ("repeated", true)] {
        let said = verdicts(events, invalid, LogTime(START_US));
        let (sent, mut changed) = (said.len(), 0);
        let begin = Instant::now();
        let mut judging = ledger.judge(said)?;
        while !ledger.carry_out(&mut judging, &mut kept, &mut |out| changed += out.rows.len())? {}
        let ns = begin.elapsed().as_nanos() as f64 / sent as f64;
        println!("verdicts {name}: {ns:.0} ns each, {changed} of {sent} changed an event");
    }
    Ok(())
}

/// Enters events of the stream, none of them forgotten.
fn feed(ledger: &mut Ledger, from: u64, until: u64) -> Result<(), LedgerFault> {
    for from in (from..until).step_by(BATCH as usize) {
        let (log_time, batch) = (LogTime(START_US), batch(from, true));
        ledger.open(times(from + 1, log_time))?;
        ledger.enter(&Arc::new(Located { partition: 0, offset: from, log_time, batch }))?;
    }
    Ok(())
}

fn run_images(events: u64) -> Result<(), LedgerFault> {
    let mut ledger = Ledger::new(LedgerSettings::new(lateness(24 * HOUR_US), 0, 1));
    feed(&mut ledger, 0, events)?;
    let mut chain: Vec<Vec<Vec<u8>>> = Vec::new();
    let again = [(ImageKind::Whole, 0), (ImageKind::Whole, 0), (ImageKind::Increment, events / 10)];
    let mut fed = events.next_multiple_of(BATCH);
    for (kind, more) in again {
        feed(&mut ledger, fed, fed + more)?;
        fed += more.next_multiple_of(BATCH);
        let begin = Instant::now();
        let image = ledger.image(kind);
        let stopped = begin.elapsed();
        let write = |vnode| {
            let mut section = Vec::new();
            image.write_vnode(vnode, &mut section);
            section
        };
        let begin = Instant::now();
        let sections: Vec<Vec<u8>> = (0..VNODES).map(write).collect();
        let bytes: usize = sections.iter().map(Vec::len).sum();
        let (wrote, rows) = (begin.elapsed(), ledger.len());
        println!("image {kind:?} of {rows}: stopped {stopped:?}, written {wrote:?}, {bytes} B");
        if kind == ImageKind::Whole {
            chain.clear();
        }
        chain.push(sections);
    }
    let begin = Instant::now();
    let mut loaded = Ledger::new(LedgerSettings::new(lateness(24 * HOUR_US), 0, 1));
    for vnode in 0..VNODES {
        let parts: Vec<&[u8]> = chain.iter().map(|of| of[vnode].as_slice()).collect();
        loaded.load_vnode(vnode, &parts).map_err(|e| LedgerFault::Feed(e.to_string()))?;
    }
    let vnodes = begin.elapsed();
    loaded.finish_load();
    println!("loaded {} in {vnodes:?}, with groups {:?}", loaded.len(), begin.elapsed());
    Ok(())
}

fn main() -> Result<(), LedgerFault> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let events = args.first().and_then(|a| a.parse().ok());
    if events.is_some() {
        args.remove(0);
    }
    let events = events.unwrap_or(10_000_000);
    let wanted = |name: &str| args.is_empty() || args.iter().any(|a| a == name);
    let all = Plan {
        name: "growing",
        events,
        grouped: false,
        sized: false,
        judged: false,
        horizon_us: events as i64 * EVENT_US,
    };
    let third_us = events as i64 * EVENT_US / 3;
    for plan in [
        all,
        Plan { name: "sized", sized: true, ..all },
        Plan { name: "grouped", grouped: true, ..all },
        Plan { name: "judged", judged: true, ..all },
        Plan { name: "steady", horizon_us: third_us, ..all },
    ] {
        if wanted(plan.name) {
            run(plan)?;
        }
    }
    if wanted("verdicts") {
        run_verdicts(events.min(2_000_000))?;
    }
    if wanted("images") { run_images(events) } else { Ok(()) }
}
