//! A stream that is cut at any byte: timely's own reader of headers sees whole messages as they
//! were, then one that was begun, then the end.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::cluster::failure::{Failure, What};
use std::{net::TcpListener, time::SystemTime};
use trueup_operators::hash;

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn failure() -> Failure {
    let (what, heard, text) = (What::Closed, SystemTime::now(), String::new());
    Failure { generation: 1, process: 1, what, heard, told_by: None, text }
}

fn wire(socket: TcpStream) -> Wire {
    Wire::new(socket, Arc::new(Ending::new()), Arc::new(|ending, _| ending.fail(failure())))
}

/// Messages of these lengths, with bytes that are never 0.
fn messages(lengths: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (seqno, &length) in lengths.iter().enumerate() {
        let (target_lower, target_upper) = (0, 1);
        let header =
            MessageHeader { channel: 7, source: 3, target_lower, target_upper, length, seqno };
        header.write_to(&mut bytes).unwrap();
        bytes.extend((0..length).map(|i| (i % 255) as u8 + 1));
    }
    bytes
}

/// Everything that a wire gives, asked for in pieces of random lengths.
fn read_all(wire: &mut Wire, seed: u64) -> Vec<u8> {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 200_000]);
    for round in 0.. {
        let n = 1 + (hash::mix(round, seed) % [7, 300, 200_000][round as usize % 3]) as usize;
        match wire.read(&mut piece[..n]).unwrap() {
            0 => break,
            n => bytes.extend(&piece[..n]),
        }
    }
    bytes
}

#[test]
fn the_length_is_where_timely_writes_it() {
    let bytes = messages(&[0x0102_0304]);
    assert_eq!(length_of(bytes.first_chunk().unwrap()), 0x0102_0304);
}

#[test]
fn a_stream_that_is_finished_passes_as_it_is() {
    let bytes = messages(&[1, 0x1_0000, 48, 300_000, 8, 8, 8, 0]);
    for seed in 0..4 {
        let (near, far) = pair();
        let sent = bytes.clone();
        let sender = std::thread::spawn(move || (&far).write_all(&sent).unwrap());
        let mut wire = wire(near);
        assert_eq!(read_all(&mut wire, seed), bytes, "seed {seed}");
        assert!(!wire.ending.is_over());
        sender.join().unwrap();
    }
}

#[test]
fn a_stream_that_is_cut_anywhere_ends_after_what_was_whole() {
    let lengths = [16, 100, 8, 400];
    let bytes = messages(&lengths);
    for cut in 0..bytes.len() {
        let (near, far) = pair();
        (&far).write_all(&bytes[..cut]).unwrap();
        drop(far);
        let mut wire = wire(near);
        let got = read_all(&mut wire, cut as u64);
        assert!(wire.ending.is_over(), "cut at {cut}");

        let (mut at, mut whole) = (0, 0);
        loop {
            let header = MessageHeader::try_read(&got[at..]).unwrap();
            let message = &got[at..at + header.required_bytes()];
            at += message.len();
            if header.length == 0 {
                break;
            }
            assert_eq!(header.length, lengths[whole], "cut at {cut}");
            whole += usize::from(at <= cut);
            let right = &bytes[at - message.len()..at.min(cut)];
            assert_eq!(&message[..right.len()], right, "cut at {cut}");
            assert!(message[right.len()..].iter().all(|byte| *byte == 0), "cut at {cut}");
        }
        assert_eq!(at, got.len(), "nothing comes after the end");
        let ends = lengths.iter().scan(0, |end, n| {
            *end += n + HEADER_BYTES;
            Some(*end)
        });
        assert_eq!(whole, ends.filter(|end| *end <= cut).count(), "cut at {cut}");
    }
}

#[test]
fn what_was_begun_is_not_completed_while_a_worker_reads() {
    let (near, far) = pair();
    (&far).write_all(&messages(&[100])[..60]).unwrap();
    drop(far);
    let mut wire = wire(near);
    let ending = Arc::clone(&wire.ending);
    ending.workers_start(1);
    let reading = std::thread::spawn(move || read_all(&mut wire, 1).len());
    ending.wait(std::time::Duration::from_secs(20)).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!reading.is_finished());
    ending.worker_leaves();
    assert_eq!(reading.join().unwrap(), 48 + 100 + 48);
}

#[test]
fn what_is_written_after_the_end_is_swallowed() {
    let (near, far) = pair();
    let mut wire = wire(near);
    wire.write_all(b"before").unwrap();
    wire.ending.fail(failure());
    wire.write_all(&vec![1; 10_000_000]).unwrap();
    wire.shutdown(Shutdown::Write).unwrap();
    drop(wire);
    let mut got = Vec::new();
    (&far).read_to_end(&mut got).unwrap();
    assert_eq!(got, b"before");
}
