//! The publisher against a topic that fails as topics do, in a world that goes on meanwhile. All of
//! it is one thread and follows from the seed.
#![allow(clippy::unwrap_used)]

mod store;
mod world;

use super::{
    Doing, Publisher, PublisherStatus, Shared as Flags, Upper,
    run::{Rest, Run},
};
use serde_json::Value;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use store::{Odds, Shared};
use trueup_operators::{log::LogError, time::MINUTE_US};
use world::{Start, World, publisher_settings};

/// The seeds of a test: so many, or the one that the environment names.
fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("TRUEUP_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=count).collect(),
    }
}

/// A process that publishes until something ends it. How it fared.
fn process(shared: &Shared, finishes: bool) -> PublisherStatus {
    let flags = Arc::new(Flags::default());
    flags.finish.store(finishes, Ordering::Release);
    let views = Arc::clone(&shared.world.lock().views);
    let opener = shared.opener();
    let mut run = Run::new(views, publisher_settings(), opener, Arc::clone(&flags)).unwrap();
    run.rest = rest(shared, &flags);
    run.run();
    flags.status.lock().clone()
}

/// While it rests time passes; at the end of the world it shall finish.
fn rest(shared: &Shared, flags: &Arc<Flags>) -> Rest {
    let (shared, flags) = (shared.clone(), Arc::clone(flags));
    Box::new(move |_| {
        let mut world = shared.world.lock();
        if world.is_over() {
            flags.finish.store(true, Ordering::Release);
        } else if world.random.below(2) == 0 {
            world.deliver();
        }
    })
}

/// Publishes what is visible, with nothing that fails.
fn finish(shared: &Shared) -> PublisherStatus {
    shared.store.lock().odds = Odds::default();
    // A comparison leads to an epoch that is not in the topic yet.
    let upper = shared.store.lock().upper.as_ref().map(|upper| upper.epoch);
    while shared.world.lock().visible() < upper && shared.world.lock().deliver() {}
    let status = process(shared, true);
    assert_eq!(status.doing, Doing::Stopped, "{status:?}");
    let visible = shared.world.lock().visible().unwrap();
    assert_eq!(status.upper, Some(visible + 1), "{status:?}");
    shared.check();
    status
}

/// Another start of the process: with what it had, or with something else.
fn restart(shared: &Shared) {
    let mut world = shared.world.lock();
    let back = world.random.below(8) as usize;
    let mut start = world.start;
    if world.random.below(4) == 0 && !world.is_over() {
        let minutes = 1 + world.random.below(2) as i64;
        start = Start {
            rollups: 1 + world.random.below(2) as usize,
            allowed_lateness_us: minutes * MINUTE_US,
            ..start
        };
    }
    start.history_bytes_max = if world.random.below(2) == 0 { 1 } else { 1 << 20 };
    if start.rollups > world.start.rollups {
        // What a rollup had while it was not configured may have gone.
        let gone = world.gone_by_now();
        shared.store.lock().missed.push(gone);
    }
    world.restart(start, back);
}

#[test]
fn whatever_happens_the_topic_is_the_views_at_every_commit() {
    let (mut ends, mut sums) = ([0; 2], [0; 4]);
    for seed in seeds(120) {
        println!("TRUEUP_SEED={seed}");
        let shared = Shared::new(World::new(seed, 150));
        let odds = match seed % 4 {
            0 => Odds { epoch: 3, ..Odds::default() },
            1 => Odds { epoch: 3, failure: 40, doubt: 6, expiry: 60, ..Odds::default() },
            2 => Odds {
                epoch: 8,
                failure: 300,
                doubt: 9,
                kill: 90,
                rival: 90,
                expiry: 300,
                ..Odds::default()
            },
            _ => Odds { epoch: 5, kill: 25, ..Odds::default() },
        };
        shared.store.lock().odds = odds;
        while !shared.world.lock().is_over() {
            let other = shared.clone();
            *shared.rival.lock() = Some(Box::new(move || {
                // It publishes for itself and ends; nothing happens to it.
                let odds = std::mem::take(&mut other.store.lock().odds);
                finish(&other);
                other.store.lock().odds = odds;
            }));
            let status = process(&shared, false);
            match status.doing {
                Doing::Superseded => ends[0] += 1,
                Doing::Stopped => ends[1] += 1,
                doing => panic!("it ended while {doing:?}"),
            }
            let counts = [status.transactions, status.rows, status.comparisons, status.failures];
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            restart(&shared);
        }
        finish(&shared);
        let (newest, added) = shared.sums();
        assert_eq!(newest, added);
        assert!(!newest.is_empty());
    }
    println!("superseded and stopped {ends:?}; transactions, rows, comparisons, failures {sums:?}");
    if std::env::var("TRUEUP_SEED").is_err() {
        assert!(ends[0] > 20 && ends[1] > 300, "{ends:?}");
        assert!(sums[0] > 1_000 && sums[2] > 150 && sums[3] > 300, "{sums:?}");
    }
}

/// The views go on while no transaction succeeds, further than their history is long.
#[test]
fn a_topic_that_was_away_is_compared_and_what_left_meanwhile_is_said() {
    let shared = Shared::new(World::new(7, 150));
    for _ in 0..20 {
        shared.world.lock().deliver();
    }
    let first = finish(&shared);
    assert_eq!((first.comparisons, first.missed), (1, None));
    let start = Start { history_bytes_max: 1, ..shared.world.lock().start };
    shared.world.lock().restart(start, 0);
    while shared.world.lock().deliver() {}
    let second = finish(&shared);
    assert_eq!(second.comparisons, 1);
    let missed = second.missed.expect("the first rows left long ago");
    assert!(missed.starts_with("by minute from ") && missed.contains("by hour"), "{missed}");
    for span in missed.split(", ") {
        let (from, to) = span.split_once(" from ").unwrap().1.split_once(" to ").unwrap();
        assert!(from < to, "{missed}");
    }
    assert!(!shared.store.lock().missed.is_empty());
    // Who resumes within the history compares nothing.
    let third = finish(&shared);
    assert_eq!((third.comparisons, third.rows), (0, 0));
}

#[test]
fn what_leaves_while_the_topic_is_read_is_not_taken_back() {
    for seed in seeds(10) {
        println!("TRUEUP_SEED={seed}");
        let shared = Shared::new(World::new(seed, 150));
        for _ in 0..60 {
            shared.world.lock().deliver();
        }
        finish(&shared);
        // With other views than the topic's it has to be read.
        let start = Start { allowed_lateness_us: 2 * MINUTE_US, ..shared.world.lock().start };
        shared.world.lock().restart(start, 0);
        shared.store.lock().odds = Odds { reading: 1, ..Odds::default() };
        let status = process(&shared, false);
        assert!(status.doing == Doing::Stopped && status.comparisons > 0, "{status:?}");
    }
}

/// Epochs of the same numbers, of a log that was lost and written again.
#[test]
fn another_history_under_the_same_numbers_is_noticed() {
    let shared = Shared::new(World::new(1, 60));
    for _ in 0..40 {
        shared.world.lock().deliver();
    }
    finish(&shared);
    let mut other = World::new(2, 60);
    for _ in 0..20 {
        other.deliver();
    }
    // Here everything that has left is of the other history.
    shared.store.lock().missed.push((i64::MIN, i64::MAX));
    *shared.world.lock() = other;
    let status = process(&shared, false);
    assert_eq!((status.doing, status.comparisons), (Doing::Stopped, 1), "{status:?}");
    assert_eq!(status.upper, Some(60), "it waited for its turn, then went on");
}

#[test]
fn a_topic_of_another_installation_is_left_alone() {
    let shared = Shared::new(World::new(3, 30));
    while shared.world.lock().deliver() {}
    finish(&shared);
    {
        let mut store = shared.store.lock();
        let note = store.upper.as_mut().unwrap().note.as_mut().unwrap();
        note.installation = "theirs".into();
    }
    let (before, commits) = {
        let store = shared.store.lock();
        (store.upper.clone(), store.commits)
    };
    let status = process(&shared, true);
    assert_eq!(status.doing, Doing::Superseded);
    let trouble = status.trouble.unwrap();
    assert!(trouble.contains("theirs") && trouble.contains("changelog.name"), "{trouble}");
    let store = shared.store.lock();
    assert_eq!((&store.upper, store.commits), (&before, commits));
}

#[test]
fn a_message_that_no_publisher_wrote_is_named() {
    let shared = Shared::new(World::new(3, 30));
    while shared.world.lock().deliver() {}
    let broken = [
        ("no json", "{}"),
        ("{\"view\":\"audience_minute\",\"row\":{}}", "{\"new\":null}"),
        ("{\"view\":\"audience_minute\",\"row\":{\"bucketStart\":\"1970-01-01T01:30:00Z\"}}", "[]"),
    ];
    for (key, value) in broken {
        shared.store.lock().messages = vec![(key.into(), value.into())];
        let flags = Arc::new(Flags::default());
        let views = Arc::clone(&shared.world.lock().views);
        let settings = publisher_settings();
        let mut run = Run::new(views, settings, shared.opener(), Arc::clone(&flags)).unwrap();
        let stop = Arc::clone(&flags);
        run.rest = Box::new(move |_| stop.stop.store(true, Ordering::Release));
        run.run();
        let trouble = flags.status.lock().trouble.clone().unwrap();
        assert!(trouble.contains(key) && trouble.contains("a topic of its own"), "{trouble}");
    }
}

/// With threads and the clock: started, brought up to date, stopped.
#[test]
fn a_publisher_is_started_and_stopped_again() {
    let shared = Shared::new(World::new(5, 40));
    while shared.world.lock().deliver() {}
    let views = Arc::clone(&shared.world.lock().views);
    let publisher = Publisher::start(views.clone(), publisher_settings(), shared.opener()).unwrap();
    publisher.stop(Duration::from_secs(30));
    assert_eq!((publisher.status().upper, publisher.lag_epochs()), (Some(40), 0));
    let status = publisher.status_json();
    assert_eq!((&status["doing"], &status["trouble"]), (&"stopped".into(), &Value::Null));
    shared.check();
    // One that cannot open its topic says why, and stops nobody.
    let away = Box::new(|_| Err(LogError::Unavailable { reason: "nobody answers".into() }));
    let publisher = Publisher::start(views, publisher_settings(), away).unwrap();
    while publisher.status().trouble.is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    publisher.stop(Duration::from_secs(30));
    let status = publisher.status();
    assert!(status.trouble.unwrap().contains("nobody answers"));
    assert_eq!((status.doing, status.upper), (Doing::Stopped, None::<u64>));
    assert_eq!(shared.store.lock().upper.as_ref().map(|upper: &Upper| upper.epoch), Some(40));
}
