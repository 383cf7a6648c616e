//! What every log is tested by, whichever it is: the embedded one in `cargo test`, Kafka against
//! real brokers. Takes a log that is empty and durable at once, with three partitions of events.
//!
//! Sizes and counts that only the embedded log knows exactly (`End::bytes`, `End::records`) are
//! its own tests' business, and so is that its offsets have no gaps: this goes on from
//! [`Frame::next`], as all users do.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use super::{Append, FRAME_RECORDS_MAX, Frame, Log, LogError, Topic, append_and_wait};
use crate::time::LogTime;
use arrow_buffer::Buffer;

/// How many partitions of events the log must have.
pub const PARTITIONS: u16 = 3;

/// All of it.
pub fn holds(log: &dyn Log) {
    an_empty_log_is_empty(log);
    let expected = fill(log, 90);
    assert_holds(log, &expected);
    one_append_may_span_topics(log);
    reads_are_cut_by_bytes_and_ranges(log);
    what_is_not_there_is_refused(log);
    times_find_offsets(log);
    ends_go_on(log);
}

/// A batch that says what it is.
pub fn append(topic: Topic, partition: u16, payload: &[u8]) -> Append {
    let payload = Buffer::from(payload);
    Append { topic, partition, schema_version: 1, records: 1 + u32::from(partition), payload }
}

/// Bytes that follow from a seed.
pub fn payload(seed: u64, bytes: usize) -> Vec<u8> {
    let step = |word: &mut u64| {
        *word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed | 1);
        Some((*word >> 56) as u8)
    };
    std::iter::repeat(()).scan(seed, |word, ()| step(word)).take(bytes).collect()
}

/// Appends numbered frames of mixed sizes to all partitions of events; what each then holds.
pub fn fill(log: &dyn Log, frames: u64) -> Vec<Vec<Vec<u8>>> {
    let mut expected = vec![Vec::new(); usize::from(PARTITIONS)];
    for nth in 0..frames {
        let payload = payload(nth, 1 + (nth as usize * 37) % 900);
        let partition = (nth % u64::from(PARTITIONS)) as u16;
        let at = append_and_wait(log, vec![append(Topic::Events, partition, &payload)]).unwrap();
        assert_eq!(at.len(), 1);
        expected[usize::from(partition)].push(payload);
    }
    expected
}

/// All frames of a partition, in small reads.
pub fn all(log: &dyn Log, topic: Topic, partition: u16) -> Vec<Frame> {
    let end = log.ends(topic)[usize::from(partition)].offset;
    let mut from = log.first(topic, partition);
    let mut out: Vec<Frame> = Vec::new();
    while from < end {
        let frames = log.read(topic, partition, from, end, 3_000).unwrap();
        assert!(frames.iter().all(|f| f.offset >= from && f.next <= end), "{from}..{end}");
        from = frames.last().map_or(end, |frame| frame.next);
        out.extend(frames);
    }
    out
}

/// That the log holds these payloads of events, by partition, and nothing else.
pub fn assert_holds(log: &dyn Log, expected: &[Vec<Vec<u8>>]) {
    for (partition, expected) in (0..).zip(expected) {
        await_ends(log, Topic::Events, usize::from(partition), expected.len() as u64);
        let frames = all(log, Topic::Events, partition);
        assert_eq!(frames.len(), expected.len(), "partition {partition}");
        for (frame, expected) in frames.iter().zip(expected) {
            let (offset, is_so) = (frame.offset, frame.payload.as_slice() == expected);
            assert!(is_so, "partition {partition}, offset {offset}: another payload");
        }
        for frame in &frames {
            assert_eq!((frame.partition, frame.foreign.clone()), (partition, None));
            assert_eq!((frame.schema_version, frame.records), (1, 1 + u32::from(partition)));
            assert!((frame.payload.as_ptr() as usize).is_multiple_of(64));
        }
        assert!(frames.is_sorted_by_key(|frame| frame.log_time));
        assert!(frames.windows(2).all(|pair| pair[0].next <= pair[1].offset));
    }
}

fn an_empty_log_is_empty(log: &dyn Log) {
    assert_eq!(log.partitions(Topic::Events), PARTITIONS);
    for topic in Topic::ALL {
        let ends = log.ends(topic);
        assert_eq!(ends.len(), usize::from(log.partitions(topic)));
        assert!(ends.iter().all(|end| end.offset == 0), "{ends:?}");
        assert_eq!(log.first(topic, 0), 0);
        assert_eq!(log.offset_at(topic, 0, LogTime(0)).unwrap(), 0);
    }
    assert_eq!(append_and_wait(log, Vec::new()).unwrap(), []);
}

fn one_append_may_span_topics(log: &dyn Log) {
    let before: Vec<u64> = log.ends(Topic::Events).iter().map(|end| end.offset).collect();
    let frames = vec![
        append(Topic::Events, 2, b"a"),
        append(Topic::Verdicts, 0, b"v"),
        append(Topic::Events, 0, b"b"),
        append(Topic::Events, 2, b"c"),
        append(Topic::Metadata, 0, b"m"),
        append(Topic::Remap, 0, b"r"),
    ];
    let at = append_and_wait(log, frames).unwrap();
    let offsets: Vec<u64> = at.iter().map(|at| at.offset).collect();
    assert_eq!(offsets[..3], [before[2], 0, before[0]]);
    assert!(offsets[3] > offsets[0]);
    let read = |topic, partition, offset| {
        let frames = log.read(topic, partition, offset, offset + 1, 0).unwrap();
        (frames.len(), frames[0].offset, frames[0].payload.to_vec(), frames[0].log_time)
    };
    // Settled before it is asked for: `ends` may answer from some milliseconds ago.
    await_ends(log, Topic::Events, 2, offsets[3] + 1);
    assert_eq!(read(Topic::Events, 2, offsets[0]), (1, offsets[0], b"a".into(), at[0].log_time));
    assert_eq!(read(Topic::Events, 2, offsets[3]), (1, offsets[3], b"c".into(), at[3].log_time));
    assert_eq!(read(Topic::Events, 0, offsets[2]), (1, offsets[2], b"b".into(), at[2].log_time));
    for (topic, nth, payload) in
        [(Topic::Verdicts, 1, b"v"), (Topic::Metadata, 4, b"m"), (Topic::Remap, 5, b"r")]
    {
        await_ends(log, topic, 0, 1);
        assert_eq!(read(topic, 0, 0), (1, 0, payload.into(), at[nth].log_time));
    }
}

fn await_ends(log: &dyn Log, topic: Topic, partition: usize, end: u64) {
    let found = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(2));
        log.ends(topic)[partition].offset >= end
    });
    assert!(found, "{topic:?} {partition} does not reach {end}");
}

fn reads_are_cut_by_bytes_and_ranges(log: &dyn Log) {
    let whole = all(log, Topic::Events, 1);
    let end = log.ends(Topic::Events)[1].offset;
    let one = log.read(Topic::Events, 1, 0, end, 0).unwrap();
    assert_eq!(one.len(), 1, "at least one");
    let many = log.read(Topic::Events, 1, 0, end, usize::MAX).unwrap();
    assert!(many.len() > 1);
    // Backwards, in the middle, again: no read depends on the one before it.
    for nth in [whole.len() - 1, 3, 3, 4, 0, whole.len() / 2] {
        let frame = &whole[nth];
        let read = log.read(Topic::Events, 1, frame.offset, frame.next, usize::MAX).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].offset, &read[0].payload), (frame.offset, &frame.payload));
    }
    let (from, to) = (whole[5].offset, whole[9].offset);
    let mut at = from;
    let mut found = Vec::new();
    while at < to {
        let frames = log.read(Topic::Events, 1, at, to, usize::MAX).unwrap();
        at = frames.last().map_or(to, |frame| frame.next);
        found.extend(frames.into_iter().map(|frame| frame.offset));
    }
    assert_eq!(found, whole[5..9].iter().map(|frame| frame.offset).collect::<Vec<_>>());
}

fn what_is_not_there_is_refused(log: &dyn Log) {
    let end = log.ends(Topic::Events)[0].offset;
    for (from, to) in [(end, end + 1), (0, end + 1), (2, 2), (2, 1)] {
        match log.read(Topic::Events, 0, from, to, 10) {
            Err(LogError::OutOfRange { topic: Topic::Events, partition: 0, .. }) => {}
            other => panic!("{from}..{to}: {other:?}"),
        }
    }
    let refuse = |frame: Append| match append_and_wait(log, vec![frame]) {
        Err(LogError::Invalid { reason }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(log.read(Topic::Events, PARTITIONS, 0, 1, 10).is_err());
    let nowhere = append(Topic::Events, PARTITIONS, b"");
    assert!(refuse(nowhere).contains("has 3 partitions, there is no 3"));
    let records = FRAME_RECORDS_MAX as u32 + 1;
    let many = Append { records, ..append(Topic::Events, 0, b"x") };
    assert!(refuse(many).contains(&format!("{records} records")));
    assert_eq!(log.ends(Topic::Events)[0].offset, end, "nothing was taken");
}

fn times_find_offsets(log: &dyn Log) {
    let frames = all(log, Topic::Events, 0);
    for frame in &frames {
        let found = log.offset_at(Topic::Events, 0, frame.log_time).unwrap();
        let first = frames.iter().find(|f| f.log_time >= frame.log_time).unwrap();
        assert_eq!(found, first.offset);
    }
    let end = log.ends(Topic::Events)[0].offset;
    let after = LogTime(frames.last().unwrap().log_time.0 + 3_600_000_000);
    assert_eq!(log.offset_at(Topic::Events, 0, after).unwrap(), end);
    assert_eq!(log.offset_at(Topic::Events, 0, LogTime(0)).unwrap(), 0);
}

fn ends_go_on(log: &dyn Log) {
    let before = log.ends(Topic::Events);
    let at = append_and_wait(log, vec![append(Topic::Events, 1, b"later")]).unwrap();
    await_ends(log, Topic::Events, 1, at[0].offset + 1);
    let after = log.ends(Topic::Events);
    for (before, after) in before.iter().zip(&after) {
        assert!(before.offset <= after.offset && before.complete_to <= after.complete_to);
    }
    assert!(at[0].offset >= before[1].offset);
    assert!(at[0].log_time >= before[1].complete_to, "{at:?} {before:?}");
}
