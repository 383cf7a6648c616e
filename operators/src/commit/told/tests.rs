//! What is told arrives as it was said, in the order in which it was said, however it was cut; and
//! what no honest peer sends is refused while it is read.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::{change::Key, metrics::Metrics, money::Nanos, symbols::ABSENT, time::Granularity};
use proptest::{collection::vec, prelude::*, sample::Index};
use timely::{bytes::arc::BytesMut, dataflow::channels::ContainerBytes};

type Word = Said<2, Metrics>;

const TABLE: TableId = TableId { rollup: 3, granularity: Granularity::Hour };

/// One thing that was said, with texts: however changes are cut, these are the same.
#[derive(Clone, Debug, PartialEq)]
enum Line {
    Row(TableId, Bucket, u32, u32, [String; 2], Metrics, Metrics),
    Counts(Counts),
    Incident(Incident),
}

fn lines(said: &[Word], symbols: &Symbols) -> Vec<Line> {
    let mut lines = Vec::new();
    for said in said {
        match said {
            Said::Changes(Changes { table, bucket, changes }) => {
                lines.extend(changes.iter().map(|c| {
                    let texts = c.key.map(|symbol| symbols.text(symbol).to_string());
                    Line::Row(*table, *bucket, c.row, c.old_version, texts, c.old, c.new)
                }));
            }
            Said::Counts(counts) => lines.push(Line::Counts(*counts)),
            Said::Incidents(of) => lines.extend(of.iter().copied().map(Line::Incident)),
        }
    }
    lines
}

/// The parcels of all that was said, under a limit.
fn parcels(said: &[Word], symbols: &Arc<Symbols>, bytes_max: usize) -> Vec<Arc<Vec<u8>>> {
    Packing::new(Arc::clone(symbols), bytes_max).pack(said)
}

/// A message over the wire as timely writes it.
fn sent(parcel: &Arc<Vec<u8>>) -> Told<2, Metrics> {
    let told: Told<2, Metrics> =
        Told { to: 5, from: 1, parcel: Parcel::Leaving(Arc::clone(parcel)) };
    let told = vec![told];
    let mut bytes = Vec::new();
    told.into_bytes(&mut bytes);
    assert_eq!(bytes.len(), told.length_in_bytes());
    let told = Vec::<Told<2, Metrics>>::from_bytes(BytesMut::from(bytes).freeze()).remove(0);
    assert_eq!((told.to, told.from), (5, 1));
    told
}

fn metrics() -> impl Strategy<Value = Metrics> {
    any::<(i64, i64, [i32; 5])>().prop_map(|(impressions, spend, [a, b, c, d, e])| Metrics {
        impressions,
        spend: Nanos(spend),
        clicks: a,
        conversions: b,
        invalid_impressions: c,
        invalid_clicks: d,
        invalid_conversions: e,
        reserved: 0,
    })
}

/// Keys are places in the list of texts, until there are symbols.
fn change() -> impl Strategy<Value = Change<2, Metrics>> {
    (0..ROWS_MAX_MAX, any::<u32>(), any::<Key<2>>(), metrics(), metrics())
        .prop_map(|(row, old_version, key, old, new)| Change { row, old_version, key, old, new })
}

fn word() -> impl Strategy<Value = Word> {
    let table = (any::<u16>(), 0..3_usize, any::<i16>());
    let table = table.prop_map(|(rollup, width, bucket)| {
        (TableId { rollup, granularity: Granularity::ALL[width] }, Bucket(bucket.into()))
    });
    let changes = (table, vec(change(), 1..30))
        .prop_map(|((table, bucket), changes)| Said::Changes(Changes { table, bucket, changes }));
    let counts = any::<[u64; Counts::NUMBERS]>()
        .prop_map(|numbers| Said::Counts(Counts::of_numbers(numbers)));
    let incident = (0..5_usize, any::<(u16, u64, u16, i64)>()).prop_map(|(fate, at)| {
        let (partition, offset, row, log_time_us) = at;
        let position = Position { partition, offset, row };
        Incident { fate: Fate::ALL[fate], position, log_time: LogTime(log_time_us) }
    });
    prop_oneof![3 => changes, 1 => counts, 1 => vec(incident, 1..30).prop_map(Said::Incidents)]
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    vec(vec(any::<char>(), 0..40).prop_map(String::from_iter), 1..40)
}

/// Puts symbols in the place of places.
fn named(mut said: Vec<Word>, texts: &[String], symbols: &Symbols) -> Vec<Word> {
    for said in &mut said {
        let Said::Changes(changes) = said else { continue };
        for change in &mut changes.changes {
            change.key =
                change.key.map(|place| symbols.intern(&texts[place as usize % texts.len()]));
        }
    }
    said
}

proptest! {
    #[test]
    fn what_is_told_arrives_as_it_was_said(
        said in vec(word(), 0..12),
        texts in texts(),
        known in vec(any::<Index>(), 0..20),
        bytes_max in prop_oneof![0..3_000_usize, Just(PARCEL_BYTES_MAX)],
    ) {
        let (here, there) = (Arc::new(Symbols::default()), Arc::new(Symbols::default()));
        let said = named(said, &texts, &here);
        known.iter().for_each(|index| {
            there.intern(&texts[index.index(texts.len())]);
        });
        let parcels = parcels(&said, &here, bytes_max);
        let (mut arrived, mut room) = (Vec::new(), Vec::new());
        for parcel in &parcels {
            let told = sent(parcel).arrive(&there, &mut room);
            let things = lines(&told, &there).len();
            prop_assert!(parcel.len() <= bytes_max || things == 1, "{things} things");
            prop_assert!(room.is_empty());
            arrived.extend(told);
        }
        prop_assert_eq!(lines(&arrived, &there), lines(&said, &here));
        if bytes_max == PARCEL_BYTES_MAX {
            prop_assert_eq!(parcels.len(), usize::from(!said.is_empty()));
        }
        // Whoever packed them goes on with other words.
        let mut packing = Packing::new(Arc::clone(&here), bytes_max);
        prop_assert_eq!(packing.pack(&said), parcels.clone());
        prop_assert_eq!(packing.pack(&said), parcels);
    }

    #[test]
    fn bytes_that_were_changed_are_refused_or_read_and_never_panic(
        said in vec(word(), 1..6),
        texts in texts(),
        changes in vec((any::<Index>(), any::<u8>()), 1..6),
        cut in any::<Index>(),
    ) {
        let here = Arc::new(Symbols::default());
        let said = named(said, &texts, &here);
        let whole = parcels(&said, &here, PARCEL_BYTES_MAX).remove(0);
        let refused = unpack::<2, Metrics>(&whole[..cut.index(whole.len())]).is_err();
        prop_assert!(refused, "it was cut");
        let mut bytes = whole.to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(unpacked) = unpack::<2, Metrics>(&bytes) {
            let told = Told { to: 0, from: 1, parcel: Parcel::Arrived(unpacked) };
            let there = Symbols::default();
            lines(&told.arrive(&there, &mut Vec::new()), &there);
        }
    }

    #[test]
    fn bytes_at_random_are_refused_and_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(unpack::<2, Metrics>(&bytes).is_err());
    }

    #[test]
    fn parts_at_random_are_refused_or_read_and_never_panic(
        parts in 0..4_u32,
        mut bytes in vec(prop_oneof![0..3_u8, any::<u8>()], 0..400),
    ) {
        let mut parcel = Vec::new();
        for number in [parts, bytes.len() as u32, 1, 1] {
            parcel.extend(number.to_le_bytes());
        }
        parcel.append(&mut bytes);
        parcel.extend([1, 0, 0, 0, b'x']);
        if let Ok(Unpacked { texts, said }) = unpack::<2, Metrics>(&parcel) {
            prop_assert_eq!((texts.len(), said.len()), (1, parts as usize));
        }
    }
}

/// One row, the counts 1 to 11 and one incident.
fn small(symbols: &Symbols) -> Vec<Word> {
    let key = [symbols.intern("cmp_1"), ABSENT];
    let old = Metrics { impressions: 4, ..Metrics::default() };
    let new = Metrics { impressions: 5, ..Metrics::default() };
    let changes = vec![Change { row: 9, old_version: 7, key, old, new }];
    let position = Position { partition: 6, offset: 1 << 40, row: 8 };
    let incident = Incident { fate: Fate::TooLate, position, log_time: LogTime(-2) };
    vec![
        Said::Changes(Changes { table: TABLE, bucket: Bucket(-1), changes }),
        Said::Counts(Counts::of_numbers(std::array::from_fn(|i| i as u64 + 1))),
        Said::Incidents(vec![incident]),
    ]
}

#[test]
fn what_is_on_the_wire_is_what_the_drawing_says() {
    let symbols = Arc::new(Symbols::default());
    let parcel = parcels(&small(&symbols), &symbols, PARCEL_BYTES_MAX).remove(0);
    let told: Told<2, Metrics> = Told { to: 5, from: 1, parcel: Parcel::Leaving(parcel) };
    let mut bytes = Vec::new();
    vec![told].into_bytes(&mut bytes);

    let mut parts: Vec<u8> = vec![0, 3, 0, 1, 0]; // changes, rollup, hour
    parts.extend((-1_i32).to_le_bytes());
    parts.extend([1_u32, 9, 7, 0, 1].iter().flat_map(|number| number.to_le_bytes()));
    for impressions in [4_i64, 5] {
        parts.extend(impressions.to_le_bytes());
        parts.extend([0; 28]);
    }
    parts.push(1); // counts
    (1..=11_u64).for_each(|number| parts.extend(number.to_le_bytes()));
    parts.extend([2, 1, 0, 0, 0, 4, 6, 0]); // incidents, one, too late, partition
    parts.extend((1_u64 << 40).to_le_bytes());
    parts.extend(8_u16.to_le_bytes());
    parts.extend((-2_i64).to_le_bytes());

    let mut expected: Vec<u8> = Vec::new();
    expected.extend(1_u64.to_le_bytes()); // messages
    expected.extend([5_u32, 1].iter().flat_map(|number| number.to_le_bytes()));
    expected.extend((16 + parts.len() as u64 + 2 * 4 + 5).to_le_bytes());
    let head = [3, parts.len() as u32, 2, 5];
    expected.extend(head.iter().flat_map(|number| number.to_le_bytes()));
    expected.append(&mut parts);
    expected.extend([5_u32, 5].iter().flat_map(|end| end.to_le_bytes()));
    expected.extend(b"cmp_1");
    expected.resize(expected.len().next_multiple_of(8), 0);
    assert_eq!(bytes, expected);
}

#[test]
fn counts_are_told_number_by_number() {
    let counts = Counts {
        fates: [1, 2, 3, 4, 5],
        late: 6,
        verdicts: 7,
        retractions: 8,
        verdicts_too_late: 9,
        arithmetic_errors: 10,
        folded: 11,
    };
    assert_eq!(counts.numbers(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    assert_eq!(Counts::of_numbers(counts.numbers()), counts);
}

#[test]
fn what_no_honest_peer_sends_is_refused() {
    let symbols = Arc::new(Symbols::default());
    let whole = parcels(&small(&symbols), &symbols, PARCEL_BYTES_MAX).remove(0);
    let end = whole.len();
    let (counts, incidents) = (16 + 13 + 16 + 72, 16 + 13 + 16 + 72 + 89);
    for (at, byte, said) in [
        (0, 2, "a part of what a peer said: has"),
        (0, 4, "a part of what a peer said: is cut short"),
        (4, 0, "what a peer said: has 245 bytes and ends at byte 29"),
        (4, 0xFF, "what a peer said: is cut short"),
        (8, 1, "what a peer said: has"),
        (12, 4, "what a peer said: has"),
        (16, 3, "has the code 3, which none has"),
        (19, 3, "names granularity 3"),
        (24, 0x7F, "names granularity 1, bucket 2147483647"),
        (25, 3, "is cut short"),
        (32, 0x7F, "names row 2130706441, a bucket has 64000000 at most"),
        (38, 2, "names text 512 of 2"),
        (42, 2, "names text 513 of 2"),
        (counts, 9, "has the code 9"),
        (incidents + 1, 2, "is cut short"),
        (incidents + 5, 5, "names fate 5, which none is"),
        (end - 13, 6, "text 0 would be bytes 0..6 of 5"),
        (end - 9, 4, "text 1 would be bytes 5..4 of 5"),
        (end - 1, 0xFF, "its texts: invalid utf-8"),
    ] {
        let mut bytes = whole.to_vec();
        bytes[at] = byte;
        let refused = unpack::<2, Metrics>(&bytes).unwrap_err().to_string();
        assert!(refused.contains(said), "byte {at}: {refused}");
    }
}

#[test]
fn what_stays_is_not_written_and_what_was_told_is_not_told_again() {
    let symbols = Arc::new(Symbols::default());
    let said = small(&symbols);
    let told = |parcel| Told { to: 0, from: 0, parcel };
    let here = told(Parcel::Here(said.clone()));
    assert!(serde_json::to_string(&here).is_err());
    let parcel = parcels(&said, &symbols, PARCEL_BYTES_MAX).remove(0);
    assert!(
        serde_json::to_string(&told(Parcel::<2, Metrics>::Leaving(Arc::clone(&parcel)))).is_ok()
    );
    assert!(serde_json::to_string(&sent(&parcel)).is_err());
}
