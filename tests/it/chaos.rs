//! P1 to P4 under fire: contradictory events and verdicts from eight senders that retry until they
//! are acknowledged, while the server is killed with -9 again and again. Afterwards nothing that
//! was acknowledged is missing, every event has exactly one end, and every row that is served is
//! the one that the independent recomputation finds.

use crate::{
    client::Client,
    seed::{count, seed},
    server::Home,
    storm::{BAD, CONFIG, LATENESS, Traffic, refused, storm},
    traffic::send_until_taken,
};
use serde_json::Value;
use trueup::{
    RollupSpec,
    verify::{self, FIGURES, RowFigures, VerifySettings, Views},
};
use trueup_generator::{event::events_body, random::Random};
use trueup_log::Journal;
use trueup_operators::time::{Granularity, parse_rfc3339};

/// Of the acknowledged events, so many are asked for one by one.
const ASKED: usize = 200;

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

/// How many were refused is known since the start of the process; every answer of the storm has
/// said which of its body were, and so does one more.
fn rejected_is_exact(client: &Client) {
    let before = client.settled();
    let bad = |(more, _): &(&str, &str)| format!(r#"{{"eventId":"bad at the end",{more}}}"#);
    let body = events_body(BAD.iter().map(bad).collect::<Vec<_>>().iter().map(String::as_str));
    let answer = send_until_taken(client, "/v1/events/collect", &body).json;
    let expected: Vec<_> = (0..).zip(BAD.map(|(_, code)| code)).collect();
    assert_eq!(refused(&answer), expected, "{answer}");
    let after = client.settled();
    after.check();
    assert_eq!(after.rejected, before.rejected + BAD.len() as i64);
    assert_eq!(after.accepted, before.accepted);
}

#[test]
fn killed_again_and_again_it_loses_nothing_and_counts_nothing_twice() {
    let seed = seed("killed_again_and_again_it_loses_nothing_and_counts_nothing_twice");
    let events = count("TRUEUP_IT_EVENTS", 100_000);
    let kills = count("TRUEUP_IT_KILLS", 5);
    let home = Home::new(CONFIG);
    let traffic = Traffic::new(seed, events);
    let server = storm(&home, &traffic, kills, seed);
    let mut random = Random::new(seed, 2);

    let client = server.client();
    let counts = client.settled();
    counts.check();
    // What was sent twice because no answer came may be there twice.
    let acknowledged_events = traffic.acknowledged_events.into_inner() as i64;
    assert!(counts.accepted >= acknowledged_events, "{acknowledged_events} {counts:?}");
    let mut acknowledged = traffic.acknowledged.into_inner().unwrap();
    rejected_is_exact(&client);
    let counts = client.settled();
    let ends = [counts.counted, counts.duplicate, counts.conflict, counts.quarantined];
    assert!(ends.iter().all(|&events| events > 0), "an end is missing: {counts:?}");
    assert!(counts.too_late > 0, "an end is missing: {counts:?}");
    assert!(traffic.resumed.into_inner() > 0, "no start began with a checkpoint");

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
