//! The machine stops at any operation on the store, again and again, and each time there is a
//! checkpoint: the last one that was published, or the one that was being published.

use super::{
    State, claim, key, newest,
    simulated::{Disk, Simulated, repeat},
    take,
};
use crate::checkpoint::{
    keeper::{Keeper, manifests},
    store::Store,
};
use std::{collections::BTreeSet, sync::Arc};
use trueup_generator::random::Random;

const LIVES: u64 = 40;
const SEEDS: u64 = 60;

/// Writes checkpoints of a state that changes until the power goes, or for a while. What was
/// published last, and what was under way.
struct Life {
    published: Option<(u64, State)>,
    under_way: Option<(u64, State)>,
}

fn live(store: &Arc<dyn Store>, epoch: &mut u64, state: &mut State, random: &mut Random) -> Life {
    let mut life = Life { published: None, under_way: None };
    let (found, broken) = newest(&**store);
    let Ok(mut keeper) = Keeper::claim(Arc::clone(store), super::SETTINGS, super::of()) else {
        return life;
    };
    for name in manifests(&**store).unwrap() {
        if broken.iter().any(|reason| reason.contains(&name.to_string())) {
            keeper.condemn(name);
        } else if found.as_ref().is_none_or(|(epoch, _, _)| *epoch < name.epoch) {
            // Its packs are broken.
            keeper.condemn(name);
        }
    }
    for _ in 0..random.below(12) {
        *epoch += 1 + random.below(3);
        let whole = keeper.wants_whole();
        let changed = change(state, random);
        let taken = take(&mut keeper, *epoch, state, (!whole).then_some(&changed[..]));
        match taken {
            Ok(_) => life.published = Some((*epoch, state.clone())),
            Err(_) => {
                life.under_way = Some((*epoch, state.clone()));
                break;
            }
        }
    }
    life
}

/// Some sections change, some come, some go; those that changed or came.
fn change(state: &mut State, random: &mut Random) -> Vec<Vec<u8>> {
    let mut changed = Vec::new();
    for _ in 0..random.below(8) {
        let at = key(random.below(30));
        if random.chance(0.3) {
            state.remove(&at);
            changed.retain(|key| *key != at);
        } else {
            let bytes = random.below(300) as usize;
            state.insert(at.clone(), vec![random.below(256) as u8; bytes]);
            changed.push(at);
        }
    }
    changed
}

#[test]
fn at_every_operation_the_machine_may_stop() {
    let seed = repeat("at_every_operation_the_machine_may_stop").1;
    let (mut stops, mut fell_back) = (BTreeSet::new(), 0);
    for run in 0..SEEDS {
        let mut random = Random::new(seed, run);
        let disk = Disk::default();
        let (mut epoch, mut state) = (0, State::new());
        let mut last: Option<(u64, State)> = None;
        for life in 0..LIVES {
            let stop_at = 1 + random.below(64);
            let simulated =
                Arc::new(Simulated::new(&disk, stop_at, Random::new(seed, run * LIVES + life)));
            let store = Arc::clone(&simulated) as Arc<dyn Store>;
            let lived = live(&store, &mut epoch, &mut state, &mut random);
            if simulated.operations() >= stop_at {
                stops.insert(stop_at);
            }
            last = lived.published.or(last);
            let (found, broken) = newest(&*Simulated::lasting(&disk));
            fell_back += u64::from(!broken.is_empty());
            let found = found.map(|(epoch, _, state)| (epoch, state));
            if found.is_some() && found == lived.under_way {
                last = found;
            } else {
                assert_eq!(found, last, "run {run}, life {life}, stopped at {stop_at}");
            }
            // The next life begins with what was found.
            (_, state) = last.clone().unwrap_or_default();
        }
    }
    assert!(stops.len() > 55, "only {} places were stopped at", stops.len());
    assert!(fell_back > 20, "only {fell_back} times something was broken");
}

#[test]
fn no_more_is_kept_than_is_needed() {
    let disk = Disk::default();
    let store = Simulated::lasting(&disk);
    let (mut keeper, mut random) = (claim(&store), Random::new(7, 7));
    let mut state = State::new();
    for epoch in 1..100 {
        let whole = keeper.wants_whole();
        let changed = change(&mut state, &mut random);
        take(&mut keeper, epoch, &state, (!whole).then_some(&changed[..])).unwrap();
        let count = |folder| store.list(folder).unwrap().len();
        assert!(count("manifests") <= 2 && count("generations") == 1);
        // Two chains of at most four.
        assert!(count("packs") <= 8, "{}", count("packs"));
    }
    let live: usize = state.values().map(Vec::len).sum();
    assert!(keeper.index().bytes_named() < 8 * live as u64 + 8 * 32);
}
