//! `verify`: a way to doubt what a server shows. `replay` is the other, and mends.

use super::{
    Failure,
    remote::{Refused, Remote, of_one_epoch},
};
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
/// How many events came to which end, and those that did not count.
type Aside = (Counts, Vec<ServedEvents>);

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
            let installation = installation_of(&remote, &config)?;
            let (served, aside) = match is_everything(&command.range) {
                true => all_shown(&remote, &config).map(|(served, aside)| (served, Some(aside)))?,
                false => (rows_shown(&remote, &config)?, None),
            };
            (served, aside, Some(installation))
        }
        None => {
            let (served, aside) = replayed(&config)?;
            (served, Some(aside).filter(|_| is_everything(&command.range)), None)
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
    if let Some((counts, events)) = aside {
        verify::compare_counts(&recomputed, &counts, &mut comparison);
        verify::compare_events(&recomputed, &events, &mut comparison);
    }
    report(&comparison, &recomputed, command.json)
}

/// Everything that a replay of the whole log shows.
fn replayed(config: &Config) -> Result<(Served, Aside), Failure> {
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
    let installation = installation_of(remote, config)?;
    Ok((rows_shown(remote, config)?, installation))
}

fn rows_shown(remote: &Remote, config: &Config) -> Result<Served, Failure> {
    let dimensions = dimensions(config);
    of_one_epoch(|| remote.served(&dimensions, visible(remote)?)).map_err(Failure::Use)
}

/// Everything that a server shows, all as of one epoch.
fn all_shown(remote: &Remote, config: &Config) -> Result<(Served, Aside), Failure> {
    let dimensions = dimensions(config);
    of_one_epoch(|| {
        let (epoch, counts) = remote.counts()?;
        let events = remote.served_events(epoch)?;
        Ok((remote.served(&dimensions, epoch)?, (counts, events)))
    })
    .map_err(Failure::Use)
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

/// The epoch that a server shows.
fn visible(remote: &Remote) -> Result<Epoch, Refused> {
    let status = remote.ask("/v1/status")?;
    let epoch = status["epoch"].as_u64().filter(|&epoch| epoch > 0);
    epoch.ok_or_else(|| Refused::Other(format!("the server shows no epoch yet: {status}")))
}

/// The dimensions of the views that a server is configured with.
fn dimensions(config: &Config) -> Dimensions {
    each_view(config).map(|(rollup, _, name)| (name, rollup.dimensions.clone())).collect()
}

/// The installation that a server says it is. What decides figures is to be as it was.
fn installation_of(remote: &Remote, config: &Config) -> Result<String, Failure> {
    Decided::new(&config.lateness(), &config.rollups)
        .check(&config.data_dir)
        .map_err(|e| Failure::Use(e.to_string()))?;
    let status = remote.get("/v1/status").map_err(Failure::Use)?;
    Ok(status["installation"].as_str().unwrap_or_default().to_owned())
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
