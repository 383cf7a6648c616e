//! What is fuzzed, without a fuzzer: the entry points of `tests/fuzz` over a corpus and seeded
//! changes to it, so that every run of the tests looks for what a long run of the fuzzer would.

#[path = "../fuzz/entries.rs"]
#[expect(unreachable_pub, reason = "it is also the library of the fuzz targets")]
mod entries;

use crate::{
    mutate::mutate,
    seed::{count, seed},
    traffic::{arrow_body, click},
};
use serde_json::json;
use trueup_generator::random::Random;

const NOW_US: i64 = 1_795_348_800_000_000;

/// Bodies in each format, each behind the byte that chooses it.
fn bodies() -> Vec<Vec<u8>> {
    let events: Vec<_> = (0..3).map(|n| click(&format!("event {n}"), NOW_US - n)).collect();
    let odd = json!({
        "eventId": "é\u{1F600}\\\"", "eventType": "conversion",
        "occurredAt": "2026-11-22T01:02:03.000001+05:30",
        "campaignId": "c", "adId": "a", "valueMicros": -5, "priceBasis": "cpa", "priceMicros": 1,
        "ip": "2001:db8::1", "userId": "u", "gdpr": 1, "tcString": "CP", "gpp": "D", "gppSid": "7",
        "usPrivacy": "1YNN", "gpc": true, "coppa": 0, "lmt": 1, "schemaVersion": 2,
        "unknown": { "nested": [1, 2.5e-3, null, true, "x"] }
    });
    let json = json!({ "events": [events[0], events[1], odd] }).to_string();
    let lines: Vec<String> =
        events.iter().chain([&odd]).map(|event| event.to_string() + "\n").collect();
    let arrow = arrow_body();
    let mut bodies = Vec::new();
    for choice in [0, 9, 129] {
        bodies.push([&[choice][..], json.as_bytes()].concat());
        bodies.push([&[choice + 1][..], lines.concat().as_bytes()].concat());
        bodies.push([&[choice + 2][..], &arrow].concat());
    }
    bodies
}

#[test]
fn any_body_is_decoded_or_refused() {
    let seed = seed("any_body_is_decoded_or_refused");
    let corpus = bodies();
    corpus.iter().for_each(|body| entries::decode_a_body(body));
    let mut random = Random::new(seed, 0);
    for _ in 0..count("TRUEUP_IT_MUTATIONS", 20_000) {
        let mut body = random.pick(&corpus).clone();
        mutate(&mut body, &mut random);
        entries::decode_a_body(&body);
    }
}

#[test]
fn a_damaged_segment_gives_what_was_written_or_says_that_it_cannot() {
    let seed = seed("a_damaged_segment_gives_what_was_written_or_says_that_it_cannot");
    let journal = entries::SoundJournal::new();
    journal.read(journal.segment_bytes());
    let mut random = Random::new(seed, 0);
    for _ in 0..count("TRUEUP_IT_MUTATIONS", 20_000) / 10 {
        let changes = 4 * (1 + random.below(3) as usize);
        let changes: Vec<u8> = (0..changes).map(|_| random.bits() as u8).collect();
        journal.read_damaged(&changes);
    }
}
