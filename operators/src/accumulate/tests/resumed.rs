//! Runs that stop and go on from an image, with as many workers or others: every later epoch must
//! be that of the model, which never stops. Small `rows_max`, so that full shares, keys that fold
//! and rows that nobody ever saw have to survive.

use super::*;
use crate::section::SectionKey;
use std::collections::HashMap;

/// What a view would give back of a run's rows, and its images, for so many workers and symbols of
/// their own.
fn reload(ran: &Ran, at: EpochTimes, peers: usize, rows_max: u32) -> Start {
    let symbols = Arc::new(Symbols::default());
    // Other numbers for the same texts.
    for i in 0..97 {
        symbols.intern(&format!("another process {i}"));
    }
    let mut loading = Loading::new(specs(rows_max), LATENESS, at, peers, Arc::clone(&symbols));
    let (mut rows, mut next) = (Numbered::new(), HashMap::new());
    for (&(from, table, bucket, _), row) in &ran.rows {
        let end = table.granularity.end(bucket).0 + LATENESS.correction_horizon_us;
        let (texts, version, metrics) = row.clone();
        let key = [0, 1].map(|i: usize| symbols.intern(&texts[i]));
        let stable = stable_key(texts.iter().map(|t| hash::stable(t.as_bytes())));
        let loaded = LoadedRow { key, stable, version, metrics };
        loading.rows(from.stage, table, bucket, &[loaded]).unwrap();
        if end > at.frontier.0 {
            let worker = (stable % 64 % peers as u64) as u16;
            let to = ShardId { worker, stage: from.stage };
            let number = next.entry((to, table, bucket)).or_insert(0);
            rows.insert((to, table, bucket, *number), row.clone());
            *number += 1;
        }
    }
    for (shard, bytes) in &ran.images {
        let (key, reader) = SectionKey::open(bytes).unwrap();
        assert_eq!(key.shard, *shard);
        loading.image(*shard, reader).unwrap();
    }
    let loaded = loading.finish().unwrap().into_iter().map(Some).collect();
    Start { symbols, loaded, rows }
}

#[test]
fn goes_on_from_an_image_as_if_it_had_never_stopped() {
    let mut random = Random(seed());
    for rows_max in [1, 64, 128, 640, ROWS_MAX_MAX] {
        let script = script(&mut random, 60);
        let expected = model(rows_max, &script);
        let uninterrupted = run(1, rows_max, &script).1;
        let mut told = 0;
        for _ in 0..4 {
            let mut cuts: Vec<usize> = (0..3).map(|_| random.below(61) as usize).collect();
            cuts.sort_unstable();
            let mut peers: Vec<usize> =
                (0..4).map(|_| [1, 2, 4][random.below(3) as usize]).collect();
            let what = format!("{rows_max} rows, cut at {cuts:?} for {peers:?} workers");
            let (mut seen, mut counts, mut start) = (Seen::new(), Counts::default(), None);
            let (mut from, mut last) = (0, EpochTimes::default());
            for to in cuts.into_iter().chain([60]) {
                // An image is taken of an epoch, so there has to be one.
                if to == from {
                    continue;
                }
                let peers = peers.remove(0);
                let part = &script[from..to];
                let start_of_part = start.take().map(|ran| reload(&ran, last, peers, rows_max));
                let mut ran = run_from(start_of_part, peers, rows_max, part);
                (from, last) = (to, part[part.len() - 1].0);
                seen.append(&mut ran.seen);
                counts.add(&ran.counts);
                assert_eq!(ran.images.len(), peers * STAGES, "{what}");
                told += ran.images.iter().filter(|(_, bytes)| bytes.len() > 36).count();
                start = Some(ran);
            }
            for (at, change) in &expected {
                assert_eq!(seen.get(at), Some(change), "{what}, {at:?}");
            }
            assert_eq!(seen.len(), expected.len(), "{what}");
            assert_eq!(counts, uninterrupted, "{what}");
        }
        assert!(told > 0, "there were rows in the images that nobody saw");
    }
}

/// The images of a run that has rows that nobody saw.
fn ran() -> (Ran, EpochTimes) {
    let script = script(&mut Random(3), 12);
    let ran = run_from(None, 2, 64, &script);
    (ran, script[11].0)
}

#[test]
fn an_image_that_is_not_whole_is_refused() {
    let (ran, at) = ran();
    let symbols = Arc::new(Symbols::default());
    let loading = || Loading::<2, Metrics>::new(specs(64), LATENESS, at, 2, Arc::clone(&symbols));
    let (shard, bytes) = ran.images.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let load = |bytes: &[u8]| {
        let (_, reader) = SectionKey::open(bytes).map_err(|e| e.to_string())?;
        loading().image(*shard, reader).map_err(|e| e.to_string())
    };
    assert_eq!(load(bytes), Ok(()));
    for cut in 0..bytes.len() {
        let error = load(&bytes[..cut]).unwrap_err();
        assert!(error.contains("cut short"), "cut at {cut}: {error}");
    }
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xFF] {
            let mut wrong = bytes.clone();
            wrong[at] ^= flip;
            // Some say something else; none may panic or ask for the memory of what is not there.
            drop(load(&wrong));
        }
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(load(&longer).unwrap_err().contains("ends at byte"));
}

#[test]
fn images_and_rows_that_do_not_belong_together_are_refused() {
    let (mut ran, at) = ran();
    let result = |ran: &Ran, at: EpochTimes| {
        let mut loading = Loading::<2, Metrics>::new(specs(64), LATENESS, at, 2, Arc::default());
        for (shard, bytes) in &ran.images {
            let (_, reader) = SectionKey::open(bytes).map_err(|e| e.to_string())?;
            loading.image(*shard, reader).map_err(|e| e.to_string())?;
        }
        loading.finish().map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(result(&ran, at), Ok(()));
    let other = EpochTimes { epoch: at.epoch + 1, ..at };
    let error = result(&ran, other).unwrap_err();
    assert!(error.ends_with("accumulator: is of epoch 12, the checkpoint of 13"), "{error}");
    let again = ran.images.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().clone();
    ran.images = vec![again.clone(), again];
    let error = result(&ran, at).unwrap_err();
    assert!(error.contains("a key has two rows in the bucket"), "{error}");
}

#[test]
fn a_share_with_more_rows_than_it_may_have_is_refused() {
    let at = EpochTimes::default();
    let symbols = Arc::new(Symbols::default());
    let mut loading = Loading::<2, Metrics>::new(specs(128), LATENESS, at, 2, Arc::clone(&symbols));
    let id = TableId { rollup: 0, granularity: Granularity::Hour };
    let metrics = Metrics { impressions: 1, ..Metrics::default() };
    let of_share_7 = (0..).map(|i| symbols.intern(&format!("x{i}"))).filter_map(|symbol| {
        let key = [symbol, symbol];
        let stable = stable_key(key.map(|symbol| symbols.stable(symbol)));
        (stable % 64 == 7).then_some(LoadedRow { key, stable, version: 1, metrics })
    });
    let rows: Vec<_> = of_share_7.take(3).collect();
    assert_eq!(loading.rows(0, id, Bucket(0), &rows[..2]), Ok(()));
    let error = loading.rows(0, id, Bucket(0), &rows[2..]).unwrap_err();
    assert_eq!(error, "share 7 of the bucket has more than 2 rows");
    assert_eq!(loading.rows(1, id, Bucket(0), &rows), Ok(()), "`(other)` rows have no such limit");
}
