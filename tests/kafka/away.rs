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
    let (over, answered, slowest_ms) =
        (AtomicBool::new(false), AtomicI64::new(0), AtomicI64::new(0));
    std::thread::scope(|scope| {
        for sender in 0..4 {
            let (client, over) = (server.client(), &over);
            let (answered, slowest_ms) = (&answered, &slowest_ms);
            scope.spawn(move || {
                let mut number = 0;
                while !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let at = now_us() / 1_000;
                    let path = format!(
                        "/click?ad_id=a1&campaign_id=c1&ts={at}&event_id=k{sender}-{number}"
                    );
                    let answer = client.get(&path);
                    assert_eq!(answer.status, 302, "{}", answer.json);
                    answered.fetch_add(1, Ordering::Relaxed);
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
        let status = client.get("/v1/status").expect(200).json;
        assert_eq!(status["log"]["spool"]["away"], true, "{}", status["log"]);
        assert!(status["freshnessSeconds"].as_f64().unwrap() > 1.0, "honest: {status}");
        for broker in 1..=brokers() {
            control("restart", broker);
        }
        std::thread::sleep(Duration::from_secs(3));
        over.store(true, Ordering::Relaxed);
    });
    let answered = answered.into_inner();
    assert!(answered > 100, "{answered}");
    let until = Instant::now() + Duration::from_secs(90);
    let counts = loop {
        let counts = client.counts();
        let spool = client.get("/v1/status").expect(200).json["log"]["spool"].clone();
        if counts.counted >= answered && spool["away"] == false {
            break counts;
        }
        assert!(Instant::now() < until, "{answered} answered: {counts:?} {spool}");
        std::thread::sleep(Duration::from_millis(100));
    };
    println!("{answered} clicks, the slowest answer took {} ms", slowest_ms.into_inner());
    assert_eq!((counts.counted, counts.conflict), (answered, 0), "{counts:?}");
    client.settled().check();
    assert!(server.terminate().success(), "{}", home.stderr());
    let (code, out, err) = home.run(&["verify"]);
    assert_eq!(code, Some(0), "{out}\n{err}");
}
