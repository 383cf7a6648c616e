//! Bodies as Arrow IPC streams: the same rows, hashes and errors as JSON.

use super::{
    http::{batch as json_batch, event, world},
    rows::{Row, rows},
};
use arrow_array::{
    ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array,
    LargeStringArray, RecordBatch, StringArray, StringViewArray, TimestampMillisecondArray,
    TimestampNanosecondArray, TimestampSecondArray, UInt64Array,
    types::{Int8Type, Int32Type},
};
use arrow_ipc::writer::StreamWriter;
use std::sync::Arc;
use trueup_operators::log::Topic;

pub(super) const ARROW: (&str, &str) = ("content-type", "application/vnd.apache.arrow.stream");

pub(super) fn stream(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

pub(super) fn required(rows: usize) -> Vec<(&'static str, ArrayRef)> {
    let ids: Vec<String> = (0..rows).map(|n| format!("e{n}")).collect();
    vec![
        ("eventId", Arc::new(StringArray::from(ids))),
        ("eventType", Arc::new(StringArray::from(vec!["click"; rows]))),
        ("occurredAt", Arc::new(TimestampMillisecondArray::from(vec![1_777_303_930_000; rows]))),
        ("campaignId", Arc::new(StringArray::from(vec!["camp_4821"; rows]))),
        ("adId", Arc::new(StringArray::from(vec!["ad_99"; rows]))),
    ]
}

pub(super) fn batch(rows: usize) -> RecordBatch {
    let mut columns = required(rows);
    let countries: DictionaryArray<Int8Type> =
        (0..rows).map(|n| [Some("US"), None, Some("DE")][n % 3]).collect();
    columns.push(("country", Arc::new(countries)));
    RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    )
    .unwrap()
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| a["event_id"].cmp(&b["event_id"]));
    rows
}

#[tokio::test]
async fn arrow_and_json_copies_are_the_same() {
    let arrow = world();
    let json = world();
    let answer = arrow.collect_as("collects", &[ARROW], stream(&batch(100))).await;
    assert_eq!(answer.json()["accepted"], 100, "{}", answer.json());
    let more = [r#","country":"US""#, "", r#","country":"DE""#];
    let events: Vec<String> = (0..100).map(|n| event(&format!("e{n}"), more[n % 3])).collect();
    json.collect(json_batch(&events)).await;
    let of = |log: &super::memory_log::MemoryLog| sorted(rows(&log.frames(Topic::Events), 4));
    assert_eq!(of(&arrow.log), of(&json.log));
}

#[tokio::test]
async fn another_spelling_of_who_somebody_is_is_not_kept() {
    let (arrow, json) = (world(), world());
    let mut columns = required(1);
    let mut more = String::new();
    for name in ["user_id", "userid", "USERID", "User-Id", "IP", "Ip"] {
        columns.push((name, Arc::new(StringArray::from(vec!["RAW-1"]))));
        more += &format!(r#","{name}":"RAW-1""#);
    }
    columns.push(("ipAddress", Arc::new(StringArray::from(vec!["the sender's own"]))));
    more += r#","ipAddress":"the sender's own""#;
    let body = RecordBatch::try_from_iter(columns).unwrap();
    let answer = arrow.collect_as("collects", &[ARROW], stream(&body)).await;
    assert_eq!(answer.json()["accepted"], 1, "{}", answer.json());
    let answer = json.collect(json_batch(&[event("e0", &more)])).await;
    assert_eq!(answer.json()["accepted"], 1, "{}", answer.json());
    for world in [&arrow, &json] {
        let frames = world.log.frames(Topic::Events);
        assert!(!frames[0].payload.windows(4).any(|bytes| bytes == b"RAW-"));
        assert_eq!(rows(&frames, 4)[0]["extra"], r#"{"ipAddress":"the sender's own"}"#);
    }
    // Of another schema version all is kept that has no column.
    let other = event("e1", &format!(r#"{more},"schemaVersion":9"#));
    assert_eq!(json.collect(json_batch(&[other])).await.json()["accepted"], 1);
    let frames = json.log.frames(Topic::Events);
    assert!(!frames[1].payload.windows(4).any(|bytes| bytes == b"RAW-"));
    // The same name twice is an error, and nothing of it is kept.
    for twice in [r#","userId":"RAW-1","userId":"RAW-2""#, r#","ip":"RAW-1","ip":"RAW-2""#] {
        let answer = json.collect(json_batch(&[event("e2", twice)])).await;
        assert_eq!(answer.json()["rejected"], 1);
    }
    assert_eq!(json.log.frames(Topic::Events).len(), 2);
}

#[tokio::test]
async fn whole_numbers_are_the_same_up_to_the_last_digit() {
    let signed = [i64::MIN, -1_000_000_000_000_000_000, 999_999_999_999_999_999, i64::MAX];
    let unsigned = [1_u64, 1_000_000_000_000_000_000, i64::MAX as u64 + 1, u64::MAX];
    let (arrow, json) = (world(), world());
    let mut columns = required(4);
    columns.push(("signed", Arc::new(Int64Array::from(signed.to_vec()))));
    columns.push(("unsigned", Arc::new(UInt64Array::from(unsigned.to_vec()))));
    let body = stream(&RecordBatch::try_from_iter(columns).unwrap());
    assert_eq!(arrow.collect_as("collects", &[ARROW], body).await.json()["accepted"], 4);
    let numbers = signed.into_iter().zip(unsigned).enumerate();
    let events: Vec<String> = numbers
        .map(|(n, (s, u))| event(&format!("e{n}"), &format!(r#","signed":{s},"unsigned":{u}"#)))
        .collect();
    assert_eq!(json.collect(json_batch(&events)).await.json()["accepted"], 4);
    let of = |log: &super::memory_log::MemoryLog| sorted(rows(&log.frames(Topic::Events), 4));
    assert_eq!(of(&arrow.log), of(&json.log));
}

#[tokio::test]
async fn every_type_that_the_contract_names() {
    let one = |name: &'static str, array: ArrayRef| {
        let mut columns = required(1);
        columns.retain(|(n, _)| *n != name);
        columns.push((name, array));
        stream(&RecordBatch::try_from_iter(columns).unwrap())
    };
    let dictionary: DictionaryArray<Int32Type> = ["cmp_d"].into_iter().collect();
    for (name, array, column, value) in [
        ("campaignId", Arc::new(LargeStringArray::from(vec!["c"])) as ArrayRef, "campaign_id", "c"),
        ("campaignId", Arc::new(StringViewArray::from(vec!["cv"])), "campaign_id", "cv"),
        ("campaignId", Arc::new(dictionary), "campaign_id", "cmp_d"),
        (
            "occurredAt",
            Arc::new(TimestampSecondArray::from(vec![1_777_303_930])),
            "occurred_at",
            "1777303930000000",
        ),
        (
            "occurredAt",
            Arc::new(TimestampNanosecondArray::from(vec![1_777_303_930_000_001_999])),
            "occurred_at",
            "1777303930000001",
        ),
        (
            "occurredAt",
            Arc::new(StringArray::from(vec!["2026-04-27T15:32:10Z"])),
            "occurred_at",
            "1777303930000000",
        ),
        ("priceMicros", Arc::new(Int32Array::from(vec![77])), "price_micros", "77"),
        ("priceMicros", Arc::new(UInt64Array::from(vec![78])), "price_micros", "78"),
        ("gpc", Arc::new(BooleanArray::from(vec![true])), "consent", r#"{"gpc":true}"#),
        ("mine", Arc::new(Int64Array::from(vec![5])), "extra", r#"{"mine":5}"#),
        ("mine", Arc::new(Float64Array::from(vec![0.5])), "extra", r#"{"mine":0.5}"#),
        ("mine", Arc::new(Float64Array::from(vec![f64::NAN])), "extra", r#"{"mine":"NaN"}"#),
    ] {
        let world = world();
        let answer = world.collect_as("collects", &[ARROW], one(name, array)).await;
        assert_eq!(answer.json()["accepted"], 1, "{name} {value}: {}", answer.json());
        assert_eq!(rows(&world.log.frames(Topic::Events), 4)[0][column], value);
    }
    for (name, array, code) in [
        (
            "priceMicros",
            Arc::new(UInt64Array::from(vec![u64::MAX])) as ArrayRef,
            "number_out_of_range",
        ),
        ("priceMicros", Arc::new(Float64Array::from(vec![5.0])), "not_an_integer"),
        ("priceMicros", Arc::new(StringArray::from(vec!["5"])), "wrong_type"),
        ("campaignId", Arc::new(Int64Array::from(vec![5])), "wrong_type"),
        ("campaignId", Arc::new(StringArray::from(vec![""])), "empty_field"),
        ("campaignId", Arc::new(StringArray::from(vec![None::<&str>])), "missing_field"),
        ("occurredAt", Arc::new(TimestampSecondArray::from(vec![i64::MAX])), "time_out_of_range"),
    ] {
        let world = world();
        let json = world.collect_as("collects", &[ARROW], one(name, array)).await.json();
        assert_eq!(
            (&json["rejected"], &json["errors"][0]["code"]),
            (&1.into(), &code.into()),
            "{json}"
        );
    }
}

#[tokio::test]
async fn streams_that_are_none() {
    let world = world();
    let good = stream(&batch(10));
    for body in [Vec::new(), b"{\"events\":[]}".to_vec(), good[..good.len() / 2].to_vec()] {
        let answer = world.collect_as("collects", &[ARROW], body).await;
        assert_eq!(answer.status, 400);
    }
    let list: ArrayRef =
        Arc::new(arrow_array::ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]));
    let mut columns = required(1);
    columns.push(("mine", list));
    let body = stream(&RecordBatch::try_from_iter(columns).unwrap());
    let answer = world.collect_as("collects", &[ARROW], body).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "unsupported_column"));
    assert!(answer.json()["detail"].as_str().unwrap().contains("mine"));
    let many = stream(&batch(60_000));
    let answer = world.collect_as("collects", &[ARROW], many).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "too_many_events"));
    assert!(world.log.frames(Topic::Events).is_empty());
}
