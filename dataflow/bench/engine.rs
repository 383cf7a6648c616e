//! ADS-1 through the engine alone: frames in memory, the job's own dataflow and views. The answer
//! is read from the views and compared with the reference before a figure is printed.

use super::{
    Bench,
    memory_log::MemoryLog,
    meter::{Cost, Meter, median},
};
use crate::{ads::AD_DIMENSIONS_MAX, engine::Engine, topology::AdJob};
use serde_json::json;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use trueup_generator::{
    ads1::{Ads1, Answer, stream_time_ms},
    frames::Layout,
};
use trueup_operators::{
    hash::HashKey,
    log::Log,
    metrics::Metrics,
    rollup::{ROWS_MAX_MAX, RollupSpec},
    symbols::Symbols,
    time::{Granularity, LogTime},
};
use trueup_sinks::{Filter, Tables, ViewSettings, Views};

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Query {
    /// One rollup by minute, no verdicts: what the peers run.
    Q1,
    /// Three tables (minute, hour, day by fewer dimensions each) and verdicts.
    Q1Three,
    /// The default rollups, nine tables, and verdicts.
    Q1Plus,
}

impl Query {
    pub(super) fn rollups(self) -> Vec<RollupSpec> {
        let table = |name, dimensions: &[&str], granularity| RollupSpec {
            granularities: vec![granularity],
            ..RollupSpec::new(name, dimensions)
        };
        let by_minute = table("q1", &["campaignId", "country", "deviceType"], Granularity::Minute);
        let mut rollups = match self {
            Query::Q1 => vec![by_minute],
            Query::Q1Three => vec![
                by_minute,
                table("publisher", &["campaignId", "publisherId"], Granularity::Hour),
                table("campaign", &["campaignId"], Granularity::Day),
            ],
            Query::Q1Plus => RollupSpec::ad_defaults(),
        };
        // ADS-1 has more keys a minute than a bucket should have; here none may fold.
        rollups.iter_mut().for_each(|rollup| rollup.rows_max = ROWS_MAX_MAX);
        rollups
    }

    pub(super) fn has_verdicts(self) -> bool {
        self != Query::Q1
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Query::Q1 => "q1",
            Query::Q1Three => "q1-three",
            Query::Q1Plus => "q1-plus",
        }
    }
}

/// Runs a query `runs` times after one that does not count, and prints each run and the median.
pub(super) fn run(bench: &Bench, query: Query) -> Result<serde_json::Value, String> {
    let ads1 = Ads1::new();
    let log = Arc::new(fill(&ads1, bench, query));
    eprintln!(
        "{}: {} events in {} epochs, {:.0} bytes an event in the log",
        query.name(),
        bench.events,
        log.epochs(),
        log.bytes() as f64 / bench.events as f64
    );
    let expected = expected(&ads1, bench.events, query);
    let mut rates = Vec::new();
    let mut cpu = Vec::new();
    let mut last = json!(null);
    for run in 0..=bench.runs {
        let (cost, answer, ledger) = once(bench, query, &log)?;
        if answer != expected {
            return Err(format!(
                "{}: the answer differs from the reference\n  is        {answer:?}\n  should be \
                 {expected:?}",
                query.name()
            ));
        }
        let millions = bench.events as f64 / 1e6;
        let rate = millions / cost.wall.as_secs_f64();
        let cpu_per_million = cost.cpu_s / millions;
        eprintln!(
            "{} run {run}: {rate:.2} M events/s, {cpu_per_million:.3} CPU s per million, peak \
             {:.0} MiB, ledger {:.1} bytes an event",
            query.name(),
            cost.peak_rss_mib,
            ledger
        );
        if run > 0 {
            rates.push(rate);
            cpu.push(cpu_per_million);
        }
        last = json!({ "peakRssMib": cost.peak_rss_mib, "ledgerBytesPerEvent": ledger });
    }
    Ok(json!({
        "bench": "ads1-engine",
        "query": query.name(),
        "events": bench.events,
        "workers": bench.workers,
        "epochEvents": bench.epoch_events,
        "runs": bench.runs,
        "millionEventsPerSecond": median(&mut rates),
        "cpuSecondsPerMillion": median(&mut cpu),
        "lastRun": last,
        "answer": format!("{expected:?}"),
    }))
}

/// The whole stream as a log.
fn fill(ads1: &Ads1, bench: &Bench, query: Query) -> MemoryLog {
    let layout = Layout { partitions: bench.partitions, key: HashKey([7; 16]) };
    let mut log = MemoryLog::new(bench.partitions);
    let mut start = 0;
    while start < bench.events {
        let end = (start + bench.epoch_events).min(bench.events);
        let mut frames = ads1.frames(start..end, &layout, 0);
        if query.has_verdicts() {
            frames.extend(ads1.verdict_frame(start..end, &layout, 0));
        }
        log.add_epoch(frames, LogTime(stream_time_ms(end) * 1_000));
        start = end;
    }
    log
}

/// One run: from the start of the workers until the last epoch is visible. What the ledger takes
/// an event, and the answer.
fn once(bench: &Bench, query: Query, log: &Arc<MemoryLog>) -> Result<(Cost, Answer, f64), String> {
    let settings = bench.engine();
    let symbols = Arc::new(Symbols::default());
    let mut view_settings =
        ViewSettings::new(settings.workers * 2, query.rollups(), settings.lateness);
    view_settings.history_bytes_max = 64 << 20;
    let views: Arc<Views<AD_DIMENSIONS_MAX, Metrics>> =
        Views::new(view_settings, Arc::clone(&symbols));
    let announced = Arc::clone(&views);
    let meter = Meter::start(std::process::id());
    let engine = Engine::start(
        AdJob { rollups: query.rollups() },
        Arc::clone(log) as Arc<dyn Log>,
        Arc::clone(&symbols),
        settings,
        |worker| [0, 1].map(|stage| Box::new(views.shard(worker * 2 + stage)) as Box<_>),
        move |times| announced.announce(times),
    )
    .map_err(|e| e.to_string())?;
    let deadline = Instant::now() + Duration::from_secs(600);
    while engine.lag().visible < log.epochs() {
        if let Some(fault) = engine.fault() {
            return Err(fault);
        }
        if Instant::now() > deadline {
            return Err(format!("epoch {} of {} after 600 s", engine.lag().visible, log.epochs()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let cost = meter.read();
    let memory = engine.memory();
    let bytes: usize = memory.iter().map(|m| m.ledger_bytes).sum();
    let events: usize = memory.iter().map(|m| m.ledger_events).sum();
    let answer = answer(&*views, query)?;
    engine.stop();
    Ok((cost, answer, bytes as f64 / events.max(1) as f64))
}

/// The reference answer.
pub(super) fn expected(ads1: &Ads1, events: u64, query: Query) -> Answer {
    match query.has_verdicts() {
        true => ads1.reference_with_verdicts(events),
        false => ads1.reference(events),
    }
}

/// Q1's five numbers, from the view that has its dimensions.
pub(super) fn answer(tables: &dyn Tables, query: Query) -> Result<Answer, String> {
    let rollup = &query.rollups()[0];
    let name = rollup.view_name(Granularity::Minute);
    let view = tables.catalog().view(&name).ok_or("the view is not there")?;
    let places = ["campaignId", "country", "deviceType"].map(|d| rollup.position(d));
    let [Some(campaign), Some(country), Some(device)] = places else {
        return Err("the rollup lacks a dimension of Q1".into());
    };
    let mut groups: HashMap<(i64, u32, u32, u32), [i64; 4]> = HashMap::new();
    let (mut epoch, mut from) = (None, None);
    loop {
        let page = tables
            .page(view.id, &Filter::default(), epoch, from, 4_096)
            .map_err(|e| e.to_string())?;
        for row in page.rows.rows() {
            let key = (row.start_us, row.key[campaign], row.key[country], row.key[device]);
            let group = groups.entry(key).or_default();
            // impressions, clicks, conversions, invalidImpressions, invalidClicks, spendMicros
            for (sum, value) in [0, 1, 4, 5].map(|i| row.values[i]).into_iter().enumerate() {
                group[sum] += value;
            }
        }
        (epoch, from) = (Some(page.at.epoch), page.next);
        if from.is_none() {
            break;
        }
    }
    let mut answer = Answer { groups: groups.len() as u64, ..Answer::default() };
    for [impressions, clicks, invalid_clicks, spend] in groups.into_values() {
        answer.impressions += impressions as u64;
        answer.clicks += clicks as u64;
        answer.invalid_clicks += invalid_clicks as u64;
        answer.spend_micros += spend as u64;
        answer.squared_impressions += (impressions * impressions) as u64;
    }
    Ok(answer)
}
