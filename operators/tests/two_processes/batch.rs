//! Schedules at random, and the smallest events that the first stage can sum: two dimensions, a
//! price, and what the ledger says of them.

use std::{collections::BTreeMap, sync::Arc};
use trueup_operators::{
    change::{Counts, Incident, Key},
    event::{DecodeError, EventBatch, Fate, Position},
    feed::{EpochTimes, Located},
    hash::{self, IdHash},
    ledger::{Ledgered, RowDelta, Standing},
    log::Frame,
    metrics::Metrics,
    money::Nanos,
    sum::Contribution,
    symbols::{ABSENT, Symbol, Symbols},
    time::{LogTime, MINUTE_US},
};

/// An event that counts from now on, or no longer.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) texts: [String; 2],
    pub(crate) at_us: i64,
    pub(crate) nanos: i64,
    pub(crate) counts: bool,
}

/// What an epoch brings.
#[derive(Clone, Debug)]
pub(crate) struct Epoch {
    pub(crate) times: EpochTimes,
    /// Batches.
    pub(crate) given: Vec<Vec<Given>>,
}

/// Epochs half a minute apart with events of the last two minutes, some of which are taken out
/// again later.
pub(crate) fn schedule(seed: u64, epochs: u64) -> Vec<Epoch> {
    let mut state = seed;
    let mut below = |n: u64| {
        state = state.wrapping_add(1);
        hash::mix(state, 0x5EED) % n
    };
    let mut counted: BTreeMap<u64, Given> = BTreeMap::new();
    let (mut schedule, mut before, mut made) = (Vec::new(), LogTime(0), 0);
    for epoch in 1..=epochs {
        let frontier = LogTime(epoch as i64 * MINUTE_US / 2);
        let times = EpochTimes { epoch, frontier_before: before, frontier, latest: frontier };
        before = frontier;
        let mut given = Vec::new();
        for _ in 0..below(9) {
            let mut batch = Vec::new();
            for _ in 0..below(40) {
                let at_us = frontier.0 - below(MINUTE_US as u64) as i64;
                let texts = [format!("x{}", below(3)), format!("y{}", below(200))];
                let event = Given { texts, at_us, nanos: below(1_000) as i64, counts: true };
                batch.push(event.clone());
                made += 1;
                if counted.len() < 200 {
                    counted.insert(made, event);
                }
            }
            for _ in 0..below(6) {
                let Some((&number, _)) = counted.range(below(made + 1)..).next() else { continue };
                let event = counted.remove(&number).unwrap();
                if event.at_us > frontier.0 - 5 * MINUTE_US {
                    batch.push(Given { counts: false, ..event });
                }
            }
            given.push(batch);
        }
        schedule.push(Epoch { times, given });
    }
    schedule
}

/// Events as columns, their dimensions as symbols of the process that read them.
#[derive(Debug)]
pub(crate) struct Batch {
    ids: Vec<IdHash>,
    payloads: Vec<u64>,
    times_us: Vec<i64>,
    keys: Vec<[Symbol; 2]>,
    nanos: Vec<i64>,
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
}

/// Where the batch with this number in an epoch is in the log.
pub(crate) fn offset(epoch: u64, number: usize) -> u64 {
    epoch << 8 | number as u64
}

/// Events beside these that did not count, made of every one whose price is a multiple of five;
/// not in the order of their positions.
pub(crate) fn incidents(offset: u64, given: &[Given]) -> Vec<Incident> {
    let of_fives = (0..).zip(given).filter(|(_, of)| of.nanos % 5 == 0);
    let incident = |(row, of): (u16, &Given)| {
        let number = of.nanos as usize / 5;
        let fate = [Fate::Conflict, Fate::Quarantined, Fate::TooLate][number % 3];
        let position = Position { partition: (number % 4) as u16, offset, row };
        Incident { fate, position, log_time: LogTime(of.at_us) }
    };
    of_fives.map(incident).collect()
}

/// What the ledger would say of these.
pub(crate) fn ledgered(offset: u64, given: &[Given], symbols: &Symbols) -> Arc<Ledgered<Batch>> {
    let standing = |row: usize, of: &Given| {
        let (was, is) = match of.counts {
            true => (Standing::Absent, Standing::Valid),
            false => (Standing::Valid, Standing::Absent),
        };
        RowDelta { row: row as u16, was, is }
    };
    let rows = given.iter().enumerate().map(|(row, of)| standing(row, of)).collect();
    let batch = Batch {
        ids: vec![[0; 16]; given.len()],
        payloads: vec![0; given.len()],
        times_us: given.iter().map(|of| of.at_us).collect(),
        keys: given.iter().map(|of| [0, 1].map(|i: usize| symbols.intern(&of.texts[i]))).collect(),
        nanos: given.iter().map(|of| of.nanos).collect(),
    };
    let located = Located { partition: 0, offset, log_time: LogTime(0), batch };
    let (batch, incidents) = (Some(Arc::new(located)), incidents(offset, given));
    let mut counts = Counts::default();
    incidents.iter().for_each(|incident| counts.fates[incident.fate as usize] += 1);
    Arc::new(Ledgered { batch, rows, incidents, counts })
}

/// Rollup 0 by both dimensions, rollup 1 by the first.
pub(crate) struct ByKey;

impl Contribution<Batch, 2> for ByKey {
    type Metrics = Metrics;

    fn rollups(&self) -> usize {
        2
    }

    fn metrics(&self, batch: &Batch, row: usize, _valid: bool) -> Metrics {
        Metrics { impressions: 1, spend: Nanos(batch.nanos[row]), ..Metrics::default() }
    }

    fn keys(&self, rollup: usize, batch: &Batch, rows: &[RowDelta], keys: &mut Vec<Key<2>>) {
        keys.extend(rows.iter().map(|delta| {
            let [x, y] = batch.keys[usize::from(delta.row)];
            [x, if rollup == 0 { y } else { ABSENT }]
        }));
    }
}
