//! Topics that others write to: one JSON event a message, partitioned as they like.

use crate::{
    brokers::{addresses, beside, configured, messages, produce},
    client::Client,
    seed::random,
    server::Home,
    traffic::{click, now_us, verdict},
};
use serde_json::Value;
use std::{
    collections::HashSet,
    time::{Duration, Instant},
};
use trueup_generator::{event::Event, frames::Layout};
use trueup_kafka::{KafkaLog, KafkaSettings, system_clock};
use trueup_log::Identity;
use trueup_operators::{
    event::EventType,
    log::{Append, append_and_wait},
};

const EVENTS: usize = 3_000;

/// What is no event.
const BROKEN: [&str; 4] = ["no json", "[]", r#"{"eventId":"x"}"#, "{\"eventId\":"];

#[test]
fn copies_of_an_event_in_any_partition_count_once_and_what_is_broken_is_set_aside() {
    let _brokers = beside();
    let mut random = random("copies_of_an_event_in_any_partition_count_once");
    let (config, name) = configured("[workers]\nthreads = 3", "json");
    let home = Home::new(&config);
    let mut server = home.start();
    let now = now_us();
    let (mut ids, mut copies, mut broken) = (HashSet::new(), 0, 0);
    for round in 0..6 {
        let mut partitions: [Vec<String>; 4] = Default::default();
        for _ in 0..EVENTS / 6 {
            let line = if random.below(20) == 0 {
                broken += 1;
                BROKEN[random.below(BROKEN.len() as u64) as usize].to_owned()
            } else {
                // Half of them are copies, in whatever partition.
                let number = random.below(EVENTS as u64 / 2);
                copies += i64::from(!ids.insert(number));
                let at = now - number as i64 * 1_000;
                click(&format!("f{number}"), at).to_string()
            };
            partitions[random.below(4) as usize].push(line);
        }
        for (partition, lines) in partitions.iter().enumerate() {
            produce(&format!("{name}-events"), partition, lines);
        }
        if round == 2 {
            server.kill();
            server = home.start();
        }
    }
    // Through the collector come copies too, and an event of its own.
    let client = server.client();
    let first = ids.iter().min().unwrap();
    let own = [click(&format!("f{first}"), now - *first as i64 * 1_000), click("own", now)];
    client.collect(&own).expect(202);
    (copies, broken) = (copies + 1, broken);
    let until = Instant::now() + Duration::from_secs(60);
    let counts = loop {
        let counts = client.settled();
        if counts.accepted >= EVENTS as i64 + 2 || Instant::now() > until {
            break counts;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    counts.check();
    assert_eq!(counts.accepted, EVENTS as i64 + 2, "{counts:?}");
    assert_eq!(counts.counted, ids.len() as i64 + 1, "{counts:?}");
    assert_eq!((counts.duplicate, counts.quarantined), (copies, broken), "{counts:?}");
    let aside = client.get("/v1/quarantine?limit=1000").expect(200).json;
    let aside = aside["rows"].as_array().unwrap();
    assert_eq!(aside.len() as i64, broken.min(1_000));
    let says_why = |row: &Value| row["event"]["fault"].as_str().is_some_and(|why| !why.is_empty());
    assert!(aside.iter().all(says_why), "{:?}", aside.iter().find(|row| !says_why(row)));
    // One of a time to come was judged by a log time that was listed, and its life has that one.
    let ahead = click("ahead", now_us() + 3_600_000_000);
    produce(&format!("{name}-events"), 0, &[ahead.to_string()]);
    let listed = loop {
        let aside = client.get("/v1/quarantine?limit=1").expect(200).json;
        if aside["rows"][0]["event"]["eventId"] == "ahead" {
            break aside["rows"][0]["logTime"].clone();
        }
        assert!(Instant::now() < until, "{aside}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let life = client.get("/v1/events/ahead").expect(200).json;
    assert_eq!((&life["counted"], &life["received"]["logTime"]), (&false.into(), &listed));
    // A verdict takes one out, wherever it is.
    let one = format!("f{first}");
    client.judge(&[verdict(&one, "invalid", now_us())]).expect(202);
    loop {
        let life = client.get(&format!("/v1/events/{one}")).expect(200).json;
        if life["standing"] == "invalid" {
            break;
        }
        assert!(Instant::now() < until, "{life}");
        std::thread::sleep(Duration::from_millis(50));
    }
    // What is no event is in the way of no replay from an offset, and is counted.
    let url = format!("http://{}", client.address());
    let args = ["replay", "--server", &url, "--dry-run", "--from-offset", "0:0"];
    let (code, out, err) = home.run(&args);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains(": 0 rows would change"), "{out}");
    assert!(server.terminate().success(), "{}", home.stderr());
    let (code, out, err) = home.run(&["verify"]);
    assert_eq!(code, Some(0), "{out}\n{err}");
}

/// The rows of the quarantine that are of the verdicts topic, oldest first.
fn aside_of_verdicts(client: &Client) -> Vec<Value> {
    let aside = client.get("/v1/quarantine?limit=1000").expect(200).json;
    let rows = aside["rows"].as_array().unwrap().iter();
    let mut rows: Vec<Value> = rows.filter(|row| row["topic"] == "verdicts").cloned().collect();
    rows.sort_by_key(|row| row["offset"].as_u64());
    rows
}

/// Foreign messages of the verdicts topic are listed with their place and count as no event: the
/// same from a checkpoint, with another number of workers, and for who reads it all again.
#[test]
fn what_is_none_of_ours_among_the_verdicts_is_set_aside_and_counts_as_nothing() {
    let _brokers = beside();
    let (config, name) =
        configured("[workers]\nthreads = 1\n[checkpoint]\ninterval = \"300ms\"", "batch");
    let home = Home::new(&config);
    let server = home.start();
    let client = server.client();
    let events: Vec<Value> = (0..20).map(|n| click(&format!("v{n}"), now_us())).collect();
    client.collect(&events).expect(202);
    client.judge(&[verdict("v1", "invalid", now_us())]).expect(202);
    client.settled();
    let topic = format!("{name}-verdicts");
    // One of ours, in all but the headers: it says nothing to anyone.
    let own = messages(&topic).remove(0).replace("true", "false");
    produce(&topic, 0, &["no verdicts".to_owned(), own, "[]".to_owned()]);
    client.judge(&[verdict("v2", "invalid", now_us())]).expect(202);
    let until = Instant::now() + Duration::from_secs(60);
    let invalid = |id: &str| {
        client.get(&format!("/v1/events/{id}")).expect(200).json["standing"] == "invalid"
    };
    while !invalid("v2") {
        assert!(Instant::now() < until, "the verdict behind them is not there");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(invalid("v1"), "what is none of ours took a verdict back");
    let counts = client.settled();
    counts.check();
    assert_eq!((counts.accepted, counts.counted, counts.quarantined), (20, 20, 0), "{counts:?}");

    let aside = aside_of_verdicts(&client);
    let offsets: Vec<_> = aside.iter().map(|row| row["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets, [1, 2, 3], "{aside:?}");
    for row in &aside {
        let fault = row["event"]["fault"].as_str().unwrap_or_default();
        assert!(fault.contains("header") && row["partition"] == 0, "{row}");
    }
    assert_eq!(aside[0]["event"]["message"], "no verdicts");
    client.get("/v1/events/nowhere").expect(404);

    // From a checkpoint that has them, with other workers, and with all that comes after a kill.
    let taken = |client: &Client| {
        client.get("/v1/status").expect(200).json["checkpoint"]["lastEpoch"].as_u64()
    };
    let epoch = client.get("/v1/status").expect(200).json["epoch"].as_u64();
    while taken(&client) <= epoch {
        assert!(
            Instant::now() < until,
            "{}",
            client.get("/v1/status").expect(200).json["checkpoint"]
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    server.kill();
    home.configure(&config.replace("threads = 1", "threads = 3"));
    let server = home.start();
    let client = server.client();
    assert_eq!(aside_of_verdicts(&client), aside);
    produce(&topic, 0, &["more".to_owned()]);
    while aside_of_verdicts(&client).len() < 4 {
        assert!(Instant::now() < until, "what came later is not listed");
        std::thread::sleep(Duration::from_millis(50));
    }
    let counts = client.settled();
    counts.check();
    assert_eq!((counts.accepted, counts.counted, counts.quarantined), (20, 20, 0), "{counts:?}");

    // One of the events topic counts as an event, and is in the way of no replay from an offset.
    produce(&format!("{name}-events"), 0, &["no batch".to_owned()]);
    while client.settled().quarantined < 1 {
        assert!(Instant::now() < until, "what is no batch is not counted");
        std::thread::sleep(Duration::from_millis(50));
    }
    let aside = client.get("/v1/quarantine").expect(200).json;
    assert_eq!((&aside["rows"][0]["topic"], &aside["total"]), (&"events".into(), &5.into()));
    // Among the metadata it is listed as well.
    produce(&format!("{name}-metadata"), 0, &["no metadata".to_owned()]);
    let listed = loop {
        let aside = client.get("/v1/quarantine?limit=1000").expect(200).json;
        let rows = aside["rows"].as_array().unwrap();
        if let Some(row) = rows.iter().find(|row| row["topic"] == "metadata") {
            break row.clone();
        }
        assert!(Instant::now() < until, "what is no metadata is not listed: {aside}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!((&listed["offset"], &listed["partition"]), (&0.into(), &0.into()));
    assert_eq!(listed["event"]["message"], "no metadata");
    let counts = client.settled();
    counts.check();
    assert_eq!((counts.accepted, counts.counted, counts.quarantined), (21, 20, 1), "{counts:?}");
    let url = format!("http://{}", client.address());
    let args = ["replay", "--server", &url, "--dry-run", "--from-offset", "0:0"];
    let (code, out, err) = home.run(&args);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("1 messages from there on are no events"), "{out}");
    assert!(server.terminate().success(), "{}", home.stderr());
    let (code, out, err) = home.run(&["verify"]);
    assert_eq!(code, Some(0), "{out}\n{err}");
}

/// What two producers of batches write who choose partitions in ways of their own, each the same
/// events: how often they count.
fn counted_of_two_producers(exchange: &str) -> (i64, i64) {
    const IDS: usize = 200;
    let (config, name) = configured("[workers]\nthreads = 3", "batch");
    let home = Home::new(&format!("{config}exchange = \"{exchange}\"\n"));
    let server = home.start();
    let client = server.client();
    let settings = KafkaSettings {
        brokers: addresses(),
        events_topic: format!("{name}-events"),
        verdicts_topic: format!("{name}-verdicts"),
        metadata_topic: format!("{name}-metadata"),
        remap_topic: format!("{name}-remap"),
        ..KafkaSettings::default()
    };
    let log = KafkaLog::open(settings, system_clock(), None).unwrap();
    let key = Identity::existing(&home.data()).unwrap().unwrap().hash_key;
    let now = now_us();
    for producer in 0..2 {
        let frames = (0..IDS).map(|n| {
            let event = Event::new(EventType::Click, format!("x{n}"), now, "camp", "ad");
            let frame = Layout { partitions: 4, key }.frames(&[event], now).remove(0);
            let partition = if producer == 0 { n % 4 } else { (n / 4 + 1) % 4 };
            Append { partition: partition as u16, ..frame }
        });
        append_and_wait(&log, frames.collect()).unwrap();
    }
    let until = Instant::now() + Duration::from_secs(60);
    let counts = loop {
        let counts = client.settled();
        if counts.accepted >= 2 * IDS as i64 || Instant::now() > until {
            break counts;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    counts.check();
    assert_eq!(counts.accepted, 2 * IDS as i64, "{counts:?}");
    assert!(server.terminate().success(), "{}", home.stderr());
    let (code, out, err) = home.run(&["verify"]);
    // A recomputation knows ids alone, so it tells whether partitions have deceived the engine.
    assert_eq!(code, Some(i32::from(exchange != "always")), "{out}\n{err}");
    (counts.counted - IDS as i64, counts.duplicate)
}

#[test]
fn batches_of_producers_that_partition_as_they_like_count_once_where_ids_are_always_exchanged() {
    let _brokers = beside();
    assert_eq!(counted_of_two_producers("always"), (0, 200));
    // They must be in the same partition otherwise: this is what `always` is for.
    let (twice, duplicates) = counted_of_two_producers("auto");
    assert!(twice > 0 && twice + duplicates == 200, "{twice} counted twice");
}
