//! Messages of other producers: what is an event becomes what the same line of a body becomes, and
//! everything else stays at its place as a row that nobody counts.

use super::{
    http::KEY,
    random::{Random, for_seeds},
    rows::{Row, rows},
};
use crate::{Decoder, Format, Message, MessageDecoder, Rules};
use trueup_operators::{
    event::{SCHEMA_VERSION, columns},
    log::{Append, Frame, Topic},
    time::LogTime,
};

const SKEW_US: i64 = 300_000_000;
const LOG_TIME_US: i64 = 1_790_000_000_000_000;
const BROKEN: [(&str, &str); 8] = [
    ("", "not_an_object"),
    ("   ", "not_an_object"),
    ("[1,2]", "not_an_object"),
    ("{", "bad_json"),
    (r#"{"eventId":"a"} {"eventId":"b"}"#, "bad_json"),
    (r#"{"eventId":"a","eventType":"view"}"#, ""),
    (r#"{"eventId":"","eventType":"click"}"#, ""),
    ("no json at all", "not_an_object"),
];

fn frame(payload: arrow_buffer::Buffer, records: usize) -> Frame {
    let append = Append {
        topic: Topic::Events,
        partition: 0,
        schema_version: SCHEMA_VERSION,
        records: records as u32,
        payload,
    };
    append.into_frame(0, LogTime(LOG_TIME_US))
}

fn good(random: &mut Random, number: usize) -> String {
    let kind = random.pick(&["click", "impression", "conversion"]);
    let more = random.pick(&[
        "",
        r#","publisherId":"p","country":"US""#,
        r#","impressionId":"i1","priceMicros":17"#,
        r#","userId":"u","ip":"10.0.0.1","gdpr":1"#,
        r#","schemaVersion":7"#,
        r#","unheardOf":{"a":[1,2]}"#,
    ]);
    format!(
        concat!(
            r#"{{"eventId":"e{}","eventType":"{}","occurredAt":"2026-09-21T12:00:00.{:03}Z","#,
            r#""campaignId":"c{}","adId":"a"{}}}"#
        ),
        number,
        kind,
        random.below(1000),
        random.below(3),
        more,
    )
}

/// What a body of these lines becomes.
fn of_body(lines: &[String]) -> Vec<Row> {
    if lines.is_empty() {
        return Vec::new();
    }
    let rules = Rules {
        now_us: LOG_TIME_US,
        future_skew_us_max: SKEW_US,
        events_max: lines.len(),
        publishers: &[],
        advertiser_of: &|_| None,
    };
    let body = lines.join("\n");
    let decoded = Decoder::new(KEY, 1).decode(body.as_bytes(), Format::Lines, &rules).unwrap();
    assert_eq!((decoded.accepted, decoded.rejected), (lines.len(), 0), "{:?}", decoded.errors);
    rows(&[frame(decoded.frames[0].payload.clone(), lines.len())], 1)
}

#[test]
fn every_message_is_the_row_at_its_place() {
    for_seeds(60, |random| {
        let mut decoder = MessageDecoder::new(KEY);
        for _ in 0..4 {
            let count = 1 + random.below(40);
            let mut texts: Vec<(String, Option<&str>)> = Vec::new();
            for number in 0..count {
                texts.push(match random.one_in(4) {
                    true => {
                        let (text, code) = BROKEN[random.below(BROKEN.len())];
                        (text.to_owned(), Some(code))
                    }
                    false => (good(random, number), None),
                });
            }
            let messages: Vec<Message<'_>> = texts
                .iter()
                .map(|(text, _)| Message {
                    log_time_us: LOG_TIME_US,
                    payload: text.as_bytes(),
                    foreign: None,
                })
                .collect();
            let made = rows(&[frame(decoder.frame(&messages).unwrap(), count)], 1);
            let lines: Vec<String> =
                texts.iter().filter(|t| t.1.is_none()).map(|t| t.0.clone()).collect();
            let mut expected = of_body(&lines).into_iter();
            assert_eq!(made.len(), count);
            for (row, (text, broken)) in made.into_iter().zip(&texts) {
                let version = row.get(columns::SCHEMA_VERSION).cloned();
                if let Some(code) = broken {
                    assert_eq!(version.as_deref(), Some("0"), "{text}");
                    let extra: serde_json::Value =
                        serde_json::from_str(&row[columns::EXTRA]).unwrap();
                    assert_eq!(extra["message"], **text);
                    let fault = extra["fault"].as_str().unwrap();
                    assert!(fault.starts_with(code) && fault.contains(": "), "{fault}");
                    continue;
                }
                let mut expected = expected.next().unwrap();
                // Filled up where another row has a value; absent means the same.
                let mut row = row;
                for (column, default) in [
                    (columns::SCHEMA_VERSION, "1"),
                    (columns::PRICE_MICROS, "0"),
                    (columns::PRICE_BASIS, "0"),
                ] {
                    row.entry(column.to_owned()).or_insert(default.to_owned());
                    expected.entry(column.to_owned()).or_insert(default.to_owned());
                }
                assert_eq!(row, expected, "{text}");
            }
        }
    });
}

#[test]
fn what_is_known_to_be_foreign_is_not_read_and_no_bytes_panic() {
    let mut decoder = MessageDecoder::new(KEY);
    let long = [b'x'; 5_000];
    let message = |payload, foreign| Message { log_time_us: LOG_TIME_US, payload, foreign };
    let messages = [
        message(&b"\xff\xfe"[..], None),
        message(&long, Some("it has 99 bytes, the limit is 9")),
        message(&b"{\"eventId\":\"\xed\xa0\x80\"}"[..], None),
    ];
    let made = rows(&[frame(decoder.frame(&messages).unwrap(), 3)], 1);
    let fault = |row: usize| {
        let extra: serde_json::Value = serde_json::from_str(&made[row][columns::EXTRA]).unwrap();
        (extra["fault"].as_str().unwrap().to_owned(), extra["message"].as_str().unwrap().len())
    };
    assert!(fault(0).0.starts_with("invalid_utf8: byte 0"));
    assert_eq!(fault(1), ("it has 99 bytes, the limit is 9".to_owned(), 1_024));
    assert!(fault(2).0.starts_with("invalid_utf8: byte 12"));
    assert!(made.iter().all(|row| row[columns::SCHEMA_VERSION] == "0"));
}

#[test]
fn what_a_message_is_does_not_depend_on_when_a_broker_says_that_it_came() {
    let text = concat!(
        r#"{"eventId":"e","eventType":"click","occurredAt":"2099-01-01T00:00:00Z","#,
        r#""campaignId":"c","adId":"a"}"#
    );
    let times = [0, LOG_TIME_US, LOG_TIME_US - 86_400_000_000, i64::MAX];
    let messages =
        times.map(|log_time_us| Message { log_time_us, payload: text.as_bytes(), foreign: None });
    let made = rows(&[frame(MessageDecoder::new(KEY).frame(&messages).unwrap(), 4)], 1);
    let without_time = |row: &Row| {
        let mut row = row.clone();
        row.remove(columns::RECEIVED_AT).unwrap();
        row
    };
    assert_eq!(made[0].get(columns::SCHEMA_VERSION), None, "an event");
    assert!(made.iter().all(|row| without_time(row) == without_time(&made[0])), "{made:?}");
}

#[test]
fn a_click_that_another_collector_took_as_invalid_is_born_so() {
    let text = |more: &str| {
        format!(
            concat!(
                r#"{{"eventId":"e","eventType":"click","occurredAt":"2026-09-21T14:00:00Z","#,
                r#""campaignId":"c","adId":"a"{}}}"#
            ),
            more
        )
    };
    let texts = [
        text(r#","invalidReason":"prefetch""#),
        text(r#","invalidReason":"because""#),
        text(r#","invalidReason":7"#),
        text(""),
    ];
    let message =
        |text| Message { log_time_us: LOG_TIME_US, payload: str::as_bytes(text), foreign: None };
    let messages: Vec<Message<'_>> = texts.iter().map(|text| message(text)).collect();
    let mut decoder = MessageDecoder::new(KEY);
    let made = rows(&[frame(decoder.frame(&messages).unwrap(), 4)], 1);
    let reasons: Vec<_> =
        made.iter().map(|row| row.get(columns::INVALID_REASON).map(String::as_str)).collect();
    assert_eq!(reasons, [Some("prefetch"), None, None, None]);
}

/// An event with these further fields.
fn with(more: &str) -> String {
    format!(
        concat!(
            r#"{{"eventId":"e","eventType":"click","occurredAt":"2026-09-21T14:00:00Z","#,
            r#""campaignId":"c","adId":"a"{}}}"#
        ),
        more
    )
}

fn rows_of(texts: &[String]) -> Vec<Row> {
    let message = |text: &String| Message {
        log_time_us: LOG_TIME_US,
        payload: text.clone().leak().as_bytes(),
        foreign: None,
    };
    let messages: Vec<Message<'_>> = texts.iter().map(message).collect();
    let payload = MessageDecoder::new(KEY).frame(&messages).unwrap();
    rows(&[frame(payload, texts.len())], 1)
}

#[test]
fn what_was_derived_is_no_field_of_the_event() {
    let made = rows_of(&[
        with(""),
        with(r#","invalidReason":"prefetch","consentState":"granted","payloadHash":null"#),
        with(r#","payloadHash":"00000000000000ff","other":1"#),
        with(r#","gdpr":1,"consentState":"granted""#),
        with(r#","gdpr":1"#),
        with(r#","payloadHash":"+0000000000000ff""#),
        with(r#","payloadHash":"ff""#),
    ]);
    let hash = |row: usize| made[row][columns::PAYLOAD_HASH].as_str();
    assert_eq!(hash(2), "255");
    assert_eq!(made[2][columns::EXTRA], r#"{"other":1}"#);
    for same_as_without in [1, 5, 6] {
        assert_eq!(hash(same_as_without), hash(0));
        assert_eq!(made[same_as_without].get(columns::EXTRA), None);
    }
    assert_eq!(made[1].get(columns::CONSENT_STATE), None);
    // Derived again, from what the event says.
    assert_eq!(made[3], made[4]);
    assert_ne!(made[3][columns::CONSENT_STATE], "granted");
}

#[test]
fn a_message_has_room_for_all_that_a_collector_takes_and_derives() {
    let fields: String = (0..64).map(|n| format!(r#","x{n}":1"#)).collect();
    let derived =
        r#","invalidReason":"prefetch","consentState":"x","payloadHash":"0123456789abcdef""#;
    // As numbers are written out: 8,190 bytes of `1e15`.
    let numbers = vec!["1000000000000000.0"; 8_190 / 5].join(",");
    let more = [
        format!("{derived}{fields}"),
        format!("{fields}{derived}"),
        format!(r#","n":[{numbers}]{derived}"#),
        format!(r#"{fields},"y":1,"z":1,"u":1,"v":1"#),
        format!(r#","n":"{}""#, "n".repeat(4 * 8_192 + 1_024)),
    ];
    let made = rows_of(&more.map(|more| with(&more)));
    let broken: Vec<bool> =
        made.iter().map(|row| row.get(columns::SCHEMA_VERSION).is_some_and(|v| v == "0")).collect();
    assert_eq!(broken, [false, false, false, true, true]);
}
