//! The changelog: each epoch once, whatever happens to who publishes it.

use crate::world::{beside, broker_count, brokers, consume, unique};
use rdkafka::{Message, message::OwnedMessage};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};
use trueup_kafka::{Changelog, ChangelogSettings, Diff, Published};
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

/// What a row is after an epoch: each epoch adds to a third of them.
fn row_at(row: u64, epoch: u64) -> u64 {
    (1..=epoch).filter(|epoch| (epoch + row).is_multiple_of(3)).map(|epoch| epoch * (row + 1)).sum()
}

fn diffs(epoch: u64) -> Vec<Diff> {
    let changed = (0..ROWS).filter(|row| (epoch + row).is_multiple_of(3));
    let value = |row, epoch| {
        let sum = row_at(row, epoch);
        (sum > 0).then(|| json!({ "clicks": sum }))
    };
    changed
        .map(|row| Diff {
            view: "clicks".into(),
            row: Map::from_iter([("campaignId".to_owned(), json!(format!("c{row}")))]),
            old: value(row, epoch - 1),
            new: value(row, epoch),
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
    let all = (1..=last).flat_map(|epoch| diffs(epoch).into_iter().map(move |d| (epoch, d)));
    let wanted: BTreeSet<(u64, String)> =
        all.map(|(epoch, d)| (epoch, d.row["campaignId"].as_str().unwrap().to_owned())).collect();
    assert_eq!(seen, wanted);
    for row in 0..ROWS {
        let (key, is) = (format!("c{row}"), row_at(row, last) as i64);
        let found = (summed.get(&key).copied(), latest.get(&key).copied());
        assert_eq!((found.0.unwrap_or(0), found.1.unwrap_or(0)), (is, is), "{key}");
    }
}

#[test]
fn epochs_are_published_once_and_offering_them_again_changes_nothing() {
    let _beside = beside();
    let settings = settings(&unique("changelog"));
    let mut changelog = Changelog::open(settings.clone()).unwrap();
    assert_eq!(changelog.upper(), 0);
    for epoch in 1..=20 {
        assert_eq!(changelog.publish(epoch, &diffs(epoch)).unwrap(), Published::Now);
    }
    assert_eq!(changelog.publish(7, &diffs(7)).unwrap(), Published::Before);
    drop(changelog);
    let mut changelog = Changelog::open(settings.clone()).unwrap();
    assert_eq!(changelog.upper(), 21);
    for epoch in 1..=25 {
        let wanted = if epoch <= 20 { Published::Before } else { Published::Now };
        assert_eq!(changelog.publish(epoch, &diffs(epoch)).unwrap(), wanted);
    }
    assert_exact(&settings, 25);
}

#[test]
fn who_was_taken_over_publishes_nothing_more() {
    let _beside = beside();
    let settings = settings(&unique("changelog"));
    let mut zombie = Changelog::open(settings.clone()).unwrap();
    zombie.publish(1, &diffs(1)).unwrap();
    let mut changelog = Changelog::open(settings.clone()).unwrap();
    changelog.publish(2, &diffs(2)).unwrap();
    for _ in 0..2 {
        let refused = zombie.publish(2, &diffs(2));
        assert!(matches!(refused, Err(LogError::Unavailable { .. })), "{refused:?}");
    }
    changelog.publish(3, &diffs(3)).unwrap();
    assert_exact(&settings, 3);
}

/// The process that the next test kills.
fn be_killed(name: &str) -> ! {
    let mut changelog = Changelog::open(settings(name)).unwrap();
    println!("opened {}", changelog.upper());
    // From the beginning, as a run that starts from an old checkpoint does.
    for epoch in 1.. {
        let published = changelog.publish(epoch, &diffs(epoch)).unwrap();
        if published == Published::Now {
            println!("published {epoch}");
        }
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
    let mut changelog = Changelog::open(settings(&name)).unwrap();
    let upper = changelog.upper();
    println!("the last that was told is {told}, the upper is {upper}");
    assert!(upper > told && upper <= told + 2);
    changelog.publish(upper, &diffs(upper)).unwrap();
    assert_exact(&settings(&name), upper);
}
