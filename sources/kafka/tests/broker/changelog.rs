//! The changelog: each step once, whatever happens to who publishes it.

use crate::world::{
    Mute, alone, beside, broker_count, brokers, consume, create_topic, grow, unique,
};
use rdkafka::{Message, message::OwnedMessage};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use trueup_kafka::{Changelog, ChangelogSettings, Upper};
use trueup_operators::log::LogError;

const ROWS: u64 = 40;
const PARTITIONS: u16 = 3;

fn settings(name: &str) -> ChangelogSettings {
    ChangelogSettings {
        brokers: brokers(),
        topic: format!("{name}-changes"),
        name: name.into(),
        partitions: PARTITIONS,
        replication_factor: broker_count().min(3),
        timeout_ms: 30_000,
    }
}

fn try_open(settings: &ChangelogSettings) -> Result<Changelog, LogError> {
    Changelog::open(settings.clone(), Arc::new(AtomicBool::new(false)))
}

fn open(settings: &ChangelogSettings) -> Changelog {
    try_open(settings).unwrap()
}

fn upper_of(changelog: &Changelog) -> u64 {
    changelog.upper().map_or(1, |upper| upper.epoch)
}

/// Publishes an epoch as one step.
fn publish(changelog: &mut Changelog, epoch: u64) -> Result<(), LogError> {
    changelog.begin()?;
    let written = diffs(epoch).iter().try_for_each(|(key, value)| changelog.write(key, value));
    let said = Map::from_iter([("from".to_owned(), json!("a test"))]);
    let upper = Upper { epoch: epoch + 1, said };
    let result = written.and_then(|()| changelog.commit(upper));
    if result.is_err() {
        changelog.abort();
    }
    result
}

/// What a row is after an epoch: each epoch adds to a third of them.
fn row_at(row: u64, epoch: u64) -> u64 {
    (1..=epoch).filter(|epoch| (epoch + row).is_multiple_of(3)).map(|epoch| epoch * (row + 1)).sum()
}

/// The messages of an epoch: keys and values.
fn diffs(epoch: u64) -> Vec<(String, String)> {
    let changed = (0..ROWS).filter(|row| (epoch + row).is_multiple_of(3));
    let value = |row, epoch| {
        let sum = row_at(row, epoch);
        (sum > 0).then(|| json!({ "clicks": sum }))
    };
    changed
        .map(|row| {
            let (old, new) = (value(row, epoch - 1), value(row, epoch));
            let row = json!({ "campaignId": format!("c{row}") });
            let key = json!({ "view": "clicks", "row": row });
            let value = json!({ "epoch": epoch, "old": old, "new": new });
            (key.to_string(), value.to_string())
        })
        .collect()
}

fn json_of(bytes: Option<&[u8]>) -> Value {
    serde_json::from_slice(bytes.unwrap()).unwrap()
}

/// That the topic holds exactly the epochs 1 to `last`, and adds up to the view.
fn assert_exact(settings: &ChangelogSettings, last: u64) {
    let mut seen = BTreeSet::new();
    let mut uppers = Vec::new();
    let (mut summed, mut latest) = (BTreeMap::<String, i64>::new(), BTreeMap::new());
    for partition in 0..i32::from(PARTITIONS) {
        let messages: Vec<OwnedMessage> = consume(&settings.topic, partition);
        let mut of_key = BTreeMap::new();
        for message in messages {
            let (key, value) = (json_of(message.key()), json_of(message.payload()));
            if key["upper"] == json!(settings.name) {
                assert_eq!(partition, 0);
                assert_eq!((&value["partitions"], &value["from"]), (&json!(3), &json!("a test")));
                uppers.push(value["upper"].as_u64().unwrap());
                continue;
            }
            let row = key["row"]["campaignId"].as_str().unwrap().to_owned();
            let epoch = value["epoch"].as_u64().unwrap();
            assert!(seen.insert((epoch, row.clone())), "{row} twice in {epoch}");
            assert!(of_key.insert(row.clone(), epoch) < Some(epoch), "epochs of a key ascend");
            let clicks = |value: &Value| value["clicks"].as_i64().unwrap_or(0);
            *summed.entry(row.clone()).or_default() +=
                clicks(&value["new"]) - clicks(&value["old"]);
            latest.insert(row, clicks(&value["new"]));
        }
    }
    assert_eq!(uppers, (2..=last + 1).collect::<Vec<_>>(), "each epoch is one step");
    let all = (1..=last).flat_map(|epoch| diffs(epoch).into_iter().map(move |d| (epoch, d.0)));
    let name = |key: &str| json_of(Some(key.as_bytes()))["row"]["campaignId"].clone();
    let wanted: BTreeSet<(u64, String)> =
        all.map(|(epoch, key)| (epoch, name(&key).as_str().unwrap().to_owned())).collect();
    assert_eq!(seen, wanted);
    for row in 0..ROWS {
        let (key, is) = (format!("c{row}"), row_at(row, last) as i64);
        let found = (summed.get(&key).copied(), latest.get(&key).copied());
        assert_eq!((found.0.unwrap_or(0), found.1.unwrap_or(0)), (is, is), "{key}");
    }
}

#[test]
fn a_run_goes_on_where_the_topic_is_and_reads_back_what_stands_there() {
    let _beside = beside();
    let settings = settings(&unique("changelog"));
    let mut changelog = open(&settings);
    assert_eq!(changelog.upper(), None);
    for epoch in 1..=20 {
        publish(&mut changelog, epoch).unwrap();
    }
    drop(changelog);
    let mut changelog = open(&settings);
    let upper = changelog.upper().unwrap();
    assert_eq!((upper.epoch, &upper.said["from"]), (21, &json!("a test")));
    assert_eq!(changelog.last_upper().unwrap().as_ref(), changelog.upper());
    for epoch in 21..=25 {
        publish(&mut changelog, epoch).unwrap();
    }
    // Before a transaction and within it: what was there before it.
    let all: usize = (1..=25).map(|epoch| diffs(epoch).len()).sum();
    for within in [false, true] {
        if within {
            changelog.begin().unwrap();
            diffs(26).iter().for_each(|(key, value)| changelog.write(key, value).unwrap());
        }
        let (mut count, mut newest) = (0, BTreeMap::new());
        let mut take = |key: &[u8], value: Option<&[u8]>| {
            count += 1;
            newest.insert(key.to_vec(), json_of(value)["epoch"].as_u64().unwrap());
            Ok(())
        };
        changelog.read(&mut take).unwrap();
        assert_eq!((count, newest.len()), (all, ROWS as usize));
        assert!(newest.values().all(|epoch| (23..=25).contains(epoch)));
    }
    changelog.abort();
    assert_exact(&settings, 25);
    publish(&mut changelog, 26).unwrap();
    assert_exact(&settings, 26);
    // A commit is answered before all partitions have heard of it; it is read all the same.
    for epoch in 27..=80 {
        publish(&mut changelog, epoch).unwrap();
        let mut count = 0;
        let mut take = |_: &[u8], _: Option<&[u8]>| {
            count += 1;
            Ok(())
        };
        changelog.read(&mut take).unwrap();
        assert_eq!(count, (1..=epoch).map(|epoch| diffs(epoch).len()).sum::<usize>(), "{epoch}");
    }
}

#[test]
fn who_was_taken_over_publishes_nothing_more() {
    let _beside = beside();
    let settings = settings(&unique("changelog"));
    let mut zombie = open(&settings);
    publish(&mut zombie, 1).unwrap();
    assert!(!zombie.is_fenced());
    let mut changelog = open(&settings);
    publish(&mut changelog, 2).unwrap();
    for _ in 0..2 {
        let refused = publish(&mut zombie, 2);
        assert!(matches!(refused, Err(LogError::Unavailable { .. })), "{refused:?}");
    }
    assert!(zombie.is_fenced());
    // It can see by whom.
    assert_eq!(zombie.last_upper().unwrap().unwrap().epoch, 3);
    publish(&mut changelog, 3).unwrap();
    assert!(!changelog.is_fenced());
    assert_exact(&settings, 3);
}

#[test]
fn partitions_that_are_added_part_no_row() {
    let _beside = beside();
    let settings = settings(&unique("changelog"));
    let mut changelog = open(&settings);
    (1..=4).for_each(|epoch| publish(&mut changelog, epoch).unwrap());
    drop(changelog);
    grow(&settings.topic, 5);
    let mut changelog = open(&settings);
    (5..=8).for_each(|epoch| publish(&mut changelog, epoch).unwrap());
    assert_exact(&settings, 8);
    assert!((3..5).all(|partition| consume(&settings.topic, partition).is_empty()));
}

#[test]
fn a_topic_that_cannot_serve_is_refused() {
    let _beside = beside();
    let refused = |settings: &ChangelogSettings| match try_open(settings) {
        Err(LogError::Invalid { reason }) => reason,
        other => panic!("{other:?}"),
    };
    let forgetful = settings(&unique("changelog"));
    create_topic(&forgetful.topic, 3, &[("cleanup.policy", "delete")]);
    let reason = refused(&forgetful);
    assert!(reason.contains("cleanup.policy=delete"), "{reason}");
    let ours = settings(&unique("changelog"));
    publish(&mut open(&ours), 1).unwrap();
    let theirs = ChangelogSettings { name: unique("other"), ..ours.clone() };
    let reason = refused(&theirs);
    assert!(
        reason.contains(&format!("has the changelog {{\"upper\":\"{}\"}}", ours.name)),
        "{reason}"
    );
    let nameless = ChangelogSettings { name: String::new(), ..ours.clone() };
    assert!(refused(&nameless).contains("name is empty"));
    assert_exact(&ours, 1);
}

#[test]
fn who_is_told_to_stop_does_although_no_broker_answers() {
    let _alone = alone();
    let settings = settings(&unique("changelog"));
    let stop = Arc::new(AtomicBool::new(false));
    let mut changelog = Changelog::open(settings.clone(), Arc::clone(&stop)).unwrap();
    publish(&mut changelog, 1).unwrap();
    let took = {
        let _mute = Mute::all();
        std::thread::scope(|scope| {
            let publishing = scope.spawn(|| publish(&mut changelog, 2));
            std::thread::sleep(Duration::from_millis(700));
            assert!(!publishing.is_finished(), "it waits for the brokers");
            stop.store(true, Ordering::Relaxed);
            let told = Instant::now();
            publishing.join().unwrap().unwrap_err();
            told.elapsed()
        })
    };
    assert!(took < Duration::from_secs(10), "{took:?}");
    // Whether it was committed is what the topic says.
    let mut changelog = open(&settings);
    let upper = upper_of(&changelog);
    assert!((2..=3).contains(&upper), "{upper}");
    publish(&mut changelog, upper).unwrap();
    assert_exact(&settings, upper);
}

/// The process that the next test kills.
fn be_killed(name: &str) -> ! {
    let mut changelog = open(&settings(name));
    println!("opened {}", upper_of(&changelog));
    for epoch in upper_of(&changelog).. {
        publish(&mut changelog, epoch).unwrap();
        println!("published {epoch}");
    }
    unreachable!("it is killed");
}

#[test]
fn a_process_killed_while_it_publishes_leaves_whole_epochs_each_once() {
    if let Ok(name) = std::env::var("TRUEUP_CHANGELOG_NAME") {
        be_killed(&name);
    }
    let _beside = beside();
    let name = unique("changelog");
    let mut told = 0;
    for round in 0..5 {
        let test = "changelog::a_process_killed_while_it_publishes_leaves_whole_epochs_each_once";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env("TRUEUP_CHANGELOG_NAME", &name)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let number = |line: String| line.strip_prefix("published ")?.parse::<u64>().ok();
        let heard = lines.by_ref().map_while(Result::ok).filter_map(number).take(5 + round);
        told = heard.last().unwrap();
        // Somewhere in the next epochs.
        std::thread::sleep(std::time::Duration::from_millis(3 + 7 * round as u64));
        child.kill().unwrap();
        told = lines.map_while(Result::ok).filter_map(number).last().unwrap_or(told);
        child.wait().unwrap();
    }
    let mut changelog = open(&settings(&name));
    let upper = upper_of(&changelog);
    println!("the last that was told is {told}, the upper is {upper}");
    assert!(upper > told && upper <= told + 2);
    publish(&mut changelog, upper).unwrap();
    assert_exact(&settings(&name), upper);
}
