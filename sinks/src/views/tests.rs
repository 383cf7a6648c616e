//! The views against a model that keeps every epoch whole: random commits on one to four workers at
//! different paces, with rows that die, come back and change numbers.
//!
//! * `reads_*`: every read of every readable epoch yields what the model has.
//! * `followers_*`: a snapshot and the differences after it add up to the view at each epoch that a
//!   follower reaches, whoever is slow, filtered, cut off or resumed.
//! * `images`: what a chain of images holds is what a whole one holds, and views that were loaded
//!   go on as if they had never stopped, whoever reads meanwhile.
//! * the rest: single rules with a case each.
//!
//! A failing run prints its seed; `TRUEUP_SEED=<seed>` runs that one alone.
#![allow(clippy::unwrap_used)]

mod followers;
mod images;
mod model;
mod rules;

use super::*;
use crate::{
    catalog::{LATE_FATES, QUARANTINE_FATES},
    tables::Slots,
};
use model::{Model, Settings, seeds};

#[test]
fn reads_at_every_epoch_are_the_models() {
    for seed in seeds(12) {
        println!("TRUEUP_SEED={seed}");
        let mut model = Model::new(Settings { seed, epochs: 60, ..Settings::default() });
        while model.deliver() {
            check_newest(&mut model);
            let first = model.views.first_epoch();
            if let (Some(first), Some(visible)) = (first, model.views.visible()) {
                let epoch = model.random.between(first, visible.epoch);
                check_tables(&mut model, epoch);
                check_sums(&mut model, epoch);
                check_incidents(&mut model, epoch);
            }
        }
        assert!(model.delivered_all());
    }
}

fn check_newest(model: &mut Model) {
    let expected = model.visible();
    assert_eq!(model.views.visible().map(|t| t.epoch), expected);
    let Some(epoch) = expected else {
        assert_eq!(model.views.counts().err(), Some(ReadError::NotReady));
        return;
    };
    assert_eq!(model.views.counts().unwrap().1, model.counts(epoch));
    let rows = model.views.row_counts().unwrap().1;
    for view in model.views.catalog().views() {
        if let ViewKind::Table(table) = view.kind {
            let expected = model.table(table, epoch).len();
            assert_eq!(rows[usize::from(view.id.0)], expected as u64, "{}", view.name);
        }
    }
}

fn check_tables(model: &mut Model, epoch: Epoch) {
    for view in model.views.catalog().views().to_vec() {
        let ViewKind::Table(table) = view.kind else { continue };
        let filter = model.filter(table);
        let rows_max = model.random.below(40) as usize + 1;
        let mut found = Vec::new();
        let mut place = None;
        loop {
            let page = model.views.page(view.id, &filter, Some(epoch), place, rows_max).unwrap();
            assert_eq!(page.at.epoch, epoch);
            assert!(page.rows.len() <= rows_max);
            found.extend(page.rows.rows().map(|r| model::line(&r)));
            place = page.next;
            if place.is_none() {
                break;
            }
        }
        let buckets: Vec<i64> = found.iter().map(|r| r.start_us).collect();
        assert!(buckets.is_sorted());
        found.sort();
        assert_eq!(found, model.filtered(table, epoch, &filter), "{filter:?} at {epoch}");
    }
}

fn check_sums(model: &mut Model, epoch: Epoch) {
    for table in rollup::tables(&model.settings.rollups) {
        let dimensions = model.dimensions(table);
        let by: Vec<usize> = (0..dimensions).filter(|_| model.random.below(2) == 0).rev().collect();
        let filter = Filter { buckets: None, state: None, ..model.filter(table) };
        let first = model.random.below(8) as i32;
        let buckets = Bucket(first)..Bucket(first + model.random.below(8) as i32);
        let slots = match model.random.below(3) {
            0 => Slots::Each,
            1 => Slots::One,
            _ => Slots::Mapped {
                slot_of: (0..8).map(|b| b / 3).collect(),
                starts_us: (0..3).map(|s| s * 1_000).collect(),
            },
        };
        let query = SumQuery {
            rollup: table.rollup,
            granularity: table.granularity,
            buckets,
            filter,
            by,
            slots,
            finalized_only: model.random.below(4) == 0,
            rows_max: usize::MAX,
            scan_rows_max: u64::MAX,
            epoch: Some(epoch),
        };
        let summed = match model.views.sum(&query) {
            Err(ReadError::NotKept { start_us, kept_from_us, .. }) => {
                assert!(query.slots == Slots::One && start_us < kept_from_us, "{query:?}");
                continue;
            }
            summed => summed.unwrap(),
        };
        let found: Vec<_> = summed.rows.rows().map(|r| model::line(&r)).collect();
        assert_eq!(found, model.sum(&query, epoch), "{query:?}");
    }
}

fn check_incidents(model: &mut Model, epoch: Epoch) {
    for fates in [LATE_FATES, QUARANTINE_FATES, &[Fate::Duplicate]] {
        let (expected, total) = model.incidents(fates, epoch);
        let rows_max = model.random.below(9) as usize + 1;
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            let page = model.views.incidents(fates, Some(epoch), before, rows_max).unwrap();
            assert_eq!((page.at.epoch, page.total), (epoch, total));
            let Some(last) = page.incidents.last() else { break };
            before = Some(last.0);
            found.extend(page.incidents);
        }
        assert_eq!(found, expected);
        // Of copies no segment is kept.
        found.retain(|(_, incident)| incident.fate != Fate::Duplicate);
        let first = model.views.first_listed();
        for ((epoch, _), _) in &found {
            assert!(first.is_some_and(|first| first <= *epoch), "{first:?} {epoch}");
        }
    }
}

#[test]
fn digests_do_not_depend_on_the_number_of_workers() {
    for seed in seeds(4) {
        println!("TRUEUP_SEED={seed}");
        let hashes = [1, 2, 4].map(|workers| {
            let settings = Settings { seed, workers: Some(workers), ..Settings::default() };
            let mut model = Model::new(settings);
            while model.deliver() {}
            (0..40).map(|e| model.views.epoch_hash(e)).collect::<Vec<_>>()
        });
        assert!(hashes[0].iter().all(Option::is_some));
        assert!(hashes[0].iter().flatten().collect::<std::collections::HashSet<_>>().len() > 30);
        assert_eq!(hashes[0], hashes[1]);
        assert_eq!(hashes[0], hashes[2]);
    }
}

#[test]
fn memory_is_reported_and_history_is_bounded() {
    let settings =
        Settings { seed: 7, epochs: 200, history_bytes_max: 60_000, ..Settings::default() };
    let mut model = Model::new(settings);
    while model.deliver() {}
    let memory = model.views.memory();
    assert!(memory.rows > 0 && memory.rows_bytes >= memory.rows * 64, "{memory:?}");
    assert!(memory.index_bytes > 0 && memory.incidents_bytes > 0);
    assert!(memory.history_bytes < 120_000, "{memory:?}");
    let first = model.views.first_epoch().unwrap();
    assert!(first > 0);
    let gone = ReadError::Gone { epoch: first - 1, first };
    let view = model.views.catalog().views()[0].id;
    let read = |epoch| model.views.page(view, &Filter::default(), Some(epoch), None, 1);
    assert_eq!(read(first - 1).err(), Some(gone));
    let next = read(first).unwrap().next.expect("there are more rows than one");
    let go_on = |next| model.views.page(view, &Filter::default(), Some(first), Some(next), 1);
    assert!(go_on(next).is_ok());
    let others = Place { run: next.run ^ 1, ..next };
    assert_eq!(go_on(others).err(), Some(ReadError::Renumbered));
    let visible = model.views.visible().unwrap().epoch;
    assert_eq!(read(visible + 1).err(), Some(ReadError::Ahead { epoch: visible + 1, visible }));
}
