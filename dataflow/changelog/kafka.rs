//! The topic in Kafka.

use super::{ChangeTopic, Note, Open, Upper, Visit};
use serde_json::{Map, Value};
use trueup_kafka::{Changelog, ChangelogSettings};
use trueup_operators::log::LogError;

/// A topic of a cluster.
pub fn topic(settings: ChangelogSettings) -> Open {
    Box::new(move |stop| {
        let changelog = Changelog::open(settings.clone(), stop)?;
        Ok(Box::new(KafkaTopic(changelog)))
    })
}

struct KafkaTopic(Changelog);

fn of_kafka(upper: &trueup_kafka::Upper) -> Upper {
    let note = serde_json::from_value(Value::Object(upper.said.clone())).ok();
    Upper { epoch: upper.epoch, note }
}

fn said(note: &Note) -> Map<String, Value> {
    match serde_json::to_value(note) {
        Ok(Value::Object(said)) => said,
        _ => unreachable!("a note is a struct of texts"),
    }
}

impl ChangeTopic for KafkaTopic {
    fn upper(&self) -> Option<Upper> {
        self.0.upper().map(of_kafka)
    }

    fn begin(&mut self) -> Result<(), LogError> {
        self.0.begin()
    }

    fn write(&mut self, key: &str, value: &str) -> Result<(), LogError> {
        self.0.write(key, value)
    }

    fn commit(&mut self, upper: &Upper) -> Result<(), LogError> {
        let said = upper.note.as_ref().map(said).unwrap_or_default();
        self.0.commit(trueup_kafka::Upper { epoch: upper.epoch, said })
    }

    fn abort(&mut self) {
        self.0.abort();
    }

    fn read(&mut self, each: &mut Visit<'_>) -> Result<(), LogError> {
        self.0.read(each)
    }

    fn last_upper(&mut self) -> Result<Option<Upper>, LogError> {
        Ok(self.0.last_upper()?.as_ref().map(of_kafka))
    }

    fn is_fenced(&self) -> bool {
        self.0.is_fenced()
    }
}
