//! Kafka away when a server starts: it waits, says for whom, begins by itself when they are back,
//! and ends at once when it is told to.

use crate::{
    brokers::{Away, addresses, alone, configured},
    client::Client,
    server::{Home, Server},
    traffic::{click, now_us},
};
use std::time::{Duration, Instant};

/// Waits until the server answers, and says that it waits.
fn is_waiting(server: &mut Server<'_>, home: &Home) {
    let (client, began) = (server.client(), Instant::now());
    let alive = || client.try_get("/healthz").is_ok_and(|answer| answer.status == 200);
    while !alive() {
        assert!(server.ended().is_none(), "it ended: {}", home.stderr());
        assert!(began.elapsed() < Duration::from_secs(30), "{}", home.stderr());
        std::thread::sleep(Duration::from_millis(20));
    }
    let refuses = |client: &Client, path| {
        let answer = client.get(path).expect(503);
        assert_eq!(answer.problem(), "waiting_for_brokers");
        let detail = answer.json["detail"].as_str().unwrap();
        assert!(detail.contains(&addresses()), "{detail}");
    };
    refuses(&client, "/readyz");
    refuses(&client, "/v1/status");
    let refused = client.collect(&[click("refused", now_us())]).expect(503);
    assert_eq!(refused.problem(), "waiting_for_brokers");
}

#[test]
fn a_server_that_starts_while_kafka_is_away_waits_and_begins_when_it_is_back() {
    let _brokers = alone();
    let home = Home::new(&configured("", "batch").0);
    let first_life = home.start();
    first_life.client().collect(&[click("before", now_us())]).expect(202);
    first_life.client().settled().check();
    assert!(first_life.terminate().success(), "{}", home.stderr());

    let away = Away::begin();
    let mut server = Server::spawn(&home, home.serve());
    is_waiting(&mut server, &home);
    let told = Instant::now();
    assert!(server.terminate().success(), "{}", home.stderr());
    assert!(told.elapsed() < Duration::from_secs(5), "it ended after {:?}", told.elapsed());

    let mut server = Server::spawn(&home, home.serve());
    is_waiting(&mut server, &home);
    // Longer than one try takes.
    std::thread::sleep(Duration::from_secs(17));
    is_waiting(&mut server, &home);
    let until = Instant::now() + Duration::from_secs(30);
    let is_said = |line: &str| {
        line.contains("waiting for a broker that answers") && line.contains(&addresses())
    };
    while !home.stderr().lines().any(is_said) {
        assert!(Instant::now() < until, "nobody is told: {}", home.stderr());
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(away);
    server.wait_until_ready();
    let client = server.client();
    client.collect(&[click("after", now_us())]).expect(202);
    let until = Instant::now() + Duration::from_secs(60);
    // How many there are in Kafka is an estimate until the views are as far.
    let counts = loop {
        let counts = client.settled();
        if counts.accepted >= 2 || Instant::now() > until {
            break counts;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    counts.check();
    assert_eq!((counts.accepted, counts.counted), (2, 2), "{counts:?}");
    assert!(server.terminate().success(), "{}", home.stderr());
    let (code, out, err) = home.run(&["verify"]);
    assert_eq!(code, Some(0), "{out}\n{err}");
}
