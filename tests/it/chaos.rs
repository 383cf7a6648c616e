//! P1 to P4 under fire: contradictory events and verdicts from eight senders that retry until they
//! are acknowledged, while the server is killed with -9 again and again. Afterwards nothing that
//! was acknowledged is missing, every event has exactly one end, and every row that is served is
//! the one that the independent recomputation finds.

use crate::{
    client::Client,
    seed::{count, seed},
    server::{Home, Server},
    traffic::{now_us, send_until_taken},
};
use serde_json::Value;
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use trueup::{
    RollupSpec,
    verify::{self, FIGURES, RowFigures, VerifySettings, Views},
};
use trueup_generator::{
    chaos::{Chaos, ChaosSettings},
    event::{Event, events_body, verdicts_body},
    random::Random,
};
use trueup_log::Journal;
use trueup_operators::time::{Granularity, Lateness, MINUTE_US, parse_rfc3339};

const CONFIG: &str = r#"
[time]
allowed_lateness = "2m"
correction_horizon = "10m"
future_skew_max = "5m"
"#;
const LATENESS: Lateness = Lateness {
    allowed_lateness_us: 2 * MINUTE_US,
    correction_horizon_us: 10 * MINUTE_US,
    future_skew_us_max: 5 * MINUTE_US,
};

const SENDERS: u64 = 8;
const EVENTS_A_BODY: u64 = 500;
/// Of the acknowledged events, so many are asked for one by one.
const ASKED: usize = 200;

/// What is sent, and what was acknowledged.
struct Traffic {
    chaos: Mutex<Chaos>,
    bodies_left: AtomicU64,
    acknowledged: Mutex<Vec<String>>,
    acknowledged_events: AtomicU64,
    acknowledged_bodies: AtomicU64,
}

impl Traffic {
    fn new(seed: u64, events: u64) -> Traffic {
        let settings = ChaosSettings {
            // Few enough that most events are copies or contradictions of another one.
            ids: events / 4 + 1,
            campaigns: 20,
            correction_horizon_us: LATENESS.correction_horizon_us,
            // The senders' clock may be ahead of the time of arrival by what a retry takes.
            future_skew_us_max: LATENESS.future_skew_us_max,
            born_invalid: false,
        };
        Traffic {
            chaos: Mutex::new(Chaos::new(seed, settings)),
            bodies_left: AtomicU64::new(events.div_ceil(EVENTS_A_BODY)),
            acknowledged: Mutex::default(),
            acknowledged_events: AtomicU64::new(0),
            acknowledged_bodies: AtomicU64::new(0),
        }
    }

    /// One sender, until there is nothing left to send.
    fn send(&self, client: &Client) {
        let left = |n: u64| n.checked_sub(1);
        while let Ok(nth) =
            self.bodies_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
        {
            let (events, verdicts) = {
                let mut chaos = self.chaos.lock().unwrap();
                let events = chaos.events(EVENTS_A_BODY as usize, now_us());
                let verdicts = if nth.is_multiple_of(3) { 200 } else { 0 };
                (events, chaos.verdicts(verdicts, now_us()))
            };
            let json: Vec<String> = events.iter().map(Event::json).collect();
            let body = events_body(json.iter().map(String::as_str));
            let answer = send_until_taken(client, "/v1/events/collect", &body).json;
            assert_eq!(answer["accepted"], events.len(), "{answer}");
            // Of events that were not understood only the newest can be asked for by their id.
            let understood = events.iter().filter(|e| e.optional.schema_version.is_none());
            let ids = understood.map(|e| e.event_id.clone());
            self.acknowledged_events.fetch_add(events.len() as u64, Ordering::Relaxed);
            self.acknowledged.lock().unwrap().extend(ids);
            if let Some(body) = verdicts_body(&verdicts) {
                let answer = send_until_taken(client, "/v1/verdicts", &body).json;
                assert_eq!(answer["accepted"], verdicts.len(), "{answer}");
            }
            self.acknowledged_bodies.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Kills and starts the server at random instants, spread over the whole run.
fn kill_again_and_again<'h>(
    home: &'h Home,
    traffic: &Traffic,
    bodies: u64,
    kills: u64,
    over: &AtomicBool,
    random: &mut Random,
) -> Server<'h> {
    let mut server = home.start();
    for nth in 0..kills {
        let share = bodies / (kills + 1);
        let at = nth * share + random.below(share + 1);
        while traffic.acknowledged_bodies.load(Ordering::Relaxed) < at
            && !over.load(Ordering::Relaxed)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(random.below(150_000)));
        server.kill();
        std::thread::sleep(Duration::from_micros(random.below(100_000)));
        server = home.start();
    }
    server
}

/// A row of a view as the recomputation knows it.
fn row(view: &RollupSpec, row: &Value) -> ((i64, Vec<String>), RowFigures) {
    let bucket = parse_rfc3339(row["bucketStart"].as_str().unwrap()).unwrap();
    let text = |name: &String| row[name].as_str().unwrap_or_default().to_owned();
    let states = ["provisional", "settling", "final", "restated"];
    let state = states.iter().position(|s| row["state"] == **s).unwrap();
    use trueup_operators::time::BucketState::{Final, Provisional, Restated, Settling};
    let figures = RowFigures {
        figures: FIGURES.map(|name| row[name].as_i64().unwrap()),
        version: row["version"].as_u64().unwrap() as u32,
        state: [Provisional, Settling, Final, Restated][state],
    };
    ((bucket, view.dimensions.iter().map(text).collect()), figures)
}

/// Everything that is served, as of one epoch.
fn served(client: &Client) -> (u64, Views) {
    let (epoch, _) = client.view("audience_minute", None);
    let mut views = Views::new();
    for rollup in RollupSpec::ad_defaults() {
        for granularity in Granularity::ALL {
            let name = rollup.view_name(granularity);
            let (_, rows) = client.view(&name, Some(epoch));
            views.insert(name, rows.iter().map(|r| row(&rollup, r)).collect());
        }
    }
    (epoch, views)
}

#[test]
fn killed_again_and_again_it_loses_nothing_and_counts_nothing_twice() {
    let seed = seed("killed_again_and_again_it_loses_nothing_and_counts_nothing_twice");
    let events = count("TRUEUP_IT_EVENTS", 100_000);
    let kills = count("TRUEUP_IT_KILLS", 5);
    let home = Home::new(CONFIG);
    let (traffic, over) = (Traffic::new(seed, events), AtomicBool::new(false));
    let bodies = traffic.bodies_left.load(Ordering::Relaxed);
    let mut random = Random::new(seed, 1);

    let server = std::thread::scope(|scope| {
        let killer = scope
            .spawn(|| kill_again_and_again(&home, &traffic, bodies, kills, &over, &mut random));
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let client = home.client();
                let traffic = &traffic;
                scope.spawn(move || traffic.send(&client))
            })
            .collect();
        for sender in senders {
            sender.join().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        killer.join().unwrap()
    });

    let client = server.client();
    let counts = client.settled();
    counts.check();
    // What was sent twice because no answer came may be there twice.
    let acknowledged_events = traffic.acknowledged_events.into_inner() as i64;
    assert!(counts.accepted >= acknowledged_events, "{acknowledged_events} {counts:?}");
    let mut acknowledged = traffic.acknowledged.into_inner().unwrap();
    assert_eq!(counts.rejected, 0, "{counts:?}");
    let ends = [counts.counted, counts.duplicate, counts.conflict, counts.quarantined];
    assert!(ends.iter().all(|&events| events > 0), "an end is missing: {counts:?}");
    assert!(counts.too_late > 0, "an end is missing: {counts:?}");

    acknowledged.sort_unstable();
    acknowledged.dedup();
    for _ in 0..ASKED {
        let id = random.pick(&acknowledged);
        client.get(&format!("/v1/events/{id}")).expect(200);
    }

    let (epoch, views) = served(&client);
    assert!(server.terminate().success(), "{}", home.stderr());
    let (journal, _) = Journal::open_read_only(&home.data()).unwrap();
    let settings = VerifySettings { lateness: LATENESS, rollups: RollupSpec::ad_defaults() };
    let recomputed = verify::recompute(&journal, &settings, Some(epoch)).unwrap();
    let comparison = verify::compare(&recomputed, &views, &verify::Filter::default());
    assert!(comparison.is_equal(), "{comparison}");
    drop(journal);

    let (code, out, err) = home.run(&["verify", "--json"]);
    assert_eq!(code, Some(0), "{out}\n{err}");
}
