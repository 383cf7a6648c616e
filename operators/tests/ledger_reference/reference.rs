//! The ledger's rules as a plain differential dataflow: collections, joins and reductions, no
//! state of its own. It keeps every event and verdict for ever and derives all from them, which
//! is what makes it slow, and obvious. It shares no code with the ledger but the definitions of
//! lateness in `time.rs`.
//!
//! ```text
//! events ─▶ by id: fate ─▶ counted ─┬──────────────────────────────┐
//!                                   ├─▶ join on id ────────────────┤
//! verdicts ─▶ by key: in force ─────┤                              ├─▶ by event: history
//!                                   └─▶ join on impression ────────┘
//! ```

use crate::{
    Outcome, Step,
    schedule::{EpochInput, Schedule},
};
use differential_dataflow::{VecCollection, input::InputSession};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};
use timely::dataflow::Scope;
use trueup_operators::{
    event::{Fate, Target},
    feed::EpochTimes,
    hash::IdHash,
    ledger::Standing,
    time::{Bucket, Granularity, Lateness, LogTime, MINUTE_US},
};

type Position = (u16, u64, u16);

/// When something was read: all of it that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Read {
    epoch: u64,
    frontier_before: LogTime,
    latest: LogTime,
}

impl From<EpochTimes> for Read {
    fn from(t: EpochTimes) -> Read {
        Read { epoch: t.epoch, frontier_before: t.frontier_before, latest: t.latest }
    }
}

/// An event of the log. Orders by arrival, for one id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Told {
    read: Read,
    position: Position,
    id: IdHash,
    payload: u32,
    minute: i64,
    log_time: LogTime,
    group: Option<IdHash>,
    born_invalid: bool,
    understood: bool,
}

/// A verdict of the log. Orders by epoch, then by who wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Said {
    read: Read,
    decided_at_us: i64,
    arrival: (u64, u32),
    log_time: LogTime,
    invalid: bool,
}

/// A verdict that was in force on its key for a while.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct InForce {
    said: Said,
    /// How often the key had been forgotten before.
    life: u32,
    /// It was read in an epoch in which nothing else was said than what was in force.
    repeat: bool,
}

/// Something about one counted event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
enum Fact {
    Event(Told),
    OnEvent(InForce),
    OnImpression(InForce),
}

/// Whether an event of a minute is final at a log time.
fn too_late(lateness: &Lateness, minute: i64, at: LogTime) -> bool {
    lateness.too_late(Bucket(minute as i32), at)
}

/// The end of each event with one id, in order: the first counts, until it is forgotten.
fn fates(lateness: &Lateness, events: &[(&Told, isize)], out: &mut Vec<((Told, u8), isize)>) {
    let mut first: Option<&Told> = None;
    for (event, _) in events {
        let forgotten = |f: &Told| lateness.forgotten(f.read.latest, event.read.frontier_before);
        first = first.filter(|f| !forgotten(f));
        let fate = match first {
            _ if !event.understood => Fate::Quarantined,
            Some(first) if first.payload == event.payload => Fate::Duplicate,
            Some(_) => Fate::Conflict,
            None if too_late(lateness, event.minute, event.log_time) => Fate::TooLate,
            None => Fate::Counted,
        };
        if event.understood && first.is_none() {
            first = Some(event);
        }
        out.push((((*event).clone(), fate as u8), 1));
    }
}

/// A key's verdicts as they came into force: one that was decided earlier than the one before, if
/// that one is not forgotten, says what that one says.
fn in_force(lateness: &Lateness, said: &[(&Said, isize)], out: &mut Vec<(InForce, isize)>) {
    let mut winner: Option<Said> = None;
    let mut life = 0;
    for of_epoch in said.chunk_by(|a, b| a.0.read == b.0.read) {
        let now = of_epoch[0].0.read;
        let ago = |is: fn(&Lateness, LogTime, LogTime) -> bool, w: &Said| {
            is(lateness, w.read.latest, now.frontier_before)
        };
        // It covers nothing that comes any more, but still stands against what was decided before.
        let covers = !winner.as_ref().is_some_and(|w| ago(Lateness::forgotten, w));
        life += u32::from(!covers);
        winner = winner.filter(|w| !ago(Lateness::outlived, w));
        let against_winner = |s: &Said| match &winner {
            Some(w) if s.decided_at_us < w.decided_at_us => {
                Said { decided_at_us: w.decided_at_us, invalid: w.invalid, ..s.clone() }
            }
            _ => s.clone(),
        };
        let mut said: Vec<Said> = of_epoch.iter().map(|s| against_winner(s.0)).collect();
        said.sort_by_key(|s| (s.decided_at_us, s.arrival));
        let covers_all = |w: &Said| !lateness.forgotten(w.read.latest, now.latest);
        let repeat = winner
            .as_ref()
            .is_some_and(|w| covers_all(w) && said.iter().all(|s| s.invalid == w.invalid));
        winner = said.last().cloned();
        out.extend(said.into_iter().map(|said| (InForce { said, life, repeat }, 1)));
    }
}

/// A flag of an event, and when that was decided which made it so.
#[derive(Clone, Copy)]
struct Flag {
    invalid: bool,
    decided_at_us: Option<i64>,
}

/// What verdicts, ascending, make of a flag, and whether the last is refused as too late.
fn judge(lateness: &Lateness, minute: i64, verdicts: &[&InForce], flag: Flag) -> (Flag, bool) {
    let in_time = |v: &&&InForce| !too_late(lateness, minute, v.said.log_time);
    let after = verdicts.iter().rfind(in_time).map_or(flag, |v| Flag {
        invalid: v.said.invalid,
        decided_at_us: Some(v.said.decided_at_us),
    });
    // Whatever is forgotten meanwhile.
    assert!(after.decided_at_us >= flag.decided_at_us, "an earlier decision won");
    let refused = |last: &&InForce| !in_time(&last) && last.said.invalid != after.invalid;
    (after, verdicts.last().is_some_and(refused))
}

/// How one kind of verdict moved an event's flag: what it was when the event came, then the
/// epochs of changes; and the epochs in which a verdict came too late.
fn flags(
    lateness: &Lateness,
    event: &Told,
    verdicts: &[&InForce],
    born: bool,
) -> (bool, Vec<(u64, bool)>, Vec<u64>) {
    let (before, after): (Vec<&InForce>, Vec<&InForce>) =
        verdicts.iter().partition(|v| v.said.read.epoch < event.read.epoch);
    let mut refusals = Vec::new();
    let mut note = |epoch, (flag, refused): (Flag, bool)| {
        if refused {
            refusals.push(epoch);
        }
        flag
    };
    let born = Flag { invalid: born, decided_at_us: None };
    let mut flag = born;
    if let Some(winner) = before.last()
        && !lateness.forgotten(winner.said.read.latest, event.log_time)
    {
        let waiting: Vec<_> = before.iter().filter(|v| v.life == winner.life).copied().collect();
        flag = note(event.read.epoch, judge(lateness, event.minute, &waiting, born));
    }
    let first = flag;
    let mut changes = Vec::new();
    for of_epoch in after.chunk_by(|a, b| a.said.read == b.said.read) {
        let now = of_epoch[0].said.read;
        if of_epoch[0].repeat || lateness.forgotten(event.read.latest, now.frontier_before) {
            continue;
        }
        let new = note(now.epoch, judge(lateness, event.minute, of_epoch, flag));
        if new.invalid != flag.invalid {
            changes.push((now.epoch, new.invalid));
        }
        flag = new;
    }
    (first.invalid, changes, refusals)
}

/// The steps of one event: how it stood before and after, by epoch.
fn history(lateness: &Lateness, facts: &[(&Fact, isize)], out: &mut Vec<(Step, isize)>) {
    let event = facts.iter().find_map(|f| if let Fact::Event(e) = f.0 { Some(e) } else { None });
    // A join can be a step ahead of the reduction that withdraws an event; then there is none.
    let Some(event) = event else { return };
    let own = facts.iter().filter_map(|f| if let Fact::OnEvent(v) = f.0 { Some(v) } else { None });
    let all =
        facts.iter().filter_map(|f| if let Fact::OnImpression(v) = f.0 { Some(v) } else { None });
    let (own, all): (Vec<_>, Vec<_>) = (own.collect(), all.collect());
    let (mut on_event, own_changes, own_refused) = flags(lateness, event, &own, event.born_invalid);
    let (mut on_group, all_changes, all_refused) = flags(lateness, event, &all, false);
    let standing = |a, b| if a || b { Standing::Invalid } else { Standing::Valid } as u8;
    let mut was = standing(on_event, on_group);
    let step = |epoch, was, is| Step::Stands { epoch, was, is };
    out.push((step(event.read.epoch, Standing::Absent as u8, was), 1));
    let mut epochs: Vec<u64> = own_changes.iter().chain(&all_changes).map(|c| c.0).collect();
    epochs.sort_unstable();
    epochs.dedup();
    for epoch in epochs {
        let at = |changes: &[(u64, bool)]| changes.iter().find(|c| c.0 == epoch).map(|c| c.1);
        on_event = at(&own_changes).unwrap_or(on_event);
        on_group = at(&all_changes).unwrap_or(on_group);
        let is = standing(on_event, on_group);
        if is != was {
            out.push((step(epoch, was, is), 1));
        }
        was = is;
    }
    out.extend(own_refused.iter().map(|&epoch| (Step::Refused { epoch, of_group: false }, 1)));
    out.extend(all_refused.iter().map(|&epoch| (Step::Refused { epoch, of_group: true }, 1)));
}

type Events<'a> = VecCollection<'a, u64, Told, isize>;
type Verdicts<'a> = VecCollection<'a, u64, ((u8, IdHash), Said), isize>;

fn build<'a>(
    lateness: Lateness,
    events: Events<'a>,
    verdicts: Verdicts<'a>,
) -> VecCollection<'a, u64, Outcome, isize> {
    let fates = events
        .map(|e| (e.id, e))
        .reduce(move |_, events, out| fates(&lateness, events, out))
        .map(|(_, ended)| ended);
    let counted = fates.clone().filter(|(_, fate)| *fate == Fate::Counted as u8).map(|(e, _)| e);
    let judged = verdicts.reduce(move |_, said, out| in_force(&lateness, said, out));
    let on = |target: Target, of: fn(InForce) -> Fact| {
        let key = move |e: &Told| match target {
            Target::Event => Some(e.id),
            Target::Impression => e.group,
        };
        let keyed =
            counted.clone().flat_map(move |e| key(&e).map(|key| ((target as u8, key), e.position)));
        keyed.join_map(judged.clone(), move |_, position, verdict| (*position, of(verdict.clone())))
    };
    let steps = counted
        .clone()
        .map(|e| (e.position, Fact::Event(e)))
        .concat(on(Target::Event, Fact::OnEvent))
        .concat(on(Target::Impression, Fact::OnImpression))
        .reduce(move |_, facts, out| history(&lateness, facts, out))
        .map(|(position, step)| Outcome::Step(position, step));
    fates
        .map(|(e, fate)| {
            let end = Granularity::Minute.end(Bucket(e.minute as i32)).0;
            let late = fate == Fate::Counted as u8 && end <= e.log_time.0;
            Outcome::Fate { position: e.position, fate, late }
        })
        .concat(steps)
        .consolidate()
}

/// Runs the dataflow over a schedule. What it says, with the epoch in which it came to say so.
pub(crate) fn run(schedule: &Arc<Schedule>) -> Vec<(Outcome, u64, isize)> {
    let said = Arc::new(Mutex::new(Vec::new()));
    let (schedule, collected) = (Arc::clone(schedule), Arc::clone(&said));
    let guards = timely::execute(timely::Config::thread(), move |worker| {
        let (mut events, mut verdicts) = (InputSession::new(), InputSession::new());
        let (probe, collected) = (timely::dataflow::ProbeHandle::new(), Arc::clone(&collected));
        worker.dataflow::<u64, _, _>(|scope: Scope<'_, u64>| {
            let outcomes = build(
                schedule.lateness,
                events.to_collection(scope),
                verdicts.to_collection(scope),
            );
            outcomes
                .inspect(move |update| collected.lock().unwrap().push(update.clone()))
                .probe_with(&probe);
        });
        for input in &schedule.epochs {
            let epoch = input.times.epoch;
            events.advance_to(epoch);
            verdicts.advance_to(epoch);
            insert(input, &mut events, &mut verdicts);
            events.advance_to(epoch + 1);
            verdicts.advance_to(epoch + 1);
            events.flush();
            verdicts.flush();
            worker.step_while(|| probe.less_than(&(epoch + 1)));
        }
    });
    for result in guards.expect("the reference starts").join() {
        result.expect("the reference runs");
    }
    Arc::try_unwrap(said).expect("its only user has ended").into_inner().unwrap()
}

fn insert(
    input: &EpochInput,
    events: &mut InputSession<u64, Told, isize>,
    verdicts: &mut InputSession<u64, ((u8, IdHash), Said), isize>,
) {
    let read = Read::from(input.times);
    for frame in &input.frames {
        for (row, e) in frame.batch.events.iter().enumerate() {
            events.insert(Told {
                read,
                position: (frame.partition, frame.offset, row as u16),
                id: e.id,
                payload: e.payload as u32,
                minute: e.time_us.div_euclid(MINUTE_US),
                log_time: frame.log_time,
                group: e.group,
                born_invalid: e.born_invalid,
                understood: e.understood,
            });
        }
    }
    for j in &input.judgements {
        let (decided_at_us, arrival, log_time) = (j.decided_at_us, j.arrival, j.log_time);
        let said = Said { read, decided_at_us, arrival, log_time, invalid: j.invalid };
        verdicts.insert(((j.target as u8, j.hash), said));
    }
}
