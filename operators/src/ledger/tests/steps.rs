//! A verdict that changes events in every batch of the horizon: the operator carries it out in
//! steps, and whoever stands behind it takes what a step gives before the next one reads more.

use super::rules::{Events, LATENESS, NOON};
use crate::{
    accumulate::Times,
    event::Target,
    feed::{EpochTimes, Feed, Judgement, Located, ReadBack},
    hash::IdHash,
    ledger::{Ledger, LedgerSettings, Ledgered, Standing, judging::STEP_ROWS, ledger},
    time::LogTime,
};
use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Weak},
};
use timely::dataflow::operators::{Input, Inspect, Probe, probe};

const BATCHES: u64 = 300;
const ROWS: u64 = 8;
const GROUP: IdHash = [7; 16];

fn batch(offset: u64) -> Events {
    let rows = offset * ROWS..(offset + 1) * ROWS;
    Events {
        ids: rows.clone().map(|n| u128::from(n).to_le_bytes()).collect(),
        payloads: rows.collect(),
        times_us: vec![NOON; ROWS as usize],
        groups: vec![Some(GROUP); ROWS as usize],
        ..Events::default()
    }
}

fn located(offset: u64) -> Arc<Located<Events>> {
    Arc::new(Located { partition: 0, offset, log_time: LogTime(NOON), batch: batch(offset) })
}

/// Reads each batch anew, and knows how many of those that it gave are still held.
#[derive(Clone, Default)]
struct Counting {
    given: Rc<RefCell<Vec<Weak<Located<Events>>>>>,
    alive_most: Rc<RefCell<usize>>,
}

impl ReadBack<Events> for Counting {
    fn read_back(&mut self, _: u16, offset: u64) -> Result<Arc<Located<Events>>, String> {
        let read = located(offset);
        let mut given = self.given.borrow_mut();
        given.push(Arc::downgrade(&read));
        let alive = given.iter().filter(|of| of.strong_count() > 0).count();
        let mut most = self.alive_most.borrow_mut();
        *most = alive.max(*most);
        Ok(read)
    }
}

#[test]
fn a_verdict_on_everything_holds_few_batches_at_a_time() {
    timely::execute_directly(|worker| {
        let (read, flipped) = (Counting::default(), Rc::new(RefCell::new((0, 0))));
        let (log, seen, probe) = (read.clone(), Rc::clone(&flipped), probe::Handle::new());
        let (mut events, mut verdicts) = worker.dataflow::<u64, _, _>(|scope| {
            let (events, feeds) = scope.new_input::<Vec<Feed<Events>>>();
            let (verdicts, judgements) = scope.new_input::<Vec<Judgement>>();
            let new = Ledger::new(LedgerSettings::new(LATENESS, 0, 1));
            let (times, on_image) = (Times::default(), Rc::new(|_, _| {}));
            let fault = Rc::new(|reason| panic!("{reason}"));
            let (stream, _) = ledger(feeds, judgements, new, log, times, on_image, fault);
            let count = move |out: &Arc<Ledgered<Events>>| {
                let mut seen = seen.borrow_mut();
                let turned = out.rows.iter().filter(|row| row.was == Standing::Valid).count();
                seen.0 += turned;
                seen.1 += out.rows.len() - turned;
            };
            stream.inspect(count).probe_with(&probe);
            (events, verdicts)
        });
        for epoch in 1..4 {
            events.advance_to(epoch);
            verdicts.advance_to(epoch);
            let now = LogTime(NOON);
            let (frontier_before, frontier, latest) = (now, now, now);
            events.send(Feed::Open(EpochTimes { epoch, frontier_before, frontier, latest }));
            if epoch == 1 {
                (0..BATCHES).for_each(|offset| events.send(Feed::Batch(located(offset))));
            }
            // After it comes what must wait until it is carried out.
            if epoch == 3 {
                events.send(Feed::Batch(located(BATCHES)));
            }
            if epoch == 2 {
                let (worker, target, hash, arrival) = (0, Target::Impression, GROUP, (0, 0));
                let (invalid, decided_at_us, log_time) = (true, 0, now);
                let said =
                    Judgement { worker, target, hash, invalid, decided_at_us, log_time, arrival };
                verdicts.send(said);
            }
        }
        events.advance_to(4);
        verdicts.advance_to(4);
        let mut steps = 0;
        while probe.less_than(&4) {
            worker.step();
            steps += 1;
            assert!(steps < 10_000, "it goes on by itself");
        }
        let rows = (BATCHES * ROWS) as usize;
        assert_eq!(*flipped.borrow(), (rows, rows + ROWS as usize));
        assert_eq!(read.given.borrow().len(), BATCHES as usize, "each was read once");
        let alive = *read.alive_most.borrow();
        assert!(alive <= 2 * STEP_ROWS / ROWS as usize, "{alive} at once");
        drop((events, verdicts));
    });
}
