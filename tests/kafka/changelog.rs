//! The changelog of a server, as somebody else's consumer reads it: the views, by the newest
//! message of each row and by adding up, exactly, over kill -9 and brokers that went away.

use crate::{
    brokers::{addresses, alone, beside, configured, control, count as brokers, produce},
    client::Client,
    seed::{count, random},
    server::Home,
    storm::CONFIG,
    traffic::{click, now_us, verdict},
};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};
use trueup_generator::random::Random;

const PATIENCE: Duration = Duration::from_secs(90);

/// What a topic comes to.
pub(crate) struct Consumed {
    /// By view and row: the row as the views show it.
    newest: BTreeMap<(String, String), Value>,
    /// The uppers, in their order.
    pub(crate) uppers: Vec<u64>,
    pub(crate) messages: usize,
}

/// Reads committed messages from the beginning, with kcat.
fn kcat(topic: &str) -> Vec<(Value, Value)> {
    let output = Command::new("kcat")
        .args(["-C", "-b", &addresses(), "-t", topic, "-o", "beginning", "-e", "-q"])
        .args(["-X", "isolation.level=read_committed", "-f", "%k\t%s\n"])
        .output()
        .expect("kcat is installed by `.ci/run kafka`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let parse = |line: &str| {
        let (key, value) = line.split_once('\t').expect("a message has a key");
        (serde_json::from_str(key).unwrap(), serde_json::from_str(value).unwrap())
    };
    text.lines().map(parse).collect()
}

/// Adds a topic up both ways, which must come to the same.
fn consume(topic: &str) -> Consumed {
    let (mut newest, mut messages) = (BTreeMap::new(), 0);
    let mut added: BTreeMap<(String, String), Vec<Value>> = BTreeMap::new();
    let (uppers, rows): (Vec<_>, Vec<_>) =
        kcat(topic).into_iter().partition(|(key, _)| !key["upper"].is_null());
    let uppers: Vec<u64> =
        uppers.iter().map(|(_, value)| value["upper"].as_u64().unwrap()).collect();
    // Partitions are read one after the other: a transaction may be there in one of them, and not
    // yet in the one with the upper.
    let upper = uppers.last().copied().unwrap_or_default();
    for (key, value) in rows.into_iter().filter(|(_, v)| v["epoch"].as_u64() < Some(upper)) {
        messages += 1;
        assert_eq!((&key["view"], &key["row"]), (&value["view"], &value["row"]));
        let name = (key["view"].as_str().unwrap().to_owned(), key["row"].to_string());
        let rows = added.entry(name.clone()).or_default();
        let whole = |side: &Value| (!side.is_null()).then(|| joined(&key["row"], side));
        if let Some(old) = whole(&value["old"]) {
            let at = rows.iter().position(|row| *row == old);
            rows.remove(at.unwrap_or_else(|| panic!("−{old} of {rows:?}")));
        }
        match whole(&value["new"]) {
            None => drop(newest.remove(&name)),
            Some(new) => {
                rows.push(new.clone());
                newest.insert(name, new);
            }
        }
    }
    let mut sums = BTreeMap::new();
    for (name, mut rows) in added {
        if let Some(row) = rows.pop() {
            assert!(rows.is_empty(), "{name:?} is several rows");
            sums.insert(name, row);
        }
    }
    assert_eq!(newest, sums, "−old +new comes to something else than the newest");
    assert!(uppers.is_sorted(), "{uppers:?}");
    Consumed { newest, uppers, messages }
}

/// A row as the views show it: its name and what it is, in one.
fn joined(row: &Value, side: &Value) -> Value {
    let parts = [row, side].into_iter().flat_map(|part| part.as_object().unwrap().clone());
    Value::Object(parts.collect::<Map<String, Value>>())
}

/// Waits until the changelog has everything.
#[track_caller]
pub(crate) fn caught_up(client: &Client) -> Value {
    let began = Instant::now();
    client.settled();
    let shown = client.get("/v1/status").expect(200).json["epoch"].as_u64().unwrap();
    loop {
        let changelog = client.get("/v1/status").expect(200).json["changelog"].clone();
        if changelog["upper"].as_u64().is_some_and(|upper| upper > shown) {
            return changelog;
        }
        assert!(began.elapsed() < PATIENCE, "{changelog} of {shown}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// That the topic is all views at its upper − 1.
#[track_caller]
pub(crate) fn assert_views(client: &Client, topic: &str) -> Consumed {
    let consumed = consume(topic);
    let at = consumed.uppers.last().expect("something was published") - 1;
    let views = client.get("/v1/views").expect(200).json;
    let mut expected = BTreeMap::new();
    for view in views["views"].as_array().unwrap().iter().filter(|view| view["kind"] == "rollup") {
        let name = view["name"].as_str().unwrap();
        for row in client.view(name, Some(at)).1 {
            let keys = view["key"].as_array().unwrap().iter().map(|key| key.as_str().unwrap());
            let key: Map<String, Value> =
                keys.map(|key| (key.to_owned(), row[key].clone())).collect();
            let key = (name.to_owned(), Value::Object(key).to_string());
            assert!(expected.insert(key, row).is_none(), "a row stands twice in {name}");
        }
    }
    assert!(expected.len() > 10, "only {} rows", expected.len());
    assert_eq!(consumed.newest.len(), expected.len(), "rows at {at}");
    for (key, row) in &expected {
        assert_eq!(consumed.newest.get(key), Some(row), "{key:?} at {at}");
    }
    consumed
}

/// Events of some campaigns within the horizon, and verdicts that take earlier ones back or restore
/// them.
fn send(client: &Client, random: &mut Random, sent: &mut u64) {
    let now = now_us();
    let mut event = || {
        *sent += 1;
        let mut event = click(&format!("e{sent}"), now - random.below(11 * 60_000_000) as i64);
        event["campaignId"] = Value::from(format!("camp_{}", random.below(9)));
        event
    };
    let events: Vec<Value> = (0..20).map(|_| event()).collect();
    client.collect(&events).expect(202);
    let mut judge = || {
        let decision = *random.pick(&["valid", "invalid"]);
        verdict(&format!("e{}", 1 + random.below(*sent)), decision, now)
    };
    let verdicts: Vec<Value> = (0..5).map(|_| judge()).collect();
    client.judge(&verdicts).expect(202);
}

/// Each life publishes for a while, one transaction after the other, and is ended at any instant.
#[test]
fn killed_again_and_again_it_publishes_every_change_once() {
    let _brokers = beside();
    let mut random = random("kafka: killed_again_and_again_it_publishes_every_change_once");
    let (config, name) = configured(CONFIG, "batch");
    let config = config.replace("[time]", "[time]\ntick = \"20ms\"");
    let topic = format!("{name}-changes");
    let changelog = format!("[changelog]\ntopic = \"{topic}\"\ninterval = \"0s\"\n");
    let home = Home::new(&format!("{config}{changelog}"));
    let status = |client: &Client| client.get("/v1/status").expect(200).json["changelog"].clone();
    let mut sent = 0;
    for _ in 0..count("TRUEUP_IT_KILLS", 5) {
        let server = home.start();
        let client = server.client();
        let transactions = 1 + random.below(6);
        let began = Instant::now();
        while status(&client)["transactions"].as_u64().unwrap() < transactions {
            assert!(began.elapsed() < PATIENCE, "{}", status(&client));
            send(&client, &mut random, &mut sent);
        }
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        server.kill();
    }
    let server = home.start();
    let client = server.client();
    let changelog = caught_up(&client);
    assert_eq!((&changelog["doing"], &changelog["trouble"]), (&"following".into(), &Value::Null));
    let consumed = assert_views(&client, &topic);
    println!("{} messages in {} transactions", consumed.messages, consumed.uppers.len());
    let metrics = String::from_utf8(client.get("/metrics").body).unwrap();
    for metric in ["trueup_changelog_rows_total", "trueup_changelog_lag_epochs"] {
        assert!(metrics.contains(metric), "{metric} is missing");
    }
    // A server that drains leaves nothing unpublished; one that comes back compares nothing.
    assert!(server.terminate().success(), "{}", home.stderr());
    let server = home.start();
    let changelog = caught_up(&server.client());
    assert_eq!(changelog["comparisons"], 0, "{changelog}");
    assert_views(&server.client(), &topic);
}

/// Another server on the same topics ends the one before, its changelog too.
#[test]
fn a_server_that_supersedes_another_takes_its_changelog_over() {
    let _brokers = beside();
    let (config, name) = configured("", "batch");
    let topic = format!("{name}-changes");
    let home = Home::new(&format!("{config}[changelog]\ntopic = \"{topic}\"\n"));
    let first = home.start();
    let now = now_us();
    let events = |from: u64| -> Vec<Value> {
        (from..from + 50).map(|n| click(&format!("e{n}"), now - n as i64 * 7_000_000)).collect()
    };
    first.client().collect(&events(0)).expect(202);
    caught_up(&first.client());
    // The same data directory elsewhere, as after a move of the machine.
    let other = Home::new(&format!("{config}[changelog]\ntopic = \"{topic}\"\n"));
    std::fs::create_dir_all(other.data()).unwrap();
    std::fs::copy(home.data().join("identity"), other.data().join("identity")).unwrap();
    let second = other.start();
    second.client().collect(&events(50)).expect(202);
    second.client().judge(&[verdict("e3", "invalid", now_us())]).expect(202);
    let changelog = caught_up(&second.client());
    assert_eq!(changelog["doing"], "following", "{changelog}");
    let consumed = assert_views(&second.client(), &topic);
    assert!(consumed.newest.values().any(|row| row["invalidClicks"] == 1));
    drop(first);
}

/// The embedded log, and brokers that are away for longer than the views remember.
#[test]
fn brokers_that_are_away_stop_nothing_and_the_topic_is_right_again_afterwards() {
    let _brokers = alone();
    let (_, name) = configured("", "batch");
    let topic = format!("{name}-changes");
    let config = format!(
        "[flow]\nhistory = \"1s\"\n[kafka]\nbrokers = \"{}\"\n[changelog]\ntopic = \"{topic}\"\n\
         timeout = \"3s\"\nreplication_factor = {}\n",
        addresses(),
        brokers().min(3)
    );
    let home = Home::new(&config);
    let server = home.start();
    let client = server.client();
    let now = now_us();
    let send = |from: i64| {
        let of = |n: i64| click(&format!("e{n}"), now - (n % 50) * 7_000_000);
        let events: Vec<Value> = (from..from + 100).map(of).collect();
        client.collect(&events).expect(202);
    };
    send(0);
    caught_up(&client);
    for broker in 1..=brokers() {
        control("kill", broker);
    }
    for round in 1..=30 {
        send(round * 100);
        std::thread::sleep(Duration::from_millis(100));
    }
    client.judge(&[verdict("e3", "invalid", now_us())]).expect(202);
    // Everything is in the views; only the topic is behind, and says so.
    client.settled();
    let status = client.get("/v1/status").expect(200).json;
    for broker in 1..=brokers() {
        control("restart", broker);
    }
    assert!(status["freshnessSeconds"].as_f64().unwrap() < 3.0, "{}", status["freshnessSeconds"]);
    assert!(status["changelog"]["lagEpochs"].as_u64().unwrap() > 10, "{}", status["changelog"]);
    let changelog = caught_up(&client);
    assert!(changelog["failures"].as_u64().unwrap() > 0, "{changelog}");
    assert_eq!(changelog["comparisons"], 2, "the first start, and after the pause: {changelog}");
    assert_views(&client, &topic);
    send(10_000);
    caught_up(&client);
    assert_views(&client, &topic);
    assert!(server.terminate().success(), "{}", home.stderr());
}

/// Lag tools see a consumer group at the offsets that the views show.
#[test]
fn a_consumer_group_shows_how_far_the_views_are() {
    let _brokers = beside();
    let (config, name) = configured("", "json");
    let group = format!("{name}-group");
    let config = config.replace("encoding =", &format!("offsets_group = \"{group}\"\nencoding ="));
    let home = Home::new(&config);
    let server = home.start();
    let (now, topic) = (now_us(), format!("{name}-events"));
    let lines = |from: u64, to: u64| -> Vec<String> {
        (from..to).map(|n| click(&format!("g{n}"), now - n as i64).to_string()).collect()
    };
    produce(&topic, 0, &lines(0, 30));
    produce(&topic, 2, &lines(30, 40));
    let until = Instant::now() + PATIENCE;
    while server.client().counts().counted < 40 {
        assert!(Instant::now() < until, "{:?}", server.client().counts());
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(2_500));
    server.kill();
    // What comes now is what the group has not seen: a consumer of the group gets it, and no more.
    produce(&topic, 0, &lines(40, 43));
    let output = Command::new("timeout")
        .args(["60", "kcat", "-b", &addresses(), "-X", "auto.offset.reset=earliest", "-q"])
        .args(["-c", "3", "-f", "%p %o\n", "-G", &group, &topic])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text, "0 30\n0 31\n0 32\n", "{stderr}");
}
