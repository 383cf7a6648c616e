//! A verdict that changes events in every batch of the horizon: the operator carries it out in
//! steps, and whoever stands behind it takes what a step gives before the next one reads more.

use super::{
    images::{load, sections},
    rules::{Events, LATENESS, NOON},
};
use crate::{
    accumulate::{Times, UnderWay},
    event::{Position, Target},
    feed::{EpochTimes, Feed, ImageKind, Judgement, Located, ReadBack},
    hash::IdHash,
    ledger::{Ledger, LedgerImage, LedgerSettings, Ledgered, Standing, judging::STEP_ROWS, ledger},
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
    fn read_back(&mut self, position: Position) -> Result<Arc<Located<Events>>, String> {
        let read = located(position.offset);
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
        // By epoch, how many rows came and how many turned; in the order in which it was said.
        let (read, said) = (Counting::default(), Rc::new(RefCell::new(Vec::new())));
        let taken = Rc::new(RefCell::new(Vec::new()));
        let (images, probe) = (Rc::clone(&taken), probe::Handle::new());
        let (log, seen) = (read.clone(), Rc::clone(&said));
        let (mut events, mut verdicts) = worker.dataflow::<u64, _, _>(|scope| {
            let (events, feeds) = scope.new_input::<Vec<Feed<Events>>>();
            let (verdicts, judgements) = scope.new_input::<Vec<Judgement>>();
            let new = Ledger::new(LedgerSettings::new(LATENESS, 0, 1));
            let marked = UnderWay { image: Some(ImageKind::Whole), ..UnderWay::default() };
            let times = Times::default();
            times.borrow_mut().insert(2, marked);
            let on_image = Rc::new(move |epoch, image: LedgerImage| {
                assert_eq!(epoch, 2);
                images.borrow_mut().push(image);
            });
            let fault = Rc::new(|reason| panic!("{reason}"));
            let (stream, _) = ledger(feeds, judgements, new, log, times, on_image, fault);
            // Each batch comes in one epoch, and turns in the second.
            let note = move |out: &Arc<Ledgered<Events>>| {
                let came = out.rows.iter().filter(|row| row.was == Standing::Absent).count();
                let Some(batch) = &out.batch else { return };
                let epoch = match (came, batch.offset) {
                    (0, _) => 2,
                    (_, BATCHES) => 3,
                    _ => 1,
                };
                seen.borrow_mut().push((epoch, came, out.rows.len() - came));
            };
            stream.inspect(note).probe_with(&probe);
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
        let (said, rows) = (said.borrow(), (BATCHES * ROWS) as usize);
        assert!(said.is_sorted_by_key(|of| of.0), "nothing comes before the last step");
        let of = |epoch| {
            let of = said.iter().filter(|of| of.0 == epoch);
            of.fold((0, 0), |sum, of| (sum.0 + of.1, sum.1 + of.2))
        };
        assert_eq!([of(1), of(2), of(3)], [(rows, 0), (0, rows), (ROWS as usize, 0)]);
        // The image of the epoch has all that it changed.
        let restored = load(&[sections(&taken.borrow()[0])]);
        assert_eq!(restored.len(), rows);
        let stands = |n: u64| restored.lookup(&u128::from(n).to_le_bytes()).unwrap().standing;
        assert!((0..rows as u64).all(|n| stands(n) == Standing::Invalid));
        assert_eq!(read.given.borrow().len(), BATCHES as usize, "each was read once");
        let alive = *read.alive_most.borrow();
        assert!(alive <= 2 * STEP_ROWS / ROWS as usize, "{alive} at once");
        drop((events, verdicts));
    });
}
