//! The ledger against a plain differential dataflow of the same rules ([`reference`]): on random
//! schedules both must say the same, epoch by epoch, and the ledger the same with one, two and four
//! workers, and the same when its workers are thrown away in between and others go on from their
//! images ([`restarts`]). `TRUEUP_SEED=n` replays one case, `TRUEUP_CASES=n` runs more of them.
#![allow(clippy::unwrap_used)]

mod reference;
mod restarts;
mod schedule;

use restarts::Leg;
use schedule::{Batch, Dice, PARTITIONS, Schedule};
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::{Arc, Mutex},
};
use timely::dataflow::{
    InputHandle, ProbeHandle,
    operators::{Input, Inspect, Probe},
};
use trueup_operators::{
    accumulate::{Times, UnderWay},
    change::{Counts, Incident},
    event::{self, Fate, Target},
    feed::{Feed, Judgement, Located, ReadBack},
    hash::{self, IdHash},
    ledger::{Entry, Ledger, LedgerSettings, Ledgered, ledger},
};

type Position = (u16, u64, u16);

/// What can be said about an event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// How it ended.
    Fate { position: Position, fate: u8, late: bool },
    /// What happened to it in an epoch.
    Step(Position, Step),
}

/// What happened to a counted event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Its standing changed.
    Stands { epoch: u64, was: u8, is: u8 },
    /// A verdict that would have changed it came too late.
    Refused { epoch: u64, of_group: bool },
}

/// What a ledger said in one epoch, over all workers: in an order that does not depend on them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    steps: Vec<(Position, u8, u8)>,
    incidents: Vec<(Position, Fate, i64)>,
    counts: Counts,
}

impl Said {
    fn add(&mut self, ledgered: &Ledgered<Batch>) {
        if let Some(of) = &ledgered.batch {
            assert!(ledgered.rows.is_sorted_by_key(|d| d.row), "rows ascend");
            let at = |row| (of.partition, of.offset, row);
            self.steps.extend(ledgered.rows.iter().map(|d| (at(d.row), d.was as u8, d.is as u8)));
        }
        self.incidents.extend(ledgered.incidents.iter().map(|i: &Incident| {
            ((i.position.partition, i.position.offset, i.position.row), i.fate, i.log_time.0)
        }));
        self.counts.add(&ledgered.counts);
    }
}

struct Frames(HashMap<(u16, u64), Arc<Located<Batch>>>);

impl ReadBack<Batch> for Frames {
    fn read_back(&mut self, at: event::Position) -> Result<Arc<Located<Batch>>, String> {
        self.0.get(&(at.partition, at.offset)).cloned().ok_or_else(|| "never written".into())
    }
}

/// What a run left behind: what it said by epoch, and what its ledgers know in the end.
#[derive(Debug, Default)]
struct Ran {
    said: BTreeMap<u64, Said>,
    entries: BTreeMap<IdHash, Entry>,
    /// Rows of all workers.
    rows: usize,
}

/// Runs the ledger's operator over a schedule. `seed` decides when each worker steps, and how far
/// one input runs ahead of the other: nothing of that may show.
fn run(schedule: &Arc<Schedule>, workers: usize, seed: u64, leg: &Leg) -> Ran {
    let ran = Arc::new(Mutex::new(Ran::default()));
    let (schedule, leg, collected) = (Arc::clone(schedule), leg.clone(), Arc::clone(&ran));
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let (me, peers) = (worker.index(), worker.peers());
        let (mut events, mut verdicts) = (InputHandle::new(), InputHandle::new());
        let (probe, said_by) = (ProbeHandle::new(), Arc::clone(&collected));
        let settings = LedgerSettings::new(schedule.lateness, me as u32, peers as u32);
        let mut state = Ledger::new(settings);
        leg.load(me, peers, &mut state);
        let (times, images) = (Times::default(), Rc::new(RefCell::new(Vec::new())));
        let (marked, taken) = (Rc::clone(&times), Rc::clone(&images));
        let state = worker.dataflow::<u64, _, _>(|scope| {
            let feeds = scope.input_from(&mut events);
            let judgements = scope.input_from(&mut verdicts);
            let frames = Frames(schedule.frames());
            let fault = Rc::new(|reason: String| panic!("{reason}"));
            let on_image = Rc::new(move |epoch, image| taken.borrow_mut().push((epoch, image)));
            let (stream, state) = ledger(feeds, judgements, state, frames, marked, on_image, fault);
            stream
                .inspect_core(move |event| {
                    if let Ok((stamp, ledgered)) = event {
                        let said = &mut said_by.lock().unwrap().said;
                        let said = said.entry(*stamp.expect_singleton()).or_default();
                        ledgered.iter().for_each(|l| said.add(l));
                    }
                })
                .probe_with(&probe);
            state
        });
        let mut dice = Dice(seed ^ me as u64);
        for input in leg.epochs(&schedule) {
            let epoch = input.times.epoch;
            let image = leg.mark(epoch);
            times.borrow_mut().insert(epoch, UnderWay { times: input.times, image });
            events.advance_to(epoch);
            if dice.percent(50) {
                verdicts.advance_to(epoch);
            }
            events.send(Feed::Open(input.times));
            for frame in &input.frames {
                if usize::from(frame.partition) % peers == me {
                    events.send(Feed::Batch(Arc::clone(frame)));
                    for _ in 0..dice.below(3) {
                        worker.step();
                    }
                }
            }
            verdicts.advance_to(epoch);
            if me == 0 {
                input.judgements.iter().for_each(|j| send(j, peers, &mut verdicts));
            }
            if dice.percent(30) {
                verdicts.advance_to(epoch + 1);
            }
            if dice.percent(30) {
                worker.step_or_park_while(None, || probe.less_than(&epoch));
            }
        }
        events.close();
        verdicts.close();
        worker.step_or_park_while(None, || !probe.done());
        // Only now, when the ledger has gone on: that must not show in what is written.
        leg.store(me, peers, &images.borrow());
        let (mut ran, state) = (collected.lock().unwrap(), state.borrow());
        ran.rows += state.len();
        ran.entries.extend(schedule.ids().filter_map(|id| Some((*id, state.lookup(id)?))));
    });
    for result in guards.expect("the workers start").join() {
        result.expect("the workers run");
    }
    let mut ran = Arc::try_unwrap(ran).expect("its users have ended").into_inner().unwrap();
    for epoch in ran.said.values_mut() {
        // Stable: the steps of one event in one epoch stay in their order.
        epoch.steps.sort_by_key(|s| s.0);
        epoch.incidents.sort_unstable();
    }
    ran.said.retain(|_, said| *said != Said::default());
    ran
}

fn send(
    judgement: &Judgement,
    peers: usize,
    to: &mut InputHandle<u64, timely::container::CapacityContainerBuilder<Vec<Judgement>>>,
) {
    let workers = match judgement.target {
        Target::Event => {
            let owner = usize::from(hash::partition(&judgement.hash, PARTITIONS)) % peers;
            owner..owner + 1
        }
        Target::Impression => 0..peers,
    };
    for worker in workers {
        to.send(Judgement { worker: worker as u32, ..*judgement });
    }
}

/// What the reference says, in the form of the ledger.
fn expected(schedule: &Arc<Schedule>) -> BTreeMap<u64, Said> {
    let log_times: HashMap<_, _> =
        schedule.frames().into_iter().map(|(at, frame)| (at, frame.log_time.0)).collect();
    let mut said = BTreeMap::<u64, Said>::new();
    for (outcome, epoch, diff) in reference::run(schedule) {
        assert_eq!(diff, 1, "nothing is ever unsaid: {outcome:?} at {epoch}");
        let now = said.entry(epoch).or_default();
        match outcome {
            Outcome::Fate { position, fate, late } => {
                now.counts.fates[usize::from(fate)] += 1;
                now.counts.late += u64::from(late);
                let fate = Fate::ALL[usize::from(fate)];
                if fate != Fate::Counted {
                    now.incidents.push((position, fate, log_times[&(position.0, position.1)]));
                }
            }
            Outcome::Step(position, Step::Stands { epoch: of, was, is }) => {
                assert_eq!(of, epoch, "said when it happened");
                now.steps.push((position, was, is));
                now.counts.retractions += u64::from(was != 0);
            }
            Outcome::Step(_, Step::Refused { epoch: of, .. }) => {
                assert_eq!(of, epoch, "said when it happened");
                now.counts.verdicts_too_late += 1;
            }
        }
    }
    for input in schedule.epochs.iter().filter(|e| !e.judgements.is_empty()) {
        said.entry(input.times.epoch).or_default().counts.verdicts = input.judgements.len() as u64;
    }
    for epoch in said.values_mut() {
        // An event comes (it was absent, 0) before it is judged.
        epoch.steps.sort_unstable();
        epoch.incidents.sort_unstable();
    }
    said
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seeds(cases: u64) -> Vec<u64> {
    match environment("TRUEUP_SEED") {
        Some(seed) => vec![seed],
        None => (1..=cases).collect(),
    }
}

#[test]
fn the_ledger_says_what_the_reference_says_with_any_number_of_workers() {
    let cases = environment("TRUEUP_CASES").unwrap_or(200);
    let seeds = seeds(cases);
    let mut seen = Counts::default();
    for &seed in &seeds {
        println!("TRUEUP_SEED={seed}");
        let schedule = Arc::new(Schedule::random(seed));
        let expected = expected(&schedule);
        for workers in [1, 2, 4] {
            let said = run(&schedule, workers, seed, &Leg::default()).said;
            for (epoch, expected) in &expected {
                let said = said.get(epoch);
                assert_eq!(said, Some(expected), "seed {seed}, {workers} workers, epoch {epoch}");
            }
            assert_eq!(said.len(), expected.len(), "seed {seed}, {workers} workers: epochs");
        }
        expected.values().for_each(|s| seen.add(&s.counts));
    }
    println!("{seen:?}");
    if seeds.len() > 10 {
        // The schedules must hold enough of everything for the comparison to mean something.
        assert!(seen.fates.iter().all(|&n| n > 100), "{seen:?}");
        assert!(seen.retractions > 100 && seen.verdicts_too_late > 100 && seen.late > 100);
    }
}
