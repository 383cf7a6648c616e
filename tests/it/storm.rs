//! Contradictory traffic that is sent until it is acknowledged, and someone who kills the server
//! under it.

use crate::{
    client::Client,
    server::{Home, Server},
    traffic::{click, now_us, send_until_taken},
};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use trueup_generator::{
    chaos::{Chaos, ChaosSettings},
    event::{Event, events_body, verdicts_body},
    random::Random,
};
use trueup_operators::time::{Lateness, MINUTE_US};

/// What a server under a storm is configured with, beside its log.
pub(crate) const CONFIG: &str = r#"
[time]
allowed_lateness = "2m"
correction_horizon = "10m"
future_skew_max = "5m"
[checkpoint]
interval = "200ms"
whole_every = 3
"#;
/// The same.
pub(crate) const LATENESS: Lateness = Lateness {
    allowed_lateness_us: 2 * MINUTE_US,
    correction_horizon_us: 10 * MINUTE_US,
    future_skew_us_max: 5 * MINUTE_US,
};

const SENDERS: u64 = 8;
const EVENTS_A_BODY: u64 = 500;

/// Events that no collector takes: what they hold beside an id, and the code that says why not.
pub(crate) const BAD: [(&str, &str); 4] = [
    (r#""eventType":"click""#, "missing_field"),
    (
        r#""eventType":"view","occurredAt":"2026-04-27T15:32:10Z","campaignId":"c","adId":"a""#,
        "unknown_event_type",
    ),
    (r#""region":"cut \ud83d""#, "bad_json"),
    (
        concat!(
            r#""eventType":"click","occurredAt":"2026-04-27T15:32:10Z","campaignId":"c","#,
            r#""adId":"a","priceMicros":-1"#
        ),
        "number_out_of_range",
    ),
];

/// Puts some of them among the events of a body; their places.
fn spoil(json: &mut Vec<String>, nth: u64) -> Vec<(u64, &'static str)> {
    let places = BAD[..nth as usize % (BAD.len() + 1)].iter().enumerate();
    let spoiled = places.map(|(at, (more, code))| {
        let place = at * json.len() / BAD.len();
        json.insert(place, format!(r#"{{"eventId":"bad {nth}",{more}}}"#));
        (place as u64, *code)
    });
    spoiled.collect()
}

/// Which events of a body were refused, by the answer.
pub(crate) fn refused(answer: &serde_json::Value) -> Vec<(u64, &str)> {
    let errors = answer["errors"].as_array().unwrap().iter();
    errors.map(|e| (e["index"].as_u64().unwrap(), e["code"].as_str().unwrap())).collect()
}

/// What is sent, and what was acknowledged.
pub(crate) struct Traffic {
    chaos: Mutex<Chaos>,
    pub(crate) bodies_left: AtomicU64,
    pub(crate) acknowledged: Mutex<Vec<String>>,
    /// One event of each acknowledged body that no other body has.
    pub(crate) marks: Mutex<Vec<String>>,
    pub(crate) acknowledged_events: AtomicU64,
    pub(crate) acknowledged_bodies: AtomicU64,
    /// How long each sender waits between two bodies.
    pub(crate) pause: Duration,
    /// Starts that began with a checkpoint.
    pub(crate) resumed: AtomicU64,
}

impl Traffic {
    pub(crate) fn new(seed: u64, events: u64) -> Traffic {
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
            marks: Mutex::default(),
            acknowledged_events: AtomicU64::new(0),
            acknowledged_bodies: AtomicU64::new(0),
            pause: Duration::ZERO,
            resumed: AtomicU64::new(0),
        }
    }

    /// One sender, until there is nothing left to send.
    pub(crate) fn send(&self, client: &Client) {
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
            let mut json: Vec<String> = events.iter().map(Event::json).collect();
            let mark = format!("mark {nth}");
            json.push(click(&mark, now_us()).to_string());
            let good = json.len();
            let bad = spoil(&mut json, nth);
            let body = events_body(json.iter().map(String::as_str));
            let answer = send_until_taken(client, "/v1/events/collect", &body).json;
            assert_eq!(
                (&answer["accepted"], &answer["rejected"]),
                (&good.into(), &bad.len().into())
            );
            assert_eq!(refused(&answer), bad, "{answer}");
            self.marks.lock().unwrap().push(mark);
            // Of events that were not understood only the newest can be asked for by their id.
            let understood = events.iter().filter(|e| e.optional.schema_version.is_none());
            let ids = understood.map(|e| e.event_id.clone());
            self.acknowledged_events.fetch_add(good as u64, Ordering::Relaxed);
            self.acknowledged.lock().unwrap().extend(ids);
            if let Some(body) = verdicts_body(&verdicts) {
                let answer = send_until_taken(client, "/v1/verdicts", &body).json;
                assert_eq!(answer["accepted"], verdicts.len(), "{answer}");
            }
            self.acknowledged_bodies.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(self.pause);
        }
    }
}

/// Kills and starts the server at random instants, spread over the whole run, each time with
/// another number of workers.
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
        if nth + 1 == kills {
            await_checkpoint(&server);
        }
        server.kill();
        std::thread::sleep(Duration::from_micros(random.below(100_000)));
        server = home.start_with(&["--workers", &(1 + random.below(4)).to_string()]);
        let status = server.client().get("/v1/status").expect(200).json;
        let resumed = status["recovery"]["fromEpoch"].as_u64().unwrap() > 0;
        traffic.resumed.fetch_add(u64::from(resumed), Ordering::Relaxed);
    }
    server
}

/// On a busy machine every life so far may have been too short for a checkpoint: the last one that
/// is ended by force has one, so that a start begins with it.
fn await_checkpoint(server: &Server<'_>) {
    let until = Instant::now() + Duration::from_secs(60);
    while server.client().get("/v1/status").expect(200).json["checkpoint"]["lastEpoch"].is_null() {
        assert!(Instant::now() < until, "no checkpoint within a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends all of it, by eight senders, while the server is killed so many times.
pub(crate) fn storm<'h>(home: &'h Home, traffic: &Traffic, kills: u64, seed: u64) -> Server<'h> {
    let over = AtomicBool::new(false);
    let bodies = traffic.bodies_left.load(Ordering::Relaxed);
    let mut random = Random::new(seed, 1);
    std::thread::scope(|scope| {
        let killer =
            scope.spawn(|| kill_again_and_again(home, traffic, bodies, kills, &over, &mut random));
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let client = home.client();
                scope.spawn(move || traffic.send(&client))
            })
            .collect();
        for sender in senders {
            sender.join().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        killer.join().unwrap()
    })
}
