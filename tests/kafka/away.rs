//! Kafka away under load: every click is answered, nothing is lost, and it all arrives.

use crate::{
    brokers::{alone, configured, control, count as brokers},
    seed::count,
    server::Home,
    traffic::now_us,
};
use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::{Duration, Instant},
};

#[test]
fn while_kafka_is_away_every_click_is_answered_and_all_of_them_arrive() {
    let _brokers = alone();
    let away = Duration::from_secs(count("TRUEUP_IT_AWAY_S", 6));
    let config = "[time]\nallowed_lateness = \"5m\"\ncorrection_horizon = \"1h\"\n\
                  [limits]\nclicks_per_minute_per_ip_max = 1000000";
    let home = Home::new(&configured(config, "batch").0);
    let server = home.start();
    let client = server.client();
    let ad = r#"{"campaignId":"c1","landingUrl":"https://shop.example/"}"#;
    let answer = client.put("/v1/ads/a1", ad.as_bytes());
    assert!(answer.status < 300, "{}", answer.json);
    let (over, answered, refused, slowest_ms) =
        (AtomicBool::new(false), AtomicI64::new(0), AtomicI64::new(0), AtomicI64::new(0));
    let status = std::thread::scope(|scope| {
        for sender in 0..4 {
            let (client, over) = (server.client(), &over);
            let (answered, refused, slowest_ms) = (&answered, &refused, &slowest_ms);
            scope.spawn(move || {
                let mut number = 0;
                while !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let at = now_us() / 1_000;
                    let path = format!(
                        "/click?ad_id=a1&campaign_id=c1&ts={at}&event_id=k{sender}-{number}"
                    );
                    // Whatever else comes is looked at when all have stopped.
                    match client.try_get(&path).map(|answer| answer.status) {
                        Ok(302) => answered.fetch_add(1, Ordering::Relaxed),
                        _ => refused.fetch_add(1, Ordering::Relaxed),
                    };
                    slowest_ms.fetch_max(began.elapsed().as_millis() as i64, Ordering::Relaxed);
                    number += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        std::thread::sleep(Duration::from_secs(2));
        for broker in 1..=brokers() {
            control("kill", broker);
        }
        std::thread::sleep(away);
        // Looked at later: a failure in here would leave the senders sending.
        let status = client.try_get("/v1/status");
        for broker in 1..=brokers() {
            control("restart", broker);
        }
        std::thread::sleep(Duration::from_secs(3));
        over.store(true, Ordering::Relaxed);
        status
    });
    let status = status.unwrap().expect(200).json;
    let spool = &status["log"]["spool"];
    assert!(spool["waitingFrames"].as_i64().unwrap() > 0, "clicks wait in the spool: {spool}");
    assert!(status["freshnessSeconds"].as_f64().unwrap() > 1.0, "honest: {status}");
    let answered = answered.into_inner();
    assert_eq!(refused.into_inner(), 0, "clicks that were not answered with their redirect");
    assert!(answered > 100, "{answered}");
    let until = Instant::now() + Duration::from_secs(90);
    let counts = loop {
        let counts = client.counts();
        let spool = client.get("/v1/status").expect(200).json["log"]["spool"].clone();
        if counts.counted >= answered && spool["waitingFrames"] == 0 {
            break counts;
        }
        assert!(Instant::now() < until, "{answered} answered: {counts:?} {spool}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let slowest_ms = slowest_ms.into_inner();
    println!("{answered} clicks, the slowest answer took {slowest_ms} ms");
    // Nobody waits for what Kafka may take (`delivery_timeout`, 5 s).
    assert!(slowest_ms < 4_000, "a click was answered after {slowest_ms} ms");
    assert_eq!((counts.counted, counts.conflict), (answered, 0), "{counts:?}");
    client.settled().check();
    assert!(server.terminate().success(), "{}", home.stderr());
    let (code, out, err) = home.run(&["verify"]);
    assert_eq!(code, Some(0), "{out}\n{err}");
}
