//! The benchmark's frames, which the generator builds from numbers, are the frames that the
//! collector makes of the benchmark's JSON; its Arrow bodies too. Otherwise the engine would be
//! measured on another stream than the whole.

use super::{
    http::{KEY, NOW_US, world},
    rows::{Row, rows},
};
use std::collections::BTreeMap;
use trueup_generator::{ads1::Ads1, frames::Layout};
use trueup_operators::{
    event::columns,
    log::{Frame, Topic},
    time::LogTime,
};

const EVENTS: u64 = 20_000;
const PARTITIONS: u16 = 4;

/// By partition: the rows without what depends on when and by whom they were taken. (The
/// generator's payload hash is one of its own: all that matters is which payloads are the same.)
fn comparable(frames: &[Frame]) -> BTreeMap<u16, Vec<Row>> {
    let mut partitions: BTreeMap<u16, Vec<Row>> = BTreeMap::new();
    for frame in frames {
        let mut rows = rows(std::slice::from_ref(frame), PARTITIONS);
        for row in &mut rows {
            row.remove(columns::RECEIVED_AT);
            row.remove(columns::PAYLOAD_HASH);
            if row.get(columns::PRICE_MICROS).is_some_and(|price| price == "0") {
                row.remove(columns::PRICE_MICROS);
            }
        }
        partitions.entry(frame.partition).or_default().append(&mut rows);
    }
    partitions
}

/// Which rows have the same payload: each row's id and the number of the first with its hash.
fn payloads(frames: &[Frame]) -> Vec<(String, usize)> {
    let mut first: BTreeMap<String, usize> = BTreeMap::new();
    let rows = frames.iter().flat_map(|frame| rows(std::slice::from_ref(frame), PARTITIONS));
    rows.enumerate()
        .map(|(n, row)| {
            let first = *first.entry(row[columns::PAYLOAD_HASH].clone()).or_insert(n);
            (row[columns::ID_HASH].clone(), first)
        })
        .collect()
}

#[tokio::test]
async fn frames_from_numbers_are_those_from_json_and_from_arrow() {
    let ads1 = Ads1::new();
    // Such that no event is in the future.
    let shift_ms = NOW_US / 1_000 - trueup_generator::ads1::stream_time_ms(EVENTS) - 1_000;
    let layout = Layout { partitions: PARTITIONS, key: KEY };
    let frames: Vec<Frame> = ads1
        .frames(0..EVENTS, &layout, shift_ms)
        .into_iter()
        .map(|append| append.into_frame(0, LogTime(NOW_US)))
        .collect();
    let wanted = comparable(&frames);
    assert_eq!(wanted.values().map(Vec::len).sum::<usize>() as u64, EVENTS);

    let arrow = [("content-type", "application/vnd.apache.arrow.stream")];
    for (what, headers, body) in [
        ("json", &[][..], ads1.body(0..EVENTS, shift_ms)),
        ("arrow", &arrow[..], ads1.arrow_body(0..EVENTS, shift_ms)),
    ] {
        let world = world();
        let answer = world.collect_as("collects", headers, body).await;
        assert_eq!(answer.status, 202, "{what}: {}", answer.json());
        let mut taken = world.log.frames(Topic::Events);
        taken.sort_by_key(|frame| frame.partition);
        assert!(comparable(&taken) == wanted, "{what}: the rows differ");
        assert_eq!(payloads(&taken), payloads(&frames), "{what}");
    }
}
