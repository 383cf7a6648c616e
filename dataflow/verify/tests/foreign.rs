//! Frames that anyone may have written to a shared topic: the engine and the recomputation agree on
//! which of them are events.

use super::*;
use crate::{ads::AdBatch, ipc, verify::frames::Texts};
use arrow_array::{
    ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt16Array, cast::AsArray,
    types::TimestampMicrosecondType,
};
use std::sync::Arc;
use trueup_operators::{
    event::{EventBatch, columns},
    log::Append,
    money::PRICE_MICROS_MAX,
    symbols::Symbols,
};

/// A frame of two clicks.
fn good() -> Frame {
    let events = [click("a", at(0)), click("b", at(1))];
    let layout = trueup_generator::frames::Layout {
        partitions: 1,
        key: trueup_operators::hash::HashKey([3; 16]),
    };
    layout.frames(&events, at(2)).remove(0).into_frame(0, LogTime(at(2)))
}

/// The frame with other columns; one that is `None` is left out.
fn with(columns: &[(&str, Option<ArrayRef>)]) -> Frame {
    let frame = good();
    let batch = ipc::decode(&frame).unwrap();
    let schema = batch.schema();
    let kept = schema.fields().iter().zip(batch.columns());
    let kept = kept.filter(|(field, _)| columns.iter().all(|(name, _)| field.name() != name));
    let mut all: Vec<(&str, ArrayRef)> =
        kept.map(|(field, column)| (field.name().as_str(), column.clone())).collect();
    all.extend(columns.iter().filter_map(|(name, column)| Some((*name, column.clone()?))));
    let batch = RecordBatch::try_from_iter(all).unwrap();
    Frame { payload: ipc::encode(&batch).unwrap(), ..frame }
}

fn prices(prices: [Option<i64>; 2]) -> (&'static str, Option<ArrayRef>) {
    (columns::PRICE_MICROS, Some(Arc::new(Int64Array::from(prices.to_vec()))))
}

fn times(us: i64) -> (&'static str, Option<ArrayRef>) {
    let times = TimestampMicrosecondArray::from(vec![at(0), us]).with_timezone("UTC");
    (columns::OCCURRED_AT, Some(Arc::new(times)))
}

fn versions(second: u16) -> (&'static str, Option<ArrayRef>) {
    (columns::SCHEMA_VERSION, Some(Arc::new(UInt16Array::from(vec![1, second]))))
}

/// Whether a frame holds events; both say the same.
fn is_taken(frame: &Frame, what: &str) -> bool {
    let engine = AdBatch::decode(frame, &Symbols::default()).map(drop);
    let recomputation = frames::events(frame, &mut Texts::default(), |_| {});
    assert_eq!(engine.is_ok(), recomputation.is_ok(), "{what}: {engine:?}, {recomputation:?}");
    engine.is_ok()
}

#[test]
fn what_no_collector_takes_is_no_batch_of_events() {
    let max = PRICE_MICROS_MAX;
    assert!(is_taken(&good(), "clicks"));
    for price in [0, max] {
        assert!(is_taken(&with(&[prices([Some(price), None])]), &format!("price {price}")));
    }
    for price in [-1, max + 1, i64::MAX, i64::MAX / 1_000 + 1, i64::MIN] {
        let what = format!("price {price}");
        assert!(!is_taken(&with(&[prices([Some(1), Some(price)])]), &what));
        assert!(!is_taken(&with(&[prices([None, Some(price)])]), &what));
        assert!(is_taken(&with(&[prices([Some(1), Some(price)]), versions(2)]), &what));
    }
    // Of a time the ledger says whether it can be, for each event by itself.
    for us in [at(0), 0, -1, i64::MAX, i64::MIN] {
        assert!(is_taken(&with(&[times(us)]), &format!("time {us}")));
    }
}

#[test]
fn a_column_that_is_missing_or_of_another_type_makes_it_none() {
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    for name in [
        columns::ID_HASH,
        columns::EVENT_ID,
        columns::PAYLOAD_HASH,
        columns::EVENT_TYPE,
        columns::OCCURRED_AT,
    ] {
        assert!(!is_taken(&with(&[(name, None)]), name));
        assert!(!is_taken(&with(&[(name, Some(numbers.clone()))]), name));
    }
    let times = good();
    let times = ipc::decode(&times).unwrap();
    let times = times.column_by_name(columns::OCCURRED_AT).unwrap();
    assert_eq!(times.as_primitive::<TimestampMicrosecondType>().len(), 2);
    for name in [
        "campaign_id",
        "country",
        columns::PRICE_BASIS,
        columns::SCHEMA_VERSION,
        columns::IMPRESSION_HASH,
        columns::IMPRESSION_ID,
    ] {
        assert!(!is_taken(&with(&[(name, Some(numbers.clone()))]), name));
    }
    assert!(!is_taken(&with(&[(columns::PRICE_MICROS, Some(times.clone()))]), "prices"));
    assert!(!is_taken(&Frame { records: 3, ..good() }, "three records"));
    let half = good();
    let half = Frame { payload: half.payload.slice_with_length(0, 40), ..half };
    assert!(!is_taken(&half, "half a stream"));
}

#[test]
fn in_a_shared_log_it_is_set_aside_as_one_thing_that_says_why() {
    let bad = with(&[prices([Some(7), Some(-7)])]);
    let as_append = |frame: Frame| {
        let Frame { partition, schema_version, records, payload, .. } = frame;
        Append { topic: Topic::Events, partition, schema_version, records, payload }
    };
    let mut made = Made::new();
    made.log.shared = true;
    made.append(vec![as_append(bad), as_append(good())], at(2)).close(at(3));
    let recomputed = run(&made);
    assert_eq!(recomputed.counts.fates, [2, 0, 0, 1, 0]);
    assert_eq!(figures(&recomputed), [0, 2, 0, 0, 0, 200_000]);
    let lives = crate::life::Lives::new(Arc::new(made.log));
    let shown = |offset| lives.shown(Position { partition: 0, offset, row: 0 }).unwrap();
    let fault = shown(0)["fault"].as_str().unwrap().to_owned();
    assert!(fault.contains("`price_micros` holds -7 in row 1"), "{fault}");
    assert_eq!(shown(1)["eventId"], "a");
    // Its owner's log is as it is: there it is an error.
    let mut own = Made::new();
    own.append(vec![as_append(with(&[prices([Some(7), Some(-7)])]))], at(2)).close(at(3));
    assert!(recompute(&own.log, &settings(), None).is_err());
}
