//! Topics that others write to: one JSON event a message, partitioned as they like.

use crate::{
    brokers::{beside, configured, produce},
    seed::random,
    server::Home,
    traffic::{click, now_us},
};
use serde_json::Value;
use std::collections::HashSet;

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
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let counts = loop {
        let counts = client.settled();
        if counts.accepted >= EVENTS as i64 + 2 || std::time::Instant::now() > until {
            break counts;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
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
    // A verdict takes one out, wherever it is.
    let one = format!("f{first}");
    client.judge(&[crate::traffic::verdict(&one, "invalid", now_us())]).expect(202);
    loop {
        let life = client.get(&format!("/v1/events/{one}")).expect(200).json;
        if life["standing"] == "invalid" {
            break;
        }
        assert!(std::time::Instant::now() < until, "{life}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(server.terminate().success(), "{}", home.stderr());
    let (code, out, err) = home.run(&["verify"]);
    assert_eq!(code, Some(0), "{out}\n{err}");
}
