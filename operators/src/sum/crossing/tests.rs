//! Chunks that cross: what a peer sends means the same texts here, and what no honest peer sends is
//! refused while it is read.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    metrics::Metrics,
    symbols::{ABSENT, OTHER},
    time::Bucket,
};
use timely::{bytes::arc::BytesMut, dataflow::channels::ContainerBytes};

type Sums = Vec<Chunk<2, Metrics>>;

fn symbols(texts: &[&str]) -> Arc<Symbols> {
    let symbols = Arc::new(Symbols::default());
    texts.iter().for_each(|text| {
        symbols.intern(text);
    });
    symbols
}

fn chunk(target: u32, keys: &[[Symbol; 2]]) -> Chunk<2, Metrics> {
    let sum = |(i, &key)| Sum {
        key,
        bucket: Bucket(i as i32),
        metrics: Metrics { impressions: i as i64 + 1, ..Metrics::default() },
    };
    let sums = keys.iter().enumerate().map(sum).collect();
    Chunk { target, rollup: 3, granularity: None, overflows: 5, form: Form::Here, sums }
}

fn texts_of(chunk: &Chunk<2, Metrics>, symbols: &Symbols) -> Vec<[String; 2]> {
    chunk.sums.iter().map(|sum| sum.key.map(|symbol| symbols.text(symbol).to_string())).collect()
}

/// Over the wire as timely writes it.
fn sent(chunks: &Sums) -> Sums {
    let mut bytes = Vec::new();
    chunks.into_bytes(&mut bytes);
    assert_eq!(bytes.len(), chunks.length_in_bytes());
    Sums::from_bytes(BytesMut::from(bytes).freeze())
}

#[test]
fn a_chunk_within_its_process_stays_as_it_is() {
    let here = symbols(&["cmp_1", "US"]);
    let mut crossing = Crossing::new(here, 3, 2);
    // Workers 2 and 3 are process 1.
    for target in [2, 3] {
        let chunk = chunk(target, &[[2, 3], [2, ABSENT]]);
        assert_eq!(crossing.depart(chunk.clone()), chunk);
        assert_eq!(crossing.arrive(chunk.clone()), chunk);
    }
}

#[test]
fn a_chunk_that_crosses_means_the_same_texts() {
    let here = symbols(&["cmp_1", "cmp_2", "US", "Überlingen"]);
    let there = symbols(&["DE", "US", "cmp_9", "cmp_1"]);
    let mut departing = Crossing::new(Arc::clone(&here), 0, 1);
    let mut arriving = Crossing::new(Arc::clone(&there), 1, 1);
    let keys = [[2, 4], [3, 4], [2, ABSENT], [3, OTHER], [2, 5], [3, 4]];
    for keys in [&keys[..], &keys[4..], &[], &keys[..1]] {
        let before = chunk(1, keys);
        let crossing = departing.depart(before.clone());
        let named: std::collections::BTreeSet<Symbol> = keys.iter().flatten().copied().collect();
        assert!(crossing.sums.is_empty(), "all of it is packed");
        let after = sent(&vec![crossing]).remove(0);
        let Form::Arrived(texts) = &after.form else { panic!("{after:?}") };
        assert_eq!(texts.ends.len(), named.len(), "each once");
        let after = arriving.arrive(after);
        assert_eq!(texts_of(&after, &there), texts_of(&before, &here));
        assert_eq!(after.form, Form::Here);
        let figures = |c: &Chunk<2, Metrics>| -> Vec<_> {
            c.sums.iter().map(|s| (s.bucket, s.metrics)).collect()
        };
        assert_eq!(figures(&after), figures(&before));
        assert_eq!((after.target, after.rollup, after.overflows), (1, 3, 5));
    }
    assert_eq!(there.find("Überlingen").map(|s| there.text(s).to_string()).unwrap(), "Überlingen");
    assert!(there.find("cmp_2").is_some());
}

#[test]
fn a_symbol_that_came_after_the_last_chunk_is_known() {
    let here = symbols(&["a"]);
    let there = symbols(&[]);
    let mut departing = Crossing::new(Arc::clone(&here), 0, 1);
    let mut arriving = Crossing::new(Arc::clone(&there), 1, 1);
    for text in ["b", "c"] {
        let new = here.intern(text);
        let departed = departing.depart(chunk(1, &[[new, ABSENT]]));
        let after = arriving.arrive(sent(&vec![departed]).remove(0));
        assert_eq!(texts_of(&after, &there), [[text.to_owned(), String::new()]]);
    }
}

#[test]
fn what_is_on_the_wire_is_what_the_drawing_says() {
    let here = symbols(&["cmp_1"]);
    let crossing = Crossing::new(here, 0, 1).depart(chunk(1, &[[2, ABSENT]]));
    let mut bytes = Vec::new();
    vec![crossing].into_bytes(&mut bytes);
    let mut expected: Vec<u8> = Vec::new();
    expected.extend(1_u64.to_le_bytes()); // chunks
    expected.extend(1_u32.to_le_bytes()); // target
    expected.extend(3_u16.to_le_bytes()); // rollup
    expected.push(0); // by minute
    expected.extend(5_u64.to_le_bytes()); // overflows
    expected.push(1); // packed
    expected.extend((12 + 8 + 5 + 48_u64).to_le_bytes());
    expected.extend([2_u32, 1, 5, 5, 5].iter().flat_map(|number| number.to_le_bytes()));
    expected.extend(b"cmp_1");
    expected.extend([0_u32, 1].iter().flat_map(|place| place.to_le_bytes()));
    expected.extend(0_i32.to_le_bytes());
    expected.extend(1_i64.to_le_bytes()); // impressions
    expected.extend([0; 28]);
    expected.extend(0_u64.to_le_bytes()); // sums that are not packed
    expected.resize(expected.len().next_multiple_of(8), 0);
    assert_eq!(bytes, expected);
}

#[test]
fn what_no_honest_peer_sends_is_refused() {
    let read = |joined: &str, ends: &[u32], keys: &[[Symbol; 2]]| {
        let texts = Texts { joined: joined.to_owned(), ends: ends.to_vec() };
        unpack::<2, Metrics>(&pack(&texts, &chunk(1, keys).sums)).map(|read| read.sums.len())
    };
    assert_eq!(read("ab", &[1, 2], &[[0, 1]]), Ok(1));
    assert_eq!(read("", &[], &[]), Ok(0));
    for (joined, ends, keys, said) in [
        ("ab", &[1, 2][..], &[[0, 2]][..], "a key names text 2 of 2"),
        ("", &[], &[[0, 0]], "a key names text 0 of 0"),
        ("ab", &[2, 1], &[], "text 1 would be bytes 2..1 of 2"),
        ("ab", &[3], &[], "text 0 would be bytes 0..3 of 2"),
        ("Ü", &[1, 2], &[], "text 0 would be bytes 0..1 of 2"),
        ("ab", &[1], &[], "its texts end at byte 1 of 2"),
    ] {
        assert_eq!(read(joined, ends, keys).unwrap_err(), said);
    }
}

#[test]
fn packed_bytes_that_were_cut_or_changed_are_refused_or_read_and_never_panic() {
    let texts = Texts { joined: "cmp_1Ü".into(), ends: vec![5, 7] };
    let whole = pack(&texts, &chunk(1, &[[0, 1], [1, 0]]).sums);
    assert!(unpack::<2, Metrics>(&whole).is_ok());
    for len in 0..whole.len() {
        assert!(unpack::<2, Metrics>(&whole[..len]).is_err(), "{len} bytes");
    }
    let mut refused = 0;
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        refused += usize::from(unpack::<2, Metrics>(&bytes).is_err());
    }
    // Numbers of texts and sums, ends, and places beyond the second text.
    assert!(refused > 12 * 8 + 7 * 8, "{refused} of {} bits", whole.len() * 8);
    assert!(unpack::<2, Metrics>(&[0xFF; 400]).is_err());
}
