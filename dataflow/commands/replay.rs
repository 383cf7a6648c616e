//! `trueup replay`: the log through the dataflow again, beside a server that runs, to see what its
//! figures would be if everything had been decided by this binary from the beginning; and to put
//! them in the place of what the server shows, in one step that every subscriber gets as −old +new.
//!
//! What is hard is that the figures that are published must be those that were shown to the
//! operator, or nothing: so the state is written down at the epoch that was compared, it is offered
//! only after the comparison ([`crate::checkpoint::offer`]), and what the server adds to it is the
//! log after that epoch. A range says what may change; if anything else would, nothing is.

use super::{
    Failure,
    check::{again, check_installation, check_views, filter, recorded, shown},
    remote::Remote,
};
use crate::{
    checkpoint::offer,
    cli::{Range, Replay},
    config::Config,
    host::Host,
    verify::{self, DIFFERENCES_MAX, Filter},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};
use trueup_operators::{
    log::{Log, Topic},
    time::{Epoch, EventTime, Granularity, format_rfc3339},
};

/// How long the server may take to show what it has taken up.
const PATIENCE: Duration = Duration::from_secs(1_800);
/// How often who waits looks again.
const LOOK: Duration = Duration::from_millis(100);
/// How often the progress is told where no line can be written over.
const TOLD_EVERY: Duration = Duration::from_secs(5);
/// Bytes of events read from the log at a time.
const READ_BYTES: usize = 8 << 20;
/// The width of the bar.
const BAR: usize = 30;

/// How many rows would change: of those that may, and of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Changes {
    asked: u64,
    others: u64,
}

/// `trueup replay`
///
/// # Errors
/// 1 when a dry run would change something, or nothing was published that should have been; 2 when
/// it could not run.
pub fn replay(command: &Replay) -> Result<(), Failure> {
    let Some(url) = &command.server else {
        return Err(Failure::Use(
            "a replay is compared with what a server shows: name it with --server URL".into(),
        ));
    };
    let config = command.common.load()?;
    check_views(&command.range, &config)?;
    if !command.dry_run && config.checkpoint.interval.0.is_zero() {
        return Err(Failure::Use(
            "`checkpoint.interval` is 0, and what a replay publishes is a checkpoint; set it as \
             the server has it, or add --dry-run"
                .into(),
        ));
    }
    // What is served is read first: a server that runs is at another epoch a second later.
    let remote = Remote::new(url, command.token.as_deref());
    let (served, installation) = shown(&remote, &config)?;
    let host = match command.dry_run {
        true => again(&config, Some(served.epoch))?,
        false => to_offer(&config, served.epoch)?,
    };
    check_installation(Some(installation), host.log().identity(), &config)?;
    progress(&host, served.epoch)?;
    let replayed = verify::served(&**host.tables(), None)
        .map_err(|e| Failure::Use(format!("the views cannot be read: {e}")))?;
    let range = touched(command, &host)?;
    let asked = filter(&range, &replayed);
    let all = filter(&Range::default(), &replayed);
    let changes = print_changes(&served.views, &replayed.views, &asked, &all);
    let Changes { asked, others } = changes;
    println!(
        "epoch {}: {asked} rows {}",
        replayed.epoch,
        if command.dry_run { "would change" } else { "change" }
    );
    if others > 0 {
        println!("and {others} rows that were not asked for");
    }
    let outcome = match (command.dry_run, changes) {
        (_, Changes { asked: 0, others: 0 }) => Ok(()),
        (true, _) => Err(Failure::Check(String::new())),
        (false, Changes { others: 1.., .. }) => Err(Failure::Check(format!(
            "nothing was published: {others} rows outside of what was asked for would change too; \
             look at them with --dry-run, then widen --from, --to, --from-offset or --view"
        ))),
        (false, _) => publish(&host, &remote, &config),
    };
    host.close();
    outcome
}

fn to_offer(config: &Config, upto: Epoch) -> Result<Host, Failure> {
    let (job, log) = recorded(config)?;
    let (dir, store) = (&config.data_dir, &config.checkpoint.store);
    Host::replay_to_offer(dir, store, log, job, config.engine(), config.views(), upto)
        .map_err(|e| Failure::Use(e.to_string()))
}

/// Waits until a replay is at an epoch, and says how far it is.
fn progress(host: &Host, upto: Epoch) -> Result<(), Failure> {
    let (began, mut told) = (Instant::now(), None::<Instant>);
    let over = std::io::stderr().is_terminal();
    loop {
        if let Some(fault) = host.fault() {
            return Err(Failure::Use(fault));
        }
        let lag = host.engine().lag();
        let is_done = lag.visible >= upto;
        let is_due = told.is_none_or(|told| over || told.elapsed() >= TOLD_EVERY);
        if is_due || is_done {
            told = Some(Instant::now());
            // Who does not read it does not miss it.
            drop(write_progress(lag.visible.min(upto), upto, began.elapsed(), over, is_done));
        }
        if is_done {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

fn write_progress(
    at: Epoch,
    upto: Epoch,
    took: Duration,
    over: bool,
    is_done: bool,
) -> std::io::Result<()> {
    let share = at as f64 / upto.max(1) as f64;
    let done = (share * BAR as f64) as usize;
    let left_s = match at {
        0 => String::new(),
        _ => format!(", {:.0} s left", took.as_secs_f64() * (1.0 - share) / share),
    };
    let bar: String = (0..BAR).map(|i| if i < done { '█' } else { '░' }).collect();
    let mut stderr = std::io::stderr();
    let (begin, end) =
        (if over { "\r\x1b[K" } else { "" }, if over && !is_done { "" } else { "\n" });
    write!(stderr, "{begin}{bar} {:3.0} %  epoch {at} of {upto}{left_s}{end}", share * 100.0)?;
    stderr.flush()
}

/// Offers what was found, has the server take it up, and waits until it shows it.
fn publish(host: &Host, remote: &Remote, config: &Config) -> Result<(), Failure> {
    let id = host.offer().map_err(|e| Failure::Use(format!("it cannot be offered: {e}")))?;
    if let Some(reason) = refused(remote) {
        let back = offer::withdraw(&config.data_dir, &config.checkpoint.store, &id);
        let back =
            back.map_or_else(|e| format!("and stays offered ({e})"), |()| "and is not".into());
        return Err(Failure::Use(format!("what was found was to be published {back}: {reason}")));
    }
    eprintln!("the server begins anew with it; what it showed last is shown meanwhile");
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        // It may not answer for a moment, and says so when it is back.
        let status = remote.get("/v1/status").unwrap_or(Value::Null);
        let replay = &status["replay"];
        if replay["shown"]["id"] == id.as_str() {
            let rows = match replay["shown"]["rowsChanged"].as_u64() {
                Some(rows) => format!("{rows} rows changed in one step"),
                None => "subscribers begin anew with it".to_owned(),
            };
            println!("published: since epoch {}, {rows}", replay["shown"]["sinceEpoch"]);
            return Ok(());
        }
        if replay["refused"]["id"] == id.as_str() {
            let reason = replay["refused"]["reason"].as_str().unwrap_or_default();
            return Err(Failure::Check(format!("the server refused it: {reason}")));
        }
        std::thread::sleep(LOOK);
    }
    Err(Failure::Check(format!(
        "the server does not show the replay {id} after {PATIENCE:?}; `replay` in /v1/status says \
         when it does"
    )))
}

/// Asks the server to take it up; why it does not. An answer that is lost may have been a yes: the
/// status tells.
fn refused(remote: &Remote) -> Option<String> {
    match remote.send("POST", "/v1/replays", "application/json", b"") {
        Ok(answer) if (400..500).contains(&answer.status) => {
            Some(format!("the server answered {} {}", answer.status, answer.body))
        }
        Ok(_) => None,
        Err(reason) => {
            eprintln!("no answer ({reason}); its status will tell");
            None
        }
    }
}

/// Prints −old +new of the first rows that are not the same; how many there are in all, of those
/// that were asked for and of all others.
fn print_changes(
    old: &verify::Views,
    new: &verify::Views,
    asked: &Filter,
    all: &Filter,
) -> Changes {
    let mut changes = Changes::default();
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let none = verify::ViewRows::new();
        let (before, after) = (old.get(name).unwrap_or(&none), new.get(name).unwrap_or(&none));
        let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for key in keys.into_iter().filter(|key| all.covers(name, key.0)) {
            let (b, a) = (before.get(key), after.get(key));
            if b == a {
                continue;
            }
            if !asked.covers(name, key.0) {
                changes.others += 1;
                continue;
            }
            changes.asked += 1;
            if changes.asked > DIFFERENCES_MAX as u64 {
                continue;
            }
            let at = format!("{name} {} {}", format_rfc3339(key.0), key.1.join(" "));
            for (sign, row) in [("-", b), ("+", a)] {
                if let Some(row) = row {
                    println!("{sign} {at} {:?} v{}", row.figures, row.version);
                }
            }
        }
    }
    if let Some(more) = changes.asked.checked_sub(DIFFERENCES_MAX as u64).filter(|&more| more > 0) {
        println!("… and {more} more");
    }
    changes
}

/// The range of rows that events from the given offsets on stand in, within what was asked for.
fn touched(command: &Replay, host: &Host) -> Result<Range, Failure> {
    let mut range = command.range.clone();
    if command.from_offset.is_empty() {
        return Ok(range);
    }
    let log = &**host.log().log();
    let mut behind = Behind::default();
    for text in &command.from_offset {
        behind.go_over(log, text)?;
    }
    if behind.foreign > 0 {
        println!(
            "{} messages from there on are no events and stand in no row; they were passed over",
            behind.foreign
        );
    }
    let earliest = behind.earliest_us;
    // A row of a day may begin a day before its event.
    let day = Granularity::Day;
    let from = earliest.map(|us| day.start(day.bucket(EventTime(us))).0);
    range.from = [range.from, from].into_iter().flatten().max();
    Ok(range)
}

/// What is in the log from some places on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Behind {
    /// The earliest event time.
    earliest_us: Option<i64>,
    /// Messages that are none of ours: of a log that others append to.
    foreign: u64,
}

impl Behind {
    /// Adds what is from a place on, which is written `PARTITION:OFFSET`.
    fn go_over(&mut self, log: &dyn Log, text: &str) -> Result<(), Failure> {
        let wrong = || Failure::Use(format!("`{text}` is no place; write PARTITION:OFFSET"));
        let (partition, offset) = text.split_once(':').ok_or_else(wrong)?;
        let partition: u16 = partition.parse().map_err(|_| wrong())?;
        let mut offset: u64 = offset.parse().map_err(|_| wrong())?;
        let end = log.ends(Topic::Events).get(usize::from(partition)).map(|end| end.offset);
        let end = end.ok_or_else(|| {
            Failure::Use(format!("there is no partition {partition} of the events topic"))
        })?;
        while offset < end {
            let frames = log
                .read(Topic::Events, partition, offset, end, READ_BYTES)
                .map_err(|e| Failure::Use(e.to_string()))?;
            for frame in &frames {
                match crate::life::earliest(frame) {
                    Ok(first) => {
                        self.earliest_us = [self.earliest_us, first].into_iter().flatten().min();
                    }
                    // No event of it is in any row, so it touches none.
                    Err(_) if log.is_shared() => self.foreign += 1,
                    Err(reason) => return Err(Failure::Internal(reason)),
                }
            }
            offset = frames.last().map_or(end, |frame| frame.next);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::epochs::tests::Shared;
    use trueup_generator::{event::Event, frames::Layout};
    use trueup_log::{Fsync, Journal, Settings, system_clock};
    use trueup_operators::{
        event::EventType,
        log::{Append, append_and_wait},
    };

    fn go_over(log: &dyn Log, places: &[&str]) -> Result<(Option<i64>, u64), Failure> {
        let mut behind = Behind::default();
        places.iter().try_for_each(|place| behind.go_over(log, place))?;
        Ok((behind.earliest_us, behind.foreign))
    }

    #[test]
    fn what_is_no_event_is_passed_over_in_a_log_that_others_append_to_and_damage_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { partitions: 1, fsync: Fsync::Never, ..Settings::default() };
        let (journal, _) = Journal::open(dir.path(), settings, system_clock()).unwrap();
        let layout = Layout { partitions: 1, key: journal.identity().hash_key };
        let frame = |at_us: i64| {
            let event = Event::new(EventType::Click, format!("e{at_us}"), at_us, "camp", "ad");
            layout.frames(&[event], at_us).remove(0)
        };
        let foreign = Append { payload: vec![7; 90].into(), ..frame(1) };
        for frame in [frame(5_000), foreign.clone(), frame(3_000), foreign, frame(4_000)] {
            append_and_wait(&journal, vec![frame]).unwrap();
        }
        let log = Shared(journal);
        assert_eq!(go_over(&log, &["0:0"]).unwrap(), (Some(3_000), 2));
        assert_eq!(go_over(&log, &["0:3"]).unwrap(), (Some(4_000), 1));
        assert_eq!(go_over(&log, &["0:4", "0:2"]).unwrap(), (Some(3_000), 1));
        assert_eq!(go_over(&log, &["0:5"]).unwrap(), (None, 0));
        for wrong in ["0", "x:0", "0:-1", "1:0"] {
            assert!(matches!(go_over(&log, &[wrong]), Err(Failure::Use(_))), "{wrong}");
        }
        // There it is damage, and nothing that others wrote.
        assert!(matches!(go_over(&log.0, &["0:0"]), Err(Failure::Internal(_))));
        assert_eq!(go_over(&log.0, &["0:4"]).unwrap(), (Some(4_000), 0));
    }
}
