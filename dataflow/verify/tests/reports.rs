//! What the comparison says, and what is refused.

use super::*;
use trueup_operators::{
    change::Incident,
    remap::{Upto, Writer},
};

fn made() -> Made {
    let mut made = Made::new();
    made.events(at(1), &[click("a", at(0)), click("b", at(60))]).close(at(2));
    made
}

#[test]
fn equal_is_equal() {
    let recomputed = run(&made());
    let mut comparison = compare(&recomputed, &recomputed.views, &Filter::default());
    compare_counts(&recomputed, &recomputed.counts, &mut comparison);
    assert!(comparison.is_equal());
    // Two minutes, an hour and a day, for each of three rollups.
    assert_eq!(comparison.rows.values().sum::<u64>(), 12);
    assert_eq!(comparison.to_string(), "epoch 1: 12 rows of 9 views, no difference");
}

#[test]
fn every_kind_of_difference_is_named() {
    let recomputed = run(&made());
    let mut engine = recomputed.views.clone();
    engine.remove("region_day");
    engine.insert("mine_minute".into(), ViewRows::new());
    let minutes = engine.get_mut("audience_minute").unwrap();
    let (first, second) =
        (minutes.keys().next().unwrap().clone(), minutes.keys().nth(1).unwrap().clone());
    let row = minutes.get_mut(&first).unwrap();
    row.figures[5] += 1;
    row.version = 7;
    let moved = minutes.remove(&second).unwrap();
    minutes.insert(
        (second.0, vec!["cmp_9".into(), String::new(), String::new(), String::new()]),
        moved,
    );

    let comparison = compare(&recomputed, &engine, &Filter::default());
    assert_eq!(comparison.different, 5);
    let report = comparison.to_string();
    for line in [
        "audience_minute 2026-04-27T15:32:00Z campaignId=cmp_1 country=– deviceType=– \
         publisherId=–",
        "  spendMicros: engine 100001, recomputed 100000",
        "  version: engine 7, recomputed 1",
        "campaignId=cmp_1 country=– deviceType=– publisherId=–: the engine lacks the row",
        "campaignId=cmp_9 country=– deviceType=– publisherId=–: the engine has a row too many",
        "  state: engine provisional, recomputed –",
        "region_day: the engine lacks the view of 1 rows",
        "mine_minute: the engine has a view too many, of 0 rows",
        "5 DIFFERENT",
    ] {
        assert!(report.contains(line), "{line}\nin\n{report}");
    }
    let json = serde_json::to_value(&comparison).unwrap();
    assert_eq!(json["different"], 5);
    assert_eq!(json["differences"][0]["kind"], "figures");
    assert_eq!(json["differences"][0]["cells"][0]["column"], "spendMicros");
    assert_eq!(json["differences"][0]["bucketStart"], "2026-04-27T15:32:00Z");

    let only = |filter: &Filter| compare(&recomputed, &engine, filter).different;
    let views = vec!["audience_minute".to_owned()];
    assert_eq!(only(&Filter { views: views.clone(), ..Filter::default() }), 3);
    assert_eq!(only(&Filter { views: views.clone(), to_us: Some(at(60)), ..Filter::default() }), 1);
    assert_eq!(only(&Filter { views, from_us: Some(at(60)), ..Filter::default() }), 2);
    let kept_from_us = BTreeMap::from([("audience_minute".to_owned(), at(60))]);
    assert_eq!(only(&Filter { kept_from_us, ..Filter::default() }), 4);
}

#[test]
fn counts_are_compared() {
    let recomputed = run(&made());
    let mut counts = recomputed.counts;
    counts.fates[Fate::Duplicate as usize] = 3;
    let mut comparison = compare(&recomputed, &recomputed.views, &Filter::default());
    compare_counts(&recomputed, &counts, &mut comparison);
    assert_eq!(comparison.different, 1);
    assert!(comparison.to_string().contains("counts\n  duplicate: engine 3, recomputed 0"));
}

#[test]
fn events_that_were_set_aside_are_compared_one_by_one() {
    let mut newer = click("v2", at(0));
    newer.optional.schema_version = Some(2);
    let mut made = Made::new();
    let edge = at(60) + 10 * MINUTE_US;
    made.events(at(1), &[newer]).close(at(1)).events(edge, &[click("late", at(0))]).close(edge);
    let recomputed = run(&made);
    let fates = [Fate::TooLate, Fate::Quarantined].into_iter();
    let incidents = fates.flat_map(|fate| recomputed.asides.newest(fate)).map(|aside| {
        let SetAside { fate, position, log_time, .. } = *aside;
        Incident { fate, position, log_time }
    });
    let of =
        |incident: Incident| ServedEvents { fate: incident.fate, events: vec![incident], total: 1 };
    let engine: Vec<_> = incidents.map(of).collect();
    let report = |engine: &[ServedEvents]| {
        let mut comparison = compare(&recomputed, &recomputed.views, &Filter::default());
        compare_events(&recomputed, engine, &mut comparison);
        (comparison.different, comparison.to_string())
    };
    assert_eq!(report(&engine).0, 0);
    // It keeps only the newest: what it does not list any more is no difference.
    let mut newest = engine.clone();
    newest[1].events.clear();
    assert_eq!(report(&newest).0, 0);
    let mut lost = newest;
    lost[1].total = 0;
    let (different, text) = report(&lost);
    assert_eq!(different, 2, "the number, and the event");
    assert!(text.contains("unknown_schema_version\n  events: engine 0, recomputed 1"), "{text}");
    assert!(text.contains("quarantine offset=0 partition="), "{text}");
    assert!(
        text.contains("fate: engine –, recomputed unknown_schema_version at 2026-04-27T15:32:01Z")
    );
    let mut wrong = engine.clone();
    wrong[0].events[0].fate = Fate::Conflict;
    wrong[1].events[0].position.row = 9;
    let (different, text) = report(&wrong);
    assert_eq!(different, 3, "another fate, one too many, one missing");
    assert!(
        text.contains("fate: engine id_conflict at 2026-04-27T15:43:00Z, recomputed too_late at")
    );
    assert!(text.contains("row=9 topic=events: the engine has a row too many"), "{text}");
}

#[test]
fn differences_are_bounded_and_counted() {
    let mut recomputed = run(&made());
    let rows = recomputed.views.get_mut("audience_minute").unwrap();
    let row = *rows.values().next().unwrap();
    for n in 0..DIFFERENCES_MAX as i64 + 5 {
        rows.insert((at(60 * n), vec![format!("cmp_{n}")]), row);
    }
    let engine = Views::from([("audience_minute".to_owned(), ViewRows::new())]);
    let filter = Filter { views: vec!["audience_minute".into()], ..Filter::default() };
    let comparison = compare(&recomputed, &engine, &filter);
    assert_eq!(comparison.different, DIFFERENCES_MAX as u64 + 7);
    assert_eq!(comparison.differences.len(), DIFFERENCES_MAX);
    assert!(comparison.to_string().contains("… and 9957 more"));
}

#[test]
fn is_as_of_the_epoch_that_was_asked_for() {
    let mut made = made();
    made.events(at(70), &[click("c", at(0))]).close(at(70));
    let spend = |upto| {
        let recomputed = recompute(&made.log, &settings(), upto).unwrap();
        figures(&recomputed)[5]
    };
    assert_eq!((spend(Some(1)), spend(Some(2)), spend(None)), (100_000, 200_000, 200_000));
    assert!(
        recompute(&made.log, &settings(), Some(0)).unwrap().views["audience_minute"].is_empty()
    );
    let error = recompute(&made.log, &settings(), Some(3)).unwrap_err().to_string();
    assert_eq!(error, "epoch 3 is not in the log, which ends with epoch 2");
}

#[test]
fn an_empty_log_has_no_rows() {
    let recomputed = run(&Made::new());
    assert_eq!((recomputed.epoch, recomputed.views.len()), (0, 9));
    assert!(recomputed.views.values().all(ViewRows::is_empty));
}

#[test]
fn what_cannot_be_recomputed_is_refused() {
    let error = |made: &Made| recompute(&made.log, &settings(), None).unwrap_err().to_string();

    let mut deleted = made();
    deleted.log.deleted = 3;
    assert!(error(&deleted).contains("events partition 0 begins at offset 3"));

    let mut damaged = made();
    let frame = &mut damaged.log.frames.get_mut(&(Topic::Events, 0)).unwrap()[0];
    frame.payload = b"no arrow".to_vec().into();
    assert!(error(&damaged).starts_with("events partition 0 offset 0: "));

    let mut miscounted = made();
    miscounted.log.frames.get_mut(&(Topic::Events, 0)).unwrap()[0].records += 1;
    assert!(error(&miscounted).contains("its header says"));

    let mut gap = made();
    let upto = Upto { offset: 1, log_time: LogTime(at(9)) };
    let row = |epoch, events| RemapRow {
        epoch,
        writer: Writer::default(),
        begins: false,
        events,
        verdicts: vec![upto],
        metadata: vec![upto],
    };
    gap.remap(row(3, vec![upto; 2]));
    assert!(error(&gap).contains("has epoch 3 where epoch 2 belongs"));
    let mut fewer = made();
    fewer.remap(row(2, vec![upto]));
    assert!(error(&fewer).contains("partitions are missing"));
    let mut back = made();
    back.remap(row(2, vec![Upto { log_time: LogTime(0), ..upto }; 2]));
    assert!(error(&back).contains("goes back"));
    let mut beyond = made();
    beyond.remap(row(2, vec![Upto { offset: 99, ..upto }; 2]));
    assert!(error(&beyond).starts_with("events cannot be read: "));
    let mut verdicts = made();
    verdicts.verdicts(at(3), &[]).close(at(3));
    verdicts.log.frames.get_mut(&(Topic::Verdicts, 0)).unwrap()[0].payload = b"{}".to_vec().into();
    assert!(error(&verdicts).contains("is no array of verdicts"));
}

#[test]
fn a_rollup_that_events_cannot_fill_is_refused() {
    let mut settings = settings();
    settings.rollups = vec![RollupSpec::new("a", &["campaignId", "colour"])];
    let error = recompute(&made().log, &settings, None).unwrap_err().to_string();
    assert_eq!(error, "rollup `a` names the dimension `colour`, which events do not have");
    let five = ["campaignId", "adId", "country", "region", "deviceType"];
    settings.rollups = vec![RollupSpec::new("a", &five)];
    let error = recompute(&made().log, &settings, None).unwrap_err().to_string();
    assert_eq!(error, "rollup `a` has 5 dimensions, 4 are the most");
}
