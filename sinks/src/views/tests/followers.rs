//! Followers of every kind: adding up what they are given is the view.
use super::{
    model::{Line, Model, Settings, line, seeds},
    *,
};
use crate::tables::{Start, Step};
use std::collections::BTreeMap;

/// A subscriber that adds up.
struct Reader {
    view: View,
    filter: Filter,
    follow: Box<dyn Follow>,
    sum: BTreeMap<String, i64>,
    /// What came since the last epoch that was reached: dropped when the connection is cut.
    pending: Vec<(String, i64)>,
    reached: Option<Epoch>,
    rows_max: usize,
}

#[test]
fn followers_add_up_to_the_view() {
    for seed in seeds(10) {
        println!("TRUEUP_SEED={seed}");
        // Every third run keeps so little that slow readers fall out of the history.
        let history_bytes_max = if seed % 3 == 0 { 30_000 } else { 400_000 };
        let settings = Settings { seed, epochs: 160, history_bytes_max, ..Settings::default() };
        let mut model = Model::new(settings);
        let mut readers: Vec<Reader> = Vec::new();
        let (mut cuts, mut gone, mut reached) = (0, 0, 0);
        while model.deliver() {
            if model.views.visible().is_none() {
                continue;
            }
            if readers.len() < 20 {
                readers.push(begin(&mut model));
            }
            for reader in &mut readers {
                // Some are at it all the time, some seldom, some hardly ever.
                if model.random.below(reader.rows_max as u64 % 7 + 1) != 0 {
                    continue;
                }
                match step(reader, &model) {
                    Ok(arrived) => reached += usize::from(arrived),
                    Err(error) => {
                        assert!(matches!(error, ReadError::Gone { .. }), "{error}");
                        gone += 1;
                        *reader = begin(&mut model);
                        continue;
                    }
                }
                if model.random.below(5) == 0 && reader.reached.is_some() {
                    cuts += 1;
                    if resume(reader, &model).is_err() {
                        gone += 1;
                        *reader = begin(&mut model);
                    }
                }
            }
        }
        for reader in &mut readers {
            while step(reader, &model).is_ok_and(|_| reader.reached != model.visible()) {}
        }
        assert!(cuts >= 100, "only {cuts} connections were cut");
        assert!(reached >= 300, "only {reached} epochs were reached");
        assert!(seed % 3 != 0 || gone > 0, "nobody was too slow");
        println!("cut {cuts}, gone {gone}, reached {reached}");
    }
}

/// All views from one epoch to another, at whatever epoch the views are by then; with the rows that
/// leave on the way, or with their last state.
#[test]
fn views_are_brought_to_one_epoch_and_leavers_may_stay() {
    let (mut ways, mut left, mut left_unfinished) = (0, 0, 0);
    let seeds = seeds(8);
    for &seed in &seeds {
        println!("TRUEUP_SEED={seed}");
        let settings = Settings { seed, epochs: 120, ..Settings::default() };
        let mut model = Model::new(settings);
        while model.deliver() {
            let (Some(first), Some(visible)) = (model.views.first_epoch(), model.visible()) else {
                continue;
            };
            if model.random.below(8) != 0 || first == visible {
                continue;
            }
            let from = model.random.between(first, visible - 1);
            let to = model.random.between(from, visible);
            for view in model.views.catalog().views().to_vec() {
                let ViewKind::Table(table) = view.kind else { continue };
                for leavers_stay in [false, true] {
                    let sum = between(&mut model, &view, (from, to), leavers_stay);
                    let mut expected = model.table(table, to);
                    if leavers_stay {
                        let leavers = model.leavers(table, from, to);
                        let finished = model.table(table, from);
                        let is_unfinished = |line: &&Line| !finished.contains(line);
                        left += leavers.len();
                        left_unfinished += leavers.iter().filter(is_unfinished).count();
                        expected.extend(leavers);
                    }
                    expected.sort();
                    assert_eq!(sum, expected, "{view:?} from {from} to {to}");
                }
                ways += 1;
            }
        }
    }
    println!("{ways} ways, {left} rows left, {left_unfinished} of them changed before");
    // One seed alone may have next to none of the last.
    let of_many = seeds.len() == 1 || left_unfinished > 1_000;
    assert!(ways > 50 * seeds.len() && left > 50 * seeds.len() && of_many);
}

/// The rows at `from`, and the way to `to` applied to them.
fn between(
    model: &mut Model,
    view: &View,
    (from, to): (Epoch, Epoch),
    leavers_stay: bool,
) -> Vec<Line> {
    let ViewKind::Table(table) = view.kind else { unreachable!("asked for tables") };
    let mut sum: BTreeMap<Line, i64> =
        model.table(table, from).into_iter().map(|line| (line, 1)).collect();
    let tables: Arc<dyn Tables> = model.views.clone();
    let filter = Filter { leavers_stay, ..Filter::default() };
    let mut follow = tables.follow(view.id, filter, Start::Between(from, to)).unwrap();
    assert!(!follow.in_snapshot());
    let (mut rows, mut events) = (RowBlock::default(), Vec::new());
    loop {
        let rows_max = model.random.below(20) as usize + 1;
        let step = follow.step(rows_max, &mut rows, &mut events).unwrap();
        for row in rows.rows() {
            assert_eq!(row.folded, model.is_folded(&row));
            *sum.entry(line(&row)).or_default() += i64::from(row.diff);
        }
        match step {
            Step::More(at) => assert_eq!(at, model.times(to)),
            Step::Reached(at) => {
                assert_eq!(at, model.times(to));
                break;
            }
            Step::Idle => panic!("a way has an end"),
        }
    }
    sum.retain(|_, n| *n != 0);
    assert!(sum.values().all(|n| *n == 1), "{sum:?}");
    sum.into_keys().collect()
}

#[test]
fn a_way_leads_neither_back_nor_ahead_nor_to_what_is_gone() {
    let settings = Settings { history_bytes_max: 20_000, epochs: 160, ..Settings::default() };
    let mut model = Model::new(settings);
    while model.deliver() {}
    let (first, visible) = (model.views.first_epoch().unwrap(), model.visible().unwrap());
    let follow = |from, to| {
        let tables: Arc<dyn Tables> = model.views.clone();
        let follow = tables.follow(ViewId(0), Filter::default(), Start::Between(from, to));
        follow.err()
    };
    assert!(first > 0, "nothing went out of the history");
    assert_eq!(follow(first - 1, visible), Some(ReadError::Gone { epoch: first - 1, first }));
    let (epoch, ahead) = (visible + 1, ReadError::Ahead { epoch: visible + 1, visible });
    assert_eq!(follow(first, epoch), Some(ahead));
    assert_eq!(follow(visible, first), None, "it is there already");
}

fn begin(model: &mut Model) -> Reader {
    let views = model.views.catalog().views().to_vec();
    let view = views[model.random.below(views.len() as u64) as usize].clone();
    let filter = match view.kind {
        ViewKind::Table(table) => model.filter(table),
        ViewKind::Events(_) => Filter::default(),
    };
    let start = Start::Snapshot(None);
    let tables: Arc<dyn Tables> = model.views.clone();
    let follow = tables.follow(view.id, filter.clone(), start).unwrap();
    let rows_max = model.random.below(20) as usize + 1;
    let (sum, pending) = (BTreeMap::new(), Vec::new());
    Reader { view, filter, follow, sum, pending, reached: None, rows_max }
}

/// The connection breaks: what was not complete is forgotten, and the reader comes back with the
/// last epoch that it reached.
fn resume(reader: &mut Reader, model: &Model) -> Result<(), ReadError> {
    reader.pending.clear();
    let tables: Arc<dyn Tables> = model.views.clone();
    let start = Start::After(reader.reached);
    reader.follow = tables.follow(reader.view.id, reader.filter.clone(), start)?;
    Ok(())
}

/// One step. `true`: an epoch was reached, and the sum is the view.
fn step(reader: &mut Reader, model: &Model) -> Result<bool, ReadError> {
    let mut rows = RowBlock::default();
    let mut events = Vec::new();
    let step = reader.follow.step(reader.rows_max, &mut rows, &mut events)?;
    assert!(rows.len() <= reader.rows_max + 1 && events.len() <= reader.rows_max);
    reader.pending.extend(rows.rows().map(|r| (text(&line(&r)), i64::from(r.diff))));
    reader.pending.extend(events.iter().map(|(diff, i)| (format!("{i:?}"), i64::from(*diff))));
    let Step::Reached(at) = step else { return Ok(false) };
    for (row, diff) in reader.pending.drain(..) {
        let sum = reader.sum.entry(row).or_default();
        *sum += diff;
    }
    reader.sum.retain(|_, n| *n != 0);
    reader.reached = Some(at.epoch);
    assert_eq!(at, model.times(at.epoch));
    let mut expected: BTreeMap<String, i64> = BTreeMap::new();
    for row in expected_rows(reader, model, at.epoch) {
        *expected.entry(row).or_default() += 1;
    }
    assert_eq!(reader.sum, expected, "{:?} {:?} at {}", reader.view, reader.filter, at.epoch);
    Ok(true)
}

fn expected_rows(reader: &Reader, model: &Model, epoch: Epoch) -> Vec<String> {
    match reader.view.kind {
        ViewKind::Table(table) => {
            model.filtered(table, epoch, &reader.filter).iter().map(text).collect()
        }
        ViewKind::Events(fates) => {
            model.incidents(fates, epoch).0.iter().map(|(_, i)| format!("{i:?}")).collect()
        }
    }
}

fn text(line: &Line) -> String {
    format!("{line:?}")
}
