//! Single rules, a case each.
use super::*;
use crate::tables::{Start, Step};
use std::ops::Range;
use trueup_operators::{
    change::{Change, Changes},
    metrics::Metrics,
    money::Nanos,
    time::LogTime,
};

const TABLE: TableId = TableId { rollup: 0, granularity: Granularity::Minute };

fn settings(workers: usize) -> ViewSettings {
    let lateness = Lateness {
        allowed_lateness_us: MINUTE_US,
        correction_horizon_us: 5 * MINUTE_US,
        future_skew_us_max: MINUTE_US,
    };
    let rollups = vec![RollupSpec::new("a", &["campaignId", "country"])];
    ViewSettings { retention_us: [MINUTE_US; 3], ..ViewSettings::new(workers, rollups, lateness) }
}

fn times(epoch: Epoch, frontier_us: i64) -> EpochTimes {
    let frontier = LogTime(frontier_us);
    EpochTimes { epoch, frontier_before: frontier, frontier, latest: frontier }
}

fn metrics(impressions: i64) -> Metrics {
    Metrics { impressions, spend: Nanos(1_500), ..Metrics::default() }
}

fn change(row: u32, key: [u32; 2], old_version: u32, old: i64, new: i64) -> Change<2, Metrics> {
    let of = |n| if n == 0 { Metrics::default() } else { metrics(n) };
    Change { row, old_version, key, old: of(old), new: of(new) }
}

fn commit(epoch: Epoch, changes: Vec<Change<2, Metrics>>) -> Commit<2, Metrics> {
    let changes = Changes { table: TABLE, bucket: Bucket(0), changes };
    let changes = if changes.changes.is_empty() { vec![] } else { vec![changes] };
    Commit { epoch, changes, incidents: vec![], counts: Counts::default(), image: None }
}

fn views(settings: ViewSettings) -> (Arc<Views<2, Metrics>>, Vec<ShardSink<2, Metrics>>) {
    let symbols = Arc::new(Symbols::default());
    for text in ["c1", "c2", "SE", "DE"] {
        symbols.intern(text);
    }
    let workers = settings.workers;
    let views = Views::new(settings, symbols);
    let sinks = (0..workers).map(|w| views.shard(w)).collect();
    (views, sinks)
}

fn rows(views: &Views<2, Metrics>, filter: &Filter, epoch: Option<Epoch>) -> Vec<(Vec<u32>, i64)> {
    let page = views.page(ViewId(0), filter, epoch, None, 100).unwrap();
    page.rows.rows().map(|r| (r.key.to_vec(), r.values[0])).collect()
}

#[test]
fn an_epoch_shows_when_it_was_announced_and_all_workers_delivered_it() {
    let (views, mut sinks) = views(settings(2));
    sinks[0].commit(commit(5, vec![change(0, [2, 4], 0, 0, 3)]));
    sinks[1].commit(commit(5, vec![]));
    assert_eq!((views.visible(), *views.watch().borrow()), (None, None));
    views.announce(times(5, 0));
    assert_eq!(views.visible().map(|t| t.epoch), Some(5));
    views.announce(times(5, 99));
    assert_eq!(views.visible(), Some(times(5, 0)), "telling it again changes nothing");
    views.announce(times(6, 1));
    sinks[1].commit(commit(6, vec![change(0, [3, 4], 0, 0, 1)]));
    assert_eq!(rows(&views, &Filter::default(), None), [(vec![2, 4], 3)]);
    sinks[0].commit(commit(6, vec![change(0, [2, 4], 1, 3, 4)]));
    assert_eq!(rows(&views, &Filter::default(), None), [(vec![2, 4], 4), (vec![3, 4], 1)]);
    assert_eq!(rows(&views, &Filter::default(), Some(5)), [(vec![2, 4], 3)]);
}

#[test]
#[should_panic(expected = "epoch 1 was committed after epoch 1")]
fn an_epoch_that_comes_twice_ends_the_run() {
    let (_views, mut sinks) = views(settings(1));
    sinks[0].commit(commit(1, vec![]));
    sinks[0].commit(commit(1, vec![]));
}

#[test]
fn a_row_number_may_go_to_another_key() {
    let (views, mut sinks) = views(settings(1));
    let keys = [[2, 4], [3, 4], [2, 5], [3, 4]];
    for (i, &key) in keys.iter().enumerate() {
        let epoch = 2 * i as u64;
        for (epoch, change) in [
            (epoch, change(0, key, 0, 0, i as i64 + 1)),
            (epoch + 1, change(0, key, 1, i as i64 + 1, 0)),
        ] {
            views.announce(times(epoch, 0));
            sinks[0].commit(commit(epoch, vec![change]));
        }
    }
    for (i, &key) in keys.iter().enumerate() {
        let epoch = 2 * i as u64;
        for campaign in ["c1", "c2"] {
            let filter = Filter { dimensions: vec![(0, campaign.into())], ..Filter::default() };
            let is_his = (campaign == "c1") == (key[0] == 2);
            let expected = if is_his { vec![(key.to_vec(), i as i64 + 1)] } else { vec![] };
            assert_eq!(rows(&views, &filter, Some(epoch)), expected);
            assert_eq!(rows(&views, &filter, Some(epoch + 1)), []);
            // Whoever follows from here to the end sees it go, and nothing else.
            let tables: Arc<dyn Tables> = views.clone();
            let mut follow = tables.follow(ViewId(0), filter, Start::After(Some(epoch))).unwrap();
            let (mut block, mut none) = (RowBlock::default(), Vec::new());
            if epoch < 7 {
                assert!(matches!(follow.step(9, &mut block, &mut none), Ok(Step::Reached(_))));
                let diffs: Vec<_> = block.rows().map(|r| (r.values[0], r.diff)).collect();
                let expected = if is_his { vec![(i as i64 + 1, -1)] } else { vec![] };
                assert_eq!(diffs, expected);
            }
        }
    }
}

/// A sum beyond the counters of a row is as exact as any other: half a micro and half a micro are
/// one, whichever of them was added after the counter had to begin anew.
#[test]
fn a_sum_that_outgrows_a_row_is_rounded_once() {
    let (views, mut sinks) = views(settings(1));
    views.announce(times(0, 0));
    let row = |number, key, clicks, nanos| Change {
        row: number,
        old_version: 0,
        key,
        old: Metrics::default(),
        new: Metrics { clicks, spend: Nanos(nanos), ..Metrics::default() },
    };
    sinks[0].commit(commit(
        0,
        vec![
            row(0, [2, 4], i32::MAX, 1_500),
            row(1, [2, 5], i32::MAX, 1_500),
            row(2, [3, 4], 1, i64::MAX),
            row(3, [3, 5], 1, i64::MAX),
        ],
    ));
    let query = SumQuery {
        rollup: 0,
        granularity: Granularity::Minute,
        buckets: Bucket(0)..Bucket(1),
        filter: Filter::default(),
        by: vec![0],
        slots: Slots::One,
        finalized_only: false,
        rows_max: 10,
        scan_rows_max: 10,
        epoch: None,
    };
    let summed = views.sum(&query).unwrap();
    let figures: Vec<_> = summed.rows.rows().map(|r| (r.values[1], r.values[5])).collect();
    let twice_the_most_nanos_in_micros = (2 * i128::from(i64::MAX) / 1_000 + 1) as i64;
    let expected = [(2 * i64::from(i32::MAX), 3), (2, twice_the_most_nanos_in_micros)];
    assert_eq!(figures, expected);
}

#[test]
fn a_state_is_a_column_and_a_bucket_leaves_at_last() {
    let (views, mut sinks) = views(settings(1));
    views.announce(times(0, 0));
    sinks[0].commit(commit(0, vec![change(0, [2, 4], 0, 0, 3), change(1, [3, 4], 0, 0, 4)]));
    let tables: Arc<dyn Tables> = views.clone();
    let mut follow = tables.follow(ViewId(0), Filter::default(), Start::Snapshot(None)).unwrap();
    let mut seen = Vec::new();
    for (epoch, minutes) in [(1, 1), (2, 2), (3, 5), (4, 6), (5, 7)] {
        let (mut block, mut none) = (RowBlock::default(), Vec::new());
        while !matches!(follow.step(9, &mut block, &mut none).unwrap(), Step::Idle) {
            seen.extend(block.rows().map(|r| (r.state.name(), r.diff)));
        }
        seen.push(("", 0));
        views.announce(times(epoch, minutes * MINUTE_US));
        sinks[0].commit(commit(epoch, vec![]));
    }
    let (mut block, mut none) = (RowBlock::default(), Vec::new());
    follow.step(9, &mut block, &mut none).unwrap();
    seen.extend(block.rows().map(|r| (r.state.name(), r.diff)));
    let both = |from, to| [(from, -1), (to, 1), (from, -1), (to, 1)];
    let mut expected = vec![("provisional", 1), ("provisional", 1), ("", 0), ("", 0)];
    expected.extend(both("provisional", "settling"));
    expected.extend([("", 0), ("", 0)]);
    expected.extend(both("settling", "final"));
    expected.extend([("", 0), ("final", -1), ("final", -1)]);
    assert_eq!(seen, expected);
    assert_eq!(rows(&views, &Filter::default(), None), []);
    assert_eq!(rows(&views, &Filter::default(), Some(4)).len(), 2);
    assert_eq!(views.kept_from_us(Granularity::Minute, times(5, 7 * MINUTE_US)), MINUTE_US);
}

#[test]
fn a_row_over_buckets_of_which_one_has_gone_is_never_summed() {
    let (views, mut sinks) = views(settings(1));
    views.announce(times(0, 0));
    let of = |bucket, changes| Changes { table: TABLE, bucket: Bucket(bucket), changes };
    let changes = (0..4).map(|b| of(b, vec![change(0, [2, 4], 0, 0, 1)])).collect();
    sinks[0].commit(Commit { changes, ..commit(0, vec![]) });
    // Bucket 0 has left the view.
    views.announce(times(1, 7 * MINUTE_US));
    sinks[0].commit(commit(1, vec![]));
    let over = |buckets: Range<i32>, slots| SumQuery {
        rollup: 0,
        granularity: Granularity::Minute,
        buckets: Bucket(buckets.start)..Bucket(buckets.end),
        filter: Filter::default(),
        by: vec![],
        slots,
        finalized_only: false,
        rows_max: 10,
        scan_rows_max: 50,
        epoch: None,
    };
    let sums = |query: &SumQuery| -> Vec<(i64, i64)> {
        let summed = views.sum(query).unwrap();
        summed.rows.rows().map(|r| (r.start_us / MINUTE_US, r.values[0])).collect()
    };
    let gone = |start_us| {
        let (granularity, kept_from_us) = (Granularity::Minute, MINUTE_US);
        Some(ReadError::NotKept { granularity, start_us, kept_from_us })
    };
    assert_eq!(sums(&over(0..4, Slots::Each)), [(1, 1), (2, 1), (3, 1)]);
    assert_eq!(views.sum(&over(0..4, Slots::One)).err(), gone(0));
    assert_eq!(sums(&over(1..4, Slots::One)), [(1, 3)]);
    let days = |starts_us| Slots::Mapped { slot_of: vec![0, 0, 1, 1], starts_us };
    assert_eq!(sums(&over(0..4, days(vec![0, 2 * MINUTE_US]))), [(2, 2)]);
    let joined = |hours: Range<i32>| {
        let buckets = Bucket(hours.start)..Bucket(hours.end);
        Slots::Joined(vec![(Granularity::Hour, buckets)])
    };
    assert_eq!(views.sum(&over(0..4, joined(1..2))).err(), gone(0));
    assert_eq!(sums(&over(1..4, joined(1..2))), [(1, 3)]);
}

#[test]
fn a_step_looks_at_a_bounded_number_of_rows() {
    let (views, mut sinks) = views(settings(1));
    let rows = 200_000_u32;
    let all = |old_version, old, new| -> Vec<Change<2, Metrics>> {
        (0..rows).map(|row| change(row, [2 + row % 2, 4], old_version, old, new)).collect()
    };
    let tables: Arc<dyn Tables> = views.clone();
    // No row is of Germany.
    let filter = Filter { dimensions: vec![(1, "DE".into())], ..Filter::default() };
    let mut follow = None;
    for (epoch, changes) in [(0, all(0, 0, 1)), (1, all(1, 1, 2))] {
        views.announce(times(epoch, 0));
        sinks[0].commit(commit(epoch, changes));
        let follow = follow.get_or_insert_with(|| {
            let start = Start::Snapshot(None);
            Arc::clone(&tables).follow(ViewId(0), filter.clone(), start).unwrap()
        });
        let (mut block, mut none, mut steps) = (RowBlock::default(), Vec::new(), 0);
        while let Step::More(_) = follow.step(2_000, &mut block, &mut none).unwrap() {
            assert!(block.is_empty());
            steps += 1;
        }
        assert_eq!(follow.at().map(|at| at.epoch), Some(epoch));
        assert!((2..=4).contains(&steps), "{steps} steps");
    }
}

#[test]
fn a_bucket_that_nobody_can_read_any_more_is_freed() {
    let (views, mut sinks) = views(settings(1));
    views.announce(times(0, 0));
    sinks[0].commit(commit(0, vec![change(0, [2, 4], 0, 0, 3)]));
    assert_eq!(views.memory().rows, 1);
    for epoch in 1..40 {
        views.announce(times(epoch, epoch as i64 * MINUTE_US));
        sinks[0].commit(commit(epoch, vec![]));
        let kept = views.first_epoch().is_some_and(|first| first < 7);
        assert_eq!(views.memory().rows, usize::from(kept), "at {epoch}");
    }
}

#[test]
fn the_newest_epochs_can_be_read_however_large_they_are() {
    let (views, mut sinks) = views(ViewSettings { history_bytes_max: 1, ..settings(1) });
    for epoch in 0..20_u64 {
        views.announce(times(epoch, 0));
        let old = epoch as i64;
        sinks[0].commit(commit(epoch, vec![change(0, [2, 4], epoch as u32, old, old + 1)]));
    }
    // The visible epoch was 18 when the last commit made room.
    assert_eq!(views.first_epoch(), Some(14));
    for epoch in 14..20 {
        let expected = vec![(vec![2, 4], epoch as i64 + 1)];
        assert_eq!(rows(&views, &Filter::default(), Some(epoch)), expected);
    }
}

#[test]
fn limits_of_a_sum_are_errors() {
    let (views, mut sinks) = views(settings(1));
    views.announce(times(0, 0));
    let changes = (0..50).map(|row| change(row, [2 + row % 2, 6 + row], 0, 0, 1)).collect();
    sinks[0].commit(commit(0, changes));
    let query = SumQuery {
        rollup: 0,
        granularity: Granularity::Minute,
        buckets: Bucket(0)..Bucket(1),
        filter: Filter::default(),
        by: vec![],
        slots: Slots::Each,
        finalized_only: false,
        rows_max: 10,
        scan_rows_max: 50,
        epoch: None,
    };
    assert_eq!(views.sum(&query).unwrap().rows.len(), 1);
    let limited = SumQuery { scan_rows_max: 49, ..query.clone() };
    assert_eq!(views.sum(&limited).err(), Some(ReadError::TooMuchToRead { scan_rows_max: 49 }));
}

#[test]
fn figures_beyond_a_rows_counters_add_up_in_a_report() {
    let (views, mut sinks) = views(settings(1));
    views.announce(times(0, 0));
    let most = Metrics { clicks: i32::MAX, spend: Nanos(1_000), ..Metrics::default() };
    let row = |row, key| Change { row, old_version: 0, key, old: Metrics::default(), new: most };
    sinks[0].commit(commit(0, vec![row(0, [2, 4]), row(1, [2, 5]), row(2, [3, 4])]));
    let query = SumQuery {
        rollup: 0,
        granularity: Granularity::Minute,
        buckets: Bucket(0)..Bucket(1),
        filter: Filter::default(),
        by: vec![],
        slots: Slots::One,
        finalized_only: false,
        rows_max: 10,
        scan_rows_max: 50,
        epoch: None,
    };
    let summed = views.sum(&query).unwrap();
    assert_eq!(summed.rows.row(0).values[1], 3 * i64::from(i32::MAX));
    assert_eq!(summed.rows.row(0).values[5], 3);
}

#[test]
fn readers_see_one_epoch_while_workers_go_on() {
    // One worker's rows go up when the other's go down, so at each epoch the sum is the same.
    let (views, sinks) = views(ViewSettings { history_bytes_max: 256 << 20, ..settings(2) });
    let stop = std::sync::atomic::AtomicBool::new(false);
    let rows = 3_000_u32;
    std::thread::scope(|scope| {
        for (worker, mut sink) in sinks.into_iter().enumerate() {
            let (views, stop) = (&views, &stop);
            let is_over = || stop.load(std::sync::atomic::Ordering::Acquire);
            scope.spawn(move || {
                for epoch in 0..Epoch::MAX {
                    // As in the dataflow, nobody is more than a few epochs ahead.
                    while views.visible().map_or(0, |t| t.epoch) + 3 < epoch && !is_over() {
                        std::thread::yield_now();
                    }
                    if is_over() {
                        return;
                    }
                    views.announce(times(epoch, 0));
                    let up = (epoch as u32).is_multiple_of(2);
                    let (old, new) = if up == (worker == 0) { (10, 20) } else { (20, 10) };
                    let old = if epoch == 0 { 0 } else { old };
                    let key = |row| [2, row % 3 + 4];
                    let changes =
                        (0..rows).map(|r| change(r, key(r), epoch as u32, old, new)).collect();
                    sink.commit(commit(epoch, changes));
                }
            });
        }
        let mut reads = 0;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while reads < 50 && std::time::Instant::now() < deadline {
            let query = SumQuery {
                rollup: 0,
                granularity: Granularity::Minute,
                buckets: Bucket(0)..Bucket(1),
                filter: Filter { dimensions: vec![(0, "c1".into())], ..Filter::default() },
                by: vec![],
                slots: Slots::One,
                finalized_only: false,
                rows_max: 10,
                scan_rows_max: u64::MAX,
                epoch: None,
            };
            match views.sum(&query) {
                Ok(summed) => {
                    reads += 1;
                    let found = summed.rows.row(0).values[0];
                    if found != i64::from(rows) * 30 {
                        // Or else the workers would never let the failure out.
                        stop.store(true, std::sync::atomic::Ordering::Release);
                    }
                    assert_eq!(found, i64::from(rows) * 30);
                }
                Err(error) => {
                    let may_be = [ReadError::NotReady, ReadError::Overtaken { tries: 3 }];
                    if !may_be.contains(&error) {
                        stop.store(true, std::sync::atomic::Ordering::Release);
                    }
                    assert!(may_be.contains(&error), "{error}");
                    std::thread::yield_now();
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Release);
        assert_eq!(reads, 50);
    });
}

#[test]
fn rows_of_more_texts_than_can_be_packed_are_sorted_too() {
    let dimensions = ["campaignId", "publisherId", "country", "deviceType"];
    let rollups = vec![RollupSpec::new("wide", &dimensions)];
    let symbols = Arc::new(Symbols::default());
    let rows = 70_000_u32;
    let keys: Vec<[u32; 4]> = (0..rows)
        .map(|i| {
            let mixed = i.wrapping_mul(7_919) % rows;
            let text = |what: &str, n: u32| symbols.intern(&format!("{what}{n:06}"));
            [text("c", 1), text("p", mixed % 50), text("n", mixed), text("d", i % 2)]
        })
        .collect();
    let views: Arc<Views<4, Metrics>> =
        Views::new(ViewSettings { rollups, ..settings(1) }, Arc::clone(&symbols));
    views.announce(times(0, 0));
    let changes = (0..rows)
        .map(|row| {
            let (old, new) = (Metrics::default(), metrics(1));
            Change { row, old_version: 0, key: keys[row as usize], old, new }
        })
        .collect();
    let changes = vec![Changes { table: TABLE, bucket: Bucket(0), changes }];
    let counts = Counts::default();
    views.shard(0).commit(Commit { epoch: 0, changes, incidents: vec![], counts, image: None });
    let query = SumQuery {
        rollup: 0,
        granularity: Granularity::Minute,
        buckets: Bucket(0)..Bucket(1),
        filter: Filter::default(),
        by: vec![0, 1, 2, 3],
        slots: Slots::Each,
        finalized_only: false,
        rows_max: usize::MAX,
        scan_rows_max: u64::MAX,
        epoch: None,
    };
    let summed = views.sum(&query).unwrap();
    let found: Vec<[Arc<str>; 4]> =
        summed.rows.rows().map(|r| [0, 1, 2, 3].map(|i| symbols.text(r.key[i]))).collect();
    assert_eq!(found.len(), rows as usize);
    assert!(found.is_sorted());
}

#[test]
fn a_sum_that_is_overtaken_again_and_again_says_so() {
    let (views, mut sinks) = views(ViewSettings { history_bytes_max: 1, ..settings(1) });
    views.announce(times(0, 0));
    sinks[0].commit(commit(0, (0..50_000).map(|r| change(r, [2, 4], 0, 0, 1)).collect()));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let query = SumQuery {
        rollup: 0,
        granularity: Granularity::Minute,
        buckets: Bucket(0)..Bucket(1),
        filter: Filter::default(),
        by: vec![],
        slots: Slots::One,
        finalized_only: false,
        rows_max: 1,
        scan_rows_max: u64::MAX,
        epoch: None,
    };
    std::thread::scope(|scope| {
        let (announced, stop) = (&views, &stop);
        let mut sink = sinks.remove(0);
        scope.spawn(move || {
            for epoch in 1.. {
                if stop.load(std::sync::atomic::Ordering::Acquire) {
                    return;
                }
                announced.announce(times(epoch, 0));
                sink.commit(commit(epoch, vec![change(0, [2, 4], epoch as u32, 1, 1)]));
            }
        });
        // Four epochs are always kept; sooner or later a sum of fifty reads does not fit into them.
        let overtaken = (0..20_000).map(|_| views.sum(&query).map(|s| s.rows.row(0).values[0]));
        let first = overtaken.into_iter().find(|sum| *sum != Ok(50_000));
        stop.store(true, std::sync::atomic::Ordering::Release);
        assert_eq!(first, Some(Err(ReadError::Overtaken { tries: 3 })));
    });
}

#[test]
fn an_epoch_that_is_held_stays_within_twice_the_bytes() {
    let (views, mut sinks) = views(ViewSettings { history_bytes_max: 20_000, ..settings(1) });
    let mut epochs = 0..;
    let mut go_on = |n| {
        for epoch in epochs.by_ref().take(n) {
            views.announce(times(epoch, 0));
            sinks[0].commit(commit(epoch, vec![change(0, [2, 4], epoch as u32, 1, 1)]));
        }
    };
    go_on(1_000);
    let spans =
        |views: &Views<2, Metrics>| views.visible().unwrap().epoch - views.first_epoch().unwrap();
    let usual = spans(&views);
    let epoch = views.visible().unwrap().epoch;
    let held = views.hold(epoch);
    go_on(usual as usize * 3 / 2);
    assert!(views.first_epoch().unwrap() <= epoch, "it is still there");
    go_on(usual as usize);
    assert!(views.first_epoch().unwrap() > epoch, "nobody holds it for ever");
    let most = views.memory().history_bytes;
    assert!((30_000..=45_000).contains(&most), "{most}");
    drop(held);
    go_on(1);
    assert!(spans(&views) <= usual + 4, "the usual bound holds again");
}

#[test]
fn what_goes_as_it_came_leaves_no_trace_in_the_digests() {
    let (views, mut sinks) = views(ViewSettings { digests: true, ..settings(1) });
    for (epoch, old, new) in [(0, 0, 3), (1, 3, 5), (2, 5, 0)] {
        views.announce(times(epoch, 0));
        sinks[0].commit(commit(epoch, vec![change(0, [2, 4], epoch as u32, old, new)]));
    }
    let hashes: Vec<u64> = (0..3).map(|e| views.epoch_hash(e).unwrap()).collect();
    assert!(hashes.iter().all(|h| *h != 0), "{hashes:?}");
    assert_eq!(hashes.iter().fold(0, |sum: u64, h| sum.wrapping_add(*h)), 0);
    assert_eq!(views.epoch_hash(3), None);
}
