//! The demo must be the same every time, be as busy as asked, and contain everything that its
//! header promises.
#![allow(clippy::unwrap_used)]

use super::*;
use std::collections::{HashMap, HashSet};
use trueup_operators::time::parse_rfc3339;

const NOON_US: i64 = 1_792_929_600_000_000;

/// Runs ticks of 100 ms and gives each with its time.
fn run(demo: &mut Demo, ticks: i64) -> Vec<(i64, Tick)> {
    (1..=ticks).map(|n| NOON_US + n * 100_000).map(|now| (now, demo.tick(now, 100))).collect()
}

fn events(tick: &Tick) -> Vec<Value> {
    let bodies = tick.bodies.iter().map(|b| serde_json::from_slice::<Value>(b).unwrap());
    let events: Vec<Value> = bodies.flat_map(|b| b["events"].as_array().unwrap().clone()).collect();
    assert_eq!(events.len(), tick.events);
    events
}

fn verdicts(tick: &Tick) -> Vec<Value> {
    let Some(body) = &tick.verdicts else { return Vec::new() };
    let body: Value = serde_json::from_slice(body).unwrap();
    body["verdicts"].as_array().unwrap().clone()
}

#[test]
fn a_seed_gives_the_same_bytes() {
    let ticks = |seed| run(&mut Demo::new(seed, 500.0), 300);
    assert_eq!(ticks(3), ticks(3));
    assert_ne!(ticks(3), ticks(4));
}

#[test]
fn is_as_busy_as_asked_over_a_day() {
    let mut demo = Demo::new(1, 5.0);
    let day =
        (0..24 * 60).map(|m| demo.tick(NOON_US + m * MINUTE_US, 60_000).events).sum::<usize>();
    let wanted = 5.0 * 86_400.0;
    assert!((0.9..1.15).contains(&(day as f64 / wanted)), "{day} events, wanted {wanted}");
}

#[test]
fn has_everything_that_it_promises() {
    let mut demo = Demo::new(7, 800.0);
    let ticks = run(&mut demo, 1_500);
    let mut payloads: HashMap<String, Value> = HashMap::new();
    let (mut copies, mut conflicts, mut malformed, mut late, mut too_late) = (0, 0, 0, 0, 0);
    let (mut future, mut unknown) = (0, 0);
    let mut types: HashMap<String, u64> = HashMap::new();
    let (mut judged, mut early, mut reversed, mut by_impression) = (HashSet::new(), 0, 0, 0);
    for (now, tick) in &ticks {
        for event in events(tick) {
            let id = event["eventId"].as_str().unwrap().to_owned();
            let time = event["occurredAt"].as_str().and_then(parse_rfc3339);
            let sound = event["eventType"] != "hover"
                && id.len() < 64
                && event.get("campaignId").is_some()
                && event["country"].as_str().is_some_and(|c| c.len() == 2)
                && !event["priceMicros"].is_string();
            let (true, Some(time)) = (sound, time) else {
                malformed += 1;
                continue;
            };
            *types.entry(event["eventType"].as_str().unwrap().to_owned()).or_default() += 1;
            late += u64::from(now - time > 5 * MINUTE_US);
            too_late += u64::from(now - time > DAY_US);
            future += u64::from(time - now > 5 * MINUTE_US);
            unknown += u64::from(event.get("schemaVersion").is_some());
            match payloads.get(&id) {
                Some(first) if *first == event => copies += 1,
                Some(_) => conflicts += 1,
                None => drop(payloads.insert(id, event)),
            }
        }
        for verdict in verdicts(tick) {
            if verdict["verdict"] == "valid" {
                reversed += 1;
            } else if let Some(id) = verdict["eventId"].as_str() {
                early += u64::from(!payloads.contains_key(id));
                judged.insert(id.to_owned());
            } else {
                assert!(verdict["impressionId"].is_string());
                by_impression += 1;
            }
        }
    }
    for count in [
        copies,
        conflicts,
        malformed,
        late,
        too_late,
        future,
        unknown,
        early,
        reversed,
        by_impression,
    ] {
        assert!(
            count > 3,
            "{copies} {conflicts} {malformed} {late} {too_late} {future} {unknown} {early} \
             {reversed} {by_impression}"
        );
    }
    assert!(types["impression"] > 20 * types["click"] / 3 && types["click"] > types["conversion"]);
    let found = judged.iter().filter(|id| payloads.contains_key(*id)).count();
    assert!(found * 10 > judged.len() * 9, "verdicts name events");
}

#[test]
fn metadata_covers_every_ad_and_campaign() {
    let mut demo = Demo::new(2, 1_000.0);
    let paths: HashSet<String> = demo.metadata().into_iter().map(|(path, _)| path).collect();
    for (_, tick) in run(&mut demo, 20) {
        for event in events(&tick) {
            let known = |kind: &str, field: &str| {
                event[field].as_str().is_none_or(|id| paths.contains(&format!("/v1/{kind}/{id}")))
            };
            assert!(known("campaigns", "campaignId") && known("ads", "adId"));
            assert!(known("publishers", "publisherId"));
        }
    }
}

#[test]
fn what_waits_is_bounded_and_nothing_is_sent_early() {
    let mut demo = Demo::new(2, 1_000.0);
    run(&mut demo, 100);
    let waiting = demo.waiting();
    assert!(waiting > 0);
    // A silent day later everything is due.
    demo.rate_per_s = 0.0;
    let tick = demo.tick(NOON_US + DAY_US, 0);
    assert_eq!(tick.events + verdicts(&tick).len() + demo.waiting(), waiting);
    demo.later(NOON_US + 2 * DAY_US, Due::Event("{}".into()));
    assert_eq!(demo.tick(NOON_US + 2 * DAY_US - 1, 0).events, 0);
    assert_eq!(demo.tick(NOON_US + 2 * DAY_US, 0).events, 1);
    for _ in 0..WAITING_MAX + 10 {
        demo.later(i64::MAX - 1, Due::Event(String::new()));
    }
    assert_eq!(demo.waiting(), WAITING_MAX);
}
