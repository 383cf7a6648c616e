//! Random input for a ledger: small, and dense with everything that can go wrong. A few dozen ids
//! and impressions, so that copies, conflicts and verdicts meet; partitions that lag behind each
//! other; log time that stands still, creeps, or leaps over whole horizons, so that ids and
//! verdicts are forgotten and come again. All times are whole seconds, so that they often meet the
//! bounds exactly. Each frame keeps the promises of the log: log times never
//! decrease within a partition, and no event is further ahead of its log time than allowed.

use std::{collections::HashMap, sync::Arc};
use trueup_operators::{
    event::{DecodeError, EventBatch, Target},
    feed::{EpochTimes, Judgement, Located},
    hash::{self, IdHash, mix},
    log::Frame,
    symbols::Symbols,
    time::{Lateness, LogTime, MINUTE_US, SECOND_US},
};

/// Random numbers that are the same everywhere.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0, 7) % n
    }

    pub(crate) fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}

/// An event as the test makes it.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: IdHash,
    pub(crate) payload: u64,
    pub(crate) time_us: i64,
    pub(crate) group: Option<IdHash>,
    pub(crate) born_invalid: bool,
    pub(crate) understood: bool,
}

/// Events with their columns.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) events: Vec<Event>,
    ids: Vec<IdHash>,
    payloads: Vec<u64>,
    times_us: Vec<i64>,
}

impl Batch {
    pub(crate) fn new(events: Vec<Event>) -> Batch {
        Batch {
            ids: events.iter().map(|e| e.id).collect(),
            payloads: events.iter().map(|e| e.payload).collect(),
            times_us: events.iter().map(|e| e.time_us).collect(),
            events,
        }
    }
}

impl EventBatch for Batch {
    fn decode(frame: &Frame, _: &Symbols) -> Result<Self, DecodeError> {
        let (partition, offset) = (frame.partition, frame.offset);
        Err(DecodeError { partition, offset, reason: "made in memory only".into() })
    }
    fn len(&self) -> usize {
        self.events.len()
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
    fn understood(&self, row: usize) -> bool {
        self.events[row].understood
    }
    fn has_groups(&self) -> bool {
        self.events.iter().any(|e| e.group.is_some() || e.born_invalid)
    }
    fn group(&self, row: usize) -> Option<IdHash> {
        self.events[row].group
    }
    fn born_invalid(&self, row: usize) -> bool {
        self.events[row].born_invalid
    }
}

/// One epoch of the input. The `worker` of a judgement is not set yet.
#[derive(Debug)]
pub(crate) struct EpochInput {
    pub(crate) times: EpochTimes,
    pub(crate) frames: Vec<Arc<Located<Batch>>>,
    pub(crate) judgements: Vec<Judgement>,
}

/// All input of a case.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub(crate) lateness: Lateness,
    pub(crate) epochs: Vec<EpochInput>,
}

pub(crate) const PARTITIONS: u16 = 4;

impl Schedule {
    /// The frames by their place, to be read back.
    pub(crate) fn frames(&self) -> HashMap<(u16, u64), Arc<Located<Batch>>> {
        let frames = self.epochs.iter().flat_map(|e| &e.frames);
        frames.map(|f| ((f.partition, f.offset), Arc::clone(f))).collect()
    }

    /// The ids of all events, some of them often.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &IdHash> {
        self.epochs.iter().flat_map(|e| &e.frames).flat_map(|f| &f.batch.ids)
    }

    pub(crate) fn random(seed: u64) -> Schedule {
        let mut making = Making::new(seed);
        let epochs = 20 + making.dice.below(80);
        let epochs = (1..=epochs).map(|epoch| making.epoch(epoch)).collect();
        Schedule { lateness: making.lateness, epochs }
    }
}

struct Making {
    dice: Dice,
    lateness: Lateness,
    ids: Vec<IdHash>,
    groups: Vec<IdHash>,
    /// Log time that each partition of the events, and that of the verdicts, is complete to.
    upto_us: [i64; PARTITIONS as usize + 1],
    offsets: [u64; PARTITIONS as usize],
    verdict_offset: u64,
}

impl Making {
    fn new(seed: u64) -> Making {
        let mut dice = Dice(seed);
        let mut id = || {
            let words = [dice.below(u64::MAX), dice.below(u64::MAX)];
            (u128::from(words[0]) << 64 | u128::from(words[1])).to_le_bytes()
        };
        let ids = (0..40).map(|_| id()).collect();
        let groups = (0..6).map(|_| id()).collect();
        let lateness = Lateness {
            allowed_lateness_us: MINUTE_US,
            correction_horizon_us: (1 + dice.below(4) as i64) * MINUTE_US,
            future_skew_us_max: dice.below(90) as i64 * SECOND_US,
        };
        let start = 1_800_000_000 * SECOND_US + dice.below(1 << 20) as i64 * SECOND_US;
        let upto_us = [start; PARTITIONS as usize + 1];
        Making { dice, lateness, ids, groups, upto_us, offsets: [0; 4], verdict_offset: 0 }
    }

    fn epoch(&mut self, epoch: u64) -> EpochInput {
        let before = self.upto_us;
        let retention_us = self.lateness.retention_us();
        let leap_s = match self.dice.below(10) {
            0 => 0,
            1..=5 => self.dice.below(3),
            6..=8 => self.dice.below(60),
            _ => self.dice.below((retention_us / SECOND_US) as u64 * 3 / 2),
        };
        let leap_us = leap_s as i64 * SECOND_US;
        let now = before.iter().max().map_or(0, |latest| latest + leap_us);
        for upto in &mut self.upto_us {
            // A partition that is read to its end carries the time of closing; others lag.
            let lag = self.dice.percent(30);
            let behind = self.dice.below(1 + ((now - *upto) / SECOND_US) as u64) as i64;
            *upto = if lag { *upto + behind * SECOND_US } else { now };
        }
        let times = EpochTimes {
            epoch,
            frontier_before: LogTime(before.into_iter().min().unwrap_or(0)),
            frontier: LogTime(self.upto_us.into_iter().min().unwrap_or(0)),
            latest: LogTime(self.upto_us.into_iter().max().unwrap_or(0)),
        };
        let mut frames = Vec::new();
        for partition in 0..PARTITIONS {
            let within = (before[usize::from(partition)], self.upto_us[usize::from(partition)]);
            self.frames(partition, within, &mut frames);
        }
        let last = usize::from(PARTITIONS);
        let judgements = self.judgements((before[last], self.upto_us[last]));
        EpochInput { times, frames, judgements }
    }

    fn within(&mut self, (from, to): (i64, i64)) -> i64 {
        from + self.dice.below(1 + ((to - from) / SECOND_US) as u64) as i64 * SECOND_US
    }

    fn frames(&mut self, partition: u16, span: (i64, i64), to: &mut Vec<Arc<Located<Batch>>>) {
        let mut from = span.0;
        for _ in 0..self.dice.below(3) {
            from = self.within((from, span.1));
            let rows = self.dice.below(12);
            let events = (0..rows).filter_map(|_| self.event(partition, from)).collect();
            let offset = self.offsets[usize::from(partition)];
            self.offsets[usize::from(partition)] += 1;
            let (log_time, batch) = (LogTime(from), Batch::new(events));
            to.push(Arc::new(Located { partition, offset, log_time, batch }));
        }
    }

    fn event(&mut self, partition: u16, log_time_us: i64) -> Option<Event> {
        let pick = self.dice.below(self.ids.len() as u64) as usize;
        let id = self.ids[pick];
        if hash::partition(&id, PARTITIONS) != partition {
            return None;
        }
        let ahead = self.lateness.future_skew_us_max;
        let behind = self.lateness.correction_horizon_us + 2 * MINUTE_US;
        let time_us = match self.dice.below(5) {
            // In the last minute that is not too late, where a verdict of another partition that
            // is ahead may be.
            4 => log_time_us - self.lateness.correction_horizon_us,
            0 => self.within((log_time_us - behind, log_time_us + ahead)),
            1 => log_time_us + ahead,
            _ => self.within((log_time_us - MINUTE_US, log_time_us)),
        };
        // An id mostly keeps its impression and its birth mark, as a retry does.
        let sticky = if self.dice.percent(90) { pick as u64 } else { self.dice.below(40) };
        Some(Event {
            id,
            payload: u64::from(self.dice.percent(15)) + (sticky << 33),
            time_us,
            group: (sticky % 3 != 0).then(|| self.groups[sticky as usize % self.groups.len()]),
            born_invalid: sticky % 7 == 0,
            understood: !self.dice.percent(4),
        })
    }

    fn judgements(&mut self, span: (i64, i64)) -> Vec<Judgement> {
        let mut made = Vec::new();
        let mut from = span.0;
        for _ in 0..self.dice.below(3) {
            from = self.within((from, span.1));
            for place in 0..self.dice.below(6) as u32 {
                let of_event = self.dice.percent(60);
                let (target, keys) = match of_event {
                    true => (Target::Event, &self.ids),
                    false => (Target::Impression, &self.groups),
                };
                let hash = keys[self.dice.below(keys.len() as u64) as usize];
                made.push(Judgement {
                    worker: 0,
                    target,
                    hash,
                    invalid: self.dice.percent(60),
                    // Mostly rising, with ties and with some that were decided long before.
                    decided_at_us: match self.dice.below(4) {
                        0 => self.dice.below(6) as i64,
                        _ => from / SECOND_US / 20,
                    },
                    log_time: LogTime(from),
                    arrival: (self.verdict_offset, place),
                });
            }
            self.verdict_offset += 1;
        }
        made
    }
}
