//! Whatever bytes come: a frame is taken as it was sent, or not at all.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::cluster::{
    failure::Failure,
    identity::{Identity, Purpose},
};
use trueup_operators::hash;

#[test]
fn a_frame_is_what_the_drawing_says() {
    let bytes = encode(Kind::Go, &[1, 2]);
    let crc = crc32c::crc32c(&[4, 1, 2]);
    assert_eq!(bytes, [&3_u32.to_le_bytes()[..], &crc.to_le_bytes(), &[4, 1, 2]].concat());
}

#[test]
fn frames_are_taken_one_by_one_and_only_whole() {
    let bytes = [encode(Kind::Pulse, &[7; 16]), encode(Kind::Done, &[])].concat();
    for n in 0..bytes.len() {
        let first = decode(&bytes[..n]).unwrap();
        assert_eq!(first.is_some(), n >= HEAD_BYTES + 17, "{n} bytes");
    }
    let (kind, body, n) = decode(&bytes).unwrap().unwrap();
    assert_eq!((kind, body), (Kind::Pulse, &[7; 16][..]));
    let (kind, body, m) = decode(&bytes[n..]).unwrap().unwrap();
    assert_eq!((kind, body, n + m), (Kind::Done, &[][..], bytes.len()));
}

#[test]
fn a_flipped_bit_is_never_taken() {
    let bytes = encode(Kind::Response, b"\x07\0\0\0\0\0\0\0\0yes");
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // A length that is too long waits for bytes that never come.
        assert!(!matches!(decode(&flipped), Ok(Some(_))), "bit {bit}");
    }
}

#[test]
fn a_length_out_of_range_is_refused_before_anything_is_waited_for() {
    for n in [0, FRAME_BYTES_MAX as u32 + 2, u32::MAX] {
        let head = [n.to_le_bytes(), [0; 4]].concat();
        let said = decode(&head).unwrap_err().to_string();
        assert!(said.contains(&format!("a frame of {n} bytes")), "{said}");
    }
}

#[test]
fn nothing_that_is_read_from_random_bytes_panics() {
    for seed in 0..20_000 {
        let n = hash::mix(seed, 1) % 64;
        let bytes: Vec<u8> = (0..n).map(|i| hash::mix(seed, i + 2) as u8).collect();
        drop((decode(&bytes), number(&bytes)));
        drop((Identity::decode(&bytes), Failure::decode(&bytes, 1, 0)));
    }
}

#[test]
fn an_identity_and_a_failure_are_read_as_they_were_written() {
    let identity = Identity {
        purpose: Purpose::Link,
        process: 3,
        processes: 64,
        threads: 5,
        generation: u64::MAX - 1,
        cluster: "Überlingen".into(),
        version: "0.1.0+00ff".into(),
    };
    let bytes = identity.encode();
    assert_eq!(Identity::decode(&bytes).unwrap(), identity);
    (0..bytes.len()).for_each(|n| drop(Identity::decode(&bytes[..n]).unwrap_err()));
    assert!(Identity::decode(&[&bytes[..], &[0]].concat()).is_err());

    let failure = Failure {
        generation: 9,
        process: 2,
        what: crate::cluster::What::Silent,
        heard: std::time::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        told_by: Some(1),
        text: "nothing came".into(),
    };
    assert_eq!(Failure::decode(&failure.encode(), 9, 1).unwrap(), failure);
    // Who tells of itself is not told of by another.
    assert_eq!(Failure::decode(&failure.encode(), 9, 2).unwrap().told_by, None);
}
