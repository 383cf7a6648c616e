//! The rules one by one, on a ledger without a dataflow around it; the limits, the faults, and how
//! much memory an event takes.

use super::{Dice, judge};
use crate::{
    accumulate::Times,
    change::Counts,
    event::{DecodeError, EventBatch, Fate, Position, Target},
    feed::{EpochTimes, Feed, Judgement, Located, ReadBack},
    hash::{self, IdHash, VNODES},
    ledger::{
        Ledger, LedgerFault, LedgerLimits, LedgerSettings, Ledgered, RowDelta,
        Standing::{self, Absent, Invalid, Valid},
        ledger,
    },
    log::Frame,
    symbols::Symbols,
    time::{HOUR_US, Lateness, LogTime, MINUTE_US},
};
use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

pub(super) const LATENESS: Lateness = Lateness {
    allowed_lateness_us: MINUTE_US,
    correction_horizon_us: HOUR_US,
    future_skew_us_max: MINUTE_US,
};
pub(super) const NOON: i64 = 1_800_000_000_000_000 / MINUTE_US * MINUTE_US;

#[derive(Clone, Debug, Default)]
pub(super) struct Events {
    pub(super) ids: Vec<IdHash>,
    pub(super) payloads: Vec<u64>,
    pub(super) times_us: Vec<i64>,
    pub(super) groups: Vec<Option<IdHash>>,
    pub(super) born_invalid: Vec<bool>,
    pub(super) foreign: Vec<bool>,
}

impl EventBatch for Events {
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
    fn understood(&self, row: usize) -> bool {
        !self.foreign.get(row).copied().unwrap_or(false)
    }
    fn has_groups(&self) -> bool {
        !self.groups.is_empty() || !self.born_invalid.is_empty()
    }
    fn group(&self, row: usize) -> Option<IdHash> {
        self.groups.get(row).copied().flatten()
    }
    fn born_invalid(&self, row: usize) -> bool {
        self.born_invalid.get(row).copied().unwrap_or(false)
    }
}

impl Events {
    /// Events of one minute with these ids and payloads.
    fn at(time_us: i64, ids: &[(u8, u64)]) -> Events {
        Events {
            ids: ids.iter().map(|e| [e.0; 16]).collect(),
            payloads: ids.iter().map(|e| e.1).collect(),
            times_us: vec![time_us; ids.len()],
            ..Events::default()
        }
    }

    fn of(mut self, group: u8) -> Events {
        self.groups = vec![Some([group; 16]); self.ids.len()];
        self
    }

    fn born_invalid(mut self) -> Events {
        self.born_invalid = vec![true; self.ids.len()];
        self
    }
}

/// A ledger, the log behind it, and the epoch.
struct Bench {
    ledger: Ledger,
    log: Log,
    epoch: u64,
    now_us: i64,
    arrivals: u32,
}

#[derive(Default)]
pub(super) struct Log(pub(super) HashMap<u64, Arc<Located<Events>>>);

impl ReadBack<Events> for Log {
    fn read_back(&mut self, position: Position) -> Result<Arc<Located<Events>>, String> {
        self.0.get(&position.offset).cloned().ok_or_else(|| "deleted".into())
    }
}

impl Bench {
    fn new(limits: LedgerLimits) -> Bench {
        let settings = LedgerSettings { limits, ..LedgerSettings::new(LATENESS, 0, 1) };
        let (ledger, log) = (Ledger::new(settings), Log::default());
        let mut bench = Bench { ledger, log, epoch: 0, now_us: NOON, arrivals: 0 };
        bench.open(NOON);
        bench
    }

    fn open(&mut self, now_us: i64) {
        self.epoch += 1;
        let frontier_before = LogTime(self.now_us);
        self.now_us = now_us;
        let (frontier, latest) = (LogTime(now_us), LogTime(now_us));
        let times = EpochTimes { epoch: self.epoch, frontier_before, frontier, latest };
        self.ledger.open(times).unwrap();
    }

    fn try_enter(&mut self, batch: Events) -> Result<Ledgered<Events>, LedgerFault> {
        let (offset, log_time) = (self.log.0.len() as u64, LogTime(self.now_us));
        let located = Arc::new(Located { partition: 0, offset, log_time, batch });
        self.log.0.insert(offset, Arc::clone(&located));
        self.ledger.enter(&located)
    }

    fn enter(&mut self, batch: Events) -> Ledgered<Events> {
        self.try_enter(batch).unwrap()
    }

    fn say(&mut self, target: Target, key: u8, invalid: bool, decided_at_us: i64) -> Judgement {
        self.arrivals += 1;
        let (log_time, arrival) = (LogTime(self.now_us), (0, self.arrivals));
        Judgement { worker: 0, target, hash: [key; 16], invalid, decided_at_us, log_time, arrival }
    }

    /// Applies verdicts; what changed as (offset, row, was, is), and the counts.
    fn judge(&mut self, said: Vec<Judgement>) -> (Vec<(u64, u16, Standing, Standing)>, Counts) {
        let (mut changes, mut counts) = (Vec::new(), Counts::default());
        let mut emit = |out: Ledgered<Events>| {
            counts.add(&out.counts);
            for delta in out.rows {
                let offset = out.batch.as_ref().unwrap().offset;
                changes.push((offset, delta.row, delta.was, delta.is));
            }
        };
        judge(&mut self.ledger, said, &mut self.log, &mut emit).unwrap();
        (changes, counts)
    }
}

fn fate(out: &Ledgered<Events>, fate: Fate) -> u64 {
    out.counts.fates[fate as usize]
}

#[test]
fn the_first_counts_copies_do_not_and_another_payload_is_a_conflict() {
    let mut bench = Bench::new(LedgerLimits::default());
    let out = bench.enter(Events::at(NOON, &[(1, 10), (2, 20), (1, 10), (2, 21), (1, 10)]));
    let new = |row| RowDelta { row, was: Absent, is: Valid };
    assert_eq!(out.rows, [new(0), new(1)]);
    assert_eq!(out.counts.fates, [2, 2, 1, 0, 0]);
    let aside: Vec<_> = out.incidents.iter().map(|i| (i.fate, i.position.row)).collect();
    assert_eq!(aside, [(Fate::Duplicate, 2), (Fate::Conflict, 3), (Fate::Duplicate, 4)]);
    bench.open(NOON + 1);
    let out = bench.enter(Events::at(NOON, &[(2, 20), (1, 11)]));
    assert_eq!(out.counts.fates, [0, 1, 1, 0, 0]);
    let entry = bench.ledger.lookup(&[2; 16]).unwrap();
    assert_eq!((entry.position.row, entry.standing), (1, Valid));
    assert_eq!(bench.ledger.lookup(&[3; 16]), None);
}

#[test]
fn what_is_not_understood_is_set_aside_and_may_come_again() {
    let mut bench = Bench::new(LedgerLimits::default());
    let foreign = Events { foreign: vec![true], ..Events::at(NOON, &[(1, 1)]) };
    assert_eq!(fate(&bench.enter(foreign), Fate::Quarantined), 1);
    assert_eq!(fate(&bench.enter(Events::at(NOON, &[(1, 1)])), Fate::Counted), 1);
}

#[test]
fn late_counts_and_too_late_does_not() {
    let mut bench = Bench::new(LedgerLimits::default());
    bench.open(NOON + HOUR_US);
    let late = bench.enter(Events::at(NOON, &[(1, 1)]));
    assert_eq!((late.counts.late, late.rows.len()), (1, 1));
    let too_late = Events::at(NOON - 1, &[(2, 2), (2, 2), (2, 3)]);
    let out = bench.enter(too_late);
    assert_eq!(out.counts.fates, [0, 1, 1, 0, 1]);
    assert!(out.rows.is_empty());
    assert!(bench.ledger.lookup(&[2; 16]).unwrap().too_late);
    // No verdict brings it in.
    let valid = bench.say(Target::Event, 2, false, 1);
    assert_eq!(bench.judge(vec![valid]).0, []);
}

#[test]
fn what_is_further_ahead_than_may_be_is_set_aside_and_the_distant_past_is_too_late() {
    let mut bench = Bench::new(LedgerLimits::default());
    let furthest = NOON + LATENESS.future_skew_us_max;
    assert_eq!(fate(&bench.enter(Events::at(furthest, &[(1, 1)])), Fate::Counted), 1);
    // As many minutes ahead as there are numbers of minutes: taken modulo that it is noon.
    let around = NOON + (MINUTE_US << 32);
    for ahead in [furthest + 1, around, 253_402_300_799_000_000, i64::MAX] {
        let out = bench.enter(Events::at(ahead, &[(2, 2), (2, 2)]));
        assert_eq!((out.counts.fates, out.rows.len()), ([0, 0, 0, 2, 0], 0), "{ahead}");
    }
    for (key, past) in (3..).zip([-1, NOON - (MINUTE_US << 32), i64::MIN]) {
        let out = bench.enter(Events::at(past, &[(key, 2)]));
        assert_eq!((out.counts.fates, out.rows.len()), ([0, 0, 0, 0, 1], 0), "{past}");
    }
    // What is ahead was not remembered.
    assert_eq!(bench.ledger.lookup(&[2; 16]), None);
    assert_eq!(fate(&bench.enter(Events::at(NOON, &[(2, 2)])), Fate::Counted), 1);
}

#[test]
fn an_id_is_forgotten_when_every_copy_of_it_is_too_late() {
    let mut bench = Bench::new(LedgerLimits::default());
    bench.enter(Events::at(NOON, &[(1, 1)]).of(9));
    let forgotten_at = (0..).map(|s| NOON + s * LATENESS.slice_us());
    let forgotten_at =
        forgotten_at.into_iter().find(|&t| LATENESS.forgotten(LogTime(NOON), LogTime(t)));
    bench.open(forgotten_at.unwrap());
    assert!(bench.ledger.lookup(&[1; 16]).is_some(), "the epoch before was not complete to it");
    bench.open(forgotten_at.unwrap() + 1);
    assert_eq!(bench.ledger.lookup(&[1; 16]), None);
    let out = bench.enter(Events::at(NOON + MINUTE_US, &[(1, 1)]));
    assert_eq!(out.counts.fates, [0, 0, 0, 0, 1]);
    let invalid = bench.say(Target::Impression, 9, true, 1);
    assert_eq!(bench.judge(vec![invalid]).0, [], "its impression forgot it too");
}

#[test]
fn the_latest_decision_wins_and_of_two_equal_ones_the_later_arrival() {
    let mut bench = Bench::new(LedgerLimits::default());
    bench.enter(Events::at(NOON, &[(1, 1)]));
    let (invalid, older) =
        (bench.say(Target::Event, 1, true, 50), bench.say(Target::Event, 1, false, 49));
    let (changes, counts) = bench.judge(vec![older, invalid]);
    assert_eq!(changes, [(0, 0, Valid, Invalid)]);
    assert_eq!((counts.verdicts, counts.retractions), (2, 1));
    let older = bench.say(Target::Event, 1, false, 49);
    assert_eq!(bench.judge(vec![older]).0, []);
    let equal = bench.say(Target::Event, 1, false, 50);
    assert_eq!(bench.judge(vec![equal]).0, [(0, 0, Invalid, Valid)]);
    // There and back within an epoch is nothing.
    let said = [(true, 60), (false, 61)].map(|(i, at)| bench.say(Target::Event, 1, i, at));
    assert_eq!(bench.judge(said.to_vec()).0, []);
}

#[test]
fn an_earlier_decision_does_not_win_while_an_event_is_remembered_that_a_later_one_covered() {
    let retention_us = LATENESS.retention_us();
    let mut bench = Bench::new(LedgerLimits::default());
    let invalid = bench.say(Target::Impression, 9, true, 100);
    assert_eq!(bench.judge(vec![invalid]).0, []);
    bench.open(NOON + retention_us * 3 / 4);
    let out = bench.enter(Events::at(NOON + retention_us * 3 / 4, &[(1, 1)]).of(9));
    assert_eq!(out.rows[0].is, Invalid);
    // Only what was decided later changes it, also when the verdict covers no event any more.
    bench.open(NOON + retention_us * 5 / 4);
    let out = bench.enter(Events::at(NOON + retention_us * 5 / 4, &[(2, 2)]).of(9));
    assert_eq!(out.rows[0].is, Valid, "it is not covered");
    // One that was decided earlier repeats it, whatever it says: that is a verdict on all.
    let earlier = bench.say(Target::Impression, 9, false, 50);
    assert_eq!(bench.judge(vec![earlier]).0, [(1, 0, Valid, Invalid)]);
    let out = bench.enter(Events::at(NOON + retention_us * 5 / 4, &[(3, 3)]).of(9));
    assert_eq!(out.rows[0].is, Invalid, "it is covered again");
    let later = bench.say(Target::Impression, 9, true, 101);
    assert_eq!(bench.judge(vec![later]).0, []);
    let later = bench.say(Target::Impression, 9, false, 102);
    assert_eq!(
        bench.judge(vec![later]).0,
        [(0, 0, Invalid, Valid), (1, 0, Invalid, Valid), (2, 0, Invalid, Valid)]
    );
}

/// What an event of a partition that is far ahead of the others is covered by goes by its own log
/// time: it is remembered from then on, and the verdict must be known as long.
#[test]
fn a_verdict_covers_by_the_log_time_of_the_event_however_far_others_lag() {
    let retention_us = LATENESS.retention_us();
    let mut bench = Bench::new(LedgerLimits::default());
    let invalid = bench.say(Target::Impression, 9, true, 100);
    assert_eq!(bench.judge(vec![invalid]).0, []);
    // The log is complete to noon only: somebody lags by more than a retention.
    let ahead_us = NOON + retention_us * 5 / 4;
    bench.open(ahead_us);
    let out = bench.enter(Events::at(ahead_us, &[(1, 1)]).of(9));
    assert_eq!(out.rows[0].is, Valid, "it came more than a retention later");
}

#[test]
fn a_decision_that_was_made_earlier_and_says_the_same_covers_what_came_meanwhile() {
    let retention_us = LATENESS.retention_us();
    let mut bench = Bench::new(LedgerLimits::default());
    let latest = bench.say(Target::Impression, 9, true, 100);
    assert_eq!(bench.judge(vec![latest]).0, []);
    bench.open(NOON + retention_us * 5 / 4);
    let out = bench.enter(Events::at(NOON + retention_us * 5 / 4, &[(1, 1)]).of(9));
    assert_eq!(out.rows[0].is, Valid);
    let earlier = bench.say(Target::Impression, 9, true, 90);
    assert_eq!(bench.judge(vec![earlier]).0, [(0, 0, Valid, Invalid)]);
}

#[test]
fn an_event_and_its_impression_are_judged_side_by_side() {
    let mut bench = Bench::new(LedgerLimits::default());
    bench.enter(Events::at(NOON, &[(1, 1), (2, 2)]).of(9));
    let on_all = bench.say(Target::Impression, 9, true, 1);
    let both = [(0, 0, Valid, Invalid), (0, 1, Valid, Invalid)];
    assert_eq!(bench.judge(vec![on_all]).0, both);
    let on_one = bench.say(Target::Event, 1, true, 1);
    assert_eq!(bench.judge(vec![on_one]).0, [], "it is invalid already");
    // The impression is reinstated, and with it the event that nothing else is said about.
    let valid = bench.say(Target::Impression, 9, false, 2);
    assert_eq!(bench.judge(vec![valid]).0, [(0, 1, Invalid, Valid)]);
    let entry = bench.ledger.lookup(&[1; 16]).unwrap();
    assert!(entry.event_invalid && !entry.impression_invalid);
    // One is taken out and the other put in at once: the event stands as it did.
    let swap =
        vec![bench.say(Target::Event, 1, false, 3), bench.say(Target::Impression, 9, true, 3)];
    assert_eq!(bench.judge(swap).0, [(0, 1, Valid, Invalid)]);
    // A click that comes later finds the verdict.
    let out = bench.enter(Events::at(NOON, &[(3, 3)]).of(9));
    assert_eq!(out.rows, [RowDelta { row: 0, was: Absent, is: Invalid }]);
}

#[test]
fn a_verdict_waits_for_its_event() {
    let mut bench = Bench::new(LedgerLimits::default());
    let said = vec![bench.say(Target::Event, 1, true, 5), bench.say(Target::Event, 2, false, 5)];
    assert_eq!(bench.judge(said).0, []);
    bench.open(NOON + 1);
    let out = bench.enter(Events::at(NOON, &[(1, 1), (2, 2)]).born_invalid());
    let came = |row, is| RowDelta { row, was: Absent, is };
    assert_eq!(out.rows, [came(0, Invalid), came(1, Valid)]);
}

#[test]
fn any_explicit_verdict_outweighs_a_birth_mark() {
    let mut bench = Bench::new(LedgerLimits::default());
    let out = bench.enter(Events::at(NOON, &[(1, 1)]).born_invalid());
    assert_eq!(out.rows[0].is, Invalid);
    let valid = bench.say(Target::Event, 1, false, i64::MIN);
    assert_eq!(bench.judge(vec![valid]).0, [(0, 0, Invalid, Valid)]);
    let entry = bench.ledger.lookup(&[1; 16]).unwrap();
    assert!(entry.born_invalid && !entry.event_invalid);
}

#[test]
fn a_verdict_after_the_horizon_changes_nothing_and_is_counted() {
    let mut bench = Bench::new(LedgerLimits::default());
    bench.enter(Events::at(NOON, &[(1, 1)]).of(9));
    bench.open(NOON + HOUR_US + MINUTE_US);
    let said = vec![
        bench.say(Target::Event, 1, true, 5),
        bench.say(Target::Impression, 9, true, 5),
        bench.say(Target::Event, 2, true, 5),
    ];
    let (changes, counts) = bench.judge(said);
    assert_eq!((changes, counts.verdicts_too_late), (vec![], 2));
}

#[test]
fn another_group_with_the_same_72_bits_is_not_retracted() {
    let mut bench = Bench::new(LedgerLimits::default());
    let mut twin = [9; 16];
    twin[10] = 8;
    let batch =
        Events { groups: vec![Some(twin), Some([9; 16])], ..Events::at(NOON, &[(1, 1), (2, 2)]) };
    bench.enter(batch);
    let invalid = bench.say(Target::Impression, 9, true, 1);
    assert_eq!(bench.judge(vec![invalid]).0, [(0, 1, Valid, Invalid)]);
    assert_eq!(bench.ledger.lookup(&[1; 16]).unwrap().standing, Valid);
}

#[test]
fn an_event_too_many_is_set_aside_until_there_is_room() {
    let limits = LedgerLimits { rows_per_vnode_max: 8, ..LedgerLimits::default() };
    let mut bench = Bench::new(limits);
    let of_vnode = |n: u8| {
        let mut id = [n; 16];
        id[15] = 77;
        id
    };
    let events = |from: u8, to: u8, at| Events {
        ids: (from..to).map(of_vnode).collect(),
        payloads: vec![0; usize::from(to - from)],
        times_us: vec![at; usize::from(to - from)],
        ..Events::default()
    };
    assert!(!bench.ledger.is_nearly_full());
    let out = bench.enter(events(0, 10, NOON));
    assert_eq!(out.counts.fates, [8, 0, 0, 2, 0]);
    assert_eq!(out.incidents.len(), 2);
    assert!(bench.ledger.is_nearly_full());
    // The known are still known, other vnodes have room.
    let out = bench.enter(events(0, 9, NOON));
    assert_eq!(out.counts.fates, [0, 8, 0, 1, 0]);
    assert_eq!(fate(&bench.enter(Events::at(NOON, &[(1, 1)])), Fate::Counted), 1);
    bench.open(NOON + 3 * HOUR_US);
    bench.open(NOON + 3 * HOUR_US + 1);
    assert!(!bench.ledger.is_nearly_full());
    let out = bench.enter(events(8, 10, NOON + 3 * HOUR_US));
    assert_eq!(out.counts.fates, [2, 0, 0, 0, 0]);
}

#[test]
fn a_full_memory_of_verdicts_forgets_the_oldest_and_says_so() {
    let limits = LedgerLimits { impression_verdicts_max: 4, ..LedgerLimits::default() };
    let mut bench = Bench::new(limits);
    for key in 1..=6 {
        let said = bench.say(Target::Impression, key, true, 1);
        bench.judge(vec![said]);
    }
    assert_eq!((bench.ledger.verdicts(), bench.ledger.verdicts_forgotten_early()), (4, 2));
    assert!(bench.ledger.is_nearly_full());
    for (group, is) in [(1, Valid), (2, Valid), (3, Invalid), (6, Invalid)] {
        let out = bench.enter(Events::at(NOON, &[(group + 100, 1)]).of(group));
        assert_eq!(out.rows[0].is, is, "group {group}");
    }
}

#[test]
fn what_breaks_the_rules_of_the_feed_is_refused_by_name() {
    let mut bench = Bench::new(LedgerLimits::default());
    let fault = |result: Result<_, LedgerFault>| result.map(|_: Ledgered<Events>| ()).unwrap_err();
    let mut uneven = Events::at(NOON, &[(1, 1), (2, 2)]);
    uneven.payloads.pop();
    assert!(fault(bench.try_enter(uneven)).to_string().contains("columns of [2, 1, 2]"));
    let located = Located {
        partition: 256,
        offset: 0,
        log_time: LogTime(NOON),
        batch: Events::at(NOON, &[(1, 1)]),
    };
    assert!(fault(bench.ledger.enter(&Arc::new(located))).to_string().contains("partition 256"));
    let again = EpochTimes { epoch: 1, ..EpochTimes::default() };
    assert!(bench.ledger.open(again).unwrap_err().to_string().contains("epoch: 1"));
}

#[test]
fn what_cannot_be_read_back_or_was_changed_is_a_fault() {
    let mut bench = Bench::new(LedgerLimits::default());
    bench.enter(Events::at(NOON, &[(1, 1)]));
    let said = bench.say(Target::Event, 1, true, 1);
    let other = Events::at(NOON, &[(5, 1)]);
    let other = Located { partition: 0, offset: 0, log_time: LogTime(NOON), batch: other };
    let mut changed = Log(HashMap::from([(0, Arc::new(other))]));
    let fault = judge(&mut bench.ledger, vec![said], &mut changed, &mut |_| panic!("a guess"));
    assert_eq!(fault, Err(LedgerFault::Changed { partition: 0, offset: 0, row: 0 }));

    let mut bench = Bench::new(LedgerLimits::default());
    bench.enter(Events::at(NOON, &[(1, 1)]));
    let said = bench.say(Target::Event, 1, true, 1);
    let mut nothing = Log::default();
    let fault = judge(&mut bench.ledger, vec![said], &mut nothing, &mut |_| panic!("a guess"));
    assert!(fault.unwrap_err().to_string().contains("partition 0 offset 0"), "names the frame");
}

#[test]
fn after_a_fault_the_operator_holds_its_frontier_and_says_nothing_more() {
    use timely::dataflow::operators::{Input, Inspect, Probe, probe};
    timely::execute_directly(|worker| {
        let (faults, said) = (Rc::new(RefCell::new(Vec::new())), Rc::new(RefCell::new(0)));
        let probe = probe::Handle::new();
        let (reported, seen) = (Rc::clone(&faults), Rc::clone(&said));
        let (mut events, mut verdicts) = worker.dataflow::<u64, _, _>(|scope| {
            let (events, feeds) = scope.new_input::<Vec<Feed<Events>>>();
            let (verdicts, judgements) = scope.new_input::<Vec<Judgement>>();
            let settings = LedgerSettings::new(LATENESS, 0, 1);
            let fault = Rc::new(move |reason| reported.borrow_mut().push(reason));
            let (new, log) = (Ledger::new(settings), Log::default());
            let (times, on_image) = (Times::default(), Rc::new(|_, _| {}));
            let (stream, _) = ledger(feeds, judgements, new, log, times, on_image, fault);
            stream.inspect(move |_| *seen.borrow_mut() += 1).probe_with(&probe);
            (events, verdicts)
        });
        for epoch in 1..5 {
            events.advance_to(epoch);
            verdicts.advance_to(epoch);
            let now = LogTime(NOON + epoch as i64);
            let (frontier_before, frontier, latest) = (now, now, now);
            events.send(Feed::Open(EpochTimes { epoch, frontier_before, frontier, latest }));
            let batch = Events::at(NOON, &[(epoch as u8, 1)]);
            let (partition, offset) = (0, epoch);
            events.send(Feed::Batch(Arc::new(Located { partition, offset, log_time: now, batch })));
            if epoch == 2 {
                let (target, hash, arrival) = (Target::Event, [1; 16], (0, 0));
                let (invalid, decided_at_us, log_time) = (true, 0, now);
                let said = Judgement {
                    worker: 0,
                    target,
                    hash,
                    invalid,
                    decided_at_us,
                    log_time,
                    arrival,
                };
                verdicts.send(said);
            }
        }
        events.advance_to(9);
        verdicts.advance_to(9);
        for _ in 0..50 {
            worker.step();
        }
        assert_eq!(faults.borrow().len(), 1, "{faults:?}");
        assert!(faults.borrow()[0].contains("cannot be read back: deleted"), "{faults:?}");
        assert!(probe.less_equal(&2) && !probe.less_than(&2), "held at the epoch of the fault");
        assert_eq!(*said.borrow(), 2, "the batches of epochs 1 and 2");
        drop((events, verdicts));
        worker.drop_dataflow(0);
    });
}

/// Everything included: rows, indexes, free places, the structures themselves.
#[test]
fn an_event_takes_at_most_45_bytes() {
    let mut dice = Dice::new("an_event_takes_at_most_45_bytes");
    let mut ledger = Ledger::new(LedgerSettings::new(LATENESS, 0, 1));
    let now = LogTime(NOON);
    let times = EpochTimes { epoch: 1, frontier_before: now, frontier: now, latest: now };
    ledger.open(times).unwrap();
    let mut worst: f64 = 0.0;
    for offset in 0..350 {
        let mut batch = Events::default();
        for _ in 0..4_000 {
            batch.ids.push((u128::from(dice.next()) << 64 | u128::from(dice.next())).to_le_bytes());
            batch.payloads.push(1);
            batch.times_us.push(NOON);
        }
        let located = Located { partition: 0, offset, log_time: now, batch };
        ledger.enter(&Arc::new(located)).unwrap();
        if ledger.len() >= 1_000_000 {
            worst = worst.max(ledger.bytes() as f64 / ledger.len() as f64);
        }
    }
    println!("at most {worst:.1} bytes an event between 1,000,000 and 1,400,000 events");
    assert!(worst > 39.0 && worst < 45.0, "{worst}");
    assert_eq!(ledger.len(), 1_400_000);
    assert!((0..VNODES).all(|v| hash::partition_of_vnode(v, 4) == (v % 4) as u16));
}
