//! The stream against numbers that another program gave, and its three forms against one another.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::frames::Layout;
use arrow_array::{RecordBatch, cast::AsArray, types::*};
use arrow_ipc::reader::StreamReader;
use std::collections::BTreeMap;
use trueup_operators::{hash::HashKey, time::parse_rfc3339};

#[test]
fn the_tables_are_the_published_ones() {
    let sum = |table: &[u16]| {
        let words =
            table.iter().enumerate().map(|(i, &v)| finalise((i as u64) << 16 | u64::from(v)));
        words.fold(0u64, u64::wrapping_add)
    };
    let ads = Ads1::new();
    assert_eq!((ads.campaigns.len(), ads.countries.len()), (65_536, 4_096));
    assert_eq!(sum(&ads.campaigns), 0x3e1f_1059_4a75_8f15);
    assert_eq!(sum(&ads.countries), 0xb959_3679_b558_435a);
}

#[test]
fn the_answers_are_the_published_ones() {
    let ads = Ads1::new();
    let of_500_000 = Answer {
        impressions: 470_123,
        clicks: 24_940,
        invalid_clicks: 0,
        spend_micros: 6_366_690_829,
        groups: 83_237,
        squared_impressions: 205_779_959,
    };
    assert_eq!(ads.reference(500_000), of_500_000);
    let of_a_million = Answer {
        impressions: 940_290,
        clicks: 49_704,
        invalid_clicks: 0,
        spend_micros: 12_710_660_725,
        groups: 120_153,
        squared_impressions: 826_130_740,
    };
    assert_eq!(ads.reference(1_000_000), of_a_million);
}

#[test]
fn verdicts_take_out_three_percent_of_the_clicks_thirty_seconds_later() {
    let ads = Ads1::new();
    let events = VERDICT_DELAY_EVENTS + 400_000;
    let verdicts: Vec<Ads1Verdict> = ads.verdicts(0..events).collect();
    assert!((500..700).contains(&verdicts.len()), "{}", verdicts.len());
    assert!(verdicts.iter().all(|v| v.event.click));
    assert!(verdicts[0].decided_at_ms >= BASE_MS + 30_000);
    assert_eq!(ads.verdicts(0..VERDICT_DELAY_EVENTS).count(), 0);
    // Any cut of the stream gives the same verdicts.
    let cut = VERDICT_DELAY_EVENTS + 123_457;
    let parts: Vec<_> = ads.verdicts(0..cut).chain(ads.verdicts(cut..events)).collect();
    assert_eq!(parts, verdicts);

    let mut reference = Reference::default();
    (0..400_000).for_each(|i| reference.add(&ads.event(i)));
    let before = reference.answer();
    verdicts.iter().for_each(|v| reference.retract(&v.event));
    let after = reference.answer();
    let taken: u64 = verdicts.iter().map(|v| u64::from(v.event.price_micros)).sum();
    assert_eq!(after.invalid_clicks, verdicts.len() as u64);
    assert_eq!(after.clicks + after.invalid_clicks, before.clicks);
    assert_eq!(after.spend_micros + taken, before.spend_micros);
    assert_eq!(after.squared_impressions, before.squared_impressions);
}

#[test]
fn json_reads_back_as_the_event() {
    let ads = Ads1::new();
    let shift_ms = shift_to_end_at_ms(5_000, 1_793_000_000_123);
    assert_eq!(shift_ms % 60_000, 0);
    let body: serde_json::Value = serde_json::from_slice(&ads.body(0..5_000, shift_ms)).unwrap();
    let events = body["events"].as_array().unwrap();
    assert_eq!(events.len(), 5_000);
    for (i, json) in events.iter().enumerate() {
        let event = ads.event(i as u64);
        assert_eq!(json["eventId"], format!("{:016x}{:016x}", event.id_high, event.id_low));
        assert_eq!(json["eventType"], event.event_type().name());
        let time_us = parse_rfc3339(json["occurredAt"].as_str().unwrap()).unwrap();
        assert_eq!(time_us, (event.occurred_at_ms + shift_ms) * 1_000);
        assert_eq!(json["campaignId"], format!("cmp_{}", event.campaign));
        assert_eq!(json["adId"], format!("ad_{}", event.ad));
        assert_eq!(json["publisherId"], format!("pub_{}", event.publisher));
        assert_eq!(json["placementId"], format!("pl_{}", event.placement));
        assert_eq!(json["country"], COUNTRIES[usize::from(event.country)]);
        assert_eq!(json["deviceType"], DEVICES[usize::from(event.device)]);
        let price = event.click.then_some(u64::from(event.price_micros));
        assert_eq!(json.get("priceMicros").and_then(serde_json::Value::as_u64), price);
    }
}

#[test]
fn times_of_every_kind_of_year_are_right() {
    let ads = Ads1::new();
    let event = ads.event(0);
    for text in ["1970-01-01T00:00:00.007Z", "2000-02-29T23:59:59.999Z", "2099-12-31T12:30:05.120Z"]
    {
        let ms = parse_rfc3339(text).unwrap() / 1_000;
        let mut json = Vec::new();
        ads.json(&event, ms - event.occurred_at_ms, &mut json);
        assert!(String::from_utf8(json).unwrap().contains(text), "{text}");
    }
}

#[test]
fn bodies_cover_the_stream_once() {
    let ads = Ads1::new();
    let count = |body: Vec<u8>| {
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        body["events"].as_array().unwrap().len()
    };
    assert_eq!(ads.bodies(2_500, 1_000, 0).map(count).collect::<Vec<_>>(), [1_000, 1_000, 500]);
    assert_eq!(ads.bodies(0, 1_000, 0).count(), 0);
    assert_eq!(ads.bodies(2, 0, 0).count(), 2, "no body without events");
}

#[test]
fn the_verdict_body_names_the_clicks() {
    let ads = Ads1::new();
    let range = VERDICT_DELAY_EVENTS..VERDICT_DELAY_EVENTS + 5_000;
    assert_eq!(ads.verdict_body(0..5_000, 0), None);
    let body: serde_json::Value =
        serde_json::from_slice(&ads.verdict_body(range.clone(), 0).unwrap()).unwrap();
    let verdicts = body["verdicts"].as_array().unwrap();
    assert_eq!(verdicts.len(), ads.verdicts(range.clone()).count());
    for (json, verdict) in verdicts.iter().zip(ads.verdicts(range)) {
        let id = verdict.event.id_text();
        assert_eq!(json["eventId"].as_str().unwrap().as_bytes(), id);
        assert_eq!(json["verdict"], "invalid");
        let decided = parse_rfc3339(json["decidedAt"].as_str().unwrap()).unwrap();
        assert_eq!(decided, verdict.decided_at_ms * 1_000);
    }
}

fn text(batch: &RecordBatch, column: &str, row: usize) -> String {
    let dictionary = batch[column].as_dictionary::<UInt16Type>();
    let values = dictionary.values().as_string::<i32>();
    values.value(dictionary.keys().value(row).into()).to_owned()
}

#[test]
fn frames_hold_every_event_in_order() {
    let ads = Ads1::new();
    let layout = Layout { partitions: 3, key: HashKey([1; 16]) };
    let (mut held, mut payloads) = (BTreeMap::new(), BTreeMap::new());
    for append in ads.frames(0..70_000, &layout, 60_000) {
        let reader = StreamReader::try_new(append.payload.as_slice(), None).unwrap();
        for batch in reader.map(Result::unwrap) {
            assert_eq!(batch.num_rows(), append.records as usize);
            let ids = batch["event_id"].as_string::<i32>();
            let times = batch["occurred_at"].as_primitive::<TimestampMicrosecondType>();
            let prices = batch["price_micros"].as_primitive::<Int64Type>();
            let hashes = batch["payload_hash"].as_primitive::<UInt64Type>();
            for row in 0..batch.num_rows() {
                let id = ids.value(row).to_owned();
                assert_eq!(
                    *payloads.entry(id.clone()).or_insert(hashes.value(row)),
                    hashes.value(row)
                );
                let seen = (times.value(row), text(&batch, "campaign_id", row), prices.value(row));
                held.entry(id).or_insert_with(Vec::new).push(seen);
            }
        }
    }
    for i in 0..70_000 {
        let event = ads.event(i);
        let id = String::from_utf8(event.id_text().to_vec()).unwrap();
        let seen = held.get_mut(&id).and_then(Vec::pop).unwrap();
        let time_us = (event.occurred_at_ms + 60_000) * 1_000;
        let campaign = format!("cmp_{}", event.campaign);
        assert_eq!(seen, (time_us, campaign, i64::from(event.price_micros)));
    }
    assert!(held.values().all(Vec::is_empty));
}
