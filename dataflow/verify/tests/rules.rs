//! The rules: what counts, what does not, what a verdict does, when an id is forgotten.

use super::*;

#[test]
fn the_example_of_the_requirements() {
    let place = |mut event: Event| {
        event.campaign_id = "camp_4821".into();
        event.optional.publisher_id = Some("pub_17".into());
        event.optional.country = Some("US".into());
        event.optional.price_micros = Some(180_000);
        event
    };
    let mut events: Vec<Event> = (0..124_400)
        .map(|n| place(impression(&format!("i{n}"), &format!("im{n}"), at(n % 60))))
        .collect();
    events.extend((0..1_821 + 17).map(|n| place(click(&format!("c{n}"), at(n % 60)))));
    let invalid: Vec<Verdict> = (0..17).map(|n| by_id(&format!("c{n}"), true, at(70))).collect();
    let mut made = Made::new();
    made.events(at(60), &events).close(at(61)).verdicts(at(90), &invalid).close(at(91));
    let recomputed = run(&made);

    let dimensions = ["camp_4821", "pub_17", "US", ""].map(str::to_owned).to_vec();
    let row = recomputed.views["audience_minute"][&(minute_0(), dimensions)];
    // 1,821 clicks of 180,000 micros each; the price of an impression counts nothing per click.
    assert_eq!(row.figures, [124_400, 1_821, 0, 0, 17, 327_780_000]);
    assert_eq!((row.version, row.state), (2, BucketState::Provisional));
    assert_eq!(recomputed.views.len(), 9);
    assert_eq!(recomputed.counts.fates, [126_238, 0, 0, 0, 0]);
    assert_eq!(recomputed.counts.retractions, 17);
}

#[test]
fn copies_and_contradictions_count_once() {
    let other_price = |id: &str| {
        let mut event = click(id, at(0));
        event.optional.price_micros = Some(1);
        event
    };
    let mut made = Made::new();
    made.events(
        at(5),
        &[click("a", at(0)), click("b", at(0)), click("a", at(0)), other_price("b")],
    )
    .close(at(6))
    .events(at(7), &[click("b", at(0)), other_price("a"), click("c", at(59))])
    .close(at(8));
    let recomputed = run(&made);
    assert_eq!(figures(&recomputed), [0, 3, 0, 0, 0, 300_000]);
    assert_eq!(recomputed.counts.fates, [3, 2, 2, 0, 0]);
    let conflicts: Vec<&str> =
        recomputed.asides.newest(Fate::Conflict).map(|aside| aside.event_id.as_str()).collect();
    assert_eq!(conflicts, ["b", "a"]);
    assert_eq!(recomputed.asides.total(Fate::Quarantined), 0);
    let copies: Vec<_> = recomputed
        .asides
        .newest(Fate::Duplicate)
        .map(|aside| (aside.fate, aside.event_id.as_str(), aside.log_time))
        .collect();
    assert_eq!(
        copies,
        [(Fate::Duplicate, "a", LogTime(at(5))), (Fate::Duplicate, "b", LogTime(at(7)))]
    );
}

#[test]
fn an_unknown_version_is_quarantined_and_not_remembered() {
    let mut newer = click("a", at(0));
    newer.optional.schema_version = Some(2);
    let mut made = Made::new();
    made.events(at(5), &[newer.clone(), click("b", at(0)), newer, click("a", at(0))]).close(at(6));
    let recomputed = run(&made);
    assert_eq!(recomputed.counts.fates, [2, 0, 0, 2, 0]);
    assert_eq!(figures(&recomputed), [0, 2, 0, 0, 0, 200_000]);
    let position = Position { partition: 0, offset: 0, row: 0 };
    let mut quarantined = recomputed.asides.newest(Fate::Quarantined);
    let SetAside { fate, position: found, log_time, .. } = quarantined.next().unwrap();
    assert_eq!(
        (*fate, found.offset, *log_time),
        (Fate::Quarantined, position.offset, LogTime(at(5)))
    );
}

#[test]
fn late_counts_and_too_late_does_not_to_the_microsecond() {
    let edge = at(60) + 10 * MINUTE_US;
    let mut made = Made::new();
    made.events(at(60) - 1, &[click("in_time", at(0))])
        .close(at(60) - 1)
        .events(at(60), &[click("late", at(59))])
        .close(at(60))
        .events(edge - 1, &[click("just", at(0))])
        .close(edge - 1)
        .events(edge, &[click("too_late", at(59)), click("too_late", at(59))])
        .close(edge)
        .events(edge + 1, &[click("too_late", at(59))])
        .close(edge + 1);
    let recomputed = run(&made);
    assert_eq!(figures(&recomputed), [0, 3, 0, 0, 0, 300_000]);
    assert_eq!(recomputed.counts.fates, [3, 2, 0, 0, 1]);
    assert_eq!(recomputed.counts.late, 2);
    let late: Vec<_> = recomputed.asides.newest(Fate::TooLate).map(|a| a.log_time).collect();
    assert_eq!(late, [LogTime(edge)]);
    // The minute decides for the hour as well.
    let hour = parse_rfc3339("2026-04-27T15:00:00Z").unwrap();
    assert_eq!(row(&recomputed, "audience_hour", hour).figures[1], 3);
}

#[test]
fn what_is_further_ahead_than_may_be_is_set_aside_and_the_distant_past_is_too_late() {
    let furthest = at(5) + settings().lateness.future_skew_us_max;
    let ahead = [furthest + 1, at(5) + (MINUTE_US << 32), i64::MAX].map(|t| click("ahead", t));
    let past = [-1, at(5) - (MINUTE_US << 32), i64::MIN];
    let past: Vec<Event> = past.iter().map(|&t| click(&format!("past{t}"), t)).collect();
    let mut made = Made::new();
    made.events(at(5), &[click("furthest", furthest)]).events(at(5), &ahead).events(at(5), &past);
    made.close(at(6)).events(at(7), &[click("ahead", at(0))]).close(at(8));
    let recomputed = run(&made);
    assert_eq!(recomputed.counts.fates, [2, 0, 0, 3, 3]);
    // Each of the two stands in a minute of its own.
    assert_eq!(figures(&recomputed), [0, 1, 0, 0, 0, 100_000]);
    let total = |fate| recomputed.asides.total(fate);
    assert_eq!((total(Fate::Quarantined), total(Fate::TooLate)), (3, 3));
}

#[test]
fn prices_are_paid_on_their_basis_and_rounded_when_read() {
    let priced = |kind, id: &str, micros, basis| {
        let mut event = Event::new(kind, id, at(0), "cmp_1", "ad_1");
        event.optional.price_micros = Some(micros);
        event.optional.price_basis = basis;
        event
    };
    use EventType::{Click, Conversion, Impression};
    use PriceBasis::{Cpa, Cpc, Cpm};
    let mut made = Made::new();
    // Three impressions of 1,500 a thousand: 4,500 nanos, which is 4 micros, half to even.
    let shown: Vec<Event> =
        (0..3).map(|n| priced(Impression, &format!("i{n}"), 1_500, Some(Cpm))).collect();
    made.events(at(1), &shown).close(at(2));
    assert_eq!(figures(&run(&made)), [3, 0, 0, 0, 0, 4]);
    // One more: 6,000 nanos.
    made.events(at(3), &[priced(Impression, "i3", 1_500, Some(Cpm))]).close(at(4));
    assert_eq!(figures(&run(&made)), [4, 0, 0, 0, 0, 6]);
    // Paid: 7 for the click and 11 for the conversion. Not paid: everything on another basis.
    made.events(
        at(5),
        &[
            priced(Click, "c0", 7, None),
            priced(Click, "c1", 1_000, Some(Cpm)),
            priced(Click, "c2", 1_000, Some(Cpa)),
            priced(Conversion, "v0", 11, Some(Cpa)),
            priced(Conversion, "v1", 1_000, Some(Cpc)),
            priced(Impression, "i4", 1_000, None),
        ],
    );
    made.close(at(6));
    assert_eq!(figures(&run(&made)), [5, 3, 2, 0, 0, 24]);
}

#[test]
fn the_latest_decision_wins_and_of_two_the_later_arrival() {
    let mut made = Made::new();
    made.events(at(1), &[click("a", at(0)), click("b", at(0))]).close(at(2));
    // Judged in one epoch, in the wrong order: the latest decision says invalid.
    made.verdicts(at(3), &[by_id("a", true, 9), by_id("a", false, 8)]).close(at(3));
    assert_eq!(figures(&run(&made)), [0, 1, 0, 0, 1, 100_000]);
    // An older decision changes nothing; an equal one that comes later does.
    made.verdicts(at(4), &[by_id("a", false, 8)]).close(at(4));
    assert_eq!(figures(&run(&made)), [0, 1, 0, 0, 1, 100_000]);
    made.verdicts(at(5), &[by_id("a", false, 9)]).close(at(5));
    let recomputed = run(&made);
    assert_eq!(figures(&recomputed), [0, 2, 0, 0, 0, 200_000]);
    assert_eq!((recomputed.counts.verdicts, recomputed.counts.retractions), (4, 2));
    // There and back within an epoch is no change: versions 1 (came), 2 (out), 3 (in).
    made.verdicts(at(6), &[by_id("b", true, 20), by_id("b", false, 21)]).close(at(6));
    let recomputed = run(&made);
    assert_eq!(row(&recomputed, "audience_minute", minute_0()).version, 3);
    assert_eq!(recomputed.counts.retractions, 2);
}

#[test]
fn verdicts_on_the_event_and_on_its_impression_stand_side_by_side() {
    let mut clicked = click("c", at(0));
    clicked.optional.impression_id = Some("im".into());
    let mut bought = Event::new(EventType::Conversion, "v", at(0), "cmp_1", "ad_1");
    bought.optional.impression_id = Some("im".into());
    let mut made = Made::new();
    made.events(at(1), &[impression("i", "im", at(0)), clicked, bought]).close(at(1));
    assert_eq!(figures(&run(&made)), [1, 1, 1, 0, 0, 100_000]);
    // The impression and its click go, the conversion stays.
    made.verdicts(at(2), &[by_impression("im", true, 5)]).close(at(2));
    assert_eq!(figures(&run(&made)), [0, 0, 1, 1, 1, 0]);
    // A verdict on the click says valid: the impression's still says invalid.
    made.verdicts(at(3), &[by_id("c", false, 9)]).close(at(3));
    assert_eq!(figures(&run(&made)), [0, 0, 1, 1, 1, 0]);
    // Now the click is invalid by itself, and its impression is reinstated.
    made.verdicts(at(4), &[by_id("c", true, 10), by_impression("im", false, 6)]).close(at(4));
    let recomputed = run(&made);
    assert_eq!(figures(&recomputed), [1, 0, 1, 0, 1, 0]);
    assert_eq!(recomputed.counts.retractions, 3);
    // A click that comes later belongs to the impression too; another id does not.
    let mut later = click("c2", at(0));
    later.optional.impression_id = Some("im".into());
    made.verdicts(at(5), &[by_impression("im", true, 11), by_impression("c2", true, 11)]);
    made.close(at(5)).events(at(6), &[later]).close(at(6));
    assert_eq!(figures(&run(&made)), [0, 0, 1, 1, 2, 0]);
}

#[test]
fn a_verdict_may_come_before_its_event() {
    let mut made = Made::new();
    made.verdicts(at(1), &[by_id("a", true, 7), by_id("b", true, 7)])
        .close(at(1))
        .verdicts(at(2), &[by_id("b", false, 8)])
        .close(at(2))
        .events(at(3), &[click("a", at(0)), click("b", at(0))])
        .close(at(3));
    let recomputed = run(&made);
    assert_eq!(figures(&recomputed), [0, 1, 0, 0, 1, 100_000]);
    // They were never valid, so nothing was retracted.
    assert_eq!(recomputed.counts.retractions, 0);
    assert_eq!(row(&recomputed, "audience_minute", minute_0()).version, 1);
}

#[test]
fn an_event_that_the_collector_took_as_invalid_can_be_reinstated() {
    let mut bot = click("a", at(0));
    bot.optional.invalid_reason = Some("known_bot".into());
    let mut made = Made::new();
    made.events(at(1), &[bot.clone()]).close(at(1));
    assert_eq!(figures(&run(&made)), [0, 0, 0, 0, 1, 0]);
    // The verdict on its id decides, however long ago it was made.
    made.verdicts(at(2), &[by_id("a", false, i64::MIN)]).close(at(2));
    assert_eq!(figures(&run(&made)), [0, 1, 0, 0, 0, 100_000]);
    bot.event_id = "b".into();
    made.verdicts(at(3), &[by_id("b", false, 0)]).close(at(3)).events(at(4), &[bot]).close(at(4));
    assert_eq!(figures(&run(&made)), [0, 2, 0, 0, 0, 200_000]);
}

#[test]
fn a_verdict_after_the_horizon_changes_nothing() {
    let edge = at(60) + 10 * MINUTE_US;
    let mut made = Made::new();
    made.events(at(1), &[click("a", at(0)), click("b", at(0)), click("c", at(60))]).close(at(1));
    made.verdicts(edge - 1, &[by_id("a", true, 1)]).close(edge - 1);
    made.verdicts(edge, &[by_id("b", true, 1), by_id("c", true, 1)]).close(edge);
    let recomputed = run(&made);
    assert_eq!(figures(&recomputed), [0, 1, 0, 0, 1, 100_000]);
    // The minute of the third was not final.
    assert_eq!(row(&recomputed, "audience_minute", at(60)).figures, [0, 0, 0, 0, 1, 0]);
    assert_eq!((recomputed.counts.retractions, recomputed.counts.verdicts_too_late), (2, 1));
    // One that was in time is overruled by none that was not.
    made.verdicts(edge + 1, &[by_id("a", false, 5)]).close(edge + 1);
    assert_eq!(figures(&run(&made)), [0, 1, 0, 0, 1, 100_000]);
}

#[test]
fn of_waiting_verdicts_the_latest_in_time_counts() {
    // Two partitions: the verdicts' log time runs ahead of the events'.
    let edge = at(60) + 10 * MINUTE_US;
    let mut made = Made::new();
    made.verdicts(edge - 5, &[by_id("a", true, 1)]).verdicts(edge, &[by_id("a", false, 2)]);
    let upto = |offset, log_time| Upto { offset, log_time: LogTime(log_time) };
    made.remap(RemapRow {
        epoch: 1,
        events: vec![upto(0, edge - 9); 2],
        verdicts: vec![upto(2, edge)],
        ..RemapRow::origin(2, 1, 1)
    });
    made.events(edge - 3, &[click("a", at(0))]).close(edge + 1);
    let recomputed = run(&made);
    assert_eq!(figures(&recomputed), [0, 0, 0, 0, 1, 0]);
    assert_eq!(recomputed.counts.verdicts_too_late, 1);
}

#[test]
fn an_id_is_forgotten_when_no_copy_can_count_any_more() {
    let mut made = Made::new();
    made.events(at(0), &[click("a", at(0))]).close(at(0));
    let lateness = settings().lateness;
    // Retention is 16 minutes, a slice 15 s; 64 slices and the one that is under way.
    assert_eq!(lateness.retention_us(), 16 * MINUTE_US);
    assert_eq!(lateness.slice_us(), 15 * SECOND_US);
    let gone = at(65 * 15);
    made.close(gone - 1).events(gone, &[click("a", at(0))]).close(gone);
    let recomputed = run(&made);
    assert_eq!(recomputed.counts.fates, [1, 1, 0, 0, 0], "frontier before is in slice 64");
    made.events(gone + 1, &[click("a", at(0))]).close(gone + 1);
    let recomputed = run(&made);
    assert_eq!(recomputed.counts.fates, [1, 1, 0, 0, 1], "forgotten, and too late by itself");
}

#[test]
fn a_verdict_is_forgotten_like_an_id() {
    let judged = |gone: i64| {
        let mut made = Made::new();
        made.verdicts(at(0), &[by_id("a", true, 100)]).close(at(0)).close(gone);
        // Events from the future are the collector's to refuse; here one shows that the verdict
        // before it is not there any more.
        made.events(gone, &[click("a", gone)]).close(gone + 1);
        let minute = gone.div_euclid(MINUTE_US) * MINUTE_US;
        row(&run(&made), "audience_minute", minute).figures
    };
    assert_eq!(judged(at(65 * 15) - 1), [0, 0, 0, 0, 1, 0]);
    assert_eq!(judged(at(65 * 15)), [0, 1, 0, 0, 0, 100_000]);
}

#[test]
fn a_bucket_settles_and_becomes_final_by_log_time() {
    let mut made = Made::new();
    made.events(at(1), &[click("a", at(0))]).close(at(1));
    let state = |made: &Made| row(&run(made), "audience_minute", minute_0()).state;
    assert_eq!(state(&made), BucketState::Provisional);
    made.close(at(180) - 1);
    assert_eq!(state(&made), BucketState::Provisional);
    made.close(at(180));
    assert_eq!(state(&made), BucketState::Settling);
    made.close(at(660) - 1);
    assert_eq!(state(&made), BucketState::Settling);
    made.close(at(660));
    assert_eq!(state(&made), BucketState::Final);
    let hour = parse_rfc3339("2026-04-27T15:00:00Z").unwrap();
    assert_eq!(row(&run(&made), "audience_hour", hour).state, BucketState::Provisional);
}

#[test]
fn a_full_bucket_folds_and_totals_stay_exact() {
    let mut settings = settings();
    settings.rollups = vec![RollupSpec {
        granularities: vec![Granularity::Minute],
        rows_max: 64,
        ..RollupSpec::new("few", &["campaignId", "country"])
    }];
    let placed = |n: i64| {
        let mut event = click(&format!("e{n}"), at(0));
        event.campaign_id = format!("cmp_{}", n % 2);
        event.optional.country = Some(format!("country_{n}"));
        event
    };
    let events: Vec<Event> = (0..500).map(placed).collect();
    let mut made = Made::new();
    made.events(at(1), &events).close(at(1));
    let invalid: Vec<Verdict> = (0..500).map(|n| by_id(&format!("e{n}"), true, 1)).collect();
    made.verdicts(at(2), &invalid[..250]).close(at(2));
    let recomputed = recompute(&made.log, &settings, None).unwrap();
    let rows = &recomputed.views["few_minute"];
    // 500 keys over 64 shares of one row each: none stays empty but by a chance of 64·e⁻⁸.
    let others = rows.keys().filter(|key| key.1[1] == "(other)").count();
    assert!((62..=64).contains(&(rows.len() - others)) && others == 2, "{}", rows.len());
    let total = |column: usize| rows.values().map(|row| row.figures[column]).sum::<i64>();
    assert_eq!((total(1), total(4), total(5)), (250, 250, 25_000_000));
    let kept = (rows.len() - others) as u64;
    // All that did not stay in the first epoch, then those of them that were judged.
    assert!(recomputed.counts.folded >= 500 - kept + 250 - kept);

    // Which rows stay does not depend on the order of arrival within an epoch.
    let mut reversed = Made::new();
    reversed.events(at(1), &events.iter().rev().cloned().collect::<Vec<_>>()).close(at(1));
    reversed.verdicts(at(2), &invalid[..250]).close(at(2));
    assert_eq!(recompute(&reversed.log, &settings, None).unwrap().views, recomputed.views);
    // A key that folded once folds for ever, in the bucket in which it did.
    made.verdicts(at(3), &invalid).close(at(3));
    let after = recompute(&made.log, &settings, None).unwrap();
    assert_eq!(after.views["few_minute"].len(), rows.len());
    let figures = after.views["few_minute"].values().map(|row| row.figures);
    assert_eq!(figures.map(|f| (f[1], f[4])).fold((0, 0), |a, f| (a.0 + f.0, a.1 + f.1)), (0, 500));
}
