//! `verify`, `replay` and `doctor`: three ways to doubt what a server shows.

use super::{Failure, checkpoints, remote::Remote};
use crate::{
    ads::AD_DIMENSIONS_MAX,
    cli::{Doctor, Range, Replay, Verify},
    config::{Config, LogKind},
    decided::Decided,
    host::Host,
    remap::{self, Cursor},
    topology::AdJob,
    verify::{
        self, Comparison, DIFFERENCES_MAX, Filter, Recomputed, Served, ServedEvents, VerifySettings,
    },
};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};
use trueup_log::{Identity, Journal, Repair};
use trueup_operators::{
    change::Counts,
    log::{Log, Topic},
    rollup::RollupSpec,
    time::{Epoch, EventTime, Granularity, format_rfc3339},
};

/// How long a replay of the whole log may take.
const PATIENCE: Duration = Duration::from_secs(4 * 3_600);

/// The dimensions of views, by their names.
type Dimensions = BTreeMap<String, Vec<String>>;

/// `trueup verify`
///
/// # Errors
/// 1 when something differs, 2 when it could not run.
pub fn verify(command: &Verify) -> Result<(), Failure> {
    let config = command.common.load()?;
    check_views(&command.range, &config)?;
    // What is served is read before the log is opened: the log then has all of it.
    let (mut served, aside, installation) = match &command.server {
        Some(url) => {
            let remote = Remote::new(url, command.token.as_deref());
            let (served, installation) = shown(&remote, &config)?;
            (served, None, Some(installation))
        }
        None => {
            let (served, aside) = replayed(&config)?;
            (served, Some(aside), None)
        }
    };
    let log = config.open_log_read_only().map_err(|e| Failure::Use(e.to_string()))?;
    check_installation(installation, log.identity(), &config)?;
    let settings = VerifySettings { lateness: config.lateness(), rollups: config.rollups.clone() };
    let recomputed = verify::recompute(&**log.log(), &settings, Some(served.epoch))
        .map_err(|e| Failure::Use(e.to_string()))?;
    if command.server.is_some() {
        // What a server no longer keeps it cannot show.
        let views = config.views();
        let kept =
            |(_, granularity, view)| (view, views.kept_from_us(granularity, recomputed.frontier));
        served.kept_from_us.extend(each_view(&config).map(kept));
    }
    let filter = filter(&command.range, &served);
    let mut comparison = verify::compare(&recomputed, &served.views, &filter);
    if let (Some((counts, events)), true) = (aside, is_everything(&command.range)) {
        verify::compare_counts(&recomputed, &counts, &mut comparison);
        verify::compare_events(&recomputed, &events, &mut comparison);
    }
    report(&comparison, &recomputed, command.json)
}

/// Everything that a replay of the whole log shows: the rows, the counts, and the events that were
/// set aside.
fn replayed(config: &Config) -> Result<(Served, (Counts, ServedEvents)), Failure> {
    let host = again(config, None)?;
    let tables = &**host.tables();
    let unreadable = |e| Failure::Use(format!("the views cannot be read: {e}"));
    let served = verify::served(tables, None).map_err(unreadable)?;
    let counts = tables.counts().map_err(unreadable)?.1;
    let events = verify::served_events(tables, None).map_err(unreadable)?;
    host.close();
    Ok((served, (counts, events)))
}

fn report(comparison: &Comparison, recomputed: &Recomputed, json: bool) -> Result<(), Failure> {
    if json {
        let counts = &recomputed.counts;
        let mut report =
            serde_json::to_value(comparison).map_err(|e| Failure::Internal(e.to_string()))?;
        report["equal"] = json!(comparison.is_equal());
        report["counts"] = json!(counts);
        println!("{report}");
    } else {
        println!("{comparison}");
    }
    if comparison.is_equal() { Ok(()) } else { Err(Failure::Check(String::new())) }
}

/// The views that are configured: the rollup and the granularity of each, and its name.
fn each_view(config: &Config) -> impl Iterator<Item = (&RollupSpec, Granularity, String)> {
    config.rollups.iter().flat_map(|rollup| {
        rollup.granularities.iter().map(move |&g| (rollup, g, rollup.view_name(g)))
    })
}

/// A view that there is not would be compared without a difference.
fn check_views(range: &Range, config: &Config) -> Result<(), Failure> {
    let known: Vec<String> = each_view(config).map(|(_, _, name)| name).collect();
    match range.view.iter().find(|view| !known.contains(view)) {
        None => Ok(()),
        Some(view) => {
            let known = known.join(", ");
            Err(Failure::Use(format!("there is no view `{view}`; there are {known}")))
        }
    }
}

/// All rows that a server shows, and the installation that it says it is.
fn shown(remote: &Remote, config: &Config) -> Result<(Served, String), Failure> {
    Decided::new(&config.lateness(), &config.rollups)
        .check(&config.data_dir)
        .map_err(|e| Failure::Use(e.to_string()))?;
    let (epoch, dimensions, installation) = visible(remote, config).map_err(Failure::Use)?;
    let served = remote.served(&dimensions, epoch).map_err(Failure::Use)?;
    Ok((served, installation))
}

/// Rows of another installation would differ, and say nothing.
fn check_installation(
    served: Option<String>,
    identity: &Identity,
    config: &Config,
) -> Result<(), Failure> {
    let own = identity.installation_hex();
    match served.filter(|served| *served != own) {
        None => Ok(()),
        Some(served) => Err(Failure::Use(format!(
            "the server is the installation {served}, {} is {own}; give the server's own \
             directory with --data",
            config.data_dir.display()
        ))),
    }
}

/// The epoch that a server shows, the dimensions of the views that it is configured with, and its
/// installation.
fn visible(remote: &Remote, config: &Config) -> Result<(Epoch, Dimensions, String), String> {
    let status = remote.get("/v1/status")?;
    let epoch = status["epoch"].as_u64().filter(|&epoch| epoch > 0);
    let epoch = epoch.ok_or_else(|| format!("the server shows no epoch yet: {status}"))?;
    let dimensions =
        each_view(config).map(|(rollup, _, name)| (name, rollup.dimensions.clone())).collect();
    let installation = status["installation"].as_str().unwrap_or_default().to_owned();
    Ok((epoch, dimensions, installation))
}

/// The log through the engine again, up to an epoch or to its last one.
fn again(config: &Config, upto: Option<Epoch>) -> Result<Host, Failure> {
    let job = AdJob { rollups: config.rollups.clone() };
    let log = config.open_log_read_only().map_err(|e| Failure::Use(e.to_string()))?;
    let host = Host::replay::<AdJob, AD_DIMENSIONS_MAX>(
        &config.data_dir,
        log,
        job,
        config.engine(),
        config.views(),
        upto,
    )
    .map_err(|e| Failure::Use(e.to_string()))?;
    host.engine().catch_up(PATIENCE).map_err(Failure::Use)?;
    Ok(host)
}

fn filter(range: &Range, served: &Served) -> Filter {
    Filter {
        from_us: range.from,
        to_us: range.to,
        views: range.view.clone(),
        kept_from_us: served.kept_from_us.clone(),
    }
}

fn is_everything(range: &Range) -> bool {
    range.from.is_none() && range.to.is_none() && range.view.is_empty()
}

/// `trueup replay --dry-run`
///
/// # Errors
/// 1 when the replay would change something, 2 when it could not run.
pub fn replay(command: &Replay) -> Result<(), Failure> {
    if !command.dry_run {
        return Err(Failure::Use(
            "only a dry run is possible: add --dry-run to see what a replay would change".into(),
        ));
    }
    let Some(url) = &command.server else {
        return Err(Failure::Use(
            "a replay is compared with what a server shows: name it with --server URL".into(),
        ));
    };
    let config = command.common.load()?;
    check_views(&command.range, &config)?;
    // What is served is read first: a server that runs is at another epoch a second later.
    let remote = Remote::new(url, command.token.as_deref());
    let (served, installation) = shown(&remote, &config)?;
    let host = again(&config, Some(served.epoch))?;
    check_installation(Some(installation), host.log().identity(), &config)?;
    let replayed = verify::served(&**host.tables(), None)
        .map_err(|e| Failure::Use(format!("the views cannot be read: {e}")))?;
    let range = touched(command, &host)?;
    host.close();
    let filter = filter(&range, &replayed);
    let changes = print_changes(&served.views, &replayed.views, &filter);
    println!("epoch {}: {changes} rows would change", replayed.epoch);
    if changes == 0 { Ok(()) } else { Err(Failure::Check(String::new())) }
}

/// Prints −old +new of the first rows that are not the same; how many there are in all.
fn print_changes(old: &verify::Views, new: &verify::Views, filter: &Filter) -> u64 {
    let mut changes = 0;
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (none, has) = (verify::ViewRows::new(), |start_us| filter.covers(name, start_us));
        let (before, after) = (old.get(name).unwrap_or(&none), new.get(name).unwrap_or(&none));
        let keys: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for key in keys.into_iter().filter(|key| has(key.0)) {
            let (b, a) = (before.get(key), after.get(key));
            if b == a {
                continue;
            }
            changes += 1;
            if changes > DIFFERENCES_MAX as u64 {
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
    if let Some(more) = changes.checked_sub(DIFFERENCES_MAX as u64).filter(|&more| more > 0) {
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
    let mut earliest: Option<i64> = None;
    for text in &command.from_offset {
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
                .read(Topic::Events, partition, offset, end, 8 << 20)
                .map_err(|e| Failure::Use(e.to_string()))?;
            for frame in &frames {
                let first = crate::life::earliest(frame).map_err(Failure::Internal)?;
                earliest = [earliest, first].into_iter().flatten().min();
            }
            offset = frames.last().map_or(end, |frame| frame.next);
        }
    }
    // A row of a day may begin a day before its event.
    let day = Granularity::Day;
    let from = earliest.map(|us| day.start(day.bucket(EventTime(us))).0);
    range.from = [range.from, from].into_iter().flatten().max();
    Ok(range)
}

/// `trueup doctor`
///
/// # Errors
/// 1 when something is not as it was written, 2 when the directory cannot be read.
pub fn doctor(command: &Doctor) -> Result<(), Failure> {
    let config = command.common.load()?;
    if config.log.kind != LogKind::Embedded {
        return Err(Failure::Use(
            "the doctor looks at embedded logs; `log.kind` is another: ask Kafka's own tools"
                .into(),
        ));
    }
    let repair = if command.repair { Repair::CutTornWrite } else { Repair::Nothing };
    let report =
        trueup_log::check(&config.data_dir, repair).map_err(|e| Failure::Use(e.to_string()))?;
    let remap = check_remap(&config);
    let checkpoints = checkpoints::look(&config, &report.installation)?;
    let torn = report.torn.as_ref().map(|torn| torn.bytes);
    let well = report.damage.is_empty()
        && remap.is_ok()
        && checkpoints.are_well
        && (torn.is_none() || report.repaired);
    let topics: Vec<_> = report
        .partitions
        .iter()
        .map(|p| {
            json!({
                "topic": p.topic.name(), "partition": p.partition, "first": p.first, "end": p.end,
                "frames": p.frames, "records": p.records,
            })
        })
        .collect();
    let damage: Vec<String> = report.damage.iter().map(|d| format!("{d:?}")).collect();
    let told = json!({
        "well": well,
        "installation": report.installation,
        "segments": report.segments.len(),
        "frames": report.frames(),
        "bytes": report.bytes(),
        "partitions": topics,
        "tornBytes": torn,
        "repaired": report.repaired,
        "damage": damage,
        "epochs": remap.as_ref().ok(),
        "remapError": remap.as_ref().err(),
        "checkpoints": checkpoints.told,
    });
    if command.json {
        println!("{told}");
    } else {
        println!("{told:#}");
    }
    if well { Ok(()) } else { Err(Failure::Check("the data directory is not well".into())) }
}

/// Whether the epochs follow one another and name only frames that are there; the last one.
fn check_remap(config: &Config) -> Result<Epoch, String> {
    let (journal, _) = Journal::open_read_only(&config.data_dir).map_err(|e| e.to_string())?;
    let (mut at, end) = (Cursor::origin(&journal), remap::end(&journal));
    while at.next < end {
        at.advance(&journal, end).map_err(|e| e.to_string())?;
    }
    let last = at.row;
    let topics = [
        (Topic::Events, &last.events),
        (Topic::Verdicts, &last.verdicts),
        (Topic::Metadata, &last.metadata),
    ];
    for (topic, uptos) in topics {
        for (partition, (upto, end)) in uptos.iter().zip(journal.ends(topic)).enumerate() {
            if upto.offset > end.offset {
                return Err(format!(
                    "epoch {} ends at offset {} of partition {partition} of {}, the log at {}",
                    last.epoch,
                    upto.offset,
                    topic.name(),
                    end.offset
                ));
            }
        }
    }
    Ok(last.epoch)
}
