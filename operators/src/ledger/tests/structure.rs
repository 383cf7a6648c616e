//! Ring, index, vnode, groups and filter, each against the plainest thing that does the same.

use super::Dice;
use crate::{
    event::Target,
    feed::Judgement,
    hash::{IdHash, VNODES},
    ledger::{
        groups::{Groups, RowRef},
        index::Index,
        ring::{CHUNK, Pool, Ring},
        row::{Place, Row, minute_of, spread},
        verdicts::{Filter, Judged, Memory, Ruling},
        vnode::{Entered, Vnode},
    },
    time::{Lateness, LogTime, MINUTE_US, SECOND_US},
};
use std::collections::{HashMap, HashSet, VecDeque};

const LATENESS: Lateness = Lateness {
    allowed_lateness_us: MINUTE_US,
    correction_horizon_us: 2 * MINUTE_US,
    future_skew_us_max: 20 * SECOND_US,
};

const START_US: i64 = 1_800_000_000 * SECOND_US;

fn id(n: u64) -> IdHash {
    (u128::from(crate::hash::mix(n, 1)) << 64 | u128::from(crate::hash::mix(n, 2))).to_le_bytes()
}

fn row(id: IdHash, n: u64) -> Row {
    Row::new(id, n, minute_of(0), 0, Place(n))
}

#[test]
fn a_ring_is_a_queue() {
    let mut dice = Dice::new("a_ring_is_a_queue");
    let (mut ring, mut pool, mut model) = (Ring::default(), Pool::default(), VecDeque::new());
    for _ in 0..3_000 {
        for _ in 0..dice.below(3 * CHUNK as u64 / 2) {
            model.push_back(ring.tail());
            let entry = ring.tail();
            ring.push(entry, &mut pool);
        }
        // Often everything, so that the last chunk is dropped while it is being filled.
        let drop = dice.below(model.len() as u64 * 3 / 2 + 1).min(model.len() as u64);
        ring.drop_before(ring.head() + drop, &mut pool);
        model.drain(..drop as usize);
        assert_eq!((ring.tail() - ring.head()) as usize, model.len());
        assert!(
            ring.iter_from(ring.head()).map(|(n, &e)| (n, e)).eq(model.iter().map(|&n| (n, n)))
        );
        if let (Some(&first), Some(&last)) = (model.front(), model.back()) {
            let middle = (first + last) / 2;
            assert_eq!((*ring.get(first), *ring.get(last)), (first, last));
            *ring.get_mut(middle) += 1;
            assert_eq!(*ring.get(middle), middle + 1);
            *ring.get_mut(middle) -= 1;
        }
        let held = ring.bytes() / size_of::<u64>();
        assert!(held <= model.len() + 3 * CHUNK + 64, "{held} places for {}", model.len());
    }
}

/// Few hashes, so that fingerprints are equal and buckets overflow; numbers that start near where
/// their low bits wrap.
#[test]
fn an_index_is_a_multimap() {
    let mut dice = Dice::new("an_index_is_a_multimap");
    for _ in 0..40 {
        let mut index = Index::new(dice.below(256) as u8);
        let spread_over = 1 + dice.below(300);
        let mut hashes = HashMap::new();
        let mut model: VecDeque<(u64, u64)> = VecDeque::new();
        let (mut head, mut tail) = ((1 << 20) - dice.below(500), 0);
        tail += head;
        for _ in 0..2_000 {
            let hash = *hashes.entry(dice.below(spread_over)).or_insert_with(|| dice.next());
            match dice.below(8) {
                0..5 => {
                    if index.is_full(tail - head) {
                        index.rebuild(model.len() + 1, tail - head, model.iter().copied());
                    }
                    index.insert(hash, tail);
                    model.push_back((hash, tail));
                    tail += 1;
                }
                5 => {
                    // Out of order too: groups take a member out when a younger one comes.
                    if !model.is_empty() {
                        let at = dice.below(model.len() as u64) as usize;
                        let (hash, number) = model.remove(at).unwrap();
                        index.remove(hash, number);
                        head = model.front().map_or(tail, |m| m.1);
                    }
                }
                6 => index.remove(hash, tail + 5),
                _ => {
                    if let Some(last) = model.back_mut() {
                        assert!(index.renumber(last.0, last.1, tail));
                        last.1 = tail;
                        tail += 1;
                        head = model.front().map_or(tail, |m| m.1);
                    }
                }
            }
            let number = model.iter().filter(|m| m.0 == hash).map(|m| m.1).max();
            let wanted = number.unwrap_or(u64::MAX);
            assert_eq!(index.find(hash, head, |found| found == wanted), number);
            assert_eq!(index.len(), model.len());
        }
        index.check();
        for (hash, number) in model {
            index.remove(hash, number);
        }
        index.check();
    }
}

#[test]
fn an_index_gives_bits_of_the_fingerprint_to_the_number_when_it_must() {
    let mut index = Index::new(0);
    // A ring that spans millions of numbers, of which few are in the index.
    for span in [1 << 20, 1 << 24, (1 << 28) - 1] {
        let (head, hash) = (77_u64, 0xDEAD_BEEF_0000_0001_u64);
        let entries = || (0..50).map(|i| (hash ^ (i % 3) << 60, head + i * (span / 50)));
        assert!(index.is_full(span));
        index.rebuild(50, span, entries());
        assert!(!index.is_full(span));
        for (hash, number) in entries() {
            assert_eq!(index.find(hash, head, |found| found == number), Some(number), "{span}");
        }
        index.check();
    }
}

/// Ids of a vnode, entered, forgotten by slices and swept by pieces, against a map.
#[test]
fn a_vnode_is_a_map_that_forgets() {
    let mut dice = Dice::new("a_vnode_is_a_map_that_forgets");
    for case in 0..30 {
        let (mut vnode, mut pool) = (Vnode::new(case * 8), Pool::default());
        let mut model: HashMap<IdHash, (u64, i64)> = HashMap::new();
        let (ids, rows_max) = (50 + dice.below(4_000), 200 + dice.below(3_000) as usize);
        let (mut latest, mut frontier) = (0, 0);
        for n in 0..150 {
            for _ in 0..dice.below(120) {
                let id = id(dice.below(ids));
                let entered = vnode.enter(spread(&id), &row(id, n), rows_max, &mut pool);
                match model.get(&id) {
                    Some(&(number, _)) => assert_eq!(entered, Entered::Known(number)),
                    None if model.len() >= rows_max => assert_eq!(entered, Entered::Full),
                    None => {
                        let number = vnode.rows.tail() - 1;
                        assert_eq!(entered, Entered::New(number));
                        model.insert(id, (number, latest));
                    }
                }
            }
            vnode.close_slice(LogTime(latest));
            latest += dice.below(15 * SECOND_US as u64) as i64;
            frontier = latest.min(frontier + dice.below(30 * SECOND_US as u64) as i64);
            vnode.forget(&LATENESS, LogTime(frontier));
            model.retain(|_, &mut (_, at)| !LATENESS.forgotten(LogTime(at), LogTime(frontier)));
            assert_eq!(vnode.len(), model.len());
            vnode.sweep(dice.below(100), &mut pool);
            if n % 10 == 0 {
                vnode.check();
            }
        }
        while vnode.sweep(64, &mut pool) > 0 {}
        vnode.check();
        vnode.forget(&LATENESS, LogTime(i64::MAX / 2));
        while vnode.sweep(64, &mut pool) > 0 {}
        vnode.check();
        assert_eq!(vnode.len(), 0);
        assert!(vnode.bytes() < 40 << 10, "an empty vnode keeps {} bytes", vnode.bytes());
    }
}

#[test]
fn groups_find_their_live_members_youngest_first() {
    let mut dice = Dice::new("groups_find_their_live_members_youngest_first");
    for _ in 0..10 {
        let mut groups = Groups::new();
        let mut model: Vec<(u64, RowRef, i64)> = Vec::new();
        // Few shards are used, so that each is busy; one group has half of all members.
        let group_id = |n: u64| {
            let mut group = id(n);
            group[15] = (n % 3) as u8;
            group
        };
        let (mut latest, mut frontier) = (0, 0);
        for n in 0..60 {
            for i in 0..dice.below(300) {
                let group = dice.below(1_000) * dice.below(2);
                let row = RowRef::new(dice.below(VNODES as u64) as usize, n << 20 | i);
                assert!(groups.add(&group_id(group), row));
                model.push((group, row, latest));
            }
            groups.close_slice(LogTime(latest));
            latest += dice.below(15 * SECOND_US as u64) as i64;
            frontier = latest.min(frontier + dice.below(30 * SECOND_US as u64) as i64);
            groups.forget(&LATENESS, LogTime(frontier));
            model.retain(|m| !LATENESS.forgotten(LogTime(m.2), LogTime(frontier)));
            for shard in 0..3 {
                groups.sweep(shard, dice.below(60));
            }
            for group in (0..1_000).step_by(7) {
                let members = model.iter().rev().filter(|m| m.0 == group).map(|m| m.1);
                assert!(groups.rows(&group_id(group)).eq(members), "group {group}");
            }
        }
        groups.close_slice(LogTime(latest));
        groups.forget(&LATENESS, LogTime(i64::MAX / 2));
        for shard in 0..VNODES {
            while groups.sweep(shard, 50) > 0 {}
        }
        assert!((0..1_000).all(|g| groups.rows(&group_id(g)).next().is_none()));
    }
}

#[test]
fn a_row_reference_gives_back_its_number() {
    let mut dice = Dice::new("a_row_reference_gives_back_its_number");
    for _ in 0..10_000 {
        let live_from = dice.below(1 << 30);
        let number = live_from + dice.below((1 << 24) - 1);
        let vnode = dice.below(256) as usize;
        let row = RowRef::new(vnode, number);
        assert_eq!((row.vnode(), row.number(live_from)), (vnode, number));
    }
}

#[test]
fn a_filter_never_denies_what_it_was_told() {
    let mut filter = Filter::default();
    assert!(!filter.may_hold(7));
    let mut told = HashSet::new();
    for n in 0..5_000 {
        let hash = spread(&id(n));
        told.insert(hash);
        if !filter.add(hash) {
            filter.rebuild(told.len(), told.iter().copied());
        }
        assert!(filter.may_hold(hash));
    }
    assert!(told.iter().all(|&hash| filter.may_hold(hash)));
    let vain = (5_000..105_000).filter(|&n| filter.may_hold(spread(&id(n)))).count();
    assert!(vain < 8_000, "{vain} of 100,000 are looked up in vain");
}

/// While a partition lags the frontier stands, and what a repeat supersedes may still be needed.
#[test]
fn a_verdict_that_is_repeated_takes_no_memory_while_the_frontier_stands() {
    let (mut memory, key) = (Memory::new(8), [1; 16]);
    let mut bytes_after = |repeats: std::ops::Range<i64>| {
        for n in repeats {
            let (worker, target, arrival) = (0, Target::Event, (n as u64, 0));
            let (invalid, decided_at_us) = (true, 7);
            let log_time = LogTime(START_US + n * SECOND_US);
            let judgement =
                Judgement { worker, target, hash: key, invalid, decided_at_us, log_time, arrival };
            memory.settle(LogTime(START_US));
            let judged = Judged::from(&judgement);
            memory.remember(&key, &[judged], &LATENESS, LogTime(START_US));
        }
        memory.bytes()
    };
    let few = bytes_after(0..10);
    assert_eq!(bytes_after(10..1_000), few);
}

/// Against all verdicts ever said, for events that keep the promise that `settle` relies on.
#[test]
fn a_memory_keeps_what_an_event_may_still_need() {
    let mut dice = Dice::new("a_memory_keeps_what_an_event_may_still_need");
    let mut older_won = 0;
    for _ in 0..300 {
        let (mut memory, key) = (Memory::new(8), [1; 16]);
        let mut said: Vec<Judged> = Vec::new();
        let (mut frontier, mut log_time) = (START_US, START_US);
        for arrival in 0..12 {
            log_time += dice.below(3) as i64 * 10 * SECOND_US;
            frontier = frontier.max(log_time - dice.below(120) as i64 * SECOND_US);
            memory.settle(LogTime(frontier));
            let judgement = Judgement {
                worker: 0,
                target: Target::Event,
                hash: key,
                invalid: dice.below(2) == 0,
                decided_at_us: arrival * 2 - dice.below(3) as i64,
                log_time: LogTime(log_time),
                arrival: (arrival as u64, 0),
            };
            let judged = Judged::from(&judgement);
            if said.last().is_none_or(|winner| winner.order() < judged.order()) {
                memory.remember(&key, &[judged], &LATENESS, LogTime(frontier));
                said.push(judged);
            }
            // An event comes at or after the frontier and is itself not too late.
            for at in (frontier..log_time + MINUTE_US).step_by(10 * SECOND_US as usize) {
                let minute = minute_of(at - LATENESS.correction_horizon_us);
                assert!(!LATENESS.too_late(minute, LogTime(at)));
                let wanted = Ruling::of(said.iter(), minute, &LATENESS);
                let got = memory.ruling(&key, minute, &LATENESS, LogTime(at)).unwrap();
                assert_eq!(got, wanted);
                older_won += u64::from(got.invalid.is_some() && got.too_late.is_some());
            }
        }
    }
    assert!(older_won > 100, "{older_won}");
}
