//! `verify`: a way to doubt what a server shows. `replay` is the other, and mends.

use super::{Failure, remote::Remote};
use crate::{
    cli::{Range, Verify},
    config::Config,
    decided::Decided,
    host::Host,
    open_log::OpenLog,
    topology::AdJob,
    verify::{self, Comparison, Filter, Recomputed, Served, ServedEvents, VerifySettings},
};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};
use trueup_log::Identity;
use trueup_operators::{
    change::Counts,
    rollup::RollupSpec,
    time::{Epoch, Granularity},
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
fn replayed(config: &Config) -> Result<(Served, (Counts, Vec<ServedEvents>)), Failure> {
    let host = again(config, None)?;
    host.engine().catch_up(PATIENCE).map_err(Failure::Use)?;
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
pub(super) fn check_views(range: &Range, config: &Config) -> Result<(), Failure> {
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
pub(super) fn shown(remote: &Remote, config: &Config) -> Result<(Served, String), Failure> {
    Decided::new(&config.lateness(), &config.rollups)
        .check(&config.data_dir)
        .map_err(|e| Failure::Use(e.to_string()))?;
    let (epoch, dimensions, installation) = visible(remote, config).map_err(Failure::Use)?;
    let served = remote.served(&dimensions, epoch).map_err(Failure::Use)?;
    Ok((served, installation))
}

/// Rows of another installation would differ, and say nothing.
pub(super) fn check_installation(
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
pub(super) fn again(config: &Config, upto: Option<Epoch>) -> Result<Host, Failure> {
    let (job, log) = recorded(config)?;
    Host::replay(&config.data_dir, log, job, config.engine(), config.views(), upto)
        .map_err(|e| Failure::Use(e.to_string()))
}

/// The job, and the log that it is to go through again.
pub(super) fn recorded(config: &Config) -> Result<(AdJob, OpenLog), Failure> {
    let log = config.open_log_read_only().map_err(|e| Failure::Use(e.to_string()))?;
    Ok((AdJob { rollups: config.rollups.clone() }, log))
}

pub(super) fn filter(range: &Range, served: &Served) -> Filter {
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
