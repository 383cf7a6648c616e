//! Which events count, and how: the rules of the ledger as the documentation words them.
//!
//! * An id is remembered until [`Lateness::forgotten`] says otherwise: from the latest log time of
//!   the epoch that it came in, and at the start of an epoch. While it is, an event with the same
//!   payload (the low 32 bits of its hash) is a duplicate, any other a conflict.
//! * An event of a schema version other than the known one is quarantined and not remembered.
//! * An event whose frame the log took a horizon after its minute ended is too late; it is
//!   remembered, so that its copies are duplicates, and never counts.
//! * Verdicts are judged when the events of their epoch are in, by the time of their decision and
//!   then of their arrival. For each event id and each impression id the last one in that order is
//!   in force. A verdict that was decided before the one in force repeats that one.
//! * An event is invalid when the verdict in force on its id says so, or the one on its
//!   impression (impressions and clicks have one). An event that the collector took as invalid
//!   stays so until a verdict on its id says otherwise.
//! * A verdict that the log took a horizon after the event's minute ended changes nothing for it.
//! * The verdict in force holds for events that come later while it is not forgotten like an id,
//!   counted from its epoch, by the log time of the event. For as long again it stands against
//!   what was decided before it.

use super::{
    aside::{Asides, SetAside},
    frames::{Dimensions, KNOWN_VERSION, Kind, Row},
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    rc::Rc,
};
use trueup_operators::{
    change::Counts,
    event::{Fate, Position, Target, Verdict},
    feed::EpochTimes,
    log::{Frame, Topic},
    time::{Lateness, LogTime, MINUTE_US},
};

/// What an event adds to its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contribution {
    pub(super) kind: Kind,
    /// What it costs while it is valid, in thousandths of a micro.
    pub(super) cost_nanos: i64,
    /// When its minute starts.
    pub(super) minute_us: i64,
    pub(super) dimensions: Dimensions,
}

/// An event that came to count in another way than before: `was`, `is`; `None` is not at all,
/// `true` is as a valid one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) contribution: Contribution,
    pub(super) was: Option<bool>,
    pub(super) is: Option<bool>,
}

/// A remembered event.
struct Known {
    id: Rc<str>,
    payload: u32,
    /// The latest log time of the epoch that it came in.
    seen: LogTime,
    /// `None`: it was too late, and counts nowhere.
    counted: Option<Counted>,
}

struct Counted {
    contribution: Contribution,
    impression: Option<Rc<str>>,
    invalid_by_id: bool,
    invalid_by_impression: bool,
}

impl Counted {
    fn is_valid(&self) -> bool {
        !self.invalid_by_id && !self.invalid_by_impression
    }
}

/// A verdict and where it came from.
#[derive(Clone, Copy, Debug)]
struct Judged {
    decided_at_us: i64,
    /// Frame and place in it.
    arrival: (u64, usize),
    log_time: LogTime,
    invalid: bool,
}

impl Judged {
    fn order(&self) -> (i64, (u64, usize)) {
        (self.decided_at_us, self.arrival)
    }
}

/// The verdicts on one id: each was in force once, the last one is. They cover events that come for
/// one retention; for another one the last is not outdone by what was decided before it.
#[derive(Debug)]
struct Said {
    in_order: Vec<Judged>,
    /// The latest log time of the epoch of the one in force.
    seen: LogTime,
}

/// What verdicts are about: an event, or an impression and its clicks.
type Subject = (bool, Rc<str>);

/// The subject that is the event of this id.
fn event(id: &str) -> Subject {
    (true, id.into())
}

/// The subject that is the impression of this id.
fn impression(id: &str) -> Subject {
    (false, id.into())
}

/// Everything that is remembered.
pub(super) struct Book {
    lateness: Lateness,
    now: EpochTimes,
    /// In the order in which they came: the first one is number `first`.
    known: VecDeque<Known>,
    first: u64,
    by_id: HashMap<Rc<str>, u64>,
    /// Numbers of events, ascending.
    by_impression: HashMap<Rc<str>, VecDeque<u64>>,
    said: HashMap<Subject, Said>,
    /// Verdicts of the epoch.
    waiting: BTreeMap<Subject, Vec<Judged>>,
    changes: Vec<Change>,
    pub(super) counts: Counts,
    pub(super) asides: Asides,
}

impl Book {
    pub(super) fn new(lateness: Lateness) -> Book {
        Book {
            lateness,
            now: EpochTimes::default(),
            known: VecDeque::new(),
            first: 0,
            by_id: HashMap::new(),
            by_impression: HashMap::new(),
            said: HashMap::new(),
            waiting: BTreeMap::new(),
            changes: Vec::new(),
            counts: Counts::default(),
            asides: Asides::default(),
        }
    }

    /// Begins an epoch: forgets.
    pub(super) fn open(&mut self, now: EpochTimes) {
        let (lateness, frontier) = (self.lateness, now.frontier_before);
        // What is forgotten changes only with the frontier; looking at all verdicts is dear.
        if frontier != self.now.frontier_before {
            self.said.retain(|_, said| !lateness.outlived(said.seen, frontier));
        }
        while self.known.front().is_some_and(|known| lateness.forgotten(known.seen, frontier)) {
            self.forget_first();
        }
        self.now = now;
    }

    fn forget_first(&mut self) {
        let Some(known) = self.known.pop_front() else { return };
        self.first += 1;
        self.by_id.remove(&known.id);
        let Some(impression) = known.counted.and_then(|counted| counted.impression) else { return };
        if let Some(members) = self.by_impression.get_mut(&impression) {
            // It is the first of all that are known, and so the first of these.
            members.pop_front();
            if members.is_empty() {
                self.by_impression.remove(&impression);
            }
        }
    }

    /// Takes an event of the epoch.
    pub(super) fn event(&mut self, frame: &Frame, row: &Row<'_>) {
        let fate = self.fate(frame, row);
        self.counts.fates[fate as usize] += 1;
        if fate == Fate::Counted {
            return;
        }
        let (partition, offset) = (frame.partition, frame.offset);
        self.asides.push(SetAside {
            fate,
            position: Position { partition, offset, row: row.number },
            log_time: frame.log_time,
            event_id: row.id.to_owned(),
        });
    }

    /// A message that is no batch of events.
    pub(super) fn foreign(&mut self, frame: &Frame) {
        self.counts.fates[Fate::Quarantined as usize] += 1;
        self.listed(Topic::Events, frame);
    }

    /// A message that is set aside, whatever it counts as.
    pub(super) fn listed(&mut self, topic: Topic, frame: &Frame) {
        self.asides.push(SetAside {
            fate: Fate::Quarantined,
            position: Position::of_message(topic, frame.partition, frame.offset),
            log_time: frame.log_time,
            event_id: String::new(),
        });
    }

    fn fate(&mut self, frame: &Frame, row: &Row<'_>) -> Fate {
        let skew_us_max = self.lateness.future_skew_us_max;
        let ahead = i128::from(row.occurred_us) - i128::from(frame.log_time.0);
        if row.schema_version != KNOWN_VERSION || ahead > skew_us_max.into() {
            return Fate::Quarantined;
        }
        if let Some(&number) = self.by_id.get(row.id) {
            let known = &self.known[(number - self.first) as usize];
            let same = known.payload == row.payload as u32;
            return if same { Fate::Duplicate } else { Fate::Conflict };
        }
        let minute_us = row.occurred_us.div_euclid(MINUTE_US).saturating_mul(MINUTE_US);
        if self.is_too_late(minute_us, frame.log_time) {
            self.remember(row, None);
            return Fate::TooLate;
        }
        self.counts.late += u64::from(frame.log_time.0 >= minute_us + MINUTE_US);
        let counted = self.counted(row, minute_us, frame.log_time);
        let (contribution, is) = (counted.contribution, Some(counted.is_valid()));
        self.changes.push(Change { contribution, was: None, is });
        self.remember(row, Some(counted));
        Fate::Counted
    }

    fn is_too_late(&self, minute_us: i64, log_time: LogTime) -> bool {
        let kept_us = MINUTE_US + self.lateness.correction_horizon_us;
        log_time.0 >= minute_us.saturating_add(kept_us)
    }

    fn remember(&mut self, row: &Row<'_>, counted: Option<Counted>) {
        let number = self.first + self.known.len() as u64;
        let id: Rc<str> = row.id.into();
        if let Some(impression) = counted.as_ref().and_then(|c| c.impression.clone()) {
            self.by_impression.entry(impression).or_default().push_back(number);
        }
        self.by_id.insert(Rc::clone(&id), number);
        let (payload, seen) = (row.payload as u32, self.now.latest);
        self.known.push_back(Known { id, payload, seen, counted });
    }

    /// A new event, with what has been said about it before it came.
    fn counted(&mut self, row: &Row<'_>, minute_us: i64, at: LogTime) -> Counted {
        let contribution = Contribution {
            kind: row.kind,
            cost_nanos: row.cost_nanos,
            minute_us,
            dimensions: row.dimensions,
        };
        let covered = row.kind != Kind::Conversion;
        let group: Option<Rc<str>> = row.impression.filter(|_| covered).map(Rc::from);
        let invalid_by_id = self.waiting_ruling(&event(row.id), minute_us, at, row.born_invalid);
        let invalid_by_impression = match &group {
            Some(id) => self.waiting_ruling(&impression(id), minute_us, at, false),
            None => false,
        };
        Counted { contribution, impression: group, invalid_by_id, invalid_by_impression }
    }

    /// Whether an event that comes at a log time is invalid by what was said about a subject;
    /// `otherwise` if nothing was in time.
    fn waiting_ruling(
        &mut self,
        subject: &Subject,
        minute_us: i64,
        at: LogTime,
        otherwise: bool,
    ) -> bool {
        let Some(said) = self.said.get(subject).filter(|said| self.covers(said, at)) else {
            return otherwise;
        };
        let (invalid, refused) = self.ruling(&said.in_order, minute_us, otherwise);
        self.counts.verdicts_too_late += u64::from(refused);
        invalid
    }

    fn covers(&self, said: &Said, at: LogTime) -> bool {
        !self.lateness.forgotten(said.seen, at)
    }

    /// What verdicts in ascending order make of an event of a minute that stands `invalid`, and
    /// whether the last one would have made it another had it come in time.
    fn ruling(&self, in_order: &[Judged], minute_us: i64, invalid: bool) -> (bool, bool) {
        let in_time = |v: &&Judged| !self.is_too_late(minute_us, v.log_time);
        let invalid = in_order.iter().rev().find(in_time).map_or(invalid, |v| v.invalid);
        let refused = in_order.last().is_some_and(|v| !in_time(&v) && v.invalid != invalid);
        (invalid, refused)
    }

    /// Takes the verdicts of a frame of the epoch.
    pub(super) fn verdicts(&mut self, frame: &Frame, verdicts: Vec<Verdict>) {
        for (place, verdict) in verdicts.into_iter().enumerate() {
            self.counts.verdicts += 1;
            let subject = match verdict.target {
                Target::Event => event(&verdict.id),
                Target::Impression => impression(&verdict.id),
            };
            self.waiting.entry(subject).or_default().push(Judged {
                decided_at_us: verdict.decided_at_us,
                arrival: (frame.offset, place),
                log_time: frame.log_time,
                invalid: verdict.invalid,
            });
        }
    }

    /// Ends an epoch: applies its verdicts.
    pub(super) fn judge(&mut self) {
        // Events that a verdict names, and whether they were valid before any of the epoch's.
        let mut stood: BTreeMap<u64, bool> = BTreeMap::new();
        for (subject, mut judged) in std::mem::take(&mut self.waiting) {
            let before = self.said.get(&subject);
            let in_force = before.and_then(|said| said.in_order.last().copied());
            for j in &mut judged {
                if let Some(last) = in_force.filter(|last| last.decided_at_us > j.decided_at_us) {
                    (j.decided_at_us, j.invalid) = (last.decided_at_us, last.invalid);
                }
            }
            judged.sort_by_key(Judged::order);
            let covers = |at| before.is_some_and(|said| self.covers(said, at));
            let (covers, covers_all) = (covers(self.now.frontier_before), covers(self.now.latest));
            let repeats = |before: Judged| judged.iter().all(|j| j.invalid == before.invalid);
            if !covers_all || !in_force.is_some_and(repeats) {
                self.apply(&subject, &judged, &mut stood);
            }
            let seen = self.now.latest;
            let said =
                self.said.entry(subject).or_insert_with(|| Said { in_order: Vec::new(), seen });
            said.seen = seen;
            if !covers {
                said.in_order.clear();
            }
            said.in_order.append(&mut judged);
        }
        for (number, was) in stood {
            let known = &self.known[(number - self.first) as usize];
            let Some(counted) = &known.counted else { continue };
            let is = counted.is_valid();
            if is != was {
                self.counts.retractions += 1;
                let contribution = counted.contribution;
                self.changes.push(Change { contribution, was: Some(was), is: Some(is) });
            }
        }
    }

    /// Lets new verdicts on a subject change the events that are known.
    fn apply(&mut self, subject: &Subject, judged: &[Judged], stood: &mut BTreeMap<u64, bool>) {
        let (by_id, id) = subject;
        let numbers: Vec<u64> = if *by_id {
            self.by_id.get(id).copied().into_iter().collect()
        } else {
            self.by_impression.get(id).into_iter().flatten().copied().collect()
        };
        for number in numbers {
            let place = (number - self.first) as usize;
            let Some(counted) = &self.known[place].counted else { continue };
            let was = if *by_id { counted.invalid_by_id } else { counted.invalid_by_impression };
            let minute_us = counted.contribution.minute_us;
            let (invalid, refused) = self.ruling(judged, minute_us, was);
            self.counts.verdicts_too_late += u64::from(refused);
            let Some(counted) = &mut self.known[place].counted else { continue };
            stood.entry(number).or_insert(counted.is_valid());
            if *by_id {
                counted.invalid_by_id = invalid;
            } else {
                counted.invalid_by_impression = invalid;
            }
        }
    }

    /// What the epoch changed, in the order in which it did.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }
}
