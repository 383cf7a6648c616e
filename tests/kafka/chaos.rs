//! The server killed with -9 again and again under contradictory traffic, as on the embedded log.

use crate::{
    brokers::{beside, configured},
    seed::{count, seed},
    server::Home,
    storm::{CONFIG, Traffic, storm},
};
use trueup_generator::random::Random;

/// Of the acknowledged events, so many are asked for one by one.
const ASKED: usize = 200;

#[test]
fn killed_again_and_again_it_loses_nothing_and_counts_nothing_twice() {
    let _brokers = beside();
    let seed = seed("kafka: killed_again_and_again_it_loses_nothing_and_counts_nothing_twice");
    let (events, kills) = (count("TRUEUP_IT_EVENTS", 50_000), count("TRUEUP_IT_KILLS", 4));
    let home = Home::new(&configured(CONFIG, "batch").0);
    let traffic = Traffic::new(seed, events);
    let server = storm(&home, &traffic, kills, seed);
    let client = server.client();
    let counts = client.settled();
    counts.check();
    let acknowledged_events = traffic.acknowledged_events.into_inner() as i64;
    assert!(counts.accepted >= acknowledged_events, "{acknowledged_events} {counts:?}");
    let ends = [counts.counted, counts.duplicate, counts.conflict, counts.quarantined];
    assert!(ends.iter().all(|&events| events > 0), "an end is missing: {counts:?}");
    let acknowledged = traffic.acknowledged.into_inner().unwrap();
    let mut random = Random::new(seed, 2);
    for _ in 0..ASKED {
        let id = random.pick(&acknowledged);
        client.get(&format!("/v1/events/{id}")).expect(200);
    }
    let url = format!("http://{}", client.address());
    let (code, out, err) = home.run(&["verify", "--server", &url]);
    assert_eq!(code, Some(0), "beside the server: {out}\n{err}");
    assert!(server.terminate().success(), "{}", home.stderr());
    let (code, out, err) = home.run(&["verify"]);
    assert_eq!(code, Some(0), "after it: {out}\n{err}");
}
