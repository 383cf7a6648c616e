//! What a replay offers, and the machine that stops at any operation while it is made or taken up:
//! once it was made it counts, before that nothing of it does, and the job's own checkpoints are
//! there until then.

use super::{
    SETTINGS, State, at, claim, newest, of,
    simulated::{Disk, Simulated, repeat},
    state, take,
};
use crate::checkpoint::{
    keeper::{Keeper, manifests},
    manifest::{Of, Taken},
    offer::{self, OfferName},
    pack::PackOf,
    store::Store,
};
use std::sync::Arc;
use trueup_generator::random::Random;

/// A job's own checkpoint, of epoch 5 in generation 1, and who goes on writing them.
fn job(disk: &Disk) -> (Keeper, State) {
    let own = state(9, 1);
    let mut keeper = claim(&Simulated::lasting(disk));
    take(&mut keeper, 5, &own, None).unwrap();
    (keeper, own)
}

/// Makes an offer of another state of epoch 5.
fn make(store: &Arc<dyn Store>) -> Result<(OfferName, State), String> {
    let found = state(9, 2);
    let keeper = Keeper::offering(Arc::clone(store), SETTINGS, of()).map_err(|e| e.to_string())?;
    let packed = super::pack(&keeper, 5, &found, None).map_err(|e| e.to_string())?;
    let (_, name) = keeper.offer(&packed, &at(5), Taken::default()).map_err(|e| e.to_string())?;
    Ok((name, found))
}

/// The next generation begins; whether it came so far.
fn begin(store: &Arc<dyn Store>) -> Option<(Keeper, Option<String>)> {
    let keeper = Keeper::claim(Arc::clone(store), SETTINGS, of()).ok()?;
    let offers = offer::take_up(&**store, &of(), keeper.generation()).ok()?;
    Some((keeper, offers.taken_up.map(|(_, id)| id)))
}

fn stop_at_any(test: &str, mut once: impl FnMut(u64, &Disk, &mut Random) -> u64) {
    let (mut random, seed) = repeat(test);
    for _ in 0..20 {
        let mut stop_at = 1;
        loop {
            let disk = Disk::default();
            println!("TRUEUP_SEED={seed}: stops at {stop_at}");
            if once(stop_at, &disk, &mut random) < stop_at {
                break;
            }
            stop_at += 1;
        }
    }
}

#[test]
fn an_offer_is_made_or_it_is_not() {
    stop_at_any("an_offer_is_made_or_it_is_not", |stop_at, disk, random| {
        let (_, own) = job(disk);
        let stops = Arc::new(Simulated::new(disk, stop_at, Random::new(random.below(u64::MAX), 0)));
        let made = make(&(Arc::clone(&stops) as Arc<dyn Store>));
        let store = Simulated::lasting(disk);
        let (mut keeper, taken_up) = begin(&store).unwrap();
        let found = newest(&*store).0.unwrap();
        if let Ok((name, offered)) = made {
            assert_eq!((found.2, taken_up), (offered, Some(name.id())));
        } else if taken_up.is_some() {
            // It was made, and the answer was lost.
            assert_eq!(found.2, state(9, 2));
        } else {
            assert_eq!(found.2, own);
        }
        // What was begun and not made goes with the first checkpoint.
        let after = state(9, 3);
        take(&mut keeper, 9, &after, None).unwrap();
        take(&mut keeper, 10, &after, None).unwrap();
        assert_eq!(store.list("packs").unwrap().len(), 2);
        assert_eq!(store.list("replays").unwrap().len(), 0);
        stops.operations()
    });
}

#[test]
fn what_was_offered_counts_wherever_taking_it_up_stops() {
    let test = "what_was_offered_counts_wherever_taking_it_up_stops";
    stop_at_any(test, |stop_at, disk, random| {
        let (mut before, own) = job(disk);
        let lasting = Simulated::lasting(disk);
        let (name, offered) = make(&lasting).unwrap();
        // The job goes on for a while: what was offered is not its garbage.
        for epoch in 6..=9 {
            take(&mut before, epoch, &own, None).unwrap();
        }
        let stops = Arc::new(Simulated::new(disk, stop_at, Random::new(random.below(u64::MAX), 0)));
        let begun = begin(&(Arc::clone(&stops) as Arc<dyn Store>));
        if let Some((_, taken_up)) = &begun {
            assert_eq!(*taken_up, Some(name.id()));
            assert_eq!(newest(&*lasting).0.unwrap().2, offered);
        }
        // A writer of the generation before is fenced, whatever it does.
        let zombie = take(&mut before, 11, &own, None);
        assert!(zombie.is_err() || begun.is_none(), "{zombie:?}");
        let (_, _) = begin(&lasting).unwrap();
        let (epoch, _, found) = newest(&*lasting).0.unwrap();
        assert_eq!((epoch, found), (5, offered));
        assert_eq!(lasting.list("replays").unwrap().len(), 0);
        stops.operations()
    });
}

#[test]
fn what_cannot_be_taken_up_is_refused_and_deleted() {
    let disk = Disk::default();
    let store = Simulated::lasting(&disk);
    let (_, own) = job(&disk);
    let refused = |of: &Of, generation| {
        let offers = offer::take_up(&*store, of, generation).unwrap();
        assert!(offers.taken_up.is_none() && store.list("replays").unwrap().is_empty());
        offers.refused.unwrap()
    };
    // Its pack is gone: another generation has begun in between.
    let (name, _) = make(&store).unwrap();
    let packs = store.list("packs").unwrap();
    let is_offered = |name: &str| PackOf::of_name(name).is_some_and(|of| of.generation == 2);
    let pack = packs.iter().find(|pack| is_offered(&pack.name)).unwrap();
    store.delete(&pack.name).unwrap();
    let missing = refused(&of(), 2);
    assert!(missing.id == name.id() && missing.reason.contains(&pack.name), "{missing:?}");
    // Of another installation.
    make(&store).unwrap();
    let other = Of { installation: "8e1d".into(), ..of() };
    assert!(refused(&other, 3).reason.contains("8e1d"));
    // Of several the newest epoch counts, and no other is left.
    let older = make(&store).unwrap().0;
    let keeper = Keeper::offering(Arc::clone(&store), SETTINGS, of()).unwrap();
    let packed = super::pack(&keeper, 8, &own, None).unwrap();
    let (_, newer) = keeper.offer(&packed, &at(8), Taken::default()).unwrap();
    assert!(newer > older);
    let offers = offer::take_up(&*store, &of(), 4).unwrap();
    assert_eq!(offers.taken_up.unwrap().1, newer.id());
    assert!(store.list("replays").unwrap().is_empty());
    assert_eq!(manifests(&*store).unwrap()[0].epoch, 8);
    assert_eq!(OfferName::parse(&newer.to_string()), Some(newer));
    for name in ["replays/1-2-3.json", "replays/x.json", "manifests/1-2.json", "replays/"] {
        assert_eq!(OfferName::parse(name), None, "{name}");
    }
}
