//! What `trueup doctor` says of an installation on Kafka, and that it changes nothing.

use crate::{
    brokers::{beside, configured, produce},
    server::Home,
    traffic::{click, now_us},
};
use serde_json::Value;
use std::{fs, io::Write, path::PathBuf};

/// The doctor's exit code, and what it says to programs.
fn examine(home: &Home) -> (Option<i32>, Value, String) {
    let (code, out, err) = home.run(&["doctor", "--json"]);
    (code, serde_json::from_str(&out).unwrap_or(Value::Null), err)
}

fn end(seen: &Value, topic: &str) -> u64 {
    let partitions = seen["partitions"].as_array().unwrap();
    partitions.iter().filter(|p| p["topic"] == topic).map(|p| p["end"].as_u64().unwrap()).sum()
}

fn spool_segment(home: &Home) -> PathBuf {
    let mut files = fs::read_dir(home.data().join("spool/journal")).unwrap();
    files
        .find_map(|file| {
            let path = file.unwrap().path();
            path.extension().is_some_and(|e| e == "seg").then_some(path)
        })
        .unwrap()
}

#[test]
fn the_doctor_looks_at_the_spool_the_topics_the_epochs_and_the_checkpoints() {
    let _brokers = beside();
    let (config, name) = configured("[checkpoint]\ninterval = \"300ms\"", "batch");
    let home = Home::new(&config);
    let server = home.start();
    let events: Vec<Value> = (0..50).map(|n| click(&format!("d{n}"), now_us())).collect();
    server.client().collect(&events).expect(202);
    server.client().settled();

    // Beside a server that runs, and without it.
    let (code, seen, err) = examine(&home);
    assert_eq!((code, &seen["well"]), (Some(0), &Value::Bool(true)), "{seen:#} {err}");
    assert!(server.terminate().success(), "{}", home.stderr());
    let (code, seen, err) = examine(&home);
    assert_eq!(code, Some(0), "{seen:#} {err}");
    assert_eq!(seen["kafka"]["waitingFrames"], 0);
    assert!(end(&seen, "events") > 0 && end(&seen, "verdicts") == 0, "{seen:#}");
    assert_eq!(seen["epochs"].as_u64(), Some(end(&seen, "remap")), "{seen:#}");
    assert!(!seen["checkpoints"].as_array().unwrap().is_empty(), "{seen:#}");
    let (_, out, _) = home.run(&["doctor"]);
    for said in [&format!(" of {name}-events")[..], "epochs       1 to", "all is well"] {
        assert!(out.contains(said), "`{said}` is not in:\n{out}");
    }

    // A torn write in the spool, which only a repair cuts off.
    let segment = spool_segment(&home);
    let whole = fs::read(&segment).unwrap();
    fs::OpenOptions::new().append(true).open(&segment).unwrap().write_all(&[1; 30]).unwrap();
    for _ in 0..2 {
        let (code, seen, _) = examine(&home);
        assert_eq!((code, &seen["tornBytes"]), (Some(1), &30.into()), "{seen:#}");
    }
    let (code, out, err) = home.run(&["doctor", "--repair"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("30 bytes was cut off") && fs::read(&segment).unwrap() == whole, "{out}");

    // A topic that is not there is said to be missing, and is not made.
    home.configure(&config.replace(&format!("{name}-verdicts"), &format!("{name}-none")));
    for _ in 0..2 {
        let (code, seen, _) = examine(&home);
        let error = seen["kafka"]["error"].as_str().unwrap();
        assert!(code == Some(1) && error.contains(&format!("{name}-none")), "{seen:#}");
    }

    // Another installation's topics: the checkpoints are not of them.
    let (other, _) = configured("", "batch");
    let elsewhere = Home::new(&other);
    assert!(elsewhere.start().terminate().success(), "{}", elsewhere.stderr());
    home.configure(&other);
    let (code, seen, _) = examine(&home);
    let error = seen["remapError"].as_str().unwrap_or_default();
    assert!(code == Some(1) && error.contains("the checkpoint of epoch"), "{seen:#}");

    // No broker: what is here is looked at all the same, and that is not all.
    let away = format!("brokers = \"{}\"", crate::brokers::addresses());
    home.configure(&config.replace(&away, "brokers = \"127.0.0.1:1\""));
    let (code, seen, err) = examine(&home);
    assert_eq!(code, Some(2), "{seen:#} {err}");
    assert!(err.contains("127.0.0.1:1") && seen["unread"].is_string(), "{seen:#} {err}");
    assert!(!seen["checkpoints"].as_array().unwrap().is_empty(), "{seen:#}");

    // What is none of ours in the remap topic is counted, and no damage: nobody reads it as a row.
    home.configure(&config);
    let (_, seen, _) = examine(&home);
    let void = seen["rowsVoid"].as_u64().unwrap();
    produce(&format!("{name}-remap"), 0, &["no row".to_owned()]);
    let (code, seen, _) = examine(&home);
    assert_eq!((code, seen["rowsVoid"].as_u64()), (Some(0), Some(void + 1)), "{seen:#}");
}
