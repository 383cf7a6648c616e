//! What one process of a cluster is told of campaigns and ads, all of them answer with; of two
//! changes of one version one is made, and while Kafka is away nothing is decided that is not
//! known.

use crate::{
    brokers::{Away, alone},
    client::{Answer, Client},
    fleet::Fleet,
    server::Server,
    traffic::{click, now_us, wait_for},
};
use serde_json::{Value, json};
use std::time::Duration;

const AD: &str = "/v1/ads/a1";
const CLICK: &str = "/click?ad_id=a1&event_id=k1";
/// What one process knows the others do within this.
const SOON: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(120);

fn put_page(client: &Client, page: &str, condition: Option<&str>) -> Answer {
    let headers: Vec<_> = condition.iter().map(|tag| ("if-match", *tag)).collect();
    let ad = json!({ "campaignId": "c1", "landingUrl": format!("https://shop.example/{page}") });
    client.put_with(AD, &headers, ad.to_string().as_bytes())
}

fn tag(entry: &Value) -> String {
    format!("\"{}\"", entry["version"].as_u64().unwrap())
}

/// Waits until an entry is the same at all processes, and is about this page; what it is.
fn everywhere(clients: &[Client], page: &str) -> Value {
    wait_for(&format!("{page} everywhere"), PATIENCE, || {
        let entries: Vec<Value> = clients.iter().map(|client| client.get(AD).json).collect();
        let is_there = |entry: &Value| {
            entry["landingUrl"].as_str().is_some_and(|url| url.ends_with(page))
                && *entry == entries[0]
        };
        entries.iter().all(is_there).then(|| entries[0].clone())
    })
}

#[test]
fn what_one_process_is_told_the_others_know_and_no_version_is_changed_twice() {
    let _brokers = alone();
    let fleet = Fleet::new(2, "");
    fleet.configure(2, 1);
    let mut servers: Vec<Server<'_>> = (0..2).map(|process| fleet.spawn(process)).collect();
    servers.iter_mut().for_each(Server::wait_until_ready);
    let clients: Vec<Client> = servers.iter().map(Server::client).collect();
    let first = told(&clients);
    changed_at_once(&clients, &first);
    changed_while_kafka_is_away(&clients);
    for server in servers {
        assert!(server.terminate().success());
    }
}

/// One process is told of a campaign and an ad, and the other answers clicks with them and fills
/// in the advertiser; the ad.
fn told(clients: &[Client]) -> Value {
    let [one, other] = [&clients[0], &clients[1]];
    assert_eq!(other.get(CLICK).expect(404).problem(), "unknown_ad");
    one.put("/v1/campaigns/camp_4821", br#"{"advertiserId":"adv_1"}"#).expect(201);
    let first = put_page(one, "first", None).expect(201).json;
    wait_for("the ad at the other process", SOON, || {
        (other.get(CLICK).status == 302).then_some(())
    });
    assert_eq!(other.get(AD).expect(200).json, first);
    other.collect(&[click("e1", now_us() - 1_000_000)]).expect(202);
    let life = wait_for("the event", PATIENCE, || {
        let answer = other.get("/v1/events/e1");
        (answer.status == 200).then_some(answer.json)
    });
    assert_eq!(life["event"]["advertiserId"], "adv_1", "{life}");
    first
}

/// A version is changed by one process alone, whichever are asked to and however close together.
fn changed_at_once(clients: &[Client], first: &Value) {
    let [one, other] = [&clients[0], &clients[1]];
    // At once, before anybody can have followed by itself.
    put_page(other, "round", Some(&tag(first))).expect(200);
    let late = put_page(one, "late", Some(&tag(first))).expect(412);
    assert_eq!(late.problem(), "version_mismatch");
    for round in 0..10 {
        let before = tag(&everywhere(clients, "round"));
        let before = before.as_str();
        let statuses = std::thread::scope(|scope| {
            let put = |client| scope.spawn(move || put_page(client, "round", Some(before)).status);
            let puts = [put(one), put(other)];
            let mut statuses = puts.map(|put| put.join().unwrap());
            statuses.sort_unstable();
            statuses
        });
        assert_eq!(statuses, [200, 412], "round {round}: one is made, and one alone");
    }
}

/// What cannot be decided is refused, and what can wait waits.
fn changed_while_kafka_is_away(clients: &[Client]) {
    let [one, other] = [&clients[0], &clients[1]];
    let last = everywhere(clients, "round");
    let away = Away::begin();
    let refused = put_page(one, "refused", Some(&tag(&last))).expect(503);
    assert_eq!(refused.problem(), "metadata_behind");
    assert!(refused.retry_after.is_some());
    let waits = put_page(one, "waits", None).expect(202);
    assert_eq!(waits.json, json!({ "pending": true }));
    assert_eq!(one.get(AD).expect(200).json, last, "visible once the log holds it");
    drop(away);
    let back = everywhere(clients, "waits");
    assert!(back["version"].as_u64() > last["version"].as_u64());
    wait_for("a condition that is decided again", PATIENCE, || {
        let now = tag(&other.get(AD).expect(200).json);
        (put_page(other, "again", Some(&now)).status == 200).then_some(())
    });
}
