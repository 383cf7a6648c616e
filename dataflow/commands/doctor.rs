//! `doctor`: whether what is on disk is what was written, the log, the epochs that its remap rows
//! make of it, and the checkpoints. For people in a few lines, for programs as JSON; both say the
//! same.
//!
//! Where the log is Kafka, what is on disk is the spool, and the brokers are asked what a start
//! asks: whether the topics are there and can serve, and whether they still have what the remap
//! rows and the checkpoints name. Nothing is written there and no topic is made; a server may be
//! running. While the brokers are away, the rest is looked at all the same.

mod epochs;
#[cfg(feature = "kafka")]
mod kafka;

use super::{
    Failure,
    checkpoints::{self, Found},
};
use crate::{
    checkpoint::manifest::At,
    cli::Doctor,
    config::{Config, LogKind},
};
use epochs::{Epochs, Wrong};
use serde_json::{Value, json};
use std::fmt::Write;
use trueup_log::{Journal, Repair, Report};
use trueup_operators::log::Topic;

/// `trueup doctor`
///
/// # Errors
/// 1 when something is not as it was written, 2 when the directory cannot be read, or no broker.
pub fn doctor(command: &Doctor) -> Result<(), Failure> {
    let config = command.common.load()?;
    let repair = if command.repair { Repair::CutTornWrite } else { Repair::Nothing };
    let seen = match config.log.kind {
        LogKind::Embedded => embedded(&config, repair)?,
        #[cfg(feature = "kafka")]
        LogKind::Kafka => kafka::look(&config, repair)?,
        #[cfg(not(feature = "kafka"))]
        LogKind::Kafka => return Err(Failure::Use(crate::config::no_kafka().to_string())),
    };
    match command.json {
        true => println!("{}", seen.json()),
        false => print!("{}", seen.text()),
    }
    match (seen.is_well(), seen.unread()) {
        (true, None) => Ok(()),
        (true, Some(reason)) => {
            Err(Failure::Use(format!("not all could be looked at, what was is well: {reason}")))
        }
        (false, _) => Err(Failure::Check("the data directory is not well".into())),
    }
}

fn embedded(config: &Config, repair: Repair) -> Result<Seen, Failure> {
    let log =
        trueup_log::check(&config.data_dir, repair).map_err(|e| Failure::Use(e.to_string()))?;
    let checkpoints = checkpoints::look(config, &log.installation)?;
    let remap = rows_of_journal(config, &checkpoints.places);
    Ok(Seen { installation: log.installation.clone(), log, kafka: None, remap, checkpoints })
}

fn rows_of_journal(config: &Config, places: &[At]) -> Result<Epochs, Wrong> {
    let opened = Journal::open_read_only(&config.data_dir);
    let rows = opened.map_err(Wrong::from).and_then(|(log, _)| epochs::check(&log, places));
    // A directory that cannot be read is no broker that is away.
    rows.map_err(|wrong| Wrong::Damaged(wrong.reason().to_owned()))
}

/// What was looked at.
struct Seen {
    installation: String,
    /// The journal on this machine: the log, or the spool of Kafka.
    log: Report,
    /// The log, where it is Kafka.
    kafka: Option<Kafka>,
    /// The epochs, or what is wrong with the remap rows.
    remap: Result<Epochs, Wrong>,
    checkpoints: Found,
}

/// What was looked at where the log is Kafka.
struct Kafka {
    /// As they are configured.
    brokers: String,
    /// Frames in the spool that are not yet in Kafka, and their bytes; `None`: there is no spool.
    waiting: Option<(u64, u64)>,
    /// Frames that Kafka did not take, beside the spool.
    undeliverable: u64,
    /// What the topics hold, or why they cannot serve.
    topics: Result<Vec<Held>, Wrong>,
}

/// A partition in Kafka.
struct Held {
    topic: Topic,
    /// The topic's name there.
    name: String,
    partition: u16,
    first: u64,
    end: u64,
}

impl Seen {
    /// Nothing of what was looked at is wrong.
    fn is_well(&self) -> bool {
        let topics = self.kafka.as_ref().and_then(|kafka| kafka.topics.as_ref().err());
        let undeliverable = self.kafka.as_ref().map_or(0, |kafka| kafka.undeliverable);
        self.log.damage.is_empty()
            && undeliverable == 0
            && [topics, self.remap.as_ref().err()].into_iter().flatten().all(Wrong::is_unread)
            && self.checkpoints.are_well
            && (self.log.torn.is_none() || self.log.repaired)
    }

    /// Why not all could be looked at.
    fn unread(&self) -> Option<&str> {
        let topics = self.kafka.as_ref().and_then(|kafka| kafka.topics.as_ref().err());
        let wrong = [topics, self.remap.as_ref().err()].into_iter().flatten();
        wrong.filter(|wrong| wrong.is_unread()).map(Wrong::reason).next()
    }

    fn json(&self) -> Value {
        let log = &self.log;
        let damage = log.damage.iter().map(|damage| format!("{damage:?}"));
        let remap = self.remap.as_ref();
        json!({
            "well": self.is_well() && self.unread().is_none(),
            "unread": self.unread(),
            "installation": self.installation,
            "segments": log.segments.len(),
            "frames": log.frames(),
            "bytes": log.bytes(),
            "partitions": self.partitions(),
            "tornBytes": log.torn.as_ref().map(|torn| torn.bytes),
            "repaired": log.repaired,
            "damage": damage.collect::<Vec<_>>(),
            "kafka": self.kafka.as_ref().map(Kafka::json),
            "epochs": remap.ok().map(|epochs| epochs.last),
            "epochsAfter": remap.ok().map(|epochs| epochs.after),
            "rowsVoid": remap.ok().map(|epochs| epochs.void),
            "remapError": remap.err().map(Wrong::reason),
            "checkpoints": self.checkpoints.told,
        })
    }

    fn partitions(&self) -> Vec<Value> {
        if let Some(Kafka { topics, .. }) = &self.kafka {
            return topics.iter().flatten().map(Held::json).collect();
        }
        let partitions = self.log.partitions.iter().map(|p| {
            json!({
                "topic": p.topic.name(), "partition": p.partition, "first": p.first, "end": p.end,
                "frames": p.frames, "records": p.records,
            })
        });
        partitions.collect()
    }

    fn text(&self) -> String {
        let mut text = format!("installation {}\n", self.installation);
        let mut say = |line: String| {
            writeln!(text, "{line}").expect("a string takes what is written to it");
        };
        self.say_journal(&mut say);
        if let Some(kafka) = &self.kafka {
            kafka.say(&mut say);
        }
        say(match &self.remap {
            Ok(epochs) => epochs.to_string(),
            Err(wrong) => format!("epochs       {wrong}"),
        });
        let told = self.checkpoints.told.as_array().map_or(&[][..], Vec::as_slice);
        let order = if told.is_empty() { "none yet" } else { "newest first" };
        say(format!("checkpoints  {order}"));
        for told in told {
            say(format!("  {}", of_checkpoint(told)));
        }
        let end = match (self.is_well(), self.unread()) {
            (true, None) => "all is well",
            (true, Some(_)) => "not all could be looked at; what was is well",
            (false, _) => "not all is well",
        };
        say(end.to_owned());
        text
    }

    fn say_journal(&self, say: &mut impl FnMut(String)) {
        let log = &self.log;
        let name = match &self.kafka {
            None => "log  ",
            Some(Kafka { waiting: None, .. }) => return say("spool        none".to_owned()),
            Some(_) => "spool",
        };
        let (segments, frames, bytes) = (log.segments.len(), log.frames(), log.bytes());
        say(format!("{name}        {segments} segments, {frames} frames, {bytes} bytes"));
        if self.kafka.is_none() {
            for partition in &log.partitions {
                let (topic, records) = (partition.topic.name(), partition.records);
                let (number, first, end) = (partition.partition, partition.first, partition.end);
                say(format!("  {topic} {number}: offsets {first}..{end}, {records} records"));
            }
        }
        for damage in &log.damage {
            say(format!("  DAMAGED  {}, byte {}: {}", damage.file, damage.at, damage.reason));
        }
        if let Some(torn) = &log.torn {
            say(match log.repaired {
                true => format!("  an incomplete write of {} bytes was cut off", torn.bytes),
                false => format!(
                    "  TORN     an incomplete write of {} bytes at the end; a start, or --repair, \
                     cuts it off",
                    torn.bytes
                ),
            });
        }
    }
}

impl Kafka {
    fn json(&self) -> Value {
        let waiting = self.waiting;
        json!({
            "brokers": self.brokers,
            "error": self.topics.as_ref().err().map(Wrong::reason),
            "waitingFrames": waiting.map(|(frames, _)| frames),
            "waitingBytes": waiting.map(|(_, bytes)| bytes),
            "undeliverableFrames": self.undeliverable,
        })
    }

    fn say(&self, say: &mut impl FnMut(String)) {
        match self.waiting {
            None => {}
            Some((0, _)) => say("  nothing in it waits for Kafka".to_owned()),
            Some((frames, bytes)) => {
                say(format!("  {frames} frames wait for Kafka, {bytes} bytes"));
            }
        }
        if self.undeliverable > 0 {
            say(format!(
                "  UNDELIVERABLE {} frames that were acknowledged and that Kafka did not take; a \
                 start sends them again, once the topics' max.message.bytes is raised",
                self.undeliverable
            ));
        }
        match &self.topics {
            Err(wrong) => say(format!("kafka        {wrong}")),
            Ok(topics) => {
                say(format!("kafka        {}", self.brokers));
                for Held { topic, name, partition, first, end } in topics {
                    let topic = topic.name();
                    say(format!("  {topic} {partition}: offsets {first}..{end} of {name}"));
                }
            }
        }
    }
}

impl Held {
    fn json(&self) -> Value {
        json!({
            "topic": self.topic.name(), "name": self.name, "partition": self.partition,
            "first": self.first, "end": self.end,
        })
    }
}

/// One line of what [`checkpoints::look`] tells.
fn of_checkpoint(told: &Value) -> String {
    let text = |name: &str| match &told[name] {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    if told["unnamedPack"].is_string() {
        let (pack, bytes) = (text("unnamedPack"), text("bytes"));
        return format!("{pack}: {bytes} bytes that no checkpoint names; the next one deletes it");
    }
    let (epoch, generation) = (text("epoch"), text("generation"));
    if !told["broken"].is_null() {
        return format!("BROKEN   epoch {epoch}, generation {generation}: {}", text("broken"));
    }
    let (at, sections, bytes) = (text("takenAt"), text("sections"), text("bytesLive"));
    format!("epoch {epoch}, generation {generation}: {at}, {sections} sections, {bytes} bytes")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use trueup_log::{Damage, PartitionReport, Torn};

    #[test]
    fn people_are_told_what_programs_are() {
        let broken = json!({ "epoch": 7, "generation": 2, "valid": false, "broken": "cut short" });
        let good = json!({
            "epoch": 5, "generation": 1, "valid": true, "broken": null, "sections": 9,
            "bytesLive": 4_000, "takenAt": "2026-11-22T01:02:03Z",
        });
        let orphan = json!({ "unnamedPack": "packs/x.pack", "bytes": 12 });
        let log = Report {
            installation: "7f0c".into(),
            segments: Vec::new(),
            partitions: vec![PartitionReport {
                topic: Topic::Events,
                partition: 3,
                first: 1,
                end: 8,
                frames: 7,
                records: 70,
                last_log_time: None,
            }],
            torn: None,
            repaired: false,
            damage: Vec::new(),
        };
        let told = json!([good, orphan]);
        let checkpoints = Found { are_well: true, told, places: Vec::new() };
        let (installation, remap) = ("7f0c".to_owned(), Ok(Epochs { after: 0, last: 9, void: 0 }));
        let mut seen = Seen { installation, log, kafka: None, remap, checkpoints };
        let text = seen.text();
        for line in [
            "installation 7f0c",
            "  events 3: offsets 1..8, 70 records",
            "epochs       1 to 9, one after another",
            "  epoch 5, generation 1: 2026-11-22T01:02:03Z, 9 sections, 4000 bytes",
            "all is well",
        ] {
            assert!(text.lines().any(|found| found == line), "`{line}` is not in:\n{text}");
        }
        assert!(text.contains("packs/x.pack: 12 bytes"), "{text}");

        seen.log.damage = vec![Damage { file: "1.log".into(), at: 17, reason: "flipped".into() }];
        seen.log.torn = Some(Torn { file: "2.log".into(), at: 40, bytes: 6, reason: "cut".into() });
        seen.remap = Err(Wrong::Damaged("epoch 4 is missing".into()));
        let told = json!([broken]);
        seen.checkpoints = Found { are_well: false, told, places: Vec::new() };
        let text = seen.text();
        for said in [
            "DAMAGED  1.log, byte 17: flipped",
            "incomplete write of 6 bytes at the end",
            "DAMAGED  epoch 4 is missing",
            "BROKEN   epoch 7, generation 2: cut short",
            "not all is well",
        ] {
            assert!(text.contains(said), "`{said}` is not in:\n{text}");
        }
        assert_eq!(seen.json()["well"], false);
    }

    #[test]
    fn of_kafka_it_is_told_what_waits_what_is_held_and_what_nobody_answered() {
        let held = |partition, first, end| {
            let name = "ad-events".to_owned();
            Held { topic: Topic::Events, name, partition, first, end }
        };
        let topics = Ok(vec![held(0, 3, 9), held(1, 0, 0)]);
        let (brokers, waiting, undeliverable) = ("k:9092".into(), Some((4, 768)), 0);
        let kafka = Kafka { brokers, waiting, undeliverable, topics };
        let mut seen = Seen {
            installation: "7f0c".into(),
            log: Report::default(),
            kafka: Some(kafka),
            remap: Ok(Epochs { after: 5, last: 9, void: 2 }),
            checkpoints: Found { are_well: true, told: json!([]), places: Vec::new() },
        };
        let text = seen.text();
        for line in [
            "spool        0 segments, 0 frames, 0 bytes",
            "  4 frames wait for Kafka, 768 bytes",
            "kafka        k:9092",
            "  events 0: offsets 3..9 of ad-events",
            "epochs       6 to 9, one after another; 5 and those before are in a checkpoint; 2 \
             messages are void: of writers that were superseded, or no rows",
            "all is well",
        ] {
            assert!(text.lines().any(|found| found == line), "`{line}` is not in:\n{text}");
        }
        assert_eq!((seen.json()["well"].clone(), seen.unread()), (json!(true), None));

        // Away: what is here is well, and that is not all.
        let away = || Wrong::Unread("no broker answers".into());
        seen.remap = Err(away());
        if let Some(kafka) = &mut seen.kafka {
            (kafka.topics, kafka.waiting) = (Err(away()), None);
        }
        let text = seen.text();
        assert!(text.contains("spool        none"), "{text}");
        assert!(text.contains("kafka        NOT READ no broker answers"), "{text}");
        assert!(text.ends_with("not all could be looked at; what was is well\n"), "{text}");
        assert!(seen.is_well() && seen.unread() == Some("no broker answers"));
        assert_eq!(seen.json()["well"], false);

        // What cannot serve is more than that.
        if let Some(kafka) = &mut seen.kafka {
            kafka.topics = Err(Wrong::Damaged("there is no topic".into()));
        }
        assert!(!seen.is_well() && seen.text().contains("DAMAGED  there is no topic"));
    }
}
