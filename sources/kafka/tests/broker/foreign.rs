//! Other people's messages in our topics: they stop nothing, and none is lost.

use crate::world::{Stray, await_end, beside, open, produce, settings};
use trueup_kafka::KafkaSettings;
use trueup_operators::log::{FOREIGN_BYTES_MAX, Foreign, Topic, append_and_wait, contract};

#[test]
fn foreign_messages_are_frames_that_say_why() {
    let _beside = beside();
    let settings =
        KafkaSettings { schema_versions: [3, 1, 1, 1], message_bytes_max: 200_000, ..settings() };
    let log = open(&settings);
    let topic = &settings.events_topic;
    let ours = || contract::append(Topic::Events, 0, b"ours");
    append_and_wait(&log, vec![ours()]).unwrap();
    // One that is larger than we read, in a topic that takes it.
    let large = contract::payload(7, 190_000);
    let stray = |headers, payload| Stray { partition: 0, headers, payload };
    let ok = [("trueup-schema", "3"), ("trueup-records", "2")];
    produce(
        topic,
        &[
            stray(&[], Some(b"{\"hello\":1}")),
            stray(&[("trueup-schema", "two"), ("trueup-records", "1")], Some(b"x")),
            stray(&[("trueup-schema", "4"), ("trueup-records", "1")], Some(b"newer")),
            stray(&[("trueup-schema", "1")], Some(b"x")),
            stray(&[("trueup-schema", "1"), ("trueup-records", "70000")], Some(b"x")),
            stray(&ok, None),
            stray(&ok, Some(b"")),
            stray(&ok, Some(b"as ours")),
            stray(&[], Some(&large)),
        ],
    );
    append_and_wait(&log, vec![ours()]).unwrap();
    await_end(&log, Topic::Events, 0, 11);
    let frames = contract::all(&log, Topic::Events, 0);
    assert_eq!(frames.iter().map(|f| f.offset).collect::<Vec<_>>(), (0..11).collect::<Vec<_>>());
    let bad = |name, value: &str, min, max| {
        Some(Foreign::BadHeader { name, value: value.into(), min, max })
    };
    let wanted = [
        None,
        Some(Foreign::NoHeader { name: "trueup-schema" }),
        bad("trueup-schema", "two", 1, 65_535),
        Some(Foreign::UnknownSchema { version: 4, known: 3 }),
        Some(Foreign::NoHeader { name: "trueup-records" }),
        bad("trueup-records", "70000", 0, 65_536),
        Some(Foreign::NoPayload),
        None,
        None,
        Some(Foreign::NoHeader { name: "trueup-schema" }),
        None,
    ];
    for (frame, foreign) in frames.iter().zip(wanted) {
        assert_eq!(frame.foreign, foreign, "{}", frame.offset);
        if foreign.is_some() {
            assert_eq!((frame.records, frame.schema_version), (1, 0));
        }
    }
    assert_eq!(frames[1].payload.as_slice(), b"{\"hello\":1}");
    assert_eq!((frames[8].schema_version, frames[8].records), (3, 2));
    assert_eq!(frames[9].payload.as_slice(), &large[..FOREIGN_BYTES_MAX]);
}

#[test]
fn what_is_larger_than_the_limit_is_foreign_and_read_past() {
    let _beside = beside();
    let settings = settings();
    let log = open(&settings);
    let ok = [("trueup-schema", "1"), ("trueup-records", "1")];
    let (large, small) = (contract::payload(1, 5_000_000), b"small".to_vec());
    let stray = |payload| Stray { partition: 2, headers: &ok, payload };
    produce(&settings.events_topic, &[stray(Some(&large)), stray(Some(&small))]);
    drop(log);
    let narrow = KafkaSettings { message_bytes_max: 100_000, ..settings };
    let log = open(&narrow);
    await_end(&log, Topic::Events, 2, 2);
    let frames = contract::all(&log, Topic::Events, 2);
    let foreign = Foreign::TooLarge { bytes: 5_000_000, limit_bytes: 100_000 };
    assert_eq!(frames[0].foreign, Some(foreign));
    assert_eq!(frames[0].payload.len(), FOREIGN_BYTES_MAX);
    assert_eq!((frames[1].payload.as_slice(), frames[1].foreign.clone()), (&small[..], None));
}
