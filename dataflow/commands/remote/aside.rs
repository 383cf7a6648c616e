//! What a running server says of events that did not count, and how many events came to which end,
//! in the form in which both are compared.
//!
//! The lists say how many there were, and of the newest where in the log they are. What they say
//! stays there: nothing is read back for them.

use super::{Refused, Remote};
use crate::verify::ServedEvents;
use serde_json::Value;
use trueup_operators::{
    change::{Counts, Incident},
    event::{Fate, Position},
    log::Topic,
    time::{Epoch, LogTime, parse_rfc3339},
};
use trueup_sinks::catalog::LISTED_FATES;

impl Remote {
    /// How many events had come to which end, and the epoch as of which.
    pub(in crate::commands) fn counts(&self) -> Result<(Epoch, Counts), Refused> {
        let status = self.ask("/v1/status")?;
        let told = &status["counts"];
        let epoch = told["asOfEpoch"].as_u64();
        let epoch = epoch.ok_or_else(|| {
            Refused::Other(format!("/v1/status has no `counts.asOfEpoch`: {told}"))
        })?;
        Ok((epoch, counts_of(told).map_err(Refused::Other)?))
    }

    /// The events that are listed as of an epoch, fate by fate.
    pub(in crate::commands) fn served_events(
        &self,
        epoch: Epoch,
    ) -> Result<Vec<ServedEvents>, Refused> {
        LISTED_FATES.iter().map(|&fate| self.events_of(fate, epoch)).collect()
    }

    fn events_of(&self, fate: Fate, epoch: Epoch) -> Result<ServedEvents, Refused> {
        let mut served = ServedEvents { fate, events: Vec::new(), total: 0 };
        let mut page = String::new();
        loop {
            let reason = fate.code();
            let path =
                format!("/v1/quarantine?reason={reason}&asOfEpoch={epoch}&events=false{page}");
            let answer = self.ask(&path)?;
            let wrong = |what: String| Refused::Other(format!("{path}: {what}"));
            let total = answer["total"].as_u64().filter(|_| answer["asOfEpoch"] == epoch);
            served.total =
                total.ok_or_else(|| wrong(format!("no `total` as of epoch {epoch}: {answer}")))?;
            for row in answer["rows"].as_array().into_iter().flatten() {
                served.events.push(incident_of(row).map_err(wrong)?);
            }
            match answer["nextPageToken"].as_str() {
                Some(token) => {
                    page = format!("&pageToken={token}");
                }
                _ => return Ok(served),
            }
        }
    }
}

fn incident_of(row: &Value) -> Result<Incident, String> {
    let wrong = |what: &str| format!("an event has no `{what}`: {row}");
    let number = |name: &str| row[name].as_u64().ok_or_else(|| wrong(name));
    let small = |name: &str| u16::try_from(number(name)?).map_err(|_| wrong(name));
    let fate = Fate::ALL.into_iter().find(|fate| row["reason"] == fate.code());
    let topic = Topic::ALL.into_iter().find(|topic| row["topic"] == topic.name());
    let topic = topic.ok_or_else(|| wrong("topic"))?;
    let at = Position::of_message(topic, small("partition")?, number("offset")?);
    let log_time = row["logTime"].as_str().and_then(parse_rfc3339);
    Ok(Incident {
        fate: fate.ok_or_else(|| wrong("reason"))?,
        position: Position { row: small("row")?, ..at },
        log_time: LogTime(log_time.ok_or_else(|| wrong("logTime"))?),
    })
}

fn counts_of(told: &Value) -> Result<Counts, String> {
    let number = |name: &str| {
        let number = told[name].as_u64();
        number.ok_or_else(|| format!("/v1/status has no `counts.{name}`: {told}"))
    };
    let fate = |fate: Fate| match fate {
        Fate::Counted => "counted",
        Fate::Duplicate => "duplicate",
        Fate::Conflict => "conflict",
        Fate::Quarantined => "quarantined",
        Fate::TooLate => "tooLate",
    };
    let mut counts = Counts {
        fates: [0; 5],
        late: number("late")?,
        verdicts: number("verdicts")?,
        retractions: number("retractions")?,
        verdicts_too_late: number("verdictsTooLate")?,
        arithmetic_errors: number("arithmeticErrors")?,
        folded: number("folded")?,
    };
    for of in Fate::ALL {
        counts.fates[of as usize] = number(fate(of))?;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests;
