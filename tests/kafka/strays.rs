//! Messages in the remap topic that are no rows of ours.

use crate::{
    brokers::{beside, configured, produce, produce_as},
    server::Home,
    traffic::{click, now_us},
};
use serde_json::Value;

/// No row of ours: without headers, as a tombstone, and as garbage that claims to be one.
fn stray_remap_messages(name: &str) {
    let topic = format!("{name}-remap");
    let ours = ["-H", "trueup-schema=2", "-H", "trueup-records=1"];
    produce(&topic, 0, &["x".to_owned()]);
    produce_as(&topic, 0, &["-Z", "-K", ":"], &["key:".to_owned()]);
    produce_as(&topic, 0, &ours, &["garbage".to_owned()]);
}

/// They define no epoch, so nobody stops at them: not who closes epochs, not who starts, and not
/// who goes through all of the log.
#[test]
fn strays_among_the_remap_rows_stop_nothing_and_change_no_figure() {
    let _brokers = beside();
    let (config, name) = configured("[workers]\nthreads = 2", "batch");
    let home = Home::new(&config);
    let mut server = home.start();
    let mut events = 0;
    for round in 0..4 {
        let client = server.client();
        let clicks: Vec<Value> =
            (0..50).map(|number| click(&format!("{round}-{number}"), now_us())).collect();
        client.collect(&clicks).expect(202);
        events += clicks.len() as i64;
        stray_remap_messages(&name);
        client.collect(&[click(&format!("{round}-after"), now_us())]).expect(202);
        events += 1;
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let counts = loop {
            let counts = client.settled();
            if counts.counted >= events || std::time::Instant::now() > until {
                break counts;
            }
        };
        counts.check();
        assert_eq!((counts.counted, counts.duplicate), (events, 0), "{counts:?}");
        if round % 2 == 0 {
            server.kill();
            stray_remap_messages(&name);
            server = home.start();
        } else {
            // With a checkpoint, the row of which stands before strays.
            assert!(server.terminate().success(), "{}", home.stderr());
            stray_remap_messages(&name);
            server = home.start();
        }
    }
    let metrics = server.client().get("/metrics").expect(200).body;
    let metrics = String::from_utf8(metrics).unwrap();
    let line = "trueup_foreign_remap_messages_total ";
    let strays = metrics.lines().find_map(|found| found.strip_prefix(line)).unwrap();
    assert!(strays.parse::<u64>().unwrap() >= 3, "{strays}");
    assert!(server.terminate().success(), "{}", home.stderr());
    assert!(home.stderr().contains("is none of ours, and void"), "{}", home.stderr());
    let (code, out, err) = home.run(&["verify"]);
    assert_eq!(code, Some(0), "{out}\n{err}");
}
