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
